"""Differential privacy: an LSTM learns from rows of which none can be told from its weights, with Opacus.

    python examples/private_sgd.py

The task: is the sum of a noisy sequence of ones and minus ones above zero? DP-SGD clips the gradient of each row alone
and adds noise (Abadi et al. 2016); epsilon bounds what the weights can say about any one row. Takes some seconds on one
thread. Needs opacus: pip install "unrolled[opacus]".
"""

from __future__ import annotations

import argparse
import warnings

try:
    from opacus import GradSampleModule, PrivacyEngine
except ImportError:
    raise SystemExit('this example needs opacus: pip install "unrolled[opacus]"') from None
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from unrolled import LSTMLayer
from unrolled.per_sample import prepare

DELTA = 1e-4


class Classifier(nn.Module):
    """Sequences [batch, time, 1] to one logit [batch]; the loss depends on h alone, which the hooks can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = LSTMLayer(1, 16)
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.lstm(x)
        return self.head(h[:, -1])[:, 0]


def rows(count: int, steps: int = 15) -> tuple[Tensor, Tensor]:
    signs = torch.randint(2, (count, steps, 1)) * 2.0 - 1
    return signs + 0.3 * torch.randn_like(signs), (signs.sum((1, 2)) > 0).float()


def largest_difference(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Between Opacus' gradient of each row and a loop that takes one row at a time."""
    sampled = GradSampleModule(prepare(model), loss_reduction="sum")
    nn.functional.binary_cross_entropy_with_logits(sampled(x), y, reduction="sum").backward()
    found = [parameter.grad_sample for parameter in sampled.parameters()]
    sampled.to_standard_module()
    worst = 0.0
    for row in range(len(x)):
        loss = nn.functional.binary_cross_entropy_with_logits(model(x[row : row + 1]), y[row : row + 1])
        alone = torch.autograd.grad(loss, list(model.parameters()))
        worst = max(worst, *(float((a - b[row]).abs().max()) for a, b in zip(alone, found, strict=True)))
    for parameter in model.parameters():
        parameter.grad = None
    return worst


def train(model: nn.Module, epochs: int, noise: float) -> tuple[float, float]:
    """Accuracy on new rows, and epsilon at DELTA."""
    engine, (x, y) = PrivacyEngine(), rows(2000)
    model, optimizer, loader = engine.make_private(
        module=prepare(model),
        optimizer=torch.optim.Adam(model.parameters(), lr=0.02),
        data_loader=DataLoader(TensorDataset(x, y), batch_size=200),
        noise_multiplier=noise,
        max_grad_norm=1.0,
    )
    new, truth = rows(2000)
    for epoch in range(epochs):
        for inputs, labels in loader:
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(model(inputs), labels).backward()
            optimizer.step()
        with torch.no_grad():
            right = float(((model(new) > 0) == truth.bool()).float().mean())
        epsilon = engine.get_epsilon(DELTA)
        print(f"epoch {epoch + 1:2}: {right:6.1%} of new rows are right, epsilon {epsilon:.2f} at delta {DELTA}")
    return right, epsilon


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--noise", type=float, default=1.0, help="of the clipped sum's largest row (%(default)s)")
    settings = parser.parse_args()
    # Opacus: that its random numbers are no cryptographic ones, and torch, that inputs need no gradients.
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # tensors this small gain nothing from more
    try:
        model = Classifier()
        print(f"gradients of 20 rows, beside a loop: differ by {largest_difference(model, *rows(20)):.0e} at most")
        train(model, settings.epochs, settings.noise)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
