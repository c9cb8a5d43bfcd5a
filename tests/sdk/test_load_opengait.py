"""Checkpoints: recognised from names and shapes, refused with reasons, and never run."""

from __future__ import annotations

import collections
import os
import pickle
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gaitsdk.errors import CheckpointError, OptionError
from gaitsdk.models import GaitModel, create, list_models, load_opengait, model_class, registry
from gaitsdk.models.gaitbase import GaitBase
from gaitsdk.models.opengait import recognise_checkpoint

SMALL: dict[str, Any] = {"channels": (4, 6, 8, 10), "dims": 12, "num_classes": 5}
TINY_SET: dict[str, Any] = {"channels": (4, 6, 8), "dims": 12}


def _state(name: str, **options: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return create(name, **options).state_dict()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gaitset", TINY_SET),
        ("gaitset", {**TINY_SET, "bins": (8, 4, 2, 1)}),
        ("gaitset", {**TINY_SET, "bins": (1,)}),
        ("gaitbase", SMALL),
        ("gaitbase", {**SMALL, "layers": (1, 2, 1, 3)}),
        ("gaitbase", {**SMALL, "strips": 8}),
        ("gaitbase", {**SMALL, "num_classes": None}),
        ("gln", {"tag": "tiny"}),
        ("gln", {"tag": "tiny", "num_classes": 5, "hidden_dims": 7, "bins": (4, 2, 1)}),
        ("deepgaitv2", {**SMALL, "mode": "2d", "layers": (1, 2, 1, 1)}),
        ("deepgaitv2", {**SMALL, "mode": "p3d", "layers": (2, 1, 1, 2)}),
        ("deepgaitv2", {**SMALL, "mode": "3d", "layers": (1, 1, 3, 1), "strips": 8}),
    ],
)
def test_architecture_and_options_are_recognised(name: str, options: dict[str, Any]) -> None:
    original = create(name, **options).eval()
    model = load_opengait(original.state_dict())
    assert (model.name, model.options, model.training) == (name, original.options, False)
    x = torch.rand(2, 3, 64, 44)
    with torch.no_grad():
        assert torch.equal(model(x), original(x))


def test_every_way_to_bring_a_checkpoint_gives_the_same(tmp_path: Path) -> None:
    state = _state("gaitbase", **SMALL)
    wrapped = {"model": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}, "iteration": 60000}
    parallel = {"model": {f"module.{key}": value for key, value in state.items()}}
    torch.save(wrapped, tmp_path / "wrapped.pt")
    torch.save(state, tmp_path / "bare.pt")
    torch.save(state, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "weights.safetensors")
    arrays = {key: value.numpy() for key, value in state.items()}
    files = [tmp_path / name for name in ("wrapped.pt", "bare.pt", "legacy.pt", "weights.safetensors")]
    for source in (state, wrapped, parallel, arrays, *files, str(files[0])):
        loaded = load_opengait(source).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_loading_copies_the_weights() -> None:
    state = _state("gaitset", **TINY_SET)
    model = load_opengait(state)
    state["Head.fc_bin"].zero_()
    assert float(model.state_dict()["Head.fc_bin"].abs().sum()) > 0


def test_what_shapes_cannot_tell_is_told() -> None:
    state = _state("gaitbase", **SMALL)
    neck = load_opengait(state, embedding="bnneck")
    assert neck.options["embedding"] == "bnneck"
    torch.testing.assert_close(neck(torch.rand(1, 3, 64, 44)).norm(dim=-1), torch.ones(1, 16))
    large = load_opengait(state, input_size=(128, 88))
    assert large.input_size == (128, 88) and large(torch.rand(1, 2, 128, 88)).shape == (1, 16, 12)
    same_shapes = _state("gaitbase", **SMALL, strides=(1, 2, 1, 2))
    told = load_opengait(same_shapes, strides=(1, 2, 1, 2), strips=16)
    assert told.options["strides"] == [1, 2, 1, 2]
    bare = load_opengait(state, keep_classifier=False)
    assert bare.options["num_classes"] is None and "BNNecks.fc_bin" not in bare.state_dict()


def test_unknown_options_are_refused() -> None:
    with pytest.raises(OptionError, match="did you mean 'strides'"):
        load_opengait(_state("gaitbase", **SMALL), stride=(1, 2, 2, 1))
    with pytest.raises(OptionError, match="no BN neck"):
        load_opengait(_state("gaitset", **TINY_SET), embedding="bnneck")
    with pytest.raises(OptionError, match="cannot be cut"):
        load_opengait(_state("gaitset", **TINY_SET), input_size=(60, 44))
    with pytest.raises(OptionError, match="divisible by 4"):
        load_opengait(_state("gln", tag="tiny"), input_size=(64, 46))


