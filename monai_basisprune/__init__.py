"""Shrink pretrained MONAI classifiers for small medical data sets without fine-tuning their weights.

After "Basis Scaling and Double Pruning for Efficient Transfer Learning" (Wong, Kashyap, Moradi, arXiv 2108.02893).
"""

from __future__ import annotations

from ._version import __version__
from .basis_scaling import BasisScalingConv
from .budgets import Budget
from .channel_importance import ChannelTaylorImportance
from .channel_scaling import (
    ChannelScalingImportance,
    ChannelScalingLoss,
    add_channel_scaling,
    channel_scaling_penalty,
)
from .channel_scaling_layer import ChannelScaling, fold_channel_scaling
from .channels import ChannelResult, ChannelStatus, channel_status, prune_channels_
from .compensation import CompensationResult, compensate_
from .complexity import Complexity, measure_complexity
from .decomposition import LayerStatus, decompose, layer_status
from .distillation import DistillationLoss
from .errors import (
    ActivationError,
    BasisPruneError,
    BudgetError,
    CohortError,
    ConfigurationError,
    ExportError,
    InflationError,
    LayerSelectionError,
    PlanMismatchError,
)
from .export import ExportResult, export_network
from .importance import ActivationImportance, ScalingImportance, SingularValueImportance, TaylorImportance
from .inflation import inflate
from .joint_pruning import JointResult, prune_jointly_
from .latency import Latency, measure_latency
from .layers import DecomposedConv, DecomposedLinear
from .persistence import build_pruned, load_pruned, save_pruned
from .plan import PruningPlan
from .pruning import PruneResult, prune_, select_bases
from .recomposition import recompose
from .structural_search import StructureResult, prune_by_reconstruction_
from .training import (
    freeze_norm_statistics_,
    freeze_weights_,
    parameter_groups,
    recalibrate_norm_statistics_,
    round_schedule,
    train_recombination_,
    trainable_parameters,
)

__all__ = [
    "ActivationError",
    "ActivationImportance",
    "BasisPruneError",
    "BasisScalingConv",
    "Budget",
    "BudgetError",
    "ChannelResult",
    "ChannelScaling",
    "ChannelScalingImportance",
    "ChannelScalingLoss",
    "ChannelStatus",
    "ChannelTaylorImportance",
    "CohortError",
    "CompensationResult",
    "Complexity",
    "ConfigurationError",
    "DecomposedConv",
    "DecomposedLinear",
    "DistillationLoss",
    "ExportError",
    "ExportResult",
    "InflationError",
    "JointResult",
    "Latency",
    "LayerSelectionError",
    "LayerStatus",
    "PlanMismatchError",
    "PruneResult",
    "PruningPlan",
    "ScalingImportance",
    "SingularValueImportance",
    "StructureResult",
    "TaylorImportance",
    "__version__",
    "add_channel_scaling",
    "build_pruned",
    "channel_scaling_penalty",
    "channel_status",
    "compensate_",
    "decompose",
    "export_network",
    "fold_channel_scaling",
    "freeze_norm_statistics_",
    "freeze_weights_",
    "inflate",
    "layer_status",
    "load_pruned",
    "measure_complexity",
    "measure_latency",
    "parameter_groups",
    "prune_",
    "prune_by_reconstruction_",
    "prune_channels_",
    "prune_jointly_",
    "recalibrate_norm_statistics_",
    "recompose",
    "round_schedule",
    "save_pruned",
    "select_bases",
    "train_recombination_",
    "trainable_parameters",
]
