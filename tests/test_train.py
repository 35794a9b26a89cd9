"""Training: that it learns, carries what it should, stops, saves, and goes on as if nothing had happened."""

import dataclasses
import hashlib
import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from unrolled.checkpoint import CheckpointError, latest, load
from unrolled.config import ConfigError
from unrolled.corpus import Corpus, CorpusError, Split, read_corpus
from unrolled.evaluate import evaluate
from unrolled.loss import nats
from unrolled.model import LanguageModel, ModelConfig
from unrolled.optimize import learning_rate
from unrolled.tokens import ByteTokenizer
from unrolled.train import Evaluated, Finished, Saved, Started, StepDone, TrainConfig, Trainer, TrainingError

TALE = "".join(f"{n} {'goose' if n % 3 else 'fox'}{'' if n % 7 else chr(233)}, " for n in range(400))


SAMPLE = 20


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(sys.modules["unrolled.train"], "SAMPLE_TOKENS", SAMPLE)


@pytest.fixture
def tale(tmp_path: Path) -> Path:
    path = tmp_path / "tale.txt"
    path.write_text(TALE, encoding="utf-8")
    return path


@pytest.fixture
def config(tale: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        files=(str(tale),),
        out=str(tmp_path / "run"),
        tokens="char",
        hidden=12,
        layers=2,
        dropout=0.1,
        lanes=4,
        window=16,
        steps=30,
        warmup=3,
        lr=0.02,
        ema=0.9,
        eval_every=10,
        save_every=10,
        split=(0.8, 0.1),
    )


def run(config: TrainConfig, stop_at: int | None = None, **given: Any) -> list[Any]:
    trainer = Trainer(config, **given)
    events = []
    for event in trainer.run():
        events.append(event)
        if isinstance(event, StepDone) and event.step == stop_at:
            trainer.stop()
    return events


def only(events: list[Any], kind: type) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def sums(directory: Path) -> dict[str, str]:
    """sha256 of everything in a model directory that a run decides, training.json without the log's length."""
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    record = json.loads(files.pop("training.json"))
    del files["manifest.json"], record["log_bytes"], record["config"]["out"]
    files["training.json"] = json.dumps(record).encode()
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def log(directory: Path, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["event"] == event]


