"""The command line: parse, call, print. What a command needs is imported when it runs, so that --help is quick."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from cyclopts import App, ArgumentCollection, CycloptsError, Group, Parameter, Token
from cyclopts.config import Dict
from rich.text import Text

from . import generate_command
from .cell_options import DEFAULTS
from .config import ConfigError, TrainConfig
from .corpus import DEFAULT_SPLIT
from .disk import DiskWarning
from .score_request import ScoreRequest
from .torchrun import let_the_first_speak

# What a program gets that writes into a pipe which nobody reads any more: 128 + SIGPIPE.
BROKEN_PIPE = 141


_GROUPS = {
    "Text": "tokens vocabulary tokenizer document_separator val split",
    "Model": "layers hidden embedding tie_weights dropout embedding_dropout init_from",
    "Cell": " ".join(("proj_dim", "residual", *DEFAULTS)),
    "Length": "steps epochs minutes patience",
    "Steps": "lanes window accumulate optimizer lr warmup clip weight_decay ema state",
    "Scores and saves": "out eval_every save_every keep tensorboard resume quiet",
    "Machine": "seed device dtype autocast threads",
}
_LENGTHS = {"--steps", "--epochs", "--minutes"}


def _version() -> str:
    from . import __version__

    return __version__


def _config_file(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """The values of the file that `--config` names, for the flags that were not given."""
    given = {argument.name: argument.tokens[0].value for argument in arguments if argument.tokens}
    if {"--steps", "--minutes"} <= given.keys():  # in a file they stand together: minutes, and what they came to
        raise ConfigError("--steps and --minutes both say how long to train; give one")
    if "--config" in given:
        values = TrainConfig.load(given["--config"]).as_dict()
        del values["files"]  # no flag: `train` sees to them
        if _LENGTHS & given.keys():
            values = {name: value for name, value in values.items() if f"--{name}" not in _LENGTHS}
        Dict(values, use_commands_as_keys=False, source=given["--config"])(app, commands, arguments)


def _shares(_: type, tokens: Sequence[Token]) -> tuple[float, ...]:
    text = ",".join(token.value for token in tokens)
    try:
        return tuple(float(share) for share in text.split(","))
    except ValueError:
        raise ValueError(f'write shares with commas between them, as in 0.9,0.05,0.05; got "{text}"') from None


def _zoneout(_: type, tokens: Sequence[Token]) -> float | tuple[float, ...]:
    given = _shares(_, tokens)
    return given if len(given) > 1 else given[0]


def _grouped(flags: type[TrainConfig]) -> type[TrainConfig]:
    """The fields under headings, in the order in which `--help` shows them."""
    hints = get_type_hints(TrainConfig)
    for number, (title, names) in enumerate(_GROUPS.items()):
        group = Group(title, sort_key=number)
        for name in names.split():
            flags.__annotations__[name] = Annotated[
                flags.__annotations__.get(name, hints[name]), Parameter(group=group)
            ]
    return flags


@dataclass(frozen=True)
@_grouped
class Flags(TrainConfig):
    """TrainConfig's fields as flags, of which these five look different at a prompt."""

    files: Annotated[tuple[str, ...], Parameter(parse=False)] = ()
    split: Annotated[
        tuple[float, ...],
        Parameter(converter=_shares, n_tokens=1, metavar="SHARES", show_default=lambda _: "0.9,0.05,0.05"),
    ] = DEFAULT_SPLIT
    zoneout: Annotated[
        float | tuple[float, float] | None, Parameter(converter=_zoneout, n_tokens=1, metavar="SHARES")
    ] = None
    bias: Annotated[bool | None, Parameter(negative="--no-bias")] = None
    quiet: Annotated[bool, Parameter(help="Print only the result, and what went wrong.")] = False


def _usage_error(error: CycloptsError) -> Text:
    let_the_first_speak()
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
_DEFAULTS, _REQUEST, _SCORE_REQUEST = Flags(), generate_command.Request(), ScoreRequest()


