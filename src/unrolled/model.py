"""LanguageModel: ids in, one row of logits over the vocabulary out for each of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cell_options import DEFAULTS, LayerOptions
from .edits import Edit
from .stack import MultiLayerLSTM, Trace
from .state import LSTMState

# The fields of a configuration that make a model's layers other than the plain LSTM's.
OPTIONS = ("proj_dim", "residual", *DEFAULTS)
_EMBEDDED_IDS = (torch.int32, torch.int64, torch.uint8)


@dataclass(frozen=True)
class ModelConfig(LayerOptions):
    """A language model's sizes, and by the names of `LayerOptions` what is otherwise in its layers.

    `embedding` 0 means none: ids go into the first layer as one-hot rows. `forget_bias` None is 1 here, where there is
    a `b_f`. `proj_dim` and `residual` are those of `MultiLayerLSTM`.

    `tie_weights`: embedding and projection are one matrix (Press and Wolf 2017; Inan et al. 2017), so `embedding` is
    as wide as h: `hidden`, or `proj_dim`.
    """

    vocabulary: int
    hidden: int = 256
    layers: int = 2
    embedding: int = 64
    dropout: float = 0.0
    embedding_dropout: float = 0.0
    tie_weights: bool = False
    proj_dim: int | None = None
    residual: bool = False

    @property
    def h_dim(self) -> int:
        """The width of h."""
        return self.hidden if self.proj_dim is None else self.proj_dim

    def as_dict(self) -> dict[str, Any]:
        """Plain values by field; of the layers' options those alone that are not the plain LSTM's."""
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in OPTIONS or value != getattr(ModelConfig, name)
        }

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("vocabulary", 1), ("hidden", 1), ("layers", 1), ("embedding", 0), ("proj_dim", 1)):
            value = getattr(self, name)
            if value is None and name == "proj_dim":
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an integer, got {value!r}")
            if value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        for name, dropped in (("dropout", "h"), ("embedding_dropout", "the embedding's output")):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise TypeError(f"{name} must be a number, got {value!r}")
            if not 0 <= value < 1:
                raise ValueError(
                    f"{name}={value} must be at least 0 and below 1: the share of {dropped} that is dropped"
                )
        if self.embedding_dropout and not self.embedding:
            raise ValueError(f"embedding_dropout={self.embedding_dropout} needs an embedding, and embedding is 0")
        for name in ("tie_weights", "residual"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if self.tie_weights and self.embedding != self.h_dim:
            width = "hidden" if self.proj_dim is None else "proj_dim"
            raise ValueError(
                f"tie_weights makes embedding and projection one matrix, as wide as h: embedding={self.embedding} must "
                f"be {width}={self.h_dim}"
            )


class LanguageModel(nn.Module):
    """A stack between an optional embedding and logits over the vocabulary.

    Forget biases start at 1 unless the configuration says otherwise, so that an untrained cell remembers (Gers et al.
    2000; Jozefowicz et al. 2015); the bare `LSTMLayer` starts them at 0. `dropout` is the stack's, between layers and
    before the projection; `embedding_dropout` lies behind the embedding.

    Of tied weights `embedding.weight` is `lstm.proj.weight`, drawn as a projection is; `state_dict` has it once, by the
    latter name, and after `load_state_dict`, `assign=True` included, it is one again.
    """

    embedding: nn.Embedding | None

    def __init__(
        self, config: ModelConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.embedding = (
            nn.Embedding(config.vocabulary, config.embedding, device=device, dtype=dtype) if config.embedding else None
        )
        self.lstm = MultiLayerLSTM(
            config.embedding or config.vocabulary,
            config.hidden,
            config.layers,
            config.dropout,
            output_dim=config.vocabulary,
            proj_dim=config.proj_dim,
            residual=config.residual,
            device=device,
            dtype=dtype,
            **_options(config),
        )
        if config.tie_weights:
            self._tie()
            self.register_state_dict_post_hook(_leave_out_the_copy)  # type: ignore[no-untyped-call]
            self.register_load_state_dict_pre_hook(_put_in_the_copy)  # type: ignore[no-untyped-call]
            self.register_load_state_dict_post_hook(_tie_again)  # type: ignore[no-untyped-call]

    def reset_parameters(self) -> None:
        """Draw every parameter anew, in the constructor's order."""
        if self.embedding is not None:
            self.embedding.reset_parameters()
        self.lstm.reset_parameters()

    def zero_state(self, batch: int) -> LSTMState:
        """Zeros [layers, batch, hidden] on the weights' device and in their dtype."""
        return self.lstm.zero_state(batch)

    def initial_state(self, batch: int) -> LSTMState:
        """The state before a text's first token: zeros, or the learned one."""
        return self.lstm.initial_state(batch)

    def forward(
        self,
        ids: Tensor,
        state: LSTMState | tuple[Tensor, Tensor] | None = None,
        *,
        resets: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, LSTMState]:
        """Logits [batch, time, vocabulary], row t those of the token after `ids[:, t]`, and the state after the last.

        `ids` [batch, time] int32, int64 or uint8; the other arguments are those of `MultiLayerLSTM`. TypeError for
        floats, IndexError for ids outside the vocabulary.
        """
        logits, after = self.lstm(self._inputs(ids, lengths), state, resets=resets, lengths=lengths)
        return logits, after

    def trace(
        self,
        ids: Tensor,
        state: LSTMState | tuple[Tensor, Tensor] | None = None,
        *,
        resets: Tensor | None = None,
        lengths: Tensor | None = None,
        edit: Edit | None = None,
    ) -> Trace:
        """`forward`, opened: the same computation with every layer's h, c and gates. Arguments as there.

        `edit`: as in `MultiLayerLSTM.trace`, changes values as they are made.
        """
        return self.lstm.trace(self._inputs(ids, lengths), state, resets=resets, lengths=lengths, edit=edit)

    def extra_repr(self) -> str:
        return f"vocabulary={self.config.vocabulary}"

    def _tie(self) -> None:
        assert self.embedding is not None, "a tied model has an embedding"
        assert self.lstm.proj is not None, "a language model has a projection"
        self.embedding.weight = self.lstm.proj.weight

    def _inputs(self, ids: Tensor, lengths: Tensor | None) -> Tensor:
        if not isinstance(ids, Tensor):
            raise TypeError(f"ids is a {type(ids).__name__}, expected integers [batch, time]: torch.tensor(ids)")
        if ids.dtype not in _EMBEDDED_IDS:
            dtype = str(ids.dtype).removeprefix("torch.")
            raise TypeError(
                f"a language model reads token ids, int32, int64 or uint8 [batch, time], and got {dtype} "
                f"{list(ids.shape)}: ids.long(); frames of floats go into model.lstm"
            )
        if ids.dim() != 2:
            raise ValueError(f"ids is {list(ids.shape)}, expected [batch, time]; one text alone is ids[None]")
        if self.embedding is None:
            return ids
        return F.dropout(self._embedded(self.embedding, ids, lengths), self.config.embedding_dropout, self.training)

    def _embedded(self, embedding: nn.Embedding, ids: Tensor, lengths: Tensor | None) -> Tensor:
        ids = ids.long()
        if isinstance(lengths, Tensor) and lengths.shape == ids.shape[:1]:
            # Behind a row's length ids may be anything, so they must not be looked up. Other lengths are refused below.
            ended = torch.arange(ids.shape[1], device=ids.device) >= lengths.unsqueeze(-1)
            ids = ids.masked_fill(ended, 0)
        try:
            rows: Tensor = embedding(ids)
        except IndexError:
            wrong = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
            raise IndexError(
                f"ids must be from 0 to {self.config.vocabulary - 1}, got {wrong}: this model's vocabulary has "
                f"{self.config.vocabulary} tokens; encode with the tokenizer that it was trained with"
            ) from None
        return rows


def _options(config: ModelConfig) -> dict[str, Any]:
    """The layers' keywords, forget gates open where nothing else is said."""
    options = config.keywords()
    if config.forget_bias is None and config.bias and not config.coupled:
        options["forget_bias"] = 1.0
    return options


_COPY, _ORIGINAL = "embedding.weight", "lstm.proj.weight"


def _leave_out_the_copy(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    del state[prefix + _COPY]


def _put_in_the_copy(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    # A file with both, as other code saves them, is taken as it is.
    if prefix + _ORIGINAL in state:
        state.setdefault(prefix + _COPY, state[prefix + _ORIGINAL])


def _tie_again(model: LanguageModel, _: Any) -> None:
    model._tie()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and then each module as it was: `model.train()` would also wake what had been put to rest."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
