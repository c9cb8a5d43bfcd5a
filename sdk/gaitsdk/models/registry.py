"""Backbones by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

from gaitsdk.errors import OptionError, UnknownModelError
from gaitsdk.models.base import GaitModel
from gaitsdk.slips import suggest

ModelT = TypeVar("ModelT", bound=type[GaitModel])

_MODELS: dict[str, type[GaitModel]] = {}


def register_model(name: str) -> Callable[[ModelT], ModelT]:
    """Class decorator: makes a `GaitModel` available to `create` and to bundles under `name`.

    Args:
        name: lower-case letters, digits and `+ - _ .`, not registered yet.

    Raises:
        OptionError: the name is unusable or taken, or the class is no GaitModel.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9+._-]*", name):
        raise OptionError("not a model name", where="register_model", got=repr(name), expected="such as 'mynet2'")

    def register(cls: ModelT) -> ModelT:
        if not (isinstance(cls, type) and issubclass(cls, GaitModel)):
            raise OptionError(f"cannot register '{name}'", got=repr(cls), expected="a subclass of GaitModel")
        if name in _MODELS:
            raise OptionError(
                f"the model name '{name}' is taken", where="register_model", got=cls.__qualname__,
                expected=f"nothing but {_MODELS[name].__qualname__}", fix="choose another name",
            )  # fmt: skip
        cls.name = name
        _MODELS[name] = cls
        return cls

    return register


def list_models() -> list[str]:
    """The names that `create` takes, in alphabetical order.

    `list_tags(name)` gives the published configurations of one, `model_class(name).TAGS` their options.
    """
    return sorted(_MODELS)


def list_tags(name: str) -> list[str]:
    """The published configurations of a model, by the data set that each is for, in alphabetical order.

    "tiny" is none of them, but a network for tests that runs in no time.

    Raises:
        UnknownModelError: nobody registered that name.
    """
    return sorted(model_class(name).TAGS)


def model_class(name: str) -> type[GaitModel]:
    """The registered class; `model_class(name).Options.names()` are its options.

    Raises:
        UnknownModelError: nobody registered that name; the nearest known one is named.
    """
    if not isinstance(name, str) or name not in _MODELS:
        raise UnknownModelError(f"no model is named {name!r}", where="models.create", fix=suggest(str(name), _MODELS))
    return _MODELS[name]


def create(name: str, tag: str | None = None, **options: Any) -> GaitModel:
    """A new backbone with random weights, in training mode.

    Args:
        name: one of `list_models()`.
        tag: one of `list_tags(name)`, the published configuration for that data set; None = the published network for
            64x44 silhouettes. No tag brings a classifier: that belongs to whoever trains (`num_classes`).
        options: fields of `model_class(name).Options`; they override the tag's; lists may stand for tuples.

    Returns:
        The model; its `name` and `options` recreate it.

    Raises:
        UnknownModelError: unknown name. OptionError: unknown tag or option, or impossible value.
    """
    cls = model_class(name)
    if tag is not None and (not isinstance(tag, str) or tag not in cls.TAGS):
        raise OptionError(
            f"model '{name}' has no tag {tag!r}", where="models.create", fix=suggest(str(tag), cls.TAGS)
        )  # fmt: skip
    return cls.from_options({**(cls.TAGS[tag] if tag else {}), **options})
