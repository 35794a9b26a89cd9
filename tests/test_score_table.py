"""The tables to the letter."""

import numpy as np

from unrolled.evaluate import Bars, Evaluation, PositionCurve, Score
from unrolled.score_table import position_table, score_table


def scores(*nats: float) -> list[Score]:
    return [Score(each, 1.5 * each, np.exp(each), 1000) for each in nats]


def test_both_scores_without_bars():
    _, stateful, blocks, legend = score_table(Evaluation(*scores(1.5, 1.75))).splitlines()
    assert stateful.split() == ["model,", "stateful", "1.5000", "2.2500", "4.482", "1,000"]
    assert blocks.split() == ["model,", "blocks", "1.7500", "2.6250", "5.755", "1,000"]
    assert "256" in legend


def test_bars_stand_below_the_scores():
    evaluation = Evaluation(*scores(1.5, 1.75), Bars(*scores(3.0, 1.6), order=5, counted=200, tokens=200))
    lines = score_table(evaluation).splitlines()
    assert [line.split()[:2] for line in lines[3:5]] == [["unigram", "3.0000"], ["5-gram", "1.6000"]]
    assert lines[-1] == "unigram, 5-gram: counted in the training text (200 tokens), modified Kneser-Ney"
    assert len({len(line) for line in lines[:5]}) == 1


def test_a_part_of_the_text_and_a_model_that_is_no_better_are_told():
    bars = Bars(*scores(3.0, 1.5), order=4, counted=200, tokens=3000)
    lines = score_table(Evaluation(*scores(1.5, 1.75), bars)).splitlines()
    assert "(the last 200 of 3,000 tokens)" in lines[-2]
    assert lines[-1] == "This model predicts no better than counting 4 tokens in a row does."


def test_positions_in_octaves():
    curve = PositionCurve(
        warm=np.array([1.0, 2.0, 3.0, 5.0, 7.0, np.nan]),
        cold=np.array([2.0, 2.0, 4.0, 8.0, 7.0, np.nan]),
        tokens=np.array([10, 10, 3, 1, 1, 0]),
    )
    _, *rows, _ = position_table(curve).splitlines()
    assert [row.split() for row in rows] == [
        ["1", "1.0000", "2.0000", "10"],
        ["2", "2.0000", "2.0000", "10"],
        ["3", "to", "4", "3.5000", "5.0000", "4"],
        ["5", "to", "6", "7.0000", "7.0000", "1"],
    ]
