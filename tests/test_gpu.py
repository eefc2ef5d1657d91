"""Every path that only a GPU takes: python -m pytest -m gpu. The decoding step is compiled on CPUs, too.

Other tests do not see GPUs (conftest.py). In comparisons with a CPU, TF32 is off."""

import copy
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import GPT_RUN, ROOT, TOKENIZER_RUN, flags, train
from test_parity import SMALL, load_case

import evaluate
import mbpo
import plan
import post_train
import train_gpt
import train_tokenizer
from common import configure, load_checkpoint
from data import Episodes, draw_segments, prefetch
from sample import WorldModel
from variants.muon import Muon, orthogonalize

DEVICE = "cuda"
REASON = "needs an NVIDIA GPU that torch sees: python -m pytest -m gpu"
HAS_COMPILER = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
ONE_LAYER = dict(GPT_RUN, n_layer=1)  # to compile takes less time
MBPO = dict(
    preset="push", size=32, agent_size=16, hidden=16, agent_batch=4, agent_updates=1, shift=1, seed_steps=60,
    demos=1, init_updates=1, gpt_every=60, tokenizer_every=60, model_batch=2, segment=6, horizon=3, starts=2,
    init_rollouts=1, rollout_every=60, eval_every=60, eval_episodes=2, save_every=600, steps=60,
)  # fmt: skip


def needs_gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason=REASON)(test))


@pytest.fixture(autouse=True)
def as_if_alone():
    """Compiled code of other tests counts towards torch's recompile limit; TF32 rounds to three digits."""
    torch.compiler.reset()
    matmul = torch.backends.cuda.matmul.allow_tf32
    convolution = torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = matmul
    torch.backends.cudnn.allow_tf32 = convolution


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """A small world model whose weights are drawn from names, on the CPU, with frames and actions."""
    return load_case(SMALL[0], tmp_path_factory)


@pytest.fixture(scope="module")
def checkpoints(push, tmp_path_factory):
    """The paths of a tokenizer and of a transformer with one layer, after two steps without compilation."""
    folder = tmp_path_factory.mktemp("gpu")
    paths = dict(tokenizer=folder / "tokenizer.pt", gpt=folder / "gpt.pt")
    train(train_tokenizer, **TOKENIZER_RUN, data=push, out=paths["tokenizer"], compile=False)
    train(train_gpt, **ONE_LAYER, data=push, tokenizer=paths["tokenizer"], out=paths["gpt"], compile=False)
    return paths


def moved(world, device, **settings):
    """A copy of a world model on another device, greedy."""
    models = copy.deepcopy(world.tokenizer), copy.deepcopy(world.gpt)
    return WorldModel(*models, device, temperature=0.0, **settings)


def imagine(world, golden, n_branches, cache=None, compiled=None):
    """Greedy codes and rewards of two frames for different actions of each branch, and the Cache."""
    layout = world.gpt.layout
    context = golden.expected["tokens"][:, : layout.prompt - 1].long().to(world.device)
    generator = torch.Generator().manual_seed(1)
    actions = 2 * torch.rand(len(context) * n_branches, 2, world.action_dim, generator=generator) - 1
    cache = world.gpt.prefill(context, n_branches=n_branches, reuse=cache)
    if compiled:
        cache.step = compiled
    codes, rewards = world.gpt.imagine(cache, 2, actions.to(world.device), temperature=0.0)
    return codes.cpu(), rewards.cpu(), cache


def as_on_a_gpu(step):
    """A compiled step for CPUs that attends to the whole memory, as on a GPU: one shape, one graph."""

    def whole(cache, tokens, added, positions, end):
        return step(cache, tokens, added, positions, cache.sizes[3])

    return whole


# ---- the compiled decoding step ----


@pytest.mark.parametrize("n_branches", [1, 3])
def test_the_step_is_captured_whole_and_not_again_for_later_frames_and_caches(golden, n_branches):
    graphs = []

    def count_graphs(graph, inputs):
        graphs.append(graph)
        return graph.forward

    world = golden.world
    codes, rewards, _ = imagine(world, golden, n_branches)
    step = as_on_a_gpu(torch.compile(world.gpt.step, backend=count_graphs, dynamic=False, fullgraph=True))
    cache = None
    for reuses_memory in (False, True, False):
        found = imagine(world, golden, n_branches, cache if reuses_memory else None, step)
        assert torch.equal(found[0], codes)
        torch.testing.assert_close(found[1], rewards, atol=1e-4, rtol=1e-4)
        cache = found[2]
    assert len(graphs) == 2  # two tokens with a slot, then one


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile needs a C++ compiler on CPUs")
@pytest.mark.parametrize("n_branches", [1, 3])
def test_the_step_compiled_for_the_cpu_equals_the_eager_one(golden, n_branches):
    world = golden.world
    codes, rewards, _ = imagine(world, golden, n_branches)
    step = as_on_a_gpu(torch.compile(world.gpt.step, dynamic=False, fullgraph=True))
    cache = None
    for _ in range(3):
        found = imagine(world, golden, n_branches, cache, step)
        assert torch.equal(found[0], codes)
        torch.testing.assert_close(found[1], rewards, atol=1e-4, rtol=1e-4)
        cache = found[2]


