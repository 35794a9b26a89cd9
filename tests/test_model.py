"""LanguageModel: what it is made of, the same numbers by hand, and what it refuses."""

import copy

import pytest
import torch
import torch.nn.functional as F

from unrolled.model import LanguageModel, ModelConfig
from unrolled.stack import MultiLayerLSTM

SMALL = ModelConfig(11, hidden=6, layers=2, embedding=0)
EMBEDDED = ModelConfig(11, hidden=6, layers=2, embedding=4)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def model(config: ModelConfig, seed: int = 0) -> LanguageModel:
    torch.manual_seed(seed)
    return LanguageModel(config, dtype=torch.float64)


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(5))


def test_without_an_embedding_it_is_the_stack_on_one_hot_rows() -> None:
    subject = model(SMALL)
    assert subject.embedding is None
    x = ids(3, 7)
    logits, state = subject(x)
    expected, expected_state = subject.lstm(F.one_hot(x, 11).double())
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(tuple(state), tuple(expected_state), rtol=0, atol=1e-12)
    assert logits.shape == (3, 7, 11)


def test_with_an_embedding_it_is_the_stack_on_the_looked_up_rows() -> None:
    subject = model(EMBEDDED)
    assert subject.embedding is not None
    x = ids(3, 7)
    logits, _ = subject(x)
    expected, _ = subject.lstm(subject.embedding.weight[x])
    assert torch.equal(logits, expected)
    assert torch.equal(subject(x.to(torch.uint8))[0], expected)


def test_forget_biases_are_one_and_the_rest_as_the_stack_draws_it() -> None:
    subject = model(SMALL, seed=3)
    torch.manual_seed(3)
    plain = MultiLayerLSTM(11, 6, 2, output_dim=11, dtype=torch.float64).state_dict()
    for name, value in subject.lstm.state_dict().items():
        expected = torch.ones(6, dtype=torch.float64) if name.endswith(".b_f") else plain[name]
        assert torch.equal(value, expected), name
    torch.manual_seed(3)
    before = {name: value.clone() for name, value in subject.state_dict().items()}
    subject.reset_parameters()
    assert all(torch.equal(value, before[name]) for name, value in subject.state_dict().items())


