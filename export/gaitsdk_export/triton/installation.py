"""Finds a tritonserver, and lays out what the one in the `nvidia-pytriton` wheel needs to run outside its container."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from gaitsdk.errors import ServerError

#: The wheel whose server runs on a CPU-only Linux machine. For tests and demos: it is older than security fixes.
WHEEL = "nvidia-pytriton==0.7.0"
_FIX = f"pip install --no-deps --target .triton {WHEEL} (or set TRITON_SERVER to a tritonserver), Linux only"


@dataclass(frozen=True)
class Installation:
    """A tritonserver on this machine.

    Attributes:
        executable: the program.
        wheel: the folder that holds `pytriton/` and `nvidia_pytriton.libs/`, or None for any other server (container).
    """

    executable: Path
    wheel: Path | None = None

    def arrange(self, folder: Path) -> tuple[list[str], dict[str, str]]:
        """Prepares `folder` for a run; gives arguments and environment variables that the server needs.

        The wheel's Python backend takes the import path of the first `python3` on PATH and ignores PYTHONPATH, so the
        folder gets an interpreter of its own that sees exactly what this process sees (editable installs too) and
        writes no `__pycache__`, which stops a server where it turns up among the models.
        """
        environment = dict(os.environ, PYTHONDONTWRITEBYTECODE="1")
        if self.wheel is None:
            environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
            return [], environment
        self._arrange_backends(folder / "backends" / "python")
        _arrange_python(folder / "python")
        libraries = [str(self.wheel / "nvidia_pytriton.libs"), str(sysconfig.get_config_var("LIBDIR"))]
        inherited = environment.get("LD_LIBRARY_PATH")
        environment["LD_LIBRARY_PATH"] = os.pathsep.join([*libraries, *([inherited] if inherited else [])])
        environment["PATH"] = os.pathsep.join([str(folder / "python" / "bin"), environment.get("PATH", "")])
        return ["--backend-directory", str(folder / "backends")], environment

    def options(self) -> frozenset[str]:
        """The options that the program knows, from what it prints for `--help`.

        Raises:
            ServerError: it cannot be started.
        """
        try:
            printed = subprocess.run(
                [self.executable, "--help"], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise ServerError("tritonserver cannot be started", where=str(self.executable), got=str(error)) from error
        return frozenset(re.findall(r"^\s+(--[a-z0-9-]+)", printed.stdout + printed.stderr, re.MULTILINE))

    def _arrange_backends(self, folder: Path) -> None:
        server = self.executable.parent.parent
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
        if not stub.is_file():
            there = sorted(each.name for each in stub.parent.parent.glob("*"))
            raise ServerError(
                "this tritonserver cannot run models in this Python",
                where=str(server),
                got=f"Python {version}",
                expected=f"one of {', '.join(there)}",
                fix="use one of these versions of Python",
            )
        folder.mkdir(parents=True)
        (folder / stub.name).symlink_to(stub)
        for each in (server / "backends" / "python").iterdir():
            if each.is_file():
                (folder / each.name).symlink_to(each)


def find_server() -> Installation:
    """The tritonserver to use, the first of: `$TRITON_SERVER` (the program), `$GAITSDK_TRITON_DIR` (where the wheel was
    unpacked), PATH, the wheel in this environment, and a folder `.triton` beside the source tree or the environment.

    Raises:
        ServerError: there is none, or the one that a variable names is not there.
    """
    if named := os.environ.get("TRITON_SERVER"):
        program = Path(named)
        if not program.is_file():
            raise ServerError("no such program", where="TRITON_SERVER", got=named, fix="correct or unset it")
        program = program.resolve()
        in_wheels = (_in_wheel(folder) for folder in program.parents)
        return next((each for each in in_wheels if each and each.executable == program), Installation(program))
    if folder := os.environ.get("GAITSDK_TRITON_DIR"):
        found = _in_wheel(Path(folder))
        if found is None:
            raise ServerError(f"no {WHEEL} in there", where="GAITSDK_TRITON_DIR", got=folder, fix=_FIX)
        return found
    if program_on_path := shutil.which("tritonserver"):
        return Installation(Path(program_on_path).resolve())
    spec = importlib.util.find_spec("pytriton")
    folders = [Path(each).parent for each in (spec.submodule_search_locations or ())] if spec else []
    source_tree, environment = Path(__file__).parents[3], Path(sys.prefix).parent
    for candidate in (*folders, source_tree / ".triton", environment / ".triton"):
        if found := _in_wheel(candidate):
            return found
    raise ServerError("no tritonserver found", fix=_FIX)


def whereabouts() -> str:
    """The server's place, or why there is none; for `gaitsdk doctor`."""
    try:
        return str(find_server().executable)
    except ServerError as error:
        return f"not found: {error}"


def _in_wheel(folder: Path) -> Installation | None:
    folder = folder.resolve()
    program = folder / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    return Installation(program, wheel=folder) if program.is_file() else None


def _arrange_python(folder: Path) -> None:
    """A virtual environment without packages whose site file adds the import path of this process."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site_packages = folder / "lib" / version / "site-packages"
    site_packages.mkdir(parents=True)
    (folder / "bin").mkdir()
    interpreter = Path(sys.base_prefix) / "bin" / version
    if not interpreter.exists():
        interpreter = Path(os.path.realpath(sys.executable))
    (folder / "bin" / "python3").symlink_to(interpreter)
    (folder / "pyvenv.cfg").write_text(f"home = {interpreter.parent}\ninclude-system-site-packages = false\n")
    # Only lines that start with "import" are executed, each on its own.
    lines = ["import sys; sys.dont_write_bytecode = True"]
    standard = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    for entry in dict.fromkeys(os.path.abspath(each or ".") for each in sys.path):
        if os.path.isdir(entry) and entry not in standard and not entry.endswith("lib-dynload"):
            lines.append(f"import site; site.addsitedir({entry!r})")
    (site_packages / "gaitsdk.pth").write_text("\n".join(lines) + "\n")