@needs_gpu
@pytest.mark.parametrize("n_branches", [1, 3])
def test_compiled_and_recorded_steps_imagine_the_cpus_tokens_across_resets(golden, n_branches):
    codes, rewards, _ = imagine(golden.world, golden, n_branches)
    world = moved(golden.world, DEVICE)
    cache = None
    for _ in range(3):  # the first warms up, the second records CUDA graphs, the third replays them
        found = imagine(world, golden, n_branches, cache)
        assert torch.equal(found[0], codes)
        torch.testing.assert_close(found[1], rewards, atol=1e-3, rtol=1e-3)
        assert cache in (None, found[2])  # its memory is used again
        cache = found[2]


@needs_gpu
def test_cuda_graphs_are_not_skipped(golden):
    counters = torch._dynamo.utils.counters  # private: torch reports skipped graphs nowhere else but in logs
    counters.clear()
    world = moved(golden.world, DEVICE)
    cache = None
    for _ in range(3):
        _, _, cache = imagine(world, golden, 1, cache)
    assert cache.step != world.gpt.step, "the step is not compiled"
    assert counters["inductor"]["cudagraph_skips"] == 0


# ---- the world model ----


@needs_gpu
@pytest.mark.parametrize("n_branches", [1, 3])
def test_steps_and_rollouts_imagine_the_cpus_frames(golden, n_branches):
    t = golden.world.context_frames
    context = golden.frames[:, :t]
    actions = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (2 * n_branches, 2, 4)))
    slow = moved(golden.world, "cpu")
    fast = moved(golden.world, DEVICE)
    slow.reset(context, n_branches)
    frames, rewards, _ = slow.rollout(actions, 2)
    for _ in range(3):
        fast.reset(context, n_branches)
        found = fast.rollout(actions, 2)
        torch.testing.assert_close(found[0].cpu(), frames, atol=1e-3, rtol=0)
        torch.testing.assert_close(found[1].cpu(), rewards, atol=1e-3, rtol=1e-3)
        fast.rewind()
        for k in range(2):
            frame, reward = fast.step(actions[:, k])
            torch.testing.assert_close(frame.cpu(), frames[:, k], atol=1e-3, rtol=0)
            torch.testing.assert_close(reward.cpu(), rewards[:, k], atol=1e-3, rtol=1e-3)
    later = fast.rollout(lambda frame: torch.zeros(len(frame), 4, device=DEVICE), 3)  # takes a new context
    assert later[0].device.type == DEVICE and later[0].isfinite().all()


@needs_gpu
@pytest.mark.parametrize("dtype", ["auto", "bf16"])
def test_bf16_inference_stays_in_range(checkpoints, push, dtype):
    world = WorldModel.load(str(checkpoints["gpt"]), DEVICE, dtype=dtype)
    if dtype == "bf16":
        assert world.gpt.embed.weight.dtype == torch.bfloat16
    frames = Episodes(push, "val").segments(2, 2)["frames"]
    world.reset(frames, n_branches=2)
    imagined, rewards, _ = world.rollout(torch.zeros(4, 6, 2), 6)  # past the end of the segment
    assert imagined.dtype == rewards.dtype == torch.float32
    assert imagined.min() >= 0 and imagined.max() <= 1 and rewards.isfinite().all()
    if dtype == "bf16":
        assert world.cache.layers[0].keys.dtype == torch.bfloat16


@needs_gpu
def test_channels_last_encodes_the_same(golden):
    plain = copy.deepcopy(golden.world.tokenizer).to(DEVICE, memory_format=torch.contiguous_format)
    channels_last = copy.deepcopy(golden.world.tokenizer).to(DEVICE, memory_format=torch.channels_last)
    weight = channels_last.encoder.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    frames = golden.frames[:, : golden.world.context_frames].to(DEVICE)
    with torch.no_grad():
        latents, _ = plain.encode_context(frames)
        found, _ = channels_last.encode_context(frames)
        on_cpu, _ = golden.world.tokenizer.encode_context(frames.cpu())
    torch.testing.assert_close(found, latents, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found.cpu(), on_cpu, atol=1e-3, rtol=1e-3)


# ---- training ----


