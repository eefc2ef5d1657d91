"""experiments/speed.py: time and memory of imagining and training (paper appendix B.4, Tables 7 and 8).

    interactive  a `step` of one scene: action in, frame and reward out; each code in a pass of its own
    draft        steps of CKPT in a scene of its world, with the last frame's codes as a draft and without
    imagine      B scenes, against the authors' way (`rollout_naive`)
    branches     many futures of one scene, against as many copies of the scene and against the authors' way
    decision     a planner's candidates in PushWorld, imagined by CKPT, against as many copies of the scene
    group        post_train.py's gradient of a group of futures, against that of as many whole sequences
    train        an update of the transformer from tokens, and against encoding its segments each time
    tokenizers   Tables 7 and 8: the compressive tokenizer against two that encode frame by frame

Weights are random, and no draft helps, but for `draft` and `decision`. Seconds are wall clock; GB is peak
memory, on GPUs only.
B scenes, n_b branches (futures of one scene), T frames, t context frames, h imagined frames, A action size.

Run: python -m experiments.speed --preset tiny --parts imagine,train"""

import json
import re
import statistics
import time

import torch
import torch.nn.functional as F
from numpy.random import default_rng

from checkpoints import new_gpt, new_tokenizer
from common import configure, require_positive, run
from envs.push import push_segments
from experiments.lab import sizes, update_flops
from plan import CONFIG as PLANNING
from plan import coloured, imagine_candidates
from post_train import Policy
from sample import WorldModel
from support.devices import autocast_for, find_device, uses_bf16
from support.results import claim_result, cpu_name, provenance, read_result, write_result
from support.segments import segments_for
from variants import draft as drafts

CONFIG = dict(
    preset="small",
    parts=("interactive", "draft", "imagine", "branches", "decision", "group", "train", "tokenizers"),
    horizon=14,  # imagined frames
    batches=(1, 16),  # scenes imagined at once
    ckpt="assets/push-tiny.pt",  # that steps with a draft, and decides
    branches=100,  # futures of one scene
    branch_horizon=8,  # imagined frames of each
    group=16,  # futures of a context in post-training
    train_batch=4,  # segments of an update; 64 in the paper
    clips=1,  # segments of an update where tokenizers are compared; 16 in the paper
    repeats=4,  # runs; the median of all but the first counts; scenes of `draft`
    device="",
    dtype="auto",  # bf16, float32; "auto": bf16 on GPUs, float32 on CPUs
    out="",  # by default results/speed-MACHINE.json, which keeps the parts that are not measured again
    overwrite=False,
)


def cost(repeats, fn, *args):
    """Median seconds of `repeats` calls of fn(*args), the first of several left out; peak memory on GPUs."""
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        fn(*args)
        if gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    GB = torch.cuda.max_memory_allocated() / 1e9 if gpu else None
    return dict(seconds=statistics.median(times[1:] or times), GB=GB)


def random_scenes(cfg, B, n_branches, horizon, **changes):
    """A WorldModel with random weights, context frames (B, t, 3, R, R), actions (B n_b, horizon, A)."""
    drafts.window = no_window  # random codes change from frame to frame
    torch.manual_seed(0)
    torch.compiler.reset()  # each shape is compiled anew: there is a recompile limit
    tokenizer_settings, settings = sizes(cfg.preset)
    tokenizer = new_tokenizer(tokenizer_settings, "compressive")
    transformer = new_gpt(tokenizer.layout, {**settings, "action_dim": 4, **changes})
    dtype = torch.bfloat16 if uses_bf16(cfg.device, cfg.dtype) else torch.float32
    model = WorldModel(tokenizer, transformer.to(dtype), cfg.device)
    R = tokenizer_settings["resolution"]
    frames = torch.rand(B, model.context_frames, 3, R, R, device=cfg.device)
    return model, frames, torch.rand(B * n_branches, horizon, 4, device=cfg.device)


def imagine(model, frames, actions, n_branches=1):
    """From frames to frames: the context is encoded and read once, each frame generated and decoded once."""
    model.reset(frames, n_branches)
    model.rollout(actions, actions.shape[1])


@torch.no_grad()
def rollout_naive(model, frames, actions, horizon, n_branches=1):
    """What `reset` and `rollout` imagine, in the authors' way: for each new frame, the transformer reads the
    whole sequence again, and the decoder decodes all frames again.

    frames   (B, t, 3, H, W) in [0, 1];  actions (B n_b, h, A) or None
    returns  frames (B n_b, h, 3, H, W), rewards (B n_b, h) or None"""
    layout = model.tokenizer.layout
    t = model.context_frames
    with model.autocast:
        context, _ = layout.unpack(model.tokenizer.encode(frames.repeat_interleave(n_branches, 0)))
    codes = context.new_empty(len(context), 0, layout.tokens_future)
    rewards = []
    past = action = None
    for i in range(horizon):
        if actions is not None:
            past = F.pad(actions[:, : i + 1], (0, 0, t - 1, 0))  # those within the context have no effect
            action = actions[:, i : i + 1]
        cache = model.gpt.prefill(layout.pack(context, codes), past, room=1)
        code, reward = model.gpt.imagine(cache, 1, action, model.temperature, model.top_k, model.generator)
        codes = torch.cat([codes, code], 1)
        with model.autocast:
            decoded = model.tokenizer.decode(layout.pack(context, codes)).float().clamp(0, 1)
        rewards.append(reward)
    return decoded[:, t:], None if reward is None else torch.cat(rewards, 1)


