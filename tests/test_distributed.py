"""Real processes, started by torchrun, that talk by gloo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from monai_basisprune.distributed import (
    agreed,
    average_over_processes,
    from_first_process,
    gathered,
    process_count,
    process_rank,
    start_processes,
    synchronized_norms,
    wrapped,
)
from monai_basisprune.errors import ConfigurationError
from monai_basisprune.training import recalibrate_norm_statistics_
from tests.distributed_run import run, torchrun

PRIMITIVES = """
import json, sys
import torch
from torch import nn
from monai_basisprune.distributed import *
torch.set_num_threads(1)
start_processes()
rank = process_rank()
out = {}
out["mean"] = average_over_processes(torch.tensor([1.0, 10.0]) * (rank + 1)).tolist()
out["gathered"] = gathered({"rank": rank, "text": "é" * (rank + 1), "number": 0.1 + rank})
out["agreed"] = agreed({"b": torch.tensor([rank + 0.1]), "a": torch.tensor([rank, rank + 1.0])})["b"].item()
out["told"] = from_first_process(lambda: {"decided by": rank})
torch.manual_seed(0)
whole = torch.randn(8, 3, 4, 4, dtype=torch.float64)
norm, conv = nn.BatchNorm2d(3).double(), nn.Conv2d(3, 3, 3).double()
part = whole[rank * 4 : rank * 4 + 4]
with synchronized_norms(norm):
    loss = (norm(conv(part)) ** 3).mean()
    loss.backward()
out["bias"] = average_over_processes(conv.weight.grad).flatten().tolist()
out["running"] = norm.running_mean.tolist() + norm.running_var.tolist()
out["own forward"] = "forward" in vars(norm)
if rank == 0:
    print(json.dumps(out))
end_processes()
"""

FAILING = """
import sys, time
from monai_basisprune.distributed import *
start_processes()
def fail():
    raise ValueError("the first one cannot")
from_first_process(fail)
"""


SHARED = """
import json, sys
from pathlib import Path
import torch
from torch import nn
from monai_basisprune.data.identifiers import known
from monai_basisprune.distributed import *
from monai_basisprune.errors import PlanMismatchError
from monai_basisprune.handlers import FailureHandler, NormStatisticsHandler, RunCheckpointHandler
from monai_basisprune.loading import EpochBatches
from monai_basisprune.workflow.cohort import PreparedCohort, prepared_once
from tests.handlers.engines import network_and_optimizer, trainer
torch.set_num_threads(1)
start_processes()
rank, folder = process_rank(), Path(sys.argv[1])
out = {"seed": EpochBatches(range(8), 4, seed=None).seed}
torch.manual_seed(0)
whole = torch.randn(8, 3, 4, 4, dtype=torch.float64)
norm = nn.BatchNorm2d(3).double()
part = [{"image": whole[start + rank * 2 : start + rank * 2 + 2]} for start in (0, 4)]
NormStatisticsHandler(norm, "recalibrate", part)(None)
out["recalibrated"] = norm.running_mean.tolist() + norm.running_var.tolist()
norm.running_mean.fill_(rank)
wrapped(norm)
out["wrapped"] = norm.running_mean.tolist()

@prepared_once(PreparedCohort)
def prepare():
    known.remember(["Mustermann"])
    return PreparedCohort(Path("images"), Path("datalist.json"), {"prepared by": process_rank()}, False)

out["cohort"], out["shown"] = prepare().datalist, known.redacted("an error of Mustermann")
network, optimizer = network_and_optimizer()
handlers = [FailureHandler(folder, network, 1), RunCheckpointHandler(folder / "own" / str(rank), {"n": network}, {})]
trainer(network, optimizer, handlers, epochs=1).run()
try:
    trainer(network, optimizer, handlers[1:], epochs=2).run()
except PlanMismatchError as error:
    out["refused"] = str(error)
told = gathered(out)
if rank == 0:
    print(json.dumps(told))
end_processes()
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("two")
    done = torchrun(["-m", "tests.distributed_run", str(folder)])
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_prune_and_evaluate_as_one_does(two: list[dict[str, Any]]):
    alone = run()
    first, second = two
    assert first == second
    assert first["kept"] == alone["kept"]
    assert first["batches"] == alone["batches"] > 0
    assert len(first["curve"]) == len(alone["curve"]) == 6
    for point, single in zip(first["curve"], alone["curve"], strict=True):
        assert point["auc"]["auc"] == pytest.approx(single["auc"]["auc"], abs=1e-6)
        assert point["parameters"] == single["parameters"]
    for name, values in alone["values"].items():
        assert values == pytest.approx(first["values"][name], rel=1e-3, abs=1e-5), name


def test_the_number_of_workers_changes_nothing():
    assert run(workers=2) == run()


def test_what_processes_tell_each_other(tmp_path: Path):
    script = tmp_path / "primitives.py"
    script.write_text(PRIMITIVES)
    done = torchrun([str(script)])
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    assert out["mean"] == [1.5, 15.0]
    assert out["gathered"] == [
        {"rank": 0, "text": "é", "number": 0.1},
        {"rank": 1, "text": "éé", "number": 1.1},
    ]
    assert out["agreed"] == pytest.approx(0.1)
    assert out["told"] == {"decided by": 0}
    assert not out["own forward"]
    torch.manual_seed(0)
    whole = torch.randn(8, 3, 4, 4, dtype=torch.float64)
    norm, conv = nn.BatchNorm2d(3).double(), nn.Conv2d(3, 3, 3).double()
    (norm(conv(whole)) ** 3).mean().backward()
    assert conv.weight.grad is not None
    assert out["bias"] == pytest.approx(conv.weight.grad.flatten().tolist(), rel=1e-9, abs=1e-15)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert out["running"] == pytest.approx(norm.running_mean.tolist() + norm.running_var.tolist(), rel=1e-12)


def test_what_processes_share(tmp_path: Path):
    script = tmp_path / "shared.py"
    script.write_text(SHARED)
    done = torchrun([str(script), str(tmp_path)])
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout.splitlines()[-1])
    assert first == second  # the seed was drawn once
    torch.manual_seed(0)
    whole, norm = torch.randn(8, 3, 4, 4, dtype=torch.float64), nn.BatchNorm2d(3).double()
    recalibrate_norm_statistics_(norm, whole.split(4))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    wanted = norm.running_mean.tolist() + norm.running_var.tolist()
    assert first["recalibrated"] == pytest.approx(wanted, rel=1e-12)
    assert first["wrapped"] == [0.0, 0.0, 0.0]
    assert first["cohort"] == {"prepared by": 0}
    assert first["shown"] == "an error of [removed]"
    # only the first one saves, so the second one, with a folder of its own, found nothing
    assert "different epochs, [1, None]: pass an --output_dir that all of them see" in first["refused"]


def test_an_error_of_the_first_process_ends_all(tmp_path: Path):
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    done = torchrun([str(script)])
    assert done.returncode != 0
    assert "the first one cannot" in done.stderr


def test_one_process_alone_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch):
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    assert (process_count(), process_rank()) == (1, 0)
    assert wrapped(network) is network
    with synchronized_norms(network):
        assert "forward" not in vars(network[1])
    tensor = torch.rand(2)
    assert average_over_processes(tensor) is tensor
    assert agreed({"a": tensor})["a"] is tensor
    assert gathered([1]) == [[1]]
    assert from_first_process(lambda: 3) == 3
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigurationError, match="torchrun did not start"):
        start_processes()
