"""common.py: the few functions that every script needs and that teach nothing about world models.

    CONFIG (a flat dict at the top of a script) --configure--> cfg.key
    torchrun --setup_ddp--> rank, world, device
    models, optimizers, counters --save_checkpoint--> one file --load_checkpoint--> the same plain data

Functions only. Nothing here imports another file of ours."""

import contextlib
import ctypes
import difflib
import errno
import hashlib
import importlib.util
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist


def _parse(key, text, default):
    """One command-line value, in the type of its default; a tuple is written 32,64,64."""
    try:
        if isinstance(default, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if isinstance(default, tuple):
            kind = type(default[0]) if default else str
            return tuple(kind(part) for part in text.split(",") if part)
        return type(default)(text)
    except (ValueError, KeyError):
        like = ",".join(map(str, default)) if isinstance(default, tuple) else default
        raise SystemExit(f"--{key} {text}: expected a {type(default).__name__}, like {like}") from None


def configure(config, doc, argv=None, presets=None):
    """A script's settings: its defaults, then `--preset NAME`, then every `--key value` or `--key=value`.

    With --resume true, the settings that the run in OUT was started with stand in for defaults and preset.

    config   flat dict of defaults, whose types decide how values are read;  presets {name: dict}
    returns  SimpleNamespace with one attribute per key; where there are presets, `given` names the keys that
             may change a checkpoint's own settings: those of the command line, or of a preset with init_from
    exits    with one line at an unknown key (the nearest known one is named), preset or unreadable value"""
    args = list(sys.argv[1:] if argv is None else argv)
    asks, args = "-h" in args or "--help" in args, [a for a in args if a not in ("-h", "--help")]
    given = {}
    while args:
        key, equals, value = args.pop(0).partition("=")
        if not key.startswith("--"):
            raise SystemExit(f"{key}: expected --key value or --key=value; --help lists the keys")
        key = key[2:].replace("-", "_")
        if key not in config:
            near = difflib.get_close_matches(key, config, 1, 0.0)[0]
            raise SystemExit(f"--{key}: no such key; did you mean --{near}? (--help lists them all)")
        if not equals and (not args or args[0].startswith("--")):
            raise SystemExit(f"--{key}: a value is missing, like --{key} {config[key]}")
        given[key] = _parse(key, value if equals else args.pop(0), config[key])
    name = given.get("preset", config.get("preset"))
    if presets and name not in presets:
        raise SystemExit(f"--preset {name}: expected one of {', '.join(presets)}")
    settings = {**config, **(presets[name] if presets else {})}
    if asks:
        print(f"{doc}\n\nsettings{f', with --preset one of {list(presets)}' if presets else ''}:")
        print("\n".join(f"  --{k} {v!r}" for k, v in {**settings, **given}.items()))
        raise SystemExit(0)
    if given.get("resume"):  # what was set when the run began still holds
        try:
            saved = load_checkpoint(given.get("out", config["out"]), needs=("train_config",))["train_config"]
        except (ValueError, FileNotFoundError) as error:
            raise SystemExit(f"--resume: {error}") from None
        settings.update({k: v for k, v in saved.items() if k in config and k != "out"})
    if not presets:
        return SimpleNamespace(**settings | given)
    tuned = presets[name] if presets[name].get("init_from") else {}
    return SimpleNamespace(**settings | given, given=tuple(tuned | given))


def changes_given(cfg, model, free):
    """Settings of the command line that change the model (its keys) of --init_from; only `free` ones may.

    raises  ValueError naming those that may not"""
    given = {k: getattr(cfg, k) for k in cfg.given if k in model}
    if wrong := sorted(given.keys() - set(free)):
        raise ValueError(f"--init_from sets {', '.join(wrong)}; leave them out")
    return given


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


def find_device(name):
    """The torch.device of that name; of "" a CUDA GPU if there is one, else the CPU. Apple's GPU is "mps".

    raises  ValueError where torch does not have that device"""
    expected = "expected cpu, cuda, cuda:1 for the second GPU, or mps"
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise ValueError(f"device is {name!r}; {expected}") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device is {name!r}; {expected}")
    gpus = dict(cuda=torch.cuda, mps=torch.backends.mps)
    if device.type in gpus and not gpus[device.type].is_available():
        raise ValueError(f"device is {device} but torch sees no GPU; pass --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is {device} but torch sees {torch.cuda.device_count()}, numbered from 0")
    return device


def can_compile(device):
    """Whether torch.compile works there: it needs Triton (not on Windows) and a GPU of capability 7.0.

    (From their documentation: no such GPU was at hand.)"""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (7, 0)


def keep_memory():
    """Let glibc keep the memory that it once got. By default it returns large blocks to the system, and to
    get them anew costs a page fault for every 4 KB: a tenth to a quarter of the time of `small` on CPUs."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no blocks apart from the heap,
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: which never shrinks
    except (OSError, AttributeError):
        return  # another system's allocator


def one_line(error, cfg):
    """What an error from below means and what to do, as one line; None for one that needs its traceback."""
    text = (str(error) or type(error).__name__).splitlines()[0]
    if isinstance(error, OSError):
        no_space = errno.errorcode.get(error.errno) in ("ENOSPC", "EDQUOT")
        if no_space or "requested and" in text:  # numpy: "100 requested and 0 written"
            again = ", with --resume true if there is a checkpoint" if hasattr(cfg, "resume") else ""
            text += f" (writing {getattr(cfg, 'out', '')}); free some disk space and run it again{again}"
        return f"{type(error).__name__}: {text}"
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text:
        return f"out of memory: {text}; use smaller batches or fewer --workers (--help lists the settings)"
    if not isinstance(error, ValueError | ImportError | FloatingPointError):
        return None
    trace = error.__traceback__
    while trace.tb_next:
        trace = trace.tb_next
    folder = Path(trace.tb_frame.f_code.co_filename).parent
    root = Path(__file__).parent
    is_ours = folder == root or folder in (root / "envs", root / "importers", root / "experiments")
    return f"{type(error).__name__}: {text}" if is_ours else None


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
    rank, world, local = (
        int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    cuda = torch.cuda.is_available()
    if cuda and local >= torch.cuda.device_count():
        raise ValueError(
            f"process {local} has no GPU: {torch.cuda.device_count()} here; lower --nproc_per_node"
        )
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(minutes=30))
    return rank, world, device


def uses_bf16(device, dtype):
    """Whether the setting dtype means bf16 there: "bf16", "float32", or "auto": bf16 on GPUs that have it."""
    if dtype not in ("auto", "bf16", "float32"):
        raise ValueError(f"dtype is {dtype!r}; expected auto, bf16 or float32")
    if dtype == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return dtype == "bf16"


def autocast_for(device, dtype):
    """Mixed precision context, as `uses_bf16` says."""
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(device, dtype))


VGG = "vgg16-397923af.pth"  # torchvision's name, which ends in the file's SHA-256


def perceptual_loss(device):
    """LPIPS with VGG-16, frozen, of frames in [-1, 1] (Zhang et al. 2018).

    raises  FileNotFoundError where its weights can neither be found nor downloaded; ValueError if they are
            others"""
    place = Path(torch.hub.get_dir()) / "checkpoints" / VGG
    try:
        import lpips

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision's, of the way that lpips asks for weights
            network = lpips.LPIPS(net="vgg", verbose=False).requires_grad_(False).eval().to(device)
    except OSError as error:
        fix = f"put torchvision's {VGG} at {place}, or do without: --lpips false (plan.py: 0)"
        raise FileNotFoundError(f"no VGG-16 weights for LPIPS: download failed ({error}); {fix}") from None
    found = hashlib.sha256(place.read_bytes()).hexdigest()  # torch checks only what it downloads itself
    if not found.startswith(Path(VGG).stem.split("-")[1]):
        raise ValueError(f"{place} is not torchvision's file (SHA-256 {found[:8]}...); delete it")
    return network


def lr_at(step, lr, warmup, max_steps, schedule):
    """Learning rate of update `step`: linear warm-up, then "constant" or "cosine" to 0 at max_steps."""
    if step < warmup:
        return lr * (step + 1) / warmup
    if schedule == "constant":
        return lr
    if schedule != "cosine":
        raise ValueError(f"schedule is {schedule!r}; expected constant or cosine")
    return lr * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, max_steps - warmup))))


def beside(out, ending):
    """The file that goes with `out`: out/gpt.pt -> out/gpt.jsonl, but out/lr0.003 -> out/lr0.003.jsonl."""
    path = Path(out)
    stem = path.stem if path.suffix in (".pt", ".json") else path.name
    return path.with_name(stem + ending)


def resolve(out, name="out"):
    """Its absolute Path without links, so that temporary files lie on the same disk.   raises  ValueError"""
    try:
        return Path(out).resolve()
    except (OSError, RuntimeError) as error:
        raise ValueError(f"--{name} {out}: a link that leads nowhere ({error})") from None


def claim_folder(out, name="out"):
    """Check that files can be written into the folder `out`, which need not be there; returns its Path.

    raises  ValueError saying what is in the way"""
    path = folder = resolve(out, name)
    while not folder.exists():  # it will be made when there is something to write
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return path
    except OSError as error:
        raise ValueError(f"--{name} {out}: cannot write to {folder} ({error.strerror})") from None


def claim(out, endings=(), overwrite=True, resume=None, name="out"):
    """Check that the file `out` and those `beside` it can be written, before any work is done.

    overwrite  False: refuse an `out` that exists, unless `resume` goes on with it (None: nothing can)
    name       of the setting that `out` is
    returns    its Path as of `resolve`
    raises     ValueError saying what is in the way"""
    path = resolve(out, name)
    claim_folder(path.parent, name)
    files = [path, path.with_name(path.name + ".partial"), *(beside(path, ending) for ending in endings)]
    for file in files:
        if file.is_dir():
            raise ValueError(f"--{name} {out}: {file} is a folder; expected the name of a file")
        if file.exists() and not os.access(file, os.W_OK):
            raise ValueError(f"--{name} {out}: {file} is read-only; pass another --{name}")
    if path.exists():
        if overwrite or resume:
            return path
        go_on = "" if resume is None else "--resume true goes on with it, "
        raise ValueError(f"{out} exists: {go_on}--overwrite true replaces it, or pass another --{name}")
    for suffix in (".pt", ".json", "") if endings else ():
        if beside(path, suffix).is_file():
            shared = f"{beside(path, suffix)}, whose {', '.join(endings)} it would replace"
            raise ValueError(f"--{name} {out}: there is {shared}; pass another --{name}")
    log = beside(path, ".jsonl")  # of a training; plan.py looks after its own, beside a .json
    has_log = ".jsonl" in endings and path.suffix != ".json" and log.is_file() and log.stat().st_size > 0
    if has_log and not read_log(log):
        raise ValueError(f"--{name} {out}: {log} is no log of a training; pass another --{name}")
    for ending in endings:
        file = beside(path, ending)
        if ending != ".jsonl" and file.is_file() and not (has_log or overwrite):  # a log: of a killed run
            raise ValueError(f"--{name} {out}: {file} is there, of something else; pass another --{name}")
    return path


@contextlib.contextmanager
def replacing(path):
    """Yield a temporary name to write to, then make it `path`: an error or a kill leaves the old file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    os.replace(partial, path)


def write_whole(path, content):
    """Write bytes to a file, whole or not at all."""
    with replacing(path) as partial:
        partial.write_bytes(content)


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


def require_content(path):
    """Raise ValueError if a file is empty or a pointer of Git LFS, which stands for a file not downloaded."""
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        raise ValueError(f"{path} is empty (0 bytes); copy or download it again")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a pointer of Git LFS, not the file itself; run git lfs pull there")


def load_checkpoint(path, device="cpu", needs=()):
    """Read what save_checkpoint wrote; `needs` names entries that must be in it.

    raises  FileNotFoundError where there is no file, ValueError where it is not a checkpoint of ours"""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; train one (README.md) or pass the path of one")
    require_content(path)
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # pickle, zip and torch each raise their own kinds on a damaged file
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path} is not a readable checkpoint ({reason}); copy it again or retrain"
        ) from None
    missing = [key for key in needs if not isinstance(state, dict) or key not in state]
    if missing:
        raise ValueError(
            f"{path} holds no {', '.join(missing)}; expected a checkpoint with {', '.join(needs)}"
        )
    return state


