"""The experiment of docs/string-units.md: which units of a model of Python sources follow strings, indents, columns.

    python docs/string_units.py [--out FOLDER]      trains in FOLDER, or goes on, and prints the table

Everything that could be chosen afterwards is fixed here: sources, model, steps, seed, features.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sysconfig
import tokenize
from pathlib import Path
from typing import Any

import numpy as np

from unrolled import ByteTokenizer, Feature, Inspection, Split, TrainConfig, Trainer, inspect, load, text_features

LEARNED = (
    *(
        "argparse",
        "ast",
        "bdb",
        "calendar",
        "cgitb",
        "cmd",
        "code",
        "codecs",
        "configparser",
        "contextlib",
        "copy",
        "csv",
    ),
    *("dataclasses", "difflib", "dis", "doctest", "enum", "filecmp", "fileinput", "fractions", "ftplib", "functools"),
    *("getopt", "gettext", "glob", "gzip", "heapq", "hmac", "imaplib", "inspect", "ipaddress", "locale", "mailbox"),
    *("mimetypes", "netrc", "ntpath", "numbers", "optparse", "pdb", "pickle", "pickletools", "platform", "plistlib"),
    *("poplib", "posixpath", "pprint", "profile", "pstats", "pyclbr", "queue", "quopri", "random", "reprlib", "sched"),
    *(
        "selectors",
        "shelve",
        "shlex",
        "signal",
        "site",
        "socket",
        "socketserver",
        "ssl",
        "stat",
        "string",
        "subprocess",
    ),
)
INSPECTED = ("shutil", "smtplib", "statistics", "tarfile", "textwrap", "threading")
TOKENS = 100_000
SETTINGS: dict[str, Any] = {
    "tokens": "byte",
    "layers": 2,
    "hidden": 128,
    "embedding": 32,
    "dropout": 0.1,
    "lanes": 32,
    "window": 64,
    "steps": 2500,
    "lr": 4e-3,
    "ema": 0.99,
    "seed": 0,
    "split": (0.95, 0.05),
    "threads": 1,
}
# With f-strings whole, and from Python 3.12 on in parts: all between the first quote and the last counts as inside.
_BEGINS = ("STRING", "FSTRING_START")
_ENDS = ("STRING", "FSTRING_END")


def source(module: str) -> str:
    """The text of a module of the standard library; ASCII, so that a character is a byte."""
    text = (Path(sysconfig.get_paths()["stdlib"]) / f"{module}.py").read_text(encoding="utf-8")
    return text.encode("ascii", "replace").decode("ascii")


def inside_strings(text: str) -> np.ndarray:
    """For each character whether, once it was read, one is inside a string literal; by Python's own tokenizer."""
    inside = np.zeros(len(text), np.uint8)
    lines = np.cumsum([0, *map(len, text.splitlines(keepends=True))])
    begins = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        name = tokenize.tok_name[token.type]
        if name in _BEGINS:
            prefix = len(token.string) - len(token.string.lstrip("rbfuRBFUtT"))
            begins.append(int(lines[token.start[0] - 1]) + token.start[1] + prefix)
        if name in _ENDS:
            # Once its last quote was read one is outside again.
            inside[begins.pop() : int(lines[token.end[0] - 1]) + token.end[1] - 1] = 1
    return inside


def read(modules: tuple[str, ...]) -> tuple[Split, tuple[Feature, ...]]:
    """Sources as bytes, each a document, with three features: string, column, indent."""
    texts = [source(module) for module in modules]
    starts = np.cumsum([0, *map(len, texts[:-1])])
    split = Split(ByteTokenizer().encode("".join(texts)), starts)
    strings = Feature("string", np.concatenate([inside_strings(text) for text in texts]), ("outside", "inside"))
    others = [each for each in text_features(split, ByteTokenizer()) if each.name in ("indent", "column")]
    return split, (strings, *others)


def part(split: Split, features: tuple[Feature, ...], tokens: int) -> tuple[Split, tuple[Feature, ...]]:
    """The first tokens of each."""
    shorter = Split(split.ids[:tokens], split.starts[split.starts < tokens])
    return shorter, tuple(Feature(each.name, each.kinds[:tokens], each.labels) for each in features)


def tables(found: Inspection) -> list[str]:
    lines = [
        f"{found.tokens:,} characters, {found.nats / np.log(2):.3f} bits for each.",
        "",
        "| feature | entropy | bar | units above it, of 256 | best units |",
        "|---|---|---|---|---|",
    ]
    for each in found.relations:
        above = int(each.above.any(0).sum())
        best = ", ".join(f"{unit.quantity} of {unit.layer}/{unit.unit}: {unit.bits:.3f}" for unit in each.ranked(5))
        lines.append(f"| {each.feature} | {each.entropy:.3f} | {each.bar:.3f} | {above} | {best} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/string-units"))
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    text = "".join(source(module) for module in LEARNED)
    (out / "sources.txt").write_text(text, encoding="ascii")
    print(f"{len(LEARNED)} modules, {len(text):,} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}")
    trainer = Trainer(TrainConfig(files=(str(out / "sources.txt"),), out=str(out / "run"), **SETTINGS))
    for _ in trainer.run():
        pass
    run = load(trainer.directory)
    split, features = part(*read(INSPECTED), TOKENS)
    print(*tables(inspect(run.model, split, run.tokenizer, features=features)), sep="\n")


if __name__ == "__main__":
    main()
