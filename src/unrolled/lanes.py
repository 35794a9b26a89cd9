"""One stream of ids cut into contiguous lanes, and lanes into windows that continue each other."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .corpus import Split


class Window(NamedTuple):
    """One training step's tokens, each tensor [lanes, window]; `targets[b, t]` is the token after `inputs[b, t]`.

    `resets` (bool) is True where the input is a document's first token; None means nowhere. `scored` (bool) is False
    where the target belongs to the next document or `Split.scored` leaves it out; None means that every target counts.
    """

    inputs: Tensor
    targets: Tensor
    resets: Tensor | None
    scored: Tensor | None


class TooShortError(ValueError):
    """A text of `tokens` tokens that has no window for each lane. `fits` are pairs (lanes, window) that it has."""

    def __init__(self, tokens: int, lanes: int, window: int) -> None:
        self.tokens, self.lanes, self.window = tokens, lanes, window
        fits = [(tokens // window - 1, window), (lanes, tokens // (lanes + 1))]
        if max(fits[0][0], fits[1][1]) < 1:
            fits = [(1, tokens // 2)]
        self.fits = [(some, length) for some, length in fits if some >= 1 and length >= 1]
        super().__init__(self._sentence("lanes={} with window={}"))

    def with_flags(self) -> str:
        """The message as it is to be read at a command line."""
        return self._sentence("--lanes {} --window {}")

    def _sentence(self, form: str) -> str:
        advice = " or ".join(form.format(some, length) for some, length in self.fits)
        return (
            f"the text is too short: it holds {self.tokens} tokens, and {self.lanes} lanes of {self.window}-token "
            f"windows take at least {(self.lanes + 1) * self.window}; use "
            f"{f'{advice}, or ' if advice else ''}a longer text"
        )


class Lanes:
    """`lanes` equally long stretches of a split, read side by side, `window` tokens at a time.

    In epoch e, lane b starts at token offset(e) + b * stride, with stride = (tokens - window) // lanes and the offset
    drawn from (seed, e), 0 <= offset < window. Window k + 1 begins where window k ended, so a lane's state can be
    carried over; a lane's first window of an epoch continues nothing and starts from zeros. The offset moves what the
    end of a lane leaves out (less than one window), so that epochs together see the whole text but for fewer than
    lanes + window tokens at its very end.

    Everything follows from the two integers (epoch, index): nothing else has to be saved to go on.
    """

    def __init__(self, split: Split, lanes: int, window: int, *, seed: int) -> None:
        """TooShortError where the split is too short for even one window in each lane."""
        for name, value in (("lanes", lanes), ("window", window)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}")
        if split.ids.size < (lanes + 1) * window:
            raise TooShortError(split.ids.size, lanes, window)
        self.split = split
        self.lanes = lanes
        self.window_length = window
        self.seed = seed
        self._stride = (split.ids.size - window) // lanes
        self.windows_per_epoch = self._stride // window

    def window(self, epoch: int, index: int) -> Window:
        """Window `index` (0 to windows_per_epoch - 1) of `epoch` (0 and up), on the CPU."""
        if epoch < 0 or not 0 <= index < self.windows_per_epoch:
            raise IndexError(
                f"no window {index} in epoch {epoch}: epochs count from 0 and have windows 0 to "
                f"{self.windows_per_epoch - 1}; after the last one comes (epoch + 1, 0)"
            )
        begin = self.offset(epoch) + index * self.window_length
        firsts = begin + self._stride * np.arange(self.lanes)
        positions = firsts[:, None] + np.arange(self.window_length + 1)
        tokens = torch.from_numpy(self.split.ids[positions].astype(np.int64))
        inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        opens, resets = _among(positions, self.split.starts), None
        scored = np.ones(targets.shape, np.bool_) if self.split.scored is None else self.split.scored[positions[:, 1:]]
        if opens is not None:
            scored &= ~opens[:, 1:]
            resets = torch.from_numpy(opens[:, :-1].copy()) if opens[:, :-1].any() else None
        return Window(inputs, targets, resets, None if scored.all() else torch.from_numpy(scored))

    def offset(self, epoch: int) -> int:
        """The token at which lane 0 starts in this epoch."""
        drawn = np.random.default_rng(np.random.SeedSequence([self.seed, epoch]))
        return int(drawn.integers(self.window_length))


def _among(positions: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    """Which positions are document starts; None if none is, which most windows find out without looking at each."""
    before, upto = np.searchsorted(starts, positions[:, 0]), np.searchsorted(starts, positions[:, -1], side="right")
    if (before == upto).all():
        return None
    nearest = np.searchsorted(starts, positions, side="right") - 1
    opens: NDArray[np.bool_] = starts[nearest] == positions
    return opens
