"""envs/push.py: PushWorld, the built-in world."""

import copy

import numpy as np
import torch

from data import to_float
from envs.base import HELD_OUT, random_policy, require_actions

# Grippers: colours of a disc and of the mark on it; half-side and rounding of the mark, in radii of the disc.
ROBOTS = dict(
    red=((230, 20, 20), (255, 255, 255), 0, 1 / 2),
    cyan=((0, 190, 200), (30, 10, 60), 3 / 8, 1 / 8),
)


def contact(offset, core, radius):
    """How deep a point at `offset` (..., 2) lies inside a square grown by a disc, and the way out.

    core (...,) half-side of the square, radius of the disc;  returns depth (...,), normal (..., 2)
    Two rounded bodies meet as such a shape and a point do: their cores and radii add up."""
    q = np.abs(offset) - np.asarray(core)[..., None]
    deepest = q.max(-1)
    way = np.where(deepest[..., None] <= 0, q == deepest[..., None], np.maximum(q, 0))  # in it: nearest face
    norm = np.sqrt((way**2).sum(-1))
    normal = way / norm[..., None] * np.where(offset < 0, -1, 1)
    return radius - np.where(deepest <= 0, deepest, norm), normal


class PushWorld:
    """n worlds at once: a gripper (disc) pushes two blocks on a table; block 0 belongs on the pad of its hue.

    Lengths are in table sides (the table is [0,1] x [0,1], y down) whatever `size` in pixels the picture has.
    Actions in [-1, 1] are the gripper's velocity (x, y). Blocks slide without turning, glide on a little, and
    stop at walls; a jammed block stops the gripper. World i's episode e depends on (seed, i, e) alone; it is
    done after `length` actions, whether it succeeds or not.
    Reward: -|block 0 - target| - 0.25 |gripper - block 0|, + 1 while block 0 is on its target.

    robot  one of ROBOTS
    anywhere  True: the place where block 0 belongs is another one than the pad, and cannot be seen
    scene  >= 0: colours, light and sizes of this number in all episodes, which begin within `spread` of the
           same places;  -1: each episode has its own"""

    action_dim, action_repeat = 2, 1
    grip_radius, corner = 5.75 / 64, 3 / 64  # corner: rounding of the blocks
    speed = 3.5 / 64  # per step at action 1
    substeps, relax = 3, 4  # a substep moves a fraction of a body's radius, so nothing tunnels
    friction = 0.7  # share of its motion that a block loses per step
    success_radius = tolerance = 0.07

    def __init__(self, n=1, size=64, seed=0, length=60, robot="red", scene=-1, spread=0.04,
                 anywhere=False):
        if n < 1 or size < 32 or seed < 0 or length < 1:
            raise ValueError(f"n, size, seed, length are {n, size, seed, length}; the least is 1, 32, 0, 1")
        if robot not in ROBOTS:
            raise ValueError(f"robot is {robot!r}; expected one of {', '.join(ROBOTS)}")
        self.n, self.size, self.seed, self.length, self.robot = n, size, seed, length, ROBOTS[robot]
        self.scene, self.spread, self.anywhere = scene, spread, anywhere
        self.episode, self.time = np.full(n, -1), np.zeros(n, int)
        self.grip, self.target, self.half = np.zeros((3, n, 2))  # half: half-side of each block
        self.blocks, self.glide = np.zeros((2, n, 2, 2))
        self.colours = np.zeros((n, 2, 3), np.float32)  # of the blocks
        self.background = np.zeros((n, size, size, 3), np.float32)
        self.reset()

    def reset(self, mask=None):
        """Begin new episodes where mask (n,) is true, everywhere by default; returns frames_u8 (n,H,W,3)."""
        chosen = np.arange(self.n) if mask is None else np.flatnonzero(mask)
        self.episode[chosen] += 1
        self.time[chosen], self.glide[chosen] = 0, 0
        for i in chosen:
            rng = np.random.default_rng([self.seed, i, self.episode[i]])
            of_scene = rng if self.scene < 0 else np.random.default_rng(self.scene)
            self._place(i, rng, of_scene)
            self._paint(i, of_scene)
            if self.anywhere:
                self.target[i] = rng.uniform(0.2, 0.8, 2)
        return self.render()

    def _place(self, i, rng, of_scene):
        """Sizes, and positions without overlap: (gripper, block 0, block 1, target), each (x, y)."""
        self.half[i] = of_scene.uniform(5.5, 7, 2) / 64
        margin = np.array([0.13, 0.28, 0.13, 0.2])[:, None]
        spots = self._first_good(i, lambda: of_scene.uniform(margin, 1 - margin, (128, 4, 2)))
        if self.scene >= 0:
            middle, d = spots, self.spread
            spots = self._first_good(i, lambda: middle + rng.uniform(-d, d, (128, 4, 2)))
        self.grip[i], self.blocks[i, 0], self.blocks[i, 1], self.target[i] = spots

    def _first_good(self, i, draw):
        """Of draw() -> (n, 4, 2) the first with room to go round block 0, and block 1 not in the way."""
        reach, ok = 1.2 * self.half[i, 0] + self.grip_radius + 0.02, np.zeros(1, bool)
        while not ok.any():
            spots = draw()
            grip, block, other, target = np.moveaxis(spots, 1, 0)
            way = target - block
            distance = np.linalg.norm(way, axis=-1, keepdims=True)
            behind = block - way / distance * reach
            along = ((other - behind) * way).sum(-1, keepdims=True) / distance
            passed = behind + way / distance * np.clip(along, 0, distance + reach)
            ok = (distance[:, 0] > 0.35) & (np.abs(behind - 0.5).max(-1) < 0.5 - self.grip_radius)
            ok &= np.abs(other - 0.5).max(-1) < 0.5 - self.half[i, 1]
            ok &= np.linalg.norm(other - passed, axis=-1) > 0.25
            ok &= np.linalg.norm(other - block, axis=-1) > 0.42  # the gripper fits between them
            ok &= np.linalg.norm(spots[:, 1:3] - grip[:, None], axis=-1).min(-1) > 0.25
        return spots[ok.argmax()]

    def _paint(self, i, rng):
        """Colours and light: two hues far apart, dark ones on a light table or light ones on a dark one."""
        is_light = rng.random() < 0.5
        table = rng.uniform(*((0.78, 0.92) if is_light else (0.08, 0.2))) + rng.uniform(-0.04, 0.04, 3)
        hues = rng.uniform(0.15, 0.35) + 0.5 * rng.permutation(2)[:, None]  # red is the gripper's
        hues = hues + rng.uniform(-0.05, 0.05, (2, 1))
        colours = np.clip(np.abs((6 * hues + (0, 4, 2)) % 6 - 3) - 1, 0, 1)
        luma = (colours @ (0.3, 0.59, 0.11))[:, None]
        darker, lighter = np.minimum(1, 0.45 / luma), np.maximum(0, (0.5 - luma) / (1 - luma))
        self.colours[i] = 255 * (colours * darker if is_light else colours + (1 - colours) * lighter)
        pixels = (np.arange(self.size) + 0.5) / self.size - 0.5
        slope = rng.uniform(-0.12, 0.12, 2)
        light = 1 + slope[0] * pixels + slope[1] * pixels[:, None]
        self.background[i] = 255 * np.minimum(1, light[..., None] * table)
        pad = 0.5 * self.colours[i, :1] + 0.5 * 255 * table
        one = slice(i, i + 1)
        self._draw(self.background[one], self.target[one], 3.5 / 64, 4 / 64, pad)  # it never moves

    def step(self, actions):
        """Move once. actions (n, 2), clipped to [-1, 1].

        returns  frames_u8 (n,H,W,3), reward (n,) float32, success and done (n,) bool;  raises ValueError"""
        require_actions(actions, (self.n, 2))
        move, before = np.clip(actions, -1, 1) * self.speed / self.substeps, self.blocks.copy()
        for _ in range(self.substeps):
            self.grip = np.clip(self.grip + move, self.grip_radius, 1 - self.grip_radius)
            self.blocks = self.blocks + self.glide / self.substeps
            self._separate()
        self.glide = (1 - self.friction) * (self.blocks - before)
        self.time += 1
        distance = np.linalg.norm(self.blocks[:, 0] - self.target, axis=-1)
        success = distance < self.success_radius
        reward = success - distance - 0.25 * np.linalg.norm(self.grip - self.blocks[:, 0], axis=-1)
        return self.render(), reward.astype(np.float32), success, self.time >= self.length

    def expert(self):
        """What the scripted player would do: actions (n, 2)."""
        return expert(self)

    def close(self):
        """Nothing is held; other worlds hold a renderer."""

    def state(self):
        """All that there is, for `restore`."""
        return {k: x.copy() for k, x in vars(self).items() if isinstance(x, np.ndarray)}

    def restore(self, state):
        """Go back to a state. Nothing is drawn."""
        vars(self).update({k: x.copy() for k, x in state.items()})

    def places(self):
        """Where the blocks are, for `distance`: (n, 2, 2)."""
        return self.blocks.copy()

    def distance(self, places):
        """Of the block that is farthest from its place, in table sides (n,)."""
        return np.linalg.norm(self.blocks - places, axis=-1).max(1)

    def foresee(self, actions, places):
        """What each of N action sequences (N, h, 2) would lead to, n being 1; the world stays as it is.

        returns  frames_u8 (N,h,H,W,3), rewards (N,h), distances (N,h) from `places`"""
        twin, seen = copy.copy(self), []
        twin.n = len(actions)
        vars(twin).update({k: x.repeat(twin.n, 0) for k, x in self.state().items()})
        for action in actions.swapaxes(0, 1):
            seen.append((*twin.step(action)[:2], twin.distance(places)))
        return tuple(np.stack(column, 1) for column in zip(*seen, strict=True))

    def _separate(self):
        """Undo overlaps: gripper moves blocks, blocks each other, walls stop them; the gripper gives way."""
        core, reach, wall = self.half - self.corner, self.corner + self.grip_radius, self.half[..., None]
        for k in range(2 * self.relax):
            if k < self.relax:  # later rounds settle jammed blocks, to which the gripper gives way
                depth, normal = contact(self.blocks - self.grip[:, None], core, reach)
                self.blocks = self.blocks + np.maximum(depth, 0)[..., None] * normal
            depth, normal = contact(self.blocks[:, 1] - self.blocks[:, 0], core.sum(1), 2 * self.corner)
            push = 0.5 * np.maximum(depth, 0)[:, None] * normal
            self.blocks = np.clip(self.blocks + np.stack([-push, push], 1), wall, 1 - wall)
        for k in self.relax * (0, 1):
            depth, normal = contact(self.grip - self.blocks[:, k], core[:, k], reach)
            self.grip = self.grip + np.maximum(depth, 0)[:, None] * normal
            self.grip = np.clip(self.grip, self.grip_radius, 1 - self.grip_radius)

    def render(self):
        """Draw the worlds as they are: frames_u8 (n,H,W,3)."""
        canvas = self.background.copy()
        for k in (0, 1):
            core = self.half[:, k] - self.corner
            self._draw(canvas, self.blocks[:, k], core, self.corner, self.colours[:, k])
        *colours, core, rounding = self.robot
        body, mark = np.tile(np.array(colours, np.float32)[:, None], (1, self.n, 1))
        self._draw(canvas, self.grip, 0, self.grip_radius, body)
        self._draw(canvas, self.grip, core * self.grip_radius, rounding * self.grip_radius, mark)
        return (canvas + 0.5).astype(np.uint8)

    def _draw(self, canvas, centre, core, radius, colour):
        """Blend a rounded square per world into canvas (n,H,W,3), edge one pixel soft, in a small window."""
        core = np.broadcast_to(core, len(canvas))
        w = int(2 * (core.max() + radius) * self.size) + 4
        first = np.clip(np.rint(centre * self.size - w / 2), 0, self.size - w).astype(int)
        pixels = first[..., None] + np.arange(w)  # (n, 2, w)
        q = np.abs(pixels + 0.5 - self.size * centre[..., None]) - self.size * core[:, None, None]
        q = np.maximum(q, 0).astype(np.float32) ** 2
        distance = np.sqrt(q[:, 0, None, :] + q[:, 1, :, None]) - radius * self.size
        cover = np.clip(0.5 - distance, 0, 1)[..., None]
        window = np.arange(len(canvas))[:, None, None], pixels[:, 1, :, None], pixels[:, 0, None, :]
        canvas[window] += cover * (colour[:, None, None] - canvas[window])


