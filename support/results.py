"""support/results.py: where numbers come from, and how they are written, read and drawn."""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import torch

from support.files import beside, claim, read_log, write_whole


def cpu_name():
    """Such as "2 x AMD EPYC"."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        name = re.search(r"model name\s*: (.*)|$", Path("/proc/cpuinfo").read_text())[1] or name
    return f"{os.cpu_count()} x {name}"


def provenance():
    """What a result must say to be believed: the command, the commit and the machine."""

    def git(*args):
        command = ["git", "-C", Path(__file__).parent, *args]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    try:  # results and pictures may have changed
        changed = git("status", "--short", "--untracked-files=no", ":!results", ":!assets")
        commit = (git("rev-parse", "--short", "HEAD") or "unknown") + ("-dirty" if changed else "")
    except OSError:  # no git here
        commit = "unknown"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    machine = f"{cpu_name()}, {gpu}, torch {torch.__version__}"
    return dict(command=command_line(), commit=commit, machine=machine)


def command_line():
    """How this script was called, less --overwrite."""
    words = " ".join(["python", *sys.argv])
    return re.sub(r" --overwrite[ =]\S+", "", words)


def read_result(path):
    """What `write_result` wrote; {} where there is no such file."""
    try:
        numbers = json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return {}
    return numbers if isinstance(numbers, dict) else {}


def claim_result(out, overwrite, endings=(".md", ".png")):
    """`claim` a result before the work. The same command replaces its numbers; another one's are refused.

    returns  its Path;  raises  ValueError"""
    is_same = read_result(out).get("command") == command_line()
    return claim(out, endings, overwrite or is_same)


def write_result(path, numbers):
    """Write numbers and where they come from to a .json file."""
    write_whole(path, (json.dumps({**numbers, **provenance()}, indent=1) + "\n").encode())
    print(f"written to {path}")


def read_curve(path, kind="val_"):
    """Numbers whose names begin with `kind` in a trainer's .jsonl file: {name: [[step, value], ...]}."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no learning curve at {path}; pass the .jsonl files beside a trainer's checkpoint"
        )
    curve = {}
    for numbers in read_log(path):
        for name in (k for k, v in numbers.items() if k.startswith(kind) and not isinstance(v, list)):
            curve.setdefault(name, []).append([numbers["step"], float(f"{numbers[name]:.4g}")])
    return curve


def draw_curves(path, panels, log_x=False):
    """Line plots side by side, if matplotlib is there; else a line that says so.

    panels  (title, what x is, what y is, {name: [(x, y), ...]})"""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print(f"no {path}: pip install matplotlib (the .json file has the numbers)")
        return
    figure, axes = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 3), squeeze=False)
    for axis, (title, x, y, lines) in zip(axes[0], panels, strict=True):
        for name, points in lines.items():
            axis.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 10 else "")
        axis.set(title=title, xlabel=x, ylabel=y, xscale="log" if log_x else "linear")
        axis.grid(alpha=0.3)
        if len(lines) > 1:
            axis.legend()
    figure.tight_layout()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    print(f"drawn to {path}")


def report(out, columns, errors=None, missing=None, **others):
    """Print a table, {column: {row: number}}, and write it to OUT with all others, and as Markdown beside it.

    errors  standard errors, as columns;  missing  {metric: why it is not there}"""
    rows = list(dict.fromkeys(row for column in columns.values() for row in column))
    units = dict(psnr="PSNR (dB)", mse="MSE", ssim="SSIM", lpips="LPIPS", fvd="FVD")
    cells = [["", *(units.get(name, name) for name in columns)]]
    for row in rows:
        cells.append([row])
        for name, column in columns.items():
            value = column.get(row, "")
            text = f"{value:#.4g}".rstrip(".") if isinstance(value, float) else str(value)
            error = errors[name][row] if text and errors else 0
            cells[-1].append(f"{text} ± {error:.2g}" if error else text)
    width = [2 + max(map(len, column)) for column in zip(*cells, strict=True)]
    for first, *numbers in cells:
        print("".join([first.ljust(width[0]), *map(str.rjust, numbers, width[1:])]))
    for name, remedy in (missing or {}).items():
        print(f"{name.upper()}: {remedy}")
    others.update(dict(stderr=errors) if errors else {}, missing=missing or {})
    write_result(out, {**columns, **others})
    lines = ["| " + " | ".join(line) + " |" for line in cells]
    text = "\n".join([lines[0], "|---" * len(width) + "|", *lines[1:], ""])
    write_whole(beside(out, ".md"), text.encode())