def losses_of(out):
    """Training losses that a trainer has logged."""
    lines = map(json.loads, out.with_suffix(".jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@needs_gpu
def test_the_tokenizer_trains_compiled_as_it_does_eagerly(push, tmp_path):
    settings = {**TOKENIZER_RUN, "data": push, "revive_after": 0}
    for compiled in (False, True):
        train(train_tokenizer, **settings, out=tmp_path / f"{compiled}.pt", compile=compiled)
    losses = [losses_of(tmp_path / f"{compiled}.pt") for compiled in (False, True)]
    assert len(losses[0]) == 2 and np.allclose(*losses, rtol=0.05)
    train(train_tokenizer, out=tmp_path / "True.pt", resume=True, max_steps=4)
    assert load_checkpoint(tmp_path / "True.pt")["step"] == 4


@needs_gpu
@pytest.mark.parametrize("muon", [True, False])
def test_the_transformer_trains_compiled_as_it_does_eagerly(push, checkpoints, tmp_path, muon):
    settings = dict(ONE_LAYER, data=push, tokenizer=checkpoints["tokenizer"], muon=muon)
    for compiled in (False, True):
        train(train_gpt, **settings, out=tmp_path / f"{compiled}.pt", compile=compiled)
    losses = [losses_of(tmp_path / f"{compiled}.pt") for compiled in (False, True)]
    assert len(losses[0]) == 2 and np.allclose(*losses, rtol=0.05)
    train(train_gpt, out=tmp_path / "True.pt", resume=True, max_steps=4)
    assert load_checkpoint(tmp_path / "True.pt")["step"] == 4


@needs_gpu
def test_one_process_trains_under_torchrun_with_nccl(push, tmp_path):
    out = tmp_path / "tokenizer.pt"
    settings = flags(**TOKENIZER_RUN, data=push, out=out, compile=False)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=1", "train_tokenizer.py"]
    done = subprocess.run([*command, *settings], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "cuda:0 x 1" in done.stdout
    assert load_checkpoint(out)["step"] == 2


@needs_gpu
@pytest.mark.parametrize("shape", [(3, 48, 16), (3, 16, 48), (2, 32, 32)])
def test_muon_in_bf16_orthogonalizes_as_on_the_cpu(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    found = orthogonalize(matrices.to(DEVICE))
    assert found.dtype == torch.bfloat16
    expected = orthogonalize(matrices)
    cosine = torch.cosine_similarity(found.float().cpu().flatten(1), expected.flatten(1))
    assert cosine.min() > 0.99
    parameter = torch.nn.Parameter(matrices[0].to(DEVICE))
    optimizer = Muon([parameter], lr=0.1, weight_decay=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        parameter.square().sum().backward()
        optimizer.step()
    assert parameter.isfinite().all() and parameter.norm() < matrices[0].norm()


@needs_gpu
def test_prefetched_batches_are_augmented_on_the_gpu_as_on_the_cpu(push):
    data = Episodes(push, "train")
    cfg = configure(train_gpt.CONFIG, "", flags(batch_size=3, seed=4))
    fetch = draw_segments(data, cfg, 5, 0, 0, 1, "paper")
    pairs = zip(prefetch(fetch, 0, 4, DEVICE), prefetch(fetch, 0, 4, "cpu"), strict=True)
    for found, expected in pairs:
        assert all(value.device.type == DEVICE for value in found.values())
        assert torch.equal(found["actions"].cpu(), expected["actions"])
        difference = (found["frames"].cpu() - expected["frames"]).abs()
        assert difference.mean() < 1e-3  # a value that is rounded the other way moves its pixel by 1/255


# ---- what uses the world model ----


@needs_gpu
def test_post_training_runs_and_continues(push, checkpoints, tmp_path):
    out = tmp_path / "p.pt"
    run = dict(lpips=0.0, horizon=3, batch_size=2, group=4, mini_batches=2, eval_segments=2, best_of=2)
    train(post_train, **run, ckpt=checkpoints["gpt"], data=push, out=out, max_steps=2, eval_every=2)
    train(post_train, out=out, resume=True, max_steps=4)
    assert load_checkpoint(out)["step"] == 4
    numbers = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    assert abs(numbers[0]["kl"]) < 0.1  # bf16 in updates changes no probability much


@needs_gpu
def test_an_evaluation_runs(push, checkpoints, tmp_path):
    out = tmp_path / "m.json"
    settings = dict(ckpt=checkpoints["gpt"], data=push, episodes=2, horizon=3, samples=2, lpips=False)
    evaluate.main(configure(evaluate.CONFIG, "", flags(**settings, out=out), evaluate.PRESETS))
    assert out.is_file()


@needs_gpu
def test_an_agent_learns_in_imagination_and_resumes(checkpoints, tmp_path):
    out = tmp_path / "agent.pt"
    train(mbpo, **MBPO, device=DEVICE, init_from=checkpoints["gpt"], out=out)
    train(mbpo, device=DEVICE, preset="push", out=out, resume=True, steps=70)
    world = WorldModel.load(str(out), DEVICE)
    assert all(weight.isfinite().all() for weight in world.gpt.state_dict().values())


@needs_gpu
def test_a_plan_is_made(checkpoints, tmp_path):
    settings = dict(
        ckpt=checkpoints["gpt"], models="world_model", episodes=1, seeds=1, candidates=12, horizon=2, steps=2,
        workers=1, gifs=0, diagnose=False, out=tmp_path / "p.json",
    )  # fmt: skip
    plan.main(configure(plan.CONFIG, "", flags(**settings, device=DEVICE), plan.PRESETS))
    assert "world_model" in json.loads((tmp_path / "p.json").read_text())
