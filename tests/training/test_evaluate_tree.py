"""`gaitsdk evaluate` from trees and packed files: features kept on disk, who tests, what is printed."""

from __future__ import annotations

import csv
import json
import os
import shutil
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from gaitsdk import synthetic
from gaitsdk.bundle import Bundle
from gaitsdk.cli import main
from gaitsdk.datasets import Partition
from gaitsdk.errors import CalibrationError, DatasetError, InputError, OptionError
from gaitsdk_training.data import pack
from gaitsdk_training.evaluation import plots
from gaitsdk_training.evaluation import tree as tree_module
from gaitsdk_training.evaluation.evaluate import choose
from gaitsdk_training.evaluation.sequences import Sequences
from gaitsdk_training.evaluation.tree import evaluate_tree
from gaitsdk_training.evaluation_tables import print_report

TYPES = ("nm-01", "nm-02", "nm-05", "bg-01", "cl-01")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load()


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("walks") / "tree"
    synthetic.write_casiab(root, range(1, 5), types=TYPES, views=("036", "090"), frames=6)
    return root


def renamed(walks: Path, root: Path, kinds: dict[str, str], names: str = "{:05d}") -> Path:
    """The same files under another data set's names: one view, old types -> new ones."""
    for number, identity in enumerate(sorted(os.listdir(walks)), 1):
        for old, new in kinds.items():
            person = "probe" if new == "03" else names.format(number)
            view = f"video{number}" if new == "03" else "000"
            shutil.copytree(walks / identity / old / "090", root / person / new / view)
    return root


def stages(root: Path, bundle: Bundle, **options: Any) -> tuple[dict[str, Any], set[str]]:
    """The report, and which stages had something to do."""
    seen: set[str] = set()
    report = evaluate_tree(root, bundle, runtime="onnx", progress=lambda stage, *_: seen.add(stage), **options)
    return report, seen


def test_features_are_kept_for_the_next_protocol(walks: Path, bundle: Bundle, tmp_path: Path) -> None:
    plain, seen = stages(walks, bundle, reranker="none")
    assert plain["features"] is None and seen == {"embedding", "ranking"} and not list(tmp_path.iterdir())
    first, seen = stages(walks, bundle, reranker="none", cache=tmp_path)
    assert seen == {"embedding", "ranking"} and first["figures"] == plain["figures"]
    assert Path(first["features"]).parent == tmp_path and np.load(first["features"]).shape == (40, 16, 128)
    again, seen = stages(walks, bundle, reranker="none", cache=tmp_path)
    assert seen == {"ranking"} and again == first
    _, seen = stages(walks, bundle, protocol="casiab-cross-view", reranker="cargait", cache=tmp_path)
    assert seen == {"ranking"}
    fewer, seen = stages(walks, bundle, identities=["001", "002"], reranker="none", cache=tmp_path)
    assert seen == {"embedding", "ranking"} and fewer["features"] != first["features"] and fewer["identities"] == 2


def test_a_changed_file_is_noticed_and_a_broken_one_is_named_each_time(
    walks: Path, bundle: Bundle, tmp_path: Path
) -> None:
    root = tmp_path / "tree"
    shutil.copytree(walks, root)
    cache = tmp_path / "cache"
    first, _ = stages(root, bundle, reranker="none", cache=cache)
    broken = root / "002" / "nm-05" / "036" / "036.pkl"
    assert broken.exists()
    broken.write_bytes(b"no pickle")
    reports = [stages(root, bundle, reranker="none", cache=cache) for _ in range(2)]
    assert [seen for _, seen in reports] == [{"embedding", "ranking"}, {"ranking"}]
    assert reports[0][0] == reports[1][0] and reports[0][0]["sequences"] == first["sequences"] - 1
    [skipped] = reports[1][0]["skipped"]
    assert skipped["sequence"] == "002/nm-05/036" and "036.pkl" in skipped["reason"]
    assert reports[1][0]["figures"]["probes/NM"] == first["figures"]["probes/NM"] - 1
    for path in root.rglob("*.pkl"):
        path.write_bytes(b"no pickle")
    with pytest.raises(DatasetError, match=r"no usable sequence.*40 unusable.*pkl"):
        evaluate_tree(root, bundle, reranker="none", runtime="onnx")


