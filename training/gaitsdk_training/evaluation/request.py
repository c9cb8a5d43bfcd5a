"""What every protocol gets, checked once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gaitsdk.distance import check_features, check_metric
from gaitsdk.errors import InputError, OptionError
from gaitsdk_training.evaluation.ranking import Features, Rescorer, as_reranker

#: Called as progress(done, total).
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Names:
    """Who walks, how and before which camera: all that a protocol needs to say what is ranked where.

    Attributes:
        labels, types, views: [n] strings.
        identities: int64 [n], the labels as numbers.
        probe_set: "id-type-view" of the probes, for protocols that list them; else None.
    """

    labels: NDArray[Any]
    types: NDArray[Any]
    views: NDArray[Any]
    identities: NDArray[np.int64]
    probe_set: frozenset[str] | None

    @classmethod
    def check(
        cls, labels: ArrayLike, types: ArrayLike, views: ArrayLike, probe_set: Iterable[str] | None, count: int
    ) -> Names:
        """Raises InputError: not `count` of each, or none at all."""
        if not count:
            raise InputError("there is nothing to evaluate", where="features", got="no sequence")
        columns = {
            name: np.asarray(values) for name, values in (("labels", labels), ("types", types), ("views", views))
        }
        for name, values in columns.items():
            if values.shape != (count,):
                raise InputError("does not fit the features", where=name, got=list(values.shape), expected=f"[{count}]")
        texts = {name: values.astype(str) for name, values in columns.items()}
        return cls(**texts, identities=_codes(texts["labels"]), probe_set=_names_of(probe_set))

    def name(self, index: int) -> str:
        """ "id/type/view" of one sequence."""
        return f"{self.labels[index]}/{self.types[index]}/{self.views[index]}"

    def listed(self) -> NDArray[np.bool_]:
        """bool [n]: in the probe set."""
        wanted = self.probe_set or frozenset()
        rows = zip(self.labels, self.types, self.views, strict=True)
        return np.fromiter(("-".join(each) in wanted for each in rows), bool, len(self.labels))

    def present(self, level: str, most: int = 8) -> str:
        """The first of the names at one level ("types", "views"), for messages."""
        found = sorted(set(getattr(self, level).tolist()))
        return f"{level} {', '.join(found[:most])}" + (f", ... ({len(found)} in all)" if len(found) > most else "")

    def refuse_probe_set(self, protocol: str) -> None:
        """For protocols whose probes are told by their types. Raises InputError: there is a probe set."""
        if self.probe_set is not None:
            raise InputError(
                f"{protocol}'s probes are told by their types", where="probe_set", expected="None", fix="leave it out"
            )

    def refuse_twins(self) -> None:
        """Raises InputError: a sequence is there twice. It would find itself in the gallery, or count twice."""
        kinds, cameras = _codes(self.types), _codes(self.views)
        key = (self.identities * (kinds.max() + 1) + kinds) * (cameras.max() + 1) + cameras
        _, first, times = np.unique(key, return_index=True, return_counts=True)
        if twice := np.flatnonzero(times > 1).tolist():
            more = f" and {len(twice) - 1} more" if len(twice) > 1 else ""
            raise InputError(
                "the same identity, type and view more than once",
                where="labels, types, views",
                got=f"{self.name(int(first[twice[0]]))} {int(times[twice[0]])} times{more}",
                expected="each sequence once",
                fix="number the repetitions in the type or the view, as nm-01 and nm-02 are",
            )


@dataclass(frozen=True)
class Request:
    """Features with their names, and how to rank them; made by `check`."""

    features: Features
    names: Names
    reranker: Rescorer | None
    k: int
    metric: str

    @classmethod
    def check(
        cls,
        features: ArrayLike,
        labels: ArrayLike,
        types: ArrayLike,
        views: ArrayLike,
        reranker: Any,
        k: int,
        probe_set: Iterable[str] | None,
        metric: str,
    ) -> Request:
        """Raises InputError or OptionError for what cannot be evaluated."""
        maps = np.asarray(features)
        names = Names.check(labels, types, views, probe_set, len(maps) if maps.ndim else 0)
        try:
            maps = check_features(maps, "features")
        except InputError as error:
            if (bad := _first_not_finite(maps)) is None:
                raise
            raise InputError(
                error.what, where=f"features of {names.name(bad)}", expected=error.expected, fix=error.fix
            ) from error
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise OptionError("not a length of a list", where="k", got=repr(k), expected="a whole number of at least 1")
        return cls(maps, names, as_reranker(reranker), int(k), check_metric(metric))


def _codes(names: NDArray[Any]) -> NDArray[np.int64]:
    """The names as numbers."""
    codes: NDArray[np.int64] = np.unique(names, return_inverse=True)[1].astype(np.int64)
    return codes


def _names_of(probe_set: Iterable[str] | None) -> frozenset[str] | None:
    if probe_set is None:
        return None
    listed = [probe_set] if isinstance(probe_set, str) else list(probe_set)
    if isinstance(probe_set, str) or not all(isinstance(each, str) for each in listed):
        raise InputError(
            "not a collection of names",
            where="probe_set",
            got=repr(probe_set)[:100],
            expected='strings like "0001-camid1_videoid2-seq0"',
        )
    return frozenset(listed)


def _first_not_finite(maps: NDArray[Any]) -> int | None:
    if maps.dtype.kind != "f" or maps.ndim != 3:
        return None
    return next((index for index, each in enumerate(maps) if not np.isfinite(each).all()), None)
