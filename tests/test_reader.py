import numpy as np
import pytest
import torch
from steppers import BACKENDS, NATIVE, use
from tolerance import assert_close
from torch import nn

from unrolled import BackendUnavailable, LanguageModel, LSTMState, ModelConfig, generate
from unrolled.reader import Reader
from unrolled.tokens import CharTokenizer


class Run:
    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request, monkeypatch):
    use(request.param, monkeypatch)
    if request.param == "portable":
        monkeypatch.setattr("unrolled.reader.missing", lambda: "no C++ compiler was found")
    return request.param


def model_of(**sizes):
    torch.manual_seed(3)
    return LanguageModel(ModelConfig(12, **{"hidden": 9, "layers": 2, "dropout": 0.2, **sizes}))


def hooked(model):
    model.lstm.layers[0].register_forward_hook(lambda *_: None)


def portable(model):
    model.lstm.backend = "portable"


def of_its_own(model):
    model.lstm.forward = lambda *_: None


def steps(reader):
    return reader._stepper is not None


@pytest.mark.parametrize(
    "change",
    [hooked, portable, of_its_own, lambda model: model.to("meta")],
    ids=["hook", "backend", "forward", "device"],
)
def test_a_model_of_which_a_stepper_would_pass_something_by_is_called(change):
    model = model_of()
    reader = Reader(model, None)
    reader.follow(model)
    assert steps(reader)
    change(model)
    assert not steps(Reader(model, None))


@pytest.mark.parametrize("change", [hooked, portable, of_its_own], ids=["hook", "backend", "forward"])
def test_a_reader_follows_what_a_model_asks_for(change):
    model = model_of()
    reader = Reader(model, None)
    reader.read([1, 2])
    change(model)
    reader.follow(model)
    assert not steps(reader)


def test_a_reader_goes_back_to_stepping():
    model = model_of()
    reader = Reader(model, None)
    expected = [reader.read([1]).tolist(), reader.read([2]).tolist(), reader.read([3]).tolist()]
    reader = Reader(model, None)
    reader.read([1])
    hook = model.register_forward_hook(lambda *_: None)
    reader.follow(model)
    assert not steps(reader)
    called = reader.read([2])
    hook.remove()
    reader.follow(model)
    assert steps(reader)
    assert np.allclose(called, expected[1], rtol=0, atol=1e-5)
    assert np.allclose(reader.read([3]), expected[2], rtol=0, atol=1e-5)


def test_changed_weights_are_noticed_at_the_next_step_without_being_asked():
    model = model_of()
    reader = Reader(model, None)
    reader.read([1, 2])
    state = reader.state
    sharpen(model)
    logits = reader.step([3]).copy()
    assert steps(reader)
    assert np.array_equal(logits, Reader(model, state).step([3]))


def test_float64_is_called():
    assert not steps(Reader(model_of().double(), None))