def test_state_resets_lengths_and_trace_are_the_stacks() -> None:
    subject = model(EMBEDDED)
    x, lengths = ids(2, 6), torch.tensor([6, 4])
    whole, end = subject(x)
    first, state = subject(x[:, :2])
    rest, again = subject(x[:, 2:], state)
    torch.testing.assert_close(torch.cat([first, rest], 1), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(again.c, end.c, rtol=0, atol=1e-12)
    resets = torch.zeros(2, 6, dtype=torch.bool)
    resets[:, 2] = True
    torch.testing.assert_close(subject(x, resets=resets)[0][:, 2:], subject(x[:, 2:])[0], rtol=0, atol=1e-12)
    trace = subject.trace(x, lengths=lengths)
    logits, state = subject(x, lengths=lengths)
    assert torch.equal(trace.output, logits)
    assert torch.equal(trace.state.c, state.c)
    assert subject.zero_state(3).h.shape == (2, 3, 6)
    assert subject.zero_state(3).h.dtype == torch.float64


@pytest.mark.parametrize("config", [SMALL, EMBEDDED])
def test_ids_behind_a_length_may_be_anything(config: ModelConfig) -> None:
    subject, x = model(config), ids(2, 5)
    expected = subject(x, lengths=torch.tensor([5, 3]))[0]
    x[1, 3:] = -7
    assert torch.equal(subject(x, lengths=torch.tensor([5, 3]))[0], expected)


@pytest.mark.parametrize("config", [SMALL, EMBEDDED])
@pytest.mark.parametrize("wrong", [-1, 11])
def test_ids_outside_the_vocabulary(config: ModelConfig, wrong: int) -> None:
    x = ids(2, 5)
    x[1, 2] = wrong
    with pytest.raises(IndexError, match=rf"ids must be from 0 to 10, got {wrong}"):
        model(config)(x)


@pytest.mark.parametrize("config", [SMALL, EMBEDDED])
def test_wrong_input_is_named(config: ModelConfig) -> None:
    subject = model(config)
    with pytest.raises(TypeError, match=r"reads token ids.* got float32 \[2, 5, 11\]: ids\.long\(\)"):
        subject(torch.zeros(2, 5, 11))
    with pytest.raises(TypeError, match="got bool"):
        subject(torch.zeros(2, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"ids is \[5\], expected \[batch, time\]; one text alone is ids\[None\]"):
        subject(ids(5))
    with pytest.raises(TypeError, match=r"torch\.tensor\(ids\)"):
        subject([[1, 2]])


def test_dropout_lies_in_the_stack_only() -> None:
    subject = model(ModelConfig(11, hidden=6, layers=1, embedding=4, dropout=0.5))
    x = ids(2, 5)
    torch.manual_seed(1)
    dropped = subject(x)[0]
    torch.manual_seed(1)
    assert subject.embedding is not None
    h, _ = subject.lstm.layers[0](subject.embedding(x))
    assert torch.equal(dropped, subject.lstm.proj(subject.lstm.dropout(h)))
    assert not torch.equal(dropped, subject.eval()(x)[0])


def test_gradients_reach_every_parameter() -> None:
    subject = model(EMBEDDED)
    subject(ids(3, 7))[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in subject.parameters())


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"vocabulary": 0}, ValueError, "vocabulary=0 must be at least 1"),
        ({"hidden": -3}, ValueError, "hidden=-3 must be at least 1"),
        ({"layers": 0}, ValueError, "layers=0 must be at least 1"),
        ({"embedding": -1}, ValueError, "embedding=-1 must be at least 0"),
        ({"dropout": 1.0}, ValueError, r"dropout=1\.0 must be at least 0 and below 1"),
        ({"hidden": 2.5}, TypeError, r"hidden must be an integer, got 2\.5"),
        ({"dropout": "0.1"}, TypeError, r"dropout must be a number, got '0\.1'"),
    ],
)
def test_impossible_configurations(fields: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ModelConfig(**{"vocabulary": 11, **fields})


def test_embedding_dropout_drops_what_the_embedding_gives_and_only_in_training() -> None:
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(9, hidden=4, layers=1, embedding=5, embedding_dropout=0.5))
    seen = []
    model.lstm.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    ids = torch.randint(9, (4, 50))
    model(ids)
    model.eval()(ids)
    dropped, plain = seen
    assert torch.equal(plain, model.embedding(ids))
    kept = dropped != 0
    assert 0.4 < kept.float().mean() < 0.6
    torch.testing.assert_close(dropped[kept], 2 * plain[kept])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"embedding_dropout": 1.0},
            "embedding_dropout=1.0 must be at least 0 and below 1: the share of the embedding",
        ),
        ({"embedding_dropout": 0.1, "embedding": 0}, "embedding_dropout=0.1 needs an embedding, and embedding is 0"),
        ({"tie_weights": True}, "one matrix, as wide as h: embedding=64 must be hidden=256"),
        ({"tie_weights": True, "embedding": 0}, "one matrix, as wide as h: embedding=0 must be hidden=256"),
    ],
)
def test_configurations_that_contradict_themselves(fields, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(9, **fields)


def tied(**fields: float) -> LanguageModel:
    torch.manual_seed(3)
    return LanguageModel(
        ModelConfig(9, hidden=5, layers=2, embedding=5, tie_weights=True, **fields), dtype=torch.float64
    )


def test_of_tied_weights_the_gradient_is_the_sum_of_both_uses() -> None:
    model, apart = tied(), LanguageModel(ModelConfig(9, hidden=5, layers=2, embedding=5), dtype=torch.float64)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in apart.parameters()) - 9 * 5
    apart.load_state_dict({**model.state_dict(), "embedding.weight": model.state_dict()["lstm.proj.weight"]})
    ids, weights = torch.randint(9, (2, 7)), torch.randn(2, 7, 9, dtype=torch.float64)
    logits = [subject(ids)[0] for subject in (model, apart)]
    assert torch.equal(*logits)
    for each in logits:
        (each * weights).sum().backward()
    torch.testing.assert_close(model.lstm.proj.weight.grad, apart.embedding.weight.grad + apart.lstm.proj.weight.grad)


@pytest.mark.parametrize("assign", [False, True])
def test_tied_weights_stay_one(assign: bool) -> None:
    source, model = tied(), tied()
    model.reset_parameters()
    for state in (source.state_dict(), {**source.state_dict(), "embedding.weight": source.lstm.proj.weight}):
        model.load_state_dict(state, assign=assign)
        for subject in (model, copy.deepcopy(model), copy.deepcopy(model).float()):
            assert subject.embedding.weight is subject.lstm.proj.weight
            assert "embedding.weight" not in subject.state_dict()
        assert torch.equal(model.lstm.proj.weight, source.lstm.proj.weight)
    with pytest.raises(RuntimeError, match=r"Missing key.*embedding\.weight.*lstm\.proj\.weight"):
        model.load_state_dict({})


def test_a_tied_model_inside_another_module() -> None:
    outer = torch.nn.ModuleDict({"inner": tied()})
    state = outer.state_dict()
    assert "inner.embedding.weight" not in state
    outer.load_state_dict(state)
    assert outer["inner"].embedding.weight is outer["inner"].lstm.proj.weight


def test_tied_weights_are_drawn_as_a_projection_is() -> None:
    bound = (6 / (5 + 9)) ** 0.5
    for _ in range(2):
        model = tied()
        model.reset_parameters()
        assert 0.8 * bound < model.embedding.weight.abs().max() <= bound


def test_tied_must_be_true_or_false() -> None:
    with pytest.raises(TypeError, match="tie_weights must be true or false, got 1"):
        ModelConfig(9, tie_weights=1)
