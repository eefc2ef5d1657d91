"""mbpo.py, drq.py and the environments: agent, replay, imagined rollouts, the loop and its checkpoints."""

import inspect
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, flags, train

import drq
import mbpo
import sample
from common import configure, load_checkpoint, start_log
from data import to_float
from drq import DrQ, Replay, random_shift, to_batch
from envs import demonstrations, make_environment, play
from envs.push import PushWorld
from experiments import mbpo_report, mbpo_seeds, policies
from gpt import GPT
from mbpo import imagined_rollouts, schedule
from sample import TRAINED, WorldModel

SMALL = dict(
    preset="push", size=32, agent_size=16, hidden=16, agent_batch=4, agent_updates=1, shift=1, seed_steps=60,
    demos=1, init_updates=1, gpt_every=30, tokenizer_every=60, model_batch=2, segment=6, horizon=3, starts=2,
    init_rollouts=1, rollout_every=60, eval_every=120, eval_episodes=2, save_every=60, device="cpu",
)  # fmt: skip


def settings(**changes):
    return configure(mbpo.CONFIG, "", flags(**{**SMALL, **changes}), mbpo.PRESETS)


def lines(path, key):
    """The log's lines that have this key."""
    return [line for line in map(json.loads, path.read_text().splitlines()) if key in line]


# ---- the agent ----


def test_random_shifts_are_whole_pixels_and_repeat_the_edge():
    torch.manual_seed(0)
    x = torch.rand(40, 2, 8, 8)
    assert torch.equal(random_shift(x, 0), x)
    padded = F.pad(x, [2] * 4, "replicate")
    options = [padded[:, :, i : i + 8, j : j + 8] for i in range(5) for j in range(5)]
    shifted = random_shift(x, 2)
    fits = torch.stack([(shifted == option).flatten(1).all(1) for option in options])
    assert fits.any(0).all() and len(fits.int().argmax(0).unique()) > 10  # each picture its own


def test_noise_keeps_actions_in_range_and_their_gradient():
    mean = torch.full((100, 2), 0.9, requires_grad=True)
    action = drq.noisy_action(mean, 1.0, 0.3)
    assert action.max() < 1 and (action - mean).abs().max() <= 0.3 + 1e-6
    action.sum().backward()
    assert (mean.grad == 1).all()


def batch_of(n):
    stacks, next_stacks = torch.rand(2, n, 3, 3, 16, 16)
    actions, returns = torch.rand(n, 2) * 2 - 1, torch.rand(n)
    return dict(stacks=stacks, next_stacks=next_stacks, actions=actions, returns=returns)


def test_the_critic_approaches_return_and_discounted_value_and_its_target_follows():
    cfg = settings(shift=0, discount=0.5, n_step=2)
    agent, batch = DrQ(2, 16, cfg), batch_of(4)
    z = agent.encoder(agent.preprocess(batch["next_stacks"]))
    value = agent.target(z, agent.actor(z)).amin(0)  # no noise: std is 0
    q = agent.critic(agent.encoder(agent.preprocess(batch["stacks"])), batch["actions"])
    expected = (q - (batch["returns"] + 0.25 * value)).square().mean(1).sum().item()
    before = [p.clone() for p in agent.target.parameters()]
    metrics = agent.update(batch, std=0.0)
    assert metrics["critic_loss"].item() == pytest.approx(expected, rel=1e-4)
    for old, slow, fast in zip(before, agent.target.parameters(), agent.critic.parameters(), strict=True):
        assert torch.allclose(slow, old + cfg.tau * (fast - old), atol=1e-7)


