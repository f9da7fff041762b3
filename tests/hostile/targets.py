"""Everything that reads a file from outside: good files to start from, a reader, and what must hold of its result."""

from __future__ import annotations

import json
from pathlib import Path

import monai_basisprune as mbp
from tests.networks import tiny_classifier

from .image_targets import image_targets, picture_targets
from .network_targets import network_targets
from .table_targets import table_targets
from .target import Target
from .workflow_targets import bundle_targets, study_targets

__all__ = ["Target", "make_targets"]


def make_targets(folder: Path) -> list[Target]:
    """Return all readers; what they need beside the hostile file is written into a folder."""
    original = tiny_classifier(0)
    network = mbp.decompose(original)
    mbp.prune_(network, mbp.SingularValueImportance(network).scores(), mbp.Budget(bases=0.3))
    folder.mkdir(parents=True, exist_ok=True)
    mbp.save_pruned(network, folder / "good.pt")
    plan = json.loads((folder / "good.plan.json").read_text())
    return [
        *image_targets(),
        *picture_targets(),
        *table_targets(folder),
        *network_targets(folder, original, network, plan),
        *study_targets(folder, original),
        *bundle_targets(folder, network),
    ]