def test_the_events_of_a_run(config: TrainConfig, tmp_path: Path) -> None:
    events = run(config)
    started, finished = events[0], events[-1]
    assert isinstance(started, Started)
    assert (started.step, started.directory, started.config.steps) == (0, tmp_path / "run", 30)
    assert started.sizes == {"train": math.floor(len(TALE) * 0.8), "val": len(TALE) // 10}
    steps = only(events, StepDone)
    assert [event.step for event in steps] == list(range(1, 31))
    assert steps[0].loss == pytest.approx(math.log(len(set(TALE))), rel=0.05), "untrained: all characters alike"
    assert steps[-1].loss < steps[0].loss - 0.5
    assert [event.lr for event in steps] == [learning_rate(step, 30, started.config) for step in range(30)]
    assert steps[-1].epoch == 30 / started.windows_per_epoch
    assert steps[-1].seconds_left == 0
    assert all(event.tokens_per_second > 0 and event.grad_norm > 0 for event in steps)
    assert [(event.step, event.score.tokens) for event in only(events, Evaluated)] == [
        (step, started.sizes["val"] - 1) for step in (10, 20, 30)
    ]
    assert all(len(event.sample) == SAMPLE for event in only(events, Evaluated))
    assert [event.directory.name for event in only(events, Saved)] == [f"step-000000{n}" for n in (10, 20, 30)]
    assert isinstance(finished, Finished)
    assert (finished.step, finished.began, finished.interrupted) == (30, 0, False)


def test_scores_are_those_of_the_saved_model(config: TrainConfig) -> None:
    events = run(config)
    saved = load(events[-1].directory)
    corpus = read_corpus(config.files, tokens="char", split=config.split)
    assert corpus.val is not None
    evaluation = evaluate(saved.model, corpus.val, saved.tokenizer)
    assert events[-1].evaluation == evaluation
    assert only(events, Evaluated)[-1].score == evaluation.blocks
    assert saved.training is not None
    assert saved.training["step"] == 30
    assert saved.training["score"] == dataclasses.asdict(evaluation.blocks)
    assert TrainConfig.from_dict(saved.training["config"]) == events[0].config


def test_bits_per_byte_counts_bytes_and_not_characters(config: TrainConfig) -> None:
    event = only(run(dataclasses.replace(config, steps=1)), StepDone)[0]
    train = TALE[: math.floor(len(TALE) * 0.8)]
    mean = (len(train.encode()) - 1) / (len(train) - 1)
    assert mean > 1
    assert event.bits_per_byte == pytest.approx(event.loss / math.log(2) / mean, rel=1e-9)


def test_the_log_holds_what_happened(config: TrainConfig, tmp_path: Path) -> None:
    events = run(config)
    directory = tmp_path / "run"
    assert [line["step"] for line in log(directory, "step")] == [1, 10, 20, 30]
    assert log(directory, "step")[-1] == {"event": "step", **dataclasses.asdict(only(events, StepDone)[-1])}
    assert log(directory, "evaluated")[0]["score"] == dataclasses.asdict(only(events, Evaluated)[0].score)
    assert [line["directory"] for line in log(directory, "saved")][-1] == "step-00000030"
    assert log(directory, "started")[0]["config"] == events[0].config.as_dict()
    assert log(directory, "finished")[0]["evaluation"] == dataclasses.asdict(events[-1].evaluation)


def test_the_resolved_config_can_be_passed_back(config: TrainConfig, tmp_path: Path) -> None:
    short = dataclasses.replace(config, steps=None, epochs=0.5, eval_every=None, quiet=True)
    resolved = run(short)[0].config
    read = TrainConfig.load(tmp_path / "run" / "config.toml")
    assert read == dataclasses.replace(resolved, quiet=False)
    assert (read.steps, read.epochs, read.device) == (math.ceil(0.5 * 50), None, "cpu")
    assert run(dataclasses.replace(read, resume=True))[-1].began == read.steps


def test_the_same_seed_is_the_same_run_and_another_one_is_not(config: TrainConfig, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(hash(name) % 1000)
        run(dataclasses.replace(config, out=str(tmp_path / name), seed=seed, steps=5))
    a, b, c = (sums(tmp_path / name / "step-00000005") for name in "abc")
    assert a == b
    assert a["weights.safetensors"] != c["weights.safetensors"]


@pytest.mark.parametrize("stop_at", [1, 10, 17, 49, 50, 57])
def test_stopped_and_taken_up_is_the_undisturbed_run(config: TrainConfig, tmp_path: Path, stop_at: int) -> None:
    """Mid-epoch, after an evaluation, at an epoch's last step and first, in the second epoch; with dropout."""
    config = dataclasses.replace(config, steps=60, eval_every=20, save_every=25)
    whole = run(dataclasses.replace(config, out=str(tmp_path / "whole")))
    assert whole[0].windows_per_epoch == 50
    first = run(config, stop_at)
    assert first[-1].interrupted
    assert first[-1].evaluation is None
    assert (first[-1].step, latest(tmp_path / "run")) == (stop_at, tmp_path / "run" / f"step-{stop_at:08d}")
    # What a caller draws in between is no business of the run's.
    torch.rand(stop_at)
    rest = run(config)
    assert (rest[0].step, rest[-1].began, rest[-1].interrupted) == (stop_at, stop_at, False)
    assert sums(tmp_path / "run" / "step-00000060") == sums(tmp_path / "whole" / "step-00000060")
    numbers = [(event.step, event.loss, event.grad_norm, event.lr) for event in only(first + rest, StepDone)]
    assert numbers == [(event.step, event.loss, event.grad_norm, event.lr) for event in only(whole, StepDone)]
    assert only(first + rest, Evaluated) == only(whole, Evaluated)
    assert rest[-1].evaluation == whole[-1].evaluation
    for event, key in (("step", "loss"), ("evaluated", "sample"), ("evaluated", "score")):
        mine, theirs = (log(tmp_path / name, event) for name in ("run", "whole"))
        assert [(line["step"], line[key]) for line in mine] == [(line["step"], line[key]) for line in theirs]


@pytest.mark.parametrize("changes", [{"state": "reset"}, {"ema": 0.0}, {"dtype": "bfloat16"}, {"embedding": 5}])
def test_other_kinds_of_runs_are_taken_up_exactly_too(
    config: TrainConfig, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = dataclasses.replace(config, steps=12, **changes)
    run(dataclasses.replace(config, out=str(tmp_path / "whole")))
    run(config, 7)
    run(dataclasses.replace(config, resume=True))
    assert sums(tmp_path / "run" / "step-00000012") == sums(tmp_path / "whole" / "step-00000012")


def test_a_crash_goes_back_to_the_last_save(config: TrainConfig, tmp_path: Path) -> None:
    run(dataclasses.replace(config, out=str(tmp_path / "whole")))
    for event in Trainer(config).run():
        if isinstance(event, StepDone) and event.step == 17:
            break
    assert log(tmp_path / "run", "step")[-1]["step"] == 10
    with (tmp_path / "run" / "log.jsonl").open("ab") as file:
        file.write(b'{"event": "st')
    rest = run(config)
    assert rest[-1].began == 10
    assert sums(tmp_path / "run" / "step-00000030") == sums(tmp_path / "whole" / "step-00000030")
    assert [line["step"] for line in log(tmp_path / "run", "step")] == [1, 10, 20, 30]


def test_a_crash_before_the_first_save_begins_again(config: TrainConfig, tmp_path: Path) -> None:
    for event in Trainer(config).run():
        if isinstance(event, StepDone) and event.step == 5:
            break
    assert run(dataclasses.replace(config, hidden=8, steps=3))[-1].began == 0
    assert [line["step"] for line in log(tmp_path / "run", "step")] == [1, 3]


def test_a_stop_before_the_first_step_saves_the_untrained_model(config: TrainConfig, tmp_path: Path) -> None:
    trainer = Trainer(config)
    trainer.stop()
    events = list(trainer.run())
    assert [type(event) for event in events] == [Started, Saved, Finished]
    assert (events[-1].step, events[-1].interrupted) == (0, True)
    run(dataclasses.replace(config, out=str(tmp_path / "whole")))
    rest = list(trainer.run())
    assert (rest[-1].step, rest[-1].interrupted) == (30, False)
    assert sums(tmp_path / "run" / "step-00000030") == sums(tmp_path / "whole" / "step-00000030")


def test_a_finished_run_says_so_and_goes_on_with_more_steps(config: TrainConfig, tmp_path: Path) -> None:
    first = run(config)
    again = run(config)
    assert [type(event) for event in again] == [Started, Finished]
    assert (again[-1].began, again[-1].step, again[-1].interrupted) == (30, 30, False)
    assert again[-1].evaluation == first[-1].evaluation
    assert len(log(tmp_path / "run", "finished")) == 1
    more = run(dataclasses.replace(config, steps=40, eval_every=7, save_every=9, quiet=True))
    assert (more[0].step, more[-1].step) == (30, 40)
    assert TrainConfig.load(tmp_path / "run" / "config.toml").steps == 40
    with pytest.raises(
        ConfigError, match=r"has come to step 40, and this run would end at 35; give it more: --steps 80"
    ):
        run(dataclasses.replace(config, steps=35))


def test_another_configuration_is_refused_and_says_where_it_differs(config: TrainConfig, tmp_path: Path) -> None:
    run(config, 3)
    before = (tmp_path / "run" / "config.toml").read_bytes()
    other = dataclasses.replace(config, hidden=8, lr=0.5, steps=50)
    with pytest.raises(ConfigError) as refused:
        run(other)
    assert str(refused.value) == (
        f"{tmp_path / 'run'} holds a run that began otherwise:\n"
        "  hidden: 8, the run has 12\n"
        "  lr: 0.5, the run has 0.02\n"
        f"go on with it as it is: --config {tmp_path / 'run' / 'config.toml'}, or begin another: --out DIRECTORY"
    )
    assert (tmp_path / "run" / "config.toml").read_bytes() == before


def test_a_changed_text_is_refused_and_a_moved_one_is_not(config: TrainConfig, tale: Path, tmp_path: Path) -> None:
    run(config, 3)
    moved = tale.rename(tmp_path / "moved.txt")
    there = dataclasses.replace(config, files=(str(moved),))
    assert run(there, 5)[0].step == 3
    moved.write_text(TALE[1:], encoding="utf-8")
    with pytest.raises(ConfigError, match="the text is not the one that the run began with"):
        run(there)


def test_resume_insists_on_a_run(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no saved model to go on from; leave --resume out to begin the run"):
        run(dataclasses.replace(config, resume=True))
    assert not (tmp_path / "run").exists()


def test_a_directory_with_something_else_in_it_is_left_alone(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has something in it that is no training run; name another directory"):
        run(dataclasses.replace(config, out=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["tale.txt"]
    with pytest.raises(ConfigError, match=r"tale\.txt is a file; name a directory with --out"):
        run(dataclasses.replace(config, out=str(tmp_path / "tale.txt")))


def test_a_damaged_model_is_named(config: TrainConfig, tmp_path: Path) -> None:
    run(config, 3)
    (tmp_path / "run" / "step-00000003" / "training.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"training\.safetensors has 0 bytes"):
        run(config)


def test_a_loss_that_is_no_number_ends_training_and_keeps_the_last_model(config: TrainConfig, tmp_path: Path) -> None:
    trainer = Trainer(config)
    events = trainer.run()
    for event in events:
        if isinstance(event, StepDone) and event.step == 14:
            break
    with torch.no_grad():
        trainer.model.lstm.proj.bias[0] = torch.nan
    with pytest.raises(TrainingError) as diverged:
        next(events)
    assert str(diverged.value) == (
        "the loss is nan and the gradient's norm nan at step 15: training diverged; "
        f"{tmp_path / 'run' / 'step-00000010'} is the last good model. Begin again with a lower --lr (it is 0.02), a "
        "longer --warmup (it is 3) or a smaller --clip (it is 1)"
    )
    assert log(tmp_path / "run", "diverged") == [{"event": "diverged", "step": 15, "loss": "nan", "grad_norm": "nan"}]
    assert load(tmp_path / "run").directory.name == "step-00000010"
    assert run(config)[-1].step == 30


def windows_by_hand(config: TrainConfig, corpus: Corpus, steps: int) -> list[float]:
    """Losses of a plainly written loop that carries as the policy says; no dropout, no clipping, no decay."""
    trainer = Trainer(config, corpus=corpus)
    model, lanes = trainer.model, trainer.lanes
    adam = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0)
    losses, state = [], model.zero_state(config.lanes)
    for step in range(steps):
        epoch, index = divmod(step, lanes.windows_per_epoch)
        if index == 0 or config.state == "reset":
            state = model.zero_state(config.lanes)
        window = lanes.window(epoch, index)
        logits, state = model(window.inputs, state, resets=window.resets)
        state = state.detach()
        scored = torch.ones_like(window.targets, dtype=torch.bool) if window.scored is None else window.scored
        loss = nats(logits, window.targets, scored) / scored.sum()
        for group in adam.param_groups:
            group["lr"] = learning_rate(step, steps, config)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("state", ["carry", "reset"])
def test_what_a_window_starts_from(config: TrainConfig, state: str) -> None:
    """Documents of every length, two epochs and more, against a loop written out; both policies differ from step 2."""
    config = dataclasses.replace(
        config, state=state, dropout=0.0, clip=0.0, weight_decay=0.0, dtype="float64", steps=45, embedding=4
    )
    ids = ByteTokenizer().encode(TALE)[:700]
    text = Split(ids, torch.tensor([0, 3, 90, 91, 200, 430, 555]).numpy())
    corpus = Corpus(text, None, None, ByteTokenizer(), "0" * 64)
    events = run(config, corpus=corpus)
    assert events[0].windows_per_epoch < 45 / 2
    expected = windows_by_hand(dataclasses.replace(config, out=None), corpus, 45)
    assert [event.loss for event in only(events, StepDone)] == pytest.approx(expected, rel=1e-9)
    other = windows_by_hand(dataclasses.replace(config, state="reset" if state == "carry" else "carry"), corpus, 45)
    assert other[0] == expected[0]
    assert all(abs(a - b) > 1e-6 for a, b in zip(other[1:10], expected[1:10], strict=True))


def test_without_validation_there_is_a_sample_and_no_score(config: TrainConfig) -> None:
    events = run(dataclasses.replace(config, split=(1.0,), steps=2))
    assert [(event.step, event.score, len(event.sample)) for event in only(events, Evaluated)] == [(2, None, SAMPLE)]
    assert events[-1].evaluation is None
    assert not events[-1].interrupted


def test_at_most_so_many_tokens_are_scored(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["unrolled.train"]
    monkeypatch.setattr(module, "EVALUATION_TOKENS", 50)
    monkeypatch.setattr(module, "FINAL_TOKENS", 70)
    events = run(dataclasses.replace(config, steps=1))
    assert only(events, Evaluated)[0].score.tokens == 49
    assert (events[-1].evaluation.blocks.tokens, events[-1].evaluation.stateful.tokens) == (69, 69)


def test_a_model_of_ones_own(config: TrainConfig, tmp_path: Path) -> None:
    vocabulary = len(set(TALE))
    model = LanguageModel(ModelConfig(vocabulary, hidden=7, layers=1, embedding=3), dtype=torch.float64)
    started = run(dataclasses.replace(config, steps=4), model=model)[0]
    assert (started.config.hidden, started.config.layers, started.config.embedding) == (7, 1, 3)
    assert (started.config.dropout, started.config.dtype) == (0.0, "float64")
    assert load(tmp_path / "run").config == model.config
    assert started.parameters == sum(parameter.numel() for parameter in model.parameters())
    with pytest.raises(
        ConfigError, match=rf"was built for 9 tokens, the text has {vocabulary}; build it with ModelConfig"
    ):
        Trainer(config, model=LanguageModel(ModelConfig(9)))


def test_threads_are_set_while_it_runs_and_then_as_before(config: TrainConfig) -> None:
    events = Trainer(dataclasses.replace(config, threads=2)).run()
    next(events)
    assert torch.get_num_threads() == 2
    events.close()
    assert torch.get_num_threads() == 1


def test_torchs_generator_is_left_alone(config: TrainConfig) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    run(dataclasses.replace(config, steps=2))
    assert torch.equal(torch.rand(2), expected)


def test_what_cannot_be_trained_on(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="there is no such file"):
        Trainer(dataclasses.replace(config, files=(str(tmp_path / "none.txt"),)))
    with pytest.raises(
        ValueError, match=r"the text is too short: it holds .* tokens, and 4 lanes of 2000-token windows"
    ):
        Trainer(dataclasses.replace(config, window=2000))
    with pytest.raises(ConfigError, match=r"device 'cdua' can't be used: .*; --device cpu works everywhere"):
        Trainer(dataclasses.replace(config, device="cdua"))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device 'cuda' can't be used"):
            Trainer(dataclasses.replace(config, device="cuda"))
    assert list(itertools.islice(tmp_path.iterdir(), 2)) == [tmp_path / "tale.txt"]
