"""`gaitsdk import-opengait`: an OpenGait checkpoint, and a re-ranker that fits it, become a bundle."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gaitsdk.errors import BundleError, CheckpointError, MissingDependencyError, OptionError

if TYPE_CHECKING:
    from gaitsdk.models.base import GaitModel
    from gaitsdk.models.cargait import CarGait

_EMBEDDINGS = ("fc", "bnneck")
_LICENCE = "not stated (OpenGait's own weights are for academic use only)"
_LICENCE_NOTE = (
    "OpenGait's README allows academic use only, nothing commercial, of its code and weights; for a checkpoint that "
    "somebody else trained, ask them."
)
#: Of the paper; used where a file does not tell.
_HEADS = 8


def import_opengait(
    checkpoint: Annotated[
        Path, typer.Argument(help="The checkpoint: a file that torch.save wrote, or .safetensors. It is never run.")
    ],
    out: Annotated[Path, typer.Option(help="The bundle to write, NAME.gait; nothing is ever overwritten.")],
    reranker: Annotated[
        Path | None,
        typer.Option(help="A CarGait for it: a bundle, the folder of a training run, or a file with its weights."),
    ] = None,
    embedding: Annotated[
        str, typer.Option(help="fc, or bnneck where the checkpoint was evaluated after its BN neck.")
    ] = "fc",
    input_size: Annotated[
        str | None, typer.Option(help="HxW of a frame, which a checkpoint cannot tell; the architecture's by default.")
    ] = None,
    licence: Annotated[
        str, typer.Option(help="Licence of the weights, as users of the bundle will see it.")
    ] = _LICENCE,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Make a bundle of an OpenGait checkpoint."""
    size = _parse_size(input_size)
    if embedding not in _EMBEDDINGS:
        raise OptionError("unknown embedding", where="--embedding", got=embedding, expected="fc or bnneck")
    _check_target(out)
    _need_torch()
    errors = Console(stderr=True)

    def say(line: str) -> None:
        if not as_json:
            errors.print(line, highlight=False, markup=False)

    report = _import(checkpoint, out, reranker, embedding, size, licence, say)
    print(json.dumps(report)) if as_json else _print(report)


def _import(
    checkpoint: Path,
    out: Path,
    reranker: Path | None,
    embedding: str,
    size: tuple[int, int] | None,
    licence: str,
    say: Callable[[str], None],
) -> dict[str, Any]:
    from gaitsdk.bundle import Bundle
    from gaitsdk.models.opengait import load_opengait

    say(f"reading {checkpoint}")
    model = load_opengait(checkpoint, embedding=embedding, input_size=size, keep_classifier=False)
    say(f"it is a {model.name}; {model.strips} strips of {model.dims} dimensions")
    source = {
        "kind": "OpenGait checkpoint",
        "file": checkpoint.name,
        "sha256": _sha256(checkpoint),
        "embedding": embedding,
        "input_size": list(model.input_size),
        "input_size_told": size is not None,
        "licence": _LICENCE_NOTE,
    }
    notes = [] if size else _size_notes(model)
    training: dict[str, Any] = {"imported_from": source}
    found = None
    if reranker is not None:
        say(f"reading {reranker}")
        found = _read_reranker(reranker)
        _check_fit(found, model, reranker)
        training["reranker"] = found.about
    say(f"writing {out}")
    bundle = Bundle.create(
        out,
        backbone=model,
        reranker=None if found is None else found.model,
        k=10 if found is None else found.k,
        licence=licence,
        training=training,
    )
    if found is not None:
        notes += found.notes
        if found.about.get("trained_on", bundle.fingerprint) != bundle.fingerprint:
            notes.append("the re-ranker was trained on the features of another model: evaluate before you rely on it")
    return {
        "bundle": str(bundle.path),
        "architecture": model.name,
        "options": model.options,
        "parameters": sum(p.numel() for p in model.parameters()),
        "input_size": list(model.input_size),
        "embedding": bundle.manifest.embedding,
        "strips": bundle.strips,
        "dims": bundle.dims,
        "reranker": None if bundle.manifest.reranker is None else bundle.manifest.reranker.name,
        "k": bundle.manifest.k,
        "licence": bundle.manifest.licence,
        "model": bundle.fingerprint,
        "imported_from": source,
        "notes": notes,
    }


def _print(report: dict[str, Any]) -> None:
    height, width = report["input_size"]
    rows = {
        "architecture": report["architecture"],
        "options": ", ".join(f"{name}={value}" for name, value in report["options"].items()),
        "parameters": f"{report['parameters']:,}",
        "input": f"{height}x{width}",
        "feature map": f"{report['strips']} strips of {report['dims']} ({report['embedding']})",
        "re-ranker": "none" if report["reranker"] is None else f"{report['reranker']}, K = {report['k']}",
        "licence": report["licence"],
        "model": report["model"][:12],
    }
    table = Table("what", "finding", title=escape(report["bundle"]))
    for name, finding in rows.items():
        table.add_row(name, escape(finding))
    Console().print(table)
    for note in report["notes"]:
        Console(stderr=True).print(f"note: {note}", style="yellow", highlight=False, markup=False)


