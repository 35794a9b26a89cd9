"""`unrolled.LSTM` is `nn.LSTM` to its callers: the same numbers, gradients, weights, draws and errors."""

from __future__ import annotations

import copy
import inspect
import itertools
import warnings
from typing import Any

import pytest
import torch
from plain import F64, gradients, normal, redraw
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from unrolled import LSTM

B, T, I, H, P = 4, 6, 5, 7, 3
LENGTHS = torch.tensor([3, 6, 1, 4])

oneDNN_says_so = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
pytestmark = oneDNN_says_so


def twins(layers: int = 2, dtype: torch.dtype = F64, **options: Any) -> tuple[LSTM, nn.LSTM]:
    theirs = redraw(nn.LSTM(I, H, layers, dtype=dtype, **options))
    ours = LSTM(I, H, layers, dtype=dtype, **options)
    assert isinstance(theirs, nn.LSTM)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def state_for(module: nn.RNNBase, rows: int = B, dtype: torch.dtype = F64) -> dict[str, Tensor]:
    layers = module.num_layers * (2 if module.bidirectional else 1)
    h0, c0 = normal(layers, rows, module.proj_size or H, seed=2).tanh(), normal(layers, rows, H, seed=3)
    return {"h0": h0.to(dtype).requires_grad_(), "c0": c0.to(dtype).requires_grad_()}


def frames(module: nn.RNNBase, steps: int = T, rows: int = B, dtype: torch.dtype = F64) -> Tensor:
    shape = (rows, steps, I) if module.batch_first else (steps, rows, I)
    return normal(*shape, seed=1, dtype=dtype).requires_grad_()


def results(module: nn.Module, x: Any, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """output, h_n and c_n of a call, and the gradients of its leaves and of all weights."""
    hx = (leaves["h0"], leaves["c0"]) if "h0" in leaves else None
    output, (h, c) = module(x, hx)
    values = {"output": output.data if isinstance(output, PackedSequence) else output, "h_n": h, "c_n": c}
    return values | {f"d{name}": g for name, g in gradients(values, leaves | dict(module.named_parameters())).items()}


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Within the rounding of some 20 steps of sums over some 20 terms of order 1 to 10."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        bound = 1e-12 if value.dtype == F64 else 2e-5
        torch.testing.assert_close(got[name], value, rtol=bound, atol=bound, msg=lambda text, n=name: f"{n}: {text}")


def assert_twins_agree(ours: LSTM, theirs: nn.LSTM, x: Any, leaves: dict[str, Tensor]) -> None:
    assert_same(results(ours, x, leaves), results(theirs, x, leaves))


GRID = [
    {"layers": layers, "bidirectional": both, "bias": bias, "batch_first": first, "proj_size": proj}
    for layers, both, bias, first, proj in itertools.product((1, 2, 3), *[(False, True)] * 3, (0, P))
]


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("options", GRID, ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items()))
def test_values_states_and_every_gradient_are_torchs(options: dict[str, Any], with_state: bool):
    ours, theirs = twins(**options)
    x = frames(theirs)
    assert_twins_agree(ours, theirs, x, {"x": x} | (state_for(theirs) if with_state else {}))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("steps", [1, 6])
