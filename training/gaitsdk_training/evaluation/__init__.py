"""Evaluation by the field's official protocols."""

from __future__ import annotations

from gaitsdk_training.evaluation.bootstrap import paired_bootstrap
from gaitsdk_training.evaluation.evaluate import PROTOCOLS, evaluate, hit_table
from gaitsdk_training.evaluation.gei import gei
from gaitsdk_training.evaluation.hits import HitTable
from gaitsdk_training.evaluation.ranking import Reranker, from_network

__all__ = ["PROTOCOLS", "HitTable", "Reranker", "evaluate", "from_network", "gei", "hit_table", "paired_bootstrap"]
