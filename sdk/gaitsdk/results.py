"""What a Recognizer answers: plain frozen data with ways out (dict, table, picture)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gaitsdk.errors import InputError, MissingDependencyError, OptionError, RuntimeUnavailableError

if TYPE_CHECKING:
    import os

    import pandas as pd
    from PIL.Image import Image

    from gaitsdk.bundle import Bundle
    from gaitsdk.engine import Description
    from gaitsdk.explain import Explanation
    from gaitsdk.pipeline import Answers, Features

#: Entry ids -> one silhouette `[S, S]` uint8 each, or None where the gallery has no picture of the entry.
Thumbnails = Callable[[list[int]], list["NDArray[np.uint8] | None"]]
#: Entry id -> the bundle, F `[s, d]` of the probe and F `[s, d]` of the entry: what a pair's distances rest on.
Evidence = Callable[[int], "tuple[Bundle, Features, Features]"]


@dataclass(frozen=True)
class Candidate:
    """One gallery entry in the answer.

    Attributes:
        identity: who was enrolled under it.
        entry_id: which of the identity's entries.
        rank: 1 = best, after re-ranking.
        distance: what ranks it: the re-ranker's where `reranked`, else the shortlist's. The two are never comparable.
        reranked: whether the re-ranker scored it.
        shortlist_distance: mean over strips of the Euclidean distance between feature maps.
        shortlist_rank: 1 = nearest before re-ranking.
    """

    identity: str
    entry_id: int
    rank: int
    distance: float
    reranked: bool
    shortlist_distance: float
    shortlist_rank: int


@dataclass(frozen=True, eq=False)
class Identification:
    """Who a probe is, or that it is unknown, and what the answer rests on.

    Attributes:
        candidates: best first.
        decision: "known", "unknown", or "uncalibrated" where no threshold was calibrated or given.
        threshold: on `candidates[0].distance`, or None.
        reranker, k: the re-ranker really used ("none") and the length of its list.
        runtime, device: what really executed the networks.
        fingerprint: of the model.
        gallery_size: entries searched.
        gallery_sequence: commit number of the gallery: all enrolments and deletions up to it are in the answer.
        timings_ms: stage -> milliseconds, for the whole batch that the probe was part of (`batch` probes).
        quality: the quality report of the probe, as a dict.
        probe: one normalised frame of the probe, for pictures.
    """

    candidates: tuple[Candidate, ...]
    decision: str
    threshold: float | None
    reranker: str
    k: int
    runtime: str
    device: str
    fingerprint: str
    gallery_size: int
    gallery_sequence: int
    timings_ms: dict[str, float]
    batch: int = 1
    quality: dict[str, Any] = field(default_factory=dict)
    probe: NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)
    _thumbnails: Thumbnails | None = field(default=None, repr=False, compare=False)
    _evidence: Evidence | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave the connection to the gallery behind, and with it the candidates' pictures."""
        return {**self.__dict__, "_thumbnails": None, "_evidence": None}

    @property
    def identity(self) -> str:
        """The first candidate's identity, whatever the decision."""
        return self.candidates[0].identity

    @property
    def initial(self) -> Candidate:
        """The first before re-ranking, of the candidates listed."""
        return min(self.candidates, key=lambda each: each.shortlist_rank)

    @property
    def known(self) -> bool:
        """True only where a threshold exists and the first candidate's distance does not exceed it."""
        return self.decision == "known"

    def to_dict(self) -> dict[str, Any]:
        """Everything but pictures, JSON-able."""
        hidden = ("probe", "_thumbnails", "_evidence", "candidates")
        rest = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in hidden}
        candidates = [asdict(each) for each in self.candidates]
        return {"identity": self.identity, "known": self.known, **rest, "candidates": candidates}

    def to_pandas(self) -> pd.DataFrame:
        """One row per candidate (needs pandas: the extra `ui`)."""
        try:
            import pandas as pd
        except ImportError as error:
            raise MissingDependencyError(
                "to_pandas needs pandas, which is not installed", fix="pip install 'gaitsdk[ui]'"
            ) from error
        return pd.DataFrame([asdict(each) for each in self.candidates])

    def plot(self, truth: str | None = None) -> Image:
        """The ranked list before and after re-ranking, one silhouette per candidate, as in CarGait's Figure 1.

        Args:
            truth: the probe's identity where it is known: candidates are framed green (right) or red (wrong).
        """
        from gaitsdk.pictures import ranked_lists

        return ranked_lists([self], [truth])

    def save(self, path: str | os.PathLike[str], truth: str | None = None) -> Path:
        """Writes the picture (.png, .jpg) or the data (.json) and gives the path.

        Raises:
            OptionError: another suffix, or no such folder for a picture. InputError: it cannot be written.
        """
        if Path(path).suffix.lower() != ".json":
            from gaitsdk.pictures import save_picture

            return save_picture(self.plot(truth), path)
        try:
            Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n")
        except OSError as error:
            raise InputError("the file cannot be written", where=str(path), got=str(error)) from error
        return Path(path)

    def explain(self, candidate: int | Candidate = 1) -> Explanation:
        """Why CarGait says what it says of one candidate: strip similarities before and after cross-attention, and the
        attention itself (CarGait's Figure 4). Needs torch.

        Args:
            candidate: one of `candidates`, or its rank (1 = best). One beyond the re-ranked list is explained too.

        Raises:
            OptionError: no such candidate, or another re-ranker than CarGait answered.
            RuntimeUnavailableError: the answer came from a Triton server, or is a copy or pickle of one.
            UnknownIdentityError: the candidate was deleted meanwhile. GalleryError: the recogniser is closed.
            MissingDependencyError: torch is not installed. BundleError: the weights were changed since the loading.
        """
        from gaitsdk.explain import explain

        chosen = self._chosen(candidate)
        if self.reranker != "cargait":
            raise OptionError(
                "only CarGait has attention to explain",
                where="Identification.explain",
                got=f"re-ranker {self.reranker!r}",
                fix='identify with Recognizer.load(reranker="cargait")',
            )
        if self._evidence is None:
            raise RuntimeUnavailableError(
                "this result cannot reach the feature maps that it rests on",
                where="Identification.explain",
                got="a result over Triton, or a copy or pickle",
                fix="identify with Recognizer.load(bundle, gallery=...) and explain before copying; or pass the maps: "
                "gaitsdk.explain.explain(Bundle.load(bundle), rec.embed(probe), rec.embed(enrolled))",
            )
        bundle, probe, entry = self._evidence(chosen.entry_id)
        frame = None if self._thumbnails is None else self._thumbnails([chosen.entry_id])[0]
        names = ("probe", f"{chosen.identity} (rank {chosen.rank}, was {chosen.shortlist_rank})")
        return explain(bundle, probe, entry, names=names, frames=(self.probe, frame))

    def _chosen(self, candidate: int | Candidate) -> Candidate:
        if isinstance(candidate, Candidate):
            found = [each for each in self.candidates if each == candidate]
        else:
            whole = isinstance(candidate, (int, np.integer)) and not isinstance(candidate, bool)
            found = [each for each in self.candidates if whole and each.rank == candidate]
        if not found:
            raise OptionError(
                "no such candidate",
                where="candidate",
                got=repr(candidate),
                expected=f"a rank from 1 to {len(self.candidates)}, or one of this result's candidates",
            )
        return found[0]

    def thumbnails(self) -> list[NDArray[np.uint8] | None]:
        """One silhouette `[S, S]` uint8 per candidate, None where the gallery keeps none."""
        if self._thumbnails is None:
            return [None] * len(self.candidates)
        return self._thumbnails([each.entry_id for each in self.candidates])


