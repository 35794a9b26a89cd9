"""How the weights move: optimiser, schedule and clipping, and the running average of where they have been."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .config import TrainConfig
from .ranks import Ranks

BETAS = (0.9, 0.99)
# The learning rate ends at this share of its peak.
FLOOR = 0.02
_MOMENTS = {"adamw": ("step", "exp_avg", "exp_avg_sq"), "sgd": ()}


class Optimizer:
    """Moves the weights of `model`; `averaged` is a model whose weights are their running average.

    With `config.ema` 0, `averaged` is `model` itself. The average of bfloat16 weights is kept in float32.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, steps: int) -> None:
        self.model, self._config, self._steps = model, config, steps
        self.averaged = _copy_in_full_precision(model) if config.ema else model
        self._parameters: list[Tensor] = list(model.parameters())
        self._means: list[Tensor] = list(self.averaged.parameters())
        self._moments = _MOMENTS[config.optimizer]
        self._fused = self._parameters[0].device.type in ("cpu", "cuda")
        weights = [parameter for parameter in self._parameters if parameter.dim() > 1]
        biases = [parameter for parameter in self._parameters if parameter.dim() <= 1]
        groups = [{"params": weights, "weight_decay": config.weight_decay}, {"params": biases, "weight_decay": 0.0}]
        self._torch: torch.optim.Optimizer = (
            torch.optim.SGD(groups, lr=config.lr, fused=self._fused)
            if config.optimizer == "sgd"
            else torch.optim.AdamW(groups, lr=config.lr, betas=BETAS, fused=self._fused)
        )

    def clear(self) -> None:
        """Forget the gradients; those of the next backward passes add up."""
        self._torch.zero_grad(set_to_none=True)

    def add_up(self, loss: Tensor, ranks: Ranks) -> Tensor:
        """Each gradient becomes the sum of all ranks' gradients, in one exchange; returns the sum of their losses.

        A weight that no rank's gradient has reached stays without one.
        """
        if ranks.size == 1:
            return loss
        widest = torch.float64 if any(weight.dtype == torch.float64 for weight in self._parameters) else torch.float32
        grads = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in self._parameters]
        reached = torch.tensor([weight.grad is not None for weight in self._parameters], device=loss.device)
        parts = [loss.reshape(1), reached, *(grad.flatten() for grad in grads)]
        numbers = torch.cat([part.to(widest) for part in parts])
        ranks.add(numbers)
        total, anywhere, *sums = numbers.split([part.numel() for part in parts])
        for weight, grad, summed, times in zip(self._parameters, grads, sums, anywhere.tolist(), strict=True):
            weight.grad = grad.copy_(summed.view_as(grad)) if times else None
        return loss.copy_(total[0])

    def norm(self) -> Tensor:
        """The norm of all gradients together, a scalar tensor."""
        return torch.nn.utils.get_total_norm(self._gradients())

    def step(self, step: int, norm: Tensor) -> float:
        """Move the weights by their gradients, of norm `norm`; returns the learning rate."""
        if self._config.clip:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self._config.clip, norm)
        rate = learning_rate(step, self._steps, self._config)
        for group in self._torch.param_groups:
            group["lr"] = rate
        self._torch.step()
        if self.averaged is not self.model:
            # At first a shorter memory, so that the average does not drag the initial weights along.
            decay = min(self._config.ema, (1 + step) / (10 + step))
            now = [weight.detach().to(mean.dtype) for weight, mean in zip(self._parameters, self._means, strict=True)]
            torch._foreach_lerp_(self._means, now, 1 - decay)
            for mean, buffer in zip(self.averaged.buffers(), self.model.buffers(), strict=True):
                mean.copy_(buffer)
        return rate

    def tensors(self) -> dict[str, Tensor]:
        """What the next step depends on beside the averaged weights, by name."""
        tensors = {}
        for name, weight in self.model.named_parameters():
            kept = self._torch.state.get(weight, {})
            for moment in self._moments:
                fresh = torch.zeros(()) if moment == "step" else torch.zeros_like(weight)
                tensors[f"optimizer.{moment}.{name}"] = kept.get(moment, fresh)
            if self.averaged is not self.model:
                tensors[f"weights.{name}"] = weight.detach()
        return tensors

    def restore(self, averaged: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
        """Be as when `tensors` gave these, and the averaged model's `state_dict` was `averaged`."""
        self.averaged.load_state_dict(averaged)
        own_weights = self.averaged is not self.model
        with torch.no_grad():
            if own_weights:
                for buffer, mean in zip(self.model.buffers(), self.averaged.buffers(), strict=True):
                    buffer.copy_(mean)
            for name, weight in self.model.named_parameters():
                if own_weights:
                    weight.copy_(tensors[f"weights.{name}"])
                kept = {moment: tensors[f"optimizer.{moment}.{name}"].to(weight.device) for moment in self._moments}
                # A weight that no gradient has reached yet has no moments, and its count starts with the first.
                if kept and kept["step"]:
                    self._torch.state[weight] = kept if self._fused else {**kept, "step": kept["step"].cpu()}

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self._parameters if parameter.grad is not None]


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """The rate after `step` of `steps` steps: up in a line to the peak, then down a cosine to 2% of it."""
    warmup = min(config.warmup, steps // 2)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return config.lr * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * progress)) / 2)


def _copy_in_full_precision(model: nn.Module) -> nn.Module:
    """An average moves by a thousandth of a weight at a time, which bfloat16 would round away."""
    twin = copy.deepcopy(model).requires_grad_(False).eval()
    return twin.float() if next(model.parameters()).dtype == torch.bfloat16 else twin
