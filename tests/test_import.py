"""What `import unrolled` loads, changes and offers: nothing before a name is used; nothing; every public name."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import unrolled

ROOT = Path(__file__).parents[1]
FRONT = ROOT / "src/unrolled/__init__.py"
# What the layers need. A submodule that appears here makes everybody who wants a layer pay for it.
OF_THE_LAYERS = {
    "unrolled",
    "unrolled.arguments",
    "unrolled.directions",
    "unrolled.edits",
    "unrolled.layer",
    "unrolled.layer_trace",
    "unrolled.own_cell",
    "unrolled.reversal",
    "unrolled.recurrence",
    "unrolled.recurrence.calls",
    "unrolled.cell_options",
    "unrolled.recurrence.cell",
    "unrolled.recurrence.choose",
    "unrolled.recurrence.cpu",
    "unrolled.recurrence.edited",
    "unrolled.recurrence.kernels",
    "unrolled.recurrence.masks",
    "unrolled.recurrence.memory",
    "unrolled.recurrence.native",
    "unrolled.recurrence.one_node",
    "unrolled.recurrence.portable",
    "unrolled.recurrence.precision",
    "unrolled.recurrence.prepacked",
    "unrolled.recurrence.products",
    "unrolled.recurrence.ranges",
    "unrolled.recurrence.reference",
    "unrolled.recurrence.restarts",
    "unrolled.recurrence.seam",
    "unrolled.recurrence.structs",
    "unrolled.recurrence.threefry",
    "unrolled.stack",
    "unrolled.state",
}


def fresh(program: str) -> Any:
    """What `program` prints as JSON in an interpreter of its own."""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return json.loads(run.stdout)


def test_import_alone_loads_the_standard_library_and_nothing_else():
    loaded = fresh("import json, sys, unrolled; print(json.dumps(sorted(sys.modules)))")
    allowed = sys.stdlib_module_names | {"unrolled", "__main__"}
    foreign = {name.partition(".")[0] for name in loaded} - allowed - site_packages_at_start()
    assert not foreign, f"import unrolled also loads {', '.join(sorted(foreign))}"
    assert [name for name in loaded if name.startswith("unrolled")] == ["unrolled"]


def test_the_layers_load_torch_and_numpy_alone():
    loaded = fresh("""
import json, sys
import numpy, torch
before = set(sys.modules)
from unrolled import LSTMLayer, LSTMState, MultiLayerLSTM, backends
print(json.dumps(sorted(set(sys.modules) - before)))
""")
    own = {name for name in loaded if name.partition(".")[0] == "unrolled"}
    foreign = {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names - {"unrolled", "torch", "numpy"}
    assert not foreign, f"the layers also load {', '.join(sorted(foreign))}"
    assert own == OF_THE_LAYERS


def site_packages_at_start() -> set[str]:
    """What an interpreter of this environment loads before it runs anything: editable installs hook in there."""
    return {name.partition(".")[0] for name in fresh("import json, sys; print(json.dumps(sorted(sys.modules)))")}


def test_import_does_nothing_else():
    """No seed drawn, no thread, handler, filter, default or environment variable touched, no device woken."""
    changed = fresh("""
import json, logging, os, random, signal, sys, threading, warnings
import numpy, torch

def world():
    return {
        "torch generator": torch.get_rng_state().tolist(),
        "numpy generator": repr(numpy.random.get_state()),
        "random generator": repr(random.getstate()),
        "torch threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "python threads": threading.active_count(),
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "grad mode": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "cuda": torch.cuda.is_initialized(),
        "environment": dict(os.environ),
        "log handlers": repr(logging.root.handlers),
        "warning filters": repr(warnings.filters),
        "interrupt handler": repr(signal.getsignal(signal.SIGINT)),
        "excepthook": repr(sys.excepthook),
        "path": list(sys.path),
        "working directory": os.getcwd(),
    }

