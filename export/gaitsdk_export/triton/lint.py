"""Finds mistakes in a model repository, ours or anybody's, that a server would stumble over, or worse, would not."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gaitsdk.errors import ExportError
from gaitsdk.manifest import file_entry
from gaitsdk.runtimes.tensorrt_runtime import Machine, misfits
from gaitsdk_export.triton.config import ModelConfig, Tensor
from gaitsdk_export.triton.engines import FORMAT, PLAN
from gaitsdk_export.triton.pbtxt import parse

#: What each backend looks for in a version folder. Of others any file counts.
WEIGHTS = {
    "python": "model.py",
    "tensorrt": PLAN,
    "tensorrt_plan": PLAN,
    "onnxruntime": "model.onnx",
    "onnxruntime_onnx": "model.onnx",
    "pytorch": "model.pt",
    "pytorch_libtorch": "model.pt",
}
#: Folders of a model that Triton reads beside its versions.
_READ = ("warmup", "initial_state", "configs")
#: What a free axis counts as where memory is concerned: the frames of a long walk, the candidates of a long list.
LONG = 256
_ITEM_BYTES = {"bool": 1, "bytes": 64}  # the names of others end in their bits
SHARED_MEMORY = Path("/dev/shm")
#: Of it, what an instance of a Python model takes before any request.
INSTANCE_BYTES = 2**20


@dataclass(frozen=True)
class Finding:
    """A mistake: the place below the repository, what is wrong, and what to do."""

    where: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.fix}"


def lint(repository: Path, machine: Machine | None = None, free: int | None = None) -> list[Finding]:
    """Everything that is wrong with a repository, in the order of its folders.

    Args:
        repository: the folder.
        machine: what engines have to be built for; None = they are for another machine, and not compared.
        free: bytes of shared memory where the server will run; None = not compared.

    Raises:
        ExportError: it is no folder, or cannot be read.
    """
    found: list[Finding] = []
    models: dict[str, ModelConfig] = {}
    try:
        for entry in sorted(repository.iterdir()):
            found += _entry(entry, models, machine)
    except OSError as error:
        raise ExportError("the model repository cannot be read", where=str(repository), got=str(error)) from error
    for model in models.values():
        found += _chain(model, models)
    needed = shared_memory(list(models.values()))
    if free is not None and needed > free:
        what = f"full batches need {_mib(needed)} of shared memory, {SHARED_MEMORY} has {_mib(free)}"
        found.append(Finding(".", what, f"docker run --shm-size={needed // 2**20 + 1}m, or fewer instances"))
    return found


def shared_memory(models: Sequence[ModelConfig]) -> int:
    """Bytes in /dev/shm while every Python model computes a full batch of long sequences (`LONG` frames or candidates):
    each instance has its inputs and outputs there. What waits in a queue lies in the server's own memory."""
    return sum(
        max(1, sum(group.count for group in model.instances))
        * (INSTANCE_BYTES + max(1, model.max_batch_size) * sum(map(_bytes, (*model.inputs, *model.outputs))))
        for model in models
        if model.backend == "python"
    )


def _bytes(tensor: Tensor) -> int:
    size = _ITEM_BYTES.get(tensor.data_type) or int("".join(filter(str.isdigit, tensor.data_type))) // 8
    return size * math.prod(LONG if each == -1 else each for each in tensor.dims)


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"


