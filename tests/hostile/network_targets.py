"""Readers of networks: plans, weights and checkpoints."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.checkpoints import RunCheckpoints
from monai_basisprune.errors import CohortError
from monai_basisprune.plan import PruningPlan
from monai_basisprune.workflow.pretrained import load_pretrained

from .mutations import archive_aware, blind, json_aware
from .target import Target

__all__ = ["RunsCode", "network_targets", "saved"]


class RunsCode:
    """What a pickle of somebody else may hold."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def saved(value: Any, **options: Any) -> bytes:
    """Return what ``torch.save`` writes."""
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def network_targets(folder: Path, original: nn.Module, network: nn.Module, plan: dict[str, Any]) -> list[Target]:
    """Return the readers of plans, weights and checkpoints."""
    state, plain = network.state_dict(), original.state_dict()
    free = json.dumps({**plan, "weights_sha256": None})

    def read_plan(path: Path) -> None:
        loaded = PruningPlan.load(path)
        again = mbp.build_pruned(original, loaded)
        assert PruningPlan.from_network(again).layers == loaded.layers

    def read_pruned(path: Path) -> None:
        path.with_suffix(".plan.json").write_text(free)
        loaded = mbp.load_pruned(original, path)
        assert all(not tensor.isnan().any() for tensor in loaded.state_dict().values())

    def read_checkpoint(path: Path) -> None:
        loaded = load_pretrained(original, path, progress=False)
        assert {n: t.shape for n, t in loaded.state_dict().items()} == {n: t.shape for n, t in plain.items()}

    name = next(iter(plain))
    size = torch.zeros(1)
    odd = (
        saved({**plain, name: size.expand(2**20, 2**20)}),
        saved({**plain, name: plain[name].to_sparse()}),
        saved({**plain, name: plain[name].to("meta")}),
        saved({**plain, name: RunsCode(exec, "import sys; sys.hostile = 1")}),
        pickle.dumps(RunsCode(exec, "import sys; sys.hostile = 1")),
        _zip_bomb(saved(plain)),
    )
    legacy = saved(plain, _use_new_zipfile_serialization=False)
    good = (
        saved(plain),
        saved({"state_dict": plain, "epoch": 3}),
        saved({"model": {f"module.{n}": t for n, t in plain.items()}}),
    )
    checkpoints = RunCheckpoints(folder / "run", {"seed": 0})
    checkpoint = checkpoints.save(3, {"network": plain, "round": 1, "points": [{"auc": 0.5}]}).read_bytes()

    def read_run(path: Path) -> None:
        path.replace(path.with_name("checkpoint_000003.pt"))
        found = RunCheckpoints(path.parent, {"seed": 0}).load()
        if found is None or found.warnings:
            raise CohortError("passed over", [] if found is None else found.warnings)
        assert isinstance(found.state, dict)

    return [
        Target(
            "pruning plan",
            (json.dumps(plan).encode(), free.encode()),
            read_plan,
            (json_aware, json_aware, blind),
            12,
            ".json",
        ),
        Target("pruned weights", (saved(state), *odd), read_pruned, (archive_aware, archive_aware, blind), 10, ".pt"),
        Target(
            "pretrained checkpoint",
            (*good, legacy, *odd),
            read_checkpoint,
            (archive_aware, archive_aware, blind),
            9,
            ".pt",
        ),
        Target("checkpoint of a run", (checkpoint, *odd), read_run, (archive_aware, archive_aware, blind), 3, ".pt"),
    ]


def _zip_bomb(data: bytes) -> bytes:
    """Return an archive of the same parts with one more that unpacks to 256 MiB."""
    stream = io.BytesIO(data)
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("archive/data/bomb", "w") as part:
        for _ in range(256):
            part.write(bytes(1 << 20))
    return stream.getvalue()