def test_a_packed_file_gives_the_same(walks: Path, bundle: Bundle, tmp_path: Path) -> None:
    pack(walks, tmp_path / "walks.pack")
    options: dict[str, Any] = {"reranker": "cargait", "k": 3, "identities": ["001", "003", "004", "007"]}
    ours, _ = stages(tmp_path / "walks.pack", bundle, cache=tmp_path, **options)
    theirs, _ = stages(walks, bundle, cache=tmp_path, **options)
    assert {**ours, "features": ""} == {**theirs, "features": ""} and ours["missing"] == ["007"]
    assert stages(tmp_path / "walks.pack", bundle, cache=tmp_path, **options)[1] == {"ranking"}


def test_what_names_and_options_tell_is_refused_before_the_embedding(walks: Path, bundle: Bundle) -> None:
    split = Partition(("001",), ("002",))
    for options, error, message in (
        ({"protocol": "oumvlp"}, InputError, "no gallery; got types"),
        ({"protocol": "gait3d"}, InputError, "lists its probes"),
        ({"protocol": "gait3d", "partition": split}, InputError, "lists its probes"),
        ({"protocol": "grew", "submission_file": "x.csv"}, InputError, "no gallery"),
        ({"submission_file": "x.csv"}, OptionError, "only GREW"),
        ({"protocol": "grew", "submission_file": "nowhere/x.csv"}, OptionError, "no such folder"),
        ({"protocol": "mars"}, OptionError, "no such protocol"),
        ({"reranker": "magic"}, OptionError, "re-ranker"),
        ({"scope": "half", "reranker": "lbr"}, OptionError, "scope"),
        ({"scope": "full"}, OptionError, "scope"),
        ({"two_stage": True, "reranker": "lbr", "scope": "full"}, OptionError, "two stages"),
        ({"identities": ["001"], "partition": split}, OptionError, "identities and a split"),
        ({"identities": ["044"]}, DatasetError, "no sequence of the wanted identities.*expected some of 044"),
        ({"partition": Partition(("001",), ())}, DatasetError, "identities in the test part"),
        ({"dataset": "casiab"}, DatasetError, "no sequence of the wanted identities"),
        ({"dataset": "grew"}, DatasetError, "not named as in grew"),
        ({"two_stage": True, "identities": ["001", "002", "003"]}, CalibrationError, "3 people.*at least 4.*Fix"),
        ({"plots": "nowhere/pictures"}, OptionError, "plots: no picture can be written"),
    ):
        with pytest.raises(error, match=message):
            evaluate_tree(walks, bundle, progress=lambda *_: pytest.fail("embedded"), **options)  # type: ignore[arg-type]


def test_whole_galleries_and_other_rerankers(walks: Path, bundle: Bundle, tmp_path: Path) -> None:
    initial, _ = stages(walks, bundle, reranker="none", cache=tmp_path)
    for scope in ("list", "full"):
        report, _ = stages(walks, bundle, reranker="k-reciprocal", scope=scope, cache=tmp_path)
        assert (report["scope"], report["k"]) == (scope, None if scope == "full" else 10)
        assert report["figures"]["rank1_initial"] == initial["figures"]["rank1"]
        assert report["gain"]["low"] <= report["gain"]["mean"] <= report["gain"]["high"]
    assert initial["gain"] is None and initial["k"] == 0


def test_gait3d_and_grew_from_trees(walks: Path, bundle: Bundle, tmp_path: Path) -> None:
    kinds = {"nm-01": "01", "nm-05": "02", "nm-02": "03"}
    root = renamed(walks, tmp_path / "grew", kinds)
    report, _ = stages(root, bundle, protocol="grew", reranker="none")
    assert report["figures"]["probes"] == 4 and {"rank1", "rank20"} <= report["figures"].keys()
    with pytest.raises(InputError, match="too small"):
        evaluate_tree(root, bundle, protocol="grew", submission_file=tmp_path / "x.csv")
    shutil.rmtree(root / "probe")
    listed = Partition((), ("00001", "00002", "00003", "00004"), ("00001-02-000", "00004-02-000"))
    report, _ = stages(root, bundle, protocol="gait3d", reranker="cargait", partition=listed)
    figures = report["figures"]
    assert (figures["probes"], figures["probes_dropped"]) == (2, 0) and {"mAP", "mINP_initial"} <= figures.keys()
    assert report["split"] == "TEST_SET of the partition"


def named(identities: list[str]) -> Sequences:
    """Names only."""
    count = len(identities)
    return Sequences(Path("tree"), identities, ["nm-01"] * count, ["000"] * count, lambda _: np.zeros(0), str)


