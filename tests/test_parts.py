import pytest
import torch
from torch import nn

from unrolled import LSTM, LanguageModel, LSTMLayer, ModelConfig, MultiLayerLSTM, Stepper, to_torch
from unrolled.parts import Runner, take_apart


def test_parts_of_each_kind_of_model():
    language, bare = LanguageModel(ModelConfig(9, 5, 2, embedding=3)), LanguageModel(ModelConfig(9, 5, embedding=0))
    for model, expected in (
        (language, (3, 9, 9, True)),
        (bare, (9, 9, 9, True)),
        (MultiLayerLSTM(4, 5, output_dim=7), (4, 4, 7, False)),
        (MultiLayerLSTM(4, 5, output_dim=None), (4, 4, 5, False)),
        (LSTMLayer(4, 5), (4, 4, 5, False)),
        (nn.LSTM(4, 5, 3), (4, 4, 5, False)),
    ):
        parts = take_apart(model)
        assert (parts.layers[0].input_dim, parts.vocabulary, parts.output, parts.ids_only) == expected
        assert parts.model is model
    assert take_apart(language).embedding is language.embedding
    assert take_apart(language).projection is language.lstm.proj


def test_weights_are_copies_with_the_gates_side_by_side(seed):
    model = MultiLayerLSTM(4, 5, 2)
    weights = take_apart(model).weights()
    w_x, w_h, bias = weights.layers[1]
    for k, gate in enumerate("ifgo"):
        assert torch.equal(w_x[:, k], getattr(model.layers[1], f"W_x{gate}"))
        assert torch.equal(w_h[:, k], getattr(model.layers[1], f"W_h{gate}"))
        assert torch.equal(bias[k], getattr(model.layers[1], f"b_{gate}"))
    everything = [tensor for layer in weights.layers for tensor in layer]
    everything += weights.projection
    assert not any(tensor.requires_grad for tensor in everything)
    with torch.no_grad():
        model.proj.weight.add_(1)
    assert torch.equal(weights.projection[0] + 1, model.proj.weight)


def test_weights_of_an_nn_lstm_are_those_of_the_stack_it_becomes(seed):
    stack = MultiLayerLSTM(4, 5, 2, output_dim=None)
    expected, found = take_apart(stack).weights(), take_apart(to_torch(stack)).weights()
    for ours, theirs in zip(expected.layers, found.layers, strict=True):
        assert all(map(torch.equal, ours, theirs))


def test_a_projection_without_bias_and_one_that_lies_transposed(seed):
    model = MultiLayerLSTM(4, 5)
    model.proj = nn.Linear(5, 4, bias=False)
    model.proj.weight = nn.Parameter(torch.randn(5, 4).t())
    x = torch.randn(3, 4)
    with torch.no_grad():
        expected = model(x[:, None])[0][:, 0]
    assert torch.allclose(Stepper(model, 3).step(x), expected, rtol=0, atol=1e-6)


class Loud(MultiLayerLSTM):
    """A subclass that computes what its parent does."""


class Doubled(MultiLayerLSTM):
    def forward(self, *args, **options):
        output, state = super().forward(*args, **options)
        return 2 * output, state


class Twice(LSTMLayer):
    def forward(self, *args, **options):
        return tuple(2 * value for value in super().forward(*args, **options))


def with_layer(layer):
    model = MultiLayerLSTM(4, 5, 2)
    model.layers[1] = layer
    return model


def with_projection(projection):
    model = MultiLayerLSTM(4, 5, 2)
    model.proj = projection
    return model


def with_forward():
    model = LanguageModel(ModelConfig(9, 5))
    model.forward = lambda ids: ids
    return model


def with_part(model, name, dtype):
    model.get_submodule(name).to(dtype)
    return model


def with_embedding(embedding):
    model = LanguageModel(ModelConfig(9, 5, embedding=4))
    model.embedding = embedding
    return model


def with_dropout(module):
    model = MultiLayerLSTM(4, 5)
    model.dropout = module
    return model


class Scaled(nn.Embedding):
    def forward(self, ids):
        return 2 * super().forward(ids)


def test_a_subclass_that_computes_the_same_is_taken():
    assert take_apart(Loud(4, 5)).output == 4
    assert take_apart(with_dropout(nn.Identity())).output == 4


def test_sentences_are_about_who_is_to_run_it():
    runner = Runner("a toaster", "toast({})", any_weights=True)
    assert take_apart(MultiLayerLSTM(4, 5, dtype=torch.float64), runner).output == 4
    for made, message in (
        (Doubled(4, 5), "a toaster computes what MultiLayerLSTM.forward does"),
        (with_layer(LSTMLayer(5, 6)), "a toaster's layers have one hidden width; toast(model.layers[1]) runs this"),
        (nn.Sequential(nn.LSTM(4, 5)), 'it holds one: toast(model.get_submodule("0"))'),
        (with_embedding(nn.Embedding(9, 4, max_norm=1.0)), "a toaster reads them as they are"),
    ):
        with pytest.raises((TypeError, ValueError)) as caught:
            take_apart(made, runner)
        assert message in str(caught.value)


