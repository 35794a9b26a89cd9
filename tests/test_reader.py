import pytest
import torch
from steppers import BACKENDS, NATIVE, use
from tolerance import assert_close
from torch import nn

from unrolled import BackendUnavailable, LanguageModel, LSTMState, ModelConfig, generate
from unrolled.reader import _Calling, _Stepping, reader_of
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


@pytest.mark.parametrize(
    "change",
    [hooked, portable, of_its_own, lambda model: model.double(), lambda model: model.to("meta")],
    ids=["hook", "backend", "forward", "float64", "device"],
)
def test_a_model_of_which_a_stepper_would_pass_something_by_is_called(change):
    model = model_of()
    assert isinstance(reader_of(model, None), _Stepping)
    reader = reader_of(model, None)
    assert reader.follows(model)
    change(model)
    assert isinstance(reader_of(model, None), _Calling)
    assert not reader.follows(model)


def test_under_autocast_a_model_is_called():
    model = model_of()
    reader = reader_of(model, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert isinstance(reader_of(model, None), _Calling)
        assert not reader.follows(model)
        calling = reader_of(model, None)
        assert calling.follows(model)
    assert not calling.follows(model)
    assert reader.follows(model)
    assert not reader.follows(model_of())


def test_any_module_that_takes_ids_is_called():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.anchor = nn.Parameter(torch.zeros(1))

        def forward(self, ids, state=None):
            return torch.ones(1, ids.shape[1], 3), LSTMState.zeros(1, 1, 1)

    reader = reader_of(Other(), None)
    assert torch.equal(reader.read([1, 2]), torch.ones(3))
    assert isinstance(reader.state, LSTMState)


@pytest.mark.parametrize("length", [1, 16, 17, 40])
def test_reading_is_the_models_whatever_the_length(length):
    model = model_of()
    ids = torch.randint(12, (60,)).tolist()
    reader = reader_of(model, None)
    reader.read(ids[:5])
    logits, state = reader.read(ids[5 : 5 + length]).clone(), reader.state
    with torch.no_grad():
        plain, plain_state = model.eval()(torch.tensor([ids[: 5 + length]]))
        exact, exact_state = model.double()(torch.tensor([ids[: 5 + length]]))
    assert_close(logits, plain[0, -1], exact[0, -1], "logits")
    assert_close(state.c, plain_state.c, exact_state.c, "c")


def test_a_state_is_gone_on_from_and_copied():
    model = model_of()
    first = reader_of(model, None)
    first.read([1, 2, 3])
    state = first.state
    second = reader_of(model, tuple(state))
    assert torch.equal(first.read([4]), second.read([4]))
    assert torch.equal(state.h, reader_of(model, state).state.h)
    with pytest.raises(ValueError, match="layers"):
        reader_of(model, LSTMState.zeros(3, 1, 9))


def test_a_requested_native_kernel_runs_or_raises(backend):
    model = model_of()
    model.lstm.backend = "cpu"
    if backend == "cpu":
        assert isinstance(reader_of(model, None), _Stepping)
    else:
        assert isinstance(reader_of(model, None), _Calling)


def test_strictness_without_the_native_kernel_raises(backend):
    model = model_of()
    for layer in model.lstm.layers:
        layer.strict = True
    if backend == "portable":
        with pytest.raises(BackendUnavailable, match="strict=True needs the native kernel"):
            reader_of(model, None)
    else:
        assert reader_of(model, None)._stepper.strict


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
    assert reader_of(model_of(), None)._stepper.backend == backend