def test_the_critics_bias_is_what_it_expects_beyond_the_return_that_follows(monkeypatch):
    agent = drq.DrQ(2, 16, settings(discount=0.5, stack=3, agent_size=16))
    monkeypatch.setattr(agent.critic, "forward", lambda z, action: torch.full((2, len(z)), 3.0))
    frames_u8 = np.zeros((5, 16, 16, 3), np.uint8)
    rewards = np.array([9, 1, 2, 4, 8], np.float32)  # the first one comes before any action
    episode = dict(frames_u8=frames_u8, actions=np.zeros((4, 2), np.float32), rewards=rewards)
    returns = 1 + 0.5 * 2 + 0.25 * 4 + 0.125 * 8, 2 + 0.5 * 4 + 0.25 * 8  # of the first half
    assert drq.critic_bias(agent, [episode, episode]) == pytest.approx(3 - np.mean(returns))


def test_every_part_learns_and_the_encoder_from_the_critic_alone():
    agent = DrQ(2, 16, settings())
    before = {k: p.clone() for k, p in agent.named_parameters()}
    agent.update(batch_of(4), 0.2)
    assert all(not torch.equal(p, before[k]) for k, p in agent.named_parameters())
    optimizers = agent.critic_optimizer, agent.actor_optimizer
    held = [{id(p) for group in o.param_groups for p in group["params"]} for o in optimizers]
    assert {id(p) for p in agent.encoder.parameters()} <= held[0] and not held[0] & held[1]


def test_the_agent_learns_which_action_a_picture_asks_for():
    torch.manual_seed(0)
    agent = DrQ(1, 16, settings(agent_lr=1e-3, discount=0.0))
    for _ in range(250):  # what is right is on the light side
        side = torch.randint(2, (32,)) * 2.0 - 1
        stacks = (0.5 + 0.4 * side).view(-1, 1, 1, 1, 1).expand(-1, 3, 3, 16, 16)
        actions = torch.rand(32, 1) * 2 - 1
        returns = -(actions[:, 0] - 0.8 * side).abs()
        batch = dict(stacks=stacks, next_stacks=stacks, actions=actions, returns=returns)
        agent.update(batch, 0.1)
    dark, light = (agent.act(torch.full((1, 3, 3, 16, 16), x)).item() for x in (0.1, 0.9))
    assert dark < -0.5 and light > 0.5


def test_frames_of_other_sizes_or_types_are_refused():
    with pytest.raises(ValueError, match="agent_size is 24; expected a divisor of 64"):
        DrQ(2, 64, settings(agent_size=24))
    agent = DrQ(2, 16, settings())
    with pytest.raises(ValueError, match="frames are torch.uint8 .*; expected float"):
        agent.act(torch.zeros(1, 3, 3, 16, 16, dtype=torch.uint8))


# ---- replay ----


def opened(folder, size, A):
    replay = Replay(folder, size, A)
    replay.open()
    return replay


def numbered(T, first=0):
    """An episode whose frame i is all i, action i - 1 and reward i led there."""
    frames_u8 = np.arange(T, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2).repeat(3, 3)
    steps = np.arange(first + 1, T, dtype=np.float32)
    return frames_u8, steps[:, None] - 1, steps


def test_transitions_are_the_hand_computed_ones(tmp_path):
    replay = Replay(tmp_path, 4, 1)
    replay.add(*numbered(9))
    rows = replay.windows(200, 2, 2, np.random.default_rng(0))
    batch = to_batch(rows, settings(discount=0.5, n_step=2), "cpu")
    now, later = ((255 * batch[k][:, :, 0, 0, 0]).round().int().numpy() for k in ("stacks", "next_stacks"))
    i = now[:, -1]
    assert set(i) == set(range(7)) and (later[:, -1] == i + 2).all()
    assert (now == np.maximum(i[:, None] + [-2, -1, 0], 0)).all()  # before the first frame is the first
    assert (batch["actions"][:, 0].numpy() == i).all()
    assert np.allclose(batch["returns"], (i + 1) + 0.5 * (i + 2))


def test_rollouts_begin_after_their_context(tmp_path):
    replay = Replay(tmp_path, 4, 1, context=2)
    for _ in range(3):
        replay.add(*numbered(8, first=2))
    rows = replay.windows(100, 2, 2, np.random.default_rng(0))
    batch = to_batch(rows, settings(n_step=2), "cpu")
    assert set(batch["actions"][:, 0].tolist()) == {2, 3, 4, 5} and replay.lengths.tolist() == [8] * 3


