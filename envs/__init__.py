"""envs: worlds to collect data in, to plan in and to learn in, a file each. base.py says what a world is."""

import numpy as np

from envs.metaworld import MetaWorld, metaworld_tasks
from envs.push import PushWorld
from envs.pusht import PushT
from envs.robodesk import DESK, RoboDesk
from envs.robosuite import RobosuitePush


def make_environment(task, n=1, seed=0, size=64, scene=-1, robot="red"):
    """The world of a task; close it after use. Robots' worlds are one at a time, whatever n is.

    raises  ValueError for an unknown task or setting, ImportError without the simulator's package"""
    if task in ("push", "push_anywhere"):
        return PushWorld(n, size, seed, scene=scene, robot=robot, anywhere=task == "push_anywhere")
    if (scene, robot) != (-1, "red"):
        raise ValueError(f"task is {task!r}; only PushWorld's, push, has a scene and a robot to choose")
    if task in ("pusht", "pusht_anywhere"):
        return PushT(size, seed, anywhere=task == "pusht_anywhere")
    if task in DESK:
        return RoboDesk(task, size, seed)
    if task == "robosuite_push":
        return RobosuitePush(size, seed)
    names = metaworld_tasks()
    if task in names:
        return MetaWorld(task, size, seed)
    known = f"push (PushWorld), {', '.join(DESK)} (RoboDesk), robosuite_push, push_anywhere, pusht"
    raise ValueError(f"task is {task!r}; expected {known} or, of Meta-World, {', '.join(names)}")


def play(env, episodes, act):
    """Play episodes and yield each as a dict: frames_u8 (T,H,W,3), actions (T-1,A), rewards (T,), success.

    act  function: frames_u8 of the episode so far, a list of (n,H,W,3) -> actions (n,A)"""
    for first in range(0, episodes, env.n):
        frames = [env.reset()]
        actions = []
        rewards = [np.zeros(env.n, np.float32)]  # none leads to the first frame
        won = np.zeros(env.n, bool)
        done = False
        while not np.all(done):
            action = np.clip(act(frames), -1, 1).astype(np.float32)
            frame, reward, success, done = env.step(action)
            frames.append(frame)
            actions.append(action)
            rewards.append(reward)
            won = won | success
        frames_u8 = np.stack(frames, 1)
        actions = np.stack(actions, 1)
        rewards = np.stack(rewards, 1)
        for i in range(min(env.n, episodes - first)):
            yield dict(frames_u8=frames_u8[i], actions=actions[i], rewards=rewards[i], success=won[i])


def script_episodes(env, n, noise=0.0, seed=0):
    """Yield n episodes (as `play` does) of the scripted player plus noise of that standard deviation."""
    rng = np.random.default_rng(seed)

    def act(frames):
        return env.expert() + noise * rng.normal(size=(env.n, env.action_dim))

    return play(env, n, act)


def demonstrations(env, n, noise=0.0, seed=0):
    """Yield the first n successes of `script_episodes`.   raises  ValueError after 20 n episodes"""
    found = 0
    for episode in script_episodes(env, 20 * n, noise, seed):
        if episode["success"]:
            found += 1
            yield episode
        if found == n:
            return
    raise ValueError(f"{found} successes in {20 * n} episodes of the scripted player; lower the noise")
