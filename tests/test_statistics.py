"""Interquartile means, intervals and improvement against the package rliable."""

import numpy as np
import pytest

from support.statistics import bootstrap, improvement, interquartile_mean

X = np.random.default_rng(0).random(10)
Y = np.random.default_rng(1).random(7) + 0.1


def test_the_same_numbers_as_rliable():
    """Its aggregate_iqm, probability_of_improvement and get_interval_estimates (1.2.0, 10,000 draws)."""
    assert interquartile_mean(X) == pytest.approx(0.5999626614170331)
    assert interquartile_mean(Y) == pytest.approx(0.7046663133282006)
    assert improvement(X, Y) == pytest.approx(0.4)
    assert bootstrap(interquartile_mean, X) == pytest.approx([0.30035119, 0.79803066], abs=0.02)
    assert bootstrap(interquartile_mean, Y) == pytest.approx([0.42289508, 0.97608134], abs=0.02)
    assert bootstrap(improvement, X, Y) == pytest.approx([0.12857143, 0.71428571], abs=0.02)


def test_equal_runs_count_half_and_leave_no_interval():
    assert improvement([1, 1], [1, 0]) == 0.75
    assert bootstrap(interquartile_mean, [0.3] * 5).tolist() == [0.3, 0.3]
    assert interquartile_mean([0, 1]) == 0.5


def test_rows_of_several_numbers_are_drawn_whole():
    """A curve is a row: its numbers belong together."""
    curves = np.stack([X, 2 * X], 1)
    low, high = bootstrap(lambda drawn: interquartile_mean(drawn.swapaxes(1, 2)), curves)
    assert low[1] == pytest.approx(2 * low[0]) and high[1] == pytest.approx(2 * high[0])