def test_segments_are_aligned_as_everywhere(tmp_path):
    replay = Replay(tmp_path, 4, 1)
    replay.add(*numbered(6))
    batch = replay.segments(20, 4, np.random.default_rng(0))
    number = (batch["frames"][:, :, 0, 0, 0] * 255).round()
    assert torch.equal(batch["actions"][:, :-1, 0], number[:, :-1]) and not batch["actions"][:, -1].any()
    assert torch.equal(batch["rewards"], number) and number[:, -1].max() == 5  # the last frame is reached
    with pytest.raises(ValueError, match="no episode has more than 8 frames after its first"):
        replay.segments(1, 9, np.random.default_rng(0))


def test_what_a_kill_left_half_written_is_replaced(tmp_path):
    replay = Replay(tmp_path, 4, 1)
    replay.add(*numbered(5))
    replay.add(*numbered(7))
    (tmp_path / "000002.episode.partial").write_bytes(b"half an episode")
    again = opened(tmp_path, 4, 1)
    assert again.lengths.tolist() == [5, 7] and len(again) == 2
    again.add(*numbered(6))
    assert [again.read(e, 0, 3)["frame"][2, 0, 0, 0] for e in range(3)] == [2, 2, 2]
    assert again.read(2, 4, 9)["reward"].tolist() == [4, 5, 5, 5, 5]
    assert not list(tmp_path.glob("*.partial"))


# ---- imagined rollouts ----


def test_the_policy_sees_imagined_frames_as_it_sees_real_ones(trained):
    world, seen = WorldModel.load(trained.gpt, "cpu"), []
    frames_u8 = np.stack([PushWorld(2, 32, seed).render() for seed in range(3)], 1)
    stacks = to_float(frames_u8)

    def act(frames):
        seen.append(frames)
        return torch.zeros(2, 2)

    frames, actions, rewards = imagined_rollouts(world, act, stacks, 4)
    assert frames.shape == (2, 7, 3, 32, 32) and actions.shape == (2, 4, 2) and rewards.shape == (2, 4)
    assert torch.equal(seen[0], stacks)  # the first stack is real,
    assert all(torch.equal(seen[i], frames[:, i : i + 3]) for i in range(4))  # then it moves on
    assert seen[3].dtype == stacks.dtype and seen[3].min() >= 0 and seen[3].max() <= 1
    assert seen[3].max() > 0.3  # and nobody has divided by 255 once more


def test_the_schedule_is_the_papers_in_100_000_steps():
    cfg = configure(mbpo.CONFIG, "", [], mbpo.PRESETS)
    assert schedule(cfg, 3998, 2) == dict(tokenizer=0, gpt=0, rollouts=0, agent=0)
    assert schedule(cfg, 4000, 2) == dict(tokenizer=1000, gpt=1000, rollouts=21, agent=2)
    assert schedule(cfg, 100_000, 2) == dict(tokenizer=3400, gpt=10_600, rollouts=501, agent=96_002)
    cfg.imagine = False
    assert schedule(cfg, 100_000, 2) == dict(tokenizer=0, gpt=0, rollouts=0, agent=96_002)


# ---- the loop ----


def learn(out, **changes):
    train(mbpo, **{**SMALL, "out": out, "steps": 180, **changes})
    return load_checkpoint(out)


