"""envs/push.py: PushWorld, the built-in world: physics, drawing, a scripted player, fresh episodes.

All lengths are in table sides: the table is [0,1] x [0,1], y down.   Run: python prepare.py push"""

import copy

import numpy as np
import torch

from data import floats
from envs.base import HELD_OUT, World, foresee_at_once, random_policy

# Grippers: colours of a disc and of the mark on it; half-side and rounding of the mark, in radii of the disc.
ROBOTS = dict(
    red=((230, 20, 20), (255, 255, 255), 0, 1 / 2),
    cyan=((0, 190, 200), (30, 10, 60), 3 / 8, 1 / 8),
)


def contact(offset, core, radius):
    """How deep a point lies inside a square with half-side `core` grown by `radius`, and the way out.

    offset (...,2) of the point from the square's centre, core (...);  returns depth (...), normal (...,2)"""
    outside = np.abs(offset) - core[..., None]  # of the square, along each axis; negative inside
    largest = outside.max(-1)
    is_nearest_face = outside == largest[..., None]
    way = np.where(largest[..., None] <= 0, is_nearest_face, np.maximum(outside, 0))
    norm = np.sqrt((way**2).sum(-1))
    distance = np.where(largest <= 0, largest, norm)
    normal = way / norm[..., None] * np.where(offset < 0, -1, 1)
    return radius - distance, normal


