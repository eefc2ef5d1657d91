"""plan.py: planners, futures in batches, scores, VP2's interface and files, episodes; robots of data.py."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, flags

import data
import plan
from common import configure
from data import Episodes, PushWorld, make_environment, push_segments
from importers.hdf5 import import_vp2
from plan import Dreamer, Score, VP2Model, icem, make_task, mppi, shifted
from sample import WorldModel


def settings(**changes):
    how = dict(preset="vp2", task="push_anywhere", lead=7, device="cpu", workers=1)
    return configure(plan.CONFIG, "", flags(**{**how, **changes}), plan.PRESETS)


def run_plan(out, **changes):
    """The numbers of plan.py."""
    plan.main(settings(out=out, **changes))
    return json.loads(out.read_text())


# ---- planners ----


def near(target):
    return lambda candidates: -100 * np.square(candidates - target).sum((1, 2))


def test_mppi_weighs_candidates_by_their_scores_around_the_shifted_plan():
    cfg, rng, std = settings(gamma=0.05), np.random.default_rng(0), np.array([0.5, 0.0])
    result, memory, (candidates, scores, effective) = mppi(near(0.4), {}, (50, 4, 2), std, cfg, rng)
    assert candidates.shape == (50, 4, 2) and abs(candidates).max() <= 1 and (candidates[..., 1] == 0).all()
    weights = np.exp(0.05 * (scores - scores.max()))
    weights /= weights.sum()
    assert effective == pytest.approx(1 / np.square(weights).sum())
    assert result == pytest.approx((weights[:, None, None] * candidates).sum(0))
    still = settings(gamma=0.0)
    plain, *_ = mppi(near(0.4), memory, (5000, 4, 2), std * 0.1, still, rng)
    assert plain == pytest.approx(shifted(memory["mean"]), abs=0.01)  # the mean of what is drawn around it
    assert np.array_equal(shifted(memory["mean"])[-1], memory["mean"][-1])


def test_noise_of_mppi_keeps_half_of_itself_from_step_to_step():
    flat = lambda candidates: np.zeros(len(candidates))  # noqa: E731
    cfg, rng = settings(), np.random.default_rng(0)
    candidates = mppi(flat, {}, (20_000, 8, 1), np.array([0.1]), cfg, rng)[2][0]
    deviations = candidates.std(0)[:, 0]
    assert deviations[0] == pytest.approx(0.1, rel=0.03)
    assert deviations[-1] == pytest.approx(0.1 * 3**-0.5, rel=0.03)  # 0.25 / (1 - 0.25) of the variance
    assert np.corrcoef(candidates[:, 6, 0], candidates[:, 7, 0])[0, 1] == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("planner", [mppi, icem])
def test_planners_come_nearer_from_decision_to_decision(planner):
    cfg, rng, memory, errors = settings(gamma=1.0), np.random.default_rng(0), {}, []
    target = np.array([0.6, -0.3])
    for _ in range(6):
        result, memory, told = planner(near(target), memory, (100, 5, 2), np.array([0.5, 0.5]), cfg, rng)
        errors.append(np.square(result - target).mean())
        assert len(told[0]) == len(told[1])
    assert errors[-1] < 0.6 * errors[0] and errors[-1] < 0.05  # mppi never narrows its noise


def test_icem_executes_the_best_candidate_and_keeps_elites():
    cfg, rng = settings(), np.random.default_rng(0)
    std = np.full(2, 0.5)
    result, memory, (candidates, scores, _) = icem(near(0.2), {}, (100, 5, 2), std, cfg, rng)
    assert np.array_equal(result, candidates[scores.argmax()])
    assert len(candidates) == pytest.approx(100, abs=2) and memory["elites"].shape == (3, 5, 2)
    mean = settings(execute="mean")
    plan_of_all, later, (candidates, *_) = icem(near(0.2), memory, (100, 5, 2), std, mean, rng)
    assert np.array_equal(candidates[:3], shifted(memory["elites"]))
    assert np.array_equal(plan_of_all, later["mean"])


def test_coloured_noise_is_smooth_and_of_deviation_1():
    white, smooth = (plan.coloured((500, 16, 2), c, np.random.default_rng(0)) for c in (0.0, 3.0))
    steps = [np.square(np.diff(x, axis=1)).mean() for x in (white, smooth)]
    assert white.std() == pytest.approx(1) == pytest.approx(smooth.std()) and steps[1] < 0.3 * steps[0]


# ---- futures ----


@pytest.fixture(scope="module")
def segments():
    return push_segments(2, 12, seed=7, size=32)


def test_candidates_in_batches_are_futures_of_one_context_read_once(trained, segments, monkeypatch):
    world = WorldModel.load(trained.gpt, "cpu", temperature=0.0)
    actions, context = np.random.default_rng(0).uniform(-1, 1, (7, 4, 2)), segments["frames"][0, :2]
    world.reset(context[None].expand(7, -1, -1, -1, -1))
    frames, rewards, _ = world.rollout(actions, 4)
    read, prefill = [], world.gpt.prefill
    monkeypatch.setattr(world.gpt, "prefill", lambda *a, **k: read.append(1) or prefill(*a, **k))
    for at_once, reads in ((7, 1), (3, 2), (2, 2)):  # the last batch may be smaller
        dream = Dreamer(world)
        dream.fits = at_once
        read.clear()
        parts = list(dream(context, actions))
        assert max(len(f) for f, _ in parts) == at_once and len(read) == reads
        torch.testing.assert_close(torch.cat([f for f, _ in parts]), frames, atol=1e-5, rtol=0)
        torch.testing.assert_close(torch.cat([r for _, r in parts]), rewards, atol=1e-5, rtol=0)
    long = np.zeros((3, 9, 2))  # beyond the trained segment
    assert torch.cat([f for f, _ in dream(context, long)]).shape == (3, 9, 3, 32, 32)


def test_batches_are_cut_to_fit_memory(trained, segments, monkeypatch):
    world = WorldModel.load(trained.gpt, "cpu")
    dream, actions = Dreamer(world), np.zeros((9, 4, 2))
    monkeypatch.setattr(plan, "free_bytes", lambda device: 8.1 * dream.branch_bytes(4))
    sizes, reset = [], dream.world.reset

    def spy(frames, n, horizon):
        sizes.append(n)
        if n > 2:
            raise torch.OutOfMemoryError("out")
        reset(frames, n, horizon)

    monkeypatch.setattr(dream.world, "reset", spy)
    assert sum(len(f) for f, _ in dream(segments["frames"][0, :2], actions)) == 9
    assert sizes[:2] == [4, 2] and dream.fits == 2  # half of what is free; then half of that
    assert plan.free_bytes(torch.device("cpu")) > 0


def test_a_rewound_model_imagines_from_the_same_context(trained, segments):
    world = WorldModel.load(trained.gpt, "cpu", temperature=0.0)
    with pytest.raises(ValueError, match="nothing to rewind to"):
        world.rewind()
    world.reset(segments["frames"][:, :2], 2, horizon=3)
    assert world.cache.own.shape[-2] == 3 * 17 + 1  # no more than is wanted
    actions = torch.rand(4, 3, 2)
    first = world.rollout(actions, 3)
    world.rewind()
    again = world.rollout(actions, 3)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    world.rollout(actions, 3)  # takes a new context
    with pytest.raises(ValueError, match="nothing to rewind to"):
        world.rewind()


def test_vp2s_script_can_drive_the_world_model(trained, segments):
    model = VP2Model(trained.gpt, "cpu", temperature=0.0)
    assert model.num_context == 2 and model.base_prediction_modality == "rgb"
    video = segments["frames"][:1, :2].movedim(2, -1).numpy().repeat(5, 0)
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 11, 2)).astype(np.float32)
    rgb = model(dict(video=video, actions=actions, state_obs=None))["rgb"]
    assert rgb.shape == (5, 11, 32, 32, 3) and rgb.min() >= 0 and rgb.max() <= 1
    assert np.array_equal(rgb[:, 0], video[:, 1])
    world = WorldModel.load(trained.gpt, "cpu", temperature=0.0)
    world.reset(segments["frames"][:1, :2], 5)
    expected = world.rollout(actions[:, 1:], 10)[0].movedim(2, -1)
    assert rgb[:, 1:] == pytest.approx(expected.numpy(), abs=1e-5)
    mixed = np.concatenate([video[:1], 1 - video[:1], video[:1]])
    mixed_rgb = model(dict(video=mixed, actions=actions[[0, 1, 2]]))["rgb"]
    assert mixed_rgb[[0, 2]] == pytest.approx(rgb[[0, 2]], abs=1e-5)
    assert np.array_equal(mixed_rgb[1, 0], mixed[1, 1])
    with pytest.raises(ValueError, match="tokens have no gradient"):
        model(dict(video=video, actions=actions), grad_enabled=True)
    model.close()


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
    logits = Score(settings(pixel=0.0, classifier=classifier), cpu)(frames, None, goal)
    assert logits.tolist() == pytest.approx([10 * 3 * 0.5, 0.0])
    with pytest.raises(ValueError, match="the model predicts no rewards; pass --reward 0"):
        Score(settings(reward=1.0), cpu)(frames, None, goal)


def test_files_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*none.pt; expected VP2"):
        Score(settings(classifier=tmp_path / "none.pt"), torch.device("cpu"))
    (tmp_path / "bad.pt").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="bad.pt is no TorchScript; expected VP2's"):
        Score(settings(classifier=tmp_path / "bad.pt"), torch.device("cpu"))
    torch.jit.script(torch.nn.Identity()).save(str(tmp_path / "same.pt"))
    score = Score(settings(classifier=tmp_path / "same.pt"), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"same.pt returns \(6, 3, 8, 8\); expected VP2's"):
        score(torch.zeros(2, 3, 3, 8, 8), None, torch.zeros(3, 8, 8))


def test_vp2s_own_classifier_is_read(tmp_path):
    rng, conv = torch.Generator().manual_seed(0), torch.nn.functional.conv2d
    shapes = {"0": (32, 3, 3, 3), "7": (3, 32, 3, 3), "9": (1024, 12288), "11": (1, 1024)}
    shapes |= {f"{i}.cnv.{j}": (32, 32, 3, 3) for i in (1, 3, 5) for j in (0, 2)}
    w = {f"net.{k}.weight": 0.05 * torch.randn(v, generator=rng) for k, v in shapes.items()}
    b = {f"net.{k}.bias": torch.randn(v[0], generator=rng) for k, v in shapes.items()}
    torch.save(w | b, tmp_path / "push_red.pt")
    x = frames = torch.rand(5, 3, 64, 64, generator=rng)

    def layer(x, k):
        return conv(x, w[f"net.{k}.weight"], b[f"net.{k}.bias"], padding=1)

    x = layer(x, "0")
    for i in (1, 3, 5):
        x = (x + layer(layer(x, f"{i}.cnv.0").relu(), f"{i}.cnv.2")).relu()
    x = layer(x, "7").flatten(1) @ w["net.9.weight"].T + b["net.9.bias"]
    want = x.relu() @ w["net.11.weight"].T + b["net.11.bias"]
    network = plan.load_classifier(tmp_path / "push_red.pt", torch.device("cpu"))
    assert torch.allclose(network(frames), want, rtol=1e-3, atol=1e-3)


# ---- environments that can be taken back ----


def same_futures(env):
    """foresee tells what will be, and moves nothing; restore brings everything back."""
    env.reset()
    start, places = env.state(), env.places()
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 4, env.action_dim))
    before = env.render()
    frames_u8, rewards, distances = env.foresee(actions, places)
    assert frames_u8.shape == (3, 4, 64, 64, 3) and rewards.shape == distances.shape == (3, 4)
    assert np.array_equal(env.render(), before)
    env.reset()  # another episode
    env.restore(start)
    assert np.array_equal(env.render(), before)
    for k in range(4):
        frame, reward, *_ = env.step(actions[2, k : k + 1])
        assert np.array_equal(frame[0], frames_u8[2, k]) and reward[0] == pytest.approx(rewards[2, k])
        assert env.distance(places)[0] == pytest.approx(distances[2, k])


def test_push_world_foresees_and_is_taken_back():
    env = PushWorld(1, 64, seed=5)
    same_futures(env)
    places = env.places()
    assert env.distance(places) == [0.0]
    places[0, 1, 0] += 0.1
    assert env.distance(places) == pytest.approx([0.1])  # of the farther block


def test_tasks_are_successes_of_the_script_from_some_decisions_before(tmp_path):
    cfg, env = settings(), PushWorld(1, 64, seed=5, anywhere=True)
    task, other = (make_task(env, i, cfg) for i in (0, 1))
    assert not np.array_equal(task.goal_u8, other.goal_u8)
    env.restore(task.start)
    assert env.distance(task.places)[0] > 3 * env.tolerance
    for _ in range(cfg.lead):
        frame, *_ = env.step(env.expert())
    assert np.array_equal(frame[0], task.goal_u8) and env.distance(task.places)[0] < 1e-9
    with pytest.raises(ValueError, match="hardly ever succeeds from 100 decisions"):
        make_task(env, 0, settings(lead=100))
    with pytest.raises(ValueError, match="hardly ever succeeds from 100 decisions"):  # in other processes
        run_plan(tmp_path / "far.json", models=("random",), lead=100, episodes=2, seeds=1, workers=2)


@pytest.fixture(params=["push_red", "robosuite_push"])
def robot(request):
    try:
        env = make_environment(request.param, seed=3)
    except ImportError as error:  # a package, or EGL
        pytest.skip(str(error))
    yield env
    env.close()


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
    task = make_task(robot, 0, settings(lead=6))
    robot.restore(task.start)
    assert robot.distance(task.places)[0] >= robot.tolerance
    assert robot.episode[0] == 0  # at its first attempt


def test_noisy_and_random_episodes_of_a_script_are_collected(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "make_environment", lambda task, seed: PushWorld(1, 32, seed, length=12))
    how = dict(tasks=("push",), episodes=4, seed=1, noise=0.1, val_every=4)
    data.collect_script(tmp_path / "mixed", **how, random_share=0.5)
    data.collect_script(tmp_path / "script", **how, random_share=0.0)
    mixed, script = (Episodes(tmp_path / name, "all") for name in ("mixed", "script"))
    assert mixed.n_episodes == 4 and set(mixed.lengths) == {13} and mixed.has_reward
    assert np.array_equal(mixed.actions[:26], script.actions[:26])  # two by the script, then two at random
    assert np.array_equal(mixed.read(3, 0, 1), script.read(3, 0, 1))
    assert not np.array_equal(mixed.actions[26:], script.actions[26:])


# ---- VP2's files ----


@pytest.fixture
def vp2_file(tmp_path):
    """A file of RoboDesk's form with three demonstrations, two for training."""
    h5py = pytest.importorskip("h5py", reason="pip install h5py")
    rng, path = np.random.default_rng(0), tmp_path / "vp2" / "push_red.hdf5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        for i in range(3):
            demo = file.create_group(f"data/demo_{i}")
            demo["obs/camera_image"] = rng.integers(256, size=(13, 64, 64, 3), dtype=np.uint8)
            demo["actions"] = rng.uniform(-2, 2, (13 - (i == 1), 5))
        file["mask/train"] = [b"demo_0", b"demo_2"]
    return path


