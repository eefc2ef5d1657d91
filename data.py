"""data.py: episodes on disk, and random segments of them for training.

    prepare.py: built-in worlds, robots, other people's formats
        | EpisodeWriter                       +--> Episodes.batch(first)    frames (B,T,3,H,W)
        v                                     |       (training)            actions (B,T,A)
    a folder of episodes --> Episodes --------+--> Episodes.segments(n)     rewards (B,T)
    folders of several sets (mixture.py) -----^       (evaluation)

B batch, T frames, H/W height and width, A action dim, S frames of all episodes.

Alignment, everywhere: actions[k] is taken while seeing frame k and leads to frame k+1; rewards[k] is received
on arriving at frame k, so rewards[0] of an episode is 0. All arrays of an episode have one length; its last
action is unused: zeros.

A folder holds meta.json, index.npz, shard-00000.bin ... (frames back to back, as HWC bytes or as JPEGs, whose
sizes.npy (S,) is there too), actions.npy (S,A), rewards.npy (S,); it is written as FOLDER.partial and renamed
when it is complete. The official code keeps a compressed npz per episode; here a random segment costs one
`pread`, or one for each run of adjacent frames, far less (a memmap would read too much ahead)."""

import io
import itertools
import os
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image  # imageio brings it

from support import augment
from support.tables import load, map_rows, read_index, read_meta

try:
    import resource  # how many files may be open; Windows has no such limit to ask for
except ImportError:
    resource = None

FORMAT_VERSION = 1


# ---- bytes <-> floats: no other file converts ----


def to_float(frames_u8):
    """Bytes (..., H, W, 3), numpy or torch -> float tensor (..., 3, H, W) in [0, 1]."""
    return torch.as_tensor(frames_u8).movedim(-1, -3).contiguous().float().div_(255)


def to_u8(frames):
    """Float tensor (..., 3, H, W), clamped to [0, 1] -> bytes as numpy (..., H, W, 3)."""
    scaled = frames.detach().float().clamp(0, 1).mul(255).round()
    return scaled.to("cpu", torch.uint8).movedim(-3, -1).contiguous().numpy()


def from_picture(encoded):
    """A JPEG or PNG, as bytes, -> bytes (H, W, 3)."""
    with Image.open(io.BytesIO(encoded)) as image:
        return np.array(image.convert("RGB"))


# ---- episodes on disk ----


