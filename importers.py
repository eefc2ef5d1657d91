"""importers.py: episodes in other people's formats -> folders that data.py reads.

    files --> jobs (a shard, or a batch of small files) --processes--> OUT.partial/part-00000 ... --> OUT

A part counts once its report, part-00000.json, is there: an import that was stopped goes on with the same
command. What cannot be read costs its episode alone, and is listed with the reason. Episodes keep the numbers
that they have in their source, on which the split into training and validation rests: one that is skipped
shifts no other. TensorFlow is never needed.

What an episode's files hold beside its frames, actions and rewards is named in one line and not imported.
Sources that must agree (frames and rows of actions, index and files) are compared: an episode in which they
do not is skipped with both counts; so is one whose frames or actions are of another size than most episodes'.
Actions that leave [-1, 1] are clipped or scaled, which is told and written to meta.json.

Settings of all or most, for which 0 or nothing is: as it is, or none:
    --size        pixels per side, after a crop to the centre square
    --min_frames  shorter episodes are skipped
    --val_every   episodes whose number is a multiple of it are for validation; the paper's is 100
    --exclude     a file with an episode's number or name in each line, which are left out
    --jpeg        quality at which frames are kept as JPEGs, say 95 for 256x256: a tenth of the bytes
    --workers     processes; 0: one per core that torch may use

T frames, H/W height and width, A action dim.

Run: python data.py video --src FOLDER --out data/mine --size 64            mp4, mov, webm, gif and others
     python data.py npz --src FOLDER --out data/bair --key aux1_image       the official code's episodes
     python data.py bair --src softmotion30_44k --split train --out data/bair
     python data.py robonet --src hdf5 --out data/robonet --size 64
     python data.py rlds --src bridge/0.1.0 --out data/oxe/bridge           Open X-Embodiment as TFRecords,
     python data.py lerobot --src FOLDER --out data/pusht --size 64         or as parquet and mp4, v2.1 and v3
     python data.py sthsth --src VIDEOS --labels FOLDER --out data/oxe/sthsth   Something-Something v2
     python data.py vp2 --src FOLDER --out data/vp2                         --help: a format's settings"""

import contextlib
import functools
import hashlib
import importlib
import io
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import imageio.v3 as iio
import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from common import require_content
from data import (
    KIND,
    EpisodeWriter,
    from_picture,
    kind_of,
    put_in_place,
    to_float,
    to_u8,
    write_json,
    write_tables,
)
from mixture import OXE, RLDS_SUFFIX

NPZ_CONFIG = dict(
    src="",  # folder, searched with its subfolders
    out="data/npz",
    key="image",  # the array that holds the frames, which chooses the camera
    exclude="",
    size=0,
    min_frames=2,
    val_every=20,
    workers=0,
    jpeg=0,
)
IMPORT = dict(src="", size=64, min_frames=2, val_every=100, workers=0, jpeg=0)
VIDEO_CONFIG = dict(IMPORT, out="data/video", min_frames=16, val_every=20)
VP2_CONFIG = dict(IMPORT, out="data/vp2", mask="", size=0, min_frames=12, val_every=20)  # mask: train, valid
BAIR_CONFIG = dict(
    IMPORT,
    out="data/bair",
    split="",  # train or test, where the folder has both
    camera="aux1",  # the paper's, or main
    size=0,
)
ROBONET_CONFIG = dict(IMPORT, out="data/robonet", camera="cam0", min_frames=12, exclude="")
RLDS_CONFIG = dict(
    IMPORT,
    out="data/rlds",
    split="train",  # TFDS's name
    camera="",  # among the observations, or several, each an episode; "": the paper's (data.OXE) or image
    actions=True,  # all float features under steps/action side by side
    exclude="",
)
LEROBOT_CONFIG = dict(
    IMPORT,
    out="data/lerobot",
    camera="",  # such as observation.images.top; "": the first
    action="action",  # the column; "": none
    scale=True,  # actions that leave [-1, 1] (joint angles, pixels): by their extremes; false: clip
    percentiles=False,  # by the 1st and 99th percentile instead, against single glitches; the rest is clipped
    exclude="",
)
STHSTH_CONFIG = dict(
    src="",  # folder of the .webm files, or of a folder of .jpg frames for each video
    out="data/sthsth",
    labels="",  # folder of train.json, validation.json, labels.json, or of *_video_folder.txt; "": src
    size=64,
    min_frames=16,
    workers=0,
    jpeg=0,
)


VIDEO_TYPES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif")  # they tell if they are cut off
ACTION_NAMES = "action", "actions"  # of arrays in an .npz
REWARD_NAMES = "reward", "rewards"
# Something-Something's classes with motion worth learning, of 174 (the official code's choice)
STHSTH_CLASSES = {c for first, last in ((1, 1), (5, 6), (13, 21), (27, 31), (33, 40), (42, 43), (45, 58),
                                        (85, 120), (122, 123), (139, 141), (143, 148), (156, 160), (164, 164),
                                        (173, 173)) for c in range(first, last + 1)}


# ---- the engine ----


def area_resize(frames_u8, size):
    """Crop to the centre square, then average over areas: (T,H,W,3) -> (T,size,size,3), bytes."""
    _, H, W, _ = frames_u8.shape
    side, top, left = min(H, W), max(0, H - W) // 2, max(0, W - H) // 2
    edges, old = np.arange(size + 1) * side / size, np.arange(side)
    shared = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)  # (size, side) overlap
    weights = torch.tensor(np.maximum(shared, 0) * size / side, dtype=torch.float32)
    square = frames_u8[:, top : top + side, left : left + side]
    return square if side == size else to_u8(weights @ to_float(square) @ weights.T)


class Recording(NamedTuple):
    """What a reader found in an episode's files: arrays that may be anything until they are `_checked`."""

    frames: np.ndarray  # (T, H, W, 3) of integers
    actions: np.ndarray | None = None  # (T, A), or (T-1, A): the last one is unused
    rewards: np.ndarray | None = None  # (T,) on arriving at each frame, or (T-1,) of the actions
    unused: tuple = ()  # names of what is there and not imported


def _small(frame, size):
    """A frame (H, W, 3) in the size that is kept."""
    return area_resize(frame[None], size)[0] if size else frame


def _stack(frames, size=0):
    """Frames one by one -> (T,H,W,3), none of which is kept in full if they are to be small."""
    kept = [_small(frame, size) for frame in frames]
    if not kept:
        raise ValueError("it has no frames")
    return np.stack(kept)


def _of_actions(rewards, T):
    """Rewards of the action taken at each of T frames -> (T-1,): the last action leads to no frame.

    returns  these, and what is lost thereby, as `Recording.unused` names it"""
    rewards = np.reshape(rewards, -1)
    if len(rewards) != T:
        return rewards, ()
    return rewards[:-1], ("a reward, not 0, of the last action",) if rewards[-1] else ()


def _optional(module, package, why):
    """A module that is no requirement.   raises  ImportError that names the package to install"""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{why} needs {package}: pip install {package} ({error})") from None


def _reason(error):
    """One line; zlib, Pillow, PyAV, HDF5 and Arrow each raise their own kinds on damaged files."""
    text = (str(error) or "no reason given").splitlines()[0]
    if getattr(error, "strerror", None) and error.filename:
        text = f"{error.strerror}: {error.filename}"
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def _read_json(path, parse=json.loads):
    """Its content.   raises  ValueError naming a damaged file"""
    require_content(path)
    try:
        return parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def _read_json_lines(path):
    """As _read_json, of a file with a value in each line."""
    return _read_json(path, lambda text: [json.loads(line) for line in text.splitlines()])


