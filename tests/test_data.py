"""data.py: episodes on disk, batches and their alignment, pictures."""

import json
import shutil
from types import SimpleNamespace

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from data import Episodes, draw_segments, floats, prefetch, to_float, to_u8
from support.pictures import save_contact_sheet, save_gif, save_side_by_side
from support.tables import meta_crc
from support.writer import EpisodeWriter


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_numbered(folder, lengths, val_every=1000, first=0):
    """Episodes whose frame k shows k (red) and the episode's number (green); actions k + 1, rewards 10 k."""
    with EpisodeWriter(folder, "numbers", val_every=val_every) as writer:
        for episode, T in enumerate(lengths, first):
            k = np.arange(T)
            frames = np.zeros((T, 2, 2, 3), np.uint8)
            frames[..., 0], frames[..., 1] = k[:, None, None], episode
            writer.add(frames, k[:, None] + 1.0, 10.0 * k, f"episode {episode}")
    return Episodes(folder, "all")


def numbers(batch):
    """Which frame and which episode each row of a batch shows: two integer tensors (B, T)."""
    shown = (batch["frames"][..., 0, 0] * 255).round().long()
    return shown[:, :, 0], shown[:, :, 1]


# ---- bytes, floats, episodes on disk ----


def test_bytes_survive_the_way_to_floats_and_back():
    frames_u8 = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    frames = to_float(frames_u8)
    assert frames.shape == (1, 3, 16, 16) and frames.min() == 0 and frames.max() == 1
    assert np.array_equal(to_u8(frames), frames_u8)
    assert to_u8(torch.tensor([-0.5, 2.0, 0.5]).view(3, 1, 1)).ravel().tolist() == [0, 255, 128]


def test_episodes_come_back_bit_for_bit_across_shards(tmp_path):
    rng, written = np.random.default_rng(0), []
    with EpisodeWriter(tmp_path / "e", "test", val_every=2, shard_bytes=2000) as writer:
        for i, T in enumerate((3, 7, 1, 5)):
            written.append((noise(T, 8, 8, 3, seed=i), rng.normal(size=(T, 2)), rng.normal(size=T)))
            writer.add(*written[-1], name=f"n{i}")
    episodes = Episodes(tmp_path / "e", "all")
    assert episodes.meta["shards"] > 1 and not (tmp_path / "e.partial").exists()
    assert (episodes.frame_shape, episodes.action_dim, episodes.has_reward) == ((8, 8, 3), 2, True)
    assert episodes.names.tolist() == ["n0", "n1", "n2", "n3"] and episodes.lengths.tolist() == [3, 7, 1, 5]
    for i, (frames_u8, actions, rewards) in enumerate(written):
        rows = slice(episodes.rows[i], episodes.rows[i] + len(frames_u8))
        assert np.array_equal(episodes.read(i), frames_u8)
        assert np.array_equal(episodes.read(i, 0, 1), frames_u8[:1])
        assert np.array_equal(episodes.actions[rows][:-1], actions[:-1].astype(np.float32))
        assert not episodes.actions[rows][-1].any()  # the last action leads nowhere
        assert np.array_equal(episodes.rewards[rows], rewards.astype(np.float32))


def test_frames_kept_as_jpegs_are_the_same_to_the_eye_in_a_tenth_of_the_bytes(tmp_path):
    across, written = np.linspace(0, 200, 128), []
    for T in (6, 3, 8):  # smooth, and moving
        planes = [np.add.outer(across / 4, x) for x in (across, 50 - across / 4, across / 2)]
        frames = np.stack(planes, -1) + 9 * np.arange(T)[:, None, None, None]
        written.append(frames.clip(0, 255).astype(np.uint8))
    for name, jpeg in (("raw", 0), ("jpeg", 95)):
        with EpisodeWriter(tmp_path / name, "test", shard_bytes=20_000, jpeg=jpeg) as writer:
            for frames in written:
                writer.add(frames)
    raw, small = (Episodes(tmp_path / name, "all") for name in ("raw", "jpeg"))
    assert small.meta["quality"] == 95 and raw.meta["shards"] == 3 and small.meta["shards"] > 1
    assert sum(path.stat().st_size for path in small.paths) < 0.15 * sum(frames.nbytes for frames in written)
    for i, frames in enumerate(written):
        for start, stop in ((0, None), (1, 3), (2, 3)):
            error = small.read(i, start, stop) / 255 - frames[start:stop] / 255
            assert -10 * np.log10(np.square(error).mean()) > 40
    of_raw, of_small = (data.batch(5, 20, 3, stride=2)["frames"] for data in (raw, small))
    assert of_raw.shape == of_small.shape and (of_raw - of_small).abs().mean() < 0.01
    small.paths[0].write_bytes(small.paths[0].read_bytes()[:-1])
    with pytest.raises(ValueError, match="shard-00000.bin has .* bytes, expected"):
        Episodes(tmp_path / "jpeg")
    with pytest.raises(ValueError, match="jpeg is 101; expected a quality to 100"):
        EpisodeWriter(tmp_path / "other", "test", jpeg=101)


