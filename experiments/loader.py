"""experiments/loader.py: how fast a process reads segments, without a model, out of the page cache.

Compare `segments_per_s` with what an update takes in: `python -m experiments.speed --parts train`.

Run: python -m experiments.loader"""

import tempfile
import time

import numpy as np
from tqdm import trange

from common import configure, require_positive, run
from data import Episodes
from support.results import claim_result, write_result
from support.writer import EpisodeWriter

CONFIG = dict(
    episodes=1000,  # of 30 frames
    size=64,  # pixels per side
    segment_length=16,
    batch_size=16,
    seconds=5.0,
    out="results/loader.json",
    overwrite=False,
)


def main(cfg):
    require_positive(cfg, "episodes", "size", "segment_length", "batch_size")
    out = claim_result(cfg.out, cfg.overwrite)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        with EpisodeWriter(f"{scratch}/noise", "noise") as writer:
            for _ in trange(cfg.episodes, desc="writing"):
                frames = rng.integers(0, 256, (30, cfg.size, cfg.size, 3), np.uint8)
                writer.add(frames, rng.uniform(-1, 1, (30, 4)), rng.random(30))
        data = Episodes(f"{scratch}/noise")
        segments = 0
        started = time.perf_counter()
        while time.perf_counter() < started + cfg.seconds:
            data.batch_u8(segments, cfg.batch_size, cfg.segment_length)
            segments += cfg.batch_size
        rate = segments / (time.perf_counter() - started)
    rates = dict(segments_per_s=rate, megabytes_per_s=rate * cfg.segment_length * cfg.size**2 * 3 / 1e6)
    print(rates)
    write_result(out, dict(rates, settings=dict(vars(cfg), out=str(out))))


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__))