def test_a_complete_official_test_part_is_what_is_tested() -> None:
    casiab = [f"{number:03d}" for number in range(1, 125)]
    for protocol in ("casiab", "casiab-cross-view"):
        split = tree_module._split(named(casiab), choose(protocol), None, None, None)
        assert split.sequences.labels == casiab[74:] and split.about.startswith("official test part of casiab")
    # One of them is not there: these may be other people, called alike.
    split = tree_module._split(named(casiab[:-1]), choose("casiab"), None, None, None)
    assert len(split.sequences) == 123 and split.about == "all identities; no split was named"
    split = tree_module._split(named(casiab[:-1]), choose("casiab"), None, None, "casiab")
    assert len(split.sequences) == 49 and split.about == "official test part of casiab"
    split = tree_module._split(named(casiab), choose("casiab"), ["005"], None, None)
    assert split.sequences.labels == ["005"]
    split = tree_module._split(named(casiab), choose("casiab"), None, Partition(("001",), ("002", "200")), None)
    assert split.sequences.labels == ["002"] and split.missing == ["200"]


def call(*arguments: object) -> int:
    """The exit code of `gaitsdk ARGUMENTS`, with this package's verbs only."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit_:
        patch.setattr("gaitsdk.cli.entry_points", _own_verbs)
        patch.setenv("COLUMNS", "1000")
        main([str(each) for each in arguments])
    return 0 if exit_.value.code is None else int(exit_.value.code)


def _own_verbs(group: str) -> list[EntryPoint]:
    return [point for point in entry_points(group=group) if point.value.startswith("gaitsdk_training.")]


def test_the_verb_keeps_features_in_the_users_cache(
    walks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert call("evaluate", "--data", walks, "--reranker", "none", "--no-keep", "--json") == 0
    assert json.loads(capsys.readouterr().out)["features"] is None and not list(tmp_path.iterdir())
    assert call("evaluate", "--data", walks, "--reranker", "none", "--json") == 0
    kept = Path(json.loads(capsys.readouterr().out)["features"])
    assert kept.parent == tmp_path / "gaitsdk" / "features" and kept.exists()
    assert call("evaluate", "--data", walks, "--reranker", "none", "--features", tmp_path / "mine", "--json") == 0
    assert Path(json.loads(capsys.readouterr().out)["features"]).parent == tmp_path / "mine"
    (tmp_path / "file").write_text("")
    assert call("evaluate", "--data", walks, "--reranker", "none", "--features", tmp_path / "file") == 1
    assert "the features cannot be written" in capsys.readouterr().err


def test_the_verb_writes_what_the_server_takes(walks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "grew"
    for copy in range(3):  # 3 x 4 people, 2 gallery sequences each
        kinds = {"nm-01": "01", "nm-05": "02"} | ({"nm-02": "03"} if copy == 0 else {})
        renamed(walks, root, kinds, "{:04d}" + str(copy))
    out = tmp_path / "submission.csv"
    keep = ("--features", tmp_path / "features")
    assert call("evaluate", "--data", root, "--protocol", "grew", "--submission", out, *keep) == 0
    shown = capsys.readouterr().out
    assert str(out) in shown and "12 probes kept, 0 dropped" in shown and "Rank-20" in shown
    with out.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["videoId", *(f"rank{i}" for i in range(1, 21))] and len(rows) == 5
    assert {row[0] for row in rows[1:]} == {f"video{i}" for i in range(1, 5)}
    assert all(
        len(row) == 21 and set(row[1:]) <= {f"{i}{c}" for i in range(1, 5) for c in range(3)} for row in rows[1:]
    )


def test_two_stages_are_shown(walks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("evaluate", "--data", walks, "--two-stage", "--features", tmp_path) == 0
    shown = capsys.readouterr().out
    assert "recall@K" in shown and "FNIR at FPIR 1 %" in shown and "thresholds set on" in shown


def spied(drawn: dict[str, Any], name: str) -> Any:
    """The function of plots that draws `name`; what it draws is kept."""
    real = getattr(plots, name)

    def draw(values: Any, *rest: Any, **options: Any) -> Any:
        drawn[name] = values
        return real(values, *rest, **options)

    return draw


def test_pictures_begin_at_the_figures(
    walks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: dict[str, Any] = {}
    for name in ("cmc", "spider", "det", "score_histogram"):
        monkeypatch.setattr(plots, name, spied(drawn, name))
    where = tmp_path / "pictures"
    assert (
        call("evaluate", "--data", walks, "--two-stage", "--plots", where, "--no-keep", tmp_path / "report.json") == 0
    )
    report = json.loads((tmp_path / "report.json").read_text())
    stages = ["scores-initial", *(f"scores-K{row[0]}" for row in report["two_stage"]["rows"])]
    assert sorted(path.name for path in where.iterdir()) == sorted(
        f"{name}.png" for name in ("cmc", "spider", "det", *stages)
    )
    assert report["plots"] == [str(where / f"{name}.png") for name in ("cmc", "spider", "det", *stages)]
    assert "drawn: " in capsys.readouterr().out and len(drawn["score_histogram"]) > 0
    figures = report["figures"]
    for method, suffix in (("initial", "_initial"), ("cargait", "")):
        assert 100 * drawn["cmc"][method]["accuracy"][0] == pytest.approx(figures[f"rank1{suffix}"])
        assert 100 * drawn["cmc"][method]["accuracy"][4] == pytest.approx(figures[f"rank5{suffix}"])
        assert drawn["spider"][method] == {name: figures[f"rank1{suffix}/{name}"] for name in ("NM", "BG", "CL")}
    assert list(drawn["det"])[:2] == ["initial", "cargait, K = 1"]


def report(protocol: str, figures: dict[str, Any], **more: Any) -> dict[str, Any]:
    counts = {"probes": 7, "probes_dropped": 2}
    about = {"sequences": 9, "identities": 3, "split": "all", "runtime": "torch", "device": "cpu", "precision": "fp32"}
    rest = {"metric": "euclidean", "reranker": "cargait", "k": 10, "fingerprint": "0123456789abcdef", "gain": None}
    nothing = {"missing": [], "skipped": [], "submission": None, "two_stage": None, "plots": None}
    return {"protocol": protocol, "figures": {**figures, **counts}, **about, **rest, **nothing, **more}


def shown(given: dict[str, Any]) -> str:
    console = Console(width=120, record=True, file=open(os.devnull, "w"))
    print_report(given, console)
    return console.export_text()


def test_columns_and_names_of_the_tables() -> None:
    keys = ("rank1_initial", "rank1", "rank5_initial", "rank5")
    figures = {f"{key}{end}": float(i) for i, key in enumerate(keys) for end in ("", "/[red]", "/[red]/000")}
    text = shown(report("casiab", figures, missing=["[/y]"]))
    lines = [[each.strip() for each in line.replace("┃", "│").split("│")[1:-1]] for line in text.splitlines()]
    assert ["probes", "order", "Rank-1", "Rank-5"] in lines and ["view", "[red] initial", "[red]"] in lines
    assert lines.index(["[red]", "initial", "0.00", "2.00"]) + 1 == lines.index(["", "cargait", "1.00", "3.00"])
    assert ["mean", "initial", "0.00", "2.00"] in lines and ["000", "0.00", "1.00"] in lines
    assert "[/y]" in text and "7 probes kept, 2 dropped" in text
    assert "identical views excluded" in text and "0123456789ab" in text and "cargait, K = 10" in text


def test_the_tables_say_what_counts_as_a_miss() -> None:
    figures = {"rank1": 80.0, "rank1_with_mate": 90.0, "rank5": 91.0, "rank5_with_mate": 92.0, "rank1/NM": 80.0}
    counts = {"rankings": 26, "rankings_without_mate": 3}
    text = shown(report("oumvlp", {**figures, **counts}, k=None, reranker="lbr"))
    assert "those with a mate" in text and "3 of 26 rankings have no mate" in text and "lbr, whole galleries" in text
    text = shown(
        report("gait3d", {"rank1": 1.0, "rank5": 2.0, "rank10": 3.0, "mAP": 4.0, "mINP": 5.0}, reranker="none")
    )
    assert "mINP" in text and "Rank-10" in text and "re-ranker none" in text
    text = shown(report("grew", {"rank1": 1.0, "probes_without_mate": 4, "probes_absent": 1}))
    assert "4 of those kept have no mate" in text
    skipped = [{"sequence": f"s{i}", "reason": "why"} for i in range(25)]
    text = shown(report("grew", {"rank1": 1.0}, skipped=skipped, missing=[str(i) for i in range(30)]))
    assert "skipped s19: why" in text and "s20" not in text and "5 more skipped" in text and "(30 in all)" in text
