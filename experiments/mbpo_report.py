"""experiments/mbpo_report.py: numbers and curves of the runs RUNS/NAME-SEED.jsonl of mbpo.py, by NAME.

Interquartile means over seeds with bootstrap intervals of 95 %, after Agarwal et al. 2021. Where there are
runs NAME and BASELINE, also the ratio of their real steps to 80 % success, over the steps that all have
taken; a run that never gets there counts as if it did at the end, which flatters the worse of the two.

Run: python -m experiments.mbpo_report --runs out/mbpo --out results/mbpo-push     writes OUT.json, OUT.png"""

import statistics
from pathlib import Path

import numpy as np

from common import configure, run
from support.results import claim_result, draw_curves, read_curve, write_result
from support.statistics import bootstrap, improvement, interquartile_mean

CONFIG = dict(runs="out/mbpo", out="results/mbpo-push", name="mbpo", baseline="drq", overwrite=False)


def read_runs(folder):
    """{name: {seed: [[step, success], ...]}} of all evaluated runs in a folder.   raises  ValueError"""
    names = {}
    for path in sorted(Path(folder).glob("*-*.jsonl")):
        name, seed = path.stem.rsplit("-", 1)
        curve = dict(read_curve(path, "eval_").get("eval_success", []))  # a resumed run may repeat a step
        if curve:
            names.setdefault(name, {})[seed] = [list(point) for point in curve.items()]
    if not names:
        raise ValueError(f"{folder} has no evaluated run; train some with --out {folder}/NAME-SEED.pt")
    return names


def common_steps(curves):
    """The steps at which all of several curves have a point, in order."""
    return sorted(set.intersection(*({step for step, _ in curve} for curve in curves)))


def table(runs, steps):
    """Success (seeds, steps) of runs {seed: curve}."""
    return np.array([[dict(curve)[step] for step in steps] for curve in runs.values()])


def summary(runs, step):
    """Mean, range and interquartile mean with its interval of the success of runs {seed: curve} at a step."""
    values = table(runs, [step])[:, 0]
    low, high = bootstrap(interquartile_mean, values)
    numbers = dict(step=step, mean=statistics.mean(values), min=values.min(), max=values.max())
    return numbers | dict(iqm=interquartile_mean(values), low=low, high=high)


def steps_to(runs, success, last):
    """{seed: the first step up to `last` with that success, or None}."""
    first = {}
    for seed, curve in runs.items():
        first[seed] = next((step for step, value in curve if value >= success and step <= last), None)
    return first


def banded(runs, steps):
    """Points (step, interquartile mean, low, high) of the success of runs."""
    values = table(runs, steps)
    low, high = bootstrap(lambda drawn: interquartile_mean(drawn.swapaxes(1, 2)), values)
    return np.stack([steps, interquartile_mean(values.T), low, high], 1)


def not_yet(first, steps):
    """Points (step, share of the runs that have not been at 80 % by then): a survival curve."""
    arrived = np.array([step or np.inf for step in first.values()])
    return [(step, (arrived > step).mean()) for step in (0, *steps)]


def compare(name, baseline, last):
    """How many real steps of the baseline's runs the others need, up to `last`, with an interval."""
    groups = []
    for runs in (name, baseline):
        groups.append(np.array([step or last for step in steps_to(runs, 0.8, last).values()]))

    def ratio(x, y):
        return interquartile_mean(x) / interquartile_mean(y)

    better = improvement(table(name, [last])[:, 0], table(baseline, [last])[:, 0])
    interval = list(bootstrap(ratio, *groups))
    return dict(mean=ratio(*groups), interval=interval, steps=last, improvement=better)


def main(cfg):
    claim_result(f"{cfg.out}.json", cfg.overwrite, (".png",))
    numbers, curves, waiting, panels = {}, {}, {}, []
    names = read_runs(cfg.runs)
    shared = common_steps([curve for runs in names.values() for curve in runs.values()])
    if not shared:
        raise ValueError(f"{cfg.runs}: no step at which all runs were evaluated; pass the same --eval_every")
    for name, runs in names.items():
        steps = common_steps(runs.values())
        row = dict(success=runs, same_budget=summary(runs, shared[-1]), final=summary(runs, steps[-1]))
        print(f"\n{name}, {len(runs)} seeds")
        for percent in (50, 80):
            first = row[f"steps_to_{percent}"] = steps_to(runs, percent / 100, steps[-1])
            print(f"  steps to {percent} % success:", *(step or "never" for step in first.values()))
        for title in ("same_budget", "final"):  # after the steps that all runs have taken, and at the end
            text = "after {step} steps: mean {mean:.2f} ({min:.2f} to {max:.2f}), "
            text += "interquartile mean {iqm:.2f} ({low:.2f} to {high:.2f})"
            print(f"  {title}: success", text.format(**row[title]))
        numbers[name] = row
        curves[name] = banded(runs, steps)
        waiting[name] = not_yet(first, steps)
        panels.append((name, "real steps", "success", runs))
    if {cfg.name, cfg.baseline} <= names.keys():
        ratio = numbers["ratio_to_80"] = compare(names[cfg.name], names[cfg.baseline], shared[-1])
        text = "\nreal steps to 80 %: {mean:.2f} of {baseline}'s ({interval[0]:.2f} to {interval[1]:.2f})"
        print(text.format(baseline=cfg.baseline, **ratio))
    write_result(f"{cfg.out}.json", numbers)
    means = "interquartile mean of seeds", "real steps", "success", curves
    survival = "not yet at 80 %", "real steps", "share of seeds", waiting
    draw_curves(f"{cfg.out}.png", [means, survival, *panels])


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__))
