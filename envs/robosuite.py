"""envs/robosuite.py: VP2's pushing task on robosuite (paper section 4.2)."""

import numpy as np

from envs.base import foresee_in_turn, require_actions
from envs.mujoco import before_mujoco, mujoco_renderer


def push_center():
    """VP2's scene for robosuite: a Panda arm at a table with two boxes, a cylinder and a ball."""
    before_mujoco()
    try:
        import robosuite
        from robosuite.controllers import load_composite_controller_config
        from robosuite.environments.manipulation.manipulation_env import ManipulationEnv
        from robosuite.models.arenas import TableArena
        from robosuite.models.objects import BallObject, BoxObject, CylinderObject
        from robosuite.models.tasks import ManipulationTask
    except (ImportError, AttributeError) as error:
        need = "pip install robosuite==1.5.2 mujoco==3.3.0; Debian: apt install libegl1 libgl1"
        raise ImportError(f"robosuite needs {need} ({error})") from None
    robosuite.utils.log_utils.ROBOSUITE_DEFAULT_LOGGER.setLevel("ERROR")  # of arms that a Panda lacks
    slippery, rolling = (dict(density=1000, friction=(f, 0.005, 0.0001)) for f in (0.7, 0.5))

    class PushCenter(ManipulationEnv):
        def reward(self, action=None):
            return 0.0

        def _load_model(self):
            super()._load_model()
            robot, arena = self.robots[0].robot_model, TableArena((0.8, 0.8, 0.05), table_offset=(0, 0, 0.8))
            robot.set_base_xpos(robot.base_xpos_offset["table"](0.8))
            arena.set_origin([0, 0, 0])
            view = [0.67589, 0, 1.25127], [0.6326, 0.31594, 0.31594, 0.6326]
            arena.set_camera("agentview_shift_2", *view)
            self.things = (
                BoxObject("cube", [0.06] * 3, rgba=(0.8, 0.2, 0.2, 1), **slippery),
                BoxObject("small", [0.04] * 3, rgba=(0.2, 0.5, 0.8, 1), density=1000),
                CylinderObject("cylinder", [0.06] * 2, rgba=(0.2, 0.7, 0.3, 1), **slippery),
                BallObject("ball", [0.07], rgba=(0.8, 0.7, 0.2, 1), **rolling),
            )
            self.model = ManipulationTask(arena, [robot], self.things)

    controllers = load_composite_controller_config(controller="BASIC", robot="Panda")
    metre = dict(output_max=[0.05] * 3, output_min=[-0.05] * 3)
    controllers["body_parts"]["right"].update(type="OSC_POSITION", **metre)
    off = dict(use_camera_obs=False, has_renderer=False, has_offscreen_renderer=False, ignore_done=True)
    fixed = dict(initialization_noise=None, hard_reset=False)  # a hard reset spoils later pictures
    return PushCenter("Panda", controller_configs=controllers, control_freq=1, **off, **fixed)


