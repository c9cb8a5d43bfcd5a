"""MT3D, a reconstruction without reference: its blocks against their definition, reach in time, state dicts, export."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import gaitsdk.models.mt3d
from gaitsdk.errors import CheckpointError, OptionError
from gaitsdk.models import GaitModel, create, list_models, load_opengait, model_class, temporal
from gaitsdk.models.mt3d import B3D, MT3D

LENGTHS = [17, 1, 130, 2, 5, 31, 3, 4]


def tiny(**options: Any) -> GaitModel:
    torch.manual_seed(0)
    return create("mt3d", tag="tiny", **options).eval()


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
def test_it_says_that_nobody_could_verify_it() -> None:
    assert MT3D.verified is False
    for text in (MT3D.__doc__, gaitsdk.models.mt3d.__doc__):
        assert text is not None and "nverified reconstruction: no public code or weights, no fixture" in text


@pytest.mark.parametrize("training", [False, True])
def test_b3d_is_the_sum_of_its_three_convolutions(training: bool) -> None:
    torch.manual_seed(0)
    block = B3D(3, 5)
    x = torch.randn(2, 3, 4, 8, 6)
    with torch.set_grad_enabled(training):
        found = block(x)
    parts = (("joint", 1), ("spatial", (0, 1, 1)), ("temporal", (1, 0, 0)))
    maps = [F.conv3d(x, block.state_dict()[f"{name}.conv3d.weight"], padding=padding) for name, padding in parts]
    torch.testing.assert_close(found.detach(), F.leaky_relu(sum(maps, torch.zeros(())), 0.01))


@torch.no_grad()
def test_both_scales_by_definition() -> None:
    """The small scale sees frames, the large one intervals of three; strips of the small scale come first."""
    model: Any = tiny()
    x = walks([14])[0][None, None]
    stem = F.leaky_relu(F.conv3d(x, model.stem.conv3d.weight, padding=1), 0.01)
    small1 = F.max_pool3d(model.small1(stem), (1, 2, 2))
    small2 = model.small2(small1)
    large1 = F.max_pool3d(model.large1(model.LT0(stem)), (1, 2, 2)) + model.LT1(small1)
    large2 = model.large2(large1) + model.LT2(small2)
    assert large2.shape == (1, 8, 4, 32, 22) and small2.shape[2] == 14
    features = []
    for index, maps in enumerate((small2[:, :, :12].amax(2), large2.amax(2))):
        strips = maps.reshape(8, 8, 88)  # channels, strips of 4 rows, pixels
        pooled = (strips.mean(-1) + strips.amax(-1)).T
        heads = model.Head.fc_bin[8 * index : 8 * index + 8]
        features.append(torch.stack([pooled[strip] @ heads[strip] for strip in range(8)]))
    torch.testing.assert_close(model(x[0])[0], torch.cat(features))


def test_few_frames_are_repeated_until_they_fill_an_interval() -> None:
    model = tiny()
    one, two = walks([1, 2])
    expected = one_by_one(model, [one.repeat(3, 1, 1), torch.cat([two, two])])
    assert error(one_by_one(model, [one, two]), expected) <= 1e-6
    assert error(model.forward_sequences([one, two]), expected) <= 1e-6


# ------------------------------------------------------------------------------------------------ lengths and reach
def test_any_lengths_share_a_row() -> None:
    model = tiny()
    model.chunk_frames = 10_000
    sequences = walks(LENGTHS)
    expected = one_by_one(model, sequences)
    assert error(model.forward_sequences(sequences), expected) <= 1e-5
    others = walks(LENGTHS, seed=2)
    mixed = model.forward_sequences([others[i] if i % 2 else each for i, each in enumerate(sequences)])
    assert error(mixed[::2], expected[::2]) <= 1e-6
    assert error(mixed[1::2], expected[1::2]) > 1e-2


@pytest.mark.parametrize("chunk", [6, 40])
def test_long_sequences_are_cut_without_a_trace(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporal, "_SHORTEST_PIECE", 1)
    monkeypatch.setattr(temporal, "_HALOS", 1)
    model = tiny()
    model.chunk_frames = chunk
    sequences = walks([91, 2, 64, 31])
    expected = one_by_one(model, sequences)
    assert error(model.forward_sequences(sequences), expected) <= 1e-5
    monkeypatch.setattr(model, "halo", 0)
    assert error(model.forward_sequences(sequences), expected) > 1e-4


def test_halo_is_what_a_map_depends_on() -> None:
    model: Any = tiny().double()
    x = walks([30])[0][None, None].double().requires_grad_()
    (gradient,) = torch.autograd.grad(model.temporal_maps(x, None)[:, :, 5].square().sum(), x)
    seen = gradient.abs().amax(dim=(0, 1, 3, 4)).nonzero().flatten().tolist()
    assert (15 - seen[0], seen[-1] - 17) == (model.halo, model.halo) == (7, 7)


def test_every_blank_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving out any call of `blanked` but the first, whose frames are blank already, lets neighbours in."""
    model = tiny()
    model.chunk_frames = 10_000
    sequences = walks([9, 12, 10])
    expected = one_by_one(model, sequences)
    real, calls = gaitsdk.models.mt3d.blanked, 0
    for skipped in range(5):
        calls = 0

        def all_but_one(x: Any, packing: Any, skipped: int = skipped) -> Any:
            nonlocal calls
            calls += 1
            return x if calls == skipped + 1 else real(x, packing)

        monkeypatch.setattr(gaitsdk.models.mt3d, "blanked", all_but_one)
        assert (error(model.forward_sequences(sequences), expected) > 1e-4) == (skipped > 0), skipped
    assert calls == 5


