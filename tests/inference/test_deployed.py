from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from monai_basisprune import __version__
from monai_basisprune.errors import ConfigurationError
from monai_basisprune.files import sha256_of
from monai_basisprune.inference import (
    DEPLOYMENT_KEYS,
    identify_algorithm,
    image_kind,
    load_deployed,
    read_deployment,
)

from ..networks import tiny_classifier
from .deployments import CARRIED, deploy, deployment_of

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def test_a_deployed_network_carries_how_its_images_are_prepared(tmp_path: Path) -> None:
    network = deploy(tmp_path, **CARRIED, another="key")
    assert read_deployment(tmp_path) == CARRIED
    deployed = load_deployed(str(tmp_path), torch.device("cpu"))
    assert not deployed.training
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(deployed(x), network(x))


@pytest.mark.parametrize("read", [read_deployment, load_deployed])
def test_without_a_network_the_error_says_what_to_run(read: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(tmp_path / "Doe")
    message = str(caught.value)
    assert message.startswith(
        "There is no pruned network (model.ts) in output_dir: run `python -m monai.bundle run prune`"
    )
    assert "pass --output_dir" in message
    assert "Doe" not in message


@pytest.mark.parametrize("read", [read_deployment, load_deployed])
@pytest.mark.parametrize("keep", [0, 10, 2000, -100])
def test_a_damaged_network_is_refused(read: Any, keep: int, tmp_path: Path) -> None:
    deploy(tmp_path, **CARRIED)
    path = tmp_path / "model.ts"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ConfigurationError, match=r"model\.ts in output_dir cannot be read, it is damaged"):
        read(tmp_path)


def test_a_state_dict_is_no_deployed_network(tmp_path: Path) -> None:
    torch.save(tiny_classifier().state_dict(), tmp_path / "model.ts")
    with pytest.raises(ConfigurationError, match=r"model\.ts in output_dir cannot be read"):
        load_deployed(tmp_path)


def test_a_network_without_metadata_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(tiny_classifier()), str(tmp_path / "model.ts"))
    with pytest.raises(ConfigurationError, match=r"model\.ts in output_dir"):
        read_deployment(tmp_path)


def test_a_network_without_metadata_is_not_called_damaged(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(tiny_classifier()), str(tmp_path / "model.ts"))
    with pytest.raises(ConfigurationError, match=r"does not carry \['image_size', .*not written by this package"):
        read_deployment(tmp_path)


def test_a_network_with_one_wrong_bit_is_refused(tmp_path: Path) -> None:
    network = deploy(tmp_path, **CARRIED)
    path = tmp_path / "model.ts"
    content = bytearray(path.read_bytes())
    place = bytes(content).index(network.head.weight.detach().numpy().tobytes())
    content[place + 3] ^= 0x40
    path.write_bytes(bytes(content))
    with pytest.raises(ConfigurationError, match=r"model\.ts in output_dir cannot be read, it is damaged"):
        load_deployed(tmp_path)


@pytest.mark.parametrize("missing", list(CARRIED))
def test_a_network_that_lacks_one_of_them_is_refused(missing: str, tmp_path: Path) -> None:
    deploy(tmp_path, **{key: value for key, value in CARRIED.items() if key != missing})
    with pytest.raises(
        ConfigurationError, match=rf"does not carry \['{missing}'\]: it was not written by this package"
    ):
        read_deployment(tmp_path)


def test_an_optimized_network_gives_the_same_within_rounding(tmp_path: Path) -> None:
    deploy(tmp_path, **CARRIED)
    x = torch.randn(3, 1, 8, 8)
    with torch.inference_mode():
        fast = load_deployed(tmp_path, "cpu", optimize=True)(x)
        torch.testing.assert_close(fast, load_deployed(tmp_path)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", list(DEPLOYMENT_KEYS))
def test_a_network_tells_what_its_images_are(kind: str, tmp_path: Path) -> None:
    carried = deployment_of(kind)
    deploy(tmp_path, **carried)
    assert tuple(carried) == DEPLOYMENT_KEYS[kind]
    assert read_deployment(tmp_path) == read_deployment(tmp_path, kind) == carried
    assert image_kind(carried) == kind
    for other in set(DEPLOYMENT_KEYS) - {kind}:
        words = rf"is a network for {kind}, one for {other} was asked for: pass --output_dir .* bundle for {kind}"
        with pytest.raises(ConfigurationError, match=words):
            read_deployment(tmp_path, other)


@pytest.mark.parametrize("missing", ["spacing", "window", "class_names"])
def test_a_network_of_volumes_that_lacks_one_of_them_is_refused(missing: str, tmp_path: Path) -> None:
    carried = deployment_of("volumes")
    deploy(tmp_path, **{key: value for key, value in carried.items() if key != missing})
    with pytest.raises(ConfigurationError, match=rf"does not carry \['{missing}'\]"):
        read_deployment(tmp_path)


def test_volumes_that_could_not_be_prepared_are_refused(tmp_path: Path) -> None:
    deploy(tmp_path, **{**deployment_of("volumes"), "spacing": [1, 0, 1]})
    with pytest.raises(ConfigurationError, match="spacing must be null or three numbers"):
        read_deployment(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_size", 0),
        ("image_size", "$exit()"),
        ("image_channels", True),
        ("intensity_std", "1"),
        ("class_names", ["$__import__('os')", "b"]),
        ("class_names", "ab"),
        ("label_kind", "both"),
    ],
)
def test_values_that_cannot_be_are_refused(key: str, value: Any, tmp_path: Path) -> None:
    deploy(tmp_path, **{**CARRIED, key: value})
    with pytest.raises(ConfigurationError, match=rf"cannot be used, it carries:\n  - {key}: must be"):
        read_deployment(tmp_path)


def test_an_algorithm_is_known_by_its_weights(tmp_path: Path) -> None:
    deploy(tmp_path, **CARRIED)
    algorithm = identify_algorithm(tmp_path)
    assert algorithm.version == __version__
    assert algorithm.weights_sha256 == sha256_of(tmp_path / "model.ts")
    with pytest.raises(ConfigurationError, match="There is no pruned network"):
        identify_algorithm(tmp_path / "nothing")
