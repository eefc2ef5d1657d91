"""experiments/torture: programs that try to break the scripts, and count what they broke.

    the smallest data and models --+--> commands.py: random command lines ----------+
                                   +--> damages.py: damaged files ------------------+--> OUT
                                   +--> hostile.py: files made to do harm ----------+
                                   +--> kills.py: SIGKILL at random moments --------+
                                   +--> faults.py: disks that are full, read-only --+
                                   +--> endurance.py: long loops -------------------+
                                   +--> processes.py: one of two is killed ---------+
                                   +--> machines.py: limits, users, folders --------+

What goes wrong is printed as it happens.

Run: python -m experiments.torture                                  (POSIX alone: it forks and kills)"""

import importlib
import os
import tempfile
from pathlib import Path

from common import configure, require_not_negative, run
from experiments.torture import (
    commands,
    damages,
    endurance,
    faults,
    hostile,
    kills,
    machines,
    processes,
    small,
)
from support.results import claim_result, write_result

CONFIG = dict(
    parts=("commands", "damages", "hostile", "kills", "faults", "endurance", "processes", "machines"),
    commands=1000,  # random command lines
    damages=200,
    kills=20,  # of each script
    disks=5,  # that are full, of each script
    endurance=1.0,  # how long its loops are; 1: up to 100,000 imagined frames, a million segments
    seed=0,
    out="results/torture.json",
    overwrite=False,
)
SCRIPTS = "train_tokenizer train_gpt post_train sample evaluate plan mbpo prepare".split()


def main(cfg):
    require_not_negative(cfg, "commands", "damages", "kills", "disks", "endurance")
    out = claim_result(cfg.out, cfg.overwrite)
    os.environ.update(CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1")
    for name in SCRIPTS:  # once, for all forks
        importlib.import_module(name)
    tortures = dict(
        commands=lambda world: commands.torture(world, cfg.commands, cfg.seed),
        damages=lambda world: damages.torture(world, cfg.damages, cfg.seed),
        hostile=hostile.torture,
        kills=lambda world: kills.torture(world, cfg.kills, cfg.seed),
        faults=lambda world: faults.torture(world, cfg.disks, cfg.seed),
        endurance=lambda world: endurance.torture(world, cfg.endurance),
        processes=processes.torture,
        machines=machines.torture,
    )
    if unknown := set(cfg.parts) - tortures.keys():
        raise ValueError(f"parts has {', '.join(unknown)}; expected some of {', '.join(tortures)}")
    numbers = {}
    for part in cfg.parts:
        with tempfile.TemporaryDirectory() as folder:
            world = small.make_world(Path(folder) / "world")
            numbers[part] = tortures[part](world)
        print(part, *(f"{key} {value}" for key, value in numbers[part].items() if isinstance(value, int)))
        write_result(out, numbers)


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__))
