"""envs/vp2.py: files of the benchmark VP2 (Tian et al. 2023): tasks of its robots, and their classifiers.

    .hdf5  one demonstration per task --read_goals--> start, goal picture --> plan.py --goals
    .pt    network of one task --load_classifier--> frames (M,3,64,64) -> logits (M,1) --> plan.py --classifier"""

from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from files import load_torchscript
from importers import open_vp2, vp2_frames

CLASSIFIER = "VP2's classifier of the task, or TorchScript: frames (M, 3, 64, 64) in [0, 1] -> logits (M, 1)"


def read_goals(path, env):
    """The tasks in a file of VP2's, which are states of RoboDesk or robosuite.

    returns  a list of namespaces: start (for env.restore), goal_u8 (H,W,3), positions (for env.distance)
    raises   ImportError without h5py, FileNotFoundError, ValueError naming the damaged demonstration"""
    if not hasattr(env, "state_of_vp2"):
        raise ValueError("--goals is for RoboDesk's and robosuite's tasks")
    tasks = []
    expected = (env.size, env.size, 3)
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
            if goal_u8.shape != expected or goal_u8.dtype != np.uint8:
                got = f"{goal_u8.dtype} {goal_u8.shape}"
                raise ValueError(f"{path}, {name}: goal is {got}; expected uint8 {expected}")
            env.restore(end)
            tasks.append(SimpleNamespace(start=start, goal_u8=goal_u8, positions=env.positions()))
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
