"""From one study record to a report: CSV, pictures, one self-contained HTML page, and a table for the terminal."""

from monai_basisprune.report.figures import draw_curve, draw_ranks, draw_roc
from monai_basisprune.report.page import compare_studies, write_report
from monai_basisprune.report.study import load_study, save_study, validate_study
from monai_basisprune.report.tables import format_summary, write_curve_csv

__all__ = [
    "compare_studies",
    "draw_curve",
    "draw_ranks",
    "draw_roc",
    "format_summary",
    "load_study",
    "save_study",
    "validate_study",
    "write_curve_csv",
    "write_report",
]
