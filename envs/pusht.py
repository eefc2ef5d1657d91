"""envs/pusht.py: PushT (Chi et al. 2023): a disc pushes a T to a pose. Physics by the package gym-pusht.

Lengths are the package's, of which a side has 512; y down. A pose of the block is x, y and angle; x, y are
the middle of the long outer edge of its bar.   Run: python prepare.py pusht"""

import copy
from types import SimpleNamespace

import numpy as np

from data import floats
from envs.base import HELD_OUT, World, random_policy
from envs.mujoco import optional_import
from envs.push import cut_segment, stack_segments

SIDE = 512
GOAL = np.array([256, 256, np.pi / 4])  # the green T
AGENT = 15  # radius of the disc
EDGE = 2  # half-width of outlines and walls
BAR = (0, 15), (60, 15)  # of the T, in its own frame: centre, half-sides
STEM = (0, 75), (15, 45)
CORNERS = np.array([[-60, 0], [60, 0], [60, 30], [15, 30], [15, 120], [-15, 120], [-15, 30], [-60, 30.0]])
COLOURS = dict(
    wall=(211, 211, 211), goal=(144, 238, 144), disc=(65, 105, 225), disc_inside=(78, 126, 255),
    block=(119, 136, 153), block_inside=(142.8, 163.2, 183.6),
)  # fmt: skip


def box_distances(x, y):
    """Signed distances from the T's bar and from its stem of places in its frame, negative inside."""
    for centre, half in (BAR, STEM):
        outside_x = np.abs(x - centre[0]) - half[0]
        outside_y = np.abs(y - centre[1]) - half[1]
        corner = np.sqrt(np.maximum(outside_x, 0) ** 2 + np.maximum(outside_y, 0) ** 2)
        yield corner + np.minimum(np.maximum(outside_x, outside_y), 0)


def pixel_distances(x, y, poses):
    """`box_distances` of pixels: x, y (n, H, W) or fit for it, poses (n, 3)."""
    px, py, angle = (column[:, None, None] for column in poses.astype(np.float32).T)
    cos = np.cos(angle)
    sin = np.sin(angle)
    return box_distances(cos * (x - px) + sin * (y - py), cos * (y - py) - sin * (x - px))


class Painter:
    """Draws states as the package does, but at any size at once instead of 512 pixels and smaller after."""

    def __init__(self, size):
        self.size = size
        self.unit = SIDE / size  # a pixel's side
        x, y = np.meshgrid(*2 * [(np.arange(size, dtype=np.float32) + 0.5) * self.unit])
        goal = np.minimum(*pixel_distances(x, y, GOAL[None]))
        self.empty = self.blend(np.full((1, size, size, 3), 255, np.float32), goal, "goal")
        border = np.maximum(np.abs(x - 255.5), np.abs(y - 255.5)) - 250.5
        self.walls = self.cover(np.abs(border) - EDGE)

    def cover(self, distance):
        """Share of each pixel that lies inside, of its centre's signed distance from the boundary."""
        return np.clip(0.5 - distance / self.unit, 0, 1)[..., None]

    def blend(self, canvas, distance, name):
        return canvas + self.cover(distance) * (np.array(COLOURS[name], np.float32) - canvas)

    def window(self, centre, radius):
        """A square of pixels round places (n, 2): its index in a canvas, x (n, 1, w) and y (n, w, 1)."""
        w = min(self.size, int(2 * radius / self.unit) + 3)
        first = np.clip(np.rint(centre / self.unit - w / 2), 0, self.size - w).astype(int)
        pixels = first[..., None] + np.arange(w)  # (n, 2, w)
        index = np.arange(len(centre))[:, None, None], pixels[:, 1, :, None], pixels[:, 0, None, :]
        at = ((pixels + 0.5) * self.unit).astype(np.float32)
        return index, at[:, 0, None, :], at[:, 1, :, None]

    def __call__(self, states):
        """States (n, 5): x, y of the disc, pose of the block -> frames_u8 (n, H, W, 3)."""
        canvas = np.repeat(self.empty, len(states), 0)
        disc = states[:, :2]
        poses = states[:, 2:]
        index, x, y = self.window(turned(MIDDLE, poses[:, 2]) + poses[:, :2], 80)
        part = canvas[index]
        for distance in pixel_distances(x, y, poses):
            part = self.blend(part, distance - EDGE, "block")
            part = self.blend(part, distance + EDGE, "block_inside")
        canvas[index] = part
        index, x, y = self.window(disc, AGENT)
        px, py = disc.astype(np.float32).T[..., None, None]
        distance = np.sqrt((x - px) ** 2 + (y - py) ** 2) - AGENT
        part = self.blend(canvas[index], distance, "disc")
        canvas[index] = self.blend(part, distance + 4, "disc_inside")
        canvas += self.walls * (np.array(COLOURS["wall"], np.float32) - canvas)
        return (canvas + 0.5).astype(np.uint8)


