"""How sure a difference between two systems is, when they were measured on the same probes."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from gaitsdk.errors import InputError, OptionError

#: The interval holds so much of the resampled differences.
COVERAGE = 0.95


def paired_bootstrap(
    hits_a: ArrayLike, hits_b: ArrayLike, identities: ArrayLike, n: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """95 % interval of the gain of b over a, from resampled identities.

    Whole identities are drawn with replacement, because the probes of one person are not independent.

    Args:
        hits_a, hits_b: bool [m], the same rows for both systems (`HitTable.before`, `.after`).
        identities: [m], whose probe each row is.
        n: resamples.
        seed: of the draws.

    Returns:
        (low, mean, high) in percentage points of the rows; `mean` is the difference as measured.

    Raises:
        InputError: no rows, or shapes that differ. OptionError: n below 1.
    """
    a, b, names = np.asarray(hits_a, np.float64), np.asarray(hits_b, np.float64), np.asarray(identities)
    if a.ndim != 1 or not len(a) or a.shape != b.shape or a.shape != names.shape:
        raise InputError(
            "the rows do not belong together",
            where="paired_bootstrap",
            got=f"{list(a.shape)}, {list(b.shape)} and {list(names.shape)}",
            expected="three arrays [m], m > 0",
        )
    if n < 1:
        raise OptionError("at least one resample is needed", where="n", got=n)
    people, owner = np.unique(names, return_inverse=True)
    gains, rows = np.bincount(owner, b - a), np.bincount(owner)
    drawn = np.random.default_rng(seed).multinomial(len(people), np.full(len(people), 1.0 / len(people)), size=n)
    differences = 100.0 * (drawn @ gains) / (drawn @ rows)
    tail = (1.0 - COVERAGE) / 2.0
    low, high = np.quantile(differences, [tail, 1.0 - tail])
    return float(low), float(100.0 * gains.sum() / rows.sum()), float(high)
