from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.kernel_caches import bound_kernel_cache, forget_convolutions

from .networks import tiny_classifier

NAME = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
KEPT = """
import ctypes, os, sys
import torch
from torch import nn
from monai_basisprune.kernel_caches import bound_kernel_cache, forget_convolutions

class Heap(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

mallinfo2 = ctypes.CDLL("libc.so.6").mallinfo2
mallinfo2.restype = Heap

def grown(channels, forget):
    # by how much the heap grows while a network of one layer loses a channel at a time
    before = mallinfo2().uordblks
    for number in channels:
        with torch.no_grad():
            nn.functional.conv2d(torch.zeros(2, number, 4, 4), torch.zeros(3, number, 3, 3))
        if forget:
            forget_convolutions()
    return mallinfo2().uordblks - before

if sys.argv[1] == "bound":
    bound_kernel_cache(nn.Conv2d(1, 1, 1))
    assert "ONEDNN_PRIMITIVE_CACHE_CAPACITY" not in os.environ
grown(range(200, 180, -1), sys.argv[2] == "forget")  # fills the smallest cache
print(grown(range(180, 60, -1), sys.argv[2] == "forget"))
"""

SECOND_PASS = """
import ctypes
import torch
from torch import nn
from monai_basisprune.kernel_caches import bound_kernel_cache

# after a cut hardly two layers are alike
layers = nn.ModuleList(nn.Conv2d(1 + number % 20, 1 + number // 20, 3) for number in range(600))
bound_kernel_cache(layers)
for turn in (b"first", b"second"):
    ctypes.CDLL(None).puts(turn)  # into the buffer of oneDNN's log
    with torch.no_grad():
        for layer in layers:
            layer(torch.zeros(2, layer.in_channels, 4, 4))
"""


def test_the_bound_follows_the_layers_and_may_be_above_that_of_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (NAME, NAME.replace("ONEDNN", "DNNL")):
        monkeypatch.delenv(name, raising=False)
    assert bound_kernel_cache(tiny_classifier()) == 2 * 32
    assert bound_kernel_cache(mbp.decompose(tiny_classifier())) == 2 * 32
    assert bound_kernel_cache(nn.Sequential(*[nn.Conv1d(1, 1, 1) for _ in range(33)])) == 33 * 32
    assert NAME not in os.environ
    monkeypatch.setenv(NAME, "7")
    bound_kernel_cache(tiny_classifier())
    assert os.environ[NAME] == "7"


def test_forgetting_leaves_threads_random_numbers_and_results_as_they_are() -> None:
    threads = torch.get_num_threads()
    network, x = tiny_classifier().eval(), torch.ones(2, 1, 8, 8)
    before, state = network(x), torch.get_rng_state()
    forget_convolutions()
    bound_kernel_cache(network)
    assert torch.equal(network(x), before)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_every_bundle_bounds_its_kernels_before_it_makes_its_network() -> None:
    files = sorted((Path(__file__).parents[1] / "bundles").glob("*/configs/prune.json"))
    assert len(files) == 3
    for file in files:
        steps = json.loads(file.read_text(encoding="utf-8"))["prune"]
        bounds = steps.index("$monai_basisprune.kernel_caches.bound_kernel_cache(@network_def)")
        assert bounds < steps.index("$@train#trainer.run()")
        assert not any("network" in step or "train" in step for step in steps[:bounds])


def printed(script: str, *arguments: str, **variables: str) -> str:
    """Run a script in a process of its own, where no convolution has run, and return what it prints."""
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_CACHE_CAPACITY")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(mbp.__file__).parents[1]), **variables}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def heap_growth(bound: str, forget: str) -> int:
    return int(printed(KEPT, bound, forget))


needs_both = pytest.mark.skipif(
    sys.platform != "linux" or not torch.backends.mkldnn.is_available(),
    reason="asks glibc for the size of the heap, and PyTorch for kernels of oneDNN",
)


@needs_both
def test_cut_after_cut_the_heap_stays_as_it_is() -> None:
    assert heap_growth("bound", "forget") < 100_000


@needs_both
@pytest.mark.slow
@pytest.mark.parametrize(("bound", "forget"), [("", "forget"), ("bound", "")])
def test_it_grows_where_one_of_both_caches_is_left_alone(bound: str, forget: str) -> None:
    assert heap_growth(bound, forget) > 1_000_000


@needs_both
def test_a_large_network_finds_all_its_kernels_again() -> None:
    log = printed(SECOND_PASS, ONEDNN_VERBOSE="profile_create")
    first, second = (part.count("create:cache_miss") for part in log.split("first")[1].split("second"))
    assert first > 1024
    assert second == 0