def expert(world, block=None, goal=None):
    """Scripted player: go round the block to the side away from the goal, then push it there.

    block (n,) which block (0), goal (n, 2) where to (its target);  returns actions (n, 2) in [-1, 1]"""
    rows, edge = np.arange(world.n), world.grip_radius
    block = np.zeros(world.n, int) if block is None else block
    at, core, reach = world.blocks[rows, block], world.half[rows, block] - world.corner, world.corner + edge
    way = (world.target if goal is None else goal) - at
    distance = np.linalg.norm(way, axis=-1, keepdims=True)
    way = way / np.maximum(distance, 1e-6)
    touch = at - core[:, None] * np.tanh(4 * way) - reach * way  # there the contact normal is nearly `way`
    touch = np.clip(touch, edge, 1 - edge)
    along = ((world.grip - touch) * way).sum(-1, keepdims=True)
    aside = np.linalg.norm(world.grip - touch - along * way, axis=-1, keepdims=True)
    can_push = (aside < 0.03) & (along > -0.08) & (along < 0.06)
    # else the heading of 24 that brings it closest, in angle and distance about the block, without a touch
    ready = touch - 0.02 * way - at
    angles = np.arange(24) * (2 * np.pi / 24)
    options = world.grip[:, None] + world.speed * np.stack([np.cos(angles), np.sin(angles)], 1)  # (n, 24, 2)
    arms = np.clip(options, edge, 1 - edge) - at[:, None]
    lengths, arm = np.linalg.norm(arms, axis=-1), np.linalg.norm(ready, axis=-1, keepdims=True)
    turn = np.arccos(np.clip((arms * ready[:, None]).sum(-1) / (lengths * arm), -1, 1))
    overlap = np.maximum(contact(arms, core[:, None], reach + 0.005)[0], 0)
    around = arms[rows, (0.4 * turn + np.abs(lengths - arm) + 4 * overlap).argmin(1)] + at
    is_near = np.linalg.norm(ready + at - world.grip, axis=-1, keepdims=True) < world.speed
    push = touch + way * np.minimum(distance, world.speed)
    velocity = (np.where(can_push, push, np.where(is_near, ready + at, around)) - world.grip) / world.speed
    velocity = np.where(distance < 0.03, 0, velocity)  # it is there: leave it
    return velocity / np.maximum(1, np.abs(velocity).max(-1, keepdims=True))


