"""examples/recurrent_ppo.py: resets fall where episodes begin, and one call is the loop over steps, to rounding."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from unrolled import LSTMState, from_torch

pytest.importorskip("gymnasium", reason="the extra `examples` is not installed")

ENVS, STEPS, HIDDEN = 6, 64, 8


@pytest.fixture(scope="module")
def ppo() -> ModuleType:
    path = Path(__file__).parents[1] / "examples" / "recurrent_ppo.py"
    spec = importlib.util.spec_from_file_location("recurrent_ppo", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["recurrent_ppo"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def played(ppo: ModuleType, kind: str = "OpenPolicy", rollouts: int = 2):
    """A policy and two rollouts one after the other, in which episodes of at most 14 steps end in both ways."""
    torch.manual_seed(0)
    policy = getattr(ppo, kind)(2, HIDDEN)
    game, actor = ppo.Game(ENVS, 3, max_episode_steps=14), ppo.Actor(policy, ENVS, HIDDEN)
    made = [game.play(actor, STEPS) for _ in range(rollouts)]
    for rollout in made:
        assert rollout.terminated[:, 1:-2].any()
        assert rollout.truncated[:, 1:-2].any()
    return policy, made


def both_ways(ppo: ModuleType) -> tuple[nn.Module, nn.Module]:
    """A loop and a call with the same weights, in float64."""
    torch.manual_seed(1)
    loop = ppo.LoopPolicy(2, HIDDEN).double()
    with torch.no_grad():
        loop.head.weight.normal_()
    call = ppo.OpenPolicy(2, HIDDEN).double()
    call.lstm.layers = from_torch(loop.lstm).layers
    call.lstm.proj.load_state_dict(loop.head.state_dict())
    return loop, call


def gradients_of_the_loop(loop: nn.Module) -> dict[str, Tensor]:
    """By the names of ours; torch's two biases have the same gradient, which is that of their sum."""
    lstm, found = loop.lstm, {}
    for kind, parameter in (("W_x", lstm.weight_ih_l0), ("W_h", lstm.weight_hh_l0), ("b_", lstm.bias_ih_l0)):
        for gate, part in zip("ifgo", parameter.grad.chunk(4), strict=True):
            found[f"lstm.layers.0.{kind}{gate}"] = part.t() if part.dim() == 2 else part
    return found | {"lstm.proj.weight": loop.head.weight.grad, "lstm.proj.bias": loop.head.bias.grad}


def test_a_reset_is_where_gymnasium_begins_an_episode(ppo: ModuleType):
    _, [first, second] = played(ppo)
    joined = {
        name: torch.cat([getattr(first, name), getattr(second, name)], 1)
        for name in ("observations", "rewards", "terminated", "truncated", "resets", "idle")
    }
    over = joined["terminated"] | joined["truncated"]
    resets, idle = joined["resets"], joined["idle"]
    assert resets[:, 0].all()
    assert not resets[:, 1].any()
    assert torch.equal(idle[:, 1:], over[:, :-1])
    assert torch.equal(resets[:, 2:], over[:, :-2])
    assert (joined["rewards"][idle] == 0).all()
    assert (joined["rewards"][~idle] == ppo.REWARD_SCALE).all()
    # CartPole begins within 0.05 of the middle; a truncated or terminated episode's last observation is elsewhere.
    largest = (joined["observations"] / ppo.SCALE).abs().amax(-1)
    assert (largest[resets] <= 0.05 + 1e-6).all()
    fallen = torch.zeros_like(idle)
    fallen[:, 1:] = joined["terminated"][:, :-1]
    assert (largest[fallen] > 0.2).all(), "the pole has fallen where the last observation is"