def _require_finite(name, rows):
    """Raise ValueError naming the first of these rows in which a number is not finite."""
    bad = np.flatnonzero(~np.isfinite(rows).reshape(len(rows), -1).all(1)) if len(rows) else ()
    if len(bad):
        raise ValueError(f"{name} {bad[0]} is not finite: {rows[bad[0]]}")


def _checked(recording, size=0):
    """A Recording as EpisodeWriter.add takes it: frames_u8, actions and rewards of one length, or None.

    raises  ValueError"""
    frames, actions, rewards, _ = recording
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype.kind not in "iu" or not frames.size:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}; expected integers (T, H, W, 3)")
    if frames.min() < 0 or frames.max() > 255:
        raise ValueError(f"frames reach from {frames.min()} to {frames.max()}; expected 0 to 255")
    frames_u8 = area_resize(frames.astype(np.uint8), size) if size else frames.astype(np.uint8)
    T = len(frames_u8)
    if any(x is not None and x.dtype.kind not in "biuf" for x in (actions, rewards)):
        raise ValueError("actions or rewards are not numbers")
    if actions is not None:
        actions = actions[:, None] if actions.ndim == 1 else actions
        if actions.ndim != 2 or len(actions) not in (T, T - 1):
            raise ValueError(f"actions are {actions.shape}; expected finite ({T} or {T - 1}, A)")
        _require_finite("action", actions[: T - 1])
        if len(actions) == T - 1 or not np.isfinite(actions[-1]).all():  # the last one leads to no frame
            before = actions[T - 2 : T - 1] if T > 1 else np.zeros((1, actions.shape[1]))
            actions = np.concatenate([actions[: T - 1], before])
    if rewards is not None:
        rewards = rewards.reshape(-1)
        if len(rewards) not in (T, T - 1):
            raise ValueError(f"rewards are {rewards.shape}; expected finite ({T} or {T - 1},)")
        _require_finite("reward", rewards)
        if len(rewards) == T - 1:
            rewards = np.concatenate([[0.0], rewards])
    return frames_u8, actions, rewards


def _begin_worker():
    """A process of the pool decodes with one thread and ends when its parent does, however that ended."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches it too: no traceback from each

    def follow():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _write_part(i, job, folder, episodes, size, min_frames, jpeg, excluded):
    """Import one job into folder/part-i, where each kind of episode (KIND) has a folder of its own.

    Actions stay as they are: what becomes of them is known when all are there. part-i.json, the report on
    the job, says that it is done."""
    part = folder / f"part-{i:05d}"
    groups = []  # of each kind: names of episodes, and of what they hold that is not imported, how often
    report = dict(groups=groups, excluded=0, skipped=[])
    shutil.rmtree(part, ignore_errors=True)  # from a process that was killed before its report

    def readable():
        """What can be read; an error costs the episode or, where no next one can be found, the job's rest."""
        try:
            for number, name, read in episodes(*job):
                if {str(number), _stem(name)} & excluded:
                    report["excluded"] += 1
                    continue
                try:
                    recording = read()
                    frames_u8, actions, rewards = _checked(recording, size)
                    if len(frames_u8) < min_frames:
                        raise ValueError(f"{len(frames_u8)} frames, fewer than --min_frames {min_frames}")
                except MemoryError:
                    raise
                except Exception as error:
                    report["skipped"].append((name, _reason(error)))
                    continue
                yield number, name, frames_u8, actions, rewards, recording.unused
        except MemoryError:
            raise
        except Exception as error:
            report["skipped"].append((job[0], _reason(error)))

    with contextlib.ExitStack() as stack:
        writers = []
        for number, name, frames_u8, actions, rewards, unused in readable():
            kind = kind_of(frames_u8, actions, rewards)
            kinds = [group["kind"] for group in groups]
            if kind not in kinds:
                kinds.append(kind)
                groups.append(dict(kind=kind, names=[], unused=Counter()))
                writer = EpisodeWriter(part / str(len(writers)), "", is_part=True, jpeg=jpeg)
                writers.append(stack.enter_context(writer))
            k = kinds.index(kind)
            writers[k].add(frames_u8, actions, rewards, name, number)
            groups[k]["names"].append(name)
            groups[k]["unused"].update(unused)
    write_json(folder / f"part-{i:05d}.json", report)


def _choose_kind(reports, folder):
    """The episodes that are like most: their folders, their number, {what they hold that is not imported: how
    often}. The others join those that the reports skipped."""
    counts = Counter()
    for report in reports:
        for group in report["groups"]:
            counts[json.dumps(group["kind"])] += len(group["names"])
    usual = json.loads(max(counts, key=counts.get, default="null"))
    folders = []
    n_chosen = 0
    unused = Counter()
    for i, report in enumerate(reports):
        for k, group in enumerate(report["groups"]):
            kind = group["kind"]
            if kind == usual:
                folders.append(folder / f"part-{i:05d}/{k}")
                n_chosen += len(group["names"])
                unused.update(group["unused"])
                continue
            hint = " (--size resizes)" if kind["frame_shape"] != usual["frame_shape"] else ""
            reason = f"it has {kind}, the imported ones {usual}; they must agree{hint}"
            report["skipped"] += [(name, reason) for name in group["names"]]
    return folders, n_chosen, unused


def _write_parts(jobs, folder, write, workers):
    """All parts that are not done yet, on that many processes; returns the reports."""
    reports = [folder / f"part-{i:05d}.json" for i in range(len(jobs))]
    todo = [i for i, report in enumerate(reports) if not report.is_file()]
    with tqdm(total=len(jobs), desc="import", unit="part", initial=len(jobs) - len(todo)) as bar:
        tasks = [(i, jobs[i]) for i in todo]
        if workers == 1 or len(tasks) < 2:
            for task in tasks:
                write(*task)
                bar.update()
        else:  # spawned: a fork of a process whose threads have computed may hang
            spawn = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(min(workers, len(tasks)), spawn, _begin_worker)
            try:
                for future in as_completed([pool.submit(write, *task) for task in tasks]):
                    future.result()
                    bar.update()
            except BrokenProcessPool:
                raise ValueError("a process was killed, for lack of memory or by a decoder that crashed; the "
                                 "same command goes on, perhaps with fewer --workers") from None
            finally:
                pool.shutdown(cancel_futures=True)
    return [_read_json(report) for report in reports]


def _to_range(actions, lengths, scale):
    """Actions (S, A) of episodes of these lengths, brought to [-1, 1] in place; returns how, for meta.json.

    scale  "extremes" or "percentiles" (1st and 99th): they become -1 and 1 where an action leaves that range;
           "": it is clipped"""
    rows = actions.astype(np.float64)
    scaling = None
    if scale and rows.size and np.abs(rows).max() > 1:
        low, high = rows.min(0), rows.max(0)
        if scale == "percentiles":
            low = np.percentile(rows, 1, axis=0, method="higher")  # values that do occur, so that a glitch
            high = np.percentile(rows, 99, axis=0, method="lower")  # is in neither
        rows = 2 * (rows - low) / np.maximum(high - low, 1e-8) - 1
        scaling = dict(low=low.tolist(), high=high.tolist(), by=scale, episodes=len(lengths))
        ends = [", ".join(f"{x:.4g}" for x in end) for end in (low, high)]
        print(f"actions from ({ends[0]}) to ({ends[1]}), {scale} of {len(lengths)} episodes, become -1 to 1")
    elif scale and rows.size:
        print("actions are in [-1, 1] and stay as they are")
    actions[:] = np.clip(rows, -1, 1)
    last = np.cumsum(lengths) - 1  # these lead to no frame: they are neither counted nor kept
    changed = np.delete(np.abs(rows) > 1, last, axis=0)
    n_clipped = int(changed.sum())
    if n_clipped:
        print(f"clipped {n_clipped} of {changed.size} action values to [-1, 1]")
    actions[last] = 0
    return dict(action_scaling=scaling, clipped_action_values=n_clipped)


