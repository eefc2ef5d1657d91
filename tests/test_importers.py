"""importers/: formats that their own libraries wrote, damage, kills, processes, numbers."""

import functools
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from data import Episodes, EpisodeWriter
from importers import load_episode, tfrecord
from importers.hdf5 import import_robonet, import_vp2
from importers.lerobot import import_lerobot
from importers.recording import area_resize
from importers.tfrecord import (
    feature_values,
    import_bair,
    import_rlds,
    interleave,
    parse_example,
    read_records,
)
from importers.video import STHSTH_CLASSES, import_npz, import_sthsth, import_video

av = pytest.importorskip("av", reason="pip install av")
h5py = pytest.importorskip("h5py", reason="pip install h5py")
parquet = pytest.importorskip("pyarrow.parquet", reason="pip install pyarrow")
crc32c = pytest.importorskip("google_crc32c", reason="pip install google-crc32c")
pa = pytest.importorskip("pyarrow")
T = 20


@functools.cache
def clip(i, size=64):
    """Smooth moving colours, so that codecs are close, in which red, green and blue differ."""
    t, y, x = np.mgrid[:T, :size, :size] / size
    waves = np.stack([np.sin(3 * x + t + i), np.sin(2 * y + 2 * t) - 0.5, np.cos(x + y - t + i) / 2], -1)
    return (127 + 100 * waves).clip(0, 255).astype(np.uint8)


def actions_of(i, A):
    return np.random.default_rng(i).uniform(-1, 1, (T, A)).astype(np.float32)


# ---- writing the formats ----


def varint(n):
    return bytes([n & 127 | 128]) + varint(n >> 7) if n > 127 else bytes([n])


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(features):
    """A tf.train.Example of {name: list of bytes or array of floats or integers}."""
    entries = b""
    for name, value in features.items():
        if isinstance(value, list):
            kind = field(1, b"".join(field(1, v) for v in value))
        elif value.dtype.kind == "f":
            kind = field(2, field(1, value.astype("<f4").tobytes()))
        else:
            kind = field(3, field(1, b"".join(varint(int(v)) for v in value)))
        entries += field(1, field(1, name.encode()) + field(2, kind))
    return field(1, entries)


def masked(data):
    crc = crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def write_records(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        for record in records:
            length = struct.pack("<Q", len(record))
            file.write(length + masked(length) + record + masked(record))


def write_video(file, frames, codec="libx264", format=None, **options):
    with av.open(file, "w", format=format) as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def encoded(picture, format="PNG"):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format, quality=95)
    return file.getvalue()


def bair_episode(i, A):
    features = {}
    for t, (picture, action) in enumerate(zip(clip(i), actions_of(i, 5), strict=True)):
        features[f"{t}/image_aux1/encoded"] = [picture.tobytes()]
        features[f"{t}/image_main/encoded"] = [clip(i + 50)[t].tobytes()]
        features[f"{t}/action"] = action[:A]
    return example(features)


def write_bair(src, wrong=False):
    for first in (0, 10, 3):  # a file name's place in the alphabet is not its place among the trajectories
        write_records(src / f"traj_{first}_to_{first + 2}.tfrecords",
                      [bair_episode(i, 3 if wrong and i == 4 else 5) for i in range(first, first + 3)])
    return {i: (f"traj_{i}", clip(i), actions_of(i, 5)[:, :4]) for i in (0, 1, 2, 3, 4, 5, 10, 11, 12)}


RLDS_SHARDS = 3, 2, 1


