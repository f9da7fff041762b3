"""Pruned bundles: a new bundle with the pruned network, its plan and its figures, beside the source that stays."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from torch import nn

from ..errors import ConfigurationError, PlanMismatchError
from ..export import export_network
from ..persistence import plan_path, save_pruned
from ..plan import PruningPlan
from .bundle_configs import config_files, next_metadata, pruned_config, write_config
from .bundle_files import check_output, copy_bundle, not_carried, read_metadata, shown_names
from .bundle_training import shown_problems

__all__ = [
    "MOST_BYTES",
    "BundleEvidence",
    "PrunedBundle",
    "pruned_configs",
    "write_pruned_bundle",
]

MOST_BYTES = 25 * 2**20
"""The largest file that the model zoo takes into its repository."""


@dataclass(frozen=True)
class BundleEvidence:
    """How well a pruned network does, and how small it is.

    Attributes:
        measured_on: the cases of the figures, in words, such as ``"test cases of the study"``.
        auc: the AUC with its interval, as JSON types; see :class:`~monai_basisprune.evidence.AUCInterval`.
        difference: its difference to the unpruned network on the same cases, as JSON types; see
            :class:`~monai_basisprune.evidence.AUCComparison`.
        parameter_reduction: the share of the parameters that is gone.
        mac_reduction: the share of the operations that is gone.
        notes: what a reader must know about the figures.
    """

    measured_on: str
    auc: Mapping[str, Any]
    difference: Mapping[str, Any]
    parameter_reduction: float
    mac_reduction: float
    notes: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        """What was counted as independent, in words."""
        if self.auc["patients"] is not None:
            return f"by patient ({self.auc['patients']} patients, {self.auc['cases']} images)"
        return (
            f"by image ({self.auc['cases']} images), because no patients are named: if a patient has several images, "
            f"the intervals are too narrow"
        )

    def metrics(self) -> dict[str, Any]:
        """Return the figures for ``eval_metrics`` of a bundle's metadata."""
        return {
            "AUC": self.auc["auc"],
            "AUC_low": self.auc["low"],
            "AUC_high": self.auc["high"],
            "confidence": self.auc["confidence"],
            "AUC_unpruned": self.difference["reference_auc"],
            "AUC_difference": self.difference["difference"],
            "AUC_difference_low": self.difference["low"],
            "AUC_difference_high": self.difference["high"],
            "parameter_reduction": self.parameter_reduction,
            "mac_reduction": self.mac_reduction,
            "cases": self.auc["cases"],
            "positive_cases": self.auc["positive_cases"],
            "patients": self.auc["patients"],
            "measured_on": self.measured_on,
            "counted": self.unit,
            "method": self.auc["method"],
        }

    def sentence(self) -> str:
        """Return the figures in words."""
        return (
            f"{100 * self.parameter_reduction:.1f} % of the parameters and {100 * self.mac_reduction:.1f} % of the "
            f"operations are gone. AUC {self.auc['auc']:.3f}{_interval(self.auc)}, difference to the unpruned network "
            f"{self.difference['difference']:+.3f}{_interval(self.difference)}; measured on the {self.measured_on}, "
            f"{self.unit}."
        )


@dataclass(frozen=True)
class PrunedBundle:
    """What was written.

    Attributes:
        version: the version of the new bundle.
        evidence: the figures.
        files: all its files, relative to its folder.
        large_files: those that the model zoo would not take as they are, above 25 MB.
        left_out: what of the source was not carried over; what no bundle has to have is counted, not named.
        remarks: about the TorchScript file.
    """

    version: str
    evidence: BundleEvidence
    files: tuple[str, ...]
    large_files: tuple[str, ...]
    left_out: tuple[str, ...]
    remarks: tuple[str, ...]

    def summary(self) -> str:
        """Return what there is to know, without any folder."""
        lines = [f"Version {self.version} of the bundle was written. {self.evidence.sentence()}"]
        lines += [f"Note: {note}" for note in (*self.evidence.notes, *self.remarks)]
        if self.left_out:
            lines.append(f"Not carried over: {', '.join(self.left_out)}.")
        if self.large_files:
            lines.append(f"Above 25 MB, which the model zoo keeps elsewhere: {', '.join(self.large_files)}.")
        return "\n".join(lines)


def _interval(figures: Mapping[str, Any]) -> str:
    if figures["low"] is None:
        return f" (no interval: {figures['method']})"
    return f" ({100 * figures['confidence']:g} % interval {figures['low']:.3f} to {figures['high']:.3f})"


