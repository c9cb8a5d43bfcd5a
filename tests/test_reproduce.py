"""The papers' tables: their numbers are the papers', every row of ours can be run, and what is missing is said."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
ROOT = Path(__file__).resolve().parents[1]
TABLES = [
    "cargait-1", "cargait-2", "cargait-3", "cargait-4", "cargait-5", "gaitmpl-I", "gaitmpl-II", "gaitmpl-III",
    "gaitmpl-IV", "gaitmpl-V", "gaitmpl-VI", "gaitmpl-VII", "gaitmpl-VIII", "gaitmpl-IX", "gaitmpl-figure-6",
]  # fmt: skip
#: Means in the papers' tables that the numbers beside them do not give, to the digit that is printed.
MISPRINTS = {
    "gaitmpl-I": {"BG: MT3D", "CL: 3DLocal"},
    "gaitmpl-V": {"Thresholding", "Dynamic Polynomial"},
    "gaitmpl-VI": {"1 Vanilla BH", "2 DRPL-BH", "3 Vanilla BH + BA (w/o SF)", "5 Vanilla BH + BA (w/ SF)",
                   "6 DRPL-BH + BA (w/ SF)"},
    "gaitmpl-VII": {"Baseline"},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def scripts() -> Iterator[None]:
    """The scripts import each other from their own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield


def table(name: str) -> Any:
    from tables.specification import read_table

    return read_table(name)


def run(*arguments: object) -> int:
    import reproduce

    return int(reproduce.main([str(each) for each in arguments]))


# -------------------------------------------------------------------------------------------------- the papers' numbers
def test_all_tables_of_both_papers_are_there_in_their_order() -> None:
    from tables.specification import table_names

    assert table_names() == TABLES


@pytest.mark.parametrize("name", TABLES)
def test_the_numbers_are_those_of_the_paper(name: str, shared_dir: Path) -> None:
    """Every row's numbers stand in one line of the paper's text, in this order and nothing between them."""
    if not (shared_dir / "papers").is_dir():
        pytest.skip("needs the papers' texts")
    text = (shared_dir / "papers" / f"{name.partition('-')[0]}.txt").read_text(encoding="utf-8")
    lines = []
    for line in text.splitlines():
        cells = [re.sub(r"</?b>|\*\*", "", cell).strip() for cell in line.split("\t")]
        lines.append([float(cell) for cell in cells if re.fullmatch(r"\d+(\.\d+)?", cell)])
    for row in table(name).rows:
        numbers = [float(each) for each in row.paper if each is not None]
        if not numbers:
            assert name in ("gaitmpl-figure-6",)
            continue
        assert any(line[-len(numbers) :] == numbers for line in lines), f"{name}: {row.label}: {numbers}"


@pytest.mark.parametrize("name", [each for each in TABLES if each.startswith("gaitmpl") and each != "gaitmpl-figure-6"])
def test_printed_means_are_means_but_for_the_known_misprints(name: str) -> None:
    found = table(name)
    if name in ("gaitmpl-II", "gaitmpl-IV"):
        *views, mean = (row.paper for row in found.rows)
        wrong = [at for at, column in enumerate(zip(*views, strict=True)) if abs(np.mean(column) - mean[at]) > 0.051]
        assert wrong == ([] if name == "gaitmpl-IV" else [6])  # GaitMPL(G): 90.5, printed 90.6
        return
    wrong = {row.label for row in found.rows if abs(np.mean(row.paper[:-1]) - row.paper[-1]) > 0.0601}
    assert wrong == MISPRINTS.get(name, set())


def test_numbers_that_two_tables_share_agree() -> None:
    first = {row.label: row.paper for row in table("cargait-1").rows}
    for row in table("cargait-2").rows:
        assert [row.paper[at] for at in (3, 7, 11)] == [first[row.label][at] for at in (1, 3, 5)], row.label
    for row in table("cargait-3").rows:
        assert (row.paper[0], row.paper[3]) == first[row.label][10:], row.label
    swin = {row.label: row.paper for row in table("cargait-5").rows}
    assert swin["10 CarGait"] == tuple(first["SwinGait3D"][at] for at in (1, 3, 5))
    assert swin["1 initial"] == tuple(first["SwinGait3D"][at] for at in (0, 2, 4))
    both = {row.label: row.paper[3] for row in table("gaitmpl-III").rows}
    conditions = {row.label: row.paper[-1] for row in table("gaitmpl-I").rows}
    assert conditions["Mean: GaitMPL(G)"] == both["GaitGL++"] and conditions["Mean: GaitMPL(M)"] == both["MT3D++"]