def test_in_float32_they_agree_within_its_rounding(bidirectional: bool, steps: int):
    ours, theirs = twins(dtype=torch.float32, bidirectional=bidirectional)
    x = frames(theirs, steps, dtype=torch.float32)
    assert_twins_agree(ours, theirs, x, {"x": x} | state_for(theirs, dtype=torch.float32))
    with torch.no_grad():
        torch.testing.assert_close(ours(x)[0], theirs(x)[0], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("proj_size", [0, P])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_sequence_without_a_batch_axis(bidirectional: bool, batch_first: bool, proj_size: int):
    ours, theirs = twins(bidirectional=bidirectional, batch_first=batch_first, proj_size=proj_size)
    x = normal(T, I, seed=1).requires_grad_()
    state = {name: value.detach()[:, 0].requires_grad_() for name, value in state_for(theirs).items()}
    assert_twins_agree(ours, theirs, x, {"x": x} | state)
    assert_twins_agree(ours, theirs, x, {"x": x})


@pytest.mark.parametrize("batch_first", [False, True])
def test_no_rows_and_no_steps(batch_first: bool):
    ours, theirs = twins(bidirectional=True, batch_first=batch_first)
    x = frames(theirs, rows=0)
    assert_twins_agree(ours, theirs, x, {"x": x} | state_for(theirs, 0))
    given = state_for(theirs)
    with pytest.raises(RuntimeError, match="larger than 0"):
        theirs(frames(theirs, steps=0))
    output, (h, c) = ours(frames(theirs, steps=0), (given["h0"], given["c0"]))
    assert output.shape == ((B, 0, 2 * H) if batch_first else (0, B, 2 * H))
    assert torch.equal(h, given["h0"])
    assert torch.equal(c, given["c0"])


class TestPacked:
    @pytest.mark.parametrize("with_state", [False, True])
    @pytest.mark.parametrize("proj_size", [0, P])
    @pytest.mark.parametrize("bidirectional", [False, True])
    @pytest.mark.parametrize("lengths", [[6, 4, 3, 1], [3, 6, 1, 4], [6, 6, 6, 6], [5, 5, 5, 5], [1, 1, 1, 1]])
    def test_sorted_or_not(self, lengths: list[int], bidirectional: bool, proj_size: int, with_state: bool):
        ours, theirs = twins(bidirectional=bidirectional, proj_size=proj_size)
        x = frames(theirs)
        for enforce_sorted in (False, True) if lengths == sorted(lengths, reverse=True) else (False,):
            packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=enforce_sorted)
            assert_twins_agree(ours, theirs, packed, {"x": x} | (state_for(theirs) if with_state else {}))
            for got, expected in zip(ours(packed)[0][1:], theirs(packed)[0][1:], strict=True):
                assert (got is expected is None) or torch.equal(got, expected)

    def test_in_float32_and_unpacked_again(self):
        ours, theirs = twins(dtype=torch.float32, bidirectional=True, batch_first=True)
        x = frames(theirs, dtype=torch.float32)
        packed = pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
        assert_twins_agree(ours, theirs, packed, {"x": x} | state_for(theirs, dtype=torch.float32))
        got, lengths = pad_packed_sequence(ours(packed)[0], batch_first=True)
        assert torch.equal(lengths, LENGTHS)
        torch.testing.assert_close(got, ours(x, lengths=LENGTHS)[0], rtol=2e-5, atol=2e-5)

    def test_resets_are_in_the_rows_own_order(self):
        ours, _ = twins(batch_first=True)
        x, resets = frames(ours), torch.rand(B, T, generator=torch.Generator().manual_seed(5)) < 0.4
        packed = pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
        output, state = ours(packed, resets=resets)
        expected, expected_state = ours(x, resets=resets, lengths=LENGTHS)
        torch.testing.assert_close(pad_packed_sequence(output, batch_first=True)[0], expected, rtol=0, atol=1e-14)
        torch.testing.assert_close(state, expected_state, rtol=0, atol=1e-14)

    def test_lengths_beside_a_packed_input_are_refused(self):
        ours, _ = twins()
        with pytest.raises(TypeError, match="which has its rows' lengths: leave lengths out"):
            ours(pack_padded_sequence(frames(ours), LENGTHS, enforce_sorted=False), lengths=LENGTHS)


class TestMasks:
    @pytest.mark.parametrize("proj_size", [0, P])
    @pytest.mark.parametrize("batch_first", [False, True])
    def test_lengths_are_what_packing_would_say(self, batch_first: bool, proj_size: int):
        ours, theirs = twins(bidirectional=True, batch_first=batch_first, proj_size=proj_size)
        x, given = frames(theirs), state_for(theirs)
        hx = given["h0"], given["c0"]
        packed = pack_padded_sequence(x, LENGTHS, batch_first=batch_first, enforce_sorted=False)
        output, state = theirs(packed, hx)
        padded, _ = pad_packed_sequence(output, batch_first=batch_first)
        spoilt = x.detach().clone()
        for row, length in enumerate(LENGTHS):
            (spoilt if batch_first else spoilt.transpose(0, 1))[row, length:] = torch.nan
        got, got_state = ours(spoilt, hx, lengths=LENGTHS)
        torch.testing.assert_close(got, padded, rtol=0, atol=1e-13)
        torch.testing.assert_close(got_state, state, rtol=0, atol=1e-13)

    def test_a_row_without_steps_keeps_its_state(self):
        ours, _ = twins(bidirectional=True)
        given = state_for(ours)
        _, (h, c) = ours(frames(ours), (given["h0"], given["c0"]), lengths=torch.tensor([0, 6, 2, 0]))
        for value, before in ((h, given["h0"]), (c, given["c0"])):
            assert torch.equal(value[:, [0, 3]], before[:, [0, 3]])
            assert not torch.isclose(value[:, 1:3], before[:, 1:3]).any()

    @pytest.mark.parametrize("proj_size", [0, P])
    @pytest.mark.parametrize("length", [6, 5])
    def test_what_a_reset_separates_is_computed_apart_in_both_directions(self, length: int, proj_size: int):
        ours, theirs = twins(layers=1, bidirectional=True, batch_first=True, proj_size=proj_size)
        x = frames(theirs, rows=1)
        h0, c0 = (value[:, :1] for value in state_for(theirs).values())
        resets = torch.zeros(1, T, dtype=torch.bool)
        resets[0, 2] = resets[0, 3] = True
        got, state = ours(x, (h0, c0), resets=resets, lengths=torch.tensor([length]))
        # The given states belong to the first part forward, and to the last part backward.
        zero_h, zero_c = torch.zeros_like(h0[:1]), torch.zeros_like(c0[:1])
        first, first_state = theirs(x[:, :2], (torch.cat([h0[:1], zero_h]), torch.cat([c0[:1], zero_c])))
        middle, _ = theirs(x[:, 2:3])
        last, last_state = theirs(x[:, 3:length], (torch.cat([zero_h, h0[1:]]), torch.cat([zero_c, c0[1:]])))
        expected = torch.cat([first, middle, last], 1)
        torch.testing.assert_close(got[:, :length], expected, rtol=0, atol=1e-13)
        assert not got[:, length:].any()
        for value, ahead, back in zip(state, last_state, first_state, strict=True):
            torch.testing.assert_close(value, torch.cat([ahead[:1], back[1:]]), rtol=0, atol=1e-13)


