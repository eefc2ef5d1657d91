"""experiments/torture/endurance.py: long loops; at the end, memory, speed and results are as at the start.

    one step, 100,000 times --> memory and time of the second tenth against those of the last

The machine's noise moves times by a fifth; a leak of a byte per step is no more than 0.1 MB."""

import time
from pathlib import Path

import numpy as np
import torch
from tqdm import trange

from data import Episodes
from drq import Replay
from sample import WorldModel

ROWS = 100  # of an episode of the replay
MOST_GROWTH = 20  # MB
MOST_SLOWER = 1.5


def memory():
    """MB that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def watch(name, step, times):
    """Call step() so many times -> its numbers; `same`: the first and the last results with the same seed."""
    tenth = max(1, times // 10)
    first = step(seed=0)
    marks = []
    for i in trange(1, times, desc=name):
        if i % tenth == 0:
            marks.append((time.perf_counter(), memory()))
        step()
    marks.append((time.perf_counter(), memory()))
    seconds = np.diff([when for when, _ in marks])
    growth = marks[-1][1] - marks[min(1, len(marks) - 1)][1]
    slower = float(seconds[-1] / seconds[0]) if len(seconds) > 1 else 1.0
    same = all(np.array_equal(a, b) for a, b in zip(first, step(seed=0), strict=True))
    return dict(times=times, growth_mb=round(growth, 1), slower=round(slower, 3), same=same)


def frames_of(world):
    """A step of one dream that never ends; with a seed, twenty of a new one."""
    model = WorldModel.load(world.gpt, "cpu")
    context = Episodes(world.data, "val").batch(0, 1, model.context_frames)["frames"]
    model.reset(context)
    actions = torch.zeros(1, model.action_dim)

    def step(seed=None):
        if seed is None:
            return model.step(actions)
        fresh = model.session(seed)
        fresh.reset(context)
        return [fresh.step(actions)[0].numpy() for _ in range(20)]

    return step


def resets_of(world):
    """A new context and its first frame."""
    model = WorldModel.load(world.gpt, "cpu")
    contexts = Episodes(world.data, "val").batch(0, 8, model.context_frames)["frames"]
    actions = torch.zeros(2, model.action_dim)
    rng = np.random.default_rng(0)

    def step(seed=None):
        dream, i = (model, rng.integers(8)) if seed is None else (model.session(seed), 0)
        dream.reset(contexts[i : i + 1], n_branches=2)
        return [dream.step(actions)[0].numpy()]

    return step


def replay_of(world):
    """An episode more, and a batch of what is there; with a seed, of the first episode's rows."""
    replay = Replay(world.folder / "replay", 8, 2)
    replay.folder.mkdir()
    rng = np.random.default_rng(0)
    frames_u8 = rng.integers(0, 256, (ROWS, 8, 8, 3), np.uint8)
    actions = rng.uniform(-1, 1, (ROWS - 1, 2))

    def step(seed=None):
        if seed is None or not len(replay):
            replay.add(frames_u8, actions, actions[:, 0])
            replay.windows(8, 2, 3, rng)
        return [replay.read(0, 0, ROWS)]

    return step


def segments_of(world):
    """A batch of 64 segments."""
    episodes = Episodes(world.data, "train")
    count = iter(range(10**9))

    def step(seed=None):
        first = 0 if seed is not None else 64 * next(count)
        return list(episodes.batch_u8(first, 64, 4).values())

    return step


def torture(world, share, say=print):
    """All loops, at so large a share of their lengths -> counts, and the numbers of each."""
    loops = dict(
        frames=(frames_of, 100_000), resets=(resets_of, 10_000), replay=(replay_of, 10**6 // ROWS),
        segments=(segments_of, 10**6 // 64),
    )  # fmt: skip
    found = {}
    for name, (make, times) in loops.items():
        found[name] = watch(name, make(world), max(20, round(times * share)))
    bad = []
    for name, numbers in found.items():
        if not numbers["same"] or numbers["growth_mb"] > MOST_GROWTH or numbers["slower"] > MOST_SLOWER:
            bad.append(name)
            say(f"{name}: {numbers}")
    return dict(tried=len(found), failed=len(bad), loops=found)