def test_training_and_validation_share_no_episode(push):
    names = {split: Episodes(push, split).names.tolist() for split in ("train", "val", "all")}
    assert len(names["val"]) == 3 and len(names["train"]) == 9
    assert sorted(names["train"] + names["val"]) == sorted(names["all"]) and len(set(names["all"])) == 12


def test_a_single_episode_serves_for_both_splits_and_says_so(tmp_path, capsys):
    write_numbered(tmp_path / "e", [5])
    assert Episodes(tmp_path / "e", "train").n_episodes == Episodes(tmp_path / "e", "val").n_episodes == 1
    assert "holds one episode" in capsys.readouterr().out


def test_the_writer_leaves_nothing_behind_after_an_error_and_refuses_what_does_not_fit(tmp_path):
    out, frames = tmp_path / "e", noise(3, 4, 4, 3)
    with pytest.raises(ValueError, match="frames are float64"), EpisodeWriter(out, "test") as writer:
        writer.add(frames)
        writer.add(frames.astype(float))
    with pytest.raises(ValueError, match=r"actions \(2, 1\), rewards \(3,\); expected \(3, A\)"):
        with EpisodeWriter(out, "test") as writer:
            writer.add(frames, np.zeros((2, 1)))
    with pytest.raises(ValueError, match="they must agree"), EpisodeWriter(out, "test") as writer:
        writer.add(frames)
        writer.add(noise(3, 8, 8, 3))
    with pytest.raises(ValueError, match="no episode was added"), EpisodeWriter(out, "test"):
        pass
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="val_every is 1"):
        EpisodeWriter(out, "test", val_every=1)
    write_numbered(out, [3])
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        EpisodeWriter(out, "test")


def test_a_missing_truncated_or_foreign_folder_is_named(push, tmp_path):
    with pytest.raises(FileNotFoundError, match="no episodes at .*none; try: python prepare.py push"):
        Episodes(tmp_path / "none")
    with pytest.raises(ValueError, match="split is 'test'; expected train, val or all"):
        Episodes(push, "test")
    cut, other = shutil.copytree(push, tmp_path / "cut"), shutil.copytree(push, tmp_path / "other")
    shard = cut / "shard-00000.bin"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"shard-00000.bin has {size - 1} bytes, expected {size}"):
        Episodes(cut)
    shard.unlink()
    with pytest.raises(ValueError, match=f"shard-00000.bin has 0 bytes, expected {size}"):
        Episodes(cut)
    meta = json.loads((other / "meta.json").read_text())
    (other / "meta.json").write_text(json.dumps({**meta, "val_every": 5}))
    with pytest.raises(ValueError, match="meta.json cannot be read .it is damaged; if it was changed on pur"):
        Episodes(other)
    changed = {**meta, "shards": 10**12}
    (other / "meta.json").write_text(json.dumps({**changed, "crc": meta_crc(changed)}))
    with pytest.raises(ValueError, match="meta.json has 1000000000000 shards for 12 episodes"):
        Episodes(other)
    meta["version"] = 99
    (other / "meta.json").write_text(json.dumps({**meta, "crc": meta_crc(meta)}))
    with pytest.raises(ValueError, match="has format 99, codec raw; expected 1, raw or jpeg"):
        Episodes(other)


@pytest.mark.parametrize("name", ["actions", "rewards"])
def test_numbers_that_are_not_finite_are_not_learned_from(push, tmp_path, name):
    folder = shutil.copytree(push, tmp_path / "push")
    table = np.load(folder / f"{name}.npy")
    table[:] = np.nan
    np.save(folder / f"{name}.npy", table)
    with pytest.raises(ValueError, match="push has actions or rewards that are not finite; write it again"):
        Episodes(folder).batch(0, 2, 4)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"null", b"\x80", b"PK\x03\x04", b"\x93NUMPY"])
