"""Losses: one file each, with the equation where it comes from."""

from __future__ import annotations

from gaitsdk_training.losses.cross_entropy import cross_entropy
from gaitsdk_training.losses.drpl import DRPL
from gaitsdk_training.losses.gaitmpl import GaitMPLLoss
from gaitsdk_training.losses.gsam import GSAM
from gaitsdk_training.losses.hardness import WEIGHTS, hardness_weights
from gaitsdk_training.losses.ranking import ranking_loss
from gaitsdk_training.losses.schedules import FUSIONS, delta_at, fusion_at, smoothness_at
from gaitsdk_training.losses.triplet import TripletInfo, triplet_batch_all, triplet_info
from gaitsdk_training.losses.triplet_hard import triplet_batch_hard

__all__ = [
    "DRPL",
    "FUSIONS",
    "GSAM",
    "WEIGHTS",
    "GaitMPLLoss",
    "TripletInfo",
    "cross_entropy",
    "delta_at",
    "fusion_at",
    "hardness_weights",
    "ranking_loss",
    "smoothness_at",
    "triplet_batch_all",
    "triplet_batch_hard",
    "triplet_info",
]
