"""What somebody who wrote an unknown name probably meant; the end of many error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: object, words: Iterable[str]) -> str | None:
    """A question that names the one of `words` that `word` is most probably a slip of, or None."""
    near = difflib.get_close_matches(str(word).lower(), list(words), n=1, cutoff=0.4)
    return f"did you mean {near[0]!r}?" if near else None


def suggest(word: object, words: Iterable[str]) -> str:
    """The same question, where there is one, and all of the words."""
    known = sorted(words)
    listed = f"known are {', '.join(known) or '(none)'}"
    return " ".join(each for each in (did_you_mean(word, known), listed) if each)
