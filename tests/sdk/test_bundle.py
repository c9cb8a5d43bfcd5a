"""Bundles: whole or not at all, and no byte of them may change unnoticed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from gaitsdk import Bundle
from gaitsdk.errors import BundleError, OptionError
from gaitsdk.models import create


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy.gait"))


def test_networks_come_back_with_the_same_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"channels": (8, 8, 16, 16), "stem_stride": 2, "strides": (1, 2, 1, 1), "dims": 32}
    trained = create("gaitbase", num_classes=5, **options).eval()
    bundle = Bundle.create(tmp_path / "m.gait", backbone=trained, licence="Apache-2.0", training={"note": "random"})
    x = torch.rand(2, 4, 64, 44)
    with torch.inference_mode():
        assert torch.equal(trained(x), bundle.build_backbone()(x))
    assert bundle.build_reranker() is None and bundle.manifest.k == 0
    assert bundle.manifest.training == {"note": "random"}
    assert not any("BNNecks" in key for key in bundle.build_backbone().state_dict()), "no classifier in a bundle"


def test_every_changed_byte_is_found(copy: Path) -> None:
    for file in [each for each in copy.rglob("*") if each.is_file()]:
        original = file.read_bytes()
        for position in (0, len(original) // 2, len(original) - 2):
            changed = bytearray(original)
            changed[position] ^= 0x01
            file.write_bytes(bytes(changed))
            with pytest.raises(BundleError) as caught:
                Bundle.load(copy)
            assert file.name in str(caught.value), caught.value
        file.write_bytes(original)
    Bundle.load(copy)


def test_missing_and_foreign_things_are_named(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle there"):
        Bundle.load(tmp_path / "nothing.gait")
    (copy / "backbone.safetensors").unlink()
    with pytest.raises(BundleError, match=r"backbone\.safetensors"):
        Bundle.load(copy)
    (copy / "manifest.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(BundleError, match="format_version 99"):
        Bundle.load(copy)
    (copy / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match="cannot be read"):
        Bundle.load(copy)
    file = tmp_path / "file.gait"
    file.write_text("")
    with pytest.raises(BundleError, match="is a folder"):
        Bundle.load(file)


def test_a_manifest_cannot_reach_outside(copy: Path) -> None:
    from gaitsdk.manifest import checksum_of

    document = json.loads((copy / "manifest.json").read_text())
    document.pop("checksum")
    document["files"]["../outside"] = {"sha256": "0" * 64, "bytes": 0}
    document["checksum"] = checksum_of(document)
    (copy / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(BundleError, match="outside the bundle"):
        Bundle.load(copy)


def test_calibrating_and_exporting_keep_the_fingerprint(copy: Path, tmp_path: Path) -> None:
    bundle = Bundle.load(copy)
    before = bundle.fingerprint
    bundle.annotate(training={"more": 1}, calibration=[])
    source = tmp_path / "x.onnx"
    source.write_bytes(b"other")
    bundle.add_artefact("backbone", "onnx", source, {"a": 1})
    after = Bundle.load(copy)
    assert after.fingerprint == before
    assert after.artefact("backbone", "onnx") == copy / "artefacts/backbone.onnx"
    assert after.manifest.training == {"more": 1}


def test_other_weights_are_another_model(tmp_path: Path) -> None:
    options = {"channels": (8, 8, 8, 8), "stem_stride": 2, "strides": (1, 2, 1, 1), "dims": 16}
    prints = set()
    for seed in (0, 1):
        torch.manual_seed(seed)
        prints.add(Bundle.create(tmp_path / f"{seed}.gait", backbone=create("gaitbase", **options)).fingerprint)
    assert len(prints) == 2


def test_nothing_is_overwritten_unasked(tiny_bundle: Path, tmp_path: Path) -> None:
    model = create("gaitbase", channels=(8, 8, 8, 8), stem_stride=2, strides=(1, 2, 1, 1), dims=16)
    path = tmp_path / "a.gait"
    Bundle.create(path, backbone=model)
    with pytest.raises(BundleError, match="overwrite=True"):
        Bundle.create(path, backbone=model)
    Bundle.create(path, backbone=model, overwrite=True)
    with pytest.raises(OptionError, match=r"NAME\.gait"):
        Bundle.create(tmp_path / "a", backbone=model)
    assert [each.name for each in tmp_path.iterdir()] == ["a.gait"], "no temporary folder is left"
