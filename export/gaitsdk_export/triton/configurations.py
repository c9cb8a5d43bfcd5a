"""The models of a repository: what each takes and gives, and how Triton runs it.

    embed -> shortlist                          chained by the ensemble `identify`
    embed -> shortlist -> rerank -> decide      where Triton itself runs the re-ranker
    gallery                                     enroll, delete, list

In `portable` all are Python models, and the SDK's own runtimes execute the networks. A process on the way costs a
request nearly as much as CarGait does (docs/serving_load.md), so `shortlist` re-ranks and decides with what it has at
hand; `rerank` is there for those who ask it by itself. In `tensorrt` the networks are engines that Triton runs itself,
and two become ensembles:

    embed     check (Python: what no engine can refuse) -> backbone (engine)
    rerank    reranker (engine), under its names of the tensors

An engine cannot end an identification, which needs names: behind one a small Python model does, `decide`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gaitsdk.errors import ExportError, OptionError
from gaitsdk.pipeline import MAX_K
from gaitsdk.rerankers import NETWORKS, check_reranker, list_length
from gaitsdk.runtimes.wire import DECIDE, EMBED, GALLERY, IDENTIFY, NUMBERS, RERANK, SHORTLIST
from gaitsdk_export.triton import warmup
from gaitsdk_export.triton.config import Batching, Instances, ModelConfig, Resource, Step, Tensor, Versions, Warmup
from gaitsdk_export.triton.engines import Engine, backbone_models, read_engines, reranker_models

if TYPE_CHECKING:
    from gaitsdk.bundle import Bundle, Network

RENDERINGS = ("portable", "tensorrt")
#: What an execution of a network takes where the server runs with `--rate-limit=execution_count`.
NETWORK = Resource("network", every_device=True)

#: What `shortlist` gives beside feature maps: M candidates of each walk.
LISTED = (
    Tensor("candidate_ids", "int64", (-1,)),
    Tensor("candidate_identity", "bytes", (-1,)),
    Tensor("candidate_distance", "float32", (-1,)),
    Tensor("gallery_state", "int64", (2,)),  # entries and commit, as the last two of `numbers`
)
RESCORED = Tensor("rerank_distance", "float32", (-1,))
#: What `identify` answers.
DECIDED = (
    Tensor("identity", "bytes", (-1,)),
    Tensor("distance", "float32", (-1,)),
    Tensor("shortlist_distance", "float32", (-1,)),
    Tensor("shortlist_rank", "int32", (-1,)),
    Tensor("decision", "bytes", (1,)),
    Tensor("fingerprint", "bytes", (1,)),
    Tensor("entry_id", "int64", (-1,)),
    Tensor("numbers", "float64", (len(NUMBERS),)),
)


@dataclass(frozen=True)
class Options:
    """Choices of a rendering.

    Attributes:
        rendering: "portable" or "tensorrt".
        max_batch: sequences in one request, and in one call of a network; with "tensorrt" the engines' own.
        instances: copies of each network (on each GPU with "tensorrt"); `shortlist` and `gallery` always have one. Two
            by default: where a queue is limited, Triton wakes a single copy late now and then (docs/serving_load.md).
        max_delay_us: how long a request may wait for others to share a batch with, while the model is free; those that
            come while it is busy share one in any case.
        max_queue: requests that may wait for `embed` (and for engines); beyond that QueueFullError. What a request
            waits at most is about the time for as many: docs/serving_load.md.
        max_k: longest list that a request may have re-ranked (never less than the bundle's own K; an engine's own limit
            where there is one): `shortlist` re-ranks for everybody, who would all wait for a list of a thousand.
        queue_timeout_us: a request that has waited so long for a network is refused, not answered. A client that wants
            its answer earlier says so with the request.
        reranker: any of `gaitsdk.rerankers.RERANKERS`; "none" for a repository without the step.
        gpus: with "tensorrt": numbers of the GPUs to use; none = all.
        version: of every model; this one is served.
        weights: with "tensorrt": put the engines in.
    """

    rendering: str = "portable"
    max_batch: int = 4
    instances: int = 2
    max_delay_us: int = 0
    max_queue: int = 64
    max_k: int = 100
    queue_timeout_us: int = 10_000_000
    reranker: str = "cargait"
    gpus: tuple[int, ...] = ()
    version: int = 1
    weights: bool = True

    def __post_init__(self) -> None:
        for name, most in (
            ("max_batch", 1024),
            ("instances", 1024),
            ("max_queue", 1024),
            ("version", 1024),
            ("max_k", MAX_K),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise OptionError("not a usable number", where=name, got=repr(value), expected=f"1 to {most}")
        if self.rendering not in RENDERINGS:
            got, expected = repr(self.rendering), " or ".join(RENDERINGS)
            raise OptionError("unknown rendering", where="rendering", got=got, expected=expected)
        if self.gpus and self.rendering == "portable":
            fix = "GAITSDK_DEVICE, or --device of gaitsdk serve, says where its networks run"
            raise OptionError("Python models choose their device themselves", where="gpus", fix=fix)


def networks_of(bundle: Bundle, options: Options) -> tuple[Network, ...]:
    """The networks that Triton itself runs. A re-ranker that is none stays a Python model.

    Raises:
        OptionError: `reranker` is unknown, or the bundle has no weights for it.
    """
    reranker = check_reranker(options.reranker, bundle)
    if options.rendering == "portable":
        return ()
    return ("backbone", "reranker") if reranker in NETWORKS else ("backbone",)


def configurations(
    bundle: Bundle, options: Options | None = None, engines: Mapping[str, Engine] | None = None
) -> list[ModelConfig]:
    """The repository's models. Without re-ranker there is no `rerank`.

    Args:
        engines: those of `networks_of`, where they have been read already.

    Raises:
        OptionError: `reranker` is unknown, or the bundle has no weights for it.
        ExportError, BundleError: the bundle has no engines, or none that fit.
    """
    options = options or Options()
    networks = networks_of(bundle, options)
    engines = read_engines(bundle, networks) if engines is None else engines
    if engines:
        options = replace(options, max_batch=engines["backbone"].batch.most)
    embed, rerank = _embedders(bundle, options, engines), _rerankers(bundle, options, engines)
    apart = "reranker" in engines
    search, decide = _shortlist(bundle, decides=not apart), [_decide()] if apart else []
    chain = [embed[-1], search, *(rerank[-1:] if apart else ()), *decide]
    models = [*embed, search, *rerank, *decide, _identify(chain), _gallery(bundle)]
    parameters = {
        "fingerprint": bundle.fingerprint,
        "reranker": options.reranker,
        "max_batch": str(options.max_batch),
        "max_k": str(_longest_list(bundle, options, engines)),
    }
    return [_finished(each, options, parameters) for each in models]


def _finished(model: ModelConfig, options: Options, parameters: Mapping[str, str]) -> ModelConfig:
    """What a model has in common with others."""
    max_batch = 0 if model.name == GALLERY else options.max_batch
    model = replace(model, max_batch_size=max_batch, versions=Versions(specific=(options.version,)))
    if model.steps:  # these have all else
        return model
    if model.backend == "python":
        model = replace(model, parameters={**parameters, **model.parameters})
    # Who has passed `embed` is not refused half-way; and a limit makes Triton wake a free model late now and then.
    limited = _batching(options) if model.name == EMBED else Batching(options.max_delay_us, max_queue_size=0)
    batching = model.batching or (limited if max_batch else None)
    return replace(model, batching=batching, instances=model.instances or (Instances(),))


def _embedders(bundle: Bundle, options: Options, engines: Mapping[str, Engine]) -> list[ModelConfig]:
    """`embed`, after the models that it stands on."""
    if "backbone" in engines:
        return backbone_models(bundle, engines["backbone"], _batching(options), _instances(options, "gpu"))
    model = _embed(bundle)
    samples = warmup.requests(model, (1, options.max_batch), (warmup.FRAMES,), warmup.WALK)
    return [_python_network(model, options, samples)]


def _rerankers(bundle: Bundle, options: Options, engines: Mapping[str, Engine]) -> list[ModelConfig]:
    """`rerank`, after the model that it stands on; nothing where nothing is re-ranked."""
    if options.reranker == "none":
        return []
    if "reranker" in engines:
        return reranker_models(bundle, engines["reranker"], _batching(options), _instances(options, "gpu"))
    model, k = _rerank(bundle), list_length(options.reranker, bundle)
    # Those without network have nothing to warm up, and compare nothing with lists of zeros.
    samples = warmup.requests(model, (1, options.max_batch), (k,)) if options.reranker in NETWORKS else []
    return [_python_network(model, options, samples)]


def _longest_list(bundle: Bundle, options: Options, engines: Mapping[str, Engine]) -> int:
    """What `k` of a request may be."""
    if "reranker" not in engines:
        return max(options.max_k, list_length(options.reranker, bundle))
    longest, k = engines["reranker"].sizes("candidates")[0].most, list_length(options.reranker, bundle)
    if k > longest:
        raise ExportError(
            "the re-ranker's engine takes no list as long as the bundle's",
            where=str(bundle.path),
            got=f"up to {longest} candidates",
            expected=f"{k} or more",
            fix=f"gaitsdk export {bundle.path} --to tensorrt --candidates 1:{k}:{10 * k}",
        )
    return min(longest, MAX_K)


def _python_network(model: ModelConfig, options: Options, samples: list[Warmup]) -> ModelConfig:
    return replace(model, instances=(_instances(options, "cpu"),), warmup=tuple(samples))


def _batching(options: Options) -> Batching:
    return Batching(options.max_delay_us, options.max_queue, (), options.queue_timeout_us, allow_shorter=True)


def _instances(options: Options, kind: str) -> Instances:
    return Instances(options.instances, kind, options.gpus, resources=(NETWORK,))


def _embed(bundle: Bundle) -> ModelConfig:
    return ModelConfig(
        name=EMBED,
        backend="python",
        inputs=(Tensor("silhouettes", "uint8", (-1, *bundle.manifest.input.frame), ragged=True),),
        outputs=(Tensor("features", "float32", (bundle.strips, bundle.dims)), Tensor("runtime", "bytes", (1,))),
    )


def _shortlist(bundle: Bundle, *, decides: bool) -> ModelConfig:
    maps = Tensor("candidate_features", "float32", (-1, bundle.strips, bundle.dims))
    return ModelConfig(
        name=SHORTLIST,
        backend="python",
        inputs=(Tensor("features", "float32", (bundle.strips, bundle.dims)),),
        outputs=(maps, *LISTED, *(DECIDED if decides else ())),
    )


def _rerank(bundle: Bundle) -> ModelConfig:
    return ModelConfig(
        name=RERANK,
        backend="python",
        inputs=(
            Tensor("features", "float32", (bundle.strips, bundle.dims)),
            Tensor("candidate_features", "float32", (-1, bundle.strips, bundle.dims)),
        ),
        outputs=(RESCORED,),
    )


def _decide() -> ModelConfig:
    return ModelConfig(name=DECIDE, backend="python", inputs=(*LISTED, RESCORED), outputs=DECIDED)


def _identify(models: list[ModelConfig]) -> ModelConfig:
    """Chains models by the names of their tensors: an input takes what the last model before gave under that name."""
    source = {"silhouettes": "silhouettes"}
    steps = []
    for position, model in enumerate(models):
        later = {each.name for other in models[position + 1 :] for each in other.inputs}
        inputs = {each.name: source[each.name] for each in model.inputs}
        if later:
            outputs = {each.name: f"{model.name}_{each.name}" for each in model.outputs if each.name in later}
        else:
            outputs = {each.name: each.name for each in DECIDED}
        source.update(outputs)
        steps.append(Step(model.name, inputs, outputs))
    return ModelConfig(
        name=IDENTIFY,
        backend="ensemble",
        inputs=tuple(replace(each, ragged=False) for each in models[0].inputs),  # of the steps, not of the ensemble
        outputs=DECIDED,
        steps=tuple(steps),
    )


def _gallery(bundle: Bundle) -> ModelConfig:
    size = bundle.size
    return ModelConfig(
        name=GALLERY,
        backend="python",
        inputs=(
            Tensor("action", "bytes", (1,)),
            Tensor("identity", "bytes", (1,), optional=True),
            Tensor("silhouettes", "uint8", (-1, *bundle.manifest.input.frame), optional=True),
            Tensor("lengths", "int64", (-1,), optional=True),
            Tensor("entry_id", "int64", (-1,), optional=True),
        ),
        outputs=(
            Tensor("entry_id", "int64", (-1,)),
            Tensor("identity", "bytes", (-1,)),
            Tensor("count", "int64", (1,)),
            Tensor("thumbnail", "uint8", (-1, size, size)),
            Tensor("description", "bytes", (1,)),
            Tensor("sequence", "int64", (1,)),
        ),
    )
