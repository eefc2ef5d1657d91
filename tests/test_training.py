"""train_tokenizer.py and train_gpt.py: two steps, fine-tuning, several processes, interruption, errors."""

import json
import random
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import GPT_RUN, GPT_TUNE, TOKENIZER_RUN, TOKENIZER_TUNE, flags, python, train

import train_gpt
import train_tokenizer
from checkpoints import load_gpt, load_tokenizer
from common import configure, load_checkpoint
from data import Episodes, goal_first, to_float
from envs.base import HELD_OUT
from envs.push import play_segments
from gpt import GPT
from sample import WorldModel
from support.tokens import TokenFile, tokenize_segments
from support.writer import EpisodeWriter
from variants.drift import corrupt
from variants.muon import optimizers_for
from variants.per_frame import PerFrameTokenizer
from variants.tiny import TinyTokenizer

# Runs a script as its file would, but sends a signal to itself in the middle of the loop, before one update.
SIGNAL_AT_A_STEP = """
import os, sys
import {script} as script
from common import configure, run
lr_at = script.lr_at
def lr_at_or_signal(step, *settings):
    if step == {step}:
        os.kill(os.getpid(), {number})
    return lr_at(step, *settings)
script.lr_at = lr_at_or_signal
run(script.main, configure(script.CONFIG, script.__doc__, sys.argv[1:], script.PRESETS))
"""


def signal_at(script, step, number, **settings):
    code = SIGNAL_AT_A_STEP.format(script=script.__name__, step=step, number=int(number))
    return python("-c", code, *flags(**settings))


def lines(path):
    """The numbers in the log beside a checkpoint."""
    return [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]


def assert_same(a, b, where="state"):
    """Two checkpoints hold the same data, bit for bit."""
    if torch.is_tensor(a):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


# ---- two steps ----


def test_a_per_frame_tokenizer_is_trained_by_its_kind_and_carries_a_world_model(push, tmp_path):
    train(train_tokenizer, **TOKENIZER_RUN, kind="2x2", data=push, out=tmp_path / "t.pt")
    assert isinstance(load_tokenizer(tmp_path / "t.pt"), PerFrameTokenizer)
    assert lines(tmp_path / "t.pt")[-1]["val_psnr"] > 0
    train(train_gpt, **GPT_RUN, data=push, tokenizer=tmp_path / "t.pt", out=tmp_path / "g.pt")
    model = WorldModel.load(tmp_path / "g.pt", "cpu")
    model.reset(torch.rand(2, 2, 3, 32, 32))
    assert model.rollout(torch.zeros(2, 5, 2), 5)[0].shape == (2, 5, 3, 32, 32)
    with pytest.raises(ValueError, match="kind is '2x3'; expected compressive, or a square such as 16x16"):
        train(train_tokenizer, **TOKENIZER_RUN, kind="2x3", data=push, out=tmp_path / "x.pt")


def test_two_steps_of_the_tokenizer_write_a_checkpoint_numbers_and_a_picture(trained):
    state = load_checkpoint(trained.tokenizer, needs=("optimizers", "rng", "train_config"))
    assert state["step"] == 2
    assert load_tokenizer(trained.tokenizer).config["channels"] == (16,)
    steps = lines(trained.tokenizer)
    assert [numbers["step"] for numbers in steps] == [1, 2, 2]
    assert {"loss", "lr", "ms", "wait", "recon", "psnr", "used_dynamics"} <= set(steps[0])
    assert {"val_psnr", "val_recon"} <= set(steps[-1])
    assert trained.tokenizer.with_suffix(".png").stat().st_size > 0


def test_two_steps_of_the_transformer_write_one_file_with_both_models(trained):
    state = load_checkpoint(trained.gpt, needs=("optimizers", "rng", "train_config"))
    model = load_gpt(trained.gpt)
    assert (state["step"], model.config["action_dim"], model.config["reward"]) == (2, 2, True)
    assert_same(state["tokenizer"], load_checkpoint(trained.tokenizer)["tokenizer"])
    steps = lines(trained.gpt)
    assert {"loss", "lr", "ms", "wait", "tok/s", "ce", "accuracy", "reward_mse"} <= set(steps[0])
    assert {"val_ce", "val_psnr"} <= set(steps[-1])
    assert trained.gpt.with_suffix(".png").stat().st_size > 0


