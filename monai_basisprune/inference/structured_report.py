"""Probabilities as DICOM Structured Reports (TID 1500 Measurement Report), so that they can be kept beside the images.

A report belongs to the study of its images, so it names the patient as they do. Its probabilities are numbers that an
algorithm gave; no finding and no diagnosis is coded, and a text says that it is research.
"""

from __future__ import annotations

import io
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from ..data.elements import element_text
from ..data.volume import slice_files
from ..data.volume_nifti import NIFTI_SUFFIXES
from ..errors import CohortError, ConfigurationError
from ..files import write_atomically
from .deployed import Algorithm
from .table import check_outputs

if TYPE_CHECKING:
    from .table import _Predictions

__all__ = ["RESEARCH_TEXT", "check_report_folder", "check_report_sources", "write_structured_reports"]

RESEARCH_TEXT = (
    "For research only, not for diagnosis. The probabilities are outputs of a neural network that was made smaller by "
    "pruning. They were not verified by a physician, the software is not a medical device, and a class is the name of "
    "an output of the network, not a diagnosis."
)
_SCHEME = "99MBPRUNE"
_SERIES_DESCRIPTION = "Research: network probabilities, no diagnosis"
_MOST_MEANING = 64
_MAY_BE_EMPTY = (  # what a report repeats of its images, and what must be there, if only without a value
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)


def check_report_folder(
    sr_dir: str | os.PathLike[str] | None, dataset_dir: str | os.PathLike[str] | None = None
) -> None:
    """Check that reports may be written to a folder: it is new or empty, lies outside the images, and can be used.

    Args:
        sr_dir: the folder; None, which is always right, where no report is asked for.
        dataset_dir: the folder of the images.

    Raises:
        ConfigurationError: if it cannot be used, or highdicom is not installed.
    """
    if sr_dir is None:
        return
    folder = Path(sr_dir)
    try:
        import highdicom  # noqa: F401  # an extra
    except ImportError:
        raise ConfigurationError(
            'Structured Reports need highdicom, not installed here: pip install "monai_basisprune[sr]".'
        ) from None
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError("sr_dir must be a new or empty folder, so that no earlier report is overwritten.")
    if dataset_dir is not None and folder.resolve().is_relative_to(Path(dataset_dir).resolve()):
        raise ConfigurationError("sr_dir must lie outside dataset_dir: reports would be taken for images later.")


def check_report_sources(cases: Sequence[Mapping[str, Any]], sr_dir: str | os.PathLike[str] | None) -> None:
    """Check, before anything is computed, that no case is a NIfTI file, which names no study that a report could join.

    Args:
        cases: cases with ``image``, ``case_id`` and ``problem``.
        sr_dir: the folder of the reports; None, which is always right, where none is asked for.

    Raises:
        CohortError: if there are some, all of them listed.
    """
    if sr_dir is None:
        return
    others = [
        f"case {case['case_id']}"
        for case in cases
        if not case["problem"] and str(case["image"]).lower().endswith(NIFTI_SUFFIXES)
    ]
    if others:
        raise CohortError(
            f"Structured Reports belong to DICOM studies, and {len(others)} of {len(cases)} volumes are NIfTI files: "
            "put these into a folder of their own, or leave sr_dir out.",
            others,
        )


