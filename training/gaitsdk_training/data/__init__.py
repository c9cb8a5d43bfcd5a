"""Training data: sequences in memory, P x K batches, frame sampling, augmentation."""

from __future__ import annotations

from gaitsdk_training.data.augmentation import Augmentation, augment
from gaitsdk_training.data.dataset import SequenceDataset, check_share
from gaitsdk_training.data.frames import SAMPLING, frame_indices, load_batch, to_input
from gaitsdk_training.data.sampler import PxKSampler
from gaitsdk_training.data.sources import from_synthetic, from_tree

__all__ = [
    "SAMPLING",
    "Augmentation",
    "PxKSampler",
    "SequenceDataset",
    "augment",
    "check_share",
    "frame_indices",
    "from_synthetic",
    "from_tree",
    "load_batch",
    "to_input",
]
