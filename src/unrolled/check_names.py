"""Which of the parameters of somebody's layer is which matrix and bias: guessed from their names, and shapes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from itertools import product
from typing import Any

from torch import Tensor, nn

# What the parts of a parameter's name can say of its gate, and of what it is multiplied by.
_GATE_WORDS = {
    **dict.fromkeys(("i", "in", "input", "inp", "ingate"), "i"),
    **dict.fromkeys(("f", "forget", "fgate"), "f"),
    **dict.fromkeys(("g", "c", "cell", "cand", "candidate", "tilde"), "g"),
    **dict.fromkeys(("o", "out", "output", "outgate"), "o"),
}
_SOURCE_WORDS = {
    **dict.fromkeys(("x", "i", "in", "input", "inp", "ih", "xh"), "x"),
    **dict.fromkeys(("h", "hidden", "hid", "hh", "rec", "recurrent"), "h"),
}
_LETTERS = {"w": "x", "u": "h", "r": "h"}
_NOISE = {
    "weight",
    "weights",
    "bias",
    "biases",
    "b",
    "linear",
    "lin",
    "fc",
    "gate",
    "gates",
    "layer",
    "kernel",
    "l",
    "to",
}
NAMES_TO_PASS = (
    'weights={"W_xi": "name of a parameter", "W_hi": ..., "b_i": ...}, for stacks "W_x", "W_h" and "b", or '
    "a function put(layer, ours) that copies our W_xi, W_hi, b_i, W_xf, ... into the layer"
)


class CheckError(ValueError):
    """A layer that cannot be compared: its weights are not found, or it cannot be called; says what to pass."""


def tensors_of(layer: Any) -> dict[str, Tensor]:
    """A module's parameters by name, and tensors that are its attributes though no parameters or buffers."""
    if not isinstance(layer, nn.Module):
        return {}
    return {**dict(layer.named_parameters()), **plain_tensors(layer)}


def plain_tensors(layer: nn.Module) -> dict[str, Tensor]:
    """Tensors of floats, with axes, that a module has as plain attributes: no optimiser is told of them."""
    return {
        f"{path}.{name}" if path else name: value
        for path, module in layer.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim()
    }


def guessed(layer: nn.Module) -> dict[str, str]:
    """Our keys, and the layer's names. Plain tensors are weights if they complete these, else something else."""
    parameters = dict(layer.named_parameters())
    if len(tensors_of(layer)) > len(parameters):
        with contextlib.suppress(CheckError):
            return _guessed_of(layer, tensors_of(layer))
    return _guessed_of(layer, parameters)


