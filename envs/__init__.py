"""envs: worlds to collect data in, to plan and to learn in; a file each."""

import numpy as np

from envs.metaworld import MetaWorld
from envs.push import PushWorld
from envs.robodesk import DESK, RoboDesk
from envs.robosuite import RobosuitePush


def make_environment(task, n=1, seed=0, size=64, scene=-1, robot="red"):
    """PushWorld, n worlds at once, if task is "push", or "push_anywhere"; VP2's tasks of RoboDesk (DESK) and
    "robosuite_push"; else that task of Meta-World. PushWorld alone has scenes and robots to choose from.

    raises  ValueError"""
    if task in ("push", "push_anywhere"):
        return PushWorld(n, size, seed, scene=scene, robot=robot, anywhere=task == "push_anywhere")
    if (scene, robot) != (-1, "red"):
        raise ValueError(f"task is {task!r}; only PushWorld's, push, has a scene and a robot to choose")
    if task == "robosuite_push":
        return RobosuitePush(size, seed)
    return RoboDesk(task, size, seed) if task in DESK else MetaWorld(task, size, seed)


def play(env, episodes, act):
    """Play episodes; yields of each a dict: frames_u8 (T,H,W,3), actions (T-1,A), rewards (T,), success.

    act  frames_u8 so far, a list of (n,H,W,3) -> actions (n,A) for the n worlds of env"""
    for first in range(0, episodes, env.n):
        frames, actions, rewards, won, done = [env.reset()], [], [np.zeros(env.n, np.float32)], False, False
        while not np.all(done):
            actions.append(np.clip(act(frames), -1, 1).astype(np.float32))
            frame, reward, success, done = env.step(actions[-1])
            frames.append(frame)
            rewards.append(reward)
            won = won | success
        columns = np.stack(frames, 1), np.stack(actions, 1), np.stack(rewards, 1), won
        for row in list(zip(*columns, strict=True))[: episodes - first]:
            yield dict(zip(("frames_u8", "actions", "rewards", "success"), row, strict=True))


def script_episodes(env, n, noise=0.0, seed=0):
    """Yield n episodes (`play`) of the scripted player, with noise of that deviation added."""
    rng = np.random.default_rng(seed)
    return play(env, n, lambda frames: env.expert() + noise * rng.normal(size=(env.n, env.action_dim)))


def demonstrations(env, n, noise=0.0, seed=0):
    """Yield n of the `script_episodes` that are successes.   raises  ValueError if hardly any is"""
    found = 0
    for episode in script_episodes(env, 20 * n, noise, seed):
        if episode["success"]:
            yield episode
            found += 1
            if found == n:
                return
    raise ValueError(f"{found} successes in {20 * n} episodes of the scripted player; lower the noise")
