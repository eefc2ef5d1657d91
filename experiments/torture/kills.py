"""experiments/torture/kills.py: SIGKILL at random moments; the command that README names goes on.

    a run, whole --> its numbers;  the same run, killed and begun again until it ends --> the same numbers

mbpo.py keeps the real episodes that it has played since its last checkpoint, and learns from them in another
order than it would have: of its runs, only the steps that were logged and counted are compared. A run that
is killed after its last file was written has ended; prepare.py refuses to write such a folder again."""

import random
import shutil

import numpy as np

from common import load_checkpoint
from experiments.lab import flags
from experiments.torture.small import TIMES, attempt, base_flags, fingerprint, must
from support.files import read_log

LONGER = dict(max_steps=12, eval_every=3)  # checkpoints in between


def runs(world):
    """{name: (script, arguments, OUT, whether it goes on by --resume true)}."""
    scripts = base_flags(world)
    agent = dict(scripts["mbpo.py"], steps=180)
    post = dict(scripts["post_train.py"], max_steps=4, eval_every=1)
    many = dict(scripts["evaluate.py"], episodes=3, samples=2, batch_size=2)
    plans = dict(scripts["plan.py"], episodes=3)
    resumed = {
        "train_tokenizer.py": ({**scripts["train_tokenizer.py"], **LONGER}, "new.pt"),
        "train_gpt.py": ({**scripts["train_gpt.py"], **LONGER}, "new.pt"),
        "post_train.py": (post, "new.pt"),
        "mbpo.py": (agent, "new.pt"),
    }
    table = {name: (name, flags(**settings), out, True) for name, (settings, out) in resumed.items()}
    table["evaluate.py"] = "evaluate.py", flags(**many), "numbers.json", False
    table["plan.py"] = "plan.py", flags(**plans), "plan.json", False
    push = flags(episodes=40, length=20, size=32)
    table["prepare.py push"] = "prepare.py", ["push", *push], "push", False
    npz = flags(src=world.folder / "npz", workers=2)
    table["prepare.py npz"] = "prepare.py", ["npz", *npz], "npz-data", False
    table["sample.py"] = "sample.py", flags(**{**scripts["sample.py"], "n": 4}), "pictures", False
    return table


def write_episodes(folder):
    """Episodes as .npz files, for an importer."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(30):
        frames = rng.integers(0, 256, (20, 32, 32, 3), np.uint8)
        np.savez(folder / f"{i}.npz", image=frames, action=rng.uniform(-1, 1, (20, 2)))


def numbers(name, out):
    """What a finished run has left: OUT, and the lines of its log without what takes time."""
    log = out.with_suffix(".jsonl")
    lines = read_log(log) if out.suffix == ".pt" else []
    if name == "mbpo.py":
        return load_checkpoint(out)["counts"], [line["step"] for line in lines]
    return fingerprint(out), [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def go_on(run, folder):
    """The script and the arguments with which a run begins, or goes on with what a folder holds of it."""
    script, arguments, out, resumes = run
    again = ["--resume=true"] if resumes and (folder / out).exists() else []
    return script, [*arguments, *again, f"--out={folder / out}"]


def torture(world, tries, seed, say=print):
    """Kill each script so many times -> counts; lost: it ended with other numbers, or could not go on."""
    rng = random.Random(seed)
    write_episodes(world.folder / "npz")
    folder = world.folder / "kills"
    lost = {}
    killed = 0
    for name, command in runs(world).items():
        out = folder / command[2]
        folder.mkdir()
        whole = must(*go_on(command, folder), folder)
        expected = numbers(name, out)
        for _ in range(tries):
            shutil.rmtree(folder)
            folder.mkdir()
            moments = []
            while True:
                seconds = rng.uniform(0, whole.seconds) if len(moments) < 2 else 300
                result = attempt(*go_on(command, folder), folder, seconds)
                is_whole = out.exists() and numbers(name, out) == expected
                if result.status is not None or is_whole:
                    break
                moments.append(round(seconds, 2))
            killed += len(moments)
            if result.status or not is_whole:
                lost.setdefault(name, []).append(moments)
                say(f"lost: {name}, killed after {moments} s of {whole.seconds:.2f}: {result.stderr[-300:]}")
        shutil.rmtree(folder)
    return dict(tried=killed, lost=sum(map(len, lost.values())), at=lost)
