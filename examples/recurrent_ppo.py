"""PPO with a memory: an LSTM balances a pole whose speed it is not shown, and learns from a rollout in one call.

    python examples/recurrent_ppo.py [--loop]

CartPole-v1 with both velocities hidden has to be played from memory. Episodes end at any step of a rollout, and the
state must not cross these ends. The usual way out is a loop over the steps of the rollout that zeroes the state of some
rows before each one (`--loop`, with `nn.LSTM`, as CleanRL's ppo_atari_lstm.py does); here the rollout is one call with
`resets`. Both print how many frames a second they act on and learn from. Takes a minute on one thread.
Needs gymnasium: pip install "unrolled[examples]".
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

try:
    import gymnasium
except ImportError:
    raise SystemExit('this example needs gymnasium: pip install "unrolled[examples]"') from None
import numpy as np
import torch
from torch import Tensor, nn

from unrolled import LSTMState, MultiLayerLSTM, Stepper

# Cart position and pole angle, without their velocities, brought to about -1 to 1.
SHOWN, SCALE = [0, 2], torch.tensor([1 / 2.4, 1 / 0.21])
REWARD_SCALE = 0.1  # so that values are small numbers: they share the LSTM with the policy
DISCOUNT, GAE = 0.99, 0.95
EPOCHS, MINIBATCHES, CLIP = 4, 4, 0.2
VALUE_WEIGHT, ENTROPY_WEIGHT, GRADIENT_NORM = 0.5, 0.005, 0.5
SOLVED = 475  # mean return of 100 episodes, at most 500 each


class OpenPolicy(nn.Module):
    """Observations [envs, steps, 2] to logits and a value [envs, steps, actions + 1]: one call, whatever ends there."""

    def __init__(self, actions: int, hidden: int) -> None:
        super().__init__()
        self.lstm = MultiLayerLSTM(len(SHOWN), hidden, output_dim=actions + 1)
        nn.init.constant_(self.lstm.layers[0].b_f, 1)
        cautious_(self.lstm.proj)

    def forward(self, x: Tensor, state: LSTMState, resets: Tensor) -> tuple[Tensor, LSTMState]:
        return self.lstm(x, state, resets=resets)


class LoopPolicy(nn.Module):
    """The same with `nn.LSTM`, which knows no resets: a call for each step, and zeros into the state before it."""

    def __init__(self, actions: int, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(len(SHOWN), hidden, batch_first=True)
        self.head = nn.Linear(hidden, actions + 1)
        with torch.no_grad():
            self.lstm.bias_ih_l0[hidden : 2 * hidden].fill_(1)
        cautious_(self.head)

    def forward(self, x: Tensor, state: LSTMState, resets: Tensor) -> tuple[Tensor, LSTMState]:
        h, c = state
        outputs = []
        for frame, begins in zip(x.split(1, dim=1), resets.unbind(1), strict=True):
            kept = ~begins[None, :, None]
            output, (h, c) = self.lstm(frame, (h * kept, c * kept))
            outputs.append(output)
        return self.head(torch.cat(outputs, dim=1)), LSTMState(h, c)


def cautious_(head: nn.Linear) -> None:
    """At first every action is about as likely as the others."""
    nn.init.orthogonal_(head.weight)
    nn.init.zeros_(head.bias)
    with torch.no_grad():
        head.weight[:-1] *= 0.01


class Actor:
    """A policy one step at a time, with the state of each environment in between."""

    def __init__(self, policy: OpenPolicy | LoopPolicy, envs: int, hidden: int) -> None:
        self.policy, self.stepper = policy, None
        if isinstance(policy, OpenPolicy):
            self.stepper = Stepper(policy.lstm, envs)
        self.loop_state = LSTMState.zeros(1, envs, hidden)

    @property
    def state(self) -> LSTMState:
        return self.stepper.state if self.stepper else self.loop_state

    @torch.no_grad()
    def step(self, observation: Tensor, begins: Tensor) -> Tensor:
        """Logits and value [envs, actions + 1]; a row that `begins` forgets before it looks."""
        if self.stepper:
            self.stepper.reset(begins)
            return self.stepper.step(observation)
        output, self.loop_state = self.policy(observation[:, None], self.loop_state, begins[:, None])
        return output[:, 0]

    def value(self, observation: Tensor, begins: Tensor) -> Tensor:
        """Of an observation that will be acted on later: the state stays."""
        before = self.state
        value = self.step(observation, begins)[:, -1].clone()
        if self.stepper:
            self.stepper.state = before
        self.loop_state = before
        return value

    def weights_have_moved(self) -> None:
        if self.stepper:
            self.stepper.refresh()


@dataclass(frozen=True)
class Rollout:
    """What was seen, done and said, [envs, steps], of consecutive steps; all of it before the weights move."""

    observations: Tensor  # [envs, steps, 2]
    actions: Tensor
    log_probabilities: Tensor  # of the actions
    values: Tensor  # [envs, steps + 1]: of the observation behind the last step too
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    resets: Tensor  # the observation is an episode's first
    idle: Tensor  # the observation is an episode's last: the action is ignored, the environment begins anew
    state: LSTMState  # in which the first step was taken, [1, envs, hidden]

    def double(self) -> Rollout:
        """The same numbers in float64."""
        moved = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "state"}
        moved = {name: x.double() if x.is_floating_point() else x for name, x in moved.items()}
        return Rollout(**moved, state=LSTMState(*self.state).to(torch.float64))


class Game:
    """Environments side by side, and where each of them stands between two rollouts.

    Gymnasium's autoreset is NEXT_STEP: step t ends an episode, and the observation that it returns is the episode's
    last one. Step t + 1 is idle: it ignores the action, and returns the next episode's first observation. So it is
    step t + 2 that begins, with a reset, and the value of step t + 1, which the policy computes anyway with the old
    episode's memory, is the one to bootstrap a truncated episode from.
    """

    def __init__(self, envs: int, seed: int, **options: Any) -> None:
        mode = gymnasium.vector.AutoresetMode.NEXT_STEP
        self.envs = gymnasium.make_vec("CartPole-v1", envs, "sync", vector_kwargs={"autoreset_mode": mode}, **options)
        self.observation = shown(self.envs.reset(seed=seed)[0])
        self.begins = torch.ones(envs, dtype=torch.bool)
        self.idle = torch.zeros(envs, dtype=torch.bool)
        self.returns = np.zeros(envs)
        self.finished: deque[float] = deque(maxlen=100)
        self.seconds = 0.0  # that the environments took

    def play(self, actor: Actor, steps: int) -> Rollout:
        state = actor.state
        seen: list[tuple[Tensor, ...]] = []
        for _ in range(steps):
            output = actor.step(self.observation, self.begins)
            policy = torch.distributions.Categorical(logits=output[:, :-1], validate_args=False)
            action = policy.sample()
            began = time.perf_counter()
            observation, reward, terminated, truncated, _ = self.envs.step(action.numpy())
            self.seconds += time.perf_counter() - began
            happened = (torch.as_tensor(reward).float() * REWARD_SCALE, *map(torch.as_tensor, (terminated, truncated)))
            said = (action, policy.log_prob(action), output[:, -1].clone())
            seen.append((self.observation, *said, *happened, self.begins, self.idle))
            self._count(reward, terminated | truncated)
            self.observation, self.begins = shown(observation), self.idle
            self.idle = torch.as_tensor(terminated | truncated)
        columns = [torch.stack(column, dim=1) for column in zip(*seen, strict=True)]
        columns[3] = torch.cat([columns[3], actor.value(self.observation, self.begins)[:, None]], dim=1)
        return Rollout(*columns, state=state)

    def _count(self, reward: np.ndarray, over: np.ndarray) -> None:
        self.returns += reward
        self.finished.extend(self.returns[over].tolist())
        self.returns[over] = 0


def shown(observation: np.ndarray) -> Tensor:
    return torch.as_tensor(observation[:, SHOWN]) * SCALE


def advantages(rollout: Rollout) -> Tensor:
    """Generalised advantage estimates [envs, steps] (Schulman et al. 2016).

    After a terminated step there is nothing to come; after a truncated one there is, and the next value says how much.
    The sum over later steps ends at either.
    """
    later, estimates = torch.zeros_like(rollout.values[:, 0]), torch.empty_like(rollout.rewards)
    for t in reversed(range(rollout.rewards.shape[1])):
        to_come = rollout.values[:, t + 1].masked_fill(rollout.terminated[:, t], 0)
        later = later.masked_fill(rollout.terminated[:, t] | rollout.truncated[:, t], 0)
        surprise = rollout.rewards[:, t] + DISCOUNT * to_come - rollout.values[:, t]
        later = estimates[:, t] = surprise + DISCOUNT * GAE * later
    return estimates


def loss(policy: nn.Module, rollout: Rollout, estimates: Tensor, rows: Tensor) -> Tensor:
    """PPO's clipped loss (Schulman et al. 2017) of some environments, each with all of its steps but the idle ones."""
    output, _ = policy(rollout.observations[rows], rollout.state.rows(rows), rollout.resets[rows])
    counted = ~rollout.idle[rows]
    now = torch.distributions.Categorical(logits=output[..., :-1][counted], validate_args=False)
    value, estimate = output[..., -1][counted], estimates[rows][counted]
    target = estimate + rollout.values[rows, :-1][counted]
    estimate = (estimate - estimate.mean()) / (estimate.std() + 1e-8)
    ratio = (now.log_prob(rollout.actions[rows][counted]) - rollout.log_probabilities[rows][counted]).exp()
    gain = torch.min(ratio * estimate, ratio.clamp(1 - CLIP, 1 + CLIP) * estimate).mean()
    return VALUE_WEIGHT * (value - target).square().mean() - gain - ENTROPY_WEIGHT * now.entropy().mean()


