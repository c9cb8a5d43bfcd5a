"""Training and evaluation of gait backbones and of the CarGait re-ranker (needs torch)."""

from __future__ import annotations
