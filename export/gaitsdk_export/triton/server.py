"""Starts a tritonserver on a rendered repository, makes sure that it answers rightly, and tidies up after itself."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType

from gaitsdk.errors import OptionError, ServerError
from gaitsdk.runtimes.onnx_runtime import cores
from gaitsdk_export.triton.backend import Settings
from gaitsdk_export.triton.canary import check
from gaitsdk_export.triton.hardening import DRAIN_TIMEOUT, check_version, hardened_arguments
from gaitsdk_export.triton.installation import Installation, find_server
from gaitsdk_export.triton.leftovers import make_folder, prefix, remove_leftovers

logger = logging.getLogger(__name__)

#: Seconds for the models to load.
START_TIMEOUT = 120.0
#: Starts of the program: its Python backend may abort (a lost lock between server and models) on a machine that is too
#: busy while they come up; seen in about every third start at a load of 30 on two cores.
ATTEMPTS = 3
#: Seconds that a server which is stopping may outlive the processes of its models.
ENDING = 2.0
#: OpenBLAS's idle threads sleep at once: by default they spin for some 25 ms after a search in a large gallery, on the
#: core that the next walk's network needs. And it has half of the cores: its threads wait for each other, which takes
#: long where networks hold them all (docs/serving_enrolment.md). What the environment says itself is kept.
QUIET_BLAS = {"OPENBLAS_THREAD_TIMEOUT": "4", "OPENBLAS_NUM_THREADS": str(max(1, cores() // 2))}

# Runs between fork and the server, in a fresh process: asks the kernel to stop the server when the process that started
# it dies, whatever way. (Doing it in a fork of a threaded parent is not safe.)
_GUARD = """
import ctypes, os, signal, sys
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class TritonServer:
    """A running tritonserver, as a context manager. Entering it returns once the server has proved that it answers.

    The server listens on the loopback interface unless told otherwise; it has no authentication. It dies with the
    thread that started it (the kernel sees to that, even at kill -9): start it from one that lives long enough.

    Args:
        repository: from `gaitsdk_export.triton.repository.render`.
        settings: bundle, gallery, runtime: what the models read from their environment.
        http_port, grpc_port, metrics_port: 0 = any free one; the attributes of the same name tell which.
        log: file for the server's output, or "-" for this process's own; by default a file that goes away with the
            server.
        installation: which tritonserver; by default `find_server()`.
        production: refuse a server with known security holes, and close what only developers ask for.

    Raises:
        OptionError: ports that cannot be, or a log that cannot be written. ServerError: a port is taken.

    Raises (on entering):
        ServerError: it cannot be started, does not get ready in time, or answers wrongly; with the end of its log.
    """

    def __init__(
        self,
        repository: str | os.PathLike[str],
        settings: Settings,
        *,
        host: str = "127.0.0.1",
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        log: str | os.PathLike[str] | None = None,
        installation: Installation | None = None,
        production: bool = False,
    ) -> None:
        self.repository, self.settings, self.host = Path(repository), settings, host
        self.http_port, self.grpc_port, self.metrics_port = _ports(host, http_port, grpc_port, metrics_port)
        self._to_stdout = log == "-"
        self._log = None if log is None or self._to_stdout else _writable(Path(log))
        self._installation = installation
        self._production = production
        #: Of the tritonserver, once it runs.
        self.version = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self._processes = 0
        self._asked_to_stop = False
        # The name of the shared memory between models and stubs, so that what a killed server leaves can be removed.
        self._shared_memory = f"{prefix('shm')}{secrets.token_hex(6)}-"

    @property
    def grpc_url(self) -> str:
        """What `Recognizer.connect` takes."""
        return f"grpc://{_reachable(self.host)}:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        """What `Recognizer.connect` takes."""
        return f"http://{_reachable(self.host)}:{self.http_port}"

    @property
    def pid(self) -> int:
        """Process id of the server; also of its process group."""
        return self._running().pid

    def start(self) -> TritonServer:
        """What entering the context does."""
        installation = self._installation or find_server()
        check_repository(self.repository)
        remove_leftovers()
        self._folder = make_folder("triton")
        try:
            arguments, environment = installation.arrange(self._folder)
            command = [str(installation.executable), *arguments, *self._arguments(installation)]
            self._launch(command, {**QUIET_BLAS, **environment, **self.settings.to_environment()})
            self.version = str(json.loads(self._get("/v2") or b"{}").get("version", "0"))
            check_version(self.version, production=self._production)
            self._canary()
            self._processes = len(_members(self.pid))
        except OSError as error:
            self.stop()
            raise ServerError(
                "tritonserver cannot be started",
                where=str(installation.executable),
                got=str(error),
                fix="make room in the temporary folder, or set TMPDIR to another",
            ) from error
        except BaseException:
            self.stop()
            raise
        logger.info("Triton answers at %s and %s", self.grpc_url, self.http_url)
        return self

    def _launch(self, command: list[str], environment: dict[str, str]) -> None:
        """Starts the program and waits until it is ready; once more, where it aborts on a machine that is too busy."""
        guard = [sys.executable, "-I", "-S", "-c", _GUARD, str(os.getpid())]
        for attempt in range(ATTEMPTS):
            with contextlib.nullcontext() if self._to_stdout else self.log_path.open("wb") as output:
                self._process = subprocess.Popen(
                    [*guard, *command],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            try:
                return self._wait_until_ready()
            except ServerError:
                aborted = self._process.poll() == -signal.SIGABRT
                if not aborted or self._asked_to_stop or attempt == ATTEMPTS - 1:
                    raise
                logger.warning("Triton aborted while it started; the next attempt")
                _kill_group(self._process.pid)

    def stop(self) -> int | None:
        """Lets requests in flight finish, ends the server and all of its processes; gives the exit code."""
        process, self._process = self._process, None
        code = None
        if process is not None:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(DRAIN_TIMEOUT + 4)
            except subprocess.TimeoutExpired:
                logger.warning("Triton did not stop by itself within %d s", DRAIN_TIMEOUT + 4)
            _kill_group(process.pid)
            code = process.wait()
            for left in Path("/dev/shm").glob(f"{self._shared_memory}*"):
                left.unlink(missing_ok=True)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        return code

    def wait(self) -> int:
        """Waits until the server ends; gives its exit code.

        Raises:
            ServerError: the process of a model died. Triton would go on refusing every request: stop it, start it anew.
        """
        process = self._running()
        while process.poll() is None:
            if len(_members(process.pid)) < self._processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(ENDING)  # it is stopping, and they stopped first
                raise ServerError("the process of a model died", where=str(self.repository), fix="start it again")
            time.sleep(0.2)
        return process.returncode

    def terminate(self) -> None:
        """Asks the server to stop, without waiting; for signal handlers."""
        self._asked_to_stop = True
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def log_tail(self, lines: int = 20) -> str:
        """The end of the server's log."""
        if self._to_stdout:
            return "(see above)"
        try:
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return "(no log)"

    @property
    def log_path(self) -> Path:
        """Where the server's output goes."""
        if self._log is not None:
            return self._log
        if self._folder is None:
            raise ServerError("the server was not started")
        return self._folder / "server.log"

    def __enter__(self) -> TritonServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _arguments(self, installation: Installation) -> list[str]:
        return [
            *("--model-repository", str(self.repository)),
            *("--http-address", self.host, "--http-port", str(self.http_port)),
            *("--grpc-address", self.host, "--grpc-port", str(self.grpc_port)),
            *("--metrics-address", self.host, "--metrics-port", str(self.metrics_port)),
            *("--backend-config", f"python,shm-region-prefix-name={self._shared_memory}"),
            *hardened_arguments(installation.options(), production=self._production),
        ]

    def _wait_until_ready(self) -> None:
        process, deadline = self._running(), time.monotonic() + START_TIMEOUT
        while self._get("/v2/health/ready") is None:
            code = process.poll()
            if code is not None or time.monotonic() > deadline:
                what = "did not get ready" if code is None else ending(code)
                raise ServerError(
                    f"tritonserver {what}", where=str(self.repository), got=f"the end of its log:\n{self._reason()}\n"
                )
            time.sleep(0.1)

    def _reason(self) -> str:
        """The lines of the log that name errors where there are some, else its end."""
        text = self.log_tail(400).splitlines()
        errors = [line for line in text if line.startswith("E") or "rror:" in line]
        return "\n".join((errors or text)[-20:])

    def _canary(self) -> None:
        """One made-up walk through every model. Nobody enrolled yet is a healthy answer too."""
        try:
            check(self.grpc_url, timeout=START_TIMEOUT)
        except ServerError as error:
            raise ServerError(str(error), got=f"the end of the server's log:\n{self._reason()}\n") from error

    def _get(self, path: str) -> bytes | None:
        """The body of a 200 answer, or None."""
        try:
            with urllib.request.urlopen(f"{self.http_url}{path}", timeout=2) as response:
                return bytes(response.read())
        except (OSError, urllib.error.URLError):
            return None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServerError("the server is not running")
        return self._process


