"""Smaller networks from 100 unlabeled images and no training: how far AUC stays within 0.02 of the unpruned network.

python tests/benchmarks/label_free.py ../shared/data --output docs/results/label_free.json --work /tmp/label_free

The network was pretrained on CIFAR-10 and transferred with labels by its norms and its head, as anybody's network was
trained somewhere. What is measured is what comes after: everything that makes it smaller reads 100 training images
without their labels and trains nothing.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from race_data import Images, pneumoniamnist, radiographs
from race_networks import load_network
from race_training import Settings, Trainer
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.evidence import auc_interval, compare_auc
from monai_basisprune.training import NORM_LAYERS

EPOCHS = 4
LARGEST_LOSS = 0.02
RATIOS = (0.5, 0.75, 0.9, 0.95, 0.97, 0.98, 0.985)


def transfer(trainer: Trainer, data: Path, seed: int, file: Path) -> nn.Module:
    """Return the pretrained network after a transfer of its norms and its head, from a file where there is one."""
    network = load_network("resnet18", data, seed)
    if file.is_file():
        network.load_state_dict(torch.load(file, weights_only=True))
        return network.eval()
    network.requires_grad_(False)
    norms = [p for m in network.modules() if isinstance(m, NORM_LAYERS) for p in m.parameters()]
    trained = [*norms, *network.get_submodule("fc").parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
    trainer.train(network, trained, EPOCHS, trainer.settings.learning_rate)
    torch.save(network.state_dict(), file)
    return network.eval()


def singular_values(network: nn.Module, data: Any, ratio: float, shape: Any) -> None:
    """Remove the bases with the smallest singular values, each relative to the largest of its layer."""
    mbp.prune_(network, mbp.SingularValueImportance(network, "max").scores(), mbp.Budget(parameters=ratio))


def energy(network: nn.Module, data: Any, ratio: float, shape: Any) -> None:
    """Remove the bases that put out least over the images."""
    mbp.prune_(network, mbp.ActivationImportance(network, data).scores(), mbp.Budget(parameters=ratio))


def search(network: nn.Module, data: Any, ratio: float, shape: Any) -> None:
    """Remove the bases that the others make up for best."""
    mbp.prune_by_reconstruction_(network, data, mbp.Budget(parameters=ratio))


def search_both(network: nn.Module, data: Any, ratio: float, shape: Any) -> None:
    """Remove the bases and channels that the others make up for best."""
    mbp.prune_by_reconstruction_(network, data, mbp.Budget(parameters=ratio), shape)


METHODS = {
    "singular values": ("weight", singular_values),
    "energy of activation bases": ("activation", energy),
    "structural search, bases": ("weight", search),
    "structural search, bases and channels": ("weight", search_both),
}


def one_run(
    trainer: Trainer, network: nn.Module, method: str, ratios: tuple[float, ...], images: int, labels: np.ndarray
) -> dict[str, Any]:
    """Return the scores of the test images at each ratio, before and after compensation."""
    trainer.generator.manual_seed(0)
    data = trainer.plain_batches(images)
    basis, prune = METHODS[method]
    start = time.process_time()
    pruned = mbp.decompose(network, basis, data=data if basis == "activation" else None)
    # where channels go, what the layers read has to be told by the decomposed network
    reference = copy.deepcopy(pruned) if prune is search_both else network
    points = []
    for ratio in ratios:
        prune(pruned, data, ratio, trainer.input_shape)
        cut = trainer.scores(mbp.recompose(pruned)).tolist()
        print(
            f"{method}, {ratio}: {time.process_time() - start:.0f} s, cut {auc_interval(labels, cut).auc:.4f}",
            flush=True,
        )
        compensated = copy.deepcopy(pruned)
        mbp.compensate_(compensated, reference, data)
        seconds = time.process_time() - start
        plain = mbp.recompose(compensated)
        size = sum(p.numel() for p in plain.parameters())
        normed = copy.deepcopy(plain)
        mbp.recalibrate_norm_statistics_(normed, data)
        points.append(
            {
                "parameters": size,
                "parameter_reduction": 1 - size / sum(p.numel() for p in network.parameters()),
                "seconds": round(seconds, 1),
                "cut": cut,
                "compensated": trainer.scores(plain).tolist(),
                "and norms estimated anew": trainer.scores(normed).tolist(),
            }
        )
        print(f"compensated {auc_interval(labels, points[-1]['compensated']).auc:.4f}", flush=True)
    return {"method": method, "points": points, "unpruned": trainer.scores(network).tolist()}


def report(images: Images, name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return AUC and the difference from the unpruned network, pooled over the folds of each seed, seed by seed."""
    found: dict[str, Any] = {}
    for method in dict.fromkeys(run["method"] for run in runs):
        rows = []
        for seed in sorted({run["seed"] for run in runs if run["method"] == method}):
            folds = [run for run in runs if run["method"] == method and run["seed"] == seed]
            tests = [images.folds[run["fold"]][1] for run in folds]
            test = np.concatenate(tests)
            labels, patients = images.labels.numpy()[test], images.patients[test]
            # logits of different folds are of different networks: ranks within a fold can be pooled
            before = np.concatenate([_ranks(run["unpruned"]) for run in folds])
            for number in range(min(len(run["points"]) for run in folds)):
                row: dict[str, Any] = {"seed": seed, "folds": len(folds)}
                points = [run["points"][number] for run in folds]
                row["parameter_reduction"] = round(float(np.mean([p["parameter_reduction"] for p in points])), 4)
                row["seconds"] = float(np.mean([p["seconds"] for p in points]))
                for stage in ("cut", "compensated", "and norms estimated anew"):
                    after = np.concatenate([_ranks(p[stage]) for p in points])
                    compared = compare_auc(labels, before, after, patients=patients, margin=LARGEST_LOSS)
                    row["unpruned_auc"] = round(compared.reference_auc, 4)
                    row[stage] = {
                        "auc": round(compared.candidate_auc, 4),
                        "difference": round(compared.difference, 4),
                        "low": round(compared.low, 4),
                        "high": round(compared.high, 4),
                        "non_inferior": bool(compared.non_inferior),
                    }
                rows.append(row)
        found[method] = {"rows": rows, "largest_within": _largest(rows)}
    return {"data": name, "test_images": len(images.folds[0][1]), "methods": found}