def turned(points, angle):
    """Points (..., 2) turned by an angle, or one point by angles (n,)."""
    x, y = np.moveaxis(points, -1, 0)
    cos = np.cos(angle)
    sin = np.sin(angle)
    return np.stack([cos * x - sin * y, sin * x + cos * y], -1)


def angle_between(a, b):
    """From a to b, in [-pi, pi)."""
    return (b - a + np.pi) % (2 * np.pi) - np.pi


def outline(step=15):
    """Contact points on the T's edge and the inward normals there, both (m, 2), in its own frame."""
    points, normals = [], []
    for a, b in zip(CORNERS, np.roll(CORNERS, -1, 0), strict=True):
        length = np.linalg.norm(b - a)
        along = (b - a) / length
        n = max(1, round(length / step))
        for k in range(n):
            points.append(a + along * length * (k + 0.5) / n)
            normals.append([-along[1], along[0]])
    return np.array(points), np.array(normals)


def depth(points):
    """Signed distance of points (..., 2) in the T's frame from its edge, negative inside."""
    return np.minimum(*box_distances(*np.moveaxis(points, -1, 0)))


MIDDLE = np.array([0, 45])  # the T's centre of gravity
INERTIA = 3000  # over mass
PLAY = dict(
    length=40,  # actions per episode
    chunk=5,  # moves per action, of 0.1 s each, as the benchmark has it
    expert_share=0.7,  # of the episodes; the others are random play
    action_noise=0.08,  # mean standard deviation, added to the expert's moves
)
# Longest move of the script, x or y. So actions have the deviation that the benchmark's demonstrations have,
# 0.2 (DINO-WM, arXiv 2411.04983: its pusht_dset.py), and 25 moves lead about as far as there.
PACE = 0.25
POINTS, NORMALS = outline()
FITS = depth(POINTS - (AGENT + 6) * NORMALS) > AGENT + 5  # not in the T's inner corners
POINTS, NORMALS = POINTS[FITS], NORMALS[FITS]
X, Y = (POINTS - MIDDLE).T
LEVERS = X * NORMALS[:, 1] - Y * NORMALS[:, 0]  # how a push turns the T: positive from x to y
SPOTS = POINTS - AGENT * NORMALS  # of the disc as it touches


def state_distance(states, goal):
    """Of states (..., 5) of disc and block, or poses (..., 3): less than 1 is less than 20, over both places
    together, and less than pi/9."""
    away = np.linalg.norm(states[..., :-1] - goal[..., :-1], axis=-1) / 20
    return np.maximum(away, np.abs(angle_between(states[..., -1], goal[..., -1])) / (np.pi / 9))


def copied(simulation):
    """A copy, with the contacts that it remembers."""
    space, agent, block = copy.deepcopy(simulation)
    block.angle = simulation[2].angle
    block.position = simulation[2].position  # which pymunk's copy shifts by the centre of gravity
    return space, agent, block