def _entry(entry: Path, models: dict[str, ModelConfig], machine: Machine | None) -> Iterator[Finding]:
    """Looks at one name in the repository, and adds it to `models` where it is one."""
    name, file = entry.name, entry / "config.pbtxt"
    if not entry.is_dir():
        yield Finding(name, "a file that nobody reads", "remove it")
    elif not file.is_file():
        what = "Python wrote it, and" if name == "__pycache__" else "no config.pbtxt in it, and"
        yield Finding(name, f"{what} a server that meets it does not start", "remove it")
    else:
        try:
            text = file.read_text(encoding="utf-8")
            model = parse(text, f"{name}/config.pbtxt")
        except (ExportError, UnicodeDecodeError) as error:
            yield Finding(f"{name}/config.pbtxt", str(error), "correct it, or render it again: gaitsdk deploy")
            return
        models[name] = model
        if model.name not in ("", name):
            yield Finding(f"{name}/config.pbtxt", f"calls itself {model.name!r}", f"name it {name}")
        yield from _files(entry, model, text)
        yield from _versions(entry, model, machine)


def _files(folder: Path, model: ModelConfig, text: str) -> Iterator[Finding]:
    """What lies in a model's folder beside its versions; a file that the configuration names is read."""
    for path in sorted(folder.iterdir()):
        where = f"{folder.name}/{path.name}"
        if path.is_dir() and not path.name.isdecimal() and path.name not in _READ:
            yield Finding(where, "a folder that nobody reads", "remove it; versions are called 1, 2, ...")
        elif path.is_file() and path.name != "config.pbtxt" and path.name not in text:
            yield Finding(where, "a file that nobody reads", "remove it")
    wanted = {each.data for request in model.warmup for each in request.inputs.values()} - {"zero", "random"}
    there = {each.name for each in folder.glob("warmup/*")}
    for name in sorted(wanted - there):
        yield Finding(f"{folder.name}/warmup/{name}", "missing: the model warms up with it", "gaitsdk deploy again")
    for name in sorted(there - wanted):
        yield Finding(f"{folder.name}/warmup/{name}", "a file that nobody reads", "remove it")


def _versions(folder: Path, model: ModelConfig, machine: Machine | None) -> Iterator[Finding]:
    there = [int(each.name) for each in folder.iterdir() if each.is_dir() and each.name.isdecimal()]
    if not model.versions.served(there):
        wanted = ", ".join(map(str, model.versions.specific)) or "any"
        got = ", ".join(map(str, sorted(there))) or "none"
        what = f"no version to serve: wanted is {wanted}, there is {got}"
        yield Finding(folder.name, what, "gaitsdk deploy --version-number N")
    for number in sorted(there):
        version, where = folder / str(number), f"{folder.name}/{number}"
        for path in sorted(version.rglob("__pycache__")):
            place = path.relative_to(folder.parent).as_posix()
            yield Finding(place, "Python wrote it", "remove it, and set PYTHONDONTWRITEBYTECODE=1")
        names = {each.name for each in version.iterdir() if not each.name.startswith(".")} - {"__pycache__"}
        weights = WEIGHTS.get(model.backend)
        if model.steps:
            for name in sorted(names):
                yield Finding(f"{where}/{name}", "a file that nobody reads: an ensemble has no weights", "remove it")
        elif (weights is not None and weights not in names) or not names:
            fix = "put it there: gaitsdk deploy --rendering tensorrt" if weights == PLAN else "gaitsdk deploy again"
            yield Finding(f"{where}/{weights or '*'}", "missing", fix)
        elif weights == PLAN:
            yield from _plan(version, where, model, machine)


