"""What finished runs leave in their folders, made without a run."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from torch import nn

import monai_basisprune as mbp
from monai_basisprune.export import export_network
from monai_basisprune.report import save_study

from ..bundle_runs import TINY, tiny_densenet
from ..inference.deployments import CARRIED
from ..report.studies import make_study

INPUT_SHAPE = (1, 32, 32)
NETWORK_DEF: dict[str, Any] = TINY["network_def"]
"""The component of the network, before anything was pruned."""

DEPLOYMENT = {**CARRIED, "image_size": 32}
"""What the network carries."""

PREDICTIONS = {"labels": [0, 1], "original": [0.1, 0.2], "pruned": [0.1, 0.3], "patients": ["a", "b"]}
"""What a repeat keeps of its test cases."""


def write_small_study(folder: Path) -> nn.Module:
    """Write what a run leaves for others to read, but no page and no table; returns the network as it was pruned.

    The figures of the record are made up, and of a larger network.
    """
    folder.mkdir(parents=True)
    network = mbp.decompose(tiny_densenet())
    mbp.prune_(network, mbp.SingularValueImportance(network).scores(), mbp.Budget(bases=0.5))
    network.eval()
    mbp.save_pruned(network, folder / "model.pt")
    export_network(network, folder / "model.ts", INPUT_SHAPE, metadata=DEPLOYMENT)
    study = copy.deepcopy(make_study())
    study["network"] |= {"name": "DenseNet", "input_shape": list(INPUT_SHAPE)}
    save_study(study, folder / "study.json")
    return network


def write_repeat(folder: Path, study: dict[str, Any]) -> Path:
    """Write what makes a repeat complete; returns its folder."""
    (folder / "work").mkdir(parents=True)
    save_study(study, folder / "study.json")
    (folder / "work" / "test_predictions.json").write_text(json.dumps(PREDICTIONS))
    return folder