def learn(policy: nn.Module, optimizer: torch.optim.Optimizer, rollout: Rollout) -> None:
    """A rollout, several times over; a minibatch is some environments, since time has to stay in one piece."""
    estimates = advantages(rollout)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(rollout.actions)).chunk(MINIBATCHES):
            optimizer.zero_grad()
            loss(policy, rollout, estimates, rows).backward()
            nn.utils.clip_grad_norm_(policy.parameters(), GRADIENT_NORM)
            optimizer.step()


class Outcome(NamedTuple):
    """Mean return of the last 100 episodes, frames, and the seconds spent with each of three things."""

    mean_return: float
    frames: int
    environments: float
    acting: float
    learning: float


def train(settings: argparse.Namespace) -> Outcome:
    torch.manual_seed(settings.seed)
    game = Game(settings.envs, settings.seed)
    policy = (LoopPolicy if settings.loop else OpenPolicy)(int(game.envs.single_action_space.n), settings.hidden)
    actor = Actor(policy, settings.envs, settings.hidden)
    optimizer = torch.optim.Adam(policy.parameters(), lr=settings.lr, eps=1e-5)
    updates = -(-settings.frames // (settings.envs * settings.steps))
    frames, playing, learning, mean = 0, 0.0, 0.0, 0.0
    print("   frames   mean return     acting   learning (frames a second)")
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = settings.lr * (1 - update / updates)
        began = time.perf_counter()
        rollout = game.play(actor, settings.steps)
        played = time.perf_counter()
        learn(policy, optimizer, rollout)
        actor.weights_have_moved()
        playing, learning = playing + played - began, learning + time.perf_counter() - played
        frames += rollout.actions.numel()
        mean = float(np.mean(game.finished)) if game.finished else 0.0
        solved = len(game.finished) == 100 and mean >= SOLVED
        if solved or (update + 1) % 10 == 0 or update + 1 == updates:
            acting = playing - game.seconds
            print(f"{frames:9,} {mean:13.1f} {frames / acting:10,.0f} {frames / learning:10,.0f}", flush=True)
        if solved:
            print(f"solved in {playing + learning:.0f} s: the last 100 episodes have a mean return of {mean:.1f}")
            break
    game.envs.close()
    print(f"seconds: environments {game.seconds:.1f}, acting {playing - game.seconds:.1f}, learning {learning:.1f}")
    return Outcome(mean, frames, game.seconds, playing - game.seconds, learning)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loop", action="store_true", help="nn.LSTM, step by step, instead of one call with resets")
    parser.add_argument("--frames", type=int, default=1_000_000, help="at most; ends when solved (%(default)s)")
    parser.add_argument("--envs", type=int, default=16, help="environments side by side (%(default)s)")
    parser.add_argument("--steps", type=int, default=128, help="steps of a rollout (%(default)s)")
    parser.add_argument("--hidden", type=int, default=64, help="units of the LSTM (%(default)s)")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate at the beginning (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    return parser


def main() -> None:
    torch.set_num_threads(1)  # tensors this small gain nothing from more
    try:
        train(arguments().parse_args())
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