def write_rlds(src, wrong=False):
    def tensor(dtype, *shape):
        return dict(tensor=dict(dtype=dtype, encoding="none", shape=dict(dimensions=[str(n) for n in shape])))

    def tree(**features):
        return dict(featuresDict=dict(features=features))

    action = tree(world_vector=tensor("float32", 3), gripper=tensor("float32"), terminate=tensor("int32", 1))
    observation = tree(image=dict(image=dict(dtype="uint8")), wrist=dict(image={}), state=tensor("float64"))
    steps = dict(sequence=dict(feature=tree(observation=observation, action=action)))
    src.mkdir(parents=True)
    (src / "features.json").write_text(json.dumps(tree(steps=steps)))
    splits = [dict(name="train", shardLengths=[str(n) for n in RLDS_SHARDS])]
    (src / "dataset_info.json").write_text(json.dumps(dict(name="toy", splits=splits)))
    i, written = 0, {}
    for shard, n in enumerate(RLDS_SHARDS):
        records = []
        for _ in range(n):
            actions = actions_of(i, 4)
            format = "JPEG" if i == 1 else "PNG"
            records.append(example({
                "steps/observation/image": [encoded(picture, format) for picture in clip(i)],
                "steps/observation/wrist": [encoded(picture, "PNG") for picture in 255 - clip(i)],
                "steps/action/world_vector": actions[: 7 if wrong and i == 4 else T, 1:].ravel(),
                "steps/action/gripper": actions[: 7 if wrong and i == 4 else T, 0],
                "steps/action/terminate": np.arange(T),
            }))
            written[i] = f"train_eps_{i:08d}", clip(i), actions
            i += 1
        write_records(src / f"toy-train.tfrecord-{shard:05d}-of-00003", records)
    return written


def write_robonet(src, wrong=False):
    src.mkdir(parents=True)
    written = {}
    for i in range(4):  # every way to keep frames and actions
        frames, actions, states = clip(i), actions_of(i, 5)[: T - 1], actions_of(i + 9, 5)
        stored = frames[..., ::-1] if i % 2 else frames  # as image_format says
        with h5py.File(src / f"robot_{i}.hdf5", "w") as file:
            video = file.create_group("env/cam0_video")
            if i < 2:
                memory = io.BytesIO()
                write_video(memory, stored, format="mp4", crf="5")
                video["frames"] = np.frombuffer(memory.getvalue(), np.uint8)
                video["frames"].attrs["T"] = T
            else:  # written by cv2.imencode, which takes blue for red
                for t, picture in enumerate(stored[..., ::-1]):
                    video[f"frame{t}"] = np.frombuffer(encoded(picture, "JPEG"), np.uint8)
            first = video["frames" if i < 2 else "frame0"]
            first.attrs["image_format"] = "BGR" if i % 2 else "RGB"
            file["env"].attrs["cam_encoding"] = "mp4" if i < 2 else "jpg"
            file["env/state"], file["env/low_bound"], file["env/high_bound"] = states, [[0] * 5], [[0.6] * 5]
            metadata = file.create_group("metadata")
            A = (5, 3, 6, 4)[i]
            wide = np.pad(actions, ((0, 0), (0, 1)), constant_values=9)[:, :A]
            file["policy/actions"] = wide[: 7 if wrong and i == 1 else T]
            expected = np.zeros((T, 5), np.float32)
            expected[: T - 1, : min(A, 5)] = actions[:, :A]
            if i == 3:
                metadata.attrs["primitives"] = "autograsp"
                expected[: T - 1, 4] = np.where(states[1:, 4] > 0.3, 0.6, 0)
        written[i] = f"robot_{i}.hdf5", frames, expected
    return written


def write_vp2(src, wrong=False):
    src.mkdir(parents=True)
    written = {}
    for i in range(3):
        with h5py.File(src / f"task_{i}.hdf5", "w") as file:
            file["data/demo_0/obs/camera_image"] = clip(i)
            file["data/demo_0/actions"] = actions_of(i, 5)[: 7 if wrong and i == 1 else T]
        written[i] = f"task_{i}.hdf5/demo_0", clip(i), actions_of(i, 5)
    return written


def write_npz(src, wrong=False):
    src.mkdir(parents=True)
    for i in range(3):
        np.savez(src / f"train_eps_{i:08d}.npz", image=clip(i),
                 action=actions_of(i, 2)[: 7 if wrong and i == 1 else T])
    return {i: (f"train_eps_{i:08d}.npz", clip(i), actions_of(i, 2)) for i in range(3)}


