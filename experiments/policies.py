"""experiments/policies.py: does the world model rank policies as the world does?

    RUNS/NAME-SEED/agents/STEP.pt --+--> success and return in imagination (CKPT) --+
    (mbpo.py --keep_agents true)    |                                               +--> correlations, a plot
    RUNS/NAME-SEED.jsonl -----------+--> the same in the real world ----------------+

A policy starts from the first real frames of the episodes that mbpo.py evaluates on. In imagination, a
success is a predicted reward of SUCCESS or more: a block on its pad is worth 1, less its distances.

Run: python -m experiments.policies                   (of the agents that experiments.mbpo_seeds trains)"""

import functools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from tqdm import tqdm

from common import configure, load_checkpoint, require_positive, run
from data import to_float
from drq import load_agent
from envs import make_environment
from envs.base import HELD_OUT
from mbpo import imagined_rollouts
from sample import WorldModel
from support.files import beside, read_log
from support.results import claim_result, write_result

CONFIG = dict(
    ckpt="assets/push-tiny.pt",
    runs="out/mbpo",
    episodes=50,
    temperature=-1.0,  # -1: as the checkpoint says
    device="",
    dtype="auto",
    seed=0,
    out="out/policies/numbers.json",
    overwrite=False,
)
SUCCESS = 0.5


def real_numbers(path):
    """{step: (success, return)} of a run's evaluations."""
    rows = [numbers for numbers in read_log(path) if "eval_success" in numbers]
    return {numbers["step"]: (numbers["eval_success"], numbers["eval_return"]) for numbers in rows}


def first_frames(settings, n, t):
    """The first t frames (n,t,3,H,W) of a run's evaluation episodes, no action taken, and how many follow."""
    made = SimpleNamespace(**settings)
    env = make_environment(made.task, n, HELD_OUT + made.seed, made.size, made.scene, made.robot)
    frames = [env.reset()]
    for _ in range(t - 1):
        frames.append(env.step(np.zeros((n, env.action_dim)))[0])
    return to_float(np.stack(frames, 1)), env.length - t + 1


def imagined_numbers(world, path, n):
    """Success and return of an agent in imagination, means of n episodes."""
    settings = load_checkpoint(path, needs=("agent", "train_config"))["train_config"]
    frames, horizon = first_frames(settings, n, max(world.context_frames, settings["stack"]))
    agent = load_agent(path, world.action_dim, settings["size"]).to(world.device)
    world.generator.manual_seed(0)
    policy = functools.partial(agent.act, std=0.0)
    _, _, rewards = imagined_rollouts(world, policy, frames.to(world.device), horizon)
    success = (rewards >= SUCCESS).any(1).float().mean()
    return success.item(), rewards.sum(1).mean().item()


def ranks(x):
    """Ranks of x (n,), equal numbers sharing the mean of theirs."""
    _, group, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[group]


def rank_violation(real, imagined):
    """Mean maximum rank violation (Li et al. 2024, SIMPLER): 0 if all pairs stand in the right order."""
    apart = np.abs(real[:, None] - real)
    wrong = (imagined[:, None] < imagined) != (real[:, None] < real)
    return (apart * wrong).max(1).mean()


def pearson(x, y):
    """Correlation of two columns (n,); 0 if one of them is constant."""
    x = x - x.mean()
    y = y - y.mean()
    return float(x @ y / max(np.sqrt((x @ x) * (y @ y)), 1e-12))


def agreement(real, imagined):
    """How alike two columns (n,) rank policies."""
    correlations = dict(spearman=pearson(ranks(real), ranks(imagined)), pearson=pearson(real, imagined))
    return dict(correlations, rank_violation=float(rank_violation(real, imagined)))


def draw(path, table):
    """Scatter plots of success and return: real against imagined."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        return print(f"no {path}: pip install matplotlib (the .json file has the numbers)")
    figure, axes = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
    for k, name in enumerate(("success", "return")):
        axes[k].scatter(table[:, k], table[:, 2 + k], s=12, alpha=0.6)
        axes[k].axline((0, 0), slope=1, color="grey", linewidth=0.5)
        axes[k].set(title=name, xlabel="in the world", ylabel="in imagination")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    print(f"drawn to {path}")


def main(cfg):
    require_positive(cfg, "episodes")
    out = claim_result(cfg.out, cfg.overwrite)
    agents = sorted(Path(cfg.runs).glob("*/agents/*.pt"))
    if len(agents) < 3:
        raise ValueError(f"{cfg.runs} has {len(agents)} agents; python -m experiments.mbpo_seeds trains some")
    world = WorldModel.load(cfg.ckpt, cfg.device, temperature=cfg.temperature, seed=cfg.seed, dtype=cfg.dtype)
    rows = {}
    for path in tqdm(agents, "agents"):
        run_path = path.parent.parent
        real = real_numbers(run_path.with_name(f"{run_path.name}.jsonl")).get(int(path.stem))
        if real:
            rows[f"{run_path.name}/{path.stem}"] = [*real, *imagined_numbers(world, path, cfg.episodes)]
    table = np.array(list(rows.values()))
    numbers = dict(agents=rows, spearman={}, pearson={}, rank_violation={})
    for k, name in enumerate(("success", "return")):
        for kind, value in agreement(table[:, k], table[:, 2 + k]).items():
            numbers[kind][name] = value
            print(f"{name}: {kind} {value:.2f}")
    write_result(out, numbers)
    draw(beside(out, ".png"), table)


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__))
