"""importers/recording.py: an episode as its reader finds it, and the checks that it must pass.

    file --a format's reader--> Recording --check--> frames_u8 (T,H,W,3), actions (T,A), rewards (T,)"""

import importlib
import json
from typing import NamedTuple

import numpy as np
import torch

from data import to_float, to_u8
from support.files import require_content


class Recording(NamedTuple):
    """An episode as it is in its source."""

    frames: np.ndarray  # (T, H, W, 3) integers
    actions: np.ndarray | None = None  # (T, A), or (T-1, A) without the last one, which leads to no frame
    rewards: np.ndarray | None = None  # (T,) on arriving at each frame, or (T-1,) of the actions
    action_rewards: np.ndarray | None = None  # or instead (T,) or (T-1,), all of the actions
    unused: tuple = ()  # names of what else the source holds


def area_resize(frames_u8, size):
    """Crop to the centre square and average over areas: (T,H,W,3) -> (T,size,size,3); size 0: unchanged.

    (Pillow's Image.BOX gives whole pixels equal weights: not the area's mean at ratios such as 96 / 64.)"""
    if not size:
        return frames_u8
    _, H, W, _ = frames_u8.shape
    side = min(H, W)
    top = (H - side) // 2
    left = (W - side) // 2
    square = frames_u8[:, top : top + side, left : left + side]
    if side == size:
        return square
    edges = np.arange(size + 1) * side / size  # of the new pixels, in old ones
    old = np.arange(side)
    overlap = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)  # (size, side)
    weights = torch.tensor(np.maximum(overlap, 0) * size / side, dtype=torch.float32)
    return to_u8(weights @ to_float(square) @ weights.T)


def stack_frames(frames, size=0):
    """Frames (H, W, 3), each resized as it comes, -> (T, H, W, 3)."""
    resized = [area_resize(frame[None], size) for frame in frames]
    if not resized:
        raise ValueError("it has no frames")
    return np.concatenate(resized)


def check(recording, size=0):
    """A Recording as EpisodeWriter.add takes it: frames_u8, actions and rewards of one length, or None.

    returns  these three, and the names of what is unused;  size  > 0 resizes
    raises   ValueError saying what does not fit"""
    frames, actions, rewards, action_rewards, unused = recording
    T = len(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype.kind not in "iu" or not frames.size:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}; expected integers (T, H, W, 3)")
    if frames.min() < 0 or frames.max() > 255:
        raise ValueError(f"frames reach from {frames.min()} to {frames.max()}; expected 0 to 255")
    if actions is not None:
        actions = actions[:, None] if actions.ndim == 1 else actions
        if actions.ndim != 2 or len(actions) not in (T, T - 1):
            raise ValueError(f"actions are {actions.shape}; expected finite ({T} or {T - 1}, A)")
        _require_finite("action", actions[: T - 1])
        if len(actions) < T or not np.isfinite(actions[-1]).all():
            last = actions[T - 2 : T - 1] if T > 1 else np.zeros((1, actions.shape[1]))
            actions = np.concatenate([actions[: T - 1], last])  # in the range of the others
    if action_rewards is not None:
        rewards = action_rewards.reshape(-1)
        if len(rewards) == T:  # the last action leads to no frame
            unused = (*unused, "a reward, not 0, of the last action") if rewards[-1] else unused
            rewards = rewards[:-1]
    if rewards is not None:
        rewards = rewards.reshape(-1)
        if len(rewards) not in (T, T - 1):
            raise ValueError(f"rewards are {rewards.shape}; expected finite ({T} or {T - 1},)")
        _require_finite("reward", rewards)
        if len(rewards) < T:
            rewards = np.concatenate([[0.0], rewards])
    return area_resize(frames.astype(np.uint8), size), actions, rewards, unused


def _require_finite(name, rows):
    for k, row in enumerate(rows):
        if not np.isfinite(row).all():
            raise ValueError(f"{name} {k} is not finite: {row}")


def scale_actions(actions, lengths, scale):
    """Bring actions (S, A) of episodes of these lengths to [-1, 1], in place.   returns  how, for meta.json

    scale  "extremes" or "percentiles" (1st, 99th): these become -1 and 1 if any action leaves [-1, 1];
           what lies beyond, or with "" whatever leaves [-1, 1], is clipped"""
    rows = actions.astype(np.float64)
    scaling = None
    if scale and rows.size and np.abs(rows).max() > 1:
        low = rows.min(0)
        high = rows.max(0)
        if scale == "percentiles":  # numbers that occur, so no mean with an outlier
            low = np.percentile(rows, 1, axis=0, method="higher")
            high = np.percentile(rows, 99, axis=0, method="lower")
        rows = 2 * (rows - low) / np.maximum(high - low, 1e-8) - 1
        scaling = dict(low=low.tolist(), high=high.tolist(), by=scale, episodes=len(lengths))
        ends = [", ".join(f"{x:.4g}" for x in end) for end in (low, high)]
        print(f"actions from ({ends[0]}) to ({ends[1]}), {scale} of {len(lengths)} episodes, become -1 to 1")
    actions[:] = np.clip(rows, -1, 1)
    last = np.cumsum(lengths) - 1  # actions that lead to no frame are not counted, and become 0
    actions[last] = 0
    changed = np.delete(np.abs(rows) > 1, last, axis=0)
    n_clipped = int(changed.sum())
    if n_clipped:
        print(f"clipped {n_clipped} of {changed.size} action values to [-1, 1]")
    return dict(action_scaling=scaling, clipped_action_values=n_clipped)


def optional(module, package):
    """Import a module that only some formats need.   raises  ImportError naming the package to install"""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"this format needs {package}: pip install {package} ({error})") from None


def reason_of(error):
    """An error as one line. (zlib, Pillow, PyAV, HDF5 and Arrow raise errors of their own on damage.)"""
    text = (str(error) or "no reason given").splitlines()[0]
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def read_json(path, parse=json.loads):
    """The content of a JSON file.   raises  ValueError naming an empty or damaged file"""
    require_content(path)
    try:
        return parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
