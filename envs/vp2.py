"""envs/vp2.py: tasks for plan.py as in the benchmark VP2 (Tian et al. 2023): a start, a picture of the goal.

    scripted player   --make_task-->        task i
    VP2's .hdf5 file  --read_goals-->       its tasks
    VP2's .pt file    --load_classifier-->  frames (M,3,64,64) -> logits of success (M,1)"""

from types import SimpleNamespace

import torch
from torch import nn

from importers.hdf5 import open_vp2, vp2_frames
from support.networks import load_torchscript

CLASSIFIER = "VP2's classifier of the task, or TorchScript: frames (M, 3, 64, 64) in [0, 1] -> logits (M, 1)"


def make_task(env, i, lead, settle=2):
    """Task i: to reach, within `lead` decisions, what the script's success (and `settle` more) looks like.

    returns  a namespace: start (for env.restore), goal_u8 (H,W,3), positions (for env.distance), frames_u8
             before the start, if the world has its own kind of tasks, else []
    raises   ValueError if the player does not succeed from far enough away"""
    if hasattr(env, "draw_task"):
        return env.draw_task(i, lead)
    for attempt in range(50):
        env.episode[:] = 50 * i + attempt - 1
        env.reset()
        states = []
        n_won = 0  # decisions since the first success
        done = False
        while not done and n_won <= settle:
            states.append(env.state())
            frames_u8, _, success, done = env.step(env.expert())
            n_won += int(n_won > 0 or success[0])
        if n_won and success[0] and len(states) >= lead:
            task = SimpleNamespace(start=states[-lead], goal_u8=frames_u8[0], frames_u8=[])
            task.positions = env.positions()
            env.restore(task.start)
            if env.distance(task.positions)[0] > 3 * env.tolerance:
                return task
    raise ValueError(f"the scripted player hardly ever succeeds from {lead} decisions away; lower --lead")


def read_goals(path, env):
    """The tasks (as of `make_task`) in a file of VP2's, which are states of RoboDesk or robosuite."""
    if not hasattr(env, "state_of_vp2"):
        raise ValueError("--goals is for RoboDesk's and robosuite's tasks")
    tasks = []
    file, names = open_vp2(path)
    env.reset()  # sets what the files leave out
    with file:
        for name in names:
            try:
                demo = file["data"][name]
                first = int(demo["start_index"][()]) if "start_index" in demo else 0
                start = env.state_of_vp2(demo["states"][first])
                end = env.state_of_vp2(demo["states"][-1])
                goal_u8 = vp2_frames(demo)[-1]
            except (OSError, KeyError, IndexError, ValueError) as error:
                raise ValueError(f"{path}, {name} is no task of VP2's: {error}") from None
            if goal_u8.shape != (env.size, env.size, 3):
                raise ValueError(f"{path}, {name}: goal is {goal_u8.shape}; expected {env.size} a side")
            env.restore(end)
            positions = env.positions()
            tasks.append(SimpleNamespace(start=start, goal_u8=goal_u8, positions=positions, frames_u8=[]))
    return tasks


class Residual(nn.Module):
    """Two convolutions beside the identity; VP2 calls them `cnv`."""

    def __init__(self):
        super().__init__()
        self.cnv = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1))

    def forward(self, x):
        return x + self.cnv(x)


def load_classifier(path, device):
    """Frames (M,3,64,64) in [0, 1] -> logits (M,1) of success: VP2's weights, or any network as TorchScript.

    raises  FileNotFoundError, ValueError.   Source: VP2's conv_predictor.py (architecture, tensor names)"""
    try:
        return load_torchscript(path, device, CLASSIFIER)
    except ValueError as error:
        not_torchscript = error
    layers = [nn.Conv2d(3, 32, 3, padding=1)]
    for _ in range(3):
        layers += [Residual(), nn.ReLU()]
    layers += [nn.Conv2d(32, 3, 3, padding=1), nn.Flatten(), nn.Linear(3 * 64 * 64, 1024), nn.ReLU()]
    network = nn.Module()
    network.net = nn.Sequential(*layers, nn.Linear(1024, 1))
    try:
        network.load_state_dict(torch.load(path, map_location=device, weights_only=True))
    except Exception:  # pickle, zip and torch each raise their own kinds on a file that is neither
        raise not_torchscript from None
    return network.net.to(device).eval()
