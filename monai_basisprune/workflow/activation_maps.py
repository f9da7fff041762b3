"""Class activation maps of two networks for one case, as small pictures."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from monai.visualize import GradCAM
from torch import nn

from ..errors import BasisPruneError
from ..report import CasePictures

__all__ = ["ActivationMaps", "activation_layer"]

_LONGEST = 224  # pixels of the longer side of a picture


@dataclass(frozen=True)
class ActivationMaps:
    """Grad-CAM of the unpruned and the pruned network.

    Args:
        original: a copy of the unpruned network, prepared by :meth:`of`.
        pruned: a copy of the pruned network.
        layer: the layer whose feature map is weighted.
        device: where to compute.
        positive: index of the output of the positive class.
    """

    original: GradCAM
    pruned: GradCAM
    layer: str
    device: torch.device
    positive: int

    @classmethod
    def of(
        cls, original: nn.Module, pruned: nn.Module, image: torch.Tensor, device: torch.device | str
    ) -> ActivationMaps:
        """Find the layer and prepare copies of both networks; the networks themselves get no hooks.

        Args:
            original: the unpruned network.
            pruned: the pruned network, with the same names of layers.
            image: one image, channels first, without the batch.
            device: where to compute.

        Raises:
            BasisPruneError: if no layer has a feature map.
        """
        place = torch.device(device)
        copies = [_copy(network, place) for network in (original, pruned)]
        batch = torch.as_tensor(image).unsqueeze(0).to(place)
        layer = activation_layer(copies[0], batch)
        with torch.no_grad():
            positive = copies[0](batch).shape[1] - 1
        first, second = (GradCAM(network, target_layers=layer, postprocessing=_unchanged) for network in copies)
        return cls(first, second, layer, place, positive)

    def draw(self, image: torch.Tensor, output: int | None = None) -> CasePictures:
        """Return the image and both maps; of a volume, the slice along the last axis with the largest activation.

        Volumes lie as :func:`~monai_basisprune.data.volume_transforms` turns them, so the slice is an axial one; it is
        drawn as seen from the feet, with the patient's right on the left and the front on top. A picture in color is
        drawn as the mean of its colors, other images by their first channel. Each map is the weight of evidence for one
        class, divided by its own largest value.

        Args:
            image: one image, channels first, without the batch.
            output: index of the output of that class; None for the positive class, which is the last one.

        Raises:
            BasisPruneError: if the image is neither flat nor a volume, or a map is not finite.
        """
        if image.ndim not in (3, 4):
            raise BasisPruneError(
                f"a picture was asked for of an image with {image.ndim - 1} dimensions; 2 or 3 are drawn"
            )
        batch = torch.as_tensor(image).detach().unsqueeze(0).to(self.device)
        place = self.positive if output is None else output
        maps = [self._map(cam, batch, place) for cam in (self.original, self.pruned)]
        planes = batch[0].cpu().double()
        # one color alone can hide what is seen: of skin, hardly anything shows in red
        shown = planes.mean(dim=0) if image.ndim == 3 and len(planes) == 3 else planes[0]
        slice_index = None
        if image.ndim == 4:
            slice_index = _strongest_slice(maps[0] + maps[1])
            # axes run to the right, the front and the head: shown as radiologists do, front up, right on the left
            shown, *maps = (one[..., slice_index].T.flip(0, 1) for one in (shown, *maps))
        low, high = float(shown.min()), float(shown.max())
        shown = (shown - low) / (high - low) if high > low else torch.zeros_like(shown)
        flat, before, after = (_resize(one).numpy() for one in (shown, *maps))
        return CasePictures(image=flat, original=before, pruned=after, slice_index=slice_index)

    def _map(self, cam: GradCAM, batch: torch.Tensor, output: int) -> torch.Tensor:
        # the gradient must reach the layer although all weights below it may be frozen
        found = cam(x=batch.clone().requires_grad_(True), class_idx=output)
        heat = torch.as_tensor(found).detach()[0, 0].cpu().double()
        if not bool(heat.isfinite().all()):
            raise BasisPruneError("the map holds NaN or infinite values")
        return heat / heat.max().clamp_min(1e-12)


def activation_layer(network: nn.Module, images: torch.Tensor) -> str:
    """Return the name of the last module with a feature map over space: the last one before the head pools it.

    Modules that run several times in one pass are left out, since their map is not that of one place.

    Args:
        network: the network, on the device of the images.
        images: a batch; the number of its dimensions tells how many a feature map has.

    Raises:
        BasisPruneError: if there is none.
    """
    calls: Counter[str] = Counter()
    order: list[str] = []

    def note(name: str, output: Any) -> None:
        calls[name] += 1
        if isinstance(output, torch.Tensor) and output.ndim == images.ndim and output[0, 0].numel() > 1:
            order.append(name)

    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: note(name, output))
        for name, module in network.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    once = [name for name in order if calls[name] == 1]
    if not once:
        raise BasisPruneError("no layer of the network has a feature map over space")
    return once[-1]


def _copy(network: nn.Module, device: torch.device) -> nn.Module:
    # MONAI's GradCAM leaves its hooks behind, and hooks cannot watch what is changed in place
    twin = copy.deepcopy(network).to(device).eval()
    for module in twin.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    return twin


def _unchanged(found: torch.Tensor) -> torch.Tensor:
    return found


def _strongest_slice(strength: torch.Tensor) -> int:
    """Return the slice with the largest value; of several, as a coarse map has at its ends, the one in their middle."""
    highest = strength.amax(dim=(0, 1))
    peaks = (highest >= highest.max() - 1e-6).nonzero().flatten()
    return int(peaks[len(peaks) // 2])


def _resize(plane: torch.Tensor) -> torch.Tensor:
    factor = _LONGEST / max(plane.shape)
    size = [max(1, round(length * factor)) for length in plane.shape]
    mode = {"mode": "area"} if factor < 1 else {"mode": "bilinear", "align_corners": False}
    return nn.functional.interpolate(plane[None, None], size=size, **mode)[0, 0]