def read_log(path):
    """The lines of a .jsonl file that `log` wrote, as dicts, less those that a kill or full disk damaged."""
    lines = []
    for line in Path(path).read_text(errors="replace").splitlines(True):
        try:
            numbers = json.loads(line) if line.endswith("\n") else None
        except ValueError:
            continue
        if isinstance(numbers, dict) and "step" in numbers:
            lines.append(numbers)
    return lines


def start_log(out, step):
    """Begin the .jsonl file `out`, or on resuming at `step` drop the lines that will be written again."""
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = read_log(out) if step and out.is_file() else []
    out.write_text("".join(json.dumps(numbers) + "\n" for numbers in lines if numbers["step"] <= step))


def log(step, out, **numbers):
    """Print `step 1200 | loss 3.142 | ...` and append the numbers to the .jsonl file `out`; rank 0 alone."""
    units = {"ms": "{:.0f} ms", "tok/s": "{:.0f} tok/s", "frames/s": "{:.0f} frames/s", "lr": "lr {:.1e}"}
    shown = [units.get(k, k + " {:.4g}").format(v) for k, v in numbers.items() if not isinstance(v, list)]
    print(" | ".join([f"step {step}", *shown]), flush=True)
    with open(out, "a") as file:
        file.write(json.dumps({"step": step, **numbers}) + "\n")
