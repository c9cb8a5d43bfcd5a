"""Global structure-aligned memory bank of GaitMPL (Eq. 8 to 10): one element per identity and strip, M [C, s, d].

    M[i]  = mean of F over the sequences of identity i, before the training                                        (8)
    M[i] <- alpha M[i] + (1 - alpha) (what the batch has of i)           for i present in the batch                (9)
    M[i] <- moved along with the batch, by beta                          for i absent from it                      (9)
    L     = cross-entropy of F M^T / tau  +  variance of F                                                        (10)

In Eq. 10, F and M have norm 1 in every strip (section IV-D3c); the memory keeps features as they are. It has no
gradient, is updated before the loss (Algorithm 1), and is a buffer: part of the state dict, on the module's device.

Several processes: each calls this with the (F, labels) of all ranks, gathered so that gradients pass. The update
follows from those and from the buffers alone, its random choices too, so that every rank keeps the same memory.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gaitsdk.errors import InputError, OptionError, TrainingError
from gaitsdk_training.losses.cross_entropy import cross_entropy

_CHOICES = {
    "element": ("centroid", "hardest", "random", "multi-sequence"),
    "update": ("structure-aligned", "momentum", "hard", "none"),
    "present": ("batch", "identity"),
    "absent": ("printed", "towards", "movement"),
    "variance": ("batch", "identity"),
}
#: Sequences that an identity keeps under "multi-sequence".
_SLOTS = 8


class GSAM(nn.Module):
    """L_GSAM and its memory. `initialise` comes first, or a state dict of an initialised one.

    Args:
        num_identities: C; labels are 0..C-1.
        strips, dims: s and d of F.
        temperature: tau.
        alpha, beta: momentum of the present and of the absent identities, 0..1.
        element: what an identity keeps (Table VII): "centroid"; "hardest", its sequence farthest from what it keeps;
            "random", one of its sequences; "multi-sequence", 8 of them, whose probabilities add up in the softmax.
        update: Table VIII: "structure-aligned" = Eq. 9; "momentum" = its first line (PU); "hard" replaces the present
            identities by what the batch has of them; "none".
        present: "batch" divides by |B| as Eq. 9 prints, so that K of |B| sequences count K / |B|; "identity" divides by
            the identity's own number in the batch.
        absent: "printed" (1 - beta) (B - M) + beta M, with B the mean feature of the batch, takes M to B / 2 for
            beta = 0.9; "towards" (1 - beta) B + beta M; "movement" M + (1 - beta) times the mean of F(b) - M[y_b], the
            way that the present identities went, which keeps the absent ones' differences (Figure 5).
        variance: "batch" about the mean of the whole batch, as Eq. 10 prints; "identity" about the identity's mean in
            the batch, as the text calls it (intra-class).
        variance_weight: factor on that term, which is a squared distance: summed over d, averaged over n and s.
        seed: of "random" and "multi-sequence".

    Attributes:
        memory: [C, s, d] ([C, 8, s, d] for "multi-sequence").

    Raises:
        OptionError: an unknown or impossible value.
    """

    memory: Tensor
    initialised: Tensor
    updates: Tensor

    def __init__(
        self,
        num_identities: int,
        strips: int,
        dims: int,
        temperature: float = 0.1,
        alpha: float = 0.9,
        beta: float = 0.9,
        *,
        element: str = "centroid",
        update: str = "structure-aligned",
        present: str = "batch",
        absent: str = "printed",
        variance: str = "batch",
        variance_weight: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.num_identities, self.strips, self.dims = num_identities, strips, dims
        self.temperature, self.alpha, self.beta = temperature, alpha, beta
        self.element, self.update, self.present, self.absent = element, update, present, absent
        self.variance, self.variance_weight, self.seed = variance, variance_weight, seed
        self._check_options()
        self.slots = _SLOTS if element == "multi-sequence" else 1
        shape = (num_identities, self.slots, strips, dims) if self.slots > 1 else (num_identities, strips, dims)
        self.register_buffer("memory", torch.zeros(shape))
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def initialise(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Eq. 8: fills the memory by one pass over the training data.

        Args:
            pairs: batches (F [n, s, d], labels [n]) that hold every identity; every process needs all of them.
                Elements other than the centroid keep all features on the CPU until the pass is over.

        Raises:
            TrainingError: an identity has no sequence, or features that are not finite; the memory stays as it was.
            InputError: shapes or labels that do not fit.
        """
        sums = torch.zeros_like(self.memory[:, 0] if self.slots > 1 else self.memory)
        counts = torch.zeros(self.num_identities, dtype=torch.int64, device=self.memory.device)
        kept: dict[int, list[Tensor]] = {}
        for features, labels in pairs:
            self._check(features, labels)
            _check_finite(features, labels)
            features, labels = features.to(self.memory), labels.to(counts.device)
            identities, members = _members(labels)
            sums[identities] += torch.einsum("pn,nsd->psd", members.to(features.dtype), features)
            counts[identities] += members.sum(dim=1)
            if self.element != "centroid":
                for label, each in zip(labels.tolist(), features.cpu(), strict=True):
                    kept.setdefault(label, []).append(each)
        _check_complete(counts)
        centroids = sums / counts[:, None, None]
        if self.element != "centroid":
            generator = torch.Generator().manual_seed(self.seed)
            chosen = [self._initial(torch.stack(kept[i]), generator) for i in range(self.num_identities)]
            centroids = torch.stack(chosen)
        self.memory.copy_(centroids.reshape(self.memory.shape))
        self.initialised.fill_(True)
        self.updates.zero_()

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Updates the memory in training mode (`eval()` leaves it alone), then gives the loss.

        Args:
            features: F [n, s, d] floating; half precision is computed in float32, inside autocast too.
            labels: [n] int64 in 0..C-1.

        Returns:
            Scalar >= 0.

        Raises:
            TrainingError: not initialised. InputError: shapes or labels that do not fit.
        """
        return self.detailed(features, labels)[0]

    def detailed(self, features: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """As `forward`; with it, without gradient: cross_entropy, variance, and accuracy (share of right strips)."""
        if not bool(self.initialised):
            raise TrainingError(
                "the memory is empty",
                where="GSAM",
                fix="call initialise(pairs) with the features of all training sequences, or load a state dict",
            )
        self._check(features, labels)
        with torch.autocast(features.device.type, enabled=False):
            features = features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
            if self.training and self.update != "none":
                self._update(features.detach(), labels)
            units = _unit(features)
            logits = self._logits(units)
            entropy = cross_entropy(logits, labels, scale=1.0, label_smoothing=0.0)
            variance = self._variance(units, labels)
        right = (logits.detach().argmax(dim=-1) == labels[:, None]).to(units.dtype).mean()
        terms = {"cross_entropy": entropy.detach(), "variance": variance.detach(), "accuracy": right}
        return entropy + self.variance_weight * variance, terms

    def _logits(self, units: Tensor) -> Tensor:
        """F M^T / tau: [n, s, d] of norm 1 -> [n, s, C]."""
        elements = _unit(self.memory.to(units.dtype)).reshape(-1, self.strips, self.dims)
        logits = torch.bmm(units.transpose(0, 1), elements.permute(1, 2, 0)).transpose(0, 1) / self.temperature
        return logits if self.slots == 1 else logits.reshape(*logits.shape[:2], -1, self.slots).logsumexp(dim=-1)

    def _variance(self, units: Tensor, labels: Tensor) -> Tensor:
        if self.variance == "batch":
            centres = units.mean(dim=0)
        else:
            same = (labels[:, None] == labels[None]).to(units.dtype)
            centres = torch.einsum("nm,msd->nsd", same / same.sum(dim=1, keepdim=True), units)
        return (units - centres).square().sum(dim=-1).mean()

    @torch.no_grad()
    def _update(self, features: Tensor, labels: Tensor) -> None:
        """Eq. 9, in place."""
        features = features.to(self.memory.dtype)
        identities, members = _members(labels)
        memory = self.memory.view(self.num_identities, self.slots, self.strips, self.dims)
        old = memory[identities]  # a copy
        new = self._batch_elements(features, members, old)  # [p, slots, s, d]
        self.updates += 1
        if self.update == "hard":
            memory[identities] = new
            return
        if self.present == "batch":
            new = new * (members.to(new.dtype).sum(dim=1) / len(labels))[:, None, None, None]
        if self.update == "structure-aligned":
            mean = features.mean(dim=0)
            if self.absent == "movement":
                per_sequence = features - torch.einsum("pn,psd->nsd", members.to(old.dtype), old.mean(dim=1))
                memory += (1.0 - self.beta) * per_sequence.mean(dim=0)
            else:
                kept = self.beta if self.absent == "towards" else 2.0 * self.beta - 1.0
                memory.mul_(kept).add_(mean, alpha=1.0 - self.beta)
        # Those present, last: the lines above moved everybody.
        memory[identities] = (1.0 - self.alpha) * new + self.alpha * old

    def _batch_elements(self, features: Tensor, members: Tensor, old: Tensor) -> Tensor:
        """What the batch has of each identity in it: [p, slots, s, d]."""
        if self.element == "centroid":
            sums = torch.einsum("pn,nsd->psd", members.to(features.dtype), features)
            return (sums / members.sum(dim=1)[:, None, None]).unsqueeze(1)
        if self.element == "hardest":
            scores = (features[None] - old).norm(dim=-1).mean(dim=-1)[:, None]  # [p, 1, n]
        else:
            generator = torch.Generator().manual_seed(self.seed + 1 + int(self.updates))
            scores = torch.rand(1, self.slots, len(features), generator=generator).to(features.device)
        return features[scores.masked_fill(~members[:, None], -torch.inf).argmax(dim=-1)]

    def _initial(self, features: Tensor, generator: torch.Generator) -> Tensor:
        """The element of an identity with these sequences [k, s, d]: [s, d], or [8, s, d], repeated where k < 8."""
        if self.element == "hardest":
            return features[(features - features.mean(dim=0)).norm(dim=-1).mean(dim=-1).argmax()]
        order = torch.randperm(len(features), generator=generator)
        return features[order[torch.arange(self.slots) % len(order)]]

    def _check(self, features: Tensor, labels: Tensor) -> None:
        shape = (len(labels), self.strips, self.dims)
        if features.shape != shape or labels.dim() != 1 or not features.is_floating_point() or not len(labels):
            raise InputError(
                "features and labels do not fit the memory",
                where="GSAM",
                got=f"{features.dtype} {tuple(features.shape)} and {tuple(labels.shape)}",
                expected=f"floating [n, {self.strips}, {self.dims}] and [n], n > 0",
            )
        if labels.dtype != torch.int64 or int(labels.min()) < 0 or int(labels.max()) >= self.num_identities:
            raise InputError(
                "labels without a place in the memory",
                where="GSAM",
                got=f"{labels.dtype}, {int(labels.min())} to {int(labels.max())}",
                expected=f"int64, 0 to {self.num_identities - 1}",
                fix="number the training identities from 0",
            )

    def _check_options(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise OptionError(
                    "unknown value", where=f"GSAM.{name}", got=repr(getattr(self, name)), expected=", ".join(choices)
                )
        for name in ("num_identities", "strips", "dims"):
            if getattr(self, name) < 1:
                raise OptionError("must be at least 1", where=f"GSAM.{name}", got=getattr(self, name))
        if not self.temperature > 0.0:
            raise OptionError("must be positive", where="GSAM.temperature", got=self.temperature)
        for name in ("alpha", "beta"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise OptionError("must lie between 0 and 1", where=f"GSAM.{name}", got=getattr(self, name))


def _members(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The p identities of a batch, ascending, and bool [p, n]: whose sequence is whose."""
    identities = torch.unique(labels)
    return identities, identities[:, None] == labels[None]


def _unit(features: Tensor) -> Tensor:
    """Norm 1 over the last axis; what is 0 stays 0, with a gradient that does not explode."""
    norms: Tensor = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    return features / norms.masked_fill(norms == 0, 1.0)


def _check_complete(counts: Tensor) -> None:
    missing = (counts == 0).nonzero().flatten().tolist()
    if missing:
        more = ", ..." if len(missing) > 20 else ""
        raise TrainingError(
            "identities without any sequence in the pass that fills the memory",
            where="GSAM.initialise",
            got=f"{len(missing)} of {len(counts)} missing: {', '.join(map(str, missing[:20]))}{more}",
            expected="at least one sequence of each",
            fix="pass all training sequences, and number only identities that have some",
        )


def _check_finite(features: Tensor, labels: Tensor) -> None:
    broken = sorted(set(labels[~features.flatten(1).isfinite().all(dim=1)].tolist()))
    if broken:
        raise TrainingError(
            "features are not finite",
            where="GSAM.initialise",
            got=f"NaN or infinity in a sequence of {', '.join(map(str, broken[:20]))}",
            fix="check their silhouettes and the network's weights",
        )
