"""experiments/speed.py: how fast, and against what (appendix B.4).

Run: python -m experiments.speed"""


import functools
import multiprocessing
import re
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import gpt
import official
import tokenizer
from common import claim, require_positive
from support.devices import autocast_for, find_device, keep_memory, uses_bf16
from gpt import GPT
from sample import WorldModel
from tokenizer import Tokenizer, layout_of

SPEED = dict(
    preset="small",
    device="",  # by default a GPU if there is one
    dtype="auto",  # bf16, float32, or by "auto" the former on GPUs, the latter on CPUs
    parts=("interactive", "train", "imagine", "branches", "rollouts", "loop", "plan", "tokenizers"),
    horizon=14,  # imagined frames
    batches=(1, 16),  # scenes imagined at once, against the plain way and transformers
    rollouts=(),  # scenes imagined at once, alone; by default 1, 16, 64, 256 on GPUs, 1, 16 on CPUs
    branches=100,  # futures of one scene, against the plain way
    branch_horizon=8,  # imagined frames of those: the plain way is slow
    candidates=200,  # of a plan
    plan_horizon=10,  # imagined frames of those
    train_batch=0,  # segments of 16 frames; by default 64 on GPUs, 4 on CPUs
    clips=0,  # segments where tokenizers are compared; by default 16 on GPUs, 1 on CPUs
    repeats=3,  # medians of so many runs
    out="",  # by default results/speed-MACHINE.json
    overwrite=False,
)
# a second, dense bf16, as NVIDIA says
PEAK_FLOPS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12}


TOKENIZER_OF = dict(tiny=tokenizer.TINY, small=tokenizer.SMALL, medium=tokenizer.SMALL)


def require_preset(cfg):
    """Raise ValueError unless the preset is one of the transformer's."""
    if cfg.preset not in TOKENIZER_OF:
        raise ValueError(f"preset is {cfg.preset!r}; expected one of {', '.join(TOKENIZER_OF)}")


def seconds_in_turn(repeats, *fns):
    """Medians over `repeats` calls of each function, one after the other, as machines are not always as fast;
    the first call does not count, unless a single one is wanted."""
    seconds = [[] for _ in fns]
    for _ in range(repeats + (repeats > 1)):
        for fn, times in zip(fns, seconds, strict=True):
            started = time.perf_counter()
            fn()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
    return [statistics.median(times[-repeats:]) for times in seconds]


def median_seconds(repeats, fn, *args):
    return seconds_in_turn(repeats, lambda: fn(*args))[0]


def random_world(preset, device, dtype, **changes):
    """A WorldModel of random weights: as fast as a trained one."""
    torch.manual_seed(0)
    torch._dynamo.reset()  # every shape is compiled for itself, and there is a limit to how many
    vqgan = Tokenizer(**TOKENIZER_OF[preset])
    transformer = GPT(vqgan.layout, **{**gpt.PRESETS[preset], **changes})
    return WorldModel(vqgan, transformer.bfloat16() if uses_bf16(device, dtype) else transformer, device)


def scenes(model, B, n_branches, horizon):
    """Random context frames (B, t, 3, R, R) and actions (B n_b, horizon, A)."""
    R = model.tokenizer.config["resolution"]
    frames = torch.rand(B, model.context_frames, 3, R, R, device=model.device)
    return frames, torch.rand(B * n_branches, horizon, model.action_dim, device=model.device)


def imagine(model, frames, actions, n_branches=1):
    """From frames to frames: tokenize, read the context, generate, decode."""
    model.reset(frames, n_branches)
    return model.rollout(actions, actions.shape[1])


