"""The published recipes by name: the YAML files beside this one.

A recipe is an object of the training configuration's fields, as any file for `--config` is. `extends: NAME` takes
another recipe's fields first; objects inside (augmentation, options) are merged key by key.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from gaitsdk.errors import OptionError
from gaitsdk.slips import suggest
from gaitsdk_training.documents import mapping, parse_yaml

_SUFFIX = ".yaml"
#: What a recipe trains: by its name, since both have fields in common.
BACKBONE, RERANKER = "backbone", "reranker"


def recipe_names() -> list[str]:
    """All recipes, in alphabetical order."""
    found = (each.name for each in files(__package__).iterdir())
    return sorted(name.removesuffix(_SUFFIX) for name in found if name.endswith(_SUFFIX))


def recipe_kind(name: str) -> str:
    """What it trains: `BACKBONE` or `RERANKER`."""
    return RERANKER if name.split("-")[0] == "cargait" else BACKBONE


def recipe_text(name: str) -> str:
    """The file as it stands, comments and all: where to begin with one's own.

    Raises:
        OptionError: no such recipe; the nearest is named.
    """
    if name not in recipe_names():
        raise OptionError(f"there is no recipe {name!r}", where="recipe", fix=suggest(name, recipe_names()))
    return files(__package__).joinpath(f"{name}{_SUFFIX}").read_text(encoding="utf-8")


def recipe_about(name: str) -> str:
    """The comment at the head of the file: what it is, and what of the published training is missing."""
    lines = []
    for line in recipe_text(name).splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


def read_recipe(name: str) -> dict[str, Any]:
    """Its fields, with those of the recipes that it extends."""
    return extended(mapping(parse_yaml(recipe_text(name), name), name), name)


def extended(document: Mapping[str, Any], where: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """The document over the recipe that its `extends` names, if any.

    Raises:
        OptionError: no such recipe, or recipes that extend each other.
    """
    own = dict(document)
    base = own.pop("extends", None)
    if base is None:
        return own
    if not isinstance(base, str) or base in above:
        raise OptionError("extends no recipe", where=where, got=repr(base), expected="the name of another recipe")
    below = mapping(parse_yaml(recipe_text(base), base), base)
    return merged(extended(below, base, (*above, base)), own)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both, `above` winning; objects on both sides are merged in turn."""
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        result[key] = merged(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return result
