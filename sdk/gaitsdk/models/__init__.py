"""Backbones and the re-ranker: pure PyTorch, shared by training, export and the torch runtime."""

from __future__ import annotations

# Importing an architecture's module registers it.
from gaitsdk.models.base import FrameSetModel, GaitModel
from gaitsdk.models.cargait import CarGait
from gaitsdk.models.deepgaitv2 import DeepGaitV2
from gaitsdk.models.gaitbase import GaitBase
from gaitsdk.models.gaitgl import GaitGL
from gaitsdk.models.gaitpart import GaitPart
from gaitsdk.models.gaitset import GaitSet
from gaitsdk.models.gln import GLN
from gaitsdk.models.mt3d import MT3D
from gaitsdk.models.opengait import load_opengait
from gaitsdk.models.options import ModelOptions
from gaitsdk.models.packing import Packing, blanked
from gaitsdk.models.registry import create, list_models, list_tags, model_class, register_model
from gaitsdk.models.skeletongaitpp import SkeletonGaitPP
from gaitsdk.models.swingait3d import SwinGait3D
from gaitsdk.models.temporal import TemporalModel

__all__ = [
    "GLN",
    "MT3D",
    "CarGait",
    "DeepGaitV2",
    "FrameSetModel",
    "GaitBase",
    "GaitGL",
    "GaitModel",
    "GaitPart",
    "GaitSet",
    "ModelOptions",
    "Packing",
    "SkeletonGaitPP",
    "SwinGait3D",
    "TemporalModel",
    "blanked",
    "create",
    "list_models",
    "list_tags",
    "load_opengait",
    "model_class",
    "register_model",
]
