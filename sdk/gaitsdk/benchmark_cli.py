"""`gaitsdk benchmark`: how fast a bundle's networks are on this machine, each way of running them beside the others."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gaitsdk.errors import MissingDependencyError, RuntimeUnavailableError

if TYPE_CHECKING:
    from gaitsdk.bundle import Bundle
    from gaitsdk.runtimes import NetworkRuntime
    from gaitsdk.runtimes.protocol import Features, Silhouettes

FRAMES, BATCHES, K = 30, (1, 8), 10
EAGER, ONE_PAIR = "PyTorch, eager", "PyTorch, one pair at a time"
Ways = Mapping[str, Callable[..., Any]]


@dataclass(frozen=True)
class Row:
    """One way of running one network.

    Attributes:
        what: "embed, batch 8" or "re-rank, K 10".
        way: who computes it.
        milliseconds, p95, best: of a call: the median, the 95th of 100, and the fastest.
        times_as_fast: median over the turns of the first way's time divided by this one's; None for the first.
        calls: that were timed.
    """

    what: str
    way: str
    milliseconds: float
    p95: float
    best: float
    times_as_fast: float | None
    calls: int


def interleaved(
    calls: Mapping[str, Callable[[], object]], seconds: float, least: int = 5, most: int = 400
) -> dict[str, list[float]]:
    """Seconds of every call, in turns forwards and backwards, so that a busy machine disturbs all alike.

    Args:
        calls: by name; each is called once before time is taken.
        seconds: about how long to go on; never fewer than `least` turns nor more than `most`.
    """
    for call in calls.values():
        call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    names, until = list(calls), time.perf_counter() + seconds
    while len(found[names[0]]) < (most if time.perf_counter() < until else least):
        for name in names:
            started = time.perf_counter()
            calls[name]()
            found[name].append(time.perf_counter() - started)
        names.reverse()
    return found


def measure(what: str, ways: Ways, arguments: tuple[Any, ...], seconds: float) -> list[Row]:
    """A row per way; the first is what the others are compared with."""
    times = interleaved({name: partial(call, *arguments) for name, call in ways.items()}, seconds)
    first = next(iter(times.values()))
    rows = []
    for way, taken in times.items():
        ratio = statistics.median(a / b for a, b in zip(first, taken, strict=True))
        median, p95, best = (round(1e3 * float(each), 3) for each in np.percentile(taken, (50, 95, 0)))
        rows.append(Row(what, way, median, p95, best, None if taken is first else round(ratio, 2), len(taken)))
    return rows


def embedding(bundle: Bundle, device: str, threads: int, seconds: float) -> list[Row]:
    """Rows of the backbone: walks of FRAMES frames, by BATCHES, eager PyTorch first where torch is installed."""
    spec = bundle.manifest.input
    frame = (spec.size, spec.size) if spec.channels == 1 else (spec.channels, spec.size, spec.size)
    walks = np.random.default_rng(0).integers(0, 256, (max(BATCHES), FRAMES, *frame), np.uint8)
    rows = []
    with _runtimes(bundle, device, threads) as runtimes:
        ways = {**_eager_embedding(bundle, runtimes[0].device, threads)}
        ways |= {_label(each): each.embed for each in runtimes}
        for batch in BATCHES:
            rows += measure(f"embed, batch {batch}", ways, (walks[:batch],), seconds)
    return rows


def reranking(bundle: Bundle, device: str, seconds: float, more: Ways | None = None) -> list[Row]:
    """Rows of the re-ranker, on one thread: a probe and K candidates, the loop over pairs first; none without one.

    Args:
        more: further ways; each takes a probe `[1, s, d]` and its candidates `[1, K, s, d]`.
    """
    if bundle.manifest.reranker is None:
        return []
    features = np.random.default_rng(0).standard_normal((1 + K, bundle.strips, bundle.dims)).astype(np.float32)
    with _runtimes(bundle, device, threads=1) as runtimes:
        ways = {**_eager_reranking(bundle, runtimes[0].device)}
        # Other precisions are of the backbone: its name before the hyphen says all of the re-ranker.
        ways |= {_label(each): each.rerank for each in runtimes if "-" not in each.name}
        return measure(f"re-rank, K {K}", {**ways, **(more or {})}, (features[None, 0], features[None, 1:]), seconds)


@contextlib.contextmanager
def _runtimes(bundle: Bundle, device: str, threads: int) -> Iterator[list[NetworkRuntime]]:
    """The default runtime, then the others that this bundle and this machine have."""
    from gaitsdk.runtimes import BY_NAME, RUNTIMES, open_runtime

    found = [open_runtime(bundle, "auto", device, threads)]
    for name in (*RUNTIMES, *BY_NAME):
        if name != found[0].name:
            with contextlib.suppress(MissingDependencyError, RuntimeUnavailableError):
                found.append(open_runtime(bundle, name, device, None if name == "tensorrt" else threads))
    try:
        yield found
    finally:
        for each in found:
            each.close()


def _label(runtime: NetworkRuntime) -> str:
    return f"runtime {runtime.name} on {runtime.device}"


def _torch(threads: int) -> Any | None:
    from gaitsdk.runtimes.torch_runtime import import_torch

    try:
        torch = import_torch()
    except MissingDependencyError:
        return None
    torch.set_num_threads(threads)
    return torch


def _eager_embedding(bundle: Bundle, device: str, threads: int) -> Ways:
    """The network called on the whole batch, as code without this SDK does."""
    torch = _torch(threads)
    if torch is None:
        return {}
    spec = bundle.manifest.input
    backbone = bundle.build_backbone().to(device).requires_grad_(False)

    def embed(walks: Silhouettes) -> Features:
        with torch.inference_mode():
            frames = torch.from_numpy(walks).to(device).float()[..., spec.cut : spec.size - spec.cut] / spec.scale
            features: Features = backbone(frames).cpu().numpy()
        return features

    return {EAGER: embed}


def _eager_reranking(bundle: Bundle, device: str) -> Ways:
    torch = _torch(1)
    if torch is None:
        return {}
    from gaitsdk.models.cargait import CarGait

    built = bundle.build_reranker()
    if built is None:
        return {}
    reranker = built.to(device).requires_grad_(False)

    def together(probe: Any, candidates: Any) -> Any:
        return reranker(probe, candidates)

    def one_by_one(probe: Any, candidates: Any) -> Any:
        return torch.cat([pair(probe, candidates[:, place]) for place in range(candidates.shape[1])])

    def pair(probe: Any, candidate: Any) -> Any:
        if not isinstance(reranker, CarGait):
            return reranker(probe, candidate[:, None])[:, 0]
        conditioned, other = reranker.attend(probe, candidate)  # the paper's two attentions
        return torch.linalg.vector_norm(conditioned - other, dim=-1).mean(dim=-1)

    def on_arrays(call: Callable[[Any, Any], Any]) -> Callable[[Features, Features], Features]:
        def rescore(probe: Features, candidates: Features) -> Features:
            with torch.inference_mode():
                found = call(*(torch.from_numpy(each).to(device) for each in (probe, candidates)))
                distances: Features = found.cpu().numpy()
            return distances

        return rescore

    return {ONE_PAIR: on_arrays(one_by_one), EAGER: on_arrays(together)}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    found: dict[str, Any] = {"processor": _processor(), "cores": os.cpu_count(), "python": platform.python_version()}
    for package in ("gaitsdk", "numpy", "onnxruntime", "torch"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    if hasattr(os, "getloadavg"):
        found["load"] = round(os.getloadavg()[0], 1)
    return found


def _processor() -> str:
    with contextlib.suppress(OSError, StopIteration):  # Linux only
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def report(bundle: Bundle, rows: list[Row], threads: int) -> dict[str, Any]:
    """JSON-able."""
    about = {"name": bundle.manifest.name, "architecture": bundle.manifest.architecture.name}
    return {
        "machine": machine(),
        "threads": {"backbone": threads, "reranker": 1},
        "bundle": {**about, "strips": bundle.strips, "dims": bundle.dims},
        "rows": [asdict(each) for each in rows],
    }


def table(rows: list[Row]) -> Table:
    """The rows for people."""
    view = Table(caption="each compared with the first way of the same task, in turns")
    for column in ("what", "way"):
        view.add_column(column, overflow="fold")
    for column in ("ms", "p95", "times as fast"):
        view.add_column(column, justify="right")
    for each in rows:
        ratio = "" if each.times_as_fast is None else f"{each.times_as_fast:.2f}"
        view.add_row(each.what, escape(each.way), f"{each.milliseconds:.2f}", f"{each.p95:.2f}", ratio)
    return view


def benchmark(
    bundle: Annotated[Path | None, typer.Option(help="A bundle NAME.gait; the shipped one by default.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads of the backbone; by default as many as a recogniser takes.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="About how long to repeat each measurement.")] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Time embedding and re-ranking on this machine, each runtime against eager PyTorch."""
    from gaitsdk.bundle import Bundle
    from gaitsdk.runtimes.onnx_runtime import default_threads

    loaded, count = Bundle.load(bundle), default_threads() if threads is None else threads
    with Console(stderr=True).status("embedding", spinner="dots") as status:
        rows = embedding(loaded, device, count, seconds)
        status.update("re-ranking")
        rows += reranking(loaded, device, seconds)
    found = report(loaded, rows, count)
    if as_json:
        print(json.dumps(found))
        return
    console = Console()
    console.print(table(rows))
    console.print(", ".join(f"{key} {value}" for key, value in found["machine"].items()), highlight=False, markup=False)
