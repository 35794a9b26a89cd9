"""Tokens per second of `unrolled.generate` at batch 1, next to the same loop over nn.LSTM and over ONNX Runtime.

One model, one sampler for all, its time included. The greedy texts of all are compared before anything is timed.

    python benchmarks/generation.py [--tokens N] [--write PAGE]
"""

from __future__ import annotations

import argparse
import string
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from measure import FEWEST_ROUNDS, Times, alternate
from page import add_write, provenance, table, write_section
from peers import installed, onnx_layers, onnx_session
from stacks import closed_stack
from torch import Tensor

from unrolled import CharTokenizer, LanguageModel, ModelConfig, Tokenizer, generate
from unrolled.samplers import Sampler, Sampling, exponentials, uniforms

HIDDEN, LAYERS, EMBEDDING = 512, 2, 64
TEMPERATURE, SEED = 1.0, 0
CHECKED_TOKENS = 100
OPEN, CLOSED, ONNX, SAMPLER = "unrolled.generate", "nn.LSTM", "ONNX Runtime", "the sampler alone"

# Logits [vocabulary] after one more id; the state is carried inside.
Step = Callable[[int], Tensor]


class Run(NamedTuple):
    """What `generate` asks of a saved run."""

    model: LanguageModel
    tokenizer: Tokenizer


def fresh_run(hidden: int = HIDDEN, layers: int = LAYERS, embedding: int = EMBEDDING) -> Run:
    """An untrained model over printable ASCII: what it says is noise, and how fast it says it is the same."""
    tokenizer = CharTokenizer("\n" + " " + string.digits + string.ascii_letters + string.punctuation)
    torch.manual_seed(0)
    return Run(LanguageModel(ModelConfig(tokenizer.size, hidden, layers, embedding)).eval(), tokenizer)


def closed_steps(model: LanguageModel) -> Callable[[], Step]:
    """Each call begins a text, with a state of zeros."""
    lstm, projection, embedding = closed_stack(model.lstm).eval(), model.lstm.proj, model.embedding

    def begin() -> Step:
        state = None

        def step(token: int) -> Tensor:
            nonlocal state
            h, state = lstm(embedding(torch.tensor([[token]])), state)
            return projection(h)[0, 0]

        return step

    return begin


def onnx_steps(model: LanguageModel) -> Callable[[], Step]:
    """Embedding, layers and projection in one graph. Each call begins a text, with a state of zeros."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    config = model.config
    state_shape = [1, 1, config.hidden]
    states = [f"{kind}{k}" for k in range(config.layers) for kind in "hc"]
    layers, constants, top, _ = onnx_layers(model.lstm, "embedded")
    own = {
        "table": model.embedding.weight,
        "projection": model.lstm.proj.weight.t().contiguous(),
        "bias": model.lstm.proj.bias,
    }
    constants += [numpy_helper.from_array(value.detach().numpy(), name) for name, value in own.items()]
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["embedded"]),
        *layers,
        helper.make_node("MatMul", [top, "projection"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
    ]

    def value(name: str, shape: list[int], kind: int = TensorProto.FLOAT) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    outputs = [f"after_{name}" for name in states]
    session = onnx_session(
        helper.make_graph(
            nodes,
            "language_model",
            [value("ids", [1, 1], TensorProto.INT64), *[value(name, state_shape) for name in states]],
            [value("logits", [1, 1, config.vocabulary]), *[value(name, state_shape) for name in outputs]],
            constants,
        )
    )

    def begin() -> Step:
        carried = {name: np.zeros(state_shape, np.float32) for name in states}

        def step(token: int) -> Tensor:
            nonlocal carried
            logits, *after = session.run(["logits", *outputs], {"ids": np.array([[token]]), **carried})
            carried = dict(zip(states, after, strict=True))
            return torch.from_numpy(logits)[0, 0]

        return step

    return begin


def drawing(vocabulary: int, temperature: float) -> Callable[[Tensor], int]:
    """The sampler of `unrolled.generate`, with the same numbers."""
    sampler = Sampler(Sampling(temperature), vocabulary, uniforms(SEED, 0))

    def draw(logits: Tensor) -> int:
        values = logits.double().numpy()
        return sampler.choose(values, exponentials(values)[1])

    return draw


@torch.no_grad()
def loop(begin: Callable[[], Step], tokenizer: Tokenizer, tokens: int, temperature: float) -> str:
    """What people write today: one step, one draw, one character, and again."""
    step, draw, decoder = begin(), drawing(tokenizer.size, temperature), tokenizer.decoder()
    token, text = int(tokenizer.encode("\n")[0]), ""
    for _ in range(tokens):
        token = draw(step(token))
        text += decoder.push(token)
    return text + decoder.finish()


def writers(run: Run) -> dict[str, Callable[[int, float], str]]:
    """By name, a function of the number of tokens and the temperature that writes a text."""

    def opened(tokens: int, temperature: float) -> str:
        pieces: Iterator[Any] = generate(run, "\n", max_tokens=tokens, temperature=temperature, seed=SEED)
        return "".join(piece.text for piece in pieces)

    def looping(begin: Callable[[], Step]) -> Callable[[int, float], str]:
        return lambda tokens, temperature: loop(begin, run.tokenizer, tokens, temperature)

    found = {OPEN: opened, CLOSED: looping(closed_steps(run.model))}
    if installed("onnx", "onnxruntime"):
        found[ONNX] = looping(onnx_steps(run.model))
    return found


def demand_one_text(writing: dict[str, Callable[[int, float], str]], tokens: int = CHECKED_TOKENS) -> None:
    """Exit unless all write the same greedy text."""
    texts = {name: write(tokens, 0.0) for name, write in writing.items()}
    for name, text in texts.items():
        if text != texts[CLOSED]:
            sys.exit(f"{name} writes {text!r} and nn.LSTM {texts[CLOSED]!r}: not the same model, so nothing was timed")


def compare(
    run: Run, *, tokens: int, seconds: float, rounds: int = FEWEST_ROUNDS
) -> tuple[list[str], dict[str, Times]]:
    """The page's lines, and the time that each takes for `tokens` tokens."""
    writing = writers(run)
    demand_one_text(writing)
    logits, draw = torch.randn(run.tokenizer.size), drawing(run.tokenizer.size, TEMPERATURE)

    def sampler() -> None:
        for _ in range(tokens):
            draw(logits)

    runs: dict[str, Callable[[], Any]] = {
        name: (lambda write=write: write(tokens, TEMPERATURE)) for name, write in writing.items()
    }
    times = alternate({**runs, SAMPLER: sampler}, seconds=seconds, rounds=rounds)
    closed = times[CLOSED].median
    rows = [
        [name, f"{tokens / times[name].median * 1e3:,.0f}", f"{closed / times[name].median:.2f}x"] for name in times
    ]
    if ONNX not in times:
        rows.append([ONNX, "not installed", ""])
    config = run.model.config
    return [
        f"{config.layers} layers of {config.hidden}, embedding {config.embedding}, vocabulary {config.vocabulary}, "
        f"batch 1, {tokens} tokens at temperature {TEMPERATURE:g}.",
        "",
        *table(("loop", "tokens per second", f"speed, {CLOSED} 1"), rows),
    ], times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=200, help="of each text")
    add_write(parser)
    arguments = parser.parse_args()
    print(*provenance())
    lines, times = compare(fresh_run(), tokens=arguments.tokens, seconds=15.0)
    for name, each in times.items():
        print(f"  {name:<18} {each}")
    print(*lines, sep="\n")
    if arguments.write:
        write_section(arguments.write, "generation", lines)


if __name__ == "__main__":
    main()
