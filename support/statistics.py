"""support/statistics.py: what a few runs say for certain (Agarwal et al. 2021, arXiv 2108.13264).

The same as their package rliable for one task, whose runs differ in their seed alone."""

import numpy as np


def interquartile_mean(values):
    """Mean of the middle half of values (..., n): like a median, but with half of the runs' information."""
    ordered = np.sort(np.asarray(values, float), -1)
    n = ordered.shape[-1]
    return ordered[..., n // 4 : n - n // 4].mean(-1)


def improvement(x, y):
    """Probability that a run of x (..., n) is above one of y (..., m); equal ones count half."""
    x = np.asarray(x, float)[..., :, None]
    y = np.asarray(y, float)[..., None, :]
    return ((x > y) + 0.5 * (x == y)).mean((-2, -1))


def bootstrap(function, *groups, draws=10_000, level=0.95, seed=0):
    """Percentile interval [low, high] of function(*groups), each group of runs drawn anew with replacement.

    groups  arrays (n, ...), one row per run; `function` gets (draws, n, ...), and returns (draws, ...)"""
    rng = np.random.default_rng(seed)
    drawn = []
    for group in groups:
        group = np.asarray(group, float)
        drawn.append(group[rng.integers(0, len(group), (draws, len(group)))])
    tails = [(1 - level) / 2, (1 + level) / 2]
    return np.quantile(function(*drawn), tails, axis=0)
