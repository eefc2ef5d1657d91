"""support/recorder.py: the steps of a dream as an episode or a GIF, each as the bytes of a file.

A step is frames_u8 (n_b, R, R, 3), the action (A numbers) that led to them or None, rewards (n_b numbers) or
None; the frames that a dream begins with are steps, too."""

import io

import imageio.v3 as iio
import numpy as np

from data import to_u8


def context_steps(frames, actions, rewards, action_dim):
    """Frames (1, t, 3, R, R), actions (1, t, A), rewards (1, t), or None where they are zeros -> t steps."""
    steps = []
    for k, frame_u8 in enumerate(to_u8(frames[0])):
        action = [0.0] * action_dim
        if k and actions is not None and actions.shape[-1] == action_dim:
            action = actions[0, k - 1].tolist()
        reward = 0.0 if rewards is None else rewards[0, k].item()
        steps.append((frame_u8[None], action, [reward]))
    return steps


def only(step, future):
    """A step with one of its futures alone."""
    frames_u8, action, rewards = step
    if len(frames_u8) == 1:
        return step
    one = slice(future, future + 1)
    return frames_u8[one].copy(), action, None if rewards is None else rewards[one]


def episode(steps, action_dim, has_reward):
    """The first futures as an .npz episode: image (T, R, R, 3), action (T - 1, A), reward (T,)."""
    arrays = dict(image=np.concatenate([frames_u8[:1] for frames_u8, _, _ in steps]))
    if action_dim:
        arrays["action"] = np.array([action for _, action, _ in steps[1:]], np.float32)
    if has_reward:
        arrays["reward"] = np.array([rewards[0] for _, _, rewards in steps], np.float32)
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def gif(steps, fps=8):
    """The first futures as a GIF of 256 pixels or more. A frame like the one before only makes that last."""
    frames_u8 = np.concatenate([frames_u8[:1] for frames_u8, _, _ in steps])
    scale = -(-256 // frames_u8.shape[1])
    frames_u8 = frames_u8.repeat(scale, 1).repeat(scale, 2)
    return iio.imwrite("<bytes>", frames_u8, extension=".gif", duration=1000 / fps, loop=0)
