"""Every checkpoint that a script writes, in every script that takes one; several users of one world model."""

from types import SimpleNamespace

import pytest
import torch
from conftest import GPT_RUN, GPT_TUNE, TOKENIZER_TUNE, flags, train

import evaluate
import mbpo
import plan
import play
import post_train
import sample
import train_gpt
import train_tokenizer
from common import configure, load_checkpoint
from drq import load_agent
from envs.push import push_segments
from sample import TRAINED, WorldModel

MBPO = dict(
    preset="push", size=32, agent_size=16, hidden=16, agent_batch=4, agent_updates=1, shift=1, seed_steps=60,
    demos=1, init_updates=1, gpt_every=60, tokenizer_every=60, model_batch=2, segment=6, horizon=3, starts=2,
    init_rollouts=1, rollout_every=60, eval_every=600, eval_episodes=2, save_every=600,
    steps=60, device="cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def written(trained, tmp_path_factory):
    """{name: a checkpoint of a script}; of agent_alone.pt no world model is part."""
    folder = tmp_path_factory.mktemp("written")
    train(mbpo, **MBPO, init_from=trained.gpt, out=folder / "agent.pt")
    train(mbpo, **MBPO, init_from=trained.gpt, imagine=False, out=folder / "alone.pt")
    call(sample, ckpt=trained.gpt, export=folder / "export.pt")
    return SimpleNamespace(
        tokenizer=trained.tokenizer, gpt=trained.gpt, free=trained.free, export=folder / "export.pt",
        agent=folder / "agent.pt", alone=folder / "alone.pt",
    )  # fmt: skip


def call(script, **settings):
    presets = getattr(script, "PRESETS", None)
    script.main(configure(script.CONFIG, "", flags(**settings), presets))


def as_ckpt_of_sample(path, push, out):
    call(sample, ckpt=path, data=push, n=1, horizon=2, device="cpu", out=out / "pictures")


def as_ckpt_of_evaluate(path, push, out):
    call(evaluate, ckpt=path, data=push, episodes=2, horizon=3, lpips=False, device="cpu", out=out / "m.json")


def as_ckpt_of_plan(path, push, out):
    call(plan, ckpt=path, models=("world_model",), episodes=1, seeds=1, candidates=12, horizon=2, steps=2,
         device="cpu", workers=1, gifs=0, diagnose=False, out=out / "p.json")


def as_ckpt_of_play(path, push, out):
    world = WorldModel.load(path, "cpu")
    game = play.Game(world, configure(play.CONFIG, "", flags(data=push)))
    assert game.step([0.0] * world.action_dim)["steps"] == 1


def as_start_of_mbpo(path, push, out):
    train(mbpo, **MBPO, init_from=path, out=out / "a.pt")


def as_start_of_train_gpt(path, push, out):
    train(train_gpt, **GPT_TUNE, data=push, init_from=path, out=out / "g.pt")


def as_start_of_post_train(path, push, out):
    run = dict(lpips=0.0, horizon=2, batch_size=1, group=2, mini_batches=1, max_steps=1, eval_segments=1)
    train(post_train, **run, best_of=1, ckpt=path, data=push, out=out / "p.pt")


def as_tokenizer_of_train_gpt(path, push, out):
    train(train_gpt, **GPT_RUN, data=push, tokenizer=path, out=out / "g.pt")


def as_start_of_train_tokenizer(path, push, out):
    train(train_tokenizer, **TOKENIZER_TUNE, data=push, init_from=path, out=out / "t.pt")


TAKERS = {f.__name__: f for f in (
    as_ckpt_of_sample, as_ckpt_of_evaluate, as_ckpt_of_plan, as_ckpt_of_play, as_start_of_mbpo,
    as_start_of_train_gpt, as_start_of_post_train, as_tokenizer_of_train_gpt, as_start_of_train_tokenizer,
)}  # fmt: skip
WORLD = {"gpt", "export", "agent"}
FITS = dict(  # which checkpoints hold what a script takes; what becomes of the others
    as_ckpt_of_sample=(WORLD | {"free"}, ""),
    as_ckpt_of_evaluate=(WORLD | {"free"}, ""),
    as_ckpt_of_plan=(WORLD, "takes 0-D actions, push_anywhere 2-D; pass --ckpt"),
    as_ckpt_of_play=(WORLD | {"free"}, ""),
    as_start_of_mbpo=(WORLD | {"free"}, ""),
    as_start_of_train_gpt=(WORLD | {"free"}, ""),
    as_start_of_post_train=(WORLD | {"free"}, ""),
    as_tokenizer_of_train_gpt=(WORLD | {"free", "tokenizer"}, ""),
    as_start_of_train_tokenizer=(WORLD | {"free", "tokenizer"}, ""),
)


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("name", ["tokenizer", "gpt", "free", "export", "agent", "alone"])
def test_every_script_opens_every_checkpoint_or_says_what_it_lacks(name, taker, written, push, tmp_path):
    fits, otherwise = FITS[taker]
    path = getattr(written, name)
    if name in fits:
        TAKERS[taker](path, push, tmp_path)
        return
    lacks = rf"{path.name} holds no (gpt|tokenizer).*; expected one with"
    with pytest.raises(ValueError, match=f"{lacks}|{otherwise or lacks}"):
        TAKERS[taker](path, push, tmp_path)


def test_another_tokenizer_may_come_from_every_checkpoint_that_holds_one(written, push, tmp_path):
    for name in ("tokenizer", "gpt", "export", "agent"):
        models = dict(ckpt=written.gpt, tokenizer=getattr(written, name))
        call(sample, **models, data=push, n=1, horizon=2, device="cpu", out=tmp_path / name)
        assert (tmp_path / name / "sheet.png").is_file()


@pytest.mark.parametrize("name", ["agent", "alone"])
def test_an_agent_of_mbpo_plays_in_the_dream(name, written):
    cfg = configure(play.CONFIG, "", flags(agent=getattr(written, name), data="push"))
    game = play.Game(WorldModel.load(written.gpt, "cpu"), cfg)
    first = game.step(player="agent")["action"]
    game.undo()
    assert game.step(player="agent")["action"] == first and len(first) == 2  # it does not guess
    cfg.agent = str(written.gpt)
    with pytest.raises(ValueError, match="gpt.pt holds no agent.*; expected one with"):
        play.Game(WorldModel.load(written.gpt, "cpu"), cfg)
    with pytest.raises(ValueError, match="takes other than 32 x 32 frames and 5-D actions"):
        load_agent(getattr(written, name), 5, 32)


def test_a_checkpoint_of_mbpo_says_what_its_world_model_is_for(written, tmp_path):
    settings = load_checkpoint(written.agent)["train_config"]
    assert TRAINED.keys() <= settings.keys() and settings["data"] == "push"
    assert WorldModel.load(written.agent, "cpu").trained["data"] == "push"
    other = configure(mbpo.CONFIG, "", flags(preset="metaworld-tiny"), mbpo.PRESETS)
    assert mbpo.trained_on(other)["data"] == ""  # not PushWorld
    other = configure(mbpo.CONFIG, "", flags(preset="push", robot="cyan"), mbpo.PRESETS)
    assert mbpo.trained_on(other)["data"] == ""  # not the gripper that --data push shows


def test_a_checkpoint_of_an_older_version_is_named(written, tmp_path):
    state = load_checkpoint(written.agent)
    del state["train_config"]["stride"], state["train_config"]["data"]
    torch.save(state, tmp_path / "old.pt")
    with pytest.raises(ValueError, match="old.pt does not say its data, stride: an older version wrote it"):
        WorldModel.load(tmp_path / "old.pt", "cpu")


# ---- one model, several users ----


def test_sessions_share_weights_and_nothing_else(trained):
    world = WorldModel.load(trained.gpt, "cpu", seed=3)
    other = world.session()
    assert other.gpt is world.gpt and other.tokenizer is world.tokenizer
    first, second = push_segments(2, 2, seed=5, size=32)["frames"].split(1)
    alone = WorldModel.load(trained.gpt, "cpu", seed=3)
    alone.reset(first)
    expected = [alone.step(torch.zeros(1, 2)) for _ in range(6)]
    world.reset(first)
    other.reset(second, n_branches=3)
    for frame, reward in expected:
        other.step(torch.ones(3, 2))
        found = world.step(torch.zeros(1, 2))
        assert torch.equal(found[0], frame) and torch.equal(found[1], reward)
    assert world.session().recent is None
    sessions = world, other, world.session(), other.session(), world.session()
    assert len({session.generator.initial_seed() for session in sessions}) == 5
    world.gpt.train()
    world.session()
    assert world.gpt.training  # a learner's model stays as it is