def _merge(folder, parts, meta, scale):
    """Folders of episodes -> one, by number; shards are renamed. A merge that was killed can begin again."""
    tables, columns, n_shards, n_frames = [], {}, 0, 0
    for part in parts:
        part_meta = _read_json(part / "meta.json")
        for shard in range(part_meta["shards"]):
            with contextlib.suppress(FileNotFoundError):  # moved already
                os.replace(part / f"shard-{shard:05d}.bin", folder / f"shard-{n_shards + shard:05d}.bin")
        with np.load(part / "index.npz") as arrays:
            tables.append(dict(arrays))
        tables[-1]["shard"] += n_shards
        tables[-1]["row"] += n_frames
        for path in part.glob("*.npy"):
            columns.setdefault(path.stem, []).append(np.load(path))
        n_shards, n_frames = n_shards + part_meta["shards"], n_frames + part_meta["frames"]
    index = {key: np.concatenate([table[key] for table in tables]) for key in tables[0]}
    actions = np.concatenate(columns.pop("actions"))
    told = _to_range(actions, index["length"], scale)
    order = np.argsort(index["number"], kind="stable")
    meta = dict(meta, **{key: part_meta[key] for key in KIND}, episodes=len(order), frames=n_frames)
    index = {key: column[order] for key, column in index.items()}
    write_tables(folder, dict(meta, **told, shards=n_shards), index, actions=[actions], **columns)


def _plain(partial):
    """A functools.partial as JSON holds it."""
    nested = {k: _plain(v) if isinstance(v, functools.partial) else v for k, v in partial.keywords.items()}
    return dict(nested, reader=partial.func.__name__)


def _import(jobs, episodes, out, key, size, min_frames, val_every, workers, jpeg, exclude="", scale=""):
    """Write the episodes of all jobs; name and count what is unusable. A killed import goes on where it was.

    jobs      a name and further arguments each, of plain data; a job's episodes are written together
    episodes  functools.partial, called with a job's items: yields (number, name, function that returns a
              Recording), raises an Exception where it finds no more; its keywords hold src
    scale     of `_to_range`
    raises    ValueError, if OUT.partial is of another import or no episode is usable"""
    if workers < 0:
        raise ValueError(f"--workers is {workers}; expected 0, which is one for each core, or more")
    src = episodes.keywords["src"]
    writer = EpisodeWriter(out, src, key, val_every, jpeg=jpeg)
    folder, settings, listed = writer.partial, writer.partial / "settings.json", _listed(exclude)
    excluded = {word for words in listed for word in words}
    digest = hashlib.sha256(json.dumps(jobs).encode()).hexdigest()[:16]
    how = dict(size=size, min_frames=min_frames, val_every=val_every, jpeg=jpeg, exclude=sorted(excluded))
    used = dict(_plain(episodes), **how, files=f"{len(jobs)} parts, {digest}", importer=2)  # its version
    used = json.loads(json.dumps(used))  # as it will be read back
    begun = _read_json(settings) if settings.is_file() else None
    if begun and begun != used:
        changed = sorted(k for k in {**begun, **used} if begun.get(k) != used.get(k))
        raise ValueError(f"{folder} was begun with other {', '.join(changed)}; delete it to begin anew")
    if not begun:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(settings, used)
    if not (folder / "meta.json").is_file():
        write = functools.partial(_write_part, folder=folder, episodes=episodes, size=size,
                                  min_frames=min_frames, jpeg=jpeg, excluded=excluded)
        reports = _write_parts(jobs, folder, write, workers or torch.get_num_threads())
        parts, imported, unused = _choose_kind(reports, folder)
        _summarize(reports, imported, unused, folder, src, len(listed))
        _merge(folder, parts, dict(writer.meta, not_imported=dict(unused)), scale)
    for leftover in folder.glob("part-*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    put_in_place(folder, writer.out)


def _summarize(reports, imported, unused, folder, src, n_listed):
    """Print what was imported and what not, and why.   raises  ValueError, leaving nothing, if nothing was"""
    lines = []
    reasons = []
    excluded = sum(report["excluded"] for report in reports)
    for report in reports:
        for name, reason in report["skipped"]:
            lines.append(f"skipped {src}/{name}: {reason}".replace("\n", "\\n"))
            reasons.append(re.sub(r"\d+", "N", reason))
    print(f"imported {imported}, skipped {len(lines)}" + (
        f", excluded {excluded} of the {n_listed} listed" if n_listed else ""))
    print(*lines[:20], sep="\n", end="\n" if lines else "")
    for reason, n in Counter(reasons[20:]).most_common(20):
        print(f"skipped {n} more: {reason}")
    if unused:
        print("in the episodes but not imported: " + ", ".join(f"{name} ({n})" for name, n in unused.items()))
    if not imported:
        shutil.rmtree(folder)
        raise ValueError("no episode was added, so nothing is written; " + (lines or ["none is wanted"])[0])
    if lines:
        text = "\n".join(lines) + "\n"  # file names need not be UTF-8
        (folder / "skipped.txt").write_bytes(text.encode(errors="backslashreplace"))


def _stem(name):
    return name.rsplit("/", 1)[-1].removesuffix(".npz").removesuffix(".hdf5")


def _listed(path):
    """The words of each line of a list, less .npz or .hdf5: an episode's numbers or names, whichever it has.

    (The official list of RoboNet's test episodes has the HDF5 file's name, then the converter's.)"""
    if path and not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}; --exclude takes a list of episodes, one in each line")
    lines = Path(path).read_text(encoding="utf-8", errors="surrogateescape").splitlines() if path else []
    return [[_stem(word) for word in re.split(r"[\s,]+", line.strip())] for line in lines if line.strip()]


