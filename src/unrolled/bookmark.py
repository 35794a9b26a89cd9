"""Bookmark: a place in a text that is being written, as a value and as a file, from which it goes on exactly."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .manifest import replace_file
from .model import LanguageModel
from .state import LSTMState

FORMAT, VERSION = "unrolled-bookmark", "1"
_NUMBERS = ("unread", "written", "seed", "sample", "drawn")


class BookmarkError(ValueError):
    """A file that is no whole bookmark, or one of another model."""


@dataclass(frozen=True, eq=False)
class Bookmark:
    """What `generate(run, state=bookmark)` needs to go on as if there had been no break.

    `seen`: the ids of the text so far, its prompt included; the model has read all but the last `unread` of them and so
    come to `state`, each [layers, 1, hidden], None before it has read any. `written`: how many of the last ones are its
    own. `pending`: ids that it has written behind them and that were not given out as they end inside a character, or
    in what may be the beginning of a stop string. `seed`, `sample` and `drawn` are the place in the random numbers.
    """

    state: LSTMState | None
    seen: tuple[int, ...]
    unread: int
    written: int
    pending: tuple[int, ...]
    seed: int
    sample: int
    drawn: int

    def save(self, path: str | os.PathLike[str], model: LanguageModel) -> None:
        """Write a safetensors file, with the hash of the model's weights. What was there is replaced."""
        tensors = {name: torch.tensor(getattr(self, name), dtype=torch.int64) for name in ("seen", "pending")}
        if self.state is not None:
            tensors |= {"h": self.state.h.cpu().contiguous(), "c": self.state.c.cpu().contiguous()}
        header = {"format": FORMAT, "version": VERSION, "weights": weights_sha256(model)}
        header |= {name: str(getattr(self, name)) for name in _NUMBERS}
        header["sha256"] = _sha256(tensors, header)
        replace_file(Path(path), safetensors.torch.save(tensors, header))

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: LanguageModel) -> Bookmark:
        """What `save` wrote, its state on the model's device. BookmarkError for anything else, or of another model."""
        header, tensors = _read(Path(path))
        if header.get("format") != FORMAT:
            raise BookmarkError(f"{path} is not a saved state: unrolled generate RUN --save-state FILE writes one")
        if header.get("version") != VERSION:
            raise BookmarkError(
                f"{path} is of format version {header.get('version')!r}, and this version of unrolled reads {VERSION}; "
                "a newer unrolled may read it: pip install --upgrade unrolled"
            )
        if header.get("weights") != weights_sha256(model):
            raise BookmarkError(
                f"{path} belongs to another model, or to this one before it was trained further: its numbers mean "
                "nothing here; load the model that it was saved with, or begin with --prompt"
            )
        if header.pop("sha256", None) != _sha256(tensors, header):
            raise BookmarkError(f"{path} is not what was saved: its sha256 is not the one in it; it is damaged")
        numbers = {name: _number(path, header, name) for name in _NUMBERS}
        seen, pending = (_ids(path, tensors.get(name), model.config.vocabulary) for name in ("seen", "pending"))
        if not (0 < numbers["unread"] <= len(seen) and numbers["written"] <= len(seen)):
            raise BookmarkError(f"{path} says more of its text than there is; it is damaged")
        return cls(_state(path, tensors, model), seen, pending=pending, **numbers)


def weights_sha256(model: LanguageModel) -> str:
    """Of every parameter and buffer, its name, dtype and shape: of equal models the same on every device."""
    return _sha256(model.state_dict(), {})


def _sha256(tensors: Mapping[str, Tensor], words: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(words, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The header and the tensors, of memory of their own."""
    try:
        raw = path.read_bytes()
        tensors = safetensors.torch.load(raw)
    except FileNotFoundError:
        raise BookmarkError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise BookmarkError(f"{path} is a directory, and a saved state is a file") from None
    except safetensors.SafetensorError as error:
        raise BookmarkError(f"{path} is not a saved state, or a damaged one ({error})") from None
    # What was loaded has a header of which all of this is known.
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return header.get("__metadata__", {}), tensors


def _number(path: str | os.PathLike[str], header: dict[str, str], name: str) -> int:
    text = header.get(name, "")
    if not re.fullmatch(r"[0-9]{1,19}", text) or int(text) >= 2**63:
        raise BookmarkError(f'{path} has {text[:40]!r} as its "{name}", expected a number; it is damaged')
    return int(text)


def _ids(path: str | os.PathLike[str], ids: Tensor | None, vocabulary: int) -> tuple[int, ...]:
    if ids is None or ids.dtype != torch.int64 or ids.dim() != 1 or bool(((ids < 0) | (ids >= vocabulary)).any()):
        raise BookmarkError(f"{path} holds no ids of this model's {vocabulary} tokens; it is damaged")
    return tuple(ids.tolist())


def _state(path: str | os.PathLike[str], tensors: dict[str, Tensor], model: LanguageModel) -> LSTMState | None:
    if "h" not in tensors and "c" not in tensors:
        return None
    expected = model.zero_state(1)
    for name, like in zip("hc", expected, strict=True):
        found = tensors.get(name)
        if found is None or found.shape != like.shape or found.dtype != like.dtype:
            raise BookmarkError(f"{path} holds no state {name} {list(like.shape)} of this model; it is damaged")
    return LSTMState(tensors["h"], tensors["c"]).to(expected.h.device)