class PushT(World):
    """A disc pushes a T. Actions (1, 2 chunk) in [-1, 1]: `chunk` moves of 0.1 s each, one after another; a
    move draws the disc towards a place REACH times (x, y) away from where it is.

    reward    as the package's: the share of the green T that the block covers, 1 from 0.95 on
    success   the block is where the script pushes it: less than 20 and pi/9 off
    anywhere  the script pushes it to a pose drawn for each episode, instead of onto the green T
    distance  to a state, of disc and block: 1 is the largest of a success in the benchmark

    Source: gym-pusht 0.1.8 (physics); stable-worldmodel (relative actions, success)"""

    tolerance = 1.0
    stick = 0.4
    reach = 100

    def __init__(self, size=64, seed=0, length=40, chunk=5, anywhere=False):
        with optional_import("PushT", "gym-pusht 'pymunk<7'"):
            import pymunk
            import shapely
            from gym_pusht.envs.pusht import PushTEnv
        self.pymunk, self.shapely, self.package = pymunk, shapely, PushTEnv
        super().__init__(size, seed, length)
        self.action_dim = 2 * chunk
        self.anywhere = anywhere
        self.paint = Painter(size)

    def _begin(self):
        rng = np.random.default_rng([self.seed, self.episode[0]])
        self.target = GOAL
        if self.anywhere:
            self.target = self.draw_target(rng)
        low, high = np.array([[50, 50, 100, 100, -np.pi], [450, 450, 400, 400, np.pi]])
        self.hand = None  # where the script takes the disc in the end
        self.contact = None  # of the script
        self.reset_to_state(rng.uniform(low, high))

    @staticmethod
    def draw_target(rng):
        """A pose for the block."""
        return np.append(rng.uniform(120, 392, 2), rng.uniform(-np.pi, np.pi))

    def reset_to_state(self, state):
        """Place disc and block (x, y, x, y, angle), as the package does: moves them apart, in one step."""
        space = self.pymunk.Space()
        space.damping = 0
        ends = (5, 506), (5, 5), (506, 5), (506, 506)
        for a, b in zip(ends, ends[1:] + ends[:1], strict=True):
            space.add(self.package.add_segment(space, a, b, 2))
        agent = self.package.add_circle(space, (256, 400), AGENT)
        block, _ = self.package.add_tee(space, (256, 300), 0)
        for shape in space.shapes:
            del shape.color  # of the package's drawing
        agent.position = list(state[:2])
        block.position = list(state[2:4])
        block.angle = state[4]
        self.simulation = space, agent, block
        space.step(0.01)

    def _move(self, actions):
        self.drive(actions.reshape(-1, 2))
        poses = self.positions()[:, 2:]
        return self.coverage(poses), state_distance(poses, self.target) < 1

    def drive(self, moves):
        """Let the disc follow moves (k, 2), by the package's PD controller."""
        space, agent, _ = self.simulation
        vx, vy = agent.velocity
        for x, y in (self.reach * moves).tolist():
            px, py = agent.position
            target_x = min(max(px + x, 0), SIDE)
            target_y = min(max(py + y, 0), SIDE)
            for _ in range(10):
                px, py = agent.position
                vx += 0.01 * (100 * (target_x - px) - 20 * vx)
                vy += 0.01 * (100 * (target_y - py) - 20 * vy)
                agent.velocity = vx, vy
                space.step(0.01)

    def coverage(self, poses):
        """Rewards (n,) of poses (n, 3)."""
        outlines = turned(CORNERS, poses[:, 2:]) + poses[:, None, :2]
        goal = self.shapely.Polygon(turned(CORNERS, GOAL[2]) + GOAL[:2])
        common = self.shapely.intersection(goal, self.shapely.polygons(outlines))
        return np.minimum(1, self.shapely.area(common) / goal.area / 0.95)

    def render(self):
        return self.paint(self.positions())

    def state(self):
        numbers = dict(target=self.target, hand=self.hand, contact=self.contact)
        numbers.update(time=self.time, episode=self.episode)
        return dict(copy.deepcopy(numbers), simulation=copied(self.simulation))

    def restore(self, state):
        numbers = {name: value for name, value in state.items() if name != "simulation"}
        vars(self).update(copy.deepcopy(numbers), simulation=copied(state["simulation"]))

    def positions(self):
        _, agent, block = self.simulation
        return np.array([[*agent.position, *block.position, block.angle]])

    def distance(self, positions):
        """From a state (1, 5), as `state_distance`."""
        return state_distance(self.positions(), positions)

    def foresee(self, actions, positions, last=0):
        """As base.py says."""
        states = self.foresee_states(actions)
        N, h, _ = states.shape
        rewards = self.coverage(states[..., 2:].reshape(-1, 3)).reshape(N, h).astype(np.float32)
        frames_u8 = np.stack([self.paint(states[:, k]) for k in range(h - (last or h), h)], 1)
        return frames_u8, rewards, state_distance(states, positions)

    def foresee_states(self, actions):
        """Sequences (N, h, A) -> states (N, h, 5), without what the simulation remembers of contacts: a copy
        for each sequence would take longer than the sequence."""
        N, h, _ = actions.shape
        start = self.simulation
        self.simulation = copied(start)
        states = np.empty((N, h, 5))
        moves = np.clip(actions, -1, 1).reshape(N, h, -1, 2)
        for i in range(N):
            self.replace(start)
            for k in range(h):
                self.drive(moves[i, k])
                states[i, k] = self.positions()[0]
        self.simulation = start
        return states

    def replace(self, simulation):
        """Put disc and block where they are in a copy of the simulation, without a memory of contacts."""
        space, agent, block = self.simulation
        agent.position = 10 * SIDE, 10 * SIDE
        agent.velocity = 0, 0
        block.position = -10 * SIDE, -10 * SIDE
        for _ in range(space.collision_persistence + 1):
            space.step(0.01)
        for ours, theirs in ((agent, simulation[1]), (block, simulation[2])):
            ours.angle = theirs.angle
            ours.position = theirs.position
            ours.velocity = theirs.velocity
            ours.angular_velocity = theirs.angular_velocity

    def draw_task(self, i, lead):
        """Task i of the benchmark: from anywhere on the script's noisy way to its state `lead` actions later.

        returns  a namespace as of envs.vp2.make_task; frames_u8 are two, up to the start"""
        self.episode[:] = i - 1
        frames_u8 = [self.reset()[0]]
        rng = np.random.default_rng([self.seed, i, 3])
        before = rng.integers(1, 25)
        for k in range(before + lead):
            if k == before:
                start = self.state()
            noise = PLAY["action_noise"] * rng.normal(size=(1, self.action_dim))
            frames_u8.append(self.step(self.expert() + noise)[0][0])
        goal = self.positions()
        start.update(target=goal[0, 2:], hand=goal[0, :2], contact=None)
        opening = frames_u8[before - 1 : before + 1]
        return SimpleNamespace(start=start, goal_u8=frames_u8[-1], positions=goal, frames_u8=opening)

    def expert(self):
        """Push the T where that brings it nearer to its target, from outside round it to there."""
        ahead = copy.copy(self)
        ahead.simulation = copied(self.simulation)
        moves = []
        for _ in range(self.action_dim // 2):
            moves.append(ahead.next_move())
            ahead.drive(moves[-1])
        return np.concatenate(moves, 1)

    def next_move(self):
        """One move of the script (1, 2): pushes move the T as far as they still bring it nearer.

        A push of length 1 along a normal moves the middle by it, and turns the T by lever / INERTIA."""
        x, y, *pose = self.positions()[0]
        pose = np.array(pose)
        here = turned(np.array([x, y]) - pose[:2], -pose[2])  # all places are in the T's frame
        turn = angle_between(pose[2], self.target[2])
        way = turned(MIDDLE, turn) - MIDDLE + turned(self.target[:2] - pose[:2], -pose[2])
        gain = (NORMALS @ way + turn * LEVERS) / (1 + LEVERS**2 / INERTIA)
        ready = SPOTS - 6 * NORMALS
        on_table = np.abs(turned(ready, pose[2]) + pose[:2] - SIDE / 2).max(1) < SIDE / 2 - AGENT - 5
        value = gain - 0.1 * np.linalg.norm(here - ready, axis=1) - 1000 * (~on_table | (gain < 1))
        if self.contact is not None:
            value[self.contact] += 10  # it stays at a contact that is nearly as good
        self.contact = value.argmax()
        is_there = state_distance(pose, self.target) < 0.4 or gain[self.contact] < 1
        if is_there and self.hand is None:
            return np.zeros((1, 2))
        normal = NORMALS[self.contact]
        offset = here - SPOTS[self.contact]
        along = offset @ normal
        if is_there:
            goal = self.way_round(here, turned(self.hand - pose[:2], -pose[2]))
        elif np.linalg.norm(offset - along * normal) < 6 and -12 < along < 6:
            goal = SPOTS[self.contact] + (max(along, 0) + min(gain[self.contact], 15)) * normal
        else:
            goal = self.way_round(here, ready[self.contact])
        motion = turned(goal - here, pose[2]) / (0.35 * self.reach)
        return motion[None] * min(1, PACE / max(1e-9, np.abs(motion).max()))

    @staticmethod
    def way_round(here, goal):
        """The next place on a way from here to a goal that does not touch the T, all in its frame."""
        line = here + np.linspace(0.1, 1, 10)[:, None] * (goal - here)
        if depth(line).min() > AGENT + 2:
            return here + (goal - here) * min(1, 30 / max(1e-6, np.linalg.norm(goal - here)))
        angles = np.arange(24) * (2 * np.pi / 24)
        options = here + 25 * np.stack([np.cos(angles), np.sin(angles)], 1)
        centre = np.array([0, 25])  # from where all of the T's edge can be seen
        rays = options - centre
        lengths = np.linalg.norm(rays, axis=1)
        aim = goal - centre
        turn = np.arccos(np.clip(rays @ aim / (lengths * np.linalg.norm(aim)), -1, 1))
        cost = 60 * turn + np.abs(lengths - 125) + 20 * np.maximum(AGENT + 4 - depth(options), 0)
        return options[cost.argmin()]


def play_pusht(i, seed, size, length, chunk, expert_share, action_noise):
    """Episode i of play, as `envs.play` yields it, with a kind: "expert", the script with noise, which goes
    on to another pose when it is there or stuck, or "random", which is drawn to the block.

    length  actions, each of `chunk` moves
    has     states (length + 1, 5), too;  success is of the first pose"""
    world = PushT(size, seed, length, chunk, anywhere=True)
    world.episode[:] = i - 1
    rng = np.random.default_rng([seed, i, 1])
    wander = random_policy(1, length * chunk, [seed, i, 2])
    is_expert = rng.random() < expert_share
    noise = rng.uniform(0, 2 * action_noise)  # differs from episode to episode
    frames_u8 = [world.reset()[0]]
    states = [world.positions()[0]]
    actions = np.empty((length * chunk, 2), np.float32)
    rewards = [0.0]
    won = False
    is_first = True
    for k in range(length * chunk):
        move = world.next_move()
        is_stuck = not move.any()
        if is_expert:
            move = move + noise * rng.normal(size=(1, 2))
        else:
            disc, block = world.positions()[0, :2], world.positions()[0, 2:4]
            move = 0.25 * wander[k] + 0.1 * (block - disc) / np.linalg.norm(block - disc)
        actions[k] = np.clip(move, -1, 1)
        world.drive(actions[k : k + 1])
        poses = world.positions()[:, 2:]
        won |= is_first and state_distance(poses[0], world.target) < 1
        if is_stuck or rng.random() < 0.01:
            world.target = world.draw_target(rng)
            is_first = False
        if k % chunk == chunk - 1:
            frames_u8.append(world.render()[0])
            states.append(world.positions()[0])
            rewards.append(world.coverage(poses)[0])
    return dict(frames_u8=np.stack(frames_u8), actions=actions.reshape(length, -1),
                rewards=np.array(rewards, np.float32), states=np.array(states), success=won,
                kind="expert" if is_expert else "random")  # fmt: skip


def pusht_segments(n, T, seed=0, size=64):
    """n segments of T frames (as Episodes.batch), each of an episode that no data with a seed below HELD_OUT
    contains."""
    length = max(PLAY["length"], T)
    starts = np.random.default_rng([seed, n, T]).integers(0, length + 2 - T, n)
    segments = []
    for i, start in enumerate(starts):
        episode = play_pusht(i, seed + HELD_OUT, size, **{**PLAY, "length": length})
        segments.append(cut_segment(episode, start, T))
    return floats(stack_segments(segments))
