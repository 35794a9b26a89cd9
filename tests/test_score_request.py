"""Which questions go together, and what to type where they do not."""

from pathlib import Path

import pytest

from unrolled.dynamic import Dynamic
from unrolled.score_request import ScoreRequest


def test_settings_are_those_that_were_given():
    assert ScoreRequest(dynamic=True).settings == {}
    given = ScoreRequest(dynamic=True, dynamic_lr=0.5, dynamic_decay=0.25, dynamic_segment=7, dynamic_sgd=True)
    assert Dynamic(**given.settings) == Dynamic(lr=0.5, decay=0.25, segment=7, method="sgd")


@pytest.mark.parametrize("given", [{"dynamic_lr": 0.0}, {"dynamic_sgd": True}, {"dynamic_tune": True}])
def test_settings_without_what_they_are_for(given):
    with pytest.raises(ValueError, match=r"which was not asked for: add --dynamic$"):
        ScoreRequest(**given)


def test_what_is_scored_is_not_what_is_tuned_on():
    tuning = {"dynamic": True, "dynamic_tune": True}
    for given in ({}, {"split": "val"}):
        with pytest.raises(ValueError, match="so that can't be what is scored; add --split test, or name a FILE"):
            ScoreRequest(**tuning, **given).check(())
    ScoreRequest(**tuning, split="test").check(())
    ScoreRequest(**tuning).check((Path("a"),))


def test_a_part_and_a_file():
    with pytest.raises(ValueError, match="--split test is a part of the run's own text; leave it out, or leave FILE"):
        ScoreRequest(split="test").check((Path("a"),))
    ScoreRequest(split="test").check(())
