"""What the protocols refuse, and what Ctrl-C leaves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gaitsdk.errors import InputError, OptionError
from gaitsdk_training.evaluation import PROTOCOLS, cells, evaluate
from gaitsdk_training.evaluation.grew import submission
from gaitsdk_training.evaluation.request import Request

Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
VIEWS = ["000", "015", "030"]


def walkers(people: int, kinds: list[str], views: list[str]) -> Data:
    """One sequence of noise for each identity, type and view."""
    rows = [(f"{i:05d}", kind, view) for i in range(people) for kind in kinds for view in views]
    labels, types, cameras = (np.array(column) for column in zip(*rows, strict=True))
    features = np.random.default_rng(0).normal(size=(len(rows), 4, 6)).astype(np.float32)
    return features, labels, types, cameras


def oumvlp() -> Data:
    return walkers(25, ["00", "01"], VIEWS)


def test_bad_input_is_told_by_name() -> None:
    features, labels, types, views = oumvlp()
    for protocol in PROTOCOLS:
        with pytest.raises(InputError, match="nothing to evaluate"):
            evaluate(np.zeros((0, 4, 6), np.float32), [], [], [], protocol)
    broken = features.copy()
    broken[7, 2, 3] = np.nan
    with pytest.raises(InputError, match=f"features of {labels[7]}/{types[7]}/{views[7]}: 1 of .* NaN"):
        evaluate(broken, labels, types, views, "oumvlp")
    twice = views.copy()
    twice[1] = twice[0]
    with pytest.raises(InputError, match=f"more than once; got {labels[0]}/00/000 2 times"):
        evaluate(features, labels, types, twice, "oumvlp")
    with pytest.raises(InputError, match="oumvlp: no probes; got types 01, 07"):
        evaluate(features, labels, np.where(types == "00", "07", types), views, "oumvlp")
    with pytest.raises(InputError, match="no probe view has another gallery view"):
        evaluate(features, labels, np.where(views == "000", types, "07"), views, "oumvlp")
    with pytest.raises(OptionError, match="did you mean 'oumvlp'"):
        evaluate(features, labels, types, views, "OU_MVLP")


def test_bad_probe_sets() -> None:
    features, labels, types, views = oumvlp()
    everything = [f"{label}-{kind}-{view}" for label, kind, view in zip(labels, types, views, strict=True)]
    for probe_set, message in (
        (None, "lists its probes"),
        ([], "lists its probes"),
        (["09999-00-000"], "no listed probe is there"),
        (everything, "the gallery is empty"),
        (everything[0], "not a collection of names"),
        ([1, 2], "not a collection of names"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate(features, labels, types, views, "gait3d", probe_set=probe_set)  # type: ignore[arg-type]
    alone = np.array([f"{i:05d}" for i in range(len(labels))])
    with pytest.raises(InputError, match="no probe has a sequence"):
        evaluate(features, alone, types, views, "gait3d", probe_set=[f"00000-{types[0]}-{views[0]}"])
    for protocol in ("oumvlp", "oumvlp-cross-view", "grew"):
        with pytest.raises(InputError, match="probe_set"):
            evaluate(features, labels, types, views, protocol, probe_set=everything[:3])


def test_bad_rerankers() -> None:
    data = oumvlp()

    class Unusable:
        scope = "full"

        def __init__(self, answer: Any) -> None:
            self.answer = answer

        def rescore_all(self, probes: np.ndarray, gallery: np.ndarray) -> Any:
            return self.answer

    for answer in (np.zeros(3), np.full((25, 25), np.nan), np.full((25, 25), "far")):
        with pytest.raises(InputError, match="re-ranker"):
            evaluate(*data, protocol="oumvlp", reranker=Unusable(answer))

    class Halves:
        scope = "full"

        def rescore(self, probes: np.ndarray, candidates: np.ndarray) -> np.ndarray:
            return np.zeros(candidates.shape[:2])

    with pytest.raises(OptionError, match="not a re-ranker"):
        evaluate(*data, protocol="oumvlp", reranker=Halves())
    Halves.scope = "half"
    with pytest.raises(OptionError, match="not a re-ranker"):
        evaluate(*data, protocol="oumvlp", reranker=Halves())


def test_bad_submissions() -> None:
    features, labels, types, views = walkers(25, ["01", "03"], ["000"])
    for change, message in (
        ({"types": np.where(types == "03", "02", types)}, "no probes"),
        ({"labels": np.char.add("id", labels)}, "numbers as identities; got 'id00000'"),
        ({"types": np.where((types == "01") & (labels > "00010"), "00", types)}, "too small .* 11 entries"),
        ({}, "two probes have the same video id, .* got '000'"),
    ):
        names = {"labels": labels, "types": types, "views": views, **change}
        request = Request.check(features, *names.values(), None, 1, None, "euclidean")
        with pytest.raises(InputError, match=message):
            submission(request)


def test_ctrl_c_stops_the_ranking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "_BLOCK", 1)
    monkeypatch.setattr(cells, "BATCH", 1)  # one probe is a block
    ranked: list[int] = []
    real = cells._block

    def counting(*arguments: Any) -> Any:
        ranked.append(1)
        return real(*arguments)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cells, "_block", counting)
    with pytest.raises(KeyboardInterrupt):
        evaluate(*walkers(120, ["01", "02"], ["000"]), protocol="grew", progress=stop)
    assert len(ranked) < 120
