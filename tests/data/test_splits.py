from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_basisprune.data import Case, Cohort, fold_cohort, split_cohort
from monai_basisprune.data.splits import divide_training
from monai_basisprune.errors import CohortError, ConfigurationError

SECTIONS = ("training", "validation", "test")


def cohort(labels_of_patients, sections=None, classes=("negative", "positive")):
    """One list of labels for each patient."""
    cases = []
    for patient, labels in enumerate(labels_of_patients):
        for label in labels:
            number = len(cases)
            section = None if sections is None else sections[patient]
            cases.append(Case(f"{number}.dcm", label, f"c{number}", f"p{patient}", f"1.2.{number}", section))
    return Cohort(tuple(cases), tuple(classes))


def random_cohort(patients, prevalence, seed, most=4):
    rng = np.random.default_rng(seed)
    return cohort([rng.random(rng.integers(1, most + 1)) < (rng.random() < prevalence) for _ in range(patients)])


def check(given_cohort, sections):
    assert list(sections) == list(SECTIONS)
    patients = [{case.patient_id for case in sections[name]} for name in SECTIONS]
    assert sum(map(len, patients)) == len(set.union(*patients)) == given_cohort.patient_count
    assert sorted(case.case_id for part in sections.values() for case in part) == sorted(
        case.case_id for case in given_cohort.cases
    )
    for part in sections.values():
        assert {case.label for case in part} == set(range(len(given_cohort.class_names)))


@pytest.mark.parametrize("fractions", [(0.6, 0.2, 0.2), (0.7, 0.15, 0.15), (0.5, 0.25, 0.25), (0.8, 0.1, 0.1)])
@pytest.mark.parametrize("patients", [60, 90])
def test_fractions_are_kept(fractions, patients):
    for seed in range(2):
        source = random_cohort(patients, 0.4, seed)
        sections = split_cohort(source, fractions, seed)
        check(source, sections)
        positives = sum(case.label for case in source.cases)
        for name, share in zip(SECTIONS, fractions, strict=True):
            assert abs(len(sections[name]) / len(source.cases) - share) < 0.04
            assert abs(sum(case.label for case in sections[name]) / positives - share) < 0.06


def test_rare_class_in_a_large_cohort():
    source = cohort([[1]] * 3 + [[0]] * 97)
    sections = split_cohort(source)
    check(source, sections)
    assert [len(sections[name]) for name in SECTIONS] == pytest.approx([60, 20, 20], abs=4)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=4), min_size=3, max_size=40), st.integers(0, 3))
def test_disjoint_with_every_class_or_refused(labels, seed):
    source = cohort(labels)
    try:
        sections = split_cohort(source, seed=seed)
    except CohortError as error:
        assert "needed: at least 3 of each class" in str(error)  # noqa: PT017
    else:
        check(source, sections)


def test_deterministic_by_seed_and_free_of_the_salt():
    source = random_cohort(80, 0.4, 0)
    renamed = Cohort(
        tuple(
            Case(c.image, c.label, c.case_id, f"{hash(c.patient_id) % 10**9}{c.patient_id}", c.sop_instance_uid)
            for c in source.cases
        ),
        source.class_names,
    )
    ids = [[[case.case_id for case in part] for part in split_cohort(s, seed=3).values()] for s in (source, renamed)]
    assert ids[0] == ids[1]
    assert ids[0] != [[case.case_id for case in part] for part in split_cohort(source, seed=4).values()]


def test_patient_with_both_labels_and_three_classes():
    source = cohort([[0, 1]] * 9)
    check(source, split_cohort(source))
    source = cohort([[k] for k in range(3) for _ in range(20)], classes=("a", "b", "c"))
    check(source, split_cohort(source))


def test_too_few_patients_says_how_many():
    with pytest.raises(CohortError, match=r"2 of 'positive'; needed: at least 3 of each class, one for each section"):
        split_cohort(cohort([[1], [1, 1, 1, 1], [0], [0], [0]]))


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.5, 0.5, 0.5), (1.0, 0.0, 0.0), (0.6, 0.5, -0.1), (0.6, 0.2, 0.1)])
def test_impossible_fractions(fractions):
    with pytest.raises(ConfigurationError, match="three numbers above 0 that add up to 1"):
        split_cohort(cohort([[0], [1]] * 5), fractions)


