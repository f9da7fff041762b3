"""Handlers for ignite engines: adapters between a training loop and the library."""

from __future__ import annotations

from .curve import PruningCurveHandler
from .norms import NormStatisticsHandler
from .predictions import Predictions, PredictionsHandler
from .progress import ProgressHandler
from .pruning import PruningHandler
from .saver import PrunedNetworkSaver
from .search import MetricSearchRounds
from .taylor import TaylorImportanceHandler

__all__ = [
    "MetricSearchRounds",
    "NormStatisticsHandler",
    "Predictions",
    "PredictionsHandler",
    "ProgressHandler",
    "PrunedNetworkSaver",
    "PruningCurveHandler",
    "PruningHandler",
    "TaylorImportanceHandler",
]
