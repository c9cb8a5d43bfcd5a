"""What a Recognizer stands on: one protocol, with a local engine here and a remote one in runtimes/triton.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from gaitsdk import pipeline
from gaitsdk.calibration import threshold_for
from gaitsdk.checks import frame_shape
from gaitsdk.errors import EmptyGalleryError
from gaitsdk.pipeline import Answers, Features, Silhouettes
from gaitsdk.rerankers import list_length

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gaitsdk.bundle import Bundle
    from gaitsdk.gallery import Gallery
    from gaitsdk.rerankers import Reranker
    from gaitsdk.runtimes import NetworkRuntime

#: What may be done while an answer is on its way.
Meanwhile = Callable[[], object]


@dataclass(frozen=True)
class Description:
    """What really answers: stands in every result.

    Attributes:
        fingerprint: of the model.
        size: S, height and width of a normalised silhouette in pixels.
        strips, dims: shape of a feature map.
        reranker: its name, with options that are not the defaults; "none" where there is none.
        k: length of the re-ranked list.
        runtime, device: what executes the networks, as found at load (not as asked for).
        channels: C, maps per frame: 1 (the silhouette) or 3 (limbs, joints, silhouette).
    """

    fingerprint: str
    size: int
    strips: int
    dims: int
    reranker: str
    k: int
    runtime: str
    device: str
    channels: int = 1

    @property
    def frame(self) -> tuple[int, ...]:
        """The shape of one frame: `(S, S)`, or `(C, S, S)` where C > 1 maps enter."""
        return frame_shape(self.size, self.channels)


class Engine(Protocol):
    """Embeds, searches, re-ranks and keeps the gallery. Sequences are normalised already: `[T, S, S]` uint8,
    or `[T, C, S, S]` for a model of C > 1 maps."""

    @property
    def description(self) -> Description: ...

    def embed(self, sequences: Sequence[Silhouettes]) -> Features:
        """n sequences of any lengths -> `F [n, s, d]`."""
        ...

    def identify(
        self,
        sequences: Sequence[Silhouettes],
        top_k: int,
        k: int,
        threshold: float | None,
        min_sequence: int = 0,
        meanwhile: Meanwhile | None = None,
    ) -> Answers:
        """Calls `meanwhile`, at the latest before it answers; what that raises it raises, too. It looks at the
        silhouettes, for which a remote engine has the time while its server works. May be called more than once."""
        ...

    def search(self, features: Features, k: int, min_sequence: int = 0) -> tuple[NDArray[np.int64], Features]:
        """`F [n, s, d]` -> entry ids `[n, k]`, distances `[n, k]`."""
        ...

    def rerank(self, probe: Features, candidates: Features) -> Features:
        """`[n, s, d]`, `[n, K, s, d]` -> the re-ranker's distances `[n, K]`."""
        ...

    def verify_threshold(self) -> float | None:
        """The bundle's calibration for pairs, or None; CalibrationError where it is for another re-ranker only."""
        ...

    def enroll(self, identity: str, sequences: Sequence[Silhouettes]) -> list[int]:
        """Durable when it returns; gives the entry ids."""
        ...

    def delete(self, identity: str) -> int:
        """Gives the number of entries deleted."""
        ...

    def identities(self) -> list[str]: ...

    def thumbnails(self, entry_ids: list[int]) -> list[Silhouettes | None]:
        """One enrolled frame `[S, S]` per entry, for pictures; None where there is none."""
        ...

    def count(self) -> int:
        """Number of entries."""
        ...

    def gallery_sequence(self) -> int:
        """Number of the gallery's newest commit."""
        ...

    def close(self) -> None: ...


def describe(bundle: Bundle, reranker: str, runtime: str, device: str) -> Description:
    """What answers with this bundle: one definition, in-process and in Triton."""
    return Description(
        fingerprint=bundle.fingerprint,
        size=bundle.size,
        strips=bundle.strips,
        dims=bundle.dims,
        reranker=reranker,
        k=list_length(reranker, bundle),
        runtime=runtime,
        device=device,
        channels=bundle.manifest.input.channels,
    )


