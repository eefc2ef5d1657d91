"""Writers of the formats that importers/ reads, for tests: each returns what its importer should find.

A format's library is imported inside its writer, so that a missing one skips the tests that need it alone."""

import functools
import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CAMERA, T, H, W = "observation.images.top", 20, 48, 64


def pyarrow():
    """pyarrow and its module for parquet files."""
    pytest.importorskip("pyarrow", reason="pip install pyarrow")
    import pyarrow
    import pyarrow.parquet

    return pyarrow, pyarrow.parquet


@functools.cache
def clip(i, size=64):
    """Smooth moving colours, so that codecs are close, in which red, green and blue differ."""
    t, y, x = np.mgrid[:T, :size, :size] / size
    waves = np.stack([np.sin(3 * x + t + i), np.sin(2 * y + 2 * t) - 0.5, np.cos(x + y - t + i) / 2], -1)
    return (127 + 100 * waves).clip(0, 255).astype(np.uint8)


def actions_of(i, A):
    return np.random.default_rng(i).uniform(-1, 1, (T, A)).astype(np.float32)


def moving(n):
    """A red square moves from left to right under a blue sky over n frames (n, H, W, 3)."""
    frames = np.full((n, H, W, 3), (60, 120, 60), np.uint8)
    frames[:, : H // 2] = (150, 150, 220)
    for t in range(n):
        x = int(t * (W - 10) / (n - 1))
        frames[t, 4:14, x : x + 10] = (230, 20, 20)
    return frames


def column_of(frame):
    """The first column of the red square."""
    red = frame.astype(int)
    return int(np.flatnonzero((red[..., 0] - red[..., 2] > 90).any(0))[0])


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
    crc = pytest.importorskip("google_crc32c", reason="pip install google-crc32c").value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def write_records(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        for record in records:
            length = struct.pack("<Q", len(record))
            file.write(length + masked(length) + record + masked(record))


def write_video(file, frames, fps=10, codec="libx264", format=None, options=None, **stream_settings):
    """A video of frames (T, H, W, 3), to a path or an open file."""
    av = pytest.importorskip("av", reason="pip install av")
    if isinstance(file, Path):
        file.parent.mkdir(parents=True, exist_ok=True)
        file = str(file)
    with av.open(file, "w", format=format) as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for name, value in stream_settings.items():
            setattr(stream.codec_context, name, value)
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
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
    h5py = pytest.importorskip("h5py", reason="pip install h5py")
    src.mkdir(parents=True)
    written = {}
    for i in range(4):  # every way to keep frames and actions
        frames, actions, states = clip(i), actions_of(i, 5)[: T - 1], actions_of(i + 9, 5)
        stored = frames[..., ::-1] if i % 2 else frames  # as image_format says
        with h5py.File(src / f"robot_{i}.hdf5", "w") as file:
            video = file.create_group("env/cam0_video")
            if i < 2:
                memory = io.BytesIO()
                write_video(memory, stored, format="mp4", options=dict(crf="5"))
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
    h5py = pytest.importorskip("h5py", reason="pip install h5py")
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


def write_lerobot_files(root, groups, write_pictures, columns_of, more=None, v3=False):
    """A LeRobot dataset whose episodes share files by `groups`, lists of numbers; v2.1: a file for each.

    write_pictures(path, numbers) writes a group's video; columns_of(i) are an episode's columns
    more  {name: feature} beside the camera and the actions"""
    arrow, parquet = pyarrow()
    features = {CAMERA: dict(dtype="video"), "action": dict(dtype="float32"), **(more or {})}
    info = dict(codebase_version="v2.1", fps=10, chunks_size=1000, features=features,
                total_episodes=sum(map(len, groups)))
    names = "chunk-{episode_chunk:03d}/%sepisode_{episode_index:06d}"
    if v3:
        info["codebase_version"] = "v3.0"
        names = "%schunk-{chunk_index:03d}/file-{file_index:03d}"
    info["data_path"] = "data/" + names % "" + ".parquet"
    info["video_path"] = "videos/" + names % "{video_key}/" + ".mp4"
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    rows = []
    for f, numbers in enumerate(groups):
        place = dict(chunk_index=0, file_index=f, episode_chunk=0, episode_index=f, video_key=CAMERA)
        write_pictures(root / info["video_path"].format(**place), numbers)
        table = {}
        for k, i in enumerate(numbers):
            columns = columns_of(i)
            for name, column in columns.items():
                table.setdefault(name, []).extend(np.asarray(column).tolist())
            row = {"episode_index": i, "length": columns.pop("length", T)}
            for name in ("data", f"videos/{CAMERA}"):
                row |= {f"{name}/chunk_index": 0, f"{name}/file_index": f}
            row[f"videos/{CAMERA}/from_timestamp"] = k * T / 10
            row[f"videos/{CAMERA}/to_timestamp"] = (k + 1) * T / 10
            rows.append(row)
        path = root / info["data_path"].format(**place)
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(arrow.table(table), path, write_page_checksum=True, compression="none")
    if v3:
        parquet.write_table(arrow.Table.from_pylist(rows), root / "meta/episodes/chunk-000/file-000.parquet")
    else:
        (root / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, rows)))


def write_lerobot(src, wrong=False, v3=False, unit=1):
    """Three episodes of random actions, reaching to `unit`."""

    def write_pictures(path, numbers):
        write_video(path, np.concatenate([clip(i) for i in numbers]), options=dict(crf="5", g="2"))

    def columns_of(i):
        n = 7 if wrong and i == 1 else T
        return dict(episode_index=np.full(n, i), action=unit * actions_of(i, 2)[:n])

    write_lerobot_files(src, ([0, 1], [2]) if v3 else ([0], [1], [2]), write_pictures, columns_of, v3=v3)
    return {i: (f"episode_{i:06d}", clip(i), unit * actions_of(i, 2)) for i in range(3)}


def write_moving_lerobot(root, pictures=T, video_fps=10, scale=1.0, spoil=lambda i, columns: None, more=None):
    """Four episodes of T rows at 10 a second; row k has k / 100 as its first action; spoil edits columns."""

    def columns_of(i):
        action = np.stack([np.arange(T) / 100 * scale, np.full(T, 0.1), np.linspace(-1, 1, T)], 1)
        columns = dict(episode_index=np.full(T, i), frame_index=np.arange(T), timestamp=np.arange(T) / 10)
        columns.update({name: np.arange(T) / 10 for name in more or {}}, action=action.astype(np.float32))
        spoil(i, columns)
        return columns

    def write_pictures(path, numbers):
        write_video(path, moving(pictures), video_fps)

    write_lerobot_files(root, ([0], [1], [2], [3]), write_pictures, columns_of, more)


def write_sthsth(src, wrong=False):
    (src / "videos").mkdir(parents=True)
    classes = {"Bending something until it breaks": "3", "Closing something": "5", "Holding something": "13"}
    (src / "labels.json").write_text(json.dumps(classes))
    rows = [dict(id=str(100 + i), template=template) for i, template in enumerate(
        ("Closing [something]", "Bending [something] until it breaks", "Holding [something]"))]
    (src / "train.json").write_text(json.dumps(rows))
    (src / "validation.json").write_text(json.dumps([dict(id="103", template="Holding [something]")]))
    for i in range(4):
        write_video(src / f"videos/{100 + i}.webm", clip(i), codec="libvpx-vp9",
                    options=dict(crf="4", b="0", cpu_used="8"))
    return {number: (f"videos/{100 + i}.webm", clip(i), np.zeros((T, 0)))
            for i, number in ((0, 1), (2, 5), (3, 0))}  # the train list's first and third, the other's first
