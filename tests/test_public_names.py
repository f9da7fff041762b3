from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from monai.bundle.config_item import ComponentLocator

import monai_basisprune as mbp
import monai_basisprune.evidence

EMPTY = inspect.Parameter.empty
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(mbp.__path__, "monai_basisprune.")
    if not module.name.endswith("__main__")
)


def parameters(function) -> dict:
    return {name: p.default for name, p in inspect.signature(function).parameters.items() if name != "self"}


def public_names() -> list[tuple[str, str]]:
    return [
        (module, name)
        for module in ["monai_basisprune", *MODULES]
        for name in getattr(importlib.import_module(module), "__all__", ())
    ]


# The contract of shared/DESIGN.md. Arguments may be added behind these, never in between.
CONTRACT = {
    "decompose": {"network": EMPTY, "basis": "weight", "target_modules": None, "exclude_modules": None},
    "layer_status": {"network": EMPTY},
    "recompose": {"network": EMPTY},
    "measure_complexity": {"network": EMPTY, "input_shape": EMPTY},
    "trainable_parameters": {"network": EMPTY},
    "TaylorImportance": {"network": EMPTY},
    "SingularValueImportance": {"network": EMPTY},
    "ScalingImportance": {"network": EMPTY},
    "prune_": {"network": EMPTY, "scores": EMPTY, "budget": EMPTY, "optimizer": None},
    "PruningPlan.from_network": {"network": EMPTY},
    "PruningPlan.save": {"path": EMPTY},
    "PruningPlan.load": {"path": EMPTY},
    "build_pruned": {"network_def": EMPTY, "plan": EMPTY},
    "save_pruned": {"network": EMPTY, "path": EMPTY},
    "load_pruned": {"network_def": EMPTY, "path": EMPTY},
    "TaylorImportance.accumulate": {},
    "TaylorImportance.scores": {},
    "evidence.auc_interval": {"labels": EMPTY, "scores": EMPTY, "patients": None, "confidence": 0.95},
    "evidence.compare_auc": {
        "labels": EMPTY,
        "reference": EMPTY,
        "candidate": EMPTY,
        "patients": None,
        "margin": 0.01,
    },
}


@pytest.mark.parametrize("name", CONTRACT)
def test_the_functions_of_the_contract_take_these_arguments(name):
    function = mbp
    for part in name.split("."):
        function = getattr(function, part)
    found = parameters(function)
    wanted = CONTRACT[name]
    assert dict(list(found.items())[: len(wanted)]) == wanted
    assert EMPTY not in list(found.values())[len(wanted) :]  # whatever was added has a default


@pytest.mark.parametrize("quantity", ["parameters", "macs", "bases", "threshold"])
def test_a_budget_takes_each_quantity_of_the_contract(quantity):
    assert parameters(mbp.Budget)[quantity] is None


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (mbp.LayerStatus, ["name", "type", "rank", "max_rank", "parameters", "original_parameters", "skipped"]),
        (mbp.Complexity, ["parameters", "macs"]),
        (mbp.evidence.AUCInterval, ["auc", "low", "high", "method"]),
        (mbp.evidence.AUCComparison, ["difference", "low", "high", "non_inferior"]),
    ],
)
def test_the_results_of_the_contract_hold_these_fields(kind, fields):
    assert set(fields) <= {field.name for field in dataclasses.fields(kind)}
    assert kind.__dataclass_params__.frozen


def test_every_room_can_be_imported_and_lists_what_is_public():
    assert {f"monai_basisprune.{room}" for room in ("layers", "pruning", "handlers", "evidence", "report", "data")} <= (
        set(MODULES)
    )
    for module, name in public_names():
        assert hasattr(importlib.import_module(module), name), f"{module}.{name} is listed but does not exist"
    for name in MODULES:
        if not name.rpartition(".")[2].startswith("_"):
            assert hasattr(importlib.import_module(name), "__all__"), f"{name} has no __all__"


def test_names_that_are_listed_in_a_package_are_listed_once():
    for module in ["monai_basisprune", *MODULES]:
        names = list(getattr(importlib.import_module(module), "__all__", ()))
        assert len(names) == len(set(names)), module


def test_every_public_name_is_documented():
    missing = []
    for module, name in public_names():
        value = getattr(importlib.import_module(module), name)
        if inspect.isclass(value) or inspect.isfunction(value):
            text = inspect.getdoc(value) or ""
            # a dataclass without a docstring is given its own signature for one
            if not text or text.startswith(f"{name}("):
                missing.append(f"{module}.{name}")
            if inspect.isclass(value) and value.__module__.startswith("monai_basisprune"):
                members = inspect.getmembers(value, lambda m: inspect.isfunction(m) or isinstance(m, property))
                missing += [
                    f"{module}.{name}.{key}"
                    for key, member in members
                    if not key.startswith("_") and key in vars(value) and not inspect.getdoc(member)
                ]
    assert missing == []
    assert [name for name in ["monai_basisprune", *MODULES] if not importlib.import_module(name).__doc__] == []


