from __future__ import annotations

import copy
import io
import re

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.handlers import CheckpointLoader, CheckpointSaver, ValidationHandler
from monai.inferers import SimpleInferer
from monai.transforms import Activationsd
from sklearn.metrics import roc_auc_score
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.curve import PruningCurve
from monai_basisprune.evidence import auc_interval, compare_auc
from monai_basisprune.handlers import Predictions, PruningCurveHandler, PruningHandler
from monai_basisprune.handlers.predictions import positive_scores

from .engines import cases, evaluator, loader, network_and_optimizer, trainer

SHAPE = (1, 8, 8)
SOFTMAX = Activationsd("pred", softmax=True)


def scores_of(network: nn.Module, data) -> np.ndarray:
    with torch.no_grad():
        logits = network.eval()(torch.stack([case["image"] for case in data]))
    return logits.double().softmax(dim=1)[:, 1].numpy()


def labels_of(data) -> list[int]:
    return [case["label"] for case in data]


def pruned(network: nn.Module, share: float) -> mbp.PruneResult:
    return mbp.prune_(network, mbp.SingularValueImportance(network).scores(), mbp.Budget(bases=share))


@pytest.mark.parametrize(
    ("postprocessing", "decollate"),
    [(None, True), (None, False), (SOFTMAX, True)],
    ids=["logits", "logits of a batch", "probabilities"],
)
def test_points_hold_the_auc_and_its_difference_to_the_unpruned_network(postprocessing, decollate):
    data = cases(24)
    network, _ = network_and_optimizer()
    handler = PruningCurveHandler(network, SHAPE, margin=0.02)
    engine = evaluator(network, [handler], loader(data, 5), postprocessing=postprocessing, decollate=decollate)
    labels, patients = labels_of(data), [case["patient_id"] for case in data]
    engine.run()
    reference = scores_of(network, data)
    results = []
    for share in (0.4, 0.7):
        results.append((pruned(network, share), mbp.recompose(network), scores_of(network, data)))
        engine.run()
    first, *others = handler.curve.points
    assert first.difference is None
    assert first.auc["auc"] == pytest.approx(roc_auc_score(labels, reference))
    assert (first.bases, first.parameters, first.macs) == (14, 306, 54 * 64 + 216 * 16 + 16)
    assert (first.parameter_reduction, first.mac_reduction) == (0.0, 0.0)
    assert len(others) == 2
    for point, (result, plain, scores) in zip(others, results, strict=True):
        cost = mbp.measure_complexity(plain, SHAPE)
        assert (point.bases, point.parameters, point.macs) == (result.bases, cost.parameters, cost.macs)
        assert point.parameter_reduction == pytest.approx(1 - cost.parameters / 306)
        assert point.mac_reduction == pytest.approx(1 - cost.macs / 6928)
        assert point.auc["auc"] == pytest.approx(roc_auc_score(labels, scores))
        difference = roc_auc_score(labels, scores) - roc_auc_score(labels, reference)
        assert point.difference["difference"] == pytest.approx(difference)
        assert point.difference["margin"] == 0.02
        # the interval is that of the evidence, patients and all
        wanted = auc_interval(labels, scores, patients)
        assert point.auc["low"] == pytest.approx(wanted.low, rel=1e-6)
        assert point.auc["high"] == pytest.approx(wanted.high, rel=1e-6)
        assert point.auc["patients"] == len(set(patients)) == 13
        paired = compare_auc(labels, reference, scores, patients, margin=0.02)
        assert point.difference["low"] == pytest.approx(paired.low, rel=1e-6)
        assert point.difference["non_inferior"] == paired.non_inferior
    assert engine.state.metrics["parameter_reduction"] == others[-1].parameter_reduction
    assert engine.state.metrics["auc"] == others[-1].auc["auc"]


def test_every_image_is_a_patient_where_the_batch_names_none():
    data = [{"image": case["image"], "label": case["label"]} for case in cases(24)]
    network, _ = network_and_optimizer()
    handler = PruningCurveHandler(network, SHAPE, patient_key=None, confidence=0.8)
    engine = evaluator(network, [handler], loader(data))
    engine.run()
    reference = scores_of(network, data)
    wanted = auc_interval(labels_of(data), scores_of(network, data), confidence=0.8)
    assert handler.curve.points[0].auc["low"] == pytest.approx(wanted.low, rel=1e-6)
    assert handler.curve.points[0].auc["patients"] is None
    assert handler.curve.points[0].auc["confidence"] == 0.8
    pruned(network, 0.5)
    engine.run()
    paired = compare_auc(labels_of(data), reference, scores_of(network, data), confidence=0.8)
    assert handler.curve.points[1].difference["confidence"] == 0.8
    assert handler.curve.points[1].difference["low"] == pytest.approx(paired.low, rel=1e-6)