class Episodes:
    """Random access to the episodes of a folder. It has no position: a batch depends on the arguments alone.

    folder  what EpisodeWriter wrote;  split "train", "val" (number % val_every == 0) or "all"
    limit   only the first `limit` of them; 0: all
    has     frame_shape (H, W, 3), action_dim, has_reward, n_episodes, lengths, names, meta
    raises  FileNotFoundError where no such folder is, ValueError at another format, a truncated file, or
            files that do not belong together"""

    def __init__(self, folder, split="train", limit=0):
        self.folder = Path(folder)
        if not (self.folder / "meta.json").is_file():
            ways = f"python prepare.py push --out {folder}, or an importer (python prepare.py --help)"
            raise FileNotFoundError(f"no episodes at {folder}; try: {ways}")
        self.meta = load(self.folder / "meta.json", read_meta)
        version = self.meta["version"]
        codec = self.meta["codec"]
        if version != FORMAT_VERSION or codec not in ("raw", "jpeg"):
            raise ValueError(f"{folder} has format {version}, codec {codec}; "
                             f"expected {FORMAT_VERSION}, raw or jpeg; import it again")
        self.frame_shape = tuple(self.meta["frame_shape"])
        self.frame_bytes = int(np.prod(self.frame_shape))
        self.action_dim = self.meta["action_dim"]
        self.has_reward = self.meta["has_reward"]
        index = load(self.folder / "index.npz", read_index)
        self.actions = load(self.folder / "actions.npy", map_rows)
        self.rewards = load(self.folder / "rewards.npy", map_rows)
        self.sizes = load(self.folder / "sizes.npy", map_rows) if codec == "jpeg" else None
        self._require_rows(index)
        self._require_shards(index)
        ids = self._episodes_of(split, limit, index.get("number", np.arange(len(index["row"]))))
        self.n_episodes = len(ids)
        self.shards = index["shard"][ids]
        self.offsets = index["offset"][ids]
        self.lengths = index["length"][ids]
        self.rows = index["row"][ids]
        self.names = index["name"][ids]
        self.files = {}  # shard: open file
        most = 512
        if resource and resource.getrlimit(resource.RLIMIT_NOFILE)[0] != resource.RLIM_INFINITY:
            most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.max_files = most // 3  # train, val, and everything else

    def __del__(self):
        for file in getattr(self, "files", {}).values():
            os.close(file)

    def _episodes_of(self, split, limit, numbers):
        """Which episodes belong to a split."""
        if split not in ("train", "val", "all"):
            raise ValueError(f"split is {split!r}; expected train, val or all")
        ids = np.arange(len(numbers))
        if split != "all" and len(ids) == 1:
            print(f"{self.folder} holds one episode, which serves for training and for validation")
        elif split != "all":
            ids = ids[(numbers % self.meta["val_every"] == 0) == (split == "val")]
        if limit > len(ids):
            raise ValueError(f"{limit} episodes wanted; {self.folder} has {len(ids)} for {split}")
        if not len(ids):
            raise ValueError(f"{self.folder} has no episode for {split}; import it with another --val_every")
        return ids[: limit or None]

    def _require_rows(self, index):
        """Raise ValueError unless the tables have a row for each frame of the index."""
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

    def _require_shards(self, index):
        """Find the shards.   raises  ValueError unless they are as long as the index says"""
        shards = self.meta["shards"]
        episodes = len(index["row"])
        if shards > episodes:
            raise ValueError(f"{self.folder}/meta.json has {shards} shards for {episodes} episodes; copy the "
                             "whole folder again")
        self.paths = [self.folder / f"shard-{shard:05d}.bin" for shard in range(shards)]
        ends = np.zeros(len(self.paths), np.int64)
        n_bytes = index.get("bytes", index["length"] * self.frame_bytes)
        np.maximum.at(ends, index["shard"], index["offset"] + n_bytes)
        for path, expected in zip(self.paths, ends, strict=True):
            found = path.stat().st_size if path.is_file() else 0
            if found != expected:
                raise ValueError(f"{path} has {found} bytes, expected {expected}; copy or write it again")

    def read(self, episode, start=0, stop=None):
        """Frames start..stop-1 of one episode, as bytes (stop-start, H, W, 3)."""
        return self.pick(episode, np.arange(start, self.lengths[episode] if stop is None else stop))

    def pick(self, episode, frames):
        """Frames of these numbers (T,) of one episode, as bytes (T, H, W, 3); none between them is read."""
        row = int(self.rows[episode])
        wanted = np.unique(frames)
        ends = self.frame_bytes * np.arange(wanted[-1] + 2)  # where frames end in the episode, in bytes
        if self.sizes is not None:
            ends[1:] = self.sizes[row : row + wanted[-1] + 1].cumsum(dtype=np.int64)
        shard = int(self.shards[episode])
        offset = int(self.offsets[episode])
        parts = []
        for run in np.split(wanted, np.flatnonzero(np.diff(wanted) > 1) + 1):  # of adjacent frames
            edges = ends[run[0] : run[-1] + 2]
            data = self._bytes(shard, int(edges[-1] - edges[0]), offset + int(edges[0]))
            if self.sizes is None:
                parts.append(np.frombuffer(data, np.uint8).reshape(-1, *self.frame_shape))
            else:
                edges = edges - edges[0]
                parts += [from_picture(data[a:b])[None] for a, b in itertools.pairwise(edges)]
        found = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return found[np.searchsorted(wanted, frames)]

    def _open(self, shard):
        if shard not in self.files:
            if len(self.files) >= self.max_files:
                os.close(self.files.pop(next(iter(self.files))))
            self.files[shard] = os.open(self.paths[shard], os.O_RDONLY)
            if hasattr(os, "posix_fadvise"):  # read only what is asked for
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
                         the same on any number of processes
        context, future  for the tokenizer (official: rand_select): the first `context` of the T frames, then
                         `future` distinct ones, in order, out of all later frames that the segment spans
        shuffle          or (rand_shuffle, for goals) any context + future of the T frames, in any order
        action_agg       "sample" the action at each chosen frame, or "sum" those up to the next one, or
                         "concat" them: (B,T,A stride)
        returns          frames (B,T,3,H,W) in [0, 1], actions (B,T,A), rewards (B,T) at these frames
        A shorter episode than T * stride gets a smaller stride; one shorter than T repeats its last frame."""
        return floats(self.batch_u8(first, batch_size, T, seed, **how))

    def batch_u8(self, first, batch_size, T, seed=0, stride=1, **how):
        """As `batch`, but with frames_u8 (B,T,H,W,3): a quarter of the bytes to move to a GPU."""
        return self.take(uniform(seed, first, batch_size, 3 + max(0, T * stride)), T, stride, **how)

    def take(self, draws, T, stride=1, context=0, future=0, shuffle=False, action_agg="sample"):
        """The segments that numbers (B, 3 + T * stride) in [0, 1) choose; the first number is Mixture's."""
        if (context or future) and not 0 < future <= T - context < T:
            raise ValueError(f"context {context}, future {future}; expected both > 0, sum at most T = {T}")
        episodes = (draws[:, 1] * self.n_episodes).astype(int)
        strides, free = self._strides(episodes, T, stride)
        starts = (draws[:, 2] * free).astype(int)
        priority = draws[:, 3:]
        offsets = strides[:, None] * np.arange(T)  # of the frames from the start
        if shuffle:
            offsets = np.take_along_axis(offsets, priority[:, :T].argsort(1), 1)
        elif future:
            for b, stride_b in enumerate(strides):
                after = (context - 1) * stride_b + 1
                end = (T - 1) * stride_b + 1
                drawn = np.sort(np.argsort(priority[b, after:end])[:future])
                offsets[b, context : context + future] = after + drawn
        offsets = offsets[:, : context + future or T]
        return self._gather(episodes, starts[:, None] + offsets, action_agg, stride)

    def segments(self, n, T, stride=1, seed=None, action_agg="sample"):
        """The same n segments at every call: one of each episode, then a second one of each, and so on.

        seed  None: from frame 0 (each further round T frames on), an int draws starts;  returns as batch"""
        rounds, episodes = np.divmod(np.arange(n), self.n_episodes)
        strides, free = self._strides(episodes, T, stride)
        starts = rounds * T % free if seed is None else np.random.default_rng(seed).integers(free)
        frames = starts[:, None] + strides[:, None] * np.arange(T)
        return floats(self._gather(episodes, frames, action_agg, stride))

    def _strides(self, episodes, T, stride):
        """The stride that fits each episode, and the number of possible starts."""
        if T < 1 or stride < 1:
            raise ValueError(f"T is {T}, stride {stride}; expected both at least 1")
        lengths = self.lengths[episodes]
        strides = np.where(lengths < T * stride, np.maximum(1, lengths // T), stride)
        return strides, np.maximum(1, lengths - (T - 1) * strides)

    def _gather(self, episodes, frames, action_agg, stride):
        """The batch of these frame numbers (B, T), which may lie past the end of a short episode."""
        require_action_agg(action_agg)
        frames = np.minimum(frames, self.lengths[episodes, None] - 1)
        B, T = frames.shape
        frames_u8 = np.empty((B, T, *self.frame_shape), np.uint8)
        for b, episode in enumerate(episodes):
            frames_u8[b] = self.pick(episode, frames[b])
        rows = self.rows[episodes, None] + frames
        actions = np.asarray(self.actions[rows])
        if action_agg == "sum":
            for b, k in np.ndindex(B, T - 1):
                actions[b, k] = self.actions[rows[b, k] : rows[b, k + 1]].sum(0)
        elif action_agg == "concat":
            actions = np.zeros((B, T, stride * self.action_dim), np.float32)
            for b, k in np.ndindex(B, T - 1):
                row = self.actions[rows[b, k] : rows[b, k + 1]][:stride].ravel()
                actions[b, k, : len(row)] = row  # zeros follow where a short episode has a smaller stride
        rewards = np.asarray(self.rewards[rows])
        if not (np.isfinite(actions).all() and np.isfinite(rewards).all()):
            raise ValueError(f"{self.folder} has actions or rewards that are not finite; write it again")
        columns = dict(frames_u8=frames_u8, actions=actions, rewards=rewards)
        return {name: torch.from_numpy(column) for name, column in columns.items()}


def require_action_agg(action_agg):
    if action_agg not in ("sample", "sum", "concat"):
        raise ValueError(f"action_agg is {action_agg!r}; expected sample, sum or concat")


def uniform(seed, first, n, k, use=0):
    """Numbers (n, k) in [0, 1). Row i depends on (seed, use, first + i) alone: a stream without a state.

    Source: the counter-based generator Philox (Salmon et al. 2011)"""
    words = -(-k // 4)  # of the counter, each of which stands for four numbers
    bits = np.random.Philox(key=[seed, use])
    bits.advance(first * words)
    return np.random.Generator(bits).random((n, 4 * words))[:, :k]


def floats(batch):
    """frames_u8 (B,T,H,W,3) of a batch, if it has any, -> frames (B,T,3,H,W) in [0, 1]; the rest as it is."""
    batch = dict(batch)
    if "frames_u8" in batch:
        batch["frames"] = to_float(batch.pop("frames_u8"))
    return batch


def goal_first(batch):
    """Segments of T-1 frames -> T: a copy of the last frame in front, with a zero action and reward."""
    frames = batch["frames"]
    actions = batch["actions"]
    rewards = batch["rewards"]
    return dict(
        frames=torch.cat([frames[:, -1:], frames], 1),
        actions=torch.cat([torch.zeros_like(actions[:, :1]), actions], 1),
        rewards=torch.cat([torch.zeros_like(rewards[:, :1]), rewards], 1),
    )


def draw_segments(data, cfg, T, seen, rank, world, kind="", **how):
    """Return fetch(i), the batch of a trainer's micro-step i, for `prefetch`.

    Processes take turns at the stream of cfg.seed, batch_size segments each. `seen` were read before: a
    resumed run continues with new ones, on any number of processes."""

    def fetch(i):
        first = seen + (i * world + rank) * cfg.batch_size
        batch = data.batch_u8(first, cfg.batch_size, T, cfg.seed, cfg.stride, **how)
        if kind:
            draws = uniform(cfg.seed, first, cfg.batch_size, augment.DRAWS, use=1)
            batch["changes"] = augment.plan(draws, *data.frame_shape[:2], kind)
        return batch

    return fetch


def prefetch(fn, start, stop, device):
    """Yield fn(start) ... fn(stop-1), dicts of tensors, in order, on `device`; a thread works ahead.

    On the device, bytes become floats and are augmented if fn says how (`draw_segments`)."""
    is_cuda = torch.device(device).type == "cuda"

    def load(i):
        batch = fn(i)
        if is_cuda:
            batch = {key: x.pin_memory() if torch.is_tensor(x) else x for key, x in batch.items()}
        return batch

    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(load, i) for i in range(start, min(start + 2, stop)))
        for i in range(start, stop):
            batch = waiting.popleft().result()
            if i + 2 < stop:
                waiting.append(pool.submit(load, i + 2))
            changes = batch.pop("changes", None)
            batch = floats({key: x.to(device, non_blocking=is_cuda) for key, x in batch.items()})
            if changes:
                batch["frames"] = augment.augment(batch["frames"], changes, batch["frames"].shape[-2])
            yield batch


if __name__ == "__main__":
    raise SystemExit("data is prepared by prepare.py: python prepare.py " + " ".join(sys.argv[1:]))
