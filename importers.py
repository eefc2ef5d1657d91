"""importers.py: episodes in other people's formats -> folders that data.py reads.

    files --> jobs (a shard, or a batch of small files) --processes--> OUT.partial/part-00000 ... --> OUT

A part counts once its report, part-00000.json, is there: an import that was stopped goes on with the same
command. What cannot be read costs its episode alone, and is listed with the reason. Episodes keep the numbers
that they have in their source, on which the split into training and validation rests: one that is skipped
shifts no other. TensorFlow is never needed.

Settings of all or most, for which 0 or nothing is: as it is, or none:
    --size        pixels per side, after a crop to the centre square
    --min_frames  shorter episodes are skipped
    --val_every   episodes whose number is a multiple of it are for validation; the paper's is 100
    --exclude     a file with an episode's number or name in each line, which are left out
    --jpeg        quality at which frames are kept as JPEGs, say 95 for 256x256: a tenth of the bytes
    --workers     processes; 0: one per core that torch may use

T frames, H/W height and width, A action dim.

Run: python data.py video --src FOLDER --out data/mine --size 64            mp4, webm, gif
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

import imageio.v3 as iio
import numpy as np
import torch
from tqdm import tqdm

from data import (
    KIND,
    OXE,
    RLDS_SUFFIX,
    EpisodeWriter,
    from_picture,
    to_float,
    to_u8,
    write_json,
    write_tables,
)

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
    scale=True,  # actions that leave [-1, 1] (joint angles, pixels): by the dataset's extremes; false: clip
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


VIDEO_TYPES = (".mp4", ".webm", ".gif")
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


def _stack(frames, size=0):
    """Frames one by one -> (T,H,W,3), none of which is kept in full if they are to be small."""
    return np.stack([area_resize(frame[None], size)[0] if size else frame for frame in frames])


def _optional(module, package, why):
    """A module that is no requirement.   raises  ImportError that names the package to install"""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{why} needs {package}: pip install {package} ({error})") from None


def _reason(error):
    """One line; zlib, Pillow, PyAV, HDF5 and Arrow each raise their own kinds on damaged files."""
    text = (str(error) or "no reason given").splitlines()[0]
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def _read_json(path, parse=json.loads):
    """Its content.   raises  ValueError naming a damaged file"""
    try:
        return parse(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def _read_json_lines(path):
    """As _read_json, of a file with a value in each line."""
    return _read_json(path, lambda text: [json.loads(line) for line in text.splitlines()])


def _checked(frames, actions, rewards, size=0):
    """What a reader returned, arrays that may be anything, as EpisodeWriter.add takes it.

    frames (T,H,W,3) of integers, actions (T,A), (T-1,A) or None, rewards (T,), (T,1) or None
    raises  ValueError"""
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype.kind not in "iu" or not frames.size:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}; expected integers (T, H, W, 3)")
    if frames.min() < 0 or frames.max() > 255:
        raise ValueError(f"frames reach from {frames.min()} to {frames.max()}; expected 0 to 255")
    frames_u8 = area_resize(frames.astype(np.uint8), size) if size else frames.astype(np.uint8)
    T = len(frames_u8)
    if actions is not None and actions.ndim == 2 and len(actions) == T - 1:
        actions = np.concatenate([actions, np.zeros_like(actions[:1])])
    if any(x is not None and x.dtype.kind not in "biuf" for x in (actions, rewards)):
        raise ValueError("actions or rewards are not numbers")
    if actions is not None and (actions.ndim != 2 or len(actions) != T or not np.isfinite(actions).all()):
        raise ValueError(f"actions are {actions.shape}; expected finite ({T} or {T - 1}, A)")
    if rewards is not None and not np.isfinite(rewards).all():
        raise ValueError("rewards are not all finite")
    return frames_u8, actions, None if rewards is None else rewards.reshape(-1)


def _begin_worker():
    """A process of the pool decodes with one thread and ends when its parent does, however that ended."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches it too: no traceback from each

    def follow():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _write_part(i, job, kind, folder, episodes, size, min_frames, jpeg, excluded):
    """Import one job into folder/part-i; part-i.json, the report on it, says that it is done."""
    part = folder / f"part-{i:05d}"
    report = dict(imported=0, excluded=0, clipped=0, values=0, skipped=[])
    shutil.rmtree(part, ignore_errors=True)  # from a process that was killed before its report

    def readable():
        """What can be read; an error costs the episode or, where no next one can be found, the job's rest."""
        try:
            for number, name, read in episodes(*job):
                if {str(number), _stem(name)} & excluded:
                    report["excluded"] += 1
                    continue
                try:
                    frames_u8, actions, rewards = _checked(*read(), size)
                    if len(frames_u8) < min_frames:
                        raise ValueError(f"{len(frames_u8)} frames, fewer than --min_frames {min_frames}")
                    actions = np.zeros((len(frames_u8), 0)) if actions is None else actions
                    yield number, name, frames_u8, actions, rewards
                except Exception as error:
                    report["skipped"].append((name, _reason(error)))
        except Exception as error:
            report["skipped"].append((job[0], _reason(error)))

    with EpisodeWriter(part, "", may_be_empty=True, jpeg=jpeg) as writer:
        writer.meta.update(kind)
        for number, name, frames_u8, actions, rewards in readable():
            clipped = np.clip(actions, -1, 1)
            try:
                writer.add(frames_u8, clipped, rewards, name, number)
            except ValueError as error:
                report["skipped"].append((name, str(error)))
                continue
            report["imported"] += 1
            report["clipped"] += int((actions != clipped).sum())
            report["values"] += actions.size
    write_json(folder / f"part-{i:05d}.json", report)


