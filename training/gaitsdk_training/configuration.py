"""Training configurations from recipes, YAML and JSON files and the command line, checked by pydantic."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from gaitsdk.errors import OptionError
from gaitsdk.slips import suggest
from gaitsdk_training.documents import parse_yaml, read_document
from gaitsdk_training.recipes.catalogue import extended, merged, read_recipe

ConfigT = TypeVar("ConfigT")

#: How a message names the type of a field.
_NAMES: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    dict: "an object",
    list: "a list",
    Sequence: "a list",
    type(None): "null",
}
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def read_config(
    cls: type[ConfigT],
    path: str | os.PathLike[str] | None = None,
    *,
    recipe: str | None = None,
    settings: Iterable[str] = (),
    **overrides: Any,
) -> ConfigT:
    """A `BackboneTraining` or `RerankerTraining`; later sources win over earlier ones.

    Args:
        cls: the dataclass; its defaults come first.
        path: a YAML or JSON file with an object of its fields; it may extend a recipe.
        recipe: the name of a recipe, in place of a file.
        settings: "name=value" each, "augmentation.flip=0.5" for a name inside an object; values as in YAML.
        overrides: fields by name; None means not given.

    Raises:
        OptionError: an unreadable file, no such recipe, an unknown field or an impossible value.
    """
    values = read_values(path, recipe=recipe, settings=settings, **overrides)
    return make_config(cls, values, str(path or recipe or "options"))


def read_values(
    path: str | os.PathLike[str] | None = None,
    *,
    recipe: str | None = None,
    settings: Iterable[str] = (),
    **overrides: Any,
) -> dict[str, Any]:
    """What `read_config` makes a configuration of, not checked yet."""
    if path is not None and recipe is not None:
        raise OptionError(
            "a recipe and a configuration are given", where="--recipe, --config", fix="extend the recipe in the file"
        )
    values = {} if recipe is None else read_recipe(recipe)
    if path is not None:
        values = extended(read_document(Path(path)), str(path))
    for setting in settings:
        values = merged(values, _setting(setting))
    return values | {name: value for name, value in overrides.items() if value is not None}


def make_config(cls: type[ConfigT], values: Mapping[str, Any], where: str) -> ConfigT:
    """The dataclass from plain values; a nested `augmentation` may be an object.

    Raises:
        OptionError: an unknown field, a value of the wrong type, or an impossible one.
    """
    try:
        _schema(cls).model_validate(dict(values))
    except ValidationError as error:
        raise _refusal(cls, error, where) from error
    types = get_type_hints(cls)
    built = {
        name: make_config(types[name], value, f"{where}: {name}") if dataclasses.is_dataclass(types[name]) else value
        for name, value in values.items()
    }
    return cls(**built)


def _schema(cls: Any) -> type[BaseModel]:
    """What pydantic checks: the fields of the dataclass, strictly, and nothing else. Limits are the dataclass's own."""
    fields: dict[str, Any] = {}
    for name, annotation in get_type_hints(cls).items():
        fields[name] = (_schema(annotation) if dataclasses.is_dataclass(annotation) else annotation, None)
    return create_model(cls.__name__, __config__=_STRICT, **fields)


def _refusal(cls: Any, error: ValidationError, where: str) -> OptionError:
    """The first finding, in our words."""
    found = error.errors(include_url=False)[0]
    *above, name = (str(each) for each in found["loc"])
    for part in above:
        annotation = get_type_hints(cls).get(part)
        if not dataclasses.is_dataclass(annotation):
            name = part  # an item of a list: the list is named
            break
        cls, where = annotation, f"{where}: {part}"
    types = get_type_hints(cls)
    if found["type"] == "extra_forbidden":
        return OptionError(f"unknown field {name}", where=where, fix=suggest(name, types))
    value = found["input"]
    return OptionError(
        "not a finite number" if found["type"] == "finite_number" else "a value of the wrong type",
        where=f"{where}: {name}",
        got=f"{value!r} ({_NAMES.get(type(value), type(value).__name__)})",
        expected=_type_name(types[name]),
        fix=f"correct {name}",
    )


def _type_name(annotation: Any) -> str:
    if dataclasses.is_dataclass(annotation):
        return _NAMES[dict]
    origin = get_origin(annotation)
    if (origin or annotation) in _NAMES:
        of = get_args(annotation) if origin is Sequence else ()
        return " ".join([_NAMES[origin or annotation], *(f"of {_NAMES[each].split()[-1]}s" for each in of)])
    return " or ".join(_type_name(each) for each in get_args(annotation))


def _setting(text: str) -> dict[str, Any]:
    """ "a.b=1" -> {"a": {"b": 1}}."""
    name, equals, value = text.partition("=")
    names = [each.strip() for each in name.split(".")]
    if not equals or not all(names):
        raise OptionError(
            "not a setting", where="--set", got=repr(text), expected="name=value", fix="for example --set lr=0.01"
        )
    result: Any = parse_yaml(value, f"--set {text}")
    for each in reversed(names):
        result = {each: result}
    settings: dict[str, Any] = result
    return settings
