"""experiments/loader.py: how fast segments are read, without a model.

Run: python -m experiments.loader"""


import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

import gpt
from common import require_positive
from support.devices import find_device
from data import Episodes
from support.writer import EpisodeWriter
from tokenizer import layout_of

LOADER = dict(
    episodes=(1000, 10_000, 100_000),  # of 30 frames
    size=64,  # pixels per side
    segment_length=16,
    batch_size=16,
    workers=2,  # processes that read at once
    seconds=5.0,  # that they read for
    preset="tiny",  # of the transformer whose appetite is told
    device="",
    out="results/loader.json",
    overwrite=False,
)


def write_stand_in(folder, n, size, real=1000, T=30):
    """n episodes of noise, of which the first `real` are on disk and the others show the same frames again:
    the index is as long as that of a large data set, and all frames are in the page cache."""
    rng, real = np.random.default_rng(0), min(n, real)
    with EpisodeWriter(folder, "noise") as writer:
        for _ in range(real):
            frames = rng.integers(0, 256, (T, size, size, 3), np.uint8)
            writer.add(frames, rng.uniform(-1, 1, (T, 4)), rng.random(T))
    which = np.arange(n) % real
    with np.load(folder / "index.npz") as arrays:
        index = {key: arrays[key][which] for key in arrays.files}
    index.update(row=np.arange(n) * T, number=np.arange(n), name=[f"train_eps_{i:08d}" for i in range(n)])
    np.savez(folder / "index.npz", **index)
    for name in ("actions.npy", "rewards.npy"):
        rows = np.load(folder / name).reshape(real, T, -1)[which]
        np.save(folder / name, rows.reshape(n * T, -1) if name == "actions.npy" else rows.reshape(-1))
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "episodes": n, "frames": n * T}))


def read_segments(folder, rank, cfg, barrier, told):
    """Open a folder and read batches of the stream for some seconds, all processes at once."""
    barrier.wait()
    before, began = own("status", "VmRSS"), time.perf_counter()
    data = Episodes(folder)
    seconds, after = time.perf_counter() - began, own("status", "VmRSS")
    opened = dict(open_seconds=seconds, open_megabytes=after and (after - before) / 1024)
    barrier.wait()
    batches, began = 0, time.perf_counter()
    while (seconds := time.perf_counter() - began) < cfg.seconds:
        data.batch_u8((batches * cfg.workers + rank) * cfg.batch_size, cfg.batch_size, cfg.segment_length)
        batches += 1
    told.put(dict(opened, rate=batches * cfg.batch_size / seconds))


def cold_read_share(folder, cfg, stride, n=200):
    """Bytes read from the disk for each byte asked for, outside of the page cache; None if unknown."""
    if own("io", "read_bytes") is None or not hasattr(os, "posix_fadvise"):
        return None
    data = Episodes(folder)
    for path in data.paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before = own("io", "read_bytes")
    T = cfg.segment_length // stride
    data.batch_u8(0, n, T, stride=stride)
    read = own("io", "read_bytes") - before
    return read / (n * T * data.frame_bytes) or None  # 0: a file system in memory


def loader(cfg):
    """Segments per second and MB/s out of the page cache, from data sets of several sizes, and what it takes
    to open one; beside what an update of the transformer takes in."""
    require_positive(cfg, "batch_size", "workers", "segment_length")
    require_preset(cfg)
    cfg.out = claim_result(cfg.out, cfg.overwrite)
    device, context = find_device(cfg.device), multiprocessing.get_context("spawn")
    rows = {key: {} for key in ("segments_per_s", "megabytes_per_s", "open_seconds", "open_megabytes")}
    with tempfile.TemporaryDirectory() as scratch:
        for n in tqdm(cfg.episodes, "loader"):
            folder, name = Path(scratch) / str(n), f"{n // 1000}k" if n % 1000 == 0 else str(n)
            write_stand_in(folder, n, cfg.size)
            barrier, told = context.Barrier(cfg.workers), context.Queue()
            for rank in range(cfg.workers):
                context.Process(target=read_segments, args=(folder, rank, cfg, barrier, told)).start()
            told = [told.get(timeout=60 + cfg.seconds) for _ in range(cfg.workers)]
            rows["segments_per_s"][name] = rate = sum(row["rate"] for row in told)
            rows["megabytes_per_s"][name] = rate * cfg.segment_length * cfg.size**2 * 3 / 1e6
            for key in ("open_seconds", "open_megabytes"):
                rows[key][name] = max((row[key] for row in told if row[key] is not None), default=None)
        rows["cold_bytes_read_per_byte"] = {f"stride {k}": cold_read_share(folder, cfg, k) for k in (1, 4)}
    settings = {**gpt.PRESETS[cfg.preset], "segment_length": cfg.segment_length}
    layout = layout_of(TOKENIZER_OF[cfg.preset])
    update = alone(train_steps, settings, layout, cfg.batch_size, (False,), str(device), "auto", 3)
    rows["training_segments_per_s"] = cfg.batch_size / update["seconds"][0] if update else None
    for name, value in flatten(rows):
        print(f"{name:30}{'unknown' if value is None else f'{value:.4g}':>12}")
    write_result(cfg.out, {**rows, "settings": dict(vars(cfg), out=str(cfg.out))})