def _batches(items):
    """Small items as jobs: enough to go on from after a kill, few enough for large shards."""
    n = max(50, len(items) // 500)
    return [(items[i][1], items[i : i + n]) for i in range(0, len(items), n)]


def _tell_unread(names):
    """Print one line about files that are there but not read, by type."""
    types = Counter(Path(name).suffix.lower() or Path(name).name for name in names)
    if types:
        print("files that are not read: " + ", ".join(f"{n} {kind}" for kind, n in types.most_common(10)))


def _files(src, types):
    """Files of these types under the folder src, their names from there; tells what else is there.

    raises  FileNotFoundError where there is none"""
    names = []
    others = []
    for path in sorted(Path(src).rglob("*")) if src else ():
        name = path.relative_to(src).as_posix()
        if path.suffix.lower() in types:
            names.append(name)
        elif path.is_file() and not path.name.startswith("."):
            others.append(name)
    if not names:
        raise FileNotFoundError(f"--src {src!r} has no {', '.join(types)} files; pass a folder that has")
    _tell_unread(others)
    return names


def _file_episodes(_, batch, src, read):
    """Episodes that are a file each, of (number, name, further arguments of `read`)."""
    for number, name, *others in batch:
        yield number, name, functools.partial(read, Path(src) / name, *others)


# ---- npz and videos ----


def _read_npz(path, key):
    """A Recording of a file's arrays: frames under `key`, actions and rewards under their usual names."""
    require_content(path)
    with np.load(path) as arrays:
        if key not in arrays:
            raise ValueError(f"no array {key!r}; --key takes one of {', '.join(arrays.files)}")
        action = next((name for name in ACTION_NAMES if name in arrays), None)
        reward = next((name for name in REWARD_NAMES if name in arrays), None)
        frames = arrays[key]
        actions = arrays[action] if action else None
        rewards = arrays[reward] if reward else None
        lost = ()
        if reward is None and "next.reward" in arrays:  # LeRobot's name
            reward = "next.reward"
            rewards, lost = _of_actions(arrays[reward], len(frames))
        unused = [name for name in arrays.files if name not in (key, action, reward)]
    if frames.ndim == 4 and frames.shape[1] == 9:  # their Meta-World episodes: three frames stacked,
        frames = frames[:, 6:].transpose(0, 2, 3, 1)  # newest last, beside the action that led there
        actions = None if actions is None else actions[1:]
    return Recording(frames, actions, rewards, (*unused, *lost))


MP4_BOXES = {kind.encode() for kind in (  # that a file consists of
    "ftyp", "moov", "mdat", "moof", "mfra", "free", "skip", "wide", "uuid", "meta", "styp", "sidx", "pnot")}


def _require_whole(path):
    """Raise ValueError where a video's container announces more bytes than the file has: it was cut off.

    FFmpeg decodes such a file to its end without an error. Durations do not tell: a last frame may be shown
    for seconds.   Source: ISO 14496-12 (mp4, mov), RFC 8794 and 9559 (webm, mkv), RIFF (avi)"""
    n_bytes = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(4096)
        end = 0
        if head[:4] == b"RIFF":
            end = 8 + int.from_bytes(head[4:8], "little")
        elif head[:4] == b"\x1a\x45\xdf\xa3":  # EBML: a header, then one segment that holds the rest
            size, start = _ebml_size(head, 4)
            segment = start + size
            if head[segment : segment + 4] == b"\x18\x53\x80\x67":
                size, start = _ebml_size(head, segment + 4)
                end = start + size
        while head[4:8] in MP4_BOXES and end < n_bytes:  # size, type, content; what else follows is no box
            file.seek(end)
            box = file.read(16)
            size = int.from_bytes(box[:4], "big")
            if size == 1:
                size = int.from_bytes(box[8:16], "big")
            if box[4:8] not in MP4_BOXES or size < 8:  # 0: the rest of the file
                break
            end += size
    if end > n_bytes:
        raise ValueError(f"it has {n_bytes} of {end} bytes: truncated")


def _ebml_size(data, at):
    """The size that stands at byte `at`, 0 if it is unknown (a live recording), and where it ends."""
    length = 9 - data[at].bit_length()  # of the number, by its leading zeros
    bits = 7 * length
    value = int.from_bytes(data[at : at + length], "big") & ((1 << bits) - 1)
    return (0 if value == (1 << bits) - 1 else value), at + length


def _decoded(source, start=0.0, stop=np.inf):
    """Yield (seconds, PyAV's frame, pixel aspect) of a video, a Path or an open file.

    The seconds count from its first frame and are NaN where it does not say.   raises  ValueError"""
    av = _optional("av", "av", "reading videos")
    if isinstance(source, Path):
        require_content(source)
        source = str(source)
    with av.open(source) as container:
        stream = container.streams.best("video")
        if stream is None:
            raise ValueError("it has no video in it")
        stream.codec_context.thread_count = 1  # importers run a process on each core
        first = stream.start_time or 0
        if start > 0:
            container.seek(first + int(start / stream.time_base), stream=stream)
        for picture in container.decode(stream):
            seconds = np.nan if picture.pts is None else float((picture.pts - first) * picture.time_base)
            if seconds >= stop:
                return
            if not seconds < start:
                yield seconds, picture, stream.sample_aspect_ratio or 1


def _as_shown(picture, pixel_aspect=1):
    """A frame of PyAV's as players show it, bytes (H, W, 3): with square pixels, turned as its header says.

    raises  ValueError where it is not turned by quarters"""
    width = max(1, round(picture.width * pixel_aspect))
    frame = picture.to_ndarray(format="rgb24", width=width, height=picture.height)
    headers = [header for header in picture.side_data if header.type.name == "DISPLAYMATRIX"]
    if not headers:
        return frame
    # of the matrix [[a, b, u], [c, d, v], [x, y, w]]: pixel (x, y) is shown at (a x + c y, b x + d y)
    a, b, _, c, d = np.frombuffer(bytes(headers[0]), np.int32)[:5]
    matrix = np.array([a, b, c, d]) / max(1, abs(a), abs(b), abs(c), abs(d))  # its scale is for the screen
    if not matrix.any():
        return frame
    a, b, c, d = matrix
    quarters = [1, 0, 0, 1], [0, 1, 1, 0]
    if not any(np.allclose(np.abs(matrix), quarter, atol=0.01) for quarter in quarters):
        told = ", ".join(f"{x:.2f}" for x in matrix)
        raise ValueError(f"its display matrix is ({told}): neither a quarter turn nor a mirror")
    if abs(a) < 0.5:
        frame = frame.swapaxes(0, 1)
    if a + c < 0:
        frame = frame[:, ::-1]
    if b + d < 0:
        frame = frame[::-1]
    return np.ascontiguousarray(frame)


def _video_frames(source):
    """The frames of a video, a path or an open file, as players show them: bytes (H, W, 3), one by one."""
    for _, picture, pixel_aspect in _decoded(source):
        yield _as_shown(picture, pixel_aspect)


def _pictures_at(path, start, stop, times, fps, size):
    """The pictures of an episode's rows: of the video's part from start to stop, the nearest to each time.

    times (T,) of the rows, seconds from start, rising, at about fps;  returns  frames (T, H, W, 3), bytes
    raises  ValueError if a row has no picture: further away than a fifth of 1 / fps or, where the video has
            more frames than rows, than half of the time between its frames"""
    wanted = start + times
    frames = []
    seconds = []  # of these frames
    shown = []  # seconds of all pictures of the part
    before = None
    part = _decoded(path, max(0.0, start - 0.5 / fps), stop - 0.5 / fps)
    for now in itertools.chain(part, [None]):  # None: the end
        while before and len(frames) < len(wanted):
            target = wanted[len(frames)]
            if now and now[0] - target < target - before[0]:
                break  # this one is nearer, or one that comes
            seconds.append(before[0])
            frames.append(_small(_as_shown(*before[1:]), size))
        before = now
        if now:
            shown.append(now[0])
    spacing = np.median(np.diff(shown)) if len(shown) > 1 else np.inf
    tolerance = 0.2 / fps if spacing > 0.9 / fps else 0.51 * spacing
    far = ~(np.abs(np.array(seconds) - wanted) <= tolerance) if frames else np.ones(1, bool)  # NaN is far
    if far.any():
        row = int(far.argmax())
        raise ValueError(f"{path} has {len(shown)} pictures for {len(wanted)} rows, and none within "
                         f"{tolerance:.3g} s of row {row}, at {wanted[row]:.3g} s")
    return np.stack(frames)


def _picture(path):
    """A JPEG or PNG file as viewers show it, turned as its EXIF says: bytes (H, W, 3)."""
    try:
        with Image.open(path) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except OSError:
        require_content(path)
        raise


def _number_in(name):
    """Sorts demo_2 before demo_10, and names that end without a number last."""
    number = name.split("_")[-1]
    return (0, int(number), name) if number.isdecimal() else (1, 0, name)


def _read_video(path, n_pictures=0, size=0):
    """A video's frames, or those of a folder of .jpg files (n_pictures, if that is known)."""
    if path.is_dir():
        pictures = sorted(path.glob("*.jpg"), key=lambda picture: _number_in(picture.stem))
        if n_pictures and len(pictures) != n_pictures:
            raise ValueError(f"it has {len(pictures)} pictures, the list says {n_pictures}")
        return Recording(_stack(map(_picture, pictures), size))
    if path.suffix.lower() == ".gif":
        require_content(path)
        try:
            return Recording(_stack(iio.imiter(path, plugin="pillow", mode="RGB"), size))
        except IndexError:
            raise ValueError("it is a damaged GIF") from None
    _require_whole(path)
    return Recording(_stack(_video_frames(path), size))


def load_episode(path, key="image", size=0):
    """An .npz episode or a video as frames_u8 (T,H,W,3) and actions (T,A) in [-1, 1] or None.

    key   the array of an .npz that holds the frames;  size  > 0 crops to a square and resizes
    raises  FileNotFoundError, or ValueError naming the file where it cannot be read"""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; pass an .npz episode or a video ({', '.join(VIDEO_TYPES)})")
    try:
        is_npz = path.suffix.lower() == ".npz"
        recording = _read_npz(path, key) if is_npz else _read_video(path, size=size)
        frames_u8, actions, _ = _checked(recording, size)
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: {_reason(error)}") from None
    if recording.unused:
        print(f"{path}: not used: {', '.join(recording.unused)}")
    return frames_u8, None if actions is None else np.clip(actions, -1, 1).astype(np.float32)


def import_npz(src, out, key="image", exclude="", size=0, min_frames=2, val_every=20, workers=0, jpeg=0):
    """Import the official code's .npz episodes: `key` (T,H,W,3), `action` (T,A) or (T-1,A), `reward` (T,) on
    arriving at each frame or (T-1,) of each action; `actions` and `rewards` are taken alike.

    An episode's number is its place among the sorted names, which is the official code's rule. What array the
    frames are in chooses the camera: BAIR's has image and aux1_image.
    raises  FileNotFoundError where there is none, ValueError (nothing is written) where none can be used"""
    jobs = _batches(list(enumerate(_files(src, (".npz",)))))
    episodes = functools.partial(_file_episodes, src=str(src), read=functools.partial(_read_npz, key=key))
    _import(jobs, episodes, out, key, size, min_frames, val_every, workers, jpeg, exclude)


def import_video(src, out, size=64, min_frames=16, val_every=20, workers=0, jpeg=0):
    """Import videos (VIDEO_TYPES), without actions.   raises as import_npz, ImportError without PyAV"""
    names = _files(src, VIDEO_TYPES)
    if not all(name.lower().endswith(".gif") for name in names):
        _optional("av", "av", "reading videos")
    episodes = functools.partial(_file_episodes, src=str(src), read=functools.partial(_read_video, size=size))
    _import(_batches(list(enumerate(names))), episodes, out, "", size, min_frames, val_every, workers, jpeg)


def import_sthsth(src, out, labels="", size=64, min_frames=16, workers=0, jpeg=0):
    """Import the videos of Something-Something v2 in the 95 classes that the official code keeps.

    src     folder of ID.webm files, at any depth, or of folders ID with .jpg frames
    labels  folder of the dataset's train.json, validation.json and labels.json, or of the official code's
            lists train_video_folder.txt and val_video_folder.txt, whose lines are: ID frames class
    The validation list has even numbers and the train list odd ones, so that the split is the dataset's own.
    raises  as import_npz"""
    _optional("av", "av", "reading webm")
    lists = Path(labels or src)
    found = {path.stem: str(path.relative_to(src)) for path in Path(src).rglob("*.webm")}
    items = []
    for parity, split in enumerate(("validation", "train")):
        for k, (video, n_pictures, label) in enumerate(_sthsth_list(lists, split)):
            if label in STHSTH_CLASSES:
                folder = (Path(src) / video).is_dir()
                name = video if folder else found.get(video, f"{video}.webm")
                items.append((2 * k + parity, name, n_pictures))
    episodes = functools.partial(_file_episodes, src=str(src), read=functools.partial(_read_video, size=size))
    _import(_batches(items), episodes, out, "", size, min_frames, 2, workers, jpeg)


def _sthsth_list(folder, split):
    """The videos of a split: name, number of pictures (0 if unknown), class.

    raises  FileNotFoundError, ValueError"""
    lines = folder / f"{split.replace('validation', 'val')}_video_folder.txt"
    if lines.is_file():
        rows = (line.split() for line in lines.read_text().splitlines())
        return [(row[0], int(row[1]), int(row[2])) for row in rows if row]
    files = [next(iter(sorted(folder.glob(f"*{name}.json"))), None) for name in (split, "labels")]
    if None in files:
        raise FileNotFoundError(f"{folder} has neither {split}.json and labels.json nor {lines.name}; pass "
                                "the folder of them as --labels")
    rows, classes = map(_read_json, files)
    templates = [re.sub(r"[\[\]]", "", row["template"]) for row in rows]
    if unknown := set(templates) - classes.keys():
        raise ValueError(f"{files[1]} lacks {min(unknown)!r}, which {files[0]} uses; pass files of one set")
    return [(row["id"], 0, int(classes[template])) for row, template in zip(rows, templates, strict=True)]


# ---- HDF5 ----


VP2_CAMERAS = "camera_image", "agentview_shift_2_image"  # RoboDesk, robosuite


def open_vp2(path, mask=""):
    """VP2's HDF5 file, as h5py.File, and the names of its episodes in order; mask: of that list alone.

    raises  ImportError without h5py, FileNotFoundError, ValueError where it is no such file"""
    h5py = _optional("h5py", "h5py", "reading HDF5")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}; expected one of VP2's .hdf5 files")
    try:
        require_content(path)
        file = h5py.File(path)
        names = sorted(file["data"], key=_number_in)
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no file of VP2's: {error}") from None
    if mask and f"mask/{mask}" not in file:
        raise ValueError(f"{path} has no mask/{mask}; leave --mask out")
    chosen = {name.decode() for name in file[f"mask/{mask}"]} if mask else names
    return file, [name for name in names if name in chosen]


