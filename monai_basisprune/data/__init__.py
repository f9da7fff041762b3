"""Radiographs in, patient-disjoint sections out: cohort, preflight, splits, DICOM reading, synthetic cohorts."""

from __future__ import annotations

from monai_basisprune.data.cohort import Case, Cohort, read_cohort
from monai_basisprune.data.datalist import load_split, prepare_datalist, write_datalist
from monai_basisprune.data.folds import divide_datalist
from monai_basisprune.data.radiograph import LoadRadiographd, RadiographInfo, read_radiograph
from monai_basisprune.data.splits import fold_cohort, split_cohort
from monai_basisprune.data.synthetic import synthetic_source_images, write_synthetic_cohort

__all__ = [
    "Case",
    "Cohort",
    "LoadRadiographd",
    "RadiographInfo",
    "divide_datalist",
    "fold_cohort",
    "load_split",
    "prepare_datalist",
    "read_cohort",
    "read_radiograph",
    "split_cohort",
    "synthetic_source_images",
    "write_datalist",
    "write_synthetic_cohort",
]
