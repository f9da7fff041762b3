from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes

from monai_basisprune.errors import CohortError, ConfigurationError
from monai_basisprune.files import sha256_of
from monai_basisprune.inference import (
    PredictedCases,
    check_report_folder,
    identify_algorithm,
    input_shape,
    list_radiographs,
    list_volumes,
    predict_folder,
    write_structured_reports,
)
from monai_basisprune.inference.structured_report import RESEARCH_TEXT

from ..data.radiograph_files import radiograph, save, uid
from ..data.volume_files import nifti, series
from .deployments import CARRIED, Brightness, deploy, deployment_of

sr = pytest.importorskip("highdicom.sr")

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::UserWarning:highdicom")


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Three images of two studies, and a damaged one."""
    folder = tmp_path / "images"
    for number, study in ((1, 1), (2, 1), (3, 2)):
        image = radiograph(number=number, patient="Doe^Jane", StudyInstanceUID=uid(80 + study), StudyDate="20200101")
        save(image, folder / f"{number}.dcm")
    (folder / "4.dcm").write_bytes(b"x")
    return folder


def items(dataset: pydicom.Dataset, relation: str = "") -> list[pydicom.Dataset]:
    """All content items below one, in order."""
    found = []
    for item in dataset.get("ContentSequence", []):
        found += [item, *items(item)]
    return found


def test_a_report_of_each_study_can_be_read_back(cohort: Path, tmp_path: Path) -> None:
    deploy(tmp_path / "out", **{**CARRIED, "class_names": ["no finding", "pneumonia"]})
    before = {path: path.read_bytes() for path in cohort.iterdir()}
    table, folder = tmp_path / "p.csv", tmp_path / "reports"
    predict_folder(tmp_path / "out", cohort, table, "skip", folder, num_workers=0, progress=False)
    assert {path: path.read_bytes() for path in cohort.iterdir()} == before
    probabilities = {row[0]: row[1:3] for row in (line.split(",") for line in table.read_text().splitlines()[1:])}
    reports = [sr.ComprehensiveSR.from_dataset(pydicom.dcmread(path)) for path in sorted(folder.iterdir())]
    assert [path.stem for path in sorted(folder.iterdir())] == [report.SOPInstanceUID for report in reports]
    found = {}
    for report in reports:
        content = sr.MeasurementReport.from_sequence([report], is_root=True)  # highdicom's own reading checks TID 1500
        groups = content.get_image_measurement_groups()
        sources = []
        for group in groups:
            (source,) = group.source_images
            sources.append(source.referenced_sop_instance_uid)
            first, second = group.get_measurements()
            found[sources[-1]] = [first.value, second.value]
            assert [first.name.meaning, second.name.meaning] == [
                "Network probability of output: no finding",
                "Network probability of output: pneumonia",
            ]
            assert first.unit == codes.UCUM.NoUnits
            assert group.finding_type is None
        evidence = report.CurrentRequestedProcedureEvidenceSequence[0]
        assert evidence.StudyInstanceUID == report.StudyInstanceUID
        listed = [
            i.ReferencedSOPInstanceUID for s in evidence.ReferencedSeriesSequence for i in s.ReferencedSOPSequence
        ]
        assert sorted(listed) == sorted(sources)
        assert {"PRELIMINARY", "UNVERIFIED"} == {report.PreliminaryFlag, report.VerificationFlag}
        assert report.PatientID == "Doe^Jane"
        everything = items(report)
        assert [item.TextValue for item in everything if item.ConceptNameCodeSequence[0].CodeValue == "121106"] == [
            RESEARCH_TEXT
        ]
        named = {
            item.ConceptNameCodeSequence[0].CodeMeaning: item.TextValue for item in everything if "TextValue" in item
        }
        assert named["Algorithm Name"] == "monai_basisprune pruned classifier"
        assert named["Algorithm Version"] == identify_algorithm(tmp_path / "out").version
        assert named["Algorithm Parameters"] == f"weights SHA-256: {sha256_of(tmp_path / 'out' / 'model.ts')}"
        coded = [item.ConceptCodeSequence[0].CodeMeaning for item in everything if "ConceptCodeSequence" in item]
        assert not any("diagnos" in meaning.lower() or "pneumonia" in meaning for meaning in coded)
    assert sorted(report.StudyInstanceUID for report in reports) == [uid(81), uid(82)]
    assert sorted(found) == [uid(1), uid(2), uid(3)]  # none of the damaged case
    for case, values in found.items():
        np.testing.assert_allclose(values, [float(value) for value in probabilities[case]], atol=1e-6)


def test_several_labels_and_long_names(cohort: Path, tmp_path: Path) -> None:
    (cohort / "4.dcm").unlink()
    deploy(tmp_path / "out", **CARRIED)
    cases = list_radiographs(cohort, progress=False)
    predictions = PredictedCases([[0.9, 0.8, 0.0]] * 3, [case["case_id"] for case in cases], ["", "", ""])
    names = ["a" * 100, "b", "c"]
    arguments = (cases, predictions, names, identify_algorithm(tmp_path / "out"))
    with pytest.raises(CohortError, match="gave no probabilities"):
        write_structured_reports(*arguments, tmp_path / "reports")
    assert write_structured_reports(*arguments, None, multi_label=True) == []
    written = write_structured_reports(*arguments, tmp_path / "reports", multi_label=True)
    assert len(written) == 2
    content = sr.MeasurementReport.from_sequence([pydicom.dcmread(written[0])], is_root=True)
    measurements = content.get_image_measurement_groups()[0].get_measurements()
    assert [measurement.value for measurement in measurements] == [0.9, 0.8, 0.0]


def test_images_without_a_study_are_all_named(cohort: Path, tmp_path: Path) -> None:
    deploy(tmp_path / "out", **CARRIED)
    save(radiograph(number=2, StudyInstanceUID=None), cohort / "2.dcm")
    (cohort / "4.dcm").unlink()
    cases = list_radiographs(cohort, progress=False)
    (cohort / "3.dcm").unlink()
    predictions = PredictedCases([[0.5, 0.5]] * 3, [case["case_id"] for case in cases], ["", "", ""])
    with pytest.raises(CohortError, match="none was written") as caught:
        write_structured_reports(
            cases, predictions, ["a", "b"], identify_algorithm(tmp_path / "out"), tmp_path / "reports"
        )
    assert caught.value.problems == (
        f"case {uid(2)}: has no SOPClassUID, or not one StudyInstanceUID",
        f"case {uid(3)}: no DICOM image (FileNotFoundError)",
    )
    assert not (tmp_path / "reports").exists()


def test_reports_are_kept_apart_from_images_and_earlier_reports(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    check_report_folder(None)
    check_report_folder(tmp_path / "new", tmp_path / "images")
    with pytest.raises(ConfigurationError, match="sr_dir must lie outside dataset_dir"):
        check_report_folder(tmp_path / "images" / "sr", tmp_path / "images")
    with pytest.raises(ConfigurationError, match="sr_dir must be a new or empty folder"):
        check_report_folder(tmp_path)


def test_a_series_is_one_case_and_other_files_of_its_folder_are_none_of_it(tmp_path: Path) -> None:
    deploy(tmp_path / "out", **CARRIED)
    folder, _ = series(tmp_path / "images" / "ct", StudyInstanceUID=uid(81), PatientID="Doe^Jane")
    slices = {str(pydicom.dcmread(path).SOPInstanceUID) for path in folder.iterdir()}
    (folder / "readme.txt").write_text("exported by hand")
    (folder / ".DS_Store").write_bytes(b"x")
    cases = list_volumes(tmp_path / "images", progress=False)
    assert [case["problem"] for case in cases] == [""]
    predictions = PredictedCases([[0.25, 0.75]], [cases[0]["case_id"]], [""])
    algorithm = identify_algorithm(tmp_path / "out")
    (path,) = write_structured_reports(cases, predictions, ["a", "b"], algorithm, tmp_path / "reports")
    report = pydicom.dcmread(path)
    assert (report.StudyInstanceUID, report.PatientID) == (uid(81), "Doe^Jane")
    content = sr.MeasurementReport.from_sequence([report], is_root=True)
    (group,) = content.get_image_measurement_groups()
    assert [measurement.value for measurement in group.get_measurements()] == [0.25, 0.75]
    assert {source.referenced_sop_instance_uid for source in group.source_images} == slices
    (folder / "extra").write_bytes(b"x")  # what may be a slice but is none is not left out in silence
    with pytest.raises(CohortError, match="none was written") as caught:
        write_structured_reports(cases, predictions, ["a", "b"], algorithm, tmp_path / "more")
    assert caught.value.problems == (f"case {cases[0]['case_id']}: no DICOM image (InvalidDicomError)",)


def test_series_of_one_study_are_in_one_report(tmp_path: Path) -> None:
    """From a folder to reports: two series of one study, and one of another."""
    deployment = deployment_of("volumes", class_names=["a", "b", "c"])
    deploy(tmp_path / "out", Brightness(input_shape(deployment), 3), **deployment)
    for number, study in ((1, 81), (2, 81), (3, 82)):
        series(tmp_path / "images" / f"ct{number}", seed=number, StudyInstanceUID=uid(study))
    table, folder = tmp_path / "p.csv", tmp_path / "reports"
    predict_folder(tmp_path / "out", tmp_path / "images", table, sr_dir=folder, num_workers=0, progress=False)
    rows = {row[0]: [float(x) for x in row[1:4]] for row in (x.split(",") for x in table.read_text().splitlines()[1:])}
    by_study = {}
    for path in folder.iterdir():
        report = pydicom.dcmread(path)
        by_study[report.StudyInstanceUID] = [
            (
                {source.referenced_sop_instance_uid for source in group.source_images},
                [measurement.value for measurement in group.get_measurements()],
            )
            for group in sr.MeasurementReport.from_sequence([report], is_root=True).get_image_measurement_groups()
        ]
    assert {study: len(groups) for study, groups in by_study.items()} == {uid(81): 2, uid(82): 1}
    for groups in by_study.values():
        for sources, probabilities in groups:
            slices = [pydicom.dcmread(path) for path in (tmp_path / "images").rglob("IM*")]
            (name,) = {one.SeriesInstanceUID for one in slices if one.SOPInstanceUID in sources}
            assert len(sources) == 6
            np.testing.assert_allclose(probabilities, rows[name], atol=1e-6)


def test_nifti_files_and_pictures_have_no_study_which_is_said_before_anything_is_computed(tmp_path: Path) -> None:
    deployment = deployment_of("volumes")
    deploy(tmp_path / "out", Brightness(input_shape(deployment), 2), **deployment)
    series(tmp_path / "images" / "ct")
    path = nifti(tmp_path / "images" / "Doe.NII.gz")
    with pytest.raises(CohortError, match=r"1 of 2 volumes are NIfTI files.* or leave sr_dir out") as caught:
        predict_folder(tmp_path / "out", path.parent, tmp_path / "p.csv", sr_dir=tmp_path / "sr", progress=False)
    assert caught.value.problems == (f"case {sha256_of(path)}",)
    deploy(tmp_path / "other", Brightness((1, 8, 8), 2), **deployment_of("pictures"))
    with pytest.raises(ConfigurationError, match="there are none of pictures: leave sr_dir out"):
        predict_folder(tmp_path / "other", path.parent, tmp_path / "p.csv", sr_dir=tmp_path / "sr", progress=False)
    assert not (tmp_path / "p.csv").exists()
    path.write_bytes(b"x")  # one that is skipped needs no report
    predict_folder(
        tmp_path / "out", path.parent, tmp_path / "p.csv", "skip", tmp_path / "sr", num_workers=0, progress=False
    )
    assert len(list((tmp_path / "sr").iterdir())) == 1
