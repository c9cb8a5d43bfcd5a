"""`manifest.json`: what a bundle says of itself, with the sha256 of each of its files and of itself."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gaitsdk.checks import frame_shape
from gaitsdk.errors import BundleError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Architecture(_Strict):
    """`gaitsdk.models.create(name, **options)` builds it."""

    name: str
    options: dict[str, Any]


class InputSpec(_Strict):
    """What the backbone eats: `[T, size, size]` uint8, or `[T, channels, size, size]` where more than one map enters;
    the graph drops `cut` columns a side and divides by `scale`."""

    size: int
    cut: int
    scale: float = 255.0
    normalisation: str = "tight rows, cubic resize to size, centred on the median column of mass"
    channels: int = 1

    @property
    def frame(self) -> tuple[int, ...]:
        """The shape of one frame, uncut."""
        return frame_shape(self.size, self.channels)


class RerankerSpec(_Strict):
    """A network that re-ranks ("cargait" or "classifier"), and the length K of the list that it was trained for."""

    name: str
    options: dict[str, Any]
    k: int = 10


class FileEntry(_Strict):
    sha256: str
    bytes: int


class Calibration(_Strict):
    """One calibrated threshold on the final distance, and what it holds for.

    Attributes:
        task: of which verb.
        reranker: name of the re-ranker whose distance the threshold cuts, "none" for the shortlist's.
        k: length of the re-ranked list.
        gallery_size: entries in the gallery that it was calibrated on; false positives grow with it.
        threshold: known means distance <= threshold.
        fpir: the false positive identification rate that it was set for (fraction); for "verify" the false match rate.
        people: how many people it rests on: those not enrolled, for "verify" all; 0 = not stated.
        interval: 95 % interval of the rate at the threshold, by bootstrap over these people; None = not stated.
    """

    task: Literal["identify", "verify"]
    reranker: str
    k: int
    gallery_size: int
    threshold: float
    fpir: float
    people: int = 0
    interval: tuple[float, float] | None = None


class Manifest(_Strict):
    """`manifest.json`, field by field; unknown fields are refused."""

    format_version: int
    name: str
    architecture: Architecture
    input: InputSpec
    embedding: str = "fc"
    strips: int
    dims: int
    distance: Literal["euclidean", "cosine"] = "euclidean"
    length_handling: Literal["cyclic", "alone"] = "cyclic"
    reranker: RerankerSpec | None = None
    calibration: list[Calibration] = Field(default_factory=list)
    training: dict[str, Any] = Field(default_factory=dict)
    licence: str
    files: dict[str, FileEntry]

    @property
    def k(self) -> int:
        """Length of the re-ranked list; 0 without a re-ranker."""
        return self.reranker.k if self.reranker else 0


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def fingerprint_of(manifest: Manifest) -> str:
    identity = {
        "architecture": manifest.architecture.model_dump(),
        "input": manifest.input.model_dump(),
        "embedding": manifest.embedding,
        "backbone.safetensors": manifest.files["backbone.safetensors"].sha256,
    }
    return hashlib.sha256(_canonical(identity)).hexdigest()


def checksum_of(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical({k: v for k, v in document.items() if k != "checksum"})).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    document = manifest.model_dump()
    document["checksum"] = checksum_of(document)
    temporary = folder / f".{MANIFEST}.tmp"
    with temporary.open("w") as file:
        file.write(json.dumps(document, indent=1, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / MANIFEST)


def read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    where = str(path)
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        raise BundleError(
            "no bundle there",
            where=str(folder),
            expected=f"a folder NAME.gait with {MANIFEST}",
            fix="check the path; Recognizer.load() without a path uses the shipped bundle",
        ) from None
    except NotADirectoryError:
        raise BundleError("a bundle is a folder, this is a file", where=str(folder)) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BundleError("the manifest cannot be read", where=where, got=str(error), fix=_RESTORE) from error
    if not isinstance(document, dict) or document.get("format_version") != FORMAT_VERSION:
        got = document.get("format_version") if isinstance(document, dict) else type(document).__name__
        raise BundleError(
            "another bundle format",
            where=where,
            got=f"format_version {got}",
            expected=f"format_version {FORMAT_VERSION}",
            fix="use the gaitsdk release that wrote it, or export the bundle again",
        )
    if document.pop("checksum", None) != checksum_of(document):
        raise BundleError("the manifest was changed after it was written", where=where, fix=_RESTORE)
    try:
        manifest = Manifest.model_validate(document)
    except ValidationError as error:
        raise BundleError("the manifest is not valid", where=where, got=str(error), fix=_RESTORE) from error
    for name in ("backbone.safetensors", *(["reranker.safetensors"] if manifest.reranker else [])):
        if name not in manifest.files:
            raise BundleError(
                "the manifest does not list a file that it needs", where=where, expected=name, fix=_RESTORE
            )
    return manifest


_RESTORE = "restore the bundle from where you got it, or write it again"


def file_entry(path: Path) -> FileEntry:
    data = path.read_bytes()
    return FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def check_file(folder: Path, name: str, entry: FileEntry) -> None:
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts:
        raise BundleError("the manifest names a file outside the bundle", where=str(folder), got=name, fix=_RESTORE)
    try:
        found = file_entry(folder / name)
    except OSError as error:
        raise BundleError(
            "a listed file cannot be read", where=str(folder / name), got=str(error), fix=_RESTORE
        ) from error
    if found != entry:
        raise BundleError(
            "the file was changed after the bundle was written",
            where=str(folder / name),
            got=f"{found.bytes} bytes, sha256 {found.sha256[:12]}...",
            expected=f"{entry.bytes} bytes, sha256 {entry.sha256[:12]}...",
            fix=_RESTORE,
        )