def _largest(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return, stage by stage, the largest ratio up to which the mean difference of all seeds stays within the limit."""
    largest = {}
    seeds = sorted({row["seed"] for row in rows})
    curves = [[row for row in rows if row["seed"] == seed] for seed in seeds]
    for stage in ("cut", "compensated", "and norms estimated anew"):
        largest[stage] = 0.0
        for points in zip(*curves, strict=False):
            if np.mean([p[stage]["difference"] for p in points]) < -LARGEST_LOSS:
                break
            largest[stage] = float(min(p["parameter_reduction"] for p in points))
    return largest


def _ranks(scores: list[float]) -> np.ndarray:
    found = np.asarray(scores)
    return np.searchsorted(np.sort(found), found) / len(found)


def main() -> None:
    """Transfer, prune, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with the images and the pretrained network")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for what is done already, to go on from")
    parser.add_argument("--sets", nargs="+", default=["pneumoniamnist", "radiographs"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3, help="of PneumoniaMNIST; the radiographs have five folds")
    parser.add_argument("--ratios", type=float, nargs="+", default=list(RATIOS))
    parser.add_argument("--images", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "command": "python tests/benchmarks/label_free.py ../shared/data --output docs/results/label_free.json "
        "--work WORK",
        "unlabeled_images": arguments.images,
        "transfer_epochs": EPOCHS,
        "largest_loss": LARGEST_LOSS,
        "sets": [],
    }
    for name in arguments.sets:
        images = radiographs(arguments.data / "cxr")
        pairs = [(0, fold) for fold in range(len(images.folds))]
        if name == "pneumoniamnist":
            images = pneumoniamnist(arguments.data / "pneumoniamnist_28.npz", size=96)
            pairs = [(seed, 0) for seed in range(arguments.seeds)]
        runs = []
        for method in arguments.methods:
            for seed, fold in pairs:
                trainer = Trainer(images, fold, seed, Settings())
                file = arguments.work / f"{name}_{seed}_{fold}_{method.replace(' ', '_')}.json"
                labels = images.labels[images.folds[fold][1]].numpy()
                if not file.is_file():
                    network = transfer(trainer, arguments.data, seed, arguments.work / f"{name}_{seed}_{fold}.pt")
                    run = one_run(trainer, network, method, tuple(arguments.ratios), arguments.images, labels)
                    file.write_text(json.dumps({**run, "seed": seed, "fold": fold}), encoding="utf-8")
                runs.append(json.loads(file.read_text(encoding="utf-8")))
        result["sets"].append(report(images, name, runs))
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
