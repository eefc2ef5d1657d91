"""experiments/torture/small.py: the smallest data and models that a script works with, and how to run one.

    make_world(folder) --> data/ (PushWorld, 32x32), tokenizer.pt, gpt.pt, agent.pt    a minute
    attempt(script, flags) --fork--> its status, output and time
    fingerprint(out) --> the numbers that it has left"""

import contextlib
import hashlib
import json
import os
import re
import resource
import runpy
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

import torch

from checkpoints import checksum
from experiments.lab import flags

ROOT = Path(__file__).parents[2]
STEPS = dict(preset="tiny", batch_size=4, eval_segments=4, max_steps=2, eval_every=2, log_every=1, warmup=1)
TOKENIZER = dict(
    resolution=32, channels="16", code_dim=8, context_codes=32, dynamics_codes=32, norm_groups=4,
    revive_after=4, horizon=6, future_frames=2,
)  # fmt: skip
GPT = dict(n_layer=2, n_head=2, n_embd=32, n_mlp=64, segment_length=6)
AGENT = dict(
    preset="push", steps=60, seed_steps=30, demos=1, size=32, agent_size=16, channels=4, hidden=16,
    features=8, agent_batch=8, model_batch=2, segment=6, init_updates=1, gpt_every=60, tokenizer_every=60,
    starts=2, horizon=3, init_rollouts=1, rollout_every=60, eval_every=60, eval_episodes=2, save_every=60,
)  # fmt: skip
TIMES = "ms tok/s wait steps/s seconds frames/s minutes".split()  # in logs and results
NOT_NUMBERS = "command commit machine".split()  # in results


def base_flags(world):
    """{script: settings} with which each script does a second's work in the world, if `out` is given."""
    data = dict(data=world.data)
    model = dict(ckpt=world.gpt, device="cpu")
    post = dict(batch_size=1, mini_batches=1, group=2, max_steps=1, horizon=2, eval_segments=1, best_of=2)
    plan = dict(model, task="push_anywhere", models="world_model", episodes=1, seeds=1, steps=1, workers=1)
    plan.update(candidates=4, iterations=1, elites=2, horizon=2, last=1, diagnose=False, gifs=0)
    return {
        "train_tokenizer.py": {**STEPS, **TOKENIZER, **data},
        "train_gpt.py": {**STEPS, **GPT, **data, "tokenizer": world.tokenizer},
        "post_train.py": dict(data, ckpt=world.gpt, **post),
        "sample.py": dict(model, **data, n=1, horizon=2),
        "evaluate.py": dict(model, **data, episodes=2, horizon=2, batch_size=2, lpips=False),
        "plan.py": plan,
        "mbpo.py": dict(AGENT, init_from=world.gpt),
    }


def outputs(script):
    """A name for a script's OUT."""
    endings = {"sample.py": "", "evaluate.py": ".json", "plan.py": ".json"}
    return script.removesuffix(".py") + endings.get(script, ".pt")


def fingerprint(path):
    """The numbers in a script's output: a file of weights, results or pictures, or a folder of them."""
    if path.is_dir():
        return {file.name: fingerprint(file) for file in sorted(path.iterdir())}
    if path.suffix == ".json":
        return {k: v for k, v in json.loads(path.read_text()).items() if k not in NOT_NUMBERS + TIMES}
    if path.suffix == ".pt":
        state = torch.load(path, weights_only=True)
        parts = [state[name] for name in ("tokenizer", "gpt") if name in state]
        weights = [weight for part in parts for weight in part["weights"].values()]
        return checksum([*weights, *state.get("agent", {}).values()])
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Result(SimpleNamespace):
    """status (None: still at work and killed), stdout and stderr, seconds."""


def child(script, arguments, folder, memory):
    """What a forked process does: the script as if started from `folder`."""
    os.chdir(folder)
    if sys.platform == "linux":  # macOS takes the limit and does not enforce it
        held = int(re.search(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10
        resource.setrlimit(resource.RLIMIT_DATA, (held + memory, held + memory))
    sys.argv = [str(ROOT / script), *arguments]
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
        return 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 70


def attempt(script, arguments, folder, seconds, memory=4 << 30):
    """Run a script in a fork of this process, which has imported torch already -> a Result.

    After `seconds`, the process and all that it has started are killed; memory is what it may take beyond
    what this process holds, bytes"""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began = time.monotonic()
        pid = os.fork()
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)  # whichever of the two comes first, what it starts is in its group
        if not pid:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.stdout, sys.stderr = open(1, "w"), open(2, "w")
            status = child(script, [*map(str, arguments)], folder, memory)
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(status)
        status = None
        while time.monotonic() - began < seconds and status is None:
            done, code = os.waitpid(pid, os.WNOHANG)
            if done:
                status = os.waitstatus_to_exitcode(code)
            else:
                time.sleep(0.005)
        took = time.monotonic() - began
        if status is None:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read())
        return Result(status=status, stdout=texts[0], stderr=texts[1], seconds=took)


def must(script, arguments, folder):
    """An attempt that may take minutes and has to succeed -> its Result."""
    result = attempt(script, arguments, folder, 600)
    if result.status != 0:
        raise ChildProcessError(f"{script} failed: {result.stderr[-2000:]}")
    return result


def make_world(folder):
    """Data and checkpoints of two updates each -> their paths."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True)
    world = SimpleNamespace(folder=folder, data=folder / "data")
    for name in ("tokenizer", "gpt", "agent"):
        setattr(world, name, folder / f"{name}.pt")
    episodes = dict(episodes=12, val_every=4, length=20, size=32)
    must("prepare.py", ["push", *flags(out=world.data, **episodes)], folder)
    scripts = base_flags(world)
    for script, path in (
        ("train_tokenizer.py", world.tokenizer), ("train_gpt.py", world.gpt), ("mbpo.py", world.agent)
    ):  # fmt: skip
        must(script, flags(**scripts[script], out=path), folder)
    return world
