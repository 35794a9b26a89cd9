"""The command line: parse, call, print. What a command needs is imported when it runs, so that --help is quick."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, ArgumentCollection, CycloptsError, Parameter, Token
from cyclopts.config import Dict
from rich.text import Text

from .config import TrainConfig
from .corpus import DEFAULT_SPLIT

# What a program gets that writes into a pipe which nobody reads any more: 128 + SIGPIPE.
BROKEN_PIPE = 141


def _version() -> str:
    from . import __version__

    return __version__


def _config_file(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """The values of the file that `--config` names, for the flags that were not given."""
    given = {argument.name: argument.tokens[0].value for argument in arguments if argument.tokens}
    if "--config" in given:
        values = TrainConfig.load(given["--config"]).as_dict()
        del values["files"]  # no flag: `train` sees to them
        if "--steps" in given or "--epochs" in given:
            values = {name: value for name, value in values.items() if name not in ("steps", "epochs")}
        Dict(values, use_commands_as_keys=False, source=given["--config"])(app, commands, arguments)


def _shares(_: type, tokens: Sequence[Token]) -> tuple[float, ...]:
    text = ",".join(token.value for token in tokens)
    try:
        return tuple(float(share) for share in text.split(","))
    except ValueError:
        raise ValueError(f'write shares with commas between them, as in 0.9,0.05,0.05; got "{text}"') from None


@dataclass(frozen=True)
class Flags(TrainConfig):
    """TrainConfig's fields as flags, of which these three look different at a prompt."""

    files: Annotated[tuple[str, ...], Parameter(parse=False)] = ()
    split: Annotated[
        tuple[float, ...],
        Parameter(converter=_shares, n_tokens=1, metavar="SHARES", show_default=lambda _: "0.9,0.05,0.05"),
    ] = DEFAULT_SPLIT
    quiet: Annotated[bool, Parameter(help="Print only the result, and what went wrong.")] = False


def _usage_error(error: CycloptsError) -> Text:
    return Text(f"unrolled: {error}")


app = App(
    name="unrolled",
    help="An LSTM you can see into: train a language model on text, score it, let it write.",
    help_format="plaintext",
    version=_version,
    version_flags=["--version"],
    default_parameter=Parameter(negative=()),
    config=_config_file,
    error_formatter=_usage_error,
    result_action="return_value",
)
_DEFAULTS = Flags()


@app.command
def train(*files: str, config: str | None = None, settings: Annotated[Flags, Parameter(name="*")] = _DEFAULTS) -> None:
    """Train a language model on text files; without a file, on documentation text that Python brings along.

    The same command goes on with a run that was stopped. Ctrl-C finishes the step, saves, and says how to go on.

    Parameters
    ----------
    files
        Text files, each one document.
    config
        TOML file with any of these settings, such as the config.toml of a run; flags go before it.
    settings
        All others.
    """
    from rich.console import Console

    from .progress import run
    from .train import Trainer

    chosen = settings.as_dict()
    chosen["files"] = TrainConfig.load(config).files if config is not None and not files else files
    run(Trainer(TrainConfig.from_dict(chosen)), Console(highlight=False))


@app.command(name="eval")
def score(run: Path, file: Path, /, *, as_json: Annotated[bool, Parameter(name="--json")] = False) -> None:
    """Score a model on a text: with its state carried over all of it, and in blocks from zeros.

    Parameters
    ----------
    run
        Directory of a run (its newest model is taken) or of one model.
    file
        The text, one document.
    as_json
        Print {"stateful": {...}, "blocks": {...}} instead of a table.
    """
    from .checkpoint import load
    from .corpus import read_corpus
    from .evaluate import evaluate
    from .progress import score_table

    loaded = load(run)
    text = read_corpus(file, tokenizer=loaded.tokenizer, split=(1.0,)).train
    evaluation = evaluate(loaded.model, text, loaded.tokenizer)
    if as_json:
        _say(json.dumps(asdict(evaluation)))
        return
    _say(score_table(evaluation))


