"""gaitsdk_export: compiles a bundle's networks and proves that the compiled ones give the same answers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gaitsdk_export.bundles import ExportResult, export_bundle
    from gaitsdk_export.engine_cache import EngineCache
    from gaitsdk_export.formats import FORMATS, Range, Sizes
    from gaitsdk_export.half import to_half
    from gaitsdk_export.parity import ParityError, ParityReport, Tolerance, Verdict, check
    from gaitsdk_export.to_onnx import to_onnx
    from gaitsdk_export.to_tensorrt import build_engine
    from gaitsdk_export.to_torchscript import to_torchscript
    from gaitsdk_export.wrappers import EmbedderForExport, RerankerForExport

__all__ = [
    "FORMATS",
    "EmbedderForExport",
    "EngineCache",
    "ExportResult",
    "ParityError",
    "ParityReport",
    "Range",
    "RerankerForExport",
    "Sizes",
    "Tolerance",
    "Verdict",
    "build_engine",
    "check",
    "export_bundle",
    "to_half",
    "to_onnx",
    "to_torchscript",
]

# Loaded on first use (PEP 562): the command line imports this package only to find its verbs.
_LAZY = {
    "FORMATS": "formats",
    "Range": "formats",
    "Sizes": "formats",
    "EngineCache": "engine_cache",
    "ExportResult": "bundles",
    "export_bundle": "bundles",
    "ParityError": "parity",
    "ParityReport": "parity",
    "Tolerance": "parity",
    "Verdict": "parity",
    "check": "parity",
    "build_engine": "to_tensorrt",
    "to_half": "half",
    "to_onnx": "to_onnx",
    "to_torchscript": "to_torchscript",
    "EmbedderForExport": "wrappers",
    "RerankerForExport": "wrappers",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'gaitsdk_export' has no attribute {name!r}")
    return getattr(importlib.import_module(f"gaitsdk_export.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
