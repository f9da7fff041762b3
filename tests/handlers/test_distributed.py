"""A network that several real processes train as one, and what is left of it afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.distributed import process_count, process_rank
from monai_basisprune.handlers import DistributedHandler

from ..distributed_run import torchrun
from ..networks import tiny_classifier
from .engines import cases, loader, network_and_optimizer, trainer

RUN = """
import json, torch
from monai_basisprune.distributed import end_processes, gathered, start_processes
from tests.handlers.test_distributed import ended_run, train
torch.set_num_threads(1)
start_processes()
told = gathered({**train(), "ended": ended_run(), "failed": ended_run(fails=True)})
print(json.dumps(told), flush=True) if told[0]["rank"] == 0 else None
end_processes()
"""


def share_of(data: list[dict[str, Any]]) -> Any:
    """Return a loader of batches which, in all processes together, hold the same four cases as in one."""
    return loader(data[process_rank() :: process_count()], batch_size=4 // process_count())


def synchronized(network: nn.Module) -> bool:
    return "forward" in vars(network.norm)


def train() -> dict[str, Any]:
    """Train for four epochs, with a cut after the first one and other trained parameters after the third one."""
    network = mbp.decompose(tiny_classifier())
    optimizer = torch.optim.SGD(mbp.freeze_weights_(network), lr=0.5)
    engine = trainer(network, optimizer, [DistributedHandler(network)], 4, share_of(cases(8)))
    seen: list[nn.Module] = []
    during, after = [], []

    def cut() -> None:
        mbp.prune_(network, mbp.SingularValueImportance(network).scores(), mbp.Budget(bases=0.4), optimizer)

    engine.add_event_handler(Events.EPOCH_STARTED, lambda: seen.append(engine.network))
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: during.append(synchronized(network)))
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: after.append(synchronized(network)))
    engine.add_event_handler(Events.EPOCH_COMPLETED(once=1), cut)
    engine.add_event_handler(Events.EPOCH_COMPLETED(once=3), lambda: network.head.requires_grad_(False))
    engine.run()
    return {
        "rank": process_rank(),
        "kinds": sorted({type(one).__name__ for one in seen}),
        "first seen": [[id(one) for one in seen].index(id(one)) for one in seen],
        "synchronized": [all(during), any(during), any(after)],
        "values": {name: value.double().flatten().tolist() for name, value in network.state_dict().items()},
    }


def ended_run(fails: bool = False) -> list[bool]:
    """Return whether norms wait for other processes in an epoch that ends before its first batch, and afterwards."""
    network, optimizer = network_and_optimizer()
    engine = trainer(network, optimizer, [DistributedHandler(network)], 1, share_of(cases(8)))
    found = []

    def end() -> None:
        found.append(synchronized(network))
        if fails:
            raise KeyError("of a handler")
        engine.terminate()

    engine.add_event_handler(Events.EPOCH_STARTED, end)
    if fails:
        with pytest.raises(KeyError, match="of a handler"):
            engine.run()
    else:
        engine.run()
    return [*found, synchronized(network)]


@pytest.mark.slow
def test_processes_train_as_one_does_and_leave_the_network_as_it_was(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(RUN)
    done = torchrun([str(script)])
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout.splitlines()[-1])
    alone = train()
    for name, values in alone["values"].items():
        assert first["values"][name] == pytest.approx(values, rel=1e-4, abs=1e-6), name
    for told in (first, second):
        assert told["values"] == first["values"]
        assert told["kinds"] == ["DistributedDataParallel"]
        assert told["first seen"] == [0, 1, 1, 3]  # made anew after the cut, and where others are trained
        assert told["synchronized"] == [True, True, False]
        assert told["ended"] == told["failed"] == [True, False]


def test_in_a_process_that_is_alone_it_does_nothing() -> None:
    told = train()
    assert told["kinds"] == ["TinyClassifier"]
    assert told["first seen"] == [0, 0, 0, 0]
    assert told["synchronized"] == [False, False, False]
