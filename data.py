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

import io
import itertools
import json
import mmap
import os
import shutil
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from PIL import Image  # imageio brings it

from files import resolve, write_whole

try:
    import resource  # how many files may be open; Windows has no such limit to ask for
except ImportError:
    resource = None

FORMAT_VERSION = 1
KIND = "frame_shape", "action_dim", "has_reward"  # in which all episodes of a folder agree


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


if __name__ == "__main__":
    raise SystemExit("data is prepared by prepare.py now: python prepare.py " + " ".join(sys.argv[1:]))
