"""The paper's headline on medical images: 98.9 % of the parameters and 98.6 % of the operations removed, and the AUC.

python tests/benchmarks/headline.py --data ../shared/data > docs/results/headline.json

PneumoniaMNIST with 3,000 training images and its own test images; ResNet-18, pretrained on CIFAR-10, with one gray
input channel, whose first convolution is the sum over the three of the pretrained one, before and after pruning. Three
epochs of transfer, then six cuts to shares of the operations, at which more of the parameters goes. From the third cut
on the network learns from what the unpruned one says, and from the fourth on the 1×1 convolutions that recombine its
bases are trained; the basis filters never are.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from race_data import Images, pneumoniamnist
from race_networks import load_network
from race_ours import Recipe, Scores
from race_summary import MARGIN, auc_row
from race_training import Settings, Trainer
from torch import nn

import monai_basisprune as mbp

ROUNDS = ((0.6, 1), (0.85, 1), (0.93, 1), (0.965, 1), (0.979, 2), (0.986, 6))
"""The share of the operations removed, and the epochs that follow."""

DISTILLED_FROM, RECOMBINED_FROM = 0.93, 0.965
TRANSFER_EPOCHS, TRAINING_IMAGES, RECOMBINATION_LEARNING_RATE = 3, 3000, 0.003


def gray(network: nn.Module) -> nn.Module:
    """Return a network of three equal channels as one of a single channel, which takes the first of them."""
    old: nn.Conv2d = network.conv1  # type: ignore[assignment]
    new = nn.Conv2d(1, old.out_channels, old.kernel_size, old.stride, old.padding, bias=old.bias is not None)  # type: ignore[arg-type]
    new.load_state_dict({**old.state_dict(), "weight": old.weight.detach().sum(dim=1, keepdim=True)})
    network.conv1 = new
    network.register_forward_pre_hook(lambda module, args: (args[0][:, :1],))
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def run(images: Images, network: nn.Module, seed: int) -> list[dict[str, Any]]:
    """Return, for the transferred network and after each cut, what it costs and its scores for the test images."""
    trainer = Trainer(images, 0, seed, Settings())
    trainer.input_shape = (1, *trainer.input_shape[1:])
    rate = trainer.settings.learning_rate
    torch.manual_seed(seed)
    network = mbp.decompose(gray(network))
    trainer.train(network, mbp.freeze_weights_(network), TRANSFER_EPOCHS, rate)
    test = images.folds[0][1]
    labels, patients = images.labels.numpy()[test], images.patients[test]
    steps = [{**step(network, trainer), "labels": labels, "patients": patients}]
    loss = mbp.DistillationLoss(trainer.all_batches())
    loss.start(network)
    scores = Scores(network, trainer, Recipe(channels=True))
    with contextlib.closing(scores):
        scores.score_pass(trainer, every=4)
        for share, epochs in ROUNDS:
            scores.cut(mbp.Budget(macs=share, input_shape=trainer.input_shape))
            loss.resting = share < DISTILLED_FROM
            groups = mbp.parameter_groups(network, RECOMBINATION_LEARNING_RATE)
            mbp.train_recombination_(network, share >= RECOMBINED_FROM)
            trainer.train(network, groups, epochs, rate, loss, scores.add)
            steps.append({**step(network, trainer), "labels": labels, "patients": patients})
    return steps


def step(network: nn.Module, trainer: Trainer) -> dict[str, Any]:
    """Return the scores of a network for the test images, and what it costs as it would be deployed."""
    scores = trainer.scores(network)
    cost = mbp.measure_complexity(mbp.recompose(network).eval(), trainer.input_shape)
    return {"scores": scores, "parameters": cost.parameters, "macs": cost.macs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of shared data")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    images = pneumoniamnist(arguments.data / "pneumoniamnist_28.npz", training=TRAINING_IMAGES)
    runs = [run(images, load_network("resnet18", arguments.data, seed), seed) for seed in arguments.seeds]
    rows = []
    for steps in zip(*runs, strict=True):
        gone = {
            f"{name}_removed": [
                round(1 - one[name] / first[0][name], 4) for one, first in zip(steps, runs, strict=True)
            ]
            for name in ("parameters", "macs")
        }
        rows.append({**gone, **auc_row(list(steps), [steps[0] for steps in runs])})
    command = "python " + " ".join(["tests/benchmarks/headline.py", *sys.argv[1:]])
    found = {"command": command, "torch": torch.__version__, "seeds": arguments.seeds, "margin": MARGIN, "rows": rows}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