def split_by_optimizer(model, groups, cfg):
    """Names of the parameters that AdamW and Muon get."""
    names = {id(p): name for name, p in model.named_parameters()}
    return (
        {names[id(p)] for group in optimizer.param_groups for p in group["params"]}
        for optimizer in optimizers_for(model, groups, cfg)
    )


def test_muon_takes_hidden_layers_and_adamw_the_others(trained):
    model = load_gpt(trained.gpt)
    cfg = configure(train_gpt.CONFIG, "", ["--preset=tiny"], train_gpt.PRESETS)
    adamw, muon = split_by_optimizer(model, model.param_groups(0.01), cfg)
    assert muon == {name for name, p in model.named_parameters() if "blocks" in name and p.ndim == 2}
    assert adamw | muon == {name for name, _ in model.named_parameters()} and not adamw & muon
    model = load_tokenizer(trained.tokenizer)
    cfg = configure(train_tokenizer.CONFIG, "", ["--preset=tiny"], train_tokenizer.PRESETS)
    groups = [dict(params=[*model.parameters()])]
    assert all(o.param_groups[0]["weight_decay"] == 0 for o in optimizers_for(model, groups, cfg))
    groups = [dict(params=[*model.parameters()])]  # anew: optimizers_for has taken some out
    adamw, muon = split_by_optimizer(model, groups, cfg)
    assert {"encoder.down_blocks.0.resnets.0.conv1.weight", "cond_decoder.cross.0.q.weight"} <= muon
    assert {"encoder.conv_in.weight", "quantize.embedding.weight", "cond_decoder.cross.0.q_pos_emb"} <= adamw
    assert adamw | muon == {name for name, _ in model.named_parameters()} and not adamw & muon


def test_corruption_replaces_future_codes_alone_and_more_of_them_later(trained):
    torch.manual_seed(0)
    layout = load_gpt(trained.gpt).layout
    tokens = layout.pack(torch.zeros(400, 2, layout.tokens_context).long(), torch.zeros(400, 4, 16).long())
    read = corrupt(layout, tokens, 0.8)
    context, dynamics = layout.unpack(read)
    shares = (dynamics > 0).float().mean((0, 2))  # of frames
    assert not context.any() and shares[0] == 0
    expected = 0.8 / 2 * torch.arange(4) / 3 * 31 / 32  # a sample can be the code that is there
    torch.testing.assert_close(shares, expected, atol=0.03, rtol=0)


