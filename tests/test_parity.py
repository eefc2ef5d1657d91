"""Parity with the authors' code, on weights drawn from the tensors' names: no download is needed.

golden_seeded/README.md says what the stored outputs are."""

import json
import sys
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT

import gpt
import official
import tokenizer
from gpt import GPT
from sample import WorldModel
from tokenizer import Tokenizer

GOLDEN = ROOT / "tests" / "golden_seeded"
sys.path.insert(0, str(GOLDEN))
import seeded  # noqa: E402

SMALL = ["act4-reward-64", "free-ctx1-64"]
CASES = [*SMALL, pytest.param("paper-64", marks=pytest.mark.slow)]


def draw(model, pairs, prefix=""):
    """All tensors that the authors' files hold for a model, drawn from their names."""
    own = model.state_dict()
    weights = {}
    for ours, theirs in pairs:
        rows = sum(len(own[key]) for key in ours) // len(theirs)
        for key in theirs:
            drawn = seeded.weight(key.removeprefix(prefix), (rows, *own[ours[0]].shape[1:]))
            weights[key] = torch.from_numpy(drawn)
    return weights


def settings_of(case):
    """Settings of the tokenizer, and those of the transformer, from the authors' configurations."""
    theirs = case["tokenizer"]
    ours = {key: theirs[name] for key, name in official.TOKENIZER_SETTINGS.items()}
    grid = theirs["resolution"] // 2 ** (len(theirs["block_out_channels"]) - 1)
    ours["dynamics_grid"] = grid // theirs["patch_size"]
    ours["max_att_resolution"] = theirs["max_att_resolution"]
    heads = dict(action_dim=case["action_dim"], reward=case["reward"], segment_length=case["frames"])
    transformer = {key: case["transformer"][name] for key, name in official.GPT_SETTINGS.items()}
    return {**tokenizer.SMALL, **ours}, {**gpt.SMALL, **transformer, **heads}


def write_folder(folder, case, weights):
    """The authors' files of both models."""
    save_file = pytest.importorskip("safetensors.torch", reason="pip install safetensors").save_file
    for part, tensors in weights.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(case[part]))
        save_file(tensors, folder / part / official.FILES[part])


def build(name, tmp_path_factory):
    """A WorldModel with drawn weights: small ones by way of the authors' files, as a user loads them."""
    case = json.loads((GOLDEN / f"{name}.json").read_text())
    tokenizer_settings, gpt_settings = settings_of(case)
    small = name in SMALL
    with torch.device("meta" if small else "cpu"):
        vqgan = Tokenizer(**tokenizer_settings)
        model = GPT(vqgan.layout, **gpt_settings)
    pairs = dict(tokenizer=official.tokenizer_pairs(vqgan))
    pairs["transformer"] = official.gpt_pairs(model, wrapped=case["action_dim"] > 0)
    weights = dict(
        tokenizer=draw(vqgan, pairs["tokenizer"]),
        transformer=draw(model, pairs["transformer"], "llm."),
    )
    if small:
        folder = tmp_path_factory.mktemp(name)
        write_folder(folder, case, weights)
        return case, WorldModel.load(str(folder), "cpu", segment_length=case["frames"])
    official.fill(vqgan, weights["tokenizer"], pairs["tokenizer"], name)
    official.fill(model, weights["transformer"], pairs["transformer"], name)
    return case, WorldModel(vqgan, model)


def load_case(name, tmp_path_factory):
    """A case: its world model, input frames, actions or None, and the outputs of the authors' code."""
    case, world = build(name, tmp_path_factory)
    B = case["batch"]
    T = case["frames"]
    A = case["action_dim"]
    video_u8 = seeded.video(B, T, case["tokenizer"]["resolution"])
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        expected = {key: torch.as_tensor(arrays[key]) for key in arrays.files}
    assert zlib.crc32(video_u8.tobytes()) == expected["video_crc"], "numpy draws another video here"
    return SimpleNamespace(
        name=name,
        world=world,
        frames=torch.from_numpy(video_u8).float() / 255,
        actions=torch.from_numpy(seeded.actions(B, T, A)) if A else None,
        expected=expected,
    )


@pytest.fixture(scope="module", params=CASES)
def golden(request, tmp_path_factory):
    return load_case(request.param, tmp_path_factory)


