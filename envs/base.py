"""envs/base.py: what all worlds share."""

import numpy as np

HELD_OUT = 1_000_000  # seeds of worlds from here on are for evaluation


def require_actions(actions, shape):
    """Raise ValueError unless actions are finite numbers of this shape."""
    if np.shape(actions) != shape or not np.isfinite(actions).all():
        raise ValueError(f"actions are {np.shape(actions)} or not finite; expected numbers {shape}")

def random_policy(n, steps, seed, A=2):
    """Wandering actions (steps, n, A) in [-1, 1]: each keeps 0.8 of the one before."""
    actions = np.random.default_rng(seed).normal(0, 0.6, (steps, n, A))
    for k in range(1, steps):
        actions[k] += 0.8 * actions[k - 1]
    return np.clip(actions, -1, 1)

def foresee_in_turn(env, actions, places):
    """`PushWorld.foresee` in a simulator of one world, which is taken back after each sequence."""
    state, seen = env.state(), []
    for sequence in actions:
        env.restore(state)
        for action in sequence:
            frame, reward, *_ = env.step(action[None])
            seen.append((frame[0], reward[0], env.distance(places)[0]))
    env.restore(state)
    columns = (np.stack(column) for column in zip(*seen, strict=True))
    return tuple(x.reshape(*actions.shape[:2], *x.shape[1:]) for x in columns)
