"""experiments/tokenizers.py: the compressive tokenizer against ones that encode frame by frame (Figure 9c).

All are trained alike; the table has the quality of decoded future frames, and costs as in Tables 7 and 8.

Run: python -m experiments.tokenizers"""

import torch

from checkpoints import load_tokenizer
from common import autocast_for, configure, find_device, run
from data import Episodes
from evaluate import find_networks, frame_metrics
from experiments.lab import TRAINING, VIDEOS, draw_sheet, sizes, train
from experiments.speed import tokenizer_costs
from results import claim_result, report

CONFIG = dict(
    **TRAINING,
    **VIDEOS,
    kinds=("compressive", "16x16", "4x4"),
    patch=2,
    steps=1000,
    clips=1,  # segments of an update whose cost is measured
    repeats=4,  # as in speed.py
    folder="out/tokenizers",
    out="out/tokenizers/numbers.json",
)


def main(cfg):
    _, settings = sizes(cfg.preset)
    cfg.out = claim_result(cfg.out, cfg.overwrite)
    cfg.device = find_device(cfg.device)
    networks, missing = find_networks(cfg.device, cfg.lpips, "")
    tokenizer_settings, settings = sizes(cfg.preset)
    t = tokenizer_settings["context_frames"]
    settings = dict(settings, segment_length=t + cfg.horizon)
    clips = Episodes(cfg.data, "val").segments(cfg.videos, t + cfg.horizon, seed=cfg.seed)["frames"]
    columns = {}
    videos = [clips[:2]]
    for kind in cfg.kinds:
        path = f"{cfg.folder}/{kind}.pt"
        # without decoupling: the paper's objective
        train("train_tokenizer.py", path, cfg, cfg.steps, kind=kind, patch=cfg.patch, decouple_start=-1)
        tokenizer = load_tokenizer(path).to(cfg.device).eval()
        decoded = []
        for part in clips.split(cfg.batch_size):
            with torch.no_grad(), autocast_for(cfg.device, cfg.dtype):
                frames = tokenizer.decode(tokenizer.encode(part.to(cfg.device)))
            decoded.append(frames.float().clamp(0, 1))
        decoded = torch.cat(decoded)
        videos.append(decoded[:2])
        quality = frame_metrics(decoded[:, None, t:], clips[:, t:].to(cfg.device), networks.get("lpips"))
        row = {metric: value.mean().item() for metric, value in quality.items()}
        costs = tokenizer_costs(cfg, {**tokenizer_settings, "patch": cfg.patch}, settings, kind)
        row["tokens"] = costs.pop("tokens")
        for name, cost in costs.items():
            row[f"{name} (s)"] = cost["seconds"]
        for name, value in row.items():
            columns.setdefault(name, {})[kind] = value
    report(cfg.out, columns, missing=missing, steps=cfg.steps)
    draw_sheet(cfg, videos)


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__))
