"""What a training would be, without training: network, data, batches and the memory that a step takes.

Nothing is computed and nothing is written: networks are built on PyTorch's "meta" device, where tensors have shapes and
no values, and of the data only names are read. One step on the CPU took 1.07 to 1.24 times the memory estimated here
(GaitBase, GaitGL, GaitSet); what PyTorch keeps for the backward pass, the bulk of it, is exact.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gaitsdk.datasets import Partition, SequenceTree
from gaitsdk.errors import DatasetError, TrainingError
from gaitsdk.models.cargait import CarGait
from gaitsdk.models.pair_classifier import PairClassifier
from gaitsdk_training.backbone import BackboneTraining, build_model
from gaitsdk_training.data import PackedSequences, PxKSampler, SequenceDataset, public_dataset
from gaitsdk_training.objective import Objective
from gaitsdk_training.rates import rate_groups
from gaitsdk_training.reranker import RerankerTraining

#: How `memory` is estimated, for whoever reads the figures.
BASIS = (
    "weights, gradients, the optimiser's state, and what PyTorch keeps for the backward pass, counted on shapes alone; "
    "temporary buffers come on top"
)
#: Values that an optimiser keeps for each weight.
_STATES = {"adamw": 2, "adam": 2, "sgd": 1}
_FLOAT = 4  # bytes


def listed(
    root: str | os.PathLike[str],
    *,
    dataset: str | None = None,
    partition: str | os.PathLike[str] | None = None,
    frame: tuple[int, int] | None = None,
) -> SequenceDataset:
    """The sequences that `from_tree` would load, by name only: each stands there as one blank frame of one pixel.

    Files that turn out to be unusable when they are read are still among them; of a packed file it is known already
    whether its frames are the wanted ones, (S, C) of `frame`.

    Raises:
        DatasetError: as `from_tree`.
    """
    if Path(root).is_file():
        packed = PackedSequences(root)
        packed.check_frames(*(frame or (packed.size, packed.channels)))
        names = [packed.identities, packed.types, packed.views]
    else:
        refs = list(SequenceTree(root))
        names = [np.array([getattr(each, level) for each in refs]) for level in ("identity", "type", "view")]
    identities, kinds, views = names
    if dataset is not None or partition is not None:
        present = sorted(set(identities.tolist()))
        split = None if partition is None else Partition.read(partition)
        if dataset is not None:
            described = public_dataset(dataset)
            described.check_names(present, set(kinds.tolist()), set(views.tolist()), str(root))
            split = described.split(present, split)
        mask = np.isin(identities, [] if split is None else list(split.train))
        if not mask.any():
            raise DatasetError("no identity of the training part is there", where=str(root), fix="check the split")
        names = [each[mask] for each in names]
    return SequenceDataset(np.broadcast_to(np.zeros((), np.uint8), (len(names[0]), 1, 1, 1)), *names)


def plan_backbone(config: BackboneTraining, training: SequenceDataset, validation: SequenceDataset) -> dict[str, Any]:
    """What `train_backbone` would do with these data (JSON-able; memory in bytes).

    Args:
        config: see there.
        training, validation: for the numbers of identities and sequences; their frames are not looked at.

    Raises:
        OptionError, TrainingError: what the training itself would refuse.
    """
    PxKSampler(training.labels, config.p, config.k, config.seed)
    classes = len(training.classes)
    with torch.device("meta"):
        model = build_model(config, classes)
    rate_groups(model, config.rates)
    objective = Objective(config, classes, model.strips, model.dims)
    count = config.p * config.k
    channels = () if model.input_channels == 1 else (model.input_channels,)
    frames = config.frame_count
    most = frames if isinstance(frames, int) else frames[1]
    batch = torch.empty(count, most, *channels, *model.input_size, device="meta")
    # One value per strip, anchor, positive and negative, and its gradient.
    triplets = 2 * _FLOAT * model.strips * count * config.k * count if config.triplet_weight else 0
    memory = _memory(model, lambda: model.forward_train(batch), _STATES[config.optimiser] + (config.ema is not None))
    memory["losses"] = triplets + _bytes(list(objective.state_dict().values()))
    schedule = config.schedule if config.milestones is None else f"{config.schedule}, /10 at {list(config.milestones)}"
    return {
        "network": model.name,
        "options": model.options,
        "parameters": sum(each.numel() for each in model.parameters()),
        "feature_map": [model.strips, model.dims],
        **_data(training, validation),
        "steps": config.steps,
        "batch": [config.p, config.k, most],
        "epochs": round(config.steps * count / len(training), 2),
        "optimiser": f"{config.optimiser}, lr {config.lr}, weight decay {config.weight_decay}"
        + (f", rates times {config.rates}" if config.rates else ""),
        "schedule": schedule,
        "memory": {**memory, "total": sum(memory.values())},
        "memory_basis": BASIS,
    }


def plan_reranker(
    config: RerankerTraining, strips: int, dims: int, training: SequenceDataset, validation: SequenceDataset
) -> dict[str, Any]:
    """What `train_reranker` would do on features [strips, dims] of these data (JSON-able; memory in bytes).

    Raises:
        TrainingError: fewer identities than a step takes.
    """
    classes = len(training.classes)
    if classes < config.identities:
        raise TrainingError(
            "fewer identities than a step takes", where="plan", got=f"{classes} identities",
            expected=f"at least identities={config.identities}", fix="lower identities (and raise sequences)",
        )  # fmt: skip
    probes, count = config.identities * config.sequences, 1 + config.negatives
    with torch.device("meta"):
        first, others = torch.empty(probes, strips, dims), torch.empty(probes, count, strips, dims)
        model, forward = _reranking(config, classes, first, others)
    memory = _memory(model, forward, _STATES["adamw"])
    memory["features"] = len(training) * strips * dims * _FLOAT
    return {
        "network": config.method,
        "options": model.options,
        "parameters": sum(each.numel() for each in model.parameters()),
        "feature_map": [strips, dims],
        **_data(training, validation),
        "steps": config.steps,
        "batch": [config.identities, config.sequences, count],
        "optimiser": f"adamw, lr {config.lr}, weight decay {config.weight_decay}",
        "schedule": config.schedule,
        "memory": {**memory, "total": sum(memory.values())},
        "memory_basis": BASIS,
    }


def _reranking(
    config: RerankerTraining, classes: int, probes: Tensor, others: Tensor
) -> tuple[CarGait | PairClassifier, Callable[[], Any]]:
    """The network, and a step's forward pass over probes [B, s, d] and their others [B, C, s, d]."""
    if config.method == "classifier":
        classifier = PairClassifier(probes.shape[2], probes.shape[1], config.width)
        return classifier, lambda: classifier.logits(probes, others)
    model = CarGait(probes.shape[2], config.width, config.heads, classes if config.alpha else None)
    if not config.alpha:
        return model, lambda: model(probes, others)
    first = probes.repeat_interleave(others.shape[1], dim=0)
    return model, lambda: model.classify(torch.cat(model.attend(first, others.flatten(0, 1))))


def _data(training: SequenceDataset, validation: SequenceDataset) -> dict[str, Any]:
    return {
        "identities": len(training.classes),
        "sequences": len(training),
        "validation_identities": len(validation.classes),
        "validation_sequences": len(validation),
    }


def _memory(model: nn.Module, forward: Callable[[], Any], states: int) -> dict[str, int]:
    """Bytes by use. Tensors that PyTorch keeps are counted once, however many views of them it keeps."""
    weights = list(model.parameters())
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outcome = forward()  # held until the tensors are counted, as a step holds it
    learned = _bytes([each for each in weights if each.requires_grad])
    activations = _bytes([*weights, *kept]) - _bytes(weights)
    del outcome
    return {
        "weights": _bytes([*weights, *model.buffers()]),
        "gradients": learned,
        "optimiser": states * learned,
        "activations": activations,
    }


def _bytes(tensors: Sequence[Tensor]) -> int:
    storages = {each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in tensors}
    return sum(storages.values())
