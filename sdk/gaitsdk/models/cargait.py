"""CarGait (Habib et al.): cross-attention between the strips of a probe and of each of its candidates.

One multi-head cross-attention block is used twice with the roles swapped (section 3 of the paper):

    E_p = F_p + Attention(query F_p, key and value F_c) W_o
    E_c = F_c + Attention(query F_c, key and value F_p) W_o

and the new distance d^r is the mean over strips of the Euclidean distance between corresponding strips of E_p and E_c.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gaitsdk.errors import InputError, OptionError
from gaitsdk.models.blocks import is_tracing


class CarGait(nn.Module):
    """The re-ranker. Section 4.3 of the paper: a single block, 8 heads, hidden width 256.

    The output projection starts at zero, so an untrained CarGait keeps the shortlist's order and distances. Biases
    are left out where they change no distance: on keys they cancel in the softmax, on values and on the output they
    add the same vector to E_p and E_c.

    Args:
        dims: d of the backbone's feature map.
        width: hidden width, divisible by `heads`; d is projected to it and back, so d may differ.
        heads: attention heads.
        num_classes: identities of the training set, for `classify`; None = no classifier (inference).

    Raises:
        OptionError: a value is not positive, or heads do not divide the width.
    """

    name: ClassVar[str] = "cargait"

    def __init__(self, dims: int = 256, width: int = 256, heads: int = 8, num_classes: int | None = None) -> None:
        super().__init__()
        _check_options(dims, width, heads, num_classes)
        self.dims, self.width, self.heads, self.num_classes = dims, width, heads, num_classes
        self.query = nn.Linear(dims, width)
        self.key = nn.Linear(dims, width, bias=False)
        self.value = nn.Linear(dims, width, bias=False)
        self.output = nn.Linear(width, dims, bias=False)
        self.classifier: nn.Sequential | None = None
        if num_classes is not None:
            self.classifier = nn.Sequential(nn.Linear(dims, width), nn.ReLU(), nn.Linear(width, num_classes))
        for projection in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(projection.weight)
        nn.init.zeros_(self.query.bias)
        nn.init.zeros_(self.output.weight)

    @property
    def options(self) -> dict[str, Any]:
        """Plain JSON-able values: `CarGait(**model.options)` builds the same network."""
        return {"dims": self.dims, "width": self.width, "heads": self.heads, "num_classes": self.num_classes}

    def forward(self, probe: Tensor, candidates: Tensor) -> Tensor:
        """Re-ranking distances d^r; lower is nearer.

        Computed without E: E_p - E_c = (F_p - F_c) + (O_p - O_c) W_o, so one output projection serves both
        directions, and the probe's query, key and value are computed once for all K candidates.

        Args:
            probe: F_p [B, s, d]. candidates: F_c [B, K, s, d] of each probe's K candidates.

        Returns:
            distances [B, K] float32 (float64 for float64 inputs); each depends on its own pair alone.

        Raises:
            InputError: shapes that do not belong together.
        """
        self._check(probe, candidates)
        batch, count, strips = candidates.shape[0], candidates.shape[1], candidates.shape[2]
        size = self.width // self.heads
        flat = candidates.reshape(batch, count * strips, self.dims)
        query_p, key_p, value_p = self._project(probe)  # [B, h, s, e]
        query_c, key_c, value_c = self._project(flat)  # [B, h, K*s, e]

        # The probe's strips attend to each candidate's strips: softmax over one candidate at a time.
        scores = self._scores(query_p, key_c).reshape(batch, self.heads, strips, count, strips)
        weights = _softmax(scores.transpose(2, 3))  # [B, h, K, s, s]
        attended_p = torch.matmul(weights, value_c.reshape(batch, self.heads, count, strips, size))
        # Each candidate's strips attend to the probe's strips.
        weights = _softmax(self._scores(query_c, key_p))  # [B, h, K*s, s]
        attended_c = torch.matmul(weights, value_p).reshape(batch, self.heads, count, strips, size)

        change = (attended_p - attended_c).permute(0, 2, 3, 1, 4).reshape(batch, count, strips, self.width)
        return _mean_norm(probe.unsqueeze(1) - candidates + self.output(change))

    def attend(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Conditioned features, the plain way.

        Args:
            a, b: F of both sequences of each pair, [B, s, d].

        Returns:
            E_a (a conditioned on b) and E_b (b conditioned on a), [B, s, d] each.
        """
        self._check(a, b.unsqueeze(1))
        (query_a, key_a, value_a), (query_b, key_b, value_b) = self._project(a), self._project(b)
        attended_a = torch.matmul(_softmax(self._scores(query_a, key_b)), value_b)
        attended_b = torch.matmul(_softmax(self._scores(query_b, key_a)), value_a)
        return a + self.output(_join(attended_a)), b + self.output(_join(attended_b))

    def attention(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Attention weights of both directions, for explanations.

        Args:
            a, b: [B, s, d].

        Returns:
            [B, heads, s, s] each: row i of the first = what strip i of `a` takes from the strips of `b`; rows sum to 1.
        """
        self._check(a, b.unsqueeze(1))
        (query_a, key_a, _), (query_b, key_b, _) = self._project(a), self._project(b)
        return _softmax(self._scores(query_a, key_b)), _softmax(self._scores(query_b, key_a))

    def classify(self, attended: Tensor) -> Tensor:
        """Logits of the MLP classifier for the cross-entropy term of the loss, Eq. (2).

        The MLP is shared by the strips and its logits are averaged over them, so that any number of strips fits.

        Args:
            attended: E [B, s, d].

        Returns:
            logits [B, C].

        Raises:
            OptionError: the model was made without classifier.
        """
        if self.classifier is None:
            raise OptionError(
                "this CarGait has no classifier", where="CarGait.classify", fix="create it with num_classes=C"
            )
        logits: Tensor = self.classifier(attended)
        return logits.mean(dim=1)

    def for_inference(self) -> CarGait:
        """A copy in eval mode without the classifier: what a bundle stores and an exporter takes."""
        copy = CarGait(self.dims, self.width, self.heads)
        state = self.state_dict()
        copy.load_state_dict({key: state[key] for key in copy.state_dict()})
        return copy.to(device=self.output.weight.device, dtype=self.output.weight.dtype).eval()

    def _project(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, n, d] -> query, key, value, [B, heads, n, width / heads] each."""
        batch, count = features.shape[0], features.shape[1]
        shape = (batch, count, self.heads, self.width // self.heads)
        query, key, value = (
            projection(features).reshape(shape).transpose(1, 2) for projection in (self.query, self.key, self.value)
        )
        return query, key, value

    def _scores(self, query: Tensor, key: Tensor) -> Tensor:
        return torch.matmul(query * (1.0 / math.sqrt(self.width // self.heads)), key.transpose(-1, -2))

    def _check(self, probe: Tensor, candidates: Tensor) -> None:
        if is_tracing():
            return  # sizes are traced values there
        expected = (
            probe.dim() == 3
            and candidates.dim() == 4
            and probe.shape[0] == candidates.shape[0]
            and probe.shape[1:] == candidates.shape[2:]
            and probe.shape[2] == self.dims
        )
        if not expected:
            raise InputError(
                "probe and candidates do not belong together",
                where="CarGait",
                got=f"{tuple(probe.shape)} and {tuple(candidates.shape)}",
                expected=f"[B, s, {self.dims}] and [B, K, s, {self.dims}]",
            )


def _check_options(dims: int, width: int, heads: int, num_classes: int | None) -> None:
    values = {"dims": dims, "width": width, "heads": heads, "num_classes": 1 if num_classes is None else num_classes}
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise OptionError(f"option '{name}' is impossible", where="CarGait", got=repr(value), expected="an int > 0")
    if width % heads:
        raise OptionError(
            "the heads do not divide the width", where="CarGait", got=f"width={width}, heads={heads}",
            fix="choose a width that is a multiple of heads",
        )  # fmt: skip


def _at_least_fp32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _softmax(scores: Tensor) -> Tensor:
    """Softmax over the last axis in fp32, whatever the network's precision."""
    return torch.softmax(_at_least_fp32(scores), dim=-1).to(scores.dtype)


def _join(heads: Tensor) -> Tensor:
    """[B, heads, n, e] -> [B, n, heads * e]."""
    return heads.transpose(1, 2).flatten(2)


def _mean_norm(difference: Tensor) -> Tensor:
    """[..., s, d] -> mean over strips of the Euclidean norm; its gradient at a zero difference is zero, not NaN."""
    norms: Tensor = torch.linalg.vector_norm(_at_least_fp32(difference), dim=-1)
    return norms.mean(dim=-1)