def write_pruned_bundle(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    network: nn.Module,
    evidence: BundleEvidence,
    input_shape: Sequence[int],
    record: Mapping[str, Any],
    network_def: Mapping[str, Any] | None = None,
    updates: Mapping[str, Mapping[str, Any]] | None = None,
    carried: Mapping[str, Any] | None = None,
) -> PrunedBundle:
    """Write a bundle with a pruned network: the whole of it, or nothing.

    Every configuration that has a ``network_def`` builds the pruned network; ``models`` holds its weights, its plan,
    and the recomposed network as TorchScript. Metadata and README say what was done and how well the network does.

    Args:
        source: folder of the bundle of the unpruned network; it is left as it is.
        output: folder of the new bundle; it must not exist, or be empty.
        network: the pruned, decomposed network.
        evidence: the figures.
        input_shape: shape of one input without the batch.
        record: how the network was made, as JSON types; becomes ``docs/pruning.json``.
        network_def: the component of the original network, where the configurations' own are not to be used.
        updates: further changes of configurations, by file name and id.
        carried: what the TorchScript file carries beside the metadata, as JSON types.

    Returns:
        what was written.

    Raises:
        ConfigurationError: if the source is no bundle, has no ``network_def``, or the output is not empty.
        PlanMismatchError: if a configuration builds another network.
        BasisPruneError: if the TorchScript file does not reproduce the network.
    """
    origin, target = Path(source), check_output(output, source)
    metadata = read_metadata(origin)
    metadata = next_metadata(metadata, f"Pruned by monai_basisprune. {evidence.sentence()}", evidence.metrics())
    staging = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    left_out = not_carried(origin)
    try:
        copy_bundle(origin, staging, left_out)
        model = staging / "models" / "model.pt"
        save_pruned(network, model)
        plan = PruningPlan.load(plan_path(model))
        script = staging / "models" / "model.ts"
        remarks = export_network(network, script, input_shape, metadata={**metadata, **(carried or {})}).remarks
        configs = pruned_configs(origin, plan, network_def, updates)
        for name, config in configs.items():
            write_config(config, staging / "configs" / name)
        write_config(metadata, staging / "configs" / "metadata.json")
        (staging / "docs").mkdir(exist_ok=True)
        text = json.dumps(record, indent=1, allow_nan=False)
        (staging / "docs" / "pruning.json").write_text(f"{text}\n", encoding="utf-8")
        _extend_readme(staging / "docs" / "README.md", metadata, evidence)
        files = sorted(path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file())
        large = [name for name in files if (staging / name).stat().st_size > MOST_BYTES]
        if target.exists():
            target.rmdir()  # empty; not every system renames onto a folder
        os.rename(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return PrunedBundle(
        metadata["version"], evidence, tuple(files), tuple(large), shown_names(left_out), tuple(remarks)
    )


def pruned_configs(
    bundle: Path,
    plan: PruningPlan,
    network_def: Mapping[str, Any] | None = None,
    updates: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the configurations of a bundle that change, by file name, and check that they build the pruned network.

    Raises:
        ConfigurationError: if none has a ``network_def``, or one cannot be built.
        PlanMismatchError: if one builds another network than the others.
    """
    configs = {}
    for name, config in config_files(bundle).items():
        new = pruned_config(config, plan, network_def)
        if new is not None:
            configs[name] = _updated(new, (updates or {}).get(name, {}))
    if not any("network_def" in config for config in configs.values()):
        raise ConfigurationError("No configuration of the bundle has a network_def, so nothing can be replaced.")
    for name, config in configs.items():
        if "network_def" in config:
            try:
                with shown_problems(f"network_def of configs/{name} cannot be built by itself"):
                    ConfigParser({**config, "bundle_root": str(bundle)}).get_parsed_content("network_def")
            except PlanMismatchError as error:
                raise PlanMismatchError(
                    f"configs/{name} has another network_def than the network that is pruned: let all configurations "
                    f"of the bundle have the same. {error}"
                ) from error
    return configs


def _updated(config: dict[str, Any], updates: Mapping[str, Any]) -> dict[str, Any]:
    parser = ConfigParser(config)
    for key, value in updates.items():
        parser[key] = value
    return {key: value for key, value in parser.get().items() if key != "_meta_"}


def _extend_readme(path: Path, metadata: Mapping[str, Any], evidence: BundleEvidence) -> None:
    coding = {"encoding": "utf-8", "errors": "surrogateescape"}  # a text in another encoding stays what it is
    before = path.read_text(**coding).rstrip() if path.is_file() else f"# {metadata.get('name', 'Bundle')}"
    notes = "".join(f"- {note}\n" for note in evidence.notes)
    path.write_text(
        f"{before}\n\n"
        f"## Pruned network (version {metadata['version']})\n\n"
        f"{evidence.sentence()}\n\n"
        f"{notes}{chr(10) if notes else ''}"
        f"The network was made smaller by basis scaling and pruning (arXiv 2108.02893) with monai_basisprune "
        f"{metadata['required_packages_version']['monai_basisprune']}: each layer was split into bases and their "
        f"scaling, only scaling factors, norms and head were trained, and what matters least was removed: bases, and "
        f"channels where the settings say so. `docs/pruning.json` has these and all figures. The intended use is "
        f"unchanged; figures above this section are those of the unpruned network.\n\n"
        f"`models/model.pt` is an ordinary state dict; the configurations build the network that it fits, and need "
        f"monai_basisprune. `models/model.ts` is the same network as TorchScript and needs nothing of that package. "
        f"Configurations and weights belong together: do not replace one without the other. Training goes on with the "
        f"pruned network; to prune anew, start from the bundle of the unpruned one.\n",
        **coding,
    )
