"""evaluate.py: how good is what a world model imagines (paper sections 4.1, 4.4; appendices A.3, B.4).

    N test videos --WorldModel--> K futures of each --> MSE, PSNR, SSIM, LPIPS: for each the best of K
                                                    --> FVD: over all of them
    beside rows of reference   repeat_last      the last context frame
                               wrong_actions    another video's actions
                               reconstruction   the tokenizer alone: all tokens foreseen

Metrics are means over the predicted frames; the paper's presets count the reconstructed context too, as the
paper does, and tell of the predicted frames beside it. FVD sees whole videos, all K of each. What is broken
off goes on when the same command is given again.

B videos at once, K futures of each, t context frames, T frames, h predicted ones.

Run: python evaluate.py                                       the released checkpoint, 64 fresh episodes
     python evaluate.py --samples 20                          the best of 20 futures of each
     python evaluate.py --ckpt out/gpt.pt --data data/mine    validation segments of your own episodes
     torchrun --nproc_per_node=4 evaluate.py --preset bair --ckpt out/gpt.pt --data data/bair
     python evaluate.py speed                                 how fast, and against what (appendix B.4)
     python evaluate.py loader                                how fast segments are read, without a model
     python evaluate.py tokenizers|decouple|transfer|adapt|scaling|goal    analyses (section 4.4)"""

import functools
import hashlib
import json
import multiprocessing
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tqdm import tqdm

import gpt
import official
import tokenizer
from common import (
    autocast_for,
    beside,
    claim,
    configure,
    find_device,
    keep_memory,
    load_checkpoint,
    perceptual_loss,
    read_log,
    require_content,
    require_positive,
    run,
    save_checkpoint,
    setup_ddp,
    uses_bf16,
    write_whole,
)
from data import Episodes, EpisodeWriter, save_contact_sheet
from gpt import GPT
from sample import WorldModel, segments_for
from tokenizer import Tokenizer, layout_of

CONFIG = dict(
    preset="push",
    ckpt="assets/push-tiny.pt",
    tokenizer="",  # another tokenizer's checkpoint
    data="",  # a folder of episodes (its validation split) or "push"; by default the model's own
    out="out/metrics.json",
    overwrite=False,  # replace the numbers of another command; by default they are kept
    episodes=64,  # test videos
    samples=1,  # futures of each
    horizon=14,  # predicted frames
    context_frames=0,  # use fewer than the model was trained with; 0 leaves it
    frames=("future",),  # that count, "all" or the "last" alone; of several, each has its columns
    from_start=False,  # videos begin with their episodes, as the paper's; else anywhere
    repeats=1,  # draw all futures so many times: standard errors are over these
    lpips=True,
    fvd="",  # the I3D detector as TorchScript: StyleGAN-V's i3d_torchscript.pt
    batch_size=16,  # futures at once
    temperature=1.0,
    top_k=-1,  # 0: all codes; -1: as the model was made for
    device="",
    dtype="auto",  # of the transformer: bf16, float32, or by "auto" the former on GPUs, the latter on CPUs
    seed=0,
    curves=(),  # .jsonl files of the trainers to keep beside the numbers, with a picture
)
PAPER = dict(episodes=256, samples=100, batch_size=80, frames=("all", "future"), from_start=True)
PRESETS = dict(
    push={},
    bair=dict(PAPER, context_frames=1, horizon=15),
    robonet=dict(PAPER, context_frames=2, horizon=10),
    oxe=dict(PAPER, context_frames=2, horizon=14),
)
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
LOADER = dict(
    episodes=(1000, 10_000, 100_000),  # of 30 frames
    size=64,  # pixels per side
    segment_length=16,
    batch_size=16,
    workers=2,  # processes that read at once
    seconds=5.0,  # that they read for
    preset="tiny",  # of the transformer whose appetite is told
    device="",
    out="results/loader.json",
    overwrite=False,
)
# a second, dense bf16, as NVIDIA says
PEAK_FLOPS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12}


def lab(name, *groups, **own):
    """Settings of an analysis, and where its checkpoints, its numbers and its picture go."""
    merged = {k: v for group in groups for k, v in group.items()}
    places = dict(folder=f"out/{name}", out=f"out/{name}/numbers.json", picture=f"out/{name}/picture.png")
    return {**merged, **places, "overwrite": False, **own}


TRAINING = dict(  # what is in the folder already is not trained again
    preset="tiny",
    data="data/push",  # a folder of episodes
    ckpt="assets/push-tiny.pt",
    processes=1,  # with batch_size segments each
    batch_size=8,
    seed=0,
)
VIDEOS = dict(videos=64, horizon=14, device="", dtype="auto")  # validation segments; predicted frames
WORLDS = dict(samples=1, frames=("future",), lpips=True, fvd="")  # as in CONFIG
TUNING = dict(data="data/push-cyan", tune_lr=3e-4, tokenizer_steps=500, steps=500)  # updates of each model
TOKENIZERS = lab("tokenizers", TRAINING, VIDEOS, kinds=("compressive", "16x16", "4x4"), patch=2, steps=1000,
                 lpips=True, repeats=3)
DECOUPLE = dict(VIDEOS, ckpt=TRAINING["ckpt"], data="push", batch_size=8, seed=0,
                out="out/decouple/numbers.json", picture="out/decouple/picture.png", overwrite=False)
TRANSFER = lab("transfer", TRAINING, VIDEOS, WORLDS, TUNING)
ADAPT = lab("adapt", TRAINING, VIDEOS, WORLDS, TUNING, shots=(10, 100, 1000))  # episodes
SCALING = lab("scaling", TRAINING, sizes=("2x96", "4x192"), steps=1500, eval_every=100)  # layers x width
GOAL = lab("goal", TRAINING, VIDEOS, WORLDS, frames=("last",), tune_lr=1.5e-3, steps=3000)


