"""experiments/torture/faults.py: disks that are full, or read-only, at every script that writes.

    a disk with a share of the room that a run needs --> it ends in one line
    the same disk with enough room --> README's command goes on to the numbers of a whole run

The disk is a tmpfs, which root may mount; for others this is skipped."""

import contextlib
import random
import re
import shutil
import subprocess

from experiments.torture.commands import last_words
from experiments.torture.kills import go_on, numbers, runs, write_episodes
from experiments.torture.small import attempt, must

REMEDY = re.compile("disk|space|write|writing|read-only", re.IGNORECASE)


def mounted(folder, *options):
    """Mount a disk there, or change it -> whether it worked."""
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", folder]
    return not subprocess.run(command, capture_output=True).returncode


@contextlib.contextmanager
def disk(folder, size):
    """A disk of so many bytes."""
    folder.mkdir()
    mounted(folder, f"size={max(4096, size)}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)
        folder.rmdir()


def used(folder):
    """Bytes of all files, in pages of a tmpfs."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def ends_well(result):
    """Whether a command on such a disk was done, or ended in one line that says what is the matter."""
    said = result.stderr.strip().splitlines() or [""]
    return result.status == 0 or not last_words(result) and bool(REMEDY.search(said[-1]))


def torture(world, tries, seed, say=print):
    """Fill the disk of each script so many times -> counts; lost: with more room it came to other numbers."""
    rng = random.Random(seed)
    folder = world.folder / "disk"
    folder.mkdir()
    if not mounted(folder, "size=4096"):
        return dict(tried=0, skipped="no right to mount")
    subprocess.run(["umount", folder], check=True)
    write_episodes(world.folder / "npz")
    wrong = {}
    tried = 0
    for name, command in runs(world).items():
        out = folder / command[2]
        must(*go_on(command, folder), folder)
        expected = numbers(name, out)
        room = used(folder)
        shutil.rmtree(folder)
        for i in range(tries + 1):
            with disk(folder, int(rng.random() * room) if i else 100 * room):
                if i == 0:
                    mounted(folder, "remount", "ro")
                result = attempt(*go_on(command, folder), folder, 300)
                mounted(folder, "remount", "rw", f"size={100 * room}")
                kind = "" if ends_well(result) else "said badly"
                said = result.stderr
                if result.status:
                    said += attempt(*go_on(command, folder), folder, 300).stderr
                if not out.exists() or numbers(name, out) != expected:
                    kind = "lost"
            tried += 1
            if kind:
                wrong.setdefault(kind, []).append(name)
                say(f"{kind}: {name} {'on a read-only disk' if i == 0 else ''}: {said[-300:]}")
        folder.mkdir()
    return dict(tried=tried, lost=len(wrong.get("lost", ())), wrong=wrong)
