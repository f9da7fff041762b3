from __future__ import annotations

import csv
from pathlib import Path

import pytest

from monai_basisprune.errors import CohortError, ConfigurationError
from monai_basisprune.handlers import Predictions
from monai_basisprune.inference import (
    SKIPPED_EXIT_CODE,
    PredictedCases,
    check_predictions_file,
    exit_code,
    exit_if_skipped,
    write_predictions,
)

NAN, INF = float("nan"), float("inf")


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_has_a_row_for_each_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions = Predictions([[0.25, 0.75], [1.0, 0.0]], case_ids=["1.2.3", "1.2.4"])
    path = write_predictions(predictions, ["healthy", "ill, or not"], tmp_path / "new" / "predictions.csv")
    first, second = rows_of(path)
    assert first == {
        "SOPInstanceUID": "1.2.3",
        "probability_healthy": "0.250000",
        "probability_ill, or not": "0.750000",
        "problem": "",
    }
    assert [second["SOPInstanceUID"], second["probability_healthy"]] == ["1.2.4", "1.000000"]
    printed = capsys.readouterr()
    assert printed.out == "2 predictions written to predictions_file.\n"
    assert printed.err == ""


def test_several_classes_and_several_labels(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    classes = PredictedCases([[0.2, 0.3, 0.5]], ["c1"], [""])
    (row,) = rows_of(write_predictions(classes, names, tmp_path / "classes.csv", id_column="case_id"))
    assert list(row.values()) == ["c1", "0.200000", "0.300000", "0.500000", ""]
    assert next(iter(row)) == "case_id"
    labels = PredictedCases([[0.9, 0.8, 0.1]], ["c1"], [""])
    with pytest.raises(CohortError, match="gave no probabilities"):
        write_predictions(labels, names, tmp_path / "labels.csv")
    (row,) = rows_of(write_predictions(labels, names, tmp_path / "labels.csv", multi_label=True))
    assert row["probability_b"] == "0.800000"
    for wrong in ([0.9, 1.2, 0.1], [0.9, -0.1, 0.1], [NAN, 0.5, 0.5]):
        with pytest.raises(CohortError, match="gave no probabilities"):
            write_predictions(PredictedCases([wrong], ["c1"], [""]), names, tmp_path / "x.csv", multi_label=True)


def test_skipped_cases_are_in_the_table_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions = PredictedCases(
        [[NAN, NAN], [0.1, 0.9], [0.5, 0.5]], ["1.1", "1.2", "1.3"], ["is empty", "", "is cut"]
    )
    path = tmp_path / "p.csv"
    with pytest.raises(
        CohortError, match="2 of 3 cases cannot be used, which showed only when they were deco"
    ) as caught:
        write_predictions(predictions, ["a", "b"], path)
    assert caught.value.problems == ("1.1: is empty", "1.3: is cut")
    assert not path.exists()
    write_predictions(predictions, ["a", "b"], path, on_problem="skip")
    assert [list(row.values()) for row in rows_of(path)] == [
        ["1.1", "", "", "is empty"],
        ["1.2", "0.100000", "0.900000", ""],
        ["1.3", "", "", "is cut"],
    ]
    shown = capsys.readouterr()
    assert shown.out == "1 predictions written to predictions_file.\n"
    assert shown.err == "2 of 3 cases were skipped, the table says why:\n  - 1.1: is empty\n  - 1.3: is cut\n"
    assert exit_code(predictions) == SKIPPED_EXIT_CODE == 3
    with pytest.raises(SystemExit) as ended:
        exit_if_skipped(predictions)
    assert ended.value.code == 3
    exit_if_skipped(PredictedCases([[0.1, 0.9]], ["1.2"], [""]))
    predictions.problems = ["x", "x", "x"]
    with pytest.raises(CohortError, match="no case is left"):
        write_predictions(predictions, ["a", "b"], tmp_path / "none.csv", on_problem="skip")


@pytest.mark.parametrize("row", [[NAN, NAN], [NAN, 1.0], [INF, -INF], [1.2, -0.2], [0.6, 0.6], [3.1, -2.0], [0.0, 0.0]])
def test_what_is_no_probability_is_refused(row: list[float], tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text("earlier")
    predictions = Predictions([[0.5, 0.5], row, [0.1, 0.9]], case_ids=["1.1", "1.2", "1.3"])
    with pytest.raises(CohortError, match="gave no probabilities for some cases; check the weights") as caught:
        write_predictions(predictions, ["a", "b"], path)
    assert caught.value.problems == ("case 1.2",)
    assert path.read_text() == "earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["predictions.csv"]


def test_predictions_without_a_case_are_refused(tmp_path: Path) -> None:
    for outputs, ids in (([], []), ([[0.5, 0.5]], []), ([[0.5, 0.5]], ["1", "2"])):
        with pytest.raises(CohortError, match=f"There are {len(outputs)} predictions for {len(ids)} cases"):
            write_predictions(Predictions(outputs, case_ids=ids), ["a", "b"], tmp_path / "p.csv")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"]])
def test_columns_must_fit_the_classes(names: list[str], tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="class"):
        write_predictions(Predictions([[0.25, 0.75]], case_ids=["1.1"]), names, tmp_path / "p.csv")


@pytest.mark.parametrize(
    "content",
    ["image,label\na.dcm,1\n", "SOPInstanceUID,label\n1.2,1\n", "SOPInstanceUID,problem\n", "", "\x00", "\ud800"],
)
def test_only_an_earlier_table_of_predictions_is_replaced(content: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    before = path.read_bytes()
    predictions = PredictedCases([[0.25, 0.75]], ["1.1"], [""])
    for check in (lambda: check_predictions_file(path), lambda: write_predictions(predictions, ["a", "b"], path)):
        with pytest.raises(ConfigurationError, match="names a file that is no table of predictions; it is left as it"):
            check()
    assert path.read_bytes() == before
    with pytest.raises(ConfigurationError, match="no table of predictions"):
        check_predictions_file(tmp_path)  # a folder
    own = write_predictions(predictions, ["a", "b"], tmp_path / "own.csv")
    predictions.outputs = [[0.5, 0.5]]
    write_predictions(predictions, ["a", "b"], own)
    assert rows_of(own)[0]["probability_a"] == "0.500000"