@pytest.mark.parametrize("imagines", [True, False])
def test_the_loop_learns_and_writes_everything_down(trained, tmp_path, imagines):
    out = tmp_path / "a.pt"
    state = learn(out, init_from=trained.gpt, imagine=imagines)
    due = schedule(settings(imagine=imagines), 180 - 1, 1)
    assert all(state["counts"][k] == due[k] for k in ("tokenizer", "gpt", "rollouts", "agent"))
    real, imagined = (opened(tmp_path / "a" / k, 32, 2) for k in ("real", "imagined"))
    assert len(real) == 1 + 3 and len(imagined) == 2 * due["rollouts"]
    episodes, evaluations = (lines(out.with_suffix(".jsonl"), key) for key in ("return", "eval_success"))
    assert [line["step"] for line in episodes] == [60, 120, 180]
    assert [line["step"] for line in evaluations] == [120, 180]
    assert ("gpt" in state) == imagines and out.with_suffix(".gif").exists() == imagines
    assert out.with_suffix(".png").exists()
    if imagines:
        assert len(evaluations[-1]["eval_frame_mse"]) == len(evaluations[-1]["eval_reward_error"]) == 3
        assert episodes[-1]["imagined"] == len(imagined)


def test_a_world_model_may_start_from_scratch_and_keep_or_forget_what_it_knows_of_actions(trained, tmp_path):
    known = load_checkpoint(trained.gpt)["gpt"]["weights"]["reward.weight"]
    cfg = settings(init_from=trained.gpt, keep_heads=True)
    assert torch.equal(mbpo.load_models(cfg, 2)[1].reward.weight, known)
    cfg.keep_heads = False
    assert not torch.equal(mbpo.load_models(cfg, 2)[1].reward.weight, known)
    _, scratch = mbpo.load_models(settings(init_from="", world="tiny", segment=7), 2)
    assert (scratch.config["segment_length"], scratch.config["action_dim"]) == (7, 2)
    with pytest.raises(ValueError, match="world is 'huge'; expected one of tiny, small, medium"):
        mbpo.load_models(settings(init_from="", world="huge"), 2)
    with pytest.raises(ValueError, match="is for 32 pixels; pass --size"):
        cfg.size = 64
        mbpo.load_models(cfg, 2)


def test_a_run_is_not_overwritten_and_its_settings_stay(trained, tmp_path):
    out = tmp_path / "a.pt"
    learn(out, init_from=trained.gpt, steps=120)
    with pytest.raises(ValueError, match="a.pt exists: --resume true goes on with it, --overwrite"):
        learn(out, init_from=trained.gpt)
    with pytest.raises(ValueError, match="a.pt was begun with another size, imagine; leave it out"):
        train(mbpo, out=out, resume=True, size=64, imagine=False, agent_size=16)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(trained, tmp_path):
    out = tmp_path / "a.pt"
    learn(out, init_from=trained.gpt, steps=120)
    train(mbpo, out=out, resume=True, steps=240)
    assert [line["step"] for line in lines(out.with_suffix(".jsonl"), "return")] == [60, 120, 180, 240]
    resumed = load_checkpoint(out)
    assert resumed["counts"]["agent"] == 240 - 60
    whole = learn(tmp_path / "b.pt", init_from=trained.gpt, steps=240)
    assert resumed["counts"] == whole["counts"] and torch.equal(resumed["rng"][0], whole["rng"][0])
    weights = [{**s["agent"], **s["gpt"]["weights"], **s["tokenizer"]["weights"]} for s in (resumed, whole)]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def test_a_batch_may_be_all_imagined_and_all_agent_settings_are_read(trained, tmp_path):
    learn(tmp_path / "a.pt", init_from=trained.gpt, real_share=0.0, steps=120)
    source = inspect.getsource(drq) + inspect.getsource(mbpo)
    assert all(f"cfg.{name}" in source for name in drq.AGENT)


def test_a_damaged_replay_is_refused_and_left_alone(tmp_path):
    out = tmp_path / "a.pt"
    learn(out, imagine=False)
    folder = tmp_path / "a" / "real"
    first = folder / "000000.episode"
    last = sorted(folder.iterdir())[-1]
    for path in (first, last):
        whole = path.read_bytes()
        for damaged in (None, b"", whole[:-20]):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            before = [p.read_bytes() for p in sorted(folder.iterdir())]
            lost = "real has lost episodes: . of 4 are whole, 00000..episode is not; copy"
            with pytest.raises(ValueError, match=lost):
                train(mbpo, out=out, resume=True)
            assert [p.read_bytes() for p in sorted(folder.iterdir())] == before
        path.write_bytes(whole)
    train(mbpo, out=out, resume=True)


