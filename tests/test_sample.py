"""sample.py and evaluate.py: the world model as an environment, its pictures, its numbers."""

import json
import sys

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from conftest import GPT_RUN, GPT_TUNE, ROOT, flags, train

import evaluate
import sample
import train_gpt
from common import configure, load_checkpoint
from data import push_segments
from evaluate import psnr, ssim
from sample import WorldModel


def load(path, **settings):
    return WorldModel.load(path, "cpu", **settings)


def call(script, **settings):
    """Run sample.py or evaluate.py in-process."""
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


@pytest.mark.parametrize("checkpoint", ["gpt", "free"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("n_branches", [1, 3])
def test_the_plain_way_imagines_the_same_from_the_same_noise(
    trained, segments, n_branches, temperature, checkpoint
):
    fast, plain = (load(getattr(trained, checkpoint), temperature=temperature) for _ in range(2))
    actions = torch.rand(2 * n_branches, 4, 2) if fast.action_dim else None
    fast.reset(segments["frames"][:, :2], n_branches)
    frames, rewards, _ = fast.rollout(actions, 4)
    others = plain.rollout_naive(segments["frames"][:, :2], actions, 4, n_branches)
    torch.testing.assert_close(frames, others[0], atol=1e-5, rtol=0)
    assert (rewards is None) == (others[1] is None)
    if rewards is not None:
        torch.testing.assert_close(rewards, others[1], atol=1e-5, rtol=0)


def test_in_bfloat16_a_rollout_stays_in_range(trained, segments):
    model = load(trained.gpt, dtype="bf16")
    model.reset(segments["frames"][:, :2])
    frames, rewards, _ = model.rollout(segments["actions"], 6)
    assert model.cache.own.dtype == torch.bfloat16
    assert frames.dtype == rewards.dtype == torch.float32 and 0 <= frames.min() and frames.max() <= 1


def test_an_action_free_model_takes_none_and_gives_no_rewards(trained, segments):
    model = load(trained.free)
    model.reset(segments["frames"][:, :2])
    frames, rewards, actions = model.rollout(None, 5)
    assert frames.shape == (2, 5, 3, 32, 32) and rewards is None and actions is None
    with pytest.raises(ValueError, match="the model is action-free"):
        model.step(torch.zeros(2, 2))


def test_wrong_calls_are_refused_with_the_reason(trained, segments):
    model, frames = load(trained.gpt), segments["frames"][:, :2]
    with pytest.raises(ValueError, match="step before reset"):
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
    with pytest.raises(ValueError, match="horizon is 4; expected 1 to the number of actions"):
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


# ---- evaluate.py ----


def test_psnr_is_the_hand_computed_number_and_80_for_equal_frames():
    x = torch.rand(2, 4, 3, 16, 16)
    assert psnr(x, x).shape == (2, 4) and torch.allclose(psnr(x, x), torch.tensor(80.0))
    assert psnr(torch.zeros(3, 8, 8), torch.full((3, 8, 8), 0.1)).item() == pytest.approx(20, abs=1e-3)


def test_ssim_is_the_hand_computed_number_and_1_for_equal_frames():
    x = torch.rand(2, 4, 3, 16, 16)
    assert ssim(x, x).shape == (2, 4) and torch.allclose(ssim(x, x), torch.tensor(1.0))
    flat = ssim(torch.full((3, 16, 16), 0.2), torch.full((3, 16, 16), 0.6)).item()
    assert flat == pytest.approx((2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4), abs=1e-4)  # no variance
    assert ssim(x, 1 - x).max() < 0


def test_ssim_equals_scikit_image():
    metrics = pytest.importorskip("skimage.metrics", reason="pip install scikit-image")
    x = torch.rand(3, 32, 32)
    y = (x + 0.2 * torch.randn_like(x)).clamp(0, 1)
    how = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=0)
    expected = metrics.structural_similarity(x.numpy(), y.numpy(), **how)
    assert ssim(x, y).item() == pytest.approx(expected, abs=1e-5)


ROWS = {"model", "repeat_last", "wrong_actions", "reconstruction"}


def test_evaluation_writes_its_numbers(trained, tmp_path, capsys):
    out = tmp_path / "new" / "m.json"
    call(evaluate, ckpt=trained.gpt, out=out, episodes=3, horizon=5, batch_size=2)
    numbers = json.loads(out.read_text())
    assert {"episodes", "seconds", "psnr", "ssim", "reward_correlation"} <= set(numbers)
    assert set(numbers["psnr"]) == set(numbers["ssim"]) == ROWS and numbers["episodes"] == 3
    assert "repeat_last" in capsys.readouterr().out


def test_evaluation_of_a_folder_with_an_action_free_model_leaves_rows_out(push, trained, tmp_path):
    call(evaluate, ckpt=trained.free, data=push, out=tmp_path / "m.json", episodes=2, horizon=2)
    numbers = json.loads((tmp_path / "m.json").read_text())
    assert set(numbers["psnr"]) == ROWS - {"wrong_actions"} and numbers["reward_correlation"] is None


def test_evaluation_does_not_depend_on_the_batch_size_and_compares_the_right_frames(trained, segments):
    batch = {key: value[:, :6] for key, value in segments.items()}
    numbers = [evaluate.evaluate(load(trained.gpt, temperature=0.0), batch, 4, size) for size in (1, 2)]
    for metric in ("psnr", "ssim"):
        assert numbers[0][metric] == pytest.approx(numbers[1][metric], abs=1e-3)
    last, truth = batch["frames"][:, 1:2], batch["frames"][:, 2:]
    expected = -10 * ((last - truth).square().mean((2, 3, 4)) + 1e-8).log10().mean()
    assert numbers[0]["psnr"]["repeat_last"] == pytest.approx(expected.item(), abs=1e-3)
    with pytest.raises(ValueError, match="6 frames; expected 2 context \\+ 5 predicted"):
        evaluate.evaluate(load(trained.gpt), batch, 5, 2)


def test_speed_is_measured_and_written_down(tmp_path, capsys):
    out = tmp_path / "speed.json"
    settings = dict(preset="tiny", device="cpu", horizon=2, branches=3, batches=1, rollouts=1, train_batch=1)
    evaluate.speed(configure(evaluate.SPEED, "", flags(**settings, repeats=1, out=out)))
    numbers = json.loads(out.read_text())
    assert numbers["imagine"]["b1"]["vs_naive"] > 0 and numbers["branches_3"]["vs_naive"] > 0
    assert numbers["branches_3"]["kv_share"] < 1 and numbers["interactive_tiny"]["frames_per_s"] > 0
    assert set(numbers["tokenizers"]) == {"4x4", "8x8", "compressive"}
    assert {"vs_full_logits", "GB"} <= set(numbers["train_tiny"]) and {"commit", "machine"} <= set(numbers)
    assert "branches_3.kv_share" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--parts typing: expected some of imagine,"):
        evaluate.speed(configure(evaluate.SPEED, "", ["--parts", "typing"]))


def test_the_cache_takes_the_share_of_memory_that_is_told(trained, segments):
    model = load(trained.gpt)
    elements = []
    for B, n_b in ((1, 5), (5, 1)):
        model.reset(segments["frames"][:1, :2].repeat(B, 1, 1, 1, 1), n_b)
        own, shared = model.cache.own.numel(), model.cache.shared.numel()
        elements.append(own + (shared if n_b > 1 else 0))  # a single future's shared is part of its own
    layout, T = model.gpt.layout, model.gpt.config["segment_length"]
    assert elements[0] / elements[1] == pytest.approx(evaluate.kv_share(layout, T, 5), abs=0.01)


def test_evaluation_imagines_with_the_actions_that_lead_to_each_frame_and_with_anothers(
    trained, segments, monkeypatch
):
    rollout, given = WorldModel.rollout, []

    def watch(self, actions, horizon):
        given.append(actions[:, :horizon])
        return rollout(self, actions, horizon)

    monkeypatch.setattr(WorldModel, "rollout", watch)
    evaluate.evaluate(load(trained.gpt), {k: v[:, :6] for k, v in segments.items()}, 4, 2)
    own = segments["actions"][:, 1:5]  # frame 2 follows from action 1
    assert torch.equal(given[0], own) and torch.equal(given[1], own.flip(0))


def test_learning_curves_are_kept_beside_the_numbers(trained, tmp_path, monkeypatch, capsys):
    curve = trained.gpt.with_suffix(".jsonl")
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    call(evaluate, ckpt=trained.gpt, out=tmp_path / "m.json", episodes=2, horizon=2, curves=str(curve))
    kept = json.loads((tmp_path / "m.json").read_text())["curves"][str(curve)]
    assert [step for step, _ in kept["val_psnr"]] == [2]
    assert "pip install matplotlib" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="no learning curve at .*none.jsonl"):
        evaluate.read_curve(tmp_path / "none.jsonl")


def test_results_say_their_origin_also_where_git_is_missing(monkeypatch):
    assert {"command", "commit", "machine"} <= set(evaluate.provenance())
    monkeypatch.setenv("PATH", "")
    assert evaluate.provenance.__wrapped__()["commit"] == "unknown"


# ---- the released checkpoint ----


@pytest.fixture(scope="module")
def released():
    """PSNR and reward correlation of the released checkpoint on 32 fresh episodes."""
    path = ROOT / "assets" / "push-tiny.pt"
    if not path.is_file():
        pytest.skip(f"the released checkpoint is not at {path}")
    assert path.stat().st_size < 10_000_000
    model = load(path)
    batch = push_segments(32, model.context_frames + 14, 123, model.tokenizer.config["resolution"])
    return evaluate.evaluate(model, batch, 14, 16)


def test_the_released_checkpoint_knows_more_than_the_last_frame_heeds_actions_and_foresees_rewards(released):
    psnr = released["psnr"]
    assert psnr["model"] >= psnr["repeat_last"] + 3 and psnr["model"] >= psnr["wrong_actions"] + 1.5
    assert released["reward_correlation"] > 0.7  # 0.80 over 256 episodes, but few episodes scatter by 0.05