@dataclass(frozen=True)
class Verification:
    """Whether two sequences show the same person.

    Attributes:
        distance: the re-ranker's (or, without one, the mean-of-strips) distance.
        decision: "same", "different", or "uncalibrated" where no threshold was calibrated or given.
    """

    distance: float
    decision: str
    threshold: float | None
    reranker: str
    runtime: str
    device: str
    fingerprint: str

    @property
    def same(self) -> bool:
        """True only where a threshold exists and the distance does not exceed it."""
        return self.decision == "same"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"same": self.same, **asdict(self)}


def identifications(
    answers: Answers,
    description: Description,
    *,
    k: int,
    probes: list[NDArray[np.uint8]],
    quality: list[dict[str, Any]],
    thumbnails: Thumbnails | None,
) -> list[Identification]:
    """Turns the arrays of a batch into one Identification per probe."""
    return [
        Identification(
            candidates=_candidates(answers, row),
            decision=answers.decisions[row],
            threshold=answers.threshold,
            reranker=description.reranker,
            k=k if description.reranker != "none" else 0,
            runtime=description.runtime,
            device=description.device,
            fingerprint=answers.fingerprint,
            gallery_size=answers.gallery_size,
            gallery_sequence=answers.gallery_sequence,
            timings_ms=answers.timings_ms,
            batch=len(answers.decisions),
            quality=quality[row],
            probe=probes[row],
            _thumbnails=thumbnails,
            _evidence=answers.evidence[row] if answers.evidence else None,
        )
        for row in range(len(answers.decisions))
    ]


def _candidates(answers: Answers, row: int) -> tuple[Candidate, ...]:
    columns = zip(
        answers.identities[row],
        answers.entry_ids[row],
        answers.distances[row],
        answers.shortlist_distances[row],
        answers.shortlist_ranks[row],
        strict=True,
    )
    return tuple(
        Candidate(
            identity=str(identity),
            entry_id=int(entry_id),
            rank=rank,
            distance=float(distance),
            reranked=rank <= answers.reranked,
            shortlist_distance=float(shortlist_distance),
            shortlist_rank=int(shortlist_rank),
        )
        for rank, (identity, entry_id, distance, shortlist_distance, shortlist_rank) in enumerate(columns, 1)
    )