# --------------------------------------------------------------------------------------------------------- what is run
@pytest.mark.parametrize("name", [each for each in TABLES if each != "cargait-4"])
def test_every_row_of_ours_can_be_trained_as_it_is_described(name: str) -> None:
    from tables.training import configuration, phases, reranking

    from gaitsdk.models import model_class
    from gaitsdk_training.objective import Objective

    cells = table(name).cells()
    assert cells
    for cell in {cell.run(): cell for cell in cells}.values():
        for recipe in phases(cell):
            config = configuration(recipe, cell, seed=3)
            assert config.model == cell.backbone and config.seed == 3
            assert set(cell.training) <= {"drpl", "gsam"} and (config.drpl is not None) == ("drpl" in cell.training)
            Objective(config, 4, 2, 3)  # knows every option of its losses
            tiny = configuration(recipe, cell, seed=0, tiny=True)
            assert tiny.steps == 2 and tiny.options == dict(model_class(cell.backbone).TAGS["tiny"])
            assert (tiny.drpl, tiny.gsam) == (config.drpl, config.gsam)
        if cell.reranker in ("cargait", "classifier"):
            assert reranking(cell, seed=3).method == cell.reranker


def test_ablations_change_what_the_paper_changed() -> None:
    from tables.training import reranking

    rows = {row.label: row.cells[0] for row in table("cargait-5").rows}
    assert rows["1 initial"].reranker == "none" and rows["2 extra training of the backbone"].more_steps == 100_000
    assert reranking(rows["4 alpha = 0"], 0).alpha == 0 and reranking(rows["5 beta = 1"], 0).beta == 1
    assert [rows[each].k for each in ("6 K = 5", "7 K = 20", "10 CarGait")] == [5, 20, 10]
    assert [rows[each].v for each in ("8 v = 20", "9 v = 40", "10 CarGait")] == [20, 40, 30]
    assert reranking(rows["10 CarGait"], 0).identities == 8  # SwinGait's batch is 8 x 4


def test_a_number_is_the_right_one_of_the_figures() -> None:
    from tables.specification import Cell

    figures = {
        "rank1": 1.0, "rank1/NM": 2.0, "rank1/CL": 3.0, "rank1/NM/000": 4.0, "rank1/CL/000": 8.0, "mAP": 5.0,
        "rank1_initial/NM/000": 90.0,
    }  # fmt: skip
    read = [
        Cell(metric=metric, condition=condition, view=view).figure(figures)
        for metric, condition, view in (
            ("rank1", "", ""), ("rank1", "NM", ""), ("rank1", "CL", "000"), ("rank1", "", "000"), ("mAP", "", ""),
            ("rank1", "", "018"), ("rank1", "BG", ""),
        )
    ]  # fmt: skip
    assert read == [1.0, 2.0, 8.0, 6.0, 5.0, None, None]


def test_without_data_it_says_what_would_be_needed_and_whose_methods_are_not_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "CASIA-B.zip").touch()
    assert run("gaitmpl-I", "--data", tmp_path, "--work", tmp_path / "work", "--out", tmp_path / "out.json") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "not run: needs CASIA-B (licensed; from" in shown and "ROOT/casiab/001/nm-01/090/*" in shown
    for name in ("CNN-LB", "GaitNet", "DynamicGait", "3DLocal", "CSTL"):
        assert re.search(rf"{name} \([^)]+\): third party: not implemented", shown), name
    assert "0 of 336 numbers measured, 0 failed" in shown and not (tmp_path / "out.json").exists()
    assert run("cargait-2", "--data", tmp_path, "--work", tmp_path / "work") == 0
    assert "Gait3D.json beside it" in " ".join(capsys.readouterr().out.split())


def test_wrong_calls_are_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("cargait-9") == 2
    assert "no such table" in capsys.readouterr().out
    assert run("gaitmpl-V", "--rows", "cubic") == 2
    assert "Thresholding" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        run("gaitmpl-V", "--seeds", "0")
    for name in ("gait3d", "Gait3D-pkl"):
        (tmp_path / name).mkdir()
    assert run("cargait-2", "--data", tmp_path, "--rows", "GaitSet", "--work", tmp_path / "work") == 1
    assert "several folders could be Gait3D" in " ".join(capsys.readouterr().out.split())


def test_the_list_names_every_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in TABLES) and "OU-MVLP" in shown


# --------------------------------------------------------------------------------------------------------------- tiny
def test_tiny_rows_run_and_go_on_where_they_were(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--tiny", "--work", tmp_path / "work", "--out", tmp_path / "out.json", "--device", "cpu")
    assert run("cargait-1", "--rows", "GaitSet", *options) == 0
    assert "tiny: not comparable" in capsys.readouterr().out
    report = json.loads((tmp_path / "out.json").read_text())
    (row,) = report["rows"]
    assert report["comparable"] is False and row["label"] == "GaitSet" and row["status"] == ["measured"]
    assert len(row["ours"]) == 12 and all(0.0 <= each <= 100.0 for each in row["ours"])
    assert {"command", "machine", "seeds", "minutes", "columns", "scope"} <= report.keys()
    runs = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("model.safetensors")}
    assert {str(path.parent.parent.relative_to(tmp_path / "work" / "tiny")) for path in runs} == {
        f"{dataset}/gaitset/seed-0{part}" for dataset in ("gait3d", "grew", "oumvlp") for part in ("", "/cargait")
    }
    assert run("cargait-1", "--rows", "GaitSet", *options) == 0
    again = json.loads((tmp_path / "out.json").read_text())["rows"][0]["ours"]
    assert again == row["ours"]
    best = {path: path.stat().st_mtime_ns for path in runs if path.parent.name == "best"}
    assert best == {path: time for path, time in runs.items() if path in best}  # nothing was trained again


