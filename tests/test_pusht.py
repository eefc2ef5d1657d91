"""envs/pusht.py against the package gym-pusht: physics and pictures; the script, and episodes of play."""

import time

import numpy as np
import pytest

pytest.importorskip("gym_pusht", reason="pip install gym-pusht")
import cv2  # noqa: E402
from gym_pusht.envs.pusht import PushTEnv  # noqa: E402

import prepare  # noqa: E402
from data import Episodes  # noqa: E402
from envs import make_environment, pusht  # noqa: E402
from envs.pusht import PushT, play_pusht, pusht_segments  # noqa: E402

LOW, HIGH = np.array([[50, 50, 100, 100, -np.pi], [450, 450, 400, 400, np.pi]])
PLAY = dict(seed=0, size=32, length=6, chunk=5, expert_share=0.5, action_noise=0.1)


def states(n):
    return np.random.default_rng(0).uniform(LOW, HIGH, (n, 5))


def both_at(state):
    """The package's environment and ours at a state."""
    theirs = PushTEnv(obs_type="state")
    theirs.reset(seed=0, options=dict(reset_to_state=state))
    ours = PushT(64, chunk=1)
    ours.reset()
    ours.reset_to_state(state)
    return theirs, ours


def psnr(a, b):
    return -10 * np.log10(np.square(a.astype(float) - b).mean() / 255**2 + 1e-9)


@pytest.mark.parametrize("state", states(8), ids=range(8))
def test_a_picture_is_the_packages_own_made_smaller(state):
    theirs, ours = both_at(state)
    large = theirs._get_img(theirs._draw(), 512, 512)
    assert psnr(ours.render()[0], large.reshape(64, 8, 64, 8, 3).mean((1, 3))) > 38
    assert psnr(ours.render()[0], cv2.resize(large, (64, 64))) > 30  # which the package does, and it is rough


def test_drawing_is_at_least_twice_as_fast():
    theirs, ours = both_at(states(1)[0])

    def seconds(draw):
        took = []
        for _ in range(20):
            began = time.perf_counter()
            draw()
            took.append(time.perf_counter() - began)
        return np.median(took)

    assert 2 * seconds(ours.render) < seconds(lambda: theirs._render())


def test_the_same_moves_lead_to_the_packages_states_and_rewards():
    theirs, ours = both_at([200, 300, 256, 256, 0.3])
    rng = np.random.default_rng(0)
    moved = 0
    for _ in range(60):
        action = rng.uniform(-1, 1, (1, 2))
        target = np.clip(np.array(theirs.agent.position) + 100 * action[0], 0, 512)
        state, reward, *_ = theirs.step(target)
        _, our_reward, _, _ = ours.step(action)
        found = ours.positions()[0]
        moved = max(moved, np.abs(found[2:4] - 256).max())
        found[4] %= 2 * np.pi
        assert (found == state).all() and our_reward[0] == pytest.approx(reward)
    assert moved > 10


def test_an_action_is_five_moves_one_after_another():
    one, five = PushT(32, chunk=1), PushT(32, chunk=5)
    actions = np.random.default_rng(1).uniform(-1, 1, (4, 10))
    one.reset(), five.reset()
    for action in actions:
        for move in action.reshape(5, 1, 2):
            frame, *_ = one.step(move)
        assert (five.step(action[None])[0] == frame).all()


def test_going_back_leads_to_the_same_future():
    world = world_after(8)
    state = world.state()
    actions = [world.expert()]
    for _ in range(4):
        world.step(actions[-1])
        actions.append(world.expert())
    expected = world.positions()
    for _ in range(2):
        world.restore(state)
        assert (world.expert() == actions[0]).all()
        for action in actions[:-1]:
            world.step(action)
        np.testing.assert_allclose(world.positions(), expected, atol=0.05)  # pixels of 512