@pytest.mark.parametrize("decollate", [True, False])
@pytest.mark.parametrize("kind", [int, float, lambda number: torch.tensor(number)], ids=["int", "float", "tensor"])
def test_patients_may_be_numbers(decollate, kind):
    data = [{**case, "patient_id": kind(int(case["patient_id"].split()[1]))} for case in cases(24)]
    network, _ = network_and_optimizer()
    handler = PruningCurveHandler(network, SHAPE)
    evaluator(network, [handler], loader(data), decollate=decollate).run()
    assert handler.curve.points[0].auc["patients"] == 13
    wanted = auc_interval(labels_of(data), scores_of(network, data), [float(case["patient_id"]) for case in data])
    assert handler.curve.points[0].auc["low"] == pytest.approx(wanted.low, rel=1e-6)


def test_a_batch_without_the_patient_key_is_an_error_that_names_it():
    data = [{"image": case["image"], "label": case["label"]} for case in cases()]
    network, _ = network_and_optimizer()
    engine = evaluator(network, [PruningCurveHandler(network, SHAPE)], loader(data))
    with pytest.raises(ValueError, match="A batch has no key 'patient_id', only \\['image', 'label'\\]"):
        engine.run()


def test_the_epoch_is_that_of_the_trainer():
    data = cases(24)
    network, optimizer = network_and_optimizer()
    handler = PruningCurveHandler(network, SHAPE)
    validation = evaluator(network, [handler], loader(data, 12))
    pruning = PruningHandler(network, mbp.ScalingImportance(network), [{"bases": 0.3}, {"bases": 0.6}], optimizer, 2, 1)
    engine = trainer(network, optimizer, [ValidationHandler(1, validation), pruning], pruning.max_epochs)
    handler.trainer = engine
    engine.run()
    assert [point.epoch for point in handler.curve.points] == [1, 2, 3, 4]
    assert [point.difference is None for point in handler.curve.points] == [True, True, False, False]
    # each cut is evaluated after the next epoch of training
    assert [point.bases for point in handler.curve.points] == [14, 14, *[r.bases for r in pruning.results]]
    assert [point.epoch for point in handler.curve.rounds()] == [2, 3, 4]
    alone = PruningCurveHandler(network, SHAPE)
    evaluator(network, [alone], loader(data, 12)).run()
    assert alone.curve.points[0].epoch == 1


def test_the_reference_may_be_what_another_network_gives():
    data = cases(24)
    network, _ = network_and_optimizer()
    labels, scores = labels_of(data), [float(index % 7) for index in range(24)]
    given = Predictions([[score] for score in scores], labels, [str(case["patient_id"]) for case in data])
    handler = PruningCurveHandler(network, SHAPE, reference=given)
    engine = evaluator(network, [handler], loader(data, 5))
    engine.run()
    pruned(network, 0.5)
    engine.run()
    first, second = handler.curve.points
    assert first.difference is None
    assert second.difference["reference_auc"] == pytest.approx(roc_auc_score(labels, scores))


def test_the_reference_is_the_last_evaluation_of_the_unpruned_network():
    data = cases(24)
    network, _ = network_and_optimizer()
    handler = PruningCurveHandler(network, SHAPE)
    engine = evaluator(network, [handler], loader(data))
    engine.run()
    network.head.weight.data.neg_()  # as if an epoch of training had passed
    engine.run()
    reference = roc_auc_score(labels_of(data), scores_of(network, data))
    pruned(network, 0.5)
    engine.run()
    now = roc_auc_score(labels_of(data), scores_of(network, data))
    assert handler.curve.points[2].difference["reference_auc"] == pytest.approx(reference)
    assert handler.curve.points[2].difference["difference"] == pytest.approx(now - reference)


def test_without_an_evaluation_of_the_unpruned_network_there_is_no_difference():
    network, _ = network_and_optimizer()
    pruned(network, 0.5)
    handler = PruningCurveHandler(network, SHAPE)
    evaluator(network, [handler], loader(cases(24))).run()
    assert handler.curve.points[0].difference is None
    assert handler.curve.points[0].parameter_reduction > 0


