"""envs/: the built-in world and its scripted player, what all worlds share."""

import time

import numpy as np
import pytest
from test_data import same

from data import Episodes
from envs import MetaWorld, PushWorld, RoboDesk, RobosuitePush, make_environment
from envs.base import random_policy
from envs.push import play_push, push_segments


def test_frames_and_rewards_after_k_follow_from_action_k(push):
    episodes = Episodes(push, "all")
    actions = episodes.actions.reshape(12, 21, 2)
    world = PushWorld(12, 32, seed=0, length=20)
    frames, rewards = [world.render()], [np.zeros(12)]
    for k in range(20):
        frame, reward, _, _ = world.step(actions[:, k])
        frames.append(frame)
        rewards.append(reward)
    frames, rewards = np.stack(frames, 1), np.stack(rewards, 1)
    for i in range(12):  # the world was played with float64 actions, so that a rounding may fall otherwise
        assert np.abs(episodes.read(i).astype(int) - frames[i]).max() <= 1
    assert np.allclose(episodes.rewards.reshape(12, 21), rewards, atol=1e-4)


def test_robots_differ_in_looks_alone():
    red, cyan = (list(play_push(2, length=5, robot=robot)) for robot in ("red", "cyan"))
    for a, b in zip(red, cyan, strict=True):
        assert all(np.array_equal(a[key], b[key]) for key in ("actions", "rewards", "success", "kind"))
        changed = (a["frames_u8"] != b["frames_u8"]).any(-1).mean()
        assert 0 < changed < np.pi * (PushWorld.grip_radius + 1 / 64) ** 2
    with pytest.raises(ValueError, match="robot is 'green'; expected one of red, cyan"):
        PushWorld(robot="green")


def test_episodes_of_a_scene_look_alike():
    def corners(scene):
        return [e["frames_u8"][0, 0, 0] for e in play_push(3, length=5, scene=scene)]

    assert np.ptp(corners(3), axis=0).max() == 0 < np.ptp(corners(-1), axis=0).max()


def test_a_world_depends_on_its_seed_and_its_place_alone():
    worlds = PushWorld(2, 32, seed=3), PushWorld(5, 32, seed=3)
    actions = random_policy(5, 15, seed=0)
    for k in range(15):
        (small, *rest), (large, *more) = worlds[0].step(actions[k, :2]), worlds[1].step(actions[k])
        assert np.array_equal(small, large[:2])
        assert all(np.array_equal(a, b[:2]) for a, b in zip(rest, more, strict=True))
    assert np.array_equal(worlds[0].reset(), worlds[1].reset()[:2])
    assert not np.array_equal(PushWorld(1, 32, seed=3).render(), PushWorld(1, 32, seed=4).render())


