"""experiments/temporal_distance.py: a goal cost that is learned from play: how far apart in time are two frames?

    segments (B,T,3,H,W) --network--> features (B,T,D);  between frames i and j of one segment
                                      |f_i - f_j| is to be |i - j|, and T or more from other segments' frames

Pixels weigh what moves by its area, and see no way between shapes that do not overlap. Time weighs it by how
long it takes to bring about: a block that has to be pushed counts for more than the hand that pushes it, and
distances grow smoothly. No labels, rewards or states are used.

Run: python -m experiments.temporal_distance --data data/pusht --out out/pusht/distance.pt
     python plan.py --preset pusht --features out/pusht/distance.pt"""

import warnings

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import trange

from common import configure, lr_at, require_positive, run
from data import Episodes, prefetch
from support.devices import find_device
from support.files import claim

CONFIG = dict(
    data="data/pusht",  # a folder of episodes
    out="out/pusht/distance.pt",  # TorchScript
    T=12,  # frames of a segment; distances are learned up to there
    batch_size=24,  # segments
    steps=3000,
    lr=1e-3,
    channels=64,
    features=32,
    device="",
    seed=0,
    overwrite=False,
)


class Features(nn.Sequential):
    """Frames (M,3,H,W) -> features (M,D)."""

    def __init__(self, size, C, D):
        super().__init__(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, C, 3, 1, 1), nn.SiLU(),
            nn.Conv2d(C, 2 * C, 3, 2, 1), nn.SiLU(),
            nn.Conv2d(2 * C, 2 * C, 3, 2, 1), nn.SiLU(),
            nn.Flatten(),
            nn.Linear(2 * C * (size // 16) ** 2, 4 * C), nn.SiLU(),
            nn.Linear(4 * C, D),
        )  # fmt: skip


def distance_loss(features, T):
    """Features (B,T,D) -> loss: of distances within segments, and of distances to other segments below T."""
    B = len(features)
    x = features.flatten(0, 1)
    distance = (x[:, None] - x[None]).square().sum(-1).add(1e-6).sqrt().view(B, T, B, T)
    time = torch.arange(T, device=x.device)
    apart = (time[:, None] - time[None]).abs()
    own = torch.eye(B, dtype=torch.bool, device=x.device)
    within = distance.transpose(1, 2)[own] - apart  # (B,T,T)
    across = F.relu(T - distance.transpose(1, 2)[~own])
    return within.square().mean(), across.square().mean()


def main(cfg):
    require_positive(cfg, "T", "batch_size", "steps", "channels", "features")
    cfg.out = claim(cfg.out, overwrite=cfg.overwrite)
    device = find_device(cfg.device)
    torch.manual_seed(cfg.seed)
    episodes = Episodes(cfg.data)
    size = episodes.frame_shape[0]
    network = Features(size, cfg.channels, cfg.features).to(device)
    optimizer = torch.optim.AdamW(network.parameters())

    def fetch(i):
        return episodes.batch_u8(i * cfg.batch_size, cfg.batch_size, cfg.T, cfg.seed)

    batches = prefetch(fetch, 0, cfg.steps, device)
    progress = trange(cfg.steps)
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, cfg.lr, 100, cfg.steps, "cosine")
        frames = next(batches)["frames"]
        features = network(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        within, across = distance_loss(features, cfg.T)
        optimizer.zero_grad()
        (within + across).backward()
        optimizer.step()
        if step % 50 == 0:
            progress.set_postfix(within=within.item(), across=across.item())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is old
        script = torch.jit.trace(network.eval().cpu(), torch.zeros(2, 3, size, size))
        script.save(cfg.out)
    print(f"written to {cfg.out}")


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__))
