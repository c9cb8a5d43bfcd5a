"""Blocks that compute what plain PyTorch computes, only faster on a CPU."""

from __future__ import annotations

import itertools

import pytest

torch = pytest.importorskip("torch")

from gaitsdk.models.blocks import maximum_over  # noqa: E402 (after the check that torch is there)
from gaitsdk.models.windows import TokenLinear  # noqa: E402

FORMATS = (torch.contiguous_format, torch.channels_last_3d)
SHAPES = ((1, 7, 30, 5, 6), (3, 4, 2, 5, 1), (2, 1, 9, 1, 6), (1, 1, 1, 1, 1))


@pytest.mark.parametrize(("shape", "memory"), itertools.product(SHAPES, FORMATS))
def test_maximum_over_is_amax_in_every_memory_format(shape: tuple[int, ...], memory: torch.memory_format) -> None:
    x = torch.rand(shape).contiguous(memory_format=memory)
    for dim in range(5):
        assert torch.equal(maximum_over(x, dim), x.amax(dim))
    for part in (x[0], x[:, :, 1:] if shape[2] > 1 else x, x.transpose(1, 2)):
        for dim in range(part.dim()):
            assert torch.equal(maximum_over(part, dim), part.amax(dim))


@pytest.mark.parametrize("memory", FORMATS)
def test_the_gradient_is_that_of_amax_and_ties_share_it(memory: torch.memory_format) -> None:
    x = torch.randint(0, 3, (2, 3, 8, 4, 5)).float().contiguous(memory_format=memory)  # full of ties
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    weights = torch.rand(2, 3, 4, 5)
    (maximum_over(ours, 2) * weights).sum().backward()
    (theirs.amax(2) * weights).sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_maximum_of_maps_with_channels_last_has_channels_last() -> None:
    x = torch.rand(2, 6, 5, 4, 3).contiguous(memory_format=torch.channels_last_3d)
    assert maximum_over(x, 2).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(1, 45, 8), (2, 90, 8), (7, 8), (2, 3, 4, 8)])
def test_a_token_linear_is_a_linear_map_with_and_without_gradients(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer, x = TokenLinear(8, 24), torch.rand(shape)
    expected = torch.nn.functional.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected)
    with torch.no_grad():
        y = layer(x)
        assert y.shape == (*shape[:-1], 24)
        torch.testing.assert_close(y, expected)
        reversed_ = x.flip(0)[::2]  # every other, so not contiguous
        torch.testing.assert_close(layer(reversed_), expected.flip(0)[::2])
