"""Every backbone of the registry, at its published sizes and tiny: cost, time, unequal lengths, memory.

    python benchmarks/backbones.py [--models gaitset,gln.casiab] [--parts speed,lengths] [--reference TIMINGS.md]

One network is `model.tag`; tags with the same options share a row. Each part of each network runs in an interpreter
of its own and is written at once, by name, into benchmarks/results/backbones.json (on a GPU backbones_cuda.json), so
that one network can be measured again alone; `benchmarks/models_table.py` makes the tables of docs/models.md of it.
Linux only (/proc).

`--reference` is a Markdown table of other code's milliseconds on another machine, rows such as
`| gaitset_casiab | 64x44 | 90 (85) | ...`. They are scaled by a machine factor: four plain stacks of convolutions,
timed in turn with the network, against the rows whose networks hold them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gaitsdk.models import GaitModel, create, list_models, model_class

RESULTS = Path(__file__).parent / "results"
#: Networks beside those that the tags name: other modes, and the shipped bundle's.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "deepgaitv2": {"2d": {"mode": "2d"}, "3d": {"mode": "3d"}},
    "gaitbase": {"shipped": {"channels": (16, 32, 64, 96), "strides": (1, 2, 1, 1), "stem_stride": 2, "dims": 128}},
}
#: Rows of the reference's table whose names do not follow from ours.
REFERENCE_ROWS = {
    "deepgaitv2.2d": "deepgaitv2_2d_gait3d",
    "deepgaitv2.3d": "deepgaitv2_3d_gait3d",
    "deepgaitv2.casiab": "deepgaitv2_p3d_casiab",
    "deepgaitv2.gait3d": "deepgaitv2_p3d_gait3d",
    "gln.casiab": "gln_p1_casiab",
    "gln.gait3d": "gln_p1_gait3d_parsing",
    "skeletongait++.gait3d": "skeletongaitpp_gait3d",
}
#: Tags that no data set stands behind, and the parts that they are spared: their tables have no milliseconds.
SMALL, TIMED = ("tiny", "shipped"), ("speed", "onnx")
#: Frames of the sequence that is timed, and shortest and longest of those that are mixed.
FRAMES = 30
LENGTHS = {"15 to 120": (15, 120), "15 to 30": (15, 30)}
console = Console(soft_wrap=True)


def frame_sizes(model: GaitModel, frames: int) -> tuple[int, ...]:
    return (frames, *((model.input_channels,) if model.input_channels > 1 else ()), *model.input_size)


@dataclass(frozen=True)
class Task:
    """What one interpreter measures; JSON in between."""

    model: str
    options: dict[str, Any]
    device: str
    threads: int
    seconds: float
    frames: int = FRAMES

    def network(self) -> GaitModel:
        """In eval mode, random everywhere: with fresh biases and statistics blank frames would stay zero by chance."""
        torch.manual_seed(0)
        torch.set_num_threads(self.threads)
        torch.backends.cudnn.allow_tf32 = False  # whole float32 on a GPU too, or errors would be those of TF32
        model = create(self.model, **self.options)
        for name, each in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith(("bias", "running_mean")):
                nn.init.uniform_(each, -0.2, 0.2)
            elif name.endswith("running_var"):
                nn.init.uniform_(each, 0.5, 1.5)
        return model.to(self.device).eval().requires_grad_(False)

    def sequence(self, model: GaitModel, frames: int = FRAMES) -> Tensor:
        return torch.rand(frame_sizes(model, frames), device=self.device)

    def timed(self, call: Callable[[], object]) -> float:
        """Seconds of one call, its work on the GPU included."""
        started = time.perf_counter()
        call()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def interleaved(self, calls: dict[str, Callable[[], object]], *, least: int, most: int) -> dict[str, list[float]]:
        """Seconds of every call, in turns (forwards, backwards, ...), so that a busy machine disturbs all alike.

        Without the first turn, unless turns are so slow that there are few."""
        found: dict[str, list[float]] = {name: [] for name in calls}
        until, names = time.perf_counter() + self.seconds, list(calls)
        while len(found[names[0]]) < (most if time.perf_counter() < until else least):
            for name in names:
                found[name].append(self.timed(calls[name]))
            names.reverse()
        return {name: each[1:] if len(each) > 3 else each for name, each in found.items()}


class PlainResidual(nn.Module):
    """3x3 (stride), BN, ReLU, 3x3, BN, plus a 1x1 shortcut where the shape changes, ReLU; nothing fused, NCHW."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(convolution(c_in, c_out, 3, stride), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))
        self.second = nn.Sequential(convolution(c_out, c_out, 3), nn.BatchNorm2d(c_out))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(convolution(c_in, c_out, 1, stride), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + self.shortcut(x))


