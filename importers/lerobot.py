"""importers/lerobot.py: LeRobot datasets of version 2.x and 3.x.

    meta/info.json          frames per second, the features (columns and cameras), where the files are
    meta/episodes...        each episode: its length and, in 3.x, its part of the files that episodes share
    data/...parquet         a row for each time step: timestamp, action, next.reward, ...
    videos/CAMERA/...mp4    pictures

    meta --find_episodes--> Episode --read_lerobot--> rows, by pictures_at a picture of each --> Recording

T rows of an episode, H/W height and width.
Run: python prepare.py lerobot --src FOLDER --out data/pusht --size 64"""

import functools
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from importers.engine import batch_jobs, run_import
from importers.recording import Recording, area_resize, optional, read_json, reason_of
from importers.video import decode
from support.files import require_content

BOOKKEEPING = "timestamp", "frame_index", "episode_index", "index", "task_index"  # columns of every dataset


class Episode(NamedTuple):
    """Where an episode is: a part of a video and rows of a table."""

    number: int
    video: str
    start: float  # seconds
    stop: float
    table: str
    length: int  # rows


def read_table(path, columns, filters=None):
    """Those of these columns that a parquet file has, of the rows that pass pyarrow's filters."""
    parquet = optional("pyarrow.parquet", "pyarrow")
    try:
        require_content(path)
        names = parquet.read_schema(path).names
        columns = [name for name in columns if name in names]
        return parquet.read_table(path, columns=columns, filters=filters, page_checksum_verification=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {reason_of(error)}") from None


def place(root, template, **numbers):
    """The path that a template of info.json gives for an episode.   raises  ValueError if it leaves root"""
    try:
        path = template.format(**numbers)
    except (AttributeError, IndexError, ValueError):
        raise ValueError(f"{root}/meta/info.json: {template!r} is no template of a path") from None
    if os.path.isabs(path) or os.path.normpath(path).startswith(".."):  # links, as the hub has, may lead out
        raise ValueError(f"{root}/meta/info.json leads out of the dataset, to {path}")
    return path


def find_episodes(root, info, camera):
    """All episodes of a dataset.   raises  KeyError naming what its meta files lack, ValueError"""
    episodes = []
    if info["codebase_version"].startswith("v2"):  # each has its own files
        path = root / "meta/episodes.jsonl"
        for row in read_json(path, lambda text: [json.loads(line) for line in text.splitlines()]):
            i = row["episode_index"]
            numbers = dict(episode_chunk=i // info["chunks_size"], episode_index=i, video_key=camera)
            video = place(root, info["video_path"], **numbers)
            table = place(root, info["data_path"], **numbers)
            episodes.append(Episode(i, video, 0.0, np.inf, table, row["length"]))
        return episodes
    names = "chunk_index", "file_index", "from_timestamp", "to_timestamp"
    of_video = [f"videos/{camera}/{name}" for name in names]
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index", *of_video]
    for path in sorted(root.glob("meta/episodes/*/*.parquet")):
        for row in read_table(path, columns).to_pylist():
            chunk, file, start, stop = (row[name] for name in of_video)
            video = place(root, info["video_path"], video_key=camera, chunk_index=chunk, file_index=file)
            numbers = dict(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
            table = place(root, info["data_path"], **numbers)
            episodes.append(Episode(row["episode_index"], video, start, stop, table, row["length"]))
    return episodes


def pictures_at(path, start, stop, times, fps, size):
    """For each row of an episode the picture nearest in time, from a video between start and stop.

    times (T,) are seconds from start, rising, about fps a second; returns frames (T, H, W, 3), bytes.
    raises  ValueError if the nearest picture is further away than a fifth of 1 / fps or, where the video has
            more frames than rows, than half of the time between its frames"""
    frames = []
    shown = []  # when, in seconds
    for seconds, frame in decode(path, max(0.0, start - 0.5 / fps), stop - 0.5 / fps):
        frames.append(area_resize(frame[None], size)[0])
        shown.append(seconds)
    shown = np.array(shown or [np.nan])  # NaN is near to nothing
    wanted = start + times
    after = np.searchsorted(shown, wanted).clip(1, len(shown) - 1)
    before = after - 1
    nearest = np.where(shown[after] - wanted < wanted - shown[before], after, before)
    spacing = np.median(np.diff(shown)) if len(shown) > 1 else np.inf
    tolerance = 0.2 / fps if spacing > 0.9 / fps else 0.51 * spacing
    is_near = np.abs(shown[nearest] - wanted) <= tolerance
    if not is_near.all():
        row = int(is_near.argmin())
        raise ValueError(f"{path} has {len(frames)} pictures for {len(wanted)} rows, and none within "
                         f"{tolerance:.3g} s of row {row}, at {wanted[row]:.3g} s")
    return np.stack([frames[k] for k in nearest])


def read_lerobot(episode, src, action, fps, unused, size):
    """An episode: its rows, and for each of them the picture of its time."""
    T = episode.length
    path = Path(src) / episode.table
    names = "timestamp", "frame_index", "next.reward", action
    rows = read_table(path, names, filters=[("episode_index", "==", episode.number)])
    if len(rows) != T:
        raise ValueError(f"{path} has {len(rows)} of its {T} rows")
    columns = dict(timestamp=np.arange(T) / fps, frame_index=np.arange(T))
    for name in rows.column_names:
        try:
            columns[name] = np.array(rows[name].to_pylist(), np.float64)
        except (ValueError, TypeError):
            raise ValueError(f"{path}: its rows of {name} are not all numbers, or as many in each") from None
    times = columns["timestamp"]
    if not (np.diff(times) > 0).all() or not (np.diff(columns["frame_index"]) == 1).all():
        raise ValueError(f"{path}: its rows are not in the order of timestamp and frame_index")
    frames = pictures_at(Path(src) / episode.video, episode.start, episode.stop, times, fps, size)
    actions = columns[action].reshape(T, -1) if action else None
    return Recording(frames, actions, action_rewards=columns.get("next.reward"), unused=tuple(unused))


def lerobot_episodes(_, batch, src, action, fps, unused, size):
    """The episodes of a batch, as `run_import` wants them."""
    for episode in batch:
        read = functools.partial(read_lerobot, episode, src, action, fps, unused, size)
        yield episode.number, f"episode_{episode.number:06d}", read


def read_info(src):
    """meta/info.json of the dataset in the folder src, of a version that is read here."""
    path = Path(src) / "meta/info.json"
    info = read_json(path)
    missing = [key for key in ("codebase_version", "features", "fps", "data_path") if not info.get(key)]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; pass a LeRobot dataset")
    if info["codebase_version"][:2] not in ("v2", "v3"):
        raise ValueError(f"{src} is of LeRobot's version {info['codebase_version']}; expected v2.x or v3.x")
    return info


def import_lerobot(src="", out="data/lerobot", camera="", action="action", scale=True, percentiles=False,
                   size=64, min_frames=2, val_every=100, exclude="", workers=0, jpeg=0):
    """Import a LeRobot dataset of version 2.x or 3.x; numbers are its episode indices.

    A row's picture is the one at its timestamp; next.reward becomes the reward of the next frame.
    camera  a video's name, such as observation.images.top; "": the first
    action  the column of the actions; "": none
    scale   true: scale actions that leave [-1, 1] (joint angles, pixels) by their extremes over all imported
            episodes, which meta.json keeps; false: clip them
    percentiles  scale by the 1st and 99th percentile, which ignores outliers, and clip what lies beyond"""
    if percentiles and not scale:
        raise ValueError("--percentiles true says how to scale, --scale false not to; pass one of them")
    info = read_info(src)
    features = info["features"]
    cameras = [name for name in features if features[name]["dtype"] == "video"]
    if not cameras or not info.get("video_path"):
        raise ValueError(f"{src} has no videos; those with pictures inside the tables are not read")
    camera = camera or cameras[0]
    if camera not in cameras:
        raise ValueError(f"no video {camera!r}; --camera takes one of {', '.join(cameras)}")
    if action and action not in features:
        raise ValueError(f"no column {action!r}; --action takes one of {', '.join(features)}")
    try:
        found = find_episodes(Path(src), info, camera)
    except KeyError as error:
        raise ValueError(f"{src}/meta lacks {error}; pass a whole LeRobot dataset") from None
    used = camera, action, "next.reward", *BOOKKEEPING
    unused = [name for name in features if name not in used]
    episodes = functools.partial(lerobot_episodes, src=str(src), action=action, fps=info["fps"],
                                 unused=unused, size=size)
    by = "extremes" if scale else ""
    by = "percentiles" if percentiles else by
    jobs = batch_jobs(found)
    run_import(jobs, episodes, out, camera, size, min_frames, val_every, workers, jpeg, exclude, by)
