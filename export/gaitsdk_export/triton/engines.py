"""The bundle's TensorRT engines as models of a repository; their sizes decide its limits.

embed     = check (Python: what no engine can refuse) -> backbone (engine)
rerank    = reranker (engine), under the repository's names of the tensors
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gaitsdk.bundle import PRECISIONS, kind_of
from gaitsdk.errors import BundleError, ExportError
from gaitsdk.pipeline import bucket, padding_limit
from gaitsdk.runtimes.protocol import read_artefact
from gaitsdk.runtimes.wire import EMBED, RERANK
from gaitsdk_export.formats import Profile, Range
from gaitsdk_export.triton import warmup
from gaitsdk_export.triton.config import Batching, Instances, ModelConfig, Step, Tensor

if TYPE_CHECKING:
    from gaitsdk.bundle import Bundle, Network

#: The one kind that Triton's backend loads; those of TensorRT for RTX run in a process only.
FORMAT = "tensorrt"
#: Models that clients do not ask; the engines are called as the bundle calls its networks.
CHECK, BACKBONE, RERANKER = "check", "backbone", "reranker"
#: Beside a plan lies what `gaitsdk deploy --check` compares it with.
PLAN, RECORD = "model.plan", "model.plan.export.json"


@dataclass(frozen=True)
class Engine:
    """An engine as the bundle holds it.

    Attributes:
        content: the plan.
        record: its `export.json`.
        profiles: the sizes that it was built for; all have the same batches.
    """

    content: bytes
    record: dict[str, Any]
    profiles: tuple[Profile, ...]

    @property
    def batch(self) -> Range:
        return self.profiles[0].ranges["batch"]

    def sizes(self, axis: str) -> tuple[Range, ...]:
        """Of "frames" or "candidates", one range for each profile."""
        return tuple(each.ranges[axis] for each in self.profiles)

    @property
    def record_text(self) -> bytes:
        """The content of the record's file."""
        return (json.dumps(self.record, indent=1, sort_keys=True) + "\n").encode()


def read_engines(bundle: Bundle, networks: Sequence[Network]) -> dict[str, Engine]:
    """The engines of these networks (none: none); of several precisions the most exact that all of them have.

    Raises:
        ExportError: the bundle lacks one, or it does not take a single sequence or a short list.
        BundleError: one is damaged, or made from other weights.
    """
    for precision in PRECISIONS:
        kind = kind_of(FORMAT, precision)
        if all(bundle.artefact(each, kind) is not None for each in networks):
            return _one_batch(bundle, {each: _read(bundle, each, kind) for each in networks})
    raise ExportError(
        "the bundle has no TensorRT engines",
        where=str(bundle.path),
        expected=f"plans of {' and '.join(networks)} in one precision, built by TensorRT itself",
        fix=f"on the GPU that will serve: gaitsdk export {bundle.path} --to {FORMAT}; or --rendering portable",
    )


def _one_batch(bundle: Bundle, engines: dict[str, Engine]) -> dict[str, Engine]:
    """The engines, once all of them take the same batches."""
    batches = {name: str(each.batch) for name, each in engines.items()}
    if len(set(batches.values())) > 1:
        got = ", ".join(f"{name} {batch}" for name, batch in batches.items())
        fix = "export both in one go: gaitsdk export --to tensorrt --batch 1:8:64"
        raise ExportError("the engines were built for different batches", where=str(bundle.path), got=got, fix=fix)
    return engines


def _read(bundle: Bundle, network: Network, kind: str) -> Engine:
    found = read_artefact(bundle, network, kind)
    try:
        recorded = found.record["engine"]["profiles"]
        profiles = tuple(Profile({axis: Range(*sizes) for axis, sizes in each.items()}) for each in recorded)
        engine = Engine(found.content, found.record, profiles)
        sizes = engine.sizes("frames" if network == "backbone" else "candidates")
        least = {"batch": engine.batch.least, **({} if network == "backbone" else {"candidates": sizes[0].least})}
    except (LookupError, TypeError, AttributeError) as error:
        raise BundleError(
            "the engine's record does not say what it was built for",
            where=found.path,
            fix=f"gaitsdk export {bundle.path} --to {kind}",
        ) from error
    if max(least.values()) > 1:
        got = ", ".join(f"{axis} from {size}" for axis, size in least.items())
        fix = "gaitsdk export --batch 1:8:64 --candidates 1:10:100"
        raise ExportError("the engine takes no single item", where=found.path, got=got, expected="1", fix=fix)
    return engine


