"""data.py: where frames come from: episodes on disk and mixtures of them, a built-in world, robots; pictures.

    PushWorld + expert --push--+
    robots + script --script---+                      +--> Episodes.batch(first)    frames (B,T,3,H,W)
    other people's formats ----+--> EpisodeWriter ----+       (training)            actions (B,T,A)
     (importers.py)                 (a folder)        +--> Episodes.segments(n)     rewards (B,T)
                                                               (evaluation)
    folders of several sets ------> Mixture, an Episodes by weights (the paper's Table 4)

B batch, T frames, H/W height and width, A action dim, n worlds side by side, S frames of all episodes.

Alignment, everywhere: actions[k] is taken while seeing frame k and leads to frame k+1; rewards[k] is received
on arriving at frame k, so rewards[0] of an episode is 0. All arrays of an episode have one length; its last
action is unused: zeros.

A folder holds meta.json, index.npz, shard-00000.bin ... (frames back to back, as HWC bytes or as JPEGs, whose
sizes.npy (S,) is there too), actions.npy (S,A), rewards.npy (S,); it is written as FOLDER.partial and renamed
when whole. The official code keeps a compressed npz per episode; here a random segment costs one `pread`, or
one for each of its frames that lie apart, far less (a memmap would read too much ahead).

Run: python data.py push --out data/push --episodes 2000            (add --help for the settings of each)
     python data.py metaworld --task plate-slide --out data/plate-slide     demonstrations by a script
     python data.py script --tasks push_red --out data/push_red             VP2's robots, noise and all
     python data.py video --src FOLDER --out data/mine --size 64            and other formats: importers.py"""

import contextlib
import copy
import functools
import io
import itertools
import json
import mmap
import os
import shutil
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from PIL import Image  # imageio brings it
from tqdm import tqdm

from common import configure, resolve, run, write_whole

try:
    import resource  # how many files may be open; Windows has no such limit to ask for
except ImportError:
    resource = None

PUSH_CONFIG = dict(
    out="data/push",
    episodes=2000,
    length=60,  # actions per episode; frames are one more
    size=64,  # pixels per side
    seed=0,
    expert_share=0.6,  # of the episodes; the others are random play
    action_noise=0.3,  # standard deviation of what is added to the expert's actions
    robot="red",  # or "cyan", whose looks the released checkpoint has never seen
    scene=-1,  # >= 0: colours, light and sizes of this number in all episodes; -1: each has its own
    val_every=20,  # every 20th episode is for validation
)
METAWORLD_CONFIG = dict(
    out="data/metaworld",
    task="plate-slide",
    episodes=5,  # in which the scripted player succeeds
    seed=0,
    noise=0.0,  # standard deviation of what is added to its actions
    val_every=20,
)
SCRIPT_CONFIG = dict(
    out="data/push_red",
    tasks=("push_red",),  # of RoboDesk, robosuite_push, or of Meta-World
    episodes=200,  # of each, successful or not
    seed=0,
    noise=0.2,  # standard deviation of what is added to the script's actions
    random_share=0.3,  # of the episodes, played at random; VP2: 0, but then one learns to expect the script
    val_every=20,
)
FORMAT_VERSION = 1
KIND = "frame_shape", "action_dim", "has_reward"  # in which all episodes of a folder agree
HELD_OUT = 1_000_000  # PushWorld seeds from here on are for evaluation
# Grippers: colours of a disc and of the mark on it; half-side and rounding of the mark, in radii of the disc.
ROBOTS = dict(
    red=((230, 20, 20), (255, 255, 255), 0, 1 / 2),
    cyan=((0, 190, 200), (30, 10, 60), 3 / 8, 1 / 8),
)


# The paper's Table 4: share (%) of the robots' data, source frames per step, camera. Names: TFDS', less
RLDS_SUFFIX = "_converted_externally_to_rlds"
OXE = dict(
    fractal20220817_data=(15, 1, "image"),
    bridge=(15, 2, "image"),
    bc_z=(15, 3, "image"),
    robo_net=(15, 1, "image"),
    kuka=(10, 3, "image"),
    language_table=(5, 3, "rgb"),
    stanford_mask_vit=(5, 1, "image"),
    uiuc_d3field=(4 * 20 / 31, 1, "image_1,image_2,image_3,image_4"),
    taco_play=(20 / 31, 5, "rgb_static"),
    jaco_play=(20 / 31, 3, "image"),
    roboturk=(20 / 31, 3, "front_rgb"),
    viola=(20 / 31, 7, "agentview_rgb"),
    toto=(20 / 31, 10, "image"),
    columbia_cairlab_pusht_real=(20 / 31, 3, "image"),
    stanford_kuka_multimodal_dataset=(20 / 31, 7, "image"),
    stanford_hydra_dataset=(20 / 31, 3, "image"),
    austin_buds_dataset=(20 / 31, 7, "image"),
    nyu_franka_play_dataset=(20 / 31, 1, "image"),
    furniture_bench_dataset=(20 / 31, 3, "image"),
    ucsd_kitchen_dataset=(20 / 31, 1, "image"),
    ucsd_pick_and_place_dataset=(20 / 31, 1, "image"),
    austin_sailor_dataset=(20 / 31, 7, "image"),
    utokyo_pr2_tabletop_manipulation=(20 / 31, 3, "image"),
    utokyo_xarm_pick_and_place=(20 / 31, 3, "image"),
    utokyo_xarm_bimanual=(20 / 31, 3, "image"),
    kaist_nonprehensile=(20 / 31, 3, "image"),
    dlr_sara_pour=(20 / 31, 3, "image"),
    dlr_sara_grid_clamp=(20 / 31, 3, "image"),
    dlr_edan_shared_control=(20 / 31, 3, "image"),  # their code: 2
    asu_table_top=(20 / 31, 4, "image"),
    utaustin_mutex=(20 / 31, 7, "image"),
    berkeley_fanuc_manipulation=(20 / 31, 3, "image"),
    cmu_playing_with_food=(20 / 31, 3, "image"),
    cmu_play_fusion=(20 / 31, 2, "image"),
    cmu_stretch=(20 / 31, 3, "image"),
)
SSV2 = dict(sthsth=(15 * 100 / 85, 1, ""))  # 15 % of all; for the tokenizer alone
MIXTURES = dict(oxe=OXE, oxe_sthsth=OXE | SSV2)


# ---- bytes <-> floats: no other file converts ----


def to_float(frames_u8):
    """Bytes (..., H, W, 3), numpy or torch -> float tensor (..., 3, H, W) in [0, 1]."""
    return torch.as_tensor(frames_u8).movedim(-1, -3).contiguous().float().div_(255)


def to_u8(frames):
    """Float tensor (..., 3, H, W), clamped to [0, 1] -> bytes as numpy (..., H, W, 3)."""
    scaled = frames.detach().float().clamp(0, 1).mul(255).round()
    return scaled.to("cpu", torch.uint8).movedim(-3, -1).contiguous().numpy()


def to_jpeg(frame_u8, quality):
    """Bytes (H, W, 3) -> a JPEG that keeps colours as sharp as light."""
    encoded = io.BytesIO()
    Image.fromarray(frame_u8).save(encoded, "JPEG", quality=quality, subsampling=0)
    return encoded.getvalue()


def from_picture(encoded):
    """A JPEG or PNG, as bytes, -> bytes (H, W, 3)."""
    with Image.open(io.BytesIO(encoded)) as image:
        return np.array(image.convert("RGB"))


# ---- episodes on disk ----


def kind_of(frames_u8, actions, rewards):
    """What all episodes of a folder must agree in: {key of KIND: value}."""
    action_dim = 0 if actions is None else actions.shape[1]
    values = list(frames_u8.shape[1:]), action_dim, rewards is not None
    return dict(zip(KIND, values, strict=True))


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
    write_json(folder / "meta.json", meta)


class EpisodeWriter:
    """Write a folder that Episodes reads: `with EpisodeWriter(out, source) as writer: writer.add(...)`.

    The folder appears whole when the block ends; an exception inside the block leaves nothing behind.
    jpeg     quality (to 100) at which frames are kept as JPEGs; 0: as they are
    is_part  of an import, which has yet to scale actions: the last of each episode is kept
    raises   ValueError if `out` exists and is not an empty folder, cannot be replaced, or if no episode was
             added"""

    def __init__(self, out, source, key="", val_every=20, shard_bytes=10**9, is_part=False, jpeg=0):
        self.shard_bytes, self.is_part, self.jpeg = shard_bytes, is_part, jpeg
        self.out = resolve(out)
        self.partial = self.out.with_name(self.out.name + ".partial")
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise ValueError(f"{out} exists and is not an empty folder; delete it or pass another --out")
        if os.path.ismount(self.out):
            raise ValueError(f"{out} is a mount point, which cannot be replaced; pass --out {out}/episodes")
        if val_every < 2:
            raise ValueError(f"val_every is {val_every}; expected 2 or more, which leaves some to train on")
        if not 0 <= jpeg <= 100:
            raise ValueError(f"jpeg is {jpeg}; expected a quality to 100, or 0 for frames as they are")
        self.meta = dict(version=FORMAT_VERSION, codec="jpeg" if jpeg else "raw", source=source, key=key)
        self.meta.update(val_every=val_every, **(dict(quality=jpeg) if jpeg else {}))
        # the split rule: number % val_every == 0 is for validation
        self.index = dict(shard=[], offset=[], bytes=[], length=[], row=[], name=[], number=[])
        self.columns = dict(actions=[], rewards=[], **(dict(sizes=[]) if jpeg else {}))
        self.n_frames, self.file, self.n_shards = 0, None, 0

    def __enter__(self):
        shutil.rmtree(self.partial, ignore_errors=True)  # what a killed run left
        self.partial.mkdir(parents=True)
        return self

    def add(self, frames_u8, actions=None, rewards=None, name="", number=None):
        """Append one episode: frames_u8 (T,H,W,3), actions (T,A) or None, rewards (T,) or None, any name.

        number  decides the split: the dataset's own, whichever episodes are left out; by default its place"""
        frames_u8 = np.ascontiguousarray(frames_u8)
        T, shape = len(frames_u8), frames_u8.shape
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
        if not self.file or self.file.tell() and self.file.tell() + len(content) > self.shard_bytes:
            if self.file:
                self.file.close()
            self.file = open(self.partial / f"shard-{self.n_shards:05d}.bin", "wb")
            self.n_shards += 1
        number = len(self.index["row"]) if number is None else number
        entry = (self.n_shards - 1, self.file.tell(), len(content), T, self.n_frames, name, number)
        for column, value in zip(self.index.values(), entry, strict=True):
            column.append(value)
        self.file.write(content)
        self.columns["actions"].append(actions)
        self.columns["rewards"].append(rewards)
        self.n_frames += T

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


