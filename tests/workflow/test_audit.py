from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import Dataset
from torch import nn

from monai_basisprune.errors import BasisPruneError, ConfigurationError
from monai_basisprune.evidence import brier_score, compare_subgroups, sensitivity_at_specificity
from monai_basisprune.handlers import Predictions
from monai_basisprune.workflow.audit import audit_networks, check_audit_cases, describe_probabilities
from monai_basisprune.workflow.inference import predict

from ..networks import FlatClassifier, cut, same_bits, snapshot, tiny_classifier

CASES = 24


@pytest.fixture(scope="module")
def networks() -> tuple[nn.Module, nn.Module]:
    return cut(tiny_classifier())


@pytest.fixture(scope="module")
def data() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    return Dataset(
        [
            {
                "image": torch.rand((1, 8, 8), generator=generator) + 0.3 * (index % 2),
                "label": index % 2,
                "patient_id": f"patient{index // 2}",
                "case_id": f"case{index:02d}",
            }
            for index in range(CASES)
        ]
    )


ITEMS = [
    {
        "case_id": f"case{index:02d}",
        "image": "Doe/secret.dcm",
        "sex": "F" if index < 12 else "M",
        **({"age": 90} if index < 10 else {"age": 30}),
        **({"manufacturer": "GE"} if index < 22 else {}),
    }
    for index in reversed(range(CASES))  # in another order than the predictions
]


@pytest.fixture(scope="module")
def predictions(networks: tuple[nn.Module, nn.Module], data: Dataset) -> tuple[Predictions, Predictions]:
    before, after = (predict(network, data, "cpu", patient_key="patient_id") for network in networks)
    return before, after


def run(networks: Any, predictions: Any, data: Dataset, **changes: Any) -> Any:
    return audit_networks(*predictions, *networks, data, ITEMS, **changes)


def test_subgroups_are_those_of_the_datalist(networks: Any, predictions: Any, data: Dataset) -> None:
    before, after = predictions
    record, _ = run(networks, predictions, data, margin=0.05, audit_cases=0)
    groups = {(group["attribute"], group["value"]): group for group in record["subgroups"]}
    assert list(groups) == [
        ("sex", "female"),
        ("sex", "male"),
        ("age band", "18 to 39"),
        ("age band", "80 and older"),
        ("scanner manufacturer", "all"),
        ("view position", "not known"),
    ]
    sexes = ["female"] * 12 + ["male"] * 12
    expected = compare_subgroups(
        before.labels, before.scores, after.scores, {"sex": sexes}, before.patients, margin=0.05
    )
    for group in expected:
        found = groups["sex", group.value]
        assert found["difference"] == group.to_dict()["difference"]
        assert found["patients"] == 6
    assert (groups["age band", "80 and older"]["cases"], groups["age band", "80 and older"]["patients"]) == (10, 5)
    assert "fewer than 5 patients" in groups["scanner manufacturer", "all"]["reason"]
    assert "no case of the test set has this attribute" in groups["view position", "not known"]["reason"]
    text = " ".join(record["remarks"])
    for words in (
        "A small group cannot show safety",
        "Holm's correction over the 4 groups",
        "Groups of fewer than 5 patients",
        "0 to 17, 18 to 39, 40 to 59, 60 to 79, 80 and older",
        "no image of a patient is shown",
    ):
        assert words in text, words
    assert "Doe" not in str(record)


def test_the_cases_that_changed_most_come_first(networks: Any, predictions: Any, data: Dataset) -> None:
    record, pictures = run(networks, predictions, data, audit_cases=5)
    chances = []
    for network in networks:
        with torch.no_grad():
            outputs = network.eval()(torch.stack([item["image"] for item in data]))
        chances.append(torch.softmax(outputs.double(), dim=1)[:, 1].numpy())
    change = np.abs(chances[1] - chances[0])
    order = np.argsort(-change)[:5]
    assert [case["case_id"] for case in record["changed_cases"]] == [f"case{index:02d}" for index in order]
    for case, index in zip(record["changed_cases"], order, strict=True):
        assert case["label"] == index % 2
        assert case["original"] == pytest.approx(chances[0][index], abs=1e-6)
        assert case["pruned"] == pytest.approx(chances[1][index], abs=1e-6)
        assert (case["activation_layer"], case["reason"]) == ("grouped", None)
    assert sorted(pictures) == sorted(case["case_id"] for case in record["changed_cases"])


def test_the_maps_are_those_of_grad_cam(networks: Any, predictions: Any, data: Dataset) -> None:
    before = [snapshot(network) for network in networks]
    record, pictures = run(networks, predictions, data, audit_cases=2)
    for case in record["changed_cases"]:
        image = data[int(case["case_id"][4:])]["image"]
        shown = pictures[case["case_id"]]
        assert shown.image.shape == shown.original.shape == shown.pruned.shape == (224, 224)
        gray = (image[0] - image.min()) / (image.max() - image.min())
        assert shown.image[14::28, 14::28] == pytest.approx(_at_centers(gray), abs=1e-6)
        for network, heat in zip(networks, (shown.original, shown.pruned), strict=True):
            expected = grad_cam_by_hand(network, image)
            assert heat[14::28, 14::28] == pytest.approx(_at_centers(expected), abs=0.02)
    for network, state in zip(networks, before, strict=True):
        assert same_bits(snapshot(network), state)
        assert all(not module._forward_hooks and not module._backward_hooks for module in network.modules())
        assert all(parameter.grad is None for parameter in network.parameters())


