"""importers/video.py: .npz episodes and videos.

    file --read_npz, read_video--> Recording --> load_episode: one episode;  import_...: a folder of many

T frames, H/W height and width, A action dim.

Run: python prepare.py npz --src FOLDER --out data/bair --key aux1_image       the official code's episodes
     python prepare.py video --src FOLDER --out data/mine --size 64            mp4, mov, webm, gif and others
     python prepare.py sthsth --src VIDEOS --labels FOLDER --out data/oxe/sthsth     Something-Something v2"""

import functools
import re
from pathlib import Path

import imageio.v3 as iio
import numpy as np

from importers.engine import batch_jobs, file_episodes, find_files, run_import
from importers.recording import Recording, check, optional, read_json, reason_of, stack_frames
from support.files import require_content

VIDEO_TYPES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif")  # truncation shows in these
# Something-Something's classes with motion worth learning, of 174 (the official code's choice)
STHSTH_CLASSES = {1, 5, 6, *range(13, 22), *range(27, 32), *range(33, 41), 42, 43, *range(45, 59),
                  *range(85, 121), 122, 123, 139, 140, 141, *range(143, 149), *range(156, 161), 164, 173}


def read_npz(path, key):
    """An .npz file as a Recording: frames under `key`, actions and rewards under their usual names."""
    require_content(path)
    with np.load(path) as arrays:
        if key not in arrays:
            raise ValueError(f"no array {key!r}; --key takes one of {', '.join(arrays.files)}")
        action = next((name for name in ("action", "actions") if name in arrays), None)
        reward = next((name for name in ("reward", "rewards", "next.reward") if name in arrays), None)
        frames = arrays[key]
        actions = arrays[action] if action else None
        rewards = arrays[reward] if reward else None
        unused = tuple(name for name in arrays.files if name not in (key, action, reward))
    if frames.ndim == 4 and frames.shape[1] == 9:  # the official Meta-World episodes: three frames stacked,
        frames = frames[:, 6:].transpose(0, 2, 3, 1)  # the newest last, beside the action that led to it
        actions = None if actions is None else actions[1:]
    if reward == "next.reward":  # LeRobot's name
        return Recording(frames, actions, action_rewards=rewards, unused=unused)
    return Recording(frames, actions, rewards, unused=unused)


# ---- decoding videos ----


def decode(source, start=0.0, stop=np.inf):
    """Yield (seconds, PyAV's frame, pixel aspect) of a video, a Path or an open file, from start to stop.

    The seconds count from the first frame and are NaN where the file has none.   raises  ValueError"""
    av = optional("av", "av")
    if isinstance(source, Path):
        require_content(source)
        source = str(source)
    with av.open(source) as container:
        stream = container.streams.best("video")
        if stream is None:
            raise ValueError("it has no video stream; it may be truncated")
        stream.codec_context.thread_count = 1  # importers run a process on each core
        first = stream.start_time or 0
        if start > 0:
            container.seek(first + int(start / stream.time_base), stream=stream)
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise ValueError("a frame is incomplete: truncated")
            for picture in packet.decode():
                seconds = np.nan if picture.pts is None else float((picture.pts - first) * picture.time_base)
                if seconds >= stop:
                    return
                if not seconds < start:
                    yield seconds, picture, stream.sample_aspect_ratio or 1


def as_shown(picture, pixel_aspect=1):
    """A frame of PyAV's as players show it, bytes (H, W, 3): square pixels, turned as the header says.

    raises  ValueError where it is not turned by quarters"""
    width = max(1, round(picture.width * pixel_aspect))
    frame = picture.to_ndarray(format="rgb24", width=width, height=picture.height)
    headers = [header for header in picture.side_data if header.type.name == "DISPLAYMATRIX"]
    if not headers:
        return frame
    # pixel (x, y) is shown at (a x + c y, b x + d y); the scale of the matrix is for the screen
    a, b, _, c, d = np.frombuffer(bytes(headers[0]), np.int32)[:5]
    matrix = np.array([[a, b], [c, d]]) / max(1, abs(a), abs(b), abs(c), abs(d))
    turn = np.rint(matrix)
    if not turn.any():
        return frame
    if np.abs(matrix - turn).max() > 0.01 or not np.array_equal(turn @ turn.T, np.eye(2)):
        numbers = ", ".join(f"{x:.2f}" for x in matrix.flat)
        raise ValueError(f"its display matrix is ({numbers}): neither a quarter turn nor a mirror")
    if turn[0, 0] == 0:
        frame = frame.swapaxes(0, 1)
    if turn[:, 0].sum() < 0:
        frame = frame[:, ::-1]
    if turn[:, 1].sum() < 0:
        frame = frame[::-1]
    return np.ascontiguousarray(frame)


def video_frames(source):
    """Yield the frames of a video, a Path or an open file, as players show them: bytes (H, W, 3)."""
    for _, picture, pixel_aspect in decode(source):
        yield as_shown(picture, pixel_aspect)


