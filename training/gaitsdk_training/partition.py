"""Which identities train and which test."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from gaitsdk.errors import DatasetError


@dataclass(frozen=True)
class Partition:
    """The field's partition file: `{"TRAIN_SET": [ids], "TEST_SET": [ids]}`, perhaps with a `PROBE_SET`."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    probe: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Partition:
        """Reads the JSON file.

        Raises:
            DatasetError: missing, or not such a file.
        """
        try:
            document = json.loads(Path(path).read_text())
            lists = [document[key] for key in ("TRAIN_SET", "TEST_SET")] + [document.get("PROBE_SET", [])]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DatasetError(
                "the partition file cannot be used",
                where=str(path),
                got=f"{type(error).__name__}: {error}",
                expected='{"TRAIN_SET": [ids], "TEST_SET": [ids]}',
            ) from error
        if not all(isinstance(each, list) for each in lists):
            raise DatasetError(
                "the sets are not lists", where=str(path), expected='{"TRAIN_SET": [ids], "TEST_SET": [ids]}'
            )
        train, test, probe = (tuple(str(each) for each in values) for values in lists)
        return cls(train, test, probe)
