"""evaluate.py: how good is what a world model imagines (paper section 4.1, appendix A.3).

    segments --WorldModel--> imagined frames --> PSNR, SSIM   beside three rows of reference:
                        |                                     repeat_last      the last context frame
                        +--> rewards --> correlation          wrong_actions    another episode's actions
                                                              reconstruction   the tokenizer alone

Metrics are means over the predicted frames alone (the authors' also count the reconstructed context).

Run: python evaluate.py                                       the released checkpoint, 64 fresh episodes
     python evaluate.py --ckpt out/gpt.pt --data data/mine    validation segments of your own episodes
     python evaluate.py speed                                 how fast, and against what (appendix B.4)"""

import functools
import json
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

import gpt
import official
import tokenizer
from common import autocast_for, configure, keep_memory, require_positive, run, uses_bf16
from gpt import GPT
from sample import WorldModel, segments_for
from tokenizer import PerFrameTokenizer, Tokenizer, layout_of

CONFIG = dict(
    ckpt="assets/push-tiny.pt",
    tokenizer="",  # another tokenizer's checkpoint
    data="",  # a folder of episodes (its validation split) or "push"; by default the model's own
    out="out/metrics.json",
    episodes=64,
    horizon=14,  # predicted frames
    batch_size=16,
    temperature=1.0,
    top_k=-1,  # 0: all codes; -1: as the model was made for
    device="",
    dtype="auto",  # of the transformer: bf16, float32, or by "auto" the former on GPUs, the latter on CPUs
    seed=0,
    curves=(),  # .jsonl files of the trainers to keep beside the numbers, with a picture
)
SPEED = dict(
    preset="small",
    device="",  # by default a GPU if there is one
    dtype="auto",  # bf16, float32, or by "auto" the former on GPUs, the latter on CPUs
    parts=("interactive", "train", "imagine", "branches", "rollouts", "tokenizers"),
    horizon=14,  # imagined frames
    batches=(1, 16),  # scenes imagined at once, against the plain way and transformers
    rollouts=(),  # scenes imagined at once, alone; by default 1, 16, 64, 256 on GPUs, 1, 16 on CPUs
    branches=100,  # futures of one scene, against the plain way
    branch_horizon=8,  # imagined frames of those: the plain way is slow
    train_batch=0,  # segments of 16 frames; by default 64 on GPUs, 4 on CPUs
    clips=0,  # segments where tokenizers are compared; by default 16 on GPUs, 1 on CPUs
    repeats=3,  # medians of so many runs
    out="",  # by default results/speed-MACHINE.json
)
# a second, dense bf16, as NVIDIA says
PEAK_FLOPS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12}


def psnr(x, y):
    """Peak signal-to-noise ratio in dB of each frame: x, y (..., 3, H, W) float32 in [0, 1] -> (...)."""
    return -10 * torch.log10((x - y).square().mean((-3, -2, -1)) + 1e-8)


def ssim(x, y, window=11, sigma=1.5):
    """Structural similarity of each frame: x, y (..., 3, H, W) float32 in [0, 1] -> (...) in [-1, 1].

    Gaussian window without padding, per channel, then the mean.   Source: Wang et al. 2004; equals piqa's and
    scikit-image's with gaussian_weights"""
    shape, g = x.shape[:-3], torch.arange(window, dtype=x.dtype, device=x.device) - window // 2
    g = torch.exp(-(g**2) / (2 * sigma**2))
    g = (g / g.sum()).view(1, 1, -1)
    x, y = x.reshape(-1, 1, *x.shape[-2:]), y.reshape(-1, 1, *y.shape[-2:])
    blur = lambda z: F.conv2d(F.conv2d(z, g[..., None]), g[:, None])  # noqa: E731
    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    s = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return s.mean((-3, -2, -1)).view(*shape, 3).mean(-1)


