"""What `unrolled train` does, from Python: a run is a stream of events, and between two of them everything is yours.

The text is a counting song, made here; in a few seconds the model learns to sing it, though not to count.
"""

import tempfile
from pathlib import Path

import torch

from unrolled import LanguageModel, TrainConfig, Trainer, generate, load
from unrolled.train import Evaluated, Finished, Started, StepDone


def song(bottles: int) -> str:
    return "\n\n".join(
        f"{n} green bottles hanging on the wall,\nand if one green bottle should accidentally fall,\n"
        f"there'd be {n - 1} green bottles hanging on the wall."
        for n in range(bottles, 0, -1)
    )


@torch.no_grad()
def share_kept(model: LanguageModel, ids: torch.Tensor) -> float:
    """The mean forget gate over a text: the share of its memory that a step keeps."""
    return model.trace(ids).layers[0].f.mean().item()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "song.txt"
        text.write_text(song(200), encoding="utf-8")
        config = TrainConfig(
            files=(str(text),),
            out=str(Path(folder) / "run"),
            tokens="char",
            layers=1,
            hidden=96,
            dropout=0.0,
            lanes=8,
            window=64,
            steps=100,
            eval_every=50,
            save_every=50,
            lr=0.01,
            ema=0.95,
            threads=1,
        )
        trainer = Trainer(config)
        opening = torch.from_numpy(trainer.corpus.train.ids[None, :500].copy())

        for event in trainer.run():
            match event:
                case Started():
                    print(f"{event.parameters:,} parameters, {event.sizes['train']:,} characters to learn from\n")
                case StepDone() if event.step % 25 == 0:
                    kept = share_kept(trainer.averaged, opening)
                    print(f"step {event.step:3}  loss {event.loss:.3f}  forget gate {kept:.2f} on average")
                case Evaluated() if event.score is not None:
                    print(
                        f"step {event.step:3}  on verses it has not seen: {event.score.bits_per_byte:.3f} bits per byte"
                    )
                case Finished() if event.evaluation is not None:
                    scores = event.evaluation
                    print(
                        f"\nIn the end, with the state carried over all of them: {scores.stateful.bits_per_byte:.3f},"
                    )
                    print(f"and in blocks of 256 characters, each from zeros: {scores.blocks.bits_per_byte:.3f}\n")

        run = load(trainer.directory)  # what was saved is what anyone else would load
        prompt = "77 green bottles"
        print(prompt + "".join(piece.text for piece in generate(run, prompt, max_tokens=330, temperature=0.5)))


if __name__ == "__main__":
    main()