def convolution(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2, bias=False)


def plain_set_network(c1: int, c2: int, c3: int) -> nn.Sequential:
    """The convolutions per frame of GaitSet."""
    layers: list[nn.Module] = []
    for c_in, c_out, kernel in ((1, c1, 5), (c1, c1, 3), (c1, c2, 3), (c2, c2, 3), (c2, c3, 3), (c3, c3, 3)):
        layers += [convolution(c_in, c_out, kernel), nn.LeakyReLU(inplace=True)]
    for position in (8, 4):
        layers.insert(position, nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def plain_residual_network(*counts: int) -> nn.Sequential:
    """The convolutions per frame of GaitBase and DeepGaitV2 in 2-D: blocks of 64, 128, 256 and 512 channels."""
    blocks: list[nn.Module] = [convolution(1, 64, 3), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    c_in = 64
    for c_out, stride, count in zip((64, 128, 256, 512), (1, 2, 2, 1), counts, strict=True):
        for index in range(count):
            blocks.append(PlainResidual(c_in, c_out, stride if index == 0 else 1))
            c_in = c_out
    return nn.Sequential(*blocks)


def yardsticks() -> dict[str, nn.Module]:
    """Plain convolutions by the reference's row whose network holds them: what the machine factor is measured with."""
    stacks = {
        "gaitset_casiab": plain_set_network(32, 64, 128), "gaitset_oumvlp": plain_set_network(64, 128, 256),
        "gaitbase_gait3d": plain_residual_network(1, 1, 1, 1),
        "deepgaitv2_2d_gait3d": plain_residual_network(1, 4, 4, 1),
    }  # fmt: skip
    return {row: stack.eval() for row, stack in stacks.items()}


def network_part(task: Task) -> dict[str, Any]:
    """What the network is, and its floating point operations for 30 frames (a multiply-add is two)."""
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad(), counter:  # no numbers are computed there
        model = create(task.model, **task.options).for_inference()
        model(torch.rand(1, *frame_sizes(model, FRAMES)))
    return {
        "parameters": sum(each.numel() for each in model.parameters()),
        "gflops_30_frames": round(counter.get_total_flops() / 1e9, 2),
        "strips": model.strips, "dims": model.dims, "input": [model.input_channels, *model.input_size],
        "length_handling": model.length_handling, "verified": model.verified,
    }  # fmt: skip


def speed_part(task: Task) -> dict[str, Any]:
    """Milliseconds of 30 frames, batch 1, in PyTorch; on a CPU with the yardsticks in turn."""
    model = task.network()
    x, frames = task.sequence(model)[None], torch.rand(FRAMES, 1, 64, 44)
    calls: dict[str, Callable[[], object]] = {"eager": partial(model, x)}
    if task.device == "cpu":
        calls |= {name: partial(stack, frames) for name, stack in yardsticks().items()}
    with torch.no_grad():
        times = task.interleaved(calls, least=6, most=25)
    turns = {name: [round(each * 1e3, 2) for each in seconds] for name, seconds in times.items()}
    return {"eager_ms": statistics.median(turns["eager"]), "eager_ms_min": min(turns["eager"]), "turns_ms": turns}


def onnx_part(task: Task) -> dict[str, Any]:
    """Milliseconds of 30 frames, batch 1, in ONNX Runtime, uint8 in as served; exported without the parity cases."""
    import numpy as np
    import onnxruntime

    from gaitsdk_export.to_onnx import to_onnx
    from gaitsdk_export.wrappers import EmbedderForExport

    model = task.network().for_inference()
    size, channels = model.input_size[0], model.input_channels
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = task.threads
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        to_onnx(EmbedderForExport(model, size, channels), path, cases=None)
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        megabytes = round(path.stat().st_size / 1e6, 1)
    shape = (1, FRAMES, size, size) if channels == 1 else (1, FRAMES, channels, size, size)
    silhouettes = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    calls = {"onnx": lambda: session.run(None, {"silhouettes": silhouettes})}
    times = task.interleaved(calls, least=6, most=25)["onnx"]
    return {"onnx_ms": round(statistics.median(times) * 1e3, 2), "file_megabytes": megabytes}


def lengths_part(task: Task) -> dict[str, Any]:
    """`forward_sequences` against one sequence after the other, for sequences of two mixes of lengths."""
    model = task.network()
    with torch.no_grad():
        call = partial(model, task.sequence(model)[None])
        per_frame = min(task.timed(call), task.timed(call)) / FRAMES
        return {name: unequal(task, model, low, high, per_frame) for name, (low, high) in LENGTHS.items()}


def unequal(task: Task, model: GaitModel, low: int, high: int, per_frame: float) -> dict[str, Any]:
    """As many sequences as a few turns have time for; the shortest, the longest, then lengths spread over the range."""
    count = min(16, max(3, int(task.seconds / (8 * per_frame * (low + high) / 2))))
    spread = [low + (high - low) * (7 * i % 16) // 16 for i in range(1, 15)]
    sequences = [task.sequence(model, length) for length in (low, high, *spread)[:count]]
    kept: dict[str, Tensor] = {}

    def together() -> None:
        kept["together"] = model.forward_sequences(sequences)

    def alone() -> None:
        kept["alone"] = torch.cat([model(each[None]) for each in sequences])

    times = task.interleaved({"together": together, "alone": alone}, least=3, most=15)
    ratios = [one / all_ for one, all_ in zip(times["alone"], times["together"], strict=True)]
    error = (kept["together"] - kept["alone"]).abs().max() / kept["alone"].abs().max()
    return {
        "sequences": count, "throughput_ratio": round(statistics.median(ratios), 3),
        "ratios": [round(each, 3) for each in sorted(ratios)], "max_error_of_largest": float(f"{float(error):.1e}"),
    }  # fmt: skip


def memory_part(task: Task) -> dict[str, Any]:
    """How far the memory in use rises while one sequence of `frames` frames passes; its own frames not counted."""
    model = task.network()
    model.forward_sequences([task.sequence(model, 15)])  # libraries are loaded, thread pools started
    x = task.sequence(model, task.frames)
    if task.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak of this process starts again from here
        before = peak_rss()
    seconds = task.timed(lambda: model.forward_sequences([x]))
    after = torch.cuda.max_memory_allocated() / 2**20 if task.device == "cuda" else peak_rss()
    return {"mebibytes": round(after - before, 1), "seconds": round(seconds, 2)}


def peak_rss() -> float:
    """MiB. Not `ru_maxrss`: that survives the start of a program, so it may be the parent's."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024


PARTS: dict[str, Callable[[Task], dict[str, Any]]] = {
    "network": network_part, "speed": speed_part, "onnx": onnx_part, "lengths": lengths_part, "memory": memory_part,
}  # fmt: skip


def configurations(model: str) -> dict[str, dict[str, Any]]:
    """Every distinct network of an architecture: "model.tag" -> model, options and all tags that mean it."""
    cls = model_class(model)
    found: dict[str, dict[str, Any]] = {}
    for tag, options in {**VARIANTS.get(model, {}), **cls.TAGS, "default": {}}.items():
        whole = cls.Options.parse(model, options)
        same = next((each for each in found.values() if cls.Options.parse(model, each["options"]) == whole), None)
        if same is None:
            plain = json.loads(json.dumps(options))  # lists for tuples, as in the results
            found[f"{model}.{tag}"] = {"model": model, "tags": [tag], "options": plain}
        elif tag != "default":
            same["tags"].append(tag)
    return found


def chosen(models: str | None) -> dict[str, dict[str, Any]]:
    """What `--models` names: "gaitset" = all networks of that name, "gaitset.grew" = one, by any of its tags."""
    found: dict[str, dict[str, Any]] = {}
    for wanted in list_models() if models is None else models.split(","):
        model, _, tag = wanted.partition(".")
        fitting = {name: each for name, each in configurations(model).items() if tag in ("", *each["tags"])}
        if not fitting:
            raise SystemExit(f"no network is called {wanted!r}; there are {', '.join(configurations(model))}")
        found |= fitting
    return found


def read_reference(path: Path | None) -> dict[str, float]:
    """Milliseconds by name, of a table's rows that hold a figure such as "90 (85)" in the third column."""
    text = path.read_text(encoding="utf-8") if path else ""
    rows = re.findall(r"^\| *(\w+) *\|[^|]*\| *([\d.]+) *\(", text, re.MULTILINE)
    return {name: float(ms) for name, ms in rows}


def compared(name: str, tags: list[str], speed: dict[str, Any], reference: dict[str, float]) -> dict[str, Any]:
    """The speed part without its turns, with the machine factor and our time against the scaled reference.

    A row holds a whole network and its yardstick only the convolutions, so each of these ratios is too small a factor:
    the largest comes closest, and it is still strict with us.
    """
    kept = {key: value for key, value in speed.items() if key != "turns_ms"}
    medians = {row: statistics.median(each) for row, each in speed.get("turns_ms", {}).items() if row in reference}
    if not medians:
        return kept
    factor = max(ms / reference[row] for row, ms in medians.items())
    kept["machine_factor"] = round(factor, 3)
    candidates = [REFERENCE_ROWS.get(name, ""), *(f"{name.partition('.')[0]}_{tag}" for tag in tags)]
    for row in [each for each in candidates if each in reference][:1]:
        kept["against_reference"] = round(kept["eager_ms"] / (reference[row] * factor), 3)
    return kept


class PartFailed(Exception):
    """Its interpreter ended without a result."""


def in_fresh_process(part: str, task: Task) -> dict[str, Any]:
    """What a part measures."""
    command = [sys.executable, __file__, "--worker", json.dumps([part, asdict(task)])]
    environment = {**os.environ, "OMP_NUM_THREADS": str(task.threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise PartFailed((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measured(part: str, task: Task, longest: int, budget: float) -> dict[str, Any]:
    """One part; memory for 120, 1,000 and `longest` frames, or as many thousands of these as `budget` seconds allow."""
    if part != "memory":
        return in_fresh_process(part, task)
    found = {str(frames): in_fresh_process(part, replace(task, frames=frames)) for frames in (120, 1000)}
    most = min(longest, 1000 * int(budget / max(found["1000"]["seconds"], 1e-3)))
    if most > 1000:
        found[str(most)] = in_fresh_process(part, replace(task, frames=most))
    return found


def machine(threads: int, device: str) -> str:
    """What the figures were measured on."""
    cpu = f"{platform.machine()}, {os.cpu_count()} cores, {threads} threads, Python {platform.python_version()}"
    cpu = ", ".join([cpu, *(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "onnxruntime"))])
    return f"{torch.cuda.get_device_name()}; {cpu}" if device == "cuda" else cpu


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="comma-separated, model or model.tag; default all")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated; default %(default)s")
    parser.add_argument("--no-onnx", action="store_true", help="leave ONNX Runtime out")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=6.0, help="about how long to repeat one measurement")
    parser.add_argument("--long", type=int, default=10_000, help="frames of the longest sequence, for its memory")
    parser.add_argument("--long-seconds", type=float, default=20.0, help="fewer frames where it would take longer")
    parser.add_argument("--reference", type=Path, help="a table of other code's milliseconds; default: no comparison")
    parser.add_argument("--out", type=Path, help="default results/backbones.json, on a GPU backbones_cuda.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not set(options.parts.split(",")) <= PARTS.keys():
        parser.error(f"--parts takes {', '.join(PARTS)}")
    onnx = options.device == "cpu" and not options.no_onnx
    options.parts = [part for part in options.parts.split(",") if part != "onnx" or onnx]
    options.out = options.out or RESULTS / f"backbones{'_cuda' if options.device == 'cuda' else ''}.json"
    return options


def main() -> None:
    options = parse()
    if options.worker:
        part, fields = json.loads(options.worker)
        print(json.dumps(PARTS[part](Task(**fields))))
        return
    reference, where = read_reference(options.reference), machine(options.threads, options.device)
    networks = chosen(options.models)
    report: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"networks": {}}
    report["command"] = "python benchmarks/backbones.py" + (" --device cuda" if options.device == "cuda" else "")
    if options.models is None:  # what is no longer registered goes
        report["networks"] = {name: each for name, each in report["networks"].items() if name in networks}
    failures = 0
    for name, each in networks.items():
        task = Task(each["model"], each["options"], options.device, options.threads, options.seconds)
        entry = report["networks"].get(name, {})
        if entry.get("options") != each["options"]:
            entry = {}  # figures of another network
        entry |= {"tags": each["tags"], "options": each["options"], "machine": where}
        report["networks"] = dict(sorted({**report["networks"], name: entry}.items()))
        parts = options.parts if "network" in entry else list(dict.fromkeys(["network", *options.parts]))
        for part in parts if name.partition(".")[2] not in SMALL else [each for each in parts if each not in TIMED]:
            entry.pop(part, None)
            try:
                result = measured(part, task, options.long, options.long_seconds)
                entry[part] = compared(name, each["tags"], result, reference) if part == "speed" else result
                console.print(f"{name} {part}: {escape(json.dumps(entry[part]))}", highlight=False)
            except PartFailed as error:
                failures += 1
                console.print(f"[red]{name} {part} failed[/]: {escape(str(error))}", highlight=False)
            options.out.parent.mkdir(exist_ok=True)
            options.out.write_text(json.dumps(report, indent=1) + "\n")
    raise SystemExit(f"{failures} measurements failed" if failures else 0)


if __name__ == "__main__":
    main()
