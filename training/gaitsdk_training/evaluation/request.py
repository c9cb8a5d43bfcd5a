"""What every protocol gets, checked once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gaitsdk.distance import check_features, check_metric
from gaitsdk.errors import InputError, OptionError
from gaitsdk_training.evaluation.ranking import Features, Reranker, as_reranker

#: Called as progress(done, total).
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Request:
    """Features with their labels, and how to rank them; made by `check`."""

    features: Features
    labels: NDArray[Any]
    types: NDArray[Any]
    views: NDArray[Any]
    reranker: Reranker | None
    k: int
    probe_set: frozenset[str] | None
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
        maps = check_features(features, "features")
        if not len(maps):
            raise InputError("there is nothing to evaluate", where="features", got="no sequence")
        columns = {
            name: np.asarray(values) for name, values in (("labels", labels), ("types", types), ("views", views))
        }
        for name, values in columns.items():
            if values.shape != (len(maps),):
                raise InputError(
                    "does not fit the features", where=name, got=list(values.shape), expected=f"[{len(maps)}]"
                )
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise OptionError("not a length of a list", where="k", got=repr(k), expected="a whole number of at least 1")
        chosen = None if probe_set is None else frozenset(probe_set)
        texts = {name: values.astype(str) for name, values in columns.items()}
        return cls(
            maps,
            texts["labels"],
            texts["types"],
            texts["views"],
            as_reranker(reranker),
            int(k),
            chosen,
            check_metric(metric),
        )