class RobosuitePush:
    """VP2's pushing task on robosuite: PushWorld's interface, n = 1, and a second of the robot per action.

    Actions (1, 4) in [-1, 1]: motion of the hand (x, y, z; 0.05 m at 1), grip. The script pushes one thing,
    another in each episode, some 0.25 m away; success is when it has moved 0.08 m and nothing has fallen off
    the table. No rewards: 0. Where things lie in episode e depends on (seed, e) alone. `distance` is in m.
    raises  ImportError without the package
    Source: Zhu et al. 2020; VP2 (Tian et al. 2023), whose scene is drawn by another renderer"""

    n, action_dim, action_repeat, tolerance = 1, 4, 1, 0.05
    sizes = 0.06, 0.04, 0.06, 0.07  # half-heights of the things

    def __init__(self, size=64, seed=0, length=35):
        self.simulator = push_center()
        self.size, self.seed, self.length, self.episode = size, seed, length, np.full(1, -1)
        self.simulator.reset()
        import mujoco

        self.data = self.simulator.sim.data._data
        self.renderer = mujoco_renderer(self.simulator.sim.model._model, size, size, fast=True)
        self.look = mujoco.MjvOption()
        self.look.geomgroup[0] = 0  # bodies as physics knows them

    def close(self):
        self.renderer.close()
        self.simulator.close()

    def render(self):
        """What the camera sees: frames_u8 (1, H, W, 3)."""
        self.renderer.update_scene(self.data, "agentview_shift_2", self.look)
        return self.renderer.render()[None].copy()

    def reset(self):
        """Begin the next episode; returns frames_u8 (1, H, W, 3)."""
        self.episode += 1
        rng, apart = np.random.default_rng([self.seed, self.episode[0]]), 0
        while apart < 0.16:  # no two touch
            spots = rng.uniform((-0.1, -0.15), (0.3, 0.15), (4, 2))
            apart = (np.linalg.norm(spots[:, None] - spots, axis=-1) + np.eye(4)).min()
        self.simulator.reset()
        for thing, spot, size in zip(self.simulator.things, spots, self.sizes, strict=True):
            pose = *spot, 0.8 + size, 1, 0, 0, 0
            self.simulator.sim.data.set_joint_qpos(thing.joints[0], np.array(pose))
        self.simulator.sim.forward()
        self.pushed, end = rng.integers(4), 1
        while np.abs(end).max() > 0.3:  # not off the table
            angle = rng.uniform(-np.pi, np.pi)
            self.way = np.array([np.cos(angle), np.sin(angle)])
            end = spots[self.pushed] + 0.25 * self.way
        self.time, self.stage, self.first = 0, 0, self.places()
        return self.render()

    def state(self):
        """All that there is, for `restore`."""
        fingers = self.simulator.robots[0].gripper["right"].current_action.copy()
        own = self.time, self.stage, self.pushed, self.way, self.first
        return self.simulator.sim.get_state().flatten(), fingers, own

    def restore(self, state):
        """Go back to a state. Nothing is drawn."""
        flat, fingers, own = state
        self.time, self.stage, self.pushed, self.way, self.first = own
        robot = self.simulator.robots[0]
        robot.gripper["right"].current_action = fingers.copy()
        self.simulator.sim.set_state_from_flattened(flat)
        self.simulator.sim.forward()
        robot.composite_controller.update_state()
        robot.composite_controller.reset()

    def state_of_vp2(self, flat):
        """A state for `restore` from one of VP2's files (71,), whose joints are in the same order."""
        _, fingers, own = self.state()
        return np.asarray(flat, float), fingers, (0, 0, *own[2:])

    def places(self):
        """Where the four things are, for `distance`: (1, 4, 3), m."""
        things = self.simulator.things
        return np.stack([self.simulator.sim.data.get_joint_qpos(x.joints[0])[:3] for x in things])[None]

    def distance(self, places):
        """Of the thing that is farthest from its place, in m (1,)."""
        return np.linalg.norm(self.places() - places, axis=-1).max(1)

    foresee = foresee_in_turn

    def expert(self):
        """What the scripted player would do: down behind a thing, then push it some way: actions (1, 4)."""
        hand = self.data.site_xpos[self.simulator.robots[0].eef_site_id["right"]]
        at, low = self.places()[0, self.pushed], 0.84
        room = self.sizes[self.pushed] + 0.07
        behind = np.append(at[:2] - room * self.way, 1.05 if self.stage == 0 else low)
        self.stage = min(self.stage + (np.abs(behind - hand).max() < 0.03), 2)
        if self.stage == 2:
            behind = np.append(np.clip(at[:2], -0.3, 0.3), low)
        to = (behind - hand) / 0.05 * (self.distance(self.first) < 0.25)
        return np.append(to / max(1, np.abs(to).max()), 0)[None]

    def step(self, actions):
        """actions (1, 4), clipped -> frames_u8 (1,H,W,3), reward (1,), success (1,), done (1,)."""
        require_actions(actions, (1, 4))
        self.simulator.step(np.clip(actions[0], -1, 1))
        self.time += 1
        success = (self.distance(self.first) > 0.08) & (self.places()[..., 2].min(1) > 0.8)
        return self.render(), np.zeros(1, np.float32), success, np.array([self.time >= self.length])
