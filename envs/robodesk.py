"""envs/robodesk.py: tasks of RoboDesk, as VP2 plays them (paper section 4.2)."""

import numpy as np

from envs.base import World, foresee_in_turn
from envs.mujoco import mujoco_renderer, optional_import

CHANGING = ("qpos", "qvel", "ctrl", "act")  # arrays of the simulator that make up its state
PRESS = (0, 0, 0.12), (0, 0, -0.03)
DRAWER = (0, -0.1, 0.28), (0, 0.04, 0.1), (0, 0.04, -0.01), (0, -0.6, -0.02)

# Scripts: where MuJoCo has an object's position, its name, offsets (m) from it for the finger tip, in turn.
DESK = dict(
    push_red=("xpos", "red_button", PRESS),
    push_green=("xpos", "green_button", PRESS),
    push_blue=("xpos", "blue_button", PRESS),
    open_slide=("site_xpos", "slide_handle", ((-0.16, -0.1, 0.03), (-0.14, -0.02, 0), (0.5, 0, 0))),
    open_drawer=("geom_xpos", "drawer_handle", DRAWER),
    flat_block_off_table=("xpos", "flat_block", ((-0.13, 0, 0.15), (-0.13, 0, 0.02), (0.5, 0, 0.02))),
    upright_block_off_table=("xpos", "upright_block", ((-0.14, 0, 0.08), (-0.14, 0, -0.06), (0.5, 0, -0.06))),
)


class RoboDesk(World):
    """A task of RoboDesk as VP2 plays it: one world, and a second of the robot per action.

    Actions (1,5) in [-1, 1]: motion of the finger tip (x, y, z; 0.08 m at 1), turn of the wrist, opening of
    the fingers. Reward: RoboDesk's dense one, 0 to 1, + 1 while the task is done. `distance` is what is left
    to do, in the task's own unit; below 0 the task is done.

    Source: Kannan et al. 2021; VP2 (Tian et al. 2023): its seven tasks, camera and criteria"""

    action_dim = 5
    tolerance = 0.0

    def __init__(self, task="push_red", size=64, seed=0, length=35):
        with optional_import("RoboDesk", "robodesk==1.0.0 mujoco==3.3.0"):
            import absl.logging
            import mujoco
            from robodesk import RoboDesk as Desk
        super().__init__(size, seed, length)
        absl.logging.set_verbosity("error")  # no warnings of positions that the arm cannot reach
        self.task = task
        self.desk = Desk(task, action_repeat=50, episode_length=0)
        self.desk._get_obs = lambda: None  # RoboDesk's own drawing is slow
        self.physics = self.desk.physics
        self.renderer = mujoco_renderer(self.physics.model.ptr, 120, 120, fast=True)
        self.camera = mujoco.MjvCamera()
        self.camera.distance = 1.8
        self.camera.azimuth = 90
        self.camera.elevation = -60
        self.camera.lookat[:] = 0, 0.535, 1.1

    def _begin(self):
        global_state = np.random.get_state()
        seed = np.random.SeedSequence([self.seed, self.episode[0]])
        np.random.seed(seed.generate_state(4))  # RoboDesk draws from NumPy's global generator
        self.desk.original_pos = {}  # a new one: states of earlier episodes hold the old one
        self.desk.reset()
        np.random.set_state(global_state)
        for name, position in self.desk.original_pos.items():
            self.desk.original_pos[name] = position.copy()  # RoboDesk keeps views of what the physics changes
        self.stage = 0  # which of its offsets the script goes to

    def _move(self, actions):
        self.desk.step(actions[0].astype(float))
        success = self.distance() < 0
        return self.desk._get_task_reward(self.task, "dense_reward") + success, success

    def render(self):
        from PIL import Image  # imageio brings it

        self.renderer.update_scene(self.physics.data.ptr, self.camera)
        picture = Image.fromarray(self.renderer.render())
        box = (16.75, 25, 105, 88.75)  # VP2's crop: left, top, right, bottom
        return np.asarray(picture.resize((self.size, self.size), Image.Resampling.LANCZOS, box))[None]

    def expert(self):
        data = self.physics.named.data
        kind, name, offsets = DESK[self.task]
        to_object = getattr(data, kind)[name] - data.site_xpos["end_effector"]
        near = 0.045 if self.stage else 0.06
        if np.abs(to_object + offsets[self.stage]).max() < near and self.stage < len(offsets) - 1:
            self.stage += 1
        motion = np.clip((to_object + offsets[self.stage]) / 0.081, -1, 1)
        return np.append(motion, (0, -1))[None]

    def state(self):
        data = self.physics.data
        state = {name: getattr(data, name).copy() for name in CHANGING}
        return dict(state, time=self.time.copy(), stage=self.stage, original_pos=self.desk.original_pos)

    def restore(self, state):
        data = self.physics.data
        for name in CHANGING:
            getattr(data, name)[:] = state[name]
        self.time = state["time"].copy()
        self.stage = state["stage"]
        self.desk.original_pos = state["original_pos"]
        self.physics.forward()
        self.desk.physics_copy.data.qpos[:] = data.qpos

    def state_of_vp2(self, flat):
        """A state for `restore` from one of VP2's files (76,)."""
        arm, arm_speed, things, things_speed, _ = np.split(np.asarray(flat, float), (9, 18, 47, 73))
        qpos = np.concatenate([arm, things])
        qvel = np.concatenate([arm_speed, things_speed])
        return dict(self.state(), qpos=qpos, qvel=qvel, time=np.zeros(1, int), stage=0)

    def positions(self):
        return np.zeros(0)  # the goal of a task is the same in every episode

    def distance(self, positions=None):
        """What is left to do (1,), in the task's own unit: 0 where RoboDesk begins to call it done."""
        joints = self.physics.named.data.qpos
        if self.task == "open_slide":
            left = 0.55 - joints["slide_joint"][0]
        elif self.task == "open_drawer":
            left = 0.2 + joints["drawer_joint"][0]
        elif self.task.startswith("push"):
            left = joints[f"{self.task.removeprefix('push_')}_light"][0] + 0.00453
        else:
            block = self.task.removesuffix("_off_table")
            left = self.physics.named.data.xpos[block][2] - 0.6
        return np.array([left])

    foresee = foresee_in_turn
