"""OU-MVLP: gallery 01, probes 00 (the first walk is the probe), 14 views.

Some people lack a sequence in some view, so that no system reaches 100: figures are given with such probes counted as
misses, and without them.
"""

from __future__ import annotations

from gaitsdk_training.evaluation.view_pairs import CrossViewGallery, SingleViewGallery

GALLERY = ("01",)
PROBES = {"NM": ("00",)}

OUMVLP = SingleViewGallery("oumvlp", "oumvlp", GALLERY, PROBES, with_mate=True)
OUMVLP_CROSS_VIEW = CrossViewGallery("oumvlp-cross-view", "oumvlp", GALLERY, PROBES)
