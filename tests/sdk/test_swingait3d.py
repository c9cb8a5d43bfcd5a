"""SwinGait-3D: windows against a plain reading of the paper, lengths mixed on one time axis, cutting, export."""

from __future__ import annotations

import itertools
import math
import warnings
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from gaitsdk.errors import CheckpointError, OptionError, SilhouetteShapeError  # noqa: E402
from gaitsdk.models import GaitModel, create, load_opengait, model_class, residual, temporal  # noqa: E402
from gaitsdk.models.packing import Packing  # noqa: E402
from gaitsdk.models.windows import Slots, TokenGrid, WindowBlock  # noqa: E402

CPU = torch.device("cpu")


def tiny(**options: object) -> Any:
    """A small network in eval mode whose norms and position tables are far from the initial ones."""
    torch.manual_seed(0)
    model = create("swingait3d", tag="tiny", **options)
    for key, value in model.state_dict().items():
        if key.endswith("running_mean"):
            value.normal_(0.0, 0.3)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif key.endswith("bias_table"):
            value.normal_()
    return model.eval()


def walks(lengths: list[int], seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.rand(t, 64, 44, generator=generator) > 0.5).float() for t in lengths]


@torch.no_grad()
def one_by_one(model: GaitModel, sequences: list[Tensor]) -> Tensor:
    return torch.cat([model(sequence[None]) for sequence in sequences])


def difference(found: Tensor, expected: Tensor) -> float:
    """Of the largest value."""
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


# ------------------------------------------------------------------------------------------------------ one block
def plain_block(block: WindowBlock, x: Tensor) -> Tensor:
    """Section 3.2 of the Video Swin paper, window by window and token by token: x [T, 15, 10, c] -> the same shape."""
    frames, rows, columns, dims = x.shape
    depth = min(3, frames)
    shift = (0 if frames <= 3 else 1, 1, 2) if block.shifted else (0, 0, 0)
    padded = -(-frames // depth) * depth
    y = torch.cat([block.norm1(x), x.new_zeros(padded - frames, rows, columns, dims)])
    y = torch.roll(y, [-s for s in shift], (0, 1, 2))
    out = torch.empty_like(y)
    for t, h, w in itertools.product(range(0, padded, depth), range(0, rows, 3), range(0, columns, 5)):
        window = (slice(t, t + depth), slice(h, h + 3), slice(w, w + 5))
        cells = list(itertools.product(*(range(s.start, s.stop) for s in window)))
        carried = [tuple(a >= n - s for a, n, s in zip(c, y.shape[:3], shift, strict=True)) for c in cells]
        tokens = block.attn.qkv(y[window].reshape(len(cells), dims))
        q, k, v = tokens.reshape(len(cells), 3, block.attn.heads, -1).unbind(1)
        scores = torch.einsum("ihd,jhd->ijh", q, k) / math.sqrt(q.shape[-1])
        for i, j in itertools.product(range(len(cells)), repeat=2):
            dt, dh, dw = (a - b for a, b in zip(cells[i], cells[j], strict=True))
            scores[i, j] += block.attn.relative_position_bias_table[(dt + 2) * 45 + (dh + 2) * 9 + dw + 4]
            scores[i, j] -= 100.0 * (carried[i] != carried[j])
        seen = torch.einsum("ijh,jhd->ihd", scores.softmax(dim=1), v)
        out[window] = block.attn.proj(seen.flatten(1)).reshape(depth, 3, 5, dims)
    x = x + torch.roll(out, shift, (0, 1, 2))[:frames]
    return x + block.mlp.fc2(torch.nn.functional.gelu(block.mlp.fc1(block.norm2(x))))


def our_block(block: WindowBlock, x: Tensor, packing: Packing | None) -> Tensor:
    """x [B, T, 15, 10, c] -> the same shape."""
    slots = Slots.of(x.shape[1], packing, CPU)
    grid = TokenGrid(slots, 15, 10, x.dtype, masked=True)
    tokens = x.index_select(1, slots.source).flatten(1, 3).index_select(1, grid.order)
    maps = block(tokens, grid).index_select(1, grid.place).unflatten(1, (-1, 15, 10))
    return maps.index_select(1, slots.back)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "shifted"])
def block(request: pytest.FixtureRequest) -> WindowBlock:
    torch.manual_seed(0)
    made = WindowBlock(4, 2, shifted=request.param).double().eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