def write_lerobot(src, wrong=False, v3=False, unit=1):
    camera, files = "observation.images.top", ([0, 1], [2]) if v3 else ([0], [1], [2])
    names = "chunk-{chunk_index:03d}/file-{file_index:03d}" if v3 else (
        "chunk-{episode_chunk:03d}/episode_{episode_index:06d}")
    info = dict(codebase_version="v3.0" if v3 else "v2.1", fps=10, chunks_size=1000,
                features={camera: dict(dtype="video"), "action": dict(dtype="float32")},
                data_path=f"data/{names}.parquet",
                video_path=("videos/{video_key}/" if v3 else "videos/") + names.replace(
                    "/", "/" if v3 else "/{video_key}/") + ".mp4")
    (src / "meta/episodes/chunk-000").mkdir(parents=True)
    (src / "meta/info.json").write_text(json.dumps(info))
    rows = []
    for f, numbers in enumerate(files):
        keys = dict(chunk_index=0, file_index=f, episode_chunk=0, episode_index=f, video_key=camera)
        table, video = (src / info[f"{kind}_path"].format(**keys) for kind in ("data", "video"))
        table.parent.mkdir(parents=True, exist_ok=True)
        video.parent.mkdir(parents=True, exist_ok=True)
        write_video(str(video), np.concatenate([clip(i) for i in numbers]), crf="5", g="2")
        kept = [(i, row) for i in numbers for row in unit * actions_of(i, 2)[: 7 if wrong and i == 1 else T]]
        columns = dict(episode_index=[i for i, _ in kept], action=[row.tolist() for _, row in kept])
        parquet.write_table(pa.table(columns), table, write_page_checksum=True, compression="none")
        rows += [{"episode_index": i, "length": T, "data/chunk_index": 0, "data/file_index": f,
                  f"videos/{camera}/chunk_index": 0, f"videos/{camera}/file_index": f,
                  f"videos/{camera}/from_timestamp": k * T / 10,
                  f"videos/{camera}/to_timestamp": (k + 1) * T / 10} for k, i in enumerate(numbers)]
    if v3:
        parquet.write_table(pa.Table.from_pylist(rows), src / "meta/episodes/chunk-000/file-000.parquet")
    else:
        (src / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {i: (f"episode_{i:06d}", clip(i), unit * actions_of(i, 2)) for i in range(3)}


def write_sthsth(src, wrong=False):
    (src / "videos").mkdir(parents=True)
    classes = {"Bending something until it breaks": "3", "Closing something": "5", "Holding something": "13"}
    (src / "labels.json").write_text(json.dumps(classes))
    rows = [dict(id=str(100 + i), template=template) for i, template in enumerate(
        ("Closing [something]", "Bending [something] until it breaks", "Holding [something]"))]
    (src / "train.json").write_text(json.dumps(rows))
    (src / "validation.json").write_text(json.dumps([dict(id="103", template="Holding [something]")]))
    for i in range(4):
        write_video(str(src / f"videos/{100 + i}.webm"), clip(i), "libvpx-vp9", crf="4", b="0", cpu_used="8")
    return {number: (f"videos/{100 + i}.webm", clip(i), np.zeros((T, 0)))
            for i, number in ((0, 1), (2, 5), (3, 0))}  # the train list's first and third, the other's first


class Format(NamedTuple):
    """How it is written and imported; the file to damage; the episodes (numbers) that are lost and the reason
    if that file is cut off, if the bit at this share of it is flipped, if an episode's actions do not fit;
    a camera that is missing and the message."""

    write: Callable
    importer: Callable
    file: str
    cut: tuple[set, str]
    flip: tuple[float, set, str]
    wrong: tuple[set, str] = (set(), "")
    camera: tuple[dict, str] = ({}, "")


FORMATS = dict(
    bair=Format(write_bair, import_bair, "traj_3_to_5.tfrecords",
                ({4, 5}, "tfrecords: record 1 of 3 is cut off: truncated"),
                (0.5, {4}, "traj_4: its checksum is wrong: damaged"),
                ({4}, "traj_4: action 0 has 3 numbers; expected 4"),
                (dict(camera="x"), "no camera 'x'; --camera takes one of aux1, main")),
    rlds=Format(write_rlds, import_rlds, "toy-train.tfrecord-00001-of-00003",
                ({4}, "of-00003: record 1 of 2 is cut off: truncated"),
                (0.7, {4}, "train_eps_00000004: its checksum is wrong: damaged"),
                ({4}, r"train_eps_00000004: actions are \(7, 4\); expected finite \(20 or 19, A\)"),
                (dict(camera="x"), "no camera 'x'; --camera takes one of image, wrist")),
    robonet=Format(write_robonet, import_robonet, "robot_1.hdf5",
                   ({1}, "OSError: .*truncated file"), (0, {1}, "OSError: .*signature not found"),
                   ({1}, "robot_1.hdf5: 8 frames, fewer than --min_frames 12"),  # 7 actions: 8 frames
                   (dict(camera="cam7"), "no camera 'cam7'; --camera takes one of cam0")),
    vp2=Format(write_vp2, import_vp2, "task_1.hdf5",
               ({1}, "no file of VP2's: .*truncated file"),
               (0, {1}, "no file of VP2's: .*signature not found"),
               ({1}, r"task_1.hdf5/demo_0: actions are \(7, 5\); expected finite"),
               (dict(mask="x"), "has no mask/x; leave --mask out")),
    npz=Format(write_npz, import_npz, "train_eps_00000001.npz",
               ({1}, "BadZipFile: File is not a zip file"), (0.5, {1}, "BadZipFile: Bad CRC-32"),
               ({1}, r"actions are \(7, 2\); expected finite"),
               (dict(key="x"), "no array 'x'; --key takes one of image, action")),
    lerobot2=Format(write_lerobot, import_lerobot,
                    "videos/chunk-000/observation.images.top/episode_000001.mp4",
                    ({1}, "episode_000001: .*Invalid data"), (0.002, {1}, "episode_000001: .*Invalid data"),
                    ({1}, "episode_000001: .*episode_000001.parquet has 7 of its 20 rows"),
                    (dict(camera="x"), "no video 'x'; --camera takes one of observation.images.top")),
    lerobot3=Format(functools.partial(write_lerobot, v3=True), import_lerobot,
                    "data/chunk-000/file-001.parquet",
                    ({2}, "file-001.parquet: .*Parquet magic bytes not found"),
                    (0.2, {2}, "file-001.parquet: OSError: .* CRC checksum verification failed"),
                    ({1}, "episode_000001: .*file-000.parquet has 7 of its 20 rows"),
                    (dict(action="x"), "no column 'x'; --action takes one of .*, action")),
    sthsth=Format(write_sthsth, import_sthsth, "videos/102.webm",
                  ({5}, r"102.webm: it has .* of .* bytes: truncated"),
                  (0, {5}, "102.webm: .*(Invalid data|not permitted)")),
)


def assert_holds(folder, written, numbers):
    """The folder has these episodes and no others, in order, to 35 dB, with their actions."""
    episodes = Episodes(folder, "all")
    with np.load(folder / "index.npz") as index:
        assert index["number"].tolist() == sorted(numbers)
    assert episodes.names.tolist() == [written[number][0] for number in sorted(numbers)]
    for k, number in enumerate(sorted(numbers)):
        _, frames, actions = written[number]
        error = (episodes.read(k).astype(float) - frames) / 255
        assert -10 * np.log10((error**2).mean() + 1e-8) > 35
        rows = slice(episodes.rows[k], episodes.rows[k] + T - 1)
        assert episodes.actions[rows] == pytest.approx(actions[: T - 1], abs=1e-6)
    assert not list(folder.parent.glob("*.partial"))


@pytest.fixture(params=FORMATS)
def format(request):
    return FORMATS[request.param]


def test_frames_and_actions_come_back(format, tmp_path, capsys):
    written = format.write(tmp_path / "src")
    format.importer(tmp_path / "src", tmp_path / "out", workers=1)
    assert_holds(tmp_path / "out", written, written)
    assert f"imported {len(written)}, skipped 0" in capsys.readouterr().out
    if format.write in (write_bair, write_vp2, write_npz):  # not compressed: the same to the last bit
        episodes = Episodes(tmp_path / "out", "all")
        assert all(np.array_equal(episodes.read(k), written[n][1]) for k, n in enumerate(sorted(written)))


def test_frames_are_kept_as_jpegs_where_that_is_asked_for(format, tmp_path):
    written = format.write(tmp_path / "src")
    format.importer(tmp_path / "src", tmp_path / "out", workers=1, jpeg=98)
    assert_holds(tmp_path / "out", written, written)
    assert Episodes(tmp_path / "out", "all").meta["codec"] == "jpeg"


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_damage_costs_what_it_concerns_alone(format, damage, tmp_path, capsys):
    written = format.write(tmp_path / "src")
    path = tmp_path / "src" / format.file
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        lost, reason = format.cut
        del content[int(0.6 * len(content)) :]
    else:
        place, lost, reason = format.flip
        content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    format.importer(tmp_path / "src", tmp_path / "out", workers=1)
    assert_holds(tmp_path / "out", written, set(written) - lost)
    first, *lines = capsys.readouterr().out.splitlines()
    lines = [line for line in lines if line.startswith("skipped ")]
    assert first == f"imported {len(written) - len(lost)}, skipped {len(lines)}" and len(lines) == 1
    assert re.search(f"skipped .*{reason}", lines[0])
    assert (tmp_path / "out/skipped.txt").read_text().splitlines() == lines


def test_bad_settings_and_actions_are_told_in_one_line(format, tmp_path, capsys):
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match="none.*(has no|features.json|info.json|labels.json)"):
        format.importer(str(tmp_path / "none"), tmp_path / "out")
    lost, reason = format.wrong
    written = format.write(tmp_path / "src", wrong=bool(lost))
    settings, message = format.camera
    if settings:
        with pytest.raises(ValueError, match=f".*{message}$"):
            format.importer(tmp_path / "src", tmp_path / "out", workers=1, **settings)
    assert not list(tmp_path.glob("out*"))
    capsys.readouterr()
    format.importer(tmp_path / "src", tmp_path / "out", workers=1)
    assert_holds(tmp_path / "out", written, set(written) - lost)
    first, *lines = capsys.readouterr().out.splitlines()
    lines = [line for line in lines if line.startswith("skipped ")]
    assert first == f"imported {len(written) - len(lost)}, skipped {len(lost)}" and len(lines) == len(lost)
    assert all(re.search(f"skipped .*{reason}", line) for line in lines)