class AnotherOrder(torch.utils.data.Dataset):
    """The same cases, rotated by five after each reading of all of them, as a shuffling loader would hand them out."""

    def __init__(self, data) -> None:
        self.data, self.reads = data, 0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int):
        offset = 5 * (self.reads // len(self.data))
        self.reads += 1
        return self.data[(index + offset) % len(self.data)]


def test_cases_in_another_order_cannot_be_compared_in_pairs():
    network, _ = network_and_optimizer()
    handler = PruningCurveHandler(network, SHAPE)
    engine = evaluator(network, [handler], loader(AnotherOrder(cases(24))))
    engine.run()
    pruned(network, 0.5)
    with pytest.raises(ValueError, match="order"):
        engine.run()


class Broken(SimpleInferer):
    def __call__(self, inputs, network, *args, **kwargs):
        return super().__call__(inputs, network, *args, **kwargs) * float("nan")


def test_predictions_that_are_no_numbers_are_no_point_of_the_curve():
    network, _ = network_and_optimizer()
    handler = PruningCurveHandler(network, SHAPE)
    with pytest.raises(ValueError, match="hold 24 NaN"):
        evaluator(network, [handler], loader(cases(24)), inferer=Broken()).run()
    assert handler.curve.points == []


def test_cases_of_one_class_are_an_error():
    data = [case for case in cases(24) if case["label"] == 1]
    network, _ = network_and_optimizer()
    with pytest.raises(ValueError, match="only one class is present"):
        evaluator(network, [PruningCurveHandler(network, SHAPE)], loader(data)).run()


def test_each_evaluation_starts_with_no_cases():
    network, _ = network_and_optimizer()
    handler = PruningCurveHandler(network, SHAPE)
    engine = evaluator(network, [handler], loader(cases(24)))
    engine.run()
    engine.run()
    assert [point.auc["cases"] for point in handler.curve.points] == [24, 24]


def test_a_curve_goes_through_a_checkpoint_of_monai(tmp_path):
    data = cases(24)
    network, _ = network_and_optimizer()
    handler = PruningCurveHandler(network, SHAPE)
    engine = evaluator(network, [handler], loader(data))
    CheckpointSaver(str(tmp_path), {"curve": handler}, save_final=True, final_filename="c.pt").attach(engine)
    engine.run()
    pruned(network, 0.4)
    engine.run()

    fresh, _ = network_and_optimizer()
    pruned(fresh, 0.4)
    other = PruningCurveHandler(fresh, SHAPE)
    again = evaluator(fresh, [other], loader(data))
    loading = CheckpointLoader(str(tmp_path / "c.pt"), {"curve": other, "network": fresh})
    loading.load_dict = {"curve": other}
    again.add_event_handler(Events.STARTED, loading)
    again.run()
    assert other.curve.points[:2] == handler.curve.points
    # the comparison with the unpruned network goes on, though this process has never seen it
    assert other.curve.points[2].difference == handler.curve.points[1].difference


def test_the_state_is_plain_data():
    network, _ = network_and_optimizer()
    handler = PruningCurveHandler(network, SHAPE)
    engine = evaluator(network, [handler], loader(cases(24)))
    engine.run()
    pruned(network, 0.5)
    engine.run()
    file = io.BytesIO()
    torch.save(handler.state_dict(), file)
    file.seek(0)
    other = PruningCurveHandler(network, SHAPE)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert isinstance(other.curve, PruningCurve)
    assert other.curve == handler.curve
    before = copy.deepcopy(other.curve)
    engine.run()
    assert other.curve == before


@pytest.mark.parametrize(
    ("prediction", "wanted"),
    [
        (torch.tensor([[0.25, 0.75], [1.0, -1.0]]), [0.5, -2.0]),
        (torch.tensor([[0.25], [0.5]]), [0.25, 0.5]),
    ],
)
def test_the_score_of_the_positive_class(prediction, wanted):
    assert positive_scores(prediction).tolist() == wanted


def test_more_classes_than_two_are_refused():
    with pytest.raises(ValueError, match=re.escape("needs one or two outputs for each case, got shape (4, 3)")):
        positive_scores(torch.rand(4, 3))


class OneOutput(SimpleInferer):
    def __call__(self, inputs, network, *args, **kwargs):
        logits = super().__call__(inputs, network, *args, **kwargs)
        return logits[:, 1:] - logits[:, :1]


@pytest.mark.parametrize("decollate", [True, False])
def test_a_network_with_one_output_gives_the_same_curve(decollate):
    data = cases(24)
    network, _ = network_and_optimizer()
    handlers = [PruningCurveHandler(network, SHAPE) for _ in range(2)]
    evaluator(network, [handlers[0]], loader(data), decollate=decollate).run()
    evaluator(network, [handlers[1]], loader(data), decollate=decollate, inferer=OneOutput()).run()
    assert handlers[0].curve == handlers[1].curve
