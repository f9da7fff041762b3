"""Pretrains MONAI's DenseNet121 on CIFAR-10, for the race: a source network with dense connections.

python tests/benchmarks/pretrain_densenet.py ../shared/data/cifar10_jpeg.tar.xz OUTPUT/densenet121_cifar10.pt

Writes the weights in half precision, the accuracy on the test images, and all settings. On a GPU the defaults take some
minutes; on a CPU, ask for fewer images and epochs (--images 10000 --epochs 6), and the file will say so.
"""

from __future__ import annotations

import argparse
import io
import tarfile
import time
from pathlib import Path

import numpy as np
import torch
from monai.networks.nets import DenseNet121
from PIL import Image
from torch import nn
from torch.nn import functional

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)


def read(archive: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return images, uint8 of shape (images, 3, 32, 32), and labels of the sections ``train`` and ``test``."""
    found: dict[str, list[tuple[str, np.ndarray]]] = {"train": [], "test": []}
    with tarfile.open(archive) as files:
        for member in files:
            parts = Path(member.name).parts
            if member.isfile() and member.name.endswith(".jpg"):
                content = files.extractfile(member)
                assert content is not None
                pixels = np.asarray(Image.open(io.BytesIO(content.read())).convert("RGB"))
                found[parts[-3]].append((parts[-2], pixels))
    classes = sorted({name for name, _ in found["train"]})
    return {
        section: (
            torch.from_numpy(np.stack([pixels for _, pixels in items])).permute(0, 3, 1, 2).contiguous(),
            torch.tensor([classes.index(name) for name, _ in items]),
        )
        for section, items in found.items()
    }


def prepared(pixels: torch.Tensor, size: int, device: torch.device) -> torch.Tensor:
    """Return normalized images of the size that the network is trained at."""
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, STD))
    x = (pixels.to(device).float() / 255 - mean) / std
    return x if size == x.shape[-1] else functional.interpolate(x, (size, size), mode="bilinear", align_corners=False)


def augmented(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return a batch shifted by up to an eighth of the image, half of the images mirrored."""
    margin = x.shape[-1] // 8
    padded = functional.pad(x, [margin] * 4)
    top, left = (int(torch.randint(0, 2 * margin + 1, (), generator=generator)) for _ in range(2))
    shifted = padded[..., top : top + x.shape[-2], left : left + x.shape[-1]]
    mirrored = torch.rand(len(x), generator=generator).lt(0.5).to(x.device).view(-1, 1, 1, 1)
    return torch.where(mirrored, shifted.flip(-1), shifted)


def accuracy(network: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, size: int, device: torch.device) -> float:
    """Return the share of images that are classified rightly."""
    network.eval()
    right = 0
    with torch.inference_mode():
        for x, y in zip(pixels.split(256), labels.split(256), strict=True):
            right += int((network(prepared(x, size, device)).argmax(1).cpu() == y).sum())
    return right / len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--size", type=int, default=64, help="images are enlarged to this many pixels")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--images", type=int, default=50000, help="training images that are used")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.1, help="largest, of SGD with Nesterov momentum 0.9")
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    sections = read(arguments.archive)
    chosen = torch.randperm(len(sections["train"][1]), generator=generator)[: arguments.images]
    pixels, labels = (tensor[chosen] for tensor in sections["train"])
    network = DenseNet121(spatial_dims=2, in_channels=3, out_channels=10).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=arguments.learning_rate,
        momentum=0.9,
        nesterov=True,
        weight_decay=arguments.weight_decay,
    )
    steps = arguments.epochs * (len(labels) // arguments.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, arguments.learning_rate, total_steps=steps)
    began = time.monotonic()
    for epoch in range(arguments.epochs):
        network.train()
        order = torch.randperm(len(labels), generator=generator)
        for start in range(0, len(labels) - arguments.batch_size + 1, arguments.batch_size):
            batch = order[start : start + arguments.batch_size]
            x = augmented(prepared(pixels[batch], arguments.size, device), generator)
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = functional.cross_entropy(
                    network(x.contiguous(memory_format=torch.channels_last)), labels[batch].to(device)
                )
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: loss {float(loss.detach()):.3f}, {time.monotonic() - began:.0f} s", flush=True)
    reached = accuracy(network, *sections["test"], arguments.size, device)
    settings = {key: value for key, value in vars(arguments).items() if key not in ("archive", "output")}
    state = {key: value.detach().cpu() for key, value in network.state_dict().items()}
    state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    torch.save({"state_dict": state, "test_accuracy": reached, "settings": settings}, arguments.output)
    print(f"test accuracy {reached:.4f}")


if __name__ == "__main__":
    main()