@pytest.mark.parametrize("name", ["meta.json", "index.npz", "actions.npy", "rewards.npy"])
def test_a_damaged_table_is_named(push, tmp_path, name, content):
    folder = shutil.copytree(push, tmp_path / "push")
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
        Episodes(folder)


# ---- alignment ----


def test_a_limit_leaves_the_first_episodes(push):
    few = Episodes(push, "train", 2)
    assert list(few.names) == list(Episodes(push, "train").names[:2]) and few.n_episodes == 2
    with pytest.raises(ValueError, match="99 episodes wanted; .* has 9 for train"):
        Episodes(push, "train", 99)


def test_a_batch_takes_actions_and_rewards_of_the_frames_it_shows(tmp_path):
    batch = write_numbered(tmp_path / "e", [40, 50]).batch(0, 16, 5, stride=3)
    frames, episodes = numbers(batch)
    assert (frames.diff() == 3).all() and (episodes == episodes[:, :1]).all()
    assert torch.equal(batch["actions"][..., 0], frames + 1.0)
    assert torch.equal(batch["rewards"], 10.0 * frames)


def test_action_agg_sum_adds_up_the_actions_between_two_frames_that_are_shown(tmp_path):
    batch = write_numbered(tmp_path / "e", [40]).batch(0, 8, 5, stride=3, action_agg="sum")
    first = numbers(batch)[0][:, :-1]
    assert torch.equal(batch["actions"][:, :-1, 0], 3.0 * first + (1 + 2 + 3))
    with pytest.raises(ValueError, match="action_agg is 'mean'; expected sample, sum or concat"):
        Episodes(tmp_path / "e").batch(0, 1, 2, action_agg="mean")


def test_action_agg_concat_keeps_each_action_between_two_frames_that_are_shown(tmp_path):
    data = write_numbered(tmp_path / "e", [40, 7])
    A = data.action_dim
    for batch in (data.batch(0, 8, 5, stride=3, action_agg="concat"), data.segments(2, 5, 3, 0, "concat")):
        assert batch["actions"].shape[1:] == (5, 3 * A) and not batch["actions"][:, -1].any()
        shown, episodes = numbers(batch)
        steps = shown.diff()[..., None] > torch.arange(3)  # the short episode has a stride of 1
        moves = batch["actions"].unflatten(2, (3, A))[:, :-1, :, 0]
        assert torch.equal(moves, (shown[:, :-1, None] + 1.0 + torch.arange(3)) * steps)


# ---- batches ----


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in ("frames", "actions", "rewards"))


def test_a_batch_depends_on_the_seed_and_the_number_of_its_first_segment_alone(push):
    first, second = Episodes(push), Episodes(push)
    second.batch(0, 8, 6)
    assert same(first.batch(7, 8, 6, seed=1), second.batch(7, 8, 6, seed=1))
    assert not same(first.batch(7, 8, 6, seed=1), first.batch(8, 8, 6, seed=1))
    assert not same(first.batch(7, 8, 6, seed=1), first.batch(7, 8, 6, seed=2))


@pytest.mark.parametrize("how", [dict(), dict(context=2, future=2), dict(context=2, future=2, shuffle=True)])
def test_two_processes_share_the_batch_of_one(push, how):
    episodes, cfg = Episodes(push), SimpleNamespace(batch_size=4, seed=5, stride=1)
    whole = episodes.batch(24, 8, 6, seed=5, **how)
    for rank in (0, 1):
        part = floats(draw_segments(episodes, cfg, 6, 16, rank, 2, **how)(1))
        assert same(part, {key: value[4 * rank :][:4] for key, value in whole.items()})


def test_a_run_on_another_number_of_processes_repeats_nothing_and_leaves_nothing_out():
    class Data:  # yields the numbers of the segments
        def batch_u8(self, first, n, *_):
            return range(first, first + n)

    cfg, taken = SimpleNamespace(batch_size=3, seed=0, stride=1), []
    for world, micro_steps in ((1, 4), (4, 2), (2, 5)):  # begun, resumed, resumed
        fetch = [draw_segments(Data(), cfg, 4, len(taken), rank, world) for rank in range(world)]
        taken += [number for i in range(micro_steps) for f in fetch for number in f(i)]
    assert taken == list(range(66))


def test_every_start_is_drawn(tmp_path):
    frames, _ = numbers(write_numbered(tmp_path / "e", [9]).batch(0, 200, 4))
    assert set(frames[:, 0].tolist()) == set(range(6))


