from __future__ import annotations

import pytest
import torch

from monai_basisprune.threads import one_thread


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_the_number_of_threads_comes_back_whatever_happens():
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with pytest.raises(KeyError), one_thread():
        raise KeyError
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_a_function_takes_it_as_a_decorator():
    found = one_thread()(torch.get_num_threads)
    assert [found(), found(), torch.get_num_threads()] == [1, 1, 2]
