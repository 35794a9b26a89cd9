"""The API pages: every public name under a heading, what is said of it taken from its docstring by autodoc."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import unrolled

# A page: its title, its first sentence, and the modules whose public names it has, in this order.
PAGES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "layers": (
        "Layers, stacks, states and traces",
        "What computes: tensors in, tensors out.",
        ("layer", "stack", "state", "layer_trace", "own_cell", "edits", "drop_in", "recurrence"),
    ),
    "steps": ("One step at a time", "Weights packed once, a call for each step.", ("stepper", "calibration")),
    "truncated": ("Windows in your own loop", "Truncated backpropagation through time.", ("truncated",)),
    "weights": (
        "Weights from and to other libraries",
        "torch, Keras, Flax and ONNX.",
        ("interop", "keras_weights", "flax_weights", "onnx_import", "onnx_export"),
    ),
    "text": ("Text", "Text to ids, ids to lanes and windows.", ("tokens", "corpus", "lanes")),
    "models": (
        "Language models and scores",
        "Ids in, logits out; and how good they are.",
        ("model", "loss", "evaluate", "ngram", "dynamic"),
    ),
    "inside": (
        "A look inside",
        "What the units of a language model do, and what they are for.",
        (
            *("inspection", "relations", "text_features", "unit_statistics", "stretches", "reach", "gradient_flow"),
            *("ablation", "convergence", "page_data", "page", "figures", "live_session"),
        ),
    ),
    "check": ("A layer of your own", "Beside the reference, with equal weights.", ("check", "check_names")),
    "training": (
        "Training",
        "A run, from its configuration to its last event.",
        ("config", "train", "state_layout", "events", "disk", "lock", "ranks"),
    ),
    "runs": ("Saved models and generation", "From a directory to text.", ("checkpoint", "generate", "bookmark")),
}


def homes() -> dict[str, str]:
    """The module of each public name, in the order of `unrolled.__all__`."""
    return {name: unrolled._HOME[name] for name in unrolled.__all__}


def names_of(modules: Iterable[str]) -> list[str]:
    wanted = list(modules)
    found = [name for name, home in homes().items() if home in wanted]
    return sorted(found, key=lambda name: wanted.index(homes()[name]))


def check_complete() -> None:
    """ValueError for a module with public names that is on no page, and for one that has none."""
    placed = [module for _, _, modules in PAGES.values() for module in modules]
    missing, idle = set(homes().values()) - set(placed), set(placed) - set(homes().values())
    if missing or idle or len(placed) != len(set(placed)):
        raise ValueError(
            f"each module with public names belongs on one page of PAGES in {__file__}: without a page "
            f"{sorted(missing)}, without public names {sorted(idle)}"
        )


def directive(name: str) -> str:
    value = getattr(unrolled, name)
    if inspect.isclass(value):
        return "autoexception" if issubclass(value, Exception) else "autoclass"
    return "autofunction" if inspect.isfunction(value) else "autodata"


def page(key: str) -> str:
    title, says, modules = PAGES[key]
    parts = [f"# {title}", says]
    for name in names_of(modules):
        parts.append(f"## `{name}`\n\n```{{eval-rst}}\n.. currentmodule:: unrolled\n.. {directive(name)}:: {name}\n```")
    return "\n\n".join(parts) + "\n"


def index() -> str:
    rows = [f"| [{PAGES[key][0]}]({key}.md) | {_listed(key)} |" for key in PAGES]
    table = "\n".join(["| page | names |", "|---|---|", *rows])
    toctree = "\n".join(["```{toctree}", ":hidden:", "", *PAGES, "```"])
    return (
        "# Every public name\n\nMade from the docstrings, so each page says what `help()` says. All signatures on one "
        f"page, with what they promise: [the API](../api.md).\n\n{table}\n\n{toctree}\n"
    )


def _listed(key: str) -> str:
    return ", ".join(f"`{name}`" for name in names_of(PAGES[key][2]))
