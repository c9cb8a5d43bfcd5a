"""Checkpoints of a training run: folders that appear whole or not at all, and a log that follows them.

out/config.json             what is trained and how
out/log.jsonl               one JSON object per line
out/checkpoint-000500/      model.safetensors, more weights, optimiser.pt, state.json; only the newest is kept
out/best/                   model.safetensors and state.json of the best validation
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gaitsdk.errors import OptionError, TrainingError

_PREFIX = "checkpoint-"


class Run:
    """The folder of one run. It is looked at first; nothing is written before `begin`.

    Args:
        out: the folder; made by `begin` where it is missing.
        config: what the run is, JSON-able. A folder that holds another run is refused.
        resume: continue what is there; False refuses a folder that holds a checkpoint.
        flexible: keys of `config` that may change when a run is continued (how long it is to take, for example).
        added: keys that older runs do not record, and the values that they meant.

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
    ) -> None:
        self.path = Path(out)
        check_folder(self.path)
        self._flexible = flexible
        self._config = plain = json.loads(json.dumps(dict(config)))
        found = self._read_config()
        if found is not None and not resume and self.newest() is not None:
            raise OptionError(
                "the folder holds a run already", where=str(self.path), fix="resume it, or choose another folder"
            )
        if found is not None and resume and self.newest() is not None:
            self._compare({**(added or {}), **found}, plain)

    def begin(self) -> None:
        """Makes the folder and writes the configuration; call it when nothing speaks against the run any more.

        Raises:
            OptionError: the folder cannot be made or written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            _write_json(self.path / "config.json", self._config)
        except OSError as error:
            raise OptionError(
                "the run's folder cannot be written",
                where=str(self.path),
                got=str(error),
                fix="choose another folder with --out",
            ) from error

    def newest(self) -> Path | None:
        """The newest complete checkpoint."""
        found = sorted(each for each in self.path.glob(f"{_PREFIX}*") if (each / "state.json").exists())
        return found[-1] if found else None

    def save(
        self, step: int, weights: Mapping[str, Mapping[str, Tensor]], optimiser: Any, state: Mapping[str, Any]
    ) -> Path:
        """Writes a checkpoint and removes older ones.

        Args:
            step: of the run.
            weights: name -> state dict; each becomes NAME.safetensors.
            optimiser: its state dict.
            state: JSON-able; `step` is added.
        """
        target = self.path / f"{_PREFIX}{step:07d}"
        work = self._empty(f".{target.name}")
        for name, tensors in weights.items():
            save_file(dict(tensors), work / f"{name}.safetensors")
        torch.save(optimiser, work / "optimiser.pt")
        _write_json(work / "state.json", {**state, "step": step})
        _replace(work, target)
        for each in self.path.glob(f"{_PREFIX}*"):
            if each != target:
                shutil.rmtree(each, ignore_errors=True)
        return target

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
        except (OSError, ValueError, RuntimeError) as error:
            raise TrainingError(
                "the checkpoint cannot be read", where=str(checkpoint), got=str(error), fix="remove it and start again"
            ) from error

    def save_best(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        """Replaces `best/`."""
        target = self.path / "best"
        work = self._empty(".best")
        save_file(dict(tensors), work / "model.safetensors")
        _write_json(work / "state.json", dict(state))
        _replace(work, target)
        return target

    def log(self, **values: Any) -> None:
        """Appends a line to the log."""
        with (self.path / "log.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")

    def trim_log(self, step: int) -> None:
        """Drops lines of steps after `step`, which a resumed run does again."""
        path = self.path / "log.jsonl"
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            path.write_text("".join(f"{line}\n" for line in lines))

    def _empty(self, name: str) -> Path:
        work = self.path / name
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        return work

    def _read_config(self) -> dict[str, Any] | None:
        path = self.path / "config.json"
        try:
            document = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise TrainingError("the run's config cannot be read", where=str(path), got=str(error)) from error
        return document if isinstance(document, dict) else {}

    def _compare(self, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        keys = (set(found) | set(wanted)) - set(self._flexible)
        if changed := sorted(key for key in keys if found.get(key) != wanted.get(key)):
            raise OptionError(
                "the folder holds another run",
                where=str(self.path),
                got=", ".join(f"{key}={wanted.get(key)!r}" for key in changed),
                expected=", ".join(f"{key}={found.get(key)!r}" for key in changed),
                fix="choose another folder, or resume with the same configuration",
            )


def check_folder(path: Path) -> None:
    """Refuses with OptionError what can never be the folder of a run: a file, or something below a file."""
    for each in (path, *path.parents):
        if each.exists():
            if not each.is_dir():
                raise OptionError(
                    "is a file, not a folder",
                    where=str(each),
                    expected="a folder for the run, which may not exist yet",
                    fix="choose another folder with --out",
                )
            return


def _replace(work: Path, target: Path) -> None:
    # A folder cannot be replaced in one step; a crash in between loses this one, never mixes two.
    shutil.rmtree(target, ignore_errors=True)
    os.replace(work, target)


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 0
