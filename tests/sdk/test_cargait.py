"""CarGait: what the paper's section 3 says, however it is computed."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gaitsdk.errors import InputError, OptionError
from gaitsdk.models import CarGait

SHAPES = [(16, 256, 256), (62, 256, 256), (16, 128, 256), (5, 24, 64)]  # strips, dims, width


def _model(dims: int, width: int, num_classes: int | None = None) -> CarGait:
    """A CarGait with weights as after training: no projection is zero."""
    torch.manual_seed(0)
    model = CarGait(dims, width, num_classes=num_classes)
    torch.nn.init.normal_(model.output.weight, 0.0, 0.5 / width**0.5)
    torch.nn.init.normal_(model.query.bias, 0.0, 0.5)
    return model


def _features(batch: int, count: int, strips: int, dims: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, strips, dims, generator=generator),
        torch.randn(batch, count, strips, dims, generator=generator),
    )


def _mean_of_strips(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).norm(dim=-1).mean(dim=-1)


@pytest.mark.parametrize(("strips", "dims", "width"), SHAPES)
def test_untrained_keeps_the_shortlist(strips: int, dims: int, width: int) -> None:
    probe, candidates = _features(3, 10, strips, dims)
    model = CarGait(dims, width)
    distances = model(probe, candidates)
    shortlist = _mean_of_strips(probe[:, None], candidates)
    assert torch.equal(distances.argsort(dim=1), shortlist.argsort(dim=1))
    torch.testing.assert_close(distances, shortlist, rtol=0, atol=1e-6 * float(shortlist.max()))
    e_p, e_c = model.attend(probe, candidates[:, 0])
    assert torch.equal(e_p, probe) and torch.equal(e_c, candidates[:, 0])


@pytest.mark.parametrize(("strips", "dims", "width"), SHAPES)
def test_fused_equals_plain(strips: int, dims: int, width: int) -> None:
    model = _model(dims, width)
    probe, candidates = _features(3, 6, strips, dims)
    fused = model(probe, candidates)
    plain = torch.stack([_mean_of_strips(*model.attend(probe, candidates[:, k])) for k in range(6)], dim=1)
    assert (plain - _mean_of_strips(probe[:, None], candidates)).abs().max() > 1e-3  # attention does something
    assert (fused - plain).abs().max() <= 1e-5 * plain.max()


@pytest.mark.parametrize(("strips", "dims", "width"), SHAPES)
def test_attention_equals_scaled_dot_product(strips: int, dims: int, width: int) -> None:
    model = _model(dims, width)
    probe, candidates = _features(2, 1, strips, dims)
    candidate = candidates[:, 0]

    def attended(a: Tensor, b: Tensor) -> Tensor:
        heads = [
            layer(x).unflatten(2, (8, -1)).transpose(1, 2)
            for layer, x in ((model.query, a), (model.key, b), (model.value, b))
        ]
        joined = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        return a + joined @ model.output.weight.T

    e_p, e_c = model.attend(probe, candidate)
    torch.testing.assert_close(e_p, attended(probe, candidate), rtol=0, atol=1e-5)
    torch.testing.assert_close(e_c, attended(candidate, probe), rtol=0, atol=1e-5)


def test_distances_equal_multihead_attention_with_every_bias() -> None:
    """The biases that CarGait leaves out change no distance: the oracle here has all four."""
    model = _model(64, 64)
    oracle = torch.nn.MultiheadAttention(64, 8, batch_first=True)
    with torch.no_grad():
        oracle.in_proj_weight.copy_(torch.cat([model.query.weight, model.key.weight, model.value.weight]))
        oracle.in_proj_bias.normal_()
        oracle.in_proj_bias[:64] = model.query.bias
        oracle.out_proj.weight.copy_(model.output.weight)
        oracle.out_proj.bias.normal_()
    probe, candidates = _features(2, 4, 16, 64)
    expected = []
    for k in range(4):
        candidate = candidates[:, k]
        e_p = probe + oracle(probe, candidate, candidate)[0]
        e_c = candidate + oracle(candidate, probe, probe)[0]
        expected.append(_mean_of_strips(e_p, e_c))
    torch.testing.assert_close(model(probe, candidates), torch.stack(expected, dim=1), rtol=0, atol=1e-5)
    weights = oracle(probe, candidates[:, 0], candidates[:, 0], average_attn_weights=False)[1]
    torch.testing.assert_close(model.attention(probe, candidates[:, 0])[0], weights, rtol=0, atol=1e-5)


def test_attention_weights_are_distributions_over_strips() -> None:
    model = _model(24, 64)
    probe, candidates = _features(3, 1, 5, 24)
    for weights in model.attention(probe, candidates[:, 0]):
        assert weights.shape == (3, 8, 5, 5) and bool((weights >= 0).all())
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 8, 5))


def test_roles_can_be_swapped() -> None:
    model = _model(24, 64)
    a, others = _features(4, 1, 5, 24)
    torch.testing.assert_close(model(a, others), model(others[:, 0], a[:, None]), rtol=0, atol=1e-5)


def test_identical_candidate_has_distance_zero() -> None:
    model = _model(64, 64)
    probe, candidates = _features(3, 4, 16, 64)
    candidates[:, 2] = probe
    distances = model(probe, candidates)
    assert distances[:, 2].max() <= 1e-5
    assert distances[:, [0, 1, 3]].min() > 1.0


def test_each_distance_depends_on_its_own_pair_alone() -> None:
    model = _model(64, 64)
    probe, candidates = _features(4, 10, 16, 64)
    distances = model(probe, candidates)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(model(probe, candidates[:, order]), distances[:, order], rtol=0, atol=1e-5)
    torch.testing.assert_close(model(probe[[2, 0]], candidates[[2, 0]]), distances[[2, 0]], rtol=0, atol=1e-5)
    torch.testing.assert_close(model(probe, candidates[:, 3:4]), distances[:, 3:4], rtol=0, atol=1e-5)
    assert model(probe, candidates[:, :0]).shape == (4, 0)


@pytest.mark.parametrize("trained", [False, True])
def test_gradient_is_finite_where_probe_equals_candidate(trained: bool) -> None:
    model = _model(24, 64) if trained else CarGait(24, 64)
    probe, candidates = _features(2, 3, 5, 24)
    candidates[:, 0] = probe
    probe.requires_grad_()
    candidates.requires_grad_()
    model(probe, candidates).sum().backward()
    for tensor in (probe, candidates, *model.parameters()):
        assert tensor.grad is not None and bool(tensor.grad.isfinite().all())
    assert model.output.weight.grad is not None and bool(model.output.weight.grad.abs().sum() > 0)


def test_gradient_is_the_derivative() -> None:
    model = _model(6, 8).double()
    probe, candidates = _features(2, 2, 3, 6)
    inputs = (probe.double().requires_grad_(), candidates.double().requires_grad_())
    assert torch.autograd.gradcheck(model, inputs)


def test_half_precision_keeps_softmax_and_distance_in_fp32() -> None:
    model = _model(64, 64)
    probe, candidates = _features(2, 4, 16, 64)
    expected = model(probe, candidates)
    distances = model.bfloat16()(probe.bfloat16(), candidates.bfloat16())
    assert distances.dtype == torch.float32
    torch.testing.assert_close(distances, expected, rtol=0.02, atol=0)


def test_classifier_is_for_training_alone() -> None:
    model = _model(24, 64, num_classes=7)
    probe, candidates = _features(3, 2, 5, 24)
    logits = model.classify(model.attend(probe, candidates[:, 0])[0])
    assert logits.shape == (3, 7)
    F.cross_entropy(logits, torch.tensor([0, 3, 6])).backward()
    assert model.output.weight.grad is not None and bool(model.output.weight.grad.abs().sum() > 0)
    bare = model.for_inference()
    assert not bare.training and not any(key.startswith("classifier") for key in bare.state_dict())
    assert torch.equal(bare(probe, candidates), model(probe, candidates))
    with pytest.raises(OptionError, match="num_classes"):
        bare.classify(probe)


def test_options_survive_json_and_recreate_the_model() -> None:
    model = CarGait(24, 64, heads=4, num_classes=3)
    again = CarGait(**json.loads(json.dumps(model.options)))
    again.load_state_dict(model.state_dict())
    assert again.options == {"dims": 24, "width": 64, "heads": 4, "num_classes": 3}
    assert CarGait().options == {"dims": 256, "width": 256, "heads": 8, "num_classes": None}


@pytest.mark.parametrize(
    "options", [{"dims": 0}, {"width": 100}, {"heads": -1}, {"heads": 2.0}, {"num_classes": 0}, {"dims": True}]
)
def test_impossible_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(OptionError, match="CarGait"):
        CarGait(**options)


@pytest.mark.parametrize(
    ("probe", "candidates"),
    [((2, 5, 24), (2, 5, 24)), ((2, 5, 24), (3, 4, 5, 24)), ((2, 5, 24), (2, 4, 6, 24)), ((2, 5, 23), (2, 4, 5, 23))],
)
def test_shapes_that_do_not_belong_together_are_refused(probe: tuple[int, ...], candidates: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"\[B, K, s, 24\]"):
        CarGait(24, 64)(torch.zeros(probe), torch.zeros(candidates))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_exports_with_free_batch_and_count() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = _model(24, 64).eval()
    example = _features(2, 5, 7, 24)
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.onnx.export(
        model,
        example,
        dynamo=True,
        dynamic_shapes=({0: dynamic}, {0: dynamic, 1: dynamic}),
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)  # a traced value that Python branched on
        traced = torch.jit.trace(model, example)
    for batch, count in ((1, 10), (2, 1), (3, 4), (8, 10)):
        inputs = _features(batch, count, 7, 24)
        with torch.no_grad():
            expected = model(*inputs)
        (onnx,) = session.run(None, {"probe": inputs[0].numpy(), "candidates": inputs[1].numpy()})
        torch.testing.assert_close(torch.from_numpy(onnx), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(traced(*inputs), expected, rtol=0, atol=1e-5)
