"""GaitPart: focal convolutions and micro-motions against their definition, reach in time, checkpoints, export."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import gaitsdk.models.gaitpart
from gaitsdk.errors import CheckpointError, OptionError
from gaitsdk.models import GaitModel, create, list_models, load_opengait, model_class, temporal
from gaitsdk.models.gaitpart import FocalConv2d, GaitPart
from gaitsdk.models.packing import Packing

LENGTHS = [17, 1, 130, 2, 5, 31, 3]


def tiny(**options: Any) -> GaitModel:
    torch.manual_seed(0)
    return create("gaitpart", tag="tiny", **options).eval()


def walks(lengths: list[int], seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.rand(t, 64, 44, generator=generator) > 0.5).float() for t in lengths]


@torch.no_grad()
def one_by_one(model: GaitModel, sequences: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([model(each[None]) for each in sequences])


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative to the largest value."""
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


def shapes_of(model: GaitModel) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


# ----------------------------------------------------------------------------------------------------- definition
@pytest.mark.parametrize("strips", [1, 2, 8])
def test_focal_convolution_sees_each_strip_alone(strips: int) -> None:
    torch.manual_seed(0)
    focal = FocalConv2d(3, 5, 3, strips=strips)
    x = torch.rand(2, 3, 16, 6)
    expected = torch.cat([F.conv2d(strip, focal.conv.weight, padding=1) for strip in x.chunk(strips, dim=2)], dim=2)
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.testing.assert_close(focal(x.contiguous(memory_format=layout)), expected)


