"""Evidence that a network diagnoses as well as before: AUC, calibration and comparisons, counted by patient."""

from .auc import AUCInterval, auc_interval
from .calibration import ReliabilityPoints, brier_score, calibration_error, reliability_points
from .classes import ClassAUC, ClassAUCs, ClassComparison, accuracy, auc_by_class, compare_classes
from .comparison import AUCComparison, compare_auc
from .delong import delong_covariance
from .estimates import Estimate
from .multiplicity import HolmTest, holm
from .operating_points import OperatingPoint, ROCCurve, roc_curve_points, sensitivity_at_specificity
from .sample_size import required_positive_patients
from .stability import (
    BandPoint,
    ChosenSpread,
    CurveBand,
    LayerOverlap,
    chance_jaccard,
    chosen_spread,
    curve_band,
    jaccard,
    layer_overlap,
)
from .subgroups import Subgroup, age_band, compare_subgroups

__all__ = [
    "AUCComparison",
    "AUCInterval",
    "BandPoint",
    "ChosenSpread",
    "ClassAUC",
    "ClassAUCs",
    "ClassComparison",
    "CurveBand",
    "Estimate",
    "HolmTest",
    "LayerOverlap",
    "OperatingPoint",
    "ROCCurve",
    "ReliabilityPoints",
    "Subgroup",
    "accuracy",
    "age_band",
    "auc_by_class",
    "auc_interval",
    "brier_score",
    "calibration_error",
    "chance_jaccard",
    "chosen_spread",
    "compare_auc",
    "compare_classes",
    "compare_subgroups",
    "curve_band",
    "delong_covariance",
    "holm",
    "jaccard",
    "layer_overlap",
    "reliability_points",
    "required_positive_patients",
    "roc_curve_points",
    "sensitivity_at_specificity",
]