@pytest.mark.parametrize("kind", ["OpenPolicy", "LoopPolicy"])
def test_one_call_says_what_was_said_while_acting_across_rollouts(ppo: ModuleType, kind: str):
    policy, rollouts = played(ppo, kind)
    for rollout in rollouts:
        with torch.no_grad():
            output, _ = policy(rollout.observations, rollout.state, rollout.resets)
        torch.testing.assert_close(output[..., -1], rollout.values[:, :-1], rtol=0, atol=1e-5)
        said = output[..., :-1].log_softmax(-1).gather(-1, rollout.actions[..., None])[..., 0]
        torch.testing.assert_close(said, rollout.log_probabilities, rtol=0, atol=1e-5)
    torch.testing.assert_close(rollouts[1].values[:, 0], rollouts[0].values[:, -1], rtol=0, atol=1e-6)


def test_each_episode_is_the_same_alone(ppo: ModuleType):
    """Every episode that begins and ends inside the rollout, cut out of it and read from zeros."""
    policy, [rollout] = played(ppo, rollouts=1)
    read = 0
    for row in range(ENVS):
        begins = rollout.resets[row].nonzero().flatten().tolist()
        for begin, end in zip(begins, [*begins[1:], STEPS], strict=True):
            alone = rollout.observations[row : row + 1, begin:end]
            with torch.no_grad():
                output, _ = policy(alone, LSTMState.zeros(1, 1, HIDDEN), torch.zeros(1, end - begin, dtype=torch.bool))
            torch.testing.assert_close(output[0, :, -1], rollout.values[row, begin:end], rtol=0, atol=1e-5)
            read += 1
    assert read > 2 * ENVS


def test_advantages_are_those_of_each_episode(ppo: ModuleType):
    """The sums as they are defined, episode by episode, without a loop that goes through the ends."""
    _, [rollout, _] = played(ppo)
    found = ppo.advantages(rollout)
    ends = 0
    for row in range(ENVS):
        begin = 0
        while begin < STEPS:
            end = begin
            while end < STEPS - 1 and not (rollout.terminated[row, end] or rollout.truncated[row, end]):
                end += 1
            values = rollout.values[row, begin : end + 2].tolist()
            if rollout.terminated[row, end]:
                values[-1] = 0.0
            rewards = rollout.rewards[row, begin : end + 1].tolist()
            surprises = [r + ppo.DISCOUNT * after - v for r, v, after in zip(rewards, values, values[1:], strict=False)]
            expected = [
                sum((ppo.DISCOUNT * ppo.GAE) ** k * surprise for k, surprise in enumerate(surprises[t:]))
                for t in range(len(surprises))
            ]
            torch.testing.assert_close(found[row, begin : end + 1], torch.tensor(expected), rtol=1e-4, atol=1e-5)
            ends += 1
            begin = end + 2  # behind the idle step
    assert ends > 3 * ENVS


def test_a_truncated_episode_goes_on_and_a_terminated_one_does_not(ppo: ModuleType):
    _, [rollout, _] = played(ppo)
    estimates = ppo.advantages(rollout)
    alone = rollout.rewards - rollout.values[:, :-1]
    cut = alone + ppo.DISCOUNT * rollout.values[:, 1:]
    torch.testing.assert_close(estimates[rollout.terminated], alone[rollout.terminated])
    only_cut = rollout.truncated & ~rollout.terminated  # a pole may fall at the last step that it is given
    torch.testing.assert_close(estimates[only_cut], cut[only_cut])
    assert (rollout.values[:, 1:][only_cut] != 0).all()


