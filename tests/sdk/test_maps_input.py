"""A model that reads three maps per frame, through every way in: arrays, files, runtimes, galleries, command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from gaitsdk import Recognizer, errors, synthetic, thumbnails
from gaitsdk.bundle import Bundle
from gaitsdk.checks import check_frames, frame_shape
from gaitsdk.cli import main
from gaitsdk.pipeline import embed_many, pad_cyclic
from gaitsdk.runtimes import open_runtime
from gaitsdk.runtimes.protocol import check_silhouettes as check_batch
from gaitsdk.silhouettes import check_silhouettes, load_sequence, prepare, stack_maps

torch = pytest.importorskip("torch")

from gaitsdk.models import registry  # noqa: E402
from gaitsdk.models.base import FrameSetModel  # noqa: E402
from gaitsdk.models.options import ModelOptions  # noqa: E402
from gaitsdk.models.registry import create, register_model  # noqa: E402

NAME = "threemaps-for-tests"


class ThreeMaps(FrameSetModel):
    """One convolution over limbs, joints and silhouette, the maximum over frames, eight strips."""

    input_channels: ClassVar[int] = 3

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options, strips=8, dims=16)
        self.conv = torch.nn.Conv2d(3, 16, 8, stride=8, padding=(0, 2))

    def frame_maps(self, frames: Any) -> tuple[Any, ...]:
        return (torch.relu(self.conv(frames)),)

    def set_features(self, pooled: tuple[Any, ...]) -> Any:
        return pooled[0].amax(dim=3).transpose(1, 2).contiguous()


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """For this module only: other tests go over the registry."""
    register_model(NAME)(ThreeMaps)
    yield
    del registry._MODELS[NAME]


def maps(person: int, kind: str = "nm-01", frames: int = 20) -> np.ndarray:
    """`[frames, 3, 64, 64]`; other phases of the walk, blurred, stand in for limbs and joints."""
    walk = synthetic.sequence(person, kind, frames=frames)
    soft = (walk.astype(int) + np.roll(walk, 1, axis=2) + np.roll(walk, 1, axis=1)) // 9
    limbs, joints = (np.roll(soft, shift, axis=0).astype(np.uint8) for shift in (3, 7))
    return stack_maps(limbs=limbs, joints=joints, silhouettes=walk)


WALKS = {name: maps(person) for person, name in enumerate(("ann", "bob", "cem"), 1)}
PROBE = maps(2, "nm-02", frames=25)
PLAIN = synthetic.sequence(2, "nm-02", frames=25)


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gaitsdk_export.bundles import export_bundle

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("bundle") / "maps.gait"
    Bundle.create(path, backbone=create(NAME).eval(), licence="Apache-2.0")
    for result in export_bundle(path):
        result.raise_for_verdict()
    return path


@pytest.fixture(scope="module")
def recognizer(bundle_path: Path) -> Any:
    with Recognizer.load(bundle_path, gallery=":memory:", reranker="none") as loaded:
        for name, walk in WALKS.items():
            loaded.enroll(name, walk)
        yield loaded


def test_the_manifest_says_what_a_frame_is(bundle_path: Path, tiny_bundle: Path) -> None:
    spec = Bundle.load(bundle_path).manifest.input
    assert (spec.channels, spec.frame, spec.cut) == (3, (3, 64, 64), 10)
    plain = Bundle.load(tiny_bundle)
    assert plain.manifest.input.frame == (64, 64) == frame_shape(64)
    assert "frame" not in json.loads((bundle_path / "manifest.json").read_text())["input"]


@pytest.mark.parametrize("runtime", ["torch", "onnx", "torchscript"])
def test_runtimes_agree_and_channels_count(bundle_path: Path, runtime: str) -> None:
    bundle = Bundle.load(bundle_path)
    opened = open_runtime(bundle, runtime, "cpu")
    try:
        batch = np.stack([WALKS["ann"], WALKS["bob"]])
        with torch.inference_mode():
            expected = bundle.build_backbone()(torch.from_numpy(batch)[..., 10:-10].float() / 255).numpy()
        np.testing.assert_allclose(opened.embed(batch), expected, atol=1e-5)
        assert np.abs(opened.embed(batch[:, :, ::-1]) - expected).max() > 1e-3
        for bad, words in [
            (batch[:, :, 2], "three maps per frame.*stack_maps"),
            (batch[:, :, :2], "stack_maps"),
            (batch[..., 10:-10], "size=64"),
            (batch[0], "stack_maps"),
        ]:
            with pytest.raises(errors.SilhouetteShapeError, match=words) as refusal:
                opened.embed(bad)
            assert refusal.value.expected == "[B, T, 3, 64, 64]"
    finally:
        opened.close()


def test_a_silhouette_runtime_refuses_maps(tiny_bundle: Path) -> None:
    plain = Bundle.load(tiny_bundle)
    with pytest.raises(errors.SilhouetteShapeError, match=r"maps\[:, :, -1\]"):
        check_batch(PROBE[None], plain)
    with pytest.raises(errors.SilhouetteShapeError, match="prepare"):
        check_batch(np.zeros((1, 5, 64, 44), np.uint8), plain)


def test_the_verbs(recognizer: Recognizer) -> None:
    assert recognizer.description.channels == 3 and recognizer.description.frame == (3, 64, 64)
    result = recognizer.identify(WALKS["cem"], top_k=2)
    assert result.identity == "cem" and result.candidates[0].distance == 0.0
    assert result.probe is not None and result.probe.shape == (64, 64)
    pictures = result.thumbnails()
    assert all(picture is not None and picture.shape == (64, 64) for picture in pictures)
    assert pictures[0].max() == 255  # type: ignore[union-attr]
    assert result.quality["already_normalised"] and result.quality["kept"] == 20
    assert recognizer.verify(PROBE, PROBE).distance == 0.0
    assert recognizer.embed(PROBE).shape == (8, 16)
    assert recognizer.embed([PROBE, WALKS["ann"]]).shape == (2, 8, 16)
    assert recognizer.embed(np.stack(list(WALKS.values()))).shape == (3, 8, 16)
    np.testing.assert_array_equal(recognizer.embed(list(PROBE)), recognizer.embed(PROBE))


def test_many_of_unequal_lengths_are_one_by_one(recognizer: Recognizer) -> None:
    sequences = [maps(person, "bg-01", frames) for person, frames in ((1, 15), (3, 40), (2, 31), (4, 16))]
    together = recognizer.identify_many(sequences)
    for sequence, result in zip(sequences, together, strict=True):
        alone = recognizer.identify(sequence)
        assert [each.entry_id for each in result.candidates] == [each.entry_id for each in alone.candidates]
        assert result.candidates[0].distance == pytest.approx(alone.candidates[0].distance, rel=1e-5)


def test_enrolling_several_at_once(bundle_path: Path) -> None:
    with Recognizer.load(bundle_path, gallery=":memory:", reranker="none") as fresh:
        assert len(fresh.enroll("dia", [maps(4), maps(4, "nm-02", 30)])) == 2
        assert fresh.identify(maps(4, "nm-02", 30)).candidates[0].distance == pytest.approx(0, abs=1e-5)


def test_what_is_no_stack_of_maps_is_refused(recognizer: Recognizer) -> None:
    shape, value = errors.SilhouetteShapeError, errors.SilhouetteValueError
    raw = np.pad(PROBE, ((0, 0), (0, 0), (8, 8), (8, 8)))[:, :, :64, :64]  # not normalised any more
    for bad, kind, words in [
        (PLAIN, shape, "stack_maps"),
        (np.stack([PLAIN, PLAIN]), shape, "stack_maps"),
        (list(PLAIN), shape, "stack_maps"),
        (synthetic.masks(1, frames=10), shape, "stack_maps"),
        (PROBE[:, :2], shape, "stack_maps"),
        (PROBE[..., 10:-10], shape, "size=64"),
        (PROBE.repeat(2, axis=2).repeat(2, axis=3), shape, "size=64"),
        (PROBE.transpose(0, 2, 3, 1), shape, "stack_maps"),
        (PROBE / 255, value, "wrong dtype"),
        (PROBE[:, ::-1], value, "exchanged"),
        (raw, value, "not normalised"),
        (PROBE[:0], errors.NoFramesError, "no frame"),
        (PROBE[:1], errors.TooFewFramesError, "too few"),
        (np.zeros_like(PROBE), errors.NoFramesError, "anybody"),
        (np.repeat(PROBE[:1], 10, axis=0), errors.StaticSequenceError, "picture"),
        (np.repeat(PROBE, 100, axis=0), errors.TooManyFramesError, "too many"),
        (None, value, "not an array|wrong dtype"),
        ("", errors.SilhouetteError, "path is empty"),
    ]:
        for verb in (recognizer.embed, recognizer.identify, lambda bad: recognizer.enroll("eve", bad)):
            with pytest.raises(kind, match=words):
                verb(bad)
    with pytest.raises(errors.InputError, match=r"sequence 1: .*stack_maps"):
        recognizer.identify_many([PROBE, PLAIN])
    with pytest.raises(errors.InputError, match=r"sequence 1: .*no frame"):
        recognizer.identify_many([PROBE, PROBE[:0]])
    with pytest.raises(errors.SilhouetteShapeError, match=r"sequence 0: .*stack_maps"):
        recognizer.identify_many([PLAIN, PLAIN[:20]])
    assert recognizer.identities() == ["ann", "bob", "cem"]


def test_a_model_of_silhouettes_refuses_maps(tiny_bundle: Path) -> None:
    with Recognizer.load(tiny_bundle, gallery=":memory:") as plain:
        for verb in (plain.embed, plain.identify, lambda bad: plain.enroll("eve", bad)):
            with pytest.raises(errors.SilhouetteShapeError, match=r"maps\[:, -1\]"):
                verb(PROBE)
        with pytest.raises(errors.SilhouetteShapeError, match=r"sequence 0.*maps\[:, -1\]"):
            plain.identify_many([PROBE, PLAIN])
        assert plain.embed(PROBE[:, -1]).shape == plain.embed(PLAIN).shape
        assert plain.embed(np.stack([PLAIN, PLAIN])).shape[0] == 2, "a batch of silhouettes is still one"


def test_prepare_drops_empty_frames_and_changes_nothing() -> None:
    gap = PROBE.copy()
    gap[4, 2] = 0
    found = prepare(gap, channels=3)
    np.testing.assert_array_equal(found.silhouettes, np.delete(PROBE, 4, axis=0))
    assert found.report.reasons == {"empty": 1} and found.silhouettes.flags["C_CONTIGUOUS"]


def test_the_check_at_the_border() -> None:
    assert np.shares_memory(check_silhouettes(PROBE, channels=3), PROBE)
    for bad, kind in [
        (PLAIN, errors.SilhouetteShapeError),
        (PROBE[:, :2], errors.SilhouetteShapeError),
        (PROBE.astype(np.int64), errors.SilhouetteValueError),
        (PROBE[:3], errors.TooFewFramesError),
        (np.concatenate([PROBE[:, :2], 255 - PROBE[:, 2:]], axis=1), errors.PolarityError),
    ]:
        with pytest.raises(kind):
            check_silhouettes(bad, channels=3)
    with pytest.raises(errors.SilhouetteShapeError, match=r"maps\[:, -1\]"):
        check_silhouettes(PROBE)
    with pytest.raises(errors.SilhouetteShapeError, match="2 maps per frame, of which the last"):
        check_frames((5, 64, 64), 64, 2)
    check_frames((2, 5, 3, 64, 64), 64, 3, axes="BT")


def test_the_pipeline_pads_and_batches_maps() -> None:
    padded = pad_cyclic(PROBE[:5], 12)
    np.testing.assert_array_equal(padded, PROBE[[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]])
    seen: list[tuple[int, ...]] = []

    def embed(batch: Any) -> Any:
        seen.append(batch.shape)
        return batch.max(axis=1)[:, :, :2, 0].astype(np.float32)

    features = embed_many(embed, [PROBE[:11], WALKS["ann"], PROBE[:12]])
    assert seen == [(2, 12, 3, 64, 64), (1, 20, 3, 64, 64)] and features.shape == (3, 3, 2)


def test_the_picture_is_the_silhouette() -> None:
    picture = thumbnails.frame(PROBE)
    np.testing.assert_array_equal(picture, thumbnails.frame(PROBE[:, -1]))
    assert any((picture == each).all() for each in PROBE[:, 2])


def test_files(tmp_path: Path, recognizer: Recognizer) -> None:
    np.save(tmp_path / "probe.npy", PROBE)
    np.save(tmp_path / "plain.npy", PLAIN)
    np.save(tmp_path / "floats.npy", PROBE / 255)
    loaded = load_sequence(tmp_path / "probe.npy")
    np.testing.assert_array_equal(loaded, PROBE)
    assert type(loaded) is np.ndarray
    np.testing.assert_array_equal(load_sequence(PROBE), PROBE)
    np.testing.assert_array_equal(load_sequence(PLAIN), PLAIN)
    with pytest.raises(errors.SilhouetteValueError, match="wrong dtype"):
        load_sequence(tmp_path / "floats.npy")
    by_file = recognizer.embed([tmp_path / "probe.npy"])
    np.testing.assert_array_equal(by_file[0], recognizer.embed(PROBE))
    with pytest.raises(errors.SilhouetteShapeError, match="stack_maps"):
        recognizer.embed(tmp_path / "plain.npy")
    folder = tmp_path / "masks"
    folder.mkdir()
    image = pytest.importorskip("PIL.Image")
    for index, mask in enumerate(PLAIN):
        image.fromarray(mask).save(folder / f"{index}.png")
    with pytest.raises(errors.SilhouetteShapeError, match="image files hold one map"):
        recognizer.identify(folder)


def test_the_command_line(tmp_path: Path, bundle_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, sequence in {**WALKS, "probe": PROBE, "plain": PLAIN}.items():
        np.save(tmp_path / f"{name}.npy", sequence)
    common = ["--bundle", str(bundle_path), "--reranker", "none", "--json"]
    gallery = ["--gallery", str(tmp_path / "people.db")]

    def run(*arguments: str) -> int:
        with pytest.raises(SystemExit) as ended:
            main([*arguments, *common])
        return int(ended.value.code or 0)

    for name in WALKS:
        assert run("enroll", name, str(tmp_path / f"{name}.npy"), *gallery) == 0
    capsys.readouterr()
    assert run("identify", str(tmp_path / "bob.npy"), *gallery) == 0
    assert json.loads(capsys.readouterr().out)[0]["identity"] == "bob"
    assert run("verify", str(tmp_path / "probe.npy"), str(tmp_path / "probe.npy")) == 0
    assert json.loads(capsys.readouterr().out)["distance"] == 0.0
    for verb in (["enroll", "eve"], ["identify"]):
        assert run(*verb, str(tmp_path / "plain.npy"), *gallery) == 1
        assert "stack_maps" in " ".join(capsys.readouterr().err.split())


def test_the_model_repository(bundle_path: Path) -> None:
    pytest.importorskip("tritonclient.grpc")
    from gaitsdk_export.triton.backend import example_walk
    from gaitsdk_export.triton.repository import Options, configurations

    bundle = Bundle.load(bundle_path)
    models = {each.name: each for each in configurations(bundle, Options(reranker="none"))}
    for name in ("embed", "identify", "gallery"):
        tensor = next(each for each in models[name].inputs if each.name == "silhouettes")
        assert tensor.dims == (-1, 3, 64, 64), name
    thumbnail = next(each for each in models["gallery"].outputs if each.name == "thumbnail")
    assert thumbnail.dims == (-1, 64, 64)
    check_silhouettes(example_walk(64, 3), channels=3)
    check_silhouettes(example_walk(128, 1), 128)


def test_old_descriptions_are_of_silhouettes(recognizer: Recognizer) -> None:
    assert replace(recognizer.description, channels=1).frame == (64, 64)


def test_skeletongait(tmp_path: Path) -> None:
    pytest.importorskip("gaitsdk.models.skeletongaitpp")
    torch.manual_seed(0)
    model = create("skeletongait++", channels=(8, 8, 16, 16), layers=(1, 1, 1, 1), dims=16)
    bundle = Bundle.create(tmp_path / "skeleton.gait", backbone=model.eval())
    with Recognizer.load(bundle, runtime="torch", gallery=":memory:", reranker="none") as loaded:
        loaded.enroll("ann", WALKS["ann"])
        loaded.enroll("bob", WALKS["bob"])
        found = loaded.identify_many([WALKS["bob"], maps(1, frames=13)])
        assert found[0].identity == "bob" and found[0].candidates[0].distance == pytest.approx(0, abs=1e-5)
        with pytest.raises(errors.SilhouetteShapeError, match="stack_maps"):
            loaded.identify(PLAIN)