def test_reset_begins_the_next_episodes():
    world = PushWorld(3, 32, seed=0, length=1)
    before, _, _, done = world.step(np.zeros((3, 2)))
    after = world.reset()
    assert done.all() and world.time.tolist() == [0, 0, 0] and world.episode.tolist() == [1, 1, 1]
    assert not any(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    world.episode[:] = -1
    assert np.array_equal(world.reset(), PushWorld(3, 32, seed=0).render())  # the first episode again


def success_rate(world, steps, act):
    won = np.zeros(world.n, bool)
    for k in range(steps):
        won |= world.step(act(k))[2]
    return won.mean()


def test_the_expert_succeeds_and_random_play_does_not(monkeypatch):
    monkeypatch.setattr(PushWorld, "render", lambda self: None)  # success needs no pictures
    world, wander = PushWorld(200, seed=1), random_policy(200, 60, seed=1)
    assert success_rate(world, 60, lambda k: world.expert()) >= 0.95
    world = PushWorld(200, seed=1)
    assert success_rate(world, 60, lambda k: wander[k]) <= 0.10


def test_a_pushed_block_moves_along_and_an_untouched_one_stays():
    world = PushWorld(1, 32, seed=0)
    world.blocks[0] = (0.5, 0.5), (0.8, 0.8)
    world.grip[0] = 0.5 - world.half[0, 0] - world.grip_radius - 0.01, 0.5
    for _ in range(3):
        world.step([[1, 0]])
    (x, y), other = world.blocks[0]
    assert x > 0.6 and y == pytest.approx(0.5) and other.tolist() == [0.8, 0.8]
    assert world.grip[0, 0] < x - world.half[0, 0]  # it pushes from outside
    for _ in range(30):
        world.step([[1, 0]])
    assert world.blocks[0, 0, 0] == pytest.approx(1 - world.half[0, 0])  # the wall stops it


def test_reward_is_the_hand_computed_distance_and_one_more_on_the_target():
    world = PushWorld(2, 32, seed=0)
    world.blocks[:] = (0.5, 0.5), (0.8, 0.8)
    world.grip[:], world.target[:] = (0.5, 0.1), ((0.5, 0.55), (0.5, 0.8))
    _, reward, success, _ = world.step(np.zeros((2, 2)))
    assert success.tolist() == [True, False]
    assert reward == pytest.approx([1 - 0.05 - 0.25 * 0.4, -0.3 - 0.25 * 0.4])


def test_wrong_actions_and_settings_of_the_world_are_errors():
    world = PushWorld(2, 32)
    for actions in (np.zeros(2), np.zeros((3, 2)), [[0, 0], [0, np.nan]]):
        with pytest.raises(ValueError, match=r"expected numbers \(2, 2\)"):
            world.step(actions)
    with pytest.raises(ValueError, match="n, size, seed, length"):
        PushWorld(0)


def test_episodes_differ_in_colours():
    colours = PushWorld(8, 32).render().reshape(8, -1, 3)
    mean = colours.mean(1)
    assert min(np.abs(mean[i] - mean[j]).max() for i in range(8) for j in range(i)) > 1


def test_the_world_draws_2000_frames_a_second_on_one_core():
    world, actions, rates = PushWorld(50, 64), random_policy(50, 60, seed=0), []
    for k in range(0, 60, 10):  # the best of six: other programs may be using this core's caches
        began = time.process_time()
        for action in actions[k : k + 10]:
            world.step(action)
        rates.append(500 / (time.process_time() - began))
    assert max(rates) >= 2000


def test_episodes_that_are_kept_are_not_overwritten_by_later_ones():
    first = next(iter(play_push(51, length=4, size=32)))["frames_u8"].copy()
    assert np.array_equal(list(play_push(51, length=4, size=32))[0]["frames_u8"], first)


def test_fresh_segments_are_a_function_of_their_seed():
    batch = push_segments(3, 5, seed=1, size=32)
    shapes = {key: tuple(value.shape) for key, value in batch.items()}
    assert shapes == dict(frames=(3, 5, 3, 32, 32), actions=(3, 5, 2), rewards=(3, 5))
    assert same(batch, push_segments(3, 5, seed=1, size=32))
    assert not same(batch, push_segments(3, 5, seed=2, size=32))


def test_play_push_plays_the_episodes_that_the_released_checkpoint_was_trained_on():
    episode = next(iter(play_push(2, length=5)))
    frames_u8, actions, rewards = (episode[key] for key in ("frames_u8", "actions", "rewards"))
    assert (frames_u8.shape, actions.shape, rewards.shape) == ((6, 64, 64, 3), (5, 2), (6,))
    assert episode["kind"] == "random" and frames_u8.astype(int).sum() == pytest.approx(14326333, abs=100)
    assert actions.sum() == pytest.approx(4.60961, abs=1e-4)
    assert rewards.sum() == pytest.approx(-2.76163, abs=1e-4)


@pytest.mark.parametrize("world", [PushWorld, MetaWorld, RoboDesk, RobosuitePush])
def test_every_world_has_what_base_asks_for(world):
    names = ["action_dim", "action_repeat", "reset", "step", "render", "expert", "close"]
    if world is not MetaWorld:  # which has no planning tasks
        names += ["tolerance", "state", "restore", "positions", "distance", "foresee"]
    assert [name for name in names if not hasattr(world, name)] == []
    assert world is not MetaWorld or not hasattr(world, "foresee")  # plan.py asks for it


def test_an_unknown_task_or_a_scene_for_a_robot_is_an_error():
    with pytest.raises(ValueError, match="task is 'push_red'; only PushWorld's, push, has a scene"):
        make_environment("push_red", scene=3)
    try:
        with pytest.raises(ValueError, match="'fly'; expected push .PushWorld., push_red.* of Meta-World, "):
            make_environment("fly")
    except ImportError as error:
        pytest.skip(str(error))


def test_a_state_of_robodesk_survives_later_episodes():
    try:
        env = RoboDesk("flat_block_off_table", seed=3)
    except ImportError as error:  # a package, or EGL
        pytest.skip(str(error))
    env.reset()
    state, shown = env.state(), env.render()
    first = {name: position.copy() for name, position in state["original_pos"].items()}
    env.reset()
    env.restore(state)
    assert np.array_equal(env.render(), shown)
    assert all(np.array_equal(env.desk.original_pos[name], first[name]) for name in first)
    env.close()
