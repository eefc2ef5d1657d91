"""support/files.py: outputs are claimed before any work and written whole or not at all."""

import contextlib
import errno
import json
import os
import tempfile
from pathlib import Path

import torch


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


def require_content(path):
    """Raise ValueError if a file is empty or a pointer of Git LFS, which stands for a file not downloaded."""
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        raise ValueError(f"{path} is empty (0 bytes); copy or download it again")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a pointer of Git LFS, not the file itself; run git lfs pull there")


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
    file = Path(trace.tb_frame.f_code.co_filename)
    is_ours = Path(__file__).parents[1] in file.parents and "site-packages" not in file.parts
    return f"{type(error).__name__}: {text}" if is_ours else None
