"""Weights from elsewhere, made to fit the network of a task."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from tqdm import tqdm

from ..data import synthetic_source_images
from ..distributed import process_rank
from ..errors import ConfigurationError, PlanMismatchError, shortened_list
from ..reading import is_ordinary_tensor, read_weights
from ..selection import linear_layers

__all__ = ["load_pretrained", "pretrain_on_images", "pretrain_on_synthetic_task", "transfer_weights"]

logger = logging.getLogger(__name__)


def load_pretrained(
    network: nn.Module,
    pretrained: str | os.PathLike[str] | None,
    imagenet_network: Callable[[], nn.Module] | None = None,
    image_size: int = 64,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: bool = True,
) -> nn.Module:
    """Give a network its pretrained weights.

    Args:
        network: the network of the task; it is left as it is.
        pretrained: ``"imagenet"``, ``"synthetic"`` (pretrained here on a simulated source task, without any download)
            or the path of a checkpoint, which holds a state dict, alone or under ``state_dict`` or ``model``.
        imagenet_network: makes the network with ImageNet weights by MONAI's own loader, such as
            ``DenseNet121(..., in_channels=3, pretrained=True)``; it may download them.
        image_size: size of the images of the synthetic source task, in pixels.
        device: where the synthetic source task is trained.
        seed: seed of the synthetic source task.
        progress: whether to show a progress bar.

    Returns:
        a new network with the weights; the head, where its number of classes differs, is that of ``network``.

    Raises:
        ConfigurationError: if the weights cannot be found or fetched; the message says what to pass.
        PlanMismatchError: if they do not fit the network; every difference is listed.
    """
    if pretrained is None:
        raise ConfigurationError(
            "No pretrained weights were given: pass --pretrained imagenet, --pretrained synthetic, or --pretrained "
            "/path/to/checkpoint.pt. Pruning by bases rests on pretrained weights."
        )
    if pretrained == "synthetic":
        return pretrain_on_synthetic_task(network, image_size, device=device, seed=seed, progress=progress)
    if pretrained == "imagenet":
        if imagenet_network is None:
            raise ConfigurationError(
                f"There is no loader of ImageNet weights for {type(network).__name__}: pass --pretrained "
                f"/path/to/checkpoint.pt."
            )
        try:
            # MONAI's loader leaves random, in silence, what its file lacks: that differs from one loading to another
            network_with_weights = imagenet_network()
            source, again = network_with_weights.state_dict(), imagenet_network().state_dict()
        except (HTTPException, OSError, RuntimeError) as error:
            raise ConfigurationError(
                f"The ImageNet weights of {type(network).__name__} could not be fetched ({error}). Without a "
                f"connection, download that file elsewhere and put it into hub/checkpoints of the folder that the "
                f"environment variable TORCH_HOME names, or pass a state dict of this network with --pretrained "
                f"/path/to/checkpoint.pt."
            ) from error
        head = _head_entries(network_with_weights)
        random = [name for name in source if name not in head and not torch.equal(source[name], again[name])]
        if random:
            raise ConfigurationError(
                f"The ImageNet weights of {type(network).__name__} are incomplete, {random} would be random: remove "
                f"the file that was fetched earlier and fetch it again, or pass --pretrained /path/to/checkpoint.pt."
            )
        return transfer_weights(network, source, "the ImageNet weights")
    path = Path(pretrained)
    if not path.is_file():
        raise ConfigurationError(
            f"--pretrained must be 'imagenet', 'synthetic' or the path of a checkpoint; there is no file "
            f"{path.name!r} at the place that was given."
        )
    try:
        content = read_weights(path)
    except ValueError as error:
        raise ConfigurationError(f"The checkpoint {path.name!r} cannot be read: {error}.") from error
    return transfer_weights(network, _state_dict(content, path.name), f"the checkpoint {path.name!r}")


def transfer_weights(network: nn.Module, state: Mapping[str, torch.Tensor], origin: str = "the weights") -> nn.Module:
    """Return a copy of a network with the weights of another one, adapted where only the ends differ.

    A first convolution for one channel takes the sum over the channels of the source, one for several channels takes
    its share of a single one, so that a gray image gives the same features. A last linear layer for another number of
    classes keeps the values that it has in ``network``, and so does one that the source lacks altogether, as MedicalNet
    does.

    Args:
        network: the network of the task; it is left as it is.
        state: a state dict; a prefix ``module.`` is removed, half precision is widened.
        origin: what to call the weights in a message.

    Raises:
        PlanMismatchError: if anything else differs; every difference is listed and nothing is loaded in part.
    """
    new = copy.deepcopy(network)
    own = new.state_dict()
    source = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    head = _head_entries(new)
    first = next((name for name, tensor in own.items() if tensor.ndim > 2), None)
    problems, loaded = [], {}
    for name, tensor in own.items():
        if name in head and not head & source.keys():
            loaded[name] = tensor
            logger.info("%s is not among the weights and starts anew.", name)
            continue
        if name not in source:
            problems.append(f"{name}: missing")
            continue
        value = source[name].to(tensor.dtype)
        if name == first and value.shape[2:] == tensor.shape[2:] and value.shape[0] == tensor.shape[0]:
            if tensor.shape[1] == 1:
                value = value.sum(dim=1, keepdim=True)
            elif value.shape[1] == 1:
                value = value.expand_as(tensor) / tensor.shape[1]
        if value.shape == tensor.shape:
            loaded[name] = value
        elif name in head and value.shape[1:] == tensor.shape[1:]:
            loaded[name] = tensor
            logger.info("%s differs in the number of classes and starts anew.", name)
        else:
            problems.append(f"{name}: shape {tuple(value.shape)}, the network has {tuple(tensor.shape)}")
    problems += [f"{name}: unexpected" for name in source if name not in own]
    if problems:
        raise PlanMismatchError(
            f"{origin[0].upper()}{origin[1:]} cannot be used for {type(network).__name__}, {len(problems)} of its "
            f"{len(own)} entries differ; pass the network that they belong to (--network_def):\n"
            f"{shortened_list(problems)}"
        )
    new.load_state_dict(loaded, strict=True)
    return new


def pretrain_on_synthetic_task(
    network: nn.Module,
    image_size: int,
    cases: int = 2400,
    epochs: int = 5,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: bool = True,
) -> nn.Module:
    """Pretrain a 2D classifier on simulated patterns, a source task that needs no download.

    Args:
        network: the network; its last ``nn.Linear`` is its head. It is left as it is.
        image_size: height and width of the images, in pixels.
        cases: number of images.
        epochs: number of epochs.
        batch_size: images in a batch.
        device: where to train.
        seed: seed of images, order and head.
        progress: whether to show a progress bar.

    Returns:
        a new network; its head is that of ``network``.

    Raises:
        ConfigurationError: if the network has no linear head.
    """
    simulated, classes = synthetic_source_images(cases, image_size=image_size, seed=seed)
    return pretrain_on_images(network, simulated, classes, epochs, batch_size, device, seed, progress)


def pretrain_on_images(
    network: nn.Module,
    simulated: npt.NDArray[np.float32],
    classes: npt.NDArray[np.int64],
    epochs: int = 5,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: bool = True,
) -> nn.Module:
    """Pretrain a classifier on images of a source task; see :func:`pretrain_on_synthetic_task`.

    Args:
        network: the network; it is left as it is.
        simulated: images or volumes of one channel, of shape (cases, 1, ...).
        classes: their classes, of shape (cases,).
        epochs: number of epochs.
        batch_size: images in a batch.
        device: where to train.
        seed: seed of order and head.
        progress: whether to show a progress bar.
    """
    images, labels = torch.as_tensor(simulated), torch.as_tensor(classes)
    cases = len(images)
    images = (images - images.mean()) / images.std()
    pretrained = copy.deepcopy(network).to(device)
    linear = linear_layers(pretrained)
    if not linear:
        raise ConfigurationError(f"{type(network).__name__} has no linear head, so it cannot be pretrained here.")
    parent, _, name = linear[-1].rpartition(".")
    head: Any = pretrained.get_submodule(linear[-1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new_head = nn.Linear(head.in_features, int(labels.max()) + 1).to(device)
    setattr(pretrained.get_submodule(parent), name, new_head)
    channels = next(p for p in pretrained.parameters() if p.ndim == images.ndim).shape[1]
    optimizer = torch.optim.AdamW(pretrained.parameters(), lr=1e-3, weight_decay=1e-2)
    steps = epochs * (cases // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    pretrained.train()
    bar = tqdm(total=steps, desc="Pretraining on the synthetic source task", disable=not progress or process_rank() > 0)
    correct = 0.0
    for _ in range(epochs):
        for batch in torch.randperm(cases, generator=generator).split(batch_size)[: cases // batch_size]:
            x, y = images[batch].expand(-1, channels, *images.shape[2:]).to(device), labels[batch].to(device)
            optimizer.zero_grad()
            outputs = pretrained(x)
            loss = nn.functional.cross_entropy(outputs, y)
            loss.backward()
            optimizer.step()
            schedule.step()
            correct = 0.95 * correct + 0.05 * float((outputs.argmax(1) == y).float().mean())
            bar.set_postfix(accuracy=f"{correct:.2f}")
            bar.update()
    bar.close()
    logger.info("Pretrained on %d synthetic images; running training accuracy %.2f.", cases, correct)
    setattr(pretrained.get_submodule(parent), name, copy.deepcopy(head))
    return pretrained.cpu()


def _head_entries(network: nn.Module) -> set[str]:
    """Return the names that the head has in a state dict."""
    return {f"{name}.{part}" for name in linear_layers(network)[-1:] for part in ("weight", "bias")}


def _state_dict(content: Any, name: str) -> Mapping[str, torch.Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(k, str) and k.isprintable() and isinstance(v, torch.Tensor) for k, v in content.items())
    ):
        raise ConfigurationError(
            f"The checkpoint {name!r} holds no state dict, neither alone nor under 'state_dict' or 'model'."
        )
    unusual = [key for key, tensor in content.items() if not is_ordinary_tensor(tensor)]
    if unusual:
        raise ConfigurationError(
            f"The checkpoint {name!r} holds tensors that are sparse, quantized, nested, or larger than their values; "
            f"save those of an ordinary network:\n{shortened_list(unusual)}"
        )
    return content
