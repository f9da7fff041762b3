from __future__ import annotations

from studies import make_study
from test_wording import plain

from monai_basisprune.report.limits import limits_sentences
from monai_basisprune.report.methods import methods_paragraph


def test_methods_hold_the_figures() -> None:
    text = plain(methods_paragraph(make_study(search=None)))
    for words in (
        "A DenseNet121 (6.96 M parameters; 231 M multiply-accumulate operations for one input of 1 × 64 × 64)",
        "after 6 epochs of transfer learning",
        "criterion: taylor",
        "removed in 6 rounds (targets: 0, 50, 75, 90, 95, 98, 99 % of the parameters), with 2 epochs of training",
        "90.0 % of the parameters were removed (696 k left)",
        "The synthetic data were split into: training, 300 cases (150 negative, 150 positive; 150 patients)",
        "0.905 (0.860 to 0.939) before and 0.898 (0.853 to 0.932) after pruning",
        "non-inferiority with a margin of 0.01 was not shown.",
        "seed 0",
    ):
        assert words in text, words


def test_methods_leave_out_what_is_not_known() -> None:
    study = make_study(test=None, seed=None)
    del study["pruning"]["transfer_epochs"], study["pruning"]["norm_statistics"]
    study["pruning"]["epochs_per_round"] = None
    text = methods_paragraph(study)
    assert "epoch" not in text
    assert "normalization" not in text
    assert "was not evaluated on a test set" in text
    assert "no seed was set" in text


def test_rounds_without_training_and_blocks_of_channels_are_told() -> None:
    for search in (None, make_study()["search"]):
        study = make_study(search=search)
        study["pruning"] |= {"transfer_epochs": 0, "epochs_per_round": 0, "channel_multiple": 16}
        text = plain(methods_paragraph(study))
        assert "Then, without any transfer learning, the " in text
        assert ("nothing was trained after a cut." if search is None else "and trained nothing;") in text
        assert "0 epochs" not in text
        assert "Channels were removed in blocks that left multiples of 16." in text


def test_p_value_and_unseen_loss_are_told_where_known() -> None:
    study = make_study()
    study["test"]["difference"] |= {"p_value": 0.41, "unseen_loss": 0.07}
    assert "was not shown (one-sided p = 0.410)." in methods_paragraph(study)
    assert any("costs up to 0.070 of the AUC" in sentence for sentence in limits_sentences(study))
    study["test"]["difference"]["p_value"] = 1e-9
    assert "one-sided p < 0.001" in methods_paragraph(study)


def test_what_goes_beyond_the_auc_is_told() -> None:
    text = plain(methods_paragraph(make_study()))
    for words in (
        "At a specificity of at least 0.9 the sensitivity was 0.767 (0.677 to 0.857) before and 0.751 (0.661 to 0.841)",
        "Brier score 0.130 (0.100 to 0.160) before and 0.170 (0.140 to 0.200) after",
        "in groups of the test set by sex, age band, scanner manufacturer; 4 groups could be tested, with Holm's",
        "The most unfavorable change was -0.030 (-0.080 to +0.020) (age band: 60 to 79; 48 cases; adjusted p = 1.000).",
        "was searched for in 4 steps (targets, in this order: 50, 75, 95, 90 % of the parameters).",
        "from the network that was accepted last and trained the rest for 2 epochs; its result was accepted if the "
        "interval of its change on the validation set excluded a loss of more than 0.01.",
        "about 412 positive patients would be needed.",
    ):
        assert words in text, words
    limits = " ".join(limits_sentences(make_study()))
    assert "The AUC says nothing" not in limits
    assert "A group of patients in which no loss was found is not a group that is shown to be safe" in limits


def test_the_unpruned_network_is_not_compared_with_itself() -> None:
    study = make_study()
    study["chosen"] |= {key: study["curve"][0][key] for key in ("round", "parameters", "macs", "parameter_reduction")}
    study["chosen"] |= {"mac_reduction": 0.0, "reason": "The search accepted none of the networks."}
    study["test"]["difference"]["unseen_loss"] = 0.07
    text = plain(methods_paragraph(study))
    assert "was to be pruned by basis scaling" in text
    assert "The search accepted none of the networks. The synthetic data" in text
    assert "the AUC of the unpruned network, which was kept, was 0.898 (0.853 to 0.932). Software" in text
    assert "rare failure" not in " ".join(limits_sentences(study))


def test_no_group_to_test_is_said() -> None:
    study = make_study()
    study["audit"]["subgroups"] = [group for group in study["audit"]["subgroups"] if group["reason"] is not None]
    assert "No change in groups of patients could be tested (by age band, scanner" in methods_paragraph(study)


def test_what_is_not_in_the_record_is_not_told() -> None:
    study = make_study(audit=None, search=None)
    del study["test"]["calibration"], study["test"]["operating_point"]
    text = methods_paragraph(study)
    for words in ("specificity", "Calibration", "groups", "searched"):
        assert words not in text, words
    limits = " ".join(limits_sentences(study))
    assert "nothing about sensitivity at one operating point or calibration or groups of patients, which this" in limits
    assert "shown to be safe" not in limits
