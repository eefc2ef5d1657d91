"""common.py: what every script needs and what teaches nothing about world models.

    CONFIG (a flat dict at the top of a script) --configure--> cfg.key
    torchrun --setup_ddp--> rank, world, device
    models, optimizers, counters --save_checkpoint--> one file --load_checkpoint--> the same plain data
    a training loop --Progress--> when to log, evaluate, save and stop

Files are claimed and written by support/files.py, devices are in support/devices.py."""

import difflib
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
import zipfile
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist

from support.devices import keep_memory
from support.files import beside, claim, one_line, read_log, replacing, require_content, write_whole


def parse_number(kind, text):
    """An int, float or str of a text.   raises  ValueError at one that is not finite or needs over 64 bits"""
    value = kind(text)
    if kind is not str and not abs(value) < 2**63:
        raise ValueError
    return value


def parse_value(key, text, default):
    """One command-line value, in the type of its default; a tuple is written 32,64,64."""
    try:
        if isinstance(default, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if isinstance(default, tuple):
            kind = type(default[0]) if default else str
            return tuple(parse_number(kind, part) for part in text.split(",") if part)
        return parse_number(type(default), text)
    except (ValueError, KeyError):
        like = ",".join(map(str, default)) if isinstance(default, tuple) else default
        raise SystemExit(f"--{key} {text}: expected a {type(default).__name__}, like {like}") from None


def parse_arguments(args, config):
    """Arguments `--key value` or `--key=value` -> {key: value}.   exits with one line at a mistake"""
    given = {}
    args = list(args)
    while args:
        key, equals, value = args.pop(0).partition("=")
        if not key.startswith("--"):
            raise SystemExit(f"{key}: expected --key value or --key=value; --help lists the keys")
        key = key[2:].replace("-", "_")
        if key not in config:
            near = difflib.get_close_matches(key, config, 1, 0.0)[0]
            raise SystemExit(f"--{key}: no such key; did you mean --{near}? (--help lists them all)")
        if not equals:
            if not args or args[0].startswith("--"):
                raise SystemExit(f"--{key}: a value is missing, like --{key} {config[key]}")
            value = args.pop(0)
        given[key] = parse_value(key, value, config[key])
    return given


def configure(config, doc, argv=None, presets=None):
    """A script's settings: its defaults, then `--preset NAME`, then every `--key value` or `--key=value`.

    With --resume true, the settings that the run in OUT began with replace defaults and preset.

    config   flat dict of defaults, whose types decide how values are read;  presets {name: dict}
    returns  SimpleNamespace with one attribute per key; where there are presets, `given` names the keys that
             may change a checkpoint's own settings: those of the command line, or of a preset with init_from
    exits    with one line at an unknown key (the nearest known one is named), preset or unreadable value"""
    args = sys.argv[1:] if argv is None else argv
    given = parse_arguments([a for a in args if a not in ("-h", "--help")], config)
    settings = dict(config)
    preset = {}
    if presets:
        name = given.get("preset", config["preset"])
        if name not in presets:
            raise SystemExit(f"--preset {name!r}: expected one of {', '.join(presets)}")
        preset = presets[name]
        settings.update(preset)
    if "-h" in args or "--help" in args:
        print(f"{doc}\n\nsettings{f', with --preset one of {list(presets)}' if presets else ''}:")
        for key, value in {**settings, **given}.items():
            print(f"  --{key} {value!r}")
        raise SystemExit(0)
    if given.get("resume"):
        try:
            saved = load_checkpoint(given.get("out", config["out"]), needs=("train_config",))["train_config"]
        except (ValueError, FileNotFoundError) as error:
            raise SystemExit(f"--resume: {error}") from None
        settings.update({key: value for key, value in saved.items() if key in config and key != "out"})
    settings.update(given)
    if settings.get("seed", 0) < 0:
        raise SystemExit(f"--seed {settings['seed']}: expected 0 or more")
    if presets:
        settings["given"] = (*preset, *given) if preset.get("init_from") else tuple(given)
    return SimpleNamespace(**settings)


def changes_given(cfg, model, free):
    """Settings of the command line that change the model (its keys) of --init_from; only `free` ones may.

    raises  ValueError naming those that may not"""
    given = {k: getattr(cfg, k) for k in cfg.given if k in model}
    if wrong := sorted(given.keys() - set(free)):
        raise ValueError(f"--init_from sets {', '.join(wrong)}; leave them out")
    return given


def require_unchanged(cfg, state, keys):
    """Raise ValueError if the command line gives a resumed run other settings than its models have."""
    saved = state["train_config"]
    if wrong := [key for key in cfg.given if key in keys and getattr(cfg, key) != saved.get(key)]:
        names = ", ".join(wrong)
        raise ValueError(f"{cfg.out} began with another {names}; leave it out, or use --init_from")


def require_positive(cfg, *keys):
    """Raise ValueError unless all these settings are at least 1."""
    for key in keys:
        if getattr(cfg, key) < 1:
            raise ValueError(f"--{key} is {getattr(cfg, key)}; expected at least 1")


def require_not_negative(cfg, *keys, most=math.inf):
    """Raise ValueError unless all these settings are from 0 to `most`."""
    for key in keys:
        if not 0 <= getattr(cfg, key) <= most:
            end = "or more" if most == math.inf else f"to {most}"
            raise ValueError(f"--{key} is {getattr(cfg, key)}; expected 0 {end}")


def run(main, cfg):
    """Call main(cfg); bad input, a full disk and lack of memory become one line, bugs a traceback."""
    keep_memory()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # file names need not be UTF-8
            stream.reconfigure(errors="backslashreplace")
    try:
        main(cfg)
    except Exception as error:
        line = one_line(error, cfg)
        if line is None:
            raise
        raise SystemExit(line) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
            time.sleep(0.5)  # gloo's threads need the GIL to drop the last tensors, or abort as Python ends


def stop_signal():
    """An Event that Ctrl-C or SIGTERM sets, so that a loop can save; a second Ctrl-C leaves at once."""
    stop = threading.Event()

    def handler(number, frame):
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)
    return stop


