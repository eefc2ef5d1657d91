"""importers/hdf5.py: HDF5 files of VP2 (robomimic's layout: many episodes in each) and of RoboNet.

    VP2's data/demo_0/{obs/CAMERA, actions, rewards} --read_vp2--> Recording
    RoboNet's {env/CAMERA_video, env/state, policy/actions} --read_robonet--> Recording with 5 actions

T frames.   Run: python prepare.py vp2 --src FOLDER --out data/vp2
     python prepare.py robonet --src hdf5 --out data/robonet --size 64"""

import functools
import io
from pathlib import Path

import numpy as np

from data import from_picture
from importers.engine import batch_jobs, file_episodes, find_files, run_import
from importers.recording import Recording, optional
from importers.video import video_frames
from support.files import require_content

VP2_CAMERAS = "camera_image", "agentview_shift_2_image"  # RoboDesk, robosuite


def open_vp2(path, mask=""):
    """VP2's HDF5 file, as h5py.File, and the names of its episodes in order; mask: of that list alone."""
    h5py = optional("h5py", "h5py")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}; expected one of VP2's .hdf5 files")
    try:
        require_content(path)
        file = h5py.File(path)
        names = sorted(file["data"], key=lambda name: (len(name), name))  # demo_2 before demo_10
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no file of VP2's: {error}") from None
    if mask:
        if f"mask/{mask}" not in file:
            raise ValueError(f"{path} has no mask/{mask}; leave --mask out")
        listed = {name.decode() for name in file[f"mask/{mask}"]}
        names = [name for name in names if name in listed]
    return file, names


def vp2_frames(demo):
    """The camera's pictures of an episode in such a file, not read yet."""
    for name in VP2_CAMERAS:
        if name in demo.get("obs", ()):
            return demo["obs"][name]
    raise ValueError(f"it holds none of obs/{', obs/'.join(VP2_CAMERAS)}")


def read_vp2(demo):
    """An episode of a file of VP2's as a Recording."""
    frames = vp2_frames(demo)
    actions = demo["actions"][()]
    n_samples = demo.attrs.get("num_samples", len(actions))
    if n_samples != len(actions):
        raise ValueError(f"it has {len(actions)} actions, its num_samples is {n_samples}")
    rewards = demo["rewards"][()] if "rewards" in demo else None
    unused = [f"obs/{key}" for key in demo["obs"] if not frames.name.endswith(f"/{key}")]
    unused += [key for key in demo if key not in ("obs", "actions", "rewards")]
    return Recording(frames[()], actions, action_rewards=rewards, unused=tuple(unused))


def vp2_episodes(name, first, start, stop, src, mask):
    """Episodes start to stop-1 of a file; the first of the file has the number `first`."""
    file, demos = open_vp2(Path(src) / name, mask)
    with file:
        for k in range(start, min(stop, len(demos))):
            yield first + k, f"{name}/{demos[k]}", functools.partial(read_vp2, file["data"][demos[k]])


def import_vp2(src="", out="data/vp2", mask="", size=0, min_frames=12, val_every=20, workers=0, jpeg=0):
    """Import the episodes of VP2's HDF5 files; mask: train or valid, the episodes of that list alone."""
    jobs = []
    first = 0
    for name in find_files(src, (".hdf5", ".h5")):
        try:
            file, demos = open_vp2(Path(src) / name, mask)
            file.close()
        except ValueError:
            demos = [""]  # its job reports the reason
        for start in range(0, len(demos), 50):
            jobs.append((name, first, start, start + 50))
        first += len(demos)
    episodes = functools.partial(vp2_episodes, src=str(src), mask=mask)
    run_import(jobs, episodes, out, "vp2", size, min_frames, val_every, workers, jpeg)


def _robonet_frames(video, encoding):
    """All frames of a camera, which are an mp4 or a JPEG each: (T, H, W, 3)."""
    is_mp4 = encoding == "mp4"
    attributes = video["frames" if is_mp4 else "frame0"].attrs
    if is_mp4:
        frames = list(video_frames(io.BytesIO(video["frames"][()].tobytes())))
        if len(frames) != attributes["T"]:
            raise ValueError(f"its video has {len(frames)} of {attributes['T']} frames")
    else:
        frames = [from_picture(video[f"frame{t}"][()].tobytes()) for t in range(len(video))]
    # the official loader reads JPEG with cv2, which swaps the colours that image_format then speaks of
    is_swapped = (attributes["image_format"] == "BGR") == is_mp4
    return np.stack(frames)[..., :: -1 if is_swapped else 1]


def read_robonet(path, camera):
    """A file of RoboNet's: frames (T, H, W, 3), actions (T-1, 5).   Source: RoboNet's hdf5_loader.py"""
    h5py = optional("h5py", "h5py")
    require_content(path)
    with h5py.File(path) as file:
        env = file["env"]
        if f"{camera}_video" not in env:
            cameras = [name.removesuffix("_video") for name in env if name.endswith("_video")]
            raise ValueError(f"no camera {camera!r}; --camera takes one of {', '.join(cameras)}")
        frames = _robonet_frames(env[f"{camera}_video"], env.attrs["cam_encoding"])
        states = env["state"][()]
        actions = file["policy/actions"][()]
        used = f"{camera}_video", "state", "low_bound", "high_bound"
        unused = [f"env/{name}" for name in env if name not in used]
        if actions.shape[1] == 4 and file["metadata"].attrs.get("primitives") == "autograsp":
            low = env["low_bound"][0][-1]  # this gripper closed by itself, by a rule
            high = env["high_bound"][0][-1]
            grip = np.where(states[1:, -1:] > (low + high) / 2, high, low)
            actions = np.concatenate([actions[: len(grip)], grip[: len(actions)]], 1)
    T = min(len(frames), len(states), len(actions) + 1)  # the official loader's rule
    actions = np.pad(actions, ((0, 0), (0, 5)))[: T - 1, :5]
    return Recording(frames[:T], actions, unused=tuple(unused))


def import_robonet(src="", out="data/robonet", camera="cam0", size=64, min_frames=12, val_every=100,
                   exclude="", workers=0, jpeg=0):
    """Import RoboNet's HDF5 files, with actions of 5 numbers; their order by name numbers the episodes.

    camera  cam0 and so on, as many as the robot has"""
    jobs = batch_jobs(list(enumerate(find_files(src, (".hdf5",)))))
    episodes = functools.partial(file_episodes, src=str(src), read=read_robonet, camera=camera)
    run_import(jobs, episodes, out, camera, size, min_frames, val_every, workers, jpeg, exclude)
