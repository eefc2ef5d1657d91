"""sample.py: the world model as an environment, and its pictures."""

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from conftest import GPT_RUN, GPT_TUNE, flags, train

import sample
import train_gpt
from common import configure, load_checkpoint
from envs.push import push_segments
from sample import WorldModel


def load(path, **settings):
    return WorldModel.load(path, "cpu", **settings)


def call(script, **settings):
    """Run sample.py in-process."""
    script.main(configure(script.CONFIG, script.__doc__, flags(device="cpu", **settings)))


@pytest.fixture(scope="module")
def segments():
    """Two PushWorld segments of 12 frames, 32x32."""
    return push_segments(2, 12, seed=7, size=32)


@pytest.fixture
def started(trained, segments):
    """A world model after reset with two context frames of two segments."""
    model = load(trained.gpt)
    model.reset(segments["frames"][:, :2])
    return model


# ---- the world model as an environment ----


def test_a_step_returns_a_frame_in_0_1_and_a_reward_for_each_segment(started):
    frame, reward = started.step(np.zeros((2, 2)))
    assert frame.shape == (2, 3, 32, 32) and 0 <= frame.min() and frame.max() <= 1
    assert reward.shape == (2,) and reward.isfinite().all()


def test_a_rollout_equals_repeated_steps_and_a_policy_equals_its_actions(trained, segments):
    context, actions = segments["frames"][:, :2], segments["actions"][:, 1:]
    model = load(trained.gpt)
    model.reset(context)
    steps = [model.step(actions[:, i]) for i in range(7)]
    frames, rewards = (torch.stack(parts, 1) for parts in zip(*steps, strict=True))
    assert frames.shape == (2, 7, 3, 32, 32) and 0 <= frames.min() and frames.max() <= 1
    model = load(trained.gpt)
    model.reset(context)
    rolled = model.rollout(actions, 7)
    assert torch.equal(rolled[0], frames) and torch.allclose(rolled[1], rewards, atol=1e-5)
    assert torch.equal(rolled[2], actions[:, :7])
    model, seen = load(trained.gpt), []
    model.reset(context)

    def policy(frame):
        seen.append(frame)
        return actions[:, len(seen) - 1]

    assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(model.rollout(policy, 7), rolled, strict=True))
    assert torch.equal(torch.stack(seen, 1), torch.cat([context[:, 1:], frames[:, :6]], 1))


def test_a_rollout_goes_on_from_where_the_last_one_ended(trained, segments):
    context, actions = segments["frames"][:, :2], segments["actions"]
    whole, parts = load(trained.gpt), load(trained.gpt)
    whole.reset(context)
    parts.reset(context)
    frames = whole.rollout(actions, 6)[0]
    pieces = [parts.rollout(actions[:, :2], 2)[0], parts.rollout(actions[:, 2:6], 4)[0]]
    assert torch.equal(torch.cat(pieces, 1), frames)


def test_the_end_of_a_segment_takes_the_last_frames_as_the_new_context(trained, segments):
    model, fresh = load(trained.gpt), load(trained.gpt)
    model.reset(segments["frames"][:, :2])
    frames = model.rollout(segments["actions"], 4)[0]  # 2 + 4 frames: the whole segment
    fresh.reset(frames[:, 2:])
    for world in (model, fresh):
        world.generator.manual_seed(3)
    assert torch.equal(model.step(torch.zeros(2, 2))[0], fresh.step(torch.zeros(2, 2))[0])
    assert torch.equal(model.recent[:, 0], frames[:, -1])


def test_a_goal_stays_in_the_context_of_a_long_rollout(push, trained, segments, tmp_path):
    out = tmp_path / "gpt.pt"
    train(train_gpt, **GPT_RUN, data=push, tokenizer=trained.tokenizer, out=out, goal_conditioned=True)
    model = load(out)
    assert model.goal_conditioned and not load(trained.gpt).goal_conditioned
    goal_and_start = segments["frames"][:, [11, 0]]
    model.reset(goal_and_start)
    frames = model.rollout(segments["actions"], 6)[0]  # more than the segment holds
    assert torch.equal(model.recent, torch.stack([goal_and_start[:, 0], frames[:, -1]], 1))


