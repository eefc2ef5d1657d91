"""experiments/rlvr.py: what is post-training worth, and is it more than sampling at a lower temperature?

    CKPT --post_train.py--> after        one for each seed
         --train_gpt.py---> more_likelihood, with as many updates
         ------------------> before, and at the temperature that is best on other videos

PSNR and SSIM of one future at temperature 1 and at the best one, and of the best of K at 1, of new episodes
of PushWorld, or of validation segments.

Run: python -m experiments.rlvr --processes 2                     (two hours on two cores)"""

import statistics
from types import SimpleNamespace

import torch
from tqdm import tqdm

from common import configure, require_positive, run
from evaluate import measure, reward_correlation
from experiments.lab import open_world, train
from support.files import beside
from support.results import claim_result, draw_curves, write_result
from support.segments import segments_for

CONFIG = dict(
    preset="tiny",  # of train_gpt.py
    ckpt="assets/push-tiny.pt",
    data="data/push",  # to learn from
    videos_of="",  # to measure on; by default what the checkpoint says
    videos=64,
    horizon=14,  # frames that are imagined
    samples=20,  # futures of each video, whose mean counts
    best_of=(1, 5, 20, 100),
    temperatures=(0.0, 0.3, 0.5, 0.7, 1.0),
    seeds=3,
    processes=1,  # with batch_size contexts each
    batch_size=4,
    batches=100,  # of post-training
    mini_batches=4,  # updates of each
    lr=5e-5,
    likelihood_lr=3e-4,
    device="",
    dtype="auto",
    seed=0,
    folder="out/rlvr",
    out="out/rlvr/numbers.json",
    overwrite=False,
)


def futures(world, data, K, batch_size=80):
    """PSNR and SSIM {metric: (N, K)} of K futures of each video, and the correlation of rewards."""
    videos = max(1, batch_size // K)
    cfg = SimpleNamespace(samples=K, batch_size=batch_size)
    parts = []
    for start in tqdm(range(0, len(data["frames"]), videos), "futures"):
        parts.append(measure(world, data, slice(start, start + videos), cfg, {}))
    values = {}
    for name in ("psnr", "ssim"):
        tables = [part["metrics"]["model"][name][:, :, world.context_frames :] for part in parts]
        values[name] = torch.cat(tables).mean(2)
    return values, reward_correlation(parts)


def at_temperature(cfg, ckpt, data, temperature):
    """A row {metric: mean over futures and videos}."""
    world = open_world(cfg, ckpt)
    world.temperature = temperature
    values, correlation = futures(world, data, cfg.samples if temperature else 1)
    return dict({name: value.mean().item() for name, value in values.items()}, rewards=correlation)


def over_seeds(rows):
    """Rows {metric: number} -> {metric: {mean, min, max}}."""
    numbers = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if None not in values:
            numbers[name] = dict(mean=statistics.mean(values), min=min(values), max=max(values))
    return numbers


def learn(cfg, seed):
    """The checkpoints of both ways to go on from cfg.ckpt."""
    paths = {name: f"{cfg.folder}/{name}-{seed}.pt" for name in ("after", "more_likelihood")}
    how = dict(ckpt=cfg.ckpt, horizon=cfg.horizon, mini_batches=cfg.mini_batches, lr=cfg.lr)
    train("post_train.py", paths["after"], cfg, cfg.batches, preset="push", seed=seed, **how)
    how = dict(init_from=cfg.ckpt, segment_length=cfg.horizon + 2, lr=cfg.likelihood_lr)
    updates = cfg.batches * cfg.mini_batches
    train("train_gpt.py", paths["more_likelihood"], cfg, updates, seed=seed, **how)
    return paths


def main(cfg):
    require_positive(cfg, "videos", "horizon", "samples", "seeds", "batches", "mini_batches")
    cfg.out = claim_result(cfg.out, cfg.overwrite)
    paths = [learn(cfg, seed) for seed in range(cfg.seed, cfg.seed + cfg.seeds)]
    world = open_world(cfg, cfg.ckpt)
    data = segments_for(world, cfg.videos_of, cfg.videos, cfg.horizon, cfg.seed)
    others = segments_for(world, cfg.videos_of, cfg.videos, cfg.horizon, cfg.seed + 1)
    tried = {T: at_temperature(cfg, cfg.ckpt, others, T)["psnr"] for T in cfg.temperatures}
    T = max(tried, key=tried.get)
    numbers = dict(seeds=cfg.seeds, temperature=T, temperatures=tried)
    for ending, temperature in (("", 1.0), ("_best_temperature", T)):
        numbers[f"before{ending}"] = at_temperature(cfg, cfg.ckpt, data, temperature)
        for name in paths[0]:
            rows = [at_temperature(cfg, path[name], data, temperature) for path in paths]
            numbers[name + ending] = over_seeds(rows)
    numbers["best_of"] = {str(k): {} for k in cfg.best_of}
    lines = {}
    for name, path in dict(before=cfg.ckpt, after=paths[0]["after"]).items():
        world = open_world(cfg, path)
        world.temperature = 1.0
        values, _ = futures(world, data, max(cfg.best_of))
        for k in cfg.best_of:
            best = {metric: value[:, :k].amax(1).mean().item() for metric, value in values.items()}
            numbers["best_of"][str(k)][name] = best
            lines.setdefault(name, []).append((k, best["psnr"]))
    write_result(cfg.out, numbers)
    draw_curves(beside(cfg.out, ".png"), [("", "best of so many futures", "PSNR (dB)", lines)], log_x=True)


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__))
