"""envs/metaworld.py: tasks of Meta-World (paper section 4.3)."""

import numpy as np

from envs.base import World
from envs.mujoco import mujoco_renderer, optional_import

PACKAGES = "metaworld==3.0.0 mujoco==3.3.0 packaging"


def metaworld_tasks():
    """Names of Meta-World's tasks, such as "plate-slide".   raises  ImportError without the package"""
    with optional_import("Meta-World", PACKAGES):
        from metaworld.policies import ENV_POLICY_MAP
    return [name.removesuffix("-v3") for name in ENV_POLICY_MAP]


class MetaWorld(World):
    """A task of Meta-World as the paper plays it (section 4.3): one world, which cannot be restored.

    Actions (1,4) in [-1, 1], the hand's motion and grip, are held for two steps of the simulator. Reward: the
    sum of their two rewards, 0 to 10 each, + 10 if either is a success. An episode is done after `length`
    actions and goes on after a success.

    Source: Yu et al. 2019; the rewards are those of metaworld 3.0.0"""

    action_dim = 4
    action_repeat = 2
    bonus = 10.0  # for a success

    def __init__(self, task, size=64, seed=0, length=100):
        with optional_import("Meta-World", PACKAGES):
            from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE as simulators
            from metaworld.policies import ENV_POLICY_MAP
        super().__init__(size, seed, length)
        self.simulator = simulators[f"{task}-v3-goal-observable"](seed=seed)
        self.simulator._freeze_rand_vec = False  # draw new positions in every episode,
        self.simulator.seeded_rand_vec = True  # from the simulator's own generator
        self.simulator.model.vis.quality.shadowsize = 1024  # 4096 takes twice the time and looks the same
        self.policy = ENV_POLICY_MAP[f"{task}-v3"]()
        self.renderer = mujoco_renderer(self.simulator.model, size, size)

    def _begin(self):
        self.simulator.np_random = np.random.default_rng([self.seed, self.episode[0]])
        self.simulator.reset()
        self.observation, *_ = self.simulator.step(np.zeros(4, np.float32))  # as the authors do

    def _move(self, actions):
        action = actions[0].astype(np.float32)
        total = 0.0
        success = False
        for _ in range(self.action_repeat):
            self.observation, reward, _, _, info = self.simulator.step(action)
            total = total + reward
            success = success or info["success"] >= 1
        return np.array([total + self.bonus * success]), np.array([success])

    def render(self):
        self.renderer.update_scene(self.simulator.data, camera="corner")
        return self.renderer.render()[None, ::-1].copy()  # this camera is mounted upside down

    def expert(self):
        return np.clip(self.policy.get_action(self.observation), -1, 1)[None]