def imagine_with_transformers(model):
    """`imagine` as in the authors' code: for each frame, `generate` of the package transformers reads the
    whole sequence again, with the same weights, and all frames are decoded again. None where it cannot."""
    if model.gpt.config["places"]:
        print("no comparison with transformers, which knows no position embeddings beside RoPE (`places`)")
        return None
    try:
        from transformers import LlamaForCausalLM
    except ImportError:
        print("no comparison with transformers: pip install transformers safetensors")
        return None
    layout, action = model.gpt.layout, model.gpt.action
    plain = GPT.from_checkpoint(model.gpt.checkpoint(), action_dim=0, reward=False)
    with tempfile.TemporaryDirectory() as folder:
        pairs = official.gpt_pairs(plain, wrapped=False)
        official.write(folder, "transformer", official.gpt_config(plain), plain, pairs)
        llm = LlamaForCausalLM.from_pretrained(Path(folder) / "transformer")
    llm.to(model.device, action.weight.dtype).eval()
    sampling = dict(max_new_tokens=layout.tokens_future, do_sample=True, top_k=100, pad_token_id=0)

    @torch.no_grad()
    def imagine_plainly(frames, actions):
        with model.autocast:
            tokens = model.tokenizer.encode(frames)
        slot = tokens.new_full((len(tokens), 1), layout.future_slot)
        for i in range(actions.shape[1]):
            tokens = torch.cat([tokens, slot], 1)
            x = llm.get_input_embeddings()(tokens)
            x[:, layout.slots(i + 1)] += action(actions[:, : i + 1].to(x.dtype))
            codes = llm.generate(inputs_embeds=x, attention_mask=torch.ones_like(tokens), **sampling)
            # random weights choose words that are no dynamics codes
            tokens = torch.cat([tokens, layout.context_codes + codes % layout.dynamics_codes], 1)
            with model.autocast:
                decoded = model.tokenizer.decode(tokens)
        return decoded

    return imagine_plainly


def runs_of(cfg, device, B):
    """One run where B futures take minutes."""
    return 1 if device.type == "cpu" and B > 1 else cfg.repeats


def speed_imagine(cfg, device):
    """Seconds for `horizon` frames, action-conditioned, and how many times as fast as the plain ways.

    Of the tricks for GPUs or CPUs, the naive way shares the matrix products but not the recorded graphs."""
    rows = {}
    for B in cfg.batches:
        model = random_world(cfg.preset, device, cfg.dtype, action_dim=4)
        frames, actions = scenes(model, B, 1, cfg.horizon)
        repeats = runs_of(cfg, device, B)
        row = dict(seconds=median_seconds(repeats, imagine, model, frames, actions))
        row["naive"] = median_seconds(repeats, model.rollout_naive, frames, actions, cfg.horizon)
        if with_transformers := imagine_with_transformers(model):
            row["transformers"] = median_seconds(repeats, with_transformers, frames, actions)
        row.update({f"vs_{name}": row[name] / row["seconds"] for name in list(row)[1:]})
        rows[f"b{B}"] = dict(row, frames=cfg.horizon, runs=repeats)
    return dict(imagine=rows)


def kv_share(layout, T, n_branches):
    """Memory for keys and values of n_branches futures, over that of as many scenes, all of T frames."""
    shared, L = layout.prompt - 2, layout.length(T)
    return (shared / n_branches + L - shared) / L


def speed_branches(cfg, device):
    """Futures of one scene: times as fast as with a context each, and the cache's share of the memory.

    The plain way takes 20 at a time: 1,000 frames decoded at once are more than 24 GB."""
    f, n_b, layout = cfg.branch_horizon, cfg.branches, layout_of(TOKENIZER_OF[cfg.preset])
    T, whole = layout.context_frames + f, gpt.PRESETS[cfg.preset]["segment_length"]
    model = random_world(cfg.preset, device, cfg.dtype, action_dim=4, segment_length=T)
    (frames, actions), repeats = scenes(model, 1, n_b, f), runs_of(cfg, device, n_b)
    seconds = median_seconds(repeats, imagine, model, frames, actions, n_b)
    plain = lambda: [model.rollout_naive(frames, part, f, len(part)) for part in actions.split(20)]  # noqa: E731
    naive = median_seconds(repeats, plain)
    row = dict(seconds=seconds, naive=naive, vs_naive=naive / seconds, frames=f, runs=repeats)
    row.update(kv_share=kv_share(layout, T, n_b), kv_share_of_whole_segment=kv_share(layout, whole, n_b))
    return {f"branches_{n_b}": row}


def speed_interactive(cfg, device):
    """Milliseconds for a `step`, action in, frame and reward out, one scene."""
    rows = {}
    for preset in dict.fromkeys(("tiny", cfg.preset)):
        model = random_world(preset, device, cfg.dtype, action_dim=2, reward=True)
        frames, actions = scenes(model, 1, 1, 1)
        model.reset(frames)
        seconds = [median_seconds(1, model.step, actions[:, 0]) for _ in range(4 * cfg.horizon)]
        seconds = seconds[cfg.horizon :]  # some of these take a new context
        ms, rate = 1000 * statistics.median(seconds), len(seconds) / sum(seconds)
        rows[f"interactive_{preset}"] = dict(ms=ms, frames_per_s=rate, steps=len(seconds))
    return rows


