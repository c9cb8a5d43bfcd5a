"""Losses: one file each, with the equation where it comes from."""

from __future__ import annotations

from gaitsdk_training.losses.cross_entropy import cross_entropy
from gaitsdk_training.losses.ranking import ranking_loss
from gaitsdk_training.losses.triplet import TripletInfo, triplet_batch_all, triplet_info

__all__ = ["TripletInfo", "cross_entropy", "ranking_loss", "triplet_batch_all", "triplet_info"]
