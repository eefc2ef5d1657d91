"""importers/video.py: .npz episodes and videos.

    file --read_npz, read_video--> Recording --> load_episode: one episode;  import_...: a folder of many

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
    with np.load(path) as file:
        if key not in file:
            raise ValueError(f"no array {key!r}; --key takes one of {', '.join(file.files)}")
        usual = (key, "action", "actions", "reward", "rewards", "next.reward")
        arrays = {name: file[name] for name in file.files if name in usual}
        unused = tuple(name for name in file.files if name not in usual)
    frames = arrays[key]
    actions = arrays.get("action", arrays.get("actions"))
    rewards = arrays.get("reward", arrays.get("rewards"))
    if frames.ndim == 4 and frames.shape[1] == 9:  # the official Meta-World episodes: three frames stacked,
        frames = frames[:, 6:].transpose(0, 2, 3, 1)  # the newest last, beside the action that led to it
        actions = None if actions is None else actions[1:]
    return Recording(frames, actions, rewards, arrays.get("next.reward"), unused)  # LeRobot's name


def decode(source, start=0.0, stop=np.inf):
    """Yield (seconds since the first frame or NaN, bytes (H, W, 3) as players show them) from start to stop.

    source  a Path or an open file;  raises  ValueError where it is truncated"""
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
                    yield seconds, _as_shown(picture, stream.sample_aspect_ratio or 1)


def _as_shown(picture, pixel_aspect):
    """A frame of PyAV's with square pixels, turned as the file's header says."""
    width = max(1, round(picture.width * pixel_aspect))
    frame = picture.to_ndarray(format="rgb24", width=width, height=picture.height)
    for header in picture.side_data:
        if header.type.name == "DISPLAYMATRIX":
            # pixel (x, y) is shown at (a x + c y, b x + d y); numbers count in 1 / 65536
            a, b, _, c, d = np.rint(np.frombuffer(bytes(header), np.int32)[:5] / 65536).tolist()
            if a and b:
                raise ValueError(f"its display matrix is {(a, b, c, d)}: neither a quarter turn nor a mirror")
            frame = frame.swapaxes(0, 1) if b else frame
            frame = frame[:, ::-1] if a + c < 0 else frame
            frame = frame[::-1] if b + d < 0 else frame
    return np.ascontiguousarray(frame)


def video_frames(source):
    """Yield the frames of a video, a Path or an open file: bytes (H, W, 3)."""
    for _, frame in decode(source):
        yield frame


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
    with logging.Capture() as messages:  # FFmpeg decodes a truncated webm, and only logs that it is
        frames = stack_frames(video_frames(path), size)
    logging.set_level(None)
    if any("File ended prematurely" in text for _, _, text in messages):
        raise ValueError("its end is missing: truncated")
    return Recording(frames)


def load_episode(path, key="image", size=0):
    """An .npz episode or a video as frames_u8 (T, H, W, 3) and actions (T, A) in [-1, 1] or None.

    key   the array of an .npz that holds the frames;  size  > 0 crops to a square and resizes
    raises  FileNotFoundError, or ValueError naming the file where it cannot be read"""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; pass an .npz episode or a video ({', '.join(VIDEO_TYPES)})")
    try:
        is_npz = path.suffix.lower() == ".npz"
        recording = read_npz(path, key) if is_npz else read_video(path, size)
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
    key     the array of frames (T, H, W, 3): BAIR's episodes have image and aux1_image, two cameras"""
    jobs = batch_jobs(list(enumerate(find_files(src, (".npz",)))))
    episodes = functools.partial(file_episodes, src=str(src), read=read_npz, key=key)
    run_import(jobs, episodes, out, key, size, min_frames, val_every, workers, jpeg, exclude)


def import_video(src="", out="data/video", size=64, min_frames=16, val_every=20, workers=0, jpeg=0):
    """Import videos (VIDEO_TYPES: mp4, gif, ...), without actions; their order by name numbers them."""
    jobs = batch_jobs(list(enumerate(find_files(src, VIDEO_TYPES))))
    episodes = functools.partial(file_episodes, src=str(src), read=read_video, size=size)
    run_import(jobs, episodes, out, "", size, min_frames, val_every, workers, jpeg)


def import_sthsth(src="", out="data/sthsth", labels="", size=64, min_frames=16, workers=0, jpeg=0):
    """Import the videos of Something-Something v2 in the 95 classes that the official code keeps.

    src     folder of ID.webm files, at any depth
    labels  folder of the dataset's train.json, validation.json and labels.json; "": src
    Videos of the validation list get even numbers, the others odd ones, and every second number is for
    validation: the split is the dataset's own."""
    lists = {}
    for name in ("labels", "validation", "train"):
        paths = sorted(Path(labels or src).glob(f"*{name}.json"))
        if not paths:
            raise FileNotFoundError(f"{labels or src} has no {name}.json; pass its folder as --labels")
        lists[name] = read_json(paths[0])
    found = {path.stem: path.relative_to(src).as_posix() for path in Path(src).rglob("*.webm")}
    items = []
    for parity, split in enumerate(("validation", "train")):
        for k, row in enumerate(lists[split]):
            template = re.sub(r"[\[\]]", "", row["template"])
            if int(lists["labels"][template]) in STHSTH_CLASSES:
                items.append((2 * k + parity, found.get(row["id"], f"{Path(row['id']).name}.webm")))
    episodes = functools.partial(file_episodes, src=str(src), read=read_video, size=size)
    run_import(batch_jobs(items), episodes, out, "", size, min_frames, 2, workers, jpeg)