@pytest.mark.parametrize("name", list_models())
def test_every_architecture_is_told_apart(name: str) -> None:
    """Tiny networks with and without classifier, down to every option that leaves a trace in shapes."""
    cls = model_class(name)
    if cls.recognise.__func__ is GaitModel.recognise.__func__:  # type: ignore[attr-defined]
        pytest.skip("no checkpoints of it exist")
    for classes in ({}, {"num_classes": 7}) if "num_classes" in cls.Options.names() else ({},):
        original = create(name, tag="tiny", **classes).eval()
        model = load_opengait(original.state_dict(), input_size=original.input_size)
        assert model.name == name and same_shapes(model, original)
        for option, value in model.options.items():
            if value != original.options[option]:
                assert same_shapes(create(name, **{**original.options, option: value}), original), option


def same_shapes(a: GaitModel, b: GaitModel) -> bool:
    first, second = ({key: value.shape for key, value in each.state_dict().items()} for each in (a, b))
    return first == second


# ------------------------------------------------------------------------------------------------- what does not fit
def test_missing_and_unexpected_keys_are_listed() -> None:
    state = _state("gaitbase", **SMALL)
    del state["Backbone.forward_block.layer2.0.bn1.weight"]
    state["Extra.weight"] = torch.zeros(3)
    with pytest.raises(CheckpointError) as error:
        load_opengait(state)
    message = str(error.value)
    assert "most resembles 'gaitbase'" in message
    assert "1 missing: Backbone.forward_block.layer2.0.bn1.weight" in message
    assert "1 unexpected: Extra.weight" in message


def test_other_shapes_are_listed() -> None:
    state = _state("gaitset", **TINY_SET)
    state["gl_block3.2.conv.weight"] = torch.zeros(8, 9, 3, 3)
    with pytest.raises(CheckpointError, match=r"gl_block3\.2\.conv\.weight \[8, 9, 3, 3\] instead of \[8, 8, 3, 3\]"):
        load_opengait(state)


def test_without_its_signature_the_nearest_architecture_is_named() -> None:
    state = _state("gaitset", **TINY_SET)
    del state["Head.fc_bin"]
    with pytest.raises(CheckpointError, match=r"most resembles 'gaitset'.*missing: Head\.fc_bin"):
        load_opengait(state)
    with pytest.raises(CheckpointError, match=r"no known architecture.*fc1\.weight"):
        load_opengait({"fc1.weight": torch.zeros(2, 2)})


def test_the_options_that_fit_best_are_named() -> None:
    state = _state("gaitset", **TINY_SET)
    del state["Head.fc_bin"]
    with pytest.raises(CheckpointError, match=r"'gaitset' with channels=\(4, 6, 8\); got 1 missing: Head\.fc_bin;"):
        load_opengait(state)
    with torch.device("meta"):
        state = create("deepgaitv2", tag="casiab", num_classes=5).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items() if key != "layer0.forward_block.0.weight"}
    with pytest.raises(CheckpointError, match=r"'deepgaitv2' with .*layers=\(1, 1, 1, 1\).*num_classes=5") as error:
        recognise_checkpoint(shapes)
    assert "; got 1 missing: layer0.forward_block.0.weight; expected the 97 entries" in str(error.value)


def test_shapes_of_another_rank_are_no_crash() -> None:
    for name in list_models():
        state = _state(name, tag="tiny")
        flat = {key: value.reshape(-1) for key, value in state.items()}
        if cls_knows(name):
            with pytest.raises(CheckpointError, match=f"most resembles '{name}'".replace("+", r"\+")):
                load_opengait(flat)


def cls_knows(name: str) -> bool:
    cls = model_class(name)
    return cls.recognise({key: tuple(v.shape) for key, v in _state(name, tag="tiny").items()}) is not None


def test_what_it_resembles_is_said_at_once() -> None:
    state = _state("gaitset", **TINY_SET)
    del state["Head.fc_bin"]
    start = time.perf_counter()
    with pytest.raises(CheckpointError):
        load_opengait(state)
    assert time.perf_counter() - start < 10


def test_integers_instead_of_weights_are_refused() -> None:
    state = _state("gaitset", **TINY_SET)
    state["Head.fc_bin"] = state["Head.fc_bin"].to(torch.int32)
    with pytest.raises(CheckpointError, match=r"Head\.fc_bin.*torch\.int32"):
        load_opengait(state)
    state["Head.fc_bin"] = torch.ones(62, 8, 12, dtype=torch.float16)
    assert load_opengait(state).state_dict()["Head.fc_bin"].dtype == torch.float32


def test_a_derived_model_does_not_claim_its_bases_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))

    @registry.register_model("mybase")
    class MyBase(GaitBase):
        pass

    assert load_opengait(_state("gaitbase", **SMALL)).name == "gaitbase"

    @registry.register_model("greedy")
    class Greedy(GaitBase):
        @classmethod
        def recognise(cls, shapes: Any) -> dict[str, Any] | None:
            return GaitBase.recognise(shapes)

    with pytest.raises(CheckpointError, match=r"more than one.*gaitbase, greedy"):
        load_opengait(_state("gaitbase", **SMALL))