def _write_parts(jobs, folder, write, workers):
    """All parts that are not done yet, on that many processes; returns the reports."""
    reports = [folder / f"part-{i:05d}.json" for i in range(len(jobs))]
    todo, kind = [i for i, report in enumerate(reports) if not report.is_file()], {}
    with tqdm(total=len(jobs), desc="import", unit="part", initial=len(jobs) - len(todo)) as bar:
        for i, report in enumerate(reports):  # one by one, until an episode says what the others must be like
            if i in todo:
                write(i, jobs[i], kind)
                bar.update()
                todo.remove(i)
            if _read_json(report)["imported"]:
                meta = _read_json(folder / f"part-{i:05d}" / "meta.json")
                kind = {key: meta[key] for key in KIND}
                break
        tasks = [(i, jobs[i], kind) for i in todo]
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


def _merge(folder, n_parts, meta):
    """Parts -> one folder of episodes by number; shards are renamed. One that was killed can begin again."""
    tables, columns, n_shards, n_frames = [], {}, 0, 0
    for part in filter(Path.is_dir, (folder / f"part-{i:05d}" for i in range(n_parts))):
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
    order = np.argsort(index["number"], kind="stable")
    meta = dict(meta, **{key: part_meta[key] for key in KIND}, episodes=len(order), frames=n_frames)
    index = {key: column[order] for key, column in index.items()}
    write_tables(folder, dict(meta, shards=n_shards), index, **columns)


def _plain(partial):
    """A functools.partial as JSON holds it."""
    nested = {k: _plain(v) if isinstance(v, functools.partial) else v for k, v in partial.keywords.items()}
    return dict(nested, reader=partial.func.__name__)


