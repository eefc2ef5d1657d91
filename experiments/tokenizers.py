"""experiments/tokenizers.py: the compressive tokenizer against ones that encode frame by frame (Figure 9c).

All are trained alike. Their costs: `python -m experiments.speed --parts tokenizers`.

Run: python -m experiments.tokenizers"""

import torch

from checkpoints import load_tokenizer
from common import configure, run
from data import Episodes
from evaluate import find_networks, frame_metrics
from experiments.lab import TRAINING, VIDEOS, draw_sheet, sizes, train
from support.devices import autocast_for, find_device
from support.results import claim_result, report

CONFIG = dict(
    **TRAINING,
    **VIDEOS,
    kinds=("compressive", "16x16", "4x4"),
    patch=4,
    steps=1000,
    folder="out/tokenizers",
    out="out/tokenizers/numbers.json",
)


def main(cfg):
    t = sizes(cfg.preset)[0]["context_frames"]
    cfg.out = claim_result(cfg.out, cfg.overwrite)
    device = find_device(cfg.device)
    networks, missing = find_networks(device, cfg.lpips, cfg.fvd)
    clips = Episodes(cfg.data, "val").segments(cfg.videos, t + cfg.horizon, seed=cfg.seed)["frames"]
    columns = dict(tokens={})
    videos = [clips[:2]]
    for kind in cfg.kinds:
        path = f"{cfg.folder}/{kind}.pt"
        train("train_tokenizer.py", path, cfg, cfg.steps, kind=kind, patch=cfg.patch)
        tokenizer = load_tokenizer(path).to(device).eval()
        decoded = []
        for part in clips.split(cfg.batch_size):
            with torch.no_grad(), autocast_for(device, cfg.dtype):
                tokens = tokenizer.encode(part.to(device))
                decoded.append(tokenizer.decode(tokens).float().clamp(0, 1))
        decoded = torch.cat(decoded)
        videos.append(decoded[:2])
        columns["tokens"][kind] = tokens.shape[1]
        quality = frame_metrics(decoded[:, None, t:], clips[:, t:].to(device), networks.get("lpips"))
        for metric, values in quality.items():
            columns.setdefault(metric, {})[kind] = values.mean().item()
    report(cfg.out, columns, missing=missing, steps=cfg.steps)
    draw_sheet(cfg, videos)


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__))
