from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events

import monai_basisprune as mbp
from monai_basisprune.decomposition import decomposed_layers
from monai_basisprune.errors import LayerSelectionError
from monai_basisprune.handlers import PrunedNetworkSaver, PruningHandler

from ..networks import same_bits, snapshot, tiny_classifier


def count_bases(network: torch.nn.Module) -> int:
    return sum(layer.rank() for _, layer in decomposed_layers(network))


def test_there_is_one_file_for_each_ratio_with_the_network_before_the_next_cut(tmp_path: Path) -> None:
    original = tiny_classifier()
    network = mbp.decompose(original)
    budgets = [mbp.Budget(parameters=0.2), mbp.Budget(parameters=0.4)]
    optimizer = torch.optim.SGD(mbp.freeze_weights_(network), lr=0.1)
    pruning = PruningHandler(
        network, mbp.SingularValueImportance(network), budgets, optimizer, transfer_epochs=2, epochs_per_round=2
    )
    saver = PrunedNetworkSaver(network, tmp_path / "new" / "networks")
    before_cuts = {}

    def train(engine: Engine, batch: torch.Tensor) -> None:
        network.train()
        optimizer.zero_grad()
        network(batch).square().sum().backward()
        optimizer.step()

    def remember(engine: Engine) -> None:
        before_cuts[count_bases(network)] = snapshot(network)

    engine = Engine(train)
    engine.add_event_handler(Events.EPOCH_COMPLETED, remember)
    saver.attach(engine)
    pruning.attach(engine)
    engine.run([torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8)], max_epochs=pruning.max_epochs)

    assert len(before_cuts) == 3
    names = {f"bases_{bases:06d}" for bases in before_cuts}
    found = {path.name for path in (tmp_path / "new" / "networks").iterdir()}
    assert found == {f"{name}.pt" for name in names} | {f"{name}.plan.json" for name in names}
    for bases, state in before_cuts.items():
        loaded = mbp.load_pruned(original, saver.path(bases))
        assert count_bases(loaded) == bases
        assert same_bits(snapshot(loaded), state)


def test_a_later_epoch_replaces_the_file_of_the_same_ratio(tmp_path: Path) -> None:
    original = tiny_classifier()
    network = mbp.decompose(original)
    saver = PrunedNetworkSaver(network, tmp_path)
    engine = Engine(lambda engine, batch: None)
    saver.attach(engine)
    engine.run([0], max_epochs=1)
    with torch.no_grad():
        network.head.bias.fill_(3.5)
    engine.run([0], max_epochs=2)
    assert len(list(tmp_path.iterdir())) == 2
    loaded = mbp.load_pruned(original, saver.path(count_bases(network)))
    assert loaded.head.bias.tolist() == [3.5, 3.5]


def test_names_sort_as_numbers_do(tmp_path: Path) -> None:
    saver = PrunedNetworkSaver(mbp.decompose(tiny_classifier()), str(tmp_path))
    assert saver.path(7) == tmp_path / "bases_000007.pt"
    names = [saver.path(bases).name for bases in (9, 80, 700, 12345)]
    assert sorted(names) == names


def test_a_network_that_is_not_decomposed_is_refused(tmp_path: Path) -> None:
    engine = Engine(lambda engine, batch: None)
    PrunedNetworkSaver(tiny_classifier(), tmp_path / "networks").attach(engine)
    with pytest.raises(LayerSelectionError):
        engine.run([0], max_epochs=1)
    assert not (tmp_path / "networks").exists()


def test_a_folder_that_cannot_be_written_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "networks").write_text("a file")
    engine = Engine(lambda engine, batch: None)
    PrunedNetworkSaver(mbp.decompose(tiny_classifier()), tmp_path / "networks").attach(engine)
    with pytest.raises(OSError):
        engine.run([0], max_epochs=1)
    assert (tmp_path / "networks").read_text() == "a file"