def _import(jobs, episodes, out, key, size, min_frames, val_every, workers, jpeg, exclude=""):
    """Write the episodes of all jobs; name and count what is unusable. A killed import goes on where it was.

    jobs      a name and further arguments each, of plain data; a job's episodes are written together
    episodes  functools.partial, called with a job's items: yields (number, name, function that returns what
              `_checked` takes), raises an Exception where it finds no more; its keywords hold src
    raises    ValueError, if OUT.partial is of another import or no episode is usable"""
    if workers < 0:
        raise ValueError(f"--workers is {workers}; expected 0, which is one for each core, or more")
    src = episodes.keywords["src"]
    writer = EpisodeWriter(out, src, key, val_every, jpeg=jpeg)
    folder, settings, listed = writer.partial, writer.partial / "settings.json", _listed(exclude)
    excluded = {word for words in listed for word in words}
    digest = hashlib.sha256(json.dumps(jobs).encode()).hexdigest()[:16]
    used = dict(_plain(episodes), size=size, min_frames=min_frames, val_every=val_every, jpeg=jpeg,
                exclude=sorted(excluded), files=f"{len(jobs)} parts, {digest}")
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
        _summarize(reports, folder, src, len(listed))
        _merge(folder, len(jobs), writer.meta)
    for leftover in folder.glob("part-*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    os.replace(folder, out)


def _summarize(reports, folder, src, n_listed):
    """Print what was imported and what not, and why.   raises  ValueError, leaving nothing, if nothing was"""
    skipped = [(f"skipped {src}/{name}: {reason}", reason) for r in reports for name, reason in r["skipped"]]
    lines = [line for line, _ in skipped]
    imported, excluded, clipped, values = (
        sum(r[key] for r in reports) for key in ("imported", "excluded", "clipped", "values"))
    print(f"imported {imported}, skipped {len(lines)}" + (
        f", excluded {excluded} of the {n_listed} listed" if n_listed else ""))
    print(*lines[:20], sep="\n", end="\n" if lines else "")
    for reason, n in Counter(re.sub(r"\d+", "N", reason) for _, reason in skipped[20:]).most_common(20):
        print(f"skipped {n} more: {reason}")
    if clipped:
        print(f"clipped {clipped} of {values} action values to [-1, 1]")
    if not imported:
        shutil.rmtree(folder)
        raise ValueError("no episode was added, so nothing is written; " + (lines or ["none is wanted"])[0])
    if lines:
        (folder / "skipped.txt").write_text("\n".join(lines) + "\n")


def _stem(name):
    return name.rsplit("/", 1)[-1].removesuffix(".npz").removesuffix(".hdf5")


def _listed(path):
    """The words of each line of a list, less .npz or .hdf5: an episode's numbers or names, whichever it has.

    (The official list of RoboNet's test episodes has the HDF5 file's name, then the converter's.)"""
    if path and not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}; --exclude takes a list of episodes, one in each line")
    lines = Path(path).read_text().splitlines() if path else []
    return [[_stem(word) for word in re.split(r"[\s,]+", line.strip())] for line in lines if line.strip()]