def test_under_autocast_a_model_is_called():
    model = model_of()
    reader = Reader(model, None)
    reader.read([1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not steps(Reader(model, None))
        reader.follow(model)
        assert not steps(reader)
    reader.follow(model)
    assert steps(reader)


def test_any_module_that_takes_ids_is_called():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.anchor = nn.Parameter(torch.zeros(1))

        def forward(self, ids, state=None):
            return torch.ones(*ids.shape, 3), LSTMState.zeros(1, ids.shape[0], 1)

    reader = Reader(Other(), None)
    assert reader.read([1, 2]).tolist() == [[1.0, 1.0, 1.0]]
    assert isinstance(reader.state, LSTMState)
    assert reader.step([1]).tolist() == [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize("called", [False, True])
def test_texts_side_by_side_are_each_as_it_is_alone(called):
    model = model_of()
    if called:
        hooked(model)
    torch.manual_seed(4)
    state = LSTMState(torch.randn(2, 3, 9), torch.randn(2, 3, 9))
    together = Reader(model, state)
    alone = [Reader(model, state.rows(row)) for row in range(3)]
    for ids in ([1, 2, 3], [4, 4, 0]):
        logits = together.step(ids)
        for row, reader in enumerate(alone):
            assert np.allclose(reader.step([ids[row]])[0], logits[row], rtol=0, atol=1e-6)
            assert torch.allclose(reader.state.c, together.state.rows(row).c, rtol=0, atol=1e-6)


@pytest.mark.parametrize("length", [1, 16, 17, 40])
def test_reading_is_the_models_whatever_the_length(length):
    model = model_of()
    ids = torch.randint(12, (60,)).tolist()
    reader = Reader(model, None)
    reader.read(ids[:5])
    logits, state = torch.tensor(reader.read(ids[5 : 5 + length])[0]), reader.state
    with torch.no_grad():
        plain, plain_state = model.eval()(torch.tensor([ids[: 5 + length]]))
        exact, exact_state = model.double()(torch.tensor([ids[: 5 + length]]))
    assert_close(logits.float(), plain[0, -1], exact[0, -1], "logits")
    assert_close(state.c, plain_state.c, exact_state.c, "c")


def test_a_state_is_gone_on_from_and_copied():
    model = model_of()
    first = Reader(model, None)
    first.read([1, 2, 3])
    state = first.state
    second = Reader(model, tuple(state))
    assert np.array_equal(first.read([4]), second.read([4]))
    assert torch.equal(state.h, Reader(model, state).state.h)
    with pytest.raises(ValueError, match="layers"):
        Reader(model, LSTMState.zeros(3, 1, 9))


def test_a_requested_native_kernel_runs_or_raises(backend):
    model = model_of()
    model.lstm.backend = "cpu"
    if backend == "cpu":
        assert steps(Reader(model, None))
    else:
        assert not steps(Reader(model, None))


def test_strictness_without_the_native_kernel_raises(backend):
    model = model_of()
    for layer in model.lstm.layers:
        layer.strict = True
    if backend == "portable":
        with pytest.raises(BackendUnavailable, match="strict=True needs the native kernel"):
            Reader(model, None)
    else:
        assert Reader(model, None)._stepper.strict


# What a listener may do between two pieces

TOKENIZER = CharTokenizer("\n abcdefghij")


def sharpen(model):
    with torch.no_grad():
        model.lstm.proj.weight.mul_(-9)
        model.lstm.layers[0].W_hi.add_(0.5)


def assign(model):
    model.lstm.proj = nn.Linear(9, 12)


def ask_for_another_backend(model):
    model.lstm.backend = "reference"


@pytest.mark.parametrize("change", [sharpen, assign, ask_for_another_backend, hooked])
def test_a_text_goes_on_with_the_model_as_it_was_changed(change):
    """As a text does that is taken up, with the changed model, behind the piece at which it was changed."""
    model = model_of()
    run = Run(model, TOKENIZER)
    stream = generate(run, "abc", max_tokens=12, temperature=0)
    read = [next(stream) for _ in range(5)]
    torch.manual_seed(1)
    change(model)
    rest = list(stream)
    taken_up = list(generate(run, read[-1].ids, state=read[-1].state, max_tokens=7, temperature=0))
    assert [piece.ids for piece in taken_up] == [piece.ids for piece in rest]
    assert torch.allclose(taken_up[-1].state.c, rest[-1].state.c, rtol=0, atol=1e-5)


def test_a_model_that_leaves_its_dtype_behind_raises_what_a_call_raises():
    model = model_of()
    stream = generate(Run(model, TOKENIZER), "abc")
    next(stream)
    model.double()
    with pytest.raises(TypeError, match=r"state.h is float32, but the weights are float64"):
        next(stream)


def test_another_model_in_its_place_is_followed():
    run = Run(model_of(), TOKENIZER)
    stream = generate(run, "abc", max_tokens=9, temperature=0)
    read = [next(stream) for _ in range(3)]
    torch.manual_seed(9)
    run.model = LanguageModel(ModelConfig(12, hidden=9, layers=2))
    sharpen(run.model)
    rest = list(stream)
    expected = generate(run, read[-1].ids, state=read[-1].state, max_tokens=6, temperature=0)
    assert [piece.ids for piece in rest] == [piece.ids for piece in expected]


@pytest.mark.skipif(not NATIVE, reason="there is no native library here")
def test_both_ways_of_reading_are_in_use(backend):
    assert Reader(model_of(), None)._stepper.backend == backend
