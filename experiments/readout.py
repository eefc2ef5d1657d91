"""experiments/readout.py: where are disc and block in a picture of PushT? A network for plan.py's goal cost.

    random states (n,5) --Painter--> frames (n,3,H,W) --network--> features (n,6): both places, a direction

Pixels weigh things by their area: they lose the small disc beside the T, and see no way between shapes that
do not overlap. Here distances are the benchmark's: 1 is 20 of its lengths, or pi/9; times BLOCK for the
block, because it takes the disc longer to move the block than to move itself. States are the simulator's: a
model that plans with this knows what things are, as the benchmark's with proprioception do.

Run: python -m experiments.readout --out out/pusht/readout.pt               (a quarter of an hour of a core)
     python plan.py --preset pusht --features out/pusht/readout.pt"""

import warnings

import numpy as np
import torch
from torch import nn
from tqdm import trange

from common import configure, lr_at, require_positive, run
from data import to_float
from envs.pusht import AGENT, MIDDLE, SIDE, Painter, depth, turned
from support.files import claim

CONFIG = dict(
    out="out/pusht/readout.pt",  # TorchScript
    size=64,
    steps=3000,
    batch_size=128,
    lr=2e-3,
    noise=0.02,  # deviation, added to pixels: imagined frames are not perfect
    seed=0,
    overwrite=False,
)
BLOCK = 3.0  # how much more the block counts than the disc
PARTS = dict(disc=slice(0, 2), block=slice(2, 4), angle=slice(4, 6))
UNITS = dict(disc=20, block=20 / BLOCK, angle=20 / BLOCK)  # lengths and degrees of a distance of 1


class Readout(nn.Module):
    """Frames (M,3,H,W) -> features (M,6), from the places of K things that it looks for (Finn et al. 2016).

    A place is the mean over a softmax of the whole picture. Sharp ones are exact; flat ones have a gradient
    wherever the thing is: with sharp ones alone the disc is never found."""

    def __init__(self, size, C=32, K=24, hidden=256):
        super().__init__()
        self.convs = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(12, C, 3, padding=1), nn.ReLU(),
            nn.Conv2d(C, C, 3, padding=2, dilation=2), nn.ReLU(),
            nn.Conv2d(C, K, 3, padding=2, dilation=2),
        )  # fmt: skip
        layers = nn.Linear(2 * K, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden, 6))
        self.register_buffer("sharpness", torch.logspace(0, 1.5, K)[:, None, None])
        self.register_buffer("place", torch.linspace(-3, 3, size // 2))

    def forward(self, frames):
        maps = self.sharpness * self.convs(frames)
        maps = maps.flatten(2).softmax(-1).view_as(maps)
        places = maps.sum(2) @ self.place, maps.sum(3) @ self.place
        return self.mlp(torch.cat(places, 1))


def features_of(states):
    """What the network is to find (n,6) for states (n,5)."""
    disc, block = ((states[:, i : i + 2] - SIDE / 2) / 20 for i in (0, 2))
    direction = np.stack([np.cos(states[:, 4]), np.sin(states[:, 4])], 1) * 9 / np.pi
    return torch.from_numpy(np.concatenate([disc, BLOCK * block, BLOCK * direction], 1)).float()


def draw_states(n, rng):
    """About n states; in most of them the disc is near the block."""
    angle = rng.uniform(-np.pi, np.pi, n)
    block = rng.uniform(60, SIDE - 60, (n, 2))
    disc = rng.uniform(10, SIDE - 10, (n, 2))
    near = rng.random(n) < 0.7
    beside = block + turned(MIDDLE, angle) + rng.uniform(-110, 110, (n, 2))
    disc[near] = np.clip(beside[near], 10, SIDE - 10)
    states = np.concatenate([disc, block, angle[:, None]], 1)
    return states[depth(turned(disc - block, -angle)) > AGENT - 4]


def errors(found, states):
    """Median errors of features (n,6): of the disc and the block in the benchmark's lengths, of the angle in
    degrees."""
    wrong = found - features_of(states)
    return {name: UNITS[name] * wrong[:, part].norm(dim=1).median().item() for name, part in PARTS.items()}


def main(cfg):
    require_positive(cfg, "size", "steps", "batch_size")
    cfg.out = claim(cfg.out, overwrite=cfg.overwrite)
    torch.manual_seed(cfg.seed)
    rng = np.random.default_rng(cfg.seed)
    held_out = draw_states(1000, np.random.default_rng([cfg.seed, 1]))
    paint = Painter(cfg.size)
    network = Readout(cfg.size)
    optimizer = torch.optim.Adam(network.parameters())
    for step in trange(cfg.steps):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, cfg.lr, 100, cfg.steps, "cosine")
        states = draw_states(cfg.batch_size, rng)
        frames = to_float(paint(states))
        wrong = network(frames + cfg.noise * torch.randn_like(frames)) - features_of(states)
        loss = sum(wrong[:, part].square().sum(1).add(0.1).sqrt().mean() for part in PARTS.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval().requires_grad_(False)
    print({k: round(v, 2) for k, v in errors(network(to_float(paint(held_out))), held_out).items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is old
        torch.jit.trace(network, torch.zeros(2, 3, cfg.size, cfg.size)).save(cfg.out)
    print(f"written to {cfg.out}")


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__))
