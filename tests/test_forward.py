"""One forward pass to measure something with: its input, its mode, and what a network cannot process."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_basisprune.forward import evaluation_mode, example_input, forward_pass, memory_format

from .networks import TinyClassifier, same_bits, snapshot, tiny_classifier

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def test_example_input_has_the_type_of_the_network():
    x = example_input(nn.Conv2d(3, 4, 3).double(), (3, 5, 5))
    assert (x.dtype, tuple(x.shape), int(x.count_nonzero())) == (torch.float64, (1, 3, 5, 5), 0)
    assert example_input(nn.ReLU(), (3,)).dtype == torch.float32
    mixed = nn.Module()
    mixed.index = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)
    mixed.head = nn.Linear(2, 2, dtype=torch.bfloat16)
    assert example_input(mixed, [2], batch_size=7).dtype == torch.bfloat16
    assert tuple(example_input(mixed, [2], batch_size=7).shape) == (7, 2)
    assert example_input(nn.Linear(2, 2, device="meta"), (2,)).is_meta


@pytest.mark.parametrize("dims", [4, 5])
def test_example_input_is_stored_as_the_weights_are(dims):
    conv = nn.Conv2d if dims == 4 else nn.Conv3d
    network = nn.Sequential(conv(2, 8, 1), conv(8, 8, 3))
    shape = (2, *[6] * (dims - 2))
    assert example_input(network, shape, 3).is_contiguous()
    network.to(memory_format=LAST[dims])
    x = example_input(network, shape, 3)
    assert memory_format(x) is LAST[dims]
    assert memory_format(network(x)) is LAST[dims]


@pytest.mark.parametrize("shape", [(), (0, 8), (-1,), (1, 8.0), ("1", 8)])
def test_a_shape_holds_positive_whole_numbers(shape):
    with pytest.raises(ValueError, match="input_shape must hold positive whole numbers, channels first and without"):
        example_input(tiny_classifier(), shape)


@pytest.mark.parametrize("dims", [4, 5])
def test_the_format_of_a_tensor_is_channels_last_only_where_it_is_no_other(dims):
    last = LAST[dims]
    x = torch.zeros(2, 3, *[4] * (dims - 2))
    assert memory_format(x) is torch.contiguous_format
    assert memory_format(x.to(memory_format=last)) is last
    # of one position or one channel, a tensor is stored in both at once
    for shape in ((2, 3, *[1] * (dims - 2)), (2, 1, *[4] * (dims - 2))):
        assert memory_format(torch.zeros(shape).to(memory_format=last)) is torch.contiguous_format
    assert memory_format(x.transpose(0, 1)) is torch.contiguous_format
    assert memory_format(x.to(memory_format=last)[..., ::2]) is torch.contiguous_format


def test_a_transposed_matrix_has_no_format_of_images():
    assert memory_format(torch.zeros(3, 4).t()) is torch.contiguous_format
    assert memory_format(torch.zeros(3, 4, 5).transpose(1, 2)) is torch.contiguous_format


def test_a_pass_changes_nothing_and_keeps_no_gradient():
    network = tiny_classifier().train()
    network.stem.eval()
    modes = [module.training for module in network.modules()]
    before, x = snapshot(network), torch.rand(3, *TinyClassifier.input_shape)
    found = forward_pass(network, x)
    assert same_bits(snapshot(network), before)
    assert [module.training for module in network.modules()] == modes
    assert not found.requires_grad
    torch.testing.assert_close(found, network.eval()(x).detach(), rtol=0, atol=0)


def test_what_a_network_cannot_process_is_told_with_the_shape_and_the_reason():
    network = tiny_classifier().train()
    with pytest.raises(
        ValueError,
        match=r"^TinyClassifier cannot process an input of shape \(2, 3, 8, 8\) \(batch first\): .*3 channels",
    ) as caught:
        forward_pass(network, torch.rand(2, 3, 8, 8))
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert all(module.training for module in network.modules())


class Raises(nn.Module):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise self.error


@pytest.mark.parametrize("error", [TypeError("a reason"), ValueError("a reason"), RuntimeError("a reason")])
def test_errors_of_wrong_inputs_are_one(error):
    with pytest.raises(ValueError, match=r"Raises cannot process an input of shape \(1,\) \(batch first\): a reason"):
        forward_pass(Raises(error), torch.zeros(1))


def test_an_error_of_another_kind_goes_on():
    with pytest.raises(KeyError, match="not of the input"):
        forward_pass(Raises(KeyError("not of the input")), torch.zeros(1))


def test_evaluation_mode_ends_with_the_modes_before_it():
    network = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2).eval()))
    with evaluation_mode(network):
        assert not any(module.training for module in network.modules())
    assert [module.training for module in network.modules()] == [True, True, True, False]
    with pytest.raises(KeyError), evaluation_mode(network):
        raise KeyError
    assert [module.training for module in network.modules()] == [True, True, True, False]
