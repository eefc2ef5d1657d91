"""experiments/loader.py: how fast segments are read, without a model: out of the page cache, as in training.

Compare `segments_per_s` with what an update takes in: `python -m experiments.speed --parts train`.

Run: python -m experiments.loader"""

import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from tqdm import trange

from common import configure, require_positive, run
from data import Episodes, EpisodeWriter
from results import claim_result, write_result

CONFIG = dict(
    episodes=1000,  # of 30 frames
    size=64,  # pixels per side
    segment_length=16,
    batch_size=16,
    workers=2,  # processes that read at once
    seconds=5.0,
    out="results/loader.json",
    overwrite=False,
)


def read_segments(folder, rank, cfg):
    """Read random batches for some seconds -> segments per second."""
    data = Episodes(folder)
    started = time.perf_counter()
    batches = 0
    while time.perf_counter() < started + cfg.seconds:
        first = (batches * cfg.workers + rank) * cfg.batch_size
        data.batch_u8(first, cfg.batch_size, cfg.segment_length)
        batches += 1
    return batches * cfg.batch_size / (time.perf_counter() - started)


def main(cfg):
    require_positive(cfg, "episodes", "segment_length", "batch_size", "workers")
    out = claim_result(cfg.out, cfg.overwrite)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = f"{scratch}/noise"
        with EpisodeWriter(folder, "noise") as writer:
            for _ in trange(cfg.episodes, desc="writing"):
                frames = rng.integers(0, 256, (30, cfg.size, cfg.size, 3), np.uint8)
                writer.add(frames, rng.uniform(-1, 1, (30, 4)), rng.random(30))
        with ProcessPoolExecutor(cfg.workers, multiprocessing.get_context("spawn")) as pool:
            jobs = [pool.submit(read_segments, folder, rank, cfg) for rank in range(cfg.workers)]
            rate = sum(job.result() for job in jobs)
    rates = dict(segments_per_s=rate, megabytes_per_s=rate * cfg.segment_length * cfg.size**2 * 3 / 1e6)
    print(rates)
    write_result(out, dict(rates, settings=dict(vars(cfg), out=str(out))))


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__))
