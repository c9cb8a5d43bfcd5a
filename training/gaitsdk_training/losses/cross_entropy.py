"""Cross-entropy over the identities of the training set, strip by strip.

    L = mean over n and s of  -sum_c q_c log softmax(scale * logits)_c,   q = (1 - e) one_hot(label) + e / C

with label smoothing e (Szegedy et al., 2016, section 7). `scale` is the temperature of a cosine classifier behind a BN
neck (16 in the gait field); a classifier with free norms takes 1.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from gaitsdk.errors import InputError


def cross_entropy(logits: Tensor, labels: Tensor, scale: float = 16.0, label_smoothing: float = 0.1) -> Tensor:
    """The loss.

    Args:
        logits: [n, s, C], or [n, C] for one classifier per sequence.
        labels: [n] int64 in 0..C-1.
        scale: factor on the logits.
        label_smoothing: e, 0..1.

    Returns:
        Scalar >= 0, the mean over sequences and strips.

    Raises:
        InputError: shapes that do not belong together.
    """
    if logits.dim() not in (2, 3) or labels.shape != logits.shape[:1]:
        raise InputError(
            "logits and labels do not belong together",
            where="cross-entropy",
            got=f"{tuple(logits.shape)} and {tuple(labels.shape)}",
            expected="[n, s, C] (or [n, C]) and [n]",
        )
    strips = 1 if logits.dim() == 2 else logits.shape[1]
    flat = logits.reshape(-1, logits.shape[-1]) * scale
    return F.cross_entropy(flat, labels.repeat_interleave(strips), label_smoothing=label_smoothing)