def check(x, y):
    """Raise ValueError unless x and y are float32 in [0, 1], as metrics need it, and of one shape."""
    if x.shape != y.shape or x.ndim < 3 or x.shape[-3] != 3 or {x.dtype, y.dtype} != {torch.float32}:
        got = f"{x.dtype} {tuple(x.shape)} and {y.dtype} {tuple(y.shape)}"
        raise ValueError(f"frames are {got}; expected float32 frames of one shape (..., 3, H, W), in [0, 1]")
    low, high = min(x.min(), y.min()).item(), max(x.max(), y.max()).item()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"frames are {low:.3g}..{high:.3g}; expected [0, 1]")


def mse(x, y):
    """Mean squared error of each frame: x, y (..., 3, H, W) float32 in [0, 1] -> (...) in [0, 1].

    It, and all metrics, raise ValueError at other types, ranges and shapes.   Source: paper section 4.1"""
    check(x, y)
    return (x - y).square().mean((-3, -2, -1))


def psnr(x, y):
    """Peak signal-to-noise ratio of each frame: x, y (..., 3, H, W) float32 in [0, 1] -> (...), 0 to 80 dB.

    Source: as piqa, which the paper took it from; 80 because of its 1e-8"""
    return -10 * torch.log10(mse(x, y) + 1e-8)


def ssim(x, y, window=11, sigma=1.5):
    """Structural similarity of each frame: x, y (..., 3, H, W >= 11) float32 in [0, 1] -> (...) in [-1, 1].

    Gaussian window without padding, per channel, then the mean.   Source: Wang et al. 2004; equals piqa's and
    scikit-image's with gaussian_weights"""
    check(x, y)
    if min(x.shape[-2:]) < window:
        raise ValueError(f"frames of {tuple(x.shape[-2:])} pixels; SSIM needs {window} each way")
    shape, g = x.shape[:-3], torch.arange(window, dtype=x.dtype, device=x.device) - window // 2
    g = torch.exp(-(g**2) / (2 * sigma**2))
    g = (g / g.sum()).view(1, 1, -1)
    x, y = x.reshape(-1, 1, *x.shape[-2:]), y.reshape(-1, 1, *y.shape[-2:])
    blur = lambda z: F.conv2d(F.conv2d(z, g[..., None]), g[:, None])  # noqa: E731
    a, b = x.mean((-2, -1), keepdim=True), y.mean((-2, -1), keepdim=True)
    x, y = x - a, y - b  # or float32 would lose the variance of smooth pictures
    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    mx, my = mx + a, my + b
    c1, c2 = 0.01**2, 0.03**2
    s = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return s.mean((-3, -2, -1)).view(*shape, 3).mean(-1)


def perceptual_distance(x, y, lpips):
    """LPIPS of each frame: x, y (..., 3, H, W) float32 in [0, 1] -> (...), 0 for equal ones, seldom above 1.

    lpips  as of `perceptual_loss`.   Source: Zhang et al. 2018"""
    check(x, y)
    return lpips(2 * x.flatten(0, -4) - 1, 2 * y.flatten(0, -4) - 1).view(x.shape[:-3])


DETECTOR = "StyleGAN-V's https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1"


