"""Training data: trees, packed files and synthetic walkers, splits, P x K batches, frame sampling, augmentation."""

from __future__ import annotations

from gaitsdk_training.data.augmentation import Augmentation, augment
from gaitsdk_training.data.dataset import FrameSlices, SequenceDataset, check_share
from gaitsdk_training.data.frames import (
    ALL_FRAMES,
    SAMPLING,
    SKIP,
    UNFIXED_SAMPLING,
    frame_indices,
    load_batch,
    load_sequences,
    to_input,
)
from gaitsdk_training.data.loader import Batch, BatchLoader
from gaitsdk_training.data.packed import PackedSequences, pack
from gaitsdk_training.data.public import PUBLIC_DATASETS, PublicDataset, public_dataset
from gaitsdk_training.data.reading import LoadReport, Skipped
from gaitsdk_training.data.sampler import PxKSampler
from gaitsdk_training.data.sources import from_synthetic, from_tree

__all__ = [
    "ALL_FRAMES",
    "PUBLIC_DATASETS",
    "SAMPLING",
    "SKIP",
    "UNFIXED_SAMPLING",
    "Augmentation",
    "Batch",
    "BatchLoader",
    "FrameSlices",
    "LoadReport",
    "PackedSequences",
    "PublicDataset",
    "PxKSampler",
    "SequenceDataset",
    "Skipped",
    "augment",
    "check_share",
    "frame_indices",
    "from_synthetic",
    "from_tree",
    "load_batch",
    "load_sequences",
    "pack",
    "public_dataset",
    "to_input",
]
