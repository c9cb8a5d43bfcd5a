"""What holds of every registered backbone: lengths, bad input, training, inference copies, CarGait on its features."""

from __future__ import annotations

import json

import pytest
import torch

from gaitsdk.errors import NoFramesError, OptionError, SilhouetteShapeError, SilhouetteValueError
from gaitsdk.models import CarGait, GaitModel, create, list_models, model_class, temporal

NAMES = list_models()
TAGGED = [(name, tag) for name in NAMES for tag in sorted(model_class(name).TAGS)]
PUBLISHED = {
    "deepgaitv2", "gaitbase", "gaitgl", "gaitpart", "gaitset", "gln", "mt3d", "skeletongait++", "swingait3d"
}  # fmt: skip


def tiny(name: str, **options: object) -> GaitModel:
    """A small network in eval mode whose batch norms are far from the identity."""
    torch.manual_seed(0)
    model = create(name, tag="tiny", **options)
    for key, value in model.state_dict().items():
        if key.endswith("running_mean"):
            value.normal_(0.0, 0.3)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    return model.eval()


def sequences(model: GaitModel, lengths: list[int], seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    channels = () if model.input_channels == 1 else (model.input_channels,)
    return [(torch.rand(t, *channels, *model.input_size, generator=generator) > 0.5).float() for t in lengths]


@torch.no_grad()
def one_by_one(model: GaitModel, walks: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([model(walk[None]) for walk in walks])


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Within 1e-5 of the largest value."""
    assert found.shape == expected.shape and found.is_contiguous()
    assert bool(expected.isfinite().all()) and float(expected.abs().max()) > 1e-3
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_the_papers_backbones_are_there() -> None:
    assert set(NAMES) >= PUBLISHED
    assert [name for name in NAMES if not model_class(name).verified] == ["mt3d"]


# ------------------------------------------------------------------------------------------------ options and tags
@pytest.mark.parametrize(("name", "tag"), TAGGED)
def test_tags_survive_json(name: str, tag: str) -> None:
    with torch.device("meta"):
        model = create(name, tag=tag)
        again = create(name, **json.loads(json.dumps(model.options)))
    assert again.options == model.options
    shapes, expected = ({key: value.shape for key, value in m.state_dict().items()} for m in (again, model))
    assert shapes == expected


@pytest.mark.parametrize("name", NAMES)
def test_tags_and_options_have_names(name: str) -> None:
    assert {"tiny", "casiab", "oumvlp", "gait3d", "grew"} & set(model_class(name).TAGS) > {"tiny"}
    with pytest.raises(OptionError, match="did you mean 'tiny'"):
        create(name, tag="tinny")
    with pytest.raises(OptionError, match="did you mean 'size'"):
        create(name, tag="tiny", sise=(64, 44))


@pytest.mark.parametrize(("name", "tag"), TAGGED)
def test_cargait_works_on_the_features(name: str, tag: str) -> None:
    with torch.device("meta"):
        model = create(name, tag=tag)
    torch.manual_seed(0)
    reranker = CarGait(dims=model.dims, width=16, heads=4).eval()
    torch.nn.init.normal_(reranker.output.weight, std=0.3)
    probe, candidates = torch.randn(2, model.strips, model.dims), torch.randn(2, 3, model.strips, model.dims)
    with torch.no_grad():
        distances = reranker(probe, candidates)
        alone = reranker(probe[1:], candidates[1:, 2:])
    assert distances.shape == (2, 3) and bool((distances > 0).all())
    torch.testing.assert_close(distances[1:, 2:], alone)


# ------------------------------------------------------------------------------------------------- unequal lengths
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chunk", [1, 50, 10_000, None])
def test_each_sequence_is_as_if_alone(name: str, chunk: int | None) -> None:
    model = tiny(name)
    model.chunk_frames = chunk
    walks = sequences(model, [17, 1, 30, 7, 31, 2, 120, 32, 7, 3, 4, 16])
    assert_same(model.forward_sequences(walks), one_by_one(model, walks))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chunk", [7, 40])
def test_long_sequences_are_cut_without_a_trace(name: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporal, "_SHORTEST_PIECE", 1)
    monkeypatch.setattr(temporal, "_HALOS", 1)
    model = tiny(name)
    model.chunk_frames = chunk
    walks = sequences(model, [91, 20, 130, 89, 3])
    assert_same(model.forward_sequences(walks), one_by_one(model, walks))


@pytest.mark.parametrize("name", NAMES)
def test_neighbours_on_the_time_axis_do_not_matter(name: str) -> None:
    model = tiny(name)
    model.chunk_frames = 10_000
    walks = sequences(model, [16, 15, 20, 17])
    others = sequences(model, [16, 15, 20, 17], seed=2)
    mixed = model.forward_sequences([others[0], walks[1], others[2], walks[3]])
    expected = model.forward_sequences(walks)
    assert_same(mixed[1::2].contiguous(), expected[1::2])
    assert not torch.allclose(mixed[::2], expected[::2], atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_padding_by_repetition_changes_nothing_where_the_model_says_so(name: str) -> None:
    model = tiny(name)
    (walk,) = sequences(model, [17])
    with torch.no_grad():
        padded, alone = model(walk[torch.arange(30) % 17][None]), model(walk[None])
    same = float((padded - alone).abs().max()) <= 1e-5 * float(alone.abs().max())
    assert same == (model.length_handling == "cyclic")


# ------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize("name", NAMES)
def test_unusable_input_is_refused(name: str) -> None:
    model = tiny(name)
    (good,) = sequences(model, [6])
    height, width = model.input_size
    wide = torch.rand(*good.shape[:-1], 64)
    one_map, two_maps = torch.rand(6, height, width), torch.rand(6, 2, height, width)
    another = two_maps[:, :1] if model.input_channels == 1 else one_map
    for bad in (wide, two_maps, another, good[:, ..., :-1, :], good[0]):
        for call in (model.forward, model.forward_train):
            with pytest.raises(SilhouetteShapeError, match=name.replace("+", r"\+") + r".*expected"):
                call(bad[None])
        with pytest.raises(SilhouetteShapeError, match="sequence 1"):
            model.forward_sequences([good, bad])
    with pytest.raises(NoFramesError):
        model(good[None, :0])
    with pytest.raises(NoFramesError, match="sequence 2"):
        model.forward_sequences([good, good, good[:0]])
    with pytest.raises(SilhouetteValueError, match=r"float32 in 0\.\.1"):
        model((good[None] * 255).to(torch.uint8))
    for bad in (good * 255, good - 1, torch.full_like(good, float("nan"))):
        with pytest.raises(SilhouetteValueError, match="sequence 0"):
            model.forward_sequences([bad])


@pytest.mark.parametrize("name", NAMES)
def test_one_frame_is_a_sequence(name: str) -> None:
    model = tiny(name)
    walks = sequences(model, [1, 2, 3])
    features = one_by_one(model, walks)
    assert features.shape == (3, model.strips, model.dims) and bool(features.isfinite().all())


# -------------------------------------------------------------------------------------------------------- training
@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns(name: str) -> None:
    classes = {"num_classes": 5} if "num_classes" in model_class(name).Options.names() else {}
    torch.manual_seed(0)
    model = create(name, tag="tiny", **classes)
    features, logits = model.forward_train(torch.stack(sequences(model, [9, 9, 9])))
    assert features.shape == (3, model.strips, model.dims)
    loss = features.square().sum()
    if classes:
        assert logits is not None and logits.shape[0] == 3 and logits.shape[-1] == 5
        loss = loss + logits.logsumexp(-1).sum()
    else:
        assert logits is None
    loss.backward()
    learning = [(key, p) for key, p in model.named_parameters() if p.requires_grad]
    idle = [key for key, p in learning if p.grad is None or not bool(p.grad.isfinite().all())]
    assert idle == []


@pytest.mark.parametrize("name", NAMES)
def test_inference_copy_has_no_classifier_and_the_same_features(name: str) -> None:
    options = model_class(name).Options.names()
    for embedding in ("fc", "bnneck") if "embedding" in options else (None,):
        told = {"embedding": embedding} if embedding else {}
        try:
            model = tiny(name, **told, **({"num_classes": 5} if "num_classes" in options else {}))
        except OptionError as error:
            assert embedding == "bnneck" and "neck" in str(error)  # this form of the network has none
            continue
        copy = model.for_inference()
        assert copy.options.get("num_classes") is None
        assert sum(p.numel() for p in copy.parameters()) <= sum(p.numel() for p in model.parameters())
        walks = sequences(model, [12, 7])
        torch.testing.assert_close(one_by_one(copy, walks), one_by_one(model, walks))
        if embedding == "bnneck":
            torch.testing.assert_close(one_by_one(copy, walks).norm(dim=-1), torch.ones(2, model.strips))
