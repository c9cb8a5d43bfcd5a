"""The published recipes: every one loads, builds its network, and says what the field's tables say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gaitsdk import Bundle
from gaitsdk.errors import OptionError, TrainingError
from gaitsdk.models import create, model_class
from gaitsdk_training.backbone import BackboneTraining, build_model, train_backbone
from gaitsdk_training.configuration import make_config, read_config
from gaitsdk_training.data import SequenceDataset
from gaitsdk_training.objective import Objective
from gaitsdk_training.plan import listed, plan_backbone, plan_reranker
from gaitsdk_training.recipes import catalogue
from gaitsdk_training.reranker import RerankerTraining
from gaitsdk_training.schedule import rate_factor

BACKBONES = [name for name in catalogue.recipe_names() if catalogue.recipe_kind(name) == catalogue.BACKBONE]
RERANKERS = [name for name in catalogue.recipe_names() if catalogue.recipe_kind(name) == catalogue.RERANKER]
#: Identities that train.
CLASSES = {"casiab": 74, "oumvlp": 5153, "gait3d": 3000, "grew": 20000}
TINY = {"channels": (4, 6, 8, 10), "dims": 12, "strips": 4}


def backbone(name: str) -> BackboneTraining:
    return read_config(BackboneTraining, recipe=name)


def people(identities: int, each: int = 4, frames: int = 3) -> SequenceDataset:
    rng = np.random.default_rng(3)
    sequences = [rng.integers(0, 256, (frames, 64, 64), np.uint8) for _ in range(identities * each)]
    names = [f"{index // each:03d}" for index in range(len(sequences))]
    return SequenceDataset(sequences, names, ["nm-01"] * len(names), ["000"] * len(names))


def blank(identities: int, each: int) -> SequenceDataset:
    names = np.repeat([f"{index:05d}" for index in range(identities)], each)
    frames = np.broadcast_to(np.zeros((), np.uint8), (len(names), 1, 1, 1))
    return SequenceDataset(frames, names, names, names)


# ------------------------------------------------------------------------------------------------------------- recipes
def test_every_backbone_of_the_field_has_recipes() -> None:
    found = {name.removesuffix("-mpl").split("-")[0] for name in BACKBONES}
    assert found == {
        "gaitset", "gaitpart", "gln", "gaitgl", "mt3d", "gaitbase", "deepgaitv2", "swingait3d", "skeletongait++",
    }  # fmt: skip
    assert {"gaitset-mpl-casiab", "gaitgl-mpl-oumvlp"} <= set(BACKBONES) and "cargait-gaitset" in RERANKERS


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbones_recipe_is_the_published_network_and_trains_it(name: str) -> None:
    config = backbone(name)
    dataset = next(part for part in name.split("-") if part in CLASSES)
    tag = "grew-bnneck" if name.endswith("bnneck") else dataset
    with torch.device("meta"):
        model = build_model(config, CLASSES[dataset])
        published = create(config.model, tag=tag, num_classes=CLASSES[dataset]) if has_classes(config) else create(
            config.model, tag=tag
        )  # fmt: skip
    assert model.name == name.split("-")[0] and model.options == published.options
    assert "-mpl-" not in name or (config.drpl is not None and config.gsam is not None)
    Objective(config, 4, model.strips, model.dims)  # knows every option of its losses
    assert catalogue.recipe_about(name)
    rates = [rate(config, share) for share in (0.0, 0.999)]
    assert rates[0] == 1.0 and rates[1] <= 0.1 + 1e-9


def has_classes(config: BackboneTraining) -> bool:
    return bool(config.cross_entropy_weight) and "num_classes" in model_class(config.model).Options.names()


def rate(config: BackboneTraining, share: float) -> float:
    milestones = [each / config.steps for each in config.milestones or ()]
    return rate_factor(config.schedule, share, config.warmup, config.final_lr, milestones)


@pytest.mark.parametrize(
    ("name", "parameters", "figures"),
    [
        (
            "gaitset-casiab", 2_594_592,
            {"p": 8, "k": 16, "frames": 30, "sampling": "fixed_unordered", "optimiser": "sgd", "lr": 0.1,
             "weight_decay": 5e-4, "milestones": [10000, 20000, 30000], "steps": 40000, "margin": 0.2,
             "cross_entropy_weight": 0},
        ),
        (
            "gaitgl-oumvlp", 95_620_449,
            {"p": 32, "k": 8, "frames": 30, "sampling": "fixed_ordered", "optimiser": "adam", "lr": 1e-4,
             "weight_decay": 0, "milestones": [150000, 200000], "steps": 210000, "scale": 1, "label_smoothing": 0.1},
        ),
        (
            "deepgaitv2-gait3d", 25_492_160,
            {"p": 32, "k": 4, "optimiser": "sgd", "lr": 0.1, "milestones": [20000, 40000, 50000], "steps": 60000,
             "scale": 16, "label_smoothing": 0.1},
        ),
    ],
)  # fmt: skip
def test_figures_are_those_of_the_fields_table(name: str, parameters: int, figures: dict[str, Any]) -> None:
    config = backbone(name)
    assert {key: getattr(config, key) for key in figures} == figures
    plan = plan_backbone(config, blank(CLASSES[name.split("-")[1]], 2), blank(2, 2))
    assert plan["parameters"] == parameters and plan["steps"] == figures["steps"]


def test_the_multi_step_schedule_divides_by_ten_from_each_milestone_on() -> None:
    config = backbone("gaitset-casiab")
    by_step = {0: 1.0, 9999: 1.0, 10000: 0.1, 19999: 0.1, 20000: 0.01, 30000: 0.001, 39999: 0.001}
    for step, factor in by_step.items():
        assert rate(config, step / config.steps) == pytest.approx(factor), step
    with pytest.raises(OptionError, match="milestones"):
        BackboneTraining(schedule="multistep")
    with pytest.raises(OptionError, match="milestones"):
        BackboneTraining(milestones=[3])
    with pytest.raises(OptionError, match="rising"):
        BackboneTraining(schedule="multistep", milestones=[5, 3])


@pytest.mark.parametrize(
    ("name", "sampling", "frames", "skip"),
    [
        ("gaitbase-gait3d", "unfixed_unordered", (10, 50), None),
        ("gaitbase-grew", "unfixed_unordered", (20, 40), None),
        ("gaitbase-casiab", "fixed_unordered", 30, None),
        ("gaitpart-casiab", "fixed_ordered", 30, 10),
        ("gaitpart-mpl-oumvlp", "fixed_ordered", 30, 10),
        ("gaitgl-grew-bnneck", "fixed_ordered", 30, 0),
        ("gln-casiab-phase2", "fixed_ordered", 30, 0),
        ("deepgaitv2-gait3d", "fixed_ordered", 30, 4),
        ("skeletongait++-grew", "fixed_ordered", 30, 4),
    ],
)
def test_frames_are_sampled_as_published(
    name: str, sampling: str, frames: int | tuple[int, int], skip: int | None
) -> None:
    config = backbone(name)
    assert (config.sampling, config.frame_count) == (sampling, frames)
    assert skip is None or config.frames_skip == skip


def test_unfixed_sampling_needs_its_range_and_nothing_else_does() -> None:
    config = BackboneTraining(sampling="unfixed_ordered", frames_min=3, frames_max=5)
    assert config.frame_count == (3, 5)
    assert plan_backbone(config, blank(9, 4), blank(2, 4))["batch"] == [8, 8, 5]  # the longest: memory is what it takes
    for wrong in (
        {"sampling": "unfixed_ordered"},
        {"sampling": "unfixed_ordered", "frames_min": 3},
        {"sampling": "unfixed_unordered", "frames_min": 5, "frames_max": 3},
        {"sampling": "unfixed_unordered", "frames_min": 0, "frames_max": 3},
        {"frames_min": 3, "frames_max": 5},
        {"frames_max": 5},
        {"frames_skip": -1},
        {"sampling": "all_ordered"},
    ):
        with pytest.raises(OptionError, match=r"BackboneTraining\.frames_|sampling"):
            BackboneTraining(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", RERANKERS)
def test_a_rerankers_recipe_is_the_papers(name: str) -> None:
    config = read_config(RerankerTraining, recipe=name)
    batch = {"cargait-deepgaitv2": 16, "cargait-swingait3d": 8, "cargait-skeletongait++": 8}.get(name, 32)
    assert (config.identities, config.sequences) == (batch, 4)
    papers = {"lr": 1e-5, "weight_decay": 1e-2, "alpha": 0.01, "beta": 0.1, "steps": 100_000, "validate_every": 10_000}
    assert {key: getattr(config, key) for key in papers} == papers and (config.width, config.heads) == (256, 8)


# ------------------------------------------------------------------------------------------------------- configuration
def test_a_file_extends_a_recipe_and_settings_win(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: gaitbase-casiab\nlr: 1e-2\naugmentation: {flip: 0.5}\n")
    config = read_config(BackboneTraining, path, settings=["augmentation.erase=0.1", "p=4", "ema=null"], k=2)
    below = backbone("gaitbase-casiab")
    assert (config.lr, config.p, config.k, config.milestones) == (0.01, 4, 2, below.milestones)
    assert (config.augmentation.flip, config.augmentation.erase, config.augmentation.rotate) == (0.5, 0.1, 0.3)
    mpl = read_config(BackboneTraining, recipe="gaitset-casiab", settings=["drpl={}", "gsam.temperature=0.2"])
    assert (mpl.drpl, mpl.gsam) == ({}, {"temperature": 0.2})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", "unknown field learning_rat.*Fix: did you mean"),
        ("optimizer: sgd", "did you mean 'optimiser'"),
        ("augmentation: {flp: 1}", "augmentation: unknown field flp.*did you mean 'flip'"),
        ("lr: 1\nlr: 2", "'lr' stands twice.*line 2"),
        ("lr: fast", "lr: a value of the wrong type; got 'fast' .a string.; expected a number"),
        ("milestones: [1, a]", "milestones: a value of the wrong type; got 'a'.*expected a list of integers or null"),
        ("lr: .nan", "lr: not a finite number"),
        ("p: 3.0", "p: a value of the wrong type"),
        ("steps: yes", "steps: a value of the wrong type"),
        ("- p", "not a configuration"),
        ("", "not a configuration"),
        ("1: 2", "not a configuration"),
        ("lr: [", "this is no YAML"),
        ("lr: !!python/object/apply:os.getcwd []", "this is no YAML"),
        ("extends: gaitset-casib", "did you mean 'gaitset-casiab'"),
        ("extends: 3", "extends no recipe"),
    ],
)
def test_a_bad_file_is_refused_in_words(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(OptionError, match=message):
        read_config(BackboneTraining, path)


@pytest.mark.parametrize("setting", ["lr", "=1", "a.=1", "lr=[", "lr=fast", "nothing=1", "augmentation.flp=1"])
def test_a_bad_setting_is_refused_in_words(setting: str) -> None:
    with pytest.raises(OptionError):
        read_config(BackboneTraining, settings=[setting])


def test_recipes_that_extend_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "recipe_text", lambda name: f"extends: {'b' if name == 'a' else 'a'}")
    with pytest.raises(OptionError, match="extends no recipe"):
        catalogue.read_recipe("a")
    with pytest.raises(OptionError, match="are given"):
        read_config(BackboneTraining, "mine.yaml", recipe="gaitset-casiab")


# ---------------------------------------------------------------------------------------------------------------- plan
def test_memory_is_what_pytorch_keeps() -> None:
    """A step on the CPU keeps the bytes that the plan counts on shapes."""
    config = make_config(
        BackboneTraining, {"options": {"channels": [4, 6, 8, 10], "dims": 12, "strips": 4}, "p": 2, "k": 2}, "test"
    )
    memory = plan_backbone(config, people(3), people(2))["memory"]
    model = build_model(config, 3).train()
    weights = {each.untyped_storage().data_ptr() for each in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outcome = model.forward_train(torch.rand(4, config.frames, 64, 44))
    assert outcome[1] is not None and memory["activations"] == sum(kept.values())
    learned = sum(each.nbytes for each in model.parameters())
    assert (memory["gradients"], memory["optimiser"]) == (learned, 2 * learned)
    assert memory["total"] == sum(value for name, value in memory.items() if name != "total")


@pytest.mark.parametrize("name", ["gaitpart-casiab", "gln-casiab-phase2", "mt3d-casiab", "swingait3d-gait3d",
                                  "skeletongait++-gait3d", "gaitgl-mpl-casiab"])  # fmt: skip
def test_every_kind_of_network_has_a_plan(name: str) -> None:
    plan = plan_backbone(read_config(BackboneTraining, recipe=name, settings=["p=4", "k=2", "frames=9"]),
                         blank(74, 10), blank(8, 10))  # fmt: skip
    assert plan["memory"]["activations"] > 2**20 and plan["identities"] == 74
    assert plan["epochs"] == pytest.approx(plan["steps"] * 8 / 740, rel=1e-3) and json.dumps(plan)


@pytest.mark.parametrize("settings", [{}, {"alpha": 0.0}, {"method": "classifier"}])
def test_the_rerankers_plan(settings: dict[str, Any]) -> None:
    plan = plan_reranker(RerankerTraining(**settings), 16, 256, blank(40, 3), blank(4, 3))
    assert plan["parameters"] > 10**5 and plan["batch"] == [32, 4, 2] and plan["memory"]["activations"] > 2**20
    with pytest.raises(TrainingError, match="identities=32"):
        plan_reranker(RerankerTraining(**settings), 16, 256, blank(20, 3), blank(4, 3))


def test_a_plan_refuses_what_the_training_would() -> None:
    with pytest.raises(TrainingError, match="p=8"):
        plan_backbone(BackboneTraining(), blank(5, 4), blank(2, 4))
    with pytest.raises(OptionError, match="DRPL"):
        plan_backbone(BackboneTraining(drpl={"delta": 1}), blank(9, 4), blank(2, 4))


# ---------------------------------------------------------------------------------------------------------------- init
@pytest.fixture
def config() -> BackboneTraining:
    return BackboneTraining(options=TINY, p=3, k=2, frames=2, steps=4, lr=1e-3, optimiser="adam", schedule="multistep",
                            milestones=[1, 3], warmup=0.0, log_every=1, workers=0, device="cpu")  # fmt: skip


def test_adam_and_milestones_in_the_loop(config: BackboneTraining, tmp_path: Path) -> None:
    train_backbone(people(4), config, tmp_path)
    rates = [json.loads(line)["lr"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([1e-3, 1e-4, 1e-4, 1e-5])
    state = torch.load(tmp_path / "checkpoint-0000004" / "optimiser.pt", weights_only=True)
    assert len(state["param_groups"]) == 1 and {"exp_avg", "exp_avg_sq"} <= set(state["state"][0])


@pytest.fixture
def base(tmp_path: Path) -> Bundle:
    torch.manual_seed(5)
    return Bundle.create(tmp_path / "base.gait", backbone=create("gaitbase", **TINY), licence="CC0-1.0")


def test_init_begins_with_the_bundles_weights_and_a_new_classifier(
    config: BackboneTraining, base: Bundle, tmp_path: Path
) -> None:
    other = make_config(BackboneTraining, {"p": 3, "k": 2, "frames": 2, "steps": 2, "lr": 1e-9, "device": "cpu",
                                           "workers": 0}, "test")  # fmt: skip
    result = train_backbone(people(4), other, tmp_path / "run", init=base)
    assert result.model.options["num_classes"] == 4  # the architecture is the bundle's, the classifier is not
    assert {k: v for k, v in result.model.options.items() if k != "num_classes"} == {
        k: v for k, v in create("gaitbase", **TINY).options.items() if k != "num_classes"
    }
    start: dict[str, torch.Tensor] = base.build_backbone().state_dict()
    for name, value in result.model.state_dict().items():
        if name in start and "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(value, start[name], atol=1e-6, rtol=0)
    with pytest.raises(OptionError, match="init"):
        train_backbone(people(4), config, tmp_path / "run")


def test_a_network_of_three_maps_is_refused_before_anything_is_written(
    config: BackboneTraining, tmp_path: Path
) -> None:
    three = read_config(BackboneTraining, recipe="skeletongait++-gait3d")
    with pytest.raises(OptionError, match="expected 3: limbs, joints, silhouette"):
        train_backbone(people(4), three, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_listing_reads_names_only(tmp_path: Path) -> None:
    for identity in ("001", "002", "080"):
        for view in ("000", "090"):
            folder = tmp_path / identity / "nm-01" / view
            folder.mkdir(parents=True)
            (folder / "broken.pkl").write_bytes(b"no pickle")  # never opened
    data = listed(tmp_path, dataset="casiab")
    assert data.classes == ["001", "002"] and len(data) == 4
    assert len(listed(tmp_path).classes) == 3
    partition = tmp_path.parent / "split.json"
    partition.write_text(json.dumps({"TRAIN_SET": ["080"], "TEST_SET": []}))
    assert listed(tmp_path, partition=partition).classes == ["080"]