class Episodes:
    """Random access to the episodes of a folder. It has no position: a batch depends on the arguments alone.

    folder  what EpisodeWriter wrote;  split "train", "val" (number % val_every == 0) or "all"
    limit   the first so many of those alone; 0: all
    has     frame_shape (H, W, 3), action_dim, has_reward, n_episodes, lengths, names, meta
    raises  FileNotFoundError where no such folder is, ValueError at another format, a truncated file, or
            files that do not belong together"""

    def __init__(self, folder, split="train", limit=0):
        self.folder = Path(folder)
        if split not in ("train", "val", "all"):
            raise ValueError(f"split is {split!r}; expected train, val or all")
        if not (self.folder / "meta.json").is_file():
            ways = f"python data.py push --out {folder}, or an importer (python data.py --help)"
            raise FileNotFoundError(f"no episodes at {folder}; try: {ways}")
        self.meta = meta = json.loads((self.folder / "meta.json").read_text())
        if meta["version"] != FORMAT_VERSION or meta["codec"] not in ("raw", "jpeg"):
            raise ValueError(f"{folder} has format {meta['version']}, codec {meta['codec']}; "
                             f"expected {FORMAT_VERSION}, raw or jpeg; import it again")
        self.frame_shape, self.action_dim = tuple(meta["frame_shape"]), meta["action_dim"]
        self.has_reward, self.frame_bytes = meta["has_reward"], int(np.prod(meta["frame_shape"]))
        with np.load(self.folder / "index.npz") as arrays:
            index = {key: arrays[key] for key in arrays.files}
        self.actions, self.rewards = (map_rows(self.folder / f"{key}.npy") for key in ("actions", "rewards"))
        self.sizes = map_rows(self.folder / "sizes.npy") if meta["codec"] == "jpeg" else None
        self._require_rows(index)
        self.paths = [self.folder / f"shard-{shard:05d}.bin" for shard in range(meta["shards"])]
        ends = np.zeros(meta["shards"], np.int64)
        n_bytes = index.get("bytes", index["length"] * self.frame_bytes)
        np.maximum.at(ends, index["shard"], index["offset"] + n_bytes)
        for path, expected in zip(self.paths, ends, strict=True):
            found = path.stat().st_size if path.is_file() else 0
            if found != expected:
                raise ValueError(f"{path} has {found} bytes, expected {expected}; copy or write it again")
        ids = np.arange(len(index["row"]))
        numbers = index.get("number", ids)
        if split != "all" and len(ids) == 1:
            print(f"{folder} holds one episode, which serves for training and for validation")
        elif split != "all":
            ids = ids[(numbers % meta["val_every"] == 0) == (split == "val")]
        if limit > len(ids):
            raise ValueError(f"{limit} episodes wanted; {folder} has {len(ids)} for {split}")
        if not len(ids):
            raise ValueError(f"{folder} has no episode for {split}; import it with another --val_every")
        ids = ids[: limit or None]
        self.shards, self.offsets, self.lengths, self.rows, self.names = (
            index[key][ids] for key in ("shard", "offset", "length", "row", "name"))
        self.n_episodes, self.files = len(ids), {}
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if resource else 512
        if resource and limit == resource.RLIM_INFINITY:
            limit = 4096
        self.max_files = limit // 3  # train, val, and all else

    def __del__(self):
        for file in getattr(self, "files", {}).values():
            os.close(file)

    def _require_rows(self, index):
        """Raise ValueError unless the tables have a row for each frame that the index speaks of."""
        n_frames = int((index["row"] + index["length"]).max(initial=0))
        tables = dict(actions=self.actions, rewards=self.rewards)
        if self.sizes is not None:
            tables["sizes"] = self.sizes
        for name, table in tables.items():
            if len(table) != n_frames:
                raise ValueError(f"{self.folder}/{name}.npy has {len(table)} rows, index.npz {n_frames} "
                                 "frames; copy the whole folder again")
        if self.actions.shape[1:] != (self.action_dim,):
            raise ValueError(f"{self.folder}/actions.npy has rows {self.actions.shape[1:]}, meta.json says "
                             f"action_dim {self.action_dim}; copy the whole folder again")

    def read(self, episode, start=0, stop=None):
        """Frames start..stop-1 of one episode, as bytes (stop-start, H, W, 3)."""
        return self.pick(episode, np.arange(start, self.lengths[episode] if stop is None else stop))

    def pick(self, episode, frames):
        """Frames of these numbers (T,) of one episode, as bytes (T, H, W, 3); none between them is read."""
        row, wanted, parts = int(self.rows[episode]), np.unique(frames), []
        ends = self.frame_bytes * np.arange(wanted[-1] + 2)
        if self.sizes is not None:
            ends[1:] = self.sizes[row : row + wanted[-1] + 1].cumsum(dtype=np.int64)
        shard, offset = int(self.shards[episode]), int(self.offsets[episode])
        for together in np.split(wanted, np.flatnonzero(np.diff(wanted) > 1) + 1):
            first, after = int(together[0]), int(together[-1]) + 1
            data = self._bytes(shard, int(ends[after] - ends[first]), offset + int(ends[first]))
            if self.sizes is None:
                parts.append(np.frombuffer(data, np.uint8).reshape(-1, *self.frame_shape))
            else:
                edges = ends[first : after + 1] - ends[first]
                parts.append(np.stack([from_picture(data[a:b]) for a, b in itertools.pairwise(edges)]))
        found = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return found[np.searchsorted(wanted, frames)]

    def _open(self, shard):
        if shard not in self.files:
            if len(self.files) >= self.max_files:
                os.close(self.files.pop(next(iter(self.files))))
            self.files[shard] = os.open(self.paths[shard], os.O_RDONLY)
            if hasattr(os, "posix_fadvise"):  # nothing that was not asked for is read
                os.posix_fadvise(self.files[shard], 0, 0, os.POSIX_FADV_RANDOM)
        return self.files[shard]

    def _bytes(self, shard, count, start):
        """Bytes start..start+count-1 of a shard."""
        if hasattr(os, "pread"):
            return os.pread(self._open(shard), count, start)
        with open(self.paths[shard], "rb", buffering=0) as file:  # Windows
            file.seek(start)
            return file.read(count)

    def batch(self, first, batch_size, T, seed=0, **how):
        """Random segments: episode uniform, start uniform, T frames `stride` apart.

        first, seed      the segments number `first`, first + 1, ... of this seed's endless stream, which are
                         the same whoever takes them, on however many processes
        context, future  for the tokenizer (official: rand_select): the first `context` of the T frames, then
                         `future` distinct ones, in order, out of all later frames that the segment spans
        shuffle          or (rand_shuffle, for goals) any context + future of the T frames, in any order
        action_agg       "sample" the action at each kept frame, or "sum" the actions up to the next kept one
        returns          frames (B,T,3,H,W) in [0, 1], actions (B,T,A), rewards (B,T) at the kept frames
        A shorter episode than T * stride gets a smaller stride; one shorter than T repeats its last frame."""
        return floats(self.batch_u8(first, batch_size, T, seed, **how))

    def batch_u8(self, first, batch_size, T, seed=0, stride=1, **how):
        """As `batch`, but with frames_u8 (B,T,H,W,3): a quarter of the bytes to move to a GPU."""
        return self.take(uniform(seed, first, batch_size, 3 + max(0, T * stride)), T, stride, **how)

    def take(self, draws, T, stride=1, context=0, future=0, shuffle=False, action_agg="sample"):
        """The segments that numbers (B, 3 + T * stride) in [0, 1) choose; the first number is Mixture's."""
        if (context or future) and not 0 < future <= T - context < T:
            raise ValueError(f"context {context}, future {future}; expected both > 0, sum at most T = {T}")
        chosen, starts, priority = draws[:, 1], draws[:, 2], draws[:, 3:]
        episodes = (chosen * self.n_episodes).astype(int)
        strides, free = self._strides(episodes, T, stride)
        kept = strides[:, None] * np.arange(T)
        if shuffle:
            kept = np.take_along_axis(kept, priority[:, :T].argsort(1), 1)
        elif future:
            for b, s in enumerate(strides):
                after, end = (context - 1) * s + 1, (T - 1) * s + 1
                drawn = np.sort(np.argsort(priority[b, after:end])[:future])
                kept[b, context : context + future] = after + drawn
        kept = kept[:, : context + future or T]
        return self._gather(episodes, (starts * free).astype(int)[:, None] + kept, action_agg)

    def segments(self, n, T, stride=1, seed=None, action_agg="sample"):
        """The same n segments at every call: episode after episode, and round again when they run out.

        seed  None: from frame 0 (each further round T frames on), an int draws starts;  returns as batch"""
        rounds, episodes = np.divmod(np.arange(n), self.n_episodes)
        strides, free = self._strides(episodes, T, stride)
        starts = rounds * T % free if seed is None else np.random.default_rng(seed).integers(free)
        return floats(self._gather(episodes, starts[:, None] + strides[:, None] * np.arange(T), action_agg))

    def _strides(self, episodes, T, stride):
        """The stride that fits each episode, and the number of possible starts."""
        if T < 1 or stride < 1:
            raise ValueError(f"T is {T}, stride {stride}; expected both at least 1")
        lengths = self.lengths[episodes]
        strides = np.where(lengths < T * stride, np.maximum(1, lengths // T), stride)
        return strides, np.maximum(1, lengths - (T - 1) * strides)

    def _gather(self, episodes, kept, action_agg):
        """The batch of frames number `kept` (B, T), which may lie past the end of a short episode."""
        if action_agg not in ("sample", "sum"):
            raise ValueError(f"action_agg is {action_agg!r}; expected sample or sum")
        kept = np.minimum(kept, self.lengths[episodes, None] - 1)
        frames_u8 = np.empty((*kept.shape, *self.frame_shape), np.uint8)
        for b, episode in enumerate(episodes):
            frames_u8[b] = self.pick(episode, kept[b])
        rows = self.rows[episodes, None] + kept
        actions = self.actions[rows]
        if action_agg == "sum":
            for b, k in np.ndindex(rows.shape[0], rows.shape[1] - 1):
                actions[b, k] = self.actions[rows[b, k] : rows[b, k + 1]].sum(0)
        arrays = dict(frames_u8=frames_u8, actions=actions, rewards=self.rewards[rows])
        return {key: torch.from_numpy(np.asarray(array)) for key, array in arrays.items()}


def map_rows(path):
    """A .npy file whose rows are read when they are asked for, and no others."""
    table = np.load(path, mmap_mode="r")
    if hasattr(mmap, "MADV_RANDOM") and table.size:
        table._mmap.madvise(mmap.MADV_RANDOM)
    return table


def uniform(seed, first, n, k, use=0):
    """Numbers (n, k) in [0, 1). Row i depends on (seed, use, first + i) alone: a stream without a state.

    Source: the counter-based generator Philox (Salmon et al. 2011)"""
    words = -(-k // 4)  # of the counter, each of which stands for four numbers
    bits = np.random.Philox(key=[seed, use])
    bits.advance(first * words)
    return np.random.Generator(bits).random((n, 4 * words))[:, :k]


def floats(batch):
    """frames_u8 (B,T,H,W,3) of a batch, if it has any, -> frames (B,T,3,H,W) in [0, 1]; the rest as it is."""
    return {k.removesuffix("_u8"): to_float(v) if k == "frames_u8" else v for k, v in batch.items()}


class Mixture:
    """Folders of episodes as one: a segment's set is drawn by weight, the rest as `Episodes` does.

    folder  holds a folder per set, named as in MIXTURES[name]; those that are there share the weights
    name    or "all": whatever is there, weighted by its number of episodes, every frame; "": oxe if any of
            its sets is there, else all
    has     as Episodes, but neither actions nor rewards: they mean another thing in each set
    raises  ValueError where no set of the mixture is there, or frames differ in shape"""

    action_dim, has_reward = 0, False

    def __init__(self, folder, split="train", name=""):
        if name not in (*MIXTURES, "all", ""):
            raise ValueError(f"mixture is {name!r}; expected one of {', '.join(MIXTURES)}, all")
        found = sorted(place.parent for place in Path(folder).glob("*/meta.json"))
        places = {place.name: place for place in found if place.suffix != ".partial"}
        name = name or ("oxe" if any(s.removesuffix(RLDS_SUFFIX) in OXE for s in places) else "all")
        rows = {s: MIXTURES.get(name, {}).get(s.removesuffix(RLDS_SUFFIX)) for s in places}
        chosen = [s for s in rows if name == "all" or rows[s]]
        if not chosen:
            raise ValueError(f"{folder} has no set of mixture {name!r}; --mixture all takes what is there")
        self.sets = [Episodes(places[s], split) for s in chosen]
        for data in self.sets:
            data.max_files = max(1, data.max_files // len(self.sets))
        if name == "all":
            rows = {s: (data.n_episodes, 1) for s, data in zip(chosen, self.sets, strict=True)}
        weights, self.steps = np.array([rows[s][0] for s in chosen]), [rows[s][1] for s in chosen]
        self.weights = weights / weights.sum()
        shapes = {data.frame_shape for data in self.sets}
        if len(shapes) > 1:
            raise ValueError(f"{folder} has frames {sorted(shapes)}; import all sets with the same --size")
        self.frame_shape, self.n_episodes = shapes.pop(), sum(data.n_episodes for data in self.sets)
        told = [f"{folder} ({split}): {len(chosen)} sets, {self.n_episodes} episodes; mixture {name}",
                "  (actions and rewards are left out: they mean another thing in each set)"]
        for s, data, weight, step in zip(chosen, self.sets, self.weights, self.steps, strict=True):
            told.append(f"  {s}: weight {weight:.4f}, every {step}. frame, {data.n_episodes} episodes")
        if others := [s for s in places if s not in chosen]:
            told.append(f"  left out, as the mixture does not name them: {', '.join(others)}")
        if os.environ.get("RANK", "0") == "0":  # of torchrun's processes one tells
            print("\n".join(told))

    def batch(self, first, batch_size, T, seed=0, **how):
        """As Episodes.batch; stride multiplies that of the set."""
        return floats(self.batch_u8(first, batch_size, T, seed, **how))

    def batch_u8(self, first, batch_size, T, seed=0, stride=1, **how):
        """As Episodes.batch_u8."""
        strides = [max(1, round(stride * step)) for step in self.steps]
        draws = uniform(seed, first, batch_size, 3 + T * max(strides))
        which, parts, order = self.choose(draws[:, 0]), [], []
        for k in np.unique(which):
            rows = np.flatnonzero(which == k)
            parts.append(self.sets[k].take(draws[rows], T, strides[k], **how))
            order.extend(rows)
        return self._join(parts, order)

    def choose(self, draws):
        """Numbers in [0, 1) -> which set each of them is for."""
        return np.searchsorted(self.weights.cumsum()[:-1], draws, "right")

    def segments(self, n, T, stride=1, seed=None, action_agg="sample"):
        """As Episodes.segments; of each set as many as are its share, spread over the n."""
        which = np.sort(self.choose((np.arange(n) + 0.5) / n))
        counts = np.bincount(which, minlength=len(self.sets))
        parts = [
            data.segments(count, T, max(1, round(stride * step)), seed, action_agg)
            for data, count, step in zip(self.sets, counts, self.steps, strict=True) if count
        ]
        places = np.concatenate([(np.arange(c) + 0.5) / c for c in counts if c])
        return self._join(parts, np.argsort(np.argsort(places, kind="stable")))

    def _join(self, parts, order):
        """Batches -> one, whose row order[i] is the i-th of theirs."""
        order = torch.as_tensor(np.argsort(order))
        frames = next(key for key in parts[0] if key.startswith("frames"))
        joined = {key: torch.cat([part[key] for part in parts])[order] for key in (frames, "rewards")}
        return dict(joined, actions=joined["rewards"].new_zeros(*joined["rewards"].shape, 0))


def open_data(folder, split="train", limit=0, mixture=""):
    """The Episodes of a folder, or the Mixture of those in its folders.   raises  as they do"""
    if (Path(folder) / "meta.json").is_file() or not any(Path(folder).glob("*/meta.json")):
        return Episodes(folder, split, limit)
    if limit:
        raise ValueError(f"--episodes {limit} is for one folder of episodes; {folder} is a mixture")
    return Mixture(folder, split, mixture)


def goal_first(batch):
    """Segments of T-1 frames -> T: a copy of the last frame in front, with a zero action and reward."""
    frames = torch.cat([batch["frames"][:, -1:], batch["frames"]], 1)
    padded = {k: torch.cat([torch.zeros_like(batch[k][:, :1]), batch[k]], 1) for k in ("actions", "rewards")}
    return dict(frames=frames, **padded)


def draw_segments(data, cfg, T, seen, rank, world, augment="", **how):
    """What a trainer reads: a function of the number of its micro-step, for `prefetch`.

    Processes take turns at the stream of cfg.seed, batch_size segments each, from number `seen` on: a resumed
    run goes on with segments that nobody has had, on however many processes."""

    def fetch(i):
        first = seen + (i * world + rank) * cfg.batch_size
        batch = data.batch_u8(first, cfg.batch_size, T, cfg.seed, cfg.stride, **how)
        if augment:
            draws = uniform(cfg.seed, first, cfg.batch_size, AUGMENT_DRAWS, use=1)
            batch |= plan_augmentation(draws, *data.frame_shape[:2], data.frame_shape[0], augment)
        return batch

    return fetch


def prefetch(fn, start, stop, device):
    """Yield fn(start) ... fn(stop-1), dicts of tensors, in order, on `device`; a thread works ahead.

    There frames_u8 become frames, augmented if they are to be."""
    cuda = torch.device(device).type == "cuda"

    def load(step):
        return {key: value.pin_memory() if cuda else value for key, value in fn(step).items()}

    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(load, step) for step in range(start, min(start + 2, stop)))
        for step in range(start, stop):
            batch = waiting.popleft().result()
            if step + 2 < stop:
                waiting.append(pool.submit(load, step + 2))
            batch = floats({key: value.to(device, non_blocking=cuda) for key, value in batch.items()})
            yield augment(batch) if "augment_order" in batch else batch


# ---- augmentation: the same for all frames of a segment (appendix A.3) ----

# The crop's share of the shorter side's square, and aspect; jitter of brightness, contrast, saturation.
AUGMENTATIONS = dict(
    paper=dict(scale=(0.8, 1.0), ratio=(0.9, 1.1), jitter=0.1, hue=0.05),
    strong=dict(scale=(0.6, 1.0), ratio=(0.75, 4 / 3), jitter=0.4, hue=0.5),
)
AUGMENT_DRAWS = 30


def crop_boxes(draws, H, W, scale, ratio):
    """Numbers (B, 22) -> boxes (B, 4): top, left, height, width; the first of 10 that fits, or the middle.

    Source: torchvision's RandomResizedCrop, but areas are shares of the shorter side's square"""
    tries, at = draws[:, :20].reshape(-1, 10, 2), draws[:, 20:22]
    area = min(H, W) ** 2 * (scale[0] + (scale[1] - scale[0]) * tries[..., 0])
    low, high = np.log(ratio)
    aspect = np.exp(low + (high - low) * tries[..., 1])
    sizes = np.stack([np.sqrt(area / aspect), np.sqrt(area * aspect)], -1).round().astype(int)  # (B, 10, 2)
    fits = (sizes[..., 0] <= H) & (sizes[..., 1] <= W)
    sizes = np.where(fits.any(1)[:, None], sizes[np.arange(len(sizes)), fits.argmax(1)], min(H, W))
    room = (H, W) - sizes
    corners = np.where(fits.any(1)[:, None], (at * (room + 1)).astype(int), room // 2)
    return np.concatenate([corners, sizes], 1)


def resize_weights(first, length, old, new):
    """Matrices (B, new, old) that cut [first, first + length) out of `old` pixels and resize it to `new`:
    bilinear, antialiased where it shrinks, as torchvision and Pillow do."""
    first, length = (np.asarray(x)[:, None, None] for x in (first, length))
    scale = length / new
    centre, pixels = (np.arange(new)[:, None] + 0.5) * scale, np.arange(old) - first + 0.5
    weights = np.maximum(0, 1 - np.abs(pixels - centre) / np.maximum(scale, 1))
    weights *= (pixels > 0) & (pixels < length)
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def plan_augmentation(draws, H, W, size, kind="paper"):
    """What `augment` is to do: a dict of tensors, from numbers (B, AUGMENT_DRAWS) in [0, 1).

    raises  ValueError"""
    if kind not in AUGMENTATIONS:
        raise ValueError(f"augment is {kind!r}; expected one of {', '.join(AUGMENTATIONS)}, or nothing")
    how, spread = AUGMENTATIONS[kind], 2 * draws[:, 22:26] - 1
    top, left, height, width = crop_boxes(draws, H, W, how["scale"], how["ratio"]).T
    factors = np.concatenate([1 + how["jitter"] * spread[:, :3], how["hue"] * spread[:, 3:]], 1)
    arrays = dict(
        rows=resize_weights(top, height, H, size), columns=resize_weights(left, width, W, size),
        factors=factors.astype(np.float32), order=np.argsort(draws[:, 26:30]),
    )  # fmt: skip
    return {f"augment_{key}": torch.from_numpy(array) for key, array in arrays.items()}


def shift_hue(frames, shift):
    """Turn the hue of frames (..., 3, H, W) by shift (...), in circles, by way of HSV."""
    high, low = frames.amax(-3, keepdim=True), frames.amin(-3, keepdim=True)
    chroma = high - low
    r, g, b = (frames / chroma.clamp_min(1e-8)).unbind(-3)
    at = (frames == high).unbind(-3)
    hue = torch.where(at[0], g - b, torch.where(at[1], 2 + b - r, 4 + r - g))[..., None, :, :]
    hue = (hue / 6 + shift[..., None, None, None]) * 6
    offset = torch.tensor([5.0, 3.0, 1.0], device=frames.device).view(3, 1, 1)
    k = (offset + hue) % 6
    return high - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def augment(batch):
    """Crop, resize and recolour the frames of a batch as its entries from plan_augmentation say.

    Brightness, contrast, saturation and hue come in each segment's own order (torchvision's ColorJitter): the
    first three mix a frame with black, its mean grey, or its greys."""
    plan = {key: batch.pop(f"augment_{key}") for key in ("rows", "columns", "factors", "order")}
    per_segment = (slice(None), *4 * (None,))
    frames = plan["rows"][:, None, None] @ batch["frames"] @ plan["columns"].mT[:, None, None]
    frames = (255 * frames).round() / 255
    luma = torch.tensor([0.2989, 0.587, 0.114], device=frames.device).view(3, 1, 1)
    for which in plan["order"].T:
        factor = plan["factors"].gather(1, which[:, None])[:, 0]
        grey = (luma * frames).sum(2, keepdim=True)
        pick = which[per_segment]
        base = torch.where(pick == 0, 0.0, torch.where(pick == 1, grey.mean((3, 4), keepdim=True), grey))
        mix = torch.where(which == 3, 1.0, factor)[per_segment]
        frames = (mix * frames + (1 - mix) * base).clamp(0, 1)
        frames = shift_hue(frames, torch.where(which == 3, factor, 0.0)[:, None])
    return dict(batch, frames=frames)


# ---- the built-in world ----


def contact(offset, core, radius):
    """How deep a point at `offset` (..., 2) lies inside a square grown by a disc, and the way out.

    core (...,) half-side of the square, radius of the disc;  returns depth (...,), normal (..., 2)
    Two rounded bodies meet as such a shape and a point do: their cores and radii add up."""
    q = np.abs(offset) - np.asarray(core)[..., None]
    deepest = q.max(-1)
    way = np.where(deepest[..., None] <= 0, q == deepest[..., None], np.maximum(q, 0))  # in it: nearest face
    norm = np.sqrt((way**2).sum(-1))
    normal = way / norm[..., None] * np.where(offset < 0, -1, 1)
    return radius - np.where(deepest <= 0, deepest, norm), normal


def require_actions(actions, shape):
    """Raise ValueError unless actions are finite numbers of this shape."""
    if np.shape(actions) != shape or not np.isfinite(actions).all():
        raise ValueError(f"actions are {np.shape(actions)} or not finite; expected numbers {shape}")


class PushWorld:
    """n worlds at once: a gripper (disc) pushes two blocks on a table; block 0 belongs on the pad of its hue.

    Lengths are in table sides (the table is [0,1] x [0,1], y down) whatever `size` in pixels the picture has.
    Actions in [-1, 1] are the gripper's velocity (x, y). Blocks slide without turning, glide on a little, and
    stop at walls; a jammed block stops the gripper. World i's episode e depends on (seed, i, e) alone; it is
    done after `length` actions, whether it succeeds or not.
    Reward: -|block 0 - target| - 0.25 |gripper - block 0|, + 1 while block 0 is on its target.

    robot  one of ROBOTS
    anywhere  True: the place where block 0 belongs is another one than the pad, and cannot be seen
    scene  >= 0: colours, light and sizes of this number in all episodes, which begin within `spread` of the
           same places;  -1: each episode has its own"""

    action_dim, action_repeat = 2, 1
    grip_radius, corner = 5.75 / 64, 3 / 64  # corner: rounding of the blocks
    speed = 3.5 / 64  # per step at action 1
    substeps, relax = 3, 4  # a substep moves a fraction of a body's radius, so nothing tunnels
    friction = 0.7  # share of its motion that a block loses per step
    success_radius = tolerance = 0.07

    def __init__(self, n=1, size=64, seed=0, length=60, robot="red", scene=-1, spread=0.04,
                 anywhere=False):
        if n < 1 or size < 32 or seed < 0 or length < 1:
            raise ValueError(f"n, size, seed, length are {n, size, seed, length}; the least is 1, 32, 0, 1")
        if robot not in ROBOTS:
            raise ValueError(f"robot is {robot!r}; expected one of {', '.join(ROBOTS)}")
        self.n, self.size, self.seed, self.length, self.robot = n, size, seed, length, ROBOTS[robot]
        self.scene, self.spread, self.anywhere = scene, spread, anywhere
        self.episode, self.time = np.full(n, -1), np.zeros(n, int)
        self.grip, self.target, self.half = np.zeros((3, n, 2))  # half: half-side of each block
        self.blocks, self.glide = np.zeros((2, n, 2, 2))
        self.colours = np.zeros((n, 2, 3), np.float32)  # of the blocks
        self.background = np.zeros((n, size, size, 3), np.float32)
        self.reset()

    def reset(self, mask=None):
        """Begin new episodes where mask (n,) is true, everywhere by default; returns frames_u8 (n,H,W,3)."""
        chosen = np.arange(self.n) if mask is None else np.flatnonzero(mask)
        self.episode[chosen] += 1
        self.time[chosen], self.glide[chosen] = 0, 0
        for i in chosen:
            rng = np.random.default_rng([self.seed, i, self.episode[i]])
            of_scene = rng if self.scene < 0 else np.random.default_rng(self.scene)
            self._place(i, rng, of_scene)
            self._paint(i, of_scene)
            if self.anywhere:
                self.target[i] = rng.uniform(0.2, 0.8, 2)
        return self.render()

    def _place(self, i, rng, of_scene):
        """Sizes, and positions without overlap: (gripper, block 0, block 1, target), each (x, y)."""
        self.half[i] = of_scene.uniform(5.5, 7, 2) / 64
        margin = np.array([0.13, 0.28, 0.13, 0.2])[:, None]
        spots = self._first_good(i, lambda: of_scene.uniform(margin, 1 - margin, (128, 4, 2)))
        if self.scene >= 0:
            middle, d = spots, self.spread
            spots = self._first_good(i, lambda: middle + rng.uniform(-d, d, (128, 4, 2)))
        self.grip[i], self.blocks[i, 0], self.blocks[i, 1], self.target[i] = spots

    def _first_good(self, i, draw):
        """Of draw() -> (n, 4, 2) the first with room to go round block 0, and block 1 not in the way."""
        reach, ok = 1.2 * self.half[i, 0] + self.grip_radius + 0.02, np.zeros(1, bool)
        while not ok.any():
            spots = draw()
            grip, block, other, target = np.moveaxis(spots, 1, 0)
            way = target - block
            distance = np.linalg.norm(way, axis=-1, keepdims=True)
            behind = block - way / distance * reach
            along = ((other - behind) * way).sum(-1, keepdims=True) / distance
            passed = behind + way / distance * np.clip(along, 0, distance + reach)
            ok = (distance[:, 0] > 0.35) & (np.abs(behind - 0.5).max(-1) < 0.5 - self.grip_radius)
            ok &= np.abs(other - 0.5).max(-1) < 0.5 - self.half[i, 1]
            ok &= np.linalg.norm(other - passed, axis=-1) > 0.25
            ok &= np.linalg.norm(other - block, axis=-1) > 0.42  # the gripper fits between them
            ok &= np.linalg.norm(spots[:, 1:3] - grip[:, None], axis=-1).min(-1) > 0.25
        return spots[ok.argmax()]

    def _paint(self, i, rng):
        """Colours and light: two hues far apart, dark ones on a light table or light ones on a dark one."""
        is_light = rng.random() < 0.5
        table = rng.uniform(*((0.78, 0.92) if is_light else (0.08, 0.2))) + rng.uniform(-0.04, 0.04, 3)
        hues = rng.uniform(0.15, 0.35) + 0.5 * rng.permutation(2)[:, None]  # red is the gripper's
        hues = hues + rng.uniform(-0.05, 0.05, (2, 1))
        colours = np.clip(np.abs((6 * hues + (0, 4, 2)) % 6 - 3) - 1, 0, 1)
        luma = (colours @ (0.3, 0.59, 0.11))[:, None]
        darker, lighter = np.minimum(1, 0.45 / luma), np.maximum(0, (0.5 - luma) / (1 - luma))
        self.colours[i] = 255 * (colours * darker if is_light else colours + (1 - colours) * lighter)
        pixels = (np.arange(self.size) + 0.5) / self.size - 0.5
        slope = rng.uniform(-0.12, 0.12, 2)
        light = 1 + slope[0] * pixels + slope[1] * pixels[:, None]
        self.background[i] = 255 * np.minimum(1, light[..., None] * table)
        pad = 0.5 * self.colours[i, :1] + 0.5 * 255 * table
        one = slice(i, i + 1)
        self._draw(self.background[one], self.target[one], 3.5 / 64, 4 / 64, pad)  # it never moves

    def step(self, actions):
        """Move once. actions (n, 2), clipped to [-1, 1].

        returns  frames_u8 (n,H,W,3), reward (n,) float32, success and done (n,) bool;  raises ValueError"""
        require_actions(actions, (self.n, 2))
        move, before = np.clip(actions, -1, 1) * self.speed / self.substeps, self.blocks.copy()
        for _ in range(self.substeps):
            self.grip = np.clip(self.grip + move, self.grip_radius, 1 - self.grip_radius)
            self.blocks = self.blocks + self.glide / self.substeps
            self._separate()
        self.glide = (1 - self.friction) * (self.blocks - before)
        self.time += 1
        distance = np.linalg.norm(self.blocks[:, 0] - self.target, axis=-1)
        success = distance < self.success_radius
        reward = success - distance - 0.25 * np.linalg.norm(self.grip - self.blocks[:, 0], axis=-1)
        return self.render(), reward.astype(np.float32), success, self.time >= self.length

    def expert(self):
        """What the scripted player would do: actions (n, 2)."""
        return expert(self)

    def close(self):
        """Nothing is held; other worlds hold a renderer."""

    def state(self):
        """All that there is, for `restore`."""
        return {k: x.copy() for k, x in vars(self).items() if isinstance(x, np.ndarray)}

    def restore(self, state):
        """Go back to a state. Nothing is drawn."""
        vars(self).update({k: x.copy() for k, x in state.items()})

    def places(self):
        """Where the blocks are, for `distance`: (n, 2, 2)."""
        return self.blocks.copy()

    def distance(self, places):
        """Of the block that is farthest from its place, in table sides (n,)."""
        return np.linalg.norm(self.blocks - places, axis=-1).max(1)

    def foresee(self, actions, places):
        """What each of N action sequences (N, h, 2) would lead to, n being 1; the world stays as it is.

        returns  frames_u8 (N,h,H,W,3), rewards (N,h), distances (N,h) from `places`"""
        twin, seen = copy.copy(self), []
        twin.n = len(actions)
        vars(twin).update({k: x.repeat(twin.n, 0) for k, x in self.state().items()})
        for action in actions.swapaxes(0, 1):
            seen.append((*twin.step(action)[:2], twin.distance(places)))
        return tuple(np.stack(column, 1) for column in zip(*seen, strict=True))

    def _separate(self):
        """Undo overlaps: gripper moves blocks, blocks each other, walls stop them; the gripper gives way."""
        core, reach, wall = self.half - self.corner, self.corner + self.grip_radius, self.half[..., None]
        for k in range(2 * self.relax):
            if k < self.relax:  # later rounds settle jammed blocks, to which the gripper gives way
                depth, normal = contact(self.blocks - self.grip[:, None], core, reach)
                self.blocks = self.blocks + np.maximum(depth, 0)[..., None] * normal
            depth, normal = contact(self.blocks[:, 1] - self.blocks[:, 0], core.sum(1), 2 * self.corner)
            push = 0.5 * np.maximum(depth, 0)[:, None] * normal
            self.blocks = np.clip(self.blocks + np.stack([-push, push], 1), wall, 1 - wall)
        for k in self.relax * (0, 1):
            depth, normal = contact(self.grip - self.blocks[:, k], core[:, k], reach)
            self.grip = self.grip + np.maximum(depth, 0)[:, None] * normal
            self.grip = np.clip(self.grip, self.grip_radius, 1 - self.grip_radius)

    def render(self):
        """Draw the worlds as they are: frames_u8 (n,H,W,3)."""
        canvas = self.background.copy()
        for k in (0, 1):
            core = self.half[:, k] - self.corner
            self._draw(canvas, self.blocks[:, k], core, self.corner, self.colours[:, k])
        *colours, core, rounding = self.robot
        body, mark = np.tile(np.array(colours, np.float32)[:, None], (1, self.n, 1))
        self._draw(canvas, self.grip, 0, self.grip_radius, body)
        self._draw(canvas, self.grip, core * self.grip_radius, rounding * self.grip_radius, mark)
        return (canvas + 0.5).astype(np.uint8)

    def _draw(self, canvas, centre, core, radius, colour):
        """Blend a rounded square per world into canvas (n,H,W,3), edge one pixel soft, in a small window."""
        core = np.broadcast_to(core, len(canvas))
        w = int(2 * (core.max() + radius) * self.size) + 4
        first = np.clip(np.rint(centre * self.size - w / 2), 0, self.size - w).astype(int)
        pixels = first[..., None] + np.arange(w)  # (n, 2, w)
        q = np.abs(pixels + 0.5 - self.size * centre[..., None]) - self.size * core[:, None, None]
        q = np.maximum(q, 0).astype(np.float32) ** 2
        distance = np.sqrt(q[:, 0, None, :] + q[:, 1, :, None]) - radius * self.size
        cover = np.clip(0.5 - distance, 0, 1)[..., None]
        window = np.arange(len(canvas))[:, None, None], pixels[:, 1, :, None], pixels[:, 0, None, :]
        canvas[window] += cover * (colour[:, None, None] - canvas[window])


def expert(world, block=None, goal=None):
    """Scripted player: go round the block to the side away from the goal, then push it there.

    block (n,) which block (0), goal (n, 2) where to (its target);  returns actions (n, 2) in [-1, 1]"""
    rows, edge = np.arange(world.n), world.grip_radius
    block = np.zeros(world.n, int) if block is None else block
    at, core, reach = world.blocks[rows, block], world.half[rows, block] - world.corner, world.corner + edge
    way = (world.target if goal is None else goal) - at
    distance = np.linalg.norm(way, axis=-1, keepdims=True)
    way = way / np.maximum(distance, 1e-6)
    touch = at - core[:, None] * np.tanh(4 * way) - reach * way  # there the contact normal is nearly `way`
    touch = np.clip(touch, edge, 1 - edge)
    along = ((world.grip - touch) * way).sum(-1, keepdims=True)
    aside = np.linalg.norm(world.grip - touch - along * way, axis=-1, keepdims=True)
    can_push = (aside < 0.03) & (along > -0.08) & (along < 0.06)
    # else the heading of 24 that brings it closest, in angle and distance about the block, without a touch
    ready = touch - 0.02 * way - at
    angles = np.arange(24) * (2 * np.pi / 24)
    options = world.grip[:, None] + world.speed * np.stack([np.cos(angles), np.sin(angles)], 1)  # (n, 24, 2)
    arms = np.clip(options, edge, 1 - edge) - at[:, None]
    lengths, arm = np.linalg.norm(arms, axis=-1), np.linalg.norm(ready, axis=-1, keepdims=True)
    turn = np.arccos(np.clip((arms * ready[:, None]).sum(-1) / (lengths * arm), -1, 1))
    overlap = np.maximum(contact(arms, core[:, None], reach + 0.005)[0], 0)
    around = arms[rows, (0.4 * turn + np.abs(lengths - arm) + 4 * overlap).argmin(1)] + at
    is_near = np.linalg.norm(ready + at - world.grip, axis=-1, keepdims=True) < world.speed
    push = touch + way * np.minimum(distance, world.speed)
    velocity = (np.where(can_push, push, np.where(is_near, ready + at, around)) - world.grip) / world.speed
    velocity = np.where(distance < 0.03, 0, velocity)  # it is there: leave it
    return velocity / np.maximum(1, np.abs(velocity).max(-1, keepdims=True))


def random_policy(n, steps, seed, A=2):
    """Wandering actions (steps, n, A) in [-1, 1]: each keeps 0.8 of the one before."""
    actions = np.random.default_rng(seed).normal(0, 0.6, (steps, n, A))
    for k in range(1, steps):
        actions[k] += 0.8 * actions[k - 1]
    return np.clip(actions, -1, 1)


def play_push(
    episodes, length=60, size=64, seed=0, expert_share=0.6, action_noise=0.3, robot="red", scene=-1
):
    """Play fresh PushWorld episodes; yields frames_u8 (T,H,W,3), actions (T,2), rewards (T,), kind, won.

    T is length + 1. A share is played by the noisy expert, which after success takes any block to any place,
    so that things keep moving; the rest is random play."""
    n = min(episodes, 50)
    world = PushWorld(n, size, seed, length, robot, scene)
    for first in range(0, episodes, n):
        frames = np.empty((length + 1, n, size, size, 3), np.uint8)  # anew: the last ones are still in use
        rng = np.random.default_rng([seed, first, 1, 1])  # four words: no stream of the world's own
        wander = random_policy(n, length, [seed, first, 1, 2])
        actions, rewards = np.zeros((length + 1, n, 2), np.float32), np.zeros((length + 1, n), np.float32)
        won = np.zeros(n, bool)
        frames[0] = world.reset() if first else world.render()
        is_expert, block, goal = rng.random(n) < expert_share, np.zeros(n, int), world.target.copy()
        for k in range(length):
            noisy = expert(world, block, goal) + rng.normal(0, action_noise, (n, 2))
            actions[k] = np.where(is_expert[:, None], np.clip(noisy, -1, 1), wander[k])
            frames[k + 1], rewards[k + 1], success, _ = world.step(actions[k])
            won |= success
            is_there = np.linalg.norm(world.blocks[np.arange(n), block] - goal, axis=-1) < 0.05
            gives_up = (rng.random(n) < 0.03) & (won | (k > length // 2))  # some goals cannot be reached
            block = np.where(is_there | gives_up, rng.integers(2, size=n), block)
            goal = np.where((is_there | gives_up)[:, None], rng.uniform(0.2, 0.8, (n, 2)), goal)
        for i in range(min(n, episodes - first)):
            yield frames[:, i], actions[:, i], rewards[:, i], "expert" if is_expert[i] else "random", won[i]


def collect_push(out, episodes, val_every=20, robot="red", scene=-1, **how):
    """Write the episodes of `play_push`; prints success rates and speed."""
    if episodes < 1 or not 0 <= how["seed"] < HELD_OUT or how["action_noise"] < 0:
        raise ValueError(f"expected episodes >= 1, 0 <= seed < {HELD_OUT}, action_noise >= 0; got {how}")
    began, wins = time.time(), {"expert": [], "random": []}
    played = tqdm(play_push(episodes, robot=robot, scene=scene, **how), "push", episodes)
    source = f"PushWorld, {robot}, scene {scene}, seed {how['seed']}"
    with EpisodeWriter(out, source, val_every=val_every) as writer:
        for i, (*episode, kind, won) in enumerate(played):
            wins[kind].append(won)
            writer.add(*episode, f"{kind} {i}")
    rates = " | ".join(f"{kind} success {np.mean(w):.3f} of {len(w)}" for kind, w in wins.items() if w)
    speed = episodes * (how["length"] + 1) / (time.time() - began)
    print(f"{out}: {episodes} episodes | {rates} | {speed:.0f} frames/s")


def push_segments(n, T, seed=0, size=64):
    """n PushWorld segments that no data made with a smaller seed than HELD_OUT holds; as Episodes.batch."""
    seed, length = seed + HELD_OUT, max(60, T)
    starts = np.random.default_rng([seed, n, T]).integers(0, length + 2 - T, n)
    episodes = zip(starts, play_push(n, length, size, seed), strict=True)
    parts = zip(*([array[s : s + T] for array in episode[:3]] for s, episode in episodes), strict=True)
    frames_u8, actions, rewards = map(np.stack, parts)
    actions, rewards = torch.from_numpy(actions), torch.from_numpy(rewards)
    return dict(frames=to_float(frames_u8), actions=actions, rewards=rewards)


# ---- robots in MuJoCo ----


def before_mujoco():
    """What has to happen before anybody imports mujoco."""
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")  # draws without a display
    import torch._dynamo  # noqa: F401  triton's LLVM crashes if it is loaded after the renderer's


def mujoco_renderer(model, height, width, fast=False):
    """A renderer of a model's cameras; fast: no shadows, reflections or smooth edges, a tenth of the time."""
    import mujoco

    try:
        if fast:
            model.vis.quality.offsamples = 0
        renderer = mujoco.Renderer(model, height, width)
    except mujoco.FatalError as error:
        raise ValueError(f"MuJoCo cannot draw: set MUJOCO_GL=egl before Python ({error})") from None
    for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION) if fast else ():
        renderer.scene.flags[flag] = False
    return renderer


def foresee_in_turn(env, actions, places):
    """`PushWorld.foresee` in a simulator of one world, which is taken back after each sequence."""
    state, seen = env.state(), []
    for sequence in actions:
        env.restore(state)
        for action in sequence:
            frame, reward, *_ = env.step(action[None])
            seen.append((frame[0], reward[0], env.distance(places)[0]))
    env.restore(state)
    columns = (np.stack(column) for column in zip(*seen, strict=True))
    return tuple(x.reshape(*actions.shape[:2], *x.shape[1:]) for x in columns)


class MetaWorld:
    """A task of Meta-World as the paper plays it (section 4.3): a world with PushWorld's interface, n = 1.

    Actions (1, 4) in [-1, 1], the hand's motion and grip, are held for two steps of the simulator. Reward:
    their two rewards, 0 to 10 each, + 10 where either is a success; an episode is done after `length` actions
    and goes on after a success. Where things lie in episode e depends on (seed, e) alone.
    raises  ImportError without the packages, ValueError at another task
    Source: Yu et al. 2019; the rewards are those of metaworld 3.0.0"""

    n, action_dim, action_repeat, bonus = 1, 4, 2, 10.0

    def __init__(self, task, size=64, seed=0, length=100):
        before_mujoco()
        try:
            from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE as simulators
            from metaworld.policies import ENV_POLICY_MAP
        except (ImportError, AttributeError) as error:  # the latter is PyOpenGL's, where a library is missing
            need = "pip install metaworld==3.0.0 mujoco==3.3.0 packaging; Debian: apt install libegl1 libgl1"
            raise ImportError(f"Meta-World needs {need} ({error})") from None
        if f"{task}-v3" not in ENV_POLICY_MAP:
            names = ", ".join(name.removesuffix("-v3") for name in ENV_POLICY_MAP)
            raise ValueError(f"task is {task!r}; expected push (PushWorld), {', '.join(DESK)} (RoboDesk), "
                             f"robosuite_push or, of Meta-World, {names}")
        self.size, self.seed, self.length, self.episode = size, seed, length, np.full(1, -1)
        self.simulator = simulators[f"{task}-v3-goal-observable"](seed=seed)
        self.simulator._freeze_rand_vec = False  # things lie elsewhere in every episode,
        self.simulator.seeded_rand_vec = True  # as the simulator's own generator has it
        self.simulator.model.vis.quality.shadowsize = 1024  # 4096 takes twice the time and shows the same
        self.policy = ENV_POLICY_MAP[f"{task}-v3"]()
        self.renderer = mujoco_renderer(self.simulator.model, size, size)

    def close(self):
        self.renderer.close()

    def render(self):
        """What the camera sees: frames_u8 (1, H, W, 3)."""
        self.renderer.update_scene(self.simulator.data, camera="corner")
        return self.renderer.render()[None, ::-1].copy()  # it hangs upside down

    def reset(self):
        """Begin the next episode; returns frames_u8 (1, H, W, 3)."""
        self.episode += 1
        self.simulator.np_random = np.random.default_rng([self.seed, self.episode[0]])
        self.simulator.reset()
        self.state, *_ = self.simulator.step(np.zeros(4, np.float32))  # as the authors do
        self.time = 0
        return self.render()

    def expert(self):
        """What the scripted player would do: actions (1, 4)."""
        return np.clip(self.policy.get_action(self.state), -1, 1)[None]

    def step(self, actions):
        """actions (1, 4), clipped -> frames_u8 (1,H,W,3), reward (1,), success (1,), done (1,)."""
        reward, success = 0.0, False
        require_actions(actions, (1, 4))
        for _ in range(self.action_repeat):
            self.state, got, _, _, known = self.simulator.step(np.clip(actions[0], -1, 1).astype(np.float32))
            reward, success = reward + got, success or known["success"] >= 1
        self.time += 1
        numbers = np.array([reward + self.bonus * success], np.float32), np.array([success])
        return self.render(), *numbers, np.array([self.time >= self.length])


# The desk's tasks: what the script goes for, and where its finger goes, one offset (m) after another.
DESK = {
    **{f"push_{hue}": (f"{hue}_button", ((0, 0, 0.12), (0, 0, -0.03))) for hue in ("red", "green", "blue")},
    "open_slide": ("slide_handle", ((-0.16, -0.1, 0.03), (-0.14, -0.02, 0), (0.5, 0, 0))),
    "open_drawer": ("drawer_handle", ((0, -0.1, 0.28), (0, 0.04, 0.1), (0, 0.04, -0.01), (0, -0.6, -0.02))),
    "flat_block_off_table": ("flat_block", ((-0.13, 0, 0.15), (-0.13, 0, 0.02), (0.5, 0, 0.02))),
    "upright_block_off_table": ("upright_block", ((-0.14, 0, 0.08), (-0.14, 0, -0.06), (0.5, 0, -0.06))),
}


class RoboDesk:
    """A task of RoboDesk as VP2 plays it: PushWorld's interface, n = 1, and a second of the robot per action.

    Actions (1, 5) in [-1, 1]: motion of the finger tip (x, y, z; 0.08 m at 1), turn of the wrist, opening of
    the fingers. Reward: RoboDesk's dense one, 0 to 1, + 1 while the task is done; an episode is done after
    `length` actions. Where things lie in episode e depends on (seed, e) alone. `distance` is what is left to
    do, in the task's own unit: below 0 it is done.
    raises  ImportError without the package, ValueError at another task
    Source: Kannan et al. 2021; VP2 (Tian et al. 2023): its seven tasks, camera and criteria"""

    n, action_dim, action_repeat, tolerance = 1, 5, 1, 0.0

    def __init__(self, task="push_red", size=64, seed=0, length=35):
        before_mujoco()
        try:
            import absl.logging
            import mujoco
            from robodesk import RoboDesk as Desk
        except (ImportError, AttributeError) as error:
            need = "pip install robodesk==1.0.0 mujoco==3.3.0; Debian: apt install libegl1 libgl1"
            raise ImportError(f"RoboDesk needs {need} ({error})") from None
        absl.logging.set_verbosity("error")  # of an arm that cannot reach where it is told to go
        self.task, self.size, self.seed, self.length, self.episode = task, size, seed, length, np.full(1, -1)
        self.desk = Desk(task, action_repeat=50, episode_length=0)
        self.desk._get_obs = lambda: None  # which would draw in its own, slow way
        self.physics = self.desk.physics
        self.renderer = mujoco_renderer(self.physics.model.ptr, 120, 120, fast=True)
        self.camera = mujoco.MjvCamera()
        self.camera.distance, self.camera.azimuth, self.camera.elevation = 1.8, 90, -60
        self.camera.lookat[:] = 0, 0.535, 1.1

    def close(self):
        self.renderer.close()

    def render(self):
        """What the camera sees: frames_u8 (1, H, W, 3)."""
        from PIL import Image  # imageio brings it

        self.renderer.update_scene(self.physics.data.ptr, self.camera)
        picture = Image.fromarray(self.renderer.render())
        side = self.size, self.size
        return np.asarray(picture.resize(side, Image.Resampling.LANCZOS, (16.75, 25, 105, 88.75)))[None]

    def reset(self):
        """Begin the next episode; returns frames_u8 (1, H, W, 3)."""
        self.episode += 1
        others, seed = np.random.get_state(), np.random.SeedSequence([self.seed, self.episode[0]])
        np.random.seed(seed.generate_state(4))  # the desk draws from there
        self.desk.reset()
        np.random.set_state(others)
        self.desk.original_pos = {k: v.copy() for k, v in self.desk.original_pos.items()}  # they were views
        self.time, self.stage = 0, 0
        return self.render()

    def state(self):
        """All that there is, for `restore`."""
        data, own = self.physics.data, (self.time, self.stage, self.desk.original_pos)
        return data.qpos.copy(), data.qvel.copy(), data.ctrl.copy(), data.act.copy(), own

    def restore(self, state):
        """Go back to a state. Nothing is drawn."""
        data = self.physics.data
        data.qpos[:], data.qvel[:], data.ctrl[:], data.act[:], own = state
        self.time, self.stage, self.desk.original_pos = own
        self.physics.forward()
        self.desk.physics_copy.data.qpos[:] = data.qpos

    def state_of_vp2(self, flat):
        """A state for `restore` from one of VP2's files (76,): arm, its speed, things, their speed, hand."""
        parts = np.split(np.asarray(flat, float), (9, 18, 47, 73))
        _, _, ctrl, act, (*_, first) = self.state()
        return np.concatenate(parts[0:3:2]), np.concatenate(parts[1:4:2]), ctrl, act, (0, 0, first)

    def places(self):
        """Nothing: a task of the desk is the same in every episode."""
        return np.zeros(0)

    def distance(self, places=None):
        """What is left to do (1,), 0 when it is just done."""
        q, where = self.physics.named.data.qpos, self.physics.named.data.xpos
        left = dict(open_slide=0.55 - q["slide_joint"][0], open_drawer=0.2 + q["drawer_joint"][0])
        if self.task.startswith("push"):
            return q[f"{self.task[5:]}_light"] + 0.00453
        block = self.task.removesuffix("_off_table")
        return np.array([left[self.task] if self.task in left else where[block][2] - 0.6])

    foresee = foresee_in_turn

    def expert(self):
        """What the scripted player would do: actions (1, 5)."""
        named, (name, way) = self.physics.named, DESK[self.task]
        kind = dict(slide_handle="site_xpos", drawer_handle="geom_xpos").get(name, "xpos")
        to = getattr(named.data, kind)[name] - named.data.site_xpos["end_effector"]
        near = np.abs(to + way[self.stage]).max() < (0.045 if self.stage else 0.06)
        self.stage = min(self.stage + near, len(way) - 1)
        return np.append(np.clip((to + way[self.stage]) / 0.081, -1, 1), (0, -1))[None]

    def step(self, actions):
        """actions (1, 5), clipped -> frames_u8 (1,H,W,3), reward (1,), success (1,), done (1,)."""
        require_actions(actions, (1, 5))
        self.desk.step(np.clip(actions[0], -1, 1).astype(float))
        self.time += 1
        success = self.distance() < 0
        reward = self.desk._get_task_reward(self.task, "dense_reward") + success
        return self.render(), reward.astype(np.float32), success, np.array([self.time >= self.length])


def push_center():
    """VP2's scene for robosuite: a Panda arm at a table with two boxes, a cylinder and a ball."""
    before_mujoco()
    try:
        import robosuite
        from robosuite.controllers import load_composite_controller_config
        from robosuite.environments.manipulation.manipulation_env import ManipulationEnv
        from robosuite.models.arenas import TableArena
        from robosuite.models.objects import BallObject, BoxObject, CylinderObject
        from robosuite.models.tasks import ManipulationTask
    except (ImportError, AttributeError) as error:
        need = "pip install robosuite==1.5.2 mujoco==3.3.0; Debian: apt install libegl1 libgl1"
        raise ImportError(f"robosuite needs {need} ({error})") from None
    robosuite.utils.log_utils.ROBOSUITE_DEFAULT_LOGGER.setLevel("ERROR")  # of arms that a Panda lacks
    slippery, rolling = (dict(density=1000, friction=(f, 0.005, 0.0001)) for f in (0.7, 0.5))

    class PushCenter(ManipulationEnv):
        def reward(self, action=None):
            return 0.0

        def _load_model(self):
            super()._load_model()
            robot, arena = self.robots[0].robot_model, TableArena((0.8, 0.8, 0.05), table_offset=(0, 0, 0.8))
            robot.set_base_xpos(robot.base_xpos_offset["table"](0.8))
            arena.set_origin([0, 0, 0])
            view = [0.67589, 0, 1.25127], [0.6326, 0.31594, 0.31594, 0.6326]
            arena.set_camera("agentview_shift_2", *view)
            self.things = (
                BoxObject("cube", [0.06] * 3, rgba=(0.8, 0.2, 0.2, 1), **slippery),
                BoxObject("small", [0.04] * 3, rgba=(0.2, 0.5, 0.8, 1), density=1000),
                CylinderObject("cylinder", [0.06] * 2, rgba=(0.2, 0.7, 0.3, 1), **slippery),
                BallObject("ball", [0.07], rgba=(0.8, 0.7, 0.2, 1), **rolling),
            )
            self.model = ManipulationTask(arena, [robot], self.things)

    controllers = load_composite_controller_config(controller="BASIC", robot="Panda")
    metre = dict(output_max=[0.05] * 3, output_min=[-0.05] * 3)
    controllers["body_parts"]["right"].update(type="OSC_POSITION", **metre)
    off = dict(use_camera_obs=False, has_renderer=False, has_offscreen_renderer=False, ignore_done=True)
    fixed = dict(initialization_noise=None, hard_reset=False)  # a hard reset spoils later pictures
    return PushCenter("Panda", controller_configs=controllers, control_freq=1, **off, **fixed)


class RobosuitePush:
    """VP2's pushing task on robosuite: PushWorld's interface, n = 1, and a second of the robot per action.

    Actions (1, 4) in [-1, 1]: motion of the hand (x, y, z; 0.05 m at 1), grip. The script pushes one thing,
    another in each episode, some 0.25 m away; success is when it has moved 0.08 m and nothing has fallen off
    the table. No rewards: 0. Where things lie in episode e depends on (seed, e) alone. `distance` is in m.
    raises  ImportError without the package
    Source: Zhu et al. 2020; VP2 (Tian et al. 2023), whose scene is drawn by another renderer"""

    n, action_dim, action_repeat, tolerance = 1, 4, 1, 0.05
    sizes = 0.06, 0.04, 0.06, 0.07  # half-heights of the things

    def __init__(self, size=64, seed=0, length=35):
        self.simulator = push_center()
        self.size, self.seed, self.length, self.episode = size, seed, length, np.full(1, -1)
        self.simulator.reset()
        import mujoco

        self.data = self.simulator.sim.data._data
        self.renderer = mujoco_renderer(self.simulator.sim.model._model, size, size, fast=True)
        self.look = mujoco.MjvOption()
        self.look.geomgroup[0] = 0  # bodies as physics knows them

    def close(self):
        self.renderer.close()
        self.simulator.close()

    def render(self):
        """What the camera sees: frames_u8 (1, H, W, 3)."""
        self.renderer.update_scene(self.data, "agentview_shift_2", self.look)
        return self.renderer.render()[None].copy()

    def reset(self):
        """Begin the next episode; returns frames_u8 (1, H, W, 3)."""
        self.episode += 1
        rng, apart = np.random.default_rng([self.seed, self.episode[0]]), 0
        while apart < 0.16:  # no two touch
            spots = rng.uniform((-0.1, -0.15), (0.3, 0.15), (4, 2))
            apart = (np.linalg.norm(spots[:, None] - spots, axis=-1) + np.eye(4)).min()
        self.simulator.reset()
        for thing, spot, size in zip(self.simulator.things, spots, self.sizes, strict=True):
            pose = *spot, 0.8 + size, 1, 0, 0, 0
            self.simulator.sim.data.set_joint_qpos(thing.joints[0], np.array(pose))
        self.simulator.sim.forward()
        self.pushed, end = rng.integers(4), 1
        while np.abs(end).max() > 0.3:  # not off the table
            angle = rng.uniform(-np.pi, np.pi)
            self.way = np.array([np.cos(angle), np.sin(angle)])
            end = spots[self.pushed] + 0.25 * self.way
        self.time, self.stage, self.first = 0, 0, self.places()
        return self.render()

    def state(self):
        """All that there is, for `restore`."""
        fingers = self.simulator.robots[0].gripper["right"].current_action.copy()
        own = self.time, self.stage, self.pushed, self.way, self.first
        return self.simulator.sim.get_state().flatten(), fingers, own

    def restore(self, state):
        """Go back to a state. Nothing is drawn."""
        flat, fingers, own = state
        self.time, self.stage, self.pushed, self.way, self.first = own
        robot = self.simulator.robots[0]
        robot.gripper["right"].current_action = fingers.copy()
        self.simulator.sim.set_state_from_flattened(flat)
        self.simulator.sim.forward()
        robot.composite_controller.update_state()
        robot.composite_controller.reset()

    def state_of_vp2(self, flat):
        """A state for `restore` from one of VP2's files (71,), whose joints are in the same order."""
        _, fingers, own = self.state()
        return np.asarray(flat, float), fingers, (0, 0, *own[2:])

    def places(self):
        """Where the four things are, for `distance`: (1, 4, 3), m."""
        things = self.simulator.things
        return np.stack([self.simulator.sim.data.get_joint_qpos(x.joints[0])[:3] for x in things])[None]

    def distance(self, places):
        """Of the thing that is farthest from its place, in m (1,)."""
        return np.linalg.norm(self.places() - places, axis=-1).max(1)

    foresee = foresee_in_turn

    def expert(self):
        """What the scripted player would do: down behind a thing, then push it some way: actions (1, 4)."""
        hand = self.data.site_xpos[self.simulator.robots[0].eef_site_id["right"]]
        at, low = self.places()[0, self.pushed], 0.84
        room = self.sizes[self.pushed] + 0.07
        behind = np.append(at[:2] - room * self.way, 1.05 if self.stage == 0 else low)
        self.stage = min(self.stage + (np.abs(behind - hand).max() < 0.03), 2)
        if self.stage == 2:
            behind = np.append(np.clip(at[:2], -0.3, 0.3), low)
        to = (behind - hand) / 0.05 * (self.distance(self.first) < 0.25)
        return np.append(to / max(1, np.abs(to).max()), 0)[None]

    def step(self, actions):
        """actions (1, 4), clipped -> frames_u8 (1,H,W,3), reward (1,), success (1,), done (1,)."""
        require_actions(actions, (1, 4))
        self.simulator.step(np.clip(actions[0], -1, 1))
        self.time += 1
        success = (self.distance(self.first) > 0.08) & (self.places()[..., 2].min(1) > 0.8)
        return self.render(), np.zeros(1, np.float32), success, np.array([self.time >= self.length])


def make_environment(task, n=1, seed=0, size=64, scene=-1, robot="red"):
    """PushWorld, n worlds at once, if task is "push", or "push_anywhere"; VP2's tasks of RoboDesk (DESK) and
    "robosuite_push"; else that task of Meta-World. PushWorld alone has scenes and robots to choose from.

    raises  ValueError"""
    if task in ("push", "push_anywhere"):
        return PushWorld(n, size, seed, scene=scene, robot=robot, anywhere=task == "push_anywhere")
    if (scene, robot) != (-1, "red"):
        raise ValueError(f"task is {task!r}; only PushWorld's, push, has a scene and a robot to choose")
    if task == "robosuite_push":
        return RobosuitePush(size, seed)
    return RoboDesk(task, size, seed) if task in DESK else MetaWorld(task, size, seed)


def play(env, episodes, act):
    """Play episodes; yields of each a dict: frames_u8 (T,H,W,3), actions (T-1,A), rewards (T,), success.

    act  frames_u8 so far, a list of (n,H,W,3) -> actions (n,A) for the n worlds of env"""
    for first in range(0, episodes, env.n):
        frames, actions, rewards, won, done = [env.reset()], [], [np.zeros(env.n, np.float32)], False, False
        while not np.all(done):
            actions.append(np.clip(act(frames), -1, 1).astype(np.float32))
            frame, reward, success, done = env.step(actions[-1])
            frames.append(frame)
            rewards.append(reward)
            won = won | success
        columns = np.stack(frames, 1), np.stack(actions, 1), np.stack(rewards, 1), won
        for row in list(zip(*columns, strict=True))[: episodes - first]:
            yield dict(zip(("frames_u8", "actions", "rewards", "success"), row, strict=True))


def script_episodes(env, n, noise=0.0, seed=0):
    """Yield n episodes (`play`) of the scripted player, with noise of that deviation added."""
    rng = np.random.default_rng(seed)
    return play(env, n, lambda frames: env.expert() + noise * rng.normal(size=(env.n, env.action_dim)))


def demonstrations(env, n, noise=0.0, seed=0):
    """Yield n of the `script_episodes` that are successes.   raises  ValueError if hardly any is"""
    found = 0
    for episode in script_episodes(env, 20 * n, noise, seed):
        if episode["success"]:
            yield episode
            found += 1
            if found == n:
                return
    raise ValueError(f"{found} successes in {20 * n} episodes of the scripted player; lower the noise")


def _write_played(out, source, val_every, tasks, seed, n, played):
    """Write n episodes of each task, which played(env) yields; tells of each how it ended."""
    with EpisodeWriter(out, f"{source}, seed {seed}", val_every=val_every) as writer:
        for task in tasks:
            with contextlib.closing(make_environment(task, seed=seed)) as env:
                for i, e in enumerate(tqdm(played(env), task, n)):
                    actions = np.concatenate([e["actions"], np.zeros_like(e["actions"][:1])])
                    writer.add(e["frames_u8"], actions, e["rewards"], f"{task} {i}")
                    outcome = "success" if e["success"] else "failure"
                    tqdm.write(f"{task} {i}: {outcome}, return {e['rewards'].sum():.1f}")


def collect_metaworld(out, task, episodes, seed, noise, val_every):
    """Write demonstrations of a task."""
    shown = functools.partial(demonstrations, n=episodes, noise=noise, seed=seed)
    _write_played(out, f"Meta-World {task}", val_every, (task,), seed, episodes, shown)


def collect_script(out, tasks, episodes, seed, noise, random_share, val_every):
    """Write so many episodes of each task, by its scripted player with noise, then a share at random."""
    if not 0 <= random_share <= 1:
        raise ValueError(f"--random_share is {random_share}; expected 0 to 1")
    n_random = round(random_share * episodes)

    def played(env):
        yield from script_episodes(env, episodes - n_random, noise, seed)
        wander = iter(random_policy(1, n_random * env.length, [seed, 1], env.action_dim))
        yield from play(env, n_random, lambda frames: next(wander))

    _write_played(out, f"{', '.join(tasks)}, noise {noise}", val_every, tasks, seed, episodes, played)


# ---- pictures ----


def _join(clips, dim, gap=2):
    """Float clips one after another along dim, with a white line between."""
    line = torch.ones_like(clips[0].narrow(dim, 0, gap))
    return torch.cat([part for clip in clips for part in (line, clip)][1:], dim)


def _enlarge(frames, scale):
    return to_u8(frames).repeat(scale, -3).repeat(scale, -2)  # repeated pixels: nothing is smoothed away


def _write_picture(path, frames_u8, **how):
    """Write a picture or GIF; encoded in memory first, as imageio tries a full disk twice."""
    write_whole(path, iio.imwrite("<bytes>", frames_u8, extension=Path(path).suffix, **how))


def save_gif(path, frames, fps=8, scale=4):
    """Write a GIF of frames (T,3,H,W) in [0, 1]; a batch (B,T,3,H,W) is laid side by side."""
    frames = _join(list(frames), -1) if frames.ndim == 5 else frames
    _write_picture(path, _enlarge(frames, scale), duration=1000 / fps, loop=0)  # milliseconds


def save_side_by_side(path, truth, imagined, fps=8, scale=4):
    """Write a GIF: truth | imagined | difference around grey; (T,3,H,W), or a batch (B,T,3,H,W) in rows."""
    if truth.shape != imagined.shape:
        raise ValueError(f"truth {tuple(truth.shape)}, imagined {tuple(imagined.shape)}; expected the same")
    columns = _join([truth, imagined, 0.5 + (imagined - truth) / 2], -1)
    save_gif(path, _join(list(columns), -2) if columns.ndim == 5 else columns, fps, scale)


def save_contact_sheet(path, rows, scale=2):
    """Write a PNG with one row per clip: rows is a list of (T,3,H,W) in [0, 1]; short clips end in white."""
    T = max(len(row) for row in rows)
    rows = [torch.cat([row, torch.ones_like(row[:1]).expand(T - len(row), -1, -1, -1)]) for row in rows]
    _write_picture(path, _enlarge(_join([_join(list(row), -1) for row in rows], -2), scale))


def write_on(frames, texts):
    """Frames (T,3,H,W) in [0, 1] with one line of text below each -> (T, 3, H + 12, W)."""
    from PIL import Image, ImageDraw  # imageio brings it

    strips = []
    for text in texts:
        strip = Image.new("RGB", (frames.shape[3], 12), "white")
        ImageDraw.Draw(strip).text((2, 0), text, "black")
        strips.append(np.asarray(strip))
    return torch.cat([frames, to_float(np.stack(strips))], 2)


COMMANDS = {
    "push": (collect_push, PUSH_CONFIG),
    "metaworld": (collect_metaworld, METAWORLD_CONFIG),
    "script": (collect_script, SCRIPT_CONFIG),
}


def main(argv):
    """Run one of COMMANDS or IMPORTERS: argv is its name, then its settings as --key value."""
    import importers  # which imports this file

    commands = {**COMMANDS, **importers.IMPORTERS}
    if not argv or argv[0] not in commands:
        known = f"{', '.join(commands)} (each with --help)"
        if argv and argv[0] not in ("-h", "--help"):
            raise SystemExit(f"{argv[0]}: no such command; expected {known}")
        print(f"{__doc__}\n\ncommands: {known}")
        raise SystemExit(0)
    function, config = commands[argv[0]]
    doc = f"{sys.modules[function.__module__].__doc__}\n\n{argv[0]}: {function.__doc__}"
    run(lambda cfg: function(**vars(cfg)), configure(config, doc, argv[1:]))


if __name__ == "__main__":
    main(sys.argv[1:])
