"""YAML and JSON files as plain values, read so that what stands there is what is meant."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from gaitsdk.errors import OptionError


class _Loader(yaml.SafeLoader):
    """YAML without its two traps: 1e-4 is a number (YAML 1.1 takes it for a word), a key that stands twice an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse_yaml(text: str, where: str) -> Any:
    """The one document in `text`; an empty text is None.

    Raises:
        OptionError: no YAML, or a key stands twice.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except (yaml.YAMLError, ValueError) as error:
        raise OptionError("this is no YAML", where=where, got=" ".join(str(error).split())) from error
    finally:
        loader.dispose()


def mapping(document: Any, where: str) -> dict[str, Any]:
    """The document, which has to be an object with names as keys.

    Raises:
        OptionError: it is something else.
    """
    if isinstance(document, dict) and all(isinstance(key, str) for key in document):
        return document
    raise OptionError(
        "not a configuration", where=where, got=type(document).__name__, expected="an object: names and their values"
    )


def read_document(path: Path) -> dict[str, Any]:
    """The object in a .yaml or .yml file, or in a JSON file of any other name.

    Raises:
        OptionError: the file cannot be read, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
        document = parse_yaml(text, str(path)) if path.suffix.lower() in (".yaml", ".yml") else json.loads(text)
    except OptionError:
        raise
    except (OSError, ValueError) as error:
        raise OptionError("the configuration cannot be read", where=str(path), got=str(error)) from error
    return mapping(document, str(path))