def backbone_models(bundle: Bundle, engine: Engine, batching: Batching, group: Instances) -> list[ModelConfig]:
    """`check`, `backbone` and, chaining them, `embed`."""
    silhouettes = Tensor("silhouettes", "uint8", (-1, *bundle.manifest.input.frame))
    features, runtime = Tensor("features", "float32", (bundle.strips, bundle.dims)), Tensor("runtime", "bytes", (1,))
    frames = replace(silhouettes, name="frames")
    ranges = ",".join(map(str, engine.sizes("frames")))
    check = ModelConfig(CHECK, "python", (silhouettes,), (frames, runtime), parameters={"frames": ranges})
    backbone = ModelConfig(BACKBONE, "tensorrt_plan", (silhouettes,), (features,))
    lengths = frame_buckets(engine, bundle.manifest.length_handling)
    steps = (
        Step(CHECK, {"silhouettes": "silhouettes"}, {"frames": "frames", "runtime": "runtime"}),
        Step(BACKBONE, {"silhouettes": "frames"}, {"features": "features"}),
    )
    embed = ModelConfig(EMBED, "ensemble", (silhouettes,), (features, runtime), steps=steps)
    return [check, _plan(backbone, engine, lengths, batching, group), embed]


def reranker_models(bundle: Bundle, engine: Engine, batching: Batching, group: Instances) -> list[ModelConfig]:
    """`reranker` and, renaming its tensors, `rerank`."""
    probe = Tensor("probe", "float32", (bundle.strips, bundle.dims))
    candidates = Tensor("candidates", "float32", (-1, bundle.strips, bundle.dims))
    distances = Tensor("distances", "float32", (-1,))
    reranker = ModelConfig(RERANKER, "tensorrt_plan", (probe, candidates), (distances, Tensor("order", "int64", (-1,))))
    names = {"probe": "features", "candidates": "candidate_features", "distances": "rerank_distance"}
    step = Step(RERANKER, {each: names[each] for each in ("probe", "candidates")}, {"distances": names["distances"]})
    inputs = tuple(replace(each, name=names[each.name]) for each in reranker.inputs)
    rerank = ModelConfig(RERANK, "ensemble", inputs, (replace(distances, name=names["distances"]),), steps=(step,))
    lists = sorted({each for sizes in engine.sizes("candidates") for each in (sizes.least, sizes.best, sizes.most)})
    return [_plan(reranker, engine, lists, batching, group), rerank]


def _plan(
    model: ModelConfig, engine: Engine, sizes: Sequence[int], batching: Batching, group: Instances
) -> ModelConfig:
    batch = engine.batch
    # Without a list Triton opens the first profile only.
    profiles = tuple(range(len(engine.profiles))) if len(engine.profiles) > 1 else ()
    return replace(
        model,
        batching=replace(batching, preferred=(batch.best,)),
        instances=(replace(group, profiles=profiles),),
        warmup=tuple(warmup.requests(model, (batch.least, batch.best, batch.most), sizes)),
        cuda_graphs=tuple(warmup.graphs(model, (batch.least, batch.best), sizes)),
    )


def frame_buckets(engine: Engine, length_handling: str) -> list[int]:
    """The lengths that reach a backbone's engine: where frames may be repeated ("cyclic") the few that sequences are
    lengthened to; else any, of which these are the least, best and largest of each profile."""
    frames = engine.sizes("frames")
    if length_handling != "cyclic":
        return sorted({size for each in frames for size in (each.least, each.best, each.most)})
    lengths = (length for each in frames for length in range(each.least, each.most + 1))
    return sorted({lengthened(frames, length, length_handling) or length for length in lengths})


def lengthened(frames: Sequence[Range], length: int, length_handling: str) -> int | None:
    """The length to bring a sequence to by the SDK's own rule, within what a profile takes; None where none does."""
    end = bucket(length, padding_limit(length_handling))
    for each in frames:
        fitted = max(each.least, min(end, each.most)) if length_handling == "cyclic" else length
        if max(each.least, length) <= fitted <= each.most:
            return fitted
    return None
