"""From a loss to a step of the optimiser: precision, gradients of all processes, and their norm."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from gaitsdk.errors import OptionError
from gaitsdk_training.processes import Processes

#: What the networks compute in; weights, losses and the optimiser stay in float32.
PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
#: Below this scale of the loss, gradients that overflow in half precision are no longer the scale's fault.
_LEAST_SCALE = 1.0


def check_precision(precision: str, device: torch.device) -> None:
    """Refuses a precision that the device does not have.

    Raises:
        OptionError: no such precision, fp16 on a CPU, or bf16 on a GPU without it.
    """
    if precision not in PRECISIONS:
        raise OptionError("unknown value", where="precision", got=repr(precision), expected=", ".join(PRECISIONS))
    if precision == "fp16" and device.type == "cpu":
        raise OptionError(
            "fp16 trains on GPUs only", where="precision", got="'fp16' on the CPU", expected="fp32 or bf16",
            fix="use bf16, which needs no scaling of the loss, or fp32",
        )  # fmt: skip
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise OptionError(
            "this GPU does not compute in bf16", where="precision", got=f"'bf16' on {device}", expected="fp32 or fp16",
            fix="use fp16",
        )  # fmt: skip


class Optimising:
    """Steps of one network.

    Args:
        model: its parameters are trained.
        optimiser: of these.
        precision: one of `PRECISIONS`.
        clip_norm: largest gradient norm; None = not clipped.
        group: the processes that share the step.

    Raises:
        OptionError: see `check_precision`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        precision: str,
        clip_norm: float | None,
        group: Processes,
    ) -> None:
        check_precision(precision, group.device)
        self.optimiser = optimiser
        self._parameters = [each for each in model.parameters() if each.requires_grad]
        self._dtype = PRECISIONS[precision]
        self._limit = math.inf if clip_norm is None else clip_norm
        self._group = group
        self._scaler = torch.amp.GradScaler(group.device.type, enabled=precision == "fp16")

    def autocast(self) -> torch.autocast:
        """The context for the network's forward pass; losses are computed outside it."""
        return torch.autocast(self._group.device.type, dtype=self._dtype, enabled=self._dtype is not None)

    def set_rate(self, rate: float) -> None:
        """Sets the learning rate, times each group's own factor."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)  # none in checkpoints that are older than `rates`

    def gradients(self, loss: Tensor) -> float:
        """Computes the gradients, those of all processes together, and clips them; gives their norm before that."""
        self.optimiser.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._group.add_gradients(self._parameters)
        self._scaler.unscale_(self.optimiser)
        return float(nn.utils.clip_grad_norm_(self._parameters, self._limit))

    def usable(self, norm: float) -> bool:
        """Whether the run can go on: in fp16 an overflow leaves one step out and lowers the scale, up to a limit."""
        return math.isfinite(norm) or (self._scaler.is_enabled() and self._scaler.get_scale() >= _LEAST_SCALE)

    def step(self) -> None:
        """Changes the weights, unless a gradient has overflowed in fp16."""
        self._scaler.step(self.optimiser)
        self._scaler.update()

    def report(self, norm: float) -> dict[str, Any]:
        """What the log would say."""
        norms = {"gradient_norm": norm if math.isfinite(norm) else None}
        return {**norms, "loss_scale": self._scaler.get_scale()} if self._scaler.is_enabled() else norms

    def scaler_state(self) -> dict[str, Any]:
        """JSON-able; {} where the loss is not scaled."""
        return self._scaler.state_dict()

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        """Takes what `scaler_state` gave; {} leaves everything as it is."""
        if state and self._scaler.is_enabled():
            self._scaler.load_state_dict(state)