@pytest.mark.parametrize("module, importer", [("h5py", import_vp2), ("pyarrow", import_lerobot),
                                              ("av", import_sthsth), ("av", import_robonet)])
def test_a_missing_package_is_named(module, importer, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "a.hdf5").touch()
    with pytest.raises(ImportError, match=f"pip install {module}"):
        importer(tmp_path, tmp_path / "out")


# ---- TFRecord files ----


def test_a_file_that_lacks_records_or_has_a_damaged_length_is_named_and_the_rest_kept(tmp_path, capsys):
    written = write_bair(tmp_path / "src")
    records = [bair_episode(i, 5) for i in (3, 4, 5)]
    write_records(tmp_path / "src/traj_3_to_5.tfrecords", records[:2])  # cut off between two records
    path = tmp_path / "src/traj_10_to_12.tfrecords"
    content = bytearray(path.read_bytes())
    content[len(records[0]) + 16 + 1] ^= 1  # the second record's length
    path.write_bytes(content)
    import_bair(tmp_path / "src", tmp_path / "out", workers=1)
    assert_holds(tmp_path / "out", written, {0, 1, 2, 3, 4, 10})
    printed = capsys.readouterr().out
    assert "traj_3_to_5.tfrecords: it has 2 records, expected 3: truncated" in printed
    assert "traj_10_to_12.tfrecords: record 1 of 3: its length is damaged" in printed


