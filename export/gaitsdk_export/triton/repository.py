"""Renders the `portable` model repository from a bundle.

The networks run inside the Python backend, by the SDK's own runtimes, so the same repository runs on a CPU machine. It
holds shapes and the model's fingerprint, but neither weights nor any path: bundle and gallery come from the server's
environment (`gaitsdk_export.triton.backend.Settings`). Rendering twice gives the same bytes.

    embed -> shortlist -> rerank -> decide        chained by the ensemble `identify`
    gallery                                       enroll, delete, list
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gaitsdk.errors import ExportError, OptionError
from gaitsdk.rerankers import check_reranker
from gaitsdk.runtimes.wire import DECIDE, EMBED, GALLERY, IDENTIFY, RERANK, SHORTLIST
from gaitsdk_export.triton.config import Batching, ModelConfig, Step, Tensor

if TYPE_CHECKING:
    from gaitsdk.bundle import Bundle

TEMPLATES = Path(__file__).parent / "python_models"
#: An ensemble's version folder is empty, and git keeps no empty folder; Triton ignores the file.
PLACEHOLDER = ".gitkeep"


@dataclass(frozen=True)
class Options:
    """Choices of a rendering.

    Attributes:
        max_batch: sequences in one request, and in one call of a network.
        instances: copies of `embed` and of `rerank`; `shortlist` and `gallery` always have one.
        max_delay_us: how long a request may wait for others to share a batch with, while the model is free; those that
            come while it is busy share one in any case.
        max_queue: requests that may wait at `embed` and at `rerank`; beyond that QueueFullError.
        reranker: any of `gaitsdk.rerankers.RERANKERS`; "none" for a repository without the step.
    """

    max_batch: int = 16
    instances: int = 1
    max_delay_us: int = 0
    max_queue: int = 256
    reranker: str = "cargait"

    def __post_init__(self) -> None:
        for name in ("max_batch", "instances", "max_queue"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1024:
                raise OptionError("not a usable number", where=name, got=repr(value), expected="1 to 1024")


def configurations(bundle: Bundle, options: Options | None = None) -> list[ModelConfig]:
    """The repository's models. Without re-ranker there is no `rerank`, and `decide` takes no distances.

    Raises:
        OptionError: `reranker` is unknown, or the bundle has no weights for it.
    """
    options = options or Options()
    reranked = check_reranker(options.reranker, bundle) != "none"
    parameters = {"fingerprint": bundle.fingerprint, "reranker": options.reranker}
    networks = Batching(max_delay_us=options.max_delay_us, max_queue_size=options.max_queue)
    models = [_embed(bundle), _shortlist(bundle), _decide(bundle, reranked)]
    if reranked:
        models.insert(2, _rerank(bundle))
    models = [
        replace(
            model,
            max_batch_size=options.max_batch,
            batching=networks if model.name in (EMBED, RERANK) else None,
            instances=options.instances if model.name in (EMBED, RERANK) else 1,
            parameters=parameters,
        )
        for model in models
    ]
    gallery = replace(_gallery(bundle), parameters={**parameters, "max_batch": str(options.max_batch)})
    return [*models, _identify(models, options.max_batch), gallery]


def render(
    bundle_path: str | os.PathLike[str] | None, out_dir: str | os.PathLike[str], options: Options | None = None
) -> Path:
    """Writes the repository; `out_dir` changes whole or not at all.

    Args:
        bundle_path: a folder NAME.gait, or None for the shipped bundle.
        out_dir: the repository; an existing one is replaced, any other folder with something in it is refused.

    Returns:
        `out_dir` as a Path.

    Raises:
        BundleError: the bundle cannot be read. OptionError: it lacks the re-ranker.
        ExportError: there is something else at `out_dir`, or it cannot be written.
    """
    out = Path(out_dir)
    files = dict(rendered_files(bundle_path, options))
    try:
        _refuse_foreign(out)
        _replace(out, files)
    except OSError as error:
        raise ExportError(
            "the model repository cannot be written",
            where=str(out),
            got=str(error),
            fix="name a folder where you may write: --out FOLDER",
        ) from error
    return out


def _replace(out: Path, files: Mapping[str, bytes]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        for name, content in files.items():
            target = work / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        work.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        os.replace(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def differences(
    bundle_path: str | os.PathLike[str] | None, out_dir: str | os.PathLike[str], options: Options | None = None
) -> list[str]:
    """What in `out_dir` is not as rendering would write it now: "NAME: missing", "changed" or "unexpected".

    Raises:
        ExportError: it cannot be read.
    """
    out = Path(out_dir)
    expected = dict(rendered_files(bundle_path, options))
    try:
        found = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    except OSError as error:
        raise ExportError("the model repository cannot be read", where=str(out), got=str(error)) from error
    report = [f"{name}: missing" for name in expected if name not in found]
    report += [f"{name}: unexpected" for name in found if name not in expected]
    report += [f"{n}: changed" for n, content in expected.items() if n in found and found[n] != content]
    return sorted(report)


def rendered_files(
    bundle_path: str | os.PathLike[str] | None, options: Options | None = None
) -> Iterator[tuple[str, bytes]]:
    """(path in the repository, content) of every file."""
    from gaitsdk.bundle import Bundle

    for model in configurations(Bundle.load(bundle_path), options):
        yield f"{model.name}/config.pbtxt", model.to_text().encode()
        if model.steps:
            yield f"{model.name}/1/{PLACEHOLDER}", b""
        else:
            yield f"{model.name}/1/model.py", (TEMPLATES / model.name / "model.py").read_bytes()


def _refuse_foreign(out: Path) -> None:
    """Rendering replaces a folder: make sure that it is a model repository of ours, or empty."""
    if not out.exists():
        return
    names = {EMBED, SHORTLIST, RERANK, DECIDE, IDENTIFY, GALLERY}
    foreign = sorted(each.name for each in out.iterdir() if each.name not in names) if out.is_dir() else ["a file"]
    if foreign:
        raise ExportError(
            "there is something that is no model of this repository",
            where=str(out),
            got=", ".join(foreign[:5]),
            fix="name a new folder, or remove these",
        )


def _embed(bundle: Bundle) -> ModelConfig:
    return ModelConfig(
        name=EMBED,
        backend="python",
        inputs=(Tensor("silhouettes", "uint8", (-1, *bundle.manifest.input.frame)),),
        outputs=(Tensor("features", "float32", (bundle.strips, bundle.dims)), Tensor("runtime", "bytes", (1,))),
    )


def _shortlist(bundle: Bundle) -> ModelConfig:
    return ModelConfig(
        name=SHORTLIST,
        backend="python",
        inputs=(Tensor("features", "float32", (bundle.strips, bundle.dims)),),
        outputs=(
            Tensor("candidate_ids", "int64", (-1,)),
            Tensor("candidate_identity", "bytes", (-1,)),
            Tensor("shortlist_distance", "float32", (-1,)),
            Tensor("candidate_features", "float32", (-1, bundle.strips, bundle.dims)),
            Tensor("gallery_size", "int64", (1,)),
        ),
    )


def _rerank(bundle: Bundle) -> ModelConfig:
    return ModelConfig(
        name=RERANK,
        backend="python",
        inputs=(
            Tensor("features", "float32", (bundle.strips, bundle.dims)),
            Tensor("candidate_features", "float32", (-1, bundle.strips, bundle.dims)),
        ),
        outputs=(Tensor("rerank_distance", "float32", (-1,)),),
    )


def _decide(bundle: Bundle, reranked: bool) -> ModelConfig:
    return ModelConfig(
        name=DECIDE,
        backend="python",
        inputs=(
            Tensor("candidate_ids", "int64", (-1,)),
            Tensor("candidate_identity", "bytes", (-1,)),
            Tensor("shortlist_distance", "float32", (-1,)),
            Tensor("gallery_size", "int64", (1,)),
            *((Tensor("rerank_distance", "float32", (-1,)),) if reranked else ()),
        ),
        outputs=(
            Tensor("identity", "bytes", (-1,)),
            Tensor("distance", "float32", (-1,)),
            Tensor("shortlist_distance", "float32", (-1,)),
            Tensor("shortlist_rank", "int32", (-1,)),
            Tensor("decision", "bytes", (1,)),
            Tensor("fingerprint", "bytes", (1,)),
            Tensor("entry_id", "int64", (-1,)),
            Tensor("threshold", "float64", (1,)),
            Tensor("reranked", "int32", (1,)),
            Tensor("gallery_size", "int64", (1,)),
        ),
    )


def _identify(models: list[ModelConfig], max_batch: int) -> ModelConfig:
    """Chains models by the names of their tensors: an input takes what the last model before gave under that name."""
    source = {"silhouettes": "silhouettes"}
    steps = []
    for position, model in enumerate(models):
        later = {each.name for other in models[position + 1 :] for each in other.inputs}
        inputs = {each.name: source[each.name] for each in model.inputs}
        if later:
            outputs = {each.name: f"{model.name}_{each.name}" for each in model.outputs if each.name in later}
        else:
            outputs = {each.name: each.name for each in model.outputs}
        source.update(outputs)
        steps.append(Step(model.name, inputs, outputs))
    return ModelConfig(
        name=IDENTIFY,
        backend="ensemble",
        inputs=models[0].inputs,
        outputs=models[-1].outputs,
        max_batch_size=max_batch,
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
