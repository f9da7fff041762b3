from __future__ import annotations

from typing import Any

from studies import make_study

from monai_basisprune.report.limits import limits_sentences


def test_real_data_are_not_called_synthetic() -> None:
    study = make_study()
    assert "synthetic" in limits_sentences(study)[0]
    study["data"]["synthetic"] = False
    text = " ".join(limits_sentences(study))
    assert "synthetic" not in text
    assert "medical device" in text


def test_only_what_is_not_in_the_record_is_called_unknown() -> None:
    def unknown(study: dict[str, Any]) -> list[str]:
        return [sentence for sentence in limits_sentences(study) if sentence.startswith("The AUC says nothing")]

    assert unknown(make_study()) == []
    study = make_study()
    del study["test"]["calibration"]
    assert unknown(study) == ["The AUC says nothing about calibration, which this study does not hold."]
    assert unknown(make_study(test=None)) == [
        "The AUC says nothing about sensitivity at one operating point or calibration or groups of patients, which "
        "this study does not hold."
    ]


def test_groups_and_unknown_patients_are_warned_of_where_they_are() -> None:
    groups, patients = "is not a group that is shown to be safe", "It is not known which cases belong to the same"
    study = make_study()
    assert groups in " ".join(limits_sentences(study))
    assert patients not in " ".join(limits_sentences(study))
    study["audit"]["subgroups"] = []
    study["data"]["splits"]["training"]["patients"] = None
    assert groups not in " ".join(limits_sentences(study))
    assert patients in " ".join(limits_sentences(study))


def test_a_network_that_was_not_pruned_has_no_rare_failure_to_warn_of() -> None:
    study = make_study()
    study["test"]["difference"]["unseen_loss"] = 0.0714
    assert "that costs up to 0.071 of the AUC" in limits_sentences(study)[-1]
    study["chosen"]["round"] = 0
    study["chosen"] |= {key: study["curve"][0][key] for key in ("parameters", "macs", "parameter_reduction")}
    study["chosen"]["mac_reduction"] = 0.0
    assert not [sentence for sentence in limits_sentences(study) if "rare failure" in sentence]
