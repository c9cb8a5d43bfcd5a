"""Typed options of an architecture: checked once, plain JSON outside."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from gaitsdk.errors import OptionError
from gaitsdk.slips import did_you_mean, suggest

OptionsT = TypeVar("OptionsT", bound="ModelOptions")


def halving_pyramid(total: int) -> tuple[int, ...] | None:
    """The bins of the halving pyramid with `total` strips: 31 = 16 + 8 + 4 + 2 + 1; None where there is none."""
    top = (total + 1) // 2
    if total < 1 or top & (top - 1) or total != 2 * top - 1:
        return None
    return tuple(top >> level for level in range(top.bit_length()))


def count_blocks(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    """How many numbered parts `prefix.0.*`, `prefix.1.*` ... a checkpoint has."""
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.")
    return len({match.group(1) for key in shapes if (match := pattern.match(key))})


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What every architecture has; subclass it (frozen, keyword only) and add fields with defaults.

    Check further fields in `__post_init__` with the helpers below, calling `super().__post_init__()` first.

    Attributes:
        size: height and width of one input frame, in pixels.
    """

    size: tuple[int, int] = (64, 44)

    def __post_init__(self) -> None:
        self.check_ints("size", count=2)

    @classmethod
    def parse(cls: type[OptionsT], model: str, values: Mapping[str, Any]) -> OptionsT:
        """Options from keywords or from JSON.

        Raises:
            OptionError: an unknown name (the nearest known one is named) or an impossible value.
        """
        known = cls.names()
        for name in values:
            if name not in known:
                raise OptionError(
                    f"model '{model}' has no option '{name}'", where="models.create", fix=suggest(name, known)
                )
        return cls(**values)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all options of this architecture."""
        return tuple(field.name for field in dataclasses.fields(cls))

    def to_dict(self) -> dict[str, Any]:
        """All options as plain JSON-able values; `parse` takes them back."""
        values = {name: getattr(self, name) for name in self.names()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def check_int(self, name: str, *, optional: bool = False) -> None:
        """Field `name` is a positive integer, or None where optional."""
        value = getattr(self, name)
        if not (_is_positive_int(value) or (optional and value is None)):
            raise self._refusal(name, "a positive integer" + (" or None" if optional else ""))

    def check_ints(self, name: str, *, count: int | None = None) -> None:
        """Field `name` is a sequence of `count` positive integers; a list (from JSON) becomes a tuple."""
        value = getattr(self, name)
        ok = isinstance(value, (list, tuple)) and len(value) > 0 and all(_is_positive_int(v) for v in value)
        if not ok or (count is not None and len(value) != count):
            raise self._refusal(name, f"{count or 'a sequence of'} positive integers")
        object.__setattr__(self, name, tuple(value))

    def check_fraction(self, name: str) -> None:
        """Field `name` is a number of at least 0 and below 1."""
        value = getattr(self, name)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0.0 <= value < 1.0:
            raise self._refusal(name, "a number of at least 0 and below 1")

    def check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        """Field `name` is one of `choices`."""
        value = getattr(self, name)
        if value not in choices:
            near = did_you_mean(value, choices) if isinstance(value, str) else None
            raise self._refusal(name, f"one of {', '.join(choices)}", near)

    def check_bins(self, bins: tuple[int, ...], height: int, change: str) -> None:
        """Every bin count divides the height of the last feature map, so that strips are whole rows."""
        bad = [b for b in bins if height % b]
        if bad:
            divisors = ", ".join(str(b) for b in range(1, height + 1) if height % b == 0)
            raise OptionError(
                f"a feature map of {height} rows cannot be cut into {bad[0]} equal strips",
                where=type(self).__name__,
                got=f"size={self.size}",
                expected=f"a strip count among {divisors}",
                fix=f"change {change}",
            )

    def _refusal(self, name: str, expected: str, fix: str | None = None) -> OptionError:
        return OptionError(
            f"option '{name}' has an impossible value",
            where=type(self).__name__,
            got=repr(getattr(self, name)),
            expected=expected,
            fix=fix,
        )