def interactive(cfg):
    model, frames, actions = random_scenes(cfg, 1, 1, 1, reward=True)
    model.reset(frames)
    times = [cost(1, model.step, actions[:, 0])["seconds"] for _ in range(4 * cfg.horizon)]
    times = times[cfg.horizon :]  # without the warm-up; some of them take a new context
    return dict(ms=1000 * statistics.median(times), frames_per_s=len(times) / sum(times))


def no_window(M):
    return 0


WINDOW = drafts.window


def draft(cfg):
    model = WorldModel.load(cfg.ckpt, cfg.device, dtype=cfg.dtype)
    t = model.context_frames
    segments = segments_for(model, "", cfg.repeats, cfg.horizon, 0)

    def ms(n_branches, window):
        drafts.window = window
        times = []
        for frames, actions in zip(segments["frames"], segments["actions"], strict=True):
            model.reset(frames[None, :t], n_branches)
            for action in actions[t - 1 : -1]:
                times.append(cost(1, model.step, action.expand(n_branches, -1))["seconds"])
        return 1000 * statistics.mean(times)

    rows = {}
    for n_branches in (1, 4):
        row = dict(ms=ms(n_branches, WINDOW), plain_ms=ms(n_branches, no_window))
        rows[f"n{n_branches}"] = dict(row, vs_plain=row["plain_ms"] / row["ms"])
    return rows


def imagination(cfg):
    rows = {}
    for B in cfg.batches:
        model, frames, actions = random_scenes(cfg, B, 1, cfg.horizon)
        row = dict(ours=cost(cfg.repeats, imagine, model, frames, actions))
        row["naive"] = cost(cfg.repeats, rollout_naive, model, frames, actions, cfg.horizon)
        row["vs_naive"] = row["naive"]["seconds"] / row["ours"]["seconds"]
        rows[f"b{B}"] = row
    return rows


def branches(cfg):
    model, frames, actions = random_scenes(cfg, 1, cfg.branches, cfg.branch_horizon)

    def naive():
        for part in actions.split(20):  # to decode all of them at once takes too much memory
            rollout_naive(model, frames, part, cfg.branch_horizon, len(part))

    shared = cost(cfg.repeats, imagine, model, frames, actions, cfg.branches)
    copies = cost(cfg.repeats, imagine, model, frames.repeat(cfg.branches, 1, 1, 1, 1), actions)
    row = dict(shared=shared, copies=copies, naive=cost(cfg.repeats, naive))
    row["vs_naive"] = row["naive"]["seconds"] / shared["seconds"]
    return row


def decision(cfg):
    model = WorldModel.load(cfg.ckpt, cfg.device, dtype=cfg.dtype)
    scene = push_segments(1, model.context_frames, size=model.tokenizer.config["resolution"])["frames"]
    noise = coloured((cfg.branches, cfg.branch_horizon, model.action_dim), PLANNING["colour"], default_rng(0))
    candidates = torch.from_numpy(0.5 * noise).clamp(-1, 1)
    shared = cost(cfg.repeats, lambda: list(imagine_candidates(model, scene[0], candidates)))
    copies = cost(cfg.repeats, imagine, model, scene.repeat(cfg.branches, 1, 1, 1, 1), candidates)
    return dict(shared=shared, copies=copies, vs_copies=copies["seconds"] / shared["seconds"])


def group(cfg):
    model, frames, _ = random_scenes(cfg, 1, 1, cfg.horizon)
    G = cfg.group
    prompt = model.tokenizer.encode(frames)
    layout = model.gpt.layout
    shape = 1, G, cfg.horizon, layout.tokens_future
    codes = torch.randint(layout.dynamics_codes, shape, device=cfg.device)
    actions = torch.rand(1, model.context_frames + cfg.horizon, 4, device=cfg.device)
    policy = Policy(model.gpt)

    def gradient(*inputs):
        policy.zero_grad(set_to_none=True)
        with autocast_for(cfg.device, cfg.dtype):
            log_probs, _ = policy(*inputs)
        log_probs.sum().backward()

    shared = cost(cfg.repeats, gradient, prompt, codes, actions)
    copied = prompt.repeat(G, 1), codes.transpose(0, 1), actions.repeat(G, 1, 1)
    copies = cost(cfg.repeats, gradient, *copied)
    return dict(shared=shared, copies=copies, vs_copies=copies["seconds"] / shared["seconds"])


