"""SkeletonGait++: the fusion against its definition, channels by name, reach in time, checkpoints, export."""

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

from gaitsdk.errors import OptionError, SilhouetteShapeError
from gaitsdk.models import GaitModel, create, list_models, load_opengait, model_class, residual, temporal
from gaitsdk.models.deepgaitv2 import DeepGaitV2
from gaitsdk.models.skeletongaitpp import AttentionFusion, SkeletonGaitPP

NAME = "skeletongait++"
LENGTHS = [17, 1, 130, 2, 5, 31, 3]
FRAME = (3, 64, 44)


def tiny(**options: Any) -> GaitModel:
    """In eval mode, with batch norms far from the identity, so that blank frames do not stay zero."""
    torch.manual_seed(0)
    model = create(NAME, tag="tiny", **options)
    for key, value in model.state_dict().items():
        if key.endswith("running_mean"):
            value.normal_(0.0, 0.3)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    return model.eval()


def walks(lengths: list[int], seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.rand(t, *FRAME, generator=generator) > 0.5).float() for t in lengths]


@torch.no_grad()
def one_by_one(model: GaitModel, sequences: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([model(each[None]) for each in sequences])


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative to the largest value."""
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


def shapes_of(model: GaitModel) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


# ----------------------------------------------------------------------------------------------------- definition
@torch.no_grad()
def test_fusion_is_a_softmax_over_the_two_streams_silhouette_first() -> None:
    torch.manual_seed(0)
    fusion = AttentionFusion(5, 3).eval()
    for layer in (1, 4):
        fusion.get_buffer(f"conv.forward_block.{layer}.running_mean").normal_(0.0, 0.3)
    silhouette, skeleton = torch.randn(2, 2, 5, 6, 4)
    scores = fusion.conv(torch.cat([silhouette, skeleton], dim=1)).unflatten(1, (2, 5)).softmax(dim=1)
    expected = scores[:, 0] * silhouette + scores[:, 1] * skeleton
    torch.testing.assert_close(fusion(silhouette, skeleton), expected)


@torch.no_grad()
def test_streams_take_the_maps_in_their_order() -> None:
    """Limbs and joints go to one stream, the silhouette to the other."""
    model = tiny()
    state = model.state_dict()
    x = walks([4])[0]
    seen: dict[str, torch.Tensor] = {}
    for name in ("map_layer0", "sil_layer0"):
        layer = model.get_submodule(name)
        layer.register_forward_hook(lambda _, inputs, output, name=name: seen.update({name: output}))
    model(x[None])
    for name, maps in (("map_layer0", x[:, :2]), ("sil_layer0", x[:, 2:])):
        y = F.conv2d(maps, state[f"{name}.forward_block.0.weight"], padding=1)
        keys = ("running_mean", "running_var", "weight", "bias")
        y = F.batch_norm(y, *(state[f"{name}.forward_block.1.{key}"] for key in keys)).relu()
        torch.testing.assert_close(seen[name], y)


def test_other_numbers_of_maps_are_refused() -> None:
    model = tiny()
    for bad in (torch.rand(1, 4, 64, 44), torch.rand(1, 4, 2, 64, 44), torch.rand(1, 3, 4, 64, 44)):
        with pytest.raises(SilhouetteShapeError, match=r"expected \[B, T, 3, 64, 44\]"):
            model(bad)
    with pytest.raises(SilhouetteShapeError, match=r"sequence 1.*expected \[T, 3, 64, 44\]"):
        model.forward_sequences([torch.rand(4, *FRAME), torch.rand(4, 64, 44)])


# ------------------------------------------------------------------------------------------------ lengths and reach
def test_any_lengths_share_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    model.chunk_frames = 10_000
    sequences = walks(LENGTHS)
    expected = one_by_one(model, sequences)
    assert error(model.forward_sequences(sequences), expected) <= 1e-5
    others = walks(LENGTHS, seed=2)
    mixed = model.forward_sequences([others[i] if i % 2 else each for i, each in enumerate(sequences)])
    assert error(mixed[::2], expected[::2]) <= 1e-6
    monkeypatch.setattr(residual, "blanked", lambda x, packing, value=0.0: x)
    assert error(model.forward_sequences(sequences), expected) > 1e-4


@pytest.mark.parametrize("chunk", [9, 40])
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
    assert error(model.forward_sequences(sequences), expected) > 1e-5


@pytest.mark.parametrize("layers", [(1, 1, 1, 1), (2, 2, 1, 1), (1, 2, 3, 1)])
def test_maps_look_as_many_frames_away_as_there_are_temporal_blocks(layers: tuple[int, ...]) -> None:
    model = tiny(layers=layers).double()
    halo = sum(layers[1:])
    x = walks([15])[0][None].transpose(1, 2).double()
    changed = x.clone()
    changed[:, :, 7] = 1 - changed[:, :, 7]
    with torch.no_grad():
        maps, other = (model.temporal_maps(each, None) for each in (x, changed))  # type: ignore[operator]
    moved = (maps - other).abs().amax(dim=(0, 1, 3, 4)).nonzero().flatten().tolist()
    assert model.halo == halo and moved == list(range(7 - halo, 7 + halo + 1))


# ------------------------------------------------------------------------------------------------------- OpenGait
def test_parity(parity_dir: Path) -> None:
    spec = importlib.util.spec_from_file_location("parity_rules", parity_dir / "parity_rules.py")
    assert spec is not None and spec.loader is not None
    rules = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rules)
    reference = json.loads((parity_dir / "skeletongaitpp_gait3d.json").read_text())
    state = {key: rules.fill_array(key, *entry) for key, entry in reference["state_dict"].items()}
    assert rules.state_sha256(state) == reference["state_sha256"]
    model = load_opengait(state)
    assert sum(p.numel() for p in model.parameters()) == reference["total_params"]

    def sequence(name: str, frames: int) -> torch.Tensor:
        silhouettes = rules.make_sil(name, frames)[:, None]
        return torch.from_numpy(rules.cut_and_scale(np.concatenate([rules.make_heatmap(name, frames), silhouettes], 1)))

    # `fixed` and `fixed_emb2` are compared in the test over the registry: they are seconds of computing.
    lengths = (1, 2, 4, 7)
    with np.load(parity_dir / "skeletongaitpp_gait3d.npz") as arrays, torch.no_grad():
        mixed = model.forward_sequences([*(sequence(f"short{t}", t) for t in lengths), sequence(*rules.PACKED[0])])
        pairs = {f"short{t}": mixed[i : i + 1] for i, t in enumerate(lengths)} | {"single": mixed[4:]}
        for name, found in pairs.items():
            expected = torch.from_numpy(arrays[name]).transpose(1, 2)[:1]
            assert error(found, expected) <= 1e-5, name
            assert float(F.cosine_similarity(found.double(), expected.double(), dim=-1).min()) >= 1 - 1e-6, name


@pytest.mark.parametrize(
    ("tag", "classes", "parameters"),
    [("gait3d", 3000, 25568608), ("grew", 20000, 95200608), ("ccpg", 100, 8522336), ("sustech1k", 250, 9136736)],
)
def test_published_networks(tag: str, classes: int, parameters: int) -> None:
    with torch.device("meta"):
        model = create(NAME, tag=tag, num_classes=classes)
    assert sum(p.numel() for p in model.parameters()) == parameters
    with torch.device("meta"):
        again = create(NAME, **(SkeletonGaitPP.recognise(shapes_of(model)) or {}))
    assert again.options == model.options


def test_own_checkpoints_are_recognised_and_others_refused() -> None:
    for options in ({}, {"num_classes": 5}, {"layers": (3, 1, 2, 2), "strips": 8, "dims": 6, "fusion_channels": 3}):
        model = tiny(**options)
        loaded = load_opengait(model.state_dict())
        assert loaded.name == NAME and loaded.options == model.options
        claims = [name for name in list_models() if model_class(name).recognise(shapes_of(model)) is not None]
        assert claims == [NAME]
    neck = load_opengait(tiny(num_classes=5).state_dict(), embedding="bnneck")
    torch.testing.assert_close(neck(walks([3])[0][None]).norm(dim=-1), torch.ones(1, 4))
    for name in set(list_models()) - {NAME}:
        if model_class(name).__module__.startswith("gaitsdk.models."):  # tests register others
            with torch.device("meta"):
                assert SkeletonGaitPP.recognise(shapes_of(create(name, tag="tiny"))) is None
    with torch.device("meta"):
        nearest = create("deepgaitv2", channels=(4, 4, 8, 8), layers=(1, 2, 1, 1), dims=8, strips=4)
    assert SkeletonGaitPP.recognise(shapes_of(nearest)) is None
    whole = shapes_of(tiny())
    assert DeepGaitV2.recognise(whole) is None
    for key in ("FCs.fc_bin", "fusion.conv.forward_block.0.weight", "layer3.0.conv1.forward_block.0.weight"):
        assert SkeletonGaitPP.recognise({k: v for k, v in whole.items() if k != key}) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": (1, 4, 4)}, "'layers' has an impossible value.*4 positive integers"),
        ({"channels": (64, 0, 256, 512)}, "4 positive integers"),
        ({"fusion_channels": 0}, "'fusion_channels'.*a positive integer"),
        ({"strips": 5}, "16 rows cannot be cut into 5"),
        ({"num_classes": 0}, "a positive integer or None"),
        ({"embedding": "bneck"}, "did you mean 'bnneck'"),
        ({"mode": "3d"}, "no option 'mode'"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        create(NAME, **options)


# ---------------------------------------------------------------------------------------------- training and export
def test_every_parameter_learns() -> None:
    model = tiny(num_classes=5).train()
    features, logits = model.forward_train(torch.stack(walks([6, 6, 6])))
    assert features.shape == (3, 4, 8) and logits is not None and logits.shape == (3, 4, 5)
    (features.square().sum() + logits.square().sum()).backward()
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
        cases = embedder_cases(64, 3, lengths=(1, 5, 16))
        report = convert(EmbedderForExport(tiny(), 64, 3), tmp_path / f"net.{kind}", cases=cases)
    assert report is not None and report.verdict is Verdict.OK and report.max_abs <= 1e-4
    assert [str(each.message) for each in caught] == []