@pytest.mark.parametrize("wrong, message", {
    "horizon=2": "horizon and segment are 2, 6; expected 3", "segment=80": "and at most 58",
    "tau=2": "0 to 1", "agent_lr=-1": "agent_lr is -1.0; expected 0 or", "hidden=0": "expected at least 1",
    "device=gpuu": "device is 'gpuu'; expected cpu, cuda", "task=pull": "task is 'pull'; only PushWorld's",
    "out=a.jsonl": "expected NAME.pt",
}.items())  # fmt: skip
def test_settings_out_of_range_are_refused_at_once(wrong, message, tmp_path):
    key, value = wrong.split("=")
    changes = {"out": tmp_path / "a.pt", key: value}
    with pytest.raises(ValueError, match=message):
        mbpo.main(settings(**changes))


@pytest.mark.slow
def test_a_killed_run_keeps_all_episodes_that_it_finished(trained, tmp_path):
    out = tmp_path / "a.pt"
    run = flags(**SMALL, init_from=trained.gpt, out=out, steps=3000)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "mbpo.py", *run], cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
    began = time.time()
    while not out.with_suffix(".jsonl").is_file() or len(lines(out.with_suffix(".jsonl"), "return")) < 3:
        assert child.poll() is None and time.time() < began + 300
        time.sleep(0.05)
    time.sleep(random.random())
    child.send_signal(signal.SIGKILL)
    child.wait()
    logged = len(lines(out.with_suffix(".jsonl"), "return"))
    real = opened(tmp_path / "a" / "real", 32, 2)
    finished, rows = len(real) - 1, [real.read(e, 0, 61).tobytes() for e in range(len(real))]
    assert logged <= finished <= logged + 1  # it may have been killed between the two
    train(mbpo, out=out, resume=True, steps=60 * (finished + 2))
    real = opened(tmp_path / "a" / "real", 32, 2)
    assert len(real) == 1 + finished + 2
    assert [real.read(e, 0, 61).tobytes() for e in range(1 + finished)] == rows
    counts = load_checkpoint(out)["counts"]
    assert counts["agent"] == 60 * (finished + 2) - 60  # it has caught up with the schedule


def test_a_checkpoint_opens_as_a_world_model_or_says_that_it_holds_none(trained, tmp_path):
    learn(tmp_path / "agent.pt", init_from=trained.gpt, steps=60)
    assert TRAINED.keys() <= load_checkpoint(tmp_path / "agent.pt")["train_config"].keys()
    assert WorldModel.load(tmp_path / "agent.pt", "cpu").trained["data"] == "push"
    show = dict(n=1, horizon=2, device="cpu", out=tmp_path / "pictures")
    sample.main(configure(sample.CONFIG, "", flags(ckpt=tmp_path / "agent.pt", **show)))
    assert (tmp_path / "pictures/sheet.png").is_file()
    learn(tmp_path / "alone.pt", imagine=False, steps=60)
    with pytest.raises(ValueError, match="alone.pt holds no gpt, tokenizer; expected one with"):
        sample.main(configure(sample.CONFIG, "", flags(ckpt=tmp_path / "alone.pt", **show)))


def test_runs_are_reported_and_drawn(tmp_path, capsys):
    for name, successes in {"imagined-0": (0.2, 0.6, 0.9), "imagined-1": (0.5, 0.4, 0.7)}.items():
        text = [json.dumps(dict(step=100 * (i + 1), eval_success=s)) for i, s in enumerate(successes)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(text) + "\n")
    report = lambda **how: mbpo_report.main(configure(mbpo_report.CONFIG, "", flags(**how)))  # noqa: E731
    report(runs=tmp_path, out=tmp_path / "table")
    numbers = json.loads((tmp_path / "table.json").read_text())["imagined"]
    assert numbers["success"]["0"] == [[100, 0.2], [200, 0.6], [300, 0.9]]
    assert numbers["steps_to_50"] == {"0": 200, "1": 100} and numbers["steps_to_80"] == {"0": 300, "1": None}
    assert numbers["final"]["mean"] == pytest.approx(0.8) and "never" in capsys.readouterr().out
    assert "ratio_to_80" not in json.loads((tmp_path / "table.json").read_text())
    with pytest.raises(ValueError, match="nowhere has no evaluated run"):
        report(runs=tmp_path / "nowhere", out=tmp_path / "other")


