"""A bundle of the network that a pruning study left."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from ..decomposition import layer_status
from ..errors import ConfigurationError, PlanMismatchError
from ..fingerprint import architecture_of
from ..inference import read_deployment
from ..persistence import load_pruned
from ..plan import PruningPlan
from ..report import load_study
from .bundle import BundleEvidence, PrunedBundle, write_pruned_bundle
from .bundle_configs import config_files, find_config
from .bundle_files import check_output

__all__ = ["export_study_bundle", "original_component"]

_MODELS = "@bundle_root + '/models"


def export_study_bundle(
    bundle: str | os.PathLike[str],
    study_dir: str | os.PathLike[str],
    output: str | os.PathLike[str],
    overrides: Mapping[str, Any] | None = None,
) -> PrunedBundle:
    """Write a bundle with the network that a pruning study left, and with the figures of its test cases.

    Args:
        bundle: folder of the bundle that the study was made with; it is left as it is.
        study_dir: folder of the results.
        output: folder of the new bundle; it must not exist, or be empty.
        overrides: keys of the bundle's training configuration, by id, such as the ``network_def`` of the study where
            that was another than the bundle's.

    Returns:
        what was written.

    Raises:
        ConfigurationError: if there is no study, or no bundle.
        PlanMismatchError: if no network of the bundle is the one that was pruned, or the files of the study are of
            different runs.
    """
    results = Path(study_dir)
    missing = [
        name for name in ("study.json", "model.pt", "model.plan.json", "model.ts") if not (results / name).is_file()
    ]
    if missing:
        raise ConfigurationError(
            f"The folder of the study lacks {', '.join(missing)}: name the output_dir of a finished pruning run."
        )
    check_output(output, bundle)
    study, deployment = load_study(results / "study.json"), read_deployment(results)
    fixed = {key: value for key, value in deployment.items() if key != "class_names"}
    plan = PruningPlan.load(results / "model.plan.json")
    network_def = original_component(Path(bundle), plan, deployment, overrides)
    network = load_pruned(network_def, results / "model.pt")
    if {layer.name: (layer.rank, layer.channels) for layer in layer_status(network)} != {
        layer["name"]: (layer["rank"], layer.get("channels")) for layer in study["layers"]
    }:
        raise PlanMismatchError(
            "study.json is not of the network in model.pt, their layers differ: name the output_dir of a pruning run, "
            "with all files as the run left them."
        )
    test, chosen = study["test"], study["chosen"]
    evidence = BundleEvidence(
        measured_on="test cases of the study, which were read once, at its end",
        auc=test["pruned"],
        difference=test["difference"],
        parameter_reduction=chosen["parameter_reduction"],
        mac_reduction=chosen["mac_reduction"],
        notes=tuple(study["warnings"]),
    )
    return write_pruned_bundle(
        bundle,
        output,
        network,
        evidence,
        study["network"]["input_shape"],
        record=study,
        network_def=network_def,
        updates={name: _deployed(config, fixed) for name, config in config_files(Path(bundle)).items()},
        carried=deployment,
    )


def _deployed(config: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes a configuration of ours read the bundle's own network instead of a study's."""
    updates: dict[str, Any] = {key: value for key, value in fixed.items() if key in config}
    weights = f"${_MODELS}/model.pt'"
    if "pretrained" in config:
        updates["pretrained"] = weights
    component = config.get("network_def")
    if isinstance(component, Mapping) and component.get("_target_") == "monai_basisprune.workflow.load_deployed":
        for key in ("deployment", "algorithm"):  # expressions that read them from the output_dir of a study
            if key in config:
                updates[key] = config[key].replace("(@output_dir", f"({_MODELS}'")
        updates["evaluator#network"] = "$@network_def.to(@device)"
        loader = {
            "_target_": "monai.handlers.CheckpointLoader",
            "load_path": weights,
            "load_dict": {"network": "@network_def"},
        }
        updates["handlers"] = [*config["handlers"], loader]
    return updates


def original_component(
    bundle: Path, plan: PruningPlan, deployment: Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the component of the network that was pruned, with the values of its arguments.

    Args:
        bundle: folder of the bundle that the study was made with.
        plan: the plan of the pruned network.
        deployment: what the study's network carries, which goes before the values of the bundle.
        overrides: keys of the bundle's training configuration, by id, which go before both.

    Raises:
        ConfigurationError: if the bundle has no configuration to look in.
        PlanMismatchError: if no network of the bundle is the one that was pruned.
    """
    path = find_config(bundle, "train", "inference")
    if path is None:
        raise ConfigurationError("The bundle has neither configs/train.json nor configs/inference.json.")
    parser = ConfigParser()
    parser.read_config(str(path))
    for key, value in {**{key: deployment[key] for key in deployment if key in parser}, **(overrides or {})}.items():
        parser[key] = value
    own = parser.get("network_def")
    # an expression chooses among components that it names
    names = ["network_def"] if isinstance(own, Mapping) else re.findall(r"@(\w+(?:(?:#|::)\w+)+)", str(own))
    for name in names:
        if isinstance(parser.get(name), Mapping) and "_target_" in parser[name]:
            component = {
                key: value if key.startswith("_") else parser.get_parsed_content(f"{name}#{key}")
                for key, value in parser[name].items()
            }
            try:
                json.dumps(component)
                found = architecture_of(ConfigParser({"network_def": component}).get_parsed_content("network_def"))
            except Exception:  # one that cannot be built with these values is not the one
                continue
            if found == plan.architecture:
                return component
    raise PlanMismatchError(
        f"No network of the bundle's configs/{path.name} is the one that was pruned (looked at {names or 'none'}): "
        f"pass the network_def of the study with --network_def, as JSON."
    )
