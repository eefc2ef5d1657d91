"""prepare.py: one command for all data.

Run: python prepare.py push --out data/push      (and the other names of COMMANDS, each with --help)"""

import sys

from common import configure, run
from data import COMMANDS as COLLECTORS
from importers import IMPORTERS

COMMANDS = {**COLLECTORS, **IMPORTERS}


def main(argv):
    """Run one of COMMANDS: argv is its name, then its settings as --key value."""
    if not argv or argv[0] not in COMMANDS:
        raise SystemExit(f"expected one of {', '.join(COMMANDS)}")
    function, config = COMMANDS[argv[0]]
    run(lambda cfg: function(**vars(cfg)), configure(config, function.__doc__, argv[1:]))


if __name__ == "__main__":
    main(sys.argv[1:])
