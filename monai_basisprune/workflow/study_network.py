"""The network of a finished study: written as a file of another format."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError
from ..export import ExportResult, export_network
from ..inference import read_deployment
from ..persistence import load_pruned
from ..plan import PruningPlan
from ..report import load_study
from .study_bundle import original_component

__all__ = ["export_study_network"]


def export_study_network(
    study_dir: str | os.PathLike[str],
    path: str | os.PathLike[str],
    bundle: str | os.PathLike[str],
    overrides: Mapping[str, Any] | None = None,
) -> ExportResult:
    """Write the pruned network of a study as TorchScript, ONNX or a PyTorch exported program, and check the file.

    Args:
        study_dir: folder of the results; it is left as it is.
        path: the file; its suffix (.ts, .onnx, .pt2) names the format. It must not exist.
        bundle: folder of the bundle that the study was made with.
        overrides: keys of the bundle's training configuration, by id, such as the ``network_def`` of the study where
            that was another than the bundle's.

    Raises:
        ConfigurationError: if there is no study, or the file exists.
        PlanMismatchError: if no network of the bundle is the one that was pruned.
        ExportError: if the network cannot be exported.
    """
    results = Path(study_dir)
    missing = [n for n in ("study.json", "model.pt", "model.plan.json", "model.ts") if not (results / n).is_file()]
    if missing:
        raise ConfigurationError(
            f"The folder of the study lacks {', '.join(missing)}: name the output_dir of a finished pruning run."
        )
    if os.path.lexists(path):
        raise ConfigurationError("The file to write exists: name another one.")
    study, deployment = load_study(results / "study.json"), read_deployment(results)
    plan = PruningPlan.load(results / "model.plan.json")
    component = original_component(Path(bundle), plan, deployment, overrides)
    network = load_pruned(component, results / "model.pt")
    return export_network(network, path, study["network"]["input_shape"], metadata=deployment)
