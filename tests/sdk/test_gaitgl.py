"""GaitGL: its blocks against their definition, reach in time, checkpoints, export."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import gaitsdk.models.gaitgl
from gaitsdk.errors import CheckpointError, OptionError
from gaitsdk.models import GaitModel, create, list_models, load_opengait, model_class, temporal
from gaitsdk.models.blocks import convolution3d
from gaitsdk.models.gaitgl import GaitGL, GeMPooling, GLConv

LENGTHS = [17, 1, 130, 2, 5, 31, 3, 4]


def tiny(**options: Any) -> GaitModel:
    """Its batch norm is far from the identity."""
    torch.manual_seed(0)
    model = create("gaitgl", tag="tiny", **options).eval()
    for key, value in model.state_dict().items():
        if key.endswith("running_mean"):
            value.normal_(0.0, 0.3)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    return model


def walks(lengths: list[int], seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.rand(t, 64, 44, generator=generator) > 0.5).float() for t in lengths]


@torch.no_grad()
def one_by_one(model: GaitModel, sequences: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([model(each[None]) for each in sequences])


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative to the largest value."""
    assert found.shape == expected.shape
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


def shapes_of(model: GaitModel) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


# ----------------------------------------------------------------------------------------------------- definition
@pytest.mark.parametrize("stack", [False, True])
@pytest.mark.parametrize("strips", [1, 2, 4])
@pytest.mark.parametrize("training", [False, True])
def test_local_convolution_sees_each_strip_alone(stack: bool, strips: int, training: bool) -> None:
    torch.manual_seed(0)
    block = GLConv(3, 5, strips, stack=stack)
    x = torch.randn(2, 3, 4, 8, 6)
    whole = F.leaky_relu(F.conv3d(x, block.global_conv3d.conv3d.weight, padding=1), 0.01)
    weight = block.local_conv3d.conv3d.weight
    each = [F.leaky_relu(F.conv3d(strip, weight, padding=1), 0.01) for strip in x.chunk(strips, dim=3)]
    local = torch.cat(each, dim=3)
    expected = torch.cat([whole, local], dim=3) if stack else whole + local
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        with torch.set_grad_enabled(training):
            found = block(x.contiguous(memory_format=layout))
        torch.testing.assert_close(found, expected)


