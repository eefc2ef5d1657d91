"""WorldModel.load opens every checkpoint that a script writes, or says in one line what it lacks."""

import pytest
import torch
from conftest import GPT_RUN, GPT_TUNE, ROOT, TOKENIZER_RUN, TOKENIZER_TUNE, flags, train

import gpt
import mbpo
import official
import sample
import tokenizer
import train_gpt
import train_tokenizer
from checkpoints import gpt_from, load_gpt, load_tokenizer, tokenizer_from
from common import configure, load_checkpoint
from gpt import GPT
from sample import TRAINED, WorldModel
from tokenizer import Tokenizer

MBPO = dict(
    preset="push", size=32, agent_size=16, hidden=16, agent_batch=4, agent_updates=1, shift=1, seed_steps=60,
    demos=1, init_updates=1, gpt_every=60, tokenizer_every=60, model_batch=2, segment=6, horizon=3, starts=2,
    init_rollouts=1, rollout_every=60, eval_every=600, eval_episodes=2, save_every=600, steps=60,
    device="cpu",
)  # fmt: skip


# ---- a writer for each kind of checkpoint: (trained, push, folder) -> path ----


def call_sample(**settings):
    sample.main(configure(sample.CONFIG, "", flags(device="cpu", **settings)))


def by_train_gpt(trained, push, folder):
    return trained.gpt


def by_train_gpt_without_actions(trained, push, folder):
    return trained.free


def by_train_gpt_with_a_goal(trained, push, folder):
    out = folder / "goal.pt"
    train(train_gpt, **GPT_RUN, data=push, tokenizer=trained.tokenizer, out=out, goal_conditioned=True)
    return out


def by_train_gpt_from_another(trained, push, folder):
    out = folder / "tuned.pt"
    train(train_gpt, **GPT_TUNE, data=push, init_from=trained.free, out=out)  # it gains both heads
    return out


def by_train_gpt_on_tokens_per_frame(trained, push, folder):
    own = folder / "per-frame-tokenizer.pt"
    train(train_tokenizer, **TOKENIZER_RUN, kind="4x4", data=push, out=own)
    train(train_gpt, **GPT_RUN, data=push, tokenizer=own, out=folder / "per-frame.pt")
    return folder / "per-frame.pt"


def by_train_gpt_on_one_context_frame(trained, push, folder):
    own = folder / "one-tokenizer.pt"
    changes = dict(context_frames=1, lr=0.0)
    train(train_tokenizer, **{**TOKENIZER_TUNE, **changes}, init_from=trained.tokenizer, data=push, out=own)
    train(train_gpt, **GPT_RUN, data=push, tokenizer=own, out=folder / "one.pt")
    return folder / "one.pt"


def by_sample_export(trained, push, folder):
    call_sample(ckpt=trained.gpt, export=folder / "export.pt")
    return folder / "export.pt"


def by_sample_export_of_an_authors_model(trained, push, folder):
    call_sample(ckpt=by_official_export(trained, push, folder), export=folder / "authors.pt")
    return folder / "authors.pt"


def by_mbpo(trained, push, folder):
    train(mbpo, **MBPO, init_from=trained.gpt, out=folder / "agent.pt")
    return folder / "agent.pt"


def by_official_export(trained, push, folder):
    pytest.importorskip("safetensors", reason="pip install safetensors")
    torch.manual_seed(0)
    small = dict(channels=(32, 32, 64), layers_per_block=1, code_dim=4, context_codes=24, dynamics_codes=16)
    vqgan = Tokenizer(**{**tokenizer.SMALL, **small})
    small = dict(n_layer=2, n_head=2, n_embd=16, n_mlp=24, action_dim=2, reward=True)
    official.export(folder / "official", vqgan, GPT(vqgan.layout, **{**gpt.SMALL, **small}))
    return folder / "official"


def as_released(trained, push, folder):
    return ROOT / "assets" / "push-tiny.pt"


WRITERS = {f.__name__: f for f in (
    by_train_gpt, by_train_gpt_without_actions, by_train_gpt_with_a_goal, by_train_gpt_from_another,
    by_train_gpt_on_tokens_per_frame, by_train_gpt_on_one_context_frame, by_sample_export,
    by_sample_export_of_an_authors_model, by_mbpo, by_official_export, as_released,
)}  # fmt: skip


@pytest.fixture(scope="module", params=WRITERS)
def written(request, trained, push, tmp_path_factory):
    """A checkpoint of each kind: its writer's name and its path."""
    folder = tmp_path_factory.mktemp("written")
    return request.param, WRITERS[request.param](trained, push, folder)


# ---- all of them open ----


