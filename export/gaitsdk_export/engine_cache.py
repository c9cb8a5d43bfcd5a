"""Engines that were built before, by what they were built from: builds take minutes, and several processes want one.

NAME.engine        the engine; NAME is the digest of its key
NAME.json          the key in full, and the engine's sha256
NAME.lock          held by the process that builds it; the others wait
*.timing           what a builder has measured, by its version and GPU
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from gaitsdk.errors import ExportError
from gaitsdk.file_lock import locked
from gaitsdk_export.atomic import appears_whole

logger = logging.getLogger(__name__)

#: Names another folder for the cache.
VARIABLE = "GAITSDK_ENGINE_CACHE"


@dataclass(frozen=True)
class EngineKey:
    """Everything that an engine depends on.

    Attributes:
        onnx_sha256: of the graph.
        builder, builder_version: "tensorrt" or "tensorrt-rtx", and its version.
        compute_capabilities: 89 for 8.9; one, or with TensorRT for RTX several.
        gpu: its name where the engine is tuned on it, else None.
        precision: "fp32", "fp16" or "bf16"; the graph holds it, here it stands for people.
        profiles: {"batch": [least, best, most], ...} each.
        flags: of the builder.
    """

    onnx_sha256: str
    builder: str
    builder_version: str
    compute_capabilities: tuple[int, ...]
    gpu: str | None
    precision: str
    profiles: tuple[Mapping[str, Sequence[int]], ...]
    flags: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found

    @property
    def digest(self) -> str:
        """40 hex digits."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:40]

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """What another engine was built with instead, a phrase each; none where it is the same."""
        mine = self.to_dict()
        return [
            f"{each.name} {other.get(each.name)!r} instead of {mine[each.name]!r}"
            for each in fields(self)
            if other.get(each.name) != mine[each.name]
        ]


def default_folder() -> Path:
    """`$GAITSDK_ENGINE_CACHE`, else gaitsdk/engines in the user's cache folder."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gaitsdk" / "engines"


class EngineCache:
    """A folder of engines; several processes may use it at once.

    Args:
        folder: default `default_folder()`; made when the first engine is stored.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()

    def get(self, key: EngineKey) -> bytes | None:
        """The engine, or None where there is none, or one that is damaged or foreign (which is logged)."""
        path = self._path(key)
        try:
            engine = path.read_bytes()
            record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            sha256, stored = record["sha256"], record["key"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s: the cached engine cannot be read, and is built again: %s", path, error)
            return None
        wrong = key.differences(stored)
        if wrong or sha256 != hashlib.sha256(engine).hexdigest():
            logger.warning("%s: %s; it is built again", path, "; ".join(wrong) or "the cached engine is damaged")
            return None
        return engine

    def get_or_build(
        self, key: EngineKey, build: Callable[[], bytes], progress: Callable[[str], None] | None = None
    ) -> tuple[bytes, bool]:
        """The engine, and whether this call built it. While one process builds, others that want it wait.

        Args:
            key: of the engine.
            build: makes it. What it raises passes through, and the next process that waits tries in its turn.
            progress: called with a line of text before waiting.

        Raises:
            ExportError: the folder cannot be written.
        """
        engine = self.get(key)
        if engine is not None:
            return engine, False
        with self._locked(key, progress):
            engine = self.get(key)  # built by whom we waited for
            if engine is not None:
                return engine, False
            engine = build()
            self._put(key, engine)
        return engine, True

    def timing_path(self, key: EngineKey) -> Path:
        """Where the builder's measurements for this version and GPU lie."""
        gpu = "".join(each if each.isalnum() else "-" for each in key.gpu or "any")
        return self.folder / f"{key.builder}-{key.builder_version}-{gpu}.timing"

    def _path(self, key: EngineKey) -> Path:
        return self.folder / f"{key.digest}.engine"

    def _put(self, key: EngineKey, engine: bytes) -> None:
        path = self._path(key)
        record = {"key": key.to_dict(), "sha256": hashlib.sha256(engine).hexdigest()}
        try:
            # The engine first: one without its record, or beside the record of an older one, counts as damaged.
            with appears_whole(path) as temporary:
                temporary.write_bytes(engine)
            with appears_whole(path.with_suffix(".json")) as temporary:
                temporary.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        except OSError as error:
            raise _not_writable(self.folder, error) from error

    @contextlib.contextmanager
    def _locked(self, key: EngineKey, progress: Callable[[str], None] | None) -> Iterator[None]:
        def waiting() -> None:
            if progress is not None:
                progress("another process is building the same engine: waiting for it")

        path = self._path(key).with_suffix(".lock")
        with contextlib.ExitStack() as stack:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(path, waiting))
            except OSError as error:
                raise _not_writable(self.folder, error) from error
            yield


def _not_writable(folder: Path, error: OSError) -> ExportError:
    return ExportError(
        "the cache of engines cannot be written",
        where=str(folder),
        got=error.strerror or str(error),
        fix=f"set {VARIABLE} to a folder that you may write, with some free space",
    )
