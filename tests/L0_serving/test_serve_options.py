"""What `gaitsdk serve` refuses before it starts anything, with the exit code of bad usage."""

from __future__ import annotations

from pathlib import Path

import pytest

from gaitsdk.bundle import Bundle
from gaitsdk.cli import main
from gaitsdk_export.triton.server import TritonServer


@pytest.fixture(autouse=True)
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


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
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
    bundle_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    says: str,
) -> None:
    free = [part for name in ("http", "grpc", "metrics") for part in (f"--{name}-port", "0")]
    common = ["--bundle", str(bundle_path), "--gallery", str(tmp_path / "people.db"), "--device", "cpu"]
    found, message = refused(capsys, *common, *free, *arguments)
    assert (found, says in message) == (code, True), message


def test_a_bundle_without_cargait_is_refused_as_in_process(
    bundle_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = Bundle.create(tmp_path / "plain.gait", backbone=Bundle.load(bundle_path).build_backbone())
    common = ["--bundle", str(plain.path), "--gallery", str(tmp_path / "people.db"), "--device", "cpu"]
    code, message = refused(capsys, *common)
    assert code == 2 and "no CarGait weights" in message and "--reranker none" in message
    free = [part for name in ("http", "grpc", "metrics") for part in (f"--{name}-port", "0")]
    with pytest.raises(AssertionError, match="a server was started"):
        main(["serve", *common, *free, "--reranker", "none"])


def test_a_temporary_folder_that_cannot_be_made(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gaitsdk_export.triton.leftovers.tempfile.tempdir", str(tmp_path / "none"))
    common = ["--bundle", str(bundle_path), "--gallery", str(tmp_path / "people.db"), "--device", "cpu"]
    code, message = refused(capsys, *common)
    assert code == 1 and "TMPDIR" in message
