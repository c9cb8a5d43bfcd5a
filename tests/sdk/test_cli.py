"""The command line: each verb with good and with bad input, its exit codes, and its defaults."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.core import TyperGroup

from gaitsdk import Recognizer, cli, synthetic
from gaitsdk.bundle import Bundle
from gaitsdk.manifest import Calibration
from gaitsdk.rerankers import RERANKERS


class Outcome:
    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr


@pytest.fixture
def run(tmp_path: Path, tiny_bundle: Path) -> Any:
    gallery = tmp_path / "people.db"

    def call(*arguments: object) -> Outcome:
        environment = {**os.environ, "GAITSDK_GALLERY": str(gallery), "COLUMNS": "200", "NO_COLOR": "1"}
        command = [sys.executable, "-m", "gaitsdk.cli", *map(str, arguments)]
        return Outcome(subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path))

    return call


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("walks")
    for person in (1, 2):
        for kind in ("nm-01", "nm-02"):
            np.save(folder / f"{person}-{kind}.npy", synthetic.sequence(person, kind, "090"))
    return folder


def test_enrol_then_identify_then_verify(run: Any, walks: Path, tiny_bundle: Path) -> None:
    for person in (1, 2):
        done = run("enroll", f"person{person}", walks / f"{person}-nm-01.npy", "--bundle", tiny_bundle)
        assert done.code == 0 and f"the gallery holds {person}" in done.out, done.err
    done = run("identify", walks / "1-nm-01.npy", "--bundle", tiny_bundle, "--json", "--save", "ranked.png")
    assert done.code == 0, done.err
    (result,) = json.loads(done.out)
    assert result["identity"] == "person1" and len(result["candidates"]) == 2
    shown = run("identify", walks / "1-nm-01.npy", "--bundle", tiny_bundle)
    assert shown.code == 0 and "person1" in shown.out and "no threshold is calibrated" in shown.out
    done = run("verify", walks / "1-nm-01.npy", walks / "1-nm-02.npy", "--bundle", tiny_bundle, "--threshold", "100")
    assert done.code == 0 and done.out.startswith("same: distance")


def test_identify_a_tree(run: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    synthetic.write_casiab(
        tmp_path / "tree", [1, 2, 3], types=("nm-01", "nm-05", "bg-01"), views=("054", "090"), frames=20
    )
    done = run("identify", "--root", "tree", "--bundle", tiny_bundle, "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["enrolled"] == 6 and report["identities"] == 3
    assert {name: each["probes"] for name, each in report["conditions"].items()} == {"bg": 6, "nm": 6}
    assert not (tmp_path / "people.db").exists(), "a tree leaves the user's gallery alone"
    shown = run("identify", "--root", "tree", "--bundle", tiny_bundle)
    assert shown.code == 0 and "Rank-1 cargait %" in shown.out
    spaced = run("identify", "--root", "tree", "--enroll-types", "nm-01, nm-05", "--bundle", tiny_bundle, "--json")
    assert json.loads(spaced.out)["enrolled"] == 12
    one = run("identify", "--root", "tree", "--views", "090", "--save", "tree.png", "--bundle", tiny_bundle, "--json")
    assert json.loads(one.out)["enrolled"] == 3 and (tmp_path / "tree.png").stat().st_size > 1000


def test_a_tree_is_counted_whatever_the_bundle_is_calibrated_for(run: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_bundle, tmp_path / "copy.gait")
    one = Calibration(task="identify", reranker="lbr", k=10, gallery_size=5, threshold=1.0, fpir=0.5, people=6)
    Bundle.load(copy).add_calibrations([one])
    synthetic.write_casiab(tmp_path / "tree", [1, 2], types=("nm-01", "nm-05"), views=("090",), frames=10)
    done = run("identify", "--root", "tree", "--bundle", copy, "--reranker", "gcr", "--json")
    assert done.code == 0 and json.loads(done.out)["conditions"]["nm"]["probes"] == 2, done.err


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--enroll-types", "xx"], 1, "no such types"),
        (["--enroll-types", "nm-01,xx"], 1, "no such types"),
        (["--enroll-types", "nm-01,nm-05,bg-01"], 1, "nothing to identify"),
        (["--views", "090,999"], 1, "no such views"),
        (["--gallery", "mine.db"], 2, "--gallery"),
        (["--server", "localhost:1"], 2, "--server"),
        (["--threshold", "1"], 2, "--threshold"),
        (["--top-k", "0"], 2, "top_k"),
        (["--save", "tree.gif"], 2, "tree.gif"),
        (["--save", "nowhere/tree.png"], 2, "nowhere"),
    ],
)
def test_identify_a_tree_refuses(
    run: Any, tiny_bundle: Path, tmp_path: Path, options: list[str], code: int, says: str
) -> None:
    synthetic.write_casiab(tmp_path / "tree", [1, 2], types=("nm-01", "nm-05", "bg-01"), views=("090",), frames=10)
    done = run("identify", "--root", "tree", "--bundle", tiny_bundle, *options)
    assert done.code == code and says in done.err and "Traceback" not in done.err, done.err


def test_a_tree_with_damaged_and_foreign_parts_is_still_read(run: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    synthetic.write_casiab(tmp_path / "tree", [1, 2, 3], types=("nm-01", "nm-05"), views=("090",), frames=10)
    (tmp_path / "tree/001/nm-05/090/090.pkl").write_bytes(b"garbage")
    (tmp_path / "tree/002/nm-01/090/090.pkl").unlink()
    done = run("identify", "--root", "tree", "--bundle", tiny_bundle, "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["enrolled"] == 2 and report["not_enrolled"] == 1
    assert report["conditions"]["nm"]["probes"] == 1
    assert any("001/nm-05/090" in each for each in report["skipped"]) and len(report["skipped"]) == 2


def test_names_are_printed_as_they_are(run: Any, walks: Path, tiny_bundle: Path) -> None:
    done = run("enroll", "[/x][red]bob", walks / "1-nm-01.npy", "--bundle", tiny_bundle)
    assert done.code == 0 and "enrolled [/x][red]bob:" in done.out, done.err
    done = run("identify", walks / "1-nm-01.npy", "--bundle", tiny_bundle)
    assert done.code == 0 and "[/x][red]bob" in done.out, done.err


def test_enrolling_several_is_all_or_nothing(run: Any, walks: Path, tiny_bundle: Path) -> None:
    done = run("enroll", "ann", walks / "1-nm-01.npy", "nowhere", "--bundle", tiny_bundle)
    assert done.code == 1 and "nowhere" in done.err
    done = run("enroll", "ann", walks / "1-nm-01.npy", walks / "1-nm-02.npy", "--bundle", tiny_bundle, "--json")
    assert json.loads(done.out) == {"identity": "ann", "entries": [1, 2], "gallery_size": 2}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["identify"], 2, "gaitsdk identify FOLDER"),
        (["identify", "nowhere", "--bundle", "BUNDLE"], 1, "nowhere"),
        (["identify", "x.npy", "--bundle", "missing.gait"], 1, "no bundle there"),
        (["identify", "x.npy", "--runtime", "onxx", "--bundle", "BUNDLE"], 2, "onnx"),
        (["identify", "x.npy", "--top-k", "0", "--bundle", "BUNDLE"], 2, "top_k"),
        (["identify", "x.npy", "--top-k", "many"], 2, "--top-k"),
        (["identify", "x.npy", "--server", "grpc://127.0.0.1:9"], 1, "127.0.0.1:9"),
        (["identify", "x.npy", "--server", "localhost:1", "--gallery", "g.db"], 2, "--gallery"),
        (["identify", "x.npy", "--server", "localhost:1", "--runtime", "torch"], 2, "--runtime"),
        (["identify", "x.npy", "--gallery", "typo.db", "--bundle", "BUNDLE"], 1, "no such gallery"),
        (["identify", "x.npy", "--views", "090", "--bundle", "BUNDLE"], 2, "--root"),
        (["identify", "x.npy", "--save", "a/b.png", "--bundle", "BUNDLE"], 2, "no such folder"),
        (["identify", "--root", ".", "--save", "x.json", "--bundle", "BUNDLE"], 2, "x.json"),
        (["enroll", "", "x.npy", "--bundle", "BUNDLE"], 1, "identity"),
        (["frobnicate"], 2, "frobnicate"),
    ],
)
def test_bad_usage_is_2_and_failure_is_1(
    run: Any, tiny_bundle: Path, tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    np.save(tmp_path / "x.npy", synthetic.sequence(1))
    done = run(*[str(tiny_bundle) if each == "BUNDLE" else each for each in arguments])
    assert done.code == code, (done.out, done.err)
    assert says in done.err and "Traceback" not in done.err


def test_every_verb_explains_itself(run: Any) -> None:
    shown = run("--help")
    core = "demo train evaluate import-opengait export serve deploy enroll identify verify doctor".split()
    for verb in sorted({*core, *(each.name for each in entry_points(group="gaitsdk.commands"))}):
        assert verb in shown.out
        assert run(verb, "--help").code == 0


def test_doctor(run: Any) -> None:
    done = run("doctor", "--json")
    assert done.code == 0, done.err
    findings = json.loads(done.out)
    assert findings["runtime onnx"].startswith("yes, on cpu")


def test_every_option_says_what_it_means() -> None:
    """Also the verbs that join: no option without a text, and the re-rankers' names are all in it."""
    command = typer.main.get_command(cli.build())
    assert isinstance(command, TyperGroup)
    for name, verb in command.commands.items():
        for part in verb.commands.values() if isinstance(verb, TyperGroup) else (verb,):
            assert part.help, name
            for option in part.params:
                text = getattr(option, "help", None)
                assert text or option.name == "help", (name, part.name, option.name)
                if option.name == "reranker" and name != "import-opengait":  # there it is a file
                    assert all(each in str(text) for each in RERANKERS), (name, text)


def test_a_message_names_the_file(run: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "nan.npy", np.full((12, 64, 64), np.nan, np.float32))
    done = run("identify", "nan.npy", "--bundle", tiny_bundle)
    assert done.code == 1 and "nan.npy: frame 0: NaN or infinite values" in done.err, done.err


def test_defaults_are_the_librarys() -> None:
    load = inspect.signature(Recognizer.load).parameters
    for verb in (cli.enroll, cli.identify, cli.verify):
        for name, parameter in inspect.signature(verb).parameters.items():
            if name in load:
                assert parameter.default == load[name].default, (verb.__name__, name)
    identify, library = (inspect.signature(each).parameters for each in (cli.identify, Recognizer.identify))
    for name in ("top_k", "k", "threshold"):
        assert identify[name].default == library[name].default
