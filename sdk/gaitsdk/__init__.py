"""gaitsdk: recognise people by their gait.

from gaitsdk import Recognizer

rec = Recognizer.load()
rec.enroll("alice", silhouettes)
print(rec.identify(probe).identity)
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from gaitsdk.errors import GaitError

if TYPE_CHECKING:
    from gaitsdk.async_recognizer import AsyncRecognizer
    from gaitsdk.bundle import Bundle
    from gaitsdk.gallery import Gallery
    from gaitsdk.recognizer import Recognizer
    from gaitsdk.results import Candidate, Identification, Verification

__version__ = "0.1.0"
__all__ = [
    "AsyncRecognizer",
    "Bundle",
    "Candidate",
    "GaitError",
    "Gallery",
    "Identification",
    "Recognizer",
    "Verification",
    "__version__",
]

# Loaded on first use (PEP 562), so that `import gaitsdk` stays light.
_LAZY = {
    "AsyncRecognizer": "gaitsdk.async_recognizer",
    "Bundle": "gaitsdk.bundle",
    "Candidate": "gaitsdk.results",
    "Gallery": "gaitsdk.gallery",
    "Identification": "gaitsdk.results",
    "Recognizer": "gaitsdk.recognizer",
    "Verification": "gaitsdk.results",
}

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'gaitsdk' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