def test_no_public_name_is_one_of_monai():
    # MONAI finds a bare _target_ in every loaded module whose name starts with "monai", and ours do
    of_monai = {
        name
        for module_name, module in list(sys.modules.items())
        if module_name == "monai" or module_name.startswith("monai.")
        for name, value in vars(module).items()
        if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__.startswith("monai.")
    }
    assert {"DenseNet121", "SupervisedTrainer", "CheckpointSaver"} <= of_monai
    ours = {
        (module, name)
        for module, name in public_names()
        for value in [getattr(importlib.import_module(module), name)]
        if inspect.isclass(value) or inspect.isfunction(value)
    }
    assert len(ours) > 30
    assert sorted((module, name) for module, name in ours if name in of_monai) == []


def test_monai_finds_each_name_of_the_package_in_one_place():
    for name in MODULES:
        importlib.import_module(name)
    locator = ComponentLocator()
    for name in mbp.__all__:
        value = getattr(mbp, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert locator.get_component_module_name(name) == value.__module__


LOWER_ROOMS = {
    "errors": set(),
    "factorization": set(),
    "files": set(),
    "forward": set(),
    "plain_layers": set(),
    "threads": set(),
    "traversal": set(),
    "copies": {"threads", "traversal"},
    "basis_scaling": set(),
    "latency": {"forward"},
    "complexity": {"forward", "latency"},
    "layers": {"copies", "basis_scaling", "factorization", "forward", "plain_layers"},
    "selection": {"layers", "traversal", "errors"},
    "channel_slices": {"forward", "layers", "traversal"},
    "channel_scaling_layer": {"copies", "layers", "traversal"},
    "channel_scaling": {
        "copies",
        *("channel_graph", "channel_scaling_layer", "channel_slices", "forward", "layers", "errors"),
    },
    "channel_trial": {"copies", "channel_slices", "forward", "layers"},
    "channel_graph": {
        "copies",
        *("channel_scaling_layer", "channel_slices", "channel_trial", "decomposition", "forward", "layers", "errors"),
    },
    "channel_selection": {"budgets", "channel_graph", "tally", "errors"},
    "tally": {"budgets", "channel_slices", "channel_trial", "layers"},
    "channel_importance": {
        *("channel_graph", "channel_slices", "channel_tracking", "distributed", "errors", "importance"),
    },
    "channel_tracking": {"channel_graph", "channel_slices", "channel_trial"},
    "channels": {
        "copies",
        *("budgets", "channel_graph", "channel_selection", "channel_slices", "channel_trial", "forward", "layers"),
        *("pruning", "errors"),
    },
    "activation": {"factorization", "forward", "errors"},
    "joint_pruning": {
        "copies",
        *("budgets", "channel_graph", "channel_selection", "channel_slices", "channel_trial", "channels", "layers"),
        *("decomposition", "pruning", "tally", "errors"),
    },
    "decomposition": {
        "copies",
        *("activation", "channel_slices", "factorization", "selection", "layers", "threads", "errors"),
    },
    "layer_timing": {"decomposition", "forward", "latency", "layers"},
    "folding": {"copies", "forward", "layers"},
    "recomposition": {"copies", "channel_scaling_layer", "decomposition", "folding", "layer_timing"},
    "importance": {"threads", "activation", "decomposition", "layers", "errors"},
    "channel_compensation": {"elimination", "activation", "channel_slices", "layers"},
    "elimination": set(),
    "compensation": {
        *(
            "elimination",
            "activation",
            "channel_compensation",
            "channel_slices",
            "decomposition",
            "forward",
            "layers",
            "paired_passes",
        ),
        "selection",
    },
    "paired_passes": {"activation", "channel_compensation", "channel_slices", "forward", "layers"},
    "reconstruction": {
        *("activation", "channel_compensation", "channel_graph", "channel_slices", "decomposition", "elimination"),
        *("forward", "layers"),
    },
    "structural_search": {
        *("activation", "budgets", "channel_compensation", "channel_graph", "channel_slices", "channel_trial"),
        *("channels", "decomposition", "elimination", "errors", "layers", "pruning", "reconstruction", "tally"),
    },
    "budgets": {
        "copies",
        "channel_scaling_layer",
        *("channel_slices", "decomposition", "forward", "latency", "layer_timing", "layers", "selection", "traversal"),
        "errors",
    },
    "pruning": {"threads", "budgets", "decomposition", "layers", "errors"},
    "training": {"channel_scaling_layer", "decomposition", "selection", "layers", "errors"},
    "fingerprint": {"channel_slices", "layers"},
    "plan": {"_version", "channel_scaling_layer", "channel_slices", "fingerprint", "decomposition", "errors", "files"},
    "persistence": {
        "copies",
        "network_def",
        "factorization",
        "plan",
        "channel_scaling_layer",
        "channel_slices",
        "fingerprint",
        "reading",
        "selection",
        "layers",
        "errors",
        "files",
    },
    "curve": {"errors"},
    "bisection": set(),
    "search": {"bisection", "budgets", "curve", "errors"},
    "rounds": {
        "copies",
        *("budgets", "channel_graph", "channel_selection", "channel_trial", "channels", "decomposition"),
        *("distributed", "errors", "joint_pruning", "kernel_caches", "pruning", "structure", "tally"),
    },
    "kernel_caches": {"plain_layers"},
    "search_rounds": {
        *(
            "search",
            "snapshot",
            "structure",
            "budgets",
            "curve",
            "importance",
            "joint_pruning",
            "pruning",
            "rounds",
        ),
        "errors",
    },
    "snapshot": {
        *("channel_slices", "factorization", "fingerprint", "decomposition", "layers", "structure", "errors"),
    },
    "structure": {"channel_slices", "channel_trial", "decomposition", "factorization", "errors"},
    "distributed": {"errors"},
    "loading": {"distributed", "errors"},
    "reading": {"files"},
    "checkpoints": {"errors", "files", "reading"},
    "failures": set(),
    "redaction": set(),
    "distillation": {"activation", "forward"},
    "inspection": {"decomposition", "factorization", "forward", "layers", "selection"},
    "export_formats": {"errors"},
    "export": {"copies", "forward", "recomposition", "export_formats", "layers", "errors", "files"},
    "network_def": set(),
    "inflation": {"copies", "network_def", "fingerprint", "layers", "persistence", "errors"},
}


@pytest.mark.parametrize("room", LOWER_ROOMS)
def test_imports_point_downwards_only(room):
    source = Path(mbp.__file__).with_name(f"{room}.py").read_text(encoding="utf-8")
    found = set(re.findall(r"^\s*from \.(\w+) import", source, re.MULTILINE))
    assert found <= LOWER_ROOMS[room]
    assert "from . import" not in source
    assert "monai_basisprune." not in "".join(re.findall(r"^\s*(?:from|import) .*$", source, re.MULTILINE))


IMPORT = """
import logging, random, sys, warnings
# the effects of others, which this package needs, are theirs
import ignite.engine, jsonschema, matplotlib, monai, monai.bundle, monai.engines, numpy, pydicom, sklearn.metrics, torch
import scipy.optimize, scipy.stats, sklearn.model_selection, tqdm, yaml, jinja2, nibabel

def effects():
    loggers = [logging.getLogger(), *(l for l in logging.Logger.manager.loggerDict.values() if hasattr(l, "handlers"))]
    return {
        "log handlers": {l.name: list(l.handlers) for l in loggers if l.handlers},
        "log levels": {l.name: l.level for l in loggers if l.level},
        "warning filters": list(warnings.filters),
        "show warnings": warnings.showwarning,
        "torch random state": torch.get_rng_state().tolist(),
        "numpy random state": str(numpy.random.get_state()),
        "python random state": random.getstate(),
        "threads": torch.get_num_threads(),
        "default type": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "backend": dict.get(matplotlib.rcParams, "backend"),
        "style": str(sorted((k, v) for k, v in dict.items(matplotlib.rcParams) if k != "backend")),
        "hooks": (sys.excepthook, sys.displayhook),
        "path": list(sys.path),
        "recursion": sys.getrecursionlimit(),
    }

before = effects()
for name in sys.argv[1:]:
    __import__(name)
after = effects()
for key in before:
    assert after[key] == before[key], key
assert not torch.cuda.is_initialized()
print("quiet")
"""


def test_importing_the_package_has_no_effects():
    environment = {**os.environ, "PYTHONPATH": str(Path(mbp.__file__).parents[1])}
    modules = ["monai_basisprune", *(name for name in MODULES if ".cli" not in name)]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, *modules], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "quiet\n"


def test_there_is_one_version():
    source = Path(mbp.__file__).parent
    assert re.fullmatch(r"\d+\.\d+\.\d+", mbp.__version__)
    literal = re.compile(rf"[\"']{re.escape(mbp.__version__)}[\"']")
    found = [path.name for path in source.rglob("*.py") if literal.search(path.read_text(encoding="utf-8"))]
    assert found == ["_version.py"]


def test_errors_are_a_tree_that_a_caller_can_catch():
    kinds = [getattr(mbp, name) for name in mbp.__all__ if name.endswith("Error")]
    assert len(kinds) >= 6
    for kind in kinds:
        assert issubclass(kind, mbp.BasisPruneError)
        assert kind is mbp.BasisPruneError or issubclass(kind, ValueError)
    error = mbp.CohortError("Two cases cannot be used.", ["case 1: no label", "case 2: no image"])
    assert str(error) == "Two cases cannot be used.\n  - case 1: no label\n  - case 2: no image"
    assert error.problems == ("case 1: no label", "case 2: no image")