def test_without_the_checksum_library_lengths_are_checked_nevertheless(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    write_records(tmp_path / "a", [b"123456789", b"abc"])
    assert list(importers._records(tmp_path / "a", 2)) == [b"123456789", b"abc"]
    assert importers._crc32c(b"123456789") == 0xE3069283  # the published check value


def test_values_of_a_feature_are_read_packed_or_one_by_one():
    features = parse_example(example(dict(a=np.arange(3), b=np.float32([1.5, -2]), c=[b"x", b"y\0"], d=[])))
    assert feature_values(features["b"]).tolist() == [1.5, -2]
    assert feature_values(features["c"]) == [b"x", b"y\0"] and feature_values(features["d"]) == []
    singly = b"".join(varint(1 << 3 | 5) + struct.pack("<f", value) for value in (1.5, -2))
    assert feature_values(field(2, singly)).tolist() == [1.5, -2]


def test_shards_are_read_in_the_order_of_the_official_converter():
    assert list(interleave([3, 2, 2], cycle=2, block=2)) == [0, 0, 1, 1, 0, 2, 2]
    order = np.array(list(interleave([17] * 20)))
    assert len(order) == 20 * 17
    assert np.flatnonzero(order == 0).tolist() == [*range(16), 256]  # 16 of each of 16 shards, then the rest
    assert np.flatnonzero(order == 15).tolist() == [*range(240, 256), 271]
    assert np.flatnonzero(order == 16).tolist() == [*range(272, 288), 336]


def test_numbers_come_from_the_shard_lengths_and_listed_episodes_are_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tfrecord, "interleave", functools.partial(interleave, cycle=2, block=2))
    written = write_rlds(tmp_path / "src")  # its shards hold 3, 2 and 1 episodes, read as 0 1 | 3 4 | 2 | 5
    listed = tmp_path / "list.txt"
    listed.write_text("traj8071, train_eps_00000003.npz\nfive robo_net/train_eps_00000005.npz\n77\n")
    (tmp_path / "src/toy-train.tfrecord-00000-of-00003").unlink()
    import_rlds(tmp_path / "src", tmp_path / "out", exclude=str(listed), actions=False, workers=1)
    printed = capsys.readouterr().out
    assert "imported 1, skipped 1, excluded 2 of the 3 listed" in printed and "No such file" in printed
    with np.load(tmp_path / "out/index.npz") as index:
        assert (index["number"].tolist(), index["name"].tolist()) == ([2], ["train_eps_00000002"])
    episodes = Episodes(tmp_path / "out", "all")
    assert np.array_equal(episodes.read(0), written[3][1]) and episodes.action_dim == 0


