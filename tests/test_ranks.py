"""Two ranks against one, in processes of their own: those of tests/rank_scenarios.py."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_scenarios import RANKS, environment, run, seen, settings, sums

import unrolled
from unrolled.checkpoint import latest, load_training
from unrolled.machine import device_named, randomness
from unrolled.optimize import Optimizer
from unrolled.ranks import ALONE, RankError, Ranks
from unrolled.train import TrainConfig

# Of sums of float64 in another order, after some steps of an optimiser that divides by small numbers.
ROUNDING = {"rtol": 1e-9, "atol": 1e-12}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, TrainConfig, list[dict[str, Any]]]]:
    """The directory of the runs of two ranks, their configuration, and what each rank saw."""
    directory = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        config = settings(directory, patch)
        script = [sys.executable, str(Path(__file__).parent / "rank_scenarios.py"), str(directory)]
        processes = [
            subprocess.Popen([*script, str(rank)], env=environment(), stderr=subprocess.PIPE, text=True)
            for rank in range(RANKS)
        ]
        told = [process.communicate(timeout=300)[1] for process in processes]
        assert [process.returncode for process in processes] == [0] * RANKS, "\n".join(told)
        yield directory, config, [json.loads((directory / f"rank-{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def alone(world: tuple[Path, TrainConfig, Any]) -> dict[str, Any]:
    """The same run by one process with all lanes."""
    directory, config, _ = world
    return seen(run(dataclasses.replace(config, out=str(directory / "alone"))))


def numbers(directory: Path) -> dict[str, torch.Tensor]:
    return {**unrolled.load(directory).model.state_dict(), **load_training(directory).tensors}


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("which", ["run", "run-moved"])
def test_two_ranks_train_what_one_process_does(world: Any, alone: dict[str, Any], which: str) -> None:
    """All weights, moments and the state of all lanes, also of a run that 2, then 1, then 2 ranks had in hand."""
    directory, _, _ = world
    ours, theirs = numbers(directory / "alone"), numbers(directory / which)
    assert ours.keys() == theirs.keys()
    assert ours["state.h"].shape == theirs["state.h"].shape == (2, 4, 12)
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, **ROUNDING, msg=name)


def test_their_losses_norms_and_scores_are_those_of_one_process(world: Any, alone: dict[str, Any]) -> None:
    for saw in world[2]:
        two = saw["two"]
        for name in ("losses", "norms", "scores"):
            np.testing.assert_allclose(two[name], alone[name], rtol=1e-9)
        assert (two["end"], two["samples"]) == (alone["end"], alone["samples"])
        assert two["evaluation"]["bars"] == alone["evaluation"]["bars"]
        np.testing.assert_allclose(two["evaluation"]["stateful"]["nats"], alone["evaluation"]["stateful"]["nats"])
        np.testing.assert_allclose(saw["lots"]["losses"], alone["losses"][:12], rtol=0.02)
    assert world[2][0]["two"] == world[2][1]["two"]


def test_the_documents_end_where_one_rank_alone_reads(world: Any) -> None:
    """Or else means of ranks' means would be right, too."""
    _, config, _ = world
    corpus = unrolled.read_corpus(config.files, tokens="char", split=config.split, separator="é")
    lanes = unrolled.Lanes(corpus.train, config.lanes, config.window, seed=config.seed)
    assert lanes.windows_per_epoch < config.steps, "the run goes over an epoch's end"
    scored = [lanes.window(0, index).scored for index in range(lanes.windows_per_epoch)]
    halves = [(int(some[:2].sum()), int(some[2:].sum())) for some in scored if some is not None]
    assert any(first != second for first, second in halves)


def test_the_log_is_that_of_one_process_but_for_times(world: Any, alone: dict[str, Any]) -> None:
    directory, _, _ = world
    ours, theirs = lines(directory / "alone"), lines(directory / "run")
    assert [(line["event"], line.get("step")) for line in ours] == [
        (line["event"], line.get("step")) for line in theirs
    ]
    assert (ours[0]["ranks"], theirs[0]["ranks"]) == (1, 2)
    for one, two in zip(ours, theirs, strict=True):
        for name in ("loss", "bits_per_byte", "grad_norm", "lr", "epoch"):
            assert two.get(name) == (None if one.get(name) is None else pytest.approx(one[name], rel=1e-9))


def test_ranks_that_drifted_apart_are_one_again_after_a_save(world: Any) -> None:
    (before, after), (other_before, other_after) = (saw["drift"] for saw in world[2])
    assert before != other_before
    assert after == other_after


def test_lots_within_ranks_make_the_same_steps(world: Any) -> None:
    directory, config, results = world
    lots = seen(run(dataclasses.replace(config, accumulate=2, steps=12, out=str(directory / "alone-lots"))))
    np.testing.assert_allclose(results[0]["lots"]["losses"], lots["losses"], rtol=1e-9)
    np.testing.assert_allclose(results[0]["lots"]["norms"], lots["norms"], rtol=1e-9)


def test_taken_up_by_as_many_ranks_it_is_the_undisturbed_run_to_the_bit(world: Any) -> None:
    """With dropout. The one that said stop was rank 1."""
    directory, _, (first, _) = world
    assert first["stopped"]["end"] == [0, 7, True, False]
    assert first["again"]["end"] == [7, 30, False, False]
    assert sums(directory / "run-again" / "step-00000030") == sums(directory / "run-drops" / "step-00000030")
    assert first["stopped"]["losses"] + first["again"]["losses"] == first["drops"]["losses"]


