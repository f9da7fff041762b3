"""A bundle's own network, data and engines, made ready for pruning."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.utils import set_determinism
from monai.utils.enums import CommonKeys
from torch import nn

from ..data.identifiers import known
from ..errors import BasisPruneError, ConfigurationError, PlanMismatchError, shortened_list
from ..failures import explain_failure
from ..handlers import Predictions, PredictionsHandler
from ..reading import read_weights
from .bundle_configs import find_config, read_config_file
from .pretrained import _state_dict

__all__ = [
    "BundleEvaluation",
    "bundle_network",
    "importable",
    "load_engines",
    "read_training",
    "shown_problems",
    "usable_predictions",
]

_LEFT_OUT = ("CheckpointLoader", "CheckpointSaver", "EarlyStopHandler", "StatsHandler", "ValidationHandler")
"""Handlers of a bundle that pruning does itself, or that would undo it or end it."""

# a quoted text with a path in it, or else all from the first path of a line to the end of the last one
_PATHS = re.compile(r"""(['"])(?:(?!\1).)*[/\\](?:(?!\1).)*\1|\S*[/\\](?:.*[/\\])?\S*""")


@contextmanager
def shown_problems(what: str, running: bool = False) -> Iterator[None]:
    """Turn whatever a bundle's own code raises into one message without any folder or file.

    Args:
        what: what failed, in words.
        running: whether the run was at work, so that a file that is not there was there before.

    Raises:
        BasisPruneError: our own error where there is one in the chain, else one that says what failed and why.
    """
    try:
        yield
    except Exception as error:  # a configuration is code, which can raise anything
        root: BaseException = error
        link: BaseException | None = error
        while link is not None:
            if isinstance(link, BasisPruneError):
                raise link from None
            root, link = link, link.__cause__ or link.__context__
        if (failure := explain_failure(error, running)) is not None:
            raise ConfigurationError(f"{what}: {failure}") from None
        first = (str(root).strip().splitlines() or [""])[0][:2000]
        reason = known.redacted(_PATHS.sub("<path>", first))[:300]
        # not "from error": its text can name patients
        raise ConfigurationError(f"{what} ({type(root).__name__}: {reason})") from None


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let a bundle's own Python files be imported, as ``monai.bundle run`` does."""
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before
        for name, module in list(sys.modules.items()):  # another bundle may have files of the same names
            if str(getattr(module, "__file__", None) or "").startswith(f"{folder}{os.sep}"):
                del sys.modules[name]


def read_training(root: Path, overrides: Mapping[str, Any], overlay: str | None = None) -> ConfigParser:
    """Read the training configuration of a bundle.

    Args:
        root: folder of the bundle.
        overrides: values by id; every id must exist.
        overlay: the name of a configuration to lay over it, such as ``"evaluate"``.

    Raises:
        ConfigurationError: if there is none, or an override names nothing in it.
    """
    path = find_config(root, "train")
    if path is None:
        raise ConfigurationError(
            "The bundle has no configs/train.json (or .yaml), so it does not say how its network is trained."
        )
    parser = ConfigParser()
    over = find_config(root, overlay) if overlay else None
    with shown_problems(f"configs/{path.name} of the bundle cannot be read"):
        for file in filter(None, (path, over)):
            read_config_file(file)  # says what is wrong with one of them by itself
        parser.read_config([str(path), str(over)] if over else str(path))
    problems = []
    for key, value in overrides.items():
        if key == "bundle_root" or key not in parser:
            close = difflib.get_close_matches(key, list(parser.config), n=3, cutoff=0.5)
            problems.append(f"  - {key}: not in configs/{path.name}" + (f"; did you mean {close}?" if close else ""))
        else:
            parser[key] = value
    if problems:
        raise ConfigurationError("These overrides cannot be used:\n" + "\n".join(problems))
    parser["bundle_root"] = str(root)
    return parser


def bundle_network(parser: ConfigParser, weights: Path) -> nn.Module:
    """Build the network of a bundle and load its weights, all of them or none.

    Args:
        parser: the training configuration.
        weights: a state dict, alone or under ``model`` or ``state_dict``, as MONAI's ``CheckpointSaver`` writes it.

    Raises:
        ConfigurationError: if there is no ``network_def``, or the weights cannot be read.
        PlanMismatchError: if they do not fit; every difference is listed.
    """
    if "network_def" not in parser:
        raise ConfigurationError("The bundle's training configuration has no network_def.")
    with shown_problems("The bundle's network_def cannot be built"):
        network = parser.get_parsed_content("network_def")
    if not isinstance(network, nn.Module):
        raise ConfigurationError(f"The bundle's network_def makes {type(network).__name__}, not a network.")
    try:
        content = read_weights(weights)
    except (OSError, ValueError) as error:  # the text of the system holds the folder
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"models/{weights.name} cannot be read as weights: {reason}.") from error
    state = {name.removeprefix("module."): tensor for name, tensor in _state_dict(content, weights.name).items()}
    own = network.state_dict()
    problems = [f"{name}: missing" for name in own if name not in state]
    problems += [f"{name}: unexpected" for name in state if name not in own]
    problems += [
        f"{name}: shape {tuple(state[name].shape)}, the network has {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        raise PlanMismatchError(
            f"models/{weights.name} does not fit the bundle's {type(network).__name__}, so nothing was loaded:\n"
            f"{shortened_list(problems)}"
        )
    network.load_state_dict(state, strict=True)
    return network


def load_engines(
    parser: ConfigParser, network: nn.Module, max_epochs: int | None, seed: int = 0
) -> tuple[Engine | None, Engine]:
    """Build the trainer and the evaluator of a bundle around a network.

    The evaluator gives the outputs of the network as they are: the bundle's own postprocessing often turns them into
    class numbers, of which no AUC can be computed. Handlers that save, load, stop or validate are left out.

    Args:
        parser: the training configuration.
        network: what takes the place of ``network_def``.
        max_epochs: epochs of the trainer; None if only the evaluator is needed.
        seed: the seed, set after the bundle has set its own.

    Returns:
        the trainer, or None, and the evaluator.

    Raises:
        ConfigurationError: if they cannot be built, use another network, or have no data.
    """
    missing = [id for id in ("train#trainer", "validate#evaluator") if id not in parser]
    if missing:
        raise ConfigurationError(f"The bundle's training configuration lacks {', '.join(missing)}.")
    parser["network_def"] = network
    for part in ("key_val_metric", "additional_metrics", "val_handlers"):
        parser[f"validate#evaluator#{part}"] = None
    parser["validate#evaluator#postprocessing"] = usable_predictions
    parser["validate#evaluator#decollate"] = False
    for place in ("train#handlers", "train#trainer#train_handlers"):
        if isinstance(handlers := parser.get(place), list):
            parser[place] = [one for one in handlers if not _left_out(parser, one)]
    if max_epochs is not None:
        _set_epochs(parser, max_epochs)
    hint = "pass --dataset_dir with the folder of its training data; pruning without data is not possible here"
    with shown_problems(f"The bundle's data and engines cannot be built; {hint}"):
        parser.parse(reset=True)
        if "initialize" in parser:
            parser.get_parsed_content("initialize")
        set_determinism(seed)
        evaluator = parser.get_parsed_content("validate#evaluator")
        trainer = None if max_epochs is None else parser.get_parsed_content("train#trainer")
        for engine in filter(None, (evaluator, trainer)):
            engine.logger.setLevel(100)  # it would show errors in full, with the names of files
            if not len(engine.data_loader):
                raise ConfigurationError(f"The bundle's data are empty; {hint}.")
            if engine.network is not network:
                raise ConfigurationError("The bundle's engines use another network than its network_def.")
    return trainer, evaluator


def _left_out(parser: ConfigParser, handler: Any) -> bool:
    seen: set[str] = set()
    while isinstance(handler, str) and re.fullmatch(r"@\w+(?:(?:#|::)\w+)*", handler) and handler not in seen:
        seen.add(handler)
        handler = parser.get(handler[1:])
    return isinstance(handler, Mapping) and str(handler.get("_target_")).rpartition(".")[2] in _LEFT_OUT


def _set_epochs(parser: ConfigParser, epochs: int) -> None:
    """Set the number of epochs where the bundle keeps it, so that its schedules of the learning rate follow."""
    own = parser.get("train#trainer#max_epochs")
    key = own[1:] if isinstance(own, str) and re.fullmatch(r"@\w+", own) else "train#trainer#max_epochs"
    parser[key] = epochs


def usable_predictions(data: dict[str, Any]) -> dict[str, Any]:
    """Bring a batch of raw outputs and labels into the form that an AUC is computed from.

    Raises:
        ConfigurationError: if there is no label, or the network has other outputs than one or two.
    """
    prediction = torch.as_tensor(data[CommonKeys.PRED])
    outputs = prediction.reshape(len(prediction), -1)
    if outputs.shape[1] not in (1, 2):
        raise ConfigurationError(
            f"The bundle's network gives {outputs.shape[1]} outputs for each image; only networks with two classes "
            f"(one or two outputs) can be pruned by this command for now."
        )
    if data.get(CommonKeys.LABEL) is None:
        raise ConfigurationError("The bundle's validation data have no key 'label', so no AUC can be computed.")
    label = torch.as_tensor(data[CommonKeys.LABEL])
    label = label.reshape(len(outputs), -1)
    if label.shape[1] == 2 and bool((label.sum(dim=1) == 1).all()):
        label = label.argmax(dim=1, keepdim=True)  # one column for each class
    if label.shape[1] != 1:
        raise ConfigurationError(f"The labels of the bundle hold {label.shape[1]} values for each image, not a class.")
    return {**data, CommonKeys.PRED: outputs, CommonKeys.LABEL: label[:, 0]}


class BundleEvaluation:
    """Evaluates one network after another on the same cases of a bundle.

    Args:
        evaluator: the bundle's evaluator, from :func:`load_engines`.
        patient_key: key of the patient's id in a batch; None if there is none.
    """

    def __init__(self, evaluator: Any, patient_key: str | None) -> None:
        self.evaluator = evaluator
        self.collector = PredictionsHandler(patient_key, case_key=None)
        self.collector.attach(evaluator)

    def run(self, network: nn.Module) -> Predictions:
        """Return what a network predicts.

        Raises:
            ConfigurationError: if the outputs hold nothing but 0 and 1, so that no AUC can be computed from them.
        """
        before = self.evaluator.network
        self.evaluator.network = network.to(self.evaluator.state.device)
        try:
            with shown_problems("The bundle's network cannot be evaluated on its data"):
                self.evaluator.run()
        finally:
            self.evaluator.network = before
            network.cpu()
        predictions = self.collector.predictions
        if {value for row in predictions.outputs for value in row} <= {0.0, 1.0}:
            raise ConfigurationError(
                "The bundle's network (or its inferer) gives nothing but 0 and 1, classes instead of scores: no AUC "
                "can be computed from them. Let it give logits or probabilities."
            )
        return predictions
