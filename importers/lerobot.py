"""importers/lerobot.py: LeRobot datasets of version 2.x and 3.x: tables in parquet files, pictures in mp4 files.

    meta/info.json            frames per second, features (columns and cameras), where the files are
    meta/episodes...          a line for each episode: its length and, in 3.x, its part of a shared file
    data/...parquet           a row for each time step: timestamp, action, next.reward, ...
    videos/CAMERA/...mp4      the pictures

    meta --find_episodes--> Episode --read_lerobot--> rows, and by pictures_at the picture of each --> Recording

T rows of an episode, H/W height and width, A action dim.

Run: python prepare.py lerobot --src FOLDER --out data/pusht --size 64"""

import functools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common import require_content
from importers.engine import batch_jobs, run_import
from importers.recording import Recording, area_resize, optional, read_json, reason_of, shift_rewards
from importers.video import as_shown, decode

BOOKKEEPING = "timestamp", "frame_index", "episode_index", "index", "task_index"  # columns of every dataset


class Episode(NamedTuple):
    """Where an episode's rows and pictures are; paths from the dataset's folder."""

    number: int
    video: str
    start: float  # of its part of the video, seconds
    stop: float
    table: str
    length: int  # rows


def read_table(path, columns, optional_columns=(), filters=None):
    """Columns of a parquet file, and those of the optional ones that it has.

    raises  ValueError naming a damaged file or the columns that it lacks"""
    parquet = optional("pyarrow.parquet", "pyarrow")
    try:
        require_content(path)
        names = parquet.read_schema(path).names
        missing = [name for name in columns if name not in names]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        columns = [*columns, *(name for name in optional_columns if name in names)]
        return parquet.read_table(path, columns=columns, filters=filters, page_checksum_verification=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {reason_of(error)}") from None


def find_episodes(root, info, camera):
    """All episodes of a dataset.   raises  KeyError naming what its meta files lack"""
    episodes = []
    if info["codebase_version"].startswith("v2"):  # files of its own for each episode
        lines = (root / "meta/episodes.jsonl", lambda text: [json.loads(line) for line in text.splitlines()])
        for row in read_json(*lines):
            i = row["episode_index"]
            place = dict(episode_chunk=i // info["chunks_size"], episode_index=i, video_key=camera)
            video = info["video_path"].format(**place)
            table = info["data_path"].format(**place)
            episodes.append(Episode(i, video, 0.0, np.inf, table, row["length"]))
        return episodes
    of_video = f"videos/{camera}/"
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    columns += [of_video + name for name in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")]
    for path in sorted(root.glob("meta/episodes/*/*.parquet")):
        for row in read_table(path, columns).to_pylist():
            video = info["video_path"].format(video_key=camera, chunk_index=row[of_video + "chunk_index"],
                                              file_index=row[of_video + "file_index"])
            table = info["data_path"].format(chunk_index=row["data/chunk_index"],
                                             file_index=row["data/file_index"])
            episodes.append(Episode(row["episode_index"], video, row[of_video + "from_timestamp"],
                                    row[of_video + "to_timestamp"], table, row["length"]))
    return episodes


def pictures_at(path, start, stop, times, fps, size):
    """For each row of an episode the picture nearest to its time, out of the video's part from start to stop.

    times   (T,) seconds from start, rising, about fps a second;  size  > 0 resizes
    returns frames (T, H, W, 3), bytes
    raises  ValueError if a row has no picture: the nearest is further away than a fifth of 1 / fps or, where the
            video has more frames than rows, than half of the time between its frames"""
    frames = []
    shown = []  # seconds of each
    for seconds, picture, pixel_aspect in decode(path, max(0.0, start - 0.5 / fps), stop - 0.5 / fps):
        frames.append(area_resize(as_shown(picture, pixel_aspect)[None], size)[0])
        shown.append(seconds)
    wanted = start + times
    spacing = np.median(np.diff(shown)) if len(shown) > 1 else np.inf
    tolerance = 0.2 / fps if spacing > 0.9 / fps else 0.51 * spacing
    distance = np.full(len(wanted), np.inf)
    if frames and np.isfinite(shown).all():
        places = np.interp(wanted, shown, np.arange(len(shown)))  # 2.4: between pictures 2 and 3, nearer to 2
        nearest = np.ceil(places - 0.5).astype(int)
        distance = np.abs(np.array(shown)[nearest] - wanted)
    far = distance > tolerance
    if far.any():
        row = int(far.argmax())
        raise ValueError(f"{path} has {len(shown)} pictures for {len(wanted)} rows, and none within "
                         f"{tolerance:.3g} s of row {row}, at {wanted[row]:.3g} s")
    return np.stack([frames[k] for k in nearest])


def read_lerobot(episode, src, action, fps, unused, size):
    """An episode: the rows of its table, and for each of them the picture of its time."""
    path = Path(src) / episode.table
    required = ["episode_index", action] if action else ["episode_index"]
    others = "timestamp", "frame_index", "next.reward"
    rows = read_table(path, required, others, [("episode_index", "==", episode.number)])
    T = episode.length
    if len(rows) != T:
        raise ValueError(f"{path} has {len(rows)} of its {T} rows")
    columns = {}
    for name in rows.column_names:
        try:
            columns[name] = np.array(rows[name].to_pylist(), np.float64)
        except (ValueError, TypeError):
            raise ValueError(f"{path}: its rows of {name} are not all numbers, or as many in each") from None
    times = columns.get("timestamp", np.arange(T) / fps)
    order = columns.get("frame_index", np.arange(T))
    if not (np.diff(times) > 0).all() or not (np.diff(order) == 1).all():
        raise ValueError(f"{path}: its rows are not in the order of timestamp and frame_index")
    if episode.start is None or episode.stop is None:
        raise ValueError("meta does not say where in the video it begins and ends")
    frames = pictures_at(Path(src) / episode.video, episode.start, episode.stop, times, fps, size)
    actions = columns[action].reshape(T, -1) if action else None
    rewards = None
    lost = ()
    if "next.reward" in columns:
        rewards, lost = shift_rewards(columns["next.reward"], T)
    return Recording(frames, actions, rewards, (*unused, *lost))


def _lerobot_episodes(_, batch, **settings):
    """settings: the further arguments of read_lerobot."""
    for episode in batch:
        yield episode.number, f"episode_{episode.number:06d}", functools.partial(read_lerobot, episode, **settings)


def import_lerobot(src="", out="data/lerobot", camera="", action="action", scale=True, percentiles=False, size=64,
                   min_frames=2, val_every=100, exclude="", workers=0, jpeg=0):
    """Import a LeRobot dataset of version 2.x or 3.x; numbers are its episode indices.

    The picture of a row is the one at its timestamp, whatever the video's frame rate; next.reward becomes the
    reward of the next frame.
    camera  the name of one video, such as observation.images.top; "": the first
    action  column of the actions; none by --action=
    scale   actions that leave [-1, 1] (joint angles, pixels) by their extremes over all imported episodes, which
            are printed and written to meta.json; false: clip them
    percentiles  by the 1st and 99th percentile instead, against outliers; what lies beyond is clipped
    raises  as import_npz, ValueError without such a camera or column, ImportError without pyarrow or PyAV"""
    if percentiles and not scale:
        raise ValueError("--percentiles true says how to scale, --scale false not to; pass one of them")
    info = _read_info(src)
    root = Path(src)
    cameras = [name for name, feature in info["features"].items() if feature["dtype"] == "video"]
    if not cameras or not info.get("video_path"):
        raise ValueError(f"{root} has no videos; those with pictures inside the tables are not read")
    camera = camera or cameras[0]
    if camera not in cameras:
        raise ValueError(f"no video {camera!r}; --camera takes one of {', '.join(cameras)}")
    if action and action not in info["features"]:
        raise ValueError(f"no column {action!r}; --action takes one of {', '.join(info['features'])}")
    try:
        found = find_episodes(root, info, camera)
    except KeyError as error:
        raise ValueError(f"{root}/meta lacks {error}; pass a whole LeRobot dataset") from None
    if not found:
        raise FileNotFoundError(f"--src {src!r} has no episodes in meta; pass a whole LeRobot dataset")
    if info.get("total_episodes", len(found)) != len(found):
        print(f"meta/info.json says {info['total_episodes']} episodes, but {len(found)} are listed beside it")
    used = camera, action, "next.reward", *BOOKKEEPING
    unused = [name for name in info["features"] if name not in used]
    episodes = functools.partial(_lerobot_episodes, src=str(src), action=action, fps=info["fps"], unused=unused,
                                 size=size)
    by = ""
    if scale:
        by = "percentiles" if percentiles else "extremes"
    run_import(batch_jobs(found), episodes, out, camera, size, min_frames, val_every, workers, jpeg, exclude, by)


def _read_info(src):
    """meta/info.json of a dataset of a version that we read."""
    path = Path(src) / "meta/info.json"
    if not src or not path.is_file():
        raise FileNotFoundError(f"--src {src!r} has no meta/info.json; pass the folder of a LeRobot dataset")
    info = read_json(path)
    missing = [key for key in ("codebase_version", "features", "fps", "data_path") if not info.get(key)]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; pass a LeRobot dataset")
    if info["codebase_version"][:2] not in ("v2", "v3"):
        raise ValueError(f"{src} is of LeRobot's version {info['codebase_version']}; expected v2.x or v3.x")
    return info
