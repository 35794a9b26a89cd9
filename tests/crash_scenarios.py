"""Saves that fail at every operation, one after the other, and what can be loaded afterwards; the page's table of them.

`python tests/crash_scenarios.py` writes the table into docs/crash-safety.md.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from faulty_disk import ENDS, ERRORS, Fault, FaultyDisk, PowerCut

from unrolled import disk
from unrolled.checkpoint import CheckpointError, Training, load, load_training, save_model, save_step
from unrolled.disk import DiskWarning
from unrolled.model import LanguageModel, ModelConfig
from unrolled.tokens import ByteTokenizer

PAGE = Path(__file__).parents[1] / "docs/crash-safety.md"
BEGIN, END = "<!-- table: python tests/crash_scenarios.py -->", "<!-- end of the table -->"
TOKENIZER = ByteTokenizer()
MODEL = LanguageModel(ModelConfig(TOKENIZER.size, hidden=2, layers=1, embedding=2))
RUN = "runs/tale"
FAULTS: tuple[Fault, ...] = (*ERRORS, *ENDS)


def save(root: Path, step: int, *, best: bool = False) -> None:
    """A model whose weights, record and training tensors all say `step`; two are kept."""
    with torch.no_grad():
        for weight in MODEL.parameters():
            weight.fill_(step)
    training = Training({"step": step}, {"step": torch.tensor(step)})
    save_step(root / RUN, step, MODEL, TOKENIZER, training, keep=2, best=best)


def loaded(root: Path, which: str = "latest") -> int | None:
    """The step of the model that is loaded, all parts of which must be of that step; None if there is none."""
    try:
        run, training = load(root / RUN, which), load_training(root / RUN)
    except CheckpointError:
        return None
    step = run.training["step"]
    assert all(bool((weight == step).all()) for weight in run.model.parameters()), "numbers of another model"
    if which == "latest":
        assert training.tensors["step"] == training.record["step"] == step, "training state of another model"
    return int(step)


@dataclass(frozen=True)
class Scenario:
    """`before`: the steps that are saved without faults, and `best` among them; then `step`, `moves` if it is best."""

    title: str
    before: tuple[int, ...]
    step: int
    best: int | None = None
    moves: bool = False
    spoil: Callable[[Path], None] | None = None

    def prepare(self, root: Path) -> None:
        for step in self.before:
            save(root, step, best=step == self.best)
        if self.spoil is not None:
            self.spoil(root / RUN)

    @property
    def old(self) -> int | None:
        return self.before[-1] if self.before else None


def _leftovers(run: Path) -> None:
    shutil.copytree(run / "step-00000002", run / "step-00000003.tmp-0123abcd")
    (run / "step-00000003.tmp-0123abcd" / "manifest.json").unlink()
    (run / "latest.tmp-0123abcd").write_text("step-")


def _unnamed(run: Path) -> None:
    save_model(run / "step-00000003", MODEL, TOKENIZER)


def _damaged(run: Path) -> None:
    _unnamed(run)
    (run / "step-00000003" / "weights.safetensors").write_bytes(b"")
    (run / "latest").write_text("step-00000003\n")


SCENARIOS = (
    Scenario("the first save of a run, whose directory does not exist", (), 1),
    Scenario("a second save, which is the best", (1,), 2, best=1, moves=True),
    Scenario("the oldest goes, the best moves and its old model goes", (1, 2, 3), 4, best=1, moves=True),
    Scenario("the oldest goes, the best stays", (1, 2, 3), 4, best=1),
    Scenario("after a crash that left half a model", (1, 2), 3, best=2, spoil=_leftovers),
    Scenario("after a crash before `latest` was replaced", (1, 2), 3, best=1, spoil=_unnamed),
    Scenario("over a damaged model of the same step", (1, 2), 3, best=1, spoil=_damaged),
)


@dataclass(frozen=True)
class Outcome:
    """What could be loaded after a fault.

    `raised`: whether the save said so. `model`, `best`: the steps that were loaded; `after`: after one more save.
    """

    at: int
    operation: str
    file: str
    fault: Fault
    raised: bool
    model: int | None
    best: int | None
    after: int | None


def operations(scenario: Scenario, root: Path) -> list[tuple[str, str]]:
    with waiting_for_no_disk():
        scenario.prepare(root)
    faultless = FaultyDisk(root)
    with faultless.plugged_in():
        save(root, scenario.step, best=scenario.moves)
    return faultless.done


@contextmanager
def waiting_for_no_disk() -> Iterator[None]:
    """Without the syncs, on which nothing depends where no power is cut, saving takes milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("sync", "sync_directory"):
            patch.setattr(disk, name, lambda _: None)
        yield


