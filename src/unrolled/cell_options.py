"""What may be otherwise in a layer: the keywords of its constructor, checked, and what each of them is."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, TypedDict

_CHOICES = {
    "gate_activation": ("sigmoid", "hard_sigmoid"),
    "activation": ("tanh", "relu"),
    "recurrent_init": ("xavier", "orthogonal"),
}


class LayerKeywords(TypedDict, total=False):
    """The keywords of `LayerOptions`, for the constructors that pass them on."""

    peephole: bool
    coupled: bool
    gate_activation: str
    activation: str
    cell_clip: float | None
    bias: bool
    forget_bias: float | None
    recurrent_init: str
    learn_initial_state: bool
    layer_norm: bool
    zoneout: float | tuple[float, float]
    recurrent_dropout: float
    variational_dropout: float
    weight_drop: float


@dataclass(frozen=True, kw_only=True)
class LayerOptions:
    """How a layer differs from the plain LSTM, which is what these defaults say.

    - `peephole`: the gates see the cell. i and f take p_i * c_{t-1} and p_f * c_{t-1} besides, o takes p_o * c_t, with
      vectors p_i, p_f, p_o [hidden] that start at 0 (Gers & Schmidhuber, "Recurrent Nets that Time and Count", 2000).
    - `coupled`: f = 1 - i, what is forgotten makes room for what is written; no `W_xf`, `W_hf`, `b_f` (Greff et al.,
      "LSTM: A Search Space Odyssey", 2017). A peephole then has no `p_f` either.
    - `gate_activation`: of i, f and o: "sigmoid", or "hard_sigmoid", x / 6 + 1/2 within 0..1, as torch's.
    - `activation`: of g and of c on its way to h: "tanh", or "relu", max(x, 0).
    - `cell_clip`: c_t is kept within -cell_clip..cell_clip, before o and h see it (Sak, Senior & Beaufays, "Long
      Short-Term Memory Recurrent Neural Network Architectures for Large Scale Acoustic Modeling", 2014, clip so). Where
      it reached a bound no gradient passes.
    - `bias` False: no `b_*`.
    - `forget_bias`: where `b_f` starts, 0 if None (Gers, Schmidhuber & Cummins, "Learning to Forget", 2000; Jozefowicz,
      Zaremba & Sutskever, "An Empirical Exploration of Recurrent Network Architectures", 2015).
    - `recurrent_init`: of each `W_h*`: "xavier" (Glorot & Bengio 2010) or "orthogonal" (Saxe, McClelland & Ganguli,
      "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks", 2014).
    - `learn_initial_state`: parameters `h_init` and `c_init`, zeros at first, are h and c before a sequence's first
      step: where no state is given, and after each reset, which begins a new sequence. Zeros that are given stay zeros.
    - `layer_norm`: for each gate the sum x_t W_x + h_{t-1} W_h, and c_t on its way to h, are normalised over the units
      of a row: (a - mean) / sqrt(variance + 1e-5), times a gain `gain_*` [hidden], which starts at 1, plus the shift
      `b_*` (Ba, Kiros & Hinton, "Layer Normalization", 2016). So there are `gain_c` and `b_c`, too. It is c itself that
      the next step gets, and peepholes and `cell_clip` see; peepholes join behind the normalisation.

    In training mode the following draw masks: in each call anew, from one seed that torch's generator gives. p is from
    0 to below 1, and counts in steps of 2^-16. In evaluation the last three do nothing.

    - `zoneout`: p of h and of c, or (p_h, p_c): with probability p a unit keeps its value, h_t = h_{t-1} and
      c_t = c_{t-1}; o and h see the c_t that was not held. In evaluation the expectation, p h_{t-1} + (1 - p) h_t and
      likewise c (Krueger et al., "Zoneout: Regularizing RNNs by Randomly Preserving Hidden Activations", 2017).
    - `recurrent_dropout`: c_t takes in i * g / (1 - p), or with probability p nothing (Semeniuta, Severyn & Barth,
      "Recurrent Dropout without Memory Loss", 2016).
    - `variational_dropout`: x_t and h_{t-1} are multiplied, on their way into W_x and W_h, by 0 with probability p,
      else by 1 / (1 - p): one mask for each of the two and each row, in all steps of a call (Gal & Ghahramani, "A
      Theoretically Grounded Application of Dropout in Recurrent Neural Networks", 2016).
    - `weight_drop`: every weight in `W_h*` is 0 with probability p, else multiplied by 1 / (1 - p), for a whole call
      (Merity, Keskar & Socher, "Regularizing and Optimizing LSTM Language Models", 2018).

    Raises TypeError for values of another type, ValueError for values that are none of these, and for options that
    exclude each other.
    """

    peephole: bool = False
    coupled: bool = False
    gate_activation: str = "sigmoid"
    activation: str = "tanh"
    cell_clip: float | None = None
    bias: bool = True
    forget_bias: float | None = None
    recurrent_init: str = "xavier"
    learn_initial_state: bool = False
    layer_norm: bool = False
    zoneout: float | tuple[float, float] = 0.0
    recurrent_dropout: float = 0.0
    variational_dropout: float = 0.0
    weight_drop: float = 0.0

    def __post_init__(self) -> None:
        for name, value in self.keywords().items():
            if isinstance(DEFAULTS[name], bool) and not isinstance(value, bool):
                raise TypeError(f"{name} must be true or false, got {value!r}")
        for name in ("cell_clip", "forget_bias"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise TypeError(f"{name} must be a number, got {value!r}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(map(repr, choices))}")
        if self.cell_clip is not None and not 0 < self.cell_clip < math.inf:
            raise ValueError(f"cell_clip={self.cell_clip} must be above 0 and finite, or None: c has no bounds")
        for name, missing in (("coupled", self.coupled), ("bias", not self.bias)):
            if self.forget_bias and missing:
                raise ValueError(
                    f"forget_bias={self.forget_bias} is where b_f starts, and with {name}={getattr(self, name)} there "
                    "is none: leave forget_bias out"
                )
        self._check_probabilities()

    @property
    def zoneouts(self) -> tuple[float, float]:
        """Of h and of c."""
        return (self.zoneout, self.zoneout) if isinstance(self.zoneout, int | float) else self.zoneout

    @property
    def draws(self) -> bool:
        """Whether training draws masks."""
        return any((*self.zoneouts, self.recurrent_dropout, self.variational_dropout, self.weight_drop))

    def _check_probabilities(self) -> None:
        if not isinstance(self.zoneout, int | float):
            if not isinstance(self.zoneout, tuple | list):
                raise TypeError(f"zoneout must be a number or a pair of numbers, got {self.zoneout!r}")
            # JSON has no tuples.
            object.__setattr__(self, "zoneout", tuple(self.zoneout))
            if len(self.zoneouts) != 2:
                raise ValueError(f"zoneout={self.zoneout} must be one number, of h and c alike, or a pair (of h, of c)")
        given: dict[str, tuple[Any, ...]] = {
            "zoneout": self.zoneouts,
            **{name: (getattr(self, name),) for name in IN_TRAINING},
        }
        for name, probabilities in given.items():
            if any(isinstance(p, bool) or not isinstance(p, int | float) for p in probabilities):
                raise TypeError(f"{name} must be a number, got {getattr(self, name)!r}")
            if not all(0 <= p < 1 for p in probabilities):
                raise ValueError(f"{name}={getattr(self, name)} must be a probability from 0 to below 1")

    def keywords(self) -> dict[str, Any]:
        """What a layer's constructor takes, also of a class with further fields."""
        return {each.name: getattr(self, each.name) for each in fields(LayerOptions)}

    def changed(self, among: tuple[str, ...] | None = None) -> str:
        """Those that are not the default, as they would be written, of all or `among` some; "" where there are none."""
        names = [each.name for each in fields(self) if getattr(self, each.name) != each.default]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names if among is None or name in among)


DEFAULTS = {each.name: each.default for each in fields(LayerOptions)}
# What plays a part in training alone: a model that is trained on may have other ones.
IN_TRAINING = ("recurrent_dropout", "variational_dropout", "weight_drop")
# What a recurrence in evaluation has to be told of; of the others it sees the weights alone.
IN_THE_CELL = ("peephole", "gate_activation", "activation", "cell_clip", "layer_norm", "zoneout")
# What another library's layer has no place for.
IN_THE_LAYER = (*IN_THE_CELL, "coupled", "bias", "learn_initial_state", *IN_TRAINING)