# --------------------------------------------------------------------------------------------------------- re-ranker
@dataclass
class _Reranker:
    """A CarGait, what it was trained for as far as its source tells, and where it came from."""

    model: CarGait
    about: dict[str, Any]
    k: int = 10
    strips: int | None = None
    notes: list[str] = field(default_factory=list)


def _read_reranker(path: Path) -> _Reranker:
    """From a bundle, a run's folder (its bundle, else its best weights), or a file with weights."""
    for folder in (path, path / "model.gait"):
        if (folder / "manifest.json").is_file():
            return _from_bundle(folder)
    weights = [each for each in (path / "best/model.safetensors", path / "model.safetensors", path) if each.is_file()]
    if not weights:
        raise CheckpointError(
            "there is no re-ranker", where=str(path), expected="a bundle, the folder of a training run, or a file",
            fix="check --reranker",
        )  # fmt: skip
    return _from_file(weights[0])


def _from_bundle(folder: Path) -> _Reranker:
    from gaitsdk.bundle import Bundle

    bundle = Bundle.load(folder, artefacts=False)
    model: Any = bundle.build_reranker()
    if model is None:
        raise BundleError("the bundle has no re-ranker", where=str(folder), fix="choose another for --reranker")
    about = {
        **dict(bundle.manifest.training.get("reranker") or {}),
        "file": folder.name,
        "sha256": bundle.manifest.files["reranker.safetensors"].sha256,
        "trained_on": bundle.fingerprint,
        "licence": bundle.manifest.licence,
    }
    return _Reranker(model, about, bundle.manifest.k, bundle.strips)


def _from_file(path: Path) -> _Reranker:
    """Widths are read from shapes; the number of heads from what training writes beside the weights."""
    from gaitsdk.models.cargait import CarGait
    from gaitsdk.models.checkpoint_reader import read_checkpoint, state_dict_of

    state = state_dict_of(read_checkpoint(path), str(path))
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    heads, notes = _heads_beside(path), []
    if heads is None:
        heads = _HEADS
        notes = [f"{path.name} does not tell how many attention heads it was trained with: {heads} are assumed"]
    query, classifier = shapes.get("query.weight", ()), shapes.get("classifier.2.weight")
    if len(query) != 2:
        raise CheckpointError("it is no CarGait", where=str(path), got=f"{len(shapes)} entries without query.weight")
    width, dims = query
    model = CarGait(dims, width, heads, classifier[0] if classifier else None)
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if wanted != shapes:
        differing = sorted(key for key in wanted.keys() | shapes.keys() if wanted.get(key) != shapes.get(key))
        raise CheckpointError(
            "it is no CarGait that fits itself", where=str(path), got=f"other entries: {', '.join(differing[:5])}",
            expected=f"those of CarGait({dims}, {width}, {heads})",
        )  # fmt: skip
    model.load_state_dict(state)
    return _Reranker(model.eval(), {"file": path.name, "sha256": _sha256(path), "heads": heads}, notes=notes)


def _heads_beside(path: Path) -> int | None:
    for name, keys in (("state.json", ("options", "heads")), ("../config.json", ("heads",))):
        try:
            value = json.loads((path.parent / name).read_text())
            for key in keys:
                value = value[key]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if isinstance(value, int):
            return value
    return None


def _check_fit(found: _Reranker, model: GaitModel, path: Path) -> None:
    strips = model.strips if found.strips is None else found.strips
    if (strips, found.model.dims) != (model.strips, model.dims):
        told = f"{found.strips} strips of {found.model.dims}" if found.strips else f"{found.model.dims} dimensions"
        raise CheckpointError(
            "the re-ranker does not fit the backbone", where=str(path), got=f"one for {told}",
            expected=f"{model.strips} strips of {model.dims}",
            fix="train one: import without --reranker, then gaitsdk train reranker --bundle NAME.gait",
        )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ options
def _parse_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,4})[xX](\d{1,4})", text.strip())
    if match is None:
        raise OptionError("not a size", where="--input-size", got=repr(text), expected="HxW, such as 64x44")
    height, width = int(match[1]), int(match[2])
    if not 0 < width <= height or (height - width) % 2:
        raise OptionError(
            "frames are cut from squares, the same number of columns on either side", where="--input-size", got=text,
            expected="a width of at most the height, and an even difference", fix="height first, such as 64x44",
        )  # fmt: skip
    return height, width


def _check_target(out: Path) -> None:
    if out.suffix != ".gait":
        raise OptionError("a bundle's folder is called NAME.gait", where="--out", got=str(out), fix="add .gait")
    if out.exists() or out.is_symlink():
        raise BundleError(
            "there is something already, and nothing is overwritten", where=str(out),
            fix="choose another --out, or remove it first",
        )  # fmt: skip


def _size_notes(model: GaitModel) -> list[str]:
    """Published configurations of this architecture with other frames than the assumed ones."""
    own = tuple(model.input_size)
    others = {tag: tuple(each["size"]) for tag, each in type(model).TAGS.items() if tuple(each.get("size", own)) != own}
    return [
        f"a checkpoint cannot tell the size of its frames: {own[0]}x{own[1]} is assumed; "
        f"where it was trained on {tag}, import it with --input-size {size[0]}x{size[1]}"
        for tag, size in others.items() if tag != "tiny"
    ]  # fmt: skip


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _need_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "importing a checkpoint needs PyTorch", fix="pip install 'gaitsdk[torch]'"
        ) from error
