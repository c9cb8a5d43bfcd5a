"""OpenGait's numbers over the whole registry: keys, shapes, counts, features and logits of every fixture there is."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from gaitsdk.models import GaitModel, create, list_models, load_opengait, model_class
from gaitsdk.models.opengait import recognise_checkpoint
from gaitsdk.models.registry import list_tags

#: Not in OpenGait, so nothing to compare with.
WITHOUT_REFERENCE = {"mt3d"}
SHORT = (1, 2, 4, 7)


def _folder() -> Path | None:
    """Where the fixture `parity_dir` finds its files: tests get their parameters before there are fixtures."""
    chosen = os.environ.get("GAITSDK_SHARED")
    root = Path(__file__).resolve().parents[2]
    candidates = [Path(chosen)] if chosen else [folder / "shared" for folder in (root, *root.parents)]
    return next((each / "parity" for each in candidates if (each / "parity").is_dir()), None)


def _references(folder: Path | None) -> dict[str, dict[str, Any]]:
    """Every json with a key table, by name."""
    documents = {path.stem: json.loads(path.read_text()) for path in sorted((folder or Path()).glob("*.json"))}
    return {name: document for name, document in documents.items() if "state_dict" in document}


REFERENCES = _references(_folder()) if _folder() else {}
TABLES = sorted(REFERENCES) or ["none"]
NETWORKS = sorted(name for name, each in REFERENCES.items() if "input_fixed" in each) or ["none"]


@pytest.fixture(scope="module")
def rules(parity_dir: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("parity_rules", parity_dir / "parity_rules.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _ours() -> list[str]:
    """The registry without what tests register."""
    return [name for name in list_models() if model_class(name).__module__.startswith("gaitsdk.models.")]


def _size(reference: dict[str, Any]) -> tuple[int, int]:
    """(H, W) of the frames, which a checkpoint cannot tell: OpenGait cuts 10 of 64 columns on either side."""
    height = reference["raw_resolution"]
    return height, height - 20 * (height // 64)


def _shapes(reference: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(shape) for key, (shape, _) in reference["state_dict"].items()}


def _kept(reference: dict[str, Any], name: str) -> dict[str, Any]:
    """The key table without the constants that our network computes."""
    ignored = model_class(name).ignored_keys
    return {key: entry for key, entry in reference["state_dict"].items() if key.rpartition(".")[2] not in ignored}


def _state_of(model: GaitModel) -> dict[str, Any]:
    return {key: [list(v.shape), str(v.dtype).removeprefix("torch.")] for key, v in model.state_dict().items()}


# --------------------------------------------------------------------------------------------------- keys and counts
def test_every_architecture_has_a_fixture_and_every_fixture_an_architecture(parity_dir: Path) -> None:
    assert _references(parity_dir) == REFERENCES
    found = {fixture: recognise_checkpoint(_shapes(each))[0] for fixture, each in REFERENCES.items()}
    assert set(found.values()) == set(_ours()) - WITHOUT_REFERENCE
    compared = {found[fixture] for fixture in NETWORKS}
    assert compared == set(found.values()), "an architecture has key tables only"


@pytest.mark.parametrize("fixture", TABLES)
def test_keys_shapes_and_counts_are_opengaits(parity_dir: Path, fixture: str) -> None:
    """On the meta device: class heads of 89 million parameters take no memory there."""
    reference = REFERENCES[fixture]
    name, options = recognise_checkpoint(_shapes(reference))
    with torch.device("meta"):
        model = create(name, **options, size=_size(reference))
        bare = create(name, **{**options, **({"num_classes": None} if "num_classes" in model.options else {})})
    assert _state_of(model) == _kept(reference, name)
    assert sum(p.numel() for p in model.parameters()) == reference["total_params"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == reference["trainable_params"]
    assert sum(p.numel() for p in bare.parameters()) == reference["inference_params"]


def _published() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(name, tag, options) of every published configuration, each without and with a classifier."""
    for name in _ours():
        for tag in ("", *(tag for tag in list_tags(name) if tag != "tiny")):
            yield name, tag, {"tag": tag} if tag else {}
            if "num_classes" in model_class(name).Options.names():
                yield name, tag, {**({"tag": tag} if tag else {}), "num_classes": 3}


def _claims(shapes: dict[str, tuple[int, ...]]) -> list[str]:
    return [name for name in _ours() if model_class(name).recognise(shapes) is not None]


def test_no_checkpoint_is_claimed_twice(parity_dir: Path) -> None:
    for fixture, reference in REFERENCES.items():
        assert len(_claims(_shapes(reference))) == 1, fixture


def test_every_published_configuration_is_recognised_by_its_own_architecture_alone() -> None:
    for name, tag, options in _published():
        with torch.device("meta"):
            model = create(name, **options)
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        claims = _claims(shapes)
        assert claims == [name] or (claims == [] and name in WITHOUT_REFERENCE), (name, tag, claims)
        if claims:
            told = {"size": model.input_size, **model_class(name).recognise(shapes)}
            with torch.device("meta"):
                assert create(name, **told).options == model.options, (name, tag)


