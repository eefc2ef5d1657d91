"""support/segments.py: real frames and actions for a WorldModel to start from and to be compared with."""

import numpy as np
import torch

from data import goal_first, to_float
from envs.push import push_segments
from envs.pusht import pusht_segments
from importers import load_episode
from mixture import open_data

FRESH = dict(push=push_segments, pusht=pusht_segments)  # worlds that make new segments


def segments_for(model, data, n, horizon, seed):
    """n segments of t + horizon frames, strided as in training: new ones of a world in FRESH, or from the
    validation split of a folder.

    seed  of random starts in their episodes; None: from frame 0, but for new ones"""
    T = model.context_frames + horizon - model.goal_conditioned
    data = data or model.trained["data"]
    if not data:
        raise ValueError("the checkpoint does not say what it was trained on; pass --data or --episode")
    if data in FRESH:
        batch = FRESH[data](n, T, seed or 0, model.tokenizer.config["resolution"])
    else:
        episodes = open_data(data, "val")
        if n > episodes.n_episodes:
            print(f"{n} segments of {episodes.n_episodes} episodes: some show the same episode")
        batch = episodes.segments(n, T, model.trained["stride"], seed, model.trained["action_agg"])
    return goal_first(batch) if model.goal_conditioned else batch


def spans_of(model, data):
    """The least and the greatest action (A, 2) in 64 segments of the data; -1 and 1 without such data."""
    A = model.action_dim
    if A and data not in FRESH:
        trained = model.trained
        T = model.context_frames + 1
        segments = open_data(data, "val").segments(64, T, trained["stride"], 0, trained["action_agg"])
        if segments["actions"].shape[-1] == A:
            actions = segments["actions"].flatten(0, 1)
            return torch.stack([actions.amin(0), actions.amax(0)], 1).tolist()
    return [[-1.0, 1.0]] * A


def read_episode(cfg, model):
    """The file cfg.episode as a batch of one segment."""
    t = model.context_frames
    stride = model.trained["stride"]
    if model.goal_conditioned:
        raise ValueError("a goal-conditioned model takes segments, whose last frame is the goal; use --data")
    frames_u8, actions = load_episode(cfg.episode, cfg.key, model.tokenizer.config["resolution"])
    frames_u8 = frames_u8[::stride]
    if len(frames_u8) < t:
        raise ValueError(f"{cfg.episode} has {len(frames_u8)} frames; expected {t} for the context")
    if actions is not None:
        if model.trained["action_agg"] == "sum":
            actions = np.add.reduceat(actions, range(0, len(actions), stride))
        elif model.trained["action_agg"] == "concat":
            rows = -(-len(actions) // stride)
            missing = rows * stride - len(actions)
            actions = np.pad(actions, ((0, missing), (0, 0))).reshape(rows, -1)
        else:
            actions = actions[::stride]
        actions = torch.from_numpy(actions)[None]
    return dict(frames=to_float(frames_u8)[None], actions=actions)


def find_segments(cfg, model):
    """Frames (B, T, 3, H, W) and actions (B, T, A) or None to start from."""
    if cfg.episode:
        batch = read_episode(cfg, model)
    else:
        batch = segments_for(model, cfg.data, cfg.n, cfg.horizon, cfg.seed)
    frames = batch["frames"][:, : model.context_frames + cfg.horizon]
    A = model.action_dim
    if not A:
        return frames, None
    actions = batch["actions"]
    if actions is None or actions.shape[-1] != A:
        got = "none" if actions is None else f"{actions.shape[-1]}-D"
        raise ValueError(f"the model takes {A}-D actions, {cfg.episode or cfg.data or 'its data'} has {got}")
    return frames, actions