def test_tiny_rows_of_the_ablations_differ_in_what_they_train(tmp_path: Path) -> None:
    options = ("--tiny", "--work", tmp_path / "work", "--device", "cpu")
    assert run("gaitmpl-VII", "--rows", "Multi", "--out", tmp_path / "out.json", *options) == 0
    (folder,) = (tmp_path / "work" / "tiny" / "casiab").glob("gaitset-*/seed-0")
    config = json.loads((folder / "config.json").read_text())
    assert config["gsam"] == {"element": "multi-sequence"} and config["drpl"] is None and config["steps"] == 2
    assert json.loads((tmp_path / "out.json").read_text())["rows"][0]["status"] == ["measured"]


@pytest.mark.models
@pytest.mark.parametrize("name", TABLES)
def test_every_table_runs_in_its_tiny_form(name: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    work = tmp_path_factory.getbasetemp() / "reproduce"  # tables share their runs
    assert run(name, "--tiny", "--work", work, "--out", tmp_path / "out.json", "--device", "cpu") == 0
    report = json.loads((tmp_path / "out.json").read_text())
    unavoidable = {"needs a CUDA GPU", "re-rankers without weights are NumPy and run on the CPU"}
    assert report["cpu_minutes"] < 6 and {row["status"] for row in report["rows"] if "authors" in row} <= {
        "third party: not implemented"
    }
    for row in (each for each in report["rows"] if "authors" not in each):
        assert "failed" not in row["status"] and set(row.get("why", [])) <= unavoidable
        if name not in ("cargait-4", "gaitmpl-figure-6"):
            assert [each is None for each in row["ours"]] == [each is None for each in row["paper"]]
        assert any(each is not None for each in row["ours"])


# ---------------------------------------------------------------------------------------------------------- real walks
@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The script's report on a few synthetic walkers in the place of real ones."""
    import real_walks

    from gaitsdk import synthetic

    folder = tmp_path_factory.mktemp("walks")
    types, views = ("nm-01", "nm-05", "bg-01", "cl-01"), ("036", "072", "108")
    synthetic.write_casiab(folder / "tree", range(4001, 4006), types, views, frames=6)
    arguments = ["real_walks", "--data", str(folder / "tree"), "--apart", "4001,4002", "--synthetic", "0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*arguments, "--out", str(folder / "out.json")])
        real_walks.main()
    return dict(json.loads((folder / "out.json").read_text()))


def test_the_real_walks_script_measures_every_method(walks: dict[str, Any]) -> None:
    free = ["k-reciprocal", "LBR", "GCR", "query expansion"]
    assert list(walks["tables"]["list"]) == ["GEI", "initial", *free, "CarGait"]
    assert list(walks["tables"]["full"]) == free
    assert walks["rankings"] == 5 * 3 * 3 * 2 and walks["apart"] == ["4001", "4002"]
    for tables in (walks["tables"], walks["tables_without"]):
        for methods in tables.values():
            for row in methods.values():
                for each in row.values():
                    assert each["interval"][0] - 0.1 <= each["rank1"] <= each["interval"][1] + 0.1
                    low, high = each["gain_interval"]
                    assert low - 0.1 <= each["gain"] <= high + 0.1
    assert all(each["gain"] == 0 for each in walks["tables"]["list"]["initial"].values())


def test_what_cargait_does_to_the_lists_fits_the_table(walks: dict[str, Any]) -> None:
    effect, tables = walks["effect"]["real walks"], walks["tables"]["list"]
    whole = effect["all"]
    assert whole["rankings"] == walks["rankings"]
    assert whole["found_before"] == effect["rank1_by_share"]["0.0"]
    assert whole["found_after"] == effect["rank1_by_share"]["1.0"]
    assert whole["found_before"] == pytest.approx(tables["initial"]["mean"]["rank1"], abs=0.1)
    assert whole["found_after"] == pytest.approx(tables["CarGait"]["mean"]["rank1"], abs=0.1)
    assert whole["found_before"] + whole["mended"] - whole["spoiled"] == pytest.approx(whole["found_after"], abs=0.05)
    assert whole["found_before"] + whole["to_mend"] + whole["out_of_reach"] == pytest.approx(100.0, abs=0.05)
    assert sum(each["rankings"] for each in effect["by_person"].values()) == whole["rankings"]


def test_the_results_page_is_what_its_script_writes(walks: dict[str, Any]) -> None:
    import results_table
    from pages import written

    page = results_table.PAGE.read_text(encoding="utf-8")
    assert page == written(page, "results.md", results_table.PAPERS_START, results_table.papers_table())
    assert all(f"`{name}`" in page for name in TABLES)
    if results_table.REAL.exists():
        report = json.loads(results_table.REAL.read_text(encoding="utf-8"))
        assert page == written(page, "results.md", results_table.REAL_START, results_table.real_tables(report))
    assert "| CarGait |" in results_table.real_tables(walks)
