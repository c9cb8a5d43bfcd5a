"""What may be enrolled: the rules for identities, entry ids and metadata, and the checksums of what is stored."""

from __future__ import annotations

import json
import struct
import unicodedata
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gaitsdk.errors import GalleryCorruptError, InputError, OptionError

LONGEST_IDENTITY = 256
LARGEST_METADATA = 1 << 16
_LARGEST_ID = 2**63 - 1


def check_identity(identity: object, where: str = "identity") -> str:
    """The identity as given, or `InputError`: 1 to 256 characters, not blank, no white space around it, no
    control characters, line breaks or invisible format characters."""
    if not isinstance(identity, str):
        raise InputError("the name is no text", where=where, got=type(identity).__name__, expected="str")
    if not identity.strip():
        raise InputError(
            "the name is blank", where=where, got=repr(identity[:20]), expected=f"1 to {LONGEST_IDENTITY} characters"
        )
    if identity != identity.strip():
        raise InputError(
            "the name has white space before or after it",
            where=where,
            got=repr(identity[:40]),
            expected="a name without, or it would be another person than the same name typed without",
            fix="pass name.strip()",
        )
    if len(identity) > LONGEST_IDENTITY:
        expected = f"at most {LONGEST_IDENTITY} characters"
        raise InputError(
            "the name is too long",
            where=where,
            got=f"{len(identity)} characters",
            expected=expected,
            fix="use metadata",
        )
    # Control characters, lone surrogates, line and paragraph separators: they break logs, terminals and UTF-8.
    bad = sorted({f"U+{ord(c):04X}" for c in identity if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")})
    if bad:
        raise InputError("the name has control characters", where=where, got=", ".join(bad), expected="printable text")
    # Zero-width and direction marks: two names that look the same would be two people.
    hidden = sorted({f"U+{ord(c):04X}" for c in identity if unicodedata.category(c) == "Cf"})
    if hidden:
        raise InputError(
            "the name has invisible format characters",
            where=where,
            got=", ".join(hidden),
            expected="visible characters",
            fix="type the name instead of pasting it",
        )
    return identity


def identity_key(identity: str) -> str:
    """What identities are compared by: the same name typed or stored in another Unicode form is the same person."""
    return unicodedata.normalize("NFC", identity)


def check_identities(identities: Sequence[str], count: int) -> list[str]:
    if isinstance(identities, (str, bytes)) or not hasattr(identities, "__len__"):
        got = type(identities).__name__
        raise InputError("not a list", where="identities", got=got, expected=f"{count} strings")
    if len(identities) != count:
        got = f"{len(identities)} identities, {count} feature maps"
        raise InputError("one identity per feature map is needed", where="identities", got=got)
    return [check_identity(identity, f"identities[{i}]") for i, identity in enumerate(identities)]


def encode_metadata(metadata: object, where: str = "metadata") -> str:
    """As JSON; `InputError` where JSON cannot hold it or it exceeds 64 KiB."""
    if not isinstance(metadata, dict) or not all(isinstance(key, str) for key in metadata):
        raise InputError("not a dictionary with string keys", where=where, got=repr(metadata)[:80])
    try:
        text = json.dumps(metadata, allow_nan=False, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"JSON cannot hold it: {error}", where=where, expected="strings, finite numbers, booleans, None, lists"
        ) from error
    if len(text) > LARGEST_METADATA:
        expected = f"at most {LARGEST_METADATA} characters of JSON"
        raise InputError("too large", where=where, got=f"{len(text)} characters", expected=expected)
    return text


def decode_metadata(text: str) -> dict[str, Any]:
    try:
        metadata = json.loads(text)
    except ValueError as error:
        raise GalleryCorruptError("metadata is not JSON", where="metadata", got=repr(text[:40])) from error
    if not isinstance(metadata, dict):
        raise GalleryCorruptError("metadata is no dictionary", where="metadata", got=repr(text[:40]))
    return metadata


def check_ids(entry_ids: ArrayLike, where: str = "entry_ids") -> list[int]:
    """Entry ids as a list, from an int, a list or an integer array."""
    array = np.asarray(entry_ids)
    if not array.size:
        return []
    if array.ndim > 1 or array.dtype.kind not in "iu" or int(array.max()) > _LARGEST_ID:
        got = f"{array.dtype} {list(array.shape)}"
        raise InputError("not entry ids", where=where, got=got, expected="an integer or a one-dimensional list of them")
    return [int(entry) for entry in array.reshape(-1)]


def check_k(k: object) -> int:
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise OptionError("not a length of a list", where="k", got=repr(k), expected="an integer >= 1")
    return int(k)


def features_crc(blob: bytes) -> int:
    return zlib.crc32(blob)


def head_crc(entry_id: int, identity_id: int, metadata: str) -> int:
    return zlib.crc32(metadata.encode(), zlib.crc32(struct.pack("<qq", entry_id, identity_id)))


def identity_crc(identity_id: int, name: str) -> int:
    return zlib.crc32(name.encode(), zlib.crc32(struct.pack("<q", identity_id)))


def state_crc(sequence: int, last_id: int, count: int, digest: int) -> int:
    return zlib.crc32(struct.pack("<qqqq", sequence, last_id, count, digest))


def decode_features(blob: bytes, strips: int, dims: int) -> NDArray[np.float32]:
    """Read-only `[s, d]` over the blob's bytes, which are little-endian everywhere."""
    return np.frombuffer(blob, "<f4").reshape(strips, dims).astype(np.float32, copy=False)
