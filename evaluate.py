"""evaluate.py: how good is what a world model imagines (paper section 4.1, appendix A.3).

    segments --WorldModel--> imagined frames --> PSNR, SSIM   beside three rows of reference:
                        |                                     repeat_last      the last context frame
                        +--> rewards --> correlation          wrong_actions    another episode's actions
                                                              reconstruction   the tokenizer alone

Metrics are means over the predicted frames alone (the authors' also count the reconstructed context).

Run: python evaluate.py                                       the released checkpoint, 64 fresh episodes
     python evaluate.py --ckpt out/gpt.pt --data data/mine    validation segments of your own episodes"""

import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from common import configure, require_positive, run
from sample import WorldModel, segments_for

CONFIG = dict(
    ckpt="assets/push-tiny.pt",
    tokenizer="",  # another tokenizer's checkpoint
    data="",  # a folder of episodes (its validation split) or "push"; by default the model's own
    out="out/metrics.json",
    episodes=64,
    horizon=14,  # predicted frames
    batch_size=16,
    temperature=1.0,
    top_k=100,
    device="",
    seed=0,
    curves=(),  # .jsonl files of the trainers to keep beside the numbers, with a picture
)


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


def provenance():
    """What a result must say to be believed: the command, the commit and the machine."""
    git = ["git", "-C", Path(__file__).parent, "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    except OSError:  # no git here
        commit = "unknown"
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        cpu = re.search(r"model name\s*: (.*)|$", Path("/proc/cpuinfo").read_text())[1] or cpu
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    machine = f"{os.cpu_count()} x {cpu}, {gpu}, torch {torch.__version__}"
    return dict(command=" ".join(["python", *sys.argv]), commit=commit, machine=machine)


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
    settings = dict(temperature=cfg.temperature, top_k=cfg.top_k, seed=cfg.seed)
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
    Path(cfg.out).parent.mkdir(parents=True, exist_ok=True)
    if cfg.curves:
        numbers["curves"] = {path: read_curve(path) for path in cfg.curves}
        plot(numbers["curves"], Path(cfg.out).with_suffix(".png"))
    numbers = dict(episodes=cfg.episodes, seconds=time.time() - started, **numbers, **provenance())
    Path(cfg.out).write_text(json.dumps(numbers, indent=1) + "\n")
    print(f"written to {cfg.out}")


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__))
