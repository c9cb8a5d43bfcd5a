"""Synthetic walkers: the embedded default data, so that everything runs without a licensed data set.

A parametric person (limb lengths and girths from anthropometric tables, joint curves from normative gait data) walks
past the eleven cameras of CASIA-B, normally, with a bag and in a coat. Everything follows from a seed: body and gait of
an identity from (seed, identity), a walk from (seed, identity, type), its film from (seed, identity, type, view).
"""

from __future__ import annotations

from gaitsdk.synthetic.body import Body
from gaitsdk.synthetic.covariates import TYPES, Outfit
from gaitsdk.synthetic.gait import Style
from gaitsdk.synthetic.render import VIEWS
from gaitsdk.synthetic.walkers import (
    Identity,
    SyntheticSequence,
    contact_sheet,
    dataset,
    identity,
    masks,
    sequence,
    views,
    write_casiab,
)

__all__ = [
    "TYPES",
    "VIEWS",
    "Body",
    "Identity",
    "Outfit",
    "Style",
    "SyntheticSequence",
    "contact_sheet",
    "dataset",
    "identity",
    "masks",
    "sequence",
    "views",
    "write_casiab",
]