def agreed(flag, device):
    """Whether `flag` is true on any process: all of them must leave the loop at the same step."""
    if not dist.is_initialized():
        return flag
    flags = torch.tensor(float(flag), device=device)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def setup_ddp():
    """Join the process group that torchrun describes, if any; NCCL on GPUs, gloo on CPUs.

    returns  rank, world size, torch.device of this process
    raises   ValueError if there are more processes than GPUs"""
    rank = int(os.environ.get("RANK", 0))
    world = int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        if local >= count:
            raise ValueError(f"process {local} has no GPU: {count} here; lower --nproc_per_node")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=30))
    return rank, world, device


def lr_at(step, lr, warmup, max_steps, schedule):
    """Learning rate of update `step`: linear warm-up, then "constant" or "cosine" to 0 at max_steps."""
    if schedule not in ("constant", "cosine"):
        raise ValueError(f"schedule is {schedule!r}; expected constant or cosine")
    if step < warmup:
        return lr * (step + 1) / warmup
    if schedule == "constant":
        return lr
    return lr * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, max_steps - warmup))))


def save_checkpoint(path, **state):
    """Write plain data to one file, whole or not at all.

    raises  OSError, which names the file and the space that is left, on a full disk"""
    path = Path(path)
    with replacing(path) as partial:
        try:
            torch.save(state, partial)
        except (RuntimeError, OSError) as error:
            if isinstance(error, RuntimeError) and "inline_container" not in str(error):
                raise  # of a full disk torch says: enforce fail at inline_container.cc:672, unexpected pos
            reason = str(error) if isinstance(error, OSError) else "disk full"
            free = shutil.disk_usage(path.parent).free / 1e6
            after = "the same command"
            if path.exists():
                after = "--resume true, which goes on from the file before it"
            message = f"cannot write {path} ({reason}; {free:.0f} MB were free): free some, then {after}"
            raise OSError(message) from None


def load_checkpoint(path, device="cpu", needs=()):
    """Read what save_checkpoint wrote; `needs` names entries that must be in it.

    raises  FileNotFoundError where there is no file, ValueError where it is not a checkpoint of ours"""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; train one (README.md) or pass the path of one")
    require_content(path)
    try:
        with zipfile.ZipFile(path) as file:
            if damaged := file.testzip():  # torch.load does not look at the checksums
                raise ValueError(f"{damaged} inside is damaged")
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # pickle, zip and torch each raise their own kinds on a damaged file
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is not a readable checkpoint ({reason}); copy it or retrain") from None
    missing = [key for key in needs if not isinstance(state, dict) or key not in state]
    if missing:
        raise ValueError(f"{path} holds no {', '.join(missing)}; expected one with {', '.join(needs)}")
    return state


def start_log(out, step, evaluated=math.inf):
    """Begin the .jsonl file `out`, or on resuming at `step` drop the lines that will be written again.

    evaluated  the step of the last evaluation (of mbpo.py) that is not made again"""
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    kept = []
    for numbers in read_log(out) if step and out.is_file() else []:
        is_evaluation = any(name.startswith("eval_") for name in numbers)
        if numbers["step"] <= (min(step, evaluated) if is_evaluation else step):
            kept.append(json.dumps(numbers) + "\n")
    write_whole(out, "".join(kept).encode())


