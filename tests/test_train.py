"""Training: that it learns, carries what it should, tells what happens, and ends where there is no way on."""

import dataclasses
import itertools
import math
import sys
from pathlib import Path

import pytest
import torch
from small_runs import SAMPLE, TALE, log, only, run, small, sums

from unrolled.checkpoint import load, load_training
from unrolled.config import ConfigError
from unrolled.corpus import Corpus, CorpusError, Split, read_corpus
from unrolled.evaluate import Counts, Score, evaluate
from unrolled.events import Event
from unrolled.loss import nats
from unrolled.model import LanguageModel, ModelConfig
from unrolled.optimize import learning_rate
from unrolled.tokens import ByteTokenizer
from unrolled.train import Evaluated, Finished, Saved, Started, StepDone, TrainConfig, Trainer, TrainingError


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    return small(tmp_path, monkeypatch)


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
    counts = Counts.of(corpus.train, corpus.tokenizer)
    evaluation = evaluate(saved.model, corpus.val, saved.tokenizer, counts=counts)
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


def test_the_same_seed_is_the_same_run_and_another_one_is_not(config: TrainConfig, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(hash(name) % 1000)
        run(dataclasses.replace(config, out=str(tmp_path / name), seed=seed, steps=5))
    a, b, c = (sums(tmp_path / name / "step-00000005") for name in "abc")
    assert a == b
    assert a["weights.safetensors"] != c["weights.safetensors"]


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
    reason = "the loss is nan and the gradient's norm nan at step 15"
    assert log(tmp_path / "run", "diverged") == [{"event": "diverged", "step": 14, "reason": reason}]
    kept = load(tmp_path / "run")
    assert kept.directory.name == "step-00000010"
    assert all(bool(weight.isfinite().all()) for weight in kept.model.parameters())
    assert all(bool(value.isfinite().all()) for value in load_training(tmp_path / "run").tensors.values())
    assert run(config)[-1].step == 30


def test_weights_that_are_no_numbers_are_never_saved(config: TrainConfig, tmp_path: Path) -> None:
    trainer = Trainer(dataclasses.replace(config, clip=0.0, eval_every=30))
    events = trainer.run()
    for event in events:
        if isinstance(event, StepDone) and event.step == 20:
            break
    with torch.no_grad():
        trainer.averaged.lstm.layers[1].b_o[3] = torch.inf
    with pytest.raises(TrainingError, match=r"the weights are no longer finite after step 20: .* clipped, --clip 1$"):
        next(events)
    assert load(tmp_path / "run").directory.name == "step-00000010"


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
        config, state=state, dropout=0.0, clip=0.0, weight_decay=0.0, dtype="float64", steps=25, embedding=4
    )
    ids = ByteTokenizer().encode(TALE)[:700]
    text = Split(ids, torch.tensor([0, 3, 90, 91, 200, 430, 555]).numpy())
    corpus = Corpus(text, None, None, ByteTokenizer(), "0" * 64)
    events = run(config, corpus=corpus)
    assert events[0].windows_per_epoch < 25 / 2
    expected = windows_by_hand(dataclasses.replace(config, out=None), corpus, 25)
    assert [event.loss for event in only(events, StepDone)] == pytest.approx(expected, rel=1e-9)
    other = windows_by_hand(dataclasses.replace(config, state="reset" if state == "carry" else "carry"), corpus, 25)
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


def scores(monkeypatch: pytest.MonkeyPatch, *nats: float) -> None:
    """Each evaluation of a run gives the next of these."""
    given = iter(nats)
    monkeypatch.setattr(sys.modules["unrolled.train"], "blocks", lambda *_: Score(x := next(given), x, math.exp(x), 9))


def test_a_run_ends_early_and_says_which_step_was_best(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, steps=90, patience=2)
    scores(monkeypatch, 3.0, 2.0, 2.5, 2.0)
    events = run(config)
    last = events[-1]
    assert (last.step, last.early, last.interrupted) == (40, True, False), "an equal score is no better"
    assert (last.best_step, last.best.nats) == (20, 2.0)
    assert last.evaluation is not None
    assert (tmp_path / "run" / "best").read_text() == "step-00000020\n"
    assert [event.best for event in only(events, Saved)] == [True, True, False, False]
    assert [type(event) for event in run(config)] == [Started, Finished], "the same command has nothing left to do"
    scores(monkeypatch, 1.0, 1.5, 1.5, 1.5)
    longer = run(dataclasses.replace(config, patience=3))
    assert (longer[0].step, longer[-1].step, longer[-1].best_step) == (40, 80, 50)


def test_waiting_goes_on_where_it_stood(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(config, steps=90, patience=3)
    scores(monkeypatch, 2.0, 2.5, 2.5, 2.5)
    run(config, 34)
    rest = run(config)
    assert (rest[-1].step, rest[-1].early, rest[-1].best_step) == (40, True, 10)


def test_patience_needs_scores(config: TrainConfig) -> None:
    with pytest.raises(ConfigError, match=r"patience needs scores, and there is no validation text; add --val FILE or"):
        Trainer(dataclasses.replace(config, split=(1.0,), patience=2))


def test_callbacks_hear_every_event_first_and_may_stop_the_run(config: TrainConfig) -> None:
    heard: list[Event] = []

    def callback(event: Event, trainer: Trainer) -> None:
        heard.append(event)
        if isinstance(event, StepDone) and event.step == 4:
            trainer.stop()

    events = []
    for event in Trainer(config, callbacks=[callback, lambda event, trainer: None]).run():
        assert heard[-1] is event
        events.append(event)
    assert heard == events
    assert (events[-1].step, events[-1].interrupted) == (4, True)


def test_what_a_callback_raises_ends_the_run_once_the_model_is_saved(config: TrainConfig, tmp_path: Path) -> None:
    def callback(event: Event, trainer: Trainer) -> None:
        if isinstance(event, StepDone) and event.step == 13:
            raise ZeroDivisionError("mine")

    trainer = Trainer(config, callbacks=[callback])
    with pytest.raises(ZeroDivisionError, match="mine"):
        list(trainer.run())
    assert load(tmp_path / "run").training["step"] == 13
    run(dataclasses.replace(config, out=str(tmp_path / "whole")))
    run(config)
    assert sums(tmp_path / "run" / "step-00000030") == sums(tmp_path / "whole" / "step-00000030")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_where_memory_runs_out_a_sentence_says_what_takes_less(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    trainer = Trainer(dataclasses.replace(config, accumulate=2))

    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(trainer.model, "forward", full)
    with pytest.raises(
        TrainingError, match=r"step 1 of 4 lanes x 16 tokens does not fit .* cpu; --accumulate 4 makes "
    ):
        list(trainer.run())


def test_another_error_of_torch_is_no_lack_of_memory(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(config)

    def wrong(*_: object, **__: object) -> None:
        raise RuntimeError("shapes")

    monkeypatch.setattr(trainer.model, "forward", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        list(trainer.run())


def test_plain_gradient_descent(config: TrainConfig) -> None:
    trainer = Trainer(dataclasses.replace(config, optimizer="sgd", clip=0.0, weight_decay=0.0, ema=0.0, lr=0.5))
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    rate = trainer._learner.step(0).rate
    for name, value in trainer.model.named_parameters():
        torch.testing.assert_close(value, before[name] - rate * value.grad, msg=name)


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
