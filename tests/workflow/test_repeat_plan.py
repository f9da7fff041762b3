from __future__ import annotations

import pytest

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.workflow.repeat_plan import Repeat, plan_repeats


def test_each_repeat_has_a_seed_and_a_fold_of_its_own() -> None:
    assert plan_repeats(3, 7) == plan_repeats(3, 7, 0) == [Repeat(r, 7 + r, None, None) for r in range(3)]
    assert plan_repeats(2, 0, 5) == [Repeat(0, 0, 0, 5), Repeat(1, 1, 1, 5)]
    assert str(plan_repeats(2, 0, 5)[1]) == "repeat-01 (seed 1, fold 1 of 5)"


def test_all_that_is_wrong_with_a_plan_is_said_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        plan_repeats(1, -1, 2, 0)
    assert str(caught.value).splitlines() == [
        "The repeats cannot be planned:",
        "  - repeats must be a whole number from 2, got 1",
        "  - seed must be a whole number from 0, got -1",
        "  - fold 0 was set: `repeat` runs the folds itself; set it only for a single `prune`",
        "  - folds must be a whole number from 3, one fold for the test, one for validation and the others for "
        "training; got 2",
    ]
    with pytest.raises(ConfigurationError, match="6 repeats need as many folds, got folds 5"):
        plan_repeats(6, 0, 5)