def speed_rollouts(cfg, device):
    """Frames per second, open loop: many scenes, and 200 futures of one."""
    rows = {}
    default = (1, 16, 64, 256) if device.type == "cuda" else (1, 16)
    for B, n_b in [(B, 1) for B in map(int, cfg.rollouts or default)] + [(1, 200)] * (device.type == "cuda"):
        model = random_world(cfg.preset, device, cfg.dtype, action_dim=4)
        inputs = scenes(model, B, n_b, cfg.horizon)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = median_seconds(runs_of(cfg, device, B), imagine, model, *inputs, n_b)
        row = dict(frames_per_s=B * n_b * cfg.horizon / seconds)
        if device.type == "cuda":
            row["GB"] = torch.cuda.max_memory_allocated() / 1e9
        rows[f"b{B}" if n_b == 1 else f"branches{n_b}"] = row
    return dict(rollouts=rows)


def speed_loop(cfg, device):
    """Rollouts as mbpo.py makes them, its agent acting, against the plain way, to which actions are given.

    On CPUs of a `tiny` model: no other can learn there."""
    import mbpo  # which imports from here

    rows, size = {}, cfg.preset if device.type == "cuda" else "tiny"
    for name in ("push", "metaworld"):
        ours = SimpleNamespace(**{**mbpo.CONFIG, **mbpo.PRESETS[name]})
        model = random_world(size, device, cfg.dtype, action_dim=2, reward=True)
        frames, actions = scenes(model, ours.starts, 1, ours.horizon)
        agent = mbpo.DrQ(2, frames.shape[-1], ours).to(device)
        stacks = frames[:, :1].repeat(1, ours.stack, 1, 1, 1)
        act = functools.partial(agent.act, std=0.1)
        fast, plain = seconds_in_turn(
            cfg.repeats,
            functools.partial(mbpo.imagine, model, act, stacks, ours.horizon),
            functools.partial(model.rollout_naive, frames, actions, ours.horizon),
        )
        row = dict(seconds=fast, naive=plain, vs_naive=plain / fast)
        rows[f"loop_{name}_{size}"] = dict(row, starts=ours.starts, frames=ours.horizon)
    return rows


def alone(fn, *args):
    """fn(*args), a dict, in a process of its own, as is its peak memory; {} if there was too little."""
    torch.cuda.empty_cache()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), keep_memory) as pool:
        try:
            return pool.submit(fn, *args).result()
        except (BrokenProcessPool, torch.OutOfMemoryError) as error:  # the former: the system has killed it
            tqdm.write(f"{fn.__name__}: {error}: too little memory? Lower --train_batch or --clips")
            return {}


def own(file, name):
    """A number that Linux tells of this process; None elsewhere."""
    path = Path("/proc/self") / file
    return int(re.search(rf"{name}:\s+(\d+)", path.read_text())[1]) if path.is_file() else None


