"""Whatever is in a file of weights, it is read or refused, and nothing of it is run."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.files import archive_problem
from monai_basisprune.reading import is_ordinary_tensor, read_weights
from monai_basisprune.workflow.pretrained import load_pretrained
from tests.networks import tiny_classifier

from .network_targets import saved
from .targets import Target


def test_a_part_of_a_pickle_is_kept_under_no_huge_number(tmp_path: Path) -> None:
    for number, problem in ((b"\x07\0\0\0", False), (b"\xff\xff\xff\x65", True)):
        path = tmp_path / "model.ts"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02}r" + number + b".")
        assert ("says that it holds more than it does" in (archive_problem(path) or "")) is problem


@pytest.mark.parametrize(
    "make",
    [
        lambda tensor: torch.zeros(1).expand(2**20, 2**20),
        lambda tensor: tensor.to_sparse(),
        lambda tensor: tensor.to("meta"),
    ],
)
def test_a_tensor_without_its_values_is_refused(tmp_path: Path, make: Callable[[torch.Tensor], torch.Tensor]) -> None:
    network = tiny_classifier(0)
    state = dict(network.state_dict())
    name = next(iter(state))
    state[name] = make(state[name])
    assert not is_ordinary_tensor(state[name])
    (tmp_path / "x.pt").write_bytes(saved(state))
    with pytest.raises(ConfigurationError, match="sparse, quantized, nested, or larger than their values"):
        load_pretrained(network, tmp_path / "x.pt", progress=False)


def test_a_part_that_promises_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    # of the fuzzing: the reader of TorchScript made room for 4 GiB, for a text of which 1 KiB was there
    path = tmp_path / "x.ts"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02X\x00\x00\xff\xffshort")
        archive.writestr("archive/version", b"3\n")
    assert archive_problem(path) == "it is damaged: 'archive/data.pkl' says that it holds more than it does"
    with pytest.raises(ValueError, match="says that it holds more than it does"):
        read_weights(path)


def test_an_archive_that_says_that_it_has_several_disks_is_refused_in_our_words(tmp_path: Path) -> None:
    # of the fuzzing: Python's own check whether a file is an archive raised
    content = saved(tiny_classifier(0).state_dict())
    second_of_two = struct.pack("<4sLQL", b"PK\x06\x07", 1, 0, 2)
    (tmp_path / "x.pt").write_bytes(content[:-22] + second_of_two + content[-22:])
    with pytest.raises(ValueError, match="it is damaged, or no archive: BadZipFile, zipfiles that span multiple disks"):
        read_weights(tmp_path / "x.pt")


def test_what_a_deployed_network_carries_is_data(targets: list[Target], tmp_path: Path) -> None:
    # of the review: these texts went into the configuration of a new bundle, where "$" starts code
    target = next(target for target in targets if target.name == "deployed network")
    assert b"$__import__('os').system('x')" in target.seeds[1]
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "model.ts").write_bytes(target.seeds[1])
    with pytest.raises(ConfigurationError, match="image_size: must be a whole number from 1 to 65536"):
        target.read(tmp_path / "case" / "model.ts")
