"""Batches and random transforms that depend on the seed, the epoch and the case, and on nothing else."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping, Sized
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset
from monai.data.utils import set_rnd
from monai.transforms import Compose, RandomizableTrait, Transform
from torch.utils.data import Dataset, Sampler

from .distributed import from_first_process, process_count, process_rank
from .errors import ConfigurationError

__all__ = ["POSITION", "EpochBatches", "EveryNth", "SeededCacheDataset", "Unaugmented", "seed_epoch"]

POSITION = "position"
"""The key under which a case of :class:`SeededCacheDataset` says where in the data set it stands."""


class SeededCacheDataset(CacheDataset):
    """MONAI's cache of cases, with random transforms that draw anew for each epoch and case.

    What a case looks like in an epoch does not depend on the order in which the cases are read, so it is the same with
    any number of workers and processes, and when a run goes on after a stop. A case that is a dictionary also holds its
    position in the data set, under ``"position"``.

    Random transforms can be left out for a while: see :meth:`set_augmented`.

    Args:
        data: the cases.
        transform: transforms; those after the first random one run each time.
        seed: the seed of the run; None draws from the transforms' own generators.
        kwargs: of ``monai.data.CacheDataset``.
    """

    _plain: Unaugmented | None = None

    def __init__(self, data: Any, transform: Any = None, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(data, transform, **kwargs)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Tell the number of the epoch that starts, before a loader's workers do."""
        self.epoch = epoch

    def set_augmented(self, augmented: bool) -> None:
        """Tell whether random transforms run from now on, before a loader's workers start."""
        self._plain = None if augmented else Unaugmented(self)

    def _transform(self, index: int) -> Any:
        if self._plain is not None:
            return self._plain[index]
        if self.seed is not None:
            words = np.random.SeedSequence([self.seed, self.epoch, index % len(self)]).generate_state(1)
            set_rnd(self.transform, int(words[0]))
        case = super()._transform(index)
        return {**case, POSITION: index % len(self)} if isinstance(case, Mapping) else case


class Unaugmented(Dataset[Any]):
    """The cases of a cache without what its random transforms do to them; what it holds is not read anew.

    Args:
        cases: the cache; it goes on as it was.
    """

    def __init__(self, cases: CacheDataset) -> None:
        self.cases = copy.copy(cases)
        vars(self.cases).pop("_plain", None)
        self.cases.transform = _left_out(cases.transform)

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self.cases)

    def __getitem__(self, index: int) -> Any:
        """Return one case."""
        return self.cases[index]


class _LeftOut(RandomizableTrait, Transform):
    """Stands where a random transform stood, as the cache ends before the first of them."""

    def __call__(self, data: Any) -> Any:
        return data


def _left_out(transform: Any) -> Any:
    if type(transform) is Compose:
        steps = copy.copy(transform)
        steps.transforms = [_left_out(step) for step in transform.transforms]
        return steps
    return _LeftOut() if isinstance(transform, RandomizableTrait) else transform


class EpochBatches(Sampler[list[int]]):
    """Shuffles the cases of each epoch and divides every batch among the processes, for ``batch_sampler`` of a loader.

    The batches are those of one process alone: of each, every process takes an equal share.

    Args:
        cases: the data set, or anything that has its length.
        batch_size: cases in a batch, of all processes together.
        seed: the seed of the run; None draws a new one.

    Raises:
        ConfigurationError: if the processes cannot share a batch equally, or there is no case.
    """

    def __init__(self, cases: Sized, batch_size: int, seed: int | None = 0) -> None:
        if not isinstance(batch_size, int) or batch_size < 1 or len(cases) < 1:
            raise ConfigurationError(
                f"batch_size must be a whole number of at least 1, and there must be a case: got {batch_size!r} and "
                f"{len(cases)} cases."
            )
        # a rest of one case has no batch statistics; with less than a batch, all cases are one
        self.batch_size = min(batch_size, len(cases))
        if self.batch_size % process_count():
            raise ConfigurationError(
                f"{process_count()} processes cannot share a batch of {self.batch_size} equally: pass a --batch_size "
                f"that is a multiple of {process_count()}."
            )
        self.cases = cases
        self.seed = from_first_process(_new_seed) if seed is None else seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Tell the number of the epoch that starts."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches in an epoch; cases that do not fill one wait for the next epoch's order."""
        return len(self.cases) // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the cases of this process in each batch."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.cases)).tolist()
        share = self.batch_size // process_count()
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            first = start + process_rank() * share
            yield order[first : first + share]


class EveryNth(Sampler[int]):
    """Divides cases among the processes one by one, each case to exactly one of them, without any to fill up.

    Process r of n gets the cases r, r + n, r + 2n, …; alone, it gets all in order.
    :class:`~monai_basisprune.handlers.PredictionsHandler` puts them together again.

    Args:
        cases: the data set, or anything that has its length.
    """

    def __init__(self, cases: Sized) -> None:
        self.cases = cases

    def __len__(self) -> int:
        """Return the number of cases of this process."""
        return len(range(process_rank(), len(self.cases), process_count()))

    def __iter__(self) -> Iterator[int]:
        """Yield the cases of this process."""
        yield from range(process_rank(), len(self.cases), process_count())


def seed_epoch(loader: Any, seed: int | None, epoch: int) -> None:
    """Let every random number that is drawn from now on follow from the seed and the epoch alone.

    The generators of torch, numpy and Python are set, those that the loader and its sampler were given, and those of
    the random transforms of the data set (with workers, MONAI's loader derives the latter from torch's). A data set and
    a sampler with ``set_epoch`` are told the epoch instead.

    Args:
        loader: the loader of the epoch, or None.
        seed: the seed of the run; None leaves the generators alone.
        epoch: number of the epoch.
    """
    dataset, batches = getattr(loader, "dataset", None), getattr(loader, "batch_sampler", None)
    parts = (loader, batches, getattr(batches, "sampler", None), getattr(loader, "sampler", None), dataset)
    for part in parts:
        if part is not None and hasattr(part, "set_epoch"):
            part.set_epoch(epoch)
    if seed is None:
        return
    number = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002 - transforms of others draw from it
    torch.manual_seed(number)
    for part in parts:
        if isinstance(generator := getattr(part, "generator", None), torch.Generator):
            generator.manual_seed(number)
    if dataset is not None and not hasattr(dataset, "set_epoch"):
        set_rnd(dataset, number)


def _new_seed() -> int:
    return int(np.random.SeedSequence().generate_state(1)[0])
