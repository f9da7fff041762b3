"""No code of this project runs what a file holds: its syntax trees, and the expressions of its bundles, say so."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MODULES = ("pickle", "cPickle", "_pickle", "dill", "joblib", "shelve", "marshal", "cloudpickle")
CALLS = {
    "eval": "runs a text",
    "exec": "runs a text",
    "compile": "makes code of a text",
    "__import__": "imports what a text names",
    "os.system": "runs a text in a shell",
    "os.popen": "runs a text in a shell",
    "tempfile.mktemp": "gives a name that another can take first",
    "yaml.load": "can make any object; use yaml.safe_load",
    "yaml.unsafe_load": "makes any object",
    "yaml.full_load": "can make any object; use yaml.safe_load",
    "torch.hub.load": "runs code of a repository",
}
# reads no pickle: it names the error of torch's reader, which refuses what is more than tensors
ALLOWED = {("monai_basisprune/persistence.py", "pickle"), ("monai_basisprune/reading.py", "pickle")}


def problems_of(source: str, name: str = "x.py") -> list[str]:
    """Return what a file must not hold, one line each."""
    tree = ast.parse(source)
    names = _imported(tree)
    return [f"{name}:{line}: {text}" for line, text in _problems(tree, names, name)]


def _imported(tree: ast.AST) -> dict[str, str]:
    """Return what each imported name stands for."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {
                (alias.asname or alias.name.split(".")[0]): (alias.asname and alias.name) or alias.name.split(".")[0]
                for alias in node.names
            }
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _full_name(node: ast.expr, names: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_full_name(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id).removeprefix("builtins.") if isinstance(node, ast.Name) else "?"


def _problems(tree: ast.AST, names: dict[str, str], file: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            for top in {m.split(".")[0] for m in ([module] if module else [alias.name for alias in node.names])}:
                if top in MODULES and (file, top) not in ALLOWED:
                    yield node.lineno, f"imports {top}, which runs what a file holds"
        if not isinstance(node, ast.Call):
            continue
        name = _full_name(node.func, names).removeprefix("builtins.")
        given = {keyword.arg: keyword.value for keyword in node.keywords}

        def is_constant(key: str, value: object, given: dict[str | None, ast.expr] = given) -> bool:
            return isinstance(found := given.get(key), ast.Constant) and found.value is value

        method = name.rpartition(".")[2]
        if name in CALLS:
            yield node.lineno, f"calls {name}, which {CALLS[name]}"
        if name.split(".")[0] in MODULES and method in ("load", "loads", "Unpickler", "open", "dump", "dumps"):
            yield node.lineno, f"calls {name}, which runs what a file holds"
        if name in ("torch.load", "torch.serialization.load") and not is_constant("weights_only", True):
            yield node.lineno, "calls torch.load without weights_only=True"
        if method == "load" and "allow_pickle" in given and not is_constant("allow_pickle", False):
            yield node.lineno, "loads with allow_pickle"
        if "shell" in given and not is_constant("shell", False):
            yield node.lineno, f"calls {name} with a shell"
        if method in ("extractall", "extract") and not is_constant("filter", "data"):
            filters = given.get("filter")
            if not (isinstance(filters, ast.Constant) and filters.value == "data"):
                yield node.lineno, f"calls {method} without filter='data'"


PLANTED = {
    "eval('1')": "calls eval",
    "import builtins\nbuiltins.exec('1')": "calls exec",
    "from builtins import eval as harmless\nharmless('1')": "calls eval",
    "compile('1', 'x', 'eval')": "calls compile",
    "import os as o\no.system('ls')": "calls os.system",
    "from os import popen\npopen('ls')": "calls os.popen",
    "import pickle": "imports pickle",
    "from pickle import loads": "imports pickle",
    "import joblib.numpy_pickle": "imports joblib",
    "import marshal as m\nm.loads(b'')": "imports marshal",
    "import torch\ntorch.load('x')": "without weights_only",
    "import torch\ntorch.load('x', weights_only=False)": "without weights_only",
    "import torch\nsafe = True\ntorch.load('x', weights_only=safe)": "without weights_only",
    "from torch import load as read\nread('x')": "without weights_only",
    "import numpy as np\nnp.load('x', allow_pickle=True)": "allow_pickle",
    "import subprocess\nsubprocess.run('ls', shell=True)": "with a shell",
    "import yaml\nyaml.load('x', Loader=yaml.Loader)": "calls yaml.load",
    "from yaml import unsafe_load\nunsafe_load('x')": "calls yaml.unsafe_load",
    "import tempfile\ntempfile.mktemp()": "calls tempfile.mktemp",
    "import tarfile\ntarfile.open('x').extractall('y')": "calls extractall",
    "import zipfile\nwith zipfile.ZipFile('x') as z:\n    z.extractall()": "calls extractall",
    "def f():\n    class A:\n        x = lambda self: eval('1')": "calls eval",
}
FINE = (
    "import torch\ntorch.load('x', map_location='cpu', weights_only=True)",
    "network.eval()",
    "import re\nre.compile('x')",
    "import yaml\nyaml.safe_load('x')",
    "import numpy as np\nnp.load('x', allow_pickle=False)\nnp.load('x')",
    "import subprocess\nsubprocess.run(['ls'])",
    "import tarfile\ntarfile.open('x').extractall('y', filter='data')",
    "import torch\ntorch.compile(network)",
)


@pytest.mark.parametrize(("source", "expected"), PLANTED.items())
def test_what_is_planted_is_found(source: str, expected: str) -> None:
    found = problems_of(source)
    assert found, "nothing was found"
    assert any(expected in line for line in found), found


@pytest.mark.parametrize("source", FINE)
def test_what_is_fine_is_not_found(source: str) -> None:
    assert problems_of(source) == []


def test_no_code_of_the_project_runs_what_a_file_holds() -> None:
    files = [
        *(ROOT / "monai_basisprune").rglob("*.py"),
        *(ROOT / "bundles").rglob("*.py"),
        *(ROOT / "docs").rglob("*.py"),
    ]
    files += (ROOT / "tests" / "benchmarks").rglob("*.py")
    assert len(files) > 100, "the files were not found"
    found = [
        line
        for path in sorted(files)
        for line in problems_of(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())
    ]
    assert not found, "\n".join(found)


def _expressions(value: Any) -> Iterator[str]:
    if isinstance(value, str) and value.startswith("$"):
        yield value[1:]
    elif isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _expressions(part)


def _as_python(expression: str) -> str:
    """Return an expression with a name in place of each reference to another part of the configuration."""
    kept = "".join(letter if letter.isalnum() or letter not in "@%#" else "_" for letter in expression)
    return kept.replace("::", "_")


def test_no_expression_of_a_bundle_runs_what_a_file_holds() -> None:
    configs = sorted((ROOT / "bundles").rglob("*.json"))
    seen, found = 0, []
    for path in configs:
        imports = []
        content = json.loads(path.read_text(encoding="utf-8"))
        for expression in _expressions(content):
            if expression.startswith("import "):
                imports.append(expression)
        for expression in _expressions(content):
            if not expression.startswith("import "):
                seen += 1
                source = "\n".join([*imports, _as_python(expression)])
                found += [line.replace("x.py", path.name) for line in problems_of(source)]
    assert seen > 50, "the expressions were not found"
    assert not found, "\n".join(found)


def test_a_planted_expression_is_found() -> None:
    (expression,) = _expressions({"network": ["$torch.load(@bundle_root + '/models/model.pt')"]})
    assert "without weights_only" in problems_of(f"import torch\n{_as_python(expression)}")[0]