def _plan(version: Path, where: str, model: ModelConfig, machine: Machine | None) -> Iterator[Finding]:
    """Compares an engine with the record beside it, and the record with the machine and with the configuration."""
    record_file = version / f"{PLAN}.export.json"
    again = "put the engine there again: gaitsdk export --to tensorrt, gaitsdk deploy --rendering tensorrt"
    try:
        record: dict[str, Any] = json.loads(record_file.read_bytes())
        built, expected, tensors = record["engine"], record["sha256"], {*record["inputs"], *record["outputs"]}
        longest, builder = int(record["max_batch_size"]), built["builder"]
    except FileNotFoundError:
        yield Finding(f"{where}/{record_file.name}", "missing: nobody knows what the engine was built for", again)
        return
    except (ValueError, LookupError, TypeError) as error:
        yield Finding(f"{where}/{record_file.name}", f"not the record of an engine ({error!r})", again)
        return
    if file_entry(version / PLAN).sha256 != expected:
        yield Finding(f"{where}/{PLAN}", "its sha256 is not that of its record", again)
    if builder != FORMAT:
        yield Finding(f"{where}/{PLAN}", f"built by {builder}, which Triton cannot load", again)
    elif machine is not None:
        for phrase in misfits(built, machine):
            yield Finding(f"{where}/{PLAN}", phrase, "export it on the GPU and with the TensorRT that will serve")
    if model.max_batch_size > longest:
        what = f"max_batch_size {model.max_batch_size}, but the engine takes {longest}"
        yield Finding(f"{version.parent.name}/config.pbtxt", what, "render it again: gaitsdk deploy")
    mine = {each.name for each in (*model.inputs, *model.outputs)}
    if mine != tensors:
        what = f"tensors {', '.join(sorted(mine))}, but the engine has {', '.join(sorted(tensors))}"
        yield Finding(f"{version.parent.name}/config.pbtxt", what, "render it again: gaitsdk deploy")


def _chain(ensemble: ModelConfig, models: Mapping[str, ModelConfig]) -> Iterator[Finding]:
    """Follows the tensors through an ensemble."""
    fix = "correct the step, or render it again: gaitsdk deploy"

    def wrong(what: str) -> Finding:
        return Finding(f"{ensemble.name}/config.pbtxt", what, fix)

    flowing = _whole(ensemble.inputs, ensemble)
    steps = [(step, models[step.model]) for step in ensemble.steps if step.model in models]
    for step, model in steps:
        outputs = _whole(model.outputs, model)
        flowing |= {target: outputs[name] for name, target in step.outputs.items() if name in outputs}
    for missing in sorted({step.model for step in ensemble.steps} - set(models)):
        yield wrong(f"a step asks the model {missing!r}, which is not there")
    for step, model in steps:
        if ensemble.max_batch_size > model.max_batch_size:
            batches = f"{ensemble.max_batch_size}, its step {step.model!r} of {model.max_batch_size} only"
            yield wrong(f"takes batches of {batches}")
        inputs = _whole(model.inputs, model)
        for name in sorted({*step.inputs, *step.outputs} - {*inputs, *(each.name for each in model.outputs)}):
            yield wrong(f"the model {step.model!r} has no tensor {name!r}")
        for name, tensor in inputs.items():
            source = step.inputs.get(name, "")
            if source in flowing and not _fits(flowing[source], tensor):
                yield wrong(f"{source!r} is {_kind(flowing[source])}, {step.model!r} takes {_kind(tensor)}")
            elif source not in flowing and not (tensor.optional and not source):
                yield wrong(f"nobody gives the step {step.model!r} its input {name!r}")
    for name, tensor in _whole(ensemble.outputs, ensemble).items() if steps else ():
        if name not in flowing:
            yield wrong(f"no step gives its output {name!r}")
        elif not _fits(flowing[name], tensor):
            yield wrong(f"its output {name!r} is {_kind(tensor)}, but comes as {_kind(flowing[name])}")


def _whole(tensors: Sequence[Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """Tensors by name, with the batch among their dims."""
    batch = (-1,) if model.max_batch_size else ()
    return {each.name: replace(each, dims=(*batch, *each.dims)) for each in tensors}


def _fits(given: Tensor, taken: Tensor) -> bool:
    """Whether a tensor may flow there; a free axis takes any size, and what it is shows with the request."""
    return (
        given.data_type == taken.data_type
        and len(given.dims) == len(taken.dims)
        and all(-1 in pair or pair[0] == pair[1] for pair in zip(given.dims, taken.dims, strict=True))
    )


def _kind(tensor: Tensor) -> str:
    return f"{tensor.data_type} {list(tensor.dims)}"
