"""A model taken apart into what one time step goes through: embedding, layers, projection."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .cell_options import IN_THE_CELL
from .drop_in import LSTM
from .interop import from_torch
from .layer import LSTMLayer
from .model import LanguageModel
from .own_cell import name_of
from .recurrence.step import LayerWeights, StackWeights
from .stack import MultiLayerLSTM
from .state import LSTMState, check_carried

Steppable = MultiLayerLSTM | LanguageModel | LSTMLayer | LSTM | nn.LSTM
_CLASSES = (LanguageModel, MultiLayerLSTM, LSTMLayer, LSTM, nn.LSTM)


class Parts(NamedTuple):
    """What a step goes through, bottom first, and the module that it all belongs to.

    `layers` are in the order of the state's first axis: with two `directions`, a backward one behind each forward one.
    `residual`: as in `MultiLayerLSTM`.
    """

    model: nn.Module
    embedding: nn.Embedding | None
    layers: tuple[LSTMLayer, ...]
    projection: nn.Linear | None
    directions: int = 1
    residual: bool = False

    @property
    def ids_only(self) -> bool:
        return isinstance(self.model, LanguageModel)

    @property
    def vocabulary(self) -> int:
        """How many ids there are: tokens, or columns of a one-hot input."""
        return self.layers[0].input_dim if self.embedding is None else self.embedding.num_embeddings

    @property
    def output(self) -> int:
        return self.directions * self.layers[0].h_dim if self.projection is None else self.projection.out_features

    def initial_state(self) -> LSTMState:
        """Of one row, detached: what a sequence begins with."""
        with torch.no_grad():
            h, c = zip(*(layer.initial_state(1) for layer in self.layers), strict=True)
            return LSTMState(torch.stack(h), torch.stack(c))

    def weights(self) -> StackWeights:
        """Copies of all weights, gates side by side."""
        with torch.inference_mode(False), torch.no_grad():
            layers = tuple(LayerWeights(*layer._weights()) for layer in self.layers)
            embedding = None if self.embedding is None else self.embedding.weight.clone()
            changed = any(layer.options.changed(IN_THE_CELL) for layer in self.layers)
            cells = tuple(layer._cell() for layer in self.layers) if changed else ()
            return StackWeights(layers, _projection(self.projection), embedding, cells, self.residual)


class Runner(NamedTuple):
    """Who is to run the parts, for the sentences; `call` with a model in its braces gives it one."""

    noun: str
    call: str
    any_weights: bool = False
    any_structure: bool = False
    # The options of a cell that it computes.
    cell: tuple[str, ...] = ()


STEPPER = Runner("a stepper", "Stepper({}, ...)", cell=IN_THE_CELL)


def take_apart(model: Steppable, runner: Runner = STEPPER) -> Parts:
    """The parts of `model`; of an `nn.LSTM` or `unrolled.LSTM`, those of the stack that `from_torch` makes of it now.

    Raises TypeError for another class, for one that computes something of its own and, unless the runner takes
    `any_weights`, for weights that are not float32; ValueError for weights that are not on the CPU, for layers of
    several widths, for options of a cell that the runner does not compute and, unless it takes `any_structure`, for
    backward layers and a projection of h.
    """
    if not isinstance(model, _CLASSES):
        raise _wrong_class(model, runner)
    if not runner.any_weights:
        _check_weights(model)
    if isinstance(model, nn.LSTM | LSTM):
        _check_forward(model, LSTM if isinstance(model, LSTM) else nn.LSTM, runner)
        # Dropout between layers, which from_torch asks about, plays no part in evaluation.
        return _parts(model, None, from_torch(model, dropout=0.0), runner)
    if isinstance(model, LSTMLayer):
        _check_forward(model, LSTMLayer, runner)
        _check_structure(model, (model,), runner)
        return Parts(model, None, (model,), None)
    if isinstance(model, LanguageModel):
        _check_forward(model, LanguageModel, runner)
        if model.embedding is not None:
            _check_embedding(model.embedding, runner)
    stack = model.lstm if isinstance(model, LanguageModel) else model
    _check_forward(stack, MultiLayerLSTM, runner)
    # An Identity is what people put in a dropout's place for evaluation.
    if not isinstance(stack.dropout, nn.Identity):
        _check_forward(stack.dropout, nn.Dropout, runner)
    if stack.proj is not None:
        _check_forward(stack.proj, nn.Linear, runner)
    return _parts(model, model.embedding if isinstance(model, LanguageModel) else None, stack, runner)


def _parts(model: nn.Module, embedding: nn.Embedding | None, stack: MultiLayerLSTM, runner: Runner) -> Parts:
    lists = [stack.layers] if stack.reverse_layers is None else [stack.layers, stack.reverse_layers]
    layers = tuple(cast(LSTMLayer, layer) for both in zip(*lists, strict=True) for layer in both)
    _check_layers(layers, len(lists), runner)
    _check_structure(stack if isinstance(model, LanguageModel) else model, layers, runner)
    return Parts(model, embedding, layers, stack.proj, len(lists), stack.residual)


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


def _check_structure(model: nn.Module, layers: tuple[LSTMLayer, ...], runner: Runner) -> None:
    for layer in layers:
        if layer.cell is not None:
            raise TypeError(
                f"a layer has a cell of its own, {name_of(layer.cell)}, and {runner.noun} computes LSTMLayer's: call "
                "the model for each step, with the state that it returned for the one before"
            )
        if changed := layer.options.changed(tuple(name for name in IN_THE_CELL if name not in runner.cell)):
            raise ValueError(
                f"a layer has {changed}, which {runner.noun} does not compute: build the model without, or run it in "
                "torch"
            )
    if runner.any_structure:
        return
    check_carried(model, runner.noun)
    if layers[0].proj_dim is not None:
        raise ValueError(
            f"h is projected to {layers[0].proj_dim} numbers in every step, which {runner.noun} does not do: call the "
            "model for each step, with the state that it returned for the one before"
        )


def _check_layers(layers: tuple[LSTMLayer, ...], directions: int, runner: Runner) -> None:
    for n, layer in enumerate(layers):
        _check_forward(layer, LSTMLayer, runner)
        k, hidden, width = n // directions, layers[0].hidden_dim, layers[0].h_dim
        expected = (directions * width if k else layers[0].input_dim, hidden, width)
        if (layer.input_dim, layer.hidden_dim, layer.h_dim) != expected:
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
    elif isinstance(model, nn.Module):
        inside = [path for path, part in model.named_modules() if isinstance(part, _CLASSES)]
        if inside:
            holder = f'model.get_submodule("{inside[0]}")'
            hint = f"; it holds one: {runner.call.format(holder)}"
    return TypeError(
        f"model is of type {type(model).__name__}, expected a MultiLayerLSTM, LanguageModel, LSTMLayer, "
        f"unrolled.LSTM or torch.nn.LSTM{hint}"
    )
