"""Total loss of GaitMPL (Eq. 11), as one object for a training loop:

    L = L_triplet + gamma_t L_GSAM

with L_triplet = L_DRPL, or the plain batch-all triplet loss where GSAM is tried alone. Further losses of a backbone,
such as the cross-entropy of its classifier, are the loop's to add.
"""

from __future__ import annotations

from torch import Tensor, nn

from gaitsdk.errors import OptionError
from gaitsdk_training.losses.drpl import DRPL
from gaitsdk_training.losses.gsam import GSAM
from gaitsdk_training.losses.schedules import fusion_at
from gaitsdk_training.losses.triplet import triplet_batch_all


class GaitMPLLoss(nn.Module):
    """L of Eq. 11. Its state dict, the memory, belongs into the checkpoint beside the model's.

    Args:
        total_steps: T of gamma_t.
        drpl: L_DRPL; None = `triplet_batch_all`.
        gsam: L_GSAM, initialised before the first step; None = without.
        fusion: kind of gamma_t (Table IX), see `fusion_at`.
        margin: of the plain triplet loss where drpl is None.

    Raises:
        OptionError: unknown fusion, total_steps not positive, or another than that of drpl.
    """

    def __init__(
        self,
        total_steps: float,
        *,
        drpl: DRPL | None = None,
        gsam: GSAM | None = None,
        fusion: str = "sine",
        margin: float = 0.2,
    ) -> None:
        super().__init__()
        fusion_at(0, total_steps, fusion)  # refuses what would fail at the first step
        if drpl is not None and drpl.total_steps != total_steps:
            raise OptionError(
                "the parts disagree on the length of the run",
                where="GaitMPLLoss",
                got=f"total_steps={total_steps}, DRPL has {drpl.total_steps}",
                fix="give both the same",
            )
        self.total_steps, self.fusion, self.margin = total_steps, fusion, margin
        self.drpl, self.gsam = drpl, gsam

    def forward(self, features: Tensor, labels: Tensor, step: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its terms. In training mode it updates the memory: once per step, before `backward`.

        Args:
            features: F [n, s, d] floating; half precision is computed in float32. With several processes, those of all
                of them (see `gsam`).
            labels: [n] int64; 0..C-1 with GSAM.
            step: t, 0..total_steps; held at the end beyond it.

        Returns:
            Scalar >= 0, and scalars without gradient for the log: "triplet"; with DRPL "drpl/..." (`DRPL.detailed`);
            with GSAM "fusion" (gamma_t), "gsam" (before gamma_t) and "gsam/..." (`GSAM.detailed`).

        Raises:
            InputError: shapes or labels that do not fit. TrainingError: GSAM is not initialised.
        """
        terms: dict[str, Tensor] = {}
        if self.drpl is None:
            half = features.element_size() < 4
            loss = triplet_batch_all(features.float() if half else features, labels, self.margin)
        else:
            loss, parts = self.drpl.detailed(features, labels, step)
            terms |= {f"drpl/{name}": value for name, value in parts.items()}
        terms["triplet"] = loss.detach()
        if self.gsam is not None:
            gamma = fusion_at(step, self.total_steps, self.fusion)
            memory_loss, parts = self.gsam.detailed(features, labels)
            loss = loss + gamma * memory_loss
            terms |= {f"gsam/{name}": value for name, value in parts.items()}
            terms |= {"gsam": memory_loss.detach(), "fusion": memory_loss.new_tensor(gamma)}
        return loss, terms