def test_weights_that_are_not_finite_are_named(trained, tmp_path):
    state = load_checkpoint(trained.gpt)
    state["gpt"]["weights"]["norm.weight"][0] = torch.nan
    with pytest.raises(ValueError, match="weights are not finite, such as norm.weight; take an older"):
        gpt_from(state["gpt"])
    state["tokenizer"]["weights"]["quant_conv.bias"][0] = torch.inf
    with pytest.raises(ValueError, match="weights are not finite, such as quant_conv.bias"):
        tokenizer_from(state["tokenizer"])


def test_more_layers_than_weights_are_not_built(trained):
    state = load_checkpoint(trained.gpt)
    state["gpt"]["config"]["n_layer"] = 10**9
    with pytest.raises(ValueError, match="n_layer is 1000000000, but there are .* weights: no checkpoint"):
        gpt_from(state["gpt"])
    state["tokenizer"]["config"]["layers_per_block"] = 10**9
    with pytest.raises(ValueError, match="layers_per_block is 1000000000, but there are .* weights"):
        tokenizer_from(state["tokenizer"])


def test_the_world_model_opens_it_and_imagines(written):
    name, path = written
    world = WorldModel.load(str(path), "cpu")
    R = world.tokenizer.config["resolution"]
    t = world.context_frames
    assert t == (1 if name.endswith("one_context_frame") else 2)
    assert world.goal_conditioned == name.endswith("with_a_goal")
    frames = torch.rand(1, t, 3, R, R)
    world.reset(frames, n_branches=2)
    h = world.gpt.config["segment_length"] - t + 1  # one more than the segment holds
    actions = torch.rand(2, h, world.action_dim) * 2 - 1 if world.action_dim else None
    imagined, rewards, _ = world.rollout(actions, h)
    assert imagined.shape == (2, h, 3, R, R)
    assert imagined.isfinite().all() and imagined.min() >= 0 and imagined.max() <= 1
    if name.endswith("without_actions"):
        assert world.action_dim == 0 and rewards is None
    else:
        assert world.action_dim == 2 and rewards.shape == (2, h) and rewards.isfinite().all()
    if world.goal_conditioned:
        assert torch.equal(world.recent[0, 0], frames[0, 0])


def test_it_says_how_the_world_model_is_used(written):
    name, path = written
    trained = WorldModel.load(str(path), "cpu").trained
    assert trained.keys() == TRAINED.keys()
    if name in ("by_mbpo", "as_released"):
        assert trained["data"] == "push"
    if path.is_file():
        settings = load_checkpoint(path)["train_config"]
        assert trained == {key: settings[key] for key in TRAINED}


def test_its_parts_open_alone_and_are_the_same(written):
    _, path = written
    world = WorldModel.load(str(path), "cpu")
    vqgan = load_tokenizer(str(path))
    model = load_gpt(str(path))
    assert vqgan.layout == model.layout == world.gpt.layout
    for part, whole in ((vqgan, world.tokenizer), (model, world.gpt)):
        own = part.state_dict()
        same = whole.state_dict()
        assert own.keys() == same.keys()
        assert all(torch.equal(own[key], same[key]) for key in own)


def test_its_export_imagines_nearly_the_same(written, tmp_path):
    name, path = written
    if "export" in name:
        pytest.skip("it is an export")
    call_sample(ckpt=path, export=tmp_path / "export.pt")
    before = WorldModel.load(str(path), "cpu")
    after = WorldModel.load(str(tmp_path / "export.pt"), "cpu")
    assert after.trained == before.trained and after.top_k == before.top_k
    assert after.temperature == before.temperature
    assert after.tokenizer.config == before.tokenizer.config and after.gpt.config == before.gpt.config
    weights = after.gpt.state_dict()
    for key, weight in before.gpt.state_dict().items():
        assert torch.allclose(weights[key], weight, atol=1e-3, rtol=1e-3)


def test_an_export_samples_as_it_was_told_to(trained, tmp_path):
    call_sample(ckpt=trained.gpt, export=tmp_path / "export.pt", temperature=0.25, top_k=3)
    world = WorldModel.load(str(tmp_path / "export.pt"), "cpu")
    assert (world.temperature, world.top_k) == (0.25, 3)


# ---- those that hold no world model ----


def test_a_tokenizer_alone_is_refused_in_one_line(trained):
    message = r"tokenizer\.pt holds no gpt; expected .*gpt, tokenizer"
    with pytest.raises(ValueError, match=message) as error:
        WorldModel.load(str(trained.tokenizer), "cpu")
    assert "\n" not in str(error.value)


def test_an_agent_without_a_world_model_is_refused_in_one_line(trained, tmp_path):
    train(mbpo, **MBPO, imagine=False, out=tmp_path / "alone.pt")
    message = r"alone\.pt holds no gpt, tokenizer; expected .*gpt, tokenizer"
    with pytest.raises(ValueError, match=message) as error:
        WorldModel.load(str(tmp_path / "alone.pt"), "cpu")
    assert "\n" not in str(error.value)