MISTAKES = {
    "a GRU": (
        lambda: nn.GRU(4, 5),
        TypeError,
        "model is of type GRU, expected a MultiLayerLSTM, LanguageModel, LSTMLayer, unrolled.LSTM or torch.nn.LSTM",
    ),
    "None": (
        lambda: None,
        TypeError,
        "model is of type NoneType, expected a MultiLayerLSTM, LanguageModel, LSTMLayer, unrolled.LSTM or "
        "torch.nn.LSTM",
    ),
    "a cell": (
        lambda: nn.LSTMCell(4, 5),
        TypeError,
        "model is of type LSTMCell, expected a MultiLayerLSTM, LanguageModel, LSTMLayer, unrolled.LSTM or "
        "torch.nn.LSTM; an LSTMCell is the layer unrolled.from_torch(model)",
    ),
    "something around it": (
        lambda: nn.Sequential(nn.ReLU(), nn.LSTM(4, 5)),
        TypeError,
        "model is of type Sequential, expected a MultiLayerLSTM, LanguageModel, LSTMLayer, unrolled.LSTM or "
        'torch.nn.LSTM; it holds one: Stepper(model.get_submodule("1"), ...)',
    ),
    "float64": (
        lambda: MultiLayerLSTM(4, 5, dtype=torch.float64),
        TypeError,
        "layers.0.W_xf is float64, but a stepper runs float32 models: copy.deepcopy(model).float(); to keep weights "
        'small, give the stepper weights="bfloat16" or "int8"',
    ),
    "one layer in bfloat16": (
        lambda: with_part(MultiLayerLSTM(4, 5, 2), "layers.1", torch.bfloat16),
        TypeError,
        "layers.1.W_xf is bfloat16, but a stepper runs float32 models: copy.deepcopy(model).float(); to keep weights "
        'small, give the stepper weights="bfloat16" or "int8"',
    ),
    "another device": (
        lambda: nn.LSTM(4, 5, device="meta"),
        ValueError,
        "weight_ih_l0 is on meta, but a stepper runs on the CPU: model.cpu()",
    ),
    "a stack of its own": (
        lambda: Doubled(4, 5),
        TypeError,
        "the model's Doubled has a forward of its own, and a stepper computes what MultiLayerLSTM.forward does",
    ),
    "a forward of an instance": (
        with_forward,
        TypeError,
        "the model's LanguageModel has a forward of its own, and a stepper computes what LanguageModel.forward does",
    ),
    "a layer of its own": (
        lambda: with_layer(Twice(5, 5)),
        TypeError,
        "the model's Twice has a forward of its own, and a stepper computes what LSTMLayer.forward does",
    ),
    "another layer": (
        lambda: with_layer(nn.Linear(5, 5)),
        TypeError,
        "the model's Linear is no LSTMLayer, and a stepper computes what LSTMLayer.forward does",
    ),
    "another projection": (
        lambda: with_projection(nn.Sequential(nn.Linear(5, 4))),
        TypeError,
        "the model's Sequential is no Linear, and a stepper computes what Linear.forward does",
    ),
    "another embedding": (
        lambda: with_embedding(Scaled(9, 4)),
        TypeError,
        "the model's Scaled has a forward of its own, and a stepper computes what Embedding.forward does",
    ),
    "rows that are shortened": (
        lambda: with_embedding(nn.Embedding(9, 4, max_norm=0.5)),
        ValueError,
        "the embedding has max_norm=0.5, which shortens rows as they are read, and a stepper reads them as they are: "
        "shorten them all, then model.embedding.max_norm = None",
    ),
    "a norm in place of the dropout": (
        lambda: with_dropout(nn.LayerNorm(5)),
        TypeError,
        "the model's LayerNorm is no Dropout, and a stepper computes what Dropout.forward does",
    ),
    "layers of several widths": (
        lambda: with_layer(LSTMLayer(5, 6)),
        ValueError,
        "layer 1 has input_dim=5 and hidden_dim=6, expected 5 and 5: a stepper's layers have one hidden width; "
        "Stepper(model.layers[1], ...) runs this one alone",
    ),
    "two directions": (
        lambda: nn.LSTM(4, 5, bidirectional=True),
        ValueError,
        "LSTM is bidirectional: its backward layers begin at a sequence's end, so nothing can go on from the state "
        "that they leave; a stepper takes models with bidirectional=False",
    ),
    "a projection of h": (
        lambda: LSTMLayer(4, 5, proj_dim=3),
        ValueError,
        "h is projected to 3 numbers in every step, which a stepper does not do: call the model for each step, with "
        "the state that it returned for the one before",
    ),
    "a drop-in of two directions": (
        lambda: LSTM(4, 5, 2, bidirectional=True),
        ValueError,
        "LSTM is bidirectional: its backward layers begin at a sequence's end, so nothing can go on from the state "
        "that they leave; a stepper takes models with bidirectional=False",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_a_stepper_cannot_run_is_refused(mistake):
    made, error, message = MISTAKES[mistake]
    with pytest.raises(error) as caught:
        Stepper(made(), 1)
    assert str(caught.value) == message
