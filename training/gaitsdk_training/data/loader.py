"""Training batches that are loaded while the step before them runs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from gaitsdk.errors import OptionError
from gaitsdk_training.data.dataset import SequenceDataset, Silhouettes
from gaitsdk_training.data.frames import SKIP, batch_sampling, load_batch
from gaitsdk_training.data.sampler import PxKSampler

#: Batches that are loaded ahead of the step, per worker.
_AHEAD = 2


@dataclass(frozen=True)
class Batch:
    """One training batch, or a process's share of it.

    Attributes:
        index: its number, from 0.
        chosen: int64 [B], positions of its sequences in the data set.
        labels: int64 [B].
        silhouettes: uint8 [B, T, S, S], or [B, T, C, S, S] of C > 1 maps.
        seed: for whatever is random in the step itself (augmentation, dropout).
    """

    index: int
    chosen: NDArray[np.int64]
    labels: NDArray[np.int64]
    silhouettes: Silhouettes
    seed: int


class BatchLoader:
    """Batches without end, loaded by threads while the caller works; use it in a `with` block, or `close` it.

    Batch i depends on the seeds and i alone, not on the number of workers, nor on where the run began. Threads, not
    processes: copying frames and PyTorch's steps both let go of the interpreter's lock, and nothing has to be copied
    between processes or forked.

    Args:
        dataset: training sequences; packed ones (`pack`) are read while training, others lie in memory.
        sampler: which sequences make up a batch.
        frames, sampling: as for `load_batch`. Unfixed sampling, too: `frames` is (least, most) then, and each batch has
            another T, the same for all of its sequences.
        skip: as for `frame_indices`.
        seed: of the choice of frames.
        start: number of the first batch; that of the checkpoint where a run goes on.
        workers: threads; 0 loads in the caller's, when a batch is asked for.
        share: (rank, world): every world-th sequence of each batch, from rank on.

    Attributes:
        waited: seconds that the caller has waited for batches.
        served: batches given.
    """

    def __init__(
        self,
        dataset: SequenceDataset,
        sampler: PxKSampler,
        *,
        frames: int | tuple[int, int],
        sampling: str,
        skip: int = SKIP,
        seed: int = 0,
        start: int = 0,
        workers: int = 2,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        for name, value in (("workers", workers), ("start", start)):
            if value < 0:
                raise OptionError("must not be negative", where=f"BatchLoader.{name}", got=value)
        self._dataset, self._sampler = dataset, sampler
        self._frames, self._sampling, self._skip = frames, sampling, skip
        self._seed, self._share = seed, share
        self._next = start
        self._waiting: deque[Future[Batch]] = deque()
        self._threads = ThreadPoolExecutor(workers, "batches") if workers else None
        self._ahead = _AHEAD * workers
        self._closed = False
        self.waited = 0.0
        self.served = 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            GaitError: whatever went wrong when it was loaded; the loader is closed then.
        """
        if self._closed:
            raise StopIteration
        started = time.perf_counter()
        try:
            batch = self._loaded()
        except BaseException:
            self.close()
            raise
        self.waited += time.perf_counter() - started
        self.served += 1
        return batch

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the threads; batches that were loaded ahead are dropped. A closed loader gives nothing any more."""
        self._closed = True
        self._waiting.clear()
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)

    def load(self, index: int) -> Batch:
        """Batch number `index`, now and in this thread."""
        rank, world = self._share
        chosen = self._sampler.batch(index)
        rng = np.random.default_rng((self._seed, index, 1))
        count, sampling = batch_sampling(rng, self._frames, self._sampling)
        silhouettes = load_batch(self._dataset, chosen, count, sampling, rng, self._share, self._skip)
        seed = int(rng.integers(2**62))
        mine = chosen[rank::world]
        return Batch(index, mine, self._dataset.labels[mine], silhouettes, seed)

    def _loaded(self) -> Batch:
        if self._threads is None:
            self._next += 1
            return self.load(self._next - 1)
        while len(self._waiting) <= self._ahead:
            self._waiting.append(self._threads.submit(self.load, self._next))
            self._next += 1
        return self._waiting.popleft().result()
