"""support/tables.py: the tables of a folder of episodes, and how damage to them is noticed.

    meta.json, with a checksum of itself; index.npz, of which zip keeps checksums --load--> what they hold
    actions.npy, rewards.npy, sizes.npy --load, map_rows--> rows, read when they are asked for: no checksum"""

import json
import mmap
import zlib

import numpy as np

META = set("version codec frame_shape action_dim has_reward val_every shards".split())
INDEX = set("shard offset length row name".split())


def load(path, read):
    """read(path).   raises  ValueError naming a file that is damaged or missing"""
    try:
        return read(path)
    except Exception as error:  # json, zip and numpy each raise their own kinds
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} cannot be read ({reason}); copy the whole folder again") from None


def meta_crc(meta):
    """CRC-32 of what meta.json says, by which damage is noticed."""
    said = {key: value for key, value in meta.items() if key != "crc"}
    return zlib.crc32(json.dumps(said, sort_keys=True).encode())


def read_meta(path):
    """A meta.json.   raises  ValueError if it is damaged, or lacks something"""
    meta = json.loads(path.read_text())
    if lacking := META - set(meta):
        raise ValueError(f"it lacks {', '.join(sorted(lacking))}")
    if meta.get("crc", meta_crc(meta)) != meta_crc(meta):
        raise ValueError("it is damaged; if it was changed on purpose, delete its line crc")
    return meta


def read_index(path):
    """An index.npz, {column: (episodes,)}.   raises  ValueError if it lacks a column"""
    with np.load(path) as arrays:
        index = {key: arrays[key] for key in arrays.files}
    if lacking := INDEX - index.keys():
        raise ValueError(f"it lacks {', '.join(sorted(lacking))}")
    return index


def map_rows(path):
    """A .npy file whose rows are read when they are asked for, and no others."""
    table = np.load(path, mmap_mode="r")
    if hasattr(mmap, "MADV_RANDOM") and table.size:
        table._mmap.madvise(mmap.MADV_RANDOM)
    return table
