"""plan.py: planners, futures in chunks, scores, tasks, episodes; the worlds that it plans in."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, flags

import plan
import prepare
from common import configure, load_checkpoint, save_checkpoint
from data import Episodes
from envs import PushWorld, make_environment
from envs.push import push_segments
from envs.vp2 import make_task
from plan import Score, evolution, icem, imagine_candidates, mppi, shifted
from sample import WorldModel


def settings(**changes):
    how = dict(preset="vp2", task="push_anywhere", lead=7, device="cpu", workers=1)
    return configure(plan.CONFIG, "", flags(**{**how, **changes}), plan.PRESETS)


def run_plan(out, **changes):
    """The numbers of plan.py."""
    plan.main(settings(out=out, **changes))
    return json.loads(out.read_text())


def episodes_of(out):
    return json.loads(out.with_name(f"{out.stem}-episodes.json").read_text())


# ---- planners ----


class Near:
    """A score: how near candidates are to a target; it remembers what it was asked."""

    def __init__(self, target, scale=100):
        self.target = target
        self.scale = scale
        self.candidates = []
        self.scores = []

    def __call__(self, candidates):
        self.candidates.append(candidates)
        self.scores.append(-self.scale * np.square(candidates - self.target).sum((1, 2)))
        return self.scores[-1]


def test_mppi_weighs_candidates_by_their_scores_around_the_shifted_plan():
    cfg, rng, std = settings(gamma=0.05), np.random.default_rng(0), np.array([0.5, 0.0])
    near = Near(0.4)
    result, memory = mppi(near, {}, (50, 4, 2), std, cfg, rng)
    [candidates], [scores] = near.candidates, near.scores
    assert candidates.shape == (50, 4, 2) and abs(candidates).max() <= 1 and (candidates[..., 1] == 0).all()
    weights = np.exp(0.05 * (scores - scores.max()))
    weights /= weights.sum()
    assert result == pytest.approx((weights[:, None, None] * candidates).sum(0))
    still = settings(gamma=0.0)
    plain, _ = mppi(near, memory, (5000, 4, 2), std * 0.1, still, rng)
    assert plain == pytest.approx(shifted(memory["mean"], 4), abs=0.01)  # the mean of what is drawn around it
    assert np.array_equal(shifted(memory["mean"], 4)[-1], memory["mean"][-1])


def test_noise_of_mppi_keeps_half_of_itself_from_step_to_step():
    cfg, rng = settings(), np.random.default_rng(0)
    flat = Near(0.0, scale=0)
    mppi(flat, {}, (20_000, 8, 1), np.array([0.1]), cfg, rng)
    [candidates] = flat.candidates
    deviations = candidates.std(0)[:, 0]
    assert deviations[0] == pytest.approx(0.1, rel=0.03)
    assert deviations[-1] == pytest.approx(0.1 * 3**-0.5, rel=0.03)  # 0.25 / (1 - 0.25) of the variance
    assert np.corrcoef(candidates[:, 6, 0], candidates[:, 7, 0])[0, 1] == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("planner", plan.PLANNERS.values())
def test_planners_come_nearer_from_decision_to_decision(planner):
    cfg, rng, memory, errors = settings(gamma=1.0), np.random.default_rng(0), {}, []
    target = np.array([0.6, -0.3])
    for _ in range(6):
        result, memory = planner(Near(target), memory, (100, 5, 2), np.array([0.5, 0.5]), cfg, rng)
        errors.append(np.square(result - target).mean())
    assert errors[-1] < 0.6 * errors[0] and errors[-1] < 0.05  # mppi never narrows its noise


def test_icem_executes_the_best_candidate_and_keeps_elites():
    cfg, rng = settings(), np.random.default_rng(0)
    std = np.full(2, 0.5)
    near = Near(0.2)
    result, memory = icem(near, {}, (100, 5, 2), std, cfg, rng)
    candidates, scores = np.concatenate(near.candidates), np.concatenate(near.scores)
    assert np.array_equal(result, candidates[scores.argmax()])
    assert len(candidates) == pytest.approx(100, abs=2) and memory["elites"].shape == (3, 5, 2)
    near = Near(0.2)
    plan_of_all, later = icem(near, memory, (100, 5, 2), std, settings(execute_mean=True), rng)
    assert np.array_equal(near.candidates[0][:3], shifted(memory["elites"], 5))
    assert np.array_equal(plan_of_all, later["mean"])


def test_evolution_goes_on_from_its_elites_with_less_and_less_noise():
    cfg = settings(iterations=3, elites=6, shrink=0.5)
    rng = np.random.default_rng(0)
    std = np.full(2, 0.1)
    near = Near(0.1)
    result, memory = evolution(near, {}, (90, 5, 2), std, cfg, rng)
    candidates, scores = np.concatenate(near.candidates), np.concatenate(near.scores)
    assert np.array_equal(result, candidates[scores.argmax()])
    assert [len(part) for part in near.candidates] == [30, 30, 30] and memory["elites"].shape == (6, 5, 2)
    first_best = near.candidates[0][np.argsort(-near.scores[0])[:6]]
    from_nearest = np.abs(near.candidates[1][:, None] - first_best[None]).max((2, 3)).min(1)
    assert from_nearest.max() < 5 * 0.05  # deviations of the second noise
    near = Near(0.1)
    evolution(near, memory, (90, 5, 2), std, cfg, rng)
    assert np.array_equal(near.candidates[0][:6], shifted(memory["elites"], 5))


def test_coloured_noise_is_smooth_and_of_deviation_1():
    white, smooth = (plan.coloured((500, 16, 2), c, np.random.default_rng(0)) for c in (0.0, 3.0))
    steps = [np.square(np.diff(x, axis=1)).mean() for x in (white, smooth)]
    assert white.std() == pytest.approx(1) == pytest.approx(smooth.std()) and steps[1] < 0.3 * steps[0]


# ---- futures ----


@pytest.fixture(scope="module")
def segments():
    return push_segments(2, 12, seed=7, size=32)


def test_candidates_in_chunks_are_futures_of_one_context_read_once(trained, segments, monkeypatch):
    world = WorldModel.load(trained.gpt, "cpu", temperature=0.0)
    actions, context = np.random.default_rng(0).uniform(-1, 1, (7, 4, 2)), segments["frames"][0, :2]
    world.reset(context[None].expand(7, -1, -1, -1, -1))
    frames, rewards, _ = world.rollout(actions, 4)
    read, prefill = [], world.gpt.prefill
    monkeypatch.setattr(world.gpt, "prefill", lambda *a, **k: read.append(1) or prefill(*a, **k))
    for batch, reads in ((0, 1), (7, 1), (9, 1), (3, 2), (2, 2), (1, 1)):  # the last chunk may be smaller
        read.clear()
        parts = list(imagine_candidates(world, context, actions, batch))
        assert max(len(f) for f, _ in parts) == min(batch or 7, 7) and len(read) == reads
        torch.testing.assert_close(torch.cat([f for f, _ in parts]), frames, atol=1e-5, rtol=0)
        torch.testing.assert_close(torch.cat([r for _, r in parts]), rewards, atol=1e-5, rtol=0)
    long = np.zeros((4, 9, 2))  # beyond the trained segment: each chunk reads the context again
    parts = imagine_candidates(world, context, long, 2)
    assert torch.cat([f for f, _ in parts]).shape == (4, 9, 3, 32, 32)


@pytest.mark.parametrize("planner", plan.PLANNERS)
def test_chunks_of_any_size_give_the_same_scores_and_the_same_best_future(trained, planner):
    small = dict(ckpt=trained.gpt, models=("world_model",), temperature=0.0, planner=planner, elites=2)
    found = []
    for batch in (0, 1, 3, 4):
        cfg = settings(**small, candidates=10, horizon=3, batch=batch)
        bench = plan.open_bench(json.dumps(vars(cfg)))
        task = make_task(bench.env, 0, cfg.lead)
        task.goal = torch.from_numpy(task.goal_u8.copy()).movedim(-1, 0) / 255
        decision = plan.Decision(bench, "world_model", task, [bench.env.reset()[0]] * 2)
        rng = np.random.default_rng(0)
        result, _ = plan.PLANNERS[planner](decision.score, {}, (10, 3, 2), bench.std, cfg, rng)
        candidates = np.concatenate(decision.candidates)
        found.append((result, candidates, decision.scores, decision.best_future.numpy()))
        assert len(decision.scores) == len(candidates)
    for other in found[1:]:
        for x, y in zip(found[0], other, strict=True):
            assert x == pytest.approx(y, rel=1e-4, abs=1e-4)


def test_a_rewound_model_imagines_from_the_same_context(trained, segments):
    world = WorldModel.load(trained.gpt, "cpu", temperature=0.0)
    with pytest.raises(ValueError, match="nothing to rewind to"):
        world.rewind()
    world.reset(segments["frames"][:, :2], 2, horizon=3)
    assert world.cache.sizes[3] == 3 * 17 + 1  # no more than is wanted
    actions = torch.rand(4, 3, 2)
    first = world.rollout(actions, 3)
    world.rewind()
    again = world.rollout(actions, 3)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    world.rollout(actions, 3)  # takes a new context
    with pytest.raises(ValueError, match="nothing to rewind to"):
        world.rewind()


def test_the_newest_frames_alone_can_be_decoded(trained, segments):
    world = WorldModel.load(trained.gpt, "cpu", temperature=0.0)
    actions = torch.rand(4, 9, 2)  # past the end of a context

    def imagine(newest):
        world.reset(segments["frames"][:, :2], 2)
        frames, rewards, _ = world.rollout(actions, 9, newest)
        return frames, rewards, world.recent

    all_frames, all_rewards, recent = imagine(0)
    for newest in (1, 3, 9):
        frames, rewards, others = imagine(newest)
        torch.testing.assert_close(frames, all_frames[:, -newest:])
        torch.testing.assert_close(rewards, all_rewards)
        torch.testing.assert_close(others, recent)


# ---- scores ----


class Brightness(torch.nn.Module):
    def forward(self, frames):
        return frames.mean((1, 2, 3))[:, None]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    path = tmp_path_factory.mktemp("classifier") / "task.pt"
    torch.jit.script(Brightness()).save(str(path))
    return path


def test_scores_are_weighted_sums_over_frames(classifier):
    frames, goal = torch.full((2, 3, 3, 8, 8), 0.5), torch.zeros(3, 8, 8)
    frames[1] = 0.0
    rewards = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    squares = 3 * 3 * 8 * 8 * 0.25
    cpu = torch.device("cpu")
    assert Score(settings(), cpu)(frames, rewards, goal).tolist() == [-squares, 0.0]
    both = Score(settings(pixel=0.5, reward=2.0), cpu)(frames, rewards, goal)
    assert both.tolist() == [-0.5 * squares + 2 * 6, 0.0]
    late = Score(settings(reward=2.0, last=1), cpu)(frames, rewards, goal)
    assert late.tolist() == [-squares / 3 + 2 * 3, 0.0]
    frames = frames.repeat_interleave(2, -1).repeat_interleave(2, -2)  # 16 x 16
    goal = torch.zeros(3, 16, 16)
    blur = Score(settings(pixel=0.0, blur=1.0), cpu)(frames, None, goal)
    assert blur.tolist() == [-2 * 4 * squares, 0.0]  # each of two sizes counts as much as pixels do
    logits = Score(settings(pixel=0.0, classifier=classifier), cpu)(frames, None, goal)
    assert logits.tolist() == pytest.approx([10 * 3 * 0.5, 0.0])
    features = Score(settings(pixel=0.0, features=classifier, features_weight=2.0), cpu)(frames, None, goal)
    assert features.tolist() == pytest.approx([-2 * 3 * 0.25, 0.0])
    with pytest.raises(ValueError, match="the model predicts no rewards; pass --reward 0"):
        Score(settings(reward=1.0), cpu)(frames, None, goal)


def test_latents_of_the_goal_are_nearest_to_themselves(trained, segments):
    world = WorldModel.load(trained.gpt, "cpu")
    frames = segments["frames"][0, None, :4].transpose(0, 1)  # four futures of a frame each
    scores = Score(settings(pixel=0.0, latent=1.0), world.device, world.tokenizer)(frames, None, frames[2, 0])
    assert scores.argmax() == 2 and scores[2].item() == pytest.approx(0, abs=1e-3)


def test_files_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*none.pt; expected VP2"):
        Score(settings(classifier=tmp_path / "none.pt"), torch.device("cpu"))
    with pytest.raises(FileNotFoundError, match="no file .*none.pt; expected TorchScript: .* features"):
        Score(settings(features=tmp_path / "none.pt"), torch.device("cpu"))
    (tmp_path / "bad.pt").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="bad.pt is no TorchScript; expected VP2's"):
        Score(settings(classifier=tmp_path / "bad.pt"), torch.device("cpu"))
    torch.jit.script(torch.nn.Identity()).save(str(tmp_path / "same.pt"))
    score = Score(settings(classifier=tmp_path / "same.pt"), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"same.pt returns \(6, 3, 8, 8\); expected VP2's"):
        score(torch.zeros(2, 3, 3, 8, 8), None, torch.zeros(3, 8, 8))


# ---- environments that can be taken back ----


def same_futures(env):
    """foresee tells what will be, and moves nothing; restore brings everything back."""
    env.reset()
    start, positions = env.state(), env.positions()
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 4, env.action_dim))
    before = env.render()
    frames_u8, rewards, distances = env.foresee(actions, positions)
    assert frames_u8.shape == (3, 4, 64, 64, 3) and rewards.shape == distances.shape == (3, 4)
    assert np.array_equal(env.render(), before)
    env.reset()  # another episode
    env.restore(start)
    assert np.array_equal(env.render(), before)
    for k in range(4):
        frame, reward, *_ = env.step(actions[2, k : k + 1])
        assert np.array_equal(frame[0], frames_u8[2, k]) and reward[0] == pytest.approx(rewards[2, k])
        assert env.distance(positions)[0] == pytest.approx(distances[2, k])


def test_push_world_foresees_and_is_taken_back():
    env = PushWorld(1, 64, seed=5)
    same_futures(env)
    positions = env.positions()
    assert env.distance(positions) == [0.0]
    positions[0, 1, 0] += 0.1
    assert env.distance(positions) == pytest.approx([0.1])  # of the farther block


def test_tasks_are_successes_of_the_script_from_some_decisions_before():
    cfg, env = settings(), PushWorld(1, 64, seed=5, anywhere=True)
    task, other = (make_task(env, i, cfg.lead) for i in (0, 1))
    assert not np.array_equal(task.goal_u8, other.goal_u8)
    env.restore(task.start)
    assert env.distance(task.positions)[0] > 3 * env.tolerance
    for _ in range(cfg.lead):
        frame, *_ = env.step(env.expert())
    assert np.array_equal(frame[0], task.goal_u8) and env.distance(task.positions)[0] < 1e-9
    with pytest.raises(ValueError, match="hardly ever succeeds from 100 decisions"):
        make_task(env, 0, lead=100)


@pytest.mark.slow
def test_an_error_in_another_process_is_raised_here(tmp_path):
    with pytest.raises(ValueError, match="hardly ever succeeds from 100 decisions"):
        run_plan(tmp_path / "far.json", models=("random",), lead=100, episodes=2, seeds=1, workers=2)


@pytest.fixture(params=["push_red", "robosuite_push"])
def robot(request):
    try:
        env = make_environment(request.param, seed=3)
    except ImportError as error:  # a package, or EGL
        pytest.skip(str(error))
    yield env
    env.close()


@pytest.mark.slow
def test_robots_foresee_and_are_taken_back(robot):
    first = robot.reset()
    assert first.shape == (1, 64, 64, 3) and first.std() > 10
    same_futures(robot)
    robot.episode[:] = -1
    assert np.array_equal(robot.reset(), first)  # an episode depends on its number alone
    with pytest.raises(ValueError, match="actions are .* expected numbers"):
        robot.step(np.zeros((1, 2)))


def test_robots_have_scripts_that_succeed(robot):
    robot.length = 15
    task = make_task(robot, 0, lead=6)
    robot.restore(task.start)
    assert robot.distance(task.positions)[0] >= robot.tolerance
    assert robot.episode[0] == 0  # at its first attempt


def test_noisy_and_random_episodes_of_a_script_are_collected(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "make_environment", lambda task, seed: PushWorld(1, 32, seed, length=12))
    how = dict(tasks=("push",), episodes=4, seed=1, noise=0.1, val_every=4)
    prepare.collect_script(tmp_path / "mixed", **how, random_share=0.5)
    prepare.collect_script(tmp_path / "script", **how, random_share=0.0)
    mixed, script = (Episodes(tmp_path / name, "all") for name in ("mixed", "script"))
    assert mixed.n_episodes == 4 and set(mixed.lengths) == {13} and mixed.has_reward
    assert np.array_equal(mixed.actions[:26], script.actions[:26])  # two by the script, then two at random
    assert np.array_equal(mixed.read(3, 0, 1), script.read(3, 0, 1))
    assert not np.array_equal(mixed.actions[26:], script.actions[26:])


# ---- episodes ----


@pytest.mark.slow
def test_the_simulator_as_model_solves_push_world_and_random_actions_do_not(tmp_path):
    how = dict(models=("random", "oracle", "script"), episodes=4, seeds=1, gifs=1, preset="push")
    numbers = run_plan(tmp_path / "push.json", **how)
    assert numbers["oracle"]["mean"] >= 0.75 and numbers["script"]["mean"] == 1
    assert numbers["random"]["mean"] <= 0.25 and numbers["share_of_oracle"]["oracle"] == 1
    assert {p.name for p in (tmp_path / "push").iterdir()} == {f"{m}-0.gif" for m in how["models"]}


SMALL = dict(episodes=2, seeds=2, candidates=4, horizon=3, steps=3, gifs=1)


def test_an_interrupted_run_continues_and_says_why_episodes_fail(trained, tmp_path, capsys):
    out, models = tmp_path / "push.json", ("random", "world_model")
    ckpt = shutil.copy(trained.gpt, tmp_path / "gpt.pt")
    numbers = run_plan(out, ckpt=ckpt, models=models, **SMALL)
    log = tmp_path / "push-episodes.json"
    saved = episodes_of(out)
    assert len(saved["records"]) == 2 * 2 * 2 and len(numbers["world_model"]["seeds"]) == 2
    failed = [record for record in saved["records"] if "shortfall" in record]
    assert sum(numbers["world_model"]["failures"].values()) == len(failed) > 0
    assert numbers["world_model"]["min"] <= numbers["world_model"]["mean"] <= numbers["world_model"]["max"]
    marked = [dict(record, mark=1) for record in saved["records"][:5]]  # played, not to be played again
    log.write_text(json.dumps(dict(saved, records=marked)))
    again = run_plan(out, ckpt=ckpt, models=models, **SMALL)
    assert again["world_model"]["least_distance"] == numbers["world_model"]["least_distance"]
    assert len(episodes_of(out)["records"]) == 8 and episodes_of(out)["records"][:5] == marked
    assert "never sampled" in capsys.readouterr().out
    fewer = run_plan(out, ckpt=ckpt, models=("random",), **{**SMALL, "seeds": 1})
    assert fewer["random"]["seeds"] == numbers["random"]["seeds"][:1] and "world_model" not in fewer
    assert len(episodes_of(out)["records"]) == 8  # of the others too
    with pytest.raises(ValueError, match="push.json exists: --overwrite true replaces it"):
        run_plan(out, ckpt=ckpt, models=models, gamma=1.0, **SMALL)
    state = load_checkpoint(ckpt)
    state["gpt"]["weights"]["reward.bias"] += 1
    save_checkpoint(ckpt, **state)
    plan.open_bench.cache_clear()
    with pytest.raises(ValueError, match="push-episodes.json is of another model at .*gpt.pt; --overwrite"):
        run_plan(out, ckpt=ckpt, models=models, **SMALL)
    shutil.copy(trained.gpt, ckpt)
    plan.open_bench.cache_clear()
    log.write_text("{torn")
    with pytest.raises(ValueError, match="push.json exists: --overwrite true replaces it"):
        run_plan(out, ckpt=ckpt, models=models, **SMALL)
    out.unlink()
    with pytest.raises(ValueError, match="push-episodes.json is there, of something else; pass another"):
        run_plan(out, ckpt=ckpt, models=models, **SMALL)
    other = run_plan(out, ckpt=ckpt, models=("random",), overwrite=True, **SMALL)
    assert other["random"]["seeds"] == numbers["random"]["seeds"] and len(episodes_of(out)["records"]) == 4


def test_a_plan_can_be_executed_for_several_decisions(trained, tmp_path, monkeypatch):
    plans = []
    horizons = []

    def steady(score, memory, shape, std, cfg, rng):
        plans.append(memory)
        horizons.append(shape[1])
        score(np.zeros(shape))
        return np.full(shape[1:], 0.1 * len(plans)), dict(mean=1)

    monkeypatch.setitem(plan.PLANNERS, "mppi", steady)
    how = dict(ckpt=trained.gpt, models=("world_model",), episodes=1, seeds=1)
    how.update(candidates=2, horizon=3, steps=6)
    run_plan(tmp_path / "a.json", replan=3, gifs=1, **how)
    assert plans == [{}, {}]  # of five decisions after the first, which is no action
    plan.open_bench.cache_clear()
    run_plan(tmp_path / "b.json", replan=1, **how)
    assert len(plans) == 2 + 5 and plans[-1] == dict(mean=1)
    plan.open_bench.cache_clear()
    run_plan(tmp_path / "d.json", replan=1, countdown=True, **how)
    assert horizons[7:] == [3, 2, 1, 3, 2] and [not memory for memory in plans[7:]] == [1, 0, 0, 1, 0]
    plan.open_bench.cache_clear()
    nothing = run_plan(tmp_path / "c.json", **{**how, "models": ("nothing",)})
    assert nothing["nothing"]["mean"] == 0


@pytest.mark.slow
def test_a_stopped_run_keeps_what_was_played_and_leaves_no_process(tmp_path):
    out = tmp_path / "push.json"
    log = tmp_path / "push-episodes.json"
    command = [sys.executable, ROOT / "plan.py", "--models=oracle", "--workers=2", f"--out={out}"]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.time() + 100
    while time.time() < deadline and not (log.is_file() and len(episodes_of(out)["records"]) > 1):
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    assert "keeps the episodes played; the same command continues" in run.communicate(timeout=30)[1]
    assert len(episodes_of(out)["records"]) > 1
    with pytest.raises(ProcessLookupError):
        for _ in range(100):  # multiprocessing's own function ends a little later
            os.killpg(run.pid, 0)
            time.sleep(0.1)


@pytest.mark.slow
def test_the_same_seed_plans_the_same_whatever_the_processes(trained, tmp_path):
    one, two = (
        run_plan(tmp_path / f"{w}.json", ckpt=trained.gpt, models=("world_model",), **SMALL, workers=w)
        for w in (1, 2)
    )
    assert one["world_model"]["least_distance"] == two["world_model"]["least_distance"]


def test_failures_are_told_apart(monkeypatch):
    cfg = settings(models=("oracle",), candidates=3, horizon=2, steps=3)
    bench = plan.open_bench(json.dumps(vars(cfg)))
    task = SimpleNamespace(goal=torch.zeros(3, 64, 64), positions=np.zeros((1, 2, 2)))
    shades = np.array([30, 10, 20], np.uint8)  # on the true frames the cost likes the second best
    frames_u8 = np.broadcast_to(shades[:, None, None, None, None], (3, 2, 64, 64, 3))
    distances = np.array([[0.9, 0.5], [0.3, 0.1], [0.0, 0.6]])
    monkeypatch.setattr(bench.env, "foresee", lambda *_: (frames_u8, np.zeros((3, 2)), distances))
    scores = np.array([3.0, 2.0, 1.0])
    decision = SimpleNamespace(state=bench.env.state(), candidates=[scores], scores=scores)
    shortfall = plan.diagnose(bench, [decision], task)
    want = {"never sampled": -bench.env.tolerance, "ranked low": 0.1, "imagined wrong": 0.4}
    assert shortfall == pytest.approx(want)
    assert plan.diagnose(bench, [decision, decision], task) == pytest.approx(want)  # means


def test_wrong_settings_are_refused_with_the_reason(trained, tmp_path):
    out = tmp_path / "push.json"
    for wrong, message in (
        (dict(models=("wm",)), "models is 'wm'; expected some of nothing, random"),
        (dict(planner="cem"), "planner is 'cem'; expected one of mppi, icem, evolution"),
        (dict(std=(0.5, 0.5, 0.5)), "std is .*; expected 2 numbers of 0 or more, one per action dimension"),
        (dict(std=(0.5, -0.5)), "std is .*; expected 2 numbers of 0 or more"),
        (dict(workers=-1), "--workers is -1; expected 0 or more"),
        (dict(batch=-1), "--batch is -1; expected 0 or more"),
        (dict(candidates=0), "--candidates is 0; expected at least 1"),
        (dict(beta=1.5), "--beta is 1.5; expected 0 to 1"),
        (dict(episodes=0), "--episodes is 0; expected at least 1"),
        (dict(ckpt=trained.free), "takes 0-D actions, push_anywhere 2-D; pass --ckpt"),
    ):
        with pytest.raises(ValueError, match=message):
            run_plan(out, **{**SMALL, "ckpt": trained.gpt, **wrong})
    assert not out.exists()
    with pytest.raises(SystemExit, match="--std a,b: expected a tuple, like 0.0"):
        settings(std=("a", "b"))
    with pytest.raises(ValueError, match="out is .*push; expected a .json file"):
        run_plan(tmp_path / "push", ckpt=trained.gpt, **SMALL)