def test_same_step_resets_at_once_and_keeps_the_last_observation_apart(ppo: ModuleType):
    """What docs/reinforcement-learning.md says of the mode that the example does not use."""
    gymnasium = ppo.gymnasium
    mode = gymnasium.vector.AutoresetMode.SAME_STEP
    options = {"vector_kwargs": {"autoreset_mode": mode}, "max_episode_steps": 14}
    envs = gymnasium.make_vec("CartPole-v1", ENVS, "sync", **options)
    torch.manual_seed(0)
    policy, state = ppo.OpenPolicy(2, HIDDEN), LSTMState.zeros(1, ENVS, HIDDEN)
    observation, resets = ppo.shown(envs.reset(seed=3)[0]), torch.ones(ENVS, dtype=torch.bool)
    begun, seen, checked = [0] * ENVS, [], {"terminated": 0, "truncated": 0}
    for t in range(60):
        seen.append(observation)
        with torch.no_grad():
            _, state = policy(observation[:, None], state, resets[:, None])
        found, reward, terminated, truncated, infos = envs.step(torch.randint(2, (ENVS,)).numpy())
        assert (reward == 1).all(), "no step is idle"
        observation, resets = ppo.shown(found), torch.as_tensor(terminated | truncated)
        for row in resets.nonzero().flatten().tolist():
            assert (observation[row] / ppo.SCALE).abs().max() <= 0.05 + 1e-6, "the next episode's first one"
            last = ppo.shown(infos["final_obs"][row][None])
            if terminated[row]:
                assert (last / ppo.SCALE).abs().max() > 0.2, "the pole has fallen where the last observation is"
            with torch.no_grad():
                value, _ = policy(last[:, None], state.rows(row), torch.zeros(1, 1, dtype=torch.bool))
                episode = torch.stack([*(each[row] for each in seen[begun[row] :]), last[0]])[None]
                none = torch.zeros(episode.shape[:2], dtype=torch.bool)
                whole, _ = policy(episode, LSTMState.zeros(1, 1, HIDDEN), none)
            torch.testing.assert_close(value[0, -1], whole[0, -1], rtol=0, atol=1e-5)
            checked["terminated" if terminated[row] else "truncated"] += 1
            begun[row] = t + 1
    assert min(checked.values()) > 2


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1], ids=["from zeros", "from a carried state"])
def test_one_update_is_the_same_by_both_ways(ppo: ModuleType, which: int):
    _, rollouts = played(ppo)
    rollout = rollouts[which].double()
    estimates, rows = ppo.advantages(rollout), torch.tensor([4, 0, 3, 1])
    loop, call = both_ways(ppo)
    losses = []
    for policy in (loop, call):
        loss = ppo.loss(policy, rollout, estimates, rows)
        loss.backward()
        losses.append(loss.item())
    assert abs(losses[0] - losses[1]) <= 1e-10
    expected = gradients_of_the_loop(loop)
    assert expected.keys() == dict(call.named_parameters()).keys()
    for name, parameter in call.named_parameters():
        assert expected[name].abs().max() > 1e-6, name
        torch.testing.assert_close(
            parameter.grad, expected[name], rtol=0, atol=1e-10, msg=lambda m, name=name: name + m
        )


@pytest.mark.slow
def test_a_shifted_reset_is_noticed(ppo: ModuleType):
    """The two ways agree about the resets that they are given; with those of a step earlier they say something else."""
    _, [rollout, _] = played(ppo)
    rollout = rollout.double()
    _, call = both_ways(ppo)
    right, _ = call(rollout.observations, rollout.state, rollout.resets)
    wrong, _ = call(rollout.observations, rollout.state, rollout.idle)
    assert (right - wrong).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("loop", [False, True], ids=["resets", "loop"])
def test_it_learns(ppo: ModuleType, loop: bool, capsys: pytest.CaptureFixture[str]):
    """Without a memory, or with one that is mixed up between episodes, a pole whose speed is hidden soon falls."""
    settings = ["--frames", "130000", "--seed", "1", *(["--loop"] if loop else [])]
    outcome = ppo.train(ppo.arguments().parse_args(settings))
    assert outcome.frames == 64 * 16 * 128
    assert outcome.mean_return > 80
    assert "frames a second" in capsys.readouterr().out


def test_the_picture_is_drawn_by_the_rule_that_the_rollout_follows():
    docs = Path(__file__).parents[1] / "docs"
    spec = importlib.util.spec_from_file_location("draw_resets", docs / "draw_resets.py")
    assert spec is not None
    assert spec.loader is not None
    drawing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawing)
    assert drawing.picture() == (docs / "resets.svg").read_text(encoding="utf-8")
    marks = {name: [cell == "yes" for cell in cells] for name, cells in drawing.ROWS.items()}
    over = [a or b for a, b in zip(marks["terminated"], marks["truncated"], strict=True)]
    assert marks["idle"] == [False, *over[:-1]]
    assert marks["resets"] == [True, False, *over[:-2]]