def peak_memory(device):
    """Most memory in GB that this process has held: of the GPU or, on Linux, of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    kilobytes = own("status", "VmHWM")  # what `resource` tells of a process includes its parent's
    return kilobytes and kilobytes * 1024 / 1e9


def flops_of_segment(model):
    """Of an update of the transformer, for one segment."""
    layout, D = model.layout, model.config["n_embd"]
    L = layout.length(model.config["segment_length"])
    n = L - layout.prompt
    weights = L * sum(p.numel() for p in model.blocks.parameters()) + n * layout.vocab_size * D
    last = model.blocks[-1]  # of which only queries, keys and values are computed for the context
    weights -= (L - n - 1) * sum(p.weight.numel() for p in (last.out, last.gate_up, last.down))
    attention = model.config["n_layer"] * L * L * D  # queries x keys, weights x values; causal: half of them
    return 6 * (weights + attention)  # a multiplication and an addition, twice that on the way back


def train_steps(settings, layout, batch, ways, device, dtype, repeats):
    """Seconds of an update of the transformer in each of `ways` (with all logits?), peak memory in GB."""
    device = torch.device(device)
    model = GPT(layout, **{**settings, "action_dim": 4}).to(device)
    T = model.config["segment_length"]
    context = torch.randint(layout.context_codes, (batch, layout.context_frames, layout.tokens_context))
    future = torch.randint(layout.dynamics_codes, (batch, T - layout.context_frames, layout.tokens_future))
    tokens, actions = layout.pack(context, future).to(device), torch.rand(batch, T, 4, device=device)
    optimizer = torch.optim.AdamW(model.param_groups(0.01), lr=1e-4, fused=True)

    def loss_of(tokens, actions, full_logits):
        if not full_logits:
            return model.loss(tokens, actions)[0]
        targets = tokens.clone()
        targets[:, : layout.prompt] = -100  # the context is no target, but has logits
        return F.cross_entropy(model(tokens, actions)[:, :-1].flatten(0, 1).float(), targets[:, 1:].flatten())

    forward = torch.compile(loss_of) if device.type == "cuda" else loss_of

    def update(full_logits):
        optimizer.zero_grad(set_to_none=True)
        with autocast_for(device, dtype):
            loss = forward(tokens, actions, full_logits)
        loss.backward()
        optimizer.step()

    seconds = seconds_in_turn(repeats, *(functools.partial(update, way) for way in ways))
    flops = batch * flops_of_segment(model)
    rates = dict(tokens_per_s=tokens.numel() / seconds[0], flops_per_s=flops / seconds[0])
    return dict(seconds=seconds, GB=peak_memory(device), **rates)


def speed_train(cfg, device):
    """An update of the transformer with logits where a loss is taken, and with all logits."""
    inputs = gpt.PRESETS[cfg.preset], layout_of(TOKENIZER_OF[cfg.preset]), cfg.train_batch
    settings = str(device), cfg.dtype
    row = alone(train_steps, *inputs, (False, True), *settings, cfg.repeats)
    if not row:
        return {f"train_{cfg.preset}": row}
    memory = [alone(train_steps, *inputs, (way,), *settings, 1).get("GB") for way in (False, True)]
    ours, full = row["seconds"]
    row.update(seconds=ours, full_logits=full, vs_full_logits=full / ours)
    row.update(GB=memory[0], full_logits_GB=memory[1])
    name = torch.cuda.get_device_name() if device.type == "cuda" else ""
    peak = next((peak for gpu, peak in PEAK_FLOPS.items() if gpu in name), None)
    if peak and uses_bf16(device, cfg.dtype):
        row["mfu"] = row["flops_per_s"] / peak
    return {f"train_{cfg.preset}": row}


def clip_seconds(sizes, settings, kind, device, dtype, repeats):
    """Seconds to tokenize a clip, to generate its future's tokens, to turn all into frames; peak memory.

    sizes, settings  of a tokenizer of that kind, of a transformer"""
    device, vqgan = torch.device(device), tokenizer.build(kind, sizes)
    vqgan.to(device, memory_format=torch.channels_last).eval()
    model = GPT(vqgan.layout, **settings).to(device).eval()
    model = model.bfloat16() if uses_bf16(device, dtype) else model
    T, R = model.config["segment_length"], vqgan.config["resolution"]
    clip = torch.rand(1, T, 3, R, R, device=device)

    @torch.no_grad()
    def autocast(fn, x):
        with autocast_for(device, dtype):
            return fn(x)

    def generate():
        model.prefill(context, reuse=cache)
        for _ in range(T - vqgan.layout.context_frames):
            model.imagine(cache)

    tokens = autocast(vqgan.encode, clip)
    context, _ = vqgan.layout.unpack(tokens)
    cache = model.prefill(context)
    row = dict(tokens=tokens.shape[1], tokenize=median_seconds(repeats, autocast, vqgan.encode, clip))
    row["generate"] = median_seconds(repeats, generate)
    row["detokenize"] = median_seconds(repeats, autocast, vqgan.decode, tokens)
    return dict(row, GB=peak_memory(device))


def tokenizer_costs(sizes, settings, kind, clips, device, dtype, repeats):
    """A row of the paper's Tables 7 and 8: updates of the transformer, and apart from them a clip's way."""
    if device.type == "cpu":
        settings = dict(settings, att_dropout=0.0)  # no attention there drops weights and saves memory
    where = str(device), dtype, repeats
    row, layout = alone(clip_seconds, sizes, settings, kind, *where), tokenizer.build(kind, sizes).layout
    if update := alone(train_steps, settings, layout, clips, (False,), *where):
        row.update(train_updates_per_s=1 / update["seconds"][0], train_GB=update["GB"])
    return row


def speed_tokenizers(cfg, device):
    """The paper's Tables 7 and 8."""
    sizes, repeats = TOKENIZER_OF[cfg.preset], 1 if device.type == "cpu" else cfg.repeats
    latents = int(layout_of(sizes).tokens_context ** 0.5)
    settings = sizes, gpt.PRESETS[cfg.preset]
    where = cfg.clips, device, cfg.dtype, repeats
    kinds = "4x4", f"{latents}x{latents}", "compressive"
    told = dict(clips=cfg.clips, runs=repeats)
    return dict(tokenizers={kind: tokenizer_costs(*settings, kind, *where) | told for kind in kinds})


