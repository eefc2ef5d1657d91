"""envs/metaworld.py: tasks of Meta-World (paper section 4.3)."""

import numpy as np

from envs.base import require_actions
from envs.mujoco import before_mujoco, mujoco_renderer


class MetaWorld:
    """A task of Meta-World as the paper plays it (section 4.3): a world with PushWorld's interface, n = 1.

    Actions (1, 4) in [-1, 1], the hand's motion and grip, are held for two steps of the simulator. Reward:
    their two rewards, 0 to 10 each, + 10 where either is a success; an episode is done after `length` actions
    and goes on after a success. Where things lie in episode e depends on (seed, e) alone.
    raises  ImportError without the packages, ValueError at another task
    Source: Yu et al. 2019; the rewards are those of metaworld 3.0.0"""

    n, action_dim, action_repeat, bonus = 1, 4, 2, 10.0

    def __init__(self, task, size=64, seed=0, length=100):
        before_mujoco()
        try:
            from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE as simulators
            from metaworld.policies import ENV_POLICY_MAP
        except (ImportError, AttributeError) as error:  # the latter is PyOpenGL's, where a library is missing
            need = "pip install metaworld==3.0.0 mujoco==3.3.0 packaging; Debian: apt install libegl1 libgl1"
            raise ImportError(f"Meta-World needs {need} ({error})") from None
        if f"{task}-v3" not in ENV_POLICY_MAP:
            names = ", ".join(name.removesuffix("-v3") for name in ENV_POLICY_MAP)
            raise ValueError(f"task is {task!r}; expected push (PushWorld), push_red ... (RoboDesk), "
                             f"robosuite_push or, of Meta-World, {names}")
        self.size, self.seed, self.length, self.episode = size, seed, length, np.full(1, -1)
        self.simulator = simulators[f"{task}-v3-goal-observable"](seed=seed)
        self.simulator._freeze_rand_vec = False  # things lie elsewhere in every episode,
        self.simulator.seeded_rand_vec = True  # as the simulator's own generator has it
        self.simulator.model.vis.quality.shadowsize = 1024  # 4096 takes twice the time and shows the same
        self.policy = ENV_POLICY_MAP[f"{task}-v3"]()
        self.renderer = mujoco_renderer(self.simulator.model, size, size)

    def close(self):
        self.renderer.close()

    def render(self):
        """What the camera sees: frames_u8 (1, H, W, 3)."""
        self.renderer.update_scene(self.simulator.data, camera="corner")
        return self.renderer.render()[None, ::-1].copy()  # it hangs upside down

    def reset(self):
        """Begin the next episode; returns frames_u8 (1, H, W, 3)."""
        self.episode += 1
        self.simulator.np_random = np.random.default_rng([self.seed, self.episode[0]])
        self.simulator.reset()
        self.state, *_ = self.simulator.step(np.zeros(4, np.float32))  # as the authors do
        self.time = 0
        return self.render()

    def expert(self):
        """What the scripted player would do: actions (1, 4)."""
        return np.clip(self.policy.get_action(self.state), -1, 1)[None]

    def step(self, actions):
        """actions (1, 4), clipped -> frames_u8 (1,H,W,3), reward (1,), success (1,), done (1,)."""
        reward, success = 0.0, False
        require_actions(actions, (1, 4))
        for _ in range(self.action_repeat):
            self.state, got, _, _, known = self.simulator.step(np.clip(actions[0], -1, 1).astype(np.float32))
            reward, success = reward + got, success or known["success"] >= 1
        self.time += 1
        numbers = np.array([reward + self.bonus * success], np.float32), np.array([success])
        return self.render(), *numbers, np.array([self.time >= self.length])
