"""OpenGait checkpoints: architecture and options are recognised from names and shapes; nothing in them is run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from gaitsdk.errors import CheckpointError, OptionError
from gaitsdk.models.base import GaitModel
from gaitsdk.models.checkpoint_reader import read_checkpoint, state_dict_of
from gaitsdk.models.registry import create, list_models, model_class
from gaitsdk.slips import suggest

logger = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]
ValueT = TypeVar("ValueT")

_SHOWN = 5


def load_opengait(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    embedding: str = "fc",
    input_size: tuple[int, int] | None = None,
    keep_classifier: bool = True,
    **options: Any,
) -> GaitModel:
    """A backbone with the weights of an OpenGait checkpoint.

    Architecture, mode, channels, layers, strips, dims and class count are read from the names and shapes.

    Args:
        source: a file that `torch.save` wrote (read with tensors and plain containers admitted only) or a
            `.safetensors` file, or an open checkpoint: a state dict, or a dict that holds one under "model". A
            "module." prefix is removed.
        embedding: what names and shapes cannot tell: "fc", or "bnneck" where it was evaluated after the BN neck.
        input_size: (H, W) of the frames, where not the architecture's default 64x44 (GLN on CASIA-B: (128, 88)).
        keep_classifier: False drops the training classifier.
        options: further options of the architecture that leave no trace in shapes (such as `strides`).

    Returns:
        The model in eval mode, on the CPU.

    Raises:
        CheckpointError: unreadable, unsafe, of no known architecture, or not fitting: which keys and shapes differ,
            and which architecture, with which options, comes closest.
        OptionError: an option that the architecture does not have, or that makes no network.
    """
    where = "checkpoint" if isinstance(source, Mapping) else str(source)
    state = state_dict_of(source if isinstance(source, Mapping) else read_checkpoint(Path(source)), where)
    name, recognised = recognise_checkpoint({key: tuple(value.shape) for key, value in state.items()}, where=where)
    chosen = {**recognised, **_told(name, embedding, input_size, options)}
    state = _without_ignored(name, state)
    try:
        wanted = _empty_state(name, chosen)
    except OptionError as error:
        told = input_size is not None or options
        raise (OptionError if told else CheckpointError)(
            f"the checkpoint looks like '{name}', but that network cannot be built: {error.what}", where=where,
            got=error.got, expected=error.expected, fix=f"pass the right options (input_size or others): {error.fix}",
        ) from error  # fmt: skip
    # Compared before the network takes any memory: an empty tensor may claim a huge shape.
    _compare(name, chosen, wanted, {key: tuple(value.shape) for key, value in state.items()}, where)
    _check_types(wanted, state, where)
    model = create(name, **chosen)
    model.load_state_dict(state)
    logger.info("loaded %s from %s with options %s", name, where, model.options)
    return model.eval() if keep_classifier else model.for_inference()


def recognise_checkpoint(shapes: Shapes, *, where: str = "checkpoint") -> tuple[str, dict[str, Any]]:
    """Architecture and options that a checkpoint's names and shapes tell; no weights are needed.

    Args:
        shapes: shape of each entry of the state dict, by name.
        where: what to call the checkpoint in messages.

    Returns:
        (name, options) as `create` takes them.

    Raises:
        CheckpointError: no architecture, or more than one, knows it; the message names the nearest with the options
            that fit best, and what differs.
    """
    claims = [(name, found) for name in _recognisers() if (found := _ask(name, shapes)) is not None]
    if len(claims) == 1:
        return claims[0]
    if claims:
        raise CheckpointError(
            "more than one architecture claims it", where=where, got=", ".join(name for name, _ in claims),
            expected="one", fix="make the recognise method of the model that you registered stricter",
        )  # fmt: skip
    name, options, reference = _nearest(shapes, where)
    _compare(name, options, reference, _without_ignored(name, shapes), where)
    raise CheckpointError(f"it resembles '{name}', but its recogniser refuses it", where=where)


def _recognisers() -> list[str]:
    """Models with a `recognise` of their own: one inherited from a registered model would claim that one's files."""
    names = []
    for name in list_models():
        cls = model_class(name)
        owner = next(each for each in cls.__mro__ if "recognise" in vars(each))
        if owner is cls or "name" not in vars(owner):
            names.append(name)
    return names


def _ask(name: str, shapes: Shapes) -> dict[str, Any] | None:
    try:
        return model_class(name).recognise(shapes)
    except (IndexError, KeyError, TypeError, ValueError):
        return None  # a shape of another rank than the architecture has under that name