@app.command(name="generate")
def write(
    run: Path,
    /,
    *,
    prompt: Annotated[str, Parameter(allow_leading_hyphen=True)] = "",
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    max_tokens: int = 256,
    seed: int = 0,
) -> None:
    """Continue a prompt, printed as it is written.

    Parameters
    ----------
    run
        Directory of a run (its newest model is taken) or of one model.
    prompt
        Text to continue, printed first; without one, the text begins as after a newline.
    temperature
        Below 1 keeps to what the model finds likely; 0 takes the most probable token each time.
    top_k
        Draw from this many of the most probable tokens; 0 is all.
    top_p
        Draw from the fewest most probable tokens that together reach this share; 1 is all.
    max_tokens
        How many tokens to write.
    seed
        The same seed gives the same text.
    """
    from .checkpoint import load
    from .generate import generate

    loaded = load(run)
    ids = loaded.tokenizer.encode(prompt)
    pieces = generate(
        loaded, ids.tolist(), temperature=temperature, top_k=top_k, top_p=top_p, max_tokens=max_tokens, seed=seed
    )
    try:
        _say(loaded.tokenizer.decode(ids), end="")
        for piece in pieces:
            _say(piece.text, end="")
    finally:
        _say()


@app.command
def bench(
    run: Path | None = None,
    /,
    *,
    shape: str | None = None,
    weights: Literal["float32", "bfloat16", "int8"] | None = None,
    steps: int | None = None,
    threads: int | None = None,
    text: Path | None = None,
    quota: float | None = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Time one step at a time, with each kind of weights; with a run, also show what smaller weights lose on a text.

    Parameters
    ----------
    run
        Directory of a run (its newest model is taken) or of one model; one text is stepped through.
    shape
        In place of a run: BATCHxINPUTxHIDDENxLAYERS, such as 1x256x512x2, with random weights.
    weights
        Only these: float32, bfloat16 or int8.
    steps
        How many steps for each row of the table; without it, a second's worth.
    threads
        Only this many; without it, 1 and as many as torch has.
    text
        The text on which the loss is measured, its first 20,000 tokens; without it, one that Python brings along.
    quota
        Try a smaller share of the machine, such as 0.5 processors, by stopping the process when it is used up (Linux).
    as_json
        Print all numbers as JSON instead of a table.
    """
    from .bench import Question, answer, notes, table

    question = Question(run=run, shape=shape, weights=weights, steps=steps, threads=threads, text=text)
    report = answer(question, quota)
    if as_json:
        _say(json.dumps(asdict(report)))
        return
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(table(report))
    for line in notes(report):
        _say(line)


@app.command
def info(run: Path, /) -> None:
    """Show what a model is: its sizes, tokens, training and files, each of which is checked against its hash.

    Parameters
    ----------
    run
        Directory of a run (its newest model is taken) or of one model.
    """
    from .checkpoint import load
    from .manifest import read_directory

    loaded = load(run)
    manifest, _ = read_directory(loaded.directory, keep=())
    weights = list(loaded.model.parameters())
    _say(str(loaded.directory))
    _section("model", asdict(loaded.config))
    _section(
        "weights",
        {
            "parameters": f"{sum(weight.numel() for weight in weights):,}",
            "dtype": str(weights[0].dtype).removeprefix("torch."),
            "tokens": f"{loaded.tokenizer.name}, {loaded.tokenizer.size} of them",
        },
    )
    record = dict(loaded.training or {})
    sections = {title: record.pop(title) for title in ("config", "score") if isinstance(record.get(title), Mapping)}
    if record:
        _section("training", record)
    if "score" in sections:
        _section("its last score on the validation text, in blocks", sections["score"])
    if "config" in sections:
        _section("its configuration", sections["config"])
    sums = {name: f"{entry['sha256']}  {entry['bytes']:,} bytes" for name, entry in manifest["files"].items()}
    _section("files, all as they were saved (sha256)", sums)


def _section(title: str, values: Mapping[str, Any]) -> None:
    _say(f"\n{title}")
    width = max(map(len, values), default=0)
    for name, value in values.items():
        _say(f"  {name:{width}}  {value}")


def _say(text: str = "", end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()


def main(tokens: Sequence[str] | None = None) -> None:
    """Run the command line on `tokens`, by default the program's own arguments.

    Exits with 1 and one sentence where a file, a run or a value can't be used; with 2 for a command or flag that does
    not exist; with 130 after Ctrl-C; with 141, silently, where nobody reads the output any more.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A terminal that can't show a character shows "?" in its place; it is no reason to stop.
            stream.reconfigure(errors="replace")
    with _quiet_on_a_broken_pipe():
        try:
            app(tokens)
        except BrokenPipeError:
            raise
        except (ValueError, OSError) as error:
            sys.stderr.write(f"unrolled: {error}\n")
            sys.exit(1)


@contextmanager
def _quiet_on_a_broken_pipe() -> Iterator[None]:
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes once more when it ends, and has to have somewhere to do so.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)
