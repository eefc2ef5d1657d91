"""experiments/dreams.py: how long does a dream hold? 60 frames of PushWorld imagined from 2.

    fresh episodes --imagine--> PSNR against the truth at some frames, and what is still there

An object is there while at least half as many pixels have its colour as in the true frame; objects that the
gripper hides are left out.

Run: python -m experiments.dreams"""

import numpy as np
import torch

from common import configure, require_positive, run
from data import to_float
from envs.base import HELD_OUT
from envs.push import ROBOTS, play_push
from evaluate import psnr
from experiments.lab import draw_sheet
from sample import WorldModel
from support.results import claim_result, report

CONFIG = dict(
    ckpt="assets/push-tiny.pt",
    videos=64,
    frames=(15, 30, 45, 60),  # of the dream, at which it is measured
    batch_size=16,
    temperature=-1.0,
    seed=0,
    device="",
    dtype="auto",
    out="out/dreams/numbers.json",
    overwrite=False,
)
NEAR = 0.25  # of colours, their distance in [0, 1]^3
LEAST = 20  # true pixels of an object that counts


def pixels_of(frames, colours):
    """Frames (B, T, 3, H, W), colours (B, k, 3) in [0, 1] -> how many pixels have each colour (B, T, k)."""
    counts = []
    for colour in colours.unbind(1):
        distance = (frames - colour[:, None, :, None, None]).norm(dim=2)
        counts.append((distance < NEAR).sum((2, 3)))
    return torch.stack(counts, 2)


def count_there(imagined, truth, colours):
    """How many objects of a frame are still there: (B, T)."""
    expected = pixels_of(truth, colours)
    found = pixels_of(imagined, colours)
    return ((found >= expected / 2) | (expected < LEAST)).sum(2)


@torch.no_grad()
def main(cfg):
    require_positive(cfg, "videos", "batch_size")
    if min(cfg.frames, default=0) < 1:
        raise ValueError(f"frames are {cfg.frames}; expected numbers of 1 or more")
    cfg.out = claim_result(cfg.out, cfg.overwrite)
    sampling = dict(temperature=cfg.temperature, seed=cfg.seed, dtype=cfg.dtype)
    world = WorldModel.load(cfg.ckpt, cfg.device, **sampling)
    if world.goal_conditioned:
        raise ValueError(f"{cfg.ckpt} is goal-conditioned; dreams need a model without goals")
    t = world.context_frames
    h = max(cfg.frames)
    size = world.tokenizer.config["resolution"]
    episodes = list(play_push(cfg.videos, t + h - 1, size, HELD_OUT + 1 + cfg.seed))
    clips = to_float(np.stack([episode["frames_u8"] for episode in episodes]))
    actions = torch.from_numpy(np.stack([episode["actions"] for episode in episodes]))[:, t - 1 :]
    blocks = torch.from_numpy(np.stack([episode["colours"] for episode in episodes]))
    gripper = torch.tensor(ROBOTS["red"][0]).expand(cfg.videos, 1, 3)
    colours = torch.cat([gripper, blocks], 1) / 255
    dreams = []
    for part, leading in zip(clips.split(cfg.batch_size), actions.split(cfg.batch_size), strict=True):
        world.reset(part[:, :t].to(world.device))
        dreams.append(world.rollout(leading, h)[0].cpu())
    dreams = torch.cat(dreams)
    truth = clips[:, t:]
    error = psnr(dreams, truth).mean(0)
    repeated = psnr(clips[:, t - 1 : t].expand_as(truth).contiguous(), truth).mean(0)
    there = count_there(dreams, truth, colours)
    objects = there.float().mean(0)
    all_there = (there == colours.shape[1]).float().mean(0)
    columns = dict(psnr={}, repeat_last={}, objects={}, all_there={})
    for k in cfg.frames:
        columns["psnr"][f"frame {k}"] = error[k - 1].item()
        columns["repeat_last"][f"frame {k}"] = repeated[k - 1].item()
        columns["objects"][f"frame {k}"] = objects[k - 1].item()
        columns["all_there"][f"frame {k}"] = all_there[k - 1].item()
    report(cfg.out, columns, videos=cfg.videos)
    draw_sheet(cfg, [truth[:4], dreams[:4]], count=12)


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__))