def vp2_frames(demo):
    """The camera's pictures of an episode in such a file, not read yet.   raises  ValueError"""
    if found := [name for name in VP2_CAMERAS if name in demo.get("obs", ())]:
        return demo["obs"][found[0]]
    raise ValueError(f"it holds none of obs/{', obs/'.join(VP2_CAMERAS)}")


def _vp2_episodes(name, first, start, stop, src, mask):
    """Episodes start to stop-1 of a file; the first has number `first`."""
    file, demos = open_vp2(Path(src) / name, mask)

    def read(name):
        demo = file["data"][name]
        frames, actions = vp2_frames(demo), demo["actions"][()]
        n_samples = demo.attrs.get("num_samples", len(actions))
        if n_samples != len(actions):
            raise ValueError(f"it has {len(actions)} actions, its num_samples is {n_samples}")
        rewards, lost = None, ()
        if "rewards" in demo:  # robomimic's name
            rewards, lost = _of_actions(demo["rewards"][()], len(frames))
        camera = frames.name.split("/")[-1]
        unused = [f"obs/{key}" for key in demo["obs"] if key != camera]
        unused += [key for key in demo if key not in ("obs", "actions", "rewards")]
        return Recording(frames[()], actions, rewards, (*unused, *lost))

    with file:
        for k, demo in enumerate(demos[start:stop]):
            yield first + k, f"{name}/{demo}", functools.partial(read, demo)


