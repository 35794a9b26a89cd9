"""Truncated BPTT in Lightning, which removed its own in 2.0: the state goes from batch to batch, and into checkpoints.

    python examples/lightning_truncated_bptt.py

A batch is a window of the same rows: windows go in order, and the module carries the state between them. Takes some
seconds; needs pytorch-lightning: pip install "unrolled[examples]".
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Iterator
from typing import Any

try:
    import pytorch_lightning as lightning
except ImportError:
    raise SystemExit('this example needs pytorch-lightning: pip install "unrolled[examples]"') from None
import torch
from torch import Tensor

from unrolled import CarriedState, LSTMState, MultiLayerLSTM, TimeWindows


class Carrying(lightning.LightningModule):
    """A stack that predicts y from x, window by window; training and validation each carry a state of their own."""

    def __init__(self, hidden: int = 16, lr: float = 0.01) -> None:
        super().__init__()
        self.model = MultiLayerLSTM(1, hidden)
        self.lr = lr
        self.carried, self.validated = CarriedState(), CarriedState()
        self.losses: list[float] = []

    def training_step(self, window: list[Tensor], index: int) -> Tensor:
        if index == 0:  # not in on_train_epoch_start: a run that is taken up inside an epoch goes on with its state
            self.carried.reset()
        output, self.carried.state = self.model(window[0], self.carried.state)
        loss = (output - window[1]).square().mean()
        self.losses.append(loss.item())
        return loss

    def validation_step(self, window: list[Tensor], index: int) -> None:
        output, self.validated.state = self.model(window[0], self.validated.state)
        self.log("validation", (output - window[1]).square().mean(), batch_size=window[0].shape[1])

    def on_validation_epoch_start(self) -> None:
        self.validated.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.carried.state is not None:
            checkpoint["carried"] = dict(zip(LSTMState._fields, self.carried.state, strict=True))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "carried" in checkpoint:
            self.carried.state = LSTMState(**checkpoint["carried"]).to(self.device)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def signals(rows: int, steps: int) -> tuple[Tensor, Tensor]:
    """Signals [rows, steps, 1] that are rarely not 0, and the last value that was not: only a memory can tell it."""
    signal = torch.randint(2, (rows, steps, 1)) * 2.0 - 1
    signal[:, 1:][torch.rand(rows, steps - 1) > 1 / 25] = 0
    position = torch.arange(steps).view(1, steps, 1) * (signal != 0)
    return signal, signal.gather(1, position.cummax(1).values)


class Windows:
    """Whole windows are the batches, in order; with its place among them, which Lightning saves inside an epoch."""

    def __init__(self, x: Tensor, y: Tensor, length: int = 25) -> None:
        self.windows, self.place = TimeWindows(x, y, length=length), 0

    def __len__(self) -> int:
        return len(self.windows)

    def __iter__(self) -> Iterator[list[Tensor]]:
        begin, self.place = self.place % len(self), self.place % len(self)
        for index in range(begin, len(self)):
            self.place = index + 1
            yield list(self.windows[index])

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


def windows(rows: int, steps: int) -> Windows:
    return Windows(*signals(rows, steps))


def trainer(epochs: int, **options: Any) -> lightning.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return lightning.Trainer(max_epochs=epochs, **quiet, **{"enable_checkpointing": False, **options})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60)
    settings = parser.parse_args()
    warnings.filterwarnings("ignore", module="pytorch_lightning")  # few workers, no logger: meant so
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # tensors this small gain nothing from more
    module, fit = Carrying(), trainer(settings.epochs)
    try:
        fit.fit(module, windows(32, 200), windows(32, 200))
    except SystemExit:  # Lightning's answer to Ctrl-C is 1; 130 is the shell's
        raise SystemExit(130 if fit.interrupted else 1) from None
    print(f"squared error of the first window {module.losses[0]:.3f}, of the last one {module.losses[-1]:.3f}")
    print(f"of new signals, whose variance is 1: {float(fit.callback_metrics['validation']):.3f}")


if __name__ == "__main__":
    main()