def outcomes(
    scenario: Scenario, scratch: Path, faults: tuple[Fault, ...] = FAULTS, seeds: int = 2
) -> Iterator[Outcome]:
    """One for each operation of the save and each fault that can strike there."""
    template = fresh(scratch)
    with waiting_for_no_disk():
        scenario.prepare(template)
    for at, (operation, file) in enumerate(operations(scenario, fresh(scratch))):
        for fault in faults:
            if fault.startswith("torn") and operation != "write":
                continue
            for seed in range(seeds if fault == "off, at random" else 1):
                root = shutil.copytree(template, scratch / "root")
                yield _outcome(
                    scenario, root, FaultyDisk(root, fault, at, seed=1000 * at + seed), (at, operation, file)
                )
                shutil.rmtree(root)


def fresh(scratch: Path) -> Path:
    """A new directory."""
    return Path(tempfile.mkdtemp(dir=scratch))


def _outcome(scenario: Scenario, root: Path, faulty: FaultyDisk, struck: tuple[int, str, str]) -> Outcome:
    with warnings.catch_warnings():
        # That an older model is taken, or an old one can't be removed, is what is looked for.
        warnings.simplefilter("ignore", DiskWarning)
        raised = False
        try:
            with faulty.plugged_in():
                save(root, scenario.step, best=scenario.moves)
        except (OSError, PowerCut):
            raised = True
        model, best = loaded(root), loaded(root, "best")
        with waiting_for_no_disk():
            save(root, scenario.step + 1)
    assert faulty.fault is not None
    return Outcome(*struck, faulty.fault, raised, model, best, loaded(root))


def table(scratch: Path) -> str:
    """How often the old and the new model were there after a fault in each scenario; then one of them in full."""
    lines = [
        "| a save | operations | faults | the old model after | the new one after | neither |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for scenario in SCENARIOS:
        words = Counter(_word(scenario, outcome) for outcome in outcomes(scenario, scratch))
        numbers = (
            len(operations(scenario, fresh(scratch))),
            words.total(),
            *(words[w] for w in ("old", "new", "neither")),
        )
        lines.append(f"| {scenario.title} | {' | '.join(map(str, numbers))} |")
    return "\n".join([*lines, "", *_one_by_one(SCENARIOS[2], scratch)])


def _word(scenario: Scenario, outcome: Outcome) -> str:
    return {scenario.step: "new", scenario.old: "old"}.get(outcome.model, "neither")


def _one_by_one(scenario: Scenario, scratch: Path) -> Iterator[str]:
    yield f"The third of them, operation by operation ({scenario.title}):"
    yield ""
    yield "| | operation | of | " + " | ".join(FAULTS) + " |"
    yield "|--:|---|---|" + "---|" * len(FAULTS)
    words: dict[tuple[int, Fault], set[str]] = {}
    for outcome in outcomes(scenario, scratch):
        words.setdefault((outcome.at, outcome.fault), set()).add(_word(scenario, outcome))
    for at, (operation, file) in enumerate(operations(scenario, fresh(scratch))):
        of = file.removeprefix(RUN).removeprefix("/") or "the run directory"
        cells = (" or ".join(sorted(words.get((at, fault), ()))) for fault in FAULTS)
        yield f"| {at + 1} | {operation} | `{of}` | " + " | ".join(cells) + " |"


def on_the_page() -> str:
    found = re.search(f"{re.escape(BEGIN)}\n(.*?)\n{re.escape(END)}", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None, f"{PAGE} has no place for the table: {BEGIN} ... {END}"
    return found[1].strip()


def main() -> None:
    torch.set_num_threads(1)
    page = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as scratch:
        new = table(Path(scratch))
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{new}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    sys.stdout.write(new + "\n")


if __name__ == "__main__":
    main()