def _batches(items):
    """Small items as jobs: enough to go on from after a kill, few enough for large shards."""
    n = max(50, len(items) // 500)
    return [(items[i][1], items[i : i + n]) for i in range(0, len(items), n)]


def _files(src, types):
    """Files of these types under the folder src, their names from there.   raises  FileNotFoundError"""
    paths = sorted(p for p in Path(src).rglob("*") if p.suffix.lower() in types) if src else []
    if not paths:
        raise FileNotFoundError(f"--src {src!r} has no {', '.join(types)} files; pass a folder that has")
    return [str(path.relative_to(src)) for path in paths]


def _file_episodes(_, batch, src, read):
    """Episodes that are a file each, of (number, name)."""
    for number, name in batch:
        yield number, name, functools.partial(read, Path(src) / name)


# ---- npz and videos ----


def _read_npz(path, key):
    """Frames, actions or None, rewards or None of a file, whatever they are."""
    with np.load(path) as arrays:
        if key not in arrays:
            raise ValueError(f"no array {key!r}; --key takes one of {', '.join(arrays.files)}")
        names = (key, "action", "reward")
        frames, actions, rewards = (arrays[name] if name in arrays else None for name in names)
    if frames.ndim == 4 and frames.shape[1] == 9:  # their Meta-World episodes: three frames stacked,
        frames = frames[:, 6:].transpose(0, 2, 3, 1)  # newest last, beside the action that led there
        actions = actions[1:]
    return frames, actions, rewards


def _video_frames(source, start=0.0):
    """The frames of a video, a path or an open file, from `start` seconds on: bytes (H, W, 3), one by one.

    raises  ValueError after the last one if the file says that it is longer"""
    av = _optional("av", "av", "reading mp4 and webm")
    with av.open(source) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # importers run a process on each core
        if start > 0:
            container.seek(int(start / stream.time_base), stream=stream)
        at = 0.0
        for frame in container.decode(stream):
            at = frame.time or 0.0
            if at >= start or start <= 0:
                yield frame.to_ndarray(format="rgb24")
        whole = float(stream.duration * stream.time_base) if stream.duration else 0.0
        if not whole and len(container.streams) == 1:  # sound may last longer
            whole = (container.duration or 0) / 1e6
        if at + 2 / (stream.average_rate or 1) < 0.9 * whole:  # a webm that was cut decodes without an error
            raise ValueError(f"it ends after {at:.2f} of {whole:.2f} s: truncated")


def _read_video(path, size=0):
    """A video's frames, or those of a folder of .jpg files; no actions, no rewards."""
    if path.is_dir():
        frames = (from_picture(picture.read_bytes()) for picture in sorted(path.glob("*.jpg")))
    elif path.suffix.lower() == ".gif":
        frames = iio.imiter(path, plugin="pillow", mode="RGB")
    else:
        frames = _video_frames(str(path))
    return _stack(frames, size), None, None


def load_episode(path, key="image", size=0):
    """An .npz episode, mp4, webm or gif as frames_u8 (T,H,W,3) and actions (T,A) in [-1, 1] or None.

    key   the array of an .npz that holds the frames;  size  > 0 crops to a square and resizes
    raises  FileNotFoundError, or ValueError naming the file where it cannot be read"""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; pass an .npz episode or a video ({', '.join(VIDEO_TYPES)})")
    try:
        arrays = _read_npz(path, key) if path.suffix.lower() == ".npz" else _read_video(path, size)
        frames_u8, actions, _ = _checked(*arrays, size)
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: {_reason(error)}") from None
    return frames_u8, None if actions is None else np.clip(actions, -1, 1).astype(np.float32)


def import_npz(src, out, key="image", exclude="", size=0, min_frames=2, val_every=20, workers=0, jpeg=0):
    """Import the official code's .npz episodes: `key` (T,H,W,3), `action` (T,A) or (T-1,A), `reward` (T,).

    An episode's number is its place among the sorted names, which is the official code's rule. What array the
    frames are in chooses the camera: BAIR's has image and aux1_image.
    raises  FileNotFoundError where there is none, ValueError (nothing is written) where none can be used"""
    jobs = _batches(list(enumerate(_files(src, (".npz",)))))
    episodes = functools.partial(_file_episodes, src=str(src), read=functools.partial(_read_npz, key=key))
    _import(jobs, episodes, out, key, size, min_frames, val_every, workers, jpeg, exclude)


def import_video(src, out, size=64, min_frames=16, val_every=20, workers=0, jpeg=0):
    """Import mp4, webm and gif files, without actions.   raises as import_npz, ImportError without PyAV"""
    names = _files(src, VIDEO_TYPES)
    if not all(name.lower().endswith(".gif") for name in names):
        _optional("av", "av", "reading mp4 and webm")
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
        for k, (video, label) in enumerate(_sthsth_list(lists, split)):
            if label in STHSTH_CLASSES:
                folder = (Path(src) / video).is_dir()
                items.append((2 * k + parity, video if folder else found.get(video, f"{video}.webm")))
    episodes = functools.partial(_file_episodes, src=str(src), read=functools.partial(_read_video, size=size))
    _import(_batches(items), episodes, out, "", size, min_frames, 2, workers, jpeg)


def _sthsth_list(folder, split):
    """The videos of a split and their classes.   raises  FileNotFoundError, ValueError"""
    lines = folder / f"{split.replace('validation', 'val')}_video_folder.txt"
    if lines.is_file():
        rows = (line.split() for line in lines.read_text().splitlines())
        return [(row[0], int(row[2])) for row in rows if row]
    files = [next(iter(sorted(folder.glob(f"*{name}.json"))), None) for name in (split, "labels")]
    if None in files:
        raise FileNotFoundError(f"{folder} has neither {split}.json and labels.json nor {lines.name}; pass "
                                "the folder of them as --labels")
    rows, classes = map(_read_json, files)
    templates = [re.sub(r"[\[\]]", "", row["template"]) for row in rows]
    if unknown := set(templates) - classes.keys():
        raise ValueError(f"{files[1]} lacks {min(unknown)!r}, which {files[0]} uses; pass files of one set")
    return [(row["id"], int(classes[template])) for row, template in zip(rows, templates, strict=True)]


# ---- HDF5 ----


VP2_CAMERAS = "camera_image", "agentview_shift_2_image"  # RoboDesk, robosuite


def open_vp2(path, mask=""):
    """VP2's HDF5 file, as h5py.File, and the names of its episodes in order; mask: of that list alone.

    raises  ImportError without h5py, FileNotFoundError, ValueError where it is no such file"""
    h5py = _optional("h5py", "h5py", "reading HDF5")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}; expected one of VP2's .hdf5 files")
    try:
        file = h5py.File(path)
        names = sorted(file["data"], key=lambda name: int(name.split("_")[-1]))
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

    def read(demo):
        return vp2_frames(file["data"][demo])[()], file["data"][demo]["actions"][()], None

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
            file.close()
        except ValueError:
            demos = [None]  # the job will say why
        jobs += [(name, number + start, start, start + 50) for start in range(0, len(demos), 50)]
        number += len(demos)
    episodes = functools.partial(_vp2_episodes, src=str(src), mask=mask)
    _import(jobs, episodes, out, "vp2", size, min_frames, val_every, workers, jpeg)


