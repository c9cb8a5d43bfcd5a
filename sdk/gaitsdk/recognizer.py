"""Recognizer: enroll, identify, verify, search, rerank, embed. The same verbs in-process and against Triton."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gaitsdk import pipeline
from gaitsdk.errors import GaitError, InputError, OptionError
from gaitsdk.gallery.entries import check_identity
from gaitsdk.gallery.stores import default_gallery as default_gallery
from gaitsdk.gallery.stores import open_for
from gaitsdk.results import Identification, Verification, identifications
from gaitsdk.runtimes.retries import RETRIES, TIMEOUT
from gaitsdk.walks import Walks, is_list_of_sequences, read_walks

if TYPE_CHECKING:
    from types import TracebackType

    from gaitsdk.bundle import Bundle
    from gaitsdk.engine import Description, Engine
    from gaitsdk.gallery import Gallery
    from gaitsdk.pipeline import Answers, Features, Silhouettes
    from gaitsdk.rerankers import Reranker

TOP_K = 10


class Recognizer:
    """Says who people are by their gait.

    Silhouettes are `[T, H, W]` arrays (bool, 0/1 or 0..255; raw masks are normalised, already normalised `[T, S, S]`
    ones are taken as they are), lists of frames, PNG files or folders; see `gaitsdk.silhouettes.prepare`. A model of
    three maps per frame (`description.channels`) reads `[T, 3, S, S]` from `gaitsdk.silhouettes.stack_maps` instead.
    Where several sequences are allowed, pass a list of them.

    May be used from several threads. Close it, or use it as a context manager.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str] | Bundle | None = None,
        *,
        runtime: str = "auto",
        device: str = "auto",
        gallery: str | os.PathLike[str] | Gallery | None = None,
        reranker: str | Reranker = "cargait",
        threads: int | None = None,
    ) -> Recognizer:
        """Everything in this process.

        Args:
            bundle: a folder NAME.gait, a Bundle, or None for the shipped one.
            runtime: "auto", "onnx", "torch", "torchscript", ...: what executes the networks.
            device: "auto", "cpu", "cuda:0", ...
            gallery: a file (made where it is missing), ":memory:" to keep nothing, or None for `default_gallery()`.
            reranker: "cargait", "none", "classifier", "k-reciprocal", "lbr", "gcr" or "query-expansion" with its own
                options, or what `gaitsdk.rerankers.create` made. The first K candidates are re-ordered by what is in
                them alone (scope "list"); where the bundle has no network that tells K, it is 10.
            threads: for the networks; None = the runtime's default.

        Raises:
            BundleError, UnknownRuntimeError, RuntimeUnavailableError, GalleryError, OptionError.
        """
        from gaitsdk.bundle import Bundle
        from gaitsdk.engine import LocalEngine
        from gaitsdk.gallery import Gallery
        from gaitsdk.rerankers import check_reranker, create_reranker
        from gaitsdk.runtimes import open_runtime

        model = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        if isinstance(reranker, str):
            check_reranker(reranker, model)
        if gallery is None or isinstance(gallery, (str, os.PathLike)):
            gallery = open_for(model, gallery)
        elif not isinstance(gallery, Gallery):
            raise InputError(
                "not a gallery", where="gallery", got=type(gallery).__name__, expected="a path or a Gallery"
            )
        networks = open_runtime(model, runtime=runtime, device=device, threads=threads)
        return cls(LocalEngine(model, networks, create_reranker(reranker, model, networks), gallery))

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        token: str | None = None,
        timeout: float = TIMEOUT,
        retries: int = RETRIES,
        ca: str | os.PathLike[str] | None = None,
        cert: str | os.PathLike[str] | None = None,
        key: str | os.PathLike[str] | None = None,
        headers: Mapping[str, str] | None = None,
        plaintext_token: bool = False,
    ) -> Recognizer:
        """The same verbs against a Triton server that `gaitsdk serve` started.

        Args:
            url: "grpc://host:port", "http://host:port", "grpcs://" and "https://" for TLS, or "host:port" (gRPC).
            token: sent as a bearer token with every request.
            timeout: seconds for a request with all of its attempts; n times as long for a call that is split into n.
            retries: further attempts after an error that may pass; enrolments and deletions are never sent twice.
            ca: file of certificates that vouch for the server; cert, key: the client's own, where it is asked for them.
            headers: more headers (gRPC: metadata), such as the key of Triton's restricted APIs.
            plaintext_token: allow token and headers without TLS to other hosts than this one.

        Raises:
            ServerUnavailableError: nobody answers there (within two seconds). TlsError, AccessDeniedError: somebody
            does, but there is no trust. OptionError: unusable address or files, or a token in the clear.
        """
        from gaitsdk.runtimes.addresses import Security
        from gaitsdk.runtimes.triton import RemoteEngine

        security = Security(token, headers or {}, ca, cert, key, plaintext_token)
        return cls(RemoteEngine(url, security, timeout=timeout, retries=retries))

    @property
    def description(self) -> Description:
        """Model, runtime, device and re-ranker really in use."""
        return self._engine.description

    def enroll(self, identity: str, silhouettes: Any) -> list[int]:
        """Adds one entry per sequence to the gallery; durable when it returns.

        Args:
            identity: any non-empty name.
            silhouettes: a sequence, or a list of sequences.

        Returns:
            The new entries' ids.
        """
        check_identity(identity)
        return self._engine.enroll(identity, self._prepare(silhouettes).sequences)

    def identify(
        self,
        silhouettes: Any,
        top_k: int = TOP_K,
        *,
        k: int | None = None,
        threshold: float | None = None,
        min_sequence: int | None = None,
    ) -> Identification:
        """Who this one sequence shows.

        Args:
            silhouettes: one sequence.
            top_k: candidates wanted; fewer where the gallery has fewer entries.
            k: length of the list that is re-ranked; None = what the bundle's re-ranker was trained for.
            threshold: known means distance <= threshold; None = the bundle's calibration.
            min_sequence: the commit that the gallery must have reached; this recognizer's own changes it always has.

        Raises:
            SilhouetteError: the input is unusable; EmptyGalleryError: nobody is enrolled; OptionError: bad numbers;
            GalleryBehindError: the gallery has not reached that commit.
        """
        return self._identify(self._one(silhouettes), top_k, k, threshold, min_sequence)[0]

    def identify_many(
        self,
        sequences: Sequence[Any],
        top_k: int = TOP_K,
        *,
        k: int | None = None,
        threshold: float | None = None,
        min_sequence: int | None = None,
    ) -> list[Identification]:
        """Like `identify` for each of a list of sequences of any lengths, in batches; the answers are the same."""
        return self._identify(self._many(sequences).check(), top_k, k, threshold, min_sequence)

    def verify(self, first: Any, second: Any, *, threshold: float | None = None) -> Verification:
        """Whether two sequences show the same person, by the re-ranker's distance of the pair.

        Raises:
            OptionError: the re-ranker compares a candidate with the others of its list, and here are none.
        """
        pair = self._pair(first, second)
        cut = self._engine.verify_threshold() if threshold is None else pipeline.check_threshold(threshold)
        features = self._engine.embed(pair)
        return self._verification(self._engine.rerank(features[:1], features[1:][None]), cut)

    def embed(self, silhouettes: Any) -> Features:
        """`F [s, d]` float32 of one sequence, `[n, s, d]` of a list of n."""
        walks = self._prepare(silhouettes)
        features = self._engine.embed(walks.sequences)
        return features[0] if walks.single else features

    def search(
        self, features: Features, k: int = TOP_K, *, min_sequence: int | None = None
    ) -> tuple[NDArray[np.int64], Features]:
        """The shortlist alone: `F [s, d]` or `[n, s, d]` -> entry ids and distances, `[n, min(k, count)]` each."""
        batch, _ = self._features(features, "features", 3)
        return self._engine.search(batch, pipeline.check_count(k, "k"), pipeline.check_sequence(min_sequence))

    def rerank(self, probe: Features, candidates: Features) -> Features:
        """The re-ranker alone: `F [s, d]` with `[K, s, d]` -> `[K]`; `[n, s, d]` with `[n, K, s, d]` -> `[n, K]`."""
        probes, lists, single = self._lists(probe, candidates)
        distances = self._engine.rerank(probes, lists)
        return distances[0] if single else distances

    def delete(self, identity: str) -> int:
        """Deletes an identity with all its entries; gives their number. UnknownIdentityError where there is none."""
        return self._engine.delete(identity)

    def identities(self) -> list[str]:
        """Who is enrolled, sorted."""
        return self._engine.identities()

    @property
    def count(self) -> int:
        """Number of entries in the gallery."""
        return self._engine.count()

    @property
    def gallery_sequence(self) -> int:
        """Number of the gallery's newest commit. Passed as `min_sequence` to any recognizer of this gallery, it sees
        all that was enrolled and deleted until now."""
        return self._engine.gallery_sequence()

    def close(self) -> None:
        """Releases the networks, the gallery and connections."""
        self._engine.close()

    def __enter__(self) -> Recognizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # What comes before and after the engine's part of a verb; `AsyncRecognizer` has the same.

    def _identify(self, asked: Walks, *wishes: Any) -> list[Identification]:
        options = self._options(*wishes)
        try:
            answers = self._engine.identify(asked.sequences, *options, meanwhile=asked.look)
        except GaitError:
            if refusal := asked.refusal():  # what is wrong with the walk comes first, as the client says it
                raise refusal from None
            raise
        return self._results(answers, asked.check(), options[1])

    def _options(
        self, top_k: int, k: int | None, threshold: float | None, min_sequence: int | None
    ) -> tuple[int, int, float | None, int]:
        length = self.description.k if k is None else pipeline.check_count(k, "k", maximum=pipeline.MAX_K)
        listed, reached = pipeline.check_count(top_k, "top_k"), pipeline.check_sequence(min_sequence)
        return listed, length, pipeline.check_threshold(threshold), reached

    def _results(self, answers: Answers, asked: Walks, k: int) -> list[Identification]:
        return identifications(
            answers,
            self.description,
            k=k,
            probes=asked.pictures,
            quality=asked.reports,
            thumbnails=self._engine.thumbnails,
        )

    def _one(self, silhouettes: Any) -> Walks:
        if self._is_list(silhouettes):
            raise InputError(
                "this is a list of sequences",
                where="silhouettes",
                got=f"{len(silhouettes)} sequences",
                fix="use identify_many",
            )
        return read_walks(silhouettes, self.description)

    def _many(self, sequences: Any) -> Walks:
        if not self._is_list(sequences):
            raise InputError(
                "not a list of sequences",
                where="sequences",
                got=type(sequences).__name__,
                fix="use identify for one sequence, list(...) for an iterator",
            )
        return read_walks(sequences, self.description)

    def _pair(self, first: Any, second: Any) -> list[Silhouettes]:
        self._check_compares_pairs()
        pair = []
        for where, value in (("first", first), ("second", second)):
            if self._is_list(value):
                raise InputError("verify compares two single sequences", where=where, got="a list of sequences")
            try:
                pair.append(self._prepare(value).sequences[0])
            except InputError as error:
                error.args = (f"{where} sequence: {error}",)
                raise
        return pair

    def _verification(self, distances: Features, cut: float | None) -> Verification:
        distance = float(distances[0, 0])
        decision = {"known": "same", "unknown": "different"}.get(pipeline.decision(distance, cut), "uncalibrated")
        about = self.description
        return Verification(
            distance=distance,
            decision=decision,
            threshold=cut,
            reranker=about.reranker,
            runtime=about.runtime,
            device=about.device,
            fingerprint=about.fingerprint,
        )

    def _check_compares_pairs(self) -> None:
        from gaitsdk.rerankers import compares_pairs

        if not compares_pairs(self.description.reranker):
            raise OptionError(
                "this re-ranker judges a candidate by the others of its list, it has no distance for a pair",
                where="verify",
                got=f"re-ranker {self.description.reranker}",
                fix="load with reranker='cargait', 'classifier' or 'none' to verify",
            )

    def _is_list(self, value: Any) -> bool:
        return is_list_of_sequences(value, self.description.channels)

    def _prepare(self, value: Any) -> Walks:
        return read_walks(value, self.description).check()

    def _lists(self, probe: Any, candidates: Any) -> tuple[Features, Features, bool]:
        """Probes, a list of candidates for each, and whether it was a single one."""
        probes, single = self._features(probe, "probe", 3)
        lists, _ = self._features(candidates, "candidates", 4)
        if len(probes) != len(lists):
            raise InputError(
                "as many lists of candidates as probes are needed",
                where="candidates",
                got=f"{len(lists)} lists",
                expected=f"{len(probes)}",
            )
        return probes, lists, single

    def _features(self, value: Any, where: str, rank: int) -> tuple[Features, bool]:
        """Feature maps of this model as a batch, and whether it was a single one."""
        shape = (self.description.strips, self.description.dims)
        try:
            array = np.asarray([] if value is None else value, np.float32)
        except (TypeError, ValueError):
            array = np.zeros(0, np.float32)
        single = array.ndim == rank - 1
        array = array[None] if single else array
        finite = bool(np.isfinite(array).all())
        if array.ndim != rank or array.shape[-2:] != shape or 0 in array.shape or not finite:
            described = f"shape {np.shape(value)}" if hasattr(value, "shape") else type(value).__name__
            raise InputError(
                "not feature maps of this model",
                where=where,
                got=described if finite else f"{described} with NaN or infinity",
                expected=f"[..., {shape[0]}, {shape[1]}] finite float32",
                fix="pass what embed() returns",
            )
        return array, single
