"""envs/robosuite.py: VP2's pushing task on robosuite (paper section 4.2)."""

import numpy as np

from envs.base import World, foresee_in_turn
from envs.mujoco import mujoco_renderer, optional_import

SCRIPT = "stage", "thing", "direction", "first_positions"  # attributes of an episode's script


def push_center():
    """VP2's scene for robosuite: a Panda arm at a table with two boxes, a cylinder and a ball."""
    with optional_import("robosuite", "robosuite==1.5.2 mujoco==3.3.0"):
        import robosuite
        from robosuite.controllers import load_composite_controller_config
        from robosuite.environments.manipulation.manipulation_env import ManipulationEnv
        from robosuite.models.arenas import TableArena
        from robosuite.models.objects import BallObject, BoxObject, CylinderObject
        from robosuite.models.tasks import ManipulationTask
    robosuite.utils.log_utils.ROBOSUITE_DEFAULT_LOGGER.setLevel("ERROR")  # no warnings of parts a Panda lacks
    slippery = dict(density=1000, friction=(0.7, 0.005, 0.0001))
    rolling = dict(density=1000, friction=(0.5, 0.005, 0.0001))

    class PushCenter(ManipulationEnv):
        def reward(self, action=None):
            return 0.0

        def _load_model(self):
            super()._load_model()
            robot = self.robots[0].robot_model
            robot.set_base_xpos(robot.base_xpos_offset["table"](0.8))
            arena = TableArena((0.8, 0.8, 0.05), table_offset=(0, 0, 0.8))
            arena.set_origin([0, 0, 0])
            arena.set_camera("agentview_shift_2", [0.67589, 0, 1.25127], [0.6326, 0.31594, 0.31594, 0.6326])
            self.things = (
                BoxObject("cube", [0.06] * 3, rgba=(0.8, 0.2, 0.2, 1), **slippery),
                BoxObject("small", [0.04] * 3, rgba=(0.2, 0.5, 0.8, 1), density=1000),
                CylinderObject("cylinder", [0.06] * 2, rgba=(0.2, 0.7, 0.3, 1), **slippery),
                BallObject("ball", [0.07], rgba=(0.8, 0.7, 0.2, 1), **rolling),
            )
            self.model = ManipulationTask(arena, [robot], self.things)

    controllers = load_composite_controller_config(controller="BASIC", robot="Panda")
    motion = dict(type="OSC_POSITION", output_max=[0.05] * 3, output_min=[-0.05] * 3)  # m
    controllers["body_parts"]["right"].update(motion)
    off = dict(use_camera_obs=False, has_renderer=False, has_offscreen_renderer=False)
    # one action a second; a hard reset spoils later pictures
    how = dict(control_freq=1, ignore_done=True, initialization_noise=None, hard_reset=False)
    return PushCenter("Panda", controller_configs=controllers, **off, **how)


class RobosuitePush(World):
    """VP2's pushing task on robosuite: one world, and a second of the robot per action.

    Actions (1,4) in [-1, 1]: motion of the hand (x, y, z; 0.05 m at 1), grip. The script pushes one thing,
    drawn for each episode, some 0.25 m in a drawn direction. Success: it has moved 0.08 m and nothing has
    fallen off the table. All rewards are 0. `distance` is in m.

    Source: Zhu et al. 2020; VP2 (Tian et al. 2023), whose scene is drawn by another renderer"""

    action_dim = 4
    tolerance = 0.05
    sizes = 0.06, 0.04, 0.06, 0.07  # half-heights of the things, m

    def __init__(self, size=64, seed=0, length=35):
        self.simulator = push_center()
        import mujoco  # only after push_center has told which packages are missing

        super().__init__(size, seed, length)
        self.simulator.reset()
        self.data = self.simulator.sim.data._data
        self.renderer = mujoco_renderer(self.simulator.sim.model._model, size, size, fast=True)
        self.options = mujoco.MjvOption()
        self.options.geomgroup[0] = 0  # do not draw collision shapes

    def _begin(self):
        rng = np.random.default_rng([self.seed, self.episode[0]])
        apart = 0
        while apart < 0.16:  # until no two things touch
            spots = rng.uniform((-0.1, -0.15), (0.3, 0.15), (4, 2))
            apart = (np.linalg.norm(spots[:, None] - spots, axis=-1) + np.eye(4)).min()
        self.simulator.reset()
        for thing, spot, size in zip(self.simulator.things, spots, self.sizes, strict=True):
            pose = np.array((*spot, 0.8 + size, 1, 0, 0, 0))  # position, quaternion
            self.simulator.sim.data.set_joint_qpos(thing.joints[0], pose)
        self.simulator.sim.forward()
        self.thing = rng.integers(4)  # which one the script pushes
        end = 1
        while np.abs(end).max() > 0.3:  # until it stays on the table
            angle = rng.uniform(-np.pi, np.pi)
            self.direction = np.array([np.cos(angle), np.sin(angle)])
            end = spots[self.thing] + 0.25 * self.direction
        self.stage = 0  # of the script: 0 above the table, 1 down behind the thing, 2 pushing
        self.first_positions = self.positions()

    def _move(self, actions):
        self.simulator.step(actions[0])
        on_table = self.positions()[..., 2].min(1) > 0.8
        return np.zeros(1), (self.distance(self.first_positions) > 0.08) & on_table

    def render(self):
        self.renderer.update_scene(self.data, "agentview_shift_2", self.options)
        return self.renderer.render()[None].copy()

    def expert(self):
        hand = self.data.site_xpos[self.simulator.robots[0].eef_site_id["right"]]
        position = self.positions()[0, self.thing, :2]
        behind = position - (self.sizes[self.thing] + 0.07) * self.direction
        aim = np.append(behind, 1.05 if self.stage == 0 else 0.84)
        if np.abs(aim - hand).max() < 0.03:
            self.stage = min(self.stage + 1, 2)
        if self.stage == 2:
            aim = np.append(np.clip(position, -0.3, 0.3), 0.84)
        motion = (aim - hand) / 0.05 * (self.distance(self.first_positions) < 0.25)
        return np.append(motion / max(1, np.abs(motion).max()), 0)[None]

    def close(self):
        super().close()
        self.simulator.close()

    def state(self):
        state = {name: getattr(self, name) for name in SCRIPT}
        fingers = self.simulator.robots[0].gripper["right"].current_action.copy()
        flat = self.simulator.sim.get_state().flatten()
        return dict(state, time=self.time.copy(), fingers=fingers, simulator=flat)

    def restore(self, state):
        self.time = state["time"].copy()
        for name in SCRIPT:
            setattr(self, name, state[name])
        robot = self.simulator.robots[0]
        robot.gripper["right"].current_action = state["fingers"].copy()
        self.simulator.sim.set_state_from_flattened(state["simulator"])
        self.simulator.sim.forward()
        robot.composite_controller.update_state()
        robot.composite_controller.reset()

    def state_of_vp2(self, flat):
        """A state for `restore` from one of VP2's files (71,), which is the simulator's."""
        return dict(self.state(), simulator=np.asarray(flat, float), time=np.zeros(1, int), stage=0)

    def positions(self):
        things = self.simulator.things
        return np.stack([self.simulator.sim.data.get_joint_qpos(x.joints[0])[:3] for x in things])[None]

    def distance(self, positions):
        """How far the thing is that is farthest from its position in `positions`, m (1,)."""
        return np.linalg.norm(self.positions() - positions, axis=-1).max(1)

    foresee = foresee_in_turn