def test_recognition_needs_no_weights() -> None:
    with torch.device("meta"):
        state = create("gaitbase", num_classes=20000, strips=8).state_dict()
    name, options = recognise_checkpoint({key: tuple(value.shape) for key, value in state.items()})
    assert name == "gaitbase" and options["num_classes"] == 20000 and options["strips"] == 8


def test_embedding_that_the_checkpoint_lacks_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"missing: BNNecks\.bn1d"):
        load_opengait(_state("gaitbase", **{**SMALL, "num_classes": None}), embedding="bnneck")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    state = _state("gaitset", **TINY_SET)
    state["Head.fc_bin"][3, 2, 1] = value
    with pytest.raises(CheckpointError, match=r"Head\.fc_bin.*NaN or infinite"):
        load_opengait(state)


@pytest.mark.parametrize("state", [{}, {"model": {}}, {"a": "text"}, {"model": {"a": [1, 2]}}, {3: torch.zeros(1)}])
def test_what_is_no_state_dict_is_refused(state: dict[Any, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"state dict|no tensor"):
        load_opengait(state)


# ------------------------------------------------------------------------------------------------------ hostile files
class Canary:
    """Pickles as a call that creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def _hostile(where: str, canary: Path) -> Any:
    state: dict[str, Any] = _state("gaitset", **TINY_SET)
    return {
        "alone": Canary(canary),
        "in_state": {**state, "x": Canary(canary)},
        "as_key": {**state, (Canary(canary),): 1},
        "in_optimizer": {"model": state, "optimizer": {"state": {0: {"momentum_buffer": Canary(canary)}}}},
        "as_optimizer": {"model": state, "optimizer": Canary(canary)},
        "in_ordered": collections.OrderedDict(
            model=state, scheduler=collections.OrderedDict(last_epoch=Canary(canary))
        ),
    }[where]


PLACES = ["alone", "in_state", "as_key", "in_optimizer", "as_optimizer", "in_ordered"]


@pytest.mark.parametrize("suffix", [".pt", ".pkl"])
@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("where", PLACES)
def test_malicious_checkpoint_runs_nothing(
    tmp_path: Path, where: str, new_format: bool, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / f"evil{suffix}"
    torch.save(_hostile(where, canary), path, _use_new_zipfile_serialization=new_format)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # a switch of torch's that must not reach us
    with pytest.raises(CheckpointError, match=r"was not run.*mkdir"):
        load_opengait(path)
    assert not canary.exists()
    torch.load(path, weights_only=False)  # the canary is alive: an unsafe load does run it
    assert canary.exists()


@pytest.mark.parametrize("suffix", [".pt", ".pkl", ".safetensors"])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("where", PLACES)
def test_malicious_pickle_runs_nothing(tmp_path: Path, where: str, protocol: int, suffix: str) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / f"evil{suffix}"
    path.write_bytes(pickle.dumps(_hostile(where, canary), protocol=protocol))
    with pytest.raises(CheckpointError, match="evil"):
        load_opengait(path)
    assert not canary.exists()
    pickle.loads(path.read_bytes())
    assert canary.exists()


def test_plain_pickles_are_refused_even_where_they_are_harmless(tmp_path: Path) -> None:
    state = _state("gaitset", **TINY_SET)
    for content in (state, {key: value.numpy() for key, value in state.items()}):
        path = tmp_path / "state.pkl"
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(CheckpointError, match="was not run"):
            load_opengait(path)
    torch.save(state, path)  # what counts is the format, not the suffix
    assert load_opengait(path).name == "gaitset"


def test_tensors_that_claim_more_than_they_hold_are_refused(tmp_path: Path) -> None:
    state = _state("gaitset", **TINY_SET)
    claims = {
        "expanded": torch.zeros(1).expand(10**12),
        "meta": torch.empty(10**12, device="meta"),
        "empty": torch.zeros(10**9, 0, 5, 5),
        "sparse": torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1), (10**12,)),
    }
    for name, tensor in claims.items():
        path = tmp_path / f"{name}.pt"
        torch.save({**state, "x": tensor}, path)
        with pytest.raises(CheckpointError, match=r"'x' is no plain tensor|was not run"):
            load_opengait(path)


@pytest.mark.parametrize("name", ["x.pt", "x.pth", "x.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x80", b"PK\x03\x04 broken", b"no checkpoint", bytes(range(256)) * 20])
def test_damaged_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        load_opengait(path)


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_truncated_files_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    state = _state("gaitset", **TINY_SET)
    if name.endswith(".pt"):
        torch.save(state, path)
    else:
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    whole = path.read_bytes()
    for fraction in np.linspace(0.1, 0.95, 6):
        path.write_bytes(whole[: int(len(whole) * fraction)])
        with pytest.raises(CheckpointError, match=name):
            load_opengait(path)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_opengait(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="no such file"):
        load_opengait(tmp_path)


def test_traced_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "traced.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with warnings.catch_warnings(), pytest.raises(CheckpointError, match=r"traced\.pt: a TorchScript program"):
        warnings.simplefilter("error")
        load_opengait(path)
