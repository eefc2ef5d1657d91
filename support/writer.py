"""support/writer.py: write the folders of episodes that data.Episodes reads.

data.py says what is in them."""

import io
import json
import os
import shutil

import numpy as np
from PIL import Image  # imageio brings it

from data import FORMAT_VERSION
from support.files import resolve, write_whole
from support.tables import meta_crc

KIND = "frame_shape", "action_dim", "has_reward"  # in which all episodes of a folder agree


def to_jpeg(frame_u8, quality):
    """Bytes (H, W, 3) -> a JPEG that keeps colours as sharp as light."""
    encoded = io.BytesIO()
    Image.fromarray(frame_u8).save(encoded, "JPEG", quality=quality, subsampling=0)
    return encoded.getvalue()


def kind_of(frames_u8, actions, rewards):
    """What all episodes of a folder must agree in: {key of KIND: value}."""
    action_dim = 0 if actions is None else actions.shape[1]
    return dict(frame_shape=list(frames_u8.shape[1:]), action_dim=action_dim, has_reward=rewards is not None)


def put_in_place(folder, out):
    """Rename a folder to `out`, which may be an empty folder."""
    if out.is_dir():
        out.rmdir()  # Windows does not replace folders
    os.replace(folder, out)


def write_json(path, content):
    """Whole or not at all, however the process ends."""
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


def write_tables(folder, meta, index, **columns):
    """What a folder of episodes holds beside its shards; meta.json, without which it is none, comes last."""
    for name, parts in columns.items():
        np.save(folder / f"{name}.npy", np.concatenate(parts))
    np.savez(folder / "index.npz", **index)
    write_json(folder / "meta.json", dict(meta, crc=meta_crc(meta)))


class EpisodeWriter:
    """Write a folder that Episodes reads: `with EpisodeWriter(out, source) as writer: writer.add(...)`.

    The folder appears when the block ends, complete; an exception inside the block leaves nothing behind.
    jpeg     quality (to 100) at which frames are stored as JPEGs; 0: as they are
    is_part  of an import, which has yet to scale actions: the last action of each episode is not zeroed
    raises   ValueError if `out` exists and is not an empty folder, cannot be replaced, or if no episode was
             added"""

    def __init__(self, out, source, key="", val_every=20, shard_bytes=10**9, is_part=False, jpeg=0):
        self.out = resolve(out)
        self.partial = self.out.with_name(self.out.name + ".partial")
        self.shard_bytes = shard_bytes
        self.is_part = is_part
        self.jpeg = jpeg
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise ValueError(f"{out} exists and is not an empty folder; delete it or pass another --out")
        if os.path.ismount(self.out):
            raise ValueError(f"{out} is a mount point, which cannot be replaced; pass --out {out}/episodes")
        if val_every < 2:
            raise ValueError(f"val_every is {val_every}; expected 2 or more, which leaves some to train on")
        if not 0 <= jpeg <= 100:
            raise ValueError(f"jpeg is {jpeg}; expected a quality to 100, or 0 for frames as they are")
        codec = dict(codec="jpeg", quality=jpeg) if jpeg else dict(codec="raw")
        self.meta = dict(version=FORMAT_VERSION, **codec, source=source, key=key, val_every=val_every)
        self.index = dict(shard=[], offset=[], bytes=[], length=[], row=[], name=[], number=[])
        self.columns = dict(actions=[], rewards=[])
        if jpeg:
            self.columns["sizes"] = []
        self.n_frames = 0
        self.n_shards = 0
        self.file = None

    def __enter__(self):
        shutil.rmtree(self.partial, ignore_errors=True)  # of a killed run
        self.partial.mkdir(parents=True)
        return self

    def add(self, frames_u8, actions=None, rewards=None, name="", number=None):
        """Append one episode: frames_u8 (T,H,W,3), actions (T,A) or None, rewards (T,) or None, any name.

        number  decides the split (number % val_every == 0 is for validation): the data set's own number,
                whichever episodes are left out; by default the count of episodes so far"""
        frames_u8 = np.ascontiguousarray(frames_u8)
        T = len(frames_u8)
        shape = frames_u8.shape
        if frames_u8.dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or T == 0:
            raise ValueError(f"frames are {frames_u8.dtype} {shape}; expected uint8 (T, H, W, 3) with T > 0")
        has_reward = rewards is not None
        actions = np.array(np.zeros((T, 0)) if actions is None else actions, np.float32)
        rewards = np.array(rewards if has_reward else np.zeros(T), np.float32)
        if actions.ndim != 2 or len(actions) != T or rewards.shape != (T,):
            raise ValueError(f"actions {actions.shape}, rewards {rewards.shape}; expected ({T}, A), ({T},)")
        kind = kind_of(frames_u8, actions, rewards if has_reward else None)
        others = {key: self.meta.setdefault(key, value) for key, value in kind.items()}
        if kind != others:
            raise ValueError(f"it has {kind}, other episodes {others}; they must agree (--size resizes)")
        if not self.is_part:
            actions[-1] = 0  # unused; zero also suits the repeated frames that fill up a short clip
        content = memoryview(frames_u8).cast("B")
        if self.jpeg:
            pictures = [to_jpeg(frame, self.jpeg) for frame in frames_u8]
            self.columns["sizes"].append(np.array([len(picture) for picture in pictures], np.int32))
            content = b"".join(pictures)
        offset = self._open_shard(len(content))
        number = len(self.index["row"]) if number is None else number
        episode = dict(shard=self.n_shards - 1, offset=offset, bytes=len(content), length=T)
        episode.update(row=self.n_frames, name=name, number=number)
        for column, value in episode.items():
            self.index[column].append(value)
        self.file.write(content)
        self.columns["actions"].append(actions)
        self.columns["rewards"].append(rewards)
        self.n_frames += T

    def _open_shard(self, n_bytes):
        """Open the next shard if so many bytes do not fit this one; returns the offset to write at."""
        is_full = self.file and self.file.tell() and self.file.tell() + n_bytes > self.shard_bytes
        if is_full:
            self.file.close()
        if is_full or not self.file:
            self.file = open(self.partial / f"shard-{self.n_shards:05d}.bin", "wb")
            self.n_shards += 1
        return self.file.tell()

    def __exit__(self, kind, error, trace):
        if self.file:
            self.file.close()
        if kind is not None or not self.n_frames:
            shutil.rmtree(self.partial)
            if kind is None:
                raise ValueError(f"no episode was added, so {self.out} is not written")
            return
        meta = dict(self.meta, episodes=len(self.index["row"]), frames=self.n_frames, shards=self.n_shards)
        write_tables(self.partial, meta, self.index, **self.columns)
        put_in_place(self.partial, self.out)