def gated(x: torch.Tensor, first: torch.Tensor, second: torch.Tensor, window: int) -> torch.Tensor:
    """One branch of one strip by definition, frame by frame: x [c, T] -> [c, T]."""
    y = F.leaky_relu(F.conv1d(x[None], first, padding=1), 0.01)
    gate = torch.sigmoid(F.conv1d(y, second, padding=second.shape[2] // 2))[0]
    reach, found = window // 2, []
    for t in range(x.shape[1]):
        frames = x[:, max(0, t - reach) : t + reach + 1]
        found.append(frames.sum(dim=1) / window + frames.amax(dim=1))  # means count what lies outside as zero
    return gate * torch.stack(found, dim=1)


@pytest.mark.parametrize("frames", [1, 2, 3, 9])
@torch.no_grad()
def test_micro_motions_of_all_strips_together_are_those_of_each(frames: int) -> None:
    model = tiny()
    x = torch.randn(1, 4, 8, frames)  # [B, s, c, T], with values below zero: a blank is no maximum
    state = model.state_dict()
    expected = []
    for part in range(4):
        branches = []
        for name, window in (("conv1d3x1", 3), ("conv1d3x3", 5)):
            first, second = (state[f"TFA.pooling_func.{name}.{part}.{i}.conv.weight"] for i in (0, 2))
            branches.append(gated(x[0, part], first, second, window))
        expected.append(sum(branches))
    found = model.TFA["pooling_func"](x.flatten(1, 2), None)  # type: ignore[index,operator]
    torch.testing.assert_close(found.unflatten(1, (4, 8))[0], torch.stack(expected))


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


@pytest.mark.parametrize("chunk", [6, 40])
def test_long_sequences_are_cut_exactly_but_not_with_a_smaller_halo(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(temporal, "_SHORTEST_PIECE", 1)
    monkeypatch.setattr(temporal, "_HALOS", 1)
    model = tiny()
    model.chunk_frames = chunk
    sequences = walks(LENGTHS)
    expected = one_by_one(model, sequences)
    assert error(model.forward_sequences(sequences), expected) <= 1e-5
    monkeypatch.setattr(model, "halo", model.halo - 1)
    assert error(model.forward_sequences(sequences), expected) > 1e-4


def test_maps_look_exactly_two_frames_away() -> None:
    model = tiny()
    x = walks([11])[0][None, None]
    changed = x.clone()
    changed[:, :, 5] = 1 - changed[:, :, 5]
    with torch.no_grad():
        moved = (model.temporal_maps(x, None) - model.temporal_maps(changed, None)).abs().amax(dim=(0, 1))  # type: ignore[operator]
    assert model.halo == 2 and moved.nonzero().flatten().tolist() == [3, 4, 5, 6, 7]


@torch.no_grad()
def test_every_blank_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving out any of the three calls of `blanked`, or a smaller gap, lets neighbours on the axis in."""
    model = tiny()
    motions = model.TFA["pooling_func"]  # type: ignore[index]
    torch.manual_seed(1)
    pieces = [-torch.rand(t, 32) for t in (7, 5, 6)]  # below zero, so that a blank of zero would be the maximum

    def found(gap: int = 2) -> torch.Tensor:
        packing = Packing.of([len(piece) for piece in pieces], stride=1, gap=gap, device=torch.device("cpu"))
        packed = packing.pack(pieces)
        packed[packed == 0] = 5.0  # what layers before may have left there
        return torch.cat(packing.unpack(motions(packed.T[None].contiguous(), packing)), dim=1)  # type: ignore[operator]

    expected = torch.cat([motions(piece.T[None].contiguous(), None)[0] for piece in pieces], dim=1)  # type: ignore[operator]
    assert error(found(), expected) <= 1e-6
    assert error(found(gap=1), expected) > 1e-4
    real = gaitsdk.models.gaitpart.blanked
    for skipped in range(4):  # the first, -inf, and one in each branch
        calls = iter(range(10))

        def all_but_one(x: Any, *args: Any, calls: Any = calls, skipped: int = skipped) -> Any:
            return x if next(calls) == skipped else real(x, *args)

        monkeypatch.setattr(gaitsdk.models.gaitpart, "blanked", all_but_one)
        # The second convolution of the first branch has one tap: what is blank there does not matter.
        assert (error(found(), expected) > 1e-4) == (skipped != 2), skipped


# ------------------------------------------------------------------------------------------------------- OpenGait
def test_parity(parity_dir: Path) -> None:
    spec = importlib.util.spec_from_file_location("parity_rules", parity_dir / "parity_rules.py")
    assert spec is not None and spec.loader is not None
    rules = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rules)
    reference = json.loads((parity_dir / "gaitpart_casiab.json").read_text())
    state = {key: rules.fill_array(key, *entry) for key, entry in reference["state_dict"].items()}
    assert rules.state_sha256(state) == reference["state_sha256"]
    model = load_opengait(state)
    assert sum(p.numel() for p in model.parameters()) == reference["total_params"]

    def sequences(*names: tuple[str, int]) -> list[torch.Tensor]:
        return [torch.from_numpy(rules.cut_and_scale(rules.make_sil(name, frames))) for name, frames in names]

    shorts = [(f"short{t}", t) for t in (1, 2, 4, 7)]
    with np.load(parity_dir / "gaitpart_casiab.npz") as arrays, torch.no_grad():
        pairs = {"fixed": model(torch.stack(sequences(*rules.FIXED)))}
        pairs |= {"single": model.forward_sequences(sequences(*rules.PACKED))}
        pairs |= {name: model(sequences((name, t))[0][None]) for name, t in shorts}
        pairs |= {"packed": pairs["single"], "fixed0_fp64": pairs["fixed"][:1]}
        assert pairs.keys() == set(arrays.files)
        for name, found in pairs.items():
            expected = torch.from_numpy(arrays[name]).transpose(1, 2)
            assert error(found, expected) <= 1e-5, name
            assert float(F.cosine_similarity(found.double(), expected.double(), dim=-1).min()) >= 1 - 1e-6, name


@pytest.mark.parametrize(("tag", "parameters"), [("casiab", 1204000), ("gait3d", 1204000), ("oumvlp", 4841248)])
def test_published_networks(tag: str, parameters: int) -> None:
    with torch.device("meta"):
        model = create("gaitpart", tag=tag)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert {**model.options, "size": None} == {
        **GaitPart.Options.parse("gaitpart", GaitPart.recognise(shapes_of(model)) or {}).to_dict(), "size": None
    }  # fmt: skip


def test_own_checkpoints_are_recognised_and_others_refused() -> None:
    for options in ({}, {"strips": 8, "squeeze": 2}, {"channels": (4, 4, 8, 8), "focal_strips": (1, 1, 8, 8)}):
        model = tiny(**{"focal_strips": (1, 4, 8), **options})
        loaded = load_opengait(model.state_dict())
        assert loaded.name == "gaitpart" and loaded.options == model.options
        assert [name for name in list_models() if model_class(name).recognise(shapes_of(model))] == ["gaitpart"]
    told = tiny()  # other strips than published, which shapes cannot tell
    loaded = load_opengait(told.state_dict(), focal_strips=(1, 2, 4))
    assert error(loaded(walks([3])[0][None]), told(walks([3])[0][None])) == 0.0
    deep = tiny(channels=(4, 4, 4, 8, 8), focal_strips=(1, 1, 2, 4, 4))
    with pytest.raises(CheckpointError, match="pass the right options"):
        load_opengait(deep.state_dict())
    assert load_opengait(deep.state_dict(), focal_strips=(1, 1, 2, 4, 4)).options == deep.options
    for name in set(list_models()) - {"gaitpart"}:
        if model_class(name).__module__.startswith("gaitsdk.models."):  # tests register others
            with torch.device("meta"):
                assert GaitPart.recognise(shapes_of(create(name, tag="tiny"))) is None
    damaged = shapes_of(told)
    for key in ("Head.fc_bin", "TFA.pooling_func.conv1d3x1.0.0.conv.weight"):
        assert GaitPart.recognise({k: v for k, v in damaged.items() if k != key}) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"focal_strips": (1, 4)}, "'focal_strips' has an impossible value.*3 positive integers"),
        ({"focal_strips": (1, 4, 5)}, "16 rows cannot be cut into 5 equal strips"),
        ({"focal_strips": (0, 2, 3)}, "3 positive integers"),
        ({"channels": ()}, "a sequence of positive integers"),
        ({"strips": 6}, "16 rows cannot be cut into 6"),
        ({"squeeze": 3}, "a divisor of the last stage's 128"),
        ({"halvings": (0, 2, 3)}, "no option 'halvings'"),
        ({"num_classes": 5}, "no option 'num_classes'"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        create("gaitpart", **options)


# ---------------------------------------------------------------------------------------------- training and export
def test_every_parameter_learns() -> None:
    model = tiny().train()
    features, logits = model.forward_train(torch.stack(walks([9, 9])))
    assert features.shape == (2, 4, 8) and logits is None
    features.square().sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)] == []


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_export_leaves_batch_and_frames_free(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from gaitsdk_export.cases import embedder_cases
    from gaitsdk_export.parity import Verdict
    from gaitsdk_export.to_onnx import to_onnx
    from gaitsdk_export.to_torchscript import to_torchscript
    from gaitsdk_export.wrappers import EmbedderForExport

    convert = {"onnx": to_onnx, "torchscript": to_torchscript}[kind]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cases = embedder_cases(64, 1, lengths=(1, 5, 16))
        report = convert(EmbedderForExport(tiny(), 64, 1), tmp_path / f"net.{kind}", cases=cases)
    assert report is not None and report.verdict is Verdict.OK and report.max_abs <= 1e-4
    assert [str(each.message) for each in caught] == []