before = world()
from unrolled import MultiLayerLSTM
after = world()
print(json.dumps([name for name in before if before[name] != after[name]]))
""")
    assert changed == []


def test_the_three_lists_of_the_front_door_agree():
    tree = ast.parse(FRONT.read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
    for_type_checkers = {
        name.name: node.module for node in guarded.body if isinstance(node, ast.ImportFrom) for name in node.names
    }
    assert for_type_checkers == unrolled._HOME
    assert set(unrolled.__all__) == set(unrolled._HOME)
    assert len(unrolled.__all__) == len(set(unrolled.__all__))


@pytest.mark.parametrize("name", unrolled.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name: str):
    value = getattr(unrolled, name)
    assert name in dir(unrolled)
    assert value.__module__.partition(".")[0] == "unrolled"
    assert value.__doc__
    assert getattr(unrolled, name) is value


@pytest.mark.parametrize(
    "before",
    [
        "import unrolled.dynamic, unrolled.evaluate, unrolled.generate",
        "import unrolled; unrolled.evaluate, unrolled.generate; import unrolled.evaluate, unrolled.generate",
        *(
            pytest.param(before, marks=pytest.mark.slow)
            for before in (
                "from unrolled.evaluate import Score; from unrolled.generate import Piece; import unrolled",
                "import unrolled.train, unrolled.checkpoint",
                "from unrolled import *; import unrolled",
            )
        ),
    ],
)
def test_a_function_is_never_hidden_by_its_module(before: str):
    """`evaluate`, for one, names a function and the module it is in: the public name is the function."""
    shared = sorted(set(unrolled._HOME) & set(unrolled._MODULES))
    functions = ["check", "convergence", "dynamic", "evaluate", "generate", "page_data", "reach", "stretches"]
    assert shared == [*functions, "text_features"]
    found = fresh(f"""
{before}
import json, sys
from unrolled import {", ".join(shared)}
found = {{name: value for name, value in globals().items() if name in {shared}}}
print(json.dumps([
    getattr(unrolled, name) is value is getattr(sys.modules["unrolled." + name], name)
    for name, value in found.items()
]))
""")
    assert found == [True] * len(shared)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("LSTMLayr", "module 'unrolled' has no attribute 'LSTMLayr'; did you mean 'LSTMLayer'?"),
        ("read_corpse", "module 'unrolled' has no attribute 'read_corpse'; did you mean 'read_corpus'?"),
        ("zzz", "module 'unrolled' has no attribute 'zzz'"),
        (
            "LSTMCell",
            "module 'unrolled' has no attribute 'LSTMCell': a class that runs a whole sequence, as the original "
            "LSTMCell does, is LSTMLayer; one step of it is layer(x[:, None], h, c) with x [batch, input], and "
            "h[:, 0], c[:, 0] of what it returns go into the next step",
        ),
    ],
)
def test_an_unknown_name_says_what_to_type(name: str, message: str):
    with pytest.raises(AttributeError) as caught:
        getattr(unrolled, name)
    assert str(caught.value) == message


def test_the_interpreter_adds_no_second_suggestion():
    run = subprocess.run(
        [sys.executable, "-c", "import unrolled; unrolled.LSTMLayr"], capture_output=True, text=True, check=False
    )
    assert run.stderr.count("id you mean") == 1


def test_the_advice_about_one_step_works():
    import torch

    layer = unrolled.LSTMLayer(3, 4)
    x = torch.randn(2, 5, 3)
    h, c = torch.zeros(2, 4), torch.zeros(2, 4)
    for step in x.unbind(1):
        h, c = (each[:, 0] for each in layer(step[:, None], h, c))
    whole_h, whole_c = layer(x)
    torch.testing.assert_close((h, c), (whole_h[:, -1], whole_c[:, -1]))


def test_one_version_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert unrolled.__version__ == project["version"] == importlib.metadata.version("unrolled")
