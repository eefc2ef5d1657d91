"""experiments/torture/machines.py: poor and odd machines; the core still trains, imagines and evaluates.

    limits, variables, users, folders --> train_gpt.py, sample.py, evaluate.py as processes of their own

What a machine here cannot play, because a command is missing or not allowed, is counted as skipped."""

import os
import shutil
import subprocess
import sys

from experiments.lab import flags
from experiments.torture.small import ROOT, base_flags, fingerprint

LIMIT = "bash", "-c"
VARIABLES = dict(  # {machine: variables}; None takes one away
    avx2=dict(ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2"),
    sse=dict(ATEN_CPU_CAPABILITY="default", ONEDNN_MAX_CPU_ISA="SSE41"),
    no_home=dict(HOME=None, USER=None, LOGNAME=None, XDG_CACHE_HOME=None, TMPDIR=None),
    ascii=dict(LC_ALL="C", LANG="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
    far_away=dict(TZ="Pacific/Kiritimati"),
    offline=dict(HF_HUB_OFFLINE="1", http_proxy="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9"),
)
COMMANDS = dict(  # {machine: what stands before python}
    one_core=["taskset", "-c", "0"],
    few_files=[*LIMIT, 'ulimit -n 64; exec "$@"', "-"],
    little_memory=[*LIMIT, 'ulimit -v 12000000; exec "$@"', "-"],
    nobody=["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"],  # who must not write the checkout
    no_shm=["unshare", "--mount", *LIMIT, 'umount /dev/shm && exec "$@"', "-"],
    clock=["faketime", "-f", "+0 x-3"],  # runs backwards
)
FOLDERS = "with spaces", "ünïcödé", "日本", "-dash", "%d{x}"


def scripts_of(world, folder):
    """Commands after python: a training, pictures and numbers, into a folder."""
    scripts = base_flags(world)
    gpt = folder / "gpt.pt"
    new = dict(ckpt=gpt, out=folder / "pictures")
    return [
        ["train_gpt.py", *flags(**scripts["train_gpt.py"], out=gpt)],
        ["sample.py", *flags(**{**scripts["sample.py"], **new})],
        ["evaluate.py", *flags(**{**scripts["evaluate.py"], **new, "out": folder / "numbers.json"})],
    ]


def works(world, folder, before=(), changes=None):
    """Run the scripts -> "", or the name and the last words of the one that failed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for name, value in (changes or {}).items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    how = dict(env=environment, cwd=folder, capture_output=True, text=True, timeout=300)
    for script, *arguments in scripts_of(world, folder):
        command = [*before, sys.executable, "-B", str(ROOT / script), *arguments]
        done = subprocess.run(command, **how)
        if done.returncode:
            return f"{script}: {(done.stderr or done.stdout).strip()[-300:]}"
    return ""


def is_possible(before):
    """Whether this machine can run something that way at all."""
    try:
        return not subprocess.run([*before, "true"], capture_output=True).returncode
    except FileNotFoundError:
        return False


def torture(world, say=print):
    """All machines and folders -> counts, and what went wrong by machine."""
    usual = world.folder / "usual"
    usual.mkdir()
    if wrong := works(world, usual):
        raise ChildProcessError(wrong)
    expected = fingerprint(usual / "gpt.pt"), fingerprint(usual / "numbers.json")
    machines = {name: dict(changes=changes) for name, changes in VARIABLES.items()}
    machines |= {name: dict(before=before) for name, before in COMMANDS.items()}
    machines |= {name: {} for name in FOLDERS}
    found = {}
    skipped = [name for name, before in COMMANDS.items() if not is_possible(before)]
    for name in skipped:
        del machines[name]
    for name, how in machines.items():
        folder = world.folder / name
        folder.mkdir()
        if name == "nobody":
            for path in (world.folder.parent, world.folder, folder):
                path.chmod(0o777)
        said = works(world, folder, **how)
        if not said and name not in ("avx2", "sse"):  # other instructions round otherwise
            same = (fingerprint(folder / "gpt.pt"), fingerprint(folder / "numbers.json")) == expected
            said = "" if same else "other numbers"
        if said:
            found[name] = said
            say(f"{name}: {said}")
        shutil.rmtree(folder, ignore_errors=True)
    return dict(tried=len(machines), failed=len(found), skipped=skipped, found=found)