def update_costs(cfg, kind, B):
    """Cost of an update of the transformer on B segments, whose tokens are of that kind of tokenizer."""
    tokenizer_settings, settings = sizes(cfg.preset)
    layout = new_tokenizer(tokenizer_settings, kind).layout
    tokens = torch.zeros(B, layout.length(settings["segment_length"]), dtype=torch.long, device=cfg.device)
    if cfg.device.type == "cpu":
        settings = dict(settings, att_dropout=0.0)  # with dropout, attention on CPUs stores L x L weights
    model = new_gpt(layout, settings).to(cfg.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    loss_of = torch.compile(model.loss) if cfg.device.type == "cuda" else model.loss

    def update():
        optimizer.zero_grad(set_to_none=True)
        with autocast_for(cfg.device, cfg.dtype):
            loss, _ = loss_of(tokens)
        loss.backward()
        optimizer.step()

    row = cost(cfg.repeats, update)
    flops = B * update_flops(layout, settings)
    return dict(row, tokens_per_s=tokens.numel() / row["seconds"], flops_per_s=flops / row["seconds"])


def training(cfg):
    row = update_costs(cfg, "compressive", cfg.train_batch)
    tokenizer_settings, settings = sizes(cfg.preset)
    tokenizer = new_tokenizer(tokenizer_settings, "compressive").eval()
    tokenizer.to(cfg.device, memory_format=torch.channels_last)
    R = tokenizer_settings["resolution"]
    clips = torch.rand(cfg.train_batch, settings["segment_length"], 3, R, R, device=cfg.device)
    with torch.no_grad(), autocast_for(cfg.device, cfg.dtype):
        row["encode"] = cost(cfg.repeats, tokenizer.encode, clips)
    row["vs_encoding"] = 1 + row["encode"]["seconds"] / row["seconds"]
    return row


def tokenizer_costs(cfg, kind):
    """A row of Tables 7 and 8: to tokenize a clip, to generate its future and to detokenize it; an update."""
    tokenizer_settings, settings = sizes(cfg.preset)
    tokenizer = new_tokenizer(tokenizer_settings, kind).eval()
    tokenizer.to(cfg.device, memory_format=torch.channels_last)
    layout = tokenizer.layout
    dtype = torch.bfloat16 if uses_bf16(cfg.device, cfg.dtype) else torch.float32
    model = new_gpt(layout, settings).to(cfg.device, dtype).eval()
    T = settings["segment_length"]
    R = tokenizer_settings["resolution"]
    clip = torch.rand(1, T, 3, R, R, device=cfg.device)

    def generate():
        cache = model.prefill(tokens[:, : layout.prompt - 1])
        model.imagine(cache, T - layout.context_frames)

    with torch.no_grad(), autocast_for(cfg.device, cfg.dtype):
        tokens = tokenizer.encode(clip)
        row = dict(tokens=tokens.shape[1], tokenize=cost(cfg.repeats, tokenizer.encode, clip))
        row["detokenize"] = cost(cfg.repeats, tokenizer.decode, tokens)
    row["generate"] = cost(cfg.repeats, generate)
    row["update"] = update_costs(cfg, kind, cfg.clips)
    return row


def tokenizers(cfg):
    tokenizer_settings, _ = sizes(cfg.preset)
    side = int(new_tokenizer(tokenizer_settings, "compressive").layout.tokens_context ** 0.5)
    return {kind: tokenizer_costs(cfg, kind) for kind in ("4x4", f"{side}x{side}", "compressive")}


PARTS = dict(interactive=interactive, draft=draft, imagine=imagination, branches=branches,
             decision=decision, group=group, train=training, tokenizers=tokenizers)


def main(cfg):
    require_positive(cfg, "horizon", "branches", "branch_horizon", "group", "train_batch", "clips", "repeats")
    wrong = set(cfg.parts) - set(PARTS)
    if wrong:
        raise ValueError(f"--parts {','.join(wrong)}: expected some of {','.join(PARTS)}")
    cfg.device = find_device(cfg.device)
    machine = torch.cuda.get_device_name() if cfg.device.type == "cuda" else cpu_name()
    out = cfg.out or f"results/speed-{re.sub('[^a-z0-9]+', '-', machine.lower())}.json"
    numbers = {} if cfg.overwrite else read_result(out)
    out = claim_result(out, cfg.overwrite or "measured" in numbers, endings=())
    for part in cfg.parts:
        name = part if part in ("draft", "decision") else f"{part}_{cfg.preset}"
        numbers[name] = PARTS[part](cfg)
        print(name, json.dumps(numbers[name], indent=1))
        settings = {**vars(cfg), "device": str(cfg.device)}
        numbers.setdefault("measured", {})[name] = dict(settings=settings, **provenance())
        write_result(out, numbers)


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__))
