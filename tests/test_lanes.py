"""Lanes and windows: exact small examples, what continues what, what is covered, what is masked."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unrolled.corpus import Split
from unrolled.lanes import Lanes, TooShortError, Window


def counting(tokens: int, *starts: int) -> Split:
    """Ids that are their own positions."""
    return Split(np.arange(tokens, dtype=np.int32), np.array([0, *starts], dtype=np.int64))


def with_offset(lanes: Lanes, offset: int) -> int:
    return next(epoch for epoch in range(1000) if lanes.offset(epoch) == offset)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Split, Lanes]:
    lanes, window = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    tokens = (lanes + 1) * window + draw(st.integers(0, 60))
    starts = draw(st.sets(st.integers(1, max(1, tokens - 1)), max_size=8)) if tokens > 1 else set()
    split = counting(tokens, *sorted(starts))
    return split, Lanes(split, lanes, window, seed=draw(st.integers(0, 2**63)))


def rows(tensor: Tensor | None) -> list[list[int]]:
    assert tensor is not None
    return tensor.tolist()


def test_a_printed_example() -> None:
    lanes = Lanes(counting(27), 2, 4, seed=0)
    assert lanes.windows_per_epoch == 2
    epoch = with_offset(lanes, 1)
    first, second = lanes.window(epoch, 0), lanes.window(epoch, 1)
    assert rows(first.inputs) == [[1, 2, 3, 4], [12, 13, 14, 15]]
    assert rows(first.targets) == [[2, 3, 4, 5], [13, 14, 15, 16]]
    assert rows(second.inputs) == [[5, 6, 7, 8], [16, 17, 18, 19]]
    assert rows(second.targets) == [[6, 7, 8, 9], [17, 18, 19, 20]]
    assert first[2:] == second[2:] == (None, None)


def test_a_printed_example_with_documents() -> None:
    lanes = Lanes(counting(27, 4, 9, 14), 2, 4, seed=0)
    first, second = lanes.window(epoch := with_offset(lanes, 1), 0), lanes.window(epoch, 1)
    assert rows(first.inputs) == [[1, 2, 3, 4], [12, 13, 14, 15]]
    assert rows(first.resets) == [[False, False, False, True], [False, False, True, False]]
    assert rows(first.scored) == [[True, True, False, True], [True, False, True, True]]
    assert rows(second.inputs) == [[5, 6, 7, 8], [16, 17, 18, 19]]
    assert second.resets is None, "9 is a target here, not an input"
    assert rows(second.scored) == [[True, True, True, False], [True, True, True, True]]


def test_a_reset_on_the_first_step_of_a_window_only() -> None:
    lanes = Lanes(counting(27, 5), 2, 4, seed=0)
    first, second = lanes.window(epoch := with_offset(lanes, 1), 0), lanes.window(epoch, 1)
    assert first.resets is None
    assert rows(first.scored) == [[True, True, True, False], [True, True, True, True]]
    assert rows(second.resets) == [[True, False, False, False], [False, False, False, False]]
    assert second.scored is None


def test_types() -> None:
    window = Lanes(Split(np.arange(30, dtype=np.uint8), np.arange(0, 30, 3)), 2, 5, seed=3).window(0, 0)
    assert isinstance(window, Window)
    assert window.inputs.dtype == window.targets.dtype == torch.int64
    assert window.inputs.shape == window.targets.shape == (2, 5)
    assert window.resets is not None
    assert window.scored is not None
    assert window.resets.dtype == window.scored.dtype == torch.bool
    assert all(field.is_contiguous() for field in window if field is not None)


@given(cases(), st.integers(0, 50))
def test_windows_continue_each_other(case: tuple[Split, Lanes], epoch: int) -> None:
    split, lanes = case
    windows = [lanes.window(epoch, index) for index in range(lanes.windows_per_epoch)]
    inputs = torch.cat([window.inputs for window in windows], dim=1)
    targets = torch.cat([window.targets for window in windows], dim=1)
    assert (inputs[:, 1:] == inputs[:, :-1] + 1).all(), "ids are positions, so a lane counts up by one"
    assert torch.equal(targets, inputs + 1)
    assert inputs[0, 0] == lanes.offset(epoch) < lanes.window_length
    seen = inputs.flatten().tolist()
    assert len(set(seen)) == len(seen), "no token is an input twice in one epoch"
    assert targets.max() < len(split)


@given(cases(), st.integers(0, 50))
def test_masks_are_those_of_the_documents(case: tuple[Split, Lanes], epoch: int) -> None:
    split, lanes = case
    starts = torch.from_numpy(split.starts)
    for index in range(lanes.windows_per_epoch):
        window = lanes.window(epoch, index)
        resets, crossings = torch.isin(window.inputs, starts), torch.isin(window.targets, starts)
        assert (window.resets is None) == (not resets.any())
        assert (window.scored is None) == (not crossings.any())
        assert window.resets is None or torch.equal(window.resets, resets)
        assert window.scored is None or torch.equal(window.scored, ~crossings)


@given(cases())
def test_epochs_together_cover_the_text_but_its_very_end(case: tuple[Split, Lanes]) -> None:
    split, lanes = case
    seen: set[int] = set()
    for offset in range(lanes.window_length):
        epoch = with_offset(lanes, offset)
        for index in range(lanes.windows_per_epoch):
            seen |= set(lanes.window(epoch, index).inputs.flatten().tolist())
    assert seen == set(range(len(seen))), "nothing is left out in the middle"
    assert len(split) - len(seen) < lanes.lanes + lanes.window_length


@given(cases(), st.integers(0, 1000))
def test_offsets_follow_from_seed_and_epoch(case: tuple[Split, Lanes], epoch: int) -> None:
    split, lanes = case
    again = Lanes(split, lanes.lanes, lanes.window_length, seed=lanes.seed)
    assert 0 <= lanes.offset(epoch) == again.offset(epoch) < lanes.window_length


def test_offsets_vary_with_the_seed_and_the_epoch() -> None:
    split = counting(5000)
    offsets = [[Lanes(split, 2, 128, seed=seed).offset(epoch) for epoch in range(40)] for seed in range(2)]
    assert offsets[0] != offsets[1]
    assert all(len(set(of_seed)) > 20 for of_seed in offsets)


def test_offsets_stay_what_they_are() -> None:
    """A resumed run reads on where it stopped, also under a later version."""
    lanes = Lanes(counting(5000), 2, 128, seed=7)
    assert [lanes.offset(epoch) for epoch in range(5)] == [120, 111, 36, 93, 68]


def test_reads_a_memory_map(tmp_path: Path) -> None:
    np.arange(1000, dtype=np.uint16).tofile(tmp_path / "ids")
    mapped = Split(np.memmap(tmp_path / "ids", dtype=np.uint16, mode="r"), np.array([0, 400]))
    for index in range(3):
        got, expected = (Lanes(split, 3, 16, seed=1).window(2, index) for split in (mapped, counting(1000, 400)))
        assert torch.equal(got.inputs, expected.inputs)
        assert torch.equal(got.targets, expected.targets)


def test_the_shortest_text_that_fits() -> None:
    assert Lanes(counting(12), 3, 3, seed=0).windows_per_epoch == 1
    assert Lanes(counting(2), 1, 1, seed=0).window(0, 0).targets.tolist() == [[1]]


@pytest.mark.parametrize(
    ("tokens", "lanes", "window", "advice"),
    [
        (4223, 32, 128, "use lanes=31 with window=128 or lanes=32 with window=127, or a longer text"),
        (100, 32, 128, "use lanes=32 with window=3, or a longer text"),
        (20, 32, 10, "use lanes=1 with window=10, or a longer text"),
        (15, 32, 10, "use lanes=1 with window=7, or a longer text"),
        (1, 1, 1, "use a longer text"),
    ],
)
def test_too_short_says_what_fits(tokens: int, lanes: int, window: int, advice: str) -> None:
    with pytest.raises(TooShortError, match="too short") as caught:
        Lanes(counting(tokens), lanes, window, seed=0)
    said = (
        f"the text is too short: it holds {tokens} tokens, and {lanes} lanes of {window}-token windows take at least "
        f"{(lanes + 1) * window}; "
    )
    assert str(caught.value) == said + advice
    flags = re.sub(r"lanes=(\d+) with window=(\d+)", r"--lanes \1 --window \2", advice)
    assert caught.value.with_flags() == said + flags


@given(st.integers(2, 300), st.integers(1, 40), st.integers(1, 40))
def test_what_the_error_advises_works(tokens: int, lanes: int, window: int) -> None:
    try:
        Lanes(counting(tokens), lanes, window, seed=0)
    except ValueError as error:
        advised = [part.split(" with ") for part in str(error).split("; use ")[1].split(", or")[0].split(" or ")]
        for pair in advised:
            numbers = {name: int(value) for name, value in (term.split("=") for term in pair)}
            assert Lanes(counting(tokens), numbers["lanes"], numbers["window"], seed=0).windows_per_epoch >= 1
    else:
        assert tokens >= (lanes + 1) * window


def test_wrong_numbers() -> None:
    for lanes, window, says in (
        (0, 4, "lanes must be at least 1, got 0"),
        (2, -1, "window must be at least 1, got -1"),
    ):
        with pytest.raises(ValueError, match=says):
            Lanes(counting(100), lanes, window, seed=0)
    with pytest.raises(ValueError, match="seed must be 0 or more, got -1"):
        Lanes(counting(100), 2, 4, seed=-1)


def test_there_is_no_window_beyond_the_epoch() -> None:
    lanes = Lanes(counting(27), 2, 4, seed=0)
    for epoch, index in ((0, 2), (3, -1), (-1, 0)):
        with pytest.raises(IndexError, match=rf"no window {index} in epoch {epoch}: .* have windows 0 to 1; after"):
            lanes.window(epoch, index)
