"""experiments/torture/hostile.py: files made to do harm; none of them runs code or takes much memory.

    a pickle in the place of every file that a script opens      --> does it run?
    headers and pictures that promise more than a machine has    --> refused, by a process that stays small?
    names in metadata that lead out of their folder              --> refused?"""

import io
import json
import pickle
import shutil
import struct
import zipfile
import zlib

import numpy as np
import torch

from experiments.lab import flags
from experiments.torture.small import attempt, base_flags, outputs

MEMORY = 3 << 30  # bytes that a process may take: torch alone takes one


class Evil:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


def pickles(folder, mark):
    """{how: path} of files that hold an Evil: a bare pickle, torch's two formats, .npy and .npz."""
    evil = Evil(mark)
    paths = {how: folder / f"evil-{how}" for how in ("pickle", "torch", "legacy", "npy", "npz")}
    paths["pickle"].write_bytes(pickle.dumps(evil))
    torch.save(dict(gpt=evil, tokenizer=evil, train_config=evil), paths["torch"])
    torch.save(evil, paths["legacy"], _use_new_zipfile_serialization=False)
    array = np.array([evil], object)
    with open(paths["npy"], "wb") as file:
        np.save(file, array, allow_pickle=True)
    with open(paths["npz"], "wb") as file:
        np.savez(file, image=array, row=array)
    return paths


def huge_npy(shape):
    """The bytes of an .npy file that promises so much and holds nothing."""
    file = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def huge_npz(path):
    """An .npz of 100 kB whose header promises 61 GB of frames."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        with file.open("image.npy", "w", force_zip64=True) as member:
            member.write(huge_npy((5_000_000, 64, 64, 3)))
            zeros = bytes(1 << 20)
            for _ in range(100):  # and no more: the promise is what counts
                member.write(zeros)


def huge_png(path, side=60_000):
    """A PNG of a few bytes whose header promises side x side pixels."""

    def chunk(kind, data):
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def huge_checkpoint(source, path, part, **changes):
    """A checkpoint whose model would be enormous."""
    state = torch.load(source, weights_only=True)
    state[part]["config"].update(changes)
    torch.save(state, path)


def doors(world):
    """(script, settings, setting that names a file) of all files that scripts open for a user."""
    scripts = base_flags(world)
    found = [(script, settings, "ckpt") for script, settings in scripts.items() if "ckpt" in settings]
    train = scripts["train_gpt.py"]
    found += [("train_gpt.py", train, key) for key in ("tokenizer", "tokens", "init_from")]
    found += [("train_tokenizer.py", scripts["train_tokenizer.py"], "init_from")]
    found += [("mbpo.py", scripts["mbpo.py"], "init_from"), ("evaluate.py", scripts["evaluate.py"], "fvd")]
    for key in ("classifier", "features", "goals", "tokenizer"):
        found.append(("plan.py", scripts["plan.py"], key))
    found += [("sample.py", scripts["sample.py"], "tokenizer")]
    return found


def data_with(world, folder, name, content):
    """A copy of the world's episodes in which one file is another."""
    shutil.copytree(world.data, folder)
    (folder / name).write_bytes(content)
    return folder


def cases(world, folder, mark):
    """Yield (script, command-line arguments) of all hostile files."""
    scripts = base_flags(world)
    evil = pickles(folder, mark)
    for script, settings, key in doors(world):
        for how, path in evil.items():
            yield script, flags(**{**settings, key: path}, out=folder / f"{key}-{how}-{outputs(script)}")
    for how in ("npy", "npz", "pickle"):
        for name in ("meta.json", "index.npz", "actions.npy", "rewards.npy"):
            data = data_with(world, folder / f"data-{how}-{name}", name, evil[how].read_bytes())
            yield "train_gpt.py", flags(**{**scripts["train_gpt.py"], "data": data}, out=folder / "out.pt")
    for how in ("npz", "pickle"):
        (folder / f"src-{how}").mkdir()
        shutil.copy(evil[how], folder / f"src-{how}/episode.npz")
        yield "prepare.py", ["npz", *flags(src=folder / f"src-{how}", out=folder / f"imported-{how}")]
    # more than there is
    for name in ("actions.npy", "rewards.npy"):
        data = data_with(world, folder / f"huge-{name}", name, huge_npy((10**13, 2)))
        yield "train_gpt.py", flags(**{**scripts["train_gpt.py"], "data": data}, out=folder / "out.pt")
    meta = json.loads((world.data / "meta.json").read_text())
    for key, value in dict(frame_shape=[10**6, 10**6, 3], shards=10**12, action_dim=10**12).items():
        changed = {k: v for k, v in {**meta, key: value}.items() if k != "crc"}
        data = data_with(world, folder / f"huge-{key}", "meta.json", json.dumps(changed).encode())
        yield "train_gpt.py", flags(**{**scripts["train_gpt.py"], "data": data}, out=folder / "out.pt")
    huge = folder / "huge.pt"
    for part, changes in (
        ("gpt", dict(n_embd=2**20)), ("gpt", dict(n_layer=10**7)), ("gpt", dict(segment_length=10**10)),
        ("gpt", dict(action_dim=10**12)), ("tokenizer", dict(context_codes=10**12)),
        ("tokenizer", dict(channels=(2**20,))), ("tokenizer", dict(layers_per_block=10**8)),
        ("tokenizer", dict(resolution=2**20)), ("tokenizer", dict(context_frames=10**9)),
    ):  # fmt: skip
        huge_checkpoint(world.gpt, huge, part, **changes)
        yield "sample.py", flags(**{**scripts["sample.py"], "ckpt": huge}, out=folder / "out-huge")
    for name, write in (("npz/a.npz", huge_npz), ("video/a.gif", huge_png), ("video2/a.mp4", huge_png)):
        path = folder / "huge-src" / name
        path.parent.mkdir(parents=True)
        write(path)
        kind = "npz" if name.startswith("npz") else "video"
        out = folder / f"imported-{path.parent.name}"
        yield "prepare.py", [kind, *flags(src=path.parent, out=out, workers=1)]


def torture(world, say=print):
    """All cases -> counts; a case is executed if its mark is there, unkind if it is not one line in time."""
    folder = world.folder / "hostile"
    folder.mkdir()
    mark = folder / "executed"
    tried = executed = 0
    unkind = []
    for script, arguments in cases(world, folder, mark):
        result = attempt(script, arguments, folder, 20, MEMORY)
        tried += 1
        text = result.stdout + result.stderr
        if mark.exists():
            mark.unlink()
            executed += 1
            say(f"executed: {script} {' '.join(arguments)}")
        if not result.status or result.status < 0 or "Traceback" in text:
            unkind.append(" ".join([script, *arguments]))
            say(f"unkind ({result.status}): {script} {' '.join(arguments)}\n    {text.strip()[-300:]}")
    return dict(tried=tried, executed=executed, unkind=unkind)
