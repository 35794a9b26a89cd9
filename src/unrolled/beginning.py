"""What a run begins with: its text, and an earlier run's tokenizer and model where the configuration says so."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .bpe import DEFAULT_VOCABULARY
from .cell_options import IN_TRAINING
from .checkpoint import Run, latest, load
from .config import FIELDS, TOKENS, ConfigError, TrainConfig
from .corpus import Corpus, Progress, read_corpus
from .evaluate import part
from .model import OPTIONS, LanguageModel, ModelConfig
from .ranks import ElsewhereError, RankError, Ranks
from .tokens import Tokenizer, load_tokenizer

# Beside the runs' directories: one encoded text serves all of them.
ENCODED = "encoded"
_SIZES = ("layers", "hidden", "embedding", "tie_weights", *OPTIONS)


def begin(config: TrainConfig, progress: Progress | None = None) -> tuple[TrainConfig, Corpus, LanguageModel | None]:
    """The configuration with its tokens written out, its text, and the model of `init_from`, if that is given.

    Raises ConfigError where `init_from` or `tokenizer` contradict the rest, CheckpointError and TokenizerError where
    they can't be loaded, and whatever `read_corpus` raises.
    """
    source = None if config.init_from is None else _source(config, config.init_from)
    tokenizer = _tokenizer(config) if source is None else source.tokenizer
    if tokenizer is not None and config.tokens not in (None, tokenizer.name):
        flag, origin = ("init-from", config.init_from) if source is not None else ("tokenizer", config.tokenizer)
        raise ConfigError(
            f"tokens={config.tokens} is not what {origin} reads: its tokens are {tokenizer.name}; leave --tokens out, "
            f"or leave --{flag} out"
        )
    vocabulary = config.vocabulary
    if config.tokens == "bpe" and tokenizer is None:
        vocabulary = vocabulary or DEFAULT_VOCABULARY
    corpus = read_corpus(
        config.files,
        tokens=config.tokens or "byte",
        vocabulary=vocabulary,
        split=config.split,
        val=config.val,
        tokenizer=tokenizer,
        separator=config.document_separator or "",
        cache=config.directory.parent / ENCODED,
        progress=progress,
    )
    name: Any = corpus.tokenizer.name
    known = dataclasses.replace(config, tokens=name if name in TOKENS else config.tokens, vocabulary=vocabulary)
    return known, corpus, None if source is None else _model(config, source)


def agreed(config: TrainConfig, ranks: Ranks) -> TrainConfig:
    """Of several ranks, rank 0's configuration, but for where texts lie and what computes here.

    RankError where this rank was to train otherwise.
    """
    if ranks.size == 1:
        return config
    theirs = TrainConfig.from_dict(ranks.told(config.as_dict))
    own = {name: getattr(config, name) for name in ("files", "val", "tokenizer", "init_from", "device", "threads")}
    together = dataclasses.replace(theirs, **own)
    changed = [name for name in FIELDS if getattr(config, name) != getattr(together, name)]
    if ranks.any(bool(changed)):
        if not changed:
            raise ElsewhereError("another rank was started with other flags")
        raise RankError(
            f"rank {ranks.rank} was started otherwise than rank 0: {', '.join(changed)}; give all the same flags"
        )
    return together


def check_text(corpus: Corpus, config: TrainConfig, ranks: Ranks, *, evaluated: int) -> None:
    """ConfigError where the text does not allow what the configuration asks; RankError where ranks differ in it.

    Of the validation text the first `evaluated` tokens are scored while the model is trained.
    """
    val = corpus.val
    if config.patience is not None and val is None:
        raise ConfigError("patience needs scores, and there is no validation text; add --val FILE or --split 0.9,0.1")
    if val is not None and not part(val, 0, evaluated).predictions:
        raise ConfigError(
            f"of the first {min(evaluated, len(val))} tokens of the validation text none can be scored: they are a "
            "document's first, or `Split.scored` leaves them out; give it others, or none"
        )
    if ranks.any(ranks.told(lambda: corpus.sha256) != corpus.sha256):
        raise RankError("the ranks were given different texts; copy the same files to every machine")


def fitting(model: nn.Module | None, config: TrainConfig, vocabulary: int) -> nn.Module:
    """`model`, or a fresh one. ConfigError where it was built for another vocabulary."""
    if model is None:
        return fresh(config, vocabulary)
    if isinstance(model, LanguageModel) and model.config.vocabulary != vocabulary:
        raise ConfigError(
            f"the model was built for {model.config.vocabulary} tokens, the text has {vocabulary}; build it with "
            f"ModelConfig(vocabulary={vocabulary})"
        )
    return model


def fresh(config: TrainConfig, vocabulary: int) -> LanguageModel:
    """A new model whose numbers follow from the seed alone, drawn on the CPU for every device."""
    given = {name: getattr(config, name) for name in _SIZES if getattr(config, name) is not None}
    if config.tie_weights:
        given.setdefault("embedding", given.get("proj_dim", given.get("hidden", ModelConfig.hidden)))
    sizes = ModelConfig(vocabulary, **given, dropout=config.dropout, embedding_dropout=config.embedding_dropout)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return LanguageModel(sizes, dtype=getattr(torch, config.dtype))


def settled(config: TrainConfig, model: nn.Module, device: torch.device) -> TrainConfig:
    """`config` with what the model at hand decides."""
    sizes: dict[str, Any] = {}
    if isinstance(model, LanguageModel):
        # An option as in the plain LSTM is one that is not given: a run stays the one that it was as options come.
        sizes = dict.fromkeys(OPTIONS) | model.config.as_dict()
        del sizes["vocabulary"]
    sizes["dtype"] = str(next(model.parameters()).dtype).removeprefix("torch.")
    return dataclasses.replace(config, device=str(device), **sizes)


def _source(config: TrainConfig, directory: str) -> Run:
    """The run to start from; where this one has begun, itself, so that it no longer depends on the other."""
    if config.tokenizer is not None:
        raise ConfigError("init_from and tokenizer both say what the tokens are; leave --tokenizer out")
    run = load(latest(config.directory) or directory)
    for name in sorted({*_SIZES} - {*IN_TRAINING}, key=_SIZES.index):
        given, own = getattr(config, name), getattr(run.config, name)
        if given not in (None, own):
            raise ConfigError(
                f"{name}={given} is not what the model in {directory} has: {own}; a model that is trained on keeps its "
                f"sizes: leave --{name} out, or begin a new model without --init-from"
            )
    return run


def _tokenizer(config: TrainConfig) -> Tokenizer | None:
    if config.tokenizer is None:
        return None
    path = Path(config.tokenizer)
    try:
        return load(path).tokenizer if path.is_dir() else load_tokenizer(path)
    except OSError as error:
        raise ConfigError(f"tokenizer {path} can't be read: {error.strerror}") from None


def _model(config: TrainConfig, source: Run) -> LanguageModel:
    """The earlier model's weights, in the number format and with the dropout that the configuration asks for."""
    other: dict[str, Any] = {name: getattr(config, name) for name in ("dropout", "embedding_dropout", *IN_TRAINING)}
    sizes = dataclasses.replace(source.config, **{name: v for name, v in other.items() if v is not None})
    model = LanguageModel(sizes, dtype=getattr(torch, config.dtype))
    model.load_state_dict(source.model.state_dict())
    return model
