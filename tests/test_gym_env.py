"""experiments/gym_env.py: Gymnasium's interface and checker, a public library's agent, shared models."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, flags

from common import configure
from envs.push import push_segments
from plan import imagine_candidates
from sample import WorldModel

pytest.importorskip("gymnasium", reason="pip install gymnasium")

import gymnasium  # noqa: E402

from experiments import gym_env, outside  # noqa: E402


@pytest.fixture
def door(trained):
    world = WorldModel.load(trained.gpt, "cpu")
    return SimpleNamespace(world=world, starts=gym_env.starts_from(world, "push"))


def test_the_worlds_are_a_gymnasium_vector(door):
    gymnasium = pytest.importorskip("gymnasium", reason="pip install gymnasium")
    envs = gym_env.WorldModelEnv(door.world, door.starts, n=3, horizon=4, stack=2)
    assert isinstance(envs, gymnasium.vector.VectorEnv)
    frames, _ = envs.reset(seed=1)
    assert frames.shape == (3, 32, 32, 6) and frames in envs.observation_space
    actions = np.zeros((3, 2), np.float32)
    steps = [envs.step(actions) for _ in range(6)]
    assert [step[3].all() for step in steps] == [False, False, False, True, False, False]
    assert not any(step[2].any() for step in steps) and not steps[4][1].any()  # the fifth begins anew
    assert np.array_equal(envs.reset(seed=1)[0], frames)
    assert np.array_equal(envs.step(actions)[0], steps[0][0])
    assert np.array_equal(steps[1][0][..., :3], steps[0][0][..., 3:])  # the oldest first
    with pytest.raises(ValueError, match="stack is 3; expected 1 to the 2 context frames"):
        gym_env.WorldModelEnv(door.world, door.starts, stack=3)


def test_gymnasiums_checker_is_content(door):
    checker = pytest.importorskip("gymnasium.utils.env_checker", reason="pip install gymnasium")
    checker.check_env(gym_env.SingleWorldModelEnv(door.world, door.starts, horizon=4), skip_render_check=True)


def test_gymnasium_makes_them_by_name(trained):
    how = dict(ckpt=trained.gpt, device="cpu", horizon=3)
    env = gymnasium.make("experiments.gym_env:iVideoGPT/Push-v0", **how)
    assert env.reset(seed=0)[0].shape == (32, 32, 3)
    envs = gymnasium.make_vec("iVideoGPT/Push-v0", 2, vectorization_mode="vector_entry_point", **how)
    assert envs.reset(seed=0)[0].shape == (2, 32, 32, 3)


@pytest.mark.slow
def test_an_agent_of_a_public_library_learns_in_the_world_model(door):
    library = pytest.importorskip("stable_baselines3", reason="pip install stable-baselines3")
    env = gym_env.SingleWorldModelEnv(door.world, door.starts, horizon=8)
    agent = library.PPO("MlpPolicy", env, n_steps=64, batch_size=32, n_epochs=1, device="cpu")
    agent.learn(200)
    assert agent.num_timesteps >= 200 and env.action_space.contains(agent.predict(env.reset()[0])[0])


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["PPO", "SAC"])
def test_an_agent_that_has_only_imagined_is_tried_in_the_world(tmp_path, algorithm):
    pytest.importorskip("stable_baselines3", reason="pip install stable-baselines3")
    out = tmp_path / "outside.json"
    small = dict(worlds=2, horizon=3, steps=100, every=100, episodes=2, device="cpu")
    outside.main(configure(outside.CONFIG, "", flags(**small, out=out, algorithm=algorithm)))
    curve = json.loads(out.read_text())["success"]
    assert curve[0][0] == 0 and len(curve) == 2 and curve[1][0] >= 100
    assert out.with_suffix(".png").is_file()


def test_two_environments_of_one_model_do_not_disturb_each_other(trained):
    world = WorldModel.load(trained.gpt, "cpu")
    starts = gym_env.starts_from(world, "push")
    training = gym_env.SingleWorldModelEnv(world, starts)
    evaluation = gym_env.SingleWorldModelEnv(world, starts)
    many = gym_env.WorldModelEnv(world, starts, n=3)
    alone = gym_env.SingleWorldModelEnv(WorldModel.load(trained.gpt, "cpu"), starts)
    alone.reset(seed=1)
    expected = alone.step(np.zeros(2, np.float32))
    training.reset(seed=1)
    evaluation.reset(seed=77)
    many.reset(seed=5)
    found = training.step(np.zeros(2, np.float32))
    assert np.array_equal(found[0], expected[0]) and found[1] == expected[1]
    assert many.step(np.zeros((3, 2), np.float32))[0].shape == (3, 32, 32, 3)


def test_a_planner_and_an_environment_share_a_model(trained):
    world = WorldModel.load(trained.gpt, "cpu")
    env = gym_env.SingleWorldModelEnv(world, gym_env.starts_from(world, "push"))
    before, _ = env.reset(seed=1)
    scene = push_segments(1, 2, seed=9, size=32)["frames"][0]
    list(imagine_candidates(world.session(), scene, np.zeros((4, 3, 2))))
    assert world.recent is None and np.array_equal(env.worlds.observe()[0], before)


def test_the_readmes_examples_of_environments_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    [block] = [block for block in blocks if "WorldModelEnv" in block]
    names = {}
    exec(block, names)  # the text that readers copy
    envs, one = names["envs"], names["one"]
    envs.reset(seed=1)
    one.reset(seed=2)
    assert envs.step(np.zeros((16, 2), np.float32))[0].shape == (16, 64, 64, 3)
    assert one.step(np.zeros(2, np.float32))[0].shape == (64, 64, 3)
