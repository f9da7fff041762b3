"""What a deployed network sees: radiographs, pictures or volumes, how they are found and how they are prepared."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monai.transforms import Compose

from ..data.image_transforms import picture_transforms, radiograph_transforms
from ..data.volume_transforms import volume_transforms
from .cases import CaseDataset, list_radiographs
from .deployed import image_kind
from .pictures import list_images
from .volumes import list_volumes

__all__ = ["IMAGE_KINDS", "ImageKind", "input_shape", "list_cases", "prepare_cases"]

_Deployment = Mapping[str, Any]


@dataclass(frozen=True)
class ImageKind:
    """One kind of images.

    Attributes:
        list_cases: lists the cases of a folder, from the folder, ``on_problem``, the deployment and ``progress``.
        transforms: returns MONAI's transforms, the same as in training, from the deployment.
        id_column: name of the column of ids in a table of predictions.
        batch_size: images in a batch, where no other number is asked for.
        is_dicom: whether they are DICOM files, or can be.
    """

    list_cases: Callable[[str | os.PathLike[str] | None, str, _Deployment, bool], list[dict[str, Any]]]
    transforms: Callable[[_Deployment], list[Callable[[Any], Any]]]
    id_column: str
    batch_size: int
    is_dicom: bool


IMAGE_KINDS = {
    "radiographs": ImageKind(
        lambda folder, on_problem, _, progress: list_radiographs(folder, on_problem, progress),
        radiograph_transforms,
        "SOPInstanceUID",
        16,
        True,
    ),
    "pictures": ImageKind(
        lambda folder, on_problem, _, progress: list_images(folder, on_problem, progress),
        picture_transforms,
        "case_id",
        16,
        False,
    ),
    "volumes": ImageKind(list_volumes, volume_transforms, "case_id", 4, True),
}
"""By the words of :func:`~monai_basisprune.inference.image_kind`."""


def list_cases(
    deployment: _Deployment,
    dataset_dir: str | os.PathLike[str] | None,
    on_problem: str = "raise",
    progress: bool = True,
) -> list[dict[str, Any]]:
    """List the images of a folder that a deployed network is for.

    Args:
        deployment: see :func:`read_deployment`.
        dataset_dir: the folder; of pictures, or a ``.npz`` file.
        on_problem: ``"raise"``, or ``"skip"`` to list those that cannot be used with the reason.
        progress: whether to show a progress bar.

    Returns:
        see :func:`list_radiographs`, :func:`list_images` and :func:`list_volumes`.

    Raises:
        CohortError: if an image cannot be used, all of them listed, or if there is none.
    """
    return IMAGE_KINDS[image_kind(deployment)].list_cases(dataset_dir, on_problem, deployment, progress)


def input_shape(deployment: _Deployment) -> tuple[int, ...]:
    """Return the shape of one prepared image, channels first, without the batch.

    Args:
        deployment: see :func:`read_deployment`.
    """
    if image_kind(deployment) == "volumes":
        return 1, *deployment["volume_size"]
    return deployment["image_channels"], deployment["image_size"], deployment["image_size"]


def prepare_cases(cases: Sequence[Mapping[str, Any]], deployment: _Deployment) -> CaseDataset:
    """Return a data set of cases, each prepared as in training; a damaged one does not stop it.

    Args:
        cases: what :func:`list_cases` returned.
        deployment: see :func:`read_deployment`.
    """
    transforms = IMAGE_KINDS[image_kind(deployment)].transforms(deployment)
    return CaseDataset(cases, Compose(transforms), input_shape(deployment))