# ------------------------------------------------------------------------------------------------ features and logits
def _state(rules: ModuleType, reference: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The rule-made checkpoint; its integer constant by the rule of the fixtures' README."""
    arrays = {key: rules.fill_array(key, *entry) for key, entry in reference["state_dict"].items()}
    arrays = {key: _window_index() if value is None else np.asarray(value) for key, value in arrays.items()}
    assert rules.state_sha256(arrays) == reference["state_sha256"]
    return {key: torch.from_numpy(value) for key, value in arrays.items()}


def _window_index() -> np.ndarray[Any, Any]:
    """relative_position_index of a (3, 3, 5) window [45, 45]: which entry of the table each pair of tokens takes."""
    tokens = np.stack(np.meshgrid(range(3), range(3), range(5), indexing="ij"), axis=-1).reshape(-1, 3)
    offsets = tokens[:, None] - tokens[None, :] + (2, 2, 4)
    return np.asarray(offsets @ (45, 9, 1), dtype=np.int64)


def _sequence(rules: ModuleType, reference: dict[str, Any], name: str, frames: int) -> torch.Tensor:
    """[T, H, W], or [T, 3, H, W] (limbs, joints, silhouette) where the network takes maps."""
    frame = rules.make_sil(name, frames, reference["raw_resolution"])
    if len(reference["input_fixed"]["shape"]) == 5:
        frame = np.concatenate([rules.make_heatmap(name, frames), frame[:, None]], axis=1)
    return torch.from_numpy(rules.cut_and_scale(frame))


def _close(got: torch.Tensor, opengait: np.ndarray[Any, Any], what: str) -> None:
    """The gate of the fixtures' README. OpenGait gives [n, d, s] (and [n, 1, C] from the one classifier of GLN)."""
    a = got.numpy().astype(np.float64)
    b = (opengait if opengait.shape == a.shape else np.swapaxes(opengait, 1, 2)).astype(np.float64)
    assert a.shape == b.shape, what
    error = np.abs(a - b).max() / np.abs(b).max()
    cosine = ((a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))).min()
    print(f"{what}: error {error:.1e} of the largest value, 1 - cosine {1 - cosine:.1e}")
    assert error <= 1e-4, what
    assert cosine >= 1 - 1e-6, what


@pytest.mark.parametrize("fixture", NETWORKS)
def test_parity_with_opengait(
    parity_dir: Path, rules: ModuleType, fixture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every array of the fixture but `packed`, which is `single` or what OpenGait's packing spoils."""
    reference = REFERENCES[fixture]
    arrays = np.load(parity_dir / f"{fixture}.npz")
    state = _state(rules, reference)
    model = load_opengait(state, input_size=_size(reference))
    kept = {key: value.numpy() for key, value in model.state_dict().items()}
    assert rules.state_sha256(kept) == reference["state_sha256"]

    fixed = torch.stack([_sequence(rules, reference, *each) for each in rules.FIXED])
    assert list(fixed.shape) == reference["input_fixed"]["shape"]
    assert rules.sha256_of(fixed.numpy()) == reference["input_fixed"]["sha256"]
    compared = {"fixed", "fixed0_fp64", "single", "packed", *(f"short{frames}" for frames in SHORT)}
    with torch.no_grad():
        features, logits = model.forward_train(fixed)
        _close(features, arrays["fixed"], "fixed")
        _close(features[:1], arrays["fixed0_fp64"], "fixed0_fp64")
        if "fixed_logits" in arrays:
            compared.add("fixed_logits")
            assert logits is not None
            _close(logits, arrays["fixed_logits"], "fixed_logits")
        if "fixed_emb2" in arrays:
            compared.add("fixed_emb2")
            neck = load_opengait(state, embedding="bnneck", input_size=_size(reference))
            monkeypatch.setattr(neck, "extract", lambda x: features)  # seen above; saves its time
            _close(neck(fixed), arrays["fixed_emb2"], "fixed_emb2")

        # All lengths mixed in one call, short and long: each must come out as if alone.
        lengths = [(f"short{frames}", frames) for frames in SHORT] + rules.PACKED
        mixed = model.forward_sequences([_sequence(rules, reference, *each) for each in lengths])
    for index, frames in enumerate(SHORT):
        _close(mixed[index : index + 1], arrays[f"short{frames}"], f"short{frames}")
    _close(mixed[len(SHORT) :], arrays["single"], "single")
    if "packed" in arrays and reference["packing_leaks"] is False:
        _close(mixed[len(SHORT) :], arrays["packed"], "packed")
    assert set(arrays.files) <= compared, "an array of the fixture is compared with nothing"