def _guessed_of(layer: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    if several := [name for name in tensors if re.search(r"_l[1-9]|_reverse|weight_hr", name)]:
        raise CheckError(
            f"{type(layer).__name__} has {several[0]}, and one layer is compared, in one direction and without a "
            "projection: check one such layer"
        )
    words = _words(list(tensors))
    vectors = [name for name, value in tensors.items() if _is_vector(name, value, words[name])]
    matrices = [name for name in tensors if name not in vectors]
    if any(tensors[name].dim() > 2 for name in matrices) or len(matrices) not in (1, 2, 4, 8):
        raise CheckError(
            f"{type(layer).__name__} has the parameters {', '.join(tensors)}, and one LSTM layer has 1 or 2 matrices "
            f"with the gates side by side, or 4 or 8 with a gate each{_inside(layer)}; else pass {NAMES_TO_PASS}"
        )
    if len(matrices) <= 2:
        return _stacked(tensors, matrices, vectors, words)
    return {
        **_by_gate(layer, matrices, words, "W", len(matrices) // 4),
        **(_by_gate(layer, vectors, words, "b", len(vectors) // 4) if vectors else {}),
    }


def _inside(layer: nn.Module) -> str:
    """A part of it that does look like a layer."""
    for path, part in layer.named_modules():
        if path and type(part).forward is not nn.Module.forward and tensors_of(part):
            try:
                _guessed_of(part, tensors_of(part))
            except CheckError:
                continue
            return f'; it holds one: check(layer.get_submodule("{path}"))'
    return ""


def _words(names: list[str]) -> dict[str, list[str]]:
    """What each name says, in small letters, without what all of them begin with."""
    split = {name: re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name) for name in names}
    paths = [name.split(".")[:-1] for name in names]
    shared = 0
    while len(names) > 1 and all(len(path) > shared and path[shared] == paths[0][shared] for path in paths):
        shared += 1
    for name in names if shared else ():
        split[name] = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", ".".join(name.split(".")[shared:]))
    return {name: [word.lower() for word in words] for name, words in split.items()}


def _is_vector(name: str, value: Tensor, words: list[str]) -> bool:
    if value.dim() == 1:
        return True
    return value.dim() == 2 and 1 in value.shape and bool({"b", "bias"} & set(words) or words[0].startswith("b"))


def _codes(words: list[str]) -> tuple[str, list[str]]:
    """A letter for the kind of matrix, w, u or r, and what else is said."""
    letter, codes = "", []
    for word in words:
        if word in _LETTERS:
            letter = word
        elif (
            len(word) in (2, 3)
            and word[0] in {*_LETTERS, "b"}
            and word not in _SOURCE_WORDS
            and word not in _GATE_WORDS
        ):
            letter = word[0] if word[0] in _LETTERS else letter
            codes.append(word[1:])
        elif word not in _NOISE:
            codes.append(word)
    return letter, codes


def _meanings(words: list[str], letters: set[str]) -> set[tuple[str, str]]:
    """Pairs of source, x or h or "", and gate that a name can mean."""
    letter, codes = _codes(words)
    found: set[tuple[str, str]] = set()
    if len(codes) == 1 and len(codes[0]) == 2 and codes[0] not in _GATE_WORDS:
        codes = list(codes[0])
    if len(codes) == 1 and codes[0] in _GATE_WORDS:
        source = _LETTERS.get(letter, "") if letters & {"u", "r"} else ""
        found.add((source, _GATE_WORDS[codes[0]]))
    if len(codes) == 2:
        for a, b in (codes, codes[::-1]):
            if a in _SOURCE_WORDS and b in _GATE_WORDS:
                found.add((_SOURCE_WORDS[a], _GATE_WORDS[b]))
    return found


def _by_gate(layer: Any, names: list[str], words: Mapping[str, list[str]], kind: str, sources: int) -> dict[str, str]:
    """Names of 4 or 8 tensors with a gate each to our keys: the one way in which every gate has as many."""
    letters = {_codes(words[name])[0] for name in names}
    meanings = [sorted(_meanings(words[name], letters)) for name in names]
    ways = {
        tuple(way)
        for way in product(*meanings)
        if len(set(way)) == len(way) == 4 * sources and len({source for source, _ in way}) == sources
    }
    if len(ways) != 1:
        raise CheckError(
            f"the names {', '.join(names)} of {type(layer).__name__} do not say which gate each is for: pass "
            f"{NAMES_TO_PASS}"
        )
    [way] = ways
    if kind == "b" and sources == 1:
        return {f"b_{gate}": name for (_, gate), name in zip(way, names, strict=True)}
    return {f"{kind}_{source}{gate}": name for (source, gate), name in zip(way, names, strict=True)}


def _stacked(
    tensors: Mapping[str, Tensor], matrices: list[str], vectors: list[str], words: Mapping[str, list[str]]
) -> dict[str, str]:
    if len(vectors) > 2:
        raise CheckError(f"the biases {', '.join(vectors)} are more than two: pass {NAMES_TO_PASS}")
    biases = dict(zip(("b",) if len(vectors) == 1 else ("b_x", "b_h"), vectors, strict=False))
    if len(matrices) == 1:
        return {"W": matrices[0], **biases}

    def recurrent(name: str) -> bool:
        short, long = sorted(tensors[name].shape)
        return long == 4 * short

    def said(name: str) -> bool:
        letter, codes = _codes(words[name])
        return (
            letter in ("u", "r")
            or bool({"hh", "h", "rec", "recurrent", "hidden"} & set(codes[:1]))
            or codes == ["h", "h"]
        )

    able = [name for name in matrices if recurrent(name)]
    of_h = able[0] if len(able) == 1 else next((name for name in matrices if said(name)), matrices[1])
    return {"W_x": next(name for name in matrices if name != of_h), "W_h": of_h, **biases}