def test_an_evaluation_that_is_made_again_is_not_logged_twice(trained, tmp_path):
    learn(tmp_path / "a.pt", init_from=trained.gpt)
    path = tmp_path / "a.jsonl"
    text = path.read_text()
    again = json.dumps(dict(step=180, eval_success=0.5))  # as after a kill between logging and saving
    start_log(path, 180, 120)
    assert [line["step"] for line in lines(path, "eval_success")] == [120]
    path.write_text(text + again + "\n")
    start_log(path, 180, 180)
    assert path.read_text() == text + again + "\n"


def test_a_gradient_that_is_not_finite_ends_the_run(trained, tmp_path, monkeypatch):
    loss_of = GPT.loss
    monkeypatch.setattr(GPT, "loss", lambda self, *a: (loss_of(self, *a)[0] * torch.nan, {}))
    with pytest.raises(FloatingPointError, match="gradient of the world model is not finite; lower --mod"):
        learn(tmp_path / "a.pt", init_from=trained.gpt)


def test_the_ratio_of_real_steps_counts_the_steps_that_all_have_taken(tmp_path):
    curves = {"mbpo": [(0.0, 0.8), (0.8, 0.2)] * 2, "drq": [(0.0, 0.5, 0.9), (0.0, 0.8, 0.9)] * 2}
    for name, runs in curves.items():
        for seed, successes in enumerate(runs):
            points = [json.dumps(dict(step=100 * (i + 1), eval_success=s)) for i, s in enumerate(successes)]
            (tmp_path / f"{name}-{seed}.jsonl").write_text("\n".join(points) + "\n")
    out = tmp_path / "table"
    mbpo_report.main(configure(mbpo_report.CONFIG, "", flags(runs=tmp_path, out=out)))
    numbers = json.loads((tmp_path / "table.json").read_text())
    ratio = numbers["ratio_to_80"]
    assert ratio["steps"] == 200  # of DrQ's runs, two of four get there later than mbpo's were made
    assert ratio["mean"] == pytest.approx(150 / 200)
    assert ratio["interval"] == pytest.approx([0.5, 1.0])
    assert numbers["drq"]["final"]["step"] == 300 and numbers["drq"]["same_budget"]["iqm"] == 0.65
    assert numbers["drq"]["steps_to_80"] == {"0": 300, "1": 200, "2": 300, "3": 200}


def test_the_queue_makes_all_runs_and_names_those_that_fail(tmp_path, monkeypatch):
    marks = [tmp_path / f"{i}.log" for i in range(4)]
    codes = ["print('done')", "raise SystemExit(3)", "print('done')", "print('done')"]
    jobs = [([sys.executable, "-c", code], log) for code, log in zip(codes, marks, strict=True)]
    assert mbpo_seeds.work(jobs, 2) == [marks[1]]
    assert [log.read_text() for log in marks] == ["done\n", "", "done\n", "done\n"]
    assert all(settings.keys() <= mbpo.CONFIG.keys() for settings in mbpo_seeds.VARIANTS.values())
    (tmp_path / "drq-5.pt").touch()
    cfg = configure(mbpo_seeds.CONFIG, "", flags(folder=tmp_path, steps=7))
    line, log = mbpo_seeds.command(cfg, "drq", 5)
    assert {"--resume=True", "--imagine=False", "--seed=5", "--steps=7"} <= set(line)
    assert log == tmp_path / "drq-5.log"
    with pytest.raises(ValueError, match="variants has fast; expected some of mbpo, drq"):
        mbpo_seeds.main(configure(mbpo_seeds.CONFIG, "", flags(folder=tmp_path, variants="fast")))


