"""importers/ on what people really have: sources that disagree, odd episodes, phone videos, odd names."""

import json
import os
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from conftest import python
from sources import (
    CAMERA,
    H,
    T,
    W,
    actions_of,
    clip,
    column_of,
    encoded,
    example,
    moving,
    pyarrow,
    write_lerobot,
    write_moving_lerobot,
    write_records,
    write_video,
)

from data import Episodes
from importers import load_episode
from importers.hdf5 import import_vp2
from importers.lerobot import import_lerobot, pictures_at
from importers.tfrecord import import_bair, import_rlds
from importers.video import import_npz, import_video, read_video
from support.writer import EpisodeWriter

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


# ---- A: sources that must agree are compared ----


@pytest.mark.parametrize("pictures, fps", [(20, 10), (60, 30), (50, 25), (30, 10)])
def test_a_rows_picture_is_the_one_at_its_timestamp(pictures, fps, tmp_path):
    write_moving_lerobot(tmp_path / "src", pictures, fps)
    import_lerobot(tmp_path / "src", tmp_path / "out", size=0, workers=1)
    data, source = Episodes(tmp_path / "out", "all"), moving(pictures)
    for episode in range(4):
        frames = data.read(episode)
        for row in range(T):
            assert column_of(frames[row]) == pytest.approx(column_of(source[row * fps // 10]), abs=2)


@pytest.mark.parametrize("pictures, fps", [(12, 10), (15, 7)])
def test_an_episode_whose_rows_have_no_pictures_is_skipped_with_both_counts(pictures, fps, tmp_path, capsys):
    write_moving_lerobot(tmp_path / "src", pictures, fps)
    with pytest.raises(ValueError, match="no episode was added"):
        import_lerobot(tmp_path / "src", tmp_path / "out", workers=1)
    told = capsys.readouterr().out
    assert f"episode_000000.mp4 has {pictures} pictures for 20 rows, and none within 0.02 s" in told


def test_rows_out_of_order_and_tables_cut_short_are_skipped(tmp_path, capsys):
    def spoil(i, columns):
        if i == 1:
            columns["timestamp"] = columns["timestamp"][::-1]

    write_moving_lerobot(tmp_path / "src", spoil=spoil)
    episodes = (tmp_path / "src/meta/episodes.jsonl").read_text()
    (tmp_path / "src/meta/episodes.jsonl").write_text(episodes.replace('"episode_index": 2, "length": 20',
                                                                       '"episode_index": 2, "length": 21'))
    import_lerobot(tmp_path / "src", tmp_path / "out", workers=1)
    told = capsys.readouterr().out
    assert "imported 2, skipped 2" in told
    assert "episode_000001.parquet: its rows are not in the order of timestamp and frame_index" in told
    assert "episode_000002.parquet has 20 of its 21 rows" in told


def test_a_later_episode_of_a_shared_video_takes_no_picture_of_its_neighbours(tmp_path):
    """v3: 20 rows whose part of the video, by from_timestamp and to_timestamp, is the second of three."""
    write_video(tmp_path / "a.mp4", moving(60), 10)
    at = np.arange(T) / 10
    frames = pictures_at(tmp_path / "a.mp4", 2.0, 4.0, at, 10, 0)
    assert column_of(frames[0]) == pytest.approx(column_of(moving(60)[20]), abs=1)
    assert column_of(frames[-1]) == pytest.approx(column_of(moving(60)[39]), abs=1)
    with pytest.raises(ValueError, match="has 15 pictures for 20 rows, and none within 0.02 s of row 15"):
        pictures_at(tmp_path / "a.mp4", 2.0, 3.5, at, 10, 0)
    with pytest.raises(ValueError, match="has 0 pictures for 20 rows"):  # it starts after the video's end
        pictures_at(tmp_path / "a.mp4", 9.0, 11.0, at, 10, 0)
    with pytest.raises(ValueError, match="none within 0.02 s of row 0"):  # meta says another place
        pictures_at(tmp_path / "a.mp4", 2.06, 4.06, at, 10, 0)


def test_counts_that_differ_in_other_formats_are_told(tmp_path, capsys):
    def npz(name, **arrays):
        np.savez(tmp_path / f"npz/{name}.npz", image=moving(T), **arrays)

    (tmp_path / "npz").mkdir()
    npz("a", reward=np.zeros(T))
    npz("b", reward=np.arange(T - 1.0))
    npz("c", reward=np.zeros(T + 1))
    import_npz(tmp_path / "npz", tmp_path / "from_npz", workers=1)
    told = capsys.readouterr().out
    assert "imported 2, skipped 1" in told and "c.npz: rewards are (21,); expected finite (20 or 19,)" in told
    data = Episodes(tmp_path / "from_npz", "all")
    assert data.rewards[data.rows[1] : data.rows[1] + T].tolist() == [0, *range(T - 1)]
    (tmp_path / "next").mkdir()
    for i, n in enumerate((T, T - 1)):  # the last frame's action leads nowhere
        np.savez(tmp_path / f"next/{i}.npz", image=moving(T), **{"next.reward": np.arange(n)})
    import_npz(tmp_path / "next", tmp_path / "from_next", workers=1)
    data = Episodes(tmp_path / "from_next", "all")
    assert data.rewards.tolist() == 2 * [0, *range(T - 1)]

    h5py = pytest.importorskip("h5py", reason="pip install h5py")
    (tmp_path / "vp2").mkdir()
    with h5py.File(tmp_path / "vp2/a.hdf5", "w") as file:
        for name, n in (("demo_0", T), ("demo_1", T + 3), ("demo_extra", T)):
            file[f"data/{name}/obs/camera_image"] = moving(T)
            file[f"data/{name}/actions"] = np.zeros((T, 2))
            file[f"data/{name}/rewards"] = np.arange(T) / 10
            file[f"data/{name}"].attrs["num_samples"] = n
        file["mask/train"] = np.array([b"demo_0", b"demo_9"])
    import_vp2(tmp_path / "vp2", tmp_path / "from_vp2", workers=1)
    told = capsys.readouterr().out
    assert "imported 2, skipped 1" in told and "it has 20 actions, its num_samples is 23" in told
    data = Episodes(tmp_path / "from_vp2", "all")  # the reward of an action is that of the next frame
    assert data.rewards[data.rows[0] : data.rows[0] + T] == pytest.approx([0, *(np.arange(T - 1) / 10)])
    import_vp2(tmp_path / "vp2", tmp_path / "train", mask="train", workers=1)
    assert "imported 1, skipped 0" in capsys.readouterr().out


def test_bairs_gaps_are_told(tmp_path):
    features = {}
    for t in range(20):
        if t != 12:
            features[f"{t}/image_aux1/encoded"] = [clip(0)[t].tobytes()]
        features[f"{t}/action"] = actions_of(0, 4)[t]
    write_records(tmp_path / "src/traj_0_to_0.tfrecords", [example(features)])
    with pytest.raises(ValueError, match="traj_0: it has 12 pictures and 20 actions"):
        import_bair(tmp_path / "src", tmp_path / "out", workers=1)


@pytest.mark.parametrize("name, rows, message", [
    ("actions", (39, 2), "actions.npy has 39 rows, index.npz 40 frames"),
    ("rewards", (41,), "rewards.npy has 41 rows, index.npz 40 frames"),
    ("actions", (40, 3), "actions.npy has rows .3,., meta.json says action_dim 2"),
])
def test_tables_of_another_folder_are_refused(name, rows, message, tmp_path):
    with EpisodeWriter(tmp_path / "a", "test") as writer:
        for _ in range(2):
            writer.add(moving(T), np.zeros((T, 2)), np.zeros(T))
    np.save(tmp_path / f"a/{name}.npy", np.zeros(rows, np.float32))
    with pytest.raises(ValueError, match=f"{message}.*copy the whole folder again"):
        Episodes(tmp_path / "a", "all")


# ---- B: one bad episode changes nothing for the others ----


def test_a_nan_in_one_episode_leaves_the_scaling_of_the_others_alone(tmp_path, capsys):
    def spoil(i, columns):
        if i == 2:
            columns["action"][5, 1] = np.nan

    write_moving_lerobot(tmp_path / "src", scale=300, spoil=spoil)
    import_lerobot(tmp_path / "src", tmp_path / "out", workers=1)
    told = capsys.readouterr().out
    assert "imported 3, skipped 1" in told and "episode_000002: action 5 is not finite: [15. " in told
    assert "actions from (0, 0.1, -1) to (57, 0.1, 1), extremes of 3 episodes, become -1 to 1" in told
    assert "clipped" not in told
    data = Episodes(tmp_path / "out", "all")
    for row in data.rows:
        assert data.actions[row : row + T - 1, 0] == pytest.approx(2 * np.arange(T - 1) / 19 - 1, abs=1e-6)
    scaling = data.meta["action_scaling"]
    assert scaling["high"] == pytest.approx([57, 0.1, 1]) and scaling["by"] == "extremes"
    assert (scaling["episodes"], data.meta["clipped_action_values"]) == (3, 0)


def test_percentiles_keep_a_glitch_from_squeezing_all_others(tmp_path, capsys):
    def spoil(i, columns):
        if i == 2:
            columns["action"][5, 2] = 1e6

    write_moving_lerobot(tmp_path / "src", scale=300, spoil=spoil)
    spread = {}
    for percentiles in (False, True):
        out = tmp_path / str(percentiles)
        import_lerobot(tmp_path / "src", out, percentiles=percentiles, workers=1)
        data = Episodes(out, "all")
        spread[percentiles] = np.ptp(data.actions[: T - 1, 2])
        assert data.meta["action_scaling"]["by"] == ("percentiles" if percentiles else "extremes")
    assert spread[False] < 1e-5 and spread[True] > 1.8
    told = capsys.readouterr().out
    assert "percentiles of 4 episodes" in told and "clipped" in told
    with pytest.raises(ValueError, match="--percentiles true says how to scale, --scale false not to"):
        import_lerobot(tmp_path / "src", tmp_path / "x", percentiles=True, scale=False)


def test_an_episode_with_more_joints_leaves_the_scaling_of_the_others_alone(tmp_path, capsys):
    def spoil(i, columns):
        if i == 0:
            columns["action"] = np.pad(columns["action"], ((0, 0), (0, 1)))

    write_moving_lerobot(tmp_path / "src", scale=300, spoil=spoil)
    import_lerobot(tmp_path / "src", tmp_path / "out", workers=1)
    told = capsys.readouterr().out
    assert "imported 3, skipped 1" in told and "'action_dim': 4" in told and "'action_dim': 3" in told
    assert "extremes of 3 episodes" in told and "clipped" not in told


@pytest.mark.parametrize("why", ["null", "excluded", "damaged video", "another length"])
def test_what_is_not_imported_has_no_part_in_the_scale(why, tmp_path, capsys):
    def spoil(i, columns):
        if i == 2:
            columns["action"][5, 0] = 1e6

    source = tmp_path / "src"
    write_moving_lerobot(source, scale=300, spoil=spoil)
    exclude = ""
    if why == "null":
        arrow, parquet = pyarrow()
        table = parquet.read_table(source / "data/chunk-000/episode_000002.parquet").to_pydict()
        table["action"][7] = None
        parquet.write_table(arrow.table(table), source / "data/chunk-000/episode_000002.parquet")
    elif why == "excluded":
        exclude = str(tmp_path / "list.txt")
        (tmp_path / "list.txt").write_text("2\n")
    elif why == "damaged video":
        (source / f"videos/chunk-000/{CAMERA}/episode_000002.mp4").write_bytes(b"no video")
    else:
        lines = (source / "meta/episodes.jsonl").read_text()
        lines = lines.replace('"episode_index": 2, "length": 20', '"episode_index": 2, "length": 19')
        (source / "meta/episodes.jsonl").write_text(lines)
    import_lerobot(source, tmp_path / "out", exclude=exclude, workers=1)
    told = capsys.readouterr().out
    assert "imported 3, " in told and "to (57, 0.1, 1), extremes of 3 episodes, become" in told


def test_a_null_in_a_table_of_several_episodes_costs_its_own_alone(tmp_path, capsys):
    written = write_lerobot(tmp_path / "src", v3=True, unit=90)
    path = tmp_path / "src/data/chunk-000/file-000.parquet"
    arrow, parquet = pyarrow()
    table = parquet.read_table(path).to_pydict()
    table["action"][T + 3] = None  # of episode 1
    parquet.write_table(arrow.table(table), path)
    import_lerobot(tmp_path / "src", tmp_path / "out", workers=1)
    told = capsys.readouterr().out
    assert "imported 2, skipped 1" in told and "extremes of 2 episodes, become -1 to 1" in told
    assert "its rows of action are not all numbers, or as many in each" in told
    low = min(written[i][2].min(0)[0] for i in (0, 2))
    assert Episodes(tmp_path / "out", "all").meta["action_scaling"]["low"][0] == pytest.approx(low)


@pytest.mark.parametrize("odd", [(0,), (0, 1), (0, 1, 3)])
def test_odd_episodes_cost_themselves_alone_wherever_they_stand(odd, tmp_path, capsys):
    (tmp_path / "src").mkdir()
    for i in range(8):
        acted = {} if i in odd else dict(action=np.zeros((T, 2)))
        np.savez(tmp_path / f"src/{i}.npz", image=moving(T), state=np.zeros(T), **acted)
    import_npz(tmp_path / "src", tmp_path / "out", workers=1)
    told = capsys.readouterr().out
    assert f"imported {8 - len(odd)}, skipped {len(odd)}" in told
    assert "'action_dim': 0, 'has_reward': False}, the imported ones {" in told and "--size" not in told
    meta = Episodes(tmp_path / "out", "all").meta
    assert meta["action_dim"] == 2 and meta["not_imported"] == {"state": 8 - len(odd)}


# ---- C: what players honour ----


def write_turned(path, matrix, frames):
    """An mp4 whose track header has this display matrix."""
    write_video(path, frames)
    content = bytearray(path.read_bytes())
    box = content.find(b"tkhd")
    place = box + 4 + (52 if content[box + 4] else 40)
    a, b, c, d = matrix
    whole = a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 0x40000000
    content[place : place + 36] = struct.pack(">9i", *whole)
    path.write_bytes(content)


@pytest.mark.parametrize("matrix, shown", [
    ((1, 0, 0, 1), lambda x: x),
    ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),  # a phone held upright: to the right
    ((0, -1, 1, 0), lambda x: np.rot90(x, 1)),
    ((-1, 0, 0, -1), lambda x: np.rot90(x, 2)),
    ((-1, 0, 0, 1), lambda x: x[:, ::-1]),  # a mirror
    ((0, 1, 1, 0), lambda x: x.swapaxes(0, 1)),
])
def test_a_video_is_turned_as_its_header_says(matrix, shown, tmp_path):
    frames = moving(T)
    write_turned(tmp_path / "src/a.mp4", matrix, frames)
    found, _ = load_episode(tmp_path / "src/a.mp4")
    want = np.stack([shown(frame) for frame in frames])
    assert found.shape == want.shape
    assert np.abs(found.astype(int) - want).mean() < 6


def test_an_odd_angle_is_refused_with_a_word(tmp_path):
    write_turned(tmp_path / "a.mp4", (1, 1, -1, 1), moving(T))
    with pytest.raises(ValueError, match=r"display matrix is \(1.0, 1.0, -1.0, 1.0\): neither a quarter"):
        load_episode(tmp_path / "a.mp4")


@pytest.mark.parametrize("matrix", [(0, 0, 0, 0), (2, 0, 0, 2)])
def test_a_matrix_that_turns_nothing_is_ignored(matrix, tmp_path):
    write_turned(tmp_path / "a.mp4", matrix, moving(T))
    assert column_of(load_episode(tmp_path / "a.mp4")[0][-1]) == pytest.approx(54, abs=1)


def test_a_file_is_read_in_the_size_that_is_asked_for(tmp_path):
    write_video(tmp_path / "a.mp4", moving(T))
    assert read_video(tmp_path / "a.mp4", size=32).frames.shape == (T, 32, 32, 3)
    assert load_episode(tmp_path / "a.mp4", size=32)[0].shape == (T, 32, 32, 3)


def test_pixels_that_are_not_square_are_stretched(tmp_path):
    write_video(tmp_path / "a.mp4", moving(T), sample_aspect_ratio=Fraction(3, 2))
    frames, _ = load_episode(tmp_path / "a.mp4")
    assert frames.shape == (T, H, W * 3 // 2, 3)
    assert column_of(frames[-1]) == pytest.approx(54 * 1.5, abs=2)


# ---- G: truncation is judged by what is there ----


def write_still_end(path):
    """A webm of 20 frames, the last of which is shown for 5 s."""
    av = pytest.importorskip("av", reason="pip install av")
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libvpx-vp9", rate=10)
        stream.height, stream.width, stream.pix_fmt = H, W, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        packets = []
        for i, picture in enumerate(moving(T)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = 100 * i, Fraction(1, 1000)
            packets += stream.encode(frame)
        packets = [p for p in packets + stream.encode() if p.size]
        last = max(p.pts for p in packets)
        for packet in packets:
            packet.duration = 5000 if packet.pts == last else 100
            file.mux(packet)


def test_a_last_frame_that_stays_is_no_truncation(tmp_path):
    write_still_end(tmp_path / "a.webm")
    frames, _ = load_episode(tmp_path / "a.webm")
    assert len(frames) == T and column_of(frames[-1]) == pytest.approx(54, abs=1)


@pytest.mark.parametrize("name, codec", [("a.webm", "libvpx-vp9"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"),
                                         ("a.mp4", "libx264"), ("a.mov", "libx264")])
def test_whole_files_of_each_container_are_read_and_cut_ones_named(name, codec, tmp_path):
    path = tmp_path / name
    write_video(path, moving(T), codec=codec)
    assert len(load_episode(path)[0]) == T
    whole = path.read_bytes()
    path.write_bytes(whole[: int(0.7 * len(whole))])
    with pytest.raises(ValueError, match=f"{name}: .*(truncated|Invalid data)"):
        load_episode(path)


@pytest.mark.parametrize("name, codec", [("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4"), ("a.mp4", "libx264")])
def test_bytes_behind_the_end_are_no_truncation(name, codec, tmp_path):
    write_video(tmp_path / name, moving(T), codec=codec)
    with open(tmp_path / name, "ab") as file:
        file.write(b"SEFH" * 40)  # what a phone's maker adds
    assert len(load_episode(tmp_path / name)[0]) == T


def test_a_live_recording_of_unknown_length_is_whole(tmp_path):
    path = tmp_path / "a.webm"
    av = pytest.importorskip("av", reason="pip install av")
    with av.open(str(path), "w", format="webm", options=dict(live="1")) as file:
        stream = file.add_stream("libvpx-vp9", rate=10)
        stream.height, stream.width, stream.pix_fmt = H, W, "yuv420p"
        for picture in moving(T):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    assert len(load_episode(path)[0]) == T


# ---- H: damage does not break its own report ----


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_a_damaged_file_whose_name_is_no_utf8_is_named_and_the_others_imported(tmp_path):
    write_video(tmp_path / "src/good.mp4", moving(T))
    Path(os.fsdecode(os.fsencode(tmp_path / "src") + b"/zerst\xf6rt.mp4")).write_bytes(b"no video")
    done = python("prepare.py", "video", "--src", tmp_path / "src", "--out", tmp_path / "out", "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert "imported 1, skipped 1" in done.stdout and r"zerst\udcf6rt.mp4: " in done.stdout
    assert r"zerst\udcf6rt.mp4: " in (tmp_path / "out/skipped.txt").read_text()
    assert Episodes(tmp_path / "out", "all").n_episodes == 1


# ---- I: nothing is dropped without a word ----


def test_arrays_in_the_plural_are_taken_and_all_others_named(tmp_path, capsys):
    (tmp_path / "src").mkdir()
    actions, rewards = np.random.default_rng(0).uniform(-1, 1, (T, 4)), np.arange(T) / 10
    for i in range(4):
        np.savez(tmp_path / f"src/{i}.npz", image=moving(T), actions=actions, rewards=rewards, states=actions)
    (tmp_path / "src/notes.txt").write_text("")
    import_npz(tmp_path / "src", tmp_path / "out", workers=1)
    told = capsys.readouterr().out
    assert "in the episodes but not imported: states (4)" in told
    assert "files that are not read: 1 .txt" in told
    data = Episodes(tmp_path / "out", "all")
    assert data.actions[: T - 1] == pytest.approx(actions[:-1]) and data.rewards[:T] == pytest.approx(rewards)
    load_episode(tmp_path / "src/0.npz")
    assert "0.npz: not used: states" in capsys.readouterr().out


def test_lerobots_rewards_are_those_of_the_next_frame_and_other_columns_are_named(tmp_path, capsys):
    more = {"next.reward": dict(dtype="float32"), "observation.state": dict(dtype="float32")}
    write_moving_lerobot(tmp_path / "src", more=more)
    import_lerobot(tmp_path / "src", tmp_path / "out", workers=1)
    told = capsys.readouterr().out
    assert "not imported: observation.state (4), a reward, not 0, of the last action (4)" in told
    assert Episodes(tmp_path / "out", "all").rewards[:T] == pytest.approx([0, *(np.arange(T - 1) / 10)])


def test_a_last_action_need_not_be_a_number_and_one_number_is_enough(tmp_path):
    (tmp_path / "src").mkdir()
    actions = np.linspace(-1, 1, T)
    actions[-1] = np.nan  # it leads to no frame
    np.savez(tmp_path / "src/a.npz", image=moving(T), action=actions)
    np.savez(tmp_path / "src/b.npz", image=moving(T), action=actions[:-1, None])
    import_npz(tmp_path / "src", tmp_path / "out", workers=1)
    data = Episodes(tmp_path / "out", "all")
    assert data.actions[:, 0] == pytest.approx([*actions[:-1], 0] * 2, abs=1e-6)


def test_a_reward_that_leads_to_no_frame_is_told(tmp_path, capsys):
    (tmp_path / "src").mkdir()
    reward = np.zeros(T)
    reward[-1] = 1.0  # success, at the last action
    for i in range(3):
        np.savez(tmp_path / f"src/{i}.npz", image=moving(T), **{"next.reward": reward * (i > 0)})
    import_npz(tmp_path / "src", tmp_path / "out", workers=1)
    assert "but not imported: a reward, not 0, of the last action (2)" in capsys.readouterr().out
    meta = Episodes(tmp_path / "out", "all").meta
    assert meta["not_imported"] == {"a reward, not 0, of the last action": 2}


def test_rlds_rewards_are_those_of_the_next_frame(tmp_path):
    def tree(**features):
        return dict(featuresDict=dict(features=features))

    reward = dict(tensor=dict(dtype="float32", shape={}))
    steps = dict(sequence=dict(feature=tree(observation=tree(image=dict(image={})), reward=reward)))
    (tmp_path / "src").mkdir()
    (tmp_path / "src/features.json").write_text(json.dumps(tree(steps=steps)))
    splits = [dict(name="train", shardLengths=["1"])]
    (tmp_path / "src/dataset_info.json").write_text(json.dumps(dict(name="toy", splits=splits)))
    record = {"steps/observation/image": [encoded(picture) for picture in clip(0)],
              "steps/reward": np.arange(20.0)}
    write_records(tmp_path / "src/toy-train.tfrecord-00000-of-00001", [example(record)])
    import_rlds(tmp_path / "src", tmp_path / "out", workers=1)
    assert Episodes(tmp_path / "out", "all").rewards.tolist() == [0, *range(19)]


def test_videos_of_other_types_are_read_beside_mp4_and_other_files_named(tmp_path, capsys):
    for name, codec in (("a.mp4", "libx264"), ("b.MOV", "libx264"), ("c.mkv", "libx264"), ("d.avi", "mpeg4")):
        write_video(tmp_path / "src" / name, moving(T), codec=codec)
    (tmp_path / "src/e.flv").write_bytes(b"")
    import_video(tmp_path / "src", tmp_path / "out", workers=1)
    told = capsys.readouterr().out
    assert "imported 4, skipped 0" in told and "files that are not read: 1 .flv" in told


# ---- M: one line that says what happened ----


def test_pointers_of_git_lfs_and_empty_files_are_told_as_such(tmp_path, capsys):
    write_moving_lerobot(tmp_path / "src")
    videos = tmp_path / f"src/videos/chunk-000/{CAMERA}"
    (videos / "episode_000001.mp4").write_bytes(POINTER)
    (videos / "episode_000002.mp4").write_bytes(b"")
    (tmp_path / "src/data/chunk-000/episode_000003.parquet").write_bytes(POINTER)
    import_lerobot(tmp_path / "src", tmp_path / "out", workers=1)
    told = capsys.readouterr().out
    assert "imported 1, skipped 3" in told
    assert "episode_000001.mp4 is a pointer of Git LFS, not the file itself; run git lfs pull there" in told
    assert "episode_000002.mp4 is empty (0 bytes); copy or download it again" in told
    assert "episode_000003.parquet is a pointer of Git LFS" in told
    for name in ("a.npz", "a.mp4", "a.gif"):
        (tmp_path / name).write_bytes(POINTER)
        with pytest.raises(ValueError, match=f"{name} is a pointer of Git LFS"):
            load_episode(tmp_path / name)


def test_other_versions_of_lerobot_and_missing_entries_are_named(tmp_path):
    write_moving_lerobot(tmp_path / "src")
    path = tmp_path / "src/meta/info.json"
    info = json.loads(path.read_text())
    for change, message in ((dict(codebase_version="v1.6"), "version v1.6; expected v2.x or v3.x"),
                            (dict(fps=None), "info.json lacks fps"),
                            (dict(video_path=None), "has no videos"),
                            (dict(video_path="{nothing}"), "meta lacks 'nothing'")):
        path.write_text(json.dumps(info | change))
        with pytest.raises(ValueError, match=message):
            import_lerobot(tmp_path / "src", tmp_path / "out", workers=1)
