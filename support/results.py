"""support/results.py: where numbers come from, and how they are written, read and drawn.

    numbers --write_result--> OUT.json, with command, commit and machine --read_result--> numbers
    a table --report--> the screen, OUT.json and OUT.md
    a trainer's .jsonl --read_curve--> {name: [[step, value], ...]} --draw_curves--> a picture"""

import json
import os
import platform
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import torch

from support.files import beside, claim, read_log, write_whole

UNITS = dict(psnr="PSNR (dB)", mse="MSE", ssim="SSIM", lpips="LPIPS", fvd="FVD")


def cpu_name():
    """Such as "2 x AMD EPYC"."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        name = re.search(r"model name\s*: (.*)|$", Path("/proc/cpuinfo").read_text())[1] or name
    return f"{os.cpu_count()} x {name}"


def command_line():
    """How this script was called, without --overwrite."""
    script = Path(sys.argv[0])
    name = f"-m experiments.{script.stem}" if script.parent.name == "experiments" else str(script)
    return re.sub(r" --overwrite[ =]\S+", "", " ".join(["python", name, *sys.argv[1:]]))


@cache
def provenance():
    """The command, the commit and the machine behind a result, as they are when first asked for."""
    here = dict(cwd=Path(__file__).parents[1], stderr=subprocess.DEVNULL, text=True)
    try:  # results and pictures may have changed
        commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], **here).strip()
        if subprocess.check_output(["git", "status", "--short", "-uno", ":!results", ":!assets"], **here):
            commit += "-dirty"
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        commit = "unknown"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    machine = f"{cpu_name()}, {gpu}, torch {torch.__version__}"
    return dict(command=command_line(), commit=commit, machine=machine)


def read_result(path):
    """What `write_result` wrote; {} where there is no such file."""
    try:
        numbers = json.loads(Path(path).read_text())
    except (OSError, ValueError):
        numbers = {}
    return numbers if isinstance(numbers, dict) else {}


def claim_result(out, overwrite, endings=(".md", ".png")):
    """`claim` a result before the work. Only the same command may replace it without `overwrite`."""
    provenance()  # the files may change while this code works
    is_same = read_result(out).get("command") == command_line()
    return claim(out, endings, overwrite or is_same)


def write_result(path, numbers):
    """Write numbers and their provenance to a .json file."""
    write_whole(path, (json.dumps({**numbers, **provenance()}, indent=1) + "\n").encode())
    print(f"written to {path}")


def report(out, columns, errors=None, missing=None, **others):
    """Print a table, {column: {row: number}}, and write it as Markdown and, with `others`, as JSON.

    errors  standard errors, as columns;  missing  {metric: why it is not there}"""
    lines = {"": {name: UNITS.get(name, name) for name in columns}, "---": dict.fromkeys(columns, "---")}
    for name, column in columns.items():
        for row, value in column.items():
            text = f"{value:#.4g}".rstrip(".") if isinstance(value, float) else str(value)
            error = errors[name][row] if errors else 0
            lines.setdefault(row, {})[name] = f"{text} ± {error:.2g}" if error else text
    width = max(map(len, lines))
    table = ""
    for row, line in lines.items():
        cells = [f"{line.get(name, ''):>16}" for name in columns]
        table += " | ".join([f"| {row:{width}}", *cells]) + " |\n"
    print(table, end="")
    for name, reason in (missing or {}).items():
        print(f"{name.upper()}: {reason}")
    if errors:
        others["stderr"] = errors
    write_result(out, {**columns, **others, "missing": missing or {}})
    write_whole(beside(out, ".md"), table.encode())


def read_curve(path, kind="val_"):
    """The numbers of a trainer's .jsonl file whose names begin with `kind`: {name: [[step, value], ...]}."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no learning curve at {path}; pass the .jsonl file beside a checkpoint")
    curve = {}
    for numbers in read_log(path):
        for name, value in numbers.items():
            if name.startswith(kind) and not isinstance(value, list):
                curve.setdefault(name, []).append([numbers["step"], float(f"{value:.4g}")])
    return curve


def draw_curves(path, panels, log_x=False):
    """Draw line plots side by side; panels (title, x label, y label, {name: [(x, y), ...]}).

    Points may have four numbers: x, y, and the lower and upper edge of a band."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        return print(f"no {path}: pip install matplotlib (the .json file has the numbers)")
    size = 4.5 * len(panels), 3
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, layout="constrained")
    for axis, (title, x, y, lines) in zip(axes[0], panels, strict=True):
        for name, points in lines.items():
            x_y, edges = np.split(np.array(points).T, [2])
            axis.plot(*x_y, label=name, marker=".", markersize=3)
            if len(edges):
                axis.fill_between(x_y[0], *edges, alpha=0.2)
        axis.set(title=title, xlabel=x, ylabel=y, xscale="log" if log_x else "linear")
        axis.grid(alpha=0.3)
        if len(lines) > 1:
            axis.legend()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    print(f"drawn to {path}")
