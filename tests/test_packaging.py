"""What is shipped, what it imports, and which way the arrows point."""

from __future__ import annotations

import ast
import configparser
import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "gaitsdk": ROOT / "sdk/gaitsdk",
    "gaitsdk_export": ROOT / "export/gaitsdk_export",
    "gaitsdk_training": ROOT / "training/gaitsdk_training",
}
HEAVY = ("torch", "onnx", "onnxscript", "tensorrt", "tritonclient")


def _modules() -> set[str]:
    """Python files of the tree as paths inside a wheel."""
    return {str(path.relative_to(top.parent)) for top in PACKAGES.values() for path in top.rglob("*.py")}


def _config() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config


def _run(code: str, *, path: Path | None = None, cwd: Path | None = None, **extra: str) -> str:
    environment = {**os.environ, **extra}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=environment, cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_packages_listed_are_the_packages_in_the_tree() -> None:
    listed = set(_config()["options"]["packages"].split())
    tree = {
        ".".join(file.parent.relative_to(top.parent).parts)
        for top in PACKAGES.values()
        for file in top.rglob("__init__.py")
    }
    assert listed == tree


def test_every_folder_with_python_files_is_a_package_or_a_servers_model() -> None:
    for top in PACKAGES.values():
        for file in top.rglob("*.py"):
            assert (file.parent / "__init__.py").exists() or "python_models" in file.parts, file


def _imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("gaitsdk", {"gaitsdk_export", "gaitsdk_training"}),
        ("gaitsdk_training", {"gaitsdk_export"}),
    ],
)
def test_arrows(package: str, forbidden: set[str]) -> None:
    for file in PACKAGES[package].rglob("*.py"):
        assert not _imported(file) & forbidden, file


def test_no_module_shadows_a_library() -> None:
    for module in _modules():
        # runtimes/triton.py shadows nothing: its folder is never on the path.
        if module != "gaitsdk/runtimes/triton.py":
            assert Path(module).stem not in ("onnx", "tensorrt", "torch", "triton"), module


def test_import_is_light_and_quick() -> None:
    code = f"""
        import sys, time
        started = time.process_time()  # not the wall clock: the machine may be busy with other tests
        import gaitsdk
        seconds = time.process_time() - started
        loaded = [name for name in {(*HEAVY, "onnxruntime", "PIL", "pydantic")!r} if name in sys.modules]
        print(loaded, seconds)
    """
    runs = [_run(code).rsplit(" ", 1) for _ in range(5)]
    assert {loaded for loaded, _ in runs} == {"[]"}
    assert min(float(seconds) for _, seconds in runs) < 0.2


def test_identifies_without_torch(tmp_path: Path) -> None:
    """The core alone: every heavy package is made unimportable."""
    code = f"""
        import sys
        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {HEAVY!r}:
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, Blocker())
        from gaitsdk import Recognizer, synthetic
        with Recognizer.load(gallery=":memory:") as recognizer:
            for person in (1, 2, 3):
                recognizer.enroll(str(person), synthetic.sequence(person, "nm-01", "090"))
            result = recognizer.identify(synthetic.sequence(2, "nm-02", "090"))
        print(result.identity, result.runtime)
    """
    assert _run(code, cwd=tmp_path) == "2 onnx"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as a release is: the sdist first, the wheel from it."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(out.glob("*.tar.gz"))
    return next(out.glob("*.whl"))


def test_wheel_holds_the_tree(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if name.endswith(".py")} == _modules()
    for package, top in PACKAGES.items():
        assert f"{package}/py.typed" in names
        data = {p for p in top.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
        missing = {str(p.relative_to(top.parent)) for p in data} - names
        assert not missing


def test_installed_wheel_identifies(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    code = """
        import gaitsdk
        from gaitsdk import Recognizer, synthetic
        with Recognizer.load(gallery=":memory:") as recognizer:
            recognizer.enroll("alice", synthetic.sequence(1))
            print(gaitsdk.__file__, recognizer.identify(synthetic.sequence(1, "nm-02")).identity)
    """
    origin, identity = _run(code, path=site, cwd=tmp_path).split()
    assert Path(origin).is_relative_to(site) and identity == "alice"


def test_version_is_one() -> None:
    assert _run("import gaitsdk; print(gaitsdk.__version__)") == _config()["metadata"]["version"]
