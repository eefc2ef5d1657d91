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
import shutil
import statistics
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from tqdm import tqdm

from common import configure, load_checkpoint, require_positive, run, save_checkpoint, setup_ddp
from sample import WorldModel
from support.devices import find_device
from support.files import beside
from support.networks import load_torchscript, perceptual_loss
from support.results import claim_result, draw_curves, read_curve, report
from support.segments import segments_for

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


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__, presets=PRESETS))