class TestParameters:
    @pytest.mark.parametrize("options", GRID, ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items()))
    def test_the_same_draw_names_and_state_dict_both_ways(self, options: dict[str, Any]):
        torch.manual_seed(3)
        theirs = nn.LSTM(I, H, options["layers"], **{k: v for k, v in options.items() if k != "layers"})
        after = torch.rand(())
        torch.manual_seed(3)
        ours = LSTM(I, H, options["layers"], **{k: v for k, v in options.items() if k != "layers"})
        assert torch.equal(torch.rand(()), after)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        for name, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], value)
        assert [len(layer) for layer in ours.all_weights] == [len(layer) for layer in theirs.all_weights]
        assert repr(ours) == repr(theirs)
        theirs.load_state_dict(ours.state_dict(), strict=True)
        ours.load_state_dict(theirs.state_dict(), strict=True)

    def test_a_copy_computes_the_same_and_is_its_own(self):
        ours, _ = twins()
        x = frames(ours)
        before, twin = ours(x)[0], copy.deepcopy(ours)
        with torch.no_grad():
            ours.weight_hh_l1.zero_()
        assert torch.equal(twin(x)[0], before)
        assert not torch.equal(ours(x)[0], before)

    def test_to_another_dtype_and_a_parameter_put_in_another_ones_place(self):
        ours, theirs = twins()
        ours.float()
        x = frames(theirs)
        torch.testing.assert_close(ours(x.float())[0].double(), theirs(x)[0], rtol=1e-5, atol=1e-5)
        ours.double().load_state_dict(theirs.state_dict())
        ours.weight_hh_l0 = theirs.weight_hh_l0 = nn.Parameter(torch.zeros_like(theirs.weight_hh_l0))
        torch.testing.assert_close(ours(x)[0], theirs(x)[0], rtol=0, atol=1e-13)
        ours.flatten_parameters()

    def test_functional_call_in_another_dtype(self):
        ours, theirs = twins()
        x, single = frames(theirs), LSTM(I, H, 2)
        got = torch.func.functional_call(single, dict(ours.named_parameters()), (x,))[0]
        torch.testing.assert_close(got, theirs(x)[0], rtol=0, atol=1e-13)

    def test_a_weight_norm_is_read_at_every_call(self):
        ours, _ = twins(layers=1)
        x, before = frames(ours), ours(frames(ours))[0]
        nn.utils.parametrizations.weight_norm(ours, "weight_hh_l0")
        torch.testing.assert_close(ours(x)[0], before, rtol=0, atol=1e-13)
        with torch.no_grad():
            ours.parametrizations.weight_hh_l0.original0.zero_()
        assert not torch.isclose(ours(x)[0][1:], before[1:]).any()


