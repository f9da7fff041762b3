"""From one study record to a report: CSV, pictures, one self-contained HTML page, and a table for the terminal."""

from monai_basisprune.report.command import render_again
from monai_basisprune.report.comparison import compare_studies
from monai_basisprune.report.figures import draw_curve, draw_ranks, draw_roc
from monai_basisprune.report.page import write_report
from monai_basisprune.report.pictures import CasePictures
from monai_basisprune.report.stability import write_stability
from monai_basisprune.report.study import load_study, save_study, validate_study
from monai_basisprune.report.tables import (
    format_summary,
    write_curve_csv,
    write_reliability_csv,
    write_roc_csv,
    write_subgroups_csv,
)

__all__ = [
    "CasePictures",
    "compare_studies",
    "draw_curve",
    "draw_ranks",
    "draw_roc",
    "format_summary",
    "load_study",
    "render_again",
    "save_study",
    "validate_study",
    "write_curve_csv",
    "write_reliability_csv",
    "write_report",
    "write_roc_csv",
    "write_stability",
    "write_subgroups_csv",
]
