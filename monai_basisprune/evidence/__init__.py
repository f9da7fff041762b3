"""Evidence that a network diagnoses as well as before: AUC, calibration and comparisons, counted by patient."""

from .auc import AUCInterval, auc_interval
from .calibration import ReliabilityPoints, brier_score, calibration_error, reliability_points
from .classes import ClassAUC, ClassAUCs, auc_by_class
from .comparison import AUCComparison, compare_auc
from .delong import delong_covariance
from .estimates import Estimate
from .multiplicity import HolmTest, holm
from .operating_points import OperatingPoint, ROCCurve, roc_curve_points, sensitivity_at_specificity
from .sample_size import required_positive_patients

__all__ = [
    "AUCComparison",
    "AUCInterval",
    "ClassAUC",
    "ClassAUCs",
    "Estimate",
    "HolmTest",
    "OperatingPoint",
    "ROCCurve",
    "ReliabilityPoints",
    "auc_by_class",
    "auc_interval",
    "brier_score",
    "calibration_error",
    "compare_auc",
    "delong_covariance",
    "holm",
    "reliability_points",
    "required_positive_patients",
    "roc_curve_points",
    "sensitivity_at_specificity",
]
