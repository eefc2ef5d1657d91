"""importers/tfrecord.py: TFRecord files without TensorFlow: BAIR robot pushing, Open X-Embodiment as RLDS.

    file --read_records--> records --parse_example--> {feature: content} --feature_values--> values
    BAIR's t/image_CAMERA/encoded, t/action        --read_bair--> Recording
    RLDS' steps/observation/CAMERA, steps/action/* --read_rlds--> Recording
    RLDS' features.json, dataset_info.json         --> the features to read, and each record's episode number

T frames, A action dim.   Run: python prepare.py bair --src softmotion30_44k/train --out data/bair
     python prepare.py rlds --src bridge/0.1.0 --out data/oxe/bridge"""

import functools
import itertools
import re
from collections import Counter
from pathlib import Path

import numpy as np

from data import from_picture
from importers.engine import find_files, run_import
from importers.recording import Recording, read_json, stack_frames
from mixture import OXE, RLDS_SUFFIX
from support.files import require_content

try:
    import google_crc32c
except ImportError:  # then damaged records are not noticed
    google_crc32c = None

OBSERVATION = "steps/observation/"  # where RLDS has pictures


def _is_intact(data, checksum):
    """Compare data with its checksum (4 bytes), if google-crc32c is installed."""
    crc = google_crc32c.value(data) if google_crc32c else 0
    masked = (crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF
    return google_crc32c is None or masked == int.from_bytes(checksum, "little")


def read_records(path, expected):
    """Yield the records of a TFRecord file, bytes; None for one whose checksum is wrong.

    A record is its length (8 bytes), a checksum of that (4), the data, and their checksum (4).
    raises  ValueError where the next one cannot be found, or if there are not as many as expected"""
    require_content(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        for k in range(expected):
            head = file.read(12)
            if not head:
                raise ValueError(f"it has {k} records, expected {expected}: truncated")
            if len(head) == 12 and not _is_intact(head[:8], head[8:]):
                raise ValueError(f"record {k} of {expected}: its length is damaged, the rest cannot be found")
            length = int.from_bytes(head[:8], "little")
            if file.tell() + length + 4 > size:
                raise ValueError(f"record {k} of {expected} is cut off: truncated")
            data = file.read(length)
            crc = file.read(4)
            yield data if _is_intact(data, crc) else None
        if file.read(1):
            raise ValueError(f"it has more records than the {expected} expected")


def _fields(message):
    """Yield (number, content) of a protocol buffer's fields, if all are of the kind that has a length.

    A field is: number * 8 + 2 (a byte), length (7 bits in a byte, the lowest first), content."""
    i = 0
    while i < len(message):
        number = message[i] >> 3
        length = 0
        for shift in itertools.count(0, 7):
            i += 1
            length |= (message[i] & 127) << shift
            if message[i] < 128:
                break
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


def read_bair(record, camera):
    """An episode of BAIR's: frames (T, 64, 64, 3), actions (T, 4)."""
    features = parse_example(record)
    counts = Counter(name.partition("/")[2] for name in features)  # "7/action" is the action at frame 7
    picture = f"image_{camera}/encoded"
    if picture not in counts:
        raise ValueError(f"no camera {camera!r}; --camera takes one of aux1, main")
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
    return Recording(frames, np.stack(actions), unused=tuple(unused))


def bair_episodes(name, first, n, src, camera):
    """The n episodes of a file; the first has the number `first`."""
    for k, record in enumerate(read_records(Path(src) / name, n)):
        yield first + k, f"traj_{first + k}", functools.partial(read_bair, record, camera)


def import_bair(src="", out="data/bair", camera="aux1", size=0, min_frames=2, val_every=100, workers=0,
                jpeg=0):
    """Import BAIR robot pushing from files traj_FIRST_to_LAST.tfrecords, whose names number the episodes.

    camera  aux1, the paper's, or main"""
    jobs = []
    for name in find_files(src, (".tfrecords",)):
        match = re.fullmatch(r"(?:.*/)?traj_(\d+)_to_(\d+)\.tfrecords", name)
        if match:
            first = int(match[1])
            jobs.append((name, first, int(match[2]) - first + 1))
    folders = sorted({str(Path(name).parent) for name, _, _ in jobs})
    if len(folders) != 1:
        raise ValueError(f"--src {src}: traj_*.tfrecords are in {len(folders)} folders; pass one: {folders}")
    jobs.sort(key=lambda job: job[1])
    episodes = functools.partial(bair_episodes, src=str(src), camera=camera)
    run_import(jobs, episodes, out, camera, size, min_frames, val_every, workers, jpeg)


def interleave(lengths, cycle=16, block=16):
    """Yield the shard of each record, in the order in which TFDS reads shards of so many records.

    Of `cycle` open shards each in turn gives `block` records (tf.data's Dataset.interleave)."""
    waiting = iter(enumerate(lengths))
    slots = [None] * cycle  # (shard, records left)
    for i in itertools.cycle(range(cycle)):
        if slots[i] is None:
            slots[i] = next(waiting, None)
        if slots[i] is not None:
            shard, left = slots[i]
            yield from itertools.repeat(shard, min(left, block))
            # a shard with exactly one block left is only found to be empty at its next turn
            slots[i] = (shard, left - block) if left >= block else None
        elif not any(slots):
            return


def feature_leaves(feature, path=""):
    """The leaves of features.json's tree, {path: description}."""
    if "sequence" in feature:
        return feature_leaves(feature["sequence"]["feature"], path)
    children = feature.get("featuresDict", {}).get("features")
    if not children:
        return {path: feature}
    leaves = {}
    for name, child in children.items():
        leaves.update(feature_leaves(child, f"{path}/{name}" if path else name))
    return leaves


def action_columns(leaves):
    """The float features under steps/action in the order of their names, {path: numbers per step}."""
    columns = {}
    for path, leaf in sorted(leaves.items()):
        tensor = leaf.get("tensor", {})
        if f"{path}/".startswith("steps/action/") and tensor.get("dtype", "").startswith("float"):
            shape = [int(n) for n in tensor.get("shape", {}).get("dimensions", ())]
            columns[path] = int(np.prod(shape))
    return columns


def read_rlds(record, camera, columns, has_reward, unused, size):
    """An episode: a camera's frames, and the columns side by side as actions (T, A)."""
    features = parse_example(record)
    frames = stack_frames(map(from_picture, feature_values(features[OBSERVATION + camera])), size)
    actions = [feature_values(features[name]).reshape(-1, width) for name, width in columns.items()]
    actions = np.concatenate(actions, 1) if actions else None
    rewards = feature_values(features["steps/reward"]) if has_reward else None
    return Recording(frames, actions, action_rewards=rewards, unused=tuple(unused))


def rlds_episodes(name, numbers, src, split, cameras, columns, has_reward, unused, size):
    """The episodes of a shard, once for each camera, with the official converter's names."""
    for number, record in zip(numbers, read_records(Path(src) / name, len(numbers)), strict=True):
        for camera in cameras:
            folder = f"{camera}/" if len(cameras) > 1 else ""
            read = functools.partial(read_rlds, record, camera, columns, has_reward, unused, size)
            yield number, f"{folder}{split}_eps_{number:08d}", read


def shard_jobs(src, splits, split):
    """(file name, episode numbers of its records) for each shard of a split.

    The numbers, of which the official splits and lists speak, come from dataset_info.json: a missing shard
    shifts none."""
    lengths = {part["name"]: list(map(int, part["shardLengths"])) for part in splits}
    if split not in lengths:
        raise ValueError(f"no split {split!r}; --split takes one of {', '.join(lengths)}")
    numbers = [[] for _ in lengths[split]]
    for number, shard in enumerate(interleave(lengths[split])):
        numbers[shard].append(number)
    paths = sorted(Path(src).glob(f"*-{split}.tfrecord-*"))
    if not paths:
        raise FileNotFoundError(f"{src} has no *-{split}.tfrecord-* files; pass the folder that has them")
    stem = paths[0].name.partition(".")[0]
    names = [f"{stem}.tfrecord-{shard:05d}-of-{len(numbers):05d}" for shard in range(len(numbers))]
    return list(zip(names, numbers, strict=True))


def import_rlds(src="", out="data/rlds", split="train", camera="", actions=True, size=64, min_frames=2,
                val_every=100, exclude="", workers=0, jpeg=0):
    """Import a dataset of Open X-Embodiment as RLDS: the folder of its version, such as bridge/0.1.0.

    split    TFDS' name;  actions  all float features under steps/action side by side; false: none
    camera   among the observations, or several, each an episode; "": the paper's (OXE), or image"""
    leaves = feature_leaves(read_json(Path(src) / "features.json"))
    about = read_json(Path(src) / "dataset_info.json")
    name = about.get("name", "")
    if name == "robo_net" and not exclude:
        print("without --exclude, RoboNet's test videos are among these episodes")
    _, _, paper_camera = OXE.get(name.removesuffix(RLDS_SUFFIX), (0, 0, "image"))
    cameras = (camera or paper_camera).split(",")
    pictures = [path for path in leaves if path.startswith(OBSERVATION) and "image" in leaves[path]]
    for wanted in cameras:
        if OBSERVATION + wanted not in pictures:
            known = ", ".join(path.removeprefix(OBSERVATION) for path in pictures)
            raise ValueError(f"no camera {wanted!r}; --camera takes one of {known}")
    columns = action_columns(leaves) if actions else {}
    has_reward = leaves.get("steps/reward", {}).get("tensor", {}).get("dtype") == "float32"
    used = {*columns, *(OBSERVATION + wanted for wanted in cameras)}
    if has_reward:
        used.add("steps/reward")
    episodes = functools.partial(rlds_episodes, src=str(src), split=split, cameras=cameras, columns=columns,
                                 has_reward=has_reward, unused=sorted(leaves.keys() - used), size=size)
    run_import(shard_jobs(src, about["splits"], split), episodes, out, ",".join(cameras), size, min_frames,
               val_every, workers, jpeg, exclude)