def test_branches_are_neighbours_and_continue_apart(trained, segments):
    model = load(trained.gpt)
    model.reset(segments["frames"][:, :2], n_branches=3)
    actions = torch.rand(6, 6, 2)
    frames, rewards, _ = model.rollout(actions, 6)  # across the end of the segment
    assert frames.shape == (6, 6, 3, 32, 32) and rewards.shape == (6, 6)
    greedy = load(trained.gpt, temperature=0.0)
    greedy.reset(segments["frames"][:, :2], n_branches=3)
    branches = greedy.rollout(actions, 6)[0]
    greedy.reset(segments["frames"][:, :2].repeat_interleave(3, 0))
    assert torch.allclose(branches, greedy.rollout(actions, 6)[0], atol=1e-4)


def test_equal_frames_of_one_scene_are_decoded_once(trained, segments):
    model = load(trained.gpt, temperature=0.0)
    model.reset(segments["frames"][:1, :2], n_branches=4)
    decode, decoded = model.decode, []
    model.decode = lambda codes, scene: decoded.append(codes.shape[1]) or decode(codes, scene)
    actions = segments["actions"][:, :4].repeat_interleave(2, 0)  # two pairs
    frames, _, _ = model.rollout(actions, 4)
    assert sum(decoded) <= 8
    assert torch.equal(frames[0], frames[1]) and torch.equal(frames[2], frames[3])
    alone = load(trained.gpt, temperature=0.0)
    for branch in (0, 2):
        alone.reset(segments["frames"][:1, :2])
        torch.testing.assert_close(frames[branch], alone.rollout(actions[branch : branch + 1], 4)[0][0])
    assert torch.equal(model.recent, frames[:, 2:])


def test_in_bfloat16_a_rollout_stays_in_range(trained, segments):
    model = load(trained.gpt, dtype="bf16")
    model.reset(segments["frames"][:, :2])
    frames, rewards, _ = model.rollout(segments["actions"], 6)
    assert model.cache.layers[0].keys.dtype == torch.bfloat16
    assert frames.dtype == rewards.dtype == torch.float32 and 0 <= frames.min() and frames.max() <= 1


def test_an_action_free_model_takes_none_and_gives_no_rewards(trained, segments):
    model = load(trained.free)
    model.reset(segments["frames"][:, :2])
    frames, rewards, actions = model.rollout(None, 5)
    assert frames.shape == (2, 5, 3, 32, 32) and rewards is None and actions is None
    with pytest.raises(ValueError, match="expected none: no action_dim"):
        model.step(torch.zeros(2, 2))


def test_wrong_calls_are_refused_with_the_reason(trained, segments):
    model, frames = load(trained.gpt), segments["frames"][:, :2]
    with pytest.raises(ValueError, match="no context: call reset"):
        model.step(torch.zeros(2, 2))
    for wrong, message in (
        (frames[:, :, :, :16], r"frames are \(2, 2, 3, 16, 32\)"),
        (frames[:, :1], r"frames are \(2, 1, 3, 32, 32\); expected \(B, T >= 2"),
        (segments["frames"][:, :3], "3 context frames; the model takes 2"),
        ((frames * 255).byte(), "frames are torch.uint8, .*; expected float in"),
        (frames * 255, "expected float in"),
        (frames * 2 - 1, "expected float in"),
        (frames * float("nan"), "expected float in"),
    ):
        with pytest.raises(ValueError, match=message):
            model.reset(wrong)
    model.reset(frames)
    with pytest.raises(ValueError, match=r"actions are \(2, 3\); expected \(2, 2\)"):
        model.step(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"actions are none; expected \(2, 2\)"):
        model.step()
    with pytest.raises(ValueError, match="horizon is 4; expected 1 or more, and an action for each frame"):
        model.rollout(torch.zeros(2, 3, 2), 4)


