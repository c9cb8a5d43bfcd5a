"""Writes the tables of docs/models.md from the committed figures.

    python benchmarks/models_table.py

Everything between the two markers is replaced; the prose around them is written by hand. A test holds that the page
is what this script writes. Nothing is measured here: that is benchmarks/backbones.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pages import markdown, write

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "models.md"
RESULTS = {
    "CPU": ROOT / "benchmarks" / "results" / "backbones.json",
    "GPU": ROOT / "benchmarks" / "results" / "backbones_cuda.json",
}
START = "<!-- tables: python benchmarks/models_table.py -->"
#: Tags that no data set stands behind.
SMALL = ("tiny", "shipped")
MISSING = "–"  # noqa: RUF001 (the dash of an empty cell)


def rows(report: Mapping[str, Any], *, small: bool) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(name, figures) of the published networks, or of the small ones."""
    for name, figures in report["networks"].items():
        if "network" in figures and (name.partition(".")[2] in SMALL) == small:
            yield name, figures


def figure(part: Mapping[str, Any] | None, key: str, style: str) -> str:
    """One number of a part of the measurement, a dash where it was not taken."""
    return MISSING if part is None or key not in part else format(part[key], style)


def label(name: str, figures: Mapping[str, Any]) -> str:
    model, _, tag = name.partition(".")
    others = [each for each in figures["tags"] if each != tag]
    mark = "" if figures["network"]["verified"] else " (unverified)"
    return f"`{model}` {', '.join([tag, *others])}{mark}"


def networks_table(report: Mapping[str, Any]) -> str:
    """What the published networks are and what 30 frames cost."""
    head = (
        "network", "parameters", "strips x dims", "input", "GFLOPs", "PyTorch ms", "ONNX Runtime ms",
        "of the reference's time", "licence of public weights",
    )  # fmt: skip
    lines = []
    for name, figures in rows(report, small=False):
        network, speed = figures["network"], figures.get("speed")
        channels, height, width = network["input"]
        lines.append(
            (
                label(name, figures),
                f"{network['parameters'] / 1e6:.2f} M",
                f"{network['strips']} x {network['dims']}",
                f"{f'{channels} x ' if channels > 1 else ''}{height} x {width}",
                f"{network['gflops_30_frames']:.1f}",
                figure(speed, "eager_ms", ".0f"),
                figure(figures.get("onnx"), "onnx_ms", ".0f"),
                figure(speed, "against_reference", ".2f"),
                "academic use (OpenGait)" if network["verified"] else "there are none",
            )
        )
    return markdown(head, lines)


def lengths_table(report: Mapping[str, Any], *, small: bool) -> str:
    """Throughput of `forward_sequences` against one by one, its error, and memory for long sequences."""
    mixes = list(dict.fromkeys(mix for _, figures in rows(report, small=small) for mix in figures.get("lengths", {})))
    lines = []
    for name, figures in rows(report, small=small):
        lengths = figures.get("lengths", {})
        worst = max((mix["max_error_of_largest"] for mix in lengths.values()), default=None)
        memory = [f"{each['mebibytes']:.0f} MiB / {int(n):,}" for n, each in figures.get("memory", {}).items()]
        lines.append(
            (
                label(name, figures),
                *(figure(lengths.get(mix), "throughput_ratio", ".2f") for mix in mixes),
                MISSING if worst is None else f"{worst:.0e}",
                ", ".join(memory) or MISSING,
            )
        )
    return markdown(("network", *(f"{mix} frames" for mix in mixes), "largest error", "memory / frames"), lines)


def tables(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """All that stands between the markers, as Markdown: the reports by "CPU" and "GPU"."""
    cpu = reports["CPU"]
    parts = ["### Published networks", "", networks_table(cpu), ""]
    for device, report in reports.items():
        parts += [f"### Unequal lengths and memory, {device}", "", lengths_table(report, small=False), ""]
        parts += [f"Small networks, {device}:", "", lengths_table(report, small=True), ""]
    machines = {figures["machine"]: None for report in reports.values() for figures in report["networks"].values()}
    return "\n".join([*parts, f"Measured on: {'; '.join(machines)}."])


def reports() -> dict[str, dict[str, Any]]:
    """The committed figures, by device."""
    return {device: json.loads(path.read_text(encoding="utf-8")) for device, path in RESULTS.items() if path.exists()}


def main() -> None:
    write(PAGE, START, tables(reports()))


if __name__ == "__main__":
    main()
