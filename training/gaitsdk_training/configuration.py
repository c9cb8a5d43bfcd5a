"""Training configurations from JSON files and the command line."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from gaitsdk.errors import OptionError

ConfigT = TypeVar("ConfigT")

#: How a message names the type of a field.
_NAMES = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    dict: "an object",
    list: "a list",
}


def read_config(cls: type[ConfigT], path: str | os.PathLike[str] | None = None, **overrides: Any) -> ConfigT:
    """A `BackboneTraining` or `RerankerTraining` from a JSON object of its fields.

    Args:
        cls: the dataclass.
        path: the file; None = the defaults.
        overrides: fields that win over the file's; None means not given.

    Raises:
        OptionError: an unreadable file, an unknown field or an impossible value.
    """
    values = {} if path is None else _read(Path(path))
    values |= {name: value for name, value in overrides.items() if value is not None}
    return make_config(cls, values, str(path or "options"))


def make_config(cls: type[ConfigT], values: dict[str, Any], where: str) -> ConfigT:
    """The dataclass from plain values; a nested `augmentation` may be a dict.

    Raises:
        OptionError: an unknown field, a value of the wrong type, or an impossible one.
    """
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(known)):
        raise OptionError(f"unknown field {', '.join(unknown)}", where=where, expected=f"some of {', '.join(known)}")
    if isinstance(values.get("augmentation"), dict):
        from gaitsdk_training.data import Augmentation

        values = {**values, "augmentation": make_config(Augmentation, values["augmentation"], f"{where}: augmentation")}
    types = get_type_hints(cls)
    for name, value in values.items():
        _check_type(name, value, types[name], where)
    return cls(**values)


def _check_type(name: str, value: Any, annotation: Any, where: str) -> None:
    """Refuses with OptionError a value that is not of the field's type; integers are numbers, booleans are not."""
    allowed = tuple(getattr(each, "__origin__", each) for each in get_args(annotation) or (annotation,))
    if getattr(annotation, "__origin__", None) in (dict, list, tuple):  # dict[str, Any]: its arguments are no choices
        allowed = (annotation.__origin__,)
    accepted = (*allowed, int) if float in allowed else allowed
    right = isinstance(value, accepted) and (bool in allowed or not isinstance(value, bool))
    finite = not isinstance(value, float) or math.isfinite(value)
    if right and finite:
        return
    names = [_NAMES.get(each, "an object" if dataclasses.is_dataclass(each) else "null") for each in allowed]
    raise OptionError(
        "a value of the wrong type" if finite else "not a finite number",
        where=f"{where}: {name}",
        got=f"{value!r} ({_NAMES.get(type(value), type(value).__name__)})",
        expected=" or ".join(names),
        fix=f"correct {name}",
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise OptionError("the configuration cannot be read", where=str(path), got=str(error)) from error
    if not isinstance(document, dict):
        raise OptionError("not a configuration", where=str(path), got=type(document).__name__, expected="a JSON object")
    return document
