"""Evaluating a bundle on a CASIA-B-style tree, without holding the tree in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from gaitsdk.errors import DatasetError, OptionError, SilhouetteError
from gaitsdk.pipeline import embed_many
from gaitsdk_training.evaluation.bootstrap import paired_bootstrap
from gaitsdk_training.evaluation.evaluate import PROTOCOLS, measure
from gaitsdk_training.evaluation.ranking import Features
from gaitsdk_training.evaluation.request import Request

if TYPE_CHECKING:
    from gaitsdk.bundle import Bundle
    from gaitsdk.datasets import SequenceRef
    from gaitsdk.runtimes import NetworkRuntime

_CHUNK = 32  # sequences in memory at once

#: Called as progress(stage, done, total); stages are "embedding" and "ranking".
Progress = Callable[[str, int, int], None]


def evaluate_tree(
    root: str | os.PathLike[str],
    bundle: Bundle,
    *,
    protocol: str = "casiab",
    identities: Iterable[str] | None = None,
    reranker: str = "cargait",
    k: int | None = None,
    runtime: str = "auto",
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Embeds every sequence of a tree with a bundle and evaluates it.

    Args:
        root: `<root>/<id>/<type>/<view>/*`.
        bundle: whose networks to use.
        protocol: one of `PROTOCOLS`.
        identities: the test identities; None = all that are there.
        reranker: "cargait" or "none".
        k: length of the list that is re-ranked; the bundle's by default.
        runtime, device: as for `gaitsdk.runtimes.open_runtime`.
        progress: see `Progress`.

    Returns:
        `figures` (those of `evaluate`), `gain` (low, mean and high of `paired_bootstrap` over the cross-view rankings,
        None without re-ranker), wanted identities that are `missing`, what was `skipped` and why, protocol, runtime,
        device, re-ranker, k, fingerprint.

    Raises:
        OptionError: unknown protocol or re-ranker. DatasetError: nothing to evaluate. Else as for `evaluate`.
    """
    from gaitsdk.datasets import SequenceTree
    from gaitsdk.rerankers import create_reranker
    from gaitsdk.runtimes import open_runtime

    if protocol not in PROTOCOLS:  # before the embedding, which takes long
        raise OptionError("no such protocol", where="protocol", got=repr(protocol), expected=" or ".join(PROTOCOLS))
    wanted = None if identities is None else {str(each) for each in identities}
    references = [each for each in SequenceTree(root) if wanted is None or each.identity in wanted]
    missing = sorted((wanted or set()) - {each.identity for each in references})
    networks = open_runtime(bundle, runtime, device)
    try:
        rescorer = create_reranker(reranker, bundle, networks)
        features, kept, skipped = _embed(references, bundle, networks, progress)
        if not kept:
            raise DatasetError(
                "no usable sequence", where=str(root), got=f"{len(references)} sequences of the wanted identities"
            )
        length = bundle.manifest.k if k is None else k
        request = Request.check(
            features,
            [each.identity for each in kept],
            [each.type for each in kept],
            [each.view for each in kept],
            None if rescorer is None else rescorer.rescore,
            length if rescorer is not None else 1,
            None,
            bundle.metric,
        )
        figures, table = measure(request, protocol, _stage(progress, "ranking"))
        used = networks.name, networks.device
    finally:
        networks.close()
    gain = None
    if rescorer is not None:
        rows = table.where(table.cross_view)
        gain = dict(zip(("low", "mean", "high"), paired_bootstrap(rows.before, rows.after, rows.identity), strict=True))
    return {
        "protocol": protocol,
        "figures": figures,
        "gain": gain,
        "sequences": len(kept),
        "missing": missing,
        "skipped": skipped,
        "runtime": used[0],
        "device": used[1],
        "reranker": reranker,
        "k": length if rescorer is not None else 0,
        "fingerprint": bundle.fingerprint,
    }


def _embed(
    references: list[SequenceRef], bundle: Bundle, networks: NetworkRuntime, progress: Progress | None
) -> tuple[Features, list[SequenceRef], list[dict[str, str]]]:
    from gaitsdk.silhouettes import prepare

    parts: list[Features] = [np.zeros((0, bundle.strips, bundle.dims), np.float32)]
    kept: list[SequenceRef] = []
    skipped: list[dict[str, str]] = []
    report = _stage(progress, "embedding")
    spec = bundle.manifest.input
    for start in range(0, len(references), _CHUNK):
        sequences = []
        for each in references[start : start + _CHUNK]:
            try:
                sequences.append(prepare(each.load(), spec.size, channels=spec.channels, min_frames=1).silhouettes)
                kept.append(each)
            except (SilhouetteError, DatasetError) as error:
                skipped.append({"sequence": f"{each.identity}/{each.type}/{each.view}", "reason": str(error)})
        if sequences:
            handling = bundle.manifest.length_handling
            parts.append(embed_many(networks.embed, sequences, length_handling=handling))
        if report is not None:
            report(min(start + _CHUNK, len(references)), len(references))
    return np.concatenate(parts), kept, skipped


def _stage(progress: Progress | None, name: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(name, done, total)
