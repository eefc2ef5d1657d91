"""experiments/mbpo_report.py: numbers and curves of the runs RUNS/NAME-SEED.jsonl of mbpo.py, by NAME.

Run: python -m experiments.mbpo_report --runs out/mbpo --out results/mbpo-push     writes OUT.json, OUT.png"""

import statistics
from pathlib import Path

from common import configure, run
from support.results import claim_result, draw_curves, read_curve, write_result

CONFIG = dict(runs="out/mbpo", out="results/mbpo-push", overwrite=False)


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


def summary(runs, step):
    """Mean and range of the success of runs {seed: curve} at a step."""
    values = [dict(curve)[step] for curve in runs.values()]
    return dict(step=step, mean=statistics.mean(values), min=min(values), max=max(values))


def main(cfg):
    claim_result(f"{cfg.out}.json", cfg.overwrite, (".png",))
    numbers, means = {}, {}
    names = read_runs(cfg.runs)
    shared = common_steps([curve for runs in names.values() for curve in runs.values()])
    if not shared:
        raise ValueError(f"{cfg.runs}: no step at which all runs were evaluated; pass the same --eval_every")
    for name, runs in names.items():
        steps = common_steps(runs.values())
        row = dict(success=runs, same_budget=summary(runs, shared[-1]), final=summary(runs, steps[-1]))
        print(f"\n{name}, {len(runs)} seeds")
        for percent in (50, 80):
            first = {}
            for seed, curve in runs.items():
                first[seed] = next((step for step, success in curve if 100 * success >= percent), None)
            row[f"steps_to_{percent}"] = first
            print(f"  steps to {percent} % success:", *(step or "never" for step in first.values()))
        for title in ("same_budget", "final"):  # after the steps that all runs have taken, and at the end
            text = "success after {step} steps: {mean:.2f} ({min:.2f} to {max:.2f})".format(**row[title])
            print(f"  {title}: {text}")
        numbers[name] = row
        means[name] = [(step, summary(runs, step)["mean"]) for step in steps]
    write_result(f"{cfg.out}.json", numbers)
    panels = [(name, "real steps", "success", runs) for name, runs in names.items()]
    draw_curves(f"{cfg.out}.png", [("mean of seeds", "real steps", "success", means), *panels])


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__))