def check_repository(repository: Path) -> None:
    """Refuses folders that stop a server from loading the rest, with a message that Triton's own lacks."""
    if not repository.is_dir():
        raise ServerError("no such model repository", where=str(repository), fix="gaitsdk deploy --out REPOSITORY")
    stray = [each.name for each in repository.iterdir() if each.is_dir() and not (each / "config.pbtxt").is_file()]
    if stray:
        raise ServerError(
            "folders in the model repository that are no models",
            where=str(repository),
            got=", ".join(sorted(stray)),
            fix="remove them, or render the repository again: gaitsdk deploy",
        )


def ending(code: int) -> str:
    """How a process ended, in words."""
    return f"was killed by signal {-code}" if code < 0 else f"ended by itself with code {code}"


def _writable(log: Path) -> Path:
    try:
        with log.open("ab"):
            return log
    except OSError as error:
        raise OptionError(
            "the log cannot be written", where=str(log), got=error.strerror, fix="name a file in a folder that is there"
        ) from error


def _ports(host: str, *wanted: int) -> tuple[int, ...]:
    """The ports, with free ones in the place of zeros; all of them are open for us at this moment.

    Raises:
        OptionError: not a port, or twice the same. ServerError: a port is taken.
    """
    named = [port for port in wanted if port]
    if len(set(named)) < len(named) or not all(0 <= port <= 65535 for port in wanted):
        raise OptionError(
            "HTTP, gRPC and metrics need a port each",
            where="ports",
            got=", ".join(map(str, wanted)),
            expected="different numbers from 1 to 65535, or 0 for any free one",
        )
    sockets, ports = [], []
    try:
        for port in wanted:
            probe = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            sockets.append(probe)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                where = f"{host}:{port}"
                raise ServerError(
                    "cannot listen there", where=where, got=error.strerror, fix="choose another port, or 0 for any"
                ) from error
            ports.append(int(probe.getsockname()[1]))
    finally:
        for probe in sockets:
            probe.close()
    return tuple(ports)


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)


def _members(group: int) -> list[int]:
    """The living processes of a process group: the server and one per instance of a Python model."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                state, _, its_group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:  # ended meanwhile
                continue
            if int(its_group) == group and state != "Z":
                found.append(int(entry.name))
    return found


def _kill_group(group: int) -> None:
    """Ends whatever is left of the server's process group (stubs that did not hear of the end)."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
