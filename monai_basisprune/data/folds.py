"""Divides a cohort that was read once anew: by folds, or into another training and validation section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monai_basisprune.data.cohort import Case, Cohort
from monai_basisprune.data.datalist import split_hash
from monai_basisprune.data.splits import SECTIONS, check_fractions, divide_training, fold_cohort
from monai_basisprune.data.strata import check_findings, strata_of

__all__ = ["divide_datalist"]


def divide_datalist(
    datalist: Mapping[str, Any],
    seed: int,
    folds: int | None = None,
    fold: int | None = None,
    split_seed: int = 0,
) -> dict[str, Any]:
    """Return a datalist of the same cases in other sections, by patient and stratified by class.

    With folds, the test section is one fold, validation the next one and training the others. Without, the test
    section stays, and the rest is divided anew into training and validation; a split of the labels table stays as a
    whole.

    Args:
        datalist: what :func:`prepare_datalist` returned.
        seed: seed of the division into training and validation; folds do not depend on it.
        folds: number of folds, or None.
        fold: which fold is the test, from 0; only with ``folds``.
        split_seed: seed of the folds.

    Raises:
        CohortError: when the cohort has too few patients of a class, or the labels table splits it and folds were
            asked for.
        ConfigurationError: when there is no such fold.
    """
    items = {item["case_id"]: item for name in SECTIONS for item in datalist[name]}
    of_table = datalist["fractions"] is None
    labels, patients = ([item[key] for item in items.values()] for key in ("label", "patient_id"))
    strata, names = strata_of(labels, datalist["class_names"], patients, max(len(SECTIONS), folds or 0))
    group = dict(zip(items, strata, strict=True))
    cases = {
        item["case_id"]: Case(
            "", group[item["case_id"]], item["case_id"], item["patient_id"], "", name if of_table else None
        )
        for name in SECTIONS
        for item in datalist[name]
    }
    # in an order that depends neither on the earlier sections nor on the salt
    order = sorted(items, key=lambda case_id: items[case_id].get("image_sha256") or items[case_id]["image"])
    cohort = Cohort(tuple(cases[case_id] for case_id in order), names)
    divided = {**datalist, "seed": split_seed if folds is not None else seed}
    if folds is not None:
        sections = fold_cohort(cohort, folds, -1 if fold is None else fold, split_seed)
        divided |= {"split_source": f"fold {fold} of {folds}", "fractions": None}
    elif of_table:
        return dict(datalist)
    else:
        earlier = {name: [cases[item["case_id"]] for item in datalist[name]] for name in SECTIONS}
        sections = divide_training(cohort, earlier, check_fractions(datalist["fractions"]), seed)
        divided["test_seed"] = datalist["seed"]
    divided |= {name: [items[case.case_id] for case in sections[name]] for name in SECTIONS}
    if datalist.get("label_kind") == "multi":
        check_findings(divided, datalist["class_names"])
    divided["split_sha256"] = split_hash(divided)
    return divided
