"""The shape of the source: who imports whom, what no module may do, how large and how named a file may be.

Every rule is a function from source text to sentences, so that each is itself tested on a line that breaks it.
"""

from __future__ import annotations

import ast
import graphlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from arrows import ARROWS, FOREIGN, FRONT

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/unrolled"

# Modules that may read the environment, each with the reason why no result depends on it.
ENVIRONMENT = {"torchrun": "there torchrun says which of how many a process is: who reads what, not what the sum is"}

READS_ENVIRONMENT = {"os.environ", "os.environb", "os.getenv", "os.getenvb", "os.putenv", "os.path.expandvars"}
IMPORTS_BY_NAME = {"importlib.import_module", "__import__", "importlib.__import__", "runpy.run_module", "exec", "eval"}

IMPORT_STRING = re.compile(r"unrolled\.([\w.]+)(?::\w+)?")

# Statements at module level that do more than define, each with its reason.
ON_IMPORT = {
    "cli": ("app.command(",),  # declares a command whose module is imported when it runs
    # declare operators to torch
    "recurrence.ranges": ("_LIBRARY.", "torch.library."),
    "recurrence.products": ("_LIBRARY.", "torch.library."),
    "recurrence.cpu": ("_LIBRARY.", "torch.library."),
    "recurrence.masks": ("_LIBRARY.", "torch.library."),
}

BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "base", "core", "manager"}
FILE_LINES, FUNCTION_LINES, KERNEL_LINES, POSITIONAL = 400, 50, 120, 6


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


MODULES = modules()
FILES = [
    path for folder in ("src", "tests", "benchmarks", "examples") for path in sorted((ROOT / folder).rglob("*.py"))
]


def imported(module: str, source: str) -> Iterator[tuple[int, str, str]]:
    """Line, "own" or "foreign", and target of every import, at any depth.

    An own target is a module's name without the package's; a name taken from the front door stands for itself. Strings
    such as "unrolled.train:run", which the command line imports on demand, count too.
    """
    package = module.split(".") if module in {FRONT, "recurrence"} else module.split(".")[:-1]
    package = [] if module == FRONT else package
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first, _, rest = alias.name.partition(".")
                yield (node.lineno, "own", rest or FRONT) if first == "unrolled" else (node.lineno, "foreign", first)
        elif isinstance(node, ast.ImportFrom):
            named = (node.module or "").split(".") if node.module else []
            if node.level == 0 and named[0] != "unrolled":
                yield node.lineno, "foreign", named[0]
                continue
            home = named[1:] if node.level == 0 else package[: len(package) - node.level + 1] + named
            for alias in node.names:
                below = ".".join([*home, alias.name])
                yield node.lineno, "own", below if below in MODULES or not home else ".".join(home)
        elif isinstance(node, ast.Constant) and (by_name := IMPORT_STRING.fullmatch(str(node.value))):
            yield node.lineno, "own", by_name[1]


def wrong_arrows(module: str, source: str) -> list[str]:
    if module not in ARROWS:
        return [f"{module} is a new module: write its arrows into the table in tests/test_layering.py"]
    foreign = {"torch", "numpy", *sys.stdlib_module_names, *FOREIGN.get(module, ())}
    return [
        f"{module}:{line} imports {target}, and no arrow {module} -> {target} is in the table"
        for line, kind, target in imported(module, source)
        if target not in (ARROWS[module] if kind == "own" else foreign)
    ]


def dotted_names(source: str) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported or used: `t.load` after `import torch as t` is torch.load."""
    tree = ast.parse(source)
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {alias.asname or alias.name.partition(".")[0]: alias.name for alias in node.names if alias.asname}
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg:
            yield node.value.lineno, node.arg
        elif isinstance(node, ast.Name | ast.Attribute):
            parts: list[str] = []
            inner: ast.expr = node
            while isinstance(inner, ast.Attribute):
                parts.insert(0, inner.attr)
                inner = inner.value
            if isinstance(inner, ast.Name):
                yield node.lineno, ".".join([known.get(inner.id, inner.id), *parts])


def uses(source: str, forbidden: set[str]) -> list[tuple[int, str]]:
    return sorted(
        {
            (line, name)
            for line, name in dotted_names(source)
            if any(name == bad or name.startswith(f"{bad}.") for bad in forbidden)
        }
    )


def environment_reads(module: str, source: str) -> list[str]:
    return [f"{module}:{line} {name}" for line, name in uses(source, READS_ENVIRONMENT) if module not in ENVIRONMENT]


def hidden_imports(module: str, source: str) -> list[str]:
    return [f"{module}:{line} {name}" for line, name in uses(source, IMPORTS_BY_NAME) if module != FRONT]


def acts_on_import(module: str, source: str) -> list[str]:
    """Module-level statements other than definitions: a call, a loop, a `try` around an import."""
    quiet = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found = []
    for node in ast.parse(source).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        guard = isinstance(node, ast.If) and (
            "TYPE_CHECKING" in ast.dump(node.test) or "__name__" in ast.dump(node.test)
        )
        text = ast.unparse(node).splitlines()[0]
        declared = module in ON_IMPORT and text.startswith(ON_IMPORT[module])
        if not (isinstance(node, quiet) or docstring or guard or declared):
            found.append(f"{module}:{node.lineno} {text}")
    return found


def missing_purpose(source: str) -> bool:
    return not (ast.get_docstring(ast.parse(source)) or "").strip()


def oversized(source: str, *, kernel: bool = False) -> list[str]:
    """`kernel`: longer functions, and more arguments by position, since torch's dispatcher passes all of them so."""
    lines = len(source.splitlines())
    found = [f"has {lines} lines, at most {FILE_LINES}"] if lines > FILE_LINES else []
    limit = KERNEL_LINES if kernel else FUNCTION_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > limit:
                found.append(f"{node.name} has {length} lines, at most {limit}")
            arguments = [a for a in node.args.posonlyargs + node.args.args if a.arg not in {"self", "cls", "ctx"}]
            if len(arguments) > POSITIONAL and not kernel:
                found.append(f"{node.name} takes {len(arguments)} arguments by position, at most {POSITIONAL}")
    return found