@pytest.mark.slow
def test_policies_are_ranked_in_imagination_and_held_against_the_world(trained, tmp_path):
    runs = tmp_path / "runs"
    learn(runs / "mbpo-0.pt", init_from=trained.gpt, keep_agents=True, eval_every=60)
    out = tmp_path / "policies.json"
    how = dict(ckpt=trained.gpt, runs=runs, episodes=2, device="cpu", out=out)
    policies.main(configure(policies.CONFIG, "", flags(**how)))
    numbers = json.loads(out.read_text())
    assert list(numbers["agents"]) == ["mbpo-0/120", "mbpo-0/180", "mbpo-0/60"]
    assert set(numbers["spearman"]) == set(numbers["pearson"]) == {"success", "return"}
    assert out.with_suffix(".png").is_file()
    with pytest.raises(ValueError, match="nowhere has 0 agents; python -m experiments.mbpo_seeds trains"):
        policies.main(configure(policies.CONFIG, "", flags(**how | dict(runs=tmp_path / "nowhere"))))


def test_agreement_of_rankings():
    assert policies.ranks(np.array([3.0, 1, 3, 7])).tolist() == [2.5, 1, 2.5, 4]
    real = np.array([0.1, 0.5, 0.9])
    numbers = policies.agreement(real, real**2)
    assert numbers["spearman"] == pytest.approx(1) and numbers["rank_violation"] == 0
    assert numbers["pearson"] == pytest.approx(np.corrcoef(real, real**2)[0, 1])
    assert policies.pearson(real, np.ones(3)) == 0
    swapped = policies.rank_violation(real, np.array([0.5, 0.1, 0.9]))
    assert swapped == pytest.approx((0.4 + 0.4 + 0) / 3)


# ---- environments ----


def test_a_scene_stays_but_for_small_moves():
    world = PushWorld(2, 32, seed=3, scene=5)
    first, at = world.colours.copy(), world.blocks.copy()
    world.reset()
    assert np.array_equal(world.colours, first) and np.array_equal(first[0], first[1])
    assert not np.allclose(world.blocks, at) and np.allclose(world.blocks, at, atol=2 * world.spread + 1e-9)


def test_episodes_are_played_and_demonstrations_are_successes():
    env = make_environment("push", 3, seed=1, size=32)
    played = list(play(env, 4, lambda frames: np.zeros((3, 2))))
    assert len(played) == 4 and played[0]["frames_u8"].shape == (61, 32, 32, 3)
    assert played[0]["actions"].shape == (60, 2) and played[0]["rewards"].shape == (61,)
    shown = list(demonstrations(make_environment("push", 1, seed=1, size=32), 2))
    assert len(shown) == 2 and all(e["success"] for e in shown)


@pytest.mark.slow
def test_meta_world_is_played_as_in_the_paper():
    try:
        env = make_environment("plate-slide", seed=3)
    except ImportError as error:  # a package, or EGL
        pytest.skip(str(error))
    env.length = 30
    try:
        first = env.reset()
        assert first.shape == (1, 64, 64, 3) and first.std() > 10
        episodes = list(play(env, 2, lambda frames: env.expert()))
        assert episodes[0]["success"] and episodes[0]["rewards"].max() > 20 >= 10 > episodes[0]["rewards"][1]
        env.episode[:] = 0  # the second episode, which was the first of the two, again
        again = next(play(env, 1, lambda frames: env.expert()))
        assert np.array_equal(again["rewards"], episodes[0]["rewards"])
        assert not np.array_equal(episodes[1]["frames_u8"][0], episodes[0]["frames_u8"][0])
    finally:
        env.close()
    with pytest.raises(ValueError, match="'fly'; expected push .PushWorld., push_red.* or, of Meta-World, "):
        make_environment("fly")