def load_torchscript(path, device, expected):
    """A network from a TorchScript file.   raises  FileNotFoundError, ValueError saying what is expected"""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}; expected {expected}")
    require_content(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that TorchScript is old
            return torch.jit.load(path, map_location=device).eval()
    except RuntimeError:
        raise ValueError(f"{path} is no TorchScript; expected {expected}") from None


def video_features(videos, detector):
    """Videos (M, T >= 9, 3, H, W) float32 in [0, 1] -> what the detector sees in them, (M, 400).

    raises  ValueError at shorter ones or another range.   Source: StyleGAN-V's FVD, which the paper uses"""
    check(videos, videos)
    if videos.shape[1] < 9:
        raise ValueError(f"FVD of videos of {videos.shape[1]} frames; the detector needs at least 9")
    bytes_range = 255 * videos.transpose(1, 2)  # (M, 3, T, H, W)
    return detector(bytes_range, rescale=True, resize=True, return_features=True).float().cpu()


class Moments:
    """Mean and covariance, in float64, of rows (M, D) that come in parts; biased, as in the paper."""

    def __init__(self):
        self.n, self.total, self.outer = 0, 0.0, 0.0

    def update(self, rows):
        rows = rows.double()
        self.n += len(rows)
        self.total = self.total + rows.sum(0)
        self.outer = self.outer + rows.T @ rows

    def mean_and_covariance(self):
        mean = self.total / self.n
        return mean, self.outer / self.n - mean.outer(mean)


def frechet_distance(a, b):
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two Moments, 0 and up; of videos' features: FVD.

    Source: Unterthiner et al. 2018. The trace of the root is the sum of the singular values of
    S1^(1/2) S2^(1/2): exact where there are fewer videos than features, whose eigenvalues would be noise."""
    (m1, S1), (m2, S2) = a.mean_and_covariance(), b.mean_and_covariance()

    def root(S):
        values, vectors = torch.linalg.eigh(S)
        return vectors * values.clamp(min=0).sqrt() @ vectors.T

    trace = torch.linalg.svdvals(root(S1) @ root(S2)).sum()
    return ((m1 - m2).square().sum() + S1.trace() + S2.trace() - 2 * trace).item()


BEST = dict(mse=torch.amin, psnr=torch.amax, ssim=torch.amax, lpips=torch.amin)


def frame_metrics(videos, truth, lpips=None):
    """Videos (B, K, T, 3, H, W) against truth (B, T, 3, H, W) -> {metric: (B, K, T)}, one k at a time."""
    metrics = dict(mse=mse, psnr=psnr, ssim=ssim)
    if lpips is not None:
        metrics["lpips"] = functools.partial(perceptual_distance, lpips=lpips)
    each = videos.unbind(1)
    return {name: torch.stack([metric(x, truth) for x in each], 1).cpu() for name, metric in metrics.items()}


@torch.no_grad()
def predict(model, clips, actions, others, K, batch_size):
    """Whole videos {row: (B, K or 1, T, 3, H, W)} for clips (B, T, 3, H, W), and rewards (B, h) or None.

    actions, others  (B, h, A) that lead to the predicted frames, and those of other videos; or None"""
    t, h = model.context_frames, clips.shape[1] - model.context_frames
    with model.autocast:
        whole = model.tokenizer.decode(model.tokenizer.encode(clips)).float().clamp(0, 1)
    futures, rewards = [], None
    for first in range(0, K, batch_size):
        n = min(batch_size, K - first)
        model.reset(clips[:, :t], n)
        future, predicted, _ = model.rollout(None if actions is None else actions.repeat_interleave(n, 0), h)
        futures.append(future.unflatten(0, (-1, n)))
        if predicted is not None and not first:
            rewards = predicted[::n].cpu()  # of the first future of each
    rows = dict(model=torch.cat(futures, 1))
    if others is not None:
        model.reset(clips[:, :t])
        rows["wrong_actions"] = model.rollout(others, h)[0][:, None]
    rows["repeat_last"] = clips[:, None, t - 1 : t].expand(-1, -1, h, -1, -1, -1)
    context = whole[:, None, :t]
    rows = {k: torch.cat([context.expand(-1, v.shape[1], *context.shape[2:]), v], 2) for k, v in rows.items()}
    return dict(rows, reconstruction=whole[:, None]), rewards


def measure(model, data, part, cfg, networks):
    """`predict` for a slice of segments (data.py), judged: what `summarize` takes. A goal is not judged.

    metrics {row: {metric: (B, K or 1, T)}}, features of whole videos {row: (M, 400)}, rewards (B, h)"""
    t, actions, others = model.context_frames, None, None
    clips = data["frames"][part].to(model.device)
    if model.action_dim:
        actions = data["actions"][:, t - 1 : clips.shape[1] - 1]
        actions, others = actions[part], actions.roll(1, 0)[part] if len(actions) > 1 else None
    rows, rewards = predict(model, clips, actions, others, cfg.samples, cfg.batch_size)
    kept, features = int(model.goal_conditioned), {}
    rows, clips = {k: v[:, :, kept:] for k, v in rows.items()}, clips[:, kept:]
    metrics = {k: frame_metrics(v, clips, networks.get("lpips")) for k, v in rows.items()}
    if detector := networks.get("fvd"):
        whole = {**rows, "truth": clips[:, None]}
        features = {k: video_features(v.flatten(0, 1), detector) for k, v in whole.items()}
    return dict(metrics=metrics, features=features, rewards=rewards, true_rewards=data["rewards"][part, t:])


def cpu_name():
    """Such as "2 x AMD EPYC"."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        name = re.search(r"model name\s*: (.*)|$", Path("/proc/cpuinfo").read_text())[1] or name
    return f"{os.cpu_count()} x {name}"


def provenance():
    """What a result must say to be believed: the command, the commit and the machine."""

    def git(*args):
        command = ["git", "-C", Path(__file__).parent, *args]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    try:  # results and pictures may have changed
        changed = git("status", "--short", "--untracked-files=no", ":!results", ":!assets")
        commit = (git("rev-parse", "--short", "HEAD") or "unknown") + ("-dirty" if changed else "")
    except OSError:  # no git here
        commit = "unknown"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    machine = f"{cpu_name()}, {gpu}, torch {torch.__version__}"
    return dict(command=command_line(), commit=commit, machine=machine)


def command_line():
    """How this script was called, less --overwrite."""
    words = " ".join(["python", *sys.argv])
    return re.sub(r" --overwrite[ =]\S+", "", words)


def read_result(path):
    """What `write_result` wrote; {} where there is no such file."""
    try:
        numbers = json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return {}
    return numbers if isinstance(numbers, dict) else {}


def claim_result(out, overwrite, endings=(".md", ".png")):
    """`claim` a result before the work. The same command replaces its numbers; another one's are refused.

    returns  its Path;  raises  ValueError"""
    is_same = read_result(out).get("command") == command_line()
    return claim(out, endings, overwrite or is_same)


def write_result(path, numbers):
    """Write numbers and where they come from to a .json file."""
    write_whole(path, (json.dumps({**numbers, **provenance()}, indent=1) + "\n").encode())
    print(f"written to {path}")


def read_curve(path, kind="val_"):
    """Numbers whose names begin with `kind` in a trainer's .jsonl file: {name: [[step, value], ...]}."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no learning curve at {path}; pass the .jsonl files beside a trainer's checkpoint"
        )
    curve = {}
    for numbers in read_log(path):
        for name in (k for k, v in numbers.items() if k.startswith(kind) and not isinstance(v, list)):
            curve.setdefault(name, []).append([numbers["step"], float(f"{numbers[name]:.4g}")])
    return curve


def draw_curves(path, panels, log_x=False):
    """Line plots side by side, if matplotlib is there; else a line that says so.

    panels  (title, what x is, what y is, {name: [(x, y), ...]})"""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print(f"no {path}: pip install matplotlib (the .json file has the numbers)")
        return
    figure, axes = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 3), squeeze=False)
    for axis, (title, x, y, lines) in zip(axes[0], panels, strict=True):
        for name, points in lines.items():
            axis.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 10 else "")
        axis.set(title=title, xlabel=x, ylabel=y, xscale="log" if log_x else "linear")
        axis.grid(alpha=0.3)
        if len(lines) > 1:
            axis.legend()
    figure.tight_layout()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    print(f"drawn to {path}")


def require_frames(cfg, T):
    """Raise ValueError unless frames are known ones, and videos of T frames long enough for what is asked."""
    known = "all", "future", "last"
    if not cfg.frames or set(cfg.frames) - set(known):
        raise ValueError(f"frames is {','.join(cfg.frames)!r}; expected some of {', '.join(known)}")
    if cfg.fvd and T < 9:
        raise ValueError(f"FVD of videos of {T} frames; the detector needs at least 9")


def summarize(parts, cfg):
    """`measure` of all batches -> {metric: {row: mean over videos}}, correlation of rewards or None.

    best: of K futures, for each metric another one;  single: what one gives on average;  all: all of them"""
    table, predicted, K = {}, [part["rewards"] for part in parts], cfg.samples
    cells = [(frames, row, metric) for frames in cfg.frames for row, metrics in parts[0]["metrics"].items()
             for metric in metrics]
    for frames, row, metric in cells:
        values = torch.cat([part["metrics"][row][metric] for part in parts])  # (N, K or 1, T)
        T, h = values.shape[2], parts[0]["true_rewards"].shape[1]
        values = values[:, :, dict(all=0, future=T - h, last=T - 1)[frames] :].mean(2)
        column = table.setdefault(metric if frames == cfg.frames[0] else f"{metric}_{frames}", {})
        if many := row == "model" and K > 1:
            column["best"] = BEST[metric](values, 1).mean().item()
        column["single" if many else row] = values.mean().item()
    moments = {}
    for part in parts:
        for row, features in part["features"].items():
            moments.setdefault(row, Moments()).update(features)
    if truth := moments.pop("truth", None):
        names = dict(model="all" if K > 1 else "model")
        table["fvd"] = {names.get(row, row): frechet_distance(truth, m) for row, m in moments.items()}
    correlation = None
    if predicted[0] is not None:
        true = torch.cat([part["true_rewards"] for part in parts]).flatten()
        pair = torch.stack([torch.cat(predicted).flatten(), true])
        correlation = torch.corrcoef(pair)[0, 1].item() if pair.shape[1] > 1 and pair.std(1).all() else None
    return table, correlation


def combine(results):
    """Several results of `summarize` -> means and, of two or more, standard errors of these; correlation."""
    tables, correlations = zip(*results, strict=True)
    over = lambda f: {m: {r: f([x[m][r] for x in tables]) for r in row} for m, row in tables[0].items()}  # noqa: E731
    errors = over(lambda v: statistics.stdev(v) / len(v) ** 0.5) if len(tables) > 1 else None
    return over(statistics.mean), errors, correlations[0] and statistics.mean(correlations)


def report(out, columns, errors=None, missing=None, **others):
    """Print a table, {column: {row: number}}, and write it to OUT with all others, and as Markdown beside it.

    errors  standard errors, as columns;  missing  {metric: why it is not there}"""
    rows = list(dict.fromkeys(row for column in columns.values() for row in column))
    units = dict(psnr="PSNR (dB)", mse="MSE", ssim="SSIM", lpips="LPIPS", fvd="FVD")
    cells = [["", *(units.get(name, name) for name in columns)]]
    for row in rows:
        cells.append([row])
        for name, column in columns.items():
            value = column.get(row, "")
            text = f"{value:#.4g}".rstrip(".") if isinstance(value, float) else str(value)
            error = errors[name][row] if text and errors else 0
            cells[-1].append(f"{text} ± {error:.2g}" if error else text)
    width = [2 + max(map(len, column)) for column in zip(*cells, strict=True)]
    for first, *numbers in cells:
        print("".join([first.ljust(width[0]), *map(str.rjust, numbers, width[1:])]))
    for name, remedy in (missing or {}).items():
        print(f"{name.upper()}: {remedy}")
    others.update(dict(stderr=errors) if errors else {}, missing=missing or {})
    write_result(out, {**columns, **others})
    lines = ["| " + " | ".join(line) + " |" for line in cells]
    text = "\n".join([lines[0], "|---" * len(width) + "|", *lines[1:], ""])
    write_whole(beside(out, ".md"), text.encode())


def find_networks(device, lpips, fvd=None):
    """The networks that judge, and for each that is missing what there is to do. fvd None: not asked for."""
    networks, missing = {}, {}
    if lpips:
        try:
            networks["lpips"] = perceptual_loss(device)
        except FileNotFoundError as error:
            missing["lpips"] = str(error)
    else:
        missing["lpips"] = "left out by --lpips false"
    if fvd:
        networks["fvd"] = load_torchscript(fvd, device, DETECTOR)
    elif fvd is not None:
        missing["fvd"] = f"no detector: pass --fvd FILE, {DETECTOR}"
    return networks, missing


def batch_starts(n, cfg):
    """Where batches of n videos begin, batch_size futures each or, at the least, all of one video."""
    return range(0, n, max(1, cfg.batch_size // cfg.samples))


def start_parts(cfg, model, data, networks, rank):
    """The folder where batches are kept until all are measured. A broken-off run's are taken over.

    raises  ValueError if they were measured otherwise"""
    folder = beside(cfg.out, ".parts")
    elsewhere = "out", "overwrite", "device", "curves", "given"
    settings = {k: v for k, v in vars(cfg).items() if k not in elsewhere}
    total = lambda tensors: sum(x.cpu().sum(dtype=torch.float64).item() for x in tensors)  # noqa: E731
    settings.update(weights=total([*model.gpt.parameters(), *model.tokenizer.parameters()]))
    code = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    settings.update(code=hashlib.sha256(code).hexdigest(), videos=total(data.values()), judges=list(networks))
    settings = json.loads(json.dumps(settings))
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "settings.json"
        kept = json.loads(file.read_text()) if file.is_file() and any(folder.glob("*.pt")) else settings
        if changed := [k for k in settings if kept.get(k) != settings[k]]:
            told = f"{folder} is of a run with other {', '.join(changed)}"
            raise ValueError(f"{told}; delete it, or choose another --out")
        file.write_text(json.dumps(settings, indent=1))
    if dist.is_initialized():
        dist.barrier()  # nobody adds to the parts of another run
    return folder


def main(cfg):
    require_positive(cfg, "episodes", "samples", "horizon", "repeats", "batch_size")
    cfg.out = claim_result(cfg.out, cfg.overwrite)
    curves = {path: read_curve(path) for path in cfg.curves}
    rank, world, device = setup_ddp()
    device = find_device(cfg.device) if cfg.device else device
    draw = dict(temperature=cfg.temperature, top_k=cfg.top_k, dtype=cfg.dtype)
    model = WorldModel.load(cfg.ckpt, str(device), cfg.tokenizer, cfg.context_frames, **draw)
    require_frames(cfg, model.context_frames + cfg.horizon - model.goal_conditioned)
    networks, missing = find_networks(device, cfg.lpips, cfg.fvd)
    data = segments_for(model, cfg.data, cfg.episodes, cfg.horizon, None if cfg.from_start else cfg.seed)
    if model.action_dim and cfg.episodes == 1:
        missing["wrong_actions"] = "they are another video's; pass --episodes 2 or more"
    folder, starts = start_parts(cfg, model, data, networks, rank), batch_starts(cfg.episodes, cfg)
    jobs = [(i, start) for i in range(cfg.repeats) for start in starts]
    place = {job: folder / f"{job[0]}-{job[1]}.pt" for job in jobs}
    mine = jobs[rank::world]
    todo = [job for job in mine if not place[job].is_file()]
    bar = tqdm(todo, "evaluate", len(mine), initial=len(mine) - len(todo), disable=rank > 0)
    try:
        for i, start in bar:
            began, part = time.time(), slice(start, start + starts.step)
            model.generator.manual_seed((cfg.seed * 1000 + i) * 100_000 + start)  # whichever process draws it
            result = measure(model, data, part, cfg, networks)
            save_checkpoint(place[i, start], **result, seconds=time.time() - began)
    except KeyboardInterrupt:
        raise SystemExit(f"\nwhat was measured is kept in {folder}: the same command goes on") from None
    if dist.is_initialized():
        dist.barrier()
    if rank:
        return
    draws = [[load_checkpoint(place[job]) for job in jobs if job[0] == i] for i in range(cfg.repeats)]
    columns, errors, correlation = combine([summarize(parts, cfg) for parts in draws])
    others = {k: getattr(cfg, k) for k in ("episodes", "samples", "repeats", "frames")}
    others.update(seconds=sum(part["seconds"] for parts in draws for part in parts))
    others.update(reward_correlation=correlation, curves=curves)
    t, h = model.context_frames, cfg.horizon
    print(f"\n{cfg.episodes} videos, {t} context and {h} predicted frames; futures of each: {cfg.samples}")
    report(cfg.out, columns, errors, missing, **others)
    if correlation is not None:
        print(f"reward correlation {correlation:.3f}")
    if curves:
        panels = [(Path(path).stem, "step", "validation PSNR (dB)", {"": curve["val_psnr"]})
                  for path, curve in curves.items()]
        draw_curves(beside(cfg.out, ".png"), panels)
    shutil.rmtree(folder)


# ---- speed ----


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


# ---- the loader alone ----


def write_stand_in(folder, n, size, real=1000, T=30):
    """n episodes of noise, of which the first `real` are on disk and the others show the same frames again:
    the index is as long as that of a large data set, and all frames are in the page cache."""
    rng, real = np.random.default_rng(0), min(n, real)
    with EpisodeWriter(folder, "noise") as writer:
        for _ in range(real):
            frames = rng.integers(0, 256, (T, size, size, 3), np.uint8)
            writer.add(frames, rng.uniform(-1, 1, (T, 4)), rng.random(T))
    which = np.arange(n) % real
    with np.load(folder / "index.npz") as arrays:
        index = {key: arrays[key][which] for key in arrays.files}
    index.update(row=np.arange(n) * T, number=np.arange(n), name=[f"train_eps_{i:08d}" for i in range(n)])
    np.savez(folder / "index.npz", **index)
    for name in ("actions.npy", "rewards.npy"):
        rows = np.load(folder / name).reshape(real, T, -1)[which]
        np.save(folder / name, rows.reshape(n * T, -1) if name == "actions.npy" else rows.reshape(-1))
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "episodes": n, "frames": n * T}))


def read_segments(folder, rank, cfg, barrier, told):
    """Open a folder and read batches of the stream for some seconds, all processes at once."""
    barrier.wait()
    before, began = own("status", "VmRSS"), time.perf_counter()
    data = Episodes(folder)
    seconds, after = time.perf_counter() - began, own("status", "VmRSS")
    opened = dict(open_seconds=seconds, open_megabytes=after and (after - before) / 1024)
    barrier.wait()
    batches, began = 0, time.perf_counter()
    while (seconds := time.perf_counter() - began) < cfg.seconds:
        data.batch_u8((batches * cfg.workers + rank) * cfg.batch_size, cfg.batch_size, cfg.segment_length)
        batches += 1
    told.put(dict(opened, rate=batches * cfg.batch_size / seconds))


def cold_read_share(folder, cfg, stride, n=200):
    """Bytes read from the disk for each byte asked for, outside of the page cache; None if unknown."""
    if own("io", "read_bytes") is None or not hasattr(os, "posix_fadvise"):
        return None
    data = Episodes(folder)
    for path in data.paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before = own("io", "read_bytes")
    T = cfg.segment_length // stride
    data.batch_u8(0, n, T, stride=stride)
    read = own("io", "read_bytes") - before
    return read / (n * T * data.frame_bytes) or None  # 0: a file system in memory


def loader(cfg):
    """Segments per second and MB/s out of the page cache, from data sets of several sizes, and what it takes
    to open one; beside what an update of the transformer takes in."""
    require_positive(cfg, "batch_size", "workers", "segment_length")
    require_preset(cfg)
    cfg.out = claim_result(cfg.out, cfg.overwrite)
    device, context = find_device(cfg.device), multiprocessing.get_context("spawn")
    rows = {key: {} for key in ("segments_per_s", "megabytes_per_s", "open_seconds", "open_megabytes")}
    with tempfile.TemporaryDirectory() as scratch:
        for n in tqdm(cfg.episodes, "loader"):
            folder, name = Path(scratch) / str(n), f"{n // 1000}k" if n % 1000 == 0 else str(n)
            write_stand_in(folder, n, cfg.size)
            barrier, told = context.Barrier(cfg.workers), context.Queue()
            for rank in range(cfg.workers):
                context.Process(target=read_segments, args=(folder, rank, cfg, barrier, told)).start()
            told = [told.get(timeout=60 + cfg.seconds) for _ in range(cfg.workers)]
            rows["segments_per_s"][name] = rate = sum(row["rate"] for row in told)
            rows["megabytes_per_s"][name] = rate * cfg.segment_length * cfg.size**2 * 3 / 1e6
            for key in ("open_seconds", "open_megabytes"):
                rows[key][name] = max((row[key] for row in told if row[key] is not None), default=None)
        rows["cold_bytes_read_per_byte"] = {f"stride {k}": cold_read_share(folder, cfg, k) for k in (1, 4)}
    settings = {**gpt.PRESETS[cfg.preset], "segment_length": cfg.segment_length}
    layout = layout_of(TOKENIZER_OF[cfg.preset])
    update = alone(train_steps, settings, layout, cfg.batch_size, (False,), str(device), "auto", 3)
    rows["training_segments_per_s"] = cfg.batch_size / update["seconds"][0] if update else None
    for name, value in flatten(rows):
        print(f"{name:30}{'unknown' if value is None else f'{value:.4g}':>12}")
    write_result(cfg.out, {**rows, "settings": dict(vars(cfg), out=str(cfg.out))})


# ---- analyses (section 4.4): each trains what it compares, prints a table and draws a picture ----


def train(script, out, cfg, steps, **settings):
    """Run a training script, as a reader would; or what is left to do, if it was broken off.

    raises  ValueError if OUT was trained with other settings, ChildProcessError if training fails"""
    settings.update({k: getattr(cfg, k) for k in ("preset", "data", "batch_size", "seed")}, max_steps=steps)
    if Path(out).is_file():
        state = load_checkpoint(out, needs=("step", "train_config"))
        if wrong := [k for k, v in settings.items() if state["train_config"].get(k) != v]:
            raise ValueError(f"{out} was trained with other {', '.join(wrong)}; delete it to train it anew")
        if state["step"] >= steps:
            return
        settings = dict(resume=True)
    flags = [*(f"--{k}={v}" for k, v in settings.items()), f"--out={out}"]
    many = ["-m", "torch.distributed.run", f"--nproc_per_node={cfg.processes}"] if cfg.processes > 1 else []
    print("$ python", *many, script, *flags, flush=True)
    child = subprocess.Popen([sys.executable, *many, Path(__file__).with_name(script), *flags])
    try:
        failed = child.wait()
    except KeyboardInterrupt:  # it has been told, too: let it save
        child.wait()
        raise SystemExit(f"{out} is kept: the same command goes on") from None
    if failed or load_checkpoint(out)["step"] < steps:
        raise ChildProcessError(f"{script} has failed or was stopped; its own message is above")


def train_both(cfg, name, tune, **settings):
    """A tokenizer and, on it, a transformer, from scratch or fine-tuned from cfg.ckpt -> their paths."""
    first, second = f"{cfg.folder}/{name}-tokenizer.pt", f"{cfg.folder}/{name}.pt"
    settings.update(dict(init_from=cfg.ckpt, lr=cfg.tune_lr) if tune else {})
    if not Path(cfg.data).is_dir():
        make = f"python data.py push --robot cyan --seed 1 --episodes 1100 --out {cfg.data}"
        raise FileNotFoundError(f"no episodes of another robot at {cfg.data}; try: {make}")
    freeze = dict(freeze_codebooks=True) if tune else {}  # the transformer has learned what codes mean
    train("train_tokenizer.py", first, cfg, cfg.tokenizer_steps, **freeze, **settings)
    train("train_gpt.py", second, cfg, cfg.steps, tokenizer=first, **settings)
    return first, second


def world_of(cfg, ckpt, tokenizer=""):
    return WorldModel.load(ckpt, cfg.device, tokenizer, seed=cfg.seed, dtype=cfg.dtype)


def videos_for(cfg, model):
    """Validation segments, which end with the same frames for goal-conditioned models and others."""
    return segments_for(model, cfg.data, cfg.videos, cfg.horizon + model.goal_conditioned, cfg.seed)


def compare(cfg, models):
    """{name: WorldModel} -> {metric: {name: mean}}, {name: all that `summarize` says}, missing networks."""
    networks, missing = find_networks(find_device(cfg.device), cfg.lpips, cfg.fvd)
    columns, tables = {}, {}
    for name, model in models.items():
        data = videos_for(cfg, model)
        require_frames(cfg, data["frames"].shape[1] - model.goal_conditioned)
        starts = batch_starts(cfg.videos, cfg)
        parts = [measure(model, data, slice(i, i + starts.step), cfg, networks) for i in tqdm(starts, name)]
        tables[name], _ = summarize(parts, cfg)
        for metric, rows in tables[name].items():
            columns.setdefault(metric, {})[name] = rows.get("single", rows.get("all", rows.get("model")))
    return columns, tables, missing


def save_sheet(cfg, clips, count=8):
    """Contact sheet to cfg.picture, a row for each of `clips`, lists of videos (T, 3, H, W), video by video.

    Of each it shows `count` frames, the first and the last among them."""
    rows = [video.cpu() for same in zip(*clips, strict=True) for video in same]
    kept = [torch.linspace(0, len(row) - 1, count).round().long() for row in rows]
    save_contact_sheet(cfg.picture, [row[i] for row, i in zip(rows, kept, strict=True)])
    print(f"drawn to {cfg.picture}")


def draw_futures(cfg, models, n=2):
    """`save_sheet` of n videos: the truth above what each of the models imagines."""
    imagined = []
    for model in models.values():
        data = {k: v[:n] for k, v in videos_for(cfg, model).items()}
        truth = data["frames"][:, model.goal_conditioned :]
        actions = data["actions"][:, model.context_frames - 1 : -1] if model.action_dim else None
        rows, _ = predict(model, data["frames"].to(model.device), actions, None, 1, n)
        imagined.append(rows["model"][:, 0, model.goal_conditioned :])
    save_sheet(cfg, [truth, *imagined])


def tokenizers(cfg):
    """Tokenizers trained alike: the compressive one, and some that take every frame by itself (Figure 9c)."""
    require_preset(cfg)
    device = find_device(cfg.device)
    (networks, missing), data = find_networks(device, cfg.lpips), Episodes(cfg.data, "val")
    t = tokenizer.PRESETS[cfg.preset]["context_frames"]
    clips = data.segments(cfg.videos, t + cfg.horizon, seed=cfg.seed)["frames"]
    settings = dict(gpt.PRESETS[cfg.preset], segment_length=t + cfg.horizon)
    columns, shown = {}, [clips[:2]]
    for kind in cfg.kinds:
        out = f"{cfg.folder}/{kind}.pt"
        plain = dict(decouple_start=-1)  # the paper's objective for each of them
        train("train_tokenizer.py", out, cfg, cfg.steps, kind=kind, patch=cfg.patch, **plain)
        vqgan = Tokenizer.load(out).to(device).eval()
        with torch.no_grad(), autocast_for(device, cfg.dtype):
            parts = [vqgan.decode(vqgan.encode(part.to(device))) for part in clips.split(cfg.batch_size)]
        decoded = torch.cat(parts).float().clamp(0, 1)
        shown.append(decoded[:2])
        quality = frame_metrics(decoded[:, None, t:], clips[:, t:].to(device), networks.get("lpips"))
        row = {metric: value.mean().item() for metric, value in quality.items()}  # over videos and frames
        sizes = {k: v for k, v in vqgan.config.items() if k != "grid"}
        row.update(tokenizer_costs(sizes, settings, kind, 1, device, cfg.dtype, cfg.repeats))
        for name, value in row.items():
            columns.setdefault(name, {})[kind] = value
    print(f"\n{cfg.horizon} future frames of {cfg.videos} clips from their tokens; seconds and GB for one")
    report(cfg.out, columns, missing=missing, steps=cfg.steps)
    save_sheet(cfg, shown)


def decouple(cfg):
    """Frames from their tokens without cross-attention to the context: what the tokens tell (Figure 10)."""
    model = world_of(cfg, cfg.ckpt)
    vqgan, clips, decoded = model.tokenizer, videos_for(cfg, model)["frames"], {}
    for chunk in clips.split(cfg.batch_size):
        with torch.no_grad(), model.autocast:
            context, dynamics = vqgan.layout.unpack(vqgan.encode(chunk.to(model.device)))
            ways = {"cross-attention": vqgan.decode_context(context), "dropped": None}
            for name, way in ways.items():
                frames = vqgan.decode_future(dynamics, way).float().clamp(0, 1)
                decoded.setdefault(name, []).append(frames.cpu())
    decoded, truth = {k: torch.cat(v) for k, v in decoded.items()}, clips[:, model.context_frames :]
    columns = {name: {k: metric(x, truth).mean().item() for k, x in decoded.items()}
               for name, metric in (("psnr", psnr), ("ssim", ssim))}
    changes = lambda x: (x[:, 1:] - x[:, :-1]).abs().mean(2).flatten()  # noqa: E731
    pairs = {k: torch.stack([changes(truth), changes(x)]) for k, x in decoded.items()}
    columns["motion"] = {k: torch.corrcoef(pair)[0, 1].item() for k, pair in pairs.items()}
    print("motion: correlation of decoded with true changes from frame to frame, over all pixels")
    report(cfg.out, columns)
    save_sheet(cfg, [x[:2] for x in (truth, *decoded.values())])


def transfer(cfg):
    """Another robot: the model as it was; with an adapted tokenizer; fine-tuned as a whole (Figure 8)."""
    adapted, tuned = train_both(cfg, "tuned", True)
    places = {"as it was": [cfg.ckpt], "adapted tokenizer": [cfg.ckpt, adapted], "fine-tuned": [tuned]}
    columns, tables, missing = compare(cfg, models := {k: world_of(cfg, *v) for k, v in places.items()})
    for metric, column in columns.items():
        column["repeat_last"] = tables["as it was"][metric]["repeat_last"]
        for name in ("as it was", "adapted tokenizer"):
            column[f"reconstruction, {name}"] = tables[name][metric]["reconstruction"]
    report(cfg.out, columns, missing=missing, steps=(cfg.tokenizer_steps, cfg.steps))
    draw_futures(cfg, models)


def adapt(cfg):
    """Fine-tuning on few episodes of another robot, and training from scratch on as many (Figure 9a)."""
    models = {}
    for start in ("scratch", "checkpoint"):
        for n in cfg.shots:
            _, path = train_both(cfg, f"{start}-{n}", start == "checkpoint", episodes=n)
            models[f"{start}, {n} episodes"] = world_of(cfg, path)
    columns, _, missing = compare(cfg, models)
    report(cfg.out, columns, missing=missing, steps=(cfg.tokenizer_steps, cfg.steps))
    y, lines = "fvd" if "fvd" in columns else "psnr", {}
    for name, value in columns[y].items():
        start, n, _ = name.replace(",", "").split()
        lines.setdefault(f"from {start}", []).append((int(n), value))
    draw_curves(cfg.picture, [("", "episodes of the other robot", y.upper(), lines)], log_x=True)


def scaling(cfg):
    """Validation loss of transformers of several sizes, against updates and FLOPs (Figure 9b)."""
    require_preset(cfg)
    by_step, by_flops, columns, whole = {}, {}, {}, gpt.PRESETS[cfg.preset]
    for name in cfg.sizes:
        if not re.fullmatch(r"\d+x\d+", name):
            raise ValueError(f"size is {name!r}; expected layers x width, like 4x192")
        layers, D = map(int, name.split("x"))
        sizes = dict(n_layer=layers, n_embd=D)
        sizes.update((k, max(1, D * whole[k] // whole["n_embd"])) for k in ("n_head", "n_mlp"))
        out, every = f"{cfg.folder}/{name}.pt", dict(eval_every=cfg.eval_every)
        train("train_gpt.py", out, cfg, cfg.steps, tokenizer=cfg.ckpt, **every, **sizes)
        model, curve = GPT.load(out), read_curve(beside(out, ".jsonl"))["val_ce"]
        flops = flops_of_segment(model) * cfg.batch_size * cfg.processes
        by_step[name], by_flops[name] = curve, [(step * flops, loss) for step, loss in curve]
        row = dict(parameters=sum(p.numel() for p in model.parameters()), FLOPs=float(by_flops[name][-1][0]))
        for key, value in dict(row, loss=curve[-1][1]).items():
            columns.setdefault(key, {})[name] = value
    report(cfg.out, columns, curves=by_step)
    y = "validation loss (nats)"
    draw_curves(cfg.picture, [("", "update", y, by_step), ("", "FLOPs", y, by_flops)], log_x=True)


def goal(cfg):
    """Futures of a model that is shown how they end, and of one that is not; without actions (Figure 4)."""
    models, t = {}, Tokenizer.load(cfg.ckpt).layout.context_frames
    for name, shown in (("action-free", False), ("goal-conditioned", True)):
        out, length = f"{cfg.folder}/{name}.pt", t + cfg.horizon + shown
        settings = dict(actions=False, rewards=False, goal_conditioned=shown, segment_length=length)
        train("train_gpt.py", out, cfg, cfg.steps, init_from=cfg.ckpt, lr=cfg.tune_lr, **settings)
        models[name] = world_of(cfg, out)
    columns, tables, missing = compare(cfg, models)
    for metric, column in columns.items():
        for row in ("repeat_last", "reconstruction"):
            column[row] = tables["action-free"][metric][row]
    print("\nThe last of the imagined frames against the goal")
    report(cfg.out, columns, missing=missing, steps=cfg.steps)
    draw_futures(cfg, models)


def analyse(function, cfg):
    """Run an analysis, once it is sure that its numbers and its picture can be written."""
    cfg.picture = claim(cfg.picture, overwrite=cfg.overwrite or Path(cfg.out).is_file(), name="picture")
    cfg.out = claim_result(cfg.out, cfg.overwrite)
    function(cfg)


COMMANDS = {
    "speed": (speed, SPEED),
    "loader": (loader, LOADER),
    "tokenizers": (tokenizers, TOKENIZERS),
    "decouple": (decouple, DECOUPLE),
    "transfer": (transfer, TRANSFER),
    "adapt": (adapt, ADAPT),
    "scaling": (scaling, SCALING),
    "goal": (goal, GOAL),
}


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        function, config = COMMANDS[sys.argv[1]]
        start = functools.partial(analyse, function) if "picture" in config else function
        run(start, configure(config, f"evaluate.py {sys.argv[1]}: {function.__doc__}", sys.argv[2:]))
    elif sys.argv[1:2] and not sys.argv[1].startswith("-"):
        raise SystemExit(f"{sys.argv[1]}: no such command; expected {', '.join(COMMANDS)}, or settings alone")
    else:
        run(main, configure(CONFIG, __doc__, presets=PRESETS))