def test_the_model_reads_corrupted_tokens_and_predicts_the_true_ones(trained):
    model = load_gpt(trained.gpt)
    layout = model.layout
    tokens = layout.pack(torch.zeros(2, 2, layout.tokens_context).long(), torch.ones(2, 3, 16).long())
    read = layout.pack(torch.zeros(2, 2, layout.tokens_context).long(), torch.zeros(2, 3, 16).long())
    actions, rewards = torch.zeros(2, 5, 2), torch.zeros(2, 5)
    logits = model(read, actions)[:, layout.prompt - 1 : -1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, layout.prompt :].flatten())
    whole, metrics = model.loss(tokens, actions, rewards, read)
    assert metrics["ce"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert whole.item() == pytest.approx((metrics["ce"] + metrics["reward_mse"]).item(), rel=1e-5)


def test_segments_tokenized_once_are_those_of_the_stream(push, trained, tmp_path):
    how = dict(stride=1, action_agg="sample", device="cpu", batch_size=4, seed=3, overwrite=False)
    file = tmp_path / "tokens.pt"
    tokenize_segments(file, str(push), trained.tokenizer, segments=7, segment_length=8, **how)
    tokenizer = load_tokenizer(trained.tokenizer)
    cfg = SimpleNamespace(tokens=file, data=str(push), stride=1, action_agg="sample")
    stored = TokenFile(cfg, tokenizer, 6, Episodes(push))
    epochs = [stored.batch_u8(first, 7, 6, seed=0, stride=1, action_agg="sample") for first in (0, 7)]
    segments = Episodes(push).batch(0, 7, 8, seed=3)
    for batch in epochs:
        rows = stored.order(0, 0 if batch is epochs[0] else 1)
        assert sorted(rows) == list(range(7))
        assert torch.equal(batch["tokens"], tokenizer.encode(segments["frames"][rows, :6]))
        assert torch.equal(batch["actions"], segments["actions"][rows, :6])
    assert not torch.equal(epochs[0]["tokens"], epochs[1]["tokens"])
    train(train_gpt, **GPT_RUN, data=push, tokenizer=trained.tokenizer, tokens=file, out=tmp_path / "x.pt")
    with pytest.raises(ValueError, match="segments of 8 frames; expected 9"):
        TokenFile(cfg, tokenizer, 9, Episodes(push))
    cfg.stride = 2
    tokenizer.quant_conv.bias.data += 1
    with pytest.raises(ValueError, match="made with another tokenizer, stride; make it anew"):
        TokenFile(cfg, tokenizer, 6, Episodes(push))


def test_new_episodes_of_pushworld_are_tokenized_without_a_folder(push, trained, tmp_path):
    how = dict(data="push", tokenizer=trained.tokenizer, segment_length=8, action_agg="sample", device="cpu")
    how.update(segments=5, batch_size=4, seed=3, overwrite=False)
    file = tmp_path / "tokens.pt"
    tokenize_segments(file, stride=1, **how)
    tokenizer = load_tokenizer(trained.tokenizer)
    stored = load_checkpoint(file)
    segments = list(play_segments(5, 8, HELD_OUT // 2 + 3, size=32))
    assert torch.equal(stored["tokens"][4:], tokenizer.encode(to_float(segments[4]["frames_u8"])[None]))
    assert torch.equal(stored["rewards"][4], torch.from_numpy(segments[4]["rewards"]))
    cfg = SimpleNamespace(tokens=file, data=str(push), stride=1, action_agg="sample")
    opened = TokenFile(cfg, tokenizer, 8, Episodes(push))
    assert len(opened.batch_u8(0, 5, 8, 0, 1, "sample")["tokens"]) == 5
    other = SimpleNamespace(meta=dict(source="videos"))
    with pytest.raises(ValueError, match="holds PushWorld's segments, .*push other episodes"):
        TokenFile(cfg, tokenizer, 8, other)
    with pytest.raises(ValueError, match="stride is 2; new episodes of PushWorld have 1"):
        tokenize_segments(tmp_path / "other.pt", stride=2, **how)
    with pytest.raises(ValueError, match="seed is -1; expected 0 to 499999"):
        tokenize_segments(tmp_path / "other.pt", stride=1, **{**how, "seed": -1})
    with pytest.raises(ValueError, match=r"are \(5, 8, 0\); expected 1 or more"):
        tokenize_segments(tmp_path / "other.pt", stride=1, **{**how, "batch_size": 0})


def test_actions_and_rewards_may_be_left_out(trained):
    config = load_checkpoint(trained.free)["gpt"]["config"]
    assert (config["action_dim"], config["reward"]) == (0, False)


def test_goal_conditioning_shows_a_copy_of_the_last_frame_first(push, trained, tmp_path):
    batch = goal_first(Episodes(push).batch(0, 4, 5))
    assert torch.equal(batch["frames"][:, 0], batch["frames"][:, -1]) and batch["frames"].shape[1] == 6
    assert not batch["actions"][:, 0].any() and not batch["rewards"][:, 0].any()
    assert torch.equal(batch["actions"][:, 1:], Episodes(push).batch(0, 4, 5)["actions"])
    out = tmp_path / "gpt.pt"
    train(train_gpt, **GPT_RUN, data=push, tokenizer=trained.tokenizer, out=out, goal_conditioned=True)
    state = load_checkpoint(out)
    assert state["train_config"]["goal_conditioned"] and state["gpt"]["config"]["segment_length"] == 6


# ---- fine-tuning ----


def test_init_from_adds_actions_and_rewards_to_a_transformer_without(push, trained, tmp_path):
    out = tmp_path / "gpt.pt"
    train(train_gpt, **{**GPT_TUNE, "lr": 0.0}, data=push, init_from=trained.free, out=out)
    old, new = (load_checkpoint(path)["gpt"] for path in (trained.free, out))
    assert (new["config"]["action_dim"], new["config"]["reward"]) == (2, True)
    added = {"action.weight", "action.bias", "reward.weight", "reward.bias"}
    assert new["weights"].keys() - old["weights"].keys() == added
    assert_same(old["weights"], {k: v for k, v in new["weights"].items() if k not in added})  # lr is 0
    assert not new["weights"]["action.weight"].any()


def test_a_fine_tuned_tokenizer_keeps_its_frozen_codebooks(push, trained, tmp_path):
    out = tmp_path / "tokenizer.pt"
    settings = {**TOKENIZER_TUNE, "max_steps": 8, "eval_every": 8}  # more than revive_after of the first run
    train(train_tokenizer, **settings, data=push, out=out, init_from=trained.tokenizer, freeze_codebooks=True)
    old, new = (load_checkpoint(path)["tokenizer"]["weights"] for path in (trained.tokenizer, out))
    for name in ("quantize", "dynamics_quantize"):
        assert torch.equal(old[f"{name}.embedding.weight"], new[f"{name}.embedding.weight"])
    assert not torch.equal(old["encoder.conv_in.weight"], new["encoder.conv_in.weight"])


def test_codes_that_are_fixed_by_themselves_can_be_frozen_too(push, tmp_path):
    settings = {**TOKENIZER_RUN, "data": push, "fsq": True, "context_codes": 1000, "dynamics_codes": 1000}
    train(train_tokenizer, **settings, out=tmp_path / "a.pt", freeze_codebooks=True)
    assert load_checkpoint(tmp_path / "a.pt")["step"] == TOKENIZER_RUN["max_steps"]


def test_init_from_refuses_sizes_and_takes_what_may_change(push, trained, tmp_path):
    out = tmp_path / "x.pt"
    with pytest.raises(ValueError, match="--init_from sets channels, code_dim; leave them out"):
        sizes = dict(code_dim=8, channels=(16,), dropout=0.1)
        train(train_tokenizer, **TOKENIZER_TUNE, **sizes, data=push, out=out, init_from=trained.tokenizer)
    with pytest.raises(ValueError, match="--init_from sets n_layer; leave them out"):
        train(train_gpt, **GPT_TUNE, n_layer=3, data=push, out=out, init_from=trained.gpt)
    train(train_gpt, **GPT_TUNE, data=push, out=out, init_from=trained.gpt, segment_length=7)
    assert load_gpt(out).config == {**load_gpt(trained.gpt).config, "segment_length": 7}


@pytest.mark.parametrize("script", [train_tokenizer, train_gpt], ids=lambda script: script.__name__)
def test_mixed_precision_trains_on_a_cpu_too_and_keeps_weights_in_float32(script, push, trained, tmp_path):
    settings = {**(TOKENIZER_RUN if script is train_tokenizer else GPT_RUN), "data": push, "dtype": "bf16"}
    if script is train_gpt:
        settings["tokenizer"] = trained.tokenizer
    train(script, **settings, out=tmp_path / "x.pt")
    state = load_checkpoint(tmp_path / "x.pt")
    weights = state["tokenizer" if script is train_tokenizer else "gpt"]["weights"]
    assert {w.dtype for w in weights.values() if w.is_floating_point()} == {torch.float32}
    assert all(w.isfinite().all() for w in weights.values())


def test_max_minutes_ends_a_run_early_and_saves(push, trained, tmp_path):
    out, settings = tmp_path / "gpt.pt", {**GPT_RUN, "max_steps": 100, "eval_every": 100}
    train(train_gpt, **settings, data=push, tokenizer=trained.tokenizer, out=out, max_minutes=1e-9)
    assert load_checkpoint(out)["step"] == 1


# ---- gradients of larger batches ----

ONE_STEP = dict(max_steps=1, eval_every=1, grad_clip=0.0, warmup=0, lr=1e-3)


def first_moments(path):
    """Gradients of the first update, one vector: AdamW's first moment is 0.1 of them."""
    saved = load_checkpoint(path)
    state = saved["optimizers"][0]["state"]
    return torch.cat([state[i]["exp_avg"].flatten() for i in sorted(state)]) / 0.1


@pytest.mark.slow
@pytest.mark.parametrize("script", [train_tokenizer, train_gpt], ids=lambda script: script.__name__)
def test_two_processes_give_the_gradient_of_one_with_twice_the_batch(script, push, trained, tmp_path):
    settings = {**(TOKENIZER_RUN if script is train_tokenizer else GPT_RUN), **ONE_STEP, "data": push}
    if script is train_tokenizer:  # revived codes and other colours are drawn, by each process for itself
        settings.update(revive_after=0, disguise=False, grad_clip=1e9)
    else:
        settings.update(tokenizer=trained.tokenizer, corrupt=0.0)
    settings["muon"] = False
    one, two = tmp_path / "one.pt", tmp_path / "two.pt"
    train(script, **{**settings, "batch_size": 8, "out": one})
    torchrun = "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", f"{script.__name__}.py"
    done = python(*torchrun, *flags(**{**settings, "batch_size": 4, "out": two}))
    assert done.returncode == 0, done.stderr
    assert "cpu x 2" in done.stdout and "8 segments per step" in done.stdout
    expected, found = first_moments(one), first_moments(two)
    assert expected.abs().max() > 1e-2 and torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("script", [train_tokenizer, train_gpt], ids=lambda script: script.__name__)
def test_grad_clip_bounds_the_gradient_and_0_switches_it_off(script, push, trained, tmp_path):
    settings = {**(TOKENIZER_RUN if script is train_tokenizer else GPT_RUN), **ONE_STEP, "data": push}
    settings["muon"] = False
    if script is train_gpt:
        settings.update(tokenizer=trained.tokenizer)
    norms = []
    for clip in (0.0, 1e-3):
        train(script, **{**settings, "grad_clip": clip}, out=tmp_path / "x.pt", overwrite=True)
        norms.append(first_moments(tmp_path / "x.pt").norm().item())
    assert norms[0] > 0.1 and norms[1] == pytest.approx(1e-3, rel=1e-3)


def test_two_micro_steps_give_the_gradient_of_one_with_twice_the_batch(push, trained, tmp_path):
    one, two = tmp_path / "one.pt", tmp_path / "two.pt"
    settings = {**GPT_RUN, **ONE_STEP, "muon": False, "corrupt": 0.0}
    settings.update(data=push, tokenizer=trained.tokenizer)
    train(train_gpt, **{**settings, "batch_size": 8, "out": one})
    train(train_gpt, **{**settings, "batch_size": 4, "out": two}, accumulate=2)
    assert torch.allclose(first_moments(two), first_moments(one), atol=1e-5)


@pytest.mark.slow
def test_two_nodes_train_as_one_with_as_many_processes(push, trained, tmp_path):
    settings = {**GPT_RUN, "data": push, "tokenizer": trained.tokenizer, "max_steps": 3, "log_every": 1}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{free.getsockname()[1]}"
    losses = []
    for nodes, how in ((1, ("--standalone",)), (2, ("--nnodes=2", *meet))):
        out = tmp_path / f"{nodes}.pt"
        torchrun = "-m", "torch.distributed.run", *how, f"--nproc_per_node={2 // nodes}", "train_gpt.py"
        command = *torchrun, *flags(**settings, out=out)
        with ThreadPoolExecutor(nodes) as pool:
            done = list(pool.map(lambda _, command=command: python(*command), range(nodes)))
        assert all(node.returncode == 0 for node in done), done
        losses.append([line["loss"] for line in lines(out) if "loss" in line])
    assert losses[0] == losses[1] and len(losses[0]) == 3


# ---- interruption ----


@pytest.mark.slow
@pytest.mark.parametrize("script", [train_tokenizer, train_gpt], ids=lambda script: script.__name__)
def test_a_killed_and_resumed_run_ends_bit_for_bit_where_an_uninterrupted_one_does(
    script, push, trained, tmp_path
):
    if script is train_tokenizer:  # everything that has a state: revival, dropout, discriminator
        settings = {**TOKENIZER_RUN, "dropout": 0.1, "discriminator_start": 1, "batch_size": 2}
    else:
        settings = {**GPT_RUN, "tokenizer": trained.tokenizer, "att_dropout": 0.1, "corrupt": 0.5}
    settings.update(data=push, max_steps=12, eval_every=3, schedule="cosine", warmup=3)
    whole, parts = tmp_path / "whole.pt", tmp_path / "parts.pt"
    train(script, **settings, out=whole)
    step = random.randrange(4, 12)
    assert signal_at(script, step, signal.SIGKILL, **settings, out=parts).returncode == -signal.SIGKILL
    assert load_checkpoint(parts)["step"] == step // 3 * 3, f"killed before update {step}"
    train(script, out=parts, resume=True)  # all else is in the checkpoint
    states = load_checkpoint(whole), load_checkpoint(parts)
    for state in states:
        del state["train_config"]  # it names the file
    assert_same(*states, where=f"killed before update {step}: state")
    logs = lines(whole), lines(parts)
    assert script is train_gpt or "discriminator" in logs[0][1]
    for numbers in (*logs[0], *logs[1]):
        [numbers.pop(key, None) for key in ("ms", "tok/s", "wait")]
    assert logs[0] == logs[1]


@pytest.mark.slow
def test_sigterm_finishes_the_update_saves_and_exits_with_0(push, trained, tmp_path):
    out, rare = tmp_path / "gpt.pt", dict(max_steps=1000, eval_every=500, log_every=500)
    settings = {**GPT_RUN, **rare, "data": push, "tokenizer": trained.tokenizer, "out": out}
    done = signal_at(train_gpt, 5, signal.SIGTERM, **settings)
    assert done.returncode == 0, done.stderr
    assert load_checkpoint(out)["step"] == 6 == lines(out)[-1]["step"]  # saved at once, not evaluated first


# ---- errors ----


@pytest.mark.parametrize("script", [train_tokenizer, train_gpt], ids=lambda script: script.__name__)
def test_an_update_has_a_micro_step_or_more(script, push, tmp_path):
    with pytest.raises(ValueError, match="--accumulate is 0; expected at least 1"):
        train(script, preset="tiny", accumulate=0, data=push, out=tmp_path / "x.pt")


@pytest.mark.parametrize("script", [train_tokenizer, train_gpt], ids=lambda script: script.__name__)
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    script, push, trained, tmp_path, monkeypatch
):
    model, name = (TinyTokenizer, "forward") if script is train_tokenizer else (GPT, "loss")
    loss, calls = model.loss, []

    def spoiled(self, *inputs, **settings):
        value, metrics = loss(self, *inputs, **settings)
        calls.append(self.training)
        return value * (float("nan") if sum(calls) == 4 and self.training else 1), metrics

    monkeypatch.setattr(model, name, spoiled)
    settings = {**(TOKENIZER_RUN if script is train_tokenizer else GPT_RUN), "max_steps": 9, "eval_every": 3}
    if script is train_gpt:
        settings["tokenizer"] = trained.tokenizer
    out = tmp_path / "x.pt"
    with pytest.raises(FloatingPointError, match="loss is not finite at step 4; .*x.pt"):
        train(script, **{**settings, "log_every": 6}, data=push, out=out)  # noticed at step 6
    state = load_checkpoint(out)
    assert state["step"] == 3
    weights = state["tokenizer" if script is train_tokenizer else "gpt"]["weights"]
    assert all(value.isfinite().all() for value in weights.values())


def test_data_of_another_resolution_is_refused_by_both_scripts(trained, tmp_path):
    with EpisodeWriter(tmp_path / "data", "16 pixels") as writer:
        for _ in range(2):
            writer.add(np.zeros((12, 16, 16, 3), np.uint8))
    out = tmp_path / "x.pt"
    with pytest.raises(ValueError, match=r"frames \(16, 16, 3\), expected \(32, 32, 3\): import"):
        train(train_gpt, **GPT_RUN, data=tmp_path / "data", tokenizer=trained.tokenizer, out=out)
    with pytest.raises(ValueError, match=r"frames \(16, 16, 3\), expected 32 x 32; import"):
        train(train_tokenizer, **TOKENIZER_RUN, data=tmp_path / "data", out=out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [("top_k", -1, "0 or more"), ("temperature", -1.0, "0 or more"), ("corrupt", 20.0, "0 to 1")],
)
def test_sampling_and_corruption_out_of_range_are_refused_before_training(key, value, expected, tmp_path):
    with pytest.raises(ValueError, match=f"--{key} is {value}; expected {expected}"):
        train(train_gpt, **{**GPT_RUN, key: value}, data="nowhere", out=tmp_path / "x.pt")


def test_tokens_of_all_episodes_do_not_go_with_some_of_them(push, trained, tmp_path):
    settings = dict(GPT_RUN, data=push, tokenizer=trained.tokenizer, out=tmp_path / "x.pt", tokens="any.pt")
    with pytest.raises(ValueError, match="tokens are of all episodes, .*; leave --tokens out"):
        train(train_gpt, **settings, episodes=2)


def test_a_missing_tokenizer_is_one_line_without_a_traceback(push, tmp_path):
    settings = {**GPT_RUN, "data": push, "tokenizer": tmp_path / "none.pt", "out": tmp_path / "gpt.pt"}
    done = python("train_gpt.py", *flags(**settings))
    assert done.returncode == 1
    assert done.stderr.strip().startswith(f"FileNotFoundError: no checkpoint at {tmp_path / 'none.pt'}")
    assert "\n" not in done.stderr.strip()


def test_what_a_resumed_run_began_with_stays_and_an_unknown_schedule_loses_nothing(push, trained, tmp_path):
    for script, path, other in (
        (train_tokenizer, trained.tokenizer, dict(still=0.5)),
        (train_tokenizer, trained.tokenizer, dict(freeze_codebooks=True)),
        (train_gpt, trained.gpt, dict(muon=False)),
        (train_gpt, trained.gpt, dict(pos_init=0.5)),
    ):
        out = tmp_path / path.name
        out.write_bytes(path.read_bytes())
        with pytest.raises(ValueError, match=f"began with another {next(iter(other))}; leave it out"):
            train(script, out=out, resume=True, max_steps=4, **other)
        with pytest.raises(ValueError, match="schedule is 'linear'; expected constant or cosine"):
            train(script, out=out, data=push, overwrite=True, schedule="linear")
        with pytest.raises(ValueError, match="--lr is -1.0; expected 0 or more"):
            train(script, out=out, data=push, overwrite=True, lr=-1.0)
        assert out.read_bytes() == path.read_bytes()


def test_resuming_without_a_checkpoint_and_training_without_data_are_named(push, tmp_path):
    with pytest.raises(SystemExit, match="--resume: no checkpoint at .*none.pt"):
        train(train_tokenizer, **TOKENIZER_RUN, data=push, out=tmp_path / "none.pt", resume=True)
    with pytest.raises(FileNotFoundError, match="no episodes at .*nowhere"):
        train(train_tokenizer, **TOKENIZER_RUN, data=tmp_path / "nowhere", out=tmp_path / "x.pt")


def test_the_defaults_are_the_papers_small_models():
    cfg = configure(train_gpt.CONFIG, "", [], train_gpt.PRESETS)
    assert (cfg.n_layer, cfg.n_embd, cfg.segment_length, cfg.lr) == (12, 768, 16, 1e-4)
    cfg = configure(train_tokenizer.CONFIG, "", [], train_tokenizer.PRESETS)
    assert (cfg.channels, cfg.resolution, cfg.context_frames) == ((128, 256, 512), 64, 2)


USE_ON_ONE_PROCESS = """
import os, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tokenizer import RevivingQuantizer

dist.init_process_group("gloo")
torch.manual_seed(0)
quantizer = RevivingQuantizer(2, 1, 1.0, revive_after=4).train()
quantizer.embedding.weight.data = torch.tensor([[0.0], [10.0]])
quantizer.idle.zero_()
ddp = DistributedDataParallel(quantizer)
for _ in range(12):  # process 0 uses code 0 alone, process 1 code 1 alone
    zq, _, loss = ddp(torch.full((8, 1), 10.0 * dist.get_rank()))
    loss.backward()
assert quantizer.embedding.weight.tolist() == [[0.0], [10.0]], quantizer.embedding.weight
dist.destroy_process_group()
os._exit(0)  # gloo's threads may still hold tensors, and abort when Python ends below them
"""


@pytest.mark.slow
def test_a_code_that_only_one_process_uses_is_not_drawn_anew(tmp_path):
    script = tmp_path / "use.py"
    script.write_text(USE_ON_ONE_PROCESS)
    done = python("-m", "torch.distributed.run", "--nproc_per_node=2", script)
    assert done.returncode == 0, done.stderr
