"""What a study cannot say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monai_basisprune.report.wording import decimal, nothing_pruned

__all__ = ["limits_sentences"]


def limits_sentences(study: Mapping[str, Any]) -> list[str]:
    """Return what a reader must not conclude from a study.

    Args:
        study: a valid study record.
    """
    sentences = []
    if study["data"]["synthetic"]:
        sentences.append("The data are synthetic: the numbers show that the software runs, and nothing about patients.")
    sentences += [
        "Neither this report nor the network is a medical device; do not use them for diagnosis or treatment.",
        "The AUC measures agreement with the labels of this data set, which can be wrong or differ from the clinical "
        "truth.",
        "One data set, one split and one seed were used: other hospitals, scanners and patients can give other values.",
    ]
    test = study["test"] or {}
    unknown = [
        words
        for words, known in (
            ("sensitivity at one operating point", test.get("operating_point")),
            ("calibration", test.get("calibration")),
            ("groups of patients", (study["audit"] or {}).get("subgroups")),
        )
        if not known
    ]
    if unknown:
        sentences.append(f"The AUC says nothing about {' or '.join(unknown)}, which this study does not hold.")
    if study["audit"] is not None and study["audit"]["subgroups"]:
        sentences.append(
            "A group of patients in which no loss was found is not a group that is shown to be safe: most groups are "
            "too small for that."
        )
    if any(split["patients"] is None for split in study["data"]["splits"].values()):
        sentences.append(
            "It is not known which cases belong to the same patient: the intervals may be too narrow, and a patient "
            "may occur in more than one split."
        )
    unseen = {} if nothing_pruned(study) else test.get("difference") or {}
    if unseen.get("unseen_loss"):
        sentences.append(
            f"A rare failure of the pruned network that costs up to {decimal(unseen['unseen_loss'])} of the AUC can be "
            "absent from this test set by chance; no interval from it can exclude that."
        )
    return sentences
