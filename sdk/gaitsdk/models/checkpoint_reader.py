"""Reads files with weights: tensors and plain containers only; nothing that a file names is ever run."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gaitsdk.errors import CheckpointError

_WRAPPERS = ("model", "state_dict", "model_state_dict")
# What torch's restricted unpickler raises on forbidden globals and on files that are damaged or no checkpoint.
_LOAD_ERRORS = (
    pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError,
    AttributeError, TypeError, ImportError, AssertionError, MemoryError, OverflowError, RecursionError,
)  # fmt: skip
# The line of its long message that says what it refused.
_REFUSED = re.compile(r"(Unsupported|Can only|Trying to|Cannot use) [^\n]{0,200}")


def read_checkpoint(path: Path) -> object:
    """What a file holds, on the CPU.

    Args:
        path: `.safetensors`, or else anything that `torch.save` wrote, whatever its suffix.

    Raises:
        CheckpointError: missing, damaged, or holding anything but tensors and plain containers. There is no other way
            of reading to fall back to: an unrestricted load would run whatever code the file names.
    """
    if not path.is_file():
        raise CheckpointError("there is no such file", where=str(path), fix="check the path")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"not a readable safetensors file ({error})", where=str(path)) from error
    try:
        if _is_program(path):
            raise CheckpointError(
                "a TorchScript program, which is never run", where=str(path), expected="a state dict",
                fix="have whoever made it save model.state_dict() alone",
            )  # fmt: skip
        return torch.load(path, map_location="cpu", weights_only=True)
    except _LOAD_ERRORS as error:
        raise CheckpointError(
            "the file is damaged, or holds something else than tensors and plain containers, and was not run",
            where=str(path), got=_reason(error),
            expected="a state dict saved with torch.save, or a .safetensors file",
            fix="have whoever made it save model.state_dict() alone",
        ) from error  # fmt: skip


def _is_program(path: Path) -> bool:
    """What `torch.jit.save` writes; `torch.load` would warn that it loads it, and refuse it only then."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _reason(error: BaseException) -> str:
    text = str(error).strip()
    if refused := _REFUSED.search(text):
        return refused.group(0).rstrip(". ")
    return (text or type(error).__name__).splitlines()[0].rstrip(". ")


def state_dict_of(checkpoint: object, where: str) -> dict[str, Tensor]:
    """The tensors by name: unwrapped ("model", "state_dict"), without the prefix "module." of data-parallel training.

    Raises:
        CheckpointError: no state dict, an entry that is no plain tensor, or weights that are not finite.
    """
    for key in _WRAPPERS:
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
            break
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        raise CheckpointError("no state dict is in it", where=where, got=type(checkpoint).__name__)
    state = {key: _entry(key, value, where) for key, value in checkpoint.items()}
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def _entry(key: object, value: object, where: str) -> Tensor:
    tensor = torch.from_numpy(value) if isinstance(value, np.ndarray) and value.dtype.kind in "biufc" else value
    if not isinstance(key, str) or not isinstance(tensor, Tensor):
        raise CheckpointError(
            f"entry {key!r} is no tensor", where=where, got=type(value).__name__, expected="a state dict"
        )
    plain = tensor.layout is torch.strided and not tensor.is_quantized and tensor.device.type != "meta"
    # A view may claim any size over a single stored number, an empty tensor any width: both would fill the memory.
    if not plain or not 0 < tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes():
        raise CheckpointError(
            f"entry {key!r} is no plain tensor", where=where, got=f"{tensor.layout} {list(tensor.shape)}",
            expected="a dense one with every value stored",
        )  # fmt: skip
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"entry {key!r} holds NaN or infinite weights", where=where)
    return tensor
