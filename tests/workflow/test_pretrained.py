from __future__ import annotations

import logging
import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import DenseNet, DenseNet121, resnet18
from sklearn.linear_model import LogisticRegression
from torch import nn

from monai_basisprune.data import synthetic_source_images
from monai_basisprune.errors import ConfigurationError, PlanMismatchError
from monai_basisprune.workflow.pretrained import load_pretrained, pretrain_on_synthetic_task, transfer_weights

from ..bundle_runs import CONFIGS
from ..networks import same_bits, snapshot, tiny_classifier

SHARED = Path(__file__).parents[3] / "shared" / "data"


def dense(channels: int, classes: int = 2, seed: int = 0) -> DenseNet:
    torch.manual_seed(seed)
    network = DenseNet(2, channels, classes, init_features=8, growth_rate=4, block_config=(2, 2), bn_size=2)
    for name, buffer in network.named_buffers():  # norms as after training
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return network.eval()


class Task(nn.Module):
    """A network of a task in which pretraining, and nothing else, is quick."""

    def __init__(self, features: int = 12) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, features, 3, stride=2, padding=1)
        self.norm1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(features)
        self.head = nn.Linear(features, 2)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))
        return x.mean(dim=(2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))


# --- transfer_weights


def test_equal_networks_take_all_weights() -> None:
    source, network = dense(1, seed=1), dense(1, seed=2)
    before = snapshot(network)
    new = transfer_weights(network, source.state_dict())
    assert same_bits(snapshot(new), snapshot(source))
    assert same_bits(snapshot(network), before)
    assert new is not network


