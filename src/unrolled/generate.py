"""Text out of a model: one token at a time, the state carried from each step to the next."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .model import LanguageModel
from .reader import reader_of
from .state import LSTMState
from .tokens import IntArray, Tokenizer


class Speaker(Protocol):
    """What `generate` needs of a run: its model, and the tokenizer that the model was trained with."""

    @property
    def model(self) -> LanguageModel: ...
    @property
    def tokenizer(self) -> Tokenizer: ...


@dataclass(frozen=True, eq=False)
class Piece:
    """The next whole characters, often one, and the tokens they are made of.

    `ids`: the tokens, several where one character takes several (bytes outside ASCII). `logprob`: the natural logarithm
    of the probability that the model itself gave them, before temperature and truncation, summed over `ids`.
    `sample`: which of several samples this belongs to; 0 for the only one.

    `state`, each [layers, 1, hidden], is the one *before* `ids`: everything earlier has been fed, `ids` have not. So
    `generate(run, piece.ids, state=piece.state)` goes on exactly behind this piece, and `piece.text` in the place of
    `piece.ids` does the same unless the text holds U+FFFD (the model wrote invalid UTF-8).
    """

    text: str
    ids: tuple[int, ...]
    logprob: float
    state: LSTMState
    sample: int


def generate(
    run: Speaker,
    prompt: str | bytes | Sequence[int] = "",
    *,
    max_tokens: int = 256,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    state: LSTMState | tuple[Tensor, Tensor] | None = None,
) -> Iterator[Piece]:
    """Continue `prompt` (text, UTF-8 bytes, or ids) by `max_tokens` tokens; the prompt itself is not yielded.

    The joined texts of all pieces are `tokenizer.decode` of their ids; an iterator that ends inside a character ends
    with U+FFFD. An empty prompt stands for a newline, or a space, or the first symbol, whichever the vocabulary has
    first. With `state` (each [layers, 1, hidden]) the prompt is what comes next in that text, and can't be empty.

    The samplers apply in this order: `temperature` divides the logits, 0 takes the most probable token; `top_k` keeps
    that many of the most probable tokens, 0 all; `top_p` keeps the fewest of these that together reach that share
    (Holtzman et al. 2020). Draws come from a generator of their own: the same `seed` gives the same text, and torch's
    global one stays untouched. Dropout is off while the model runs, and as it was while a piece is looked at.

    Raises ValueError for settings out of range and TokenizerError for a prompt outside the vocabulary, both at once
    and not at the first piece; ValueError later if the logits are not finite.
    """
    _check(max_tokens, temperature, top_k, top_p)
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed} must be from 0 to 2**63 - 1")
    fed = _prompt_ids(run.tokenizer, prompt)
    if state is not None:
        if not fed:
            raise ValueError(
                "a state alone does not say what was read last, so the prompt can't be empty; to go on behind a piece: "
                "generate(run, piece.ids, state=piece.state)"
            )
        if state[0].ndim == 3 and state[0].shape[1] != 1:
            raise ValueError(
                f"the state holds {state[0].shape[1]} rows and generate continues one text; pick a row: state.rows(0)"
            )
    generator = torch.Generator().manual_seed(seed)
    return _pieces(run, fed or [_neutral(run.tokenizer)], state, max_tokens, (temperature, top_k, top_p), generator)


def sample(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> int:
    """Draw one id from `logits` [vocabulary]; the settings are those of `generate`.

    Among equally probable tokens the lower id comes first. Raises ValueError for settings out of range, and where the
    logits hold NaN or +inf, or nothing but -inf.
    """
    _check(0, temperature, top_k, top_p)
    return _draw(_on_the_cpu(logits.detach()), temperature, top_k, top_p, generator)


def _draw(logits: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator | None) -> int:
    """`sample` of float64 logits on the CPU, settings unchecked."""
    if temperature == 0:
        best = int(logits.argmax())  # of equals the first; a NaN is larger than all
        _check_finite(logits[best])
        return best
    values, ids = logits.sort(descending=True, stable=True)
    _check_finite(values[0])
    shares = ((values - values[0]) / temperature).softmax(0)
    if top_k:
        shares = shares[:top_k] / shares[:top_k].sum()
    if top_p < 1:
        before = shares.cumsum(0) - shares
        shares = shares[: max(1, int((before < top_p).sum()))]
    # What torch.multinomial does for one draw, without its checks, which take as long: the least of exponential times.
    times = torch.empty_like(shares).exponential_(1, generator=generator)
    return int(ids[(shares / times).argmax()])


def _check_finite(largest: Tensor) -> None:
    """NaN, which sorts first, +inf, or nothing but -inf: what the largest logit is then."""
    if not math.isfinite(largest.item()):
        raise ValueError(
            "the model's logits are not finite, so there is nothing to draw from; most likely its weights diverged in "
            "training: go back to an earlier checkpoint, or train with a lower --lr"
        )


def _on_the_cpu(logits: Tensor) -> Tensor:
    """In float64 on the CPU whatever the model runs in: the draw is the same on every device."""
    return logits.to("cpu", torch.float64)


def _pieces(
    run: Speaker,
    fed: list[int],
    state: LSTMState | tuple[Tensor, Tensor] | None,
    max_tokens: int,
    settings: tuple[float, int, float],
    generator: torch.Generator,
) -> Iterator[Piece]:
    decoder = run.tokenizer.decoder()
    text, ids, logprob = "", list[int](), 0.0
    before: LSTMState | None = None
    reader = reader_of(run.model, state)
    for _ in range(max_tokens):
        logits = _on_the_cpu(reader.read(fed))
        before = before or reader.state
        token = _draw(logits, *settings, generator)
        text += decoder.push(token)
        ids.append(token)
        logprob += logits.log_softmax(0)[token].item()
        # A piece ends where no character is open: then, and only then, nothing is missing from the text of its ids.
        if text and run.tokenizer.decode(ids) == text:
            yield Piece(text, tuple(ids), logprob, before, 0)
            text, ids, logprob, before = "", [], 0.0, None
            # Whoever looked at the piece may have changed the model.
            if not reader.follows(run.model):
                reader = reader_of(run.model, reader.state)
        fed = [token]
    if ids and before is not None:
        yield Piece(text + decoder.finish(), tuple(ids), logprob, before, 0)


def _prompt_ids(tokenizer: Tokenizer, prompt: str | bytes | Sequence[int]) -> list[int]:
    if isinstance(prompt, str | bytes):
        return [int(token) for token in tokenizer.encode(prompt)]
    ids = [int(token) for token in prompt]
    tokenizer.decode(ids)  # raises where an id is out of range
    return ids


def _neutral(tokenizer: Tokenizer) -> int:
    for text in ("\n", " "):
        ids = _known(tokenizer, text)
        if ids is not None and len(ids) == 1 and tokenizer.decode(ids) == text:
            return int(ids[0])
    return 0


def _known(tokenizer: Tokenizer, text: str) -> IntArray | None:
    try:
        return tokenizer.encode(text)
    except ValueError:
        return None


def _check(max_tokens: int, temperature: float, top_k: int, top_p: float) -> None:
    if max_tokens < 0:
        raise ValueError(f"max_tokens={max_tokens} must be 0 or more")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature={temperature} must be 0 (the most probable token) or a positive number")
    if top_k < 0:
        raise ValueError(f"top_k={top_k} must be 0 (all tokens) or the number of tokens to keep")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} must be above 0 and at most 1 (all tokens)")
