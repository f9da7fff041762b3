"""The paragraph for the methods section of a paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from monai_basisprune.report.wording import (
    auc_words,
    confidence_words,
    count,
    difference_words,
    estimate_words,
    nothing_pruned,
    number,
    p_words,
    plural,
    reduction_words,
    sentence,
    several_classes,
)

__all__ = ["methods_paragraph"]

# K. C. L. Wong, S. Kashyap, M. Moradi, "Basis Scaling and Double Pruning for Efficient Inference in Network-Based
# Transfer Learning", Pattern Recognition Letters; arXiv:2108.02893.
_SOURCE = "Wong, Kashyap and Moradi, arXiv:2108.02893"
_RULES = {"point": "the AUC itself", "interval": "the interval of the change of the AUC"}
_COUNTED = ", counted as those of one class whose AUC is known as well as the mean of all"
_NORM_STATISTICS = {
    "update": "updated during training",
    "frozen": "those of the pretrained network throughout",
    "recalibrate": "averages over the training images, taken anew after each epoch",
}


def methods_paragraph(study: Mapping[str, Any]) -> str:
    """Return what was done, with all figures, in sentences that can go into a paper.

    Nothing is said that the record does not hold.

    Args:
        study: a valid study record.
    """
    return " ".join([*_pruning(study), *_data(study), *_statistics(study), *_software(study)])


def _pruning(study: Mapping[str, Any]) -> Iterator[str]:
    network, pruning, chosen = study["network"], study["pruning"], study["chosen"]
    shape = " × ".join(str(size) for size in network["input_shape"])
    yield (
        f"A {network['name']} ({count(network['parameters'])} parameters; {count(network['macs'])} multiply-accumulate "
        f"operations for one input of {shape}) was {'to be ' if nothing_pruned(study) else ''}pruned by basis scaling "
        f"({_SOURCE}): each convolution was factorized by {_FACTORIZATIONS[pruning.get('basis', 'weight')]} into "
        "a basis and its scaling factors."
    )
    epochs = pruning.get("transfer_epochs")
    transfer = f"after {plural(epochs, 'epoch', 'epochs')} of" if epochs else "without any"
    before = "" if epochs is None else f"{transfer} transfer learning, "
    between = pruning.get("epochs_per_round")
    training = "" if not between else plural(between, "epoch", "epochs")
    if study["search"] is None:
        rounds = plural(max(len(study["curve"]) - 1, 0), "round", "rounds")
        what, criterion = _parts(pruning)
        each = f", with {training} of training in each" if training else ""
        each += ", and nothing was trained after a cut" if between == 0 else ""
        yield (
            f"Then, {before}the {what} of least importance (criterion: {criterion}) were removed in "
            f"{rounds} (targets: {_targets(pruning['targets'])} of the {pruning['budget']}){each}."
            if pruning["targets"]
            else f"It was trained for {plural(study['curve'][0]['epoch'], 'epoch', 'epochs')} and never cut, to be "
            "compared with networks that were."
        )
    else:
        yield from _search(study, before, training)
    if pruning.get("channel_multiple", 1) > 1:
        yield f"Channels were removed in blocks that left multiples of {pruning['channel_multiple']}."
    if pruning.get("compensation"):
        yield (
            "After each cut, what was left was fitted in closed form to what the layers had put out before, on "
            "unlabeled training images."
        )
    if pruning.get("distillation") and _reached(study, pruning["distillation"].get("from", 0.0)):
        start = pruning["distillation"].get("from", 0.0)
        since = f"Once {100 * start:g} % of the parameters were gone" if start else "From the first cut on"
        plain = "" if pruning["distillation"].get("augmented", True) else ", on images without augmentation"
        yield (
            f"{since}, the network was also trained towards the outputs of the unpruned one{plain} (weight "
            f"{pruning['distillation']['weight']:g}, temperature {pruning['distillation']['temperature']:g})."
        )
    share = pruning.get("recombined_from")
    if share is not None and _reached(study, share):
        since = f"once {100 * share:g} % of the parameters were gone" if share else "from the first cut on"
        yield (
            f"The 1×1 convolutions that recombine the bases were trained as well, {since}; the basis filters were "
            "frozen throughout."
        )
    if pruning.get("norm_statistics"):
        how = _NORM_STATISTICS.get(pruning["norm_statistics"], pruning["norm_statistics"])
        yield f"Running statistics of normalization layers: {how}."
    if nothing_pruned(study):
        yield sentence(chosen["reason"])
        return
    rule = _RULES.get(pruning["selection"], pruning["selection"])
    yield (
        f"Round {chosen['round']} was chosen on the validation set (by {rule}, with an AUC margin of "
        f"{pruning['auc_margin']:g}): {sentence(chosen['reason'])} In it, "
        f"{reduction_words(chosen['parameter_reduction'], 'parameters')} ({count(chosen['parameters'])} left) and "
        f"{reduction_words(chosen['mac_reduction'], 'multiply-accumulate operations')}."
    )


def _reached(study: Mapping[str, Any], share: float) -> bool:
    """Return whether any cut took that share of the parameters, so that what begins there has begun."""
    return any(point["round"] > 0 and point["parameter_reduction"] >= share for point in study["curve"])


_FACTORIZATIONS = {
    "weight": "singular value decomposition",
    "activation": "the principal directions of its outputs over unlabeled training images",
}


def _parts(pruning: Mapping[str, Any]) -> tuple[str, str]:
    """Return what was removed and by which criterion."""
    channels = pruning.get("channel_importance")
    if channels is None:
        return "bases", pruning["importance"]
    if channels == pruning["importance"]:
        return "channels", channels
    return "bases and channels", f"{pruning['importance']} of bases, {channels} of channels"


def _targets(targets: Sequence[float]) -> str:
    return f"{', '.join(f'{100 * target:g}' for target in targets)} %"


def _data(study: Mapping[str, Any]) -> Iterator[str]:
    data = study["data"]
    parts = []
    for name, split in data["splits"].items():
        classes = ", ".join(
            f"{number(cases)} {label}"
            for cases, label in zip(split["cases_by_class"], data["class_names"], strict=True)
        )
        patients = plural(split["patients"], "patient", "patients")
        parts.append(f"{name}, {plural(split['cases'], 'case', 'cases')} ({classes}; {patients})")
    kind = "synthetic data" if data["synthetic"] else "data"
    yield f"The {kind} were split into: {'; '.join(parts)}. SHA-256 of the split: {data['split_sha256']}."


def _statistics(study: Mapping[str, Any]) -> Iterator[str]:
    test = study["test"]
    if test is None:
        yield "The chosen network was not evaluated on a test set."
        return
    record = test["pruned"]
    kind = ""
    if several_classes(study):
        found = study["data"]["class_names"]
        what = "findings" if study["data"].get("label_kind") == "multi" else "classes, each against the rest"
        kind = f", as the mean over {len(found)} {what} with equal weights"
    yield (
        f"Discrimination was measured by the area under the ROC curve (AUC){kind}, with its {confidence_words(record)} "
        f"(method: {record['method']})."
    )
    if nothing_pruned(study):
        yield (
            f"On the test set ({plural(record['cases'], 'case', 'cases')}, "
            f"{plural(record['patients'], 'patient', 'patients')}) the AUC of the unpruned network, which was kept, "
            f"was {auc_words(record)}."
        )
        return
    yield (
        f"On the test set ({plural(record['cases'], 'case', 'cases')}, "
        f"{plural(record['patients'], 'patient', 'patients')}) the AUC was {auc_words(test['original'])} before and "
        f"{auc_words(record)} after pruning."
    )
    yield from _comparison(test["difference"])
    yield from _beyond_auc(study)


def _comparison(difference: Mapping[str, Any] | None) -> Iterator[str]:
    if difference is None:
        yield "The two were not compared by a test."
        return
    shown = "shown" if difference["non_inferior"] else "not shown"
    p_value = difference.get("p_value")
    chance = "" if p_value is None else f" (one-sided p {_p_equation(p_value)})"
    yield (
        f"The difference was {difference_words(difference)} (paired, pruned minus unpruned; {difference['method']}); "
        f"non-inferiority with a margin of {difference['margin']:g} was {shown}{chance}."
    )


def _beyond_auc(study: Mapping[str, Any]) -> Iterator[str]:
    test, audit = study["test"], study["audit"]
    yield from _of_classes(test)
    point = test.get("operating_point")
    if point:
        yield (
            f"At a specificity of at least {point['specificity']:g} the sensitivity was "
            f"{estimate_words(point['original'])} before and {estimate_words(point['pruned'])} after pruning "
            "(threshold chosen on the test set, and anew in each resample)."
        )
    calibration = test.get("calibration")
    if calibration:
        scores = ", ".join(
            f"{words} {estimate_words(calibration['original'][key])} before and "
            f"{estimate_words(calibration['pruned'][key])} after"
            for key, words in (("brier", "Brier score"), ("calibration_error", "expected calibration error"))
        )
        yield f"Calibration: {scores}."
    if audit is not None and audit["subgroups"]:
        names = list(dict.fromkeys(group["attribute"] for group in audit["subgroups"]))
        tested = [group for group in audit["subgroups"] if group["adjusted_p_value"] is not None]
        if not tested:
            yield f"No change in groups of patients could be tested (by {', '.join(names)})."
            return
        yield (
            f"The AUCs of both networks were compared in groups of the test set by {', '.join(names)}; "
            f"{plural(len(tested), 'group', 'groups')} could be tested, with Holm's correction for multiple testing."
        )
        worst = min(tested, key=lambda group: group["difference"]["difference"])
        yield (
            f"The most unfavorable change was {difference_words(worst['difference'])} "
            f"({worst['attribute']}: {worst['value']}; {plural(worst['cases'], 'case', 'cases')}; adjusted p "
            f"{_p_equation(worst['adjusted_p_value'])})."
        )


def _of_classes(test: Mapping[str, Any]) -> Iterator[str]:
    tested = [one for one in test.get("classes") or () if one["adjusted_p_value"] is not None]
    if tested:
        worst = min(tested, key=lambda one: one["difference"]["difference"])
        yield (
            f"The AUCs of the classes were compared one by one, with Holm's correction over {len(tested)}; the most "
            f"unfavorable change was {difference_words(worst['difference'])} ({worst['name']}; adjusted p "
            f"{_p_equation(worst['adjusted_p_value'])})."
        )
    if test.get("accuracy"):
        yield (
            f"The accuracy was {estimate_words(test['accuracy']['original'])} before and "
            f"{estimate_words(test['accuracy']['pruned'])} after pruning."
        )


def _search(study: Mapping[str, Any], before: str, training: str) -> Iterator[str]:
    search, pruning = study["search"], study["pruning"]
    what, criterion = _parts(pruning)
    rule = (
        f"its AUC on the validation set was not lower by more than {search['margin']:g}"
        if search["rule"] == "point"
        else f"the interval of its change on the validation set excluded a loss of more than {search['margin']:g}"
    )
    steps = plural(len(search["steps"]), "step", "steps")
    tried = _targets([step["target"] for step in search["steps"]])
    trained = f" and trained the rest for {training}" if training else ""
    trained += " and trained nothing" if pruning.get("epochs_per_round") == 0 else ""
    yield (
        f"Then, {before}the smallest network was searched for in {steps} (targets, in this order: {tried} of the "
        f"{pruning['budget']}). Each removed the {what} of least importance (criterion: {criterion}) from "
        f"the network that was accepted last{trained}; its result was accepted if {rule}."
    )
    needed = search["required_positive_patients"]
    if needed is not None:
        yield (
            f"To show non-inferiority at that margin on the validation set, about {number(needed)} positive patients "
            f"would be needed{_COUNTED if several_classes(study) else ''}."
        )


def _p_equation(value: float) -> str:
    words = p_words(value)
    return words.replace("\u00a0", " ") if value < 0.001 else f"= {words}"


def _software(study: Mapping[str, Any]) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in study["versions"].items())
    seed = "no seed was set" if study["seed"] is None else f"seed {study['seed']}"
    yield f"Software: {versions}; device {study['device']}; {seed}."
