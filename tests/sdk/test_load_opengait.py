"""Checkpoints: recognised from names and shapes, refused with reasons, never run, and equal to OpenGait's features."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gaitsdk.errors import CheckpointError, OptionError
from gaitsdk.models import GaitModel, create, load_opengait

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
    with pytest.raises(CheckpointError, match="cannot be cut"):
        load_opengait(_state("gaitset", **TINY_SET), input_size=(60, 44))


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


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("where", ["alone", "in_state", "in_optimizer"])
def test_malicious_checkpoint_runs_nothing(tmp_path: Path, where: str, new_format: bool) -> None:
    canary = tmp_path / "canary"
    state: dict[str, Any] = _state("gaitset", **TINY_SET)
    contents = {
        "alone": Canary(canary),
        "in_state": {**state, "x": Canary(canary)},
        "in_optimizer": {"model": state, "optimizer": Canary(canary)},
    }
    path = tmp_path / "evil.pt"
    torch.save(contents[where], path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError, match="was not run"):
        load_opengait(path)
    assert not canary.exists()
    torch.load(path, weights_only=False)  # the canary is alive: an unsafe load does run it
    assert canary.exists()


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
        save_file(state, path)
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
    with pytest.raises(CheckpointError, match=r"traced\.pt"):
        load_opengait(path)


# --------------------------------------------------------------------------------------- parity with OpenGait's numbers
CONFIGURATIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("gaitset_casiab", "gaitset", {}),
    ("gaitbase_gait3d", "gaitbase", {"num_classes": 3000}),
]
TABLES: list[tuple[str, str, dict[str, Any]]] = [
    *CONFIGURATIONS,
    ("gaitset_grew", "gaitset", {"channels": (64, 128, 256)}),
    ("gaitbase_grew", "gaitbase", {"num_classes": 20000}),
]


def _rules(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("parity_rules", folder / "parity_rules.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _reference(folder: Path, name: str) -> dict[str, Any]:
    reference: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return reference


def _close(got: torch.Tensor, opengait: np.ndarray[Any, Any]) -> None:
    """OpenGait gives [n, d, s]; the gate is that of the fixtures' README."""
    a, b = got.numpy().astype(np.float64), np.swapaxes(opengait, 1, 2).astype(np.float64)
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= 1e-4 * np.abs(b).max()
    cosine = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    assert cosine.min() >= 1 - 1e-6


@pytest.mark.parametrize(("fixture", "name", "options"), TABLES)
def test_keys_shapes_and_counts_are_opengaits(
    parity_dir: Path, fixture: str, name: str, options: dict[str, Any]
) -> None:
    reference = _reference(parity_dir, fixture)
    with torch.device("meta"):
        model, bare = (
            create(name, **options),
            create(name, **{**options, **({"num_classes": None} if name == "gaitbase" else {})}),
        )
    state = {key: [list(v.shape), str(v.dtype).removeprefix("torch.")] for key, v in model.state_dict().items()}
    assert state == reference["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == reference["total_params"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == reference["trainable_params"]
    assert sum(p.numel() for p in bare.parameters()) == reference["inference_params"]


@pytest.fixture(scope="module")
def loaded() -> dict[tuple[str, str], GaitModel]:
    return {}


def _loaded(cache: dict[tuple[str, str], GaitModel], folder: Path, fixture: str, embedding: str = "fc") -> GaitModel:
    """The rule-made checkpoint of a fixture, read by `load_opengait`."""
    if (fixture, embedding) not in cache:
        rules, reference = _rules(folder), _reference(folder, fixture)
        arrays = {key: rules.fill_array(key, *entry) for key, entry in reference["state_dict"].items()}
        assert rules.state_sha256(arrays) == reference["state_sha256"]
        state = {key: torch.from_numpy(np.asarray(value)) for key, value in arrays.items()}
        model = load_opengait(state, embedding=embedding)
        kept = {key: value.numpy() for key, value in model.state_dict().items()}
        assert rules.state_sha256(kept) == reference["state_sha256"]
        cache[fixture, embedding] = model
    return cache[fixture, embedding]


def _silhouettes(rules: ModuleType, names: list[tuple[str, int]]) -> list[torch.Tensor]:
    return [torch.from_numpy(rules.cut_and_scale(rules.make_sil(name, frames))) for name, frames in names]


@pytest.mark.parametrize(("fixture", "name", "options"), CONFIGURATIONS)
def test_parity_with_opengait(
    parity_dir: Path, loaded: dict[tuple[str, str], GaitModel], fixture: str, name: str, options: dict[str, Any]
) -> None:
    rules, reference = _rules(parity_dir), _reference(parity_dir, fixture)
    model = _loaded(loaded, parity_dir, fixture)
    assert model.name == name and model.options == create(name, **options).options
    arrays = np.load(parity_dir / f"{fixture}.npz")
    fixed = torch.stack(_silhouettes(rules, rules.FIXED))
    assert rules.sha256_of(fixed.numpy()) == reference["input_fixed"]["sha256"]
    with torch.no_grad():
        _close(model(fixed), arrays["fixed"])
        _close(model(fixed[:1]), arrays["fixed0_fp64"])
        for frames in (1, 2, 4, 7):
            _close(model(_silhouettes(rules, [(f"short{frames}", frames)])[0][None]), arrays[f"short{frames}"])
    packed = _silhouettes(rules, rules.PACKED)
    assert reference["packing_leaks"] is False
    for chunk in (None, 11):
        model.chunk_frames = chunk
        _close(model.forward_sequences(packed), arrays["single"])
        _close(model.forward_sequences(packed), arrays["packed"])


def test_parity_of_the_bn_neck(parity_dir: Path, loaded: dict[tuple[str, str], GaitModel]) -> None:
    rules = _rules(parity_dir)
    model = _loaded(loaded, parity_dir, "gaitbase_gait3d", "bnneck")
    with torch.no_grad():
        features = model(torch.stack(_silhouettes(rules, rules.FIXED)))
    _close(features, np.load(parity_dir / "gaitbase_gait3d.npz")["fixed_emb2"])