def _read_robonet(path, camera):
    """A file of RoboNet's: frames (T,H,W,3), actions (T-1, 5).   Source: RoboNet's hdf5_loader.py"""
    h5py = _optional("h5py", "h5py", "reading HDF5")
    with h5py.File(path) as file:
        env, primitive = file["env"], file["metadata"].attrs.get("primitives")
        if f"{camera}_video" not in env:
            cameras = [name.removesuffix("_video") for name in env if name.endswith("_video")]
            raise ValueError(f"no camera {camera!r}; --camera takes one of {', '.join(cameras)}")
        video, mp4 = env[f"{camera}_video"], env.attrs["cam_encoding"] == "mp4"
        about = video["frames" if mp4 else "frame0"].attrs
        T = int(about["T"]) if mp4 else len(video)
        if mp4:
            frames = list(itertools.islice(_video_frames(io.BytesIO(video["frames"][()].tobytes())), T))
        else:
            frames = [from_picture(video[f"frame{t}"][()].tobytes()) for t in range(T)]
        states, actions = env["state"][()], file["policy/actions"][()]
        # the official loader reads JPEG with cv2, which swaps the colours that image_format then speaks of
        swapped = (about["image_format"] == "BGR") == mp4
        if actions.shape[1] == 4 and primitive == "autograsp":  # its gripper closed by itself, by a rule
            low, high = (env[f"{end}_bound"][0][-1] for end in ("low", "high"))
            grip = np.where(states[1:, -1:] > (low + high) / 2, high, low)
            actions = np.concatenate([actions[: len(grip)], grip[: len(actions)]], 1)
    if len(frames) < T:
        raise ValueError(f"its video has {len(frames)} of {T} frames: truncated")
    T = min(T, len(states), len(actions) + 1)
    actions = np.pad(actions, ((0, 0), (0, max(0, 5 - actions.shape[1]))))[: T - 1, :5]
    return np.stack(frames[:T])[..., :: -1 if swapped else 1], actions, None


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
    return np.frombuffer(b"".join(pixels), np.uint8).reshape(-1, 64, 64, 3), np.stack(actions), None


