"""Training configurations from JSON files and the command line."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, TypeVar

from gaitsdk.errors import OptionError

ConfigT = TypeVar("ConfigT")


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
        OptionError: an unknown field or an impossible value.
    """
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(known)):
        raise OptionError(f"unknown field {', '.join(unknown)}", where=where, expected=f"some of {', '.join(known)}")
    if isinstance(values.get("augmentation"), dict):
        from gaitsdk_training.data import Augmentation

        values = {**values, "augmentation": make_config(Augmentation, values["augmentation"], f"{where}: augmentation")}
    try:
        return cls(**values)
    except TypeError as error:  # a string where a number belongs
        raise OptionError("a field has a value of the wrong type", where=where, got=str(error)) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise OptionError("the configuration cannot be read", where=str(path), got=str(error)) from error
    if not isinstance(document, dict):
        raise OptionError("not a configuration", where=str(path), got=type(document).__name__, expected="a JSON object")
    return document
