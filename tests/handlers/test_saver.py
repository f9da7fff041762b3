from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events

import monai_basisprune as mbp
from monai_basisprune.errors import LayerSelectionError
from monai_basisprune.handlers import PrunedNetworkSaver, PruningHandler
from monai_basisprune.structure import structure_of

from ..networks import same_bits, snapshot, tiny_classifier


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
        before_cuts[structure_of(network)] = snapshot(network)

    engine = Engine(train)
    engine.add_event_handler(Events.EPOCH_COMPLETED, remember)
    saver.attach(engine)
    pruning.attach(engine)
    engine.run([torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8)], max_epochs=pruning.max_epochs)

    assert len(before_cuts) == 3
    found = {path.name for path in (tmp_path / "new" / "networks").iterdir()}
    assert found == {f"{name}.pt" for name in before_cuts} | {f"{name}.plan.json" for name in before_cuts}
    for structure, state in before_cuts.items():
        loaded = mbp.load_pruned(original, saver.path(structure))
        assert structure_of(loaded) == structure
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
    loaded = mbp.load_pruned(original, saver.path(structure_of(network)))
    assert loaded.head.bias.tolist() == [3.5, 3.5]


def test_names_sort_by_bases_and_tell_networks_of_equally_many_apart(tmp_path: Path) -> None:
    saver = PrunedNetworkSaver(mbp.decompose(tiny_classifier()), str(tmp_path))
    names = []
    for threshold in (0.5, 2.5):
        for order in (1, -1):
            network = mbp.decompose(tiny_classifier())
            scores = torch.arange(6.0) if order > 0 else torch.arange(6.0).flip(0)
            mbp.prune_(network, {"stem": scores}, mbp.Budget(threshold=threshold))
            names.append(saver.path(structure_of(network)).name)
    assert len(set(names)) == 4
    assert [name[:12] for name in sorted(names)] == ["bases_000011", "bases_000011", "bases_000013", "bases_000013"]


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