def over_package(rule) -> list[str]:
    return [found for module, path in MODULES.items() for found in rule(module, path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("rule", [wrong_arrows, environment_reads, hidden_imports, acts_on_import])
def test_the_package_keeps_the_rule(rule):
    found = over_package(rule)
    assert not found, "\n".join(found)


def test_the_table_is_about_the_modules_that_there_are():
    assert set(ARROWS) == set(MODULES)
    assert set(FOREIGN) | set(ENVIRONMENT) <= set(MODULES)


def test_the_arrows_have_no_cycle():
    graphlib.TopologicalSorter({source: targets - {source} for source, targets in ARROWS.items()}).prepare()


def test_no_module_imports_the_command_line():
    assert [module for module, targets in ARROWS.items() if "cli" in targets] == ["__main__"]


def test_no_file_is_named_for_a_drawer():
    assert [str(path) for path in FILES if {path.stem, *path.relative_to(ROOT).parts} & BANNED_NAMES] == []


def test_every_file_says_why_it_exists():
    """A test file need not: its name is the name of what it tests."""
    others = [path for path in FILES if ROOT / "tests" not in path.parents]
    assert [str(path) for path in others if missing_purpose(path.read_text(encoding="utf-8"))] == []


def test_files_and_functions_are_small():
    found = []
    for path in FILES:
        kernel = PACKAGE / "recurrence" in path.parents
        found += [f"{path.name}: {each}" for each in oversized(path.read_text(encoding="utf-8"), kernel=kernel)]
    assert found == []


@pytest.mark.parametrize(
    ("module", "line", "target"),
    [
        ("layer", "from .stack import MultiLayerLSTM", "stack"),
        ("layer", "from unrolled.stack import MultiLayerLSTM", "stack"),
        ("layer", "import unrolled.stack", "stack"),
        ("layer", "from . import stack", "stack"),
        ("layer", "def f():\n    from .stack import Trace", "stack"),
        ("layer", "from .recurrence.portable import scan", "recurrence.portable"),
        ("layer", "from .recurrence import portable", "recurrence.portable"),
        ("recurrence.portable", "from ..layer import LSTMLayer", "layer"),
        ("recurrence.portable", "from . import scan", "recurrence"),
        ("recurrence", "from ..layer import LSTMLayer", "layer"),
        ("recurrence.reference", "from .seam import operator", "recurrence.seam"),
        ("model", "from . import LSTMState", "LSTMState"),
        ("model", "from unrolled import LSTMState", "LSTMState"),
        ("model", "import unrolled", FRONT),
        ("train", "from .cli import main", "cli"),
        ("layer", "command('unrolled.progress:run')", "progress"),
        ("state", "import safetensors.torch", "safetensors"),
        ("state", "from rich import print", "rich"),
        ("state", "import scipy", "scipy"),
    ],
)
def test_a_wrong_arrow_is_found(module: str, line: str, target: str):
    number = line.count("\n") + 1
    assert wrong_arrows(module, line) == [
        f"{module}:{number} imports {target}, and no arrow {module} -> {target} is in the table"
    ]


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("layer", "from .recurrence import Scanned, scan"),
        ("recurrence", "from . import portable, reference"),
        ("recurrence.portable", "from . import seam"),
        ("weights", "from .manifest import CheckpointError\nimport safetensors.torch"),
        ("cli", "import cyclopts\nfrom . import tokens\nfrom unrolled.train import Trainer"),
        ("state", "import torch.nn.functional as F\nimport numpy as np\nfrom pathlib import Path"),
    ],
)
def test_a_right_arrow_is_not(module: str, line: str):
    assert wrong_arrows(module, line) == []


def test_a_module_without_a_row_is_found():
    assert wrong_arrows("novelty", "import torch") == [
        "novelty is a new module: write its arrows into the table in tests/test_layering.py"
    ]


@pytest.mark.parametrize(
    ("rule", "line", "found"),
    [
        (environment_reads, "import os\nos.environ['X']", "os.environ"),
        (environment_reads, "from os import getenv as g\ng('X')", "os.getenv"),
        (environment_reads, "def f():\n    import os\n    return os.environ.get('X')", "os.environ"),
        (hidden_imports, "import importlib\nimportlib.import_module('x')", "importlib.import_module"),
        (hidden_imports, "__import__('x')", "__import__"),
        (acts_on_import, "print('hello')", "print('hello')"),
        (acts_on_import, "app.command('unrolled.train:run')", "app.command"),
        (acts_on_import, "try:\n    import fast\nexcept ImportError:\n    fast = None", "try:"),
    ],
)
def test_what_no_module_may_do_is_found(rule, line: str, found: str):
    assert found in " ".join(rule("layer", line))


def test_sizes_and_purpose_are_found():
    long = "def f():\n" + "    x = 1\n" * 50
    many = "def f(a, b, c, d, e, g, h): ..."
    assert oversized(long) == ["f has 51 lines, at most 50"]
    assert oversized(long, kernel=True) == []
    assert oversized(many) == ["f takes 7 arguments by position, at most 6"]
    assert oversized(many, kernel=True) == []
    assert oversized("x = 1\n" * 401) == ["has 401 lines, at most 400"]
    assert missing_purpose("import os")
    assert not missing_purpose('"""Why."""')
