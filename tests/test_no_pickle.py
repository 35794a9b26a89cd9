"""No file that is read can run code: nothing in the package unpickles, by whatever name."""

import ast

import pytest
from test_layering import over_package, uses

PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNPICKLES = {"torch.load", "torch.save", "torch.serialization", "torch.package", "torch.jit.load", "torch.jit.save"}
# What builds any object from a file, or code.
RUNS_CODE = {"yaml", "ruamel", "jsonpickle", "pandas.read_pickle"}
NUMPY_LOADERS = {"np.load", "numpy.load", "np.lib.format.read_array", "numpy.lib.format.read_array"}


def pickles(module: str, source: str) -> list[str]:
    """NumPy's loader refuses pickles only where it is told to, so that it has to be told, in so many words."""
    found = [f"{module}:{line} {name}" for line, name in uses(source, PICKLES | UNPICKLES | RUNS_CODE)]
    for call in ast.walk(ast.parse(source)):
        if isinstance(call, ast.ImportFrom) and call.module == "numpy" and "load" in {each.name for each in call.names}:
            found.append(f"{module}:{call.lineno} numpy.load under another name")
        if not isinstance(call, ast.Call):
            continue
        told = {each.arg: each.value for each in call.keywords}.get("allow_pickle")
        refuses = isinstance(told, ast.Constant) and told.value is False
        loads = ast.unparse(call.func) in NUMPY_LOADERS
        if (loads or told is not None) and not refuses:
            found.append(f"{module}:{call.lineno} {ast.unparse(call.func)} without allow_pickle=False")
    return found


def test_nothing_unpickles():
    assert over_package(pickles) == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import pickle", "pickle"),
        ("from pickle import loads", "pickle.loads"),
        ("import torch\ntorch.save({}, 'x')", "torch.save"),
        ("import torch as t\nt.load('x', weights_only=True)", "torch.load"),
        ("from torch import load", "torch.load"),
        ("import numpy as np\nnp.load('x', allow_pickle=True)", "np.load without allow_pickle=False"),
        ("import numpy as np\nnp.load('x')", "np.load without allow_pickle=False"),
        ("import numpy as np\nsome(allow_pickle=yes)", "some without allow_pickle=False"),
        ("from numpy import load\nload('x')", "numpy.load"),
        ("import yaml\nyaml.safe_load('x')", "yaml"),
        ("import torch\ntorch.jit.load('x')", "torch.jit.load"),
    ],
)
def test_what_unpickles_is_found(line: str, found: str):
    assert found in " ".join(pickles("layer", line))


@pytest.mark.parametrize(
    "line",
    [
        "import numpy as np\nnp.load('x', allow_pickle=False)",
        "import numpy as np\nnp.lib.format.open_memmap('x', 'r')",
        "from safetensors.torch import load\nload(b'')",
    ],
)
def test_what_does_not_is_not(line: str):
    assert pickles("layer", line) == []
