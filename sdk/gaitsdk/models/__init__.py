"""Backbones and the re-ranker: pure PyTorch, shared by training, export and the torch runtime."""

from __future__ import annotations

# Importing an architecture's module registers it.
from gaitsdk.models import gaitbase as _gaitbase
from gaitsdk.models import gaitset as _gaitset
from gaitsdk.models.base import FrameSetModel, GaitModel
from gaitsdk.models.cargait import CarGait
from gaitsdk.models.opengait import load_opengait
from gaitsdk.models.options import ModelOptions
from gaitsdk.models.registry import create, list_models, model_class, register_model

GaitBase = _gaitbase.GaitBase
GaitSet = _gaitset.GaitSet

__all__ = [
    "CarGait",
    "FrameSetModel",
    "GaitBase",
    "GaitModel",
    "GaitSet",
    "ModelOptions",
    "create",
    "list_models",
    "load_opengait",
    "model_class",
    "register_model",
]