@torch.no_grad()
def test_a_block_is_the_papers_at_every_length(block: WindowBlock) -> None:
    lengths = [1, 2, 3, 5, 6, 7]
    expected = []
    for frames in lengths:
        x = torch.randn(2, frames, 15, 10, 4, dtype=torch.float64)
        truth = plain_block(block, x[1])
        assert difference(our_block(block, x, None)[1], truth) < 1e-12, frames
        expected.append((x[1], truth))
    # The same sequences on one time axis, whatever the blank frames between them hold.
    packing = Packing.of(lengths, stride=1, gap=1, device=CPU)
    axis = torch.full((packing.total, 15, 10, 4), 1e3, dtype=torch.float64)
    for start, (x, _) in zip(packing.starts, expected, strict=True):
        axis[start : start + len(x)] = x
    found = our_block(block, axis[None], packing)[0]
    for start, (x, truth) in zip(packing.starts, expected, strict=True):
        assert difference(found[start : start + len(x)], truth) < 1e-12


def test_relative_positions_are_opengaits(parity_dir: Path) -> None:
    """The README of the reference numbers states the rule; a checkpoint that holds the constant loads."""
    assert "relative_position_index" in (parity_dir / "README.md").read_text()
    cells = list(itertools.product(range(3), range(3), range(5)))
    index = torch.tensor([[(a - d + 2) * 45 + (b - e + 2) * 9 + (c - f + 4) for d, e, f in cells] for a, b, c in cells])
    model = tiny()
    assert torch.equal(model.transformer.layers[0].blocks[0].attn.relative_position_index, index)
    state = dict(model.state_dict())
    assert not any("relative_position_index" in key for key in state)
    for i, j in itertools.product((0, 1), (0, 1)):
        state[f"transformer.layers.{i}.blocks.{j}.attn.relative_position_index"] = index
    loaded = load_opengait(state)
    assert loaded.options == {**model.options, "embedding": "fc"}
    (walk,) = walks([5])
    torch.testing.assert_close(one_by_one(loaded, [walk]), one_by_one(model, [walk]))


# ----------------------------------------------------------------------------------------------------- unequal lengths
LENGTHS = [17, 1, 30, 3, 2, 130, 4, 16, 5, 6, 31, 1, 90]


def test_packed_lengths_are_as_if_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    packings = []
    maps = model.temporal_maps
    monkeypatch.setattr(model, "temporal_maps", lambda x, packing: (packings.append(packing), maps(x, packing))[1])
    sequences = walks(LENGTHS)
    expected = one_by_one(model, sequences)
    packings.clear()
    model.chunk_frames = 10_000
    assert difference(model.forward_sequences(sequences), expected) <= 1e-5
    assert [packing.lengths for packing in packings] == [tuple(sorted(LENGTHS))]  # really one row


@pytest.mark.parametrize("layers", [(1, 1, 2, 2), (1, 2, 3, 1)])
def test_pieces_are_as_if_whole(layers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporal, "_SHORTEST_PIECE", 6)
    monkeypatch.setattr(temporal, "_HALOS", 1)
    model = tiny(layers=layers)
    sequences = walks(LENGTHS)
    expected = one_by_one(model, sequences)
    for frames in (20, 45):
        model.chunk_frames = frames
        assert difference(model.forward_sequences(sequences), expected) <= 1e-5


def test_a_neighbour_on_the_time_axis_changes_nothing() -> None:
    model = tiny()
    model.chunk_frames = 10_000
    sequences, others = walks([16, 2, 15, 4]), walks([16, 2, 15, 4], seed=2)
    expected = model.forward_sequences(sequences)
    for changed in range(4):
        mixed = model.forward_sequences([others[i] if i == changed else sequences[i] for i in range(4)])
        for i in range(4):
            assert (difference(mixed[i], expected[i]) <= 1e-6) == (i != changed)