class PushWorld(World):
    """n worlds at once: a gripper (disc) pushes two blocks on a table; block 0 belongs on the pad of its hue.

    Actions in [-1, 1] are the gripper's velocity (x, y). Blocks slide without turning, glide on a little, and
    stop at walls; a jammed block stops the gripper. An episode is done after `length` actions.
    Reward: -|block 0 - target| - 0.25 |gripper - block 0|, + 1 while block 0 is on its target.

    scene     >= 0: colours, light and sizes of this number in all episodes, whose positions hardly differ
              -1: each episode has its own
    anywhere  the target is not the pad but some other place, which cannot be seen"""

    action_dim = 2
    grip_radius = 5.75 / 64
    corner = 3 / 64  # radius of a block's corners
    speed = 3.5 / 64  # of the gripper, per step at action 1
    substeps = 3  # per step; each moves less than a body's radius, so nothing tunnels
    relax = 4  # rounds of `_separate`
    friction = 0.7  # share of its motion that a block loses per step
    tolerance = 0.07
    spread = 0.04  # of positions in a scene

    def __init__(self, n=1, size=64, seed=0, length=60, robot="red", scene=-1, anywhere=False):
        if n < 1 or size < 32 or seed < 0 or length < 1:
            raise ValueError(f"n, size, seed, length are {n, size, seed, length}; the least is 1, 32, 0, 1")
        if robot not in ROBOTS:
            raise ValueError(f"robot is {robot!r}; expected one of {', '.join(ROBOTS)}")
        super().__init__(size, seed, length, n)
        self.robot = ROBOTS[robot]
        self.scene = scene
        self.anywhere = anywhere
        self.grip, self.target = np.zeros((2, n, 2))
        self.blocks, self.glide = np.zeros((2, n, 2, 2))  # blocks and their own motion: (world, block, xy)
        self.half = np.zeros((n, 2))  # half-side of each block
        self.colours = np.zeros((n, 2, 3), np.float32)  # of the blocks
        self.background = np.zeros((n, size, size, 3), np.float32)
        self.reset()

    def _begin(self):
        self.glide[:] = 0
        for i in range(self.n):
            rng = np.random.default_rng([self.seed, i, self.episode[i]])
            scene_rng = rng if self.scene < 0 else np.random.default_rng(self.scene)
            self.half[i] = scene_rng.uniform(5.5, 7, 2) / 64
            margin = np.array([0.13, 0.28, 0.13, 0.2])[:, None]  # of gripper, block 0, block 1, target
            positions = self._draw_positions(i, scene_rng, 0, margin, 1 - margin)
            if self.scene >= 0:
                positions = self._draw_positions(i, rng, positions, -self.spread, self.spread)
            self.grip[i], self.blocks[i, 0], self.blocks[i, 1], self.target[i] = positions
            self._paint(i, scene_rng)
            if self.anywhere:
                self.target[i] = rng.uniform(0.2, 0.8, 2)

    def _draw_positions(self, i, rng, centre, low, high):
        """Draw (gripper, block 0, block 1, target) (4,2) until the task can be solved."""
        while True:
            positions = centre + rng.uniform(low, high, (128, 4, 2))
            is_good = self._is_solvable(i, positions)
            if is_good.any():
                return positions[is_good.argmax()]

    def _is_solvable(self, i, positions):
        """Whether block 0 can be pushed straight to its target: positions (m,4,2) -> (m,) bool."""
        grip, block, other, target = np.moveaxis(positions, 1, 0)
        way = target - block
        distance = np.linalg.norm(way, axis=-1, keepdims=True)
        reach = 1.2 * self.half[i, 0] + self.grip_radius + 0.02
        behind = block - way / distance * reach  # where the gripper begins to push
        along = ((other - behind) * way).sum(-1, keepdims=True) / distance
        passed = behind + way / distance * np.clip(along, 0, distance + reach)  # closest to the other block
        good = (distance[:, 0] > 0.35) & (np.abs(behind - 0.5).max(-1) < 0.5 - self.grip_radius)
        good &= np.abs(other - 0.5).max(-1) < 0.5 - self.half[i, 1]
        good &= np.linalg.norm(other - passed, axis=-1) > 0.25
        good &= np.linalg.norm(other - block, axis=-1) > 0.42  # the gripper fits between them
        good &= np.linalg.norm(positions[:, 1:3] - grip[:, None], axis=-1).min(-1) > 0.25
        return good

    def _paint(self, i, rng):
        """Draw colours and light: dark blocks on a light table, or light ones on a dark table."""
        is_light = rng.random() < 0.5
        brightness = rng.uniform(0.78, 0.92) if is_light else rng.uniform(0.08, 0.2)
        table = brightness + rng.uniform(-0.04, 0.04, 3)
        hues = rng.uniform(0.15, 0.35) + 0.5 * rng.permutation(2)[:, None]  # opposite; red is the gripper's
        hues = hues + rng.uniform(-0.05, 0.05, (2, 1))
        colours = np.clip(np.abs((6 * hues + (0, 4, 2)) % 6 - 3) - 1, 0, 1)  # hue to RGB
        luma = (colours @ (0.3, 0.59, 0.11))[:, None]
        if is_light:
            colours = colours * np.minimum(1, 0.45 / luma)
        else:
            colours = colours + (1 - colours) * np.maximum(0, (0.5 - luma) / (1 - luma))
        self.colours[i] = 255 * colours
        pixels = (np.arange(self.size) + 0.5) / self.size - 0.5
        slope = rng.uniform(-0.12, 0.12, 2)
        light = 1 + slope[0] * pixels + slope[1] * pixels[:, None]
        self.background[i] = 255 * np.minimum(1, light[..., None] * table)
        pad = 0.5 * self.colours[i, :1] + 0.5 * 255 * table
        self._draw(self.background[i : i + 1], self.target[i : i + 1], 3.5 / 64, 4 / 64, pad)

    def _move(self, actions):
        before = self.blocks
        motion = actions * self.speed / self.substeps
        for _ in range(self.substeps):
            self.grip = np.clip(self.grip + motion, self.grip_radius, 1 - self.grip_radius)
            self.blocks = self.blocks + self.glide / self.substeps
            self._separate()
        self.glide = (1 - self.friction) * (self.blocks - before)
        distance = np.linalg.norm(self.blocks[:, 0] - self.target, axis=-1)
        success = distance < self.tolerance
        return success - distance - 0.25 * np.linalg.norm(self.grip - self.blocks[:, 0], axis=-1), success

    def _separate(self):
        """Undo overlaps: gripper moves blocks, blocks each other, walls stop them; the gripper gives way."""
        core = self.half - self.corner
        reach = self.corner + self.grip_radius
        wall = self.half[..., None]
        for k in range(2 * self.relax):
            if k < self.relax:  # later rounds settle blocks between each other and the walls
                depth, normal = contact(self.blocks - self.grip[:, None], core, reach)
                self.blocks = self.blocks + np.maximum(depth, 0)[..., None] * normal
            depth, normal = contact(self.blocks[:, 1] - self.blocks[:, 0], core.sum(1), 2 * self.corner)
            push = 0.5 * np.maximum(depth, 0)[:, None] * normal
            self.blocks = np.clip(self.blocks + np.stack([-push, push], 1), wall, 1 - wall)
        for _ in range(self.relax):  # a block that overlaps the gripper by now is jammed
            for k in (0, 1):
                depth, normal = contact(self.grip - self.blocks[:, k], core[:, k], reach)
                grip = self.grip + np.maximum(depth, 0)[:, None] * normal
                self.grip = np.clip(grip, self.grip_radius, 1 - self.grip_radius)

    def render(self):
        canvas = self.background.copy()
        for k in (0, 1):
            core = self.half[:, k] - self.corner
            self._draw(canvas, self.blocks[:, k], core, self.corner, self.colours[:, k])
        disc_colour, mark_colour, core, rounding = self.robot
        radius = self.grip_radius
        self._draw(canvas, self.grip, 0, radius, np.array([disc_colour], np.float32))
        self._draw(canvas, self.grip, core * radius, rounding * radius, np.array([mark_colour], np.float32))
        return (canvas + 0.5).astype(np.uint8)

    def _draw(self, canvas, centre, core, radius, colour):
        """Blend a square of half-side core + radius, rounded by radius, into canvas (n,H,W,3)."""
        core = np.broadcast_to(core, len(canvas))
        w = int(2 * (core.max() + radius) * self.size) + 4  # only a window of w x w pixels changes
        first = np.clip(np.rint(centre * self.size - w / 2), 0, self.size - w).astype(int)
        pixels = first[..., None] + np.arange(w)  # (n, 2, w)
        outside = np.abs(pixels + 0.5 - self.size * centre[..., None]) - self.size * core[:, None, None]
        squared = np.maximum(outside, 0).astype(np.float32) ** 2
        distance = np.sqrt(squared[:, 0, None, :] + squared[:, 1, :, None]) - radius * self.size  # (n, w, w)
        cover = np.clip(0.5 - distance, 0, 1)[..., None]
        window = np.arange(len(canvas))[:, None, None], pixels[:, 1, :, None], pixels[:, 0, None, :]
        canvas[window] += cover * (colour[:, None, None] - canvas[window])

    def expert(self, block=None, goal=None):
        """Go round a block (n,), by default 0, to the side away from its goal (n,2), then push it there."""
        block = np.zeros(self.n, int) if block is None else block
        goal = self.target if goal is None else goal
        rows = np.arange(self.n)
        centre = self.blocks[rows, block]
        core = self.half[rows, block] - self.corner
        reach = self.corner + self.grip_radius
        way = goal - centre
        distance = np.linalg.norm(way, axis=-1, keepdims=True)
        way = way / np.maximum(distance, 1e-6)
        # Push: the gripper touches the block on the far side, where the contact's normal is nearly `way`.
        touch = centre - core[:, None] * np.tanh(4 * way) - reach * way
        touch = np.clip(touch, self.grip_radius, 1 - self.grip_radius)
        along = ((self.grip - touch) * way).sum(-1, keepdims=True)
        aside = np.linalg.norm(self.grip - touch - along * way, axis=-1, keepdims=True)
        can_push = (aside < 0.03) & (along > -0.08) & (along < 0.06)
        push = touch + way * np.minimum(distance, self.speed)
        # Go there: straight if it is near, else round the block.
        ready = touch - 0.02 * way - centre  # relative to the block's centre
        is_near = np.linalg.norm(ready + centre - self.grip, axis=-1, keepdims=True) < self.speed
        approach = np.where(is_near, ready, self._step_around(centre, core, reach, ready)) + centre
        velocity = (np.where(can_push, push, approach) - self.grip) / self.speed
        velocity = np.where(distance < 0.03, 0, velocity)  # the block is there: leave it
        return velocity / np.maximum(1, np.abs(velocity).max(-1, keepdims=True))

    def _step_around(self, centre, core, reach, ready):
        """The next position round a block to `ready`, both relative to its centre (n,2): the best of 24."""
        angles = np.arange(24) * (2 * np.pi / 24)
        options = self.grip[:, None] + self.speed * np.stack([np.cos(angles), np.sin(angles)], 1)
        options = np.clip(options, self.grip_radius, 1 - self.grip_radius) - centre[:, None]  # (n, 24, 2)
        lengths = np.linalg.norm(options, axis=-1)
        length = np.linalg.norm(ready, axis=-1, keepdims=True)
        turn = np.arccos(np.clip((options * ready[:, None]).sum(-1) / (lengths * length), -1, 1))
        depth, _ = contact(options, core[:, None], reach + 0.005)
        cost = 0.4 * turn + np.abs(lengths - length) + 4 * np.maximum(depth, 0)
        return options[np.arange(self.n), cost.argmin(1)]

    def state(self):
        return {name: value.copy() for name, value in vars(self).items() if isinstance(value, np.ndarray)}

    def restore(self, state):
        for name, value in state.items():
            setattr(self, name, value.copy())

    def positions(self):
        return self.blocks.copy()  # (n,2,2)

    def distance(self, positions):
        """Of the block that is farthest from its position in `positions`, (n,)."""
        return np.linalg.norm(self.blocks - positions, axis=-1).max(1)

    def foresee(self, actions, positions, last=0):
        """Play N sequences (N,h,2), each in a copy of this one world; as base.py says."""
        copies = copy.copy(self)
        copies.n = len(actions)
        for name, value in self.state().items():
            setattr(copies, name, value.repeat(copies.n, 0))
        return foresee_at_once(copies, actions, positions, last)


