"""What client and server agree on: names of models, limits, and how a typed error crosses the wire.

Triton gives an error one string. Ours is a JSON object: the class's name and the parts of the message, so that the
client raises the very error that the server met. The core puts words before it ("in ensemble 'identify', ...").
"""

from __future__ import annotations

import json
import re
from typing import Any

from gaitsdk import errors
from gaitsdk.errors import CalibrationError, GaitError, GalleryError, InputError, QueueFullError, ServerError

#: Models of the repository.
EMBED, SHORTLIST, RERANK, DECIDE, IDENTIFY, GALLERY = "embed", "shortlist", "rerank", "decide", "identify", "gallery"
#: One request or response, in bytes: what Triton's HTTP front end takes by default (64 MiB) less room for the header.
MAX_MESSAGE_BYTES = 60 * 2**20
#: Seconds to find out whether anybody is there.
CONNECT_TIMEOUT = 2.0

#: Longest list that a server gives. (The re-ranked one, whose feature maps are fetched, is bound by `pipeline.MAX_K`.)
MAX_TOP_K = 10_000

#: What stands in the tensor `numbers` of an identification (float64: a tensor of its own for each costs more than all
#: of them): NaN where there is no threshold, how many candidates were re-ranked, and the gallery's entries and commit.
NUMBERS = ("threshold", "reranked", "gallery_size", "gallery_sequence")

_FIELDS = ("what", "where", "got", "expected", "fix")
# Errors about what the caller sent or asked for, or that will pass. Others (a damaged bundle, a full disk) tell of the
# server's inside.
_FOR_CALLERS = (InputError, GalleryError, CalibrationError, QueueFullError)
#: Characters of a text that an answer repeats: gRPC carries errors in a header of 8 KB.
_LONGEST_TEXT = 500
_PATH = re.compile(r"(?<![\w.])/(?:[^\s/'\",;:)]+/)+[^\s'\",;:)]*")


def encode_error(error: Exception, request_id: str = "") -> str:
    """The JSON text of an error, for a server's answer. Paths of the server's machine are left out, and so is all
    about errors that are not the caller's business, who is told the request's id instead."""
    if not isinstance(error, _FOR_CALLERS):
        got = f"request {request_id}" if request_id else None
        error = ServerError("the server failed at this request", got=got, fix="the reason stands in the server's log")
    fields: dict[str, str] = {"error": type(error).__name__, "message": _for_callers(error)}
    for name in _FIELDS:
        value = getattr(error, name)
        if value is not None:
            fields[name] = _for_callers(value)
    return json.dumps(fields)


def _for_callers(part: object) -> str:
    text = str(part)
    shortened = text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."
    return _PATH.sub("<path>", shortened)


def decode_error(text: str) -> GaitError | None:
    """The error that `encode_error` wrote somewhere in `text`, or None where there is none."""
    start = text.find('{"error"')
    if start < 0:
        return None
    try:
        fields: Any = json.JSONDecoder().raw_decode(text, start)[0]
    except json.JSONDecodeError:
        return None
    kind = getattr(errors, str(fields.get("error")), None)
    if not (isinstance(kind, type) and issubclass(kind, GaitError)) or not fields.get("what"):
        return None
    parts = {name: str(fields[name]) for name in _FIELDS if name in fields}
    return kind(parts.pop("what"), **parts)
