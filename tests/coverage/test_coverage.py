"""A few small networks through all claims of the coverage table; with ``-m slow``, the whole table."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from importlib.util import find_spec

import pytest
import torch
from monai.networks import nets
from monai.networks.nets import classifier, densenet, efficientnet, highresnet, milmodel, regressor, resnet, senet, vit
from torch import nn

from ..benchmarks.coverage_page import BEGIN, END, write_page
from ..networks import MONAI_NETWORKS
from .checks import CLAIMS, Case, Finding, check, recompose_is_exact, scripts
from .peer import torch_pruning
from .row import Row, build, images
from .rows import NOT_IN_TABLE, ROWS

EXPORTS = ("torch.export", "ONNX")
SMALL = [Row(name, "small", name.split()[0], make, shape) for name, (make, shape) in MONAI_NETWORKS.items()]
SMALL += [
    row
    for row in ROWS
    if row.name in {"Classifier 1D, residual", "Critic 2D, residual", "FullyConnectedNet linear layers"}
]
SMALL += [
    Row(
        "ViT",
        "small",
        "ViT",
        lambda: nets.ViT(1, 16, 8, 24, 48, 2, 4, classification=True, spatial_dims=2),
        (1, 16, 16),
        r"blocks\..*\.(qkv|out_proj|linear1|linear2)",
        "einops",
    )
]


def failures(row: Row, claims: tuple[str, ...]) -> list[Finding]:
    if row.needs is not None:
        pytest.importorskip(row.needs)
    if "ONNX" in claims:
        for package in ("onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(package)
    findings = list(check(row, claims))
    assert [finding.claim for finding in findings] == list(claims)
    return [finding for finding in findings if finding.state == "fail"]


@pytest.mark.parametrize("row", SMALL, ids=lambda row: row.name)
def test_small_networks_hold_all_claims_but_those_of_the_slow_exporters(row):
    assert failures(row, tuple(claim for claim in CLAIMS if claim not in EXPORTS)) == []


@pytest.mark.parametrize("name", ["ResNet 3D with shortcut A", "SE-ResNeXt block"])
def test_small_networks_are_exported(name):
    assert failures(next(row for row in SMALL if row.name == name), EXPORTS) == []


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_whole_table(row):
    assert failures(row, tuple(CLAIMS)) == []


def test_every_classification_network_of_monai_is_in_the_table():
    modules = (classifier, densenet, efficientnet, highresnet, milmodel, regressor, resnet, senet, vit)
    public = {
        thing.__name__
        for module in modules
        for name, thing in vars(module).items()
        if inspect.isclass(thing) and issubclass(thing, nn.Module) and thing.__module__ == module.__name__
        if hasattr(nets, name)
    }
    public |= {name for name in resnet.__all__ if name.startswith("resnet")}
    public |= {f"efficientnet-b{number}" for number in range(9)}
    in_table = {row.network for row in ROWS} | {row.name.split()[0] for row in ROWS}
    assert {"DenseNet264", "SEResNext101", "Critic", "resnet200"} <= public
    assert public - in_table - set(NOT_IN_TABLE) == set()
    assert all(hasattr(nets, name) for name in NOT_IN_TABLE)


def test_the_names_of_rows_are_unique_and_each_network_has_the_dimensions_it_supports():
    assert len({row.name for row in ROWS}) == len(ROWS)
    for family in ("DenseNet", "ResNet", "SENet", "EfficientNet", "HighResNet", "Classifier"):
        assert {len(row.input_shape) - 1 for row in ROWS if row.family == family} == {1, 2, 3}


def test_networks_are_built_anew_with_the_same_values_and_norms_that_have_seen_images():
    row = next(row for row in SMALL if row.name == "DenseNet")
    first, second = build(row).state_dict(), build(row).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(value.abs().sum() > 0 for key, value in first.items() if key.endswith("running_mean"))
    network, x = build(row), images(row, 2, seed=1)
    with torch.no_grad():
        assert (network(x)[0] - network(x)[1]).abs().max() > 1e-3 * network(x).abs().max()  # it looks at the image


def test_a_network_that_changed_is_found():
    case = Case(next(row for row in SMALL if row.name == "DenseNet"))
    with torch.no_grad():
        next(case.plain.parameters()).mul_(1.001)
    finding = recompose_is_exact(case)
    assert finding.state == "fail"
    assert "relative_error" in (finding.reason or "")


def test_what_the_original_cannot_do_is_not_applicable_with_its_reason():
    case = Case(next(row for row in SMALL if row.name == "ResNet 3D with shortcut A"))
    finding = scripts(case)
    assert finding.state == "not applicable"
    assert "the original cannot either" in (finding.reason or "")


def test_a_network_that_cannot_be_built_fails_in_every_claim_with_the_reason():
    row = Row("broken", "small", "DenseNet", lambda: nets.DenseNet(4, 1, 2), (1, 8, 8))
    assert {(finding.claim, finding.state) for finding in check(row)} == {(claim, "fail") for claim in CLAIMS}
    assert all(finding.reason for finding in check(row))


@pytest.mark.skipif(find_spec("torch_pruning") is None, reason="torch-pruning is not installed")
def test_torch_pruning_is_measured_as_it_is():
    rows = {row.name: row for row in SMALL}
    pruned = torch_pruning(rows["DenseNet"])
    assert (pruned.state, pruned.reason) == ("prunes", None)
    assert pruned.figures["parameters_left"] < pruned.figures["parameters"]
    refused = torch_pruning(rows["DenseNet with PReLU"])
    assert refused.state == "fails"
    assert refused.reason


def test_the_page_counts_rows_and_tells_reasons_once(tmp_path):
    row = SMALL[0]
    good = [Finding(claim, "pass", {"relative_error": 2e-6} if claim == "recompose" else {}) for claim in CLAIMS]
    reason = "the original cannot either: RuntimeError: a | b"
    bad = [
        Finding(claim, "fail", reason="it broke") if claim == "round trip" else found
        for claim, found in zip(CLAIMS, good, strict=True)
    ]
    bad[-1] = good[-1] = Finding("ONNX", "not applicable", reason=reason)
    peers = (Finding("Torch-Pruning", "prunes"), Finding("Torch-Pruning", "fails", reason="TypeError: no"))
    rows = [
        {
            "name": f"{row.name} {number}",
            "family": row.family,
            "seconds": 60,
            "findings": [asdict(f) for f in (*found, peer)],
        }
        for number, (found, peer) in enumerate(zip((good, bad), peers, strict=True))
    ]
    page = tmp_path / "coverage.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    write_page({"command": "python x", "versions": {"torch": "2"}, "rows": rows}, page)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "**1 of 2 networks pass" in text
    assert "Torch-Pruning prunes 1 of the same 2" in text
    assert f"| {row.name} 0 |  |  | 2e-06 | yes | yes | yes | – (1) | prunes |" in text
    assert f"| {row.name} 1 |  |  | 2e-06 | **no** (2) | yes | yes | – (1) | fails (3) |" in text
    assert "\n1. the original cannot either: RuntimeError: a \\| b\n2. round trip: it broke\n3. TypeError: no\n" in text


def test_a_page_without_a_place_for_the_results_is_refused(tmp_path):
    page = tmp_path / "coverage.md"
    page.write_text("nothing here", encoding="utf-8")
    with pytest.raises(ValueError, match="must hold the lines"):
        write_page({"command": "", "versions": {}, "rows": []}, page)
    assert page.read_text(encoding="utf-8") == "nothing here"