def log(step, out, **numbers):
    """Print `step 1200 | loss 3.142 | ...` and append the numbers to the .jsonl file `out`; rank 0 alone."""
    units = {"ms": "{:.0f} ms", "tok/s": "{:.0f} tok/s", "frames/s": "{:.0f} frames/s", "lr": "lr {:.1e}"}
    parts = [f"step {step}"]
    for name, value in numbers.items():
        if not isinstance(value, list):
            parts.append(units.get(name, name + " {:.4g}").format(value))
    print(" | ".join(parts), flush=True)
    with open(out, "a") as file:
        file.write(json.dumps({"step": step, **numbers}) + "\n")


class Progress:
    """Where a training run writes and on what it runs; when it logs, evaluates, saves and stops."""

    def __init__(self, cfg):
        counts = "batch_size", "max_steps", "log_every", "eval_every", "eval_segments"
        require_positive(cfg, *counts)
        require_not_negative(cfg, "lr", "weight_decay", "warmup", "grad_clip")
        lr_at(0, cfg.lr, cfg.warmup, cfg.max_steps, cfg.schedule)  # before anything is lost, if it is unknown
        self.cfg = cfg
        self.out = claim(cfg.out, (".jsonl", ".png"), cfg.overwrite, cfg.resume)
        self.numbers = beside(self.out, ".jsonl")
        self.picture = beside(self.out, ".png")
        self.rank, self.world, self.device = setup_ddp()
        self.stop = stop_signal()
        self.ends = False  # the loop is over
        self.saves = False  # this process evaluates and saves now

    def start(self, step, text):
        """Print what begins at this step, and begin or continue the log."""
        if step >= self.cfg.max_steps:
            raise ValueError(f"{self.out} is at step {step} already; raise --max_steps to go on")
        if self.rank == 0:
            if not self.cfg.resume:  # a later --resume must not find an old checkpoint beside the new log
                self.out.unlink(missing_ok=True)
            start_log(self.numbers, step)
            print(f"{self.device} x {self.world} | {text}")
        self.began = time.time()
        self.reset()

    def reset(self):
        self.losses = []
        self.waited = 0.0  # seconds, for data
        self.since = time.time()

    def next(self, batches):
        asked = time.time()
        batch = next(batches)
        self.waited += time.time() - asked
        return batch

    def is_due(self, step):
        """Whether `log` must be called after this step."""
        self.ends = step == self.cfg.max_steps or (self.world == 1 and self.stop.is_set())
        return self.ends or step % self.cfg.log_every == 0 or step % self.cfg.eval_every == 0

    def log(self, step, lr, metrics, tokens=0):
        """Log the mean loss, speed and the newest metrics; decide on `ends` and `saves`.

        tokens  per step;  raises  FloatingPointError if a loss was not finite"""
        losses = torch.stack(self.losses)
        bad = (~losses.isfinite()).nonzero()
        if agreed(len(bad) > 0, self.device):
            where = step - len(losses) + int(bad[0]) + 1 if len(bad) else "nearby, on another process"
            raise FloatingPointError(f"loss is not finite at step {where}; lower --lr{self.older()}")
        seconds = time.time() - self.since
        if self.rank == 0:
            numbers = dict(loss=losses.mean().item(), lr=lr, ms=1000 * seconds / len(losses))
            if tokens:
                numbers["tok/s"] = tokens * len(losses) / seconds
            numbers["wait"] = self.waited / seconds  # share of the time spent waiting for data
            for name, value in metrics.items():
                numbers[name] = value.item()
            log(step, self.numbers, **numbers)
        late = 0 < self.cfg.max_minutes * 60 < time.time() - self.began
        self.ends = agreed(self.ends or self.stop.is_set() or late, self.device)
        self.saves = self.rank == 0 and (self.ends or step % self.cfg.eval_every == 0)
        self.reset()

    def older(self):
        return f" ({self.out} is older)" if self.out.exists() else ""

    def validate(self, step, evaluate, model, *args):
        """Log evaluate(model, *args), metrics.   raises  FloatingPointError if weights are not finite"""
        for parameter in model.parameters():
            if not parameter.isfinite().all():
                raise FloatingPointError(f"weights not finite at step {step}; lower --lr{self.older()}")
        if not self.stop.is_set():  # whoever stops a run does not wait for an evaluation
            values = evaluate(model, *args)
            log(step, self.numbers, **{f"val_{name}": value for name, value in values.items()})
