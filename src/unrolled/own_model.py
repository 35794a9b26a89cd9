"""A model in training that is not the library's: as scoring takes a model, and how it writes a sample."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import torch
from torch import Tensor, nn

from .model import LanguageModel, evaluating
from .state_layout import State
from .tokens import Tokenizer, TokenizerError


def as_language_model(model: nn.Module, vocabulary: int) -> LanguageModel:
    """`model` itself, or, of another class, a view of it with what scoring asks of a LanguageModel."""
    return model if isinstance(model, LanguageModel) else cast(LanguageModel, _View(model, vocabulary))


class _View(nn.Module):
    def __init__(self, model: nn.Module, vocabulary: int) -> None:
        super().__init__()
        self.model, self.config = model, SimpleNamespace(vocabulary=vocabulary)

    def zero_state(self, batch: int) -> State:
        return None

    def forward(
        self, ids: Tensor, state: State = None, *, resets: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """`lengths` say which logits nobody looks at; in a model that does not look ahead they change no other."""
        logits, after = self.model(ids, state, resets=resets)
        return logits, after


def write(model: nn.Module, tokenizer: Tokenizer, *, tokens: int, temperature: float, seed: int) -> str:
    """What `generate` does without a prompt, for a state of any kind."""
    try:
        token = int(tokenizer.encode("\n")[0])
    except (TokenizerError, IndexError):
        token = 0
    generator, device = torch.Generator().manual_seed(seed), next(model.parameters()).device
    ids: list[int] = []
    state: State = None
    with torch.no_grad(), evaluating(model):
        for _ in range(tokens):
            logits, state = model(torch.tensor([[token]], device=device), state, resets=None)
            chances = torch.softmax(logits[0, -1].cpu().double() / temperature, 0)
            token = int(torch.multinomial(chances, 1, generator=generator))
            ids.append(token)
    return tokenizer.decode(ids)
