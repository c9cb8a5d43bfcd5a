"""What CarGait does to the lists of a data set: how much there was to mend, what it mended and what it spoiled.

For every cross-view ranking of CASIA-B's protocol. Beside Rank-1, which a ranking moves by all or nothing, the share of
(same person, other person) pairs of a list in the right order; and Rank-1 where only a part of what the attention adds
is used (with E = F + t times attention's part, t = 0 is the initial ranking and t = 1 CarGait), or where fewer than K
are re-ordered. A network that helps on the walks it was trained on, and elsewhere only with a small t or none, has
learned what is theirs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from shipped_bundle import Features
from torch import nn

from gaitsdk.distance import pairwise
from gaitsdk_training.evaluation.casiab import GALLERY, PROBES

#: Shares t of what the attention adds.
SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
#: Lengths K of the list, up to the one that is asked for.
LENGTHS = (1, 2, 3, 5, 10)
#: Degrees between the cameras of probe and gallery.
ANGLES = {"18 to 54": (18, 54), "72 to 108": (72, 108), "126 to 180": (126, 180)}
_BATCH = 64

Lists = tuple[NDArray[np.bool_], NDArray[np.float32], list[dict[str, Any]]]


def effect(parts: Sequence[Features], network: Any, k: int) -> dict[str, Any]:
    """Counts over all rankings of some data sets, each with galleries of its own.

    Args:
        parts: features and names.
        network: CarGait.
        k: length of the lists.
    """
    gathered = [_lists(part, network, k) for part in parts]
    same = np.concatenate([each[0] for each in gathered])  # [m, K]
    distances = np.concatenate([each[1] for each in gathered])  # [m, K, shares]
    about = [row for each in gathered for row in each[2]]
    first = np.argmin(distances, axis=1)  # [m, shares]; a tie goes to the shortlist's first
    hits = np.take_along_axis(same, first, axis=1)
    before, after = hits[:, 0], hits[:, -1]
    within = same.any(axis=1)
    angles = np.array([row["angle"] for row in about])
    conditions = np.array([row["condition"] for row in about])
    people = np.array([row["identity"] for row in about])
    positives = same.sum(axis=1)

    rows = np.arange(len(same))
    names = sorted(set(people.tolist())) if len(parts) == 1 else []

    def counted(rows: NDArray[np.bool_]) -> dict[str, float]:
        return {
            "rankings": int(rows.sum()),
            "found_before": _percent(before[rows]),
            "found_after": _percent(after[rows]),
            "mended": _percent((~before & after)[rows]),
            "spoiled": _percent((before & ~after)[rows]),
            "to_mend": _percent((within & ~before)[rows]),
            "out_of_reach": _percent(~within[rows]),
            "pairs_right_before": round(_pairs_right(same[rows], distances[rows, :, 0]), 2),
            "pairs_right_after": round(_pairs_right(same[rows], distances[rows, :, -1]), 2),
        }

    return {
        "gallery_entries": int(np.median([row["entries"] for row in about])),
        "all": counted(np.ones(len(same), bool)),
        "by_condition": {name: counted(conditions == name) for name in PROBES},
        "by_angle": {name: counted((angles >= low) & (angles <= high)) for name, (low, high) in ANGLES.items()},
        "by_positives_in_list": {str(n): counted(positives == n) for n in range(1, 5) if (positives == n).any()},
        "by_person": {name: counted(people == name) for name in names},
        "rank1_by_share": {str(t): _percent(hits[:, at]) for at, t in enumerate(SHARES)},
        "pairs_right_by_share": {
            str(t): round(_pairs_right(same, distances[:, :, at]), 2) for at, t in enumerate(SHARES)
        },
        "rank1_by_k": {str(n): _percent(same[rows, distances[:, :n, -1].argmin(axis=1)]) for n in LENGTHS if n <= k},
        "attention_to_difference": round(float(np.median([row["ratio"] for row in about])), 3),
    }


def _lists(part: Features, network: Any, k: int) -> Lists:
    """Of every ranking: which of its first K are the probe's person, their distances for every share, and its names."""
    features = np.stack(part.deep)
    labels, types, views = (np.array(each) for each in part.protocol())
    gallery = np.flatnonzero(np.isin(types, GALLERY))
    same, distances, about = [], [], []
    for condition, kinds in PROBES.items():
        probes = np.flatnonzero(np.isin(types, kinds))
        matrix = pairwise(features[probes], features[gallery])
        for u in sorted(set(views.tolist())):
            for v in sorted(set(views.tolist()) - {u}):
                rows, columns = np.flatnonzero(views[probes] == u), np.flatnonzero(views[gallery] == v)
                if not len(rows) or not len(columns):
                    continue
                order = np.argsort(matrix[np.ix_(rows, columns)], axis=1, kind="stable")[:, :k]
                asked, listed = probes[rows], gallery[columns][order]
                found, ratios = _by_share(network, features[asked], features[listed])
                same.append(_padded(labels[asked][:, None] == labels[listed], k, False))
                distances.append(_padded(found, k, np.inf))
                about += [
                    {
                        "identity": labels[at], "condition": condition, "angle": abs(int(u) - int(v)),
                        "entries": len(columns), "ratio": ratio,
                    }
                    for at, ratio in zip(asked.tolist(), ratios.tolist(), strict=True)
                ]  # fmt: skip
    return np.concatenate(same), np.concatenate(distances), about


@torch.inference_mode()
def _by_share(
    network: nn.Module, probes: NDArray[np.float32], lists: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Distances [n, K, shares], and [n] the attention's part of E_p - E_c as a multiple of F_p - F_c (means)."""
    found, ratios = [], []
    for start in range(0, len(probes), _BATCH):
        p, c = (torch.from_numpy(np.ascontiguousarray(each[start : start + _BATCH])) for each in (probes, lists))
        first, second = p.repeat_interleave(c.shape[1], dim=0), c.flatten(0, 1)
        attend: Any = network.attend
        attended_p, attended_c = attend(first, second)
        plain = first - second
        added = (attended_p - attended_c) - plain
        distances = [torch.linalg.vector_norm(plain + t * added, dim=-1).mean(dim=-1) for t in SHARES]
        found.append(torch.stack(distances, dim=-1).unflatten(0, c.shape[:2]).numpy())
        sizes = [torch.linalg.vector_norm(each, dim=-1).mean(dim=-1) for each in (added, plain)]
        ratio = sizes[0] / sizes[1]
        ratios.append(ratio.unflatten(0, c.shape[:2]).mean(dim=1).numpy())
    return np.concatenate(found), np.concatenate(ratios)


def _padded(rows: NDArray[Any], k: int, value: Any) -> NDArray[Any]:
    """[n, K', ...] -> [n, k, ...] where a gallery had fewer entries."""
    missing = k - rows.shape[1]
    return np.pad(rows, [(0, 0), (0, missing)] + [(0, 0)] * (rows.ndim - 2), constant_values=value) if missing else rows


def _pairs_right(same: NDArray[np.bool_], distances: NDArray[np.float32]) -> float:
    """Percent of the (same, other) pairs of a list in the right order, over all lists."""
    pairs = same[:, :, None] & ~same[:, None, :] & np.isfinite(distances)[:, None, :]
    right = (distances[:, :, None] < distances[:, None, :]) & pairs
    return 100.0 * float(right.sum()) / max(1, int(pairs.sum()))


def _percent(hits: NDArray[np.bool_]) -> float:
    return round(100.0 * float(hits.mean()), 2) if len(hits) else 0.0