def test_decisions_are_made_once(world: Any) -> None:
    """Early stopping; minutes turned into steps."""
    first, second = world[2]
    assert first["bored"] == second["bored"] == [0, 20, False, True]
    assert first["timed"] == second["timed"]
    assert first["timed"][1] == load_training(world[0] / "run-timed").record["steps"]


@pytest.mark.parametrize(
    ("what", "first", "second"),
    [
        (
            "indivisible",
            "RankError: lanes=5 can't be divided among 2 ranks, which take equally many; use --lanes 4 or --lanes 6",
            "RankError: lanes=5 can't be divided among 2 ranks, which take equally many; use --lanes 4 or --lanes 6",
        ),
        (
            "flags",
            "ElsewhereError: another rank was started with other flags",
            "RankError: rank 1 was started otherwise than rank 0: lr; give all the same flags",
        ),
        (
            "texts",
            "RankError: the ranks were given different texts; copy the same files to every machine",
            "RankError: the ranks were given different texts; copy the same files to every machine",
        ),
        (
            "missing",
            "ElsewhereError: another rank could not begin",
            "CorpusError: missing-1.txt: there is no such file",
        ),
        ("taken", "ConfigError: ", "ElsewhereError: rank 0: "),
        ("callback", "ArithmeticError: the callback's own", "ElsewhereError: a callback of rank 0 raised"),
        (
            "there",
            "RankError: begun-1 has a saved model on another machine and none on that of rank 0",
            "RankError: begun-1 has a saved model on another machine and none on that of rank 0",
        ),
        ("nan", "TrainingError: the loss is nan", "TrainingError: the loss is nan"),
    ],
)
def test_what_goes_wrong_ends_both_ranks(world: Any, what: str, first: str, second: str) -> None:
    for saw, expected in zip(world[2], (first, second), strict=True):
        kind, text, *_ = saw[what]
        assert f"{kind}: {text}".startswith(expected)


def test_only_rank_0_needs_the_run_on_its_disk(world: Any) -> None:
    first, second = world[2]
    assert first["here"] == second["here"] == [30, 31, False, False]
    assert (first["disk"], second["disk"]) == (["begun-0", "begun-1"], ["begun-1"])


def test_what_was_saved_when_it_went_wrong(world: Any) -> None:
    directory, _, results = world
    assert latest(directory / "run-upset") == directory / "run-upset" / "step-00000007"
    assert latest(directory / "run-nan") == directory / "run-nan" / "step-00000010"
    for saw in results:
        assert saw["nan"][2] == 12
        assert saw["full"]["unsaved"] == ["No space left on device"]
        assert saw["full"]["losses"] == saw["two"]["losses"]
    assert sums(directory / "run-full" / "step-00000030") == sums(directory / "run" / "step-00000030")


@pytest.mark.parametrize(
    ("lanes", "size", "advice"),
    [(5, 2, "--lanes 4 or --lanes 6"), (1, 2, "--lanes 2"), (10, 4, "--lanes 8 or --lanes 12")],
)
def test_lanes_that_cannot_be_divided(lanes: int, size: int, advice: str) -> None:
    with pytest.raises(RankError, match=rf"lanes={lanes} can't be divided among {size} ranks.*; use {advice}$"):
        Ranks(0, size).share(lanes)


def test_the_shares_are_all_lanes() -> None:
    assert [Ranks(rank, 3).share(12) for rank in range(3)] == [slice(0, 4), slice(4, 8), slice(8, 12)]
    assert ALONE.share(7) == slice(0, 7)


def test_alone_nothing_is_said() -> None:
    marker = object()
    assert ALONE.told(lambda: marker) is marker
    assert ALONE.in_turn(lambda: marker) is marker
    assert (ALONE.any(True), ALONE.any(False), ALONE.is_first) == (True, False, True)
    tensor = torch.arange(3.0)
    ALONE.add(tensor)
    ALONE.spread([tensor])
    assert ALONE.gathered(tensor, 0) is tensor
    assert tensor.tolist() == [0, 1, 2]


class Doubled(Ranks):
    """As one of two ranks whose numbers are the same."""

    def add(self, numbers: torch.Tensor) -> None:
        numbers.mul_(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradients_add_up_and_weights_that_none_reaches_stay_without(dtype: torch.dtype) -> None:
    """A weight without a gradient is neither decayed nor counted as moved, as in one process."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2, dtype=dtype), torch.nn.Linear(2, 2, dtype=dtype))
    optimizer = Optimizer(model, TrainConfig(steps=1), 1)
    model[0](torch.ones(4, 3, dtype=dtype)).sum().backward()
    before = [None if weight.grad is None else weight.grad.clone() for weight in model.parameters()]
    total = optimizer.add_up(torch.tensor(1.5, dtype=dtype), Doubled(0, 2))
    assert (total.item(), total.dtype) == (3.0, dtype)
    after = [weight.grad for weight in model.parameters()]
    assert [gradient is None for gradient in after] == [False, False, True, True]
    for old, new in zip(before[:2], after[:2], strict=True):
        assert torch.equal(new, 2 * old)


def test_masks_follow_from_seed_step_and_rank() -> None:
    def drawn(*where: int) -> float:
        with randomness(*where[:2], torch.device("cpu"), *where[2:]):
            return torch.rand(()).item()

    assert drawn(3, 5) == drawn(3, 5, 0) == drawn(3, 5)
    assert drawn(3, 5, 1) == drawn(3, 5, 1)
    assert len({drawn(3, 5, 0), drawn(3, 5, 1), drawn(3, 5, 2), drawn(3, 6, 1), drawn(4, 5, 1)}) == 5


def test_each_rank_has_a_cuda_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    for name in ("auto", "cuda", "cuda:0"):
        assert [str(device_named(name, local)) for local in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert str(device_named("cpu", 1)) == "cpu"
