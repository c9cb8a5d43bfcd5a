"""Features of a whole data set, and how well they find the same person from another view."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from gaitsdk.distance import pairwise
from gaitsdk.errors import DatasetError, OptionError
from gaitsdk.models import GaitModel
from gaitsdk_training.data import SequenceDataset, to_input
from gaitsdk_training.feature_file import FeatureFile

Features = NDArray[np.float32]
Progress = Callable[[int, int], None]
Transform = Callable[[torch.Tensor], torch.Tensor]

#: Sequences that are handed to the backbone in one call; it chunks their frames itself.
_BATCH = 16
_DEVICES = "auto, cpu or cuda:N"


def embed_dataset(
    model: GaitModel,
    dataset: SequenceDataset,
    *,
    frames: int | None = None,
    transform: Transform | None = None,
    progress: Progress | None = None,
) -> Features:
    """Features of every sequence, in inference mode (the model's training mode is left as it was).

    Args:
        model: a backbone, on any device.
        dataset: n sequences.
        frames: only the first so many frames of each; None = all.
        transform: changes each sequence [T, H, W] in 0..1 before it is embedded, an augmentation for example.
        progress: called as progress(done, total).

    Returns:
        F [n, s, d] float32.
    """
    return np.concatenate(list(_embedded(model, dataset, 0, frames, transform, progress)))


def cached_features(
    model: GaitModel,
    dataset: SequenceDataset,
    path: str | os.PathLike[str],
    *,
    frames: int | None = None,
    progress: Progress | None = None,
) -> Features:
    """As `embed_dataset`, kept on disk: computed once, and an interrupted run goes on where it was killed.

    The file is used as it is where it was made by the same network (architecture, options and every weight) from the
    same data (every frame and its place), else built anew; reading the data to compare them costs a pass over them.
    The device is not compared: features of a CPU and a GPU differ by rounding only.

    Args:
        model, dataset, frames, progress: as for `embed_dataset`.
        path: `NAME.npy`; beside it lies `NAME.npy.json` (see `feature_file`).

    Returns:
        F [n, s, d] float32, memory-mapped (np.memmap): only what is used is read. Changes to it stay in memory.

    Raises:
        DatasetError: the path is that of another file, or it cannot be written (a full disk).
    """
    source = {"model": _hash_model(model), "data": _hash_data(dataset), "frames": frames}
    with FeatureFile(path, (len(dataset), model.strips, model.dims), source) as file:
        if not file.complete:
            for rows in _embedded(model, dataset, file.done, frames, None, progress):
                file.write(rows)
        return file.read()


def _embedded(
    model: GaitModel,
    dataset: SequenceDataset,
    first: int,
    frames: int | None,
    transform: Transform | None,
    progress: Progress | None,
) -> Iterator[Features]:
    """Features from sequence `first` on, batch by batch."""
    for start in range(first, len(dataset), _BATCH):
        stop = min(start + _BATCH, len(dataset))
        batch = [to_input(dataset[i][:frames], model.input_size) for i in range(start, stop)]
        batch = [transform(sequence) for sequence in batch] if transform is not None else batch
        yield model.forward_sequences(batch).float().cpu().numpy()
        if progress is not None:
            progress(stop, len(dataset))


def _hash_model(model: GaitModel) -> str:
    digest = hashlib.sha256(json.dumps([model.name, model.options], sort_keys=True).encode())
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _hash_data(dataset: SequenceDataset) -> str:
    """Of every frame in its place; names and labels do not change a feature."""
    digest = hashlib.sha256()
    for index in range(len(dataset)):
        sequence = np.ascontiguousarray(dataset[index])
        digest.update(f"{sequence.shape}\n".encode())
        digest.update(sequence.data)
    return digest.hexdigest()


def cross_view_rank1(features: ArrayLike, dataset: SequenceDataset) -> float:
    """Rank-1 in percent from one view to another, for validation during training: the mean over all pairs of different
    views (u, v) of the share of sequences in view u whose nearest sequence in view v is of the same identity.

    Where identities have walks of several types, the probe's own type is no candidate: two cameras that film one walk
    make it too easy. With a single view it is leave-one-out.

    Args:
        features: F [n, s, d].
        dataset: n sequences; only its labels are used.

    Raises:
        DatasetError: no probe has a candidate of its identity.
    """
    distances = pairwise(features, features)
    np.fill_diagonal(distances, np.inf)
    if len(set(dataset.types.tolist())) > 1:
        distances[dataset.types[:, None] == dataset.types[None]] = np.inf
    views = sorted(set(dataset.views.tolist()))
    pairs = [(u, v) for u in views for v in views if u != v] or [(views[0], views[0])]
    shares: list[float] = []
    for u, v in pairs:
        probes, gallery = np.flatnonzero(dataset.views == u), np.flatnonzero(dataset.views == v)
        block = distances[np.ix_(probes, gallery)]
        same = dataset.labels[probes][:, None] == dataset.labels[gallery][None]
        usable = (same & np.isfinite(block)).any(axis=1)
        if usable.any():
            nearest = dataset.labels[gallery][block[usable].argmin(axis=1)]
            shares.append(float((nearest == dataset.labels[probes][usable]).mean()))
    if not shares:
        raise _nobody_to_find(dataset, "cross_view_rank1")
    return 100.0 * float(np.mean(shares))


def check_validation(dataset: SequenceDataset) -> None:
    """Refuses data in which `cross_view_rank1` could find nobody, before a network is trained to be measured on them.

    Raises:
        DatasetError: no sequence has another one of its identity from another view (nor, where there are several
            types, of another type).
    """
    kinds, views = (len(set(names.tolist())) > 1 for names in (dataset.types, dataset.views))
    seen: dict[int, list[tuple[str, str]]] = {}
    for label, kind, view in zip(dataset.labels.tolist(), dataset.types.tolist(), dataset.views.tolist(), strict=True):
        others = seen.setdefault(label, [])
        if any((not kinds or kind != other) and (not views or view != from_) for other, from_ in others):
            return
        others.append((kind, view))
    raise _nobody_to_find(dataset, "check_validation")


def _nobody_to_find(dataset: SequenceDataset, where: str) -> DatasetError:
    return DatasetError(
        "no validation sequence has another of its identity to find",
        where=where,
        got=f"{len(dataset)} sequences of {len(dataset.classes)} identities",
        fix="validate on identities with several views or types",
    )


def pick_device(device: str) -> torch.device:
    """ "auto" = the first GPU, else the CPU.

    Raises:
        OptionError: no device is called so, or this PyTorch or machine does not have it.
    """
    if device == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise OptionError(
            "unknown device", where="device", got=repr(device), expected=_DEVICES, fix="use --device auto"
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        found = ", ".join(f"cuda:{index}" for index in range(count)) or "no GPU"
        raise OptionError(
            "there is no such device",
            where="device",
            got=f"{device!r}; PyTorch {torch.__version__} finds {found}",
            expected=_DEVICES,
            fix="use --device auto or cpu" + ("" if count else ", or install a PyTorch that is built for your GPU"),
        )
    return chosen


def state_on_cpu(model: torch.nn.Module) -> dict[str, Any]:
    """The model's state as contiguous CPU tensors of their own."""
    return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in model.state_dict().items()}
