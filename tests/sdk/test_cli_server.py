"""The verbs that ask a server: TLS, tokens and time-outs on the command line."""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from gaitsdk import Recognizer, cli, synthetic
from gaitsdk.cli import main
from gaitsdk.errors import ServerUnavailableError

pytest.importorskip("grpc")
pytest.importorskip("tritonclient.http.aio")


def load(name: str) -> ModuleType:
    """A module of the folder that tests real servers; pytest's import mode makes no package of it."""
    path = Path(__file__).parents[1] / "L0_serving" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_of_the_cli", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fakes, security = load("client_fakes"), load("test_client_security")
files = security.files  # a fixture: certificates

VERBS = {"enroll": ("alice",), "identify": (), "verify": ("other.npy",)}


@pytest.fixture
def walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    for name in ("walk", "other"):
        np.save(f"{name}.npy", synthetic.sequence(3, type="nm-03", frames=12))
    return "walk.npy"


@pytest.fixture(params=("grpc", "http"))
def fake(request: pytest.FixtureRequest) -> Iterator[Any]:
    server = fakes.FakeTriton(request.param)
    yield server
    server.close()


def failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and message of `gaitsdk` with these arguments."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    message = " ".join(capsys.readouterr().err.split())
    assert "Traceback" not in message
    return int(ended.value.code or 0), message


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_hands_them_on(
    verb: str, walk: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, Any] = {}

    def connect(url: str, **options: Any) -> Recognizer:
        seen.update(options, url=url)
        raise ServerUnavailableError("away")

    monkeypatch.setattr(Recognizer, "connect", connect)
    monkeypatch.setenv("GAITSDK_TOKEN", "from-the-environment")
    common = (verb, *VERBS[verb], walk, "--server", "grpcs://gait.example:443")
    assert failed(capsys, *common, "--ca", "a.pem", "--cert", "c.pem", "--key", "k.pem", "--timeout", "3")[0] == 1
    expected = {"ca": Path("a.pem"), "cert": Path("c.pem"), "key": Path("k.pem"), "timeout": 3.0}
    assert seen == {"url": "grpcs://gait.example:443", "token": "from-the-environment", **expected}
    assert failed(capsys, *common, "--token", "given")[0] == 1
    assert seen["token"] == "given"


@pytest.mark.parametrize("verb", VERBS)
def test_the_default_is_the_librarys(verb: str) -> None:
    library = inspect.signature(Recognizer.connect).parameters
    parameters = inspect.signature(getattr(cli, verb)).parameters
    for name in ("token", "ca", "cert", "key", "timeout"):
        assert parameters[name].default == library[name].default


def test_over_tls_with_a_token(
    fake: Any, files: Path, walk: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address = urlsplit(fake.url)
    own = ("--ca", str(files / "ca.pem"), "--cert", str(files / "client.pem"), "--key", str(files / "client.key"))
    monkeypatch.setenv("GAITSDK_TOKEN", "s3cret")
    with security.TlsProxy(address.port, files, client_ca="ca.pem") as proxy:
        server = f"{address.scheme}s://127.0.0.1:{proxy.port}"
        main_ends(["verify", walk, "other.npy", "--server", server, *own, "--json"])
        assert json.loads(capsys.readouterr().out)["distance"] == 0
        assert fake.headers and all(each["authorization"] == "Bearer s3cret" for each in fake.headers)
        code, message = failed(capsys, "verify", walk, "other.npy", "--server", server)
        assert code == 1 and "s3cret" not in message, message
        code, message = failed(
            capsys, "verify", walk, "other.npy", "--server", server, "--ca", str(files / "other.pem")
        )
        assert (code, "ca=" in message, "s3cret" in message) == (1, True, False), message


def main_ends(arguments: list[str]) -> None:
    """Runs a verb that has to end well."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code


def test_a_token_does_not_travel_in_the_clear(
    walk: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GAITSDK_TOKEN", "s3cret")
    code, message = failed(capsys, "identify", walk, "--server", "http://gait.example:8000")
    assert code == 2 and "https://" in message and "s3cret" not in message


@pytest.mark.parametrize(("fault", "says"), [("stall", "0.5"), ("denied", "token")])
def test_what_the_server_refuses(
    fake: Any, walk: str, capsys: pytest.CaptureFixture[str], fault: str, says: str
) -> None:
    fake.script = [fault] * 3
    code, message = failed(capsys, "verify", walk, "other.npy", "--server", fake.url, "--timeout", "0.5")
    assert code == 1 and says in message, message


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--ca", "ca.pem"), "--ca"),
        (("--timeout", "3"), "--timeout"),
        (("--server", "grpc://localhost:1", "--timeout", "0"), "timeout"),
        (("--server", "grpc://localhost:1", "--ca", "none.pem"), "TLS"),
        (("--server", "grpcs://localhost:1", "--ca", "none.pem"), "none.pem"),
        (("--server", "grpcs://localhost:1", "--key", "walk.npy"), "certificate"),
    ],
    ids=str,
)
def test_bad_usage(walk: str, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str) -> None:
    code, message = failed(capsys, "identify", walk, *arguments)
    assert code == 2 and says in message, message


def test_a_tree_has_no_server(walk: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, message = failed(capsys, "identify", "--root", ".", "--ca", "ca.pem")
    assert code == 2 and "--ca" in message
