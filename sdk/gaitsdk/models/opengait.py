"""OpenGait checkpoints: recognise architecture and options from names and shapes, load them, never run their code."""

from __future__ import annotations

import logging
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gaitsdk.errors import CheckpointError, OptionError
from gaitsdk.models.base import GaitModel
from gaitsdk.models.options import suggest
from gaitsdk.models.registry import create, list_models, model_class

logger = logging.getLogger(__name__)

_WRAPPERS = ("model", "state_dict", "model_state_dict")
_SHOWN = 5
# What torch's restricted unpickler raises on forbidden globals and on files that are damaged or no checkpoint.
_LOAD_ERRORS = (
    pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError,
    AttributeError, TypeError, ImportError,
)  # fmt: skip


def load_opengait(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    embedding: str = "fc",
    input_size: tuple[int, int] | None = None,
    keep_classifier: bool = True,
    **options: Any,
) -> GaitModel:
    """A backbone with the weights of an OpenGait checkpoint.

    Architecture, channels, layers, strips, dims and class count are read from the names and shapes.

    Args:
        source: a `.pt` file (read with tensors and plain containers admitted only) or a `.safetensors` file, or an
            open checkpoint: a state dict, or a dict that holds one under "model". A "module." prefix is removed.
        embedding: what names and shapes cannot tell: "fc", or "bnneck" where it was evaluated after the BN neck.
        input_size: (H, W) of the frames, where not the architecture's default 64x44.
        keep_classifier: False drops the training classifier.
        options: further options of the architecture that leave no trace in shapes (such as `strides`).

    Returns:
        The model in eval mode, on the CPU.

    Raises:
        CheckpointError: unreadable, unsafe, of no known architecture, or not fitting: which keys and shapes differ.
        OptionError: an option that the architecture does not have.
    """
    where = "checkpoint" if isinstance(source, Mapping) else str(source)
    state = _state_dict(source if isinstance(source, Mapping) else _read(Path(source)), where)
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    name, recognised = _recognise(shapes, where)
    told = _told(name, embedding, input_size, options)
    try:
        model = create(name, **{**recognised, **told})
    except OptionError as error:
        raise CheckpointError(
            f"the checkpoint looks like '{name}', but that network cannot be built: {error.what}", where=where,
            got=error.got, expected=error.expected, fix=f"pass the right options (input_size or others): {error.fix}",
        ) from error  # fmt: skip
    _compare(name, {key: tuple(value.shape) for key, value in model.state_dict().items()}, shapes, where)
    model.load_state_dict(state)
    logger.info("loaded %s from %s with options %s", name, where, model.options)
    return model.eval() if keep_classifier else model.for_inference()


def _read(path: Path) -> object:
    if not path.is_file():
        raise CheckpointError("there is no such file", where=str(path))
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"not a readable safetensors file ({error})", where=str(path)) from error
    try:
        # Never less strict than this: an unrestricted load runs whatever code the file names.
        return torch.load(path, map_location="cpu", weights_only=True)
    except _LOAD_ERRORS as error:
        raise CheckpointError(
            "the file is damaged, or holds something else than tensors and plain containers, and was not run",
            where=str(path), got=(str(error).strip() or type(error).__name__).splitlines()[0],
            expected="a state dict saved with torch.save, or a .safetensors file",
            fix="have whoever made it save model.state_dict() alone",
        ) from error  # fmt: skip


def _state_dict(checkpoint: object, where: str) -> dict[str, Tensor]:
    """The tensors by name: unwrapped, without the prefix of data-parallel training."""
    for key in _WRAPPERS:
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
            break
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        raise CheckpointError("no state dict is in it", where=where, got=type(checkpoint).__name__)
    state: dict[str, Tensor] = {}
    for key, value in checkpoint.items():
        tensor = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"entry {key!r} is no tensor", where=where, got=type(value).__name__, expected="a state dict"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"entry {key!r} holds NaN or infinite weights", where=where)
        state[key] = tensor
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def _recognise(shapes: Mapping[str, tuple[int, ...]], where: str) -> tuple[str, dict[str, Any]]:
    for name in list_models():
        options = model_class(name).recognise(shapes)
        if options is not None:
            return name, options
    name, reference = max(_references().items(), key=lambda item: _likeness(item[1], shapes))
    if _likeness(reference, shapes) == 0.0:
        raise CheckpointError(
            "no known architecture has any of these keys", where=where, got=_some(sorted(shapes)),
            expected=f"one of {', '.join(list_models())}",
        )  # fmt: skip
    _compare(name, reference, shapes, where)
    raise CheckpointError(f"it resembles '{name}', but its recogniser refuses it", where=where)


def _references() -> dict[str, dict[str, tuple[int, ...]]]:
    """Names and shapes of each architecture at its defaults, with a classifier where it has one; no memory used."""
    found = {}
    for name in list_models():
        classes = {"num_classes": 2} if "num_classes" in model_class(name).Options.names() else {}
        with torch.device("meta"):
            found[name] = {key: tuple(v.shape) for key, v in create(name, **classes).state_dict().items()}
    return found


def _likeness(reference: Mapping[str, Any], shapes: Mapping[str, Any]) -> float:
    """Shared keys over all keys."""
    return len(reference.keys() & shapes.keys()) / len(reference.keys() | shapes.keys())


def _told(name: str, embedding: str, input_size: tuple[int, int] | None, options: dict[str, Any]) -> dict[str, Any]:
    """The caller's options, as far as the architecture has them."""
    known = model_class(name).Options.names()
    told = dict(options)
    if "embedding" in known:
        told["embedding"] = embedding
    elif embedding != "fc":
        raise OptionError(f"'{name}' has no BN neck", where="load_opengait", got=f"embedding={embedding!r}",
                          expected="'fc'")  # fmt: skip
    if input_size is not None:
        told["size"] = input_size
    for option in told:
        if option not in known:
            raise OptionError(f"model '{name}' has no option '{option}'", where="load_opengait",
                              fix=suggest(option, known))  # fmt: skip
    return told


def _compare(
    name: str, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Raise CheckpointError that lists what differs, if anything."""
    missing = sorted(wanted.keys() - found.keys())
    unexpected = sorted(found.keys() - wanted.keys())
    differing = [
        f"{key} {list(found[key])} instead of {list(wanted[key])}"
        for key in sorted(wanted.keys() & found.keys())
        if wanted[key] != found[key]
    ]
    parts = [("missing", missing), ("unexpected", unexpected), ("other shapes", differing)]
    text = "; ".join(f"{len(items)} {label}: {_some(items)}" for label, items in parts if items)
    if text:
        raise CheckpointError(
            f"the checkpoint does not fit; it most resembles '{name}'", where=where, got=text,
            expected=f"the {len(wanted)} entries of '{name}'",
            fix="check the file, or pass the options that it was trained with",
        )  # fmt: skip


def _some(items: list[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