def test_one_channel_takes_the_sum_over_three() -> None:
    source, network = dense(3, seed=1), dense(1, seed=2)
    new = transfer_weights(network, source.state_dict())
    torch.testing.assert_close(new.features.conv0.weight, source.features.conv0.weight.sum(1, keepdim=True))
    gray = torch.randn(4, 1, 32, 32)
    torch.testing.assert_close(new.features.conv0(gray), source.features.conv0(gray.repeat(1, 3, 1, 1)))
    torch.testing.assert_close(new(gray), source(gray.repeat(1, 3, 1, 1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [2, 3])
def test_several_channels_share_the_weights_of_one(channels: int) -> None:
    source, network = dense(1, seed=1), dense(channels, seed=2)
    new = transfer_weights(network, source.state_dict())
    assert new.features.conv0.weight.shape[1] == channels
    torch.testing.assert_close(new.features.conv0.weight[:, 1], source.features.conv0.weight[:, 0] / channels)
    gray = torch.randn(4, 1, 32, 32)
    repeated = gray.repeat(1, channels, 1, 1)
    torch.testing.assert_close(new.features.conv0(repeated), source.features.conv0(gray))
    torch.testing.assert_close(new(repeated), source(gray), rtol=1e-4, atol=1e-5)


def test_several_channels_from_several_others_are_refused() -> None:
    with pytest.raises(
        PlanMismatchError, match=r"features\.conv0\.weight: shape \(8, 3, 7, 7\), the network has \(8, 2"
    ):
        transfer_weights(dense(2), dense(3).state_dict())


def test_only_the_first_convolution_is_adapted() -> None:
    def chain(middle: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(1, middle, 3), nn.Conv2d(middle, 4, 3))

    with pytest.raises(PlanMismatchError, match=r"1\.weight: shape \(4, 3, 3, 3\), the network has \(4, 1, 3, 3\)"):
        transfer_weights(chain(1), chain(3).state_dict())


def test_another_number_of_classes_keeps_the_head(caplog: pytest.LogCaptureFixture) -> None:
    source, network = dense(1, classes=1000, seed=1), dense(1, classes=2, seed=2)
    with caplog.at_level(logging.INFO):
        new = transfer_weights(network, source.state_dict())
    assert torch.equal(new.class_layers.out.weight, network.class_layers.out.weight)
    assert torch.equal(new.class_layers.out.bias, network.class_layers.out.bias)
    assert torch.equal(new.features.conv0.weight, source.features.conv0.weight)
    assert "class_layers.out.weight differs in the number of classes and starts anew." in caplog.text


def test_a_head_for_other_features_is_refused() -> None:
    source, network = Task(12), Task(12)
    source.head = nn.Linear(48, 2)  # as after another pooling
    with pytest.raises(PlanMismatchError, match=r"head\.weight"):
        transfer_weights(network, source.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_is_widened(dtype: torch.dtype) -> None:
    source = {k: v.to(dtype) if v.is_floating_point() else v for k, v in dense(1, seed=1).state_dict().items()}
    new = transfer_weights(dense(1, seed=2), source)
    assert {tensor.dtype for tensor in new.parameters()} == {torch.float32}
    assert torch.equal(new.features.conv0.weight, source["features.conv0.weight"].float())


def test_half_precision_is_widened_before_channels_are_added() -> None:
    source = {"weight": torch.tensor([2048.0, 1.0, 1.0]).reshape(1, 3, 1, 1).half()}
    new = transfer_weights(nn.Conv2d(1, 1, 1, bias=False), source)
    assert new.weight.item() == 2050.0  # 2048 in half precision


def test_the_prefix_of_data_parallel_is_removed() -> None:
    source = dense(1, seed=1)
    new = transfer_weights(dense(1), nn.DataParallel(source).state_dict())
    assert same_bits(snapshot(new), snapshot(source))


def test_every_difference_is_listed_and_nothing_is_loaded() -> None:
    network = dense(1, seed=2)
    before = snapshot(network)
    state = dict(dense(1, seed=1).state_dict())
    del state["features.norm0.weight"]
    state["extra.weight"] = torch.zeros(3)
    state["features.denseblock1.denselayer1.layers.conv1.weight"] = torch.zeros(8, 8, 3, 3)
    with pytest.raises(PlanMismatchError) as caught:
        transfer_weights(network, state, "the checkpoint 'x.pt'")
    lines = str(caught.value).splitlines()
    assert lines[0] == (
        f"The checkpoint 'x.pt' cannot be used for DenseNet, 3 of its {len(before)} entries differ; pass the network "
        "that they belong to (--network_def):"
    )
    assert lines[1:] == [
        "  - features.norm0.weight: missing",
        "  - features.denseblock1.denselayer1.layers.conv1.weight: shape (8, 8, 3, 3), the network has (8, 8, 1, 1)",
        "  - extra.weight: unexpected",
    ]
    assert same_bits(snapshot(network), before)


def test_a_long_list_of_differences_is_cut_with_a_count() -> None:
    with pytest.raises(PlanMismatchError) as caught:
        transfer_weights(dense(1), resnet18(spatial_dims=2, n_input_channels=1).state_dict())
    lines = str(caught.value).splitlines()
    assert len(lines) == 42
    # the head is missing as a whole, so it would start anew
    total = len(dense(1).state_dict()) - 2 + len(resnet18(spatial_dims=2).state_dict())
    assert lines[-1] == f"  - and {total - 40} more"


@pytest.mark.real_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data beside the checkout")
def test_a_real_checkpoint_of_cifar_serves_gray_images() -> None:
    def network(channels: int, classes: int) -> nn.Module:
        return resnet18(spatial_dims=2, n_input_channels=channels, num_classes=classes, conv1_t_stride=2).eval()

    path = SHARED / "resnet18_cifar10.pt"
    new = load_pretrained(network(1, 2), path)
    state = torch.load(path, weights_only=True)["state_dict"]
    color = network(3, 10)
    color.load_state_dict({name: value.float() for name, value in state.items()})
    gray = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(new.conv1(gray), color.conv1(gray.repeat(1, 3, 1, 1)), rtol=1e-4, atol=1e-5)
    assert new.fc.out_features == 2


# --- load_pretrained: checkpoints


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
def test_checkpoints_of_the_usual_kinds_are_read(wrap: Callable[[Any], Any], tmp_path: Path) -> None:
    source = dense(1, seed=1)
    torch.save(wrap(source.state_dict()), tmp_path / "net.pt")
    network = dense(1, seed=2)
    before = snapshot(network)
    for path in (tmp_path / "net.pt", str(tmp_path / "net.pt")):
        assert same_bits(snapshot(load_pretrained(network, path)), snapshot(source))
    assert same_bits(snapshot(network), before)


def test_no_weights_are_no_choice() -> None:
    with pytest.raises(
        ConfigurationError, match=r"--pretrained imagenet, --pretrained synthetic, or --pretrained /path"
    ):
        load_pretrained(dense(1), None)


@pytest.mark.parametrize("value", ["imagnet", "/data/doe/net.pt", "folder"])
def test_a_missing_file_is_named_without_its_folder(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigurationError) as caught:
        load_pretrained(dense(1), value)
    message = str(caught.value)
    assert message.startswith("--pretrained must be 'imagenet', 'synthetic' or the path of a checkpoint; there is no")
    assert Path(value).name in message
    assert "/data/doe" not in message


@pytest.mark.parametrize(
    "content", [[1, 2], {}, {"epoch": 3}, {"state_dict": {}}, {"model": {"a": 1}}, torch.zeros(3), "text"]
)
def test_what_is_no_state_dict_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(
        ConfigurationError,
        match=r"The checkpoint 'net\.pt' holds no state dict, neither alone nor under 'state_dict' or 'model'",
    ):
        load_pretrained(dense(1), tmp_path / "net.pt")


def test_a_state_dict_with_keys_that_are_no_text_is_refused(tmp_path: Path) -> None:
    torch.save({0: torch.zeros(3)}, tmp_path / "net.pt")
    with pytest.raises(ConfigurationError, match="holds no state dict"):
        load_pretrained(dense(1), tmp_path / "net.pt")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None], ids=["empty", "text", "cut short"])
def test_a_damaged_checkpoint_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save(dense(1).state_dict(), path)
    path.write_bytes(path.read_bytes()[:-2000] if content is None else content)
    with pytest.raises(ConfigurationError, match=r"The checkpoint 'net\.pt' cannot be read"):
        load_pretrained(dense(1), path)


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_that_runs_code_is_refused_and_does_not_run(legacy: bool, tmp_path: Path) -> None:
    path, trace = tmp_path / "net.pt", tmp_path / "it_ran"
    content = {"state_dict": {"w": torch.zeros(1)}, "x": Malicious(trace)}
    if legacy:
        path.write_bytes(pickle.dumps(content["x"], protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(ConfigurationError, match=r"The checkpoint 'net\.pt' cannot be read"):
        load_pretrained(dense(1), path)
    assert not trace.exists()
    if legacy:  # the trap does work
        pickle.loads(path.read_bytes())
        assert trace.is_dir()


# --- load_pretrained: ImageNet


def imagenet() -> nn.Module:
    return DenseNet121(spatial_dims=2, in_channels=3, out_channels=2, pretrained=True, progress=False)


def plant_hub_cache(folder: Path) -> dict[str, torch.Tensor]:
    """Write what torchvision publishes, in its names, where torch.hub looks before it downloads."""
    torch.manual_seed(5)
    network = DenseNet121(spatial_dims=2, in_channels=3, out_channels=1000)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
    own = network.state_dict()
    published = {}
    for name, tensor in own.items():
        if name.endswith("num_batches_tracked"):
            continue  # the published file is older than these
        name = name.replace(".layers.norm", ".norm.").replace(".layers.conv", ".conv.")
        published[name.replace("class_layers.out", "classifier")] = tensor
    assert "features.denseblock4.denselayer16.conv.2.weight" in published
    assert not any("layers" in name for name in published)
    target = folder / "hub" / "checkpoints" / "densenet121-a639ec97.pth"
    target.parent.mkdir(parents=True)
    torch.save(published, target)
    return own


def block_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fail)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    block_the_network(monkeypatch)
    return tmp_path / "torch"


def test_imagenet_weights_come_through_monai_and_are_summed(hub: Path) -> None:
    published = plant_hub_cache(hub)
    network = DenseNet121(spatial_dims=2, in_channels=1, out_channels=2)
    new = load_pretrained(network, "imagenet", imagenet).eval()
    torch.testing.assert_close(
        new.features.conv0.weight, published["features.conv0.weight"].sum(dim=1, keepdim=True), rtol=0, atol=0
    )
    state = new.state_dict()
    for name, tensor in published.items():
        if not name.startswith(("features.conv0", "class_layers")) and not name.endswith("num_batches_tracked"):
            assert torch.equal(state[name], tensor), name
    assert new.class_layers.out.out_features == 2
    color = imagenet().eval()
    gray = torch.rand(1, 1, 64, 64)
    torch.testing.assert_close(new.features(gray), color.features(gray.repeat(1, 3, 1, 1)), rtol=1e-3, atol=1e-4)


def test_the_shipped_configuration_reaches_the_imagenet_weights(hub: Path) -> None:
    published = plant_hub_cache(hub)
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / "train.json"), str(CONFIGS / "prune.json")])
    parser["dataset_dir"] = "somewhere"  # imagenet is the default then
    network = parser.get_parsed_content("pretrained_network")
    torch.testing.assert_close(
        network.features.conv0.weight, published["features.conv0.weight"].sum(dim=1, keepdim=True), rtol=0, atol=0
    )