def test_vp2s_episodes_are_imported_as_they_are(vp2_file, tmp_path, capsys):
    h5py = pytest.importorskip("h5py")
    import_vp2(vp2_file.parent, tmp_path / "train", mask="train")
    import_vp2(vp2_file.parent, tmp_path / "all")
    assert Episodes(tmp_path / "train", "all").names.tolist() == [f"push_red.hdf5/demo_{i}" for i in (0, 2)]
    episodes = Episodes(tmp_path / "all", "all")
    with h5py.File(vp2_file) as file:
        for i in range(3):
            assert np.array_equal(episodes.read(i), file[f"data/demo_{i}/obs/camera_image"])
        clipped = np.clip(file["data/demo_1/actions"], -1, 1)
    assert episodes.actions[13:25] == pytest.approx(clipped) and not episodes.has_reward
    assert "clipped" in capsys.readouterr().out


def test_what_is_wrong_in_vp2s_files_is_told_and_the_rest_imported(vp2_file, tmp_path, capsys):
    h5py = pytest.importorskip("h5py")
    with h5py.File(vp2_file, "a") as file:
        del file["data/demo_0/obs/camera_image"]
        del file["data/demo_1/actions"]
        file["data/demo_1/actions"] = np.zeros((4, 5))
    import_vp2(vp2_file.parent, tmp_path / "rest")
    told = capsys.readouterr().out
    assert "imported 1, skipped 2" in told and "demo_0: it holds none of obs/camera_image" in told
    assert "demo_1: actions are (4, 5); expected finite (13 or 12, A)" in told
    with pytest.raises(ValueError, match="has no mask/valid; leave --mask out"):
        import_vp2(vp2_file.parent, tmp_path / "none", mask="valid")
    vp2_file.write_bytes(vp2_file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="push_red.hdf5 is no file of VP2's"):
        import_vp2(vp2_file.parent, tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="has no .hdf5, .h5 files"):
        import_vp2(tmp_path / "train", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_vp2s_tasks_start_where_their_files_say(vp2_file):
    h5py = pytest.importorskip("h5py")
    try:
        env = make_environment("push_red", seed=3)
    except ImportError as error:
        pytest.skip(str(error))
    with pytest.raises(ValueError, match="demo_0 is no task of VP2's"):
        plan.read_goals(vp2_file, env)
    pressed, data = env.state(), env.physics.data
    pressed[0][:9] += 0.01
    env.restore(pressed)
    flat = np.concatenate([data.qpos[:9], data.qvel[:9], data.qpos[9:], data.qvel[9:], np.zeros(3)])
    shown = env.render()[0]
    with h5py.File(vp2_file, "a") as file:
        for demo in file["data"].values():
            demo["states"] = np.stack([flat * 0, flat, flat])
            demo["start_index"] = 1
    tasks = plan.read_goals(vp2_file, env)
    env.reset()
    env.restore(tasks[2].start)
    assert len(tasks) == 3 and np.array_equal(env.render()[0], shown)
    with pytest.raises(ValueError, match="--goals is for RoboDesk"):
        plan.read_goals(vp2_file, PushWorld())
    env.close()


# ---- episodes ----


def test_the_simulator_as_model_solves_push_world_and_random_actions_do_not(tmp_path):
    how = dict(models=("random", "oracle", "script"), episodes=4, seeds=1, gifs=1, preset="push")
    numbers = run_plan(tmp_path / "push.json", **how)
    assert numbers["oracle"]["mean"] >= 0.75 and numbers["script"]["mean"] == 1
    assert numbers["random"]["mean"] <= 0.25 and "ess" not in numbers["oracle"]
    assert {p.name for p in (tmp_path / "push").iterdir()} == {f"{m}-0.gif" for m in how["models"]}


SMALL = dict(episodes=2, seeds=2, candidates=4, horizon=3, steps=3, gifs=1)


def test_a_run_that_is_broken_off_goes_on_and_says_why_episodes_fail(trained, tmp_path, capsys):
    out, models = tmp_path / "push.json", ("random", "world_model")
    numbers = run_plan(out, ckpt=trained.gpt, models=models, **SMALL)
    lines = (tmp_path / "push.jsonl").read_text().splitlines(True)
    assert len(lines) == 1 + 2 * 2 * 2 and len(numbers["world_model"]["seeds"]) == 2
    failed = [json.loads(line) for line in lines[1:] if "lacks" in json.loads(line)]
    assert sum(numbers["world_model"]["failures"].values()) == len(failed) > 0
    assert numbers["world_model"]["min"] <= numbers["world_model"]["mean"] <= numbers["world_model"]["max"]
    (tmp_path / "push.jsonl").write_text("".join(lines[:6]) + lines[6][:20])  # torn by a kill
    again = run_plan(out, ckpt=trained.gpt, models=models, **SMALL)
    assert again["world_model"]["least_distance"] == numbers["world_model"]["least_distance"]
    assert all(json.loads(line) for line in (tmp_path / "push.jsonl").read_text().splitlines())
    assert "never sampled" in capsys.readouterr().out
    fewer = run_plan(out, ckpt=trained.gpt, models=("random",), **{**SMALL, "seeds": 1})
    assert fewer["random"]["seeds"] == numbers["random"]["seeds"][:1] and "world_model" not in fewer
    with pytest.raises(ValueError, match="push.json exists: --overwrite true replaces it"):
        run_plan(out, ckpt=trained.gpt, models=models, gamma=1.0, **SMALL)
    (tmp_path / "push.jsonl").write_text("\n".join([*lines[:2], "{torn", *lines[2:]]))
    with pytest.raises(ValueError, match="push.jsonl is damaged; pass --overwrite true"):
        run_plan(out, ckpt=trained.gpt, models=models, **SMALL)


def test_a_stopped_run_keeps_what_was_played_and_leaves_no_process(tmp_path):
    out = tmp_path / "push.json"
    command = [sys.executable, ROOT / "plan.py", "--models=oracle", "--workers=2", f"--out={out}"]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.time() + 100
    while time.time() < deadline and not (out.with_suffix(".jsonl").is_file() and len(lines_of(out)) > 2):
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    assert "what was played is kept in" in run.communicate(timeout=30)[1] and len(lines_of(out)) > 2
    with pytest.raises(ProcessLookupError):
        for _ in range(100):  # multiprocessing's own helper ends a little later
            os.killpg(run.pid, 0)
            time.sleep(0.1)


def lines_of(out):
    return out.with_suffix(".jsonl").read_text().splitlines()


def test_the_same_seed_plans_the_same_whatever_the_processes(trained, tmp_path):
    one, two = (
        run_plan(tmp_path / f"{w}.json", ckpt=trained.gpt, models=("world_model",), **SMALL, workers=w)
        for w in (1, 2)
    )
    assert one["world_model"]["least_distance"] == two["world_model"]["least_distance"]


def test_failures_are_told_apart(monkeypatch):
    bench = plan.Bench(settings(models=("oracle",), candidates=3, horizon=2, steps=3))
    task = SimpleNamespace(goal_u8=np.zeros((64, 64, 3), np.uint8), places=np.zeros((1, 2, 2)))
    shades = np.array([30, 10, 20], np.uint8)  # on the true frames the cost likes the second best
    frames_u8 = np.broadcast_to(shades[:, None, None, None, None], (3, 2, 64, 64, 3))
    distances = np.array([[0.9, 0.5], [0.3, 0.1], [0.0, 0.6]])
    monkeypatch.setattr(bench.env, "foresee", lambda *_: (frames_u8, np.zeros((3, 2)), distances))
    decision = bench.env.state(), None, np.array([3.0, 2.0, 1.0]), None
    lacks = bench.diagnose([decision], task)
    want = {"never sampled": -bench.env.tolerance, "ranked low": 0.1, "imagined wrong": 0.4}
    assert lacks == pytest.approx(want)
    assert bench.diagnose([decision, decision], task) == pytest.approx(want)  # means


def test_wrong_settings_are_refused_with_the_reason(trained, tmp_path):
    out = tmp_path / "push.json"
    for wrong, message in (
        (dict(models=("wm",)), "models is 'wm'; expected some of random, world_model"),
        (dict(planner="cem"), "planner is 'cem'; expected one of mppi, icem"),
        (dict(execute="worst"), "execute is 'worst'; expected best or mean"),
        (dict(std=(0.5, 0.5, 0.5)), "std is .*; expected 2 numbers, one per action dimension"),
        (dict(std=(0.5, -0.5)), "std is .*; expected 0 or more"),
        (dict(std=("a", "b")), "std is a,b; expected numbers, one per action dimension"),
        (dict(workers=-1), "--workers is -1; expected 0 or more"),
        (dict(episodes=0), "--episodes is 0; expected at least 1"),
        (dict(ckpt=trained.free), "takes 0-D actions, push_anywhere 2-D; pass --ckpt"),
    ):
        with pytest.raises(ValueError, match=message):
            run_plan(out, **{**SMALL, "ckpt": trained.gpt, **wrong})
    assert not out.exists()
    with pytest.raises(ValueError, match="out is .*push; expected a .json file"):
        run_plan(tmp_path / "push", ckpt=trained.gpt, **SMALL)