# ---------------------------------------------------------------------------------------------- options and states
@pytest.mark.parametrize(("tag", "strips", "dims"), [("casiab", 64, 128), ("oumvlp", 64, 256), ("tiny", 16, 10)])
def test_states_are_recognised(tag: str, strips: int, dims: int) -> None:
    with torch.device("meta"):
        model = create("mt3d", tag=tag)
    assert (model.strips, model.dims) == (strips, dims)
    assert MT3D.Options.parse("mt3d", MT3D.recognise(shapes_of(model)) or {}).to_dict() == model.options


def test_own_states_load() -> None:
    model = tiny(strips=4)
    loaded = load_opengait(model.state_dict())
    x = torch.rand(2, 7, 64, 44)
    with torch.no_grad():
        assert loaded.options == model.options and torch.equal(loaded(x), model(x))


def test_other_architectures_are_not_claimed() -> None:
    own = shapes_of(tiny())
    for name in set(list_models()) - {"mt3d"}:
        with torch.device("meta"):
            other = shapes_of(create(name))
        assert MT3D.recognise(other) is None and model_class(name).recognise(own) is None, name
    state = tiny().state_dict()
    del state["LT0.0.conv3d.weight"]
    with pytest.raises(CheckpointError, match=r"most resembles 'mt3d'.*missing: LT0\.0\.conv3d\.weight"):
        load_opengait(state)
    assert MT3D.recognise({**own, "Head.fc_bin": (16, 8)}) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": (4, 6, 8, 8)}, "3 positive integers"),
        ({"strips": 24}, "cannot be cut into 24 equal strips"),
        ({"strips": 0}, "positive integer"),
        ({"dims": 1.5}, "positive integer"),
        ({"num_classes": 5}, "no option 'num_classes'"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        create("mt3d", tag="tiny", **options)


def test_every_parameter_learns() -> None:
    model = create("mt3d", tag="tiny")
    features, logits = model.forward_train(torch.stack(walks([7, 7])))
    assert logits is None
    features.square().sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in model.parameters())


# --------------------------------------------------------------------------------------------------------- export
@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_exports_with_free_batch_and_frames(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from gaitsdk_export.cases import embedder_cases
    from gaitsdk_export.parity import Verdict
    from gaitsdk_export.to_onnx import to_onnx
    from gaitsdk_export.to_torchscript import to_torchscript
    from gaitsdk_export.wrappers import EmbedderForExport

    convert = {"onnx": to_onnx, "torchscript": to_torchscript}[kind]
    cases = embedder_cases(64, 1, lengths=(3, 5, 9, 16))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = convert(EmbedderForExport(tiny(), 64, 1), tmp_path / f"network.{kind}", cases=cases)
    assert report is not None and report.verdict is Verdict.OK
    assert [str(each.message) for each in caught] == []
