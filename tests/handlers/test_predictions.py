from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import Activationsd
from sklearn.metrics import roc_auc_score

from monai_basisprune.evidence import auc_interval
from monai_basisprune.handlers import Predictions, PredictionsHandler
from monai_basisprune.handlers.predictions import positive_scores

from ..networks import tiny_classifier


def cases(count: int = 7, **more: Any) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.randn(1, 8, 8, generator=generator),
            "label": i % 2,
            "patient_id": f"p{i // 2}",
            "case_id": f"c{i}",
            **{key: values[i] for key, values in more.items()},
        }
        for i in range(count)
    ]


def evaluate(handler: PredictionsHandler, data: list[dict[str, Any]], **options: Any) -> torch.Tensor:
    """Run MONAI's evaluator; returns what the network gives for all images at once."""
    network = tiny_classifier().eval()
    loader = DataLoader(Dataset(data), batch_size=options.pop("batch_size", 3))
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"), val_data_loader=loader, network=network, val_handlers=[handler], **options
    )
    evaluator.run()
    with torch.no_grad():
        return network(torch.stack([item["image"] for item in data]))


@pytest.mark.parametrize("decollate", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_all_cases_are_collected_in_order(decollate: bool, batch_size: int) -> None:
    handler = PredictionsHandler()
    wanted = evaluate(handler, cases(), decollate=decollate, batch_size=batch_size)
    found = handler.predictions
    torch.testing.assert_close(torch.tensor(found.outputs), wanted, rtol=1e-5, atol=1e-6)
    assert found.labels == [0, 1, 0, 1, 0, 1, 0]
    assert found.patients == ["p0", "p0", "p1", "p1", "p2", "p2", "p3"]
    assert found.case_ids == [f"c{i}" for i in range(7)]
    scores = torch.softmax(wanted.double(), 1)[:, 1]
    assert auc_interval(found.labels, found.scores).auc == pytest.approx(roc_auc_score(found.labels, scores))


@pytest.mark.parametrize("decollate", [True, False])
def test_postprocessing_counts(decollate: bool) -> None:
    handler = PredictionsHandler()
    # MONAI's softmax is over the first axis after the batch, so it needs the items of a batch
    softmax = Activationsd("pred", softmax=True) if decollate else None
    wanted = evaluate(handler, cases(), decollate=decollate, postprocessing=softmax)
    wanted = torch.softmax(wanted, 1) if decollate else wanted
    torch.testing.assert_close(torch.tensor(handler.predictions.outputs), wanted, rtol=1e-5, atol=1e-6)


def test_each_evaluation_starts_anew() -> None:
    handler = PredictionsHandler()
    evaluate(handler, cases())
    first = handler.predictions
    evaluate(handler, cases(4))
    assert len(first.outputs) == 7
    assert len(handler.predictions.outputs) == len(handler.predictions.case_ids) == 4


@pytest.mark.parametrize("decollate", [True, False])
def test_images_without_labels_are_predicted(decollate: bool) -> None:
    data = [{key: item[key] for key in ("image", "case_id")} for item in cases()]
    handler = PredictionsHandler(patient_key=None)
    evaluate(handler, data, decollate=decollate)
    assert handler.predictions.labels == []
    assert handler.predictions.patients == []
    assert len(handler.predictions.outputs) == 7


@pytest.mark.parametrize("decollate", [True, False])
def test_a_key_that_is_not_there_is_named(decollate: bool) -> None:
    with pytest.raises(
        ValueError, match=r"A batch has no key 'person', only .*'case_id'.*: add the id to the datalist, or"
    ):
        evaluate(PredictionsHandler(patient_key="person"), cases(), decollate=decollate)
    with pytest.raises(ValueError, match=r"no key 'uid'.*patient_key=None or case_key=None"):
        evaluate(PredictionsHandler(case_key="uid"), cases(), decollate=decollate)


@pytest.mark.parametrize("decollate", [True, False])
def test_half_precision_is_collected_in_double(decollate: bool) -> None:
    handler = PredictionsHandler()
    network = tiny_classifier().eval().bfloat16()
    data = [{**item, "image": item["image"].bfloat16()} for item in cases()]
    loader = DataLoader(Dataset(data), batch_size=3)
    SupervisedEvaluator(
        torch.device("cpu"), val_data_loader=loader, network=network, val_handlers=[handler], decollate=decollate
    ).run()
    with torch.no_grad():
        wanted = torch.cat([network(torch.stack([i["image"] for i in data[s : s + 3]])) for s in (0, 3, 6)])
    torch.testing.assert_close(torch.tensor(handler.predictions.outputs), wanted.float())


@pytest.mark.parametrize("decollate", [True, False])
def test_numbers_as_ids_of_patients_become_text(decollate: bool) -> None:
    handler = PredictionsHandler(patient_key="number")
    evaluate(handler, cases(number=[7, 7, 8, 8, 9, 9, 10]), decollate=decollate)
    assert handler.predictions.patients == ["7", "7", "8", "8", "9", "9", "10"]


@pytest.mark.parametrize("decollate", [True, False])
def test_labels_that_are_no_classes_are_not_rounded(decollate: bool) -> None:
    data = cases()
    for item in data:
        item["label"] = [0.6, 1.0][item["label"]]
    with pytest.raises(ValueError, match="label"):
        evaluate(PredictionsHandler(), data, decollate=decollate)


def test_no_predictions_have_no_scores() -> None:
    assert Predictions().scores == []


def test_the_score_is_a_difference_that_does_not_saturate() -> None:
    logits = torch.tensor([[0.0, 30.0], [0.0, 31.0], [1.0, 0.5]], dtype=torch.float64)
    assert positive_scores(logits).tolist() == [30.0, 31.0, -0.5]
    assert Predictions([[0.0, 30.0], [0.0, 31.0]]).scores == [30.0, 31.0]
    assert positive_scores(torch.tensor([[0.2], [0.9]])).tolist() == pytest.approx([0.2, 0.9])


@pytest.mark.parametrize("shape", [(4, 3), (4, 0), (4,), (2, 2, 2)])
def test_other_numbers_of_outputs_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="needs one or two outputs for each case, got shape") as caught:
        positive_scores(torch.zeros(shape))
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("decollate", [True, False])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_findings_stay_rows_of_0_and_1(decollate: bool, batch_size: int) -> None:
    findings = [torch.tensor([float(i % 2), float(i % 3 == 0)]) for i in range(7)]
    handler = PredictionsHandler()
    wanted = evaluate(handler, cases(label=findings), decollate=decollate, batch_size=batch_size)
    found = handler.predictions
    assert found.several
    assert found.labels == [row.int().tolist() for row in findings]
    torch.testing.assert_close(torch.tensor(found.scores), wanted.double(), rtol=1e-5, atol=1e-6, check_dtype=False)
    macro = roc_auc_score(np.array(found.labels), np.array(found.scores), average="macro")
    assert auc_interval(found.labels, found.scores).auc == pytest.approx(macro)


def test_several_classes_are_ranked_as_their_probabilities() -> None:
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    labels = [i % 4 for i in range(50)]
    found = Predictions(outputs=logits.tolist(), labels=labels)
    assert found.several
    chances = logits.softmax(dim=1)
    torch.testing.assert_close(torch.tensor(found.scores, dtype=torch.float64), chances.logit())
    expected = roc_auc_score(labels, chances.numpy(), multi_class="ovr")
    assert auc_interval(labels, found.scores).auc == pytest.approx(expected)
    already = Predictions(outputs=chances.tolist(), labels=labels)
    assert auc_interval(labels, already.scores).auc == pytest.approx(expected)


def test_two_classes_are_one_finding() -> None:
    found = Predictions(outputs=[[0.0, 1.0], [2.0, 0.5]], labels=[1, 0])
    assert not found.several
    assert found.scores == [1.0, -1.5]


def test_predictions_come_back_from_a_checkpoint() -> None:
    handler, other = PredictionsHandler(), PredictionsHandler()
    evaluate(handler, cases())
    other.load_state_dict(handler.state_dict())
    assert len(other.predictions.case_ids) == 7
    assert other.predictions == handler.predictions
