"""prepare.py: one command for all data.

Run: python prepare.py push --out data/push --episodes 2000"""

import contextlib
import functools
import sys
import time

import numpy as np
from tqdm import tqdm

import importers
from common import configure, run
from data import EpisodeWriter
from envs import demonstrations, make_environment, play, script_episodes
from envs.base import HELD_OUT, random_policy
from envs.push import play_push

PUSH_CONFIG = dict(
    out="data/push",
    episodes=2000,
    length=60,  # actions per episode; frames are one more
    size=64,  # pixels per side
    seed=0,
    expert_share=0.6,  # of the episodes; the others are random play
    action_noise=0.3,  # standard deviation of what is added to the expert's actions
    robot="red",  # or "cyan", whose looks the released checkpoint has never seen
    scene=-1,  # >= 0: colours, light and sizes of this number in all episodes; -1: each has its own
    val_every=20,  # every 20th episode is for validation
)
METAWORLD_CONFIG = dict(
    out="data/metaworld",
    task="plate-slide",
    episodes=5,  # in which the scripted player succeeds
    seed=0,
    noise=0.0,  # standard deviation of what is added to its actions
    val_every=20,
)
SCRIPT_CONFIG = dict(
    out="data/push_red",
    tasks=("push_red",),  # of RoboDesk, robosuite_push, or of Meta-World
    episodes=200,  # of each, successful or not
    seed=0,
    noise=0.2,  # standard deviation of what is added to the script's actions
    random_share=0.3,  # of the episodes, played at random; VP2: 0, but then one learns to expect the script
    val_every=20,
)


def collect_push(out, episodes, val_every=20, robot="red", scene=-1, **how):
    """Write the episodes of `play_push`; prints success rates and speed."""
    if episodes < 1 or not 0 <= how["seed"] < HELD_OUT or how["action_noise"] < 0:
        raise ValueError(f"expected episodes >= 1, 0 <= seed < {HELD_OUT}, action_noise >= 0; got {how}")
    began, wins = time.time(), {"expert": [], "random": []}
    played = tqdm(play_push(episodes, robot=robot, scene=scene, **how), "push", episodes)
    source = f"PushWorld, {robot}, scene {scene}, seed {how['seed']}"
    with EpisodeWriter(out, source, val_every=val_every) as writer:
        for i, (*episode, kind, won) in enumerate(played):
            wins[kind].append(won)
            writer.add(*episode, f"{kind} {i}")
    rates = " | ".join(f"{kind} success {np.mean(w):.3f} of {len(w)}" for kind, w in wins.items() if w)
    speed = episodes * (how["length"] + 1) / (time.time() - began)
    print(f"{out}: {episodes} episodes | {rates} | {speed:.0f} frames/s")


def _write_played(out, source, val_every, tasks, seed, n, played):
    """Write n episodes of each task, which played(env) yields; tells of each how it ended."""
    with EpisodeWriter(out, f"{source}, seed {seed}", val_every=val_every) as writer:
        for task in tasks:
            with contextlib.closing(make_environment(task, seed=seed)) as env:
                for i, e in enumerate(tqdm(played(env), task, n)):
                    actions = np.concatenate([e["actions"], np.zeros_like(e["actions"][:1])])
                    writer.add(e["frames_u8"], actions, e["rewards"], f"{task} {i}")
                    outcome = "success" if e["success"] else "failure"
                    tqdm.write(f"{task} {i}: {outcome}, return {e['rewards'].sum():.1f}")


def collect_metaworld(out, task, episodes, seed, noise, val_every):
    """Write demonstrations of a task."""
    shown = functools.partial(demonstrations, n=episodes, noise=noise, seed=seed)
    _write_played(out, f"Meta-World {task}", val_every, (task,), seed, episodes, shown)


def collect_script(out, tasks, episodes, seed, noise, random_share, val_every):
    """Write so many episodes of each task, by its scripted player with noise, then a share at random."""
    if not 0 <= random_share <= 1:
        raise ValueError(f"--random_share is {random_share}; expected 0 to 1")
    n_random = round(random_share * episodes)

    def played(env):
        yield from script_episodes(env, episodes - n_random, noise, seed)
        wander = iter(random_policy(1, n_random * env.length, [seed, 1], env.action_dim))
        yield from play(env, n_random, lambda frames: next(wander))

    _write_played(out, f"{', '.join(tasks)}, noise {noise}", val_every, tasks, seed, episodes, played)


COMMANDS = {
    "push": (collect_push, PUSH_CONFIG),
    "metaworld": (collect_metaworld, METAWORLD_CONFIG),
    "script": (collect_script, SCRIPT_CONFIG),
}


def main(argv):
    """Run one of COMMANDS or IMPORTERS: argv is its name, then its settings as --key value."""
    commands = {**COMMANDS, **importers.IMPORTERS}
    if not argv or argv[0] not in commands:
        known = f"{', '.join(commands)} (each with --help)"
        if argv and argv[0] not in ("-h", "--help"):
            raise SystemExit(f"{argv[0]}: no such command; expected {known}")
        print(f"{__doc__}\n\ncommands: {known}")
        raise SystemExit(0)
    function, config = commands[argv[0]]
    doc = f"{sys.modules[function.__module__].__doc__}\n\n{argv[0]}: {function.__doc__}"
    run(lambda cfg: function(**vars(cfg)), configure(config, doc, argv[1:]))


if __name__ == "__main__":
    main(sys.argv[1:])
