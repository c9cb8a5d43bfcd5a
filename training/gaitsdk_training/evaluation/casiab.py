"""CASIA-B: gallery nm-01 to nm-04; probes nm-05, nm-06 (NM), bg-01, bg-02 (BG) and cl-01, cl-02 (CL).

The cross-view-gallery form has one sequence of each condition as probe, and the other in the gallery.
"""

from __future__ import annotations

from gaitsdk_training.evaluation.view_pairs import CrossViewGallery, SingleViewGallery

GALLERY = ("nm-01", "nm-02", "nm-03", "nm-04")
PROBES = {"NM": ("nm-05", "nm-06"), "BG": ("bg-01", "bg-02"), "CL": ("cl-01", "cl-02")}

CASIAB = SingleViewGallery("casiab", "casiab", GALLERY, PROBES)
CASIAB_CROSS_VIEW = CrossViewGallery(
    "casiab-cross-view",
    "casiab",
    ("nm-02", "bg-02", "cl-02"),
    {"NM": ("nm-01",), "BG": ("bg-01",), "CL": ("cl-01",)},
)
