"""Tiny data sets of synthetic walkers that look like the papers' ones: names, views, kinds of probes, lists.

They prove that a table's command works. What is measured on them says nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gaitsdk import synthetic

Silhouettes = NDArray[np.uint8]
#: (identity, type, view) as in the data set, and (type, view) of the synthetic walk.
Layout = Iterator[tuple[tuple[str, str, str], tuple[str, str]]]
#: Six synthetic people train, four test.
_TRAIN, _TEST = 6, 4
_FRAMES = 8


def write_tiny(root: Path, dataset: str) -> None:
    """A tree of synthetic walkers that looks like the data set's, once: names, views, kinds of probes, its list."""
    target = root / dataset
    if (target / ".complete").exists():
        return
    layouts = {"casiab": _casiab, "oumvlp": _oumvlp, "gait3d": _gait3d, "grew": _grew}
    for number in range(1, 1 + _TRAIN + _TEST):
        for (person, kind, view), (walk, camera) in layouts[dataset](number, number <= _TRAIN):
            folder = target / person / kind / view
            folder.mkdir(parents=True, exist_ok=True)
            silhouettes = synthetic.sequence(number, walk, camera, _FRAMES)
            np.save(folder / "sil.npy", silhouettes)
            np.save(folder / "heatmap.npy", _heatmap(silhouettes))
    if dataset == "gait3d":
        people = sorted(each.name for each in target.iterdir())
        document = {
            "TRAIN_SET": people[:_TRAIN], "TEST_SET": people[_TRAIN:],
            "PROBE_SET": [f"{each}-camid0_videoid1-seq0" for each in people[_TRAIN:]],
        }  # fmt: skip
        (root / "Gait3D.json").write_text(json.dumps(document))
    (target / ".complete").touch()


_WALKS = ("nm-01", "nm-02", "bg-01", "cl-01")


def _casiab(number: int, trains: bool) -> Layout:
    """001, ... train and 075, ... test; every view, of which the paper's table has a column each."""
    person = f"{number if trains else 74 + number - _TRAIN:03d}"
    for view in synthetic.VIEWS:
        for kind in ("nm-01", "nm-05", "bg-01", "cl-01"):
            yield (person, kind, view), (kind, view)


def _oumvlp(number: int, trains: bool) -> Layout:
    """Odd numbers train. Its fourteen views are filmed from the eleven that there are, three of them twice."""
    person = f"{2 * number - 1 if trains else 2 * number:05d}"
    degrees = [*range(0, 91, 15), *range(180, 271, 15)]
    for index, angle in enumerate(degrees):
        camera = synthetic.VIEWS[index % len(synthetic.VIEWS)]
        for kind in ("00", "01"):
            walk = f"nm-{2 * (index // len(synthetic.VIEWS)) + 1 + int(kind):02d}"
            yield (person, kind, f"{angle:03d}"), (walk, camera)


def _gait3d(number: int, trains: bool) -> Layout:
    for index, walk in enumerate(_WALKS):
        yield (f"{number:04d}", f"camid{index}_videoid1", "seq0"), (walk, synthetic.VIEWS[3 * index % 11])


def _grew(number: int, trains: bool) -> Layout:
    """The two sequences of a test identity are gallery and probe of the local protocol."""
    for index, walk in enumerate(_WALKS if trains else _WALKS[:2]):
        kind = "00" if trains else f"{index + 1:02d}"
        person = f"{number:05d}{'train' if trains else ''}"
        yield (person, kind, f"video{number}x{index}"), (walk, synthetic.VIEWS[3 * index % 11])


def _heatmap(silhouettes: Silhouettes) -> Silhouettes:
    """Two maps [T, 2, 64, 64] in the place of limbs and joints: the silhouette at half its height and its outline."""
    inside = np.minimum(silhouettes, np.roll(silhouettes, 1, axis=2))
    return np.stack([silhouettes // 2, silhouettes - inside], axis=1)


def tiny_root(work: Path, datasets: list[str]) -> Path:
    """A folder with a tiny tree of each of these data sets."""
    root = work / "data"
    for each in datasets:
        write_tiny(root, each)
    return root