def test_blank_frames_must_be_blanked(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    model.chunk_frames = 10_000
    sequences = walks([16, 15])
    expected = model.forward_sequences(sequences)
    monkeypatch.setattr(residual, "blanked", lambda x, packing: x)
    assert difference(model.forward_sequences(sequences), expected) > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("layers", [(1, 1, 2, 2), (1, 2, 2, 1), (1, 1, 4, 2)])
def test_the_halo_is_as_far_as_the_maps_look(layers: tuple[int, ...]) -> None:
    """In double precision, on maps: the maximum over the frames would hide most of it."""
    model = tiny(layers=layers).double()
    (walk,) = walks([60])
    walk = walk.double()[None, None]
    whole = model.temporal_maps(walk, None)

    def error(reach: int) -> float:
        piece = model.temporal_maps(walk[:, :, 27 - reach : 30 + reach], None)
        return difference(piece[:, :, reach:-reach], whole[:, :, 27:30])

    reach = -(-model.halo // 3) * 3  # pieces begin and end with whole windows
    assert error(reach) < 1e-12
    assert error(reach - 3) > 1e-9


# ------------------------------------------------------------------------------------------------ options, checkpoints
def test_recognises_its_own_and_nothing_else() -> None:
    cls = model_class("swingait3d")
    for tag in cls.TAGS:
        for more in ({}, {"num_classes": 3}, {"embedding": "bnneck"}):
            with torch.device("meta"):
                model = create("swingait3d", tag=tag, **more)
            shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
            told = cls.recognise(shapes)
            assert told is not None
            assert create_options(told) == {**model.options, "embedding": "fc"}
            assert model_class("deepgaitv2").recognise(shapes) is None
    with torch.device("meta"):
        other = create("deepgaitv2", num_classes=3)
    assert cls.recognise({key: tuple(value.shape) for key, value in other.state_dict().items()}) is None


def create_options(told: dict[str, Any]) -> dict[str, Any]:
    with torch.device("meta"):
        return create("swingait3d", **told).options


def test_another_window_is_no_published_network() -> None:
    state = dict(tiny().state_dict())
    for key in [key for key in state if key.endswith("bias_table")]:
        state[key] = torch.zeros(3 * 3 * 9, state[key].shape[1])
    with pytest.raises(CheckpointError, match=r"bias_table \[81, 2\] instead of \[225, 2\]"):
        load_opengait(state)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"size": (64, 64)}, "64, 44"), ({"size": (128, 88)}, "64, 44"), ({"layers": (1, 1, 2)}, "4 positive"),
        ({"layers": (1, 1, 0, 2)}, "positive"), ({"heads": (3, 3)}, "divisors"), ({"heads": (2,)}, "2 positive"),
        ({"drop_path": 1.0}, "below 1"), ({"drop_path": True}, "below 1"), ({"drop_path": "0"}, "below 1"),
        ({"embedding": "bn"}, "bnneck"), ({"num_classes": 0}, "positive"), ({"head": (2, 2)}, "heads"),
    ],
)  # fmt: skip
def test_impossible_options_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        create("swingait3d", tag="tiny", **options)


def test_uncut_silhouettes_are_refused() -> None:
    """OpenGait's network takes them silently: it resizes whatever comes."""
    model = tiny()
    with pytest.raises(SilhouetteShapeError, match="64, 44"):
        model(torch.rand(1, 5, 64, 64))
    with pytest.raises(SilhouetteShapeError, match="sequence 1"):
        model.forward_sequences([torch.rand(5, 64, 44), torch.rand(5, 64, 64)])


# ------------------------------------------------------------------------------------------------------------ training
def test_training_gives_the_strips_that_count() -> None:
    torch.manual_seed(0)
    model = create("swingait3d", tag="tiny", num_classes=5, drop_path=0.5)
    features, logits = model.forward_train(torch.stack(walks([8, 8, 8])))
    assert logits is not None
    assert features.shape == (3, 15, 12) and logits.shape == (3, 15, 5)
    (features.square().sum() + logits.logsumexp(-1).sum()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), key
    assert float(model.FCs.fc_bin.grad[:15].abs().amin(dim=(1, 2)).max()) > 0.0
    assert float(model.FCs.fc_bin.grad[15].abs().max()) == 0.0  # the copy teaches nothing


def test_branches_are_dropped_in_training_only() -> None:
    model = tiny(drop_path=0.9)
    x = torch.stack(walks([4, 4]))
    with torch.no_grad():
        expected = model(x)
        model.transformer.train()
        dropped = model(x)
        assert difference(model.forward_sequences(list(x)), expected) <= 1e-5  # inference, whatever the mode
    assert difference(dropped, expected) > 1e-2


def test_bn_neck_features_have_unit_strips() -> None:
    model = tiny(embedding="bnneck")
    with torch.no_grad():
        features = model(torch.stack(walks([4, 4])))
    assert features.shape == (2, 15, 12) and features.is_contiguous()
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(2, 15))


# -------------------------------------------------------------------------------------------------------------- export
@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_exports_with_any_batch_and_length(kind: str, tmp_path: Path) -> None:
    """Lengths of every remainder modulo 3, and those shorter than a window."""
    pytest.importorskip("onnxscript")
    from gaitsdk_export.cases import embedder_cases
    from gaitsdk_export.parity import Verdict
    from gaitsdk_export.to_onnx import to_onnx
    from gaitsdk_export.to_torchscript import to_torchscript
    from gaitsdk_export.wrappers import EmbedderForExport

    convert = {"onnx": to_onnx, "torchscript": to_torchscript}[kind]
    cases = embedder_cases(64, 1, batches=(1, 2, 3), lengths=(1, 2, 3, 4, 5))  # and 31 frames
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = convert(EmbedderForExport(tiny(), 64), tmp_path / kind, cases=cases)
    assert report is not None and report.verdict is Verdict.OK
    assert [str(each.message) for each in caught] == []