def write_structured_reports(
    cases: Sequence[Mapping[str, Any]],
    predictions: _Predictions,
    class_names: Sequence[str],
    algorithm: Algorithm,
    sr_dir: str | os.PathLike[str] | None,
    dataset_dir: str | os.PathLike[str] | None = None,
    multi_label: bool = False,
) -> list[Path]:
    """Write one Comprehensive SR for each study, with the probabilities of each of its cases.

    All reports are made before the first is written. A report is preliminary and unverified, and its file is named by
    its own SOPInstanceUID.

    Args:
        cases: cases with ``image``, the path of a DICOM file or of a folder that holds one series.
        predictions: what was predicted for them, in the same order; cases that were skipped are in no report.
        class_names: names of the classes.
        algorithm: what made the predictions.
        sr_dir: a new or empty folder; None to write nothing.
        dataset_dir: the folder of the images, in which no report may lie.
        multi_label: see :func:`check_outputs`.

    Returns:
        the files.

    Raises:
        CohortError: if an image is no DICOM file with the identifiers that a report needs; all are listed.
        ConfigurationError: if the folder cannot be used, or highdicom is not installed.
    """
    if sr_dir is None:
        return []
    check_report_folder(sr_dir, dataset_dir)
    used = check_outputs(predictions, class_names, multi_label)
    studies: dict[str, list[tuple[list[Dataset], list[float]]]] = defaultdict(list)
    problems = []
    for position in used:
        try:
            images = _headers(Path(cases[position]["image"]))
        except Exception as error:  # whatever pydicom stumbles over; its own words may quote the file
            problems.append(f"case {predictions.case_ids[position]}: no DICOM image ({type(error).__name__})")
            continue
        uids = {element_text(image, "StudyInstanceUID") for image in images}
        if len(uids) != 1 or "" in uids or not all(element_text(image, "SOPClassUID") for image in images):
            problems.append(f"case {predictions.case_ids[position]}: has no SOPClassUID, or not one StudyInstanceUID")
            continue
        studies[uids.pop()].append((images, predictions.outputs[position]))
    if problems:
        raise CohortError("Structured Reports need DICOM images that name their study; none was written.", problems)
    reports = [_report(study, class_names, algorithm) for study in studies.values()]
    written = []
    for report in reports:
        buffer = io.BytesIO()
        report.save_as(buffer, enforce_file_format=True)
        written.append(write_atomically(Path(sr_dir) / f"{report.SOPInstanceUID}.dcm", buffer.getvalue()))
    print(f"{len(written)} Structured Reports written to sr_dir; they name patients as the images do.")
    return written


def _headers(source: Path) -> list[Dataset]:
    paths = slice_files(source) if source.is_dir() else [source]
    images: list[Dataset] = [pydicom.dcmread(io.BytesIO(path.read_bytes()), stop_before_pixels=True) for path in paths]
    for image in images:
        for keyword in _MAY_BE_EMPTY:
            if keyword not in image:
                setattr(image, keyword, None)
    return images


def _report(
    study: Sequence[tuple[list[Dataset], list[float]]], class_names: Sequence[str], algorithm: Algorithm
) -> Any:
    from highdicom.sr import (
        AlgorithmIdentification,
        ComprehensiveSR,
        DeviceObserverIdentifyingAttributes,
        Measurement,
        MeasurementReport,
        MeasurementsAndQualitativeEvaluations,
        ObservationContext,
        ObserverContext,
        SourceImageForMeasurementGroup,
        TextContentItem,
        TrackingIdentifier,
    )
    from highdicom.sr.coding import CodedConcept
    from highdicom.sr.enum import RelationshipTypeValues

    groups = []
    for number, (images, probabilities) in enumerate(study, start=1):
        identification = AlgorithmIdentification(
            name=algorithm.name, version=algorithm.version, parameters=[f"weights SHA-256: {algorithm.weights_sha256}"]
        )
        measurements = [
            Measurement(
                name=CodedConcept(f"P{place}", _SCHEME, f"Network probability of output: {name}"[:_MOST_MEANING]),
                value=round(min(value, 1.0), 6),
                unit=codes.UCUM.NoUnits,
            )
            for place, (name, value) in enumerate(zip(class_names, probabilities, strict=True))
        ]
        groups.append(
            MeasurementsAndQualitativeEvaluations(
                tracking_identifier=TrackingIdentifier(uid=generate_uid(), identifier=f"Case {number}"),
                algorithm_id=identification,
                measurements=measurements,
                source_images=[
                    SourceImageForMeasurementGroup(image.SOPClassUID, image.SOPInstanceUID) for image in images
                ],
            )
        )
    device = DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=[algorithm.weights_sha256]),
        name="monai_basisprune",
        model_name="Research software, not a medical device",
    )
    content = MeasurementReport(
        observation_context=ObservationContext(
            observer_device_context=ObserverContext(codes.DCM.Device, observer_identifying_attributes=device)
        ),
        procedure_reported=CodedConcept("363679005", "SCT", "Imaging"),
        imaging_measurements=groups,
    )
    content[0].ContentSequence.append(
        TextContentItem(codes.DCM.Comment, RESEARCH_TEXT, relationship_type=RelationshipTypeValues.CONTAINS)
    )
    report = ComprehensiveSR(
        evidence=[image for images, _ in study for image in images],
        content=content,
        series_instance_uid=generate_uid(),
        series_number=1,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="monai_basisprune",
        is_complete=True,
        is_final=False,
        is_verified=False,
    )
    report.SeriesDescription = _SERIES_DESCRIPTION
    return report
