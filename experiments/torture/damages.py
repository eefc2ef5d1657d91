"""experiments/torture/damages.py: damaged files; each reader names the file, or its numbers are as before.

    the world, copied --one file truncated, flipped, overwritten, swapped, emptied--> a script reads it
        --> refused in one line that names the file | the same numbers | a traceback | silently other numbers

What lies in files as raw numbers (pixels, actions, rewards, the replay's rows) is not protected: a checksum
would cost reading everything first. There, other numbers are counted as `unprotected`."""

import random
import shutil

import torch

from experiments.lab import flags
from experiments.torture.small import attempt, base_flags, fingerprint, must

RAW = ".bin", "actions.npy", "rewards.npy", ".episode"


def readers(world):
    """(script, settings without out, the files that it reads, relative to the world's folder)."""
    scripts = base_flags(world)
    data = [f"data/{name}" for name in "meta.json index.npz actions.npy rewards.npy shard-00000.bin".split()]
    train = dict(scripts["train_gpt.py"], tokens=world.folder / "tokens.pt")
    agent = ["agent.pt", "agent.jsonl", "agent/real/000000.episode", "agent/imagined/000001.episode"]
    again = dict(resume=True, max_steps=3)
    return [
        ("sample.py", scripts["sample.py"], "pictures", ["gpt.pt", *data]),
        ("evaluate.py", scripts["evaluate.py"], "numbers.json", ["gpt.pt", *data]),
        ("plan.py", scripts["plan.py"], "plan.json", ["gpt.pt"]),
        ("train_tokenizer.py", scripts["train_tokenizer.py"], "new.pt", data),
        ("train_gpt.py", train, "new.pt", ["tokens.pt", "tokenizer.pt", *data[:2]]),
        ("train_gpt.py", again, "gpt.pt", ["gpt.pt", "gpt.jsonl"]),
        ("train_tokenizer.py", again, "tokenizer.pt", ["tokenizer.pt", "tokenizer.jsonl"]),
        ("mbpo.py", dict(resume=True, steps=120), "agent.pt", agent),
        ("post_train.py", scripts["post_train.py"], "new.pt", ["gpt.pt", *data[:2]]),
    ]


def damage(path, others, rng):
    """Damage a file in one of five ways, and say how."""
    data = bytearray(path.read_bytes())
    way = rng.choice(("truncated", "bit", "overwritten", "swapped", "empty"))
    at = rng.randrange(max(1, len(data)))
    if way == "truncated":
        data = data[:at]
    elif way == "bit" and data:
        data[at] ^= 1 << rng.randrange(8)
    elif way == "overwritten":
        data[at : at + 64] = rng.randbytes(len(data[at : at + 64]))
    elif way == "swapped":
        data = rng.choice(others).read_bytes()
    else:
        data = b""
    path.write_bytes(data)
    return f"{way} at {at}"


def judge(result, path, out, expected):
    """How a reader has taken a damaged file."""
    text = result.stdout + result.stderr
    if result.status is None:
        return "hangs"
    if "Traceback" in text or result.status < 0:
        return "traceback"
    if result.status:
        return "refused" if path.name in text else "unnamed"
    try:
        same = fingerprint(out) == expected
    except (OSError, ValueError, RuntimeError) as error:
        return f"left a damaged output ({error})"
    if same:
        return "harmless"
    return "unprotected" if path.name.endswith(RAW) else "silent"


def torture(world, tries, seed, say=print):
    """Damage so many files -> counts."""
    rng = random.Random(seed)
    torch.set_num_threads(1)
    tokens = dict(data=world.data, tokenizer=world.tokenizer, segments=16, segment_length=6)
    must("prepare.py", ["tokens", *flags(**tokens, out=world.folder / "tokens.pt")], world.folder)
    whole = world.folder.with_name(world.folder.name + "-whole")
    shutil.copytree(world.folder, whole)
    known = readers(world)
    expected = []
    kinds = {}
    for i in range(-len(known), tries):
        script, settings, out, files = known[i] if i < 0 else rng.choice(known)
        shutil.rmtree(world.folder)
        shutil.copytree(whole, world.folder)
        out = world.folder / out
        if i < 0:  # undamaged
            must(script, flags(**settings, out=out), world.folder)
            expected.append(fingerprint(out))
            continue
        path = world.folder / rng.choice(files)
        others = [file for file in world.folder.rglob("*") if file.is_file() and file != path]
        how = damage(path, others, rng)
        result = attempt(script, flags(**settings, out=out), world.folder, 60)
        kind = judge(result, path, out, expected[known.index((script, settings, out.name, files))])
        kinds[kind] = kinds.get(kind, 0) + 1
        if kind not in ("refused", "harmless", "unprotected"):
            say(f"{kind}: {script}, {path.name} {how}\n    {result.stderr.strip()[-300:]}")
    shutil.rmtree(whole)
    return dict(tried=tries, silent=kinds.get("silent", 0), kinds=kinds)
