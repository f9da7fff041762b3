from __future__ import annotations

import pytest
import torch
from ignite.engine import Events
from monai.handlers import ValidationHandler

import monai_basisprune as mbp
from monai_basisprune.handlers import NormStatisticsHandler
from monai_basisprune.handlers.norms import NORM_STATISTICS

from .engines import cases, evaluator, loader, network_and_optimizer, trainer


def statistics(network) -> tuple[torch.Tensor, torch.Tensor, int]:
    norm = network.norm
    return norm.running_mean.clone(), norm.running_var.clone(), int(norm.num_batches_tracked)


def averages(network) -> tuple[torch.Tensor, torch.Tensor]:
    """Average the statistics of the batches by hand, with the network as it is now."""
    with torch.no_grad():
        features = [network.stem(batch["image"]) for batch in loader(cases())]
    means = torch.stack([f.mean((0, 2, 3)) for f in features]).mean(0)
    return means, torch.stack([f.var((0, 2, 3)) for f in features]).mean(0)


def test_update_is_what_any_training_does():
    found = []
    for handlers in (lambda n: [], lambda n: [NormStatisticsHandler(n)]):
        network, optimizer = network_and_optimizer()
        before = statistics(network)
        trainer(network, optimizer, handlers(network), 2).run()
        assert not torch.equal(statistics(network)[0], before[0])
        found.append(network.state_dict())
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_frozen_keeps_the_pretrained_statistics_during_the_run_only():
    network, optimizer = network_and_optimizer()
    before, affine = statistics(network), network.norm.weight.detach().clone()
    trainer(network, optimizer, [NormStatisticsHandler(network, "frozen")], 2).run()
    after = statistics(network)
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[1], before[1])
    assert after[2] == before[2]
    assert not torch.equal(network.norm.weight.detach(), affine)
    network.train()
    network(torch.rand(4, 1, 8, 8))
    assert not torch.equal(statistics(network)[0], before[0])


def test_frozen_norms_are_let_go_after_a_run_that_failed():
    network, optimizer = network_and_optimizer()
    engine = trainer(network, optimizer, [NormStatisticsHandler(network, "frozen")], 2)

    def fail(engine):
        raise RuntimeError("stop")

    engine.add_event_handler(Events.EPOCH_COMPLETED, fail)
    with pytest.raises(RuntimeError, match="stop"):
        engine.run()
    assert not network.norm._forward_pre_hooks


def test_recalibrate_averages_after_each_epoch_before_the_validation():
    network, optimizer = network_and_optimizer()
    seen = []
    validation = evaluator(network, [], loader(cases()))
    validation.add_event_handler(Events.STARTED, lambda e: seen.append((statistics(network), averages(network))))
    handlers = [
        NormStatisticsHandler(network, "recalibrate", loader(cases())),
        ValidationHandler(1, validation),
    ]
    trainer(network, optimizer, handlers, 2).run()
    assert len(seen) == 2
    for found, wanted in seen:
        torch.testing.assert_close(found[0], wanted[0])
        torch.testing.assert_close(found[1], wanted[1])
        assert found[2] == 3
    assert not torch.equal(seen[0][0][0], seen[1][0][0])


def test_the_key_of_the_images_can_be_chosen():
    data = [{"xray": case["image"], "image": torch.zeros(1, 8, 8)} for case in cases()]
    network, optimizer = network_and_optimizer()
    handler = NormStatisticsHandler(network, "recalibrate", loader(data), image_key="xray")
    trainer(network, optimizer, [handler]).run()
    torch.testing.assert_close(statistics(network)[0], averages(network)[0])


def test_a_pruned_network_is_recalibrated_as_well():
    network, optimizer = network_and_optimizer()
    mbp.prune_(network, mbp.SingularValueImportance(network).scores(), mbp.Budget(bases=0.5), optimizer)
    trainer(network, optimizer, [NormStatisticsHandler(network, "recalibrate", loader(cases()))]).run()
    torch.testing.assert_close(statistics(network)[0], averages(network)[0])


def test_what_is_no_mode_is_refused():
    network, _ = network_and_optimizer()
    with pytest.raises(ValueError, match=r"mode must be one of \('update', 'frozen', 'recalibrate'\), got 'freeze'"):
        NormStatisticsHandler(network, "freeze")
    with pytest.raises(ValueError, match="mode='recalibrate' needs data, the batches to average over"):
        NormStatisticsHandler(network, "recalibrate")
    assert NORM_STATISTICS == ("update", "frozen", "recalibrate")