@torch.no_grad()
def evaluate(model, batch, horizon, batch_size):
    """Imagine one future of every segment, under its own actions and under another's.

    batch    frames (M, t + horizon, 3, H, W), actions, rewards as data.py gives them
    returns  {"psnr": {"model": ..., "repeat_last", "wrong_actions", "reconstruction"}, "ssim": the same,
             "reward_correlation": over all predicted frames, None without a reward head}"""
    t, frames = model.context_frames, batch["frames"]
    if frames.shape[1] != t + horizon:
        raise ValueError(f"{frames.shape[1]} frames; expected {t} context + {horizon} predicted")
    actions = batch["actions"][:, t - 1 :] if model.action_dim else None
    sums, predicted = {}, []
    for start in tqdm(range(0, len(frames), batch_size), "evaluate"):
        part = slice(start, start + batch_size)
        clip = frames[part].to(model.device)
        context, truth = clip[:, :t], clip[:, t:]
        imagined = {"repeat_last": context[:, -1:].expand_as(truth)}
        tokens = model.tokenizer.encode(clip)
        imagined["reconstruction"] = model.tokenizer.decode(tokens)[:, t:].clamp(0, 1)
        model.reset(context)
        imagined["model"], rewards, _ = model.rollout(None if actions is None else actions[part], horizon)
        if rewards is not None:
            predicted.append(rewards.cpu())
        if actions is not None:
            model.reset(context)
            imagined["wrong_actions"] = model.rollout(actions.roll(1, 0)[part], horizon)[0]
        for name, future in imagined.items():
            for metric, value in (("psnr", psnr(future, truth)), ("ssim", ssim(future, truth))):
                sums[metric, name] = sums.get((metric, name), 0) + value.mean(1).sum().item()
    means = {m: {n: sums[m, n] / len(frames) for _, n in sums if (m, n) in sums} for m in ("psnr", "ssim")}
    correlation = None
    if predicted:
        pair = torch.stack([torch.cat(predicted).flatten(), batch["rewards"][:, t:].flatten()])
        correlation = torch.corrcoef(pair)[0, 1].item() if pair[1].std() else None
    return {**means, "reward_correlation": correlation}


def cpu_name():
    """Such as "2 x AMD EPYC"."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        name = re.search(r"model name\s*: (.*)|$", Path("/proc/cpuinfo").read_text())[1] or name
    return f"{os.cpu_count()} x {name}"


@functools.cache  # results that are written make the checkout another
def provenance():
    """What a result must say to be believed: the command, the commit and the machine."""
    git = ["git", "-C", Path(__file__).parent, "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    except OSError:  # no git here
        commit = "unknown"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    machine = f"{cpu_name()}, {gpu}, torch {torch.__version__}"
    return dict(command=" ".join(["python", *sys.argv]), commit=commit, machine=machine)


def write_result(path, numbers):
    """Write numbers and where they come from to a .json file."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps({**numbers, **provenance()}, indent=1) + "\n")
    print(f"written to {path}")


def read_curve(path):
    """Validation numbers of a trainer's .jsonl file: {name: [[step, value], ...]}."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no learning curve at {path}; pass the .jsonl files beside a trainer's checkpoint"
        )
    curve = {}
    for line in Path(path).read_text().splitlines():
        numbers = json.loads(line)
        for name in (name for name in numbers if name.startswith("val_")):
            curve.setdefault(name, []).append([numbers["step"], float(f"{numbers[name]:.4g}")])
    return curve


def plot(curves, path):
    """Draw PSNR over steps, a panel per file, if matplotlib is there; else say what is missing."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print("no picture of the learning curves: pip install matplotlib")
        return
    figure, panels = plt.subplots(1, len(curves), figsize=(4.5 * len(curves), 3), squeeze=False)
    for panel, (name, curve) in zip(panels[0], curves.items(), strict=True):
        panel.plot(*zip(*curve["val_psnr"], strict=True))
        panel.set(title=Path(name).stem, xlabel="step", ylabel="validation PSNR (dB)")
        panel.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main(cfg):
    require_positive(cfg, "episodes", "horizon", "batch_size")
    started = time.time()
    settings = dict(temperature=cfg.temperature, top_k=cfg.top_k, seed=cfg.seed, dtype=cfg.dtype)
    model = WorldModel.load(cfg.ckpt, cfg.device, cfg.tokenizer, **settings)
    batch = segments_for(model, cfg.data, cfg.episodes, cfg.horizon, cfg.seed)
    numbers = evaluate(model, batch, cfg.horizon, cfg.batch_size)
    shape = f"{model.context_frames} context and {cfg.horizon} predicted frames"
    print(f"\n{cfg.episodes} episodes, {shape}, one sample each")
    print(f"{'':16}{'PSNR (dB)':>10}{'SSIM':>8}")
    for row in numbers["psnr"]:
        print(f"{row:16}{numbers['psnr'][row]:10.2f}{numbers['ssim'][row]:8.3f}")
    if numbers["reward_correlation"] is not None:
        print(f"reward correlation {numbers['reward_correlation']:.3f}")
    if cfg.curves:
        numbers["curves"] = {path: read_curve(path) for path in cfg.curves}
    write_result(cfg.out, dict(episodes=cfg.episodes, seconds=time.time() - started, **numbers))
    if cfg.curves:
        plot(numbers["curves"], Path(cfg.out).with_suffix(".png"))


# ---- speed ----


TOKENIZER_OF = dict(tiny=tokenizer.TINY, small=tokenizer.SMALL, medium=tokenizer.SMALL)


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


def alone(fn, *args):
    """fn(*args), a dict, in a process of its own, as is its peak memory; {} if there was too little."""
    torch.cuda.empty_cache()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), keep_memory) as pool:
        try:
            return pool.submit(fn, *args).result()
        except (BrokenProcessPool, torch.OutOfMemoryError) as error:  # the former: the system has killed it
            tqdm.write(f"{fn.__name__}: {error}: too little memory? Lower --train_batch or --clips")
            return {}


