"""Evaluating a bundle on a tree or a packed file, without holding its silhouettes in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gaitsdk.datasets import Partition
from gaitsdk.errors import OptionError
from gaitsdk.pipeline import check_count
from gaitsdk_training.data.public import PUBLIC_DATASETS, public_dataset
from gaitsdk_training.evaluation.bootstrap import paired_bootstrap
from gaitsdk_training.evaluation.evaluate import choose, measure
from gaitsdk_training.evaluation.figures import check_plots, draw
from gaitsdk_training.evaluation.galleries import Pool
from gaitsdk_training.evaluation.grew import GREW, check_submission, submission, write_submission
from gaitsdk_training.evaluation.hits import HitTable
from gaitsdk_training.evaluation.protocol import Protocol
from gaitsdk_training.evaluation.request import Names, Request
from gaitsdk_training.evaluation.sequences import Sequences, embed_sequences, open_sequences
from gaitsdk_training.evaluation.two_stage import PLAN, TwoStageReport, halve, two_stage_report

if TYPE_CHECKING:
    from gaitsdk.bundle import Bundle
    from gaitsdk.runtimes import NetworkRuntime

#: Called as progress(stage, done, total); stages are "embedding", "ranking", "submission" and "two stages".
Progress = Callable[[str, int, int], None]


def evaluate_tree(
    root: str | os.PathLike[str],
    bundle: Bundle,
    *,
    protocol: str = "casiab",
    identities: Iterable[str] | None = None,
    partition: Partition | str | os.PathLike[str] | None = None,
    dataset: str | None = None,
    reranker: str = "cargait",
    scope: str = "list",
    k: int | None = None,
    runtime: str = "auto",
    device: str = "auto",
    cache: str | os.PathLike[str] | None = None,
    submission_file: str | os.PathLike[str] | None = None,
    two_stage: bool = False,
    plots: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Embeds every test sequence with a bundle and evaluates it.

    Who tests: `identities`, or the partition's TEST_SET, or the data set's official test part. Where none of them is
    given, the official test part of the protocol's data set if all of it is there (then this must be that data set),
    else everybody; `split` of the report says which.

    Args:
        root: `<root>/<id>/<type>/<view>/*`, or a packed file.
        bundle: whose networks to use.
        protocol: one of `PROTOCOLS`.
        identities: the test identities.
        partition: a split, or its file; gait3d's names the probes, too.
        dataset: a public data set: names are checked, its official split is taken.
        reranker: one of `gaitsdk.rerankers.RERANKERS`.
        scope: "list": the first k of each gallery are re-ranked; "full": each gallery as a whole.
        k: length of the list; the bundle's by default.
        runtime, device: as for `gaitsdk.runtimes.open_runtime`.
        cache: folder that keeps the features (see `embed_sequences`); None keeps nothing.
        submission_file: for grew: also write the CSV for the benchmark's server.
        two_stage: also say where the errors are, before and after the re-ranker (`two_stage_report`).
        plots: folder for the pictures of `evaluation.figures`; None draws none.
        progress: see `Progress`.

    Returns:
        `figures` (those of `evaluate`), `gain` (low, mean and high of `paired_bootstrap` over the rankings that count,
        None without re-ranker), number of `sequences` and `identities`, `split`, wanted identities that are `missing`,
        what was `skipped` and why, `protocol`, `metric`, `runtime`, `device`, `precision` of the features, `reranker`,
        `scope`, `k` (None: the whole gallery), `fingerprint`, the file of the `features`, the `submission`, and
        `two_stage` (that report with its `columns`, `rows` and `notes`), files of the `plots`. None = there is none.

    Raises:
        OptionError: unknown protocol, re-ranker or scope, two splits, a submission for another protocol than grew.
        CalibrationError: too few people for two stages. MissingDependencyError: plots without matplotlib.
        DatasetError: nothing to evaluate. InputError: the names give no gallery or probes; else as for `evaluate`. All
            that names and options can tell is refused before anything is embedded.
    """
    from gaitsdk.rerankers import create_reranker, list_length
    from gaitsdk.runtimes import open_runtime

    chosen = choose(protocol)
    _check_submission_file(chosen, submission_file)
    if k is not None:
        check_count(k, "k")
    if plots is not None:
        check_plots(plots)
    spec = bundle.manifest.input
    split = _split(open_sequences(root, spec.size, spec.channels), chosen, identities, partition, dataset)
    names = split.names()
    chosen.cells(names)
    if submission_file is not None:
        check_submission(names)
    if two_stage:
        _check_two_stage(reranker, scope, names, protocol)
    networks = open_runtime(bundle, runtime, device)
    try:
        rescorer = create_reranker(reranker, bundle, networks, scope=scope)
        length = 0 if rescorer is None else list_length(reranker, bundle) if k is None else k
        request, embedded = _embed(split, bundle, networks, rescorer, length, cache, _stage(progress, "embedding"))
        figures, table = measure(request, protocol, _stage(progress, "ranking"))
        if submission_file is not None:
            write_submission(submission_file, submission(request, _stage(progress, "submission")))
        stages = _two_stage(request, protocol, _stage(progress, "two stages")) if two_stage else None
        drawn = None if plots is None else draw(plots, table, figures, stages, chosen, reranker)
        used = _used(bundle, networks)
    finally:
        networks.close()
    return {
        "protocol": protocol,
        "figures": figures,
        "gain": None if rescorer is None else _gain(table),
        "split": split.about,
        "missing": split.missing,
        **embedded,
        "metric": bundle.metric,
        **used,
        "reranker": reranker,
        "scope": scope,
        "k": None if scope == "full" and rescorer is not None else length,
        "fingerprint": bundle.fingerprint,
        "submission": None if submission_file is None else str(submission_file),
        "two_stage": None if stages is None else stages.to_dict(),
        "plots": drawn,
    }


