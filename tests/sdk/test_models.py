"""Backbones: registry, options, feature maps, unequal lengths, export."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from gaitsdk import models
from gaitsdk.errors import (
    InputError,
    NoFramesError,
    OptionError,
    SilhouetteShapeError,
    SilhouetteValueError,
    UnknownModelError,
)
from gaitsdk.models import GaitModel, ModelOptions, create, list_models, model_class, register_model, registry

SMALL: dict[str, Any] = {"channels": (4, 6, 8, 10), "stem_stride": 2, "strides": (1, 2, 1, 1), "dims": 12}
TINY_SET: dict[str, Any] = {"channels": (4, 6, 8), "dims": 12}
VARIANTS = [
    ("gaitset", TINY_SET),
    ("gaitbase", SMALL),
    ("gaitbase", {**SMALL, "embedding": "bnneck", "num_classes": 5}),
    ("gaitbase", {**SMALL, "embedding": "bnneck"}),
]


def _model(name: str, options: dict[str, Any]) -> GaitModel:
    """A model in eval mode whose batch norms are far from the identity."""
    torch.manual_seed(0)
    model = create(name, **options)
    for module in model.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            module.running_mean.normal_(0.0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def _sequences(lengths: list[int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.rand(t, 64, 44, generator=generator) > 0.5).float() for t in lengths]


# ------------------------------------------------------------------------------------------- registry and options
def test_published_networks_are_listed_and_made_without_options() -> None:
    assert {"gaitset", "gaitbase"} <= set(list_models())
    assert list_models() == sorted(list_models())
    for name, strips in (("gaitset", 62), ("gaitbase", 16)):
        model = create(name)
        assert (model.name, model.strips, model.dims, model.input_size) == (name, strips, 256, (64, 44))
        assert model.length_handling == "cyclic"


@pytest.mark.parametrize(("name", "options"), [*VARIANTS, ("gaitset", {}), ("gaitbase", {"num_classes": 3})])
def test_options_survive_json_and_recreate_the_model(name: str, options: dict[str, Any]) -> None:
    model = create(name, **options)
    stored = json.loads(json.dumps(model.options))
    assert stored == model.options
    again = create(model.name, **stored)
    assert again.options == model.options
    again.load_state_dict(model.state_dict())


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(UnknownModelError, match="did you mean 'gaitbase'"):
        create("gaitbas")
    with pytest.raises(UnknownModelError, match=r"known are .*gaitset"):
        create("zzzzzz")


def test_unknown_option_names_the_nearest() -> None:
    with pytest.raises(OptionError, match="did you mean 'channels'"):
        create("gaitbase", chanels=(1, 2, 3, 4))
    with pytest.raises(OptionError, match="no option 'num_classes'"):
        create("gaitset", num_classes=3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gaitbase", {"channels": (64, 128)}, "'channels'.*4 positive integers"),
        ("gaitbase", {"channels": (64, 128, 0, 1)}, "'channels'"),
        ("gaitbase", {"channels": "abcd"}, "'channels'"),
        ("gaitbase", {"dims": -1}, "'dims'"),
        ("gaitbase", {"dims": True}, "'dims'"),
        ("gaitbase", {"num_classes": 0}, "'num_classes'.*or None"),
        ("gaitbase", {"embedding": "bneck"}, "did you mean 'bnneck'"),
        ("gaitbase", {"size": (64,)}, "'size'"),
        ("gaitbase", {"strips": 15}, "16 rows cannot be cut into 15.*change strips"),
        ("gaitbase", {"strips": 16, "strides": (2, 2, 2, 1)}, "8 rows.*strides"),
        ("gaitset", {"bins": (16, 3)}, "16 rows cannot be cut into 3.*among 1, 2, 4, 8, 16.*change bins"),
        ("gaitset", {"bins": ()}, "'bins'"),
        ("gaitset", {"size": (60, 44)}, "15 rows.*size"),
    ],
)
def test_impossible_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        create(name, **options)


@dataclass(frozen=True, kw_only=True)
class DriftOptions(ModelOptions):
    dims: int = 3


class Drift(GaitModel):
    """A third party's network that looks across time: mean row profile plus the last frame's."""

    Options = DriftOptions

    def __init__(self, options: DriftOptions) -> None:
        super().__init__(options, strips=options.size[0], dims=options.dims)
        self.scale = torch.nn.Parameter(torch.arange(1.0, options.dims + 1))

    def extract(self, x: torch.Tensor) -> torch.Tensor:
        profile = x.mean(dim=3)
        return (profile.mean(dim=1) + 2 * profile[:, -1])[..., None] * self.scale


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))


@pytest.mark.usefixtures("own_registry")
def test_third_party_registers_once() -> None:
    assert register_model("drift")(Drift) is Drift
    model = create("drift", dims=2)
    assert (model.name, model.options) == ("drift", {"size": [64, 44], "dims": 2})
    assert "drift" in list_models() and model_class("drift") is Drift
    with pytest.raises(OptionError, match="'drift' is taken"):
        register_model("drift")(Drift)
    with pytest.raises(OptionError, match="'gaitset' is taken"):
        register_model("gaitset")(Drift)
    with pytest.raises(OptionError, match="subclass of GaitModel"):
        register_model("linear")(torch.nn.Linear)  # type: ignore[type-var]
    with pytest.raises(OptionError, match="not a model name"):
        register_model("My Net")


@pytest.mark.usefixtures("own_registry")
def test_network_that_looks_across_time_gets_each_sequence_alone() -> None:
    register_model("drift")(Drift)
    model = create("drift").eval()
    assert model.length_handling == "alone"
    sequences = _sequences([4, 9, 4, 1, 9, 4])
    model.chunk_frames = 8
    together = model.forward_sequences(sequences)
    alone = torch.cat([model(s[None]) for s in sequences])
    torch.testing.assert_close(together, alone)


# ------------------------------------------------------------------------------------------------------- forward
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_feature_maps_are_contiguous_strips_by_dims(name: str, options: dict[str, Any]) -> None:
    model = _model(name, options)
    features = model(torch.rand(3, 5, 64, 44))
    assert features.shape == (3, model.strips, model.dims)
    assert features.is_contiguous() and features.dtype == torch.float32
    if model.options.get("embedding") == "bnneck":
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(3, model.strips))


@pytest.mark.parametrize(
    ("x", "error"),
    [
        (torch.rand(2, 5, 64, 64), SilhouetteShapeError),
        (torch.rand(5, 64, 44), SilhouetteShapeError),
        (torch.rand(2, 0, 64, 44), NoFramesError),
        (torch.ones(2, 5, 64, 44, dtype=torch.uint8), SilhouetteValueError),
    ],
)
def test_unusable_input_is_refused(x: torch.Tensor, error: type[Exception]) -> None:
    model = _model("gaitset", TINY_SET)
    for call in (model.forward, model.forward_train):
        with pytest.raises(error, match="gaitset"):
            call(x)


def test_unusable_sequence_is_named() -> None:
    model = _model("gaitset", TINY_SET)
    good = torch.rand(3, 64, 44)
    with pytest.raises(SilhouetteShapeError, match=r"sequence 1.*\(3, 64, 64\).*\[T, 64, 44\]"):
        model.forward_sequences([good, torch.rand(3, 64, 64)])
    with pytest.raises(NoFramesError, match="sequence 0"):
        model.forward_sequences([good[:0]])
    with pytest.raises(SilhouetteValueError, match=r"sequence 1.*0\.\.1"):
        model.forward_sequences([good, good * 255])
    with pytest.raises(SilhouetteValueError, match="nan"):
        model.forward_sequences([good * float("nan")])
    with pytest.raises(InputError, match=r"sequence 0.*ndarray"):
        model.forward_sequences([good.numpy()])  # type: ignore[list-item]


def test_training_output_feeds_both_losses() -> None:
    torch.manual_seed(0)
    model = create("gaitbase", **SMALL, num_classes=7)
    features, logits = model.forward_train(torch.rand(4, 3, 64, 44))
    assert features.shape == (4, 16, 12) and logits is not None and logits.shape == (4, 16, 7)
    assert logits.abs().max() <= 1.0 + 1e-5  # cosines
    (features.square().sum() + logits.logsumexp(-1).sum()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    for name, options in (("gaitset", TINY_SET), ("gaitbase", SMALL)):
        assert create(name, **options).forward_train(torch.rand(2, 3, 64, 44))[1] is None


def test_triplet_features_come_before_the_neck() -> None:
    x = torch.rand(2, 4, 64, 44)
    neck = _model("gaitbase", {**SMALL, "embedding": "bnneck", "num_classes": 5})
    plain = create("gaitbase", **{**SMALL, "num_classes": 5}).eval()
    plain.load_state_dict(neck.state_dict())
    torch.testing.assert_close(neck.forward_train(x)[0], plain(x))
    assert not torch.allclose(neck(x), plain(x))


def test_inference_copy_gives_the_same_features_without_the_classifier() -> None:
    x = torch.rand(2, 4, 64, 44)
    for embedding in ("fc", "bnneck"):
        model = _model("gaitbase", {**SMALL, "embedding": embedding, "num_classes": 5}).train()
        copy = model.for_inference()
        assert not copy.training and model.training
        assert copy.options == {**model.options, "num_classes": None}
        assert "BNNecks.fc_bin" not in copy.state_dict()
        torch.testing.assert_close(copy(x), model.eval()(x))
        assert all(a.data_ptr() != b.data_ptr() for a, b in zip(copy.parameters(), model.parameters(), strict=False))


# ------------------------------------------------------------------------------------------------ unequal lengths
@pytest.mark.parametrize(("name", "options"), VARIANTS)
@pytest.mark.parametrize("chunk", [1, 7, 64, None])
def test_unequal_lengths_equal_one_by_one(name: str, options: dict[str, Any], chunk: int | None) -> None:
    model = _model(name, options)
    model.chunk_frames = chunk
    sequences = _sequences([17, 1, 30, 7, 7, 2])
    together = model.forward_sequences(sequences)
    with torch.no_grad():
        alone = torch.cat([model(s[None]) for s in sequences])
    assert together.shape == alone.shape and together.is_contiguous()
    assert (together - alone).abs().max() <= 1e-5 * alone.abs().max()


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_cyclic_repetition_and_order_of_frames_change_nothing(name: str, options: dict[str, Any]) -> None:
    model = _model(name, options)
    (frames,) = _sequences([7])
    with torch.no_grad():
        expected = model(frames[None])
        cyclic = model(frames[torch.arange(17) % 7][None])
        shuffled = model(frames[torch.randperm(7)][None])
    torch.testing.assert_close(cyclic, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(shuffled, expected, rtol=0, atol=1e-6)


def test_memory_is_bounded_by_the_chunk() -> None:
    model = _model("gaitbase", SMALL)
    model.chunk_frames = 8
    seen: list[int] = []
    model.Backbone.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[0]))
    model.forward_sequences(_sequences([19, 3, 6]))
    assert seen == [8, 8, 8, 4]


def test_sequences_never_touch_the_training_state() -> None:
    model = _model("gaitbase", SMALL)
    expected = model.forward_sequences(_sequences([4, 6]))
    model.train()
    model.Backbone.forward_block.bn1.eval()  # a frozen layer stays frozen
    before = {key: value.clone() for key, value in model.state_dict().items()}
    features = model.forward_sequences(_sequences([4, 6]))
    torch.testing.assert_close(features, expected)
    assert not features.requires_grad
    assert model.training and model.FCs.training and not model.Backbone.forward_block.bn1.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_no_sequences_give_no_features() -> None:
    assert _model("gaitset", TINY_SET).forward_sequences([]).shape == (0, 62, 12)


def test_features_of_sequences_can_train_a_reranker() -> None:
    model = _model("gaitset", TINY_SET)
    reranker = models.CarGait(dims=12, width=16, heads=4)
    features = model.forward_sequences(_sequences([3, 4]))
    reranker(features[:1], features[None, 1:]).sum().backward()
    assert reranker.output.weight.grad is not None


# --------------------------------------------------------------------------------------------------------- export
@pytest.mark.parametrize(("name", "options"), [("gaitset", TINY_SET), ("gaitbase", SMALL)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_exports_with_free_batch_and_length(name: str, options: dict[str, Any]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = _model(name, options)
    example = torch.rand(2, 7, 64, 44)
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.onnx.export(
        model, (example,), dynamo=True, dynamic_shapes=(free,), external_data=False, verbose=False
    )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    traced = torch.jit.trace(model, example)
    for batch, frames in ((1, 30), (2, 1), (3, 9), (8, 4)):
        x = torch.rand(batch, frames, 64, 44)
        with torch.no_grad():
            expected = model(x)
        (onnx,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(onnx), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(traced(x), expected, rtol=0, atol=1e-5)
