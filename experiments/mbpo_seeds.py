"""experiments/mbpo_seeds.py: mbpo.py with many seeds and settings, as many runs at a time as there are cores.

    VARIANTS x seeds --queue--> python mbpo.py, one thread each --> FOLDER/NAME-SEED.pt, .jsonl, .log
                                            mbpo_report.py <-- FOLDER

A run that was interrupted goes on from its last checkpoint, and a finished one is left alone.

Run: python -m experiments.mbpo_seeds                             (a night on two cores)
     python -m experiments.mbpo_seeds --variants short,real_75 --first_seed 100 --folder out/study"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from common import configure, require_positive, run
from experiments.lab import flags

CONFIG = dict(
    variants=("mbpo", "drq"),
    preset="push",
    seeds=10,
    first_seed=0,
    steps=3600,  # of the environment, of each run
    processes=0,  # runs at a time; 0: one for each core
    folder="out/mbpo",
)
VARIANTS = dict(
    mbpo={},
    drq=dict(imagine=False),
    anew=dict(keep_heads=False),  # the world model has seen other episodes, but no actions and rewards
    short=dict(horizon=3),
    warm=dict(seed_steps=900),  # imagination begins after three times as many real steps
    real_75=dict(real_share=0.75),
    greedy=dict(temperature=0.5, top_k=10),  # imagines the likeliest, not what may happen
)


def command(cfg, variant, seed):
    """The command that begins or continues a run, and the log it is to have."""
    out = Path(cfg.folder) / f"{variant}-{seed}.pt"
    settings = dict(preset=cfg.preset, steps=cfg.steps, seed=seed, resume=out.is_file(), out=out)
    settings["keep_agents"] = True  # for policies.py
    script = str(Path(__file__).parent.with_name("mbpo.py"))
    arguments = flags(**{**settings, **VARIANTS[variant]})
    return [sys.executable, script, *arguments], out.with_suffix(".log")


def work(jobs, processes):
    """Run (command, log) jobs, `processes` at a time; returns the logs of those that failed."""
    waiting = list(jobs)
    running = {}
    failed = []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                line, log = waiting.pop(0)
                with open(log, "a") as file:
                    running[log] = subprocess.Popen(line, stdout=file, stderr=file, env=environment)
                print(f"{log}: begun, {len(waiting)} to go", flush=True)
            time.sleep(0.5)
            for log, child in list(running.items()):
                if child.poll() is not None:
                    del running[log]
                    failed += [log] if child.returncode else []
    finally:
        for child in running.values():
            child.terminate()  # it saves
        for child in running.values():
            child.wait()
    return failed


def main(cfg):
    require_positive(cfg, "seeds", "steps")
    unknown = set(cfg.variants) - VARIANTS.keys()
    if unknown:
        names = ", ".join(VARIANTS)
        raise ValueError(f"variants has {', '.join(sorted(unknown))}; expected some of {names}")
    Path(cfg.folder).mkdir(parents=True, exist_ok=True)
    jobs = []
    for seed in range(cfg.first_seed, cfg.first_seed + cfg.seeds):
        jobs += [command(cfg, variant, seed) for variant in cfg.variants]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        failed = work(jobs, cfg.processes or os.cpu_count() or 1)
    except KeyboardInterrupt:
        raise SystemExit(f"{cfg.folder} is kept: the same command continues") from None
    if failed:
        raise ChildProcessError(f"some runs have failed: see {', '.join(map(str, failed))}")


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__))