def test_a_short_episode_gets_a_smaller_stride_or_repeats_its_last_frame(tmp_path):
    episodes = write_numbered(tmp_path / "e", [10])
    frames, _ = numbers(episodes.batch(0, 20, 4, stride=5))  # 10 frames: stride 2 fits
    assert (frames.diff() == 2).all() and frames.max() <= 9
    batch = episodes.batch(0, 1, 12)
    assert numbers(batch)[0][0].tolist() == [*range(10), 9, 9]
    assert batch["actions"][0, :, 0].tolist() == [*range(1, 10), 0, 0, 0]  # nothing moves: no action


def test_tokenizer_segments_are_the_context_and_distinct_later_frames_in_order(tmp_path):
    episodes = write_numbered(tmp_path / "e", [60])
    frames, _ = numbers(episodes.batch(0, 200, 8, stride=2, context=2, future=3))
    context, future = frames[:, :2], frames[:, 2:]
    assert frames.shape == (200, 5) and (context.diff() == 2).all()
    assert (future.diff() > 0).all() and (future[:, 0] > context[:, 1]).all()
    offsets = future - context[:, :1]
    assert set(offsets.unique().tolist()) == set(range(3, 15))  # all native frames up to the segment's end
    with pytest.raises(ValueError, match="context 2, future 7; expected both > 0, sum at most T = 8"):
        episodes.batch(0, 1, 8, context=2, future=7)
    with pytest.raises(ValueError, match="T is 0, stride 1; expected both at least 1"):
        episodes.batch(0, 1, 0)
    frames, _ = numbers(episodes.batch(0, 200, 8, stride=2, context=2, future=3, shuffle=True))
    grid = (frames - frames.amin(1, keepdim=True)) % 2
    assert frames.shape == (200, 5) and not grid.any() and (frames.diff() < 0).any()
    assert all(len(set(row.tolist())) == 5 for row in frames) and frames.amax() <= 59


def test_segments_are_the_same_at_every_call_and_go_round(tmp_path):
    episodes = write_numbered(tmp_path / "e", [10, 12])
    frames, which = numbers(episodes.segments(4, 3))
    assert which[:, 0].tolist() == [0, 1, 0, 1] and frames[:, 0].tolist() == [0, 0, 3, 3]
    assert same(episodes.segments(4, 3, seed=1), episodes.segments(4, 3, seed=1))
    assert not same(episodes.segments(4, 3, seed=1), episodes.segments(4, 3, seed=2))


def test_prefetch_yields_every_step_in_order_and_passes_errors_on():
    steps = [batch["x"].item() for batch in prefetch(lambda i: dict(x=torch.tensor(i)), 3, 9, "cpu")]
    assert steps == [3, 4, 5, 6, 7, 8]
    with pytest.raises(ZeroDivisionError):
        list(prefetch(lambda i: dict(x=torch.tensor(1 // (i - 2))), 0, 5, "cpu"))


# ---- pictures ----


def test_gifs_and_sheets_have_the_expected_size_and_pixels(tmp_path):
    frames = to_float(noise(2, 5, 8, 6, 3))  # (B, T, 3, H, W) = (2, 5, 3, 8, 6)
    save_gif(tmp_path / "new" / "a.gif", frames[0], scale=4)
    assert iio.imread(tmp_path / "new" / "a.gif").shape == (5, 32, 24, 3)
    save_gif(tmp_path / "b.gif", frames, scale=1)
    assert iio.imread(tmp_path / "b.gif").shape == (5, 8, 6 + 2 + 6, 3)
    save_side_by_side(tmp_path / "c.gif", frames[0], frames[1], scale=2)
    assert iio.imread(tmp_path / "c.gif").shape == (5, 16, 2 * (3 * 6 + 2 * 2), 3)
    save_side_by_side(tmp_path / "d.gif", frames, frames, scale=1)
    assert iio.imread(tmp_path / "d.gif").shape == (5, 8 + 2 + 8, 3 * 6 + 2 * 2, 3)
    with pytest.raises(ValueError, match="truth .* imagined .*; expected the same"):
        save_side_by_side(tmp_path / "e.gif", frames[0], frames[0, :4])
    save_contact_sheet(tmp_path / "f.png", [frames[0], frames[1, :3]], scale=2)
    sheet = iio.imread(tmp_path / "f.png")
    assert sheet.shape == (2 * (8 + 2 + 8), 2 * (5 * 6 + 4 * 2), 3)
    assert np.array_equal(sheet[:16:2, :12:2], to_u8(frames[0, 0])) and (sheet[20:, 2 * 3 * 8 :] == 255).all()