@pytest.fixture(scope="module", params=SMALL)
def small(request, tmp_path_factory):
    return load_case(request.param, tmp_path_factory)


def largest_difference(x, y):
    assert x.shape == y.shape
    return (x - y).abs().max().item()


# ---- against the authors' code ----


@torch.no_grad()
def test_tokens_and_decoded_frames_are_those_of_the_authors(golden):
    vqgan = golden.world.tokenizer
    assert torch.equal(vqgan.encode(golden.frames), golden.expected["tokens"].long())
    decoded = vqgan.decode(golden.expected["tokens"].long())
    assert largest_difference(decoded[..., ::7, ::5], golden.expected["frames_sample"]) < 5e-5


@torch.no_grad()
def test_logits_loss_and_rewards_are_those_of_the_authors(golden):
    model = golden.world.gpt
    tokens = golden.expected["tokens"].long()
    expected = golden.expected["logits"]
    hidden = model.hidden(tokens, golden.actions)
    assert largest_difference(model.lm_head(hidden)[:, -expected.shape[1] :], expected) < 5e-5
    rewards = None if golden.actions is None else torch.zeros(golden.actions.shape[:2])
    _, metrics = model.loss(tokens, golden.actions, rewards)
    assert abs(metrics["ce"] - golden.expected["loss"]) < 1e-5
    if "reward" in golden.expected:
        ends = model.layout.ends(model.layout.future_frames(tokens.shape[1]))
        found = model.reward(hidden[:, ends])[..., 0]
        assert largest_difference(found, golden.expected["reward"]) < 2e-5


def test_the_paper_case_has_the_papers_sizes():
    case = json.loads((GOLDEN / "paper-64.json").read_text())
    tokenizer_settings, gpt_settings = settings_of(case)
    with torch.device("meta"):
        vqgan = Tokenizer(**tokenizer_settings)
        model = GPT(vqgan.layout, **gpt_settings)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (vqgan, model)]
    heads = (4 + 1) * 768 + 768 + 1  # action projection and reward head, with biases
    assert sizes == [114_159_174, 138_434_304 + heads]


# ---- the cache against the plain way ----


def imagine_plainly(model, tokens, actions, frames):
    """Codes (B, h, n) of `frames` greedy frames after the context tokens (B, L), one after another."""
    layout = model.layout
    context, _ = layout.unpack(tokens)
    codes = []
    for k in range(frames):
        known = None if actions is None else actions[:, : layout.context_frames + k + 1]
        codes.append(model.imagine_plainly(tokens, known))
        tokens = layout.pack(context, torch.stack(codes, 1))
    return torch.stack(codes, 1)


@pytest.mark.parametrize("n_branches", [1, 3])
@torch.no_grad()
def test_greedy_imagination_with_the_cache_equals_the_plain_way(small, n_branches):
    model = small.world.gpt
    t = model.layout.context_frames
    h = small.frames.shape[1] - t
    tokens = small.world.tokenizer.encode(small.frames[:, :t])
    B = len(tokens)
    A = model.config["action_dim"]
    actions = torch.from_numpy(seeded.actions(B * n_branches, t + h, A)) if A else None
    expected = imagine_plainly(model, tokens.repeat_interleave(n_branches, 0), actions, h)
    later = None if actions is None else actions[:, t - 1 : t - 1 + h]
    cache = model.prefill(tokens, n_branches=n_branches)
    for _ in range(2):  # also after going back to the context
        codes, rewards = model.imagine(cache, h, later, temperature=0.0)
        assert torch.equal(codes, expected)
        assert (rewards is None) == (A == 0)
        cache = model.prefill(tokens, n_branches=n_branches, reuse=cache)
    if A:
        whole = model.layout.pack(tokens_of(model, tokens).repeat_interleave(n_branches, 0), expected)
        hidden = model.hidden(whole, actions)
        plain = model.rewards(hidden[:, model.layout.ends(h)])
        assert largest_difference(rewards, plain) < 1e-4
    if n_branches > 1 and A:
        branches = expected.unflatten(0, (B, n_branches))
        assert not torch.equal(branches[:, 0], branches[:, 1])  # other actions, another future


def tokens_of(model, tokens):
    """Context codes (B, t, N) of context tokens (B, L)."""
    return model.layout.unpack(tokens)[0]
