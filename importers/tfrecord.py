"""importers/tfrecord.py: TFRecord files without TensorFlow, and BAIR robot pushing, which is kept in them.

    file --read_records--> records (bytes) --parse_example--> {feature: content} --feature_values--> values
    BAIR's {t/image_CAMERA/encoded, t/action} --read_bair--> Recording

T frames.

Run: python prepare.py bair --src softmotion30_44k --split train --out data/bair"""

import functools
import itertools
import re
from collections import Counter
from pathlib import Path

import numpy as np

from common import require_content
from importers.engine import find_files, print_unread, run_import
from importers.recording import Recording, optional


def read_records(path, expected):
    """Yield the records of a TFRecord file, bytes; None for one whose checksum is wrong.

    A record is its length (8 bytes), a checksum of that (4), the data, and their checksum (4).
    raises  ValueError where the next one cannot be found, or if there are not as many as expected"""
    crc32c = optional("google_crc32c", "google-crc32c")

    def checksum(data):  # rotated and shifted, as TFRecord keeps it
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
            raise ValueError(f"it has more than {expected} records, expected {expected}")


# ---- protocol buffers: tf.train.Example {features: {feature: {name: kind: {value}}}} ----


def _varint(data, i):
    """The integer at byte i, 7 bits a byte, and the byte after it."""
    value = 0
    shift = 0
    while True:
        byte = data[i]
        value |= (byte & 127) << shift
        shift += 7
        i += 1
        if byte < 128:
            return value, i


def _fields(data):
    """Yield (number, value) of a message's fields: an integer or bytes."""
    fixed_sizes = {1: 8, 5: 4}  # by wire type; 2 begins with its size
    i = 0
    while i < len(data):
        tag, i = _varint(data, i)
        wire_type = tag & 7
        if wire_type == 0:
            value, i = _varint(data, i)
        else:
            size = fixed_sizes.get(wire_type)
            if size is None:
                size, i = _varint(data, i)
            value = data[i : i + size]
            i += size
        yield tag >> 3, value


def parse_example(record):
    """The features of a tf.train.Example by name, for `feature_values`.   raises  ValueError where it is None"""
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
    pixels = []
    actions = []
    for t in itertools.count():
        if f"{t}/image_{camera}/encoded" not in features:
            break
        pixels += feature_values(features[f"{t}/image_{camera}/encoded"])
        actions.append(feature_values(features.get(f"{t}/action", b""))[:4])
        if len(actions[t]) != 4:
            raise ValueError(f"action {t} has {len(actions[t])} numbers; expected 4")
    counts = Counter(name.partition("/")[2] for name in features)
    if not pixels:
        cameras = sorted(name[6:].removesuffix("/encoded") for name in counts if name.startswith("image_"))
        raise ValueError(f"no camera {camera!r}; --camera takes one of {', '.join(cameras)}")
    if counts["action"] != len(pixels):
        raise ValueError(f"it has {len(pixels)} pictures and {counts['action']} actions")
    unused = [name for name in counts if name not in (f"image_{camera}/encoded", "action")]
    frames = np.frombuffer(b"".join(pixels), np.uint8).reshape(-1, 64, 64, 3)
    return Recording(frames, np.stack(actions), None, tuple(unused))


def _bair_episodes(name, start, n, src, camera):
    for k, record in enumerate(read_records(Path(src) / name, n)):
        yield start + k, f"traj_{start + k}", functools.partial(read_bair, record, camera)


def import_bair(src="", out="data/bair", split="", camera="aux1", size=0, min_frames=2, val_every=100,
                workers=0, jpeg=0):
    """Import BAIR robot pushing from files traj_FIRST_to_LAST.tfrecords, whose names number the episodes.

    split   train or test, where the folder has both;  camera  aux1, the paper's, or main
    raises  as import_npz, ValueError where --split must choose, ImportError without google-crc32c"""
    jobs = []
    others = []
    for name in find_files(src, (".tfrecords",)):
        match = re.fullmatch(r"(?:.*/)?traj_(\d+)_to_(\d+)\.tfrecords", name)
        if match and (not split or split in name.split("/")[:-1]):
            first = int(match[1])
            jobs.append((name, first, int(match[2]) - first + 1))
        else:
            others.append(name)
    print_unread(others)
    folders = sorted({str(Path(name).parent) for name, *_ in jobs})
    if len(folders) != 1:
        raise ValueError(f"--split {split!r} takes traj_*_to_*.tfrecords of {len(folders)} folders; expected "
                         f"one of them, such as train or test ({', '.join(folders)})")
    jobs = sorted(jobs, key=lambda job: job[1])
    episodes = functools.partial(_bair_episodes, src=str(src), camera=camera)
    run_import(jobs, episodes, out, camera, size, min_frames, val_every, workers, jpeg)
