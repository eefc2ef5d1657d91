"""envs/base.py: what a world is, and what all worlds share.

A world is n copies of one environment that move together; a robot's simulator has n = 1. To add one, write a
subclass of World in a file of its own, with what is marked *, and name it in envs.make_environment.
n worlds, A action dimensions, N sequences of h actions, H = W = size pixels; frames_u8 are (n,H,W,3).

    episode (n,)           number of the current one, -1 before the first; with seed, it decides all looks:
                           to play episode e, set env.episode[:] = e - 1 and call reset
  * action_dim             A; actions are in [-1, 1], held for action_repeat steps of the simulator
    reset()                begin the next episode -> frames_u8
    step(actions (n,A))    -> frames_u8, reward (n,) float32, success (n,) bool, done (n,) bool
  * _begin(), _move(actions) -> reward, success     what reset and step do; _begin uses seed and episode alone
  * render(), expert()     frames_u8 of the current state, the scripted player's actions (n,A)
What planning (plan.py) needs as well; Meta-World does not have it:
  * tolerance              a smaller distance is a success
  * state(), restore(state)       all that steps and resets change; going back does not draw
  * positions(), distance(positions)      where the objects are; how far they are from there (n,)
  * foresee(actions (N,h,A), positions, last=0)   what N sequences lead to, n being 1; the world stays as it
                           is -> frames_u8 (N,h,H,W,3), or the last ones, rewards (N,h), distances (N,h)"""

import numpy as np

HELD_OUT = 1_000_000  # seeds of worlds from here on are for evaluation


class World:
    """Counts episodes and steps, and checks actions;  length: actions per episode."""

    action_repeat = 1
    stick = 1.0  # action of a joystick that is pulled as far as it goes
    renderer = None

    def __init__(self, size, seed, length, n=1):
        self.n = n
        self.size = size
        self.seed = seed
        self.length = length
        self.episode = np.full(n, -1)
        self.time = np.zeros(n, int)  # actions taken in this episode

    def reset(self):
        self.episode += 1
        self.time[:] = 0
        self._begin()
        return self.render()

    def step(self, actions):
        """Take one action in each world, clipped to [-1, 1].   raises  ValueError"""
        shape = (self.n, self.action_dim)
        if np.shape(actions) != shape or not np.isfinite(actions).all():
            raise ValueError(f"actions are {np.shape(actions)} or not finite; expected numbers {shape}")
        reward, success = self._move(np.clip(actions, -1, 1))
        self.time += 1
        return self.render(), reward.astype(np.float32), success, self.time >= self.length

    def close(self):
        if self.renderer:
            self.renderer.close()


def foresee_at_once(worlds, actions, positions, last=0):
    """Play a sequence in each of n worlds: actions (n,h,A) -> frames_u8, rewards, distances as `foresee`."""
    n, h, _ = actions.shape
    frames_u8 = np.empty((n, h, worlds.size, worlds.size, 3), np.uint8)
    rewards = np.empty((n, h), np.float32)
    distances = np.empty((n, h))
    for k in range(h):
        frames_u8[:, k], rewards[:, k], _, _ = worlds.step(actions[:, k])
        distances[:, k] = worlds.distance(positions)
    return frames_u8[:, -(last or h) :], rewards, distances


def foresee_in_turn(env, actions, positions, last=0):
    """`foresee` for a simulator of one world: play the sequences in turn, each from the same state."""
    start = env.state()
    futures = []
    for sequence in actions:
        env.restore(start)
        futures.append(foresee_at_once(env, sequence[None], positions, last))
    env.restore(start)
    return tuple(np.concatenate([future[k] for future in futures]) for k in range(3))


def random_policy(n, steps, seed, A=2):
    """Smooth random actions (steps, n, A) in [-1, 1]: each is noise plus 0.8 times the action before."""
    actions = np.random.default_rng(seed).normal(0, 0.6, (steps, n, A))
    for k in range(1, steps):
        actions[k] += 0.8 * actions[k - 1]
    return np.clip(actions, -1, 1)