def test_wrong_files_and_devices_are_named(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at .*none.pt"):
        load(tmp_path / "none.pt")
    with pytest.raises(ValueError, match="tokenizer.pt holds no gpt"):
        load(trained.tokenizer)
    with pytest.raises(ValueError, match="device is cuda but torch sees no GPU; pass --device cpu"):
        WorldModel.load(trained.gpt, "cuda")


def test_another_tokenizer_may_be_used_with_a_transformer(trained, segments):
    model = load(trained.gpt, tokenizer=trained.tokenizer)
    model.reset(segments["frames"][:, :2])
    assert model.rollout(segments["actions"], 2)[0].shape == (2, 2, 3, 32, 32)


# ---- sample.py ----


def test_samples_of_fresh_episodes_are_gifs_and_a_sheet(trained, tmp_path):
    call(sample, ckpt=trained.gpt, out=tmp_path / "s", n=2, branches=2, horizon=5)
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == [
        "0-0.gif", "0-1.gif", "1-0.gif", "1-1.gif", "sheet.png"
    ]  # fmt: skip
    assert iio.imread(tmp_path / "s" / "1-1.gif").shape[1:] == (4 * 32, 4 * (3 * 32 + 2 * 2), 3)
    rows, columns = 2 * (1 + 2), 2 + 5
    assert iio.imread(tmp_path / "s" / "sheet.png").shape == (
        2 * (34 * rows - 2), 2 * (34 * columns - 2), 3
    )  # fmt: skip


def test_samples_of_a_folder_and_of_a_file(push, trained, segments, tmp_path):
    call(sample, ckpt=trained.gpt, data=push, out=tmp_path / "folder", n=2, horizon=3)
    assert len(list((tmp_path / "folder").glob("*.gif"))) == 2
    frames_u8 = (segments["frames"][0].movedim(1, -1) * 255).round().byte().numpy()
    np.savez(tmp_path / "e.npz", image=frames_u8, action=segments["actions"][0].numpy())
    call(sample, ckpt=trained.gpt, episode=tmp_path / "e.npz", out=tmp_path / "npz", horizon=3)
    iio.imwrite(tmp_path / "e.gif", frames_u8[:4], duration=100, loop=0)
    call(sample, ckpt=trained.free, episode=tmp_path / "e.gif", out=tmp_path / "gif", horizon=6)
    for name in ("npz", "gif"):
        assert sorted(p.name for p in (tmp_path / name).iterdir()) == ["0-0.gif", "sheet.png"]
    with pytest.raises(ValueError, match=r"model takes 2-D actions, .*e.gif has none"):
        call(sample, ckpt=trained.gpt, episode=tmp_path / "e.gif", out=tmp_path / "x")
    iio.imwrite(tmp_path / "one.gif", frames_u8[:1])
    with pytest.raises(ValueError, match="one.gif has 1 frames; expected 2 for the context"):
        call(sample, ckpt=trained.free, episode=tmp_path / "one.gif", out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_an_exported_checkpoint_is_small_and_imagines_and_fine_tunes(push, trained, segments, tmp_path):
    call(sample, ckpt=trained.gpt, export=tmp_path / "small.pt")
    assert (tmp_path / "small.pt").stat().st_size < trained.gpt.stat().st_size / 2
    weights = load_checkpoint(tmp_path / "small.pt")["gpt"]["weights"]
    assert torch.allclose(weights["embed.weight"].float(), load(trained.gpt).gpt.embed.weight, atol=1e-3)
    model = load(tmp_path / "small.pt")
    assert model.top_k == 10 and load(tmp_path / "small.pt", top_k=0).top_k == 0
    model.reset(segments["frames"][:, :2])
    assert model.step(torch.zeros(2, 2))[0].dtype == torch.float32
    train(train_gpt, **GPT_TUNE, data=push, init_from=tmp_path / "small.pt", out=tmp_path / "tuned.pt")
    assert load_checkpoint(tmp_path / "tuned.pt")["gpt"]["weights"]["embed.weight"].dtype == torch.float32
