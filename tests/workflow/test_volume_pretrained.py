from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import ResNet, resnet10, resnet18, resnet34
from monai.utils import optional_import
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.data import synthetic_source_volumes
from monai_basisprune.errors import ConfigurationError, InflationError, PlanMismatchError
from monai_basisprune.workflow.pretrained import pretrain_on_images
from monai_basisprune.workflow.volume_pretrained import load_pretrained_volume, medicalnet_depth

from ..bundle_runs import ROOT
from ..networks import same_bits, snapshot

CONFIGS = ROOT / "bundles" / "volume_classification" / "configs"


def narrow(dimensions: int = 3, classes: int = 2, seed: int = 0, shortcut: str = "A", head: bool = True) -> ResNet:
    torch.manual_seed(seed)
    return ResNet(
        "basic",
        [1, 1, 1, 1],
        [8, 16, 24, 32],
        spatial_dims=dimensions,
        n_input_channels=1,
        conv1_t_stride=2,
        num_classes=classes,
        shortcut_type=shortcut,
        feed_forward=head,
    )


@pytest.mark.parametrize(
    ("network", "depth"),
    [
        (resnet10(n_input_channels=1, shortcut_type="B", bias_downsample=False), 10),
        (resnet18(n_input_channels=1, shortcut_type="A"), 18),
        (resnet34(n_input_channels=1, shortcut_type="B", feed_forward=False), 34),
    ],
    ids=["10", "18", "34"],
)
def test_the_depth_of_a_resnet_is_that_of_its_name(network: nn.Module, depth: int) -> None:
    assert medicalnet_depth(network) == depth


@pytest.mark.parametrize(
    "network",
    [nn.Conv3d(1, 2, 3), resnet10(spatial_dims=2, n_input_channels=1), resnet10(n_input_channels=3)],
    ids=repr,
)
def test_other_networks_have_no_medicalnet_weights(network: nn.Module) -> None:
    with pytest.raises(ConfigurationError, match="MedicalNet has weights of MONAI's 3D ResNets for one channel"):
        load_pretrained_volume(network, "medicalnet")


