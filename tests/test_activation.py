from __future__ import annotations

import copy
import io
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.activation import Moments, activation_factors, grouped_features
from monai_basisprune.snapshot import restore_, take_snapshot

from .networks import relative_error, same_bits, snapshot, tiny_classifier
from .test_layers import EXAMPLES, LIMIT, convolutions, image

FEW = settings(EXAMPLES, max_examples=40)


def images(count: int = 24, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.rand(count, *tiny_classifier().input_shape)


def outputs_of(layer: nn.Module, x: torch.Tensor, groups: int) -> np.ndarray:
    """Return the outputs of a layer without its bias as (groups, channels, samples), by numpy."""
    with torch.no_grad():
        y = layer(x).double().numpy()
    dims = layer.weight.ndim - 2
    y = np.moveaxis(y, -1 - dims, 0).reshape(groups, -1, y.size // layer.weight.shape[0])
    if layer.bias is not None:
        y = y - layer.bias.detach().double().numpy().reshape(groups, -1, 1)
    return y


def check_energies(layer: nn.Module, x: torch.Tensor) -> None:
    """Cut a layer by its activations, and compare with what numpy finds in its outputs."""
    groups = getattr(layer, "groups", 1)
    decomposed = mbp.decompose(nn.Sequential(layer), "activation", ["0"], data=[x])
    cut = copy.deepcopy(decomposed[0])
    per_group = cut.rank() // groups
    y = outputs_of(layer, x, groups)
    centered = y - y.mean(axis=2, keepdims=True) if layer.bias is not None else y
    moment = centered @ centered.transpose(0, 2, 1) / y.shape[2]
    total = moment.trace(axis1=1, axis2=2).sum() + 1e-12
    # the weight stands for as many images as there are bases
    weight = layer.weight.detach().double().numpy().reshape(groups, y.shape[1], -1)
    own = weight @ weight.transpose(0, 2, 1)
    own *= (moment.trace(axis1=1, axis2=2) / own.trace(axis1=1, axis2=2))[:, None, None]
    estimate = (len(x) * moment + per_group * own) / (len(x) + per_group)
    scaling = decomposed[0].scaling.weight.detach().double().numpy().reshape(groups, -1, per_group)
    found = np.einsum("gij,gik,gkj->gj", scaling, estimate, scaling)
    np.testing.assert_allclose(found / total, np.linalg.eigvalsh(estimate)[:, ::-1][:, :per_group] / total, atol=1e-6)
    # Eckart-Young: what is removed is the error, and it is what the scores say
    energies = mbp.ActivationImportance(decomposed, [x], normalization="none").scores()["0"].reshape(groups, -1).numpy()
    wanted = np.einsum("gij,gik,gkj->gj", scaling, moment, scaling)
    np.testing.assert_allclose(energies / total, wanted / total, atol=1e-6)
    slots = (per_group + 1) // 2
    cut.keep_bases_([g * per_group + s for g in range(groups) for s in range(slots)], lambda *args: None)
    with torch.no_grad():
        error = (cut(x).double() - layer(x).double()).square().sum().item() / y.shape[2]
    assert error / total == pytest.approx(energies[:, slots:].sum() / total, abs=1e-5)
    factors = decomposed[0].scaling.weight.double().reshape(groups, -1, per_group)
    torch.testing.assert_close(
        factors.transpose(1, 2) @ factors,
        torch.eye(per_group).double().expand(groups, -1, -1),
        atol=1e-5,
        rtol=0,
    )


@st.composite
def geometries(draw) -> tuple[nn.Module, torch.Tensor]:
    convolution = draw(convolutions())
    one_channel = convolution.groups in (convolution.in_channels, convolution.out_channels)
    if one_channel and convolution.groups > 1:
        convolution = type(convolution)(4, 6, 1, groups=2)
    x = torch.cat([image(convolution) for _ in range(8)]) + 0.3
    return convolution, x


@FEW
@given(geometries())
def test_whatever_the_geometry_the_discarded_energy_is_the_error(case):
    check_energies(*case)


@FEW
@given(geometries())
def test_at_full_rank_the_network_is_the_original_one(case):
    convolution, x = case
    network = nn.Sequential(convolution)
    before, modes = snapshot(network), [module.training for module in network.modules()]
    decomposed = mbp.decompose(network, "activation", data=[x])
    assert relative_error(decomposed(x), network(x)) <= LIMIT[x.dtype]
    assert same_bits(snapshot(network), before)
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_hooks for module in (*network.modules(), *decomposed.modules()))
    again = mbp.recompose(decomposed)
    assert relative_error(again[0].weight.detach(), convolution.weight.detach()) <= LIMIT[x.dtype]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("features", [(5, 9), (9, 5)])
def test_a_linear_layer_is_cut_by_its_outputs_too(features, bias):
    torch.manual_seed(0)
    check_energies(nn.Linear(*features, bias=bias), torch.rand(40, 3, features[0]) + 1)


def test_directions_that_no_image_excites_are_kept_at_full_rank():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 12, 1))  # more outputs than inputs, and one of the inputs is always 0
    x = torch.rand(4, 2, 5, 5)
    x[:, 1] = 0
    decomposed = mbp.decompose(network, "activation", data=[x])
    other = torch.rand(4, 2, 5, 5)
    assert relative_error(decomposed(other), network(other)) <= 1e-5