def test_foreseeing_leaves_the_world_as_it_is():
    world = PushT(32)
    world.reset()
    before = world.positions()
    frames_u8, rewards, distances = world.foresee(np.random.default_rng(0).uniform(-1, 1, (3, 2, 10)), before)
    assert frames_u8.shape == (3, 2, 32, 32, 3) and rewards.shape == distances.shape == (3, 2)
    assert (world.positions() == before).all() and (distances > 0).all()


def test_what_is_foreseen_comes_true():
    world = world_after(6)
    goal = world.positions()
    ahead = PushT(32)
    ahead.restore(world.state())
    actions = np.stack([np.concatenate([step_of(ahead) for _ in range(5)])] * 3)
    frames_u8, rewards, distances = world.foresee(actions, goal)
    late, _, _ = world.foresee(actions, goal, last=2)
    assert (late == frames_u8[:, -2:]).all() and (distances[0] == distances[2]).all()
    for k in range(5):
        frame, reward, *_ = world.step(actions[:1, k])
        assert world.distance(goal)[0] == pytest.approx(distances[0, k], abs=0.1)  # two pixels of 512
        assert reward[0] == pytest.approx(rewards[0, k], abs=0.05)
        assert psnr(frame[0], frames_u8[0, k]) > 30


def world_after(steps):
    """A world in which the script has taken so many actions."""
    world = PushT(32, anywhere=True)
    world.reset()
    for _ in range(steps):
        world.step(world.expert())
    return world


def step_of(world):
    """The script's action, taken."""
    action = world.expert()
    world.step(action)
    return action


def test_success_of_the_benchmark_is_20_pixels_and_20_degrees():
    world = PushT(32)
    world.reset()
    goal = world.positions()
    for change, is_won in (([12, 0, 0, 12, 0], True), ([15, 0, 0, 15, 0], False), ([0, 0, 0, 0, 0.34], True),
                           ([0, 0, 0, 0, 0.36], False), ([0, 0, 0, 0, 2 * np.pi], True)):  # fmt: skip
        assert (world.distance(goal + change)[0] < world.tolerance) == is_won


def test_the_script_pushes_the_block_to_its_pose():
    world = make_environment("pusht_anywhere", seed=0, size=32)
    wins = []
    for _ in range(20):
        world.reset()
        done = success = False
        while not (done or success):
            _, _, success, done = world.step(world.expert())
        wins.append(success[0])
    assert np.mean(wins) >= 0.9


def test_an_episode_depends_on_its_number_and_seed_alone():
    first, again, other = (play_pusht(i, **PLAY) for i in (3, 3, 4))
    for name in ("frames_u8", "actions", "rewards"):
        assert (first[name] == again[name]).all() and (first[name] != other[name]).any()
    assert first["frames_u8"].shape == (7, 32, 32, 3) and first["actions"].shape == (6, 10)
    assert {play_pusht(i, **PLAY)["kind"] for i in range(8)} == {"expert", "random"}


def test_new_segments_are_of_other_episodes_than_any_data():
    batch = pusht_segments(2, 5, seed=1, size=32)
    assert batch["frames"].shape == (2, 5, 3, 32, 32) and batch["actions"].shape == (2, 5, 10)
    again = pusht_segments(2, 5, seed=1, size=32)
    assert all((batch[name] == again[name]).all() for name in batch)
    assert (batch["frames"] != pusht_segments(2, 5, seed=2, size=32)["frames"]).any()


def test_prepare_writes_episodes(tmp_path, capsys):
    out = tmp_path / "pusht"
    settings = {"out": out, "episodes": 3, "length": 4, "size": 32, "workers": 1}
    prepare.main(["pusht", *(f"--{key}={value}" for key, value in settings.items())])
    episodes = Episodes(out, "all")
    assert episodes.action_dim == 10 and episodes.lengths.tolist() == [5, 5, 5]
    assert "success" in capsys.readouterr().out
    expected = play_pusht(1, **{**pusht.PLAY, "seed": 0, "size": 32, "length": 4})
    assert (episodes.read(1) == expected["frames_u8"]).all()
