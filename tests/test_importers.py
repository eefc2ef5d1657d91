"""importers/: formats that their own libraries wrote, damage, kills, processes, numbers."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import imageio.v3 as iio
import numpy as np
import pytest
from conftest import ROOT
from sources import (
    T,
    bair_episode,
    example,
    write_bair,
    write_lerobot,
    write_npz,
    write_records,
    write_rlds,
    write_robonet,
    write_sthsth,
    write_vp2,
)

from data import Episodes
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
)
from importers.video import STHSTH_CLASSES, import_npz, import_sthsth, import_video
from support.writer import EpisodeWriter


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


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
                  ({5}, "102.webm: its end is missing: truncated"),
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


@pytest.mark.parametrize("module, name", [
    ("h5py", "vp2"), ("h5py", "robonet"), ("pyarrow", "lerobot2"), ("pyarrow", "lerobot3"),
    ("av", "lerobot2"), ("av", "sthsth"), ("av", "robonet"),
])
def test_a_missing_package_is_named(module, name, tmp_path, monkeypatch):
    FORMATS[name].write(tmp_path / "src")
    for known in list(sys.modules):
        if known.partition(".")[0] == module:
            monkeypatch.setitem(sys.modules, known, None)
    with pytest.raises(ImportError, match=f"pip install {module.replace('_', '-')}"):
        FORMATS[name].importer(tmp_path / "src", tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


# ---- npz and videos, one episode ----


def test_area_resize_averages_and_crops_to_the_centre():
    frames = np.zeros((1, 4, 6, 3), np.uint8)
    frames[0, :, 1:5] = np.arange(16).reshape(4, 4, 1) * 4  # columns 0 and 5 are cropped
    assert area_resize(frames, 2)[0, ..., 0].tolist() == [[10, 18], [42, 50]]
    assert area_resize(noise(2, 9, 7, 3), 7).shape == (2, 7, 7, 3)


def test_npz_episodes_of_the_official_layout_are_imported(tmp_path, capsys):
    src, out = tmp_path / "src", tmp_path / "out"
    (src / "sub").mkdir(parents=True)
    frames, actions = noise(6, 8, 8, 3), np.random.default_rng(0).uniform(-1, 1, (6, 2))
    actions[1, 0], actions[2, 1] = 24.8, -3
    np.savez_compressed(src / "a.npz", image=frames.astype(np.int64), action=actions, reward=np.arange(6))
    np.savez_compressed(src / "sub" / "b.npz", image=frames, action=actions[:5], reward=np.arange(6)[:, None])
    (src / "c.npz").write_bytes(b"not a zip file")
    np.savez(src / "d.npz", picture=frames)
    np.savez(src / "e.npz", image=frames, action=np.zeros((3, 2)))
    np.savez(src / "f.npz", image=frames[:1], action=actions[:1])
    np.savez(src / "g.npz", image=frames / 255.0, action=actions)
    import_npz(src, out)
    printed = capsys.readouterr().out
    assert "imported 2, skipped 5" in printed and "clipped 4 of 20 action values" in printed
    for name, reason in (
        ("c.npz", ""),
        ("d.npz", "no array 'image'; --key takes one of picture"),
        ("e.npz", r"actions are (3, 2); expected finite (6 or 5, A)"),
        ("f.npz", "1 frames, fewer than --min_frames 2"),
        ("g.npz", "frames are float64 (6, 8, 8, 3); expected integers"),
    ):
        assert f"skipped {src / name}: {reason}" in printed
    episodes = Episodes(out, "all")
    assert episodes.names.tolist() == ["a.npz", "sub/b.npz"] and episodes.has_reward
    clipped = np.clip(actions, -1, 1).astype(np.float32)
    for i in (0, 1):
        rows = slice(6 * i, 6 * i + 6)
        assert np.array_equal(episodes.read(i), frames)
        assert np.array_equal(episodes.actions[rows], [*clipped[:5], [0, 0]])
        assert episodes.rewards[rows].tolist() == [0, 1, 2, 3, 4, 5]


def test_an_import_without_a_usable_file_writes_nothing(tmp_path):
    src, out = tmp_path / "src", tmp_path / "out"
    src.mkdir()
    for importer, types in ((import_npz, ".npz"), (import_video, ".mp4, .*.webm, .*.gif")):
        with pytest.raises(FileNotFoundError, match=f"has no {types} files; pass a folder that has"):
            importer(src, out)
        with pytest.raises(FileNotFoundError, match="--src '' has no"):
            importer("", out)
    (src / "a.npz").write_bytes(b"not a zip file")
    with pytest.raises(ValueError, match="no episode was added"):
        import_npz(src, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src"]


def test_videos_are_imported_and_damaged_or_short_ones_are_named(tmp_path, capsys):
    pytest.importorskip("av", reason="pip install av")
    src, out = tmp_path / "src", tmp_path / "out"
    src.mkdir()
    grey = np.linspace(0, 250, 20).astype(np.uint8)[:, None, None, None]
    frames = np.broadcast_to(grey, (20, 32, 48, 3)).copy()
    iio.imwrite(src / "a.mp4", frames, plugin="pyav", codec="mpeg4", fps=10)
    iio.imwrite(src / "b.gif", frames, duration=100, loop=0)
    iio.imwrite(src / "c.gif", frames[:3], duration=100, loop=0)
    (src / "d.mp4").write_bytes((src / "a.mp4").read_bytes()[:200])
    (src / "e.gif").write_bytes(b"GIF89a")
    import_video(src, out, size=16)
    printed = capsys.readouterr().out
    assert "imported 2, skipped 3" in printed
    assert f"skipped {src / 'c.gif'}: 3 frames, fewer than --min_frames 16" in printed
    assert all(f"skipped {src / name}: " in printed for name in ("d.mp4", "e.gif"))
    episodes = Episodes(out, "all")
    assert (episodes.frame_shape, episodes.action_dim, episodes.has_reward) == ((16, 16, 3), 0, False)
    for i in (0, 1):
        assert np.abs(episodes.read(i).astype(int) - grey).max() <= 6  # the codec's error


def test_an_episode_file_is_read_with_clipped_actions_or_named(tmp_path):
    frames = noise(4, 8, 8, 3)
    np.savez(tmp_path / "a.npz", image=frames, action=np.full((4, 2), 3.0))
    shown, actions = load_episode(tmp_path / "a.npz")
    assert np.array_equal(shown, frames) and np.array_equal(actions, np.ones((4, 2), np.float32))
    assert load_episode(tmp_path / "a.npz", size=4)[0].shape == (4, 4, 4, 3)
    with pytest.raises(ValueError, match="a.npz: no array 'x'; --key takes one of image, action"):
        load_episode(tmp_path / "a.npz", key="x")
    with pytest.raises(FileNotFoundError, match="no file .*none.mp4; pass an .npz episode or a video"):
        load_episode(tmp_path / "none.mp4")


def test_the_official_bair_sample_is_imported(tmp_path):
    sample = ROOT.parent / "shared" / "data" / "bair_sample.npz"
    if not sample.is_file():
        pytest.skip(f"the official sample is not at {sample}")
    (tmp_path / "src").mkdir()
    shutil.copy(sample, tmp_path / "src")
    import_npz(tmp_path / "src", tmp_path / "out", key="aux1_image")
    episodes = Episodes(tmp_path / "out", "all")
    assert (episodes.frame_shape, episodes.action_dim, episodes.lengths.tolist()) == ((64, 64, 3), 4, [30])
    with np.load(sample) as arrays:
        assert np.array_equal(episodes.read(0), arrays["aux1_image"])


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


def test_values_of_a_feature_are_bytes_or_floats():
    features = parse_example(example(dict(a=np.arange(3), b=np.float32([1.5, -2]), c=[b"x", b"y\0"], d=[])))
    assert feature_values(features["b"]).tolist() == [1.5, -2]
    assert feature_values(features["c"]) == [b"x", b"y\0"] and feature_values(features["d"]) == []


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


# ---- LeRobot, RoboNet, Something-Something ----


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


@pytest.mark.parametrize("template, message", [
    ("../../{episode_index}.mp4", "info.json leads out of the dataset, to ../../0.mp4"),
    ("/etc/{episode_index}", "info.json leads out of the dataset, to /etc/0"),
    ("{episode_index.real.nothing}", "is no template of a path"),
    ("{0}", "is no template of a path"),
])  # fmt: skip
def test_paths_of_lerobots_stay_in_its_folder(tmp_path, template, message):
    write_lerobot(tmp_path / "src")
    path = tmp_path / "src/meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "video_path": template}))
    with pytest.raises(ValueError, match=message):
        import_lerobot(tmp_path / "src", tmp_path / "out")


def test_a_records_length_beyond_the_file_takes_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(tfrecord, "google_crc32c", None)  # with it, the length's checksum is wrong already
    path = tmp_path / "a.tfrecord"
    path.write_bytes((2**40).to_bytes(8, "little") + bytes(100))
    with pytest.raises(ValueError, match="record 0 of 1 is cut off: truncated"):
        list(tfrecord.read_records(path, 1))


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


def test_something_somethings_classes_are_the_official_codes():
    assert len(STHSTH_CLASSES) == 95 and min(STHSTH_CLASSES) == 1 and max(STHSTH_CLASSES) == 173


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


@pytest.mark.slow
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


def test_many_reasons_are_cut_short_and_all_are_in_a_file(tmp_path, capsys):
    src = tmp_path / "src"
    write_npz(src)
    for i in range(60):  # more than one part
        np.savez(src / f"z{i:02d}.npz", image=np.zeros((1, 4 + i, 4, 3), np.uint8))
    import_npz(src, tmp_path / "out", workers=1)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 22 and printed[0] == "imported 3, skipped 60"
    assert printed[-1] == "skipped 40 more, listed in skipped.txt"
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