def test_the_camera_is_the_papers_and_several_are_episodes_each(tmp_path, monkeypatch):
    written = write_rlds(tmp_path / "src")
    monkeypatch.setitem(tfrecord.OXE, "toy", (1, 1, "image,wrist"))
    import_rlds(tmp_path / "src", tmp_path / "out", workers=1)
    episodes = Episodes(tmp_path / "out", "all")
    assert episodes.n_episodes == 12 and Episodes(tmp_path / "out", "val").n_episodes == 2  # of one number
    assert list(episodes.names[:2]) == ["image/train_eps_00000000", "wrist/train_eps_00000000"]
    assert np.array_equal(episodes.read(1), 255 - written[0][1])


# ---- Something-Something, other forms ----


def test_damaged_metadata_of_lerobots_is_named(tmp_path):
    write_lerobot(tmp_path / "src")
    meta = tmp_path / "src/meta"
    (meta / "episodes.jsonl").write_bytes((meta / "episodes.jsonl").read_bytes()[:-9])
    with pytest.raises(ValueError, match="episodes.jsonl is damaged"):
        import_lerobot(tmp_path / "src", tmp_path / "out")
    info = json.loads((meta / "info.json").read_text())
    info["features"]["observation.images.top"]["dtype"] = "image"
    (meta / "info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match="src has no videos; those with pictures"):
        import_lerobot(tmp_path / "src", tmp_path / "out")


def test_episodes_of_robonets_files_are_left_out_by_the_files_names(tmp_path, capsys):
    written = write_robonet(tmp_path / "src")
    name = written[1][0]
    (tmp_path / "list.txt").write_text(f"{name.removesuffix('.hdf5')}, train_eps_00012345.npz\n")
    import_robonet(tmp_path / "src", tmp_path / "out", exclude=str(tmp_path / "list.txt"), workers=1)
    assert f"imported {len(written) - 1}, skipped 0, excluded 1 of the 1 listed" in capsys.readouterr().out
    assert_holds(tmp_path / "out", written, set(written) - {1})


@pytest.mark.parametrize("v3", [False, True])
def test_lerobots_actions_in_other_units_are_scaled_by_their_extremes(v3, tmp_path, capsys):
    written = write_lerobot(tmp_path / "src", v3=v3, unit=90)
    actions = np.concatenate([actions for _, _, actions in written.values()])
    low, high = actions.min(0), actions.max(0)
    import_lerobot(tmp_path / "src", tmp_path / "out", workers=1)
    told = capsys.readouterr().out
    assert "extremes of 3 episodes, become -1 to 1" in told and "clipped" not in told
    episodes = Episodes(tmp_path / "out", "all")
    assert episodes.meta["action_scaling"]["low"] == pytest.approx(low.tolist())
    assert episodes.meta["action_scaling"]["by"] == "extremes"
    for k, number in enumerate(sorted(written)):
        row, (*_, actions) = episodes.rows[k], written[number]
        want = 2 * (actions - low) / (high - low) - 1
        assert episodes.actions[row : row + T - 1] == pytest.approx(want[: T - 1], abs=1e-5)
    import_lerobot(tmp_path / "src", tmp_path / "plain", scale=False, workers=1)
    clipped = {n: (name, frames, actions.clip(-1, 1)) for n, (name, frames, actions) in written.items()}
    assert_holds(tmp_path / "plain", clipped, clipped)
    meta = Episodes(tmp_path / "plain", "all").meta
    assert meta["action_scaling"] is None and meta["clipped_action_values"] > 50


def test_the_official_lists_and_folders_of_pictures_are_read(tmp_path):
    for i in range(3):
        (tmp_path / f"src/{i}").mkdir(parents=True)
        for t, picture in enumerate(clip(i)):
            (tmp_path / f"src/{i}/{t + 1:06d}.jpg").write_bytes(encoded(picture, "JPEG"))
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train_video_folder.txt").write_text("0 20 2\n1 20 173\n")
    (tmp_path / "lists/val_video_folder.txt").write_text("2 20 1\n")
    import_sthsth(tmp_path / "src", tmp_path / "out", labels=str(tmp_path / "lists"), workers=1)
    written = {3: ("1", clip(1), np.zeros((T, 0))), 0: ("2", clip(2), np.zeros((T, 0)))}
    assert_holds(tmp_path / "out", written, written)
    assert len(STHSTH_CLASSES) == 95


# ---- kills, processes ----


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def bair(tmp_path):
    """A source and what it is imported to, for comparison."""
    src, out = tmp_path / "src", tmp_path / "out"
    write_bair(src)
    import_bair(src, tmp_path / "whole", workers=1)
    return src, out, files_of(tmp_path / "whole")


def test_finished_parts_are_not_done_again_and_interrupted_ones_are(bair, monkeypatch):
    src, out, whole = bair
    read, partial = tfrecord.read_bair, out.with_name("out.partial")

    def killed(record, camera):
        if record == bair_episode(4, 5):
            raise KeyboardInterrupt
        return read(record, camera)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tfrecord, "read_bair", killed)
        import_bair(src, out, workers=1)
    assert (partial / "part-00000.json").is_file() and not (partial / "part-00001.json").is_file()
    for left in ("part-00001/0.partial", "part-00001/0"):  # by a kill that no code could see
        (partial / left).mkdir(parents=True)
        (partial / left / "shard-00000.bin").write_bytes(b"half")
    (src / "traj_0_to_2.tfrecords").write_bytes(b"changed: whoever reads this finds no record")
    with pytest.raises(ValueError, match="out.partial was begun with other camera, size; delete it"):
        import_bair(src, out, camera="main", size=32, workers=1)
    import_bair(src, out, workers=1)
    assert files_of(out) == whole and not partial.exists()