def test_a_network_and_its_loader_in_every_form():
    network = tiny_classifier().train()
    x = images()
    wanted = mbp.decompose(network, "activation", data=[x])
    labels = torch.zeros(8)
    for data in (
        list(x.split(5)),
        [{"image": part, "label": labels} for part in x.split(8)],
        [(part, labels) for part in x.split(8)],
        [[part, labels] for part in x.split(8)],
        (MetaTensor(part) for part in x.split(8)),  # read once
        [x.double()],
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.zeros(24)), batch_size=7),
    ):
        found = mbp.decompose(network, "activation", data=data)
        for name in ("stem", "grouped"):
            layers = [getattr(one, name) for one in (found, wanted)]
            assert relative_error(layers[0].basis.weight, layers[1].basis.weight) < 1e-4
    assert network.training
    assert all(module.training for module in wanted.modules())
    network.eval()
    assert relative_error(wanted.eval()(x), network(x)) < 1e-5


def test_with_many_images_the_bases_are_those_of_the_images_alone():
    torch.manual_seed(0)
    layer = nn.Linear(6, 6, bias=False)
    x = torch.randn(4000, 6) @ torch.randn(6, 6)
    scaling = mbp.decompose(nn.Sequential(layer), "activation", ["0"], data=x.split(100))[0].scaling.weight
    y = layer(x).detach().double().numpy()
    vectors = np.linalg.eigh(y.T @ y)[1][:, ::-1]
    assert np.abs((scaling.double().numpy() * vectors).sum(axis=0)).min() > 0.999


def test_moments_do_not_grow_with_the_images():
    torch.manual_seed(0)
    x = torch.rand(50, 6, 4, 4)
    streamed, whole = Moments(), Moments()
    for part in x.split(7):
        streamed.add(grouped_features(part, 2, 2))
    whole.add(grouped_features(x, 2, 2))
    assert streamed.products.shape == (2, 3, 3)
    assert streamed.samples == whole.samples == 50 * 16
    flat = x.double().movedim(1, 0).reshape(6, -1).numpy()
    np.testing.assert_allclose(streamed.second_moment()[1], flat[3:] @ flat[3:].T / 800, rtol=1e-12)
    np.testing.assert_allclose(streamed.mean().reshape(-1), flat.mean(axis=1), rtol=1e-12)
    torch.testing.assert_close(streamed.second_moment(), whole.second_moment())


def test_the_bias_takes_the_mean_of_what_is_removed_with_its_scaling_factor():
    x = images()
    network = mbp.decompose(tiny_classifier().eval(), "activation", data=[x])
    layer = network.stem
    layer.scaling.scaling_factors.data.uniform_(0.5, 1.5)
    with torch.no_grad():
        before = layer(x)
        bias = layer.scaling.bias.clone()
        layer.keep_bases_([0, 2, 3], lambda *args: None)
        layer.keep_bases_([0, 2], lambda *args: None)  # positions 0 and 3 of the first order
        after = layer(x)
    assert layer.kept_bases == [0, 3]
    assert not torch.equal(layer.scaling.bias, bias)
    torch.testing.assert_close(after.mean(dim=(0, 2, 3)), before.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert network.grouped.means is None  # no bias, so its bases carry the mean
    assert mbp.decompose(tiny_classifier()).stem.means is None


def test_the_means_go_along_with_copies_snapshots_and_scripts_but_not_into_files(tmp_path):
    original, x = tiny_classifier().eval(), images()
    network = mbp.decompose(original, "activation", data=[x])
    assert set(network.state_dict()) == set(mbp.decompose(original).state_dict())
    start = take_snapshot(network)
    scores = mbp.ActivationImportance(network, [x]).scores()
    mbp.prune_(network, scores, mbp.Budget(bases=0.5))
    wanted = network(x)
    mbp.save_pruned(network, tmp_path / "model.pt")
    torch.testing.assert_close(mbp.load_pruned(tiny_classifier(), tmp_path / "model.pt").eval()(x), wanted)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(network), file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(x), wanted)
    torch.testing.assert_close(copy.deepcopy(network)(x), wanted)
    torch.testing.assert_close(mbp.recompose(network)(x), wanted)
    restore_(network, None, start)
    mbp.prune_(network, scores, mbp.Budget(bases=0.5))
    torch.testing.assert_close(network(x), wanted, rtol=0, atol=0)