def import_vp2(src, out, mask="", size=0, min_frames=12, val_every=20, workers=0, jpeg=0):
    """Import the episodes of VP2's HDF5 files under a folder; mask: "train" or "valid" for those alone.

    raises  as import_npz, ImportError without h5py"""
    jobs, number = [], 0
    for name in _files(src, (".hdf5", ".h5")):
        try:
            file, demos = open_vp2(Path(src) / name, mask)
            with file:
                listed = len(file[f"mask/{mask}"]) if mask else len(demos)
            if listed != len(demos):
                print(f"{name}: mask/{mask} lists {listed} episodes, of which {len(demos)} are there")
        except ValueError:
            demos = [None]  # the job will say why
        jobs += [(name, number + start, start, start + 50) for start in range(0, len(demos), 50)]
        number += len(demos)
    episodes = functools.partial(_vp2_episodes, src=str(src), mask=mask)
    _import(jobs, episodes, out, "vp2", size, min_frames, val_every, workers, jpeg)


def _read_robonet(path, camera):
    """A file of RoboNet's: frames (T,H,W,3), actions (T-1, 5).   Source: RoboNet's hdf5_loader.py"""
    h5py = _optional("h5py", "h5py", "reading HDF5")
    require_content(path)
    with h5py.File(path) as file:
        env, primitive = file["env"], file["metadata"].attrs.get("primitives")
        if f"{camera}_video" not in env:
            cameras = [name.removesuffix("_video") for name in env if name.endswith("_video")]
            raise ValueError(f"no camera {camera!r}; --camera takes one of {', '.join(cameras)}")
        video, mp4 = env[f"{camera}_video"], env.attrs["cam_encoding"] == "mp4"
        about = video["frames" if mp4 else "frame0"].attrs
        T = int(about["T"]) if mp4 else len(video)
        if mp4:
            frames = list(_video_frames(io.BytesIO(video["frames"][()].tobytes())))
        else:
            frames = [from_picture(video[f"frame{t}"][()].tobytes()) for t in range(T)]
        states, actions = env["state"][()], file["policy/actions"][()]
        used = f"{camera}_video", "state", "low_bound", "high_bound"
        unused = [f"env/{name}" for name in env if name not in used]
        # the official loader reads JPEG with cv2, which swaps the colours that image_format then speaks of
        swapped = (about["image_format"] == "BGR") == mp4
        if actions.shape[1] == 4 and primitive == "autograsp":  # its gripper closed by itself, by a rule
            low, high = (env[f"{end}_bound"][0][-1] for end in ("low", "high"))
            grip = np.where(states[1:, -1:] > (low + high) / 2, high, low)
            actions = np.concatenate([actions[: len(grip)], grip[: len(actions)]], 1)
    if len(frames) != T:
        raise ValueError(f"its video has {len(frames)} of {T} frames")
    counts = T, len(states), len(actions) + 1
    T = min(counts)  # the official loader's rule
    if T < max(counts) - 1:
        unused.append("rows beyond the shortest of frames, states and actions")
    actions = np.pad(actions, ((0, 0), (0, max(0, 5 - actions.shape[1]))))[: T - 1, :5]
    return Recording(np.stack(frames[:T])[..., :: -1 if swapped else 1], actions, None, tuple(unused))


def import_robonet(src, out, camera="cam0", exclude="", size=64, min_frames=12, val_every=100, workers=0,
                   jpeg=0):
    """Import RoboNet's HDF5 files, with actions of 5 numbers; an episode's number is its file's place.

    camera  cam0 and so on, as many as the robot has
    raises  as import_npz, ImportError without h5py or PyAV"""
    _optional("h5py", "h5py", "reading HDF5")
    _optional("av", "av", "reading mp4")
    jobs = _batches(list(enumerate(_files(src, (".hdf5",)))))
    read = functools.partial(_read_robonet, camera=camera)
    episodes = functools.partial(_file_episodes, src=str(src), read=read)
    _import(jobs, episodes, out, camera, size, min_frames, val_every, workers, jpeg, exclude)


# ---- TFRecord ----


def _crc32c(data):
    """The checksum (Castagnoli's) of a few bytes, without a library."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _masked(crc):
    """A checksum as TFRecord files hold it."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF).to_bytes(4, "little")


def _checksum(says=False):
    """What computes a checksum of data, or None without google-crc32c, which it says if asked to."""
    try:
        from google_crc32c import value
    except ImportError:
        if says:
            print("damaged pictures will not be noticed: checksums need pip install google-crc32c")
        return None
    return value


def _records(path, expected):
    """Yield the records of a TFRecord file, bytes; None for one whose checksum is wrong.

    Records are: length (8 bytes), its checksum (4), data, their checksum (4), which google-crc32c can verify.
    raises  ValueError where the next one cannot be found, or if there are not as many as expected"""
    checksum = _checksum()
    require_content(path)
    with open(path, "rb") as file:
        for k in itertools.count():
            head = file.read(12)
            if not head and k == expected:
                return
            if not head or k == expected:
                raise ValueError(f"it has {'more than ' if head else ''}{k} records, expected {expected}"
                                 + ("" if head else ": truncated"))
            if len(head) == 12 and _masked(_crc32c(head[:8])) != head[8:]:
                raise ValueError(f"record {k} of {expected}: its length is damaged, the rest cannot be found")
            length = int.from_bytes(head[:8], "little")
            body, crc = file.read(length), file.read(4)
            if len(head) < 12 or len(crc) < 4:
                raise ValueError(f"record {k} of {expected} is cut off: truncated")
            yield body if checksum is None or _masked(checksum(body)) == crc else None


def _varint(data, i):
    """A protocol buffer's integer at byte i, and the byte after it."""
    value = shift = 0
    while True:
        byte = data[i]
        value |= (byte & 127) << shift
        i, shift = i + 1, shift + 7
        if byte < 128:
            return value, i


def _fields(data):
    """Yield (number, value) of a protocol buffer's fields: an integer or bytes."""
    i = 0
    while i < len(data):
        tag, i = _varint(data, i)
        if tag & 7 == 0:
            value, i = _varint(data, i)
        else:
            size, i = _varint(data, i) if tag & 7 == 2 else ({1: 8, 5: 4}[tag & 7], i)
            value, i = data[i : i + size], i + size
        yield tag >> 3, value


def _example(record):
    """The features of a tf.train.Example by name, for `_values`.   raises  ValueError, of a damaged one"""
    if record is None:
        raise ValueError("its checksum is wrong: damaged")
    features = {}
    for _, entries in _fields(memoryview(record)):
        for _, entry in _fields(entries):
            pair = dict(_fields(entry))
            features[bytes(pair[1]).decode()] = pair.get(2, b"")
    return features


def _values(feature):
    """A feature's values: a list of bytes or an array of float32. (Nothing here needs its integers.)"""
    kind, content = next(_fields(feature), (1, b""))
    values = [value for _, value in _fields(content)]
    return np.frombuffer(b"".join(values), "<f4") if kind == 2 else values


def _read_bair(record, camera):
    """An episode of BAIR's: frames (T,64,64,3), actions (T,4)."""
    features, pixels, actions = _example(record), [], []
    for t in itertools.count():
        if f"{t}/image_{camera}/encoded" not in features:
            break
        pixels += _values(features[f"{t}/image_{camera}/encoded"])
        actions.append(_values(features.get(f"{t}/action", b""))[:4])
        if len(actions[t]) != 4:
            raise ValueError(f"action {t} has {len(actions[t])} numbers; expected 4")
    if not pixels:
        cameras = sorted({name.split("/")[1][6:] for name in features if "/image_" in name})
        raise ValueError(f"no camera {camera!r}; --camera takes one of {', '.join(cameras)}")
    counts = Counter(name.partition("/")[2] for name in features)
    if counts["action"] != len(pixels):
        raise ValueError(f"it has {len(pixels)} pictures and {counts['action']} actions")
    unused = tuple(name for name in counts if name not in (f"image_{camera}/encoded", "action"))
    frames = np.frombuffer(b"".join(pixels), np.uint8).reshape(-1, 64, 64, 3)
    return Recording(frames, np.stack(actions), None, unused)