def test_an_import_that_is_killed_at_any_rename_goes_on(bair, monkeypatch):
    src, out, whole = bair
    kills, rename = 0, os.replace
    while not out.exists() and kills < 20:
        left = [4]  # a part needs three: its own meta.json, itself, its report

        def replace(source, target, left=left):
            left[0] -= Path(source).exists()
            if not left[0]:
                raise KeyboardInterrupt
            rename(source, target)

        monkeypatch.setattr(os, "replace", replace)
        try:
            import_bair(src, out, workers=1)
        except KeyboardInterrupt:
            kills += 1
    assert kills > 3 and files_of(out) == whole


def children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
def test_a_terminated_import_leaves_no_process_and_two_processes_do_what_one_does(bair):
    src, out, whole = bair
    blocked = {path: path.read_bytes() for path in sorted(src.iterdir()) if "traj_0_" not in path.name}
    for path in blocked:  # readers of a pipe that nobody writes to wait
        path.unlink()
        os.mkfifo(path)
    command = [sys.executable, "prepare.py", "bair", "--src", str(src), "--out", str(out), "--workers", "2"]
    main = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.time() + 60
    partial = out.with_name("out.partial")
    workers = []  # two, and multiprocessing's own
    while (len(workers) < 3 or not (partial / "part-00000.json").is_file()) and time.time() < until:
        time.sleep(0.1)
        workers = children(main.pid)
    assert len(workers) >= 3 and not (partial / "part-00001.json").is_file()
    main.send_signal(signal.SIGTERM)
    assert main.wait() == -signal.SIGTERM
    while (alive := [w for w in workers if Path(f"/proc/{w}").exists()]) and time.time() < until:
        time.sleep(0.1)
    assert not alive
    for path, content in blocked.items():
        path.unlink()
        path.write_bytes(content)
    import_bair(src, out, workers=2)
    assert files_of(out) == whole


