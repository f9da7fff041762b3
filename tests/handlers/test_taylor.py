from __future__ import annotations

import copy
import math

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.decomposition import decomposed_layers
from monai_basisprune.handlers import TaylorImportanceHandler

from .engines import cases, loader, network_and_optimizer, trainer


def by_hand(network: nn.Module, optimizer, data, epochs: int, steps: int = 1) -> tuple[dict[str, torch.Tensor], int]:
    """Train as a plain loop does and sum (s · ∂L/∂s)² of every optimizer step, number by number."""
    sums = {name: torch.zeros(layer.rank(), dtype=torch.float64) for name, layer in decomposed_layers(network)}
    count = 0
    network.train()
    for _ in range(epochs):
        batches = list(data)
        for i, batch in enumerate(batches):
            if i % steps == 0:
                optimizer.zero_grad()
            (nn.functional.cross_entropy(network(batch["image"]), batch["label"]) / steps).backward()
            if (i + 1) % steps and i + 1 < len(batches):
                continue
            for name, layer in decomposed_layers(network):
                factors = layer.scaling.scaling_factors
                sums[name] += (factors.detach().double() * factors.grad.double()) ** 2
            count += 1
            optimizer.step()
    return {name: value / count for name, value in sums.items()}, count


def assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(wanted)
    for name in wanted:
        assert wanted[name].max() > 0
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.filterwarnings("ignore:.*CUDA is not available.*", "ignore:.*torch.cuda.amp.GradScaler.*")
def test_sums_are_those_of_a_training_loop_by_hand(epochs, amp):
    network, optimizer = network_and_optimizer()
    taylor = mbp.TaylorImportance(network)
    trainer(network, optimizer, [TaylorImportanceHandler(taylor)], epochs, amp=amp).run()
    other, other_optimizer = network_and_optimizer()
    wanted, count = by_hand(other, other_optimizer, loader(cases()), epochs)
    assert taylor.batches == count == 3 * epochs
    assert_close(taylor.scores(), wanted)


def test_collecting_does_not_change_the_training():
    states = []
    for collect in (False, True):
        network, optimizer = network_and_optimizer()
        handlers = [TaylorImportanceHandler(mbp.TaylorImportance(network))] if collect else []
        trainer(network, optimizer, handlers, 2).run()
        states.append(network.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize(("batches", "steps"), [(4, 2), (3, 2), (5, 3), (2, 4), (1, 2)])
def test_accumulated_gradients_count_once_per_step_the_incomplete_last_one_too(batches, steps):
    data = loader(cases(4 * batches))
    network, optimizer = network_and_optimizer()
    taylor = mbp.TaylorImportance(network)
    trainer(network, optimizer, [TaylorImportanceHandler(taylor)], 2, data, accumulation_steps=steps).run()
    other, other_optimizer = network_and_optimizer()
    wanted, count = by_hand(other, other_optimizer, data, 2, steps)
    assert taylor.batches == count == 2 * math.ceil(batches / steps)
    assert_close(taylor.scores(), wanted)


@pytest.mark.parametrize("steps", [1, 2])
def test_the_number_of_scores_is_the_number_of_optimizer_steps(steps):
    network, optimizer = network_and_optimizer()
    done = []
    optimizer.register_step_post_hook(lambda *args: done.append(1))
    taylor = mbp.TaylorImportance(network)
    engine = trainer(network, optimizer, [TaylorImportanceHandler(taylor)], 2, accumulation_steps=steps)
    engine.run()
    assert taylor.batches == len(done)


def with_scaler(engine, scaler: torch.amp.GradScaler) -> None:
    """Let a trainer scale its gradients on the host too, where it would not by itself."""
    engine.add_event_handler(Events.STARTED, lambda e: setattr(e, "scaler", scaler))


@pytest.mark.filterwarnings("ignore:.*CUDA is not available.*", "ignore:.*torch.cuda.amp.GradScaler.*")
def test_the_scale_of_a_gradient_scaler_is_divided_out():
    network, optimizer = network_and_optimizer()
    taylor = mbp.TaylorImportance(network)
    engine = trainer(network, optimizer, [TaylorImportanceHandler(taylor)], 1, amp=True)
    with_scaler(engine, torch.amp.GradScaler("cpu", init_scale=2.0**12))
    engine.run()
    assert engine.scaler.is_enabled()
    other, other_optimizer = network_and_optimizer()
    wanted, count = by_hand(other, other_optimizer, loader(cases()), 1)
    assert taylor.batches == count
    assert_close(taylor.scores(), wanted)


@pytest.mark.filterwarnings("ignore:.*CUDA is not available.*", "ignore:.*torch.cuda.amp.GradScaler.*")
def test_batches_that_the_gradient_scaler_leaves_out_are_left_out():
    network, optimizer = network_and_optimizer()
    done = []
    optimizer.register_step_post_hook(lambda *args: done.append(1))
    taylor = mbp.TaylorImportance(network)

    def loss(prediction, label):
        return 1000 * nn.functional.cross_entropy(prediction, label)

    engine = trainer(network, optimizer, [TaylorImportanceHandler(taylor)], 4, amp=True, loss_function=loss)
    # so large that the first gradients overflow; each overflow divides it by a million
    with_scaler(engine, torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-20))
    engine.run()
    assert 0 < len(done) < 12
    assert taylor.batches == len(done)
    assert all(torch.isfinite(scores).all() for scores in taylor.scores().values())


def test_broken_gradients_stop_the_training_where_no_scaler_looks_after_them():
    data = cases()
    data[5]["image"] = torch.full((1, 8, 8), float("nan"))
    network, optimizer = network_and_optimizer()
    taylor = mbp.TaylorImportance(network)
    engine = trainer(network, optimizer, [TaylorImportanceHandler(taylor)], 1, loader(data))
    with pytest.raises(ValueError, match="infinite or NaN gradients"):
        engine.run()
    assert taylor.batches == 1


def test_any_engine_that_tells_of_the_backward_pass_will_do():
    network, optimizer = network_and_optimizer()
    taylor = mbp.TaylorImportance(network)

    def step(engine, batch):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(batch["image"]), batch["label"]).backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        optimizer.step()

    engine = Engine(step)
    engine.register_events(*IterationEvents)
    TaylorImportanceHandler(taylor).attach(engine)
    network.train()
    engine.run(loader(cases()), max_epochs=2)
    other, other_optimizer = network_and_optimizer()
    assert_close(taylor.scores(), by_hand(other, other_optimizer, loader(cases()), 2)[0])


def test_state_is_that_of_the_importance():
    network, optimizer = network_and_optimizer()
    taylor = mbp.TaylorImportance(network)
    handler = TaylorImportanceHandler(taylor)
    trainer(network, optimizer, [handler]).run()
    other = mbp.TaylorImportance(network)
    TaylorImportanceHandler(other).load_state_dict(copy.deepcopy(handler.state_dict()))
    assert other.batches == taylor.batches == 3
    assert all(torch.equal(other.scores()[name], scores) for name, scores in taylor.scores().items())


def test_the_handler_does_nothing_but_at_the_backward_pass():
    network, optimizer = network_and_optimizer()
    engine = trainer(network, optimizer, [])
    before = {event: list(handlers) for event, handlers in engine._event_handlers.items()}
    TaylorImportanceHandler(mbp.TaylorImportance(network)).attach(engine)
    changed = {event for event, handlers in engine._event_handlers.items() if handlers != before.get(event, [])}
    assert changed == {IterationEvents.BACKWARD_COMPLETED}
    assert Events.ITERATION_COMPLETED not in changed
