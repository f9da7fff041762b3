from __future__ import annotations

from studies import make_study
from test_wording import plain

from monai_basisprune.report.methods import limits_sentences, methods_paragraph


def test_methods_hold_the_figures() -> None:
    text = plain(methods_paragraph(make_study()))
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


def test_p_value_and_unseen_loss_are_told_where_known() -> None:
    study = make_study()
    study["test"]["difference"] |= {"p_value": 0.41, "unseen_loss": 0.07}
    assert "was not shown (one-sided p = 0.410)." in methods_paragraph(study)
    assert any("costs up to 0.070 of the AUC" in sentence for sentence in limits_sentences(study))
    study["test"]["difference"]["p_value"] = 1e-9
    assert "one-sided p < 0.001" in methods_paragraph(study)


def test_limits() -> None:
    study = make_study()
    assert "synthetic" in limits_sentences(study)[0]
    study["data"]["synthetic"] = False
    text = " ".join(limits_sentences(study))
    assert "synthetic" not in text
    assert "medical device" in text