def test_many_reasons_are_counted_and_all_are_in_a_file(tmp_path, capsys):
    src = tmp_path / "src"
    write_npz(src)
    for i in range(60):  # more than one part
        np.savez(src / f"z{i:02d}.npz", image=np.zeros((1, 4 + i, 4, 3), np.uint8))
    import_npz(src, tmp_path / "out", workers=1)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 22 and printed[0] == "imported 3, skipped 60"
    assert printed[-1] == "skipped 40 more: N frames, fewer than --min_frames N"
    assert len((tmp_path / "out/skipped.txt").read_text().splitlines()) == 60
    assert Episodes(tmp_path / "out", "all").meta["shards"] == 1  # a part without episodes leaves none


def test_all_episodes_must_agree_with_the_first_whichever_part_they_are_in(tmp_path, capsys):
    src = tmp_path / "src"
    src.mkdir()
    for i in range(53):
        np.savez(src / f"{i:02d}.npz", image=np.full((3, 4 + (i == 51), 4, 3), i, np.uint8))
    import_npz(src, tmp_path / "out", workers=1)
    assert "imported 52, skipped 1" in capsys.readouterr().out
    episodes = Episodes(tmp_path / "out", "all")
    assert [episodes.read(k)[0, 0, 0, 0] for k in range(52)] == [i for i in range(53) if i != 51]


@pytest.mark.skipif(not (ROOT.parent / "shared/data").is_dir(), reason="the recordings are not here")
def test_the_authors_recordings_are_imported(tmp_path):
    demos = ROOT.parent / "shared/data/demonstrations/plate-slide"
    import_npz(demos, tmp_path / "out", key="observation", workers=1)
    episodes = Episodes(tmp_path / "out", "all")
    assert (episodes.n_episodes, episodes.frame_shape, episodes.action_dim) == (5, (64, 64, 3), 4)


def test_a_writer_numbers_episodes_by_place_unless_told(tmp_path):
    with EpisodeWriter(tmp_path / "out", "test") as writer:
        for number in (None, None, 7):
            writer.add(np.zeros((2, 4, 4, 3), np.uint8), number=number)
    with np.load(tmp_path / "out/index.npz") as index:
        assert index["number"].tolist() == [0, 1, 7]
