"""Real trainers and evaluators on a data set of a few images, for the tests of the handlers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.handlers import FailureHandler, PrunedNetworkSaver, PruningHandler, TaylorImportanceHandler

from ..networks import tiny_classifier

CASES = 12
SHAPE = (1, 8, 8)
BUDGETS = [mbp.Budget(parameters=0.3), {"parameters": 0.6}, {"parameters": 0.8}]


def cases(count: int = CASES, seed: int = 0) -> list[dict[str, Any]]:
    """Return cases with an image, a label, a patient and a position; every patient but the last two has two images."""
    generator = torch.Generator().manual_seed(seed)
    labels = [int(torch.rand(1, generator=generator) < 0.5) for _ in range(count // 2)]
    labels[:2] = [0, 1]
    return [
        {
            "image": torch.rand(1, 8, 8, generator=generator) + 0.3 * labels[i // 2],
            "label": labels[i // 2],
            "patient_id": f"patient {i // 2}" if i < count - 2 else f"patient {i}",
            "position": i,
        }
        for i in range(count)
    ]


def loader(data: Sequence[Any], batch_size: int = 4, shuffle: bool = False) -> DataLoader:
    return DataLoader(Dataset(data), batch_size=batch_size, shuffle=shuffle)


def network_and_optimizer(seed: int = 0, **arguments: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    network = mbp.decompose(tiny_classifier(seed))
    return network, torch.optim.Adam(mbp.trainable_parameters(network), lr=0.01, **arguments)


def trainer(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    handlers: Sequence[Any],
    epochs: int = 1,
    data: DataLoader | None = None,
    **arguments: Any,
) -> SupervisedTrainer:
    arguments.setdefault("loss_function", nn.CrossEntropyLoss())
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=loader(cases()) if data is None else data,
        network=network,
        optimizer=optimizer,
        train_handlers=list(handlers),
        **arguments,
    )


def evaluator(network: nn.Module, handlers: Sequence[Any], data: DataLoader, **arguments: Any) -> SupervisedEvaluator:
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=data,
        network=network,
        val_handlers=list(handlers),
        **arguments,
    )


def residual_classifier(seed: int = 0) -> nn.Module:
    """A residual network in which channels of two layers can only go together."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.stem_norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.inner, self.inner_norm = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
            self.outer = nn.Conv2d(12, 8, 3, padding=1)
            self.head = nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.stem_norm(self.stem(x)))
            x = torch.relu(x + self.outer(torch.relu(self.inner_norm(self.inner(x)))))
            return self.head(x.mean(dim=(2, 3)))

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Residual()


def images(count: int = 6) -> torch.Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(0))


def calls(network: nn.Module, module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a module of a network reads and puts out, all its calls together, channels first, in float64."""
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = module.register_forward_hook(lambda module, args, output: found.append((args[0], output)))
    with torch.no_grad():
        network.eval()(x)
    hook.remove()
    inputs, outputs = ([one.double().movedim(1, 0).flatten(1) for one in part] for part in zip(*found, strict=True))
    return torch.cat(inputs, dim=1), torch.cat(outputs, dim=1)


class Session:
    """What a bundle builds to prune bases and channels while a trainer runs."""

    def __init__(self, budgets: Any = BUDGETS, transfer: int = 2, per_round: int = 1, lr: float = 0.02, **more: Any):
        self.loss = more.get("distillation", nn.CrossEntropyLoss())
        self.network = mbp.decompose(residual_classifier())
        groups = mbp.parameter_groups(self.network, 0.01)
        trained = groups if more.get("recombined_from") is not None else groups[0]["params"]
        self.optimizer = torch.optim.Adam(trained, lr=lr)
        self.bases = mbp.TaylorImportance(self.network)
        self.channels = mbp.ChannelTaylorImportance(self.network, SHAPE)
        self.taylor = TaylorImportanceHandler(self.bases, self.channels)
        self.pruning = PruningHandler(
            self.network, self.bases, budgets, self.optimizer, transfer, per_round,
            channel_importance=self.channels, **more,
        )  # fmt: skip

    def engine(self, *handlers: Any, **arguments: Any) -> Any:
        before = [self.taylor, *handlers, self.pruning]
        arguments.setdefault("loss_function", self.loss)
        return trainer(self.network, self.optimizer, before, self.pruning.max_epochs, **arguments)

    def parts(self) -> dict[str, Any]:
        names = {"pruning": self.pruning, "network": self.network, "optimizer": self.optimizer}
        return {**names, "taylor": self.taylor}


def distillation() -> mbp.DistillationLoss:
    return mbp.DistillationLoss(loader(cases()), weight=0.8)


class AtEpoch:
    """Does something when an epoch starts."""

    def __init__(self, epoch: int, act: Callable[[], object]) -> None:
        self.epoch = epoch
        self.act = act

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED(once=self.epoch), self.act)


def watched_run(folder: Path, act: Callable[[], object] = lambda: None, epochs: int = 3, **arguments: Any) -> Engine:
    """Train for three epochs, with a folder that is watched; something happens when the second one starts."""
    network, optimizer = network_and_optimizer()
    files = arguments.pop("files", 2)
    handlers = [FailureHandler(folder, network, files), AtEpoch(2, act), PrunedNetworkSaver(network, folder)]
    engine = trainer(network, optimizer, handlers, epochs=epochs, **arguments)
    engine.run()
    return engine


def networks_in(folder: Path) -> list[nn.Module]:
    return [mbp.load_pruned(tiny_classifier(0), path) for path in sorted(folder.glob("*.pt"))]
