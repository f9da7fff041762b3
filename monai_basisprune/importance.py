"""Scores that rank the bases of a decomposed network; the lowest go first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from .activation import output_moments, raise_problems
from .decomposition import decomposed_layers
from .errors import ConfigurationError
from .threads import one_thread

__all__ = [
    "NORMALIZATIONS",
    "ActivationImportance",
    "ScalingImportance",
    "SingularValueImportance",
    "TaylorImportance",
    "all_finite",
]

NORMALIZATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda scores: scores,
    "l2": lambda scores: scores / scores.norm().clamp_min(torch.finfo(scores.dtype).tiny),
    "mean": lambda scores: scores / scores.mean().clamp_min(torch.finfo(scores.dtype).tiny),
    "max": lambda scores: scores / scores.max().clamp_min(torch.finfo(scores.dtype).tiny),
}
"""Ways to make the scores of different layers comparable."""


def all_finite(gradients: Iterable[torch.Tensor], skip_nonfinite: bool) -> bool:
    """Return whether gradients are finite.

    Raises:
        ConfigurationError: if they are not, unless ``skip_nonfinite`` is set.
    """
    finite = all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    if not finite and not skip_nonfinite:
        raise ConfigurationError(
            "accumulate() found infinite or NaN gradients: lower the learning rate or check the images; scores "
            "made of them would be meaningless."
        )
    return finite


class _Importance:
    """Holds what all criteria share: the network and the normalization within each layer."""

    def __init__(self, network: nn.Module, normalization: str = "none") -> None:
        known = sorted([*NORMALIZATIONS, "size"])
        if normalization not in known:
            raise ValueError(f"normalization must be one of {known}, got {normalization!r}.")
        decomposed_layers(network)  # raises where there is nothing to score
        self.network = network
        self.normalization = normalization

    def _raw_scores(self) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def scores(self) -> dict[str, torch.Tensor]:
        """Return one score for each basis: ``{layer name: tensor of shape (rank,)}``, on the host, in float64."""
        scores = self._raw_scores()
        if self.normalization == "size":
            sizes = {name: layer.basis_size() for name, layer in decomposed_layers(self.network)}
            return {name: values / sizes[name] for name, values in scores.items()}
        return {name: NORMALIZATIONS[self.normalization](values) for name, values in scores.items()}


class SingularValueImportance(_Importance):
    """The singular value of each basis: how much of the pretrained weight it carries (needs no data).

    Computed as the product of the norms of both halves, so it equals the singular value as long as the basis filters
    are orthonormal; for bases from activations it is how much the weight amplifies in their direction. The scaling
    factors are left out: see :class:`ScalingImportance`.

    Args:
        network: a decomposed network.
        normalization: ``"none"`` (default); ``"l2"``, ``"mean"`` or ``"max"`` of the layer; or ``"size"``, what
            a basis costs in weights: the score for each parameter saved.

    Example:
        >>> from monai_basisprune import decompose
        >>> SingularValueImportance(decompose(nn.Conv2d(3, 4, 3))).scores()[""].shape
        torch.Size([4])
    """

    @one_thread()
    def _raw_scores(self) -> dict[str, torch.Tensor]:
        scores = {}
        for name, layer in decomposed_layers(self.network):
            columns = layer.scaling.weight.detach().cpu().double()
            rows = layer.basis.weight.detach().cpu().flatten(1)
            # a norm along columns takes several times as long as this
            squares = columns.reshape(layer.groups, -1, columns.shape[1]).square().sum(dim=1).reshape(-1)
            norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.promote_types(rows.dtype, torch.float32))
            scores[name] = squares.sqrt() * norms
        return scores


class ActivationImportance(_Importance):
    """The energy of each basis: the mean square that the layer's outputs over images lose when it is removed.

    Exact for one layer by itself, for both kinds of bases, whose columns of the scaling are orthogonal: for those of
    ``decompose(network, basis="activation")`` it is the eigenvalue, times the square of the scaling factor. Where the
    bias of the layer takes the mean of a basis that is removed, only the variance counts.

    Args:
        network: a decomposed network.
        data: unlabeled images, as for :func:`~monai_basisprune.decompose`; read at each call of ``scores()``.
        normalization: ``"l2"`` (default), ``"none"``, ``"mean"`` or ``"max"`` of the layer. The scale of what a layer
            puts out says nothing about its weight in the result where a norm follows, so it is taken out.

    Raises:
        ActivationError: if images or layers do not allow it, from ``scores()``; all problems are listed.

    Example:
        >>> from monai_basisprune import decompose
        >>> images = [torch.rand(4, 3, 8, 8)]
        >>> network = decompose(nn.Conv2d(3, 4, 3), basis="activation", data=images)
        >>> ActivationImportance(network, images).scores()[""].shape
        torch.Size([4])
    """

    def __init__(self, network: nn.Module, data: Iterable[Any], normalization: str = "l2") -> None:
        super().__init__(network, normalization)
        self.data = data

    def _raw_scores(self) -> dict[str, torch.Tensor]:
        layers = dict(decomposed_layers(self.network))
        problems: list[str] = []
        moments = output_moments(self.network, {name: m.basis for name, m in layers.items()}, self.data, problems)
        scores = {}
        for name, layer in layers.items():
            if moments[name].samples == 0:
                problems.append(f"{name}: no image reaches it")
                continue
            if not moments[name].is_finite():
                problems.append(f"{name}: its outputs are NaN or infinite")
                continue
            energy = moments[name].second_moment().diagonal(dim1=1, dim2=2)
            if layer.means is not None:
                energy = (energy - moments[name].mean().square()).clamp_min(0)
            weight = layer.scaling.folded_weight().detach().cpu().double()
            columns = weight.reshape(layer.groups, -1, layer.rank() // layer.groups).square().sum(dim=1)
            scores[name] = (energy * columns).reshape(-1)
        raise_problems(f"{type(self.network).__name__} cannot be scored by its activations", problems)
        return scores


class ScalingImportance(_Importance):
    """The magnitude of each scaling factor.

    All are 1 before training; ties are broken in favor of larger singular values when a network is pruned.

    Args:
        network: a decomposed network.
        normalization: ``"none"`` (default); ``"l2"``, ``"mean"`` or ``"max"`` of the layer; or ``"size"``, what
            a basis costs in weights: the score for each parameter saved.
    """

    def _raw_scores(self) -> dict[str, torch.Tensor]:
        return {
            name: layer.scaling.scaling_factors.detach().cpu().double().abs()
            for name, layer in decomposed_layers(self.network)
        }


class TaylorImportance(_Importance):
    """First-order Taylor estimate of what the loss changes by when a basis is removed.

    The score of basis j is the mean over mini-batches of ``(s_j · ∂L/∂s_j)²`` with its scaling factor ``s_j``
    (Molchanov et al., CVPR 2019, equation 8, applied to bases as in Wong et al., arXiv 2108.02893v2).

    Args:
        network: a decomposed network, whose scaling factors require a gradient.
        reduction: ``"square"`` (default) for the mean of squares or ``"abs"`` for the mean of magnitudes.
        normalization: ``"none"`` (default); ``"l2"``, ``"mean"`` or ``"max"`` of the layer; or ``"size"``, what
            a basis costs in weights: the score for each parameter saved.

    Example:
        >>> from monai_basisprune import decompose
        >>> network = decompose(nn.Conv2d(3, 4, 3))
        >>> taylor = TaylorImportance(network)
        >>> network(torch.rand(2, 3, 8, 8)).square().mean().backward()
        >>> taylor.accumulate()
        True
        >>> taylor.scores()[""].shape
        torch.Size([4])
    """

    def __init__(self, network: nn.Module, reduction: str = "square", normalization: str = "none") -> None:
        super().__init__(network, normalization)
        if reduction not in ("square", "abs"):
            raise ValueError(f"reduction must be 'square' or 'abs', got {reduction!r}.")
        self.reduction = reduction
        self.reset()

    def reset(self) -> None:
        """Forget everything that was accumulated; needed after the network was pruned."""
        self.batches = 0
        self._layers = decomposed_layers(self.network)
        self._ranks = {name: layer.rank() for name, layer in self._layers}
        self._sum: torch.Tensor | None = None

    def accumulate(self, gradient_scale: float = 1.0, skip_nonfinite: bool = False) -> bool:
        """Add the gradients that the network holds now; call it after ``backward()``, before ``optimizer.step()``.

        Args:
            gradient_scale: what the loss was multiplied by before ``backward()``, as by an AMP gradient scaler.
            skip_nonfinite: leave a batch with infinite or NaN gradients out, as a gradient scaler does, instead of
                raising.

        Returns:
            whether the batch was added.

        Raises:
            ValueError: if a scaling factor has no gradient, a gradient is not finite, or the network was pruned since
                the last :meth:`reset`.
        """
        factors = [layer.scaling.scaling_factors for _, layer in self._layers]
        missing = [name for (name, _), factor in zip(self._layers, factors, strict=True) if factor.grad is None]
        if missing:
            raise ValueError(
                f"accumulate() found no gradient on the scaling factors of {missing}: call it after backward(), and "
                f"make sure that they require a gradient and take part in the loss."
            )
        if any(factor.numel() != self._ranks[name] for (name, _), factor in zip(self._layers, factors, strict=True)):
            raise ValueError("The network was pruned since the last reset(): call reset() after pruning.")
        # one concatenation instead of many small operations per layer: this runs at every training step
        with torch.no_grad():
            gradients = torch.cat([factor.grad.float() for factor in factors])  # type: ignore[union-attr]
            products = torch.cat([factor.float() for factor in factors]) * gradients / gradient_scale
            if not all_finite([products], skip_nonfinite):
                return False
            contribution = products.square() if self.reduction == "square" else products.abs()
            self._sum = contribution if self._sum is None else self._sum.add_(contribution)
        self.batches += 1
        return True

    def _raw_scores(self) -> dict[str, torch.Tensor]:
        if self._sum is None:
            raise ValueError("No scores yet: call accumulate() after the backward pass of at least one mini-batch.")
        mean = (self._sum.cpu().double() / self.batches).split(list(self._ranks.values()))
        return dict(zip(self._ranks, mean, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return the sums as tensors and plain numbers, for a checkpoint."""
        return {"batches": self.batches, "ranks": dict(self._ranks), "sum": None if self._sum is None else self._sum}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`.

        Raises:
            ValueError: if it belongs to a network with other layers or ranks.
        """
        ranks = {name: layer.rank() for name, layer in decomposed_layers(self.network)}
        if dict(state["ranks"]) != ranks:
            differing = sorted(
                name for name in {*state["ranks"], *ranks} if state["ranks"].get(name) != ranks.get(name)
            )
            raise ValueError(f"The saved Taylor sums belong to a network with other ranks: {differing} differ.")
        self.reset()
        self.batches = int(state["batches"])
        saved = state["sum"]
        device = self._layers[0][1].scaling.scaling_factors.device
        self._sum = None if saved is None else saved.clone().to(device)
