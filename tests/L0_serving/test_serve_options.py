"""What `gaitsdk serve` refuses before it starts anything, with the exit code of bad usage; which servers it takes."""

from __future__ import annotations

import shutil
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gaitsdk import Recognizer, synthetic
from gaitsdk.bundle import Bundle
from gaitsdk.cli import main
from gaitsdk.errors import ServerError
from gaitsdk_export.triton import hardening
from gaitsdk_export.triton.backend import Settings
from gaitsdk_export.triton.config import ModelConfig
from gaitsdk_export.triton.configurations import Options
from gaitsdk_export.triton.installation import Installation
from gaitsdk_export.triton.pbtxt import parse
from gaitsdk_export.triton.server import TritonServer

FREE = [part for name in ("http", "grpc", "metrics") for part in (f"--{name}-port", "0")]
CONTAINER = "2.74.0"  # of 26.10


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: TritonServer) -> TritonServer:
        raise AssertionError("a server was started")

    monkeypatch.setattr(TritonServer, "start", start)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and message of `gaitsdk serve`."""
    with pytest.raises(SystemExit) as ended:
        main(["serve", *arguments])
    message = " ".join(capsys.readouterr().err.split())
    assert "Traceback" not in message
    return int(ended.value.code or 0), message


def test_what_is_served_is_rendered_as_asked(
    monkeypatch: pytest.MonkeyPatch, bundle_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[ModelConfig] = []
    longest: list[str] = []

    def start(self: TritonServer) -> TritonServer:
        seen.append(parse((self.repository / "embed" / "config.pbtxt").read_text()))
        longest.append(parse((self.repository / "shortlist" / "config.pbtxt").read_text()).parameters["max_k"])
        raise ServerError("enough")

    monkeypatch.setattr(TritonServer, "start", start)
    options = ["--bundle", str(bundle_path), "--gallery", str(tmp_path / "people.db"), *FREE]
    for more in ([], ["--max-batch", "3", "--max-queue", "5", "--instances", "2", "--max-k", "400"]):
        assert refused(capsys, *options, *more) == (1, "error: enough.")
    queues = [each.batching.max_queue_size if each.batching else None for each in seen]
    assert queues == [Options.max_queue, 5] and longest == [str(Options.max_k), "400"]
    assert [each.max_batch_size for each in seen] == [Options.max_batch, 3]
    assert [each.instances[0].count for each in seen] == [Options.instances, 2]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--max-queue", "0"], 2, "--max-queue"),
        (["--max-k", "1001"], 2, "--max-k"),
        (["--max-batch", "8", "--rendering", "tensorrt"], 2, "the engines decide"),
        (["--log-format", "xml"], 2, "json or text"),
        (["--audit", "people.jsonl", "--audit-identities", "rot13"], 2, "hash or plain"),
        (["--audit", "/proc/nowhere/audit"], 1, "the audit cannot be written"),
        (["--audit", ""], 1, "the audit cannot be written"),
        (["--production"], 2, "--audit"),
        (["--production", "--audit", "audit.jsonl", "--host", "0.0.0.0"], 2, "--behind-proxy"),
        (["--production", "--audit", "audit.jsonl", "--reranker", "none"], 1, "calibrated for another re-ranker"),
        (["--runtime", "foo"], 2, "no runtime has this name"),
        (["--runtime", "tensorrt"], 1, "TensorRT"),
        (["--device", "gpu"], 2, "unknown device"),
        (["--threads", "5000"], 2, "not a number of threads"),
        (["--reranker", "magic"], 2, "unknown re-ranker"),
        (["--http-port", "65536"], 2, "--http-port"),
        (["--grpc-port", "-1"], 2, "--grpc-port"),
        (["--http-port", "8123", "--metrics-port", "8123"], 2, "a port each"),
        (["--log", "/proc/nowhere/log"], 2, "the log cannot be written"),
        (["--log", "."], 2, "the log cannot be written"),
        (["--gallery", "/proc/nowhere/people.db"], 2, "folder cannot be made"),
    ],
    ids=str,
)
def test_unusable_options(
    nothing_starts: None,
    monkeypatch: pytest.MonkeyPatch,
    bundle_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["--bundle", str(bundle_path), "--gallery", str(tmp_path / "people.db"), "--device", "cpu"]
    found, message = refused(capsys, *common, *FREE, *arguments)
    assert (found, says in message) == (code, True), message


def test_a_bundle_without_cargait_is_refused_as_in_process(
    nothing_starts: None, bundle_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = Bundle.create(tmp_path / "plain.gait", backbone=Bundle.load(bundle_path).build_backbone())
    common = ["--bundle", str(plain.path), "--gallery", str(tmp_path / "people.db"), "--device", "cpu"]
    code, message = refused(capsys, *common)
    assert code == 2 and "no CarGait weights" in message and "--reranker none" in message
    with pytest.raises(AssertionError, match="a server was started"):
        main(["serve", *common, *FREE, "--reranker", "none"])


def test_a_temporary_folder_that_cannot_be_made(
    nothing_starts: None,
    bundle_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("gaitsdk_export.triton.leftovers.tempfile.tempdir", str(tmp_path / "none"))
    common = ["--bundle", str(bundle_path), "--gallery", str(tmp_path / "people.db"), "--device", "cpu"]
    code, message = refused(capsys, *common)
    assert code == 1 and "TMPDIR" in message


def test_production_wants_thresholds(
    nothing_starts: None, bundle_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Bundle.load(bundle_path)
    plain = Bundle.create(tmp_path / "plain.gait", backbone=source.build_backbone(), reranker=source.build_reranker())
    common = ["--gallery", str(tmp_path / "people.db"), "--audit", str(tmp_path / "audit"), "--device", "cpu", *FREE]
    code, message = refused(capsys, "--bundle", str(plain.path), *common, "--production")
    assert code == 2 and "no threshold" in message and "gaitsdk calibrate" in message
    for bundle, more in ((plain.path, []), (bundle_path, ["--production", "--host", "0.0.0.0", "--behind-proxy"])):
        with pytest.raises(AssertionError, match="a server was started"):
            main(["serve", "--bundle", str(bundle), *common, *more])


def test_production_wants_shared_memory(
    nothing_starts: None,
    bundle_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=2**20))
    common = ["--gallery", str(tmp_path / "people.db"), "--audit", str(tmp_path / "audit"), "--device", "cpu", *FREE]
    code, message = refused(capsys, "--bundle", str(bundle_path), *common, "--production")
    assert code == 1 and "of shared memory" in message and "--shm-size" in message


@pytest.mark.parametrize(
    ("version", "numpy", "production", "says"),
    [
        ("2.51.0", "1.26.4", False, None),
        ("2.51.0", "1.26.4", True, "CVE-2025-23310"),
        ("2.66.0", "1.26.4", True, "26.03"),
        ("2.67.0", "2.3.0", True, None),
        (CONTAINER, "2.3.0", True, None),
        ("2.51.0", "2.3.0", False, "NumPy 2"),
        ("2.53.0", "2.3.0", False, None),
        ("", "1.26.4", True, "security holes"),
        ("unknown", "1.26.4", True, "security holes"),
    ],
)
def test_servers_that_are_too_old(
    version: str, numpy: str, production: bool, says: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np, "__version__", numpy)
    if says is None:
        hardening.check_version(version, production=production)
    else:
        with pytest.raises(ServerError, match=says):
            hardening.check_version(version, production=production)
    assert bool(hardening.known_holes(version)) == (version not in ("2.67.0", CONTAINER))


def pairs(arguments: list[str]) -> dict[str, str | None]:
    """Option -> value."""
    following = [*arguments[1:], "--"]
    options = zip(arguments, following, strict=True)
    return {name: None if value.startswith("--") else value for name, value in options if name.startswith("--")}


def test_the_hardening_list() -> None:
    newest = pairs(hardening.hardened_arguments(hardening.NEWER, production=True))
    assert newest["--model-control-mode"] == "none" and "--disable-auto-complete-config" in newest
    assert newest["--allow-client-shm"] == "false" and newest["--http-max-input-size"] == str(64 * 2**20)
    assert newest["--exit-timeout-secs"] == "8" and newest["--strict-readiness"] == "true"
    for name in ("--http-restricted-api", "--grpc-restricted-protocol"):
        closed, _, key = str(newest[name]).partition(":closed=")
        assert {"shared-memory", "model-repository", "model-config", "statistics"} < set(closed.split(","))
        assert len(key) == 32 and key not in str(hardening.hardened_arguments(hardening.NEWER, production=True))
    older = pairs(hardening.hardened_arguments((), production=False))
    assert set(newest) - set(older) == hardening.NEWER


def test_the_server_knows_the_options(installation: Installation) -> None:
    known = installation.options()
    assert len(known) > 50
    assert set(pairs(hardening.hardened_arguments(known, production=True))) <= known
    assert not hardening.NEWER & known, "this server is newer: nothing to leave out any more"


def test_a_server_whose_options_cannot_be_asked(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="cannot be started"):
        Installation(tmp_path / "none").options()


def test_production_refuses_the_test_server(installation: Installation, repository: Path, settings: Settings) -> None:
    server = TritonServer(repository, settings, installation=installation, production=True)
    with pytest.raises(ServerError, match="known security holes"), server:
        raise AssertionError("it served")
    with pytest.raises(ServerError, match="not running"):
        _ = server.pid


def test_a_production_server(
    installation: Installation,
    repository: Path,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(hardening, "FIXED_SINCE", (2, 51))  # the only server that runs here
    walk = synthetic.sequence(3, type="nm-03", frames=12)
    with TritonServer(repository, settings, installation=installation, production=True, log="-") as server:
        assert server.version.startswith("2.51")
        with Recognizer.connect(server.grpc_url, timeout=60) as recognizer:
            assert recognizer.identify(walk).candidates
        for path in (
            "v2/models/embed/stats",
            "v2/models/embed/config",
            "v2/repository/index",
            "v2/systemsharedmemory/status",
        ):
            with pytest.raises(urllib.error.HTTPError) as closed:
                urllib.request.urlopen(f"{server.http_url}/{path}", data=b"{}" if "index" in path else None, timeout=10)
            assert closed.value.code == 403, path
        assert urllib.request.urlopen(f"{server.http_url}/v2/health/ready", timeout=10).status == 200
    printed = capfd.readouterr().out
    assert "Started GRPCInferenceService" in printed and server.log_tail() == "(see above)"


@pytest.mark.parametrize(("ends", "starts"), [("kill -ABRT $$", 3), ("exit 1", 1), ("kill -SEGV $$", 1)])
def test_a_server_that_aborts_is_started_again(
    ends: str, starts: int, repository: Path, settings: Settings, tmp_path: Path
) -> None:
    program = tmp_path / "tritonserver"
    program.write_text(f'#!/bin/sh\n[ "$1" = --help ] && exit 0\necho started >> {tmp_path}/starts\n{ends}\n')
    program.chmod(0o755)
    server = TritonServer(repository, settings, installation=Installation(program))
    with pytest.raises(ServerError, match="signal" if "kill" in ends else "code 1"):
        server.start()
    assert (tmp_path / "starts").read_text().count("started") == starts