def test_scores_of_weight_bases_are_the_errors_of_their_removal():
    network, x = mbp.decompose(nn.Sequential(nn.Conv2d(2, 5, 3, groups=1))), torch.rand(6, 2, 8, 8)
    network[0].scaling.scaling_factors.data.uniform_(0.5, 1.5)
    scores = mbp.ActivationImportance(network, [x], normalization="none").scores()["0"]
    for basis in range(5):
        cut = copy.deepcopy(network)
        cut[0].keep_bases_([j for j in range(5) if j != basis], lambda *args: None)
        error = (cut(x) - network(x)).detach().double().square().sum(dim=1).mean()
        torch.testing.assert_close(error, scores[basis], rtol=1e-4, atol=1e-9)


class Two(nn.Module):
    """A network with a layer that images do not reach, and one with too many channels for its positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.unused = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3)
        self.wide = nn.Conv2d(4, 20, 3, stride=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.wide(self.first(x))


def test_all_problems_stand_in_one_error():
    x = torch.rand(3, 1, 8, 8)
    broken = x.clone()
    broken[1, 0, 2, 2] = torch.nan
    data = [x, broken, {"img": x}, (), "text", torch.rand(0, 1, 8, 8)]
    with pytest.raises(mbp.ActivationError) as caught:
        mbp.decompose(Two(), "activation", data=data)
    assert str(caught.value).splitlines() == [
        "Two cannot be decomposed by its activations:",
        "  - batch 2: NaN or infinite values in the images at [1]",
        "  - batch 3: a dictionary with ['img'], where a tensor, a dictionary with 'image' or a pair (image, label) is "
        "needed",
        "  - batch 4: tuple, where a tensor, a dictionary with 'image' or a pair (image, label) is needed",
        "  - batch 5: str, where a tensor, a dictionary with 'image' or a pair (image, label) is needed",
        "  - batch 6: shape (0, 1, 8, 8) holds no images with a batch dimension",
        "  - unused: no image reaches it; name it in exclude_modules",
        "  - wide: 12 samples (3 images, 4 positions each) for 20 bases; at least 5 images are needed, or larger ones, "
        "or name it in exclude_modules",
    ]
    decomposed = mbp.decompose(Two(), "activation", exclude_modules=["unused"], data=[torch.rand(5, 1, 8, 8)])
    assert decomposed.wide.max_rank == 20


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "data: the loader is empty; some 100 unlabeled images are needed"),
        (torch.rand(4, 1, 8, 8), "data: Tensor instead of a loader; give a list of batches where there is none"),
        (3, "data: int instead of a loader"),
        ([torch.rand(4, 3, 8, 8)], "cannot process an input of shape (4, 3, 8, 8)"),
        ([torch.full((4, 1, 8, 8), 3e38)], "stem: its outputs are NaN or infinite"),
    ],
)
def test_data_that_cannot_be_used_is_refused_and_the_network_untouched(data, words):
    network = tiny_classifier().train()
    before = snapshot(network)
    with pytest.raises(mbp.ActivationError, match=re.escape(words)) as caught:
        mbp.decompose(network, "activation", data=data)
    assert "no image reaches" not in str(caught.value) or "stem" not in words
    assert same_bits(snapshot(network), before)
    assert network.training
    assert not any(module._forward_hooks for module in network.modules())
    decomposed = mbp.decompose(network)
    with pytest.raises(mbp.ActivationError, match="cannot be scored by its activations"):
        mbp.ActivationImportance(decomposed, data).scores()


def test_arguments_that_contradict_each_other_are_refused():
    x = images()
    with pytest.raises(ValueError, match="basis='weight' was asked for with data: 'activation' needs a loader"):
        mbp.decompose(tiny_classifier(), data=[x])
    with pytest.raises(ValueError, match="basis='activation' was asked for with no data"):
        mbp.decompose(tiny_classifier(), "activation")
    with pytest.raises(ValueError, match="basis must be 'weight' or 'activation', got 'pca'"):
        mbp.decompose(tiny_classifier(), "pca", data=[x])


def test_many_problems_are_cut_with_a_count():
    with pytest.raises(mbp.ActivationError) as caught:
        activation_factors(tiny_classifier(), {}, [None] * 60)
    assert len(str(caught.value).splitlines()) == 52
    assert str(caught.value).endswith("  - and 10 more")
