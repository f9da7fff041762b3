"""Radiographs in, patient-disjoint sections out: cohort, preflight, splits, DICOM reading, synthetic cohorts."""

from __future__ import annotations

from monai_basisprune.data.cohort import Case, Cohort, read_cohort
from monai_basisprune.data.datalist import load_split, prepare_datalist, write_datalist
from monai_basisprune.data.folds import divide_datalist
from monai_basisprune.data.image_transforms import picture_transforms, radiograph_transforms
from monai_basisprune.data.images import LoadPictured
from monai_basisprune.data.radiograph import LoadRadiographd, RadiographInfo, read_radiograph
from monai_basisprune.data.splits import fold_cohort, split_cohort
from monai_basisprune.data.synthetic import synthetic_source_images, write_synthetic_cohort
from monai_basisprune.data.synthetic_volumes import synthetic_source_volumes, write_synthetic_volumes
from monai_basisprune.data.volume import LoadVolumed, Volume, read_volume
from monai_basisprune.data.volume_cohort import prepare_volume_datalist, read_volume_cohort
from monai_basisprune.data.volume_transforms import VolumePreparation, volume_transforms

__all__ = [
    "Case",
    "Cohort",
    "LoadPictured",
    "LoadRadiographd",
    "LoadVolumed",
    "RadiographInfo",
    "Volume",
    "VolumePreparation",
    "divide_datalist",
    "fold_cohort",
    "load_split",
    "picture_transforms",
    "prepare_datalist",
    "prepare_volume_datalist",
    "radiograph_transforms",
    "read_cohort",
    "read_radiograph",
    "read_volume",
    "read_volume_cohort",
    "split_cohort",
    "synthetic_source_images",
    "synthetic_source_volumes",
    "volume_transforms",
    "write_datalist",
    "write_synthetic_cohort",
    "write_synthetic_volumes",
]
