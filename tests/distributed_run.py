"""A pruning run of a small network in as many processes as torchrun starts; writes what each of them has in the end.

python -m torch.distributed.run --standalone --nproc_per_node=2 -m tests.distributed_run FOLDER
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler
from monai.transforms import Compose, RandAffined, RandScaleIntensityd
from torch.nn.parallel import DistributedDataParallel

import monai_basisprune as mbp
from monai_basisprune.decomposition import decomposed_layers
from monai_basisprune.distributed import end_processes, process_count, process_rank, start_processes
from monai_basisprune.handlers import (
    DistributedHandler,
    EpochSeedHandler,
    PruningCurveHandler,
    PruningHandler,
    TaylorImportanceHandler,
)
from monai_basisprune.loading import EpochBatches, EveryNth, SeededCacheDataset, Unaugmented
from tests.handlers.engines import cases
from tests.networks import tiny_classifier

ROOT = Path(__file__).parents[1]


def run(workers: int = 0) -> dict[str, Any]:
    """Train, prune and evaluate; returns what came of it."""
    transform = Compose(
        [RandAffined(keys="image", prob=0.8, rotate_range=0.2), RandScaleIntensityd("image", 0.2, prob=0.5)]
    )
    training = SeededCacheDataset(cases(24), transform, seed=3, progress=False)
    validation = cases(22, seed=1)[:21]  # two processes cannot share them equally
    network = mbp.decompose(tiny_classifier())
    optimizer = torch.optim.Adam(mbp.parameter_groups(network, 0.005), lr=0.02)
    importance = mbp.TaylorImportance(network)
    batches = EpochBatches(training, 8, seed=3)
    curve = PruningCurveHandler(network, (1, 8, 8), margin=0.05)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(validation, batch_size=4, sampler=EveryNth(validation)),
        network=network,
        val_handlers=[curve],
    )
    loss = mbp.DistillationLoss(DataLoader(Unaugmented(training), batch_size=8))
    budgets = [mbp.Budget(bases=share) for share in (0.3, 0.6)]
    pruning = PruningHandler(network, importance, budgets, optimizer, 2, 2, distillation=loss)
    seen: list[str] = []
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=pruning.max_epochs,
        train_data_loader=DataLoader(training, batch_sampler=batches, num_workers=workers),
        network=network,
        optimizer=optimizer,
        loss_function=loss,
        train_handlers=[
            EpochSeedHandler(3),
            DistributedHandler(network),
            TaylorImportanceHandler(importance),
            LrScheduleHandler(
                mbp.round_schedule(optimizer, 2 * len(batches), 2 * len(batches)), print_lr=False, epoch_level=False
            ),
            ValidationHandler(1, evaluator),
            pruning,
        ],
    )
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda engine: seen.append(type(engine.network).__name__))
    # not together with a cut: no parameter is replaced then, and these are to be averaged nevertheless
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=1), lambda: mbp.train_recombination_(network))
    trainer.run()
    assert set(seen) == {DistributedDataParallel.__name__ if process_count() > 1 else type(network).__name__}
    return {
        "curve": curve.curve.to_list(),
        "kept": {name: list(layer.kept_bases) for name, layer in decomposed_layers(network)},
        "batches": importance.batches,
        "values": {name: value.double().flatten().tolist() for name, value in network.state_dict().items()},
    }


def torchrun(script: list[str], processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Run a script or a module in several processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *script]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


if __name__ == "__main__":
    torch.set_num_threads(1)
    start_processes()
    result = run()
    Path(sys.argv[1], f"{process_rank()}.json").write_text(json.dumps(result))
    end_processes()
