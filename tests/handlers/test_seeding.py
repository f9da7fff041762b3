from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import CacheDataset, DataLoader
from monai.transforms import Compose, RandAffined, RandGaussianNoised

from monai_basisprune.handlers import EpochSeedHandler

from .engines import cases


def batches_of(
    epochs: int, seed: int | None, disturb: bool, start: int = 0, workers: int = 0, own: bool = False
) -> list[torch.Tensor]:
    """Return the images of all batches from an epoch on, in the order in which an engine gets them."""
    transform = Compose(
        [RandAffined(keys="image", prob=0.9, rotate_range=0.5), RandGaussianNoised(keys="image", prob=0.5)]
    )
    data = CacheDataset(cases(), transform, progress=False, num_workers=0)
    generator = torch.Generator() if own else None
    loader = DataLoader(data, batch_size=4, shuffle=True, num_workers=workers, generator=generator)
    seen: list[torch.Tensor] = []
    engine = Engine(lambda _, batch: seen.append(batch["image"].clone()))
    EpochSeedHandler(seed).attach(engine)

    @engine.on(Events.STARTED)
    def go_on(engine: Engine) -> None:
        engine.state.epoch, engine.state.iteration = start, start * len(loader)

    @engine.on(Events.ITERATION_COMPLETED)
    def draw(engine: Engine) -> None:
        if disturb and engine.state.iteration == 2:
            torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002

    engine.run(loader, max_epochs=epochs)
    return seen


@pytest.mark.parametrize(("workers", "own"), [(0, False), (2, False), (0, True)])
def test_an_epoch_draws_what_it_draws_whatever_ran_before(workers: int, own: bool):
    whole = batches_of(3, 5, disturb=False, workers=workers, own=own)
    torch.rand(7), np.random.rand(7)  # noqa: NPY002
    later = batches_of(3, 5, disturb=False, start=1, workers=workers, own=own)
    assert len(later) == 6
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], later, strict=True))
    assert not torch.equal(torch.cat(whole[:3]), torch.cat(whole[3:6]))


def test_what_an_epoch_draws_besides_does_not_reach_the_next():
    assert torch.equal(batches_of(2, 5, disturb=False)[3], batches_of(2, 5, disturb=True)[3])


def test_seeds_differ_and_none_leaves_the_generators_alone():
    assert not torch.equal(batches_of(1, 5, disturb=False)[0], batches_of(1, 6, disturb=False)[0])
    torch.manual_seed(1)
    batches_of(1, None, disturb=False)
    first = torch.rand(1)
    torch.manual_seed(1)
    batches_of(1, None, disturb=True)
    assert torch.rand(1) != first
    batches_of(1, 5, disturb=False)
    after = torch.rand(1)
    batches_of(1, 5, disturb=True)
    assert torch.rand(1) == after
