"""The race: our methods against Torch-Pruning, truncated SVD and small networks, on the same images and epochs.

python tests/benchmarks/race.py run --data ../shared/data --output OUTPUT [--sets ...] [--contestants ...] [--seeds ...]
python tests/benchmarks/race.py summarize --data ../shared/data --output OUTPUT [--earlier ...] > docs/results/race.json

Each run (data set, network, contestant, seed, fold) is one file in the output folder; one that is there is not run
again, so the race can be stopped and started at any time, and more contestants added. Everything runs on one thread;
seconds are those of the processor, so a busy machine changes them little, but latencies it does.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from race_data import Images, load
from race_networks import load_network
from race_others import TorchPruning, all_weights, norms_and_head, small_from_scratch, truncated_svd, unpruned
from race_ours import CHANNEL_PENALTY, Recipe, channel_scaling
from race_summary import summarize
from race_training import Loss, Settings, Step, Trainer, cross_entropy
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.forward import evaluation_mode
from monai_basisprune.kernel_caches import bound_kernel_cache


@dataclass(frozen=True)
class Contestant:
    """One way to a small network.

    Attributes:
        start: what is transferred before the first cut: ``"bases"`` (decomposed; scaling factors, norms and head are
            trained), ``"activation_bases"`` (the same with bases from 300 training images), ``"channel_scaling"`` (the
            same with weights on channels, under their penalty), ``"norms"`` (a plain network's norms and head),
            ``"all"`` (all its weights) or ``"nothing"``.
        run: takes the transferred network and the trainer, and yields a network for each ratio.
    """

    start: str
    run: Callable[[nn.Module, Trainer], Iterator[Step]]


CONTESTANTS = {
    "default": Contestant("bases", Recipe(channels=True, distilled_from=0.95, recombined_from=0.99)),
    "default, plain loss": Contestant("bases", Recipe(channels=True)),
    "default, operations too": Contestant("bases", Recipe(channels=True, operations=True)),
    "torch-pruning taylor, fine-tuned": Contestant("all", TorchPruning("taylor", finetune=True)),
    "taylor per parameter": Contestant("bases", Recipe(per_parameter=True)),
    "taylor": Contestant("bases", Recipe()),
    "torch-pruning taylor, frozen": Contestant("norms", TorchPruning("taylor", finetune=False)),
    "small from scratch": Contestant("nothing", small_from_scratch),
    "truncated svd": Contestant("norms", truncated_svd),
    "default, compensated": Contestant("bases", Recipe(channels=True, compensated_from=0.95)),
    "channel scaling": Contestant("channel_scaling", channel_scaling),
    "data-aware": Contestant("activation_bases", Recipe(compensated_from=0.75)),
    "singular value": Contestant("bases", Recipe("singular_value")),
    "scaling": Contestant("bases", Recipe("scaling")),
    "torch-pruning bn scale, fine-tuned": Contestant("all", TorchPruning("bn_scale", finetune=True)),
    "torch-pruning bn scale, frozen": Contestant("norms", TorchPruning("bn_scale", finetune=False)),
    "unpruned": Contestant("bases", unpruned("factors")),
    "unpruned, fine-tuned": Contestant("all", unpruned("all")),
}
"""In the order in which they run: those that tell most come first. Only the default learns from more than labels."""


def transferred(start: str, network: nn.Module, trainer: Trainer, kept: Path) -> tuple[nn.Module, float]:
    """Return a network after the epochs before the first cut, and the seconds that they took.

    Contestants that start alike share it: it is trained once and kept in a file of this machine.
    """
    settings = trainer.settings
    if start == "nothing":
        return network, 0.0
    began = time.process_time()
    rate = settings.weight_learning_rate if start == "all" else settings.learning_rate
    if start == "bases":
        network = mbp.decompose(network)
    elif start == "activation_bases":
        network = mbp.decompose(network, basis="activation", data=trainer.plain_batches(300))
    loss: Loss = cross_entropy
    if start == "channel_scaling":
        network = mbp.add_channel_scaling(mbp.decompose(network), trainer.input_shape)
        loss = mbp.ChannelScalingLoss(cross_entropy, network, CHANNEL_PENALTY)
    choose = {"norms": norms_and_head, "all": all_weights}.get(start, mbp.freeze_weights_)
    if not kept.exists():
        trainer.train(network, choose(network), settings.transfer_epochs, rate, loss)
        torch.save({"state": network.state_dict(), "seconds": time.process_time() - began}, kept)
    else:
        choose(network)
    saved = torch.load(kept, weights_only=True)
    network.load_state_dict(saved["state"])
    return network, saved["seconds"]


def run(
    name: str, contestant: Contestant, images: Images, network: nn.Module, fold: int, seed: int, kept: Path
) -> dict[str, object]:
    """Run one contestant on one fold.

    Returns:
        for each ratio what the network costs, how long it took until then, and its score for each test image.
    """
    trainer = Trainer(images, fold, seed, Settings())
    torch.manual_seed(seed)
    network, seconds = transferred(contestant.start, network, trainer, kept)
    trainer = Trainer(images, fold, seed + 1000, Settings())
    steps = []
    first = [(0.0, network)] if contestant.start != "nothing" else []
    began = time.process_time()
    paused = 0.0
    for ratio, small in itertools.chain(first, contestant.run(network, trainer)):
        reached = time.process_time()
        spent = {"ratio": ratio, "seconds": round(seconds + reached - began - paused, 1)}
        steps.append({**spent, **measured(small, trainer), **(latency(small, trainer) if fold == 0 else {})})
        paused += time.process_time() - reached
    return {"contestant": name, "seed": seed, "fold": fold, "settings": asdict(trainer.settings), "steps": steps}


def measured(network: nn.Module, trainer: Trainer) -> dict[str, object]:
    """Return what a network costs as it would be deployed, and its scores."""
    with evaluation_mode(network):
        scores = trainer.scores(network)
        cost = mbp.measure_complexity(deployed(network), trainer.input_shape)
    return {
        "parameters": cost.parameters,
        "macs": cost.macs,
        "scores": [round(score, 4) for score in scores.tolist()],
    }


def latency(network: nn.Module, trainer: Trainer) -> dict[str, object]:
    """Return the time of one image as the network would be deployed; folds differ by less than the noise."""
    with evaluation_mode(network):
        found = mbp.measure_latency(deployed(network), trainer.input_shape, repeats=10, warm_up=2)
    return {"latency_ms": round(found.median_ms, 3)}


def deployed(network: nn.Module) -> nn.Module:
    """Return a network of ordinary layers in evaluation mode."""
    decomposed = any(isinstance(module, (mbp.DecomposedConv, mbp.DecomposedLinear)) for module in network.modules())
    return (mbp.recompose(network) if decomposed else network).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["run", "summarize"])
    parser.add_argument("--data", type=Path, required=True, help="the folder of shared data")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--sets", nargs="+", default=["radiographs", "pneumoniamnist"])
    parser.add_argument("--network", default="resnet18", choices=["resnet18", "densenet121"])
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS), choices=list(CONTESTANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--earlier", type=Path, help="a summary whose contestants stay where fewer seeds are in OUTPUT")
    parser.add_argument("--note", help="what to know of the rows of OUTPUT, such as another machine")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.verb == "summarize":
        found = {
            "command": "python " + " ".join(["tests/benchmarks/race.py", *sys.argv[1:]]),
            "torch": torch.__version__,
        }
        references = [name for name, contestant in CONTESTANTS.items() if contestant.start == "bases"]
        earlier = json.loads(arguments.earlier.read_text())["rows"] if arguments.earlier else ()
        summary = summarize(arguments.data, arguments.output, references, earlier, arguments.note)
        print(json.dumps({**found, **summary}, indent=1))
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    bound_kernel_cache(load_network(arguments.network, arguments.data, 0))  # as a bundle's run does
    images = {name: load(name, arguments.data) for name in arguments.sets}
    for seed, name, contestant in itertools.product(arguments.seeds, arguments.sets, arguments.contestants):
        for fold in range(len(images[name].folds)):
            stem = f"{name}-{arguments.network}-{seed}-{fold}"
            file = arguments.output / f"{stem}-{contestant.replace(' ', '_').replace(',', '')}.json"
            if file.exists():
                continue
            one = CONTESTANTS[contestant]
            kept = arguments.output / f"{stem}-{one.start}.pt"
            network = load_network(arguments.network, arguments.data, seed)
            result = run(contestant, one, images[name], network, fold, seed, kept)
            part = file.with_suffix(".part")
            part.write_text(json.dumps({"data": name, "network": arguments.network, **result}))
            part.rename(file)
            print(f"{file.name}: {result['steps'][-1]['seconds']:.0f} s", flush=True)  # type: ignore[index]


if __name__ == "__main__":
    main()
