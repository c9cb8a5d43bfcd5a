"""Several processes that train one network, as torchrun starts them: each has rows of every batch, all take one step.

Losses and weights are those of a single process with the whole batch, up to rounding:

* batches are split by rows (`BatchLoader(share=...)`): row i belongs to process i mod world;
* outputs are joined (`gather`), and every process computes the loss of the whole batch, for triplets and GSAM need all
  of it; into its own rows flows its own part of the gradient, and the parts are added up (`add_gradients`);
* batch norm takes its mean and variance over all rows (`synchronise`).

Only the first process writes, validates and shows progress; `agree` keeps the others in step with it. Where one ends,
the next word with it fails, and the others end with a TrainingError.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gaitsdk.errors import OptionError, TrainingError
from gaitsdk_training.features import pick_device
from gaitsdk_training.interruption import TrainingStopped

#: How long the others wait for the first process, which validates and writes meanwhile. One that ends is noticed at
#: once, whatever this says.
_PATIENCE = timedelta(hours=24)
#: Not empty while there is a process group that this module has made.
_made_here: list[bool] = []


def is_first() -> bool:
    """Whether this process is the only one, or the first of several: the one that prints and writes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return int(os.environ.get("RANK", "0")) == 0 or _world() == 1


def process_device(device: str) -> torch.device:
    """`pick_device`, and where several processes run on this machine the n-th GPU for the n-th of them.

    Raises:
        OptionError: as `pick_device`; all processes on one GPU, or more of them than GPUs.
    """
    chosen = pick_device(device)
    local, count = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if chosen.type == "cpu" or _world() == 1:
        return chosen
    if device not in ("auto", "cuda") and count > 1:
        raise OptionError(
            "several processes cannot train on one GPU", where="device", got=f"{device!r} for {count} processes",
            expected="auto, cuda or cpu", fix="use --device auto: each process takes a GPU of its own",
        )  # fmt: skip
    if local >= torch.cuda.device_count():
        raise OptionError(
            "more processes than GPUs", where="torchrun --nproc-per-node", got=count,
            expected=f"at most {torch.cuda.device_count()}", fix="start fewer, or use --device cpu",
        )  # fmt: skip
    return chosen if device not in ("auto", "cuda") else torch.device("cuda", local)


@dataclass(frozen=True)
class Processes:
    """This process among those of its run; with a world of 1 everything below is the identity.

    Attributes:
        device: where this process computes.
        rank: its number. world: how many there are.
        words: the group in which they agree, by CPU tensors; None = the default one.
    """

    device: torch.device
    rank: int = 0
    world: int = 1
    words: dist.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @property
    def share(self) -> tuple[int, int]:
        """(rank, world), as `BatchLoader` takes it."""
        return self.rank, self.world

    def check_batch(self, rows: int, where: str) -> None:
        """Refuses with OptionError a batch that cannot be split into equal parts."""
        if rows % self.world:
            raise OptionError(
                "the batch cannot be split evenly", where=where, got=f"{rows} rows over {self.world} processes",
                expected=f"a multiple of {self.world}", fix="change the batch or the number of processes",
            )  # fmt: skip

    def gather(self, rows: Tensor) -> Tensor:
        """Rows of all processes in the order of the whole batch: [n, ...] -> [n * world, ...].

        For what every process then uses in the same way: the gradient of its own rows flows back, and no other.
        """
        if self.world == 1:
            return rows
        joined: Tensor = _Gather.apply(rows, self)  # type: ignore[no-untyped-call]
        return joined

    def mean(self, value: Tensor) -> Tensor:
        """Mean over the processes, of a loss that is a mean over the rows; its gradient is a 1/world of it in each."""
        if self.world == 1:
            return value
        mean: Tensor = _Mean.apply(value, self)  # type: ignore[no-untyped-call]
        return mean

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Adds up the parameters' gradients over the processes, in place."""
        gradients = [each.grad for each in parameters if each.grad is not None]
        if self.world == 1 or not gradients:
            return
        flat = self.sum(torch.cat([each.flatten() for each in gradients]))
        for each, part in zip(gradients, torch.split(flat, [each.numel() for each in gradients]), strict=True):
            each.copy_(part.view_as(each))

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the processes, in place and without gradient."""
        if self.world > 1:
            self.call(dist.all_reduce, values)
        return values

    def agree(self, done: float, stop: bool) -> tuple[float, bool]:
        """What all go by: the first process's share of the run, and whether anyone was asked to stop."""
        if self.world == 1:
            return done, stop
        values = torch.tensor([done if self.leads else 0.0, float(stop)], dtype=torch.float64)
        self.call(dist.all_reduce, values, op=dist.ReduceOp.MAX, group=self.words)
        return float(values[0]), bool(values[1])

    def copy_first(self, module: nn.Module) -> None:
        """Gives every process the first one's state of this module, when it has it."""
        if self.world > 1:
            self.wait()
            for value in module.state_dict().values():
                self.call(dist.broadcast, value, src=0)

    def synchronise(self, model: nn.Module) -> None:
        """Makes the model's batch norms take their statistics over all processes; its state keeps its names."""
        if self.world == 1:
            return
        if self.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
            return
        from gaitsdk_training.batch_norm import convert

        convert(model, self.sum, self.world)

    def wait(self) -> None:
        """Until all are here."""
        self.agree(0.0, False)

    def call(self, collective: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        """A collective operation.

        Raises:
            TrainingError: another process has ended.
        """
        try:
            collective(*arguments, **options)
        except RuntimeError as error:
            raise TrainingError(
                "another process of this run has ended", where=f"process {self.rank} of {self.world}",
                got=str(error).partition("\n")[0], fix="see what that process says; its last checkpoint is good",
            ) from error  # fmt: skip


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """The processes of this run: those that torchrun (or whoever sets its variables) started, or this one alone.

    A process group that exists already is used and left as it is. One that is made here stays for the next training of
    this process; where this one fails it is given up, so that the other processes notice.

    Raises:
        OptionError: see `process_device`. TrainingError: the processes do not find each other.
    """
    chosen = process_device(device)
    if _world() == 1:
        yield Processes(chosen)
        return
    if not dist.is_initialized():
        _meet(chosen)
    words = dist.new_group(backend="gloo", timeout=_PATIENCE)
    try:
        yield Processes(chosen, dist.get_rank(), dist.get_world_size(), words)
    except TrainingStopped:  # all of them have stopped
        raise
    except BaseException:
        _part()
        raise


def _meet(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("gloo" if device.type == "cpu" else "nccl")
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            "the processes do not find each other", where="torch.distributed", got=str(error).partition("\n")[0],
            expected="the variables RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT", fix="start them by torchrun",
        ) from error  # fmt: skip
    _made_here.append(True)
    atexit.register(_part)


def _part() -> None:
    if _made_here and dist.is_initialized():
        dist.destroy_process_group()
    _made_here.clear()


def _world() -> int:
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: Processes) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(group.world)]
        group.call(dist.all_gather, parts, rows.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[ctx.group.rank :: ctx.group.world], None


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Processes) -> Tensor:
        ctx.world = group.world
        return group.sum(value.clone()) / group.world

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient / ctx.world, None
