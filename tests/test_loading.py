from __future__ import annotations

import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Compose, RandGaussianNoised, ScaleIntensityRanged

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.loading import EpochBatches, EveryNth, SeededCacheDataset, Unaugmented

from .handlers.engines import cases


def test_batches_hold_each_case_once_and_depend_on_seed_and_epoch_alone():
    batches = EpochBatches(range(23), 5, seed=1)
    first = list(batches)
    assert [len(batch) for batch in first] == [5] * 4 == [5] * len(batches)
    assert len({index for batch in first for index in batch}) == 20
    batches.set_epoch(1)
    assert list(batches) != first
    batches.set_epoch(0)
    assert list(batches) == first
    assert list(EpochBatches(range(23), 5, seed=2)) != first


def test_fewer_cases_than_a_batch_are_one_batch():
    (only,) = EpochBatches(range(3), 16, seed=0)
    assert sorted(only) == [0, 1, 2]


@pytest.mark.parametrize(("cases", "size"), [(0, 4), (5, 0), (5, 2.5)])
def test_no_case_and_no_size_are_refused(cases: int, size: int):
    with pytest.raises(ConfigurationError, match=r"batch_size must be a whole number.*and \d cases"):
        EpochBatches(range(cases), size)


def test_a_case_looks_the_same_in_an_epoch_whatever_was_read_before():
    def data(seed: int | None = 4) -> SeededCacheDataset:
        return SeededCacheDataset(
            cases(), Compose([RandGaussianNoised(keys="image", prob=1.0)]), seed=seed, progress=False
        )

    one, other = data(), data()
    other[3], other[1]
    assert torch.equal(one[5]["image"], other[5]["image"])
    assert torch.equal(one[-1]["image"], other[11]["image"])
    other.set_epoch(1)
    assert not torch.equal(one[5]["image"], other[5]["image"])
    assert not torch.equal(one[5]["image"], data(5)[5]["image"])
    free = data(None)
    assert not torch.equal(free[5]["image"], free[5]["image"])


@pytest.mark.parametrize("cached", [0.0, 1.0])
@pytest.mark.parametrize("nested", [False, True])
def test_unaugmented_cases_are_those_without_random_transforms(cached: float, nested: bool):
    noise = RandGaussianNoised(keys="image", prob=1.0)
    steps = [
        ScaleIntensityRanged("image", 0.0, 1.0, 0.0, 10.0),
        Compose([noise]) if nested else noise,
        ScaleIntensityRanged("image", 0.0, 1.0, 1.0, 2.0),
    ]
    data = SeededCacheDataset(cases(), Compose(steps), seed=4, progress=False, cache_rate=cached)
    before = data[3]["image"]
    plain = Unaugmented(data)
    for number, case in enumerate(cases()):
        torch.testing.assert_close(plain[number]["image"], 1 + 10 * case["image"])
        assert plain[number]["position"] == data[number]["position"] == number
    assert len(plain) == len(data)
    assert torch.equal(data[3]["image"], before)  # and the cache goes on as it was
    assert not torch.equal(data[3]["image"], plain[3]["image"])
    assert torch.cat([batch["position"] for batch in DataLoader(plain, batch_size=5)]).tolist() == list(range(12))


def test_augmentation_is_left_out_for_a_while_and_goes_on_as_it_was():
    data = SeededCacheDataset(cases(), Compose([RandGaussianNoised("image", prob=1.0)]), seed=4, progress=False)
    before = data[3]["image"]
    data.set_augmented(False)
    assert torch.equal(data[3]["image"], cases()[3]["image"])
    assert data[-1]["position"] == 11
    (batch,) = DataLoader(data, batch_size=12, num_workers=1)
    assert torch.equal(batch["image"], torch.stack([case["image"] for case in cases()]))
    assert torch.equal(Unaugmented(data)[3]["image"], cases()[3]["image"])
    data.set_augmented(True)
    assert torch.equal(data[3]["image"], before)


def test_alone_a_process_evaluates_all_cases_in_order():
    assert list(EveryNth(range(5))) == [0, 1, 2, 3, 4]
    assert len(EveryNth(range(5))) == 5