def _bair_episodes(name, start, n, src, camera):
    """Episodes of a file, traj_A_to_B.tfrecords."""
    for k, record in enumerate(_records(Path(src) / name, n)):
        yield start + k, f"traj_{start + k}", functools.partial(_read_bair, record, camera)


def import_bair(src, out, split="", camera="aux1", size=0, min_frames=2, val_every=100, workers=0, jpeg=0):
    """Import BAIR robot pushing from its TFRecord files; numbers are those in the files' names.

    split   train or test, where the folder has both;  camera  aux1, the paper's, or main
    raises  as import_npz, ValueError where --split must choose"""
    jobs = []
    for name in _files(src, (".tfrecords",)):
        place = re.fullmatch(r"(?:.*/)?traj_(\d+)_to_(\d+)\.tfrecords", name)
        if place and (not split or split in name.split("/")[:-1]):
            jobs.append((name, int(place[1]), int(place[2]) - int(place[1]) + 1))
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


def _read_rlds(record, camera, columns, size):
    """An episode: frames, and the columns {name: width} side by side as actions (T, A)."""
    features = _example(record)
    frames = _stack(map(from_picture, _values(features[f"steps/observation/{camera}"])), size)
    actions = [np.reshape(_values(features[name]), (-1, width)) for name, width in columns.items()]
    if len({len(column) for column in actions}) > 1:
        raise ValueError(f"actions have {[len(column) for column in actions]} rows; expected as many in each")
    return frames, np.concatenate(actions, 1) if actions else None, None


def _rlds_episodes(name, numbers, src, split, cameras, columns, size):
    """Episodes of a shard, named as the official converter's files; of each camera if there are several."""
    for k, record in enumerate(_records(Path(src) / name, len(numbers))):
        for camera in cameras:
            read = functools.partial(_read_rlds, record, camera, columns, size)
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
    how = dict(split=split, cameras=cameras, columns=columns, size=size)
    episodes = functools.partial(_rlds_episodes, src=str(src), **how)
    if about.get("name") == "robo_net" and not exclude:
        print("without --exclude, RoboNet's test videos are among these episodes")
    _import(jobs, episodes, out, ",".join(cameras), size, min_frames, val_every, workers, jpeg, exclude)


# ---- LeRobot ----


