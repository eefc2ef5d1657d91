"""experiments/torture/processes.py: SIGKILL to one of two processes that train together.

    two processes, under torchrun and without --> the other ends, and none is left --> --resume goes on"""

import os
import signal
import socket
import subprocess
import sys
import time

from experiments.lab import flags
from experiments.torture.small import ROOT, base_flags
from support.files import read_log

SECONDS = 120  # in which the other has to end


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def under_torchrun(script, arguments, **how):
    """Two processes with a third that watches them -> [it]."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port"]
    return [subprocess.Popen([*launch, str(free_port()), script, *arguments], **how)]


def by_hand(script, arguments, env, **how):
    """Two processes that nobody watches."""
    env = {**env, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    started = []
    for rank in map(str, range(2)):
        ranks = {"RANK": rank, "LOCAL_RANK": rank}
        started.append(subprocess.Popen([sys.executable, script, *arguments], env={**env, **ranks}, **how))
    return started


def children(pid):
    """Numbers of the processes that a process has started."""
    listed = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout
    return [int(line) for line in listed.split()]


def wait_for_checkpoint(out, started):
    """Until a run has saved, and learned on."""
    end = time.monotonic() + SECONDS
    while not out.exists() or len(read_log(out.with_suffix(".jsonl"))) < 5:
        if time.monotonic() > end or any(process.poll() is not None for process in started):
            raise ChildProcessError("the run did not get to its first checkpoint")
        time.sleep(0.1)


def killed(launch, script, arguments, out, how):
    """Kill the second process -> "", or what went wrong."""
    started = launch(script, arguments, **how)
    try:
        wait_for_checkpoint(out, started)
        victim = children(started[0].pid)[-1] if len(started) == 1 else started[1].pid
        os.kill(victim, signal.SIGKILL)
        for process in started:
            process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        return "the other process did not end"
    finally:
        for process in started:
            for pid in [*children(process.pid), process.pid]:
                subprocess.run(["kill", "-9", str(pid)], capture_output=True)
            process.wait()
    if started[0].returncode == 0:
        return "it ended as if nothing had happened"
    return ""


def torture(world, say=print):
    """Both trainers, both ways -> counts, and what went wrong."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    folder = world.folder / "processes"
    folder.mkdir()
    found = {}
    tried = 0
    for script in ("train_tokenizer.py", "train_gpt.py"):
        for launch in (under_torchrun, by_hand):
            name = f"{script} {launch.__name__}"
            out = folder / f"{tried}.pt"
            settings = {**base_flags(world)[script], "max_steps": 10**6, "eval_every": 3, "out": out}
            with open(folder / f"{tried}.log", "w") as log:
                how = dict(env=environment, stdout=log, stderr=log, cwd=folder)
                said = killed(launch, str(ROOT / script), flags(**settings), out, how)
                if not said:
                    steps = read_log(out.with_suffix(".jsonl"))[-1]["step"]
                    again = flags(**{**settings, "max_steps": steps + 6}, resume=True)
                    if any(process.wait(SECONDS) for process in launch(str(ROOT / script), again, **how)):
                        said = "it does not go on"
            tried += 1
            if said:
                found[name] = said
                say(f"{name}: {said}: {(folder / log.name).read_text()[-300:]}")
    return dict(tried=tried, failed=len(found), found=found)