def _bair_episodes(name, start, n, src, camera):
    """Episodes of a file, traj_A_to_B.tfrecords."""
    for k, record in enumerate(_records(Path(src) / name, n)):
        yield start + k, f"traj_{start + k}", functools.partial(_read_bair, record, camera)


def import_bair(src, out, split="", camera="aux1", size=0, min_frames=2, val_every=100, workers=0, jpeg=0):
    """Import BAIR robot pushing from its TFRecord files; numbers are those in the files' names.

    split   train or test, where the folder has both;  camera  aux1, the paper's, or main
    raises  as import_npz, ValueError where --split must choose"""
    jobs = []
    others = []
    for name in _files(src, (".tfrecords",)):
        place = re.fullmatch(r"(?:.*/)?traj_(\d+)_to_(\d+)\.tfrecords", name)
        if place and (not split or split in name.split("/")[:-1]):
            jobs.append((name, int(place[1]), int(place[2]) - int(place[1]) + 1))
        else:
            others.append(name)
    _tell_unread(others)
    folders = sorted({str(Path(name).parent) for name, *_ in jobs})
    if len(folders) != 1:
        raise ValueError(f"--split {split!r} takes traj_*_to_*.tfrecords of {len(folders)} folders; expected "
                         f"one of them, such as train or test ({', '.join(folders)})")
    episodes = functools.partial(_bair_episodes, src=str(src), camera=camera)
    jobs.sort(key=lambda job: job[1])
    _checksum(says=True)
    _import(jobs, episodes, out, camera, size, min_frames, val_every, workers, jpeg)


def interleave(lengths, cycle=16, block=16):
    """The order in which TFDS reads shards of so many records: yields the shard of each record.

    Sixteen shards are open at a time; in turn each gives sixteen records; the next one takes the place of
    one that has ended. Episode numbers of the official converter, hence its splits, are places herein.
    Source: tf.data's Dataset.interleave, as tensorflow_datasets calls it"""
    waiting, slots = iter(enumerate(lengths)), [None] * cycle
    ended = False
    for i in itertools.cycle(range(cycle)):
        if slots[i] is None and not ended:
            slots[i] = next(waiting, None)
            ended = slots[i] is None
        if slots[i] is not None:
            shard, left = slots[i]
            yield from itertools.repeat(shard, min(left, block))
            # one with exactly a block left is noticed to have ended at its next turn only
            slots[i] = (shard, left - block) if left >= block else None
        if ended and not any(slots):
            return


def _rlds_leaves(feature, path=""):
    """Yield (path, feature) of the leaves of features.json's tree."""
    if "sequence" in feature:
        yield from _rlds_leaves(feature["sequence"]["feature"], path)
    elif children := feature.get("featuresDict", {}).get("features"):
        for name, child in children.items():
            yield from _rlds_leaves(child, f"{path}/{name}" if path else name)
    else:
        yield path, feature


def _read_rlds(record, camera, columns, has_reward, unused, size):
    """An episode: frames, and the columns {name: width} side by side as actions (T, A)."""
    features = _example(record)
    frames = _stack(map(from_picture, _values(features[f"steps/observation/{camera}"])), size)
    actions = [np.reshape(_values(features[name]), (-1, width)) for name, width in columns.items()]
    rewards, lost = None, ()
    if has_reward:
        rewards, lost = _of_actions(_values(features["steps/reward"]), len(frames))
    if len({len(column) for column in actions}) > 1:
        raise ValueError(f"actions have {[len(column) for column in actions]} rows; expected as many in each")
    return Recording(frames, np.concatenate(actions, 1) if actions else None, rewards, (*unused, *lost))


def _rlds_episodes(name, numbers, src, split, cameras, columns, has_reward, unused, size):
    """Episodes of a shard, named as the official converter's files; of each camera if there are several."""
    for k, record in enumerate(_records(Path(src) / name, len(numbers))):
        for camera in cameras:
            read = functools.partial(_read_rlds, record, camera, columns, has_reward, unused, size)
            folder = f"{camera}/" if len(cameras) > 1 else ""
            yield numbers[k], f"{folder}{split}_eps_{numbers[k]:08d}", read


def import_rlds(src, out, split="train", camera="", actions=True, exclude="", size=64, min_frames=2,
                val_every=100, workers=0, jpeg=0):
    """Import a dataset of Open X-Embodiment in RLDS's form: TFRecord shards of episodes, pictures encoded.

    Numbers are those of the official converter (`interleave`), on which its splits and the list of RoboNet's
    test episodes depend; dataset_info.json alone gives them, so that a missing shard shifts nothing.

    split    TFDS' name;  actions  all float features under steps/action side by side; false: none
    camera   among the observations, or several, each an episode; by default the paper's (data.OXE), or image
    raises  as import_npz, ValueError where features.json has no such camera"""
    paths = [Path(src) / name for name in ("features.json", "dataset_info.json")]
    if not src or not all(path.is_file() for path in paths):
        raise FileNotFoundError(f"--src {src!r} lacks {paths[0].name} or {paths[1].name}; pass the folder "
                                "of a dataset's version, such as bridge/0.1.0")
    tree, about = map(_read_json, paths)
    leaves, place = dict(_rlds_leaves(tree)), "steps/observation/"
    known = [path.removeprefix(place) for path in leaves if "image" in leaves[path] and place in path]
    paper = OXE.get(about.get("name", "").removesuffix(RLDS_SUFFIX), (0, 0, "image"))
    cameras = (camera or paper[2]).split(",")
    if missing := [name for name in cameras if name not in known]:
        raise ValueError(f"no camera {missing[0]!r}; --camera takes one of {', '.join(known)}")
    columns = {}
    for path, leaf in sorted(leaves.items()):
        tensor, wanted = leaf.get("tensor", {}), actions and path.split("/")[:2] == ["steps", "action"]
        if wanted and tensor.get("dtype", "").startswith("float"):
            columns[path] = int(np.prod([int(n) for n in tensor.get("shape", {}).get("dimensions", ())]))
    has_reward = leaves.get("steps/reward", {}).get("tensor", {}).get("dtype") == "float32"
    used = {"steps/reward"} if has_reward else set()
    used |= {*columns, *(place + name for name in cameras)}
    unused = sorted(leaves.keys() - used)
    lengths = {part["name"]: [int(n) for n in part["shardLengths"]] for part in about["splits"]}
    if split not in lengths:
        raise ValueError(f"no split {split!r}; --split takes one of {', '.join(lengths)}")
    numbers = [[] for _ in lengths[split]]
    for number, shard in enumerate(interleave(lengths[split])):
        numbers[shard].append(number)
    endings = [f"{shard:05d}-of-{len(numbers):05d}" for shard in range(len(numbers))]
    found = {path.name[-len(endings[0]) :]: path.name for path in Path(src).glob(f"*-{split}.tfrecord-*")}
    if not found:
        raise FileNotFoundError(f"--src {src!r} has no *-{split}.tfrecord-* files; pass a folder that has")
    jobs = [(found.get(e, f"*-{split}.tfrecord-{e}"), n) for e, n in zip(endings, numbers, strict=True)]
    _checksum(says=True)
    how = dict(split=split, cameras=cameras, columns=columns, has_reward=has_reward, unused=unused, size=size)
    episodes = functools.partial(_rlds_episodes, src=str(src), **how)
    if about.get("name") == "robo_net" and not exclude:
        print("without --exclude, RoboNet's test videos are among these episodes")
    _import(jobs, episodes, out, ",".join(cameras), size, min_frames, val_every, workers, jpeg, exclude)