def test_gem_pooling_is_the_generalised_mean_of_each_strip() -> None:
    torch.manual_seed(0)
    pool = GeMPooling(4).double()
    x = torch.randn(2, 3, 8, 5, dtype=torch.float64, requires_grad=True)
    expected = x.clamp(min=1e-6).reshape(2, 3, 4, 10).pow(6.5).mean(-1).pow(1 / 6.5).transpose(1, 2)
    torch.testing.assert_close(pool(x), expected)
    wanted = torch.autograd.grad(expected.square().sum(), x)[0]
    torch.testing.assert_close(torch.autograd.grad(pool(x).square().sum(), x)[0], wanted)
    assert torch.autograd.gradcheck(pool, (x.detach()[:1, :1].requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gem_pooling_stays_in_range(dtype: torch.dtype) -> None:
    """30 ** 8 overflows half precision; strips without a positive value would give the exponent a gradient of nan."""
    pool = GeMPooling(2, exponent=8.0).to(dtype)
    x = torch.full((1, 1, 4, 3), -1.0, dtype=dtype)
    x[:, :, 2:] = 30.0
    y = pool(x)
    assert float(y[0, 1, 0].detach()) == pytest.approx(30.0, rel=1e-3) and float(y[0, 0, 0].detach()) < 1e-5
    y.sum().backward()
    assert pool.p.grad is not None and bool(pool.p.grad.isfinite().all())


def test_convolution_in_inference_is_that_of_training() -> None:
    """Small maps of one sequence, which torch gives to another kernel than we do."""
    torch.manual_seed(0)
    x, weight = torch.randn(1, 4, 9, 6, 5), torch.randn(8, 4, 3, 1, 1)
    expected = convolution3d(x, weight, stride=(3, 1, 1), padding=(0, 0, 0)).detach()
    with torch.no_grad():
        found = convolution3d(x, weight, stride=(3, 1, 1), padding=(0, 0, 0))
        torch.testing.assert_close(found, expected)
        double = convolution3d(x.double(), weight.double(), stride=(3, 1, 1), padding=(0, 0, 0))
        torch.testing.assert_close(double.float(), expected)
    assert found.shape == (1, 8, 3, 6, 5)


def test_few_frames_are_repeated_until_they_fill_an_interval() -> None:
    model = tiny()
    one, two = walks([1, 2])
    expected = one_by_one(model, [one.repeat(3, 1, 1), torch.cat([two, two])])
    assert error(one_by_one(model, [one, two]), expected) <= 1e-6
    assert error(model.forward_sequences([one, two]), expected) <= 1e-6


def test_frames_that_fill_no_interval_only_touch_their_neighbours() -> None:
    model = tiny()
    (walk,) = walks([11])
    with torch.no_grad():
        maps = [model.temporal_maps(walk[None, None, :t], None) for t in (9, 11)]  # type: ignore[operator]
    assert [each.shape[2] for each in maps] == [3, 3]
    assert not torch.allclose(maps[0], maps[1], atol=1e-3)


# ------------------------------------------------------------------------------------------------ lengths and reach
@pytest.mark.parametrize("layers", [1, 2])
def test_any_lengths_share_a_row(layers: int) -> None:
    model = tiny(layers=layers)
    model.chunk_frames = 10_000
    sequences = walks(LENGTHS)
    expected = one_by_one(model, sequences)
    assert error(model.forward_sequences(sequences), expected) <= 1e-5
    others = walks(LENGTHS, seed=2)
    mixed = model.forward_sequences([others[i] if i % 2 else each for i, each in enumerate(sequences)])
    assert error(mixed[::2], expected[::2]) <= 1e-6
    assert error(mixed[1::2], expected[1::2]) > 1e-2


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("chunk", [6, 40])
def test_long_sequences_are_cut_without_a_trace(layers: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporal, "_SHORTEST_PIECE", 1)
    monkeypatch.setattr(temporal, "_HALOS", 1)
    model = tiny(layers=layers)
    model.chunk_frames = chunk
    sequences = walks([91, 2, 64, 31])
    expected = one_by_one(model, sequences)
    assert error(model.forward_sequences(sequences), expected) <= 1e-5
    model.halo = 0
    assert error(model.forward_sequences(sequences), expected) > 1e-4


def reach(model: Any, frames: int, interval: int) -> tuple[int, int]:
    """How many frames before its first and after its last frame an interval's map depends on."""
    x = walks([frames])[0][None, None].double().requires_grad_()
    maps = model.double().temporal_maps(x, None)[:, :, interval]
    (gradient,) = torch.autograd.grad(maps.square().sum(), x)
    seen = gradient.abs().amax(dim=(0, 1, 3, 4)).nonzero().flatten().tolist()
    return 3 * interval - seen[0], seen[-1] - (3 * interval + 2)


@pytest.mark.parametrize("layers", [1, 2])
def test_halo_is_what_a_map_depends_on(layers: int) -> None:
    model: Any = tiny(layers=layers)
    assert model.halo == 10 * layers
    assert reach(model, frames=45, interval=7) == (model.halo, model.halo)


def test_every_blank_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving out any call of `blanked` but the first, whose frames are blank already, lets neighbours in."""
    model = tiny()
    model.chunk_frames = 10_000
    sequences = walks([9, 12, 10])
    expected = one_by_one(model, sequences)
    real, calls = gaitsdk.models.gaitgl.blanked, 0
    for skipped in range(8):
        calls = 0

        def all_but_one(x: Any, packing: Any, skipped: int = skipped) -> Any:
            nonlocal calls
            calls += 1
            return x if calls == skipped + 1 else real(x, packing)

        monkeypatch.setattr(gaitsdk.models.gaitgl, "blanked", all_but_one)
        assert (error(model.forward_sequences(sequences), expected) > 1e-4) == (skipped > 0), skipped
    assert calls == 8


# ---------------------------------------------------------------- checkpoints (numbers: test_parity_opengait.py)
@pytest.mark.parametrize(
    ("tag", "classes", "parameters"),
    [
        ("casiab", 74, 3_096_673),
        ("casiab", None, 2_490_465),
        ("gait3d", 3000, 27_066_465),
        ("oumvlp", 5153, 95_620_449),
        ("grew", 20000, 338_873_697),
        ("grew", None, 11_193_697),
        ("grew-bnneck", 20000, 338_905_953),
        ("grew-bnneck", None, 11_193_185),
    ],
)
def test_published_networks(tag: str, classes: int | None, parameters: int) -> None:
    with torch.device("meta"):
        model = create("gaitgl", tag=tag, num_classes=classes)
    assert sum(p.numel() for p in model.parameters()) == parameters
    recognised = GaitGL.recognise(shapes_of(model)) or {}
    assert GaitGL.Options.parse("gaitgl", recognised).to_dict() == model.options


@pytest.mark.parametrize("head", ["shared_bn", "bnneck"])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("classes", [None, 5])
def test_checkpoints_are_recognised(head: str, layers: int, classes: int | None) -> None:
    model = tiny(head=head, layers=layers, num_classes=classes)
    loaded = load_opengait(model.state_dict(), halving=2)
    assert loaded.options == model.options and not loaded.training
    x = torch.rand(2, 7, 64, 44)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


def test_halving_leaves_no_trace_and_can_be_told() -> None:
    shapes = [shapes_of(tiny(halving=halving)) for halving in (1, 2, 3)]
    assert shapes[0] == shapes[1] == shapes[2]
    assert [(GaitGL.recognise(shapes_of(tiny(layers=n))) or {})["halving"] for n in (1, 2)] == [3, 1]


def test_other_architectures_are_not_claimed() -> None:
    own = shapes_of(tiny())
    for name in set(list_models()) - {"gaitgl"}:
        with torch.device("meta"):
            other = shapes_of(create(name))
        assert GaitGL.recognise(other) is None and model_class(name).recognise(own) is None, name
    state = tiny(num_classes=5).state_dict()
    del state["LTA.0.conv3d.weight"]
    with pytest.raises(CheckpointError, match=r"most resembles 'gaitgl'.*missing: LTA\.0\.conv3d\.weight"):
        load_opengait(state)
    assert GaitGL.recognise({**own, "Head0.fc_bin": (16, 8)}) is None
    assert GaitGL.recognise({key: shape for key, shape in own.items() if not key.startswith("GLConvA1")}) is None


# ------------------------------------------------------------------------------------------------------ heads
def test_embedding_after_the_neck() -> None:
    model = tiny(head="bnneck", num_classes=5)
    after = load_opengait(model.state_dict(), embedding="bnneck", halving=2)
    x = torch.rand(2, 6, 64, 44)
    with torch.no_grad():
        features, logits = model.forward_train(x)
        assert torch.equal(model(x), features) and logits is not None and model.neck is not None
        torch.testing.assert_close(after(x), model.neck.normalise(features))
        torch.testing.assert_close(after(x).norm(dim=-1), torch.ones(2, 16))
        assert float(logits.abs().max()) <= 1 + 1e-6
        copy = after.for_inference()
        torch.testing.assert_close(copy(x), after(x))
    assert "BNNecks.fc_bin" not in copy.state_dict()


def test_one_batch_norm_for_all_strips() -> None:
    """In training its statistics are those of all items and all strips; the features are its output."""
    model = create("gaitgl", tag="tiny", num_classes=5)
    features, logits = model.forward_train(torch.stack(walks([9, 9, 9])))
    state = model.state_dict()
    flat = features.detach().flatten(0, 1)
    torch.testing.assert_close(flat.mean(0), state["Bn.bias"], atol=1e-4, rtol=0)
    assert logits is not None
    torch.testing.assert_close(logits[:, 3], features[:, 3] @ state["Head1.fc_bin"][3])
    assert set(model.state_dict()) - set(model.for_inference().state_dict()) == {"Head1.fc_bin"}


@pytest.mark.parametrize("head", ["shared_bn", "bnneck"])
def test_every_parameter_learns(head: str) -> None:
    model = create("gaitgl", tag="tiny", num_classes=5, head=head)
    features, logits = model.forward_train(torch.stack(walks([7, 7])))
    assert logits is not None and logits.shape == (2, 16, 5)
    (features.square().sum() + logits.logsumexp(-1).sum()).backward()
    idle = [key for key, p in model.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all())]
    assert idle == []
    assert all(float(p.grad.abs().max()) > 0 for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding": "bnneck"}, "no BN neck"),
        ({"head": "bneck"}, "did you mean 'bnneck'"),
        ({"halving": 6}, "divisible by 128"),
        ({"halving": 0}, "positive integer"),
        ({"layers": 0}, "positive integer"),
        ({"channels": (4, 6, 8)}, "4 positive integers"),
        ({"strips": 48}, "cannot be cut into 48 equal strips"),
        ({"size": (60, 44)}, "divisible by 8"),
        ({"halvings": 1}, "did you mean 'halving'"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        create("gaitgl", tag="tiny", **options)


# --------------------------------------------------------------------------------------------------------- export
@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_exports_with_free_batch_and_frames(kind: str, tmp_path: Path) -> None:
    """The form that tests/export, which go over the registry, do not see."""
    pytest.importorskip("onnx")
    from gaitsdk_export.cases import embedder_cases
    from gaitsdk_export.parity import Verdict
    from gaitsdk_export.to_onnx import to_onnx
    from gaitsdk_export.to_torchscript import to_torchscript
    from gaitsdk_export.wrappers import EmbedderForExport

    model = tiny(head="bnneck", embedding="bnneck", layers=1)
    convert = {"onnx": to_onnx, "torchscript": to_torchscript}[kind]
    cases = embedder_cases(64, 1, lengths=(3, 5, 9, 16))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = convert(EmbedderForExport(model, 64, 1), tmp_path / f"network.{kind}", cases=cases)
    assert report is not None and report.verdict is Verdict.OK
    assert [str(each.message) for each in caught] == []
