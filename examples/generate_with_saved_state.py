"""Stop writing in the middle of a rhyme, save the state, and go on later as if nothing had happened.

Whatever has been read before, a state is two small tensors. Takes a few seconds; needs no files.
"""

import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from unrolled import LSTMState, Piece, TrainConfig, Trainer, generate, load

# Each verse of the rhyme adds a line and then repeats all verses before it.
LINES = (
    "the maiden all forlorn that milked",
    "the cow with the crumpled horn that tossed",
    "the dog that worried",
    "the cat that killed",
    "the rat that ate",
    "the malt that lay in",
    "the house that Jack built.",
)
RHYME = "\n\n".join("This is " + "\n".join(LINES[first:]) for first in reversed(range(len(LINES))))

SMALL = TrainConfig(tokens="char", layers=1, hidden=96, dropout=0.0, lanes=8, window=64)


def learn(folder: Path) -> Path:
    """Train on the rhyme until the model has it by heart; return the run's directory."""
    text, run = folder / "rhyme.txt", folder / "run"
    text.write_text(f"{RHYME}\n\n" * 20, encoding="utf-8")
    config = replace(SMALL, files=(str(text),), out=str(run), steps=120, eval_every=120, lr=0.01, ema=0.9, threads=1)
    for _ in Trainer(config).run():
        pass
    return run


def said(pieces: Iterable[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory, paused = learn(Path(name)), Path(name) / "paused.safetensors"

        run = load(directory)
        prompt = "\n\nThis is the cow"
        pieces = list(generate(run, prompt, max_tokens=60, temperature=0))
        print(prompt.strip() + said(pieces))

        # A piece's state is the one before its tokens; so these are what has to be read next.
        last = pieces[-1]
        save_file({"h": last.state.h, "c": last.state.c, "next": torch.tensor(last.ids)}, paused)
        print(
            f"\n-- paused: {last.state.h.numel()} + {last.state.c.numel()} numbers, {paused.stat().st_size} bytes --\n"
        )
        del run, last

        # Later, perhaps on another machine: the model, and what was saved beside it.
        run, saved = load(directory), load_file(paused)
        state, following = LSTMState(saved["h"], saved["c"]), saved["next"].tolist()
        rest = said(generate(run, following, max_tokens=90, temperature=0, state=state))
        print(rest)

        without_pause = said(generate(run, prompt, max_tokens=150, temperature=0))
        assert said(pieces) + rest == without_pause, "the pause made a difference"
        print("\n-- and the same letters as without the pause. From the last token alone, with no state: --\n")
        print(said(generate(run, following, max_tokens=90, temperature=0)))


if __name__ == "__main__":
    main()
