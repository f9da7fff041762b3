"""Handlers for ignite engines: adapters between a training loop and the library."""

from __future__ import annotations

from .checkpoint import RunCheckpointHandler
from .curve import PruningCurveHandler
from .distributed import DistributedHandler
from .failures import FailureHandler
from .norms import NormStatisticsHandler
from .predictions import Predictions, PredictionsHandler
from .progress import ProgressHandler
from .pruning import PruningHandler
from .saver import PrunedNetworkSaver
from .search import MetricSearchRounds
from .seeding import EpochSeedHandler
from .taylor import TaylorImportanceHandler

__all__ = [
    "DistributedHandler",
    "EpochSeedHandler",
    "FailureHandler",
    "MetricSearchRounds",
    "NormStatisticsHandler",
    "Predictions",
    "PredictionsHandler",
    "ProgressHandler",
    "PrunedNetworkSaver",
    "PruningCurveHandler",
    "PruningHandler",
    "RunCheckpointHandler",
    "TaylorImportanceHandler",
]
