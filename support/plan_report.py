"""support/plan_report.py: what plan.py tells of its episodes: why they failed, GIFs, a table."""

import statistics

import numpy as np
import torch

from data import to_float
from support.pictures import save_gif


def draw(path, goal, frames_u8, decisions):
    """GIF: goal | executed | first | last frame scored of the newest decision's best future (grey: none).

    frames_u8  the start's, and what each decision led to"""
    executed = to_float(np.stack(frames_u8))
    columns = [goal.cpu().expand_as(executed), executed]
    for k in (0, -1) if decisions else ():
        column = [torch.full_like(executed[0], 0.5)]
        for at in range(len(executed) - 1):
            made = [d for d in decisions if d.made_at <= at]
            column.append(made[-1].best_future[k] if made else column[0])
        columns.append(torch.stack(column))
    save_gif(path, torch.stack(columns), fps=3)


def diagnose(bench, decisions, task):
    """Why an episode failed: {reason: distance}, means over its decisions (after appendix C.3).

    The simulator tells how near each candidate comes to the goal. Three gaps in distance add up: from success
    to the nearest candidate (`never sampled`), from there to the best by the score on true frames (`ranked
    low`), and from there to the best by the score on imagined frames (`imagined wrong`)."""
    gaps = []
    for decision in decisions:
        bench.env.restore(decision.state)
        frames, rewards, distances = bench.simulate(np.concatenate(decision.candidates), task)
        least = distances.min(1)
        of_score = least[bench.score(frames, rewards, task.goal).argmax().item()]
        of_model = least[decision.scores.argmax()]
        gaps.append(np.diff([bench.env.tolerance, least.min(), of_score, of_model]))
    never, low, wrong = np.mean(gaps, 0).tolist()
    return {"never sampled": never, "ranked low": low, "imagined wrong": wrong}


def summarize(records, seeds):
    """Records of one model -> its numbers; mean, min and max are taken over the seeds' success rates."""
    rates = []
    for seed in range(seeds):
        rates.append(statistics.mean(r["success"] for r in records if r["seed"] == seed))
    row = dict(mean=statistics.mean(rates), min=min(rates), max=max(rates), seeds=rates)
    row["least_distance"] = statistics.mean(r["least"] for r in records)
    seconds = [r["seconds"] for r in records if "seconds" in r]
    if seconds:
        row["seconds"] = statistics.median(seconds)  # per decision
    shortfalls = [r["shortfall"] for r in records if "shortfall" in r]
    if shortfalls:
        largest = [max(shortfall, key=shortfall.get) for shortfall in shortfalls]
        row["failures"] = {reason: largest.count(reason) for reason in shortfalls[0]}
        row["shortfall"] = {k: statistics.mean(s[k] for s in shortfalls) for k in shortfalls[0]}
    return row


def tabulate(records, models, seeds):
    """Print a table of all records; returns {model: numbers}, and shares of the oracle's successes."""
    numbers = {}
    print(f"{'':14}{'success':>9}{'min':>7}{'max':>7}{'s/decision':>12}")
    for model in models:
        row = summarize([r for r in records if r["model"] == model], seeds)
        seconds = f"{row['seconds']:12.3g}" if "seconds" in row else ""
        print(f"{model:14}{row['mean']:9.3f}{row['min']:7.2f}{row['max']:7.2f}{seconds}")
        if "failures" in row:
            print(f"  causes of failure: {row['failures']}")
        numbers[model] = row
    oracle = numbers["oracle"]["mean"] if "oracle" in models else 0
    if oracle:
        numbers["share_of_oracle"] = {model: numbers[model]["mean"] / oracle for model in models}
    return numbers
