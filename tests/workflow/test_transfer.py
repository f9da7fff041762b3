from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from sklearn.metrics import roc_auc_score

from monai_basisprune.budgets import Budget
from monai_basisprune.errors import ConfigurationError
from monai_basisprune.handlers import Predictions
from monai_basisprune.workflow import make_budgets, save_transferred

from ..bundle_runs import merged_config
from ..networks import same_bits, snapshot, tiny_classifier


@pytest.mark.parametrize("quantity", ["parameters", "macs", "bases"])
def test_one_budget_for_each_target(quantity: str) -> None:
    budgets = make_budgets(quantity, [0.5, 0.9], [1, 8, 8])
    assert budgets == [Budget(**{quantity: share}, input_shape=(1, 8, 8)) for share in (0.5, 0.9)]
    assert [budget.quantity for budget in budgets] == [quantity, quantity]


def test_thresholds_may_pass_one() -> None:
    assert [budget.threshold for budget in make_budgets("threshold", [0.5, 7], [1, 8, 8])] == [0.5, 7]


@pytest.mark.parametrize("dataset_dir", [None, "/data/study"])
def test_the_shipped_targets_are_good(dataset_dir: str | None) -> None:
    parser = ConfigParser({**merged_config(("train", "prune")), "dataset_dir": dataset_dir})
    quantity, targets = parser.get_parsed_content("budget"), parser.get_parsed_content("targets")
    budgets = make_budgets(quantity, targets, [1, 64, 64])
    assert [getattr(budget, quantity) for budget in budgets] == targets
    assert len(targets) >= 7  # with the unpruned network, eight points of a curve
    assert targets[-1] >= 0.95


def test_targets_can_be_of_parameters_and_macs_at_once() -> None:
    budgets = make_budgets("parameters and macs", [0.5, 0.9], [1, 8, 8])
    assert [vars(budget) for budget in budgets] == [
        vars(Budget(parameters=share, macs=share, input_shape=(1, 8, 8))) for share in (0.5, 0.9)
    ]


def test_an_unknown_quantity_is_refused() -> None:
    with pytest.raises(
        ConfigurationError,
        match="budget must be parameters, macs, parameters and macs, bases or threshold, got 'flops'",
    ):
        make_budgets("flops", [0.5], [1, 8, 8])


@pytest.mark.parametrize("targets", [[], [0.9, 0.5], [0.5, 0.5], [0.3, 0.8, 0.7]])
def test_targets_that_do_not_rise_are_refused(targets: list[float]) -> None:
    with pytest.raises(ConfigurationError, match="targets must be a list of rising numbers, such as") as caught:
        make_budgets("parameters", targets, [1, 8, 8])
    assert str(caught.value).endswith(f"got {targets!r}.")


@pytest.mark.parametrize("target", [1.0, 1.5, -0.1, 90, float("nan"), True])
def test_targets_that_are_no_share_are_refused(target: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"targets: Budget\(parameters=\.\.\.\)") as caught:
        make_budgets("parameters", [target], [1, 8, 8])
    assert repr(target) in str(caught.value)


@pytest.mark.parametrize("targets", [0.5, [0.5, "0.9"], [0.5, None]])
def test_targets_of_another_type_are_refused(targets: Any) -> None:
    with pytest.raises(ConfigurationError, match="targets must be a list of rising numbers"):
        make_budgets("parameters", targets, [1, 8, 8])  # --targets 0.5


def test_a_transferred_network_is_saved_with_its_auc(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = tiny_classifier()
    outputs = [[0.0, 1.0], [0.0, 2.0], [0.0, -1.0], [0.0, 1.5], [0.0, 0.2], [0.0, 0.1]]
    labels = [0, 1, 0, 1, 1, 0]
    save_transferred(network, Predictions(outputs, labels, list("aabbcd")), tmp_path / "new")
    state = torch.load(tmp_path / "new" / "transferred.pt", weights_only=True)
    assert same_bits(state, snapshot(network))
    result = json.loads((tmp_path / "new" / "transferred.json").read_text())
    assert result["section"] == "validation"
    assert result["auc"]["auc"] == pytest.approx(roc_auc_score(labels, [b - a for a, b in outputs]))
    assert result["auc"]["patients"] == 4
    assert "AUC on 6 validation cases: 0.889" in capsys.readouterr().out