def grad_cam_by_hand(network: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Return relu of the sum of feature maps, each weighted by its mean gradient; then enlarged and scaled to 1."""
    with torch.no_grad():
        features = network.grouped(torch.relu(network.norm(network.stem(image[None]))))
    features.requires_grad_(True)
    network.head(network.pool(torch.relu(features)).flatten(1))[0, 1].backward()
    weights = features.grad.mean(dim=(2, 3), keepdim=True)
    network.zero_grad(set_to_none=True)
    heat = torch.relu((weights * features).sum(dim=1, keepdim=True)).detach()
    heat = nn.functional.interpolate(heat, size=image.shape[1:], mode="bilinear", align_corners=False)
    return heat[0, 0] / heat.max().clamp_min(1e-12)


def _at_centers(heat: torch.Tensor) -> np.ndarray:
    """Return the map where the center of each pixel of the image lies in a picture that is 28 times larger."""
    large = nn.functional.interpolate(heat[None, None], size=(224, 224), mode="bilinear", align_corners=False)
    return large[0, 0, 14::28, 14::28].double().numpy()


def test_no_cases_and_no_change(networks: Any, predictions: Any, data: Dataset) -> None:
    record, pictures = run(networks, predictions, data, audit_cases=0)
    assert (record["changed_cases"], pictures) == ([], {})
    record, pictures = run((networks[0],) * 2, (predictions[0],) * 2, data)
    assert (record["changed_cases"], pictures) == ([], {})
    assert "The prediction of no test case changed." in record["remarks"]


def test_no_feature_map_says_why(predictions: Any, data: Dataset) -> None:
    torch.manual_seed(0)
    pair = cut(FlatClassifier())
    before, after = (predict(network, data, "cpu", patient_key="patient_id") for network in pair)
    record, pictures = run(pair, (before, after), data, audit_cases=3)
    assert pictures == {}
    for case in record["changed_cases"]:
        assert case["activation_layer"] is None
        assert case["reason"] == (
            "no class activation map could be computed, because no layer of the network has a feature map over space"
        )


class Unreadable(Dataset):
    """Cases whose files went away after the prediction."""

    def __getitem__(self, index: Any) -> Any:
        raise RuntimeError("applying transform to /data/Doe_John/image.dcm")


def test_the_reason_names_no_file(networks: Any, predictions: Any, data: Dataset) -> None:
    record, pictures = run(networks, predictions, Unreadable(data), audit_cases=2)
    assert pictures == {}
    reasons = {case["reason"] for case in record["changed_cases"]}
    assert reasons == {"no class activation map could be computed, because of RuntimeError"}


def test_a_case_that_is_not_in_the_datalist(networks: Any, predictions: Any, data: Dataset) -> None:
    with pytest.raises(BasisPruneError, match=r"1 of 24 test cases are not in the datalist, such as case case00"):
        audit_networks(*predictions, *networks, data, ITEMS[:-1])


@pytest.mark.parametrize("audit_cases", [-1, 1.5, True, "6", None])
def test_a_wrong_number_of_cases(audit_cases: Any) -> None:
    with pytest.raises(ConfigurationError, match="audit_cases must be the number of test cases to show"):
        check_audit_cases(audit_cases)


def test_probabilities_are_those_of_the_softmax(predictions: Any) -> None:
    before, after = predictions
    found = describe_probabilities(before, after)
    for name, one in (("original", before), ("pruned", after)):
        chances = torch.softmax(torch.tensor(one.outputs, dtype=torch.float64), dim=1)[:, 1].numpy()
        expected = brier_score(one.labels, chances, one.patients).value
        assert found["calibration"][name]["brier"]["value"] == pytest.approx(expected)
        assert sum(found["calibration"][name]["points"]["cases"]) == CASES
        point = sensitivity_at_specificity(one.labels, chances, 0.9, one.patients)
        assert found["operating_point"][name]["value"] == pytest.approx(point.value)
        assert found["operating_point"][name]["threshold"] == pytest.approx(point.threshold)
    assert found["operating_point"]["specificity"] == 0.9


def test_one_output_is_a_logit() -> None:
    logits = [-2.0, -1.0, 0.5, 3.0] * 5
    one = Predictions([[value] for value in logits], [0, 0, 1, 1] * 5, [], [str(index) for index in range(20)])
    found = describe_probabilities(one, dataclasses.replace(one))
    expected = [1 / (1 + math.exp(-value)) for value in logits]
    brier = np.mean((np.array(expected) - np.array(one.labels)) ** 2)
    assert found["calibration"]["pruned"]["brier"]["value"] == pytest.approx(brier)
