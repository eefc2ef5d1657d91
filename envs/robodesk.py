"""envs/robodesk.py: tasks of RoboDesk, as VP2 plays them (paper section 4.2)."""

import numpy as np

from envs.base import foresee_in_turn, require_actions
from envs.mujoco import before_mujoco, mujoco_renderer

# The desk's tasks: what the script goes for, and where its finger goes, one offset (m) after another.
DESK = {
    **{f"push_{hue}": (f"{hue}_button", ((0, 0, 0.12), (0, 0, -0.03))) for hue in ("red", "green", "blue")},
    "open_slide": ("slide_handle", ((-0.16, -0.1, 0.03), (-0.14, -0.02, 0), (0.5, 0, 0))),
    "open_drawer": ("drawer_handle", ((0, -0.1, 0.28), (0, 0.04, 0.1), (0, 0.04, -0.01), (0, -0.6, -0.02))),
    "flat_block_off_table": ("flat_block", ((-0.13, 0, 0.15), (-0.13, 0, 0.02), (0.5, 0, 0.02))),
    "upright_block_off_table": ("upright_block", ((-0.14, 0, 0.08), (-0.14, 0, -0.06), (0.5, 0, -0.06))),
}


class RoboDesk:
    """A task of RoboDesk as VP2 plays it: PushWorld's interface, n = 1, and a second of the robot per action.

    Actions (1, 5) in [-1, 1]: motion of the finger tip (x, y, z; 0.08 m at 1), turn of the wrist, opening of
    the fingers. Reward: RoboDesk's dense one, 0 to 1, + 1 while the task is done; an episode is done after
    `length` actions. Where things lie in episode e depends on (seed, e) alone. `distance` is what is left to
    do, in the task's own unit: below 0 it is done.
    raises  ImportError without the package, ValueError at another task
    Source: Kannan et al. 2021; VP2 (Tian et al. 2023): its seven tasks, camera and criteria"""

    n, action_dim, action_repeat, tolerance = 1, 5, 1, 0.0

    def __init__(self, task="push_red", size=64, seed=0, length=35):
        before_mujoco()
        try:
            import absl.logging
            import mujoco
            from robodesk import RoboDesk as Desk
        except (ImportError, AttributeError) as error:
            need = "pip install robodesk==1.0.0 mujoco==3.3.0; Debian: apt install libegl1 libgl1"
            raise ImportError(f"RoboDesk needs {need} ({error})") from None
        absl.logging.set_verbosity("error")  # of an arm that cannot reach where it is told to go
        self.task, self.size, self.seed, self.length, self.episode = task, size, seed, length, np.full(1, -1)
        self.desk = Desk(task, action_repeat=50, episode_length=0)
        self.desk._get_obs = lambda: None  # which would draw in its own, slow way
        self.physics = self.desk.physics
        self.renderer = mujoco_renderer(self.physics.model.ptr, 120, 120, fast=True)
        self.camera = mujoco.MjvCamera()
        self.camera.distance, self.camera.azimuth, self.camera.elevation = 1.8, 90, -60
        self.camera.lookat[:] = 0, 0.535, 1.1

    def close(self):
        self.renderer.close()

    def render(self):
        """What the camera sees: frames_u8 (1, H, W, 3)."""
        from PIL import Image  # imageio brings it

        self.renderer.update_scene(self.physics.data.ptr, self.camera)
        picture = Image.fromarray(self.renderer.render())
        side = self.size, self.size
        return np.asarray(picture.resize(side, Image.Resampling.LANCZOS, (16.75, 25, 105, 88.75)))[None]

    def reset(self):
        """Begin the next episode; returns frames_u8 (1, H, W, 3)."""
        self.episode += 1
        others, seed = np.random.get_state(), np.random.SeedSequence([self.seed, self.episode[0]])
        np.random.seed(seed.generate_state(4))  # the desk draws from there
        self.desk.reset()
        np.random.set_state(others)
        self.desk.original_pos = {k: v.copy() for k, v in self.desk.original_pos.items()}  # they were views
        self.time, self.stage = 0, 0
        return self.render()

    def state(self):
        """All that there is, for `restore`."""
        data, own = self.physics.data, (self.time, self.stage, self.desk.original_pos)
        return data.qpos.copy(), data.qvel.copy(), data.ctrl.copy(), data.act.copy(), own

    def restore(self, state):
        """Go back to a state. Nothing is drawn."""
        data = self.physics.data
        data.qpos[:], data.qvel[:], data.ctrl[:], data.act[:], own = state
        self.time, self.stage, self.desk.original_pos = own
        self.physics.forward()
        self.desk.physics_copy.data.qpos[:] = data.qpos

    def state_of_vp2(self, flat):
        """A state for `restore` from one of VP2's files (76,): arm, its speed, things, their speed, hand."""
        parts = np.split(np.asarray(flat, float), (9, 18, 47, 73))
        _, _, ctrl, act, (*_, first) = self.state()
        return np.concatenate(parts[0:3:2]), np.concatenate(parts[1:4:2]), ctrl, act, (0, 0, first)

    def places(self):
        """Nothing: a task of the desk is the same in every episode."""
        return np.zeros(0)

    def distance(self, places=None):
        """What is left to do (1,), 0 when it is just done."""
        q, where = self.physics.named.data.qpos, self.physics.named.data.xpos
        left = dict(open_slide=0.55 - q["slide_joint"][0], open_drawer=0.2 + q["drawer_joint"][0])
        if self.task.startswith("push"):
            return q[f"{self.task[5:]}_light"] + 0.00453
        block = self.task.removesuffix("_off_table")
        return np.array([left[self.task] if self.task in left else where[block][2] - 0.6])

    foresee = foresee_in_turn

    def expert(self):
        """What the scripted player would do: actions (1, 5)."""
        named, (name, way) = self.physics.named, DESK[self.task]
        kind = dict(slide_handle="site_xpos", drawer_handle="geom_xpos").get(name, "xpos")
        to = getattr(named.data, kind)[name] - named.data.site_xpos["end_effector"]
        near = np.abs(to + way[self.stage]).max() < (0.045 if self.stage else 0.06)
        self.stage = min(self.stage + near, len(way) - 1)
        return np.append(np.clip((to + way[self.stage]) / 0.081, -1, 1), (0, -1))[None]

    def step(self, actions):
        """actions (1, 5), clipped -> frames_u8 (1,H,W,3), reward (1,), success (1,), done (1,)."""
        require_actions(actions, (1, 5))
        self.desk.step(np.clip(actions[0], -1, 1).astype(float))
        self.time += 1
        success = self.distance() < 0
        reward = self.desk._get_task_reward(self.task, "dense_reward") + success
        return self.render(), reward.astype(np.float32), success, np.array([self.time >= self.length])
