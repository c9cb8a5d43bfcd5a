"""A share of what CarGait learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gaitsdk.errors import OptionError
from gaitsdk.models.cargait import CarGait
from gaitsdk_training.checkpoints import Run
from gaitsdk_training.list_validation import ListValidation
from gaitsdk_training.lists import ListSet
from gaitsdk_training.shrinkage import SHARES, shrunk


def validation(seed: int = 0) -> ListValidation:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(12), 4).astype(str)
    features = (rng.normal(size=(12, 3, 8)).repeat(4, axis=0) + rng.normal(size=(48, 3, 8))).astype(np.float32)
    lists = ListSet.build(features, labels, np.full(48, "nm-01"), np.full(48, "000"), v=12)
    return ListValidation(lists, beta=0.1, k=10, limit=None, seed=0, device=torch.device("cpu"))


def network(seed: int = 0, size: float = 0.3) -> CarGait:
    torch.manual_seed(seed)
    model = CarGait(8, 16, 4, num_classes=5)
    torch.nn.init.normal_(model.output.weight, std=size)  # it starts at zero, where every share is the same
    return model


def test_the_best_share_is_in_the_weights_and_the_model_is_left_alone() -> None:
    lists, model = validation(), network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = shrunk(model, [lists])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert set(found.rank1) == {0.0, *SHARES} and found.rank1[0.0] == lists.of_shortlist()["rank1"]
    assert found.rank1[found.share] == max(found.rank1[each] for each in SHARES) == lists.measure(found.model)["rank1"]
    torch.testing.assert_close(found.model.output.weight, found.share * model.output.weight)
    assert found.model.num_classes is None and not found.model.training
    # E of the shrunk network lies on the way from F to E.
    a, b = torch.rand(2, 3, 8), torch.rand(2, 3, 8)
    (whole, _), (part, _) = model.eval().attend(a, b), found.model.attend(a, b)
    torch.testing.assert_close(part - a, found.share * (whole - a))


def test_kinds_of_lists_count_alike() -> None:
    kinds, model = [validation(0), validation(1)], network()
    found = shrunk(model, kinds)
    for share, rank1 in found.rank1.items():
        if share:
            assert rank1 == pytest.approx(np.mean([shrunk(model, [kind]).rank1[share] for kind in kinds]))
    with pytest.raises(OptionError, match="validations"):
        shrunk(model, [])


def test_of_equal_shares_the_largest_is_taken() -> None:
    found = shrunk(network(size=0.0), [validation()], (0.2, 0.7, 0.5))
    assert found.share == 0.7 and set(found.rank1) == {0.0, 0.2, 0.5, 0.7}


@pytest.mark.parametrize("shares", [(), (0.0, 0.5), (1.5,), (-0.1,)])
def test_impossible_shares_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(OptionError, match="shares"):
        shrunk(network(), [validation()], shares)


def test_a_run_is_resumed_whose_nested_settings_are_older(tmp_path: Path) -> None:
    old = {"p": 8, "augmentation": {"flip": 0.5}}
    run = Run(tmp_path, old, resume=True)
    run.begin()
    run.save(2, {"model": {"w": torch.zeros(1)}}, {}, {})
    added = {"p": 8, "augmentation": {"flip": 0.0, "rotate": 0.0}}
    Run(tmp_path, {"p": 8, "augmentation": {"flip": 0.5, "rotate": 0.0}}, resume=True, added=added)
    with pytest.raises(OptionError, match="augmentation"):
        Run(tmp_path, {"p": 8, "augmentation": {"flip": 0.5, "rotate": 0.1}}, resume=True, added=added)