@dataclass(frozen=True)
class _Split:
    """Who tests, in words too, which of them are missing, and the probes that a list names."""

    sequences: Sequences
    about: str
    missing: list[str]
    probe_set: frozenset[str] | None

    def names(self, kept: list[int] | None = None) -> Names:
        """Of all sequences, or of those at some positions."""
        chosen = self.sequences if kept is None else self.sequences.take(kept)
        return Names.check(chosen.labels, chosen.types, chosen.views, self.probe_set, len(chosen))


def _split(
    sequences: Sequences,
    protocol: Protocol,
    identities: Iterable[str] | None,
    partition: Partition | str | os.PathLike[str] | None,
    dataset: str | None,
) -> _Split:
    if identities is not None and (partition is not None or dataset is not None):
        raise OptionError(
            "identities and a split are given", where="identities", expected="one or the other", fix="leave one out"
        )
    present = set(sequences.labels)
    if dataset is not None:
        described = public_dataset(dataset)
        described.check_names(present, set(sequences.types), set(sequences.views), str(sequences.root))
    listed = partition if isinstance(partition, Partition) or partition is None else Partition.read(partition)
    wanted: set[str] | None = None
    if identities is not None:
        wanted = {str(each) for each in identities}
        about = "the identities that were named"
    elif listed is not None:
        wanted, about = set(listed.test), "TEST_SET of the partition"
    elif dataset is not None:
        wanted, about = set(described.split(present).test), f"official test part of {dataset}"
    elif (official := _official_test(protocol, present)) is not None:
        wanted, about = official, f"official test part of {protocol.dataset}, all of which is there"
    else:
        about = "all identities; no split was named"
    chosen = sequences if wanted is None else sequences.of(wanted)
    probes = frozenset(listed.probe) if listed is not None and protocol.dataset == "gait3d" else None
    return _Split(chosen, about, sorted((wanted or set()) - present), probes)


def _embed(
    split: _Split,
    bundle: Bundle,
    networks: NetworkRuntime,
    reranker: Any,
    k: int,
    cache: str | os.PathLike[str] | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[Request, dict[str, Any]]:
    """What is to be ranked, and what the report says of it."""
    features, kept, skipped, file = embed_sequences(split.sequences, bundle, networks, cache, progress)
    names = split.names(kept)
    columns = names.labels, names.types, names.views
    length = k if reranker is not None else 1
    request = Request.check(features, *columns, reranker, length, names.probe_set, bundle.metric)
    return request, {
        "sequences": len(kept),
        "identities": len(set(names.labels.tolist())),
        "skipped": skipped,
        "features": None if file is None else str(file),
    }


def _official_test(protocol: Protocol, present: set[str]) -> set[str] | None:
    """The official test part where it is complete; a rule applied to a few identities that are called alike would
    leave out people who were meant."""
    described = PUBLIC_DATASETS[protocol.dataset]
    if described.trains is None:
        return None
    test = set(described.split(present).test)
    return test if len(test) == described.test else None


def _check_submission_file(protocol: Protocol, path: str | os.PathLike[str] | None) -> None:
    if path is None:
        return
    if protocol is not GREW:
        raise OptionError(
            "only GREW's server takes a submission", where="submission", got=protocol.name, fix="--protocol grew"
        )
    if not Path(path).parent.is_dir():
        raise OptionError(
            "there is no such folder", where="submission", got=str(Path(path).parent), fix="make it, or choose another"
        )


def _check_two_stage(reranker: str, scope: str, names: Names, protocol: str) -> None:
    if reranker == "none" or scope != "list":
        raise OptionError(
            "two stages need a re-ranker of lists",
            where="two_stage",
            got=f"{reranker}, {scope}",
            fix="--reranker cargait --scope list",
        )
    blank, columns = np.zeros((len(names.labels), 1, 1), np.float32), (names.labels, names.types, names.views)
    halve(Pool.check(blank, *columns, protocol=protocol, probe_set=names.probe_set), PLAN)


def _used(bundle: Bundle, networks: NetworkRuntime) -> dict[str, str]:
    """What computed the features really. Ranking is in float32 everywhere."""
    precision = "fp32"
    if networks.name in ("onnx", "torchscript") and (artefact := bundle.artefact("backbone", networks.name)):
        record = artefact.with_name(f"{artefact.name}.export.json")
        precision = str(json.loads(record.read_text()).get("precision", precision))
    return {"runtime": networks.name, "device": networks.device, "precision": precision}


def _two_stage(request: Request, protocol: str, progress: Callable[[int, int], None] | None) -> TwoStageReport:
    names = request.names
    return two_stage_report(
        request.features,
        names.labels,
        names.types,
        names.views,
        protocol,
        reranker=request.reranker,
        k=request.k,
        probe_set=names.probe_set,
        metric=request.metric,
        progress=progress,
    )


def _gain(table: HitTable) -> dict[str, float]:
    interval = paired_bootstrap(table.before, table.after, table.identity)
    return dict(zip(("low", "mean", "high"), interval, strict=True))


def _stage(progress: Progress | None, name: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(name, done, total)