class TestDropout:
    def test_of_zero_or_in_evaluation_nothing_is_dropped(self):
        ours, theirs = twins(layers=3, dropout=0.4)
        x = frames(theirs)
        torch.testing.assert_close(ours.eval()(x)[0], theirs.eval()(x)[0], rtol=0, atol=1e-13)
        ours, theirs = twins(layers=3, dropout=0.0)
        torch.testing.assert_close(ours.train()(x)[0], theirs.train()(x)[0], rtol=0, atol=1e-13)

    def test_it_lies_between_layers_and_not_behind_the_last(self):
        torch.manual_seed(0)
        wide = LSTM(I, 200, 2, dropout=0.25, dtype=F64)
        trace = wide.trace(normal(20, 8, I, seed=1))
        assert not (trace.output == 0).any()
        assert not (trace.layers[0].h == 0).any()  # the state is carried undropped
        dropped = LSTM(I, H, 2, dropout=1.0, dtype=F64)
        x = frames(dropped)
        alone = LSTM(H, H, 1, dtype=F64)
        alone.load_state_dict(
            {name.replace("l1", "l0"): value for name, value in dropped.state_dict().items() if "l1" in name}
        )
        torch.testing.assert_close(dropped(x)[0], alone(torch.zeros(T, B, H, dtype=F64))[0], rtol=0, atol=1e-13)

    def test_its_mean_and_spread_are_torchs(self):
        """The upper layer's pre-activations are linear in what is dropped: read off with tiny upper weights."""
        ours, theirs = twins(dropout=0.5)
        x = frames(theirs)
        draws = []
        for module in (ours, theirs):
            torch.manual_seed(1)
            with torch.no_grad():
                draws.append(torch.stack([module(x)[0][-1] for _ in range(1500)]))
        (mean, spread), (their_mean, their_spread) = ((d.mean(0), d.std(0)) for d in draws)
        error = (mean - their_mean).abs() / (their_spread / 1500**0.5)
        assert error.max() < 6
        assert (spread / their_spread - 1).abs().max() < 0.15
        assert spread.min() > 0.005

    def test_one_layer_with_dropout_warns_as_torch_does(self):
        with pytest.warns(UserWarning, match="num_layers greater than 1, but got dropout=0.5 and num_layers=1"):
            LSTM(I, H, dropout=0.5)


@pytest.mark.parametrize(
    "change",
    [
        {"input_size": 0},
        {"hidden_size": 0},
        {"hidden_size": 2.5},
        {"num_layers": 0},
        {"dropout": 1.5},
        {"dropout": True},
        {"bias": 1},
        {"batch_first": "yes"},
        {"proj_size": -1},
        {"proj_size": H},
    ],
)
def test_a_wrong_option_is_torchs_error(change: dict[str, Any]):
    options = {"input_size": I, "hidden_size": H} | change
    with pytest.raises((ValueError, TypeError)) as theirs:
        nn.LSTM(**options)
    with pytest.raises(theirs.type) as ours:
        LSTM(**options)
    assert str(ours.value) == str(theirs.value)
    assert inspect.signature(LSTM).parameters["input_size"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD


STATE = torch.zeros(2, B, H, dtype=F64)
X = torch.zeros(T, B, I, dtype=F64)


@pytest.mark.parametrize(
    "args",
    [
        (X[None],),
        (X[0, 0],),
        (X[..., :3],),
        (X.float(),),
        (X.long(),),
        (X, (STATE[:1], STATE)),
        (X, (STATE, STATE[:, :2])),
        (X, (STATE, STATE[..., :3])),
        (X, (STATE[:, 0], STATE[:, 0])),
        (X[:, 0], (STATE, STATE)),
        (X, (STATE.float(), STATE.float())),
        (X.to("meta"),),
    ],
)
def test_a_wrong_argument_is_an_error_of_torchs_type(args: tuple[Any, ...]):
    ours, theirs = twins()
    with pytest.raises((ValueError, RuntimeError)) as expected:
        theirs(*args)
    with pytest.raises(expected.type) as got:
        ours(*args)
    assert got.type is expected.type


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((X, STATE), r"hx is a tensor \[2, 4, 7\], expected a pair of tensors \(h_0, c_0\), or None for zeros"),
        ((X, (STATE,)), "hx is a tuple of 1, expected a pair"),
        ((X, 5), "hx is an int, expected a pair"),
        ((X.numpy(),), r"input is an ndarray, expected a tensor or a PackedSequence: torch.as_tensor\(input\)"),
    ],
)
def test_what_is_no_tensor_is_named(args: tuple[Any, ...], message: str):
    with pytest.raises(TypeError, match=message):
        twins()[0](*args)


def test_a_backend_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="is not one of"):
        LSTM(I, H, backend="cudnn")
    assert repr(LSTM(I, H, backend="portable", strict=True)) == "LSTM(5, 7, backend='portable', strict=True)"


def test_without_a_projection_nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LSTM(I, H, bidirectional=True)(torch.zeros(T, B, I))
