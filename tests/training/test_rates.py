"""Learning rates of parts of a network: who is in which group, what a step does, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gaitsdk.errors import OptionError
from gaitsdk.models import create
from gaitsdk_training.backbone import BackboneTraining, build_model, train_backbone
from gaitsdk_training.configuration import make_config, read_config
from gaitsdk_training.data import SequenceDataset
from gaitsdk_training.plan import plan_backbone
from gaitsdk_training.rates import rate_groups

TINY = {"channels": (4, 6, 8, 10), "dims": 12, "strips": 4}
CONFIG = BackboneTraining(
    options=TINY, p=3, k=2, frames=2, steps=1, lr=1e-2, optimiser="sgd", weight_decay=0.0, schedule="constant",
    warmup=0.0, clip_norm=None, workers=0, device="cpu",
)  # fmt: skip


def people() -> SequenceDataset:
    rng = np.random.default_rng(3)
    sequences = [rng.integers(0, 256, (3, 64, 64), np.uint8) for _ in range(12)]
    return SequenceDataset(sequences, [f"{i // 3:03d}" for i in range(12)], ["nm-01"] * 12, ["000"] * 12)


def grouped(model: torch.nn.Module, rates: dict[str, float] | None) -> dict[str, float]:
    """Every parameter's name with its factor."""
    names = {id(each): name for name, each in model.named_parameters()}
    found = {names[id(each)]: factor for factor, members in rate_groups(model, rates) for each in members}
    assert found.keys() == {name for name, each in model.named_parameters() if each.requires_grad}
    return found


def test_the_longest_prefix_counts_and_whole_parts_only() -> None:
    model = torch.nn.ModuleDict({"layer1": torch.nn.Linear(2, 2), "layer10": torch.nn.Linear(2, 2)})
    found = grouped(model, {"layer1": 0.1, "layer1.bias": 3})
    expected = {"layer1.weight": 0.1, "layer1.bias": 3.0, "layer10.weight": 1.0, "layer10.bias": 1.0}
    assert found == expected
    assert set(grouped(model, None).values()) == {1.0} and len(rate_groups(model, None)) == 1
    model["layer10"].weight.requires_grad_(False)
    assert "layer10.weight" not in grouped(model, {"layer10": 0.5})


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
def test_a_part_moves_as_far_as_its_factor_says(optimiser: str, tmp_path: Path) -> None:
    """The first step from the same weights on the same batch, with and without factors."""
    plain = replace(CONFIG, optimiser=optimiser)
    torch.manual_seed(CONFIG.seed)
    start = build_model(CONFIG, 4).state_dict()
    full = train_backbone(people(), plain, tmp_path / "full").model.state_dict()
    rates = {"Backbone.forward_block.layer1": 0.0, "FCs": 0.25}
    some = train_backbone(people(), replace(plain, rates=rates), tmp_path / "some").model.state_dict()
    moved = 0
    for name, factor in grouped(build_model(CONFIG, 4), rates).items():
        way, expected = some[name] - start[name], factor * (full[name] - start[name])
        torch.testing.assert_close(way, expected, rtol=1e-3, atol=2e-7)
        moved += bool(expected.abs().max() > 1e-5)
    assert moved > 5
    config = replace(plain, rates=rates)
    assert plan_backbone(config, people(), people())["optimiser"].endswith(f", rates times {rates}")


def test_the_published_rates_of_swingait() -> None:
    """Convolutions and heads at a tenth, the transformer at the full rate."""
    for name in ("swingait3d-gait3d", "swingait3d-grew"):
        config = read_config(BackboneTraining, recipe=name)
        with torch.device("meta"):
            model = build_model(config, 10)
        for parameter, factor in grouped(model, config.rates).items():
            assert factor == (1.0 if parameter.startswith("transformer.") else 0.1), parameter


def test_what_is_no_part_or_no_factor_is_refused(tmp_path: Path) -> None:
    wrong = replace(CONFIG, rates={"Backbone.forward_block.layr1": 0.1})
    message = r"begins with 'Backbone\.forward_block\.layr1'.*did you mean 'Backbone\.forward_block\.layer1'"
    with pytest.raises(OptionError, match=message):
        train_backbone(people(), wrong, tmp_path / "run")
    with pytest.raises(OptionError, match=message):
        plan_backbone(wrong, people(), people())
    assert not (tmp_path / "run").exists()
    with pytest.raises(OptionError, match=r"did you mean 'Backbone'\? known are Backbone, FCs"):
        rate_groups(create("gaitbase", **TINY), {"backbone": 1.0})
    values: tuple[Any, ...] = (-0.1, float("inf"), float("nan"), True, "0.1")
    for value in values:
        with pytest.raises(OptionError, match="rates: FCs"):
            BackboneTraining(rates={"FCs": value})
    assert read_config(BackboneTraining, settings=["rates.FCs=0.1", "rates.BNNecks=1"]).rates == {
        "FCs": 0.1, "BNNecks": 1,
    }  # fmt: skip
    with pytest.raises(OptionError, match="rates: a value of the wrong type; got 'x'"):
        make_config(BackboneTraining, {"rates": {"FCs": "x"}}, "test")