def _nearest(shapes: Shapes, where: str) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """The architecture with most names in common, the options that fit best, and its empty state dict."""
    variants = [
        (name, options, _empty_state(name, options)) for name in _recognisers() for options in _variants(name)
    ]  # fmt: skip
    likeness = [_likeness(reference, shapes) for _, _, reference in variants]
    if not variants or max(likeness) == 0.0:
        raise CheckpointError(
            "no known architecture has any of these keys", where=where, got=_some(sorted(shapes)),
            expected=f"one of {', '.join(_recognisers())}",
        )  # fmt: skip
    name, options, reference = variants[likeness.index(max(likeness))]
    # What the checkpoint lacks is taken from the published network, then the rest tells its options.
    refined = _ask(name, {**{key: tuple(value.shape) for key, value in reference.items()}, **shapes})
    if refined is not None:
        try:
            fitted = _empty_state(name, refined)
        except OptionError:
            return name, options, reference
        if _misfits(fitted, shapes) <= _misfits(reference, shapes):
            return name, refined, fitted
    return name, options, reference


def _variants(name: str) -> Iterator[dict[str, Any]]:
    """Options of the published configurations, each once, with a classifier where there can be one."""
    cls = model_class(name)
    classes = {"num_classes": 2} if "num_classes" in cls.Options.names() else {}
    seen: list[dict[str, Any]] = []
    for published in ({}, *(tag for key, tag in cls.TAGS.items() if key != "tiny")):
        options = {**published, **classes}
        if options not in seen:
            seen.append(options)
            yield options


def _empty_state(name: str, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """Names, shapes and dtypes of that network's state; takes no memory."""
    with torch.device("meta"):
        return create(name, **options).state_dict()


def _likeness(reference: Mapping[str, Tensor], shapes: Shapes) -> float:
    """Shared keys over all keys; equal shapes decide between equals."""
    shared = reference.keys() & shapes.keys()
    equal = sum(tuple(reference[key].shape) == shapes[key] for key in shared)
    return (len(shared) + 1e-3 * equal / max(1, len(shapes))) / len(reference.keys() | shapes.keys())


def _misfits(reference: Mapping[str, Tensor], shapes: Shapes) -> int:
    wrong = sum(tuple(reference[key].shape) != shapes[key] for key in reference.keys() & shapes.keys())
    return wrong + len(reference.keys() ^ shapes.keys())


def _told(name: str, embedding: str, input_size: tuple[int, int] | None, options: dict[str, Any]) -> dict[str, Any]:
    """The caller's options, as far as the architecture has them."""
    known = model_class(name).Options.names()
    told = dict(options)
    if "embedding" in known:
        told["embedding"] = embedding
    elif embedding != "fc":
        raise OptionError(
            f"'{name}' has no BN neck", where="load_opengait", got=f"embedding={embedding!r}", expected="'fc'",
            fix="leave the embedding at its default",
        )  # fmt: skip
    if input_size is not None:
        told["size"] = input_size
    for option in told:
        if option not in known:
            raise OptionError(
                f"model '{name}' has no option '{option}'", where="load_opengait", fix=suggest(option, known)
            )
    return told


def _compare(name: str, options: Mapping[str, Any], wanted: Mapping[str, Tensor], shapes: Shapes, where: str) -> None:
    """Raise CheckpointError that lists which names and shapes differ, if any."""
    shared = sorted(wanted.keys() & shapes.keys())
    parts = [
        ("missing", sorted(wanted.keys() - shapes.keys())),
        ("unexpected", sorted(shapes.keys() - wanted.keys())),
        ("other shapes", [
            f"{key} {list(shapes[key])} instead of {list(wanted[key].shape)}"
            for key in shared if tuple(wanted[key].shape) != shapes[key]
        ]),
    ]  # fmt: skip
    text = "; ".join(f"{len(items)} {label}: {_some(items)}" for label, items in parts if items)
    if text:
        raise CheckpointError(
            f"the checkpoint does not fit; it most resembles '{name}'{_described(name, options)}", where=where,
            got=text, expected=f"the {len(wanted)} entries of that network",
            fix="check the file, or pass the options that it was trained with",
        )  # fmt: skip


def _check_types(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str) -> None:
    """Weights of any precision are taken; integers or complex numbers in their place are none."""
    for key, value in state.items():
        if value.is_floating_point() != wanted[key].is_floating_point() or value.is_complex():
            raise CheckpointError(
                f"entry {key!r} has another type of numbers", where=where, got=value.dtype,
                expected=f"such as {wanted[key].dtype}",
            )  # fmt: skip


def _described(name: str, options: Mapping[str, Any]) -> str:
    """ " with channels=(4, 6, 8)": what differs from the defaults."""
    defaults = model_class(name).Options()
    changed = [f"{key}={value}" for key, value in options.items() if getattr(defaults, key) != value]
    return f" with {', '.join(changed)}" if changed else ""


def _without_ignored(name: str, entries: Mapping[str, ValueT]) -> dict[str, ValueT]:
    """The entries without the constants that the network computes itself."""
    ignored = model_class(name).ignored_keys
    return {key: value for key, value in entries.items() if key.rpartition(".")[2] not in ignored}


def _some(items: list[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