def medicalnet_network() -> ResNet:
    torch.manual_seed(2)
    return resnet10(n_input_channels=1, num_classes=2, shortcut_type="B", bias_downsample=False)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of huggingface_hub, which is told that there is no network."""
    hub = pytest.importorskip("huggingface_hub", reason="the extra medicalnet is not installed")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def plant_hub_cache(hub: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """Write what is published, in its names, where huggingface_hub looks when there is no network."""
    torch.manual_seed(5)
    source = resnet10(n_input_channels=1, shortcut_type="B", bias_downsample=False, feed_forward=False)
    for name, buffer in source.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
    folder, commit = hub / "models--TencentMedicalNet--MedicalNet-Resnet10", "0123456789abcdef" * 2 + "01234567"
    path = folder / "snapshots" / commit / "resnet_10_23dataset.pth"
    path.parent.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    torch.save({"state_dict": {f"module.{name}": value for name, value in source.state_dict().items()}}, path)
    return path, source.state_dict()


def test_medicalnet_weights_come_through_monai(hub: Path) -> None:
    _, published = plant_hub_cache(hub)
    network = medicalnet_network()
    before = snapshot(network)
    loaded = load_pretrained_volume(network, "medicalnet")
    assert same_bits(snapshot(network), before)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, before[name] if name.startswith("fc.") else published[name]), name


def test_the_shipped_configuration_reaches_the_medicalnet_weights(hub: Path) -> None:
    _, published = plant_hub_cache(hub)
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / "train.json"), str(CONFIGS / "prune.json")])
    parser["dataset_dir"] = "somewhere"  # medicalnet is the default then
    parser["network_def"] = "@networks#resnet10"
    network = parser.get_parsed_content("pretrained_network")
    assert torch.equal(network.layer4[0].conv2.weight, published["layer4.0.conv2.weight"])


def test_without_a_connection_the_error_says_what_to_do(hub: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_pretrained_volume(medicalnet_network(), "medicalnet")
    for words in (
        "The MedicalNet weights of ResNet-10 could not be fetched or read (",
        "They need a connection to huggingface.co",
        "resnet_10_23dataset.pth of TencentMedicalNet/MedicalNet-Resnet10",
        "--pretrained /path/to/that/file",
    ):
        assert words in str(caught.value)
    assert str(hub) not in str(caught.value)


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    missing, _ = optional_import("huggingface_hub_of_another_world", name="hf_hub_download")  # as MONAI imports it
    monkeypatch.setattr("monai.networks.nets.resnet.hf_hub_download", missing)
    with pytest.raises(ConfigurationError) as caught:
        load_pretrained_volume(medicalnet_network(), "medicalnet")
    for words in ('pip install "monai_basisprune[medicalnet]"', "resnet_10_23dataset.pth", "--pretrained /path/to"):
        assert words in str(caught.value)


def test_a_damaged_download_is_refused(hub: Path) -> None:
    path, _ = plant_hub_cache(hub)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ConfigurationError, match=r"could not be fetched or read \("):
        load_pretrained_volume(medicalnet_network(), "medicalnet")
    torch.save({"weights": {}}, path)
    with pytest.raises(ConfigurationError, match="holds no weights; remove the file and fetch it again"):
        load_pretrained_volume(medicalnet_network(), "medicalnet")


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_file_as_medicalnet_has_it_can_be_passed(tmp_path: Path, wrapped: bool) -> None:
    """Its weights have no head, and stand under state_dict with the prefix of DataParallel."""
    source = narrow(head=False, seed=1)
    state = {f"module.{name}": value for name, value in source.state_dict().items()}
    torch.save({"state_dict": state} if wrapped else state, tmp_path / "resnet.pth")
    network = narrow(seed=2)
    before = snapshot(network)
    loaded = load_pretrained_volume(network, tmp_path / "resnet.pth")
    assert same_bits(snapshot(network), before)
    for name, value in loaded.state_dict().items():
        expected = network.state_dict()[name] if name.startswith("fc.") else source.state_dict()[name]
        assert torch.equal(value, expected), name


def test_half_a_head_is_no_head(tmp_path: Path) -> None:
    state = narrow().state_dict()
    del state["fc.bias"]
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(PlanMismatchError, match=r"fc\.bias: missing"):
        load_pretrained_volume(narrow(), tmp_path / "net.pt")


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_a_2d_classifier_is_inflated(tmp_path: Path, shortcut: str) -> None:
    flat = narrow(2, seed=3, shortcut=shortcut).eval()
    torch.save(flat.state_dict(), tmp_path / "flat.pt")
    network = narrow(3, shortcut=shortcut)
    loaded = load_pretrained_volume(network, "inflate", narrow(2, shortcut=shortcut), tmp_path / "flat.pt").eval()
    kernel = flat.conv1.weight
    torch.testing.assert_close(loaded.conv1.weight.sum(-1), kernel)
    assert loaded.conv1.weight.ndim == 5
    # away from the ends, a volume that does not change along its last axis gives the features of the image
    image = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        stem = loaded.bn1(loaded.conv1(image[..., None].expand(-1, -1, -1, -1, 32)))
        torch.testing.assert_close(stem[..., 8], flat.bn1(flat.conv1(image)), atol=1e-5, rtol=1e-4)
    assert sum(p.numel() for p in mbp.decompose(loaded).parameters()) > 0


def test_inflation_needs_a_2d_classifier_that_fits(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="A 2D classifier was to be inflated, and there is none"):
        load_pretrained_volume(narrow(), "inflate", narrow(2))
    torch.save(narrow(2, shortcut="B").state_dict(), tmp_path / "flat.pt")
    with pytest.raises(InflationError):
        load_pretrained_volume(narrow(3), "inflate", narrow(2, shortcut="B"), tmp_path / "flat.pt")


def test_what_is_no_source_of_weights() -> None:
    with pytest.raises(ConfigurationError, match="No pretrained weights were given: pass --pretrained medicalnet"):
        load_pretrained_volume(narrow(), None)
    with pytest.raises(ConfigurationError, match="There are no ImageNet weights of volumes"):
        load_pretrained_volume(narrow(), "imagenet")


def test_pretraining_on_volumes_changes_all_but_the_head_and_repeats() -> None:
    volumes, labels = synthetic_source_volumes(16, 16)
    network = narrow(seed=4)
    trained = pretrain_on_images(network, volumes, labels, epochs=1, batch_size=8, progress=False)
    assert trained.fc.out_features == 2
    assert torch.equal(trained.fc.weight, network.fc.weight)
    assert not torch.equal(trained.conv1.weight, network.conv1.weight)
    again = pretrain_on_images(network, volumes, labels, epochs=1, batch_size=8, progress=False)
    assert same_bits(snapshot(trained), snapshot(again))