def play_push(
    episodes, length=60, size=64, seed=0, expert_share=0.6, action_noise=0.3, robot="red", scene=-1
):
    """Play fresh episodes as `envs.play` does, with a kind, "expert" or "random", and the blocks' colours.

    After a success, or when it gives up, the noisy expert takes any block to any place."""
    n = min(episodes, 50)
    world = PushWorld(n, size, seed, length, robot, scene)
    world.episode[:] = -1
    for first in range(0, episodes, n):
        rng = np.random.default_rng([seed, first, 1, 1])  # four numbers: none of the world's own streams
        wander = random_policy(n, length, [seed, first, 1, 2])
        frames_u8 = np.empty((length + 1, n, size, size, 3), np.uint8)  # a new array: the last one is in use
        actions = np.empty((length, n, 2), np.float32)
        rewards = np.zeros((length + 1, n), np.float32)
        frames_u8[0] = world.reset()
        won = np.zeros(n, bool)
        is_expert = rng.random(n) < expert_share
        block = np.zeros(n, int)
        goal = world.target.copy()
        for k in range(length):
            noisy = np.clip(world.expert(block, goal) + rng.normal(0, action_noise, (n, 2)), -1, 1)
            actions[k] = np.where(is_expert[:, None], noisy, wander[k])
            frames_u8[k + 1], rewards[k + 1], success, _ = world.step(actions[k])
            won |= success
            is_there = np.linalg.norm(world.blocks[np.arange(n), block] - goal, axis=-1) < 0.05
            gives_up = (rng.random(n) < 0.03) & (won | (k > length // 2))
            is_new = is_there | gives_up
            block = np.where(is_new, rng.integers(2, size=n), block)
            goal = np.where(is_new[:, None], rng.uniform(0.2, 0.8, (n, 2)), goal)
        for i in range(min(n, episodes - first)):
            columns = dict(frames_u8=frames_u8[:, i], actions=actions[:, i], rewards=rewards[:, i])
            kind = "expert" if is_expert[i] else "random"
            yield dict(columns, success=won[i], kind=kind, colours=world.colours[i].copy())


def cut_segment(episode, start, T):
    """The T frames of an episode from `start` on: frames_u8 (T,H,W,3), actions (T,A), rewards (T)."""
    actions = np.pad(episode["actions"], ((0, 1), (0, 0)))  # none follows the last frame
    columns = dict(frames_u8=episode["frames_u8"], actions=actions, rewards=episode["rewards"])
    return {name: column[start : start + T] for name, column in columns.items()}


def play_segments(n, T, seed=0, size=64):
    """Yield n segments, each of an episode of its own: frames_u8 (T,H,W,3), actions (T,2), rewards (T)."""
    length = max(60, T)
    starts = np.random.default_rng([seed, n, T]).integers(0, length + 2 - T, n)
    for start, episode in zip(starts, play_push(n, length, size, seed), strict=True):
        yield cut_segment(episode, start, T)


def stack_segments(segments):
    """What play_segments yields -> a batch as Episodes.batch_u8."""
    return {name: torch.from_numpy(np.stack([segment[name] for segment in segments])) for name in segments[0]}


def push_segments(n, T, seed=0, size=64):
    """n segments of T frames (as Episodes.batch) that no data made with a seed below HELD_OUT contains."""
    return floats(stack_segments(list(play_segments(n, T, seed + HELD_OUT, size))))