def _read_table(path, columns):
    """Columns of a parquet file.   raises  ValueError naming a damaged file"""
    parquet = _optional("pyarrow.parquet", "pyarrow", "reading parquet")
    try:
        return parquet.read_table(path, columns=columns, page_checksum_verification=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {_reason(error)}") from None


def _lerobot_extremes(root, column):
    """Least and greatest values (A,) of a column, by the dataset's statistics; None where it has none."""
    if (root / "meta/stats.json").is_file():
        stats = [_read_json(root / "meta/stats.json")]
    elif (root / "meta/episodes_stats.jsonl").is_file():
        stats = [line["stats"] for line in _read_json_lines(root / "meta/episodes_stats.jsonl")]
    else:
        return None
    if any(column not in each for each in stats):
        return None
    least, greatest = ([np.ravel(each[column][key]) for each in stats] for key in ("min", "max"))
    return np.min(least, 0).tolist(), np.max(greatest, 0).tolist()


def _lerobot_episodes(_, batch, src, action, fps, extremes, size):
    """Episodes of (number, video, its start in seconds, table, length)."""
    table = functools.lru_cache(1)(functools.partial(_read_table, columns=["episode_index", action]))

    def read(number, video, start, path, length):
        actions = None
        if action:
            rows = table(Path(src) / path)
            mine = rows.filter(np.asarray(rows["episode_index"]) == number)[action].to_pylist()
            actions = np.reshape(mine, (len(mine), -1))
            if extremes:
                least, greatest = np.array(extremes)
                actions = 2 * (actions - least) / np.maximum(greatest - least, 1e-8) - 1
        shown = itertools.islice(_video_frames(str(Path(src) / video), start - 0.5 / fps), length)
        frames = _stack(shown, size)
        if len(frames) != length:
            raise ValueError(f"{video} has {len(frames)} of its {length} frames: truncated")
        return frames, actions, None

    for episode in batch:
        yield episode[0], f"episode_{episode[0]:06d}", functools.partial(read, *episode)


def import_lerobot(src, out, camera="", action="action", scale=True, exclude="", size=64, min_frames=2,
                   val_every=100, workers=0, jpeg=0):
    """Import a LeRobot dataset of version 2.x or 3: parquet tables and mp4; numbers are its episode indices.

    camera  the name of one video, such as observation.images.top; by default the first
    action  column of the actions; none by --action=
    scale   actions that leave [-1, 1] by the dataset's extremes, which are printed and kept in
            OUT/settings.json; false: clip them

    raises  as import_npz, ValueError without such a camera or column, ImportError without pyarrow or PyAV"""
    _optional("pyarrow", "pyarrow", "reading parquet")
    _optional("av", "av", "reading mp4")
    root = Path(src)
    if not src or not (root / "meta/info.json").is_file():
        raise FileNotFoundError(f"--src {src!r} has no meta/info.json; pass the folder of a LeRobot dataset")
    info = _read_json(root / "meta/info.json")
    cameras = [name for name, feature in info["features"].items() if feature["dtype"] == "video"]
    if not cameras:
        raise ValueError(f"{root} has no videos; those with pictures inside the tables are not read")
    camera = camera or cameras[0]
    if camera not in cameras:
        raise ValueError(f"no video {camera!r}; --camera takes one of {', '.join(cameras)}")
    if action and action not in info["features"]:
        raise ValueError(f"no column {action!r}; --action takes one of {', '.join(info['features'])}")
    items = []
    if info["codebase_version"].startswith("v2"):  # a file for each episode
        for episode in _read_json_lines(root / "meta/episodes.jsonl"):
            i = episode["episode_index"]
            keys = dict(episode_chunk=i // info["chunks_size"], episode_index=i, video_key=camera)
            items.append((i, info["video_path"].format(**keys), 0.0, info["data_path"].format(**keys),
                          episode["length"]))
    else:  # many episodes in a file
        of_video = [f"videos/{camera}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
        columns = ["episode_index", "length", "data/chunk_index", "data/file_index", *of_video]
        for path in sorted(root.glob("meta/episodes/*/*.parquet")):
            for row in _read_table(path, columns).to_pylist():
                i, length, *of_table, chunk, file, start = (row[column] for column in columns)
                video = info["video_path"].format(video_key=camera, chunk_index=chunk, file_index=file)
                table = info["data_path"].format(chunk_index=of_table[0], file_index=of_table[1])
                items.append((i, video, start, table, length))
    if not items:
        raise FileNotFoundError(f"--src {src!r} has no episodes in meta; pass a whole LeRobot dataset")
    extremes = _lerobot_extremes(root, action) if action and scale else None
    if extremes and np.abs(extremes).max() > 1:
        print(f"actions from {extremes[0]} to {extremes[1]} become -1 to 1")
    else:
        extremes = None
    how = dict(action=action, fps=info["fps"], extremes=extremes, size=size)
    episodes = functools.partial(_lerobot_episodes, src=str(src), **how)
    _import(_batches(items), episodes, out, camera, size, min_frames, val_every, workers, jpeg, exclude)


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