# ---- LeRobot ----


LEROBOT_OWN = "timestamp", "frame_index", "episode_index", "index", "task_index"  # columns of every dataset


def _read_table(path, columns, optional=()):
    """Columns of a parquet file, and those of `optional` that it has.

    raises  ValueError naming a damaged file or the columns that it lacks"""
    parquet = _optional("pyarrow.parquet", "pyarrow", "reading parquet")
    try:
        require_content(path)
        known = parquet.read_schema(path).names
        if missing := [name for name in columns if name not in known]:
            raise ValueError(f"it lacks {', '.join(missing)}")
        columns = [*columns, *(name for name in optional if name in known)]
        return parquet.read_table(path, columns=columns, page_checksum_verification=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {_reason(error)}") from None


def _lerobot_items(root, info, camera):
    """Episodes of a dataset: (number, video, its part's start and stop in seconds, table, length)."""
    items = []
    if info["codebase_version"].startswith("v2"):  # a file for each episode
        for episode in _read_json_lines(root / "meta/episodes.jsonl"):
            i = episode["episode_index"]
            keys = dict(episode_chunk=i // info["chunks_size"], episode_index=i, video_key=camera)
            video = info["video_path"].format(**keys)
            table = info["data_path"].format(**keys)
            items.append((i, video, 0.0, np.inf, table, episode["length"]))
        return items
    names = "chunk_index", "file_index", "from_timestamp", "to_timestamp"  # many episodes in a file
    of_video = [f"videos/{camera}/{name}" for name in names]
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index", *of_video]
    for path in sorted(root.glob("meta/episodes/*/*.parquet")):
        for row in _read_table(path, columns).to_pylist():
            i, length, data_chunk, data_file, chunk, file, start, stop = (row[column] for column in columns)
            video = info["video_path"].format(video_key=camera, chunk_index=chunk, file_index=file)
            table = info["data_path"].format(chunk_index=data_chunk, file_index=data_file)
            items.append((i, video, start, stop, table, length))
    return items


def _read_lerobot(item, read_table, src, action, fps, unused, size):
    """One of `_lerobot_items`: its rows, and for each of them the picture of its time."""
    number, video, start, stop, path, length = item
    table = read_table(Path(src) / path)
    rows = table.filter(np.asarray(table["episode_index"]) == number)
    if len(rows) != length:
        raise ValueError(f"{path} has {len(rows)} of its {length} rows")
    columns = {}
    for name in rows.column_names:
        try:
            columns[name] = np.array(rows[name].to_pylist(), np.float64)
        except (ValueError, TypeError):
            raise ValueError(f"{path}: its rows of {name} are not all numbers, or as many in each") from None
    times = columns.get("timestamp", np.arange(length) / fps)
    order = columns.get("frame_index", np.arange(length))
    if not (np.diff(times) > 0).all() or not (np.diff(order) == 1).all():
        raise ValueError(f"{path}: its rows are not in the order of timestamp and frame_index")
    actions = columns[action].reshape(length, -1) if action else None
    rewards, lost = None, ()
    if "next.reward" in columns:
        rewards, lost = _of_actions(columns["next.reward"], length)
    if start is None or stop is None:
        raise ValueError("meta does not say where in the video it begins and ends")
    frames = _pictures_at(Path(src) / video, start, stop, times, fps, size)
    return Recording(frames, actions, rewards, (*unused, *lost))


def _lerobot_episodes(_, batch, **how):
    """Episodes of a batch of `_lerobot_items`; how: the further arguments of `_read_lerobot`."""
    action = how["action"]
    columns = ["episode_index", action] if action else ["episode_index"]
    optional = "timestamp", "frame_index", "next.reward"
    read_table = functools.lru_cache(1)(functools.partial(_read_table, columns=columns, optional=optional))
    for item in batch:
        read = functools.partial(_read_lerobot, item, read_table, **how)
        yield item[0], f"episode_{item[0]:06d}", read


def import_lerobot(src, out, camera="", action="action", scale=True, percentiles=False, exclude="", size=64,
                   min_frames=2, val_every=100, workers=0, jpeg=0):
    """Import a LeRobot dataset of version 2.x or 3: parquet tables and mp4; numbers are its episode indices.

    The picture of a row is the one at its timestamp, whatever the video's frame rate; next.reward becomes the
    reward of the next frame.
    camera  the name of one video, such as observation.images.top; by default the first
    action  column of the actions; none by --action=
    scale   actions that leave [-1, 1] by their extremes over all imported episodes, which are printed and in
            meta.json; false: clip them
    percentiles  by the 1st and 99th percentile instead; what lies beyond is clipped

    raises  as import_npz, ValueError without such a camera or column, ImportError without pyarrow or PyAV"""
    _optional("pyarrow", "pyarrow", "reading parquet")
    _optional("av", "av", "reading videos")
    if percentiles and not scale:
        raise ValueError("--percentiles true says how to scale, --scale false not to; pass one of them")
    root = Path(src)
    if not src or not (root / "meta/info.json").is_file():
        raise FileNotFoundError(f"--src {src!r} has no meta/info.json; pass the folder of a LeRobot dataset")
    info = _read_json(root / "meta/info.json")
    if missing := [key for key in ("codebase_version", "features", "fps", "data_path") if not info.get(key)]:
        raise ValueError(f"{root}/meta/info.json lacks {', '.join(missing)}; pass a LeRobot dataset")
    if info["codebase_version"][:2] not in ("v2", "v3"):
        raise ValueError(f"{root} is of LeRobot's version {info['codebase_version']}; expected v2.x or v3.x")
    cameras = [name for name, feature in info["features"].items() if feature["dtype"] == "video"]
    if not cameras or not info.get("video_path"):
        raise ValueError(f"{root} has no videos; those with pictures inside the tables are not read")
    camera = camera or cameras[0]
    if camera not in cameras:
        raise ValueError(f"no video {camera!r}; --camera takes one of {', '.join(cameras)}")
    if action and action not in info["features"]:
        raise ValueError(f"no column {action!r}; --action takes one of {', '.join(info['features'])}")
    try:
        items = _lerobot_items(root, info, camera)
    except KeyError as error:
        raise ValueError(f"{root}/meta lacks {error}; pass a whole LeRobot dataset") from None
    if not items:
        raise FileNotFoundError(f"--src {src!r} has no episodes in meta; pass a whole LeRobot dataset")
    if info.get("total_episodes", len(items)) != len(items):
        print(f"meta/info.json says {info['total_episodes']} episodes, but {len(items)} are listed beside it")
    used = camera, action, "next.reward", *LEROBOT_OWN
    unused = [name for name in info["features"] if name not in used]
    how = dict(src=str(src), action=action, fps=info["fps"], unused=unused, size=size)
    episodes = functools.partial(_lerobot_episodes, **how)
    by = ("percentiles" if percentiles else "extremes") if scale else ""
    _import(_batches(items), episodes, out, camera, size, min_frames, val_every, workers, jpeg, exclude, by)


IMPORTERS = {
    "npz": (import_npz, NPZ_CONFIG),
    "video": (import_video, VIDEO_CONFIG),
    "vp2": (import_vp2, VP2_CONFIG),
    "bair": (import_bair, BAIR_CONFIG),
    "robonet": (import_robonet, ROBONET_CONFIG),
    "rlds": (import_rlds, RLDS_CONFIG),
    "lerobot": (import_lerobot, LEROBOT_CONFIG),
    "sthsth": (import_sthsth, STHSTH_CONFIG),
}
