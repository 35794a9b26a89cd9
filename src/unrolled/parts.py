"""A model taken apart into what one time step goes through: embedding, layers, projection."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .interop import from_torch
from .layer import GATES, LSTMLayer
from .model import LanguageModel
from .recurrence.step import LayerWeights, StackWeights
from .stack import MultiLayerLSTM

Steppable = MultiLayerLSTM | LanguageModel | LSTMLayer | nn.LSTM
_CLASSES = (LanguageModel, MultiLayerLSTM, LSTMLayer, nn.LSTM)


class Parts(NamedTuple):
    """What a step goes through, bottom first, and the module that it all belongs to."""

    model: nn.Module
    embedding: nn.Embedding | None
    layers: tuple[LSTMLayer, ...]
    projection: nn.Linear | None

    @property
    def ids_only(self) -> bool:
        return isinstance(self.model, LanguageModel)

    @property
    def vocabulary(self) -> int:
        """How many ids there are: tokens, or columns of a one-hot input."""
        return self.layers[0].input_dim if self.embedding is None else self.embedding.num_embeddings

    @property
    def output(self) -> int:
        return self.layers[0].hidden_dim if self.projection is None else self.projection.out_features

    def weights(self) -> StackWeights:
        """Copies of all weights, gates side by side."""
        with torch.inference_mode(False), torch.no_grad():
            layers = tuple(
                LayerWeights(*(torch.stack([getattr(layer, f"{kind}{gate}") for gate in GATES], -2) for kind in _KINDS))
                for layer in self.layers
            )
            embedding = None if self.embedding is None else self.embedding.weight.clone()
            return StackWeights(layers, _projection(self.projection), embedding)


_KINDS = ("W_x", "W_h", "b_")


class Runner(NamedTuple):
    """Who is to run the parts, for the sentences; `call` with a model in its braces gives it one."""

    noun: str
    call: str
    any_weights: bool = False


STEPPER = Runner("a stepper", "Stepper({}, ...)")


def take_apart(model: Steppable, runner: Runner = STEPPER) -> Parts:
    """The parts of `model`; of an `nn.LSTM`, those of the stack that `from_torch` makes of it now.

    Raises TypeError for another class, for one that computes something of its own and, unless the runner takes
    `any_weights`, for weights that are not float32; ValueError for weights that are not on the CPU and for layers of
    several widths.
    """
    if not isinstance(model, _CLASSES):
        raise _wrong_class(model, runner)
    if not runner.any_weights:
        _check_weights(model)
    if isinstance(model, nn.LSTM):
        _check_forward(model, nn.LSTM, runner)
        # Dropout between layers, which from_torch asks about, plays no part in evaluation.
        return Parts(model, None, _layers(from_torch(model, dropout=0.0)), None)
    if isinstance(model, LSTMLayer):
        _check_forward(model, LSTMLayer, runner)
        return Parts(model, None, (model,), None)
    if isinstance(model, LanguageModel):
        _check_forward(model, LanguageModel, runner)
        if model.embedding is not None:
            _check_embedding(model.embedding, runner)
    stack = model.lstm if isinstance(model, LanguageModel) else model
    _check_forward(stack, MultiLayerLSTM, runner)
    layers = _layers(stack)
    _check_layers(layers, runner)
    # An Identity is what people put in a dropout's place for evaluation.
    if not isinstance(stack.dropout, nn.Identity):
        _check_forward(stack.dropout, nn.Dropout, runner)
    if stack.proj is not None:
        _check_forward(stack.proj, nn.Linear, runner)
    return Parts(model, model.embedding if isinstance(model, LanguageModel) else None, layers, stack.proj)


def _layers(stack: MultiLayerLSTM) -> tuple[LSTMLayer, ...]:
    return tuple(cast(list[LSTMLayer], list(stack.layers)))


def _projection(projection: nn.Linear | None) -> tuple[Tensor, Tensor] | None:
    if projection is None:
        return None
    weight = projection.weight
    bias = weight.new_zeros(weight.shape[0]) if projection.bias is None else projection.bias
    return weight.clone(memory_format=torch.contiguous_format), bias.clone()


def _check_weights(model: nn.Module) -> None:
    for name, weight in model.named_parameters():
        if weight.device.type != "cpu":
            raise ValueError(f"{name} is on {weight.device}, but a stepper runs on the CPU: model.cpu()")
        if weight.dtype != torch.float32:
            raise TypeError(
                f"{name} is {str(weight.dtype).removeprefix('torch.')}, but a stepper runs float32 models: "
                'copy.deepcopy(model).float(); to keep weights small, give the stepper weights="bfloat16" or "int8"'
            )


def _check_layers(layers: tuple[LSTMLayer, ...], runner: Runner) -> None:
    for k, layer in enumerate(layers):
        _check_forward(layer, LSTMLayer, runner)
        hidden = layers[0].hidden_dim
        expected = (layers[0].input_dim if k == 0 else hidden, hidden)
        if (layer.input_dim, layer.hidden_dim) != expected:
            raise ValueError(
                f"layer {k} has input_dim={layer.input_dim} and hidden_dim={layer.hidden_dim}, expected {expected[0]} "
                f"and {expected[1]}: {runner.noun}'s layers have one hidden width; "
                f"{runner.call.format(f'model.layers[{k}]')} runs this one alone"
            )


def _check_embedding(embedding: nn.Embedding, runner: Runner) -> None:
    _check_forward(embedding, nn.Embedding, runner)
    if embedding.max_norm is not None:
        raise ValueError(
            f"the embedding has max_norm={embedding.max_norm}, which shortens rows as they are read, and "
            f"{runner.noun} reads them as they are: shorten them all, then model.embedding.max_norm = None"
        )


def _check_forward(module: nn.Module, wanted: type[nn.Module], runner: Runner) -> None:
    """The runner has the class's equations, so a module that computes another thing must not be taken for it."""
    own = "forward" in vars(module) or (isinstance(module, wanted) and type(module).forward is not wanted.forward)
    if own or not isinstance(module, wanted):
        does = "has a forward of its own" if own else f"is no {wanted.__name__}"
        what = f"what {wanted.__name__}.forward does"
        raise TypeError(f"the model's {type(module).__name__} {does}, and {runner.noun} computes {what}")


def _wrong_class(model: Any, runner: Runner) -> TypeError:
    hint = ""
    if isinstance(model, nn.LSTMCell):
        hint = "; an LSTMCell is the layer unrolled.from_torch(model)"
    elif isinstance(model, nn.RNNBase) and model.mode == "LSTM":
        hint = "; this one is the library's: give its sizes and its state_dict to a torch.nn.LSTM"
    elif isinstance(model, nn.Module):
        inside = [path for path, part in model.named_modules() if isinstance(part, _CLASSES)]
        if inside:
            holder = f'model.get_submodule("{inside[0]}")'
            hint = f"; it holds one: {runner.call.format(holder)}"
    return TypeError(
        f"model is of type {type(model).__name__}, expected a MultiLayerLSTM, LanguageModel, LSTMLayer or "
        f"torch.nn.LSTM{hint}"
    )
