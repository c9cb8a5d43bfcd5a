"""One line per event of a model: what happened, to which request, how long it took; no names, nothing of any body.

The lines go to the process's standard output, which it has from the server. Triton's own logger puts words before a
line, and its standard error is everybody's. Here a line is one write, and every line that begins with "{" is ours.
"""

from __future__ import annotations

import json
import os
import traceback
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from gaitsdk.errors import GaitError, GalleryError, InputError

#: Characters of a text in a line: clients choose some of them, and a pipe takes lines below 4 KiB whole.
MAX_TEXT = 256
#: Places of a traceback that are told.
_FRAMES = 6


class EventLog:
    """The log of one process of a model.

    Args:
        model: its name.
        log_format: "json", or "text" for people.
        descriptor: of the open file that takes the lines.
    """

    def __init__(self, model: str, log_format: str = "json", descriptor: int = 1) -> None:
        self._model, self._json, self._descriptor = model, log_format == "json", descriptor

    def write(self, event: str, level: str = "info", *, at: str | None = None, **fields: Any) -> None:
        """Writes a line; fields that are None are left out. A log that takes no line stops nobody.

        Args:
            at: when it happened, from `now`; None = at this moment.
        """
        line = {"time": at or now(), "level": level, "event": event, "model": self._model, **shortened(fields)}
        if self._json:
            text = json.dumps(line)
        else:
            rest = (f"{name}={json.dumps(value)}" for name, value in line.items() if name in fields)
            text = " ".join([line["time"], level, self._model, event, *rest])
        with suppress(OSError):
            os.write(self._descriptor, f"{text}\n".encode())


def now() -> str:
    """The time in UTC, to the millisecond: 2026-01-31T12:00:00.000Z."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def shortened(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that are not None, texts cut to `MAX_TEXT` characters."""
    cut = {name: value[:MAX_TEXT] if isinstance(value, str) else value for name, value in fields.items()}
    return {name: value for name, value in cut.items() if value is not None}


def error_fields(error: Exception) -> dict[str, Any]:
    """What a line tells of an error. Names and values stand in what an error about requests or galleries got, and may
    stand in the text of one that is not ours: neither is told."""
    if not isinstance(error, GaitError):
        frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
        places = [f"{Path(each.filename).name}:{each.lineno} in {each.name}" for each in frames]
        return {"error": type(error).__name__, "traceback": places}
    told = {"error": type(error).__name__, "what": error.what, "where": error.where, "expected": error.expected}
    return told if isinstance(error, (InputError, GalleryError)) else {**told, "got": error.got and str(error.got)}