class LocalEngine:
    """Everything in this process: a runtime for the networks, a re-ranker and a gallery."""

    def __init__(self, bundle: Bundle, runtime: NetworkRuntime, reranker: Reranker | None, gallery: Gallery) -> None:
        self._bundle, self._runtime, self._reranker, self._gallery = bundle, runtime, reranker, gallery
        self._length_handling = bundle.manifest.length_handling
        self._calibration = bundle.manifest.calibration
        name = "none" if reranker is None else reranker.name
        self.description = describe(bundle, name, runtime.name, runtime.device)

    def embed(self, sequences: Sequence[Silhouettes]) -> Features:
        return pipeline.embed_many(self._runtime.embed, sequences, length_handling=self._length_handling)

    def identify(
        self,
        sequences: Sequence[Silhouettes],
        top_k: int,
        k: int,
        threshold: float | None,
        min_sequence: int = 0,
        meanwhile: Meanwhile | None = None,
    ) -> Answers:
        if meanwhile is not None:
            meanwhile()
        pipeline.check_reached(self._gallery, min_sequence)
        size = self._gallery.count
        if not size:
            raise EmptyGalleryError(
                "nobody is enrolled", where="gallery", fix="enroll at least one identity before identifying"
            )
        if threshold is None:
            threshold = threshold_for(
                self._calibration,
                task="identify",
                reranker=self.description.reranker,
                k=k,
                gallery_size=size,
            )
        timings: dict[str, float] = {}
        with _timed(timings, "embed"):
            features = self.embed(sequences)
        with _timed(timings, "shortlist"):
            found = pipeline.shortlist(self._gallery, features, top_k, k if self._reranker else 0)
        with _timed(timings, "rerank"):
            distances = self._reranker.rescore(features, found.features) if self._reranker else None
        answers = pipeline.decide(
            found,
            distances,
            top_k=top_k,
            threshold=threshold,
            fingerprint=self.description.fingerprint,
            gallery_size=size,
        )
        # Copies of the rows: a result that is kept does not keep the feature maps of the whole batch.
        evidence = [partial(self._evidence, row.copy()) for row in features]
        return replace(answers, timings_ms=timings, evidence=evidence)

    def _evidence(self, probe: Features, entry_id: int) -> tuple[Bundle, Features, Features]:
        """What a candidate's distances rest on, read when a result is asked to explain itself."""
        return self._bundle, probe, self._gallery.get([entry_id])[0]

    def search(self, features: Features, k: int, min_sequence: int = 0) -> tuple[NDArray[np.int64], Features]:
        pipeline.check_reached(self._gallery, min_sequence)
        return self._gallery.search(features, k)

    def rerank(self, probe: Features, candidates: Features) -> Features:
        if self._reranker is None:
            return pipeline.strip_distances(probe, candidates)
        return self._reranker.rescore(probe, candidates)

    def verify_threshold(self) -> float | None:
        about = self.description
        return threshold_for(self._calibration, task="verify", reranker=about.reranker, k=about.k, gallery_size=1)

    def enroll(self, identity: str, sequences: Sequence[Silhouettes]) -> list[int]:
        features = self.embed(sequences)
        return pipeline.enroll(self._gallery, identity, sequences, features)

    def delete(self, identity: str) -> int:
        return pipeline.delete(self._gallery, identity)

    def identities(self) -> list[str]:
        return self._gallery.identities()

    def thumbnails(self, entry_ids: list[int]) -> list[Silhouettes | None]:
        return pipeline.thumbnails(self._gallery, entry_ids, self.description.size)

    def count(self) -> int:
        return self._gallery.count

    def gallery_sequence(self) -> int:
        return self._gallery.sequence

    def close(self) -> None:
        self._gallery.close()
        self._runtime.close()


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    timings[stage] = (time.perf_counter() - started) * 1e3