def plan_steps(preset, candidates, horizon, copies, device, dtype, repeats):
    """Seconds of a decision of plan.py, peak memory in GB; copies: with a context for each candidate."""
    import plan  # which imports from here

    world = random_world(preset, torch.device(device), dtype, action_dim=4)
    (frames, _), cfg, rng = scenes(world, 1, 1, 1), SimpleNamespace(**plan.CONFIG), np.random.default_rng(0)
    dream, score, before = plan.Dreamer(world), plan.Score(cfg, world.device), peak_memory(world.device)

    def judge(actions):
        if copies:
            world.reset(frames.repeat_interleave(candidates, 0), 1, horizon)
            futures = [world.rollout(actions, horizon)[:2]]
        else:
            futures = dream(frames[0], actions)
        return torch.cat([score(*future, frames[0, -1]) for future in futures]).double().cpu().numpy()

    decide = functools.partial(plan.mppi, judge, {}, (candidates, horizon, 4), 0.5, cfg, rng)
    seconds = median_seconds(repeats, decide)
    return dict(seconds=seconds, GB=peak_memory(world.device), models_GB=before)


def speed_plan(cfg, device):
    """A decision of plan.py: many futures of one context against a context for each, seconds and memory.

    On CPUs of a `tiny` model alone."""
    rows = {}
    for preset in dict.fromkeys(("tiny", cfg.preset)) if device.type == "cuda" else ("tiny",):
        sizes, how = (preset, cfg.candidates, cfg.plan_horizon), (str(device), cfg.dtype, cfg.repeats)
        shared, copies = (alone(plan_steps, *sizes, way, *how) for way in (False, True))
        row = dict(candidates=cfg.candidates, frames=cfg.plan_horizon, **shared)
        if shared:
            row["decisions_per_s"] = 1 / shared["seconds"]
        row.update({f"copies_{k}": copies[k] for k in ("seconds", "GB") if copies})
        layout = layout_of(TOKENIZER_OF[preset])
        row["kv_share"] = kv_share(layout, layout.context_frames + cfg.plan_horizon, cfg.candidates)
        rows[f"plan_{preset}"] = row
    return rows


PARTS = dict(
    imagine=speed_imagine, branches=speed_branches, interactive=speed_interactive, rollouts=speed_rollouts,
    loop=speed_loop, plan=speed_plan, train=speed_train, tokenizers=speed_tokenizers,
)  # fmt: skip


def flatten(tree, name=""):
    """The numbers of nested dicts: ("imagine.b1.seconds", 1.5), ..."""
    if not isinstance(tree, dict):
        return [(name, tree)]
    return [leaf for k, v in tree.items() for leaf in flatten(v, f"{name}.{k}" if name else k)]


def speed(cfg):
    """Measure `parts`, and write each down as soon as it is known, beside those that the file holds."""
    require_positive(cfg, "horizon", "branches", "branch_horizon", "repeats")
    require_preset(cfg)
    if wrong := set(cfg.parts) - set(PARTS):
        raise ValueError(f"--parts {','.join(wrong)}: expected some of {','.join(PARTS)}")
    device = find_device(cfg.device)
    gpu = device.type == "cuda"
    machine = (torch.cuda.get_device_name() if gpu else cpu_name()).lower()
    out = cfg.out or f"results/speed-{re.sub('[^a-z0-9]+', '-', machine)}.json"
    cfg.train_batch, cfg.clips = cfg.train_batch or (64 if gpu else 4), cfg.clips or (16 if gpu else 1)
    numbers = {} if cfg.overwrite else read_result(out)
    out = claim(out, overwrite=cfg.overwrite or "measured" in numbers)
    for part in tqdm(cfg.parts, "speed"):
        rows = PARTS[part](cfg, device)
        numbers.setdefault("measured", {})[part] = dict(settings=vars(cfg), **provenance())
        numbers.update(rows)
        for name, value in flatten(rows):
            tqdm.write(f"{name:45}{'unknown' if value is None else f'{value:.4g}':>12}")
        write_result(out, numbers)