def test_split_of_the_table_is_kept():
    labels = [[0], [1]] * 3
    sections = ["test", "test", "training", "training", "validation", "validation"]
    source = cohort(labels, sections)
    parts = split_cohort(source)
    check(source, parts)
    assert [case.case_id for case in parts["test"]] == ["c0", "c1"]


def test_split_of_the_table_is_checked():
    with pytest.raises(CohortError, match="section test: has no case of class 'positive' among 1"):
        split_cohort(cohort([[0], [1]] * 2 + [[0]], ["training"] * 2 + ["validation"] * 2 + ["test"]))
    source = cohort([[0], [1]] * 3, ["test", "test", "training", "training", "validation", "validation"])
    mixed = Cohort((*source.cases, Case("x", 0, "cx", "p0", "1.9", "training")), source.class_names)
    with pytest.raises(CohortError, match=r"patient p0 \(hashed\): has images in training, test"):
        split_cohort(mixed)


# --- folds


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=4), min_size=3, max_size=40),
    st.integers(3, 6),
    st.integers(0, 3),
)
def test_each_patient_is_once_in_the_test_section_or_the_folds_are_refused(labels, folds, seed):
    source = cohort(labels)
    try:
        sections = [fold_cohort(source, folds, fold, seed) for fold in range(folds)]
    except CohortError as error:
        assert "folds" in str(error)  # noqa: PT017
        return
    for fold, parts in enumerate(sections):
        check(source, parts)
        assert parts["validation"] == sections[(fold + 1) % folds]["test"]
    tested = [case.case_id for parts in sections for case in parts["test"]]
    assert sorted(tested) == sorted(case.case_id for case in source.cases)


def test_folds_are_stratified_and_depend_on_the_seed_alone():
    source = random_cohort(120, 0.4, 0)
    prevalence = sum(case.label for case in source.cases) / len(source.cases)
    for fold in range(5):
        test = fold_cohort(source, 5, fold)["test"]
        assert abs(sum(case.label for case in test) / len(test) - prevalence) < 0.08
        assert abs(len(test) / len(source.cases) - 0.2) < 0.05
    assert fold_cohort(source, 5, 1, 3) == fold_cohort(source, 5, 1, 3)
    assert fold_cohort(source, 5, 1, 3) != fold_cohort(source, 5, 1, 4)


def test_fewer_patients_of_a_class_than_folds_are_refused_with_the_numbers():
    source = cohort([[0]] * 20 + [[1, 1]] * 4)
    with pytest.raises(CohortError, match=r"20 of 'negative', 4 of 'positive'; needed: at least 5 of each class"):
        fold_cohort(source, 5, 0)
    check(source, fold_cohort(source, 4, 0))


def test_a_split_column_and_folds_are_refused():
    source = cohort([[0], [1]] * 3, ["test", "test", "training", "training", "validation", "validation"])
    with pytest.raises(CohortError, match="has a split column, and 3 folds were asked for: remove the column"):
        fold_cohort(source, 3, 0)


@pytest.mark.parametrize(
    ("folds", "fold", "words"),
    [(2, 0, "folds must be a whole number from 3"), (True, 0, "folds must be"), (2.5, 0, "folds must be"),
     (5, 5, "fold must be a whole number from 0 to 4, got 5"), (5, -1, "fold must be"),
     (5, None, "folds and fold belong together")],
)  # fmt: skip
def test_impossible_folds(folds, fold, words):
    with pytest.raises(ConfigurationError, match=words):
        fold_cohort(cohort([[0], [1]] * 5), folds, fold)


@pytest.mark.parametrize("seed", range(3))
def test_another_division_keeps_the_test_patients(seed):
    source = random_cohort(80, 0.4, 1)
    sections = split_cohort(source)
    divided = divide_training(source, sections, (0.6, 0.2, 0.2), seed)
    check(source, divided)
    assert divided["test"] == sections["test"]
    assert divided["training"] != sections["training"]
    rest = len(divided["training"]) + len(divided["validation"])
    assert abs(len(divided["validation"]) / rest - 0.25) < 0.05


def test_too_few_patients_to_divide_are_refused():
    source = cohort([[0], [0], [1], [1], [0], [1]])
    test = [case for case in source.cases if case.patient_id in ("p3", "p5")]
    with pytest.raises(
        CohortError, match=r"Left are 3 of 'negative', 1 of 'positive'; needed: at least 2 of each class"
    ):
        divide_training(source, {"test": test}, (0.6, 0.2, 0.2), 0)
