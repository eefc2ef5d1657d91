"""importers/tfrecord.py: TFRecord files, read without TensorFlow, and BAIR robot pushing, which is kept in them.

    file --read_records--> records --parse_example--> {feature: bytes} --feature_values--> values
    BAIR's {t/image_CAMERA/encoded, t/action} --read_bair--> Recording

T frames.

Run: python prepare.py bair --src softmotion30_44k/train --out data/bair"""

import functools
import re
from collections import Counter
from pathlib import Path

import numpy as np

from common import require_content
from importers.engine import find_files, run_import
from importers.recording import Recording, optional


def read_records(path, expected):
    """Yield the records of a TFRecord file, bytes; None for one whose checksum is wrong.

    A record is its length (8 bytes), a checksum of that (4), the data, and their checksum (4).
    raises  ValueError where the next one cannot be found, or if there are not as many as expected"""
    crc32c = optional("google_crc32c", "google-crc32c")

    def checksum(data):
        crc = crc32c.value(data)
        return ((crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF).to_bytes(4, "little")

    require_content(path)
    with open(path, "rb") as file:
        for k in range(expected):
            head = file.read(12)
            if not head:
                raise ValueError(f"it has {k} records, expected {expected}: truncated")
            if len(head) == 12 and checksum(head[:8]) != head[8:]:
                raise ValueError(f"record {k} of {expected}: its length is damaged, the rest cannot be found")
            data = file.read(int.from_bytes(head[:8], "little"))
            crc = file.read(4)
            if len(crc) < 4:
                raise ValueError(f"record {k} of {expected} is cut off: truncated")
            yield data if checksum(data) == crc else None
        if file.read(1):
            raise ValueError(f"it has more records than the {expected} expected")


# ---- protocol buffers ----


def _fields(message):
    """Yield (number, content) of the fields of a message in which all are of the kind with a length.

    A field is: number * 8 + 2 (a byte), length (7 bits in a byte, the lowest first), content."""
    i = 0
    while i < len(message):
        number = message[i] >> 3
        length = 0
        shift = 0
        is_more = True
        while is_more:
            i += 1
            length |= (message[i] & 127) << shift
            shift += 7
            is_more = message[i] & 128
        i += 1
        yield number, message[i : i + length]
        i += length


def parse_example(record):
    """The features of a tf.train.Example, {name: content}.   raises  ValueError where the record is None"""
    if record is None:
        raise ValueError("its checksum is wrong: damaged")
    features = {}
    for _, entries in _fields(memoryview(record)):
        for _, entry in _fields(entries):
            pair = dict(_fields(entry))
            features[bytes(pair[1]).decode()] = pair.get(2, b"")
    return features


def feature_values(feature):
    """A feature's values: a list of bytes or an array of float32. (No importer needs integers.)"""
    kind, content = next(_fields(feature), (1, b""))
    values = [value for _, value in _fields(content)]
    return np.frombuffer(b"".join(values), "<f4") if kind == 2 else values


# ---- BAIR ----


def read_bair(record, camera):
    """An episode of BAIR's: frames (T, 64, 64, 3), actions (T, 4)."""
    features = parse_example(record)
    counts = Counter(name.partition("/")[2] for name in features)  # "7/action" is the action at frame 7
    picture = f"image_{camera}/encoded"
    if picture not in counts:
        cameras = [name[6:-8] for name in sorted(counts) if name.startswith("image_")]
        raise ValueError(f"no camera {camera!r}; --camera takes one of {', '.join(cameras)}")
    pixels = []
    actions = []
    while f"{len(pixels)}/{picture}" in features:
        t = len(pixels)
        pixels += feature_values(features[f"{t}/{picture}"])
        actions.append(feature_values(features.get(f"{t}/action", b""))[:4])
        if len(actions[t]) != 4:
            raise ValueError(f"action {t} has {len(actions[t])} numbers; expected 4")
    if counts["action"] != len(pixels):
        raise ValueError(f"it has {len(pixels)} pictures and {counts['action']} actions")
    unused = [name for name in counts if name not in (picture, "action")]
    frames = np.frombuffer(b"".join(pixels), np.uint8).reshape(-1, 64, 64, 3)
    return Recording(frames, np.stack(actions), None, tuple(unused))


def bair_episodes(name, first, n, src, camera):
    """The episodes of a file, n from number `first` on."""
    for k, record in enumerate(read_records(Path(src) / name, n)):
        yield first + k, f"traj_{first + k}", functools.partial(read_bair, record, camera)


def import_bair(src="", out="data/bair", camera="aux1", size=0, min_frames=2, val_every=100, workers=0, jpeg=0):
    """Import BAIR robot pushing from files traj_FIRST_to_LAST.tfrecords, whose names number the episodes.

    camera  aux1, the paper's, or main
    raises  as import_npz, ValueError where the folder holds several (train, test), ImportError without
            google-crc32c"""
    jobs = []
    for name in find_files(src, (".tfrecords",)):
        match = re.fullmatch(r"(?:.*/)?traj_(\d+)_to_(\d+)\.tfrecords", name)
        if match:
            first = int(match[1])
            jobs.append((name, first, int(match[2]) - first + 1))
    folders = sorted({str(Path(name).parent) for name, _, _ in jobs})
    if len(folders) != 1:
        raise ValueError(f"--src {str(src)!r} has traj_*_to_*.tfrecords in {len(folders)} folders; pass one of "
                         f"them ({', '.join(folders)})")
    jobs = sorted(jobs, key=lambda job: job[1])
    episodes = functools.partial(bair_episodes, src=str(src), camera=camera)
    run_import(jobs, episodes, out, camera, size, min_frames, val_every, workers, jpeg)
