"""Loading training batches: the tree of pickles against the packed file, and how long a training step waits for them.

    python benchmarks/data_loading.py [--sequences 704] [--batches 15] [--steps 6]

Batches of P x K = 8 x 8 sequences with 30 frames each, from
  pickle.load      each sequence read by Python's own pickle, which executes whatever a file asks for: for comparison
                   only, on files that this script wrote
  restricted       the same through the SDK's restricted reader
  checked          the same, then checked and normalised: what reading a tree means in gaitsdk
  packed           the file that `gaitsdk_training.data.pack` writes
cold (the files are thrown out of the page cache before each batch; a virtual machine's host may still hold them) and
warm (the best of five readings after that). Then a quarter-width GaitSet is trained on these batches, and the share of
time that its steps wait is measured. Ways are measured in turns, so that a busy machine disturbs all alike. Writes
benchmarks/results/data_loading.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import pickle
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from gaitsdk import synthetic
from gaitsdk.datasets import SequenceRef, SequenceTree
from gaitsdk.models import create
from gaitsdk.safe_pickle import load_array
from gaitsdk.silhouettes import prepare
from gaitsdk_training.data import (
    BatchLoader,
    PackedSequences,
    PxKSampler,
    SequenceDataset,
    frame_indices,
    from_tree,
    load_batch,
    pack,
    to_input,
)
from gaitsdk_training.losses import triplet_info

RESULTS = Path(__file__).parent / "results" / "data_loading.json"
P, K, FRAMES, SAMPLING = 8, 8, 30, "fixed_unordered"
LENGTH = 80  # frames of a sequence, about CASIA-B's
#: A sequence and its file, which a loader looks up once and not for every batch.
Source = tuple[SequenceRef, Path]
READERS: dict[str, Callable[[Source], np.ndarray]] = {
    "pickle.load": lambda source: pickle.loads(source[1].read_bytes()),  # noqa: S301 (this script wrote it)
    "restricted": lambda source: load_array(source[1]),
    "checked": lambda source: prepare(source[0].load(), 64, min_frames=1).silhouettes,
}
#: Readings of a batch that is warm; the best one counts, for on a busy machine the others measure the neighbours.
REPEATS, LONG = 5, 0.3
#: A quarter of the published channels (32, 64, 128) and dimensions (256).
QUARTER = {"channels": (8, 16, 32), "dims": 64}


def write_tree(root: Path, sequences: int) -> None:
    """A CASIA-B-style tree: 16 identities x 11 views x as many types as it takes, 80 frames per sequence.

    The frames of one walk are repeated and its other views are mirrored or not: what counts here is the bytes.
    """
    per_identity = -(-sequences // 16)
    for number in range(1, 17):
        walk = synthetic.sequence(number, "nm-01", "090", frames=LENGTH // 2)
        for index in range(per_identity):
            kind, view = f"nm-{index // 11 + 1:02d}", synthetic.VIEWS[index % 11]
            folder = root / f"{number:03d}" / kind / view
            folder.mkdir(parents=True)
            frames = np.roll(np.concatenate([walk, walk[::-1]]), index, axis=0)[:, :, :: 1 if index % 2 else -1]
            with (folder / f"{view}.pkl").open("wb") as file:
                pickle.dump(np.ascontiguousarray(frames), file, protocol=4)


def batch_from_tree(
    sources: list[Source], read: Callable[[Source], np.ndarray], chosen: np.ndarray, seed: int
) -> np.ndarray:
    """As `load_batch`, each sequence read from its file: uint8 [64, 30, 64, 64]."""
    rng = np.random.default_rng(seed)
    batch = np.empty((len(chosen), FRAMES, 64, 64), np.uint8)
    for out, index in zip(batch, chosen, strict=True):
        sequence = read(sources[index])
        np.take(sequence, frame_indices(rng, len(sequence), FRAMES, SAMPLING), axis=0, out=out, mode="clip")
    return batch


def forget(files: Iterable[Path]) -> None:
    """Throws files out of the page cache (nothing may have them mapped)."""
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def cold_and_warm(load: Callable[[], np.ndarray]) -> tuple[np.ndarray, float, float]:
    """The batch, seconds of the first reading and of the best of those after it (one, where they take long)."""
    seconds = []
    for turn in range(1 + REPEATS):
        started = time.perf_counter()
        batch = load()
        seconds.append(time.perf_counter() - started)
        if turn and seconds[0] > LONG:
            break
    return batch, seconds[0], min(seconds[1:])


def measure_batches(tree: SequenceTree, path: Path, batches: int) -> dict[str, dict[str, float]]:
    """Milliseconds per batch of every way, cold and warm: medians over the batches."""
    sources = [(each, each.file()) for each in tree]
    names = [each.identity for each, _ in sources]
    sampler = PxKSampler(np.unique(names, return_inverse=True)[1], P, K)
    found: dict[str, dict[str, list[float]]] = {name: {"cold": [], "warm": []} for name in (*READERS, "packed")}
    for number in range(batches):
        chosen = sampler.batch(number)
        results = []
        for name in found:
            gc.collect()
            forget([path, *(sources[index][1] for index in set(chosen.tolist()))])
            if name == "packed":
                results.append(cold_and_warm(packed_batch(PackedSequences(path), chosen, number)))
            else:
                results.append(cold_and_warm(partial(batch_from_tree, sources, READERS[name], chosen, number)))
            found[name]["cold"].append(results[-1][1])
            found[name]["warm"].append(results[-1][2])
        if not all(np.array_equal(each[0], results[0][0]) for each in results):
            raise SystemExit("the ways do not give the same batch")
    return {
        name: {state: 1e3 * statistics.median(seconds) for state, seconds in states.items()}
        for name, states in found.items()
    }


def packed_batch(data: SequenceDataset, chosen: np.ndarray, seed: int) -> Callable[[], np.ndarray]:
    return lambda: load_batch(data, chosen, FRAMES, SAMPLING, np.random.default_rng(seed))


def measure_loader(data: SequenceDataset, workers: int, batches: int) -> float:
    """Batches per second where nothing else is done: what the loader could feed at most."""
    sampler = PxKSampler(data.labels, P, K)
    with BatchLoader(data, sampler, frames=FRAMES, sampling=SAMPLING, workers=workers) as loader:
        next(loader)
        started = time.perf_counter()
        for _ in range(batches):
            next(loader)
        return batches / (time.perf_counter() - started)


def measure_opening(root: Path, path: Path) -> dict[str, float]:
    """Seconds until training can begin: the whole tree read into memory, or the packed file made or opened."""
    found: dict[str, float] = {}
    for name, work in (
        ("pack", lambda: pack(root, path)),
        ("pack, up to date", lambda: pack(root, path)),
        ("tree into memory", lambda: from_tree(root)),
        ("open packed", lambda: from_tree(path)),
    ):
        started = time.perf_counter()
        work()
        found[name] = time.perf_counter() - started
    return found


def measure_waiting(data: SequenceDataset, workers: int, steps: int) -> dict[str, float]:
    """Share of the time that training steps of a quarter-width GaitSet wait for their batches."""
    torch.manual_seed(0)
    model = create("gaitset", **QUARTER).train()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    sampler = PxKSampler(data.labels, P, K)
    seconds, waits = [], []
    with BatchLoader(data, sampler, frames=FRAMES, sampling=SAMPLING, workers=workers) as loader:
        for _ in range(steps + 1):
            started, waited = time.perf_counter(), loader.waited
            batch = next(loader)
            x = to_input(batch.silhouettes, model.input_size)
            features, _ = model.forward_train(x)
            loss, _ = triplet_info(features, torch.from_numpy(batch.labels), 0.2)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            seconds.append(time.perf_counter() - started)
            waits.append(loader.waited - waited)
    # The first step waits for the first batch in any case, and warms up.
    total, waiting = sum(seconds[1:]), sum(waits[1:])
    return {
        "step_ms": 1e3 * statistics.median(seconds[1:]),
        "waiting_ms": 1e3 * waiting / steps,
        "waiting_percent": 100.0 * waiting / total,
    }


def show(report: dict[str, Any]) -> None:
    console = Console()
    table = Table(title=f"{P} x {K} sequences x {FRAMES} frames, batches per second (packed is so many times faster)")
    for column in ("", "cold", "warm"):
        table.add_column(column, justify="right" if column else "left")
    for name, figures in report["batches_per_second"].items():
        cells = []
        for state in ("cold", "warm"):
            times = report["packed_is_faster"].get(name, {}).get(state)
            cells.append(f"{figures[state]:.1f}" + (f" ({times:.1f} x)" if times else ""))
        table.add_row(name, *cells)
    console.print(table)
    for name, seconds in report["seconds_until_training_can_begin"].items():
        console.print(f"{name}: {seconds:.2f} s", highlight=False)
    alone = report["loader_alone_batches_per_second"]
    console.print(f"packed, 2 workers, no training: {alone:.0f} batches per second", highlight=False)
    for name, figures in report["training"].items():
        text = f"{name}: step {figures['step_ms']:.0f} ms, waiting {figures['waiting_percent']:.2f} %"
        console.print(text, highlight=False)


def rounded(values: dict[str, Any], digits: int) -> dict[str, Any]:
    return {
        key: rounded(value, digits) if isinstance(value, dict) else round(value, digits)
        for key, value in values.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=704)
    parser.add_argument("--batches", type=int, default=15)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--folder", type=Path, help="where to write the data; the system's temporary folder by default")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root, path = Path(folder) / "tree", Path(folder) / "walks.pack"
        write_tree(root, options.sequences)
        opening = measure_opening(root, path)
        milliseconds = measure_batches(SequenceTree(root), path, options.batches)
        training = {
            f"packed, {workers} workers": measure_waiting(PackedSequences(path), workers, options.steps)
            for workers in (2, 0)
        }
        loader = measure_loader(PackedSequences(path), 2, 20 * options.batches)
        bytes_packed = path.stat().st_size
    fastest = milliseconds["packed"]
    faster = {
        name: {state: value / fastest[state] for state, value in states.items()}
        for name, states in milliseconds.items()
        if name != "packed"
    }
    report = {
        "command": f"benchmarks/data_loading.py --sequences {options.sequences} --batches {options.batches}"
        f" --steps {options.steps}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()},"
        f" NumPy {np.__version__}, PyTorch {torch.__version__}, one PyTorch thread, shared with other work"
        f" (load {os.getloadavg()[0]:.0f})",
        "sequences": options.sequences,
        "frames_per_sequence": LENGTH,
        "megabytes_packed": round(bytes_packed / 2**20),
        "batch": [P, K, FRAMES],
        "sampling": SAMPLING,
        "milliseconds_per_batch": rounded(milliseconds, 2),
        "batches_per_second": rounded(
            {n: {s: 1e3 / v for s, v in each.items()} for n, each in milliseconds.items()}, 1
        ),
        "packed_is_faster": rounded(faster, 1),
        "seconds_until_training_can_begin": rounded(opening, 3),
        "network": {"model": "gaitset", **QUARTER},
        "training": rounded(training, 2),
        "loader_alone_batches_per_second": round(loader, 1),
    }
    show(report)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
