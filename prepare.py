"""prepare.py: one command for all data: plays worlds (envs/), imports other people's data sets (importers/).

    PushWorld, RoboDesk, robosuite, Meta-World --push, script, metaworld--+
                                                                          +--> a folder of episodes (data.py)
    videos, npz, HDF5, TFRecords, LeRobot ... --importers.IMPORTERS-------+
    episodes --tokens, by a trained tokenizer--> a file of segments that it has encoded (support/tokens.py)

Run: python prepare.py push --out data/push --episodes 2000     (--help after a command lists its settings)
     python prepare.py video --src FOLDER --out data/mine --size 64"""

import contextlib
import functools
import multiprocessing
import os
import sys

import numpy as np
from tqdm import tqdm

import importers
from common import configure, run
from envs import demonstrations, make_environment, play, script_episodes
from envs.base import HELD_OUT, random_policy
from envs.push import play_push
from envs.pusht import PLAY, play_pusht
from support import tokens
from support.writer import EpisodeWriter

PUSH_CONFIG = dict(
    out="data/push",
    episodes=2000,
    length=60,  # actions per episode; frames are one more
    size=64,  # pixels per side
    seed=0,
    expert_share=0.6,  # of the episodes; the others are random play
    action_noise=0.3,  # standard deviation, added to the expert's actions
    robot="red",  # or "cyan", which the released checkpoint has never seen
    scene=-1,  # >= 0: colours, light and sizes of this number in all episodes; -1: each has its own
    val_every=20,  # every 20th episode is for validation
)
PUSHT_CONFIG = dict(
    out="data/pusht",
    episodes=12_000,
    size=64,
    seed=0,
    **PLAY,
    val_every=20,
    workers=0,  # processes; 0: one per core
)
SCRIPT_CONFIG = dict(
    out="data/push_red",
    tasks=("push_red",),  # of RoboDesk, robosuite_push, or of Meta-World
    episodes=200,  # of each task
    seed=0,
    noise=0.2,  # standard deviation, added to the scripted player's actions
    random_share=0.3,  # of the episodes are random play; VP2: 0, but then a model learns to expect the script
    val_every=20,
)
METAWORLD_CONFIG = dict(out="data/metaworld", task="plate-slide", episodes=5, seed=0, noise=0.0, val_every=20)


def collect(out, source, val_every, n, episodes):
    """Write n episodes, pairs (name and number, what `envs.play` yields); prints success rates."""
    wins = {}
    with EpisodeWriter(out, source, val_every=val_every) as writer:
        for name, episode in tqdm(episodes, source, n):
            actions = np.pad(episode["actions"], ((0, 1), (0, 0)))  # no action follows the last frame
            writer.add(episode["frames_u8"], actions, episode["rewards"], name)
            wins.setdefault(name.split()[0], []).append(episode["success"])
    for name, successes in wins.items():
        print(f"{out}: {name} success {np.mean(successes):.3f} of {len(successes)}")


def collect_push(out, episodes, val_every=20, robot="red", scene=-1, **how):
    """Episodes of PushWorld, by its noisy scripted player and of random play."""
    if episodes < 1 or not 0 <= how["seed"] < HELD_OUT or how["action_noise"] < 0:
        raise ValueError(f"expected episodes >= 1, 0 <= seed < {HELD_OUT}, action_noise >= 0; got {how}")
    played = play_push(episodes, robot=robot, scene=scene, **how)
    named = ((f"{episode['kind']} {i}", episode) for i, episode in enumerate(played))
    collect(out, f"PushWorld, {robot}, scene {scene}, seed {how['seed']}", val_every, episodes, named)


def collect_pusht(out, episodes, length, chunk, size, seed, expert_share, action_noise, val_every, workers):
    """Episodes of PushT, by its noisy scripted player and of random play."""
    if min(episodes, length, chunk) < 1 or not 0 <= seed < HELD_OUT or action_noise < 0:
        raise ValueError(f"expected episodes, length, chunk >= 1, 0 <= seed < {HELD_OUT}, action_noise >= 0")
    how = dict(seed=seed, size=size, length=length, chunk=chunk)
    how.update(expert_share=expert_share, action_noise=action_noise)
    with multiprocessing.get_context("spawn").Pool(workers or os.cpu_count()) as pool:
        played = pool.imap(functools.partial(play_pusht, **how), range(episodes), chunksize=8)
        named = ((f"{episode['kind']} {i}", episode) for i, episode in enumerate(played))
        collect(out, f"PushT, seed {seed}", val_every, episodes, named)


def play_tasks(tasks, seed, player):
    """Yield the episodes that player(env) yields of each task, with their names."""
    for task in tasks:
        with contextlib.closing(make_environment(task, seed=seed)) as env:
            for i, episode in enumerate(player(env)):
                yield f"{task} {i}", episode


def collect_metaworld(out, task, episodes, seed, noise, val_every):
    """Demonstrations of a task of Meta-World: successes of its scripted player."""
    played = play_tasks((task,), seed, lambda env: demonstrations(env, episodes, noise, seed))
    collect(out, f"Meta-World {task}, seed {seed}", val_every, episodes, played)


def collect_script(out, tasks, episodes, seed, noise, random_share, val_every):
    """Episodes of any world's tasks, by the scripted player with noise, then a share of random play."""
    if not 0 <= random_share <= 1:
        raise ValueError(f"--random_share is {random_share}; expected 0 to 1")
    n_random = round(random_share * episodes)

    def player(env):
        yield from script_episodes(env, episodes - n_random, noise, seed)
        wander = iter(random_policy(1, n_random * env.length, [seed, 1], env.action_dim))
        yield from play(env, n_random, lambda frames: next(wander))

    source = f"{', '.join(tasks)}, noise {noise}, seed {seed}"
    collect(out, source, val_every, episodes * len(tasks), play_tasks(tasks, seed, player))


COMMANDS = {
    "push": (collect_push, PUSH_CONFIG),
    "pusht": (collect_pusht, PUSHT_CONFIG),
    "script": (collect_script, SCRIPT_CONFIG),
    "metaworld": (collect_metaworld, METAWORLD_CONFIG),
    "tokens": (tokens.tokenize_segments, tokens.TOKENS_CONFIG),
    **importers.IMPORTERS,
}


def main(argv):
    """Run one of COMMANDS: argv is its name, then its settings as --key value."""
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        print(f"{__doc__}\n\ncommands:")
        for command, (function, _) in COMMANDS.items():
            print(f"  {command:12}{function.__doc__.splitlines()[0]}")
        raise SystemExit(0)
    if name not in COMMANDS:
        raise SystemExit(f"{name}: no such command; expected {', '.join(COMMANDS)} (each with --help)")
    function, config = COMMANDS[name]
    doc = f"{sys.modules[function.__module__].__doc__}\n\n{name}: {function.__doc__}"
    run(lambda cfg: function(**vars(cfg)), configure(config, doc, argv[1:]))


if __name__ == "__main__":
    main(sys.argv[1:])