def peak_memory(device):
    """Most memory in GB that this process has held: of the GPU or, on Linux, of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    status = Path("/proc/self/status")  # what `resource` tells of a process includes its parent's
    return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) * 1024 / 1e9 if status.is_file() else None


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
    L, D, n = tokens.shape[1], model.config["n_embd"], layout.length(T) - layout.prompt
    weights = L * sum(p.numel() for p in model.blocks.parameters()) + n * layout.vocab_size * D
    last = model.blocks[-1]  # of which only queries, keys and values are computed for the context
    weights -= (L - n - 1) * sum(p.weight.numel() for p in (last.out, last.gate_up, last.down))
    attention = model.config["n_layer"] * L * L * D  # queries x keys, weights x values; causal: half of them
    flops = 6 * batch * (weights + attention)  # a multiplication and an addition, twice that on the way back
    rates = dict(tokens_per_s=batch * L / seconds[0], flops_per_s=flops / seconds[0])
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


def tokenizer_of(preset, kind):
    """The compressive tokenizer, or one that spends so many tokens on every frame: "4x4"."""
    if kind == "compressive":
        return Tokenizer(**TOKENIZER_OF[preset])
    return PerFrameTokenizer(int(kind.split("x")[0]), **TOKENIZER_OF[preset])


def clip_seconds(preset, kind, device, dtype, repeats):
    """Seconds to tokenize a clip, to generate its future's tokens, to turn all into frames; peak memory."""
    device, vqgan = torch.device(device), tokenizer_of(preset, kind)
    vqgan.to(device, memory_format=torch.channels_last).eval()
    model = GPT(vqgan.layout, **gpt.PRESETS[preset]).to(device).eval()
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


def speed_tokenizers(cfg, device):
    """The paper's Tables 7 and 8: updates of the transformer, and apart from them a clip's way."""
    latents, rows = int(layout_of(TOKENIZER_OF[cfg.preset]).tokens_context ** 0.5), {}
    model = dict(gpt.PRESETS[cfg.preset])
    if device.type == "cpu":
        model["att_dropout"] = 0.0  # torch has no attention there that drops weights and saves memory
    for kind in ("4x4", f"{latents}x{latents}", "compressive"):
        repeats = 1 if device.type == "cpu" else cfg.repeats
        settings = str(device), cfg.dtype, repeats
        row, layout = alone(clip_seconds, cfg.preset, kind, *settings), tokenizer_of(cfg.preset, kind).layout
        if update := alone(train_steps, model, layout, cfg.clips, (False,), *settings):
            row.update(train_updates_per_s=1 / update["seconds"][0], train_GB=update["GB"])
        rows[kind] = dict(row, clips=cfg.clips, runs=repeats)
    return dict(tokenizers=rows)


PARTS = dict(
    imagine=speed_imagine, branches=speed_branches, interactive=speed_interactive, rollouts=speed_rollouts,
    train=speed_train, tokenizers=speed_tokenizers,
)  # fmt: skip


def flatten(tree, name=""):
    """The numbers of nested dicts: ("imagine.b1.seconds", 1.5), ..."""
    if not isinstance(tree, dict):
        return [(name, tree)]
    return [leaf for k, v in tree.items() for leaf in flatten(v, f"{name}.{k}" if name else k)]


def speed(cfg):
    """Measure `parts`, and write each down as soon as it is known, beside those that the file holds."""
    require_positive(cfg, "horizon", "branches", "branch_horizon", "repeats")
    if wrong := set(cfg.parts) - set(PARTS):
        raise ValueError(f"--parts {','.join(wrong)}: expected some of {','.join(PARTS)}")
    device = torch.device(cfg.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    gpu = device.type == "cuda"
    machine = (torch.cuda.get_device_name() if gpu else cpu_name()).lower()
    out = cfg.out or f"results/speed-{re.sub('[^a-z0-9]+', '-', machine)}.json"
    cfg.train_batch, cfg.clips = cfg.train_batch or (64 if gpu else 4), cfg.clips or (16 if gpu else 1)
    numbers = json.loads(Path(out).read_text()) if Path(out).is_file() else {}
    for part in tqdm(cfg.parts, "speed"):
        rows = PARTS[part](cfg, device)
        numbers.setdefault("measured", {})[part] = dict(settings=vars(cfg), **provenance())
        numbers.update(rows)
        for name, value in flatten(rows):
            tqdm.write(f"{name:45}{'unknown' if value is None else f'{value:.4g}':>12}")
        write_result(out, numbers)


COMMANDS = {"speed": (speed, SPEED)}


if __name__ == "__main__":
    name = sys.argv[1] if sys.argv[1:2] and sys.argv[1] in COMMANDS else None
    function, config = COMMANDS.get(name, (main, CONFIG))
    run(function, configure(config, __doc__, sys.argv[2:] if name else None))
