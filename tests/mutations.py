"""Damaged files, one for each number: what a hostile or broken disk, editor or program could have made of a good one.

`python tests/mutations.py FIRST COUNT` loads that many damaged model directories, starting with number FIRST, and exits
with 1 at the first one that ends in anything but a loaded model or a sentence. A number always makes the same damage.
Memory is limited; a hang or a crash of the process is the caller's to see, and the last number printed tells which.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from unrolled.bpe import train_bpe
from unrolled.checkpoint import CheckpointError, Training, load, load_training, save_model
from unrolled.config import ConfigError, TrainConfig
from unrolled.manifest import MANIFEST
from unrolled.model import LanguageModel, ModelConfig
from unrolled.tokens import CharTokenizer, Tokenizer, TokenizerError, load_tokenizer

ROOM = 2**30
SECONDS = 30
TOKENIZER = CharTokenizer('ab "é\n')
EXPECTED = (CheckpointError, TokenizerError, ConfigError)
STRANGE = ("NaN", "Infinity", "-Infinity", "1e999", "-0", "1" * 5000, "9" * 18, "-1", "null", "true", '""', "[]", "{}")
STRANGE += ('"\\ud800"', '"\\u0000"', "[" * 20_000, '{"a":' * 20_000, "0.5", "1e300", '"' + "x" * 100_000 + '"')


def originals(root: Path) -> Path:
    """A model directory with training state; beside it a configuration and, if one can be made, a BPE tokenizer."""
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(TOKENIZER.size, hidden=3, layers=2, embedding=2))
    training = Training(
        {"step": 7, "config": {"lr": 0.5}, "score": None}, {"h": torch.randn(2, 3), "n": torch.tensor(7)}
    )
    save_model(root / "model", model, TOKENIZER, training)
    TrainConfig(files=("a.txt",), hidden=8).save(root / "config.toml")
    if find_spec("tokenizers"):
        train_bpe(["the rat that ate the malt " * 20], 280).save(root / "bpe.json")
    return root


def flipped(data: bytes, luck: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(luck.choice((1, 1, 2, 8))):
        changed[luck.randrange(len(changed))] ^= 1 << luck.randrange(8)
    return bytes(changed)


def cut(data: bytes, luck: random.Random) -> bytes:
    return data[: luck.randrange(len(data))]


def spliced(data: bytes, luck: random.Random) -> bytes:
    begin, end = sorted(luck.randrange(len(data) + 1) for _ in range(2))
    middle = luck.choice((luck.randbytes(luck.randrange(64)), data[begin:end] * 2, b"", bytes(64)))
    return data[:begin] + middle + data[end:]


def strange_value(data: bytes, luck: random.Random) -> bytes:
    """One value of JSON or TOML, or one key's, becomes something else."""
    values = list(re.finditer(rb'(?<=[:=\[,])\s*("(?:[^"\\]|\\.)*"|[-\w.+]+|\[\]|\{\})', data))
    if not values:
        return flipped(data, luck)
    place = luck.choice(values)
    return data[: place.start()] + b" " + luck.choice(STRANGE).encode() + data[place.end() :]


def repeated_key(data: bytes, luck: random.Random) -> bytes:
    keys = list(re.finditer(rb'"[\w.]+": ', data))
    if not keys:
        return spliced(data, luck)
    place, other = luck.choice(keys), luck.choice(keys)
    return data[: place.start()] + other[0] + luck.choice(STRANGE).encode() + b", " + data[place.start() :]


def long_header(data: bytes, luck: random.Random) -> bytes:
    """The length that begins a safetensors file."""
    return luck.choice((0, 1, 2**24, 2**31, 2**32, 2**40, 2**63, 2**64 - 1)).to_bytes(8, "little") + data[8:]


def strange_header(data: bytes, luck: random.Random) -> bytes:
    """A safetensors header whose length is right and whose entries are not."""
    size = int.from_bytes(data[:8], "little")
    header = luck.choice((strange_value, repeated_key, spliced, flipped))(data[8 : 8 + size], luck)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (flipped, cut, spliced, strange_value, repeated_key)
OF_TENSORS = (flipped, cut, spliced, long_header, strange_header, strange_header)


def mutate(root: Path, number: int) -> str:
    """Damage one file below `root`, and mostly make the manifest say that it is as it was saved."""
    luck = random.Random(number)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    path = luck.choice(files)
    change = luck.choice(OF_TENSORS if path.suffix == ".safetensors" else MUTATIONS)
    data = change(path.read_bytes(), luck)
    path.write_bytes(data)
    if path.parent.name == "model" and path.name != MANIFEST and luck.random() < 0.9:
        manifest = json.loads((path.parent / MANIFEST).read_bytes())
        manifest["files"][path.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (path.parent / MANIFEST).write_text(json.dumps(manifest))
    return f"{path.relative_to(root)}, {change.__name__}"


def read_all(root: Path) -> list[str]:
    """Everything that can be loaded, and used; the names of the errors, each of an expected kind."""
    reads: tuple[Callable[[], Any], ...] = (
        lambda: load(root / "model").model(torch.zeros(1, 2, dtype=torch.int64)),
        lambda: load_training(root / "model"),
        lambda: load_tokenizer(root / "model/tokenizer.json").encode("ab"),
        lambda: TrainConfig.load(root / "config.toml"),
        lambda: (root / "bpe.json").exists() and _there_and_back(load_tokenizer(root / "bpe.json")),
    )
    errors = []
    for read in reads:
        try:
            read()
        except EXPECTED as error:
            errors.append(type(error).__name__)
    return errors


def _there_and_back(tokenizer: Tokenizer) -> None:
    tokenizer.decode(tokenizer.encode("the malt"))


def try_number(template: Path, scratch: Path, number: int) -> bool:
    """Whether this damage was noticed at all."""
    root = shutil.copytree(template, scratch / "damaged")
    what = mutate(root, number)
    try:
        return bool(read_all(root))
    except BaseException as error:
        raise RuntimeError(f"number {number} ({what}): {type(error).__name__}: {error}") from error
    finally:
        shutil.rmtree(root)


def limit_memory() -> None:
    if sys.platform == "linux":
        import resource

        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))


def main(first: int, count: int) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        template = originals(scratch / "whole")
        if read_all(template):
            raise SystemExit("the undamaged files can't be read")
        limit_memory()
        noticed = 0
        for number in range(first, first + count):
            sys.stderr.write(f"{number}\n")
            signal.alarm(SECONDS)
            noticed += try_number(template, scratch, number)
        signal.alarm(0)
        sys.stdout.write(f"{noticed}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
