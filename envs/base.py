"""envs/base.py: what a world is, and what all worlds share.

A world is n copies of one environment, stepped together: PushWorld has any n, a robot's simulator has n = 1.
n worlds, A action dimensions, N action sequences of h actions each, H x W pixels.

    n               number of worlds
    action_dim      A; actions are in [-1, 1]
    action_repeat   steps of the simulator per action
    length          actions per episode
    episode         (n,) number of the current episode, -1 before the first. What an episode looks like depends
                    on (seed, world, episode) alone: to play episode e, write env.episode[:] = e - 1 and reset.
    reset()         begin the next episodes -> frames_u8 (n,H,W,3)
    step(actions)   actions (n,A) -> frames_u8 (n,H,W,3), reward (n,) float32, success (n,), done (n,) bool
    render()        draw the current state -> frames_u8 (n,H,W,3)
    expert()        the scripted player's actions (n,A)
    close()         free the renderer

Planning (plan.py) needs more, which Meta-World does not have:

    tolerance       a distance below this is a success
    state()         everything that a step changes
    restore(state)  go back to a state, without drawing it
    positions()     positions of the objects, the goal of a planning task
    distance(positions)          how far the objects are from there, (n,)
    foresee(actions, positions)  what each of the sequences (N,h,A) would lead to; the world stays as it is
                                 -> frames_u8 (N,h,H,W,3), rewards (N,h), distances from `positions` (N,h)

To add a world, write a subclass of World in a file of its own and add its name to envs.make_environment."""

import numpy as np

HELD_OUT = 1_000_000  # seeds of worlds from here on are for evaluation


class World:
    """Counts episodes and steps, and checks actions. A subclass sets action_dim and writes

    render(), expert()
    _begin()        place everything for a new episode, from self.seed and self.episode
    _move(actions)  apply actions (n,A) in [-1, 1] -> reward (n,), success (n,)"""

    action_repeat = 1

    def __init__(self, size, seed, length, n=1):
        self.n = n
        self.size = size  # H = W
        self.seed = seed
        self.length = length
        self.episode = np.full(n, -1)
        self.time = np.zeros(n, int)  # actions taken in this episode

    def reset(self):
        """Begin the next episodes; returns frames_u8 (n,H,W,3)."""
        self.episode += 1
        self.time[:] = 0
        self._begin()
        return self.render()

    def step(self, actions):
        """Take one action in each world. actions (n,A), clipped to [-1, 1].

        returns  frames_u8 (n,H,W,3), reward (n,) float32, success (n,) bool, done (n,) bool
        raises   ValueError for another shape or numbers that are not finite"""
        shape = (self.n, self.action_dim)
        if np.shape(actions) != shape or not np.isfinite(actions).all():
            raise ValueError(f"actions are {np.shape(actions)} or not finite; expected numbers {shape}")
        reward, success = self._move(np.clip(actions, -1, 1))
        self.time += 1
        return self.render(), reward.astype(np.float32), success, self.time >= self.length

    def close(self):
        """Free what the world holds: by default nothing."""


def foresee_in_turn(env, actions, positions):
    """`foresee` for a simulator of one world: play each sequence, then go back to where it began."""
    N, h, _ = actions.shape
    frames_u8 = np.empty((N, h, env.size, env.size, 3), np.uint8)
    rewards = np.empty((N, h), np.float32)
    distances = np.empty((N, h))
    start = env.state()
    for i in range(N):
        env.restore(start)
        for k in range(h):
            frame, reward, _, _ = env.step(actions[i, k][None])
            frames_u8[i, k] = frame[0]
            rewards[i, k] = reward[0]
            distances[i, k] = env.distance(positions)[0]
    env.restore(start)
    return frames_u8, rewards, distances


def random_policy(n, steps, seed, A=2):
    """Smooth random actions (steps, n, A) in [-1, 1]: each is noise plus 0.8 times the action before."""
    actions = np.random.default_rng(seed).normal(0, 0.6, (steps, n, A))
    for k in range(1, steps):
        actions[k] += 0.8 * actions[k - 1]
    return np.clip(actions, -1, 1)