def read_video(path, size=0):
    """A video's frames, resized where size > 0, as a Recording.   raises  ValueError where it is truncated"""
    require_content(path)
    if path.suffix.lower() == ".gif":
        try:
            return Recording(stack_frames(iio.imiter(path, plugin="pillow", mode="RGB"), size))
        except IndexError:
            raise ValueError("it is a damaged GIF") from None
    logging = optional("av", "av").logging
    logging.set_level(logging.ERROR)
    logging.set_skip_repeated(False)
    try:
        with logging.Capture() as messages:  # FFmpeg decodes a webm that was cut off, and only logs it
            frames = stack_frames(video_frames(path), size)
    finally:
        logging.set_level(None)
    if any("File ended prematurely" in text for _, _, text in messages):
        raise ValueError("its end is missing: truncated")
    return Recording(frames)


# ---- one episode, or a folder of them ----


def load_episode(path, key="image", size=0):
    """An .npz episode or a video as frames_u8 (T, H, W, 3) and actions (T, A) in [-1, 1] or None.

    key   the array of an .npz that holds the frames;  size  > 0 crops to a square and resizes
    raises  FileNotFoundError, or ValueError naming the file where it cannot be read"""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; pass an .npz episode or a video ({', '.join(VIDEO_TYPES)})")
    try:
        is_npz = path.suffix.lower() == ".npz"
        recording = read_npz(path, key) if is_npz else read_video(path, size=size)
        frames_u8, actions, _, unused = check(recording, size)
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: {reason_of(error)}") from None
    if unused:
        print(f"{path}: not used: {', '.join(unused)}")
    if actions is not None:
        actions = np.clip(actions, -1, 1).astype(np.float32)
    return frames_u8, actions


def import_npz(src="", out="data/npz", key="image", size=0, min_frames=2, val_every=20, exclude="", workers=0,
               jpeg=0):
    """Import .npz episodes of the official code's layout: frames, `action` (T, A) or (T-1, A), `reward` (T,)
    on arriving at each frame or (T-1,) of each action; `actions` and `rewards` are other names of the two.

    An episode's number is its place among the sorted names, which is the official code's rule.
    key     the array of frames (T, H, W, 3): BAIR's episodes have image and aux1_image, two cameras
    raises  FileNotFoundError where there is no file, ValueError, writing nothing, where all are unusable"""
    jobs = batch_jobs(list(enumerate(find_files(src, (".npz",)))))
    episodes = functools.partial(file_episodes, src=str(src), read=read_npz, key=key)
    run_import(jobs, episodes, out, key, size, min_frames, val_every, workers, jpeg, exclude)


def import_video(src="", out="data/video", size=64, min_frames=16, val_every=20, workers=0, jpeg=0):
    """Import videos (mp4, m4v, mov, mkv, webm, avi, gif), without actions; their order by name numbers them.

    raises  as import_npz, ImportError without PyAV"""
    jobs = batch_jobs(list(enumerate(find_files(src, VIDEO_TYPES))))
    episodes = functools.partial(file_episodes, src=str(src), read=read_video, size=size)
    run_import(jobs, episodes, out, "", size, min_frames, val_every, workers, jpeg)


# ---- Something-Something v2, which the paper adds to the tokenizer's training ----


def import_sthsth(src="", out="data/sthsth", labels="", size=64, min_frames=16, workers=0, jpeg=0):
    """Import the videos of Something-Something v2 in the 95 classes that the official code keeps.

    src     folder of ID.webm files, at any depth
    labels  folder of the dataset's train.json, validation.json and labels.json; "": src
    Videos of the validation list get even numbers, the others odd ones, and every second number is for
    validation: the split is the dataset's own.
    raises  as import_npz, ImportError without PyAV"""
    folder = Path(labels or src)
    lists = {}
    for name in ("labels", "validation", "train"):
        paths = sorted(folder.glob(f"*{name}.json"))
        if not paths:
            raise FileNotFoundError(f"{folder} has no {name}.json; pass the folder of the lists as --labels")
        lists[name] = read_json(paths[0])
    found = {path.stem: path.relative_to(src).as_posix() for path in Path(src).rglob("*.webm")}
    items = []
    for parity, split in enumerate(("validation", "train")):
        for k, row in enumerate(lists[split]):
            template = re.sub(r"[\[\]]", "", row["template"])
            if template not in lists["labels"]:
                raise ValueError(f"labels.json lacks {template!r} of {split}.json; pass files of one set")
            if int(lists["labels"][template]) in STHSTH_CLASSES:
                items.append((2 * k + parity, found.get(row["id"], f"{row['id']}.webm")))
    episodes = functools.partial(file_episodes, src=str(src), read=read_video, size=size)
    run_import(batch_jobs(items), episodes, out, "", size, min_frames, 2, workers, jpeg)
