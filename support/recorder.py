"""support/recorder.py: the steps of a dream as an episode or a GIF, each as the bytes of a file.

A step is frames_u8 (n_b, R, R, 3), action (A numbers) or None, rewards (n_b numbers) or None."""

import io

import imageio.v3 as iio
import numpy as np

from data import to_u8


def only(step, future):
    """A step with one of its futures alone."""
    frames_u8, action, rewards = step
    kept = slice(future, future + 1) if len(frames_u8) > 1 else slice(1)
    return frames_u8[kept], action, rewards and rewards[kept]


def frames_of(context, steps):
    """Context frames (t, 3, R, R) and the first future's of each step, as bytes (T, R, R, 3)."""
    return np.concatenate([to_u8(context), *(frames_u8[:1] for frames_u8, _, _ in steps)])


def episode(context, steps, action_dim, has_reward):
    """An .npz episode (importers/video.py): image (T, R, R, 3), action (T - 1, A), reward (T,)."""
    before = len(context)
    arrays = dict(image=frames_of(context, steps))
    if action_dim:
        rest = [[0.0] * action_dim] * (before - 1)
        arrays["action"] = np.array(rest + [action for _, action, _ in steps], np.float32)
    if has_reward:
        arrays["reward"] = np.array([0.0] * before + [rewards[0] for _, _, rewards in steps], np.float32)
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def gif(context, steps, fps=8):
    """A GIF, enlarged to 256 pixels or more."""
    frames_u8 = frames_of(context, steps)
    scale = -(-256 // frames_u8.shape[1])
    return iio.imwrite("<bytes>", frames_u8.repeat(scale, 1).repeat(scale, 2), extension=".gif",
                       duration=1000 / fps, loop=0)  # fmt: skip
