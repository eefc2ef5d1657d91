"""experiments/torture: programs that try to break the scripts, and count what they broke.

    the smallest data and models --> commands.py, random command lines --> results/torture.json

Run: python -m experiments.torture                                  (POSIX alone: it forks and kills)"""

import tempfile

from common import configure, require_positive, run
from experiments.torture import commands, small
from support.results import claim_result, write_result

CONFIG = dict(
    commands=1000,  # random command lines
    seed=0,
    folder="",  # where to work; by default a temporary one
    out="results/torture.json",
    overwrite=False,
)


def main(cfg):
    require_positive(cfg, "commands")
    out = claim_result(cfg.out, cfg.overwrite)
    with tempfile.TemporaryDirectory(dir=cfg.folder or None) as folder:
        world = small.make_world(folder)
        numbers = dict(commands=commands.torture(world, cfg.commands, cfg.seed))
    write_result(out, numbers)


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__))
