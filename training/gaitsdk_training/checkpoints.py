"""Checkpoints of a training run: folders that appear whole or not at all, and a log that follows them.

out/config.json             what is trained and how
out/log.jsonl               one JSON object per line; event files beside it where TensorBoard is wanted
out/checkpoint-000500/      model.safetensors, more weights, optimiser.pt, state.json; only the newest is kept
out/best/                   model.safetensors and state.json of the best validation
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gaitsdk.errors import OptionError, TrainingError
from gaitsdk_training.scalars import Scalars

_PREFIX = "checkpoint-"
#: Fields that a message about another run names.
_SHOWN = 6
#: What a folder is called, behind a dot, from the moment a newer one takes its place until that has happened.
_ASIDE = ".old"


class Run:
    """The folder of one run. It is looked at first; nothing is written before `begin`.

    Writing can fail, because the disk is full for instance: a TrainingError then names the folder, and what was there
    before stays as it was.

    Args:
        out: the folder; made by `begin` where it is missing.
        config: what the run is, JSON-able. A folder that holds another run is refused.
        resume: continue what is there; False refuses a folder that holds a checkpoint.
        flexible: keys of `config` that may change when a run is continued (how long it is to take, for example).
        added: keys that older runs do not record, and the values that they meant.
        writes: False in all but the first of several processes: methods that write do nothing then.

    Raises:
        OptionError: it is no folder, belongs to another run, or to this one and resume is False.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        config: Mapping[str, Any],
        *,
        resume: bool,
        flexible: tuple[str, ...] = (),
        added: Mapping[str, Any] | None = None,
        writes: bool = True,
    ) -> None:
        self.path = Path(out)
        self._writes = writes
        self._scalars: Scalars | None = None
        check_folder(self.path)
        _put_back(self.path)
        self._flexible = flexible
        self._config = plain = json.loads(json.dumps(dict(config)))
        found = self._read_config()
        if found is not None and not resume and self.newest() is not None:
            raise OptionError(
                "the folder holds a run already", where=str(self.path), fix="resume it, or choose another folder"
            )
        if found is not None and resume and self.newest() is not None:
            self._compare(found, plain, added or {})

    def begin(self, tensorboard: bool = False) -> None:
        """Makes the folder, writes the configuration and drops log lines of steps after the newest checkpoint, which
        come again; call it when nothing speaks against the run any more.

        Args:
            tensorboard: whether the log's numbers are also written as TensorBoard events.

        Raises:
            OptionError: the folder cannot be made or written to. MissingDependencyError: no TensorBoard.
        """
        if not self._writes:
            return
        kept = self.newest()
        step = -1 if kept is None else int(kept.name[len(_PREFIX) :])
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            _write_json(self.path / "config.json", self._config)
            self._trim_log(step)
            if tensorboard:
                self._scalars = Scalars(self.path, max(step, 0))
        except OSError as error:
            raise OptionError(
                "the run's folder cannot be written",
                where=str(self.path),
                got=str(error),
                fix="choose another folder with --out",
            ) from error

    def close(self) -> None:
        """Ends what `begin` opened."""
        if self._scalars is not None:
            self._scalars.close()
            self._scalars = None

    def newest(self) -> Path | None:
        """The newest complete checkpoint."""
        found = sorted(each for each in self.path.glob(f"{_PREFIX}*") if (each / "state.json").exists())
        return found[-1] if found else None

    def newest_state(self) -> dict[str, Any]:
        """The `state` of the newest checkpoint.

        Raises:
            TrainingError: there is none that can be read.
        """
        checkpoint = self.newest() or self.path
        try:
            state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())
        except (OSError, ValueError) as error:
            raise _damaged(checkpoint, error) from error
        return state

    def save(
        self, step: int, weights: Mapping[str, Mapping[str, Tensor]], optimiser: Any, state: Mapping[str, Any]
    ) -> None:
        """Writes a checkpoint and removes older ones.

        Args:
            step: of the run.
            weights: name -> state dict; each becomes NAME.safetensors.
            optimiser: its state dict.
            state: JSON-able; `step` is added.

        Raises:
            TrainingError: it cannot be written; the checkpoint before it is still there.
        """
        target = self.path / f"{_PREFIX}{step:07d}"
        if not self._writes:
            return
        with self._new_folder(target) as work:
            for name, tensors in weights.items():
                save_file(dict(tensors), work / f"{name}.safetensors")
            _save_optimiser(optimiser, work / "optimiser.pt")
            _write_json(work / "state.json", {**state, "step": step})
        for each in self.path.glob(f"{_PREFIX}*"):
            if each != target:
                shutil.rmtree(each, ignore_errors=True)
        if self._scalars is not None:
            self._scalars.flush()

    def load(
        self, checkpoint: Path, names: tuple[str, ...]
    ) -> tuple[dict[str, dict[str, Tensor]], Any, dict[str, Any]]:
        """What `save` wrote. The optimiser's state is read with `weights_only`, so nothing in it is executed.

        Raises:
            TrainingError: the checkpoint is damaged.
        """
        try:
            weights = {name: load_file(checkpoint / f"{name}.safetensors") for name in names}
            optimiser = torch.load(checkpoint / "optimiser.pt", weights_only=True, map_location="cpu")
            return weights, optimiser, json.loads((checkpoint / "state.json").read_text())
        except (OSError, ValueError, RuntimeError, EOFError, SafetensorError, UnpicklingError) as error:
            raise _damaged(checkpoint, error) from error

    def save_best(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Replaces `best/`.

        Raises:
            TrainingError: it cannot be written; the one before it is still there.
        """
        if not self._writes:
            return
        with self._new_folder(self.path / "best") as work:
            save_file(dict(tensors), work / "model.safetensors")
            _write_json(work / "state.json", dict(state))

    def log(self, **values: Any) -> None:
        """Appends a line to the log; `step` is among the values.

        Raises:
            TrainingError: it cannot be written.
        """
        if not self._writes:
            return
        try:
            with (self.path / "log.jsonl").open("a") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise self._unwritable(self.path / "log.jsonl", error) from error
        if self._scalars is not None:
            self._scalars.add(values)

    def _trim_log(self, step: int) -> None:
        path = self.path / "log.jsonl"
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            _write_text(path, "".join(f"{line}\n" for line in lines))

    @contextlib.contextmanager
    def _new_folder(self, target: Path) -> Iterator[Path]:
        """A folder to be filled, which then takes the place of `target`; one that could not be filled is removed."""
        work = target.with_name(f".{target.name}")
        try:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            yield work
            for each in work.iterdir():
                _to_disk(each)
            _replace(work, target)
        except (OSError, SafetensorError) as error:
            raise self._unwritable(target, error) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _unwritable(self, path: Path, error: Exception) -> TrainingError:
        kept = self.newest()
        left = "no checkpoint was written before" if kept is None else f"{kept} is whole"
        return TrainingError(
            "the run's folder cannot be written", where=str(path), got=str(error).partition("\n")[0],
            expected="room for two checkpoints at a time",
            fix=f"make room on that disk and run the same again: {left}",
        )  # fmt: skip

    def _read_config(self) -> dict[str, Any] | None:
        path = self.path / "config.json"
        try:
            document = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise TrainingError("the run's config cannot be read", where=str(path), got=str(error)) from error
        return document if isinstance(document, dict) else {}

    def _compare(self, recorded: dict[str, Any], wanted: dict[str, Any], added: Mapping[str, Any]) -> None:
        found = _with_defaults(recorded, added)
        keys = (set(found) | set(wanted)) - set(self._flexible)
        if not (changed := sorted(key for key in keys if found.get(key) != wanted.get(key))):
            return
        if ("p" in recorded) != ("p" in wanted):  # all fields differ: naming them would hide what is wrong
            kinds = ("the settings of a re-ranker", "the settings of a backbone")
            got, expected = kinds["p" in wanted], kinds["p" in recorded]
        else:
            more = f", ... ({len(changed)} fields in all)" if len(changed) > _SHOWN else ""
            got, expected = (
                ", ".join(f"{key}={values.get(key)!r}" for key in changed[:_SHOWN]) + more for values in (wanted, found)
            )
        raise OptionError(
            "the folder holds another run", where=str(self.path), got=got, expected=expected,
            fix="choose another folder, or resume with the same configuration",
        )  # fmt: skip


def _with_defaults(recorded: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded settings, and of those that are younger than the run what they meant; in objects inside, too."""
    found = {**added, **recorded}
    for key, value in added.items():
        if isinstance(value, dict) and value and isinstance(found[key], dict):
            found[key] = _with_defaults(found[key], value)
    return found


def _damaged(checkpoint: Path, error: Exception) -> TrainingError:
    return TrainingError(
        "the checkpoint cannot be read", where=str(checkpoint), got=str(error), fix="remove it and start again"
    )


def check_folder(path: Path) -> None:
    """Refuses with OptionError what cannot be the folder of a run: a file, or something below a file or below a folder
    that may not be written to."""
    for each in (path, *path.parents):
        if each.exists():
            if not each.is_dir():
                raise OptionError(
                    "is a file, not a folder",
                    where=str(each),
                    expected="a folder for the run, which may not exist yet",
                    fix="choose another folder with --out",
                )
            if not os.access(each, os.W_OK | os.X_OK):
                raise OptionError(
                    "this folder may not be written to", where=str(each), fix="choose another folder with --out"
                )
            return


def _replace(work: Path, target: Path) -> None:
    # A folder cannot be replaced in one step: the old one stands aside, and `_put_back` takes it where this is cut off.
    aside = _aside(target)
    shutil.rmtree(aside, ignore_errors=True)
    if target.exists():
        os.replace(target, aside)
    os.replace(work, target)
    shutil.rmtree(aside, ignore_errors=True)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}{_ASIDE}")


def _put_back(folder: Path) -> None:
    """Undoes replacements that a killed process has left half done. Several processes may come here at once."""
    for aside in folder.glob(f".*{_ASIDE}"):
        target = folder / aside.name[1 : -len(_ASIDE)]
        if not target.exists():
            with contextlib.suppress(OSError):
                os.replace(aside, target)


def _save_optimiser(state: Any, path: Path) -> None:
    try:
        torch.save(state, path)
    except RuntimeError as error:  # torch's way to say that a file cannot be written
        raise OSError(str(error)) from error


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write_json(path: Path, value: Any) -> None:
    _write_text(path, json.dumps(value, indent=1) + "\n")


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _step_of(line: str) -> float:
    """Of a line of the log; one that was cut off belongs to no step."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
