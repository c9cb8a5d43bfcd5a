"""What the parameter-free re-rankers share: options, checks, lists in one array, distances inside a list.

Shapes: n probes, K candidates of each, m gallery entries, s strips, d dimensions; a *list* is a probe with its
candidates, `[1 + K, s, d]`, the probe first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gaitsdk.distance import SMALLEST_NORM, Features, check_features
from gaitsdk.errors import OptionError

SCOPES = ("list", "full")
#: Elements of the float64 arrays that one step over several lists makes: 2 MB, which caches hold.
_BLOCK = 1 << 18

#: Squared distances below this share of a strip's square are what sums in another order differ by: equal maps stay so.
_ROUNDING = 1e-26

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ParameterFree(ABC):
    """A re-ranker without weights. Its fields are its options; NumPy only; may be used from several threads.

    Attributes:
        scope: "list": a list is re-ordered from its own entries alone, whatever else is asked at the same time.
            "full": `rescore_all` sees all probes and the whole gallery at once, where the method is made for that.
    """

    NAME: ClassVar[str]

    scope: str = "list"

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise OptionError("unknown scope", where="scope", got=repr(self.scope), expected=" or ".join(SCOPES))

    @property
    def name(self) -> str:
        """Its name, with those options that are not the defaults: distances under other options are others, so no
        threshold may be taken from one to the other."""
        changed = [
            f"{each.name}={getattr(self, each.name)!r}"
            for each in fields(self)
            if each.name != "scope" and getattr(self, each.name) != each.default
        ]
        return f"{self.NAME}({', '.join(changed)})" if changed else self.NAME

    def rescore(self, probe: ArrayLike, candidates: ArrayLike) -> Features:
        """New distances of each list, from that list alone.

        Args:
            probe: F `[n, s, d]` float32. candidates: F `[n, K, s, d]` of each probe's K candidates, in any order.

        Returns:
            `[n, K]` float32, lower is nearer; comparable inside a list only.

        Raises:
            InputError: shapes that do not fit, not floating-point, NaN or infinite.
        """
        p = check_features(probe, "probe")
        c = check_features(candidates, "candidates", (len(p), None, p.shape[1], p.shape[2]))
        result = np.empty(c.shape[:2], np.float32)
        if result.size:
            listed = c.shape[1] + 1
            step = max(1, _BLOCK // (listed * p.shape[1] * max(p.shape[2], listed)))
            for start in range(0, len(p), step):
                part = slice(start, start + step)
                lists = np.concatenate([p[part, None], c[part]], axis=1, dtype=np.float64)
                result[part] = self._rescore(lists)
        return result

    def rescore_all(self, probes: ArrayLike, gallery: ArrayLike) -> Features:
        """New distances of every probe to every entry of the gallery.

        Args:
            probes: F `[n, s, d]` float32. gallery: F `[m, s, d]`.

        Returns:
            `[n, m]` float32, lower is nearer.

        Raises:
            InputError: as for `rescore`.
        """
        p = check_features(probes, "probes")
        g = check_features(gallery, "gallery", (None, p.shape[1], p.shape[2]))
        if not len(p) or not len(g):
            return np.zeros((len(p), len(g)), np.float32)
        return self._rescore_all(p, g)

    @abstractmethod
    def _rescore(self, lists: Array) -> NDArray[np.floating[Any]]:
        """`[n, 1 + K, s, d]` float64 -> `[n, K]`."""

    @abstractmethod
    def _rescore_all(self, probes: Features, gallery: Features) -> Features:
        """Checked and not empty: `[n, s, d]`, `[m, s, d]` -> `[n, m]`."""


def check_option(owner: ParameterFree, name: str, *, whole: bool = False, low: float = 0, high: float = 1e9) -> None:
    """Raises OptionError unless the field is a number (a whole one) from `low` to `high`."""
    value = getattr(owner, name)
    fits = isinstance(value, (int, np.integer)) or (not whole and isinstance(value, (float, np.floating)))
    if not fits or isinstance(value, bool) or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        expected = f"{kind} of at least {low:g}" if high == 1e9 else f"{kind} from {low:g} to {high:g}"
        raise OptionError(
            f"option '{name}' is impossible", where=f"re-ranker {owner.NAME}", got=repr(value), expected=expected
        )


def distances_within(lists: Array) -> Features:
    """Mean-of-strips Euclidean distances inside each list: `[n, L, s, d]` float64 -> `[n, L, L]` float32.

    In float64, where the expanded squares cancel no digit that float32 would show; 0 on the diagonal.
    """
    strips = lists.transpose(0, 2, 1, 3)
    products = strips @ strips.swapaxes(-1, -2)
    squares = np.einsum("nsld,nsld->nsl", strips, strips)
    products *= -2.0
    products += squares[..., :, None]
    products += squares[..., None, :]
    np.maximum(products, 0.0, out=products)
    distances = np.sqrt(products, out=products).mean(axis=1, dtype=np.float64).astype(np.float32)
    diagonal = np.arange(lists.shape[1])
    distances[:, diagonal, diagonal] = 0.0
    symmetric: Features = np.minimum(distances, distances.swapaxes(-1, -2))  # to the last bit
    return symmetric


def from_probe(lists: Array) -> Array:
    """Mean-of-strips Euclidean distances of each list's first map to the others: `[n, L, s, d]` -> `[n, L - 1]`."""
    difference = lists[:, 1:] - lists[:, :1]
    squares = np.einsum("nlsd,nlsd->nls", difference, difference)
    squares[squares < _ROUNDING * np.einsum("nlsd,nlsd->nls", lists[:, :1], lists[:, :1])] = 0.0
    distances: Array = np.sqrt(squares).mean(axis=-1)
    return distances


def unit_strips(maps: NDArray[Any]) -> NDArray[Any]:
    """Every strip divided by its length, `[..., s, d]`; a strip of zeros stays as it is.

    s such strips, one behind the other and divided by sqrt(s), are the unit vector that the papers speak of: its
    product with another one's is the mean over strips of the cosines.
    """
    norms = np.sqrt(np.einsum("...d,...d->...", maps, maps))
    unit: NDArray[Any] = maps / np.maximum(norms, SMALLEST_NORM)[..., None]
    return unit


def nearest(distances: NDArray[Any], count: int) -> NDArray[np.bool_]:
    """Which of the last axis are among the `count` nearest of their row; equals of the last one are, too, so that
    nothing depends on the order: `[..., L, L]` -> bool `[..., L, L]`."""
    last = min(count, distances.shape[-1]) - 1
    within: NDArray[np.bool_] = distances <= np.partition(distances, last, axis=-1)[..., last : last + 1]
    return within