def play_push(
    episodes, length=60, size=64, seed=0, expert_share=0.6, action_noise=0.3, robot="red", scene=-1
):
    """Play fresh PushWorld episodes; yields frames_u8 (T,H,W,3), actions (T,2), rewards (T,), kind, won.

    T is length + 1. A share is played by the noisy expert, which after success takes any block to any place,
    so that things keep moving; the rest is random play."""
    n = min(episodes, 50)
    world = PushWorld(n, size, seed, length, robot, scene)
    for first in range(0, episodes, n):
        frames = np.empty((length + 1, n, size, size, 3), np.uint8)  # anew: the last ones are still in use
        rng = np.random.default_rng([seed, first, 1, 1])  # four words: no stream of the world's own
        wander = random_policy(n, length, [seed, first, 1, 2])
        actions, rewards = np.zeros((length + 1, n, 2), np.float32), np.zeros((length + 1, n), np.float32)
        won = np.zeros(n, bool)
        frames[0] = world.reset() if first else world.render()
        is_expert, block, goal = rng.random(n) < expert_share, np.zeros(n, int), world.target.copy()
        for k in range(length):
            noisy = expert(world, block, goal) + rng.normal(0, action_noise, (n, 2))
            actions[k] = np.where(is_expert[:, None], np.clip(noisy, -1, 1), wander[k])
            frames[k + 1], rewards[k + 1], success, _ = world.step(actions[k])
            won |= success
            is_there = np.linalg.norm(world.blocks[np.arange(n), block] - goal, axis=-1) < 0.05
            gives_up = (rng.random(n) < 0.03) & (won | (k > length // 2))  # some goals cannot be reached
            block = np.where(is_there | gives_up, rng.integers(2, size=n), block)
            goal = np.where((is_there | gives_up)[:, None], rng.uniform(0.2, 0.8, (n, 2)), goal)
        for i in range(min(n, episodes - first)):
            yield frames[:, i], actions[:, i], rewards[:, i], "expert" if is_expert[i] else "random", won[i]


def push_segments(n, T, seed=0, size=64):
    """n PushWorld segments that no data made with a smaller seed than HELD_OUT holds; as Episodes.batch."""
    seed, length = seed + HELD_OUT, max(60, T)
    starts = np.random.default_rng([seed, n, T]).integers(0, length + 2 - T, n)
    episodes = zip(starts, play_push(n, length, size, seed), strict=True)
    parts = zip(*([array[s : s + T] for array in episode[:3]] for s, episode in episodes), strict=True)
    frames_u8, actions, rewards = map(np.stack, parts)
    actions, rewards = torch.from_numpy(actions), torch.from_numpy(rewards)
    return dict(frames=to_float(frames_u8), actions=actions, rewards=rewards)
