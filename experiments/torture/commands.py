"""experiments/torture/commands.py: random command lines; each ends in one line or does what it says.

    a script's settings that work --> one or two of them replaced by nonsense --> tracebacks, refusals of
    several lines or after SOON, files that a refused command has written, nonsense that was taken

One command in ten may go on for LONG, so that late refusals are seen; the others end after SOON."""

import importlib
import math
import random

from experiments.lab import flags
from experiments.torture.small import attempt, base_flags, must, outputs

INTEGERS = "x 1.5 nan inf -1 0 -999 1e9 99999999999999999999 true"
NUMBERS = "x nan inf -inf -1 0 1e300 1e-300 1,2"
WORDS = "maybe 2 none"
TEXTS = "/nowhere/x.pt x/y/z", "a" * 3000, "ü ä", "--", "*", ".", "..", "{}", "%s", "\\", "~", "a\nb"
LISTS = ", x -1 0 nan 1,2,3,4,5,6,7,8,9 99999999999 1,,2"
SOON = 2.0  # seconds
LONG = 20.0
HARMLESS = "given device dtype resume overwrite"


def nonsense(default, rng):
    """A value that a setting with this default should hardly ever have."""
    if isinstance(default, bool):
        values = WORDS.split()
    elif isinstance(default, int):
        values = INTEGERS.split()
    elif isinstance(default, float):
        values = NUMBERS.split()
    elif isinstance(default, tuple):
        values = LISTS.split()
    else:
        values = TEXTS
    return rng.choice(["", *values])


def is_absurd(default, text):
    """Whether no setting of this type can have that value: taking it is a mistake."""
    if isinstance(default, bool | str):
        return isinstance(default, bool)
    kind = type(default[0]) if isinstance(default, tuple) and default else type(default)
    try:
        return kind in (int, float) and not math.isfinite(kind(text))
    except ValueError:
        return not isinstance(default, tuple)


def listing(folder):
    """What lies in a folder: names, sizes and times."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        found[path] = status.st_size, status.st_mtime_ns
    return found


def last_words(result):
    """What is wrong with what a command said when it failed, or ""."""
    text = result.stdout + result.stderr
    if "Traceback" in text or result.status is not None and result.status < 0:
        return "traceback"
    lines = [line for line in result.stderr.splitlines() if line and "%|" not in line]  # less progress bars
    return "long" if result.status and len(lines) > 1 else ""


def complain(result, absurd, before, after):
    """What is wrong with how a command ended, or ""."""
    if wrong := last_words(result):
        return wrong
    if not result.status:  # done, or still at work
        return "taken" if absurd else ""
    if result.seconds > SOON:
        return "late"
    if before != after:
        return "written"
    return ""


def torture(world, tries, seed, say=print):
    """Run so many random commands -> counts, and the commands that went wrong by kind."""
    rng = random.Random(seed)
    scripts = base_flags(world)
    configs = {name: importlib.import_module(name.removesuffix(".py")).CONFIG for name in scripts}
    wrong = {}
    for script, settings in scripts.items():  # as they are, they work
        must(script, flags(**settings, out=world.folder / "works" / outputs(script)), world.folder)
    for i in range(tries):
        script = rng.choice(list(scripts))
        config = configs[script]
        keys = rng.sample([key for key in config if key not in HARMLESS.split()], rng.choice((1, 1, 2)))
        changes = {key: nonsense(config[key], rng) for key in keys}
        folder = world.folder / "tries" / str(i)
        folder.mkdir(parents=True)
        settings = dict(scripts[script], out=folder / outputs(script))
        before = listing(world.folder)
        arguments = flags(**{**settings, **changes})
        result = attempt(script, arguments, folder, LONG if i % 10 == 0 else SOON)
        absurd = any(is_absurd(config[key], value) for key, value in changes.items())
        kind = complain(result, absurd, before, listing(world.folder))
        if kind:
            line = " ".join([script, *flags(**changes)])
            wrong.setdefault(kind, []).append(line)
            say(f"{kind}: {line}\n    {(result.stderr or result.stdout).strip()[-300:]}")
    return dict(tried=tries, tracebacks=len(wrong.get("traceback", ())), wrong=wrong)
