"""importers/rlds.py: Open X-Embodiment as RLDS: TFRecord shards of whole episodes, pictures encoded.

    features.json, dataset_info.json --> cameras, actions, and by `interleave` the number of each record
    record --importers/tfrecord.py--> features --read_rlds--> Recording

T frames, A action dim.

Run: python prepare.py rlds --src bridge/0.1.0 --out data/oxe/bridge"""

import functools
import itertools
from pathlib import Path

import numpy as np

from data import OXE, RLDS_SUFFIX, from_picture
from importers.engine import run_import
from importers.recording import Recording, read_json, shift_rewards, stack_frames
from importers.tfrecord import feature_values, parse_example, read_records

OBSERVATION = "steps/observation/"


def interleave(lengths, cycle=16, block=16):
    """The order in which TFDS reads shards of so many records: yields the shard of each record.

    Of `cycle` open shards each in turn gives `block` records; the next shard takes the place of an ended one.
    Source: tf.data's Dataset.interleave, as tensorflow_datasets calls it"""
    waiting = iter(enumerate(lengths))
    slots = [None] * cycle  # (shard, records left)
    for i in itertools.cycle(range(cycle)):
        if slots[i] is None:
            slots[i] = next(waiting, None)
        if slots[i] is not None:
            shard, left = slots[i]
            yield from itertools.repeat(shard, min(left, block))
            # a shard with exactly one block left is found to have ended at its next turn only
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
    rewards = None
    lost = ()
    if has_reward:
        rewards, lost = shift_rewards(feature_values(features["steps/reward"]), len(frames))
    return Recording(frames, np.concatenate(actions, 1) if actions else None, rewards, (*unused, *lost))


def rlds_episodes(name, numbers, src, split, cameras, **settings):
    """The episodes of a shard, once for each camera, with the official converter's names."""
    for number, record in zip(numbers, read_records(Path(src) / name, len(numbers)), strict=True):
        for camera in cameras:
            folder = f"{camera}/" if len(cameras) > 1 else ""
            read = functools.partial(read_rlds, record, camera, **settings)
            yield number, f"{folder}{split}_eps_{number:08d}", read


def shard_jobs(src, splits, split):
    """(file name, episode numbers of its records) for each shard of a split.

    Numbers are those of the official converter, on which its splits and its list of RoboNet's test episodes
    depend; they come from dataset_info.json, so that a missing shard shifts none."""
    lengths = {part["name"]: list(map(int, part["shardLengths"])) for part in splits}
    if split not in lengths:
        raise ValueError(f"no split {split!r}; --split takes one of {', '.join(lengths)}")
    numbers = [[] for _ in lengths[split]]
    for number, shard in enumerate(interleave(lengths[split])):
        numbers[shard].append(number)
    paths = sorted(Path(src).glob(f"*-{split}.tfrecord-*"))
    if not paths:
        raise FileNotFoundError(f"--src {src!r} has no *-{split}.tfrecord-* files; pass a folder that has")
    stem = paths[0].name.partition(".")[0]
    names = [f"{stem}.tfrecord-{shard:05d}-of-{len(numbers):05d}" for shard in range(len(numbers))]
    return list(zip(names, numbers, strict=True))


def import_rlds(src="", out="data/rlds", split="train", camera="", actions=True, size=64, min_frames=2,
                val_every=100, exclude="", workers=0, jpeg=0):
    """Import a dataset of Open X-Embodiment in RLDS's form, by the folder of its version, such as bridge/0.1.0.

    split    TFDS' name;  actions  all float features under steps/action side by side; false: none
    camera   among the observations, or several, each an episode; "": the paper's (OXE in mixture.py), or image
    raises   as import_npz, ValueError where features.json has no such camera, ImportError without google-crc32c"""
    paths = [Path(src) / name for name in ("features.json", "dataset_info.json")]
    if not src or not all(path.is_file() for path in paths):
        raise FileNotFoundError(f"--src {src!r} lacks features.json or dataset_info.json; pass the folder of a "
                                "dataset's version, such as bridge/0.1.0")
    tree, about = map(read_json, paths)
    leaves = feature_leaves(tree)
    name = about.get("name", "")
    _, _, paper_camera = OXE.get(name.removesuffix(RLDS_SUFFIX), (0, 0, "image"))
    cameras = (camera or paper_camera).split(",")
    known = [path.removeprefix(OBSERVATION) for path in leaves if OBSERVATION in path and "image" in leaves[path]]
    for wanted in cameras:
        if wanted not in known:
            raise ValueError(f"no camera {wanted!r}; --camera takes one of {', '.join(known)}")
    if name == "robo_net" and not exclude:
        print("without --exclude, RoboNet's test videos are among these episodes")
    columns = action_columns(leaves) if actions else {}
    has_reward = leaves.get("steps/reward", {}).get("tensor", {}).get("dtype") == "float32"
    used = {*columns, *(OBSERVATION + wanted for wanted in cameras)}
    if has_reward:
        used.add("steps/reward")
    settings = dict(split=split, cameras=cameras, columns=columns, has_reward=has_reward, size=size,
                    unused=sorted(leaves.keys() - used))
    episodes = functools.partial(rlds_episodes, src=str(src), **settings)
    run_import(shard_jobs(str(src), about["splits"], split), episodes, out, ",".join(cameras), size, min_frames,
               val_every, workers, jpeg, exclude)
