"""Synthetic walkers: the same bytes from the same seed, people who walk, a task that is hard but not hopeless."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from gaitsdk import synthetic
from gaitsdk.errors import OptionError

GALLERY = ("nm-01", "nm-02", "nm-03", "nm-04")
PROBES = {"NM": ("nm-05", "nm-06"), "BG": ("bg-01", "bg-02"), "CL": ("cl-01", "cl-02")}


def widths(x: np.ndarray, top: int = 0, bottom: int = 64) -> np.ndarray:
    """Extent in columns of the person between two rows, per frame."""
    return np.array([np.ptp(np.nonzero((f[top:bottom] > 127).any(0))[0]) + 1 for f in x])


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a > 127) & (b > 127)).sum() / ((a > 127) | (b > 127)).sum())


def test_same_seed_same_bytes_other_seed_other_bytes() -> None:
    a, b = synthetic.sequence(5, "bg-01", "036", frames=8), synthetic.sequence(5, "bg-01", "036", frames=8)
    assert a.tobytes() == b.tobytes()
    assert synthetic.sequence(5, "bg-01", "036", frames=8, seed=1).tobytes() != a.tobytes()
    assert synthetic.sequence(6, "bg-01", "036", frames=8).tobytes() != a.tobytes()
    noisy = [synthetic.sequence(5, "bg-01", "036", frames=8, noise=0.5).tobytes() for _ in range(2)]
    assert noisy[0] == noisy[1] != a.tobytes()


def test_identity_keeps_body_and_gait_on_every_walk() -> None:
    a, b = synthetic.identity(7), synthetic.identity(7)
    assert a.body == b.body and a.style.cadence == b.style.cadence and a.name == "007"
    assert synthetic.identity(7, seed=1).body != a.body
    assert synthetic.identity(1234).name == "1234"


def test_anthropometry_is_plausible() -> None:
    bodies = [synthetic.identity(i).body for i in range(300)]
    for female, mean in ((False, 1.752), (True, 1.630)):
        statures = np.array([b.stature for b in bodies if b.female is female])
        assert len(statures) > 100 and abs(statures.mean() - mean) < 0.02 and 0.05 < statures.std() < 0.085
    # leg length over stature scatters by a few percent only; heavier people are deeper at the waist
    legs = np.array([(b.size["thigh"] + b.size["shank"]) / b.stature for b in bodies])
    assert 0.005 < legs.std() / legs.mean() < 0.04
    waist = np.array([b.size["waist_depth"] / b.stature for b in bodies])
    assert np.corrcoef(waist, [b.weight_factor for b in bodies])[0, 1] > 0.7


@pytest.mark.parametrize("view", ["000", "090", "162"])
def test_shape_dtype_rows_and_edges(view: str) -> None:
    x = synthetic.sequence(2, view=view, frames=11)
    assert x.shape == (11, 64, 64) and x.dtype == np.uint8 and x.flags["C_CONTIGUOUS"]
    assert (x[:, 0].max(1) > 0).all() and (x[:, -1].max(1) > 0).all()  # spans all rows
    assert x.max() == 255 and ((x > 20) & (x < 235)).mean() > 0.005  # grey edges
    mass = x.sum(1, dtype=np.int64).cumsum(1)
    assert set((mass * 2 > mass[:, -1:]).argmax(1)) <= {31, 32}


def test_masks_are_the_same_film() -> None:
    from gaitsdk import silhouettes

    for number, kind, view in ((1, "nm-01", "090"), (2, "bg-01", "036"), (3, "cl-02", "000")):
        raw = synthetic.masks(number, kind, view, frames=12)
        assert raw.shape == (12, 240, 320) and raw.dtype == np.uint8 and set(np.unique(raw)) == {0, 255}
        rows = [np.ptp(np.nonzero(f.any(1))[0]) + 1 for f in raw]
        assert 70 < min(rows) and max(rows) < 200
        direct = synthetic.sequence(number, kind, view, frames=12)
        normal = silhouettes.normalise(raw).silhouettes
        assert difference(direct, normal) < 8.0  # of 255: the edge and half a column of centring
        assert overlap(direct, normal) > 0.85
    assert synthetic.masks(1, frames=2, height=120, width=100).shape == (2, 120, 100)


def test_walker_approaches_leaves_and_crosses() -> None:
    def rows(view: str) -> np.ndarray:
        return np.array([np.ptp(np.nonzero(f.any(1))[0]) + 1 for f in synthetic.masks(4, view=view)])

    assert rows("000")[-1] > 1.1 * rows("000")[0]  # comes nearer
    assert rows("180")[-1] < 0.9 * rows("180")[0]
    side = synthetic.masks(4, view="090")
    centres = [np.nonzero(f.any(0))[0].mean() for f in side]
    assert centres[0] - centres[-1] > 40  # crosses to the left


def test_legs_open_with_the_step_frequency() -> None:
    for number in (1, 2, 3):
        x = synthetic.sequence(number, view="090", frames=100)
        opening = widths(x, 48).astype(float)
        spectrum = np.abs(np.fft.rfft(opening - opening.mean()))
        steps_per_minute = spectrum.argmax() / 100 * 25 * 60
        assert abs(steps_per_minute - synthetic.identity(number).style.cadence) < 20
        assert opening.max() > 2 * opening.min()


def test_knee_bends_backwards() -> None:
    # at 090 the person walks left, so a raised foot is behind, to the right of the body
    x = synthetic.sequence(1, view="090", frames=60)
    raised = x[:, 46:56].astype(float).mean(0).mean(0)
    assert raised[34:52].sum() > 1.3 * raised[12:30].sum()


def test_views_mirror_and_differ() -> None:
    area = {v: np.mean([(synthetic.sequence(i, view=v) > 127).mean() for i in range(6)]) for v in synthetic.VIEWS}
    assert area["000"] > area["090"] < area["180"]  # a trunk is broader than deep
    mean = {v: np.mean([synthetic.sequence(i, view=v) for i in range(6)], (0, 1)) for v in ("000", "036", "144", "180")}
    # from behind is close to the mirror image of from the front, opposite obliques mirror better than they match
    assert difference(mean["000"], mean["180"][:, ::-1]) < difference(mean["000"], mean["036"])
    assert widths(synthetic.sequence(1, view="090"), 48).max() > 2 * widths(synthetic.sequence(1, view="000"), 48).max()
    assert synthetic.views() == synthetic.VIEWS == tuple(f"{a:03d}" for a in range(0, 181, 18))


def test_bags_and_coats_change_the_silhouette() -> None:
    people = range(16)

    def area(kind: str) -> np.ndarray:
        return np.array([(synthetic.sequence(i, kind, "072", frames=26) > 127).mean() for i in people])

    normal, bag, coat = area("nm-05"), area("bg-01"), area("cl-01")
    assert np.median(bag / normal) > 1.01 and np.median(coat / normal) > 1.04
    assert abs(np.median(area("nm-06") / normal) - 1) < 0.04


def test_noise_changes_more_the_more_there_is() -> None:
    clean = synthetic.sequence(3, view="054")
    changes = [difference(clean, synthetic.sequence(3, view="054", noise=n)) for n in (0.2, 0.6, 1.0)]
    assert 0.2 < changes[0] < changes[1] < changes[2] < 40
    assert (synthetic.sequence(3, view="054", noise=1.0).reshape(30, -1).max(1) > 0).all()


def test_dataset_equals_sequence_and_workers_keep_bytes_and_order() -> None:
    options = {"types": ("nm-01", "cl-02"), "views": ("018", "090"), "frames": 4, "seed": 3}
    one = list(synthetic.dataset(range(1, 6), **options))
    many = list(synthetic.dataset(range(1, 6), **options, workers=2))
    key = [(s.identity, s.type, s.view) for s in one]
    assert key[:4] == [("001", t, v) for t in options["types"] for v in options["views"]] and len(key) == 20
    assert key == [(s.identity, s.type, s.view) for s in many]
    assert all(np.array_equal(a.silhouettes, b.silhouettes) for a, b in zip(one, many, strict=True))
    assert np.array_equal(one[5].silhouettes, synthetic.sequence(2, "nm-01", "090", frames=4, seed=3))


def test_casiab_tree_is_readable(tmp_path) -> None:
    from gaitsdk.datasets import SequenceTree

    seen: list[tuple[int, int]] = []
    count = synthetic.write_casiab(
        tmp_path, [1, 2], ("nm-01", "bg-01"), ("000", "090"), frames=3, progress=lambda a, b: seen.append((a, b))
    )
    assert count == 8 and seen == [(i, 8) for i in range(1, 9)]
    with open(tmp_path / "001" / "bg-01" / "090" / "090.pkl", "rb") as file:
        x = pickle.load(file)
    assert np.array_equal(x, synthetic.sequence(1, "bg-01", "090", frames=3)) and x.dtype == np.uint8
    found = {(r.identity, r.type, r.view): r for r in SequenceTree(tmp_path)}
    assert len(found) == 8 and np.array_equal(found["001", "bg-01", "090"].load(), x)


def test_contact_sheet(tmp_path) -> None:
    from PIL import Image

    synthetic.contact_sheet(
        tmp_path / "s.png", [synthetic.sequence(1, view=v, frames=6) for v in ("000", "090")], columns=4, zoom=1
    )
    picture = np.asarray(Image.open(tmp_path / "s.png"))
    assert picture.shape == (2 * 66, 4 * 66)
    assert np.array_equal(picture[66:130, 66:130], synthetic.sequence(1, frames=6)[2])
    with pytest.raises(OptionError):
        synthetic.contact_sheet(tmp_path / "t.png", [])


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: synthetic.sequence(-1), "identity"),
        (lambda: synthetic.sequence("001"), "identity"),  # type: ignore[arg-type]
        (lambda: synthetic.sequence(1, "xx-01"), "type"),
        (lambda: synthetic.sequence(1, "nm-00"), "type"),
        (lambda: synthetic.sequence(1, None), "type"),  # type: ignore[arg-type]
        (lambda: synthetic.sequence(1, view="091"), "view"),
        (lambda: synthetic.sequence(1, view=90), "view"),  # type: ignore[arg-type]
        (lambda: synthetic.sequence(1, frames=0), "frames"),
        (lambda: synthetic.sequence(1, frames=2.5), "frames"),  # type: ignore[arg-type]
        (lambda: synthetic.sequence(1, seed=-1), "seed"),
        (lambda: synthetic.sequence(1, noise=1.5), "noise"),
        (lambda: synthetic.sequence(1, noise=float("nan")), "noise"),
        (lambda: synthetic.masks(1, height=3), "height"),
        (lambda: synthetic.dataset([1, -2]), "identities"),
        (lambda: synthetic.dataset([1], workers=0), "workers"),
        (lambda: synthetic.dataset([1], views=("090", "9")), "view"),
        (lambda: synthetic.write_casiab("/nonexistent", [True]), "identities"),
    ],
)
def test_bad_arguments_raise_option_errors(call, word: str) -> None:
    with pytest.raises(OptionError, match=f"^{word}: ") as caught:
        call()
    assert "Fix: " in str(caught.value)


def test_gei_baseline_is_neither_trivial_nor_hopeless() -> None:
    # 50 identities, four of the eleven views, two gallery walks: the protocol of the benchmark on a third of the views
    views = ("000", "036", "090", "144")
    people = range(1, 51)
    gei = {}
    for s in synthetic.dataset(people, ("nm-01", "nm-02", "nm-05", "bg-01", "cl-01"), views, frames=24):
        gei[s.identity, s.type, s.view] = s.silhouettes.astype(np.float32).mean(0).ravel()
    names = [f"{i:03d}" for i in people]

    def rank1(kind: str, probe: str, gallery: str) -> float:
        p = np.stack([gei[n, kind, probe] for n in names])
        g = np.stack([gei[n, t, gallery] for t in ("nm-01", "nm-02") for n in names])
        nearest = ((p * p).sum(1)[:, None] + (g * g).sum(1) - 2 * p @ g.T).argmin(1)
        return float((nearest % 50 == np.arange(50)).mean())

    for kind, (low, high) in {"nm-05": (0.10, 0.50), "bg-01": (0.06, 0.40), "cl-01": (0.06, 0.40)}.items():
        same = np.mean([rank1(kind, v, v) for v in views])
        cross = np.mean([rank1(kind, v, w) for v in views for w in views if v != w])
        assert low < cross < high and same > 1.7 * cross