@app.command
def train(*files: str, config: str | None = None, settings: Annotated[Flags, Parameter(name="*")] = _DEFAULTS) -> None:
    """Train a language model on text files; without a file, on documentation text that Python brings along.

    The same command goes on with a run that was stopped. Ctrl-C or SIGTERM finishes the step, saves, says how to go on,
    and exits with 130 or 143; a second one ends it at once.

    Parameters
    ----------
    files
        Text files, each one document; directories, for the text files in them and below; patterns such as "*.txt"; .npy
        files of ids.
    config
        TOML file with any of these settings, such as the config.toml of a run; flags go before it.
    settings
        All others.
    """
    from rich.console import Console

    from .lanes import TooShortError
    from .progress import run
    from .ranks import joined
    from .ticker import Ticker
    from .train import Trainer

    chosen = settings.as_dict()
    chosen["files"] = TrainConfig.load(config).files if config is not None and not files else files
    with joined(settings.device):
        try:
            with Ticker(sys.stderr) as ticker:
                trainer = Trainer(TrainConfig.from_dict(chosen), progress=None if settings.quiet else ticker.show)
        except TooShortError as error:
            raise ValueError(error.with_flags()) from None
        code = run(trainer, Console(highlight=False))
    if code:
        sys.exit(code)


@app.command(name="eval")
def score(
    run: Path,
    /,
    *files: Annotated[Path, Parameter(json_list=False)],
    request: Annotated[ScoreRequest, Parameter(name="*")] = _SCORE_REQUEST,
) -> None:
    """Score a model on texts: with its state carried and in blocks from zeros, beside what counting n-grams reaches.

    Parameters
    ----------
    run
        Directory of a run (its newest model is taken; RUN/best is its best one) or of one model.
    files
        Texts, each one document and scored for itself; without any, the part of the run's text that was held back.
    request
        All others.
    """
    from .scoring import results
    from .ticker import Ticker

    with Ticker(sys.stderr) as ticker:
        for number, result in enumerate(results(run, files, request, ticker.show)):
            ticker.clear()
            if request.as_json:
                _say(result.as_json())
            else:
                _say(("\n" if number else "") + f"{result.text}\n{result.table()}")


@app.command(name="generate")
def write(run: Path, /, *, settings: Annotated[generate_command.Request, Parameter(name="*")] = _REQUEST) -> None:
    """Continue a prompt, printed as it is written.

    Parameters
    ----------
    run
        Directory of a run (its newest model is taken; RUN/best is its best one) or of one model.
    settings
        All others. The samplers apply in the order: penalties, temperature, top-k, top-p, min-p.
    """
    generate_command.write(run, settings, _say)


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
        Directory of a run (its newest model is taken; RUN/best is its best one) or of one model; it is stepped
        through one text.
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
def plot(run: Path, /, *, out: Path | None = None) -> None:
    """Draw the course of a run, also of one at work: losses, scores on the validation text, the learning rate.

    Parameters
    ----------
    run
        Directory of a run.
    out
        The picture, .svg or .png; without it, curve.svg in the run.
    """
    from .curve import plot

    _say(f"drawn: {plot(run, out)}")


app.command("unrolled.inspect_command:inspect", help="Say what the units of a model do over a text.")

app.command("unrolled.export_command:export", help="Write a model into one ONNX file, with its tokenizer.")


@app.command
def info(run: Path, /) -> None:
    """Show what a model is: its sizes, tokens, training and files, each of which is checked against its hash.

    Parameters
    ----------
    run
        Directory of a run (its newest model is taken; RUN/best is its best one) or of one model.
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
    with _quiet_on_a_broken_pipe(), _warnings_as_sentences():
        try:
            app(tokens)
        except BrokenPipeError:
            raise
        except (ValueError, OSError) as error:
            let_the_first_speak()
            sys.stderr.write(f"unrolled: {error}\n")
            sys.exit(1)


@contextmanager
def _warnings_as_sentences() -> Iterator[None]:
    """Inside, what a command goes on in spite of is told like an error, not like a remark on the source."""
    shown = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, DiskWarning):
            sys.stderr.write(f"unrolled: {message}\n")
        else:
            shown(message, category, *where, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("always", DiskWarning)
        # setattr: the parameters that are only handed on have no names here
        setattr(warnings, "showwarning", show)  # noqa: B010
        yield


@contextmanager
def _quiet_on_a_broken_pipe() -> Iterator[None]:
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes once more when it ends, and has to have somewhere to do so.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)
