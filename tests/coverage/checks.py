"""What the coverage table claims about a network, one function for each claim, each with the figures it measured."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.decomposition import decomposed_layers
from monai_basisprune.errors import ExportError
from monai_basisprune.export import export_network

from .row import Row, build, images

__all__ = ["CLAIMS", "Case", "Finding", "check", "first_line", "tensors"]

EXACT = 1e-5


@dataclass(frozen=True)
class Finding:
    """The outcome of one claim for one network.

    Attributes:
        claim: name of the claim.
        state: ``"pass"``, ``"fail"`` or ``"not applicable"``.
        figures: what was measured.
        reason: why it fails or does not apply, in one line; None where it passes.
        seconds: how long it took.
    """

    claim: str
    state: str
    figures: dict[str, float | int] = field(default_factory=dict)
    reason: str | None = None
    seconds: float = 0.0


class Case:
    """One row with the networks that its claims share; each is built when it is first asked for."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.network = build(row)
        self.x = images(row, 2, seed=1)
        self.decomposed = mbp.decompose(self.network, target_modules=row.target_modules)

    @cached_property
    def wanted(self) -> list[torch.Tensor]:
        """What the original network says."""
        return self.run(self.network)

    @cached_property
    def pruned(self) -> tuple[nn.Module, mbp.PruneResult]:
        """The network at half rank, with scaling factors as if they had been trained."""
        network = mbp.decompose(self.network, target_modules=self.row.target_modules)
        result = mbp.prune_(network, mbp.SingularValueImportance(network).scores(), mbp.Budget(bases=0.5))
        generator = torch.Generator().manual_seed(2)
        for _, layer in decomposed_layers(network):
            factors = layer.scaling.scaling_factors.data
            factors.mul_(torch.empty_like(factors).uniform_(0.8, 1.2, generator=generator))
        return network, result

    @cached_property
    def plain(self) -> nn.Module:
        """The pruned network, recomposed."""
        return mbp.recompose(self.pruned[0])

    def run(self, network: Callable[[torch.Tensor], Any], x: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Return all tensors that a network makes of the images, or of others."""
        with torch.no_grad():
            return list(tensors(network(self.x if x is None else x)))


def tensors(output: Any) -> Iterator[torch.Tensor]:
    """Return the tensors of an output, however it is nested."""
    if isinstance(output, torch.Tensor):
        yield output
    else:
        for part in output.values() if isinstance(output, dict) else output:
            yield from tensors(part)


def first_line(error: BaseException) -> str:
    """Return the type and the first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _error(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """Return the largest difference over the largest value, for the worst of the tensors."""
    assert [t.shape for t in found] == [t.shape for t in wanted], "the output has another shape"
    assert all(bool(torch.isfinite(t).all()) for t in [*found, *wanted]), "the output is not finite"
    pairs = zip(found, wanted, strict=True)
    return max(float((f.double() - w.double()).abs().max() / w.double().abs().max().clamp_min(1e-30)) for f, w in pairs)


def _compared(case: Case, found: nn.Module, wanted: nn.Module) -> dict[str, float | int]:
    """Return the relative error of what one network says against another, as float32 computes both.

    Where it is above the limit because rounding in float32 alone moves the wanted output by as much, the error is that
    of the same weights computed in float64, and the two others are noted.
    """
    said = case.run(wanted)
    error = _error(case.run(found), said)
    if error <= EXACT:
        return {"relative_error": error}
    first, second = (copy.deepcopy(network).double() for network in (found, wanted))
    exact = case.run(second, case.x.double())
    rounding = _error(said, exact)
    if error > 4 * rounding:
        return {"relative_error": error}
    in_float64 = _error(case.run(first, case.x.double()), exact)
    return {"relative_error": in_float64, "float32_difference": error, "float32_rounding_of_the_original": rounding}


def _exact(claim: str, figures: dict[str, float | int], problems: Iterable[str] = ()) -> Finding:
    """Return a pass where every relative error is small enough and there is no other problem."""
    lines = [
        f"{name} {value:.1e}, above {EXACT:.0e}" for name, value in figures.items() if "error" in name and value > EXACT
    ]
    lines += problems
    return Finding(claim, "fail" if lines else "pass", figures, "; ".join(lines) or None)


def decompose_is_exact(case: Case) -> Finding:
    """Decomposed, the network says the same as before."""
    return _exact("decompose", _compared(case, case.decomposed, case.network))


def comes_back(case: Case) -> Finding:
    """Decomposed and recomposed, it is the network that it was: the same structure, the same output."""
    again = mbp.recompose(case.decomposed)
    problems = [] if repr(again) == repr(case.network) else ["its structure differs from the original's"]
    before, after = case.network.state_dict(), again.state_dict()
    if {k: v.shape for k, v in before.items()} != {k: v.shape for k, v in after.items()}:
        problems.append("its state dict has other entries")
    return _exact("round trip", _compared(case, again, case.network), problems)


def half_rank_runs(case: Case) -> Finding:
    """With half of the bases removed it runs, and its output is finite and has the same shape."""
    network, result = case.pruned
    total = sum(status.max_rank or 0 for status in mbp.layer_status(network))
    found, problems = case.run(network), []
    if [t.shape for t in found] != [t.shape for t in case.wanted]:
        problems.append("the output has another shape")
    if not all(bool(torch.isfinite(t).all()) for t in found):
        problems.append("the output is not finite")
    if result.bases > 0.5 * total:
        problems.append(f"{result.bases} of {total} bases are left")
    return _exact("half rank", {"bases": total, "bases_left": result.bases}, problems)


def is_as_small_as_told(case: Case) -> Finding:
    """Recomposed, it has exactly the parameters that ``prune_`` and ``layer_status`` announce."""
    network, result = case.pruned
    left = sum(p.numel() for p in case.plain.parameters())
    figures = {"parameters": sum(p.numel() for p in case.network.parameters()), "parameters_left": left}
    problems = (
        [] if left == result.parameters else [f"prune_ announced {result.parameters} parameters, {left} are left"]
    )
    if left >= figures["parameters"]:
        problems.append(f"{left} parameters are not fewer than {figures['parameters']}")
    modules = dict(case.plain.named_modules())
    for status in mbp.layer_status(network):
        if status.rank is not None and sum(p.numel() for p in modules[status.name].parameters()) != status.parameters:
            problems.append(f"{status.name}: layer_status announced {status.parameters} parameters")
    return _exact("size", figures, problems)


def recompose_is_exact(case: Case) -> Finding:
    """Pruned and recomposed, it says the same as before, and holds no module of this package."""
    problems = [
        f"{name}: {type(module).__name__} is of this package"
        for name, module in case.plain.named_modules()
        if type(module).__module__.startswith("monai_basisprune")
    ]
    return _exact("recompose", _compared(case, case.plain, case.pruned[0]), problems)


def saves_and_loads(case: Case) -> Finding:
    """Saved and loaded into a fresh network, it is the same to the bit."""
    network = case.pruned[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        mbp.save_pruned(network, path)
        figures = {"bytes": path.stat().st_size}
        again = mbp.load_pruned(case.row.make, path).eval()
    before, after = network.state_dict(), again.state_dict()
    problems = []
    if list(before) != list(after) or not all(torch.equal(before[key], after[key]) for key in before):
        problems.append("the loaded values differ")
    if not all(torch.equal(a, b) for a, b in zip(case.run(again), case.run(network), strict=True)):
        problems.append("the loaded network says something else")
    return _exact("save and load", figures, problems)


def scripts(case: Case) -> Finding:
    """TorchScript takes it decomposed and recomposed, wherever it takes the original."""
    try:
        torch.jit.script(case.network)
    except Exception as error:  # many types
        return Finding("TorchScript", "not applicable", reason=f"the original cannot either: {first_line(error)}")
    figures = {}
    for name, network in (("decomposed", case.pruned[0]), ("recomposed", case.plain)):
        figures[f"{name}_error"] = _error(case.run(torch.jit.script(network)), case.run(network))
    return _exact("TorchScript", figures)


def exports(case: Case) -> Finding:
    """``torch.export`` takes it recomposed, for any batch size, and the file says the same."""
    return _exported(case, "torch.export", "torch_export", "network.pt2")


def exports_to_onnx(case: Case) -> Finding:
    """ONNX takes it recomposed, for any batch size, and onnxruntime says the same."""
    return _exported(case, "ONNX", "onnx", "network.onnx")


def _exported(case: Case, claim: str, kind: str, name: str) -> Finding:
    """Export with a check of the outputs; a network that cannot be exported even unpruned is no failure of ours."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = export_network(case.plain, Path(folder) / name, case.row.input_shape, kind)
        except ExportError as error:
            try:
                export_network(case.network, Path(folder) / name, case.row.input_shape, kind)
            except ExportError as original:
                reason = f"the original cannot either: {first_line(original)}"
                return Finding(claim, "not applicable", reason=reason)
            return Finding(claim, "fail", reason=f"the original can, the recomposed cannot: {first_line(error)}")
    # the limits are those of export_network: 1e-5 + 1e-3 of each value, for batches of 1 and 3
    return Finding(claim, "pass", {"relative_difference": result.relative_error, "bytes": result.size})


CLAIMS: dict[str, Callable[[Case], Finding]] = {
    "decompose": decompose_is_exact,
    "round trip": comes_back,
    "half rank": half_rank_runs,
    "size": is_as_small_as_told,
    "recompose": recompose_is_exact,
    "save and load": saves_and_loads,
    "TorchScript": scripts,
    "torch.export": exports,
    "ONNX": exports_to_onnx,
}
"""The claims, in the order in which they are checked."""


def check(row: Row, claims: Iterable[str] = tuple(CLAIMS)) -> Iterator[Finding]:
    """Check claims about the network of a row, one after the other; what raises is a failure, with its reason."""
    try:
        case = Case(row)
    except Exception as error:  # a network that cannot be built or decomposed fails in all claims
        yield from (Finding(claim, "fail", reason=first_line(error)) for claim in claims)
        return
    for claim in claims:
        start = time.perf_counter()
        try:
            finding = CLAIMS[claim](case)
        except Exception as error:  # the table goes on with the next claim
            finding = Finding(claim, "fail", reason=first_line(error))
        yield replace(finding, seconds=time.perf_counter() - start)