def test_without_a_connection_the_error_says_what_to_pass(hub: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_pretrained(DenseNet121(spatial_dims=2, in_channels=1, out_channels=2), "imagenet", imagenet)
    message = str(caught.value)
    assert message.startswith("The ImageNet weights of DenseNet121 could not be fetched (")
    assert "Temporary failure in name resolution" in message
    assert "hub/checkpoints" in message
    assert "TORCH_HOME" in message
    assert message.endswith("or pass a state dict of this network with --pretrained /path/to/checkpoint.pt.")
    assert isinstance(caught.value.__cause__, URLError)


def test_a_network_without_a_loader_is_told_to_pass_a_checkpoint() -> None:
    with pytest.raises(
        ConfigurationError, match=r"no loader of ImageNet weights for DenseNet: pass --pretrained /path"
    ):
        load_pretrained(dense(1), "imagenet")


def test_imagenet_weights_of_another_architecture_are_refused(hub: Path) -> None:
    plant_hub_cache(hub)
    with pytest.raises(
        PlanMismatchError, match=r"The ImageNet weights cannot be used for DenseNet, .* \(--network_def\)"
    ):
        load_pretrained(dense(1), "imagenet", imagenet)


def test_imagenet_weights_that_lack_a_layer_are_refused(hub: Path) -> None:
    plant_hub_cache(hub)
    path = hub / "hub" / "checkpoints" / "densenet121-a639ec97.pth"
    content = torch.load(path, weights_only=True)
    del content["features.denseblock4.denselayer16.conv.2.weight"]
    torch.save(content, path)
    with pytest.raises(ConfigurationError, match="denselayer16"):
        load_pretrained(DenseNet121(spatial_dims=2, in_channels=1, out_channels=2), "imagenet", imagenet)


# --- the synthetic source task


def pretrain(network: nn.Module, seed: int = 0, cases: int = 256, epochs: int = 4) -> nn.Module:
    return pretrain_on_synthetic_task(network, 16, cases=cases, epochs=epochs, seed=seed, progress=False)


def probe(network: Task) -> float:
    """Accuracy on new source images of a linear classifier that sees the network's features."""
    images, labels = synthetic_source_images(768, image_size=16, seed=99)
    x = torch.as_tensor(images)
    with torch.no_grad():
        features = network.eval().features((x - x.mean()) / x.std()).numpy()
    features = (features - features.mean(0)) / (features.std(0) + 1e-6)
    return float(
        LogisticRegression(max_iter=1000).fit(features[:512], labels[:512]).score(features[512:], labels[512:])
    )


def test_pretraining_leaves_its_argument_and_the_head() -> None:
    network = tiny_classifier().train()
    before = snapshot(network)
    new = pretrain(network, cases=64, epochs=1)
    assert same_bits(snapshot(network), before)
    assert torch.equal(new.head.weight, network.head.weight)
    assert torch.equal(new.head.bias, network.head.bias)
    assert new.head is not network.head
    assert new.head.out_features == 2
    assert not torch.equal(new.stem.weight, network.stem.weight)
    assert network.training


def test_pretraining_learns_the_task(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    network = Task()
    untrained = probe(network)
    torch.manual_seed(0)
    with caplog.at_level(logging.INFO):
        new = pretrain(network, cases=768, epochs=6)
    accuracy = float(caplog.text.split("running training accuracy ")[1].split(".\n")[0])
    assert accuracy > 0.25  # chance is 0.125
    assert probe(new) > untrained + 0.05


def test_pretraining_is_the_same_for_the_same_seed() -> None:
    network = tiny_classifier()
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(4)
        results.append(snapshot(pretrain(network, seed, cases=64, epochs=1)))
    assert same_bits(results[0], results[1])
    assert not torch.equal(results[0]["stem.weight"], results[2]["stem.weight"])


def test_pretraining_does_not_depend_on_what_was_drawn_before() -> None:
    network = tiny_classifier()
    results = []
    for state in (4, 5):
        torch.manual_seed(state)
        results.append(snapshot(pretrain(network, cases=64, epochs=1)))
    assert same_bits(*results)


def test_pretraining_repeats_the_gray_image_for_several_channels() -> None:
    new = pretrain(dense(3), cases=64, epochs=1)
    assert new.features.conv0.weight.shape[1] == 3


def test_the_mode_synthetic_pretrains() -> None:
    network = tiny_classifier()
    torch.manual_seed(0)
    wanted = snapshot(pretrain_on_synthetic_task(network, 16, seed=3, progress=False))
    torch.manual_seed(0)
    assert same_bits(snapshot(load_pretrained(network, "synthetic", image_size=16, seed=3, progress=False)), wanted)


def test_pretraining_shows_its_progress(capsys: pytest.CaptureFixture[str]) -> None:
    pretrain_on_synthetic_task(tiny_classifier(), 16, cases=64, epochs=1)
    assert "Pretraining on the synthetic source task: 100%" in capsys.readouterr().err
    pretrain(tiny_classifier(), cases=64, epochs=1)
    assert capsys.readouterr().err == ""


def test_a_network_without_a_linear_head_cannot_be_pretrained_here() -> None:
    with pytest.raises(ConfigurationError, match="Sequential has no linear head, so it cannot be pretrained here"):
        pretrain(nn.Sequential(nn.Conv2d(1, 4, 3)))


def test_source_images_are_those_of_the_data_room() -> None:
    images, labels = synthetic_source_images(16, image_size=16, seed=0)
    assert images.shape == (16, 1, 16, 16)
    assert np.bincount(labels).tolist() == [2] * 8
