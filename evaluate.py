"""evaluate.py: how good are imagined videos? (paper section 4.1, appendix A.3)

    N test videos --predict--> K futures of each --measure--> MSE, PSNR, SSIM, LPIPS: the best of K for each
                                                              FVD: of all N K videos
    rows beside the model's   repeat_last      the last context frame, repeated
                              wrong_actions    another video's actions
                              reconstruction   the tokenizer alone: the true future, encoded and decoded

Metrics are means over the predicted frames. The paper's presets also count the reconstructed context frames,
as the paper does, and report the predicted frames beside them. An interrupted run continues when the same
command is given again.

B videos at once, K futures of each, T frames, t context frames, h predicted frames, A action size.

Run: python evaluate.py                                       the released checkpoint, 64 new episodes
     python evaluate.py --samples 20 --temperature 1          the best of 20 futures of each
     python evaluate.py --ckpt out/gpt.pt --data data/mine    validation segments of your own episodes
     torchrun --nproc_per_node=4 evaluate.py --preset bair --ckpt out/gpt.pt --data data/bair
Speed and the analyses of section 4.4: python -m experiments.speed, and its like"""

import functools
import itertools
import shutil
import statistics
import zlib

import torch
import torch.distributed as dist
import torch.nn.functional as F
from tqdm import tqdm

from checkpoints import checksum
from common import configure, require_positive, run, save_checkpoint, setup_ddp
from sample import WorldModel
from support.files import beside
from support.networks import load_torchscript, perceptual_loss
from support.results import claim_result, report
from support.segments import segments_for

CONFIG = dict(
    preset="push",
    ckpt="assets/push-tiny.pt",
    tokenizer="",  # checkpoint of another tokenizer
    data="",  # a folder of episodes (its validation split), "push" or "pusht"; by default the model's own
    out="out/metrics.json",
    overwrite=False,  # replace the numbers of another command
    episodes=64,  # test videos
    samples=1,  # futures of each
    horizon=14,  # predicted frames
    context_frames=0,  # use fewer than the model was trained with; 0: as trained
    frames=("future",),  # frames that count: "all", "future" or "last"; several: a column for each
    from_start=False,  # videos start with their episodes, as in the paper; else anywhere
    repeats=1,  # draw all futures so many times, for standard errors
    lpips=True,
    fvd="",  # the I3D detector as TorchScript: StyleGAN-V's i3d_torchscript.pt
    batch_size=16,  # futures at once
    temperature=-1.0,  # -1: as the checkpoint says
    top_k=-1,  # 0: all codes; -1: as the checkpoint says
    device="",
    dtype="auto",  # of the transformer: bf16, float32; "auto": bf16 on GPUs, float32 on CPUs
    seed=0,
)
PAPER = dict(
    episodes=256, samples=100, batch_size=80, frames=("all", "future"), from_start=True, temperature=1.0
)  # fmt: skip
PRESETS = dict(
    push={},
    bair=dict(PAPER, context_frames=1, horizon=15),
    robonet=dict(PAPER, context_frames=2, horizon=10),
    oxe=dict(PAPER, context_frames=2, horizon=14),
)
DETECTOR = "StyleGAN-V's https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1"


def check(x, y):
    """Raise ValueError unless x and y are float32 frames of one shape, in [0, 1]: all metrics do."""
    if x.shape != y.shape or x.ndim < 3 or x.shape[-3] != 3 or {x.dtype, y.dtype} != {torch.float32}:
        got = f"{x.dtype} {tuple(x.shape)} and {y.dtype} {tuple(y.shape)}"
        raise ValueError(f"frames are {got}; expected float32 frames of one shape (..., 3, H, W), in [0, 1]")
    low = min(x.min(), y.min())
    high = max(x.max(), y.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"frames are {low:.3g}..{high:.3g}; expected [0, 1]")


def mse(x, y):
    """Mean squared error of each frame: x, y (..., 3, H, W) float32 in [0, 1] -> (...)."""
    check(x, y)
    return (x - y).square().mean((-3, -2, -1))


def psnr(x, y):
    """Peak signal-to-noise ratio of each frame: x, y (..., 3, H, W) float32 in [0, 1] -> (...), 0 to 80 dB.

    Source: piqa, which the paper uses; its 1e-8 limits PSNR to 80 dB"""
    return -10 * torch.log10(mse(x, y) + 1e-8)


def ssim(x, y, window=11, sigma=1.5):
    """Structural similarity of each frame: x, y (..., 3, H, W >= 11) float32 in [0, 1] -> (...) in [-1, 1].

    Gaussian window without padding, per channel, then the mean.   Source: Wang et al. 2004; equals piqa's and
    scikit-image's with gaussian_weights"""
    check(x, y)
    if min(x.shape[-2:]) < window:
        raise ValueError(f"frames of {tuple(x.shape[-2:])} pixels; SSIM needs {window} each way")
    g = torch.arange(window, dtype=x.dtype, device=x.device) - window // 2
    g = torch.exp(-(g**2) / (2 * sigma**2))
    g = (g / g.sum()).view(1, 1, -1)

    def blur(z):
        return F.conv2d(F.conv2d(z, g[..., None]), g[:, None])

    shape = x.shape[:-2]
    x = x.flatten(0, -3)[:, None]  # (M, 1, H, W)
    y = y.flatten(0, -3)[:, None]
    mean_x = x.mean((-2, -1), keepdim=True)
    mean_y = y.mean((-2, -1), keepdim=True)
    x = x - mean_x  # otherwise float32 loses the variance of smooth pictures
    y = y - mean_y
    mx = blur(x)
    my = blur(y)
    variance = blur(x * x) - mx**2 + (blur(y * y) - my**2)
    covariance = blur(x * y) - mx * my
    mx = mx + mean_x
    my = my + mean_y
    s = (2 * mx * my + 0.01**2) * (2 * covariance + 0.03**2)
    s = s / ((mx**2 + my**2 + 0.01**2) * (variance + 0.03**2))
    return s.mean((-3, -2, -1)).view(shape).mean(-1)


def perceptual_distance(x, y, lpips):
    """LPIPS of each frame: x, y (..., 3, H, W) float32 in [0, 1] -> (...), 0 for equal ones, rarely above 1.

    lpips  the network of `perceptual_loss`.   Source: Zhang et al. 2018"""
    check(x, y)
    return lpips(2 * x.flatten(0, -4) - 1, 2 * y.flatten(0, -4) - 1).view(x.shape[:-3])


def frame_metrics(videos, truth, lpips=None):
    """Videos (B, K, T, 3, H, W) against truth (B, T, 3, H, W) -> {metric: (B, K, T)}, one k at a time."""
    metrics = dict(mse=mse, psnr=psnr, ssim=ssim)
    if lpips is not None:
        metrics["lpips"] = functools.partial(perceptual_distance, lpips=lpips)
    values = {}
    for name, metric in metrics.items():
        values[name] = torch.stack([metric(future, truth) for future in videos.unbind(1)], 1).cpu()
    return values


def video_features(videos, detector):
    """Videos (M, T >= 9, 3, H, W) float32 in [0, 1] -> features (M, 400) of the I3D detector.

    Source: StyleGAN-V's FVD, which the paper uses"""
    check(videos, videos)
    if videos.shape[1] < 9:
        raise ValueError(f"FVD of videos of {videos.shape[1]} frames; the detector needs at least 9")
    bytes_range = 255 * videos.transpose(1, 2)  # (M, 3, T, H, W)
    return detector(bytes_range, rescale=True, resize=True, return_features=True).float().cpu()


def frechet_distance(a, b):
    """Frechet distance of features (M1, D) and (M2, D), 0 and up; of videos: FVD.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) with biased covariances, as in the paper (Unterthiner et al.
    2018). For centred features A and B, S1 = A'A and S2 = B'B; so the trace of the root is the sum of the
    singular values of A B', which is exact even with fewer videos than features."""
    m1 = a.double().mean(0)
    m2 = b.double().mean(0)
    A = (a - m1) / len(a) ** 0.5
    B = (b - m2) / len(b) ** 0.5
    trace = torch.linalg.svdvals(A @ B.T).sum()
    return ((m1 - m2).square().sum() + A.square().sum() + B.square().sum() - 2 * trace).item()


@torch.no_grad()
def predict(model, clips, actions, others, K, batch_size):
    """Whole videos {row: (B, K or 1, T, 3, H, W)} for clips (B, T, 3, H, W), and rewards (B, h) or None.

    actions, others  (B, h, A) that lead to the predicted frames, and those of other videos; or None"""
    t = model.context_frames
    h = clips.shape[1] - t
    with model.autocast:
        whole = model.tokenizer.decode(model.tokenizer.encode(clips)).float().clamp(0, 1)[:, None]
    futures = []
    rewards = None
    for first in range(0, K, batch_size):
        n = min(batch_size, K - first)
        model.reset(clips[:, :t], n)
        repeated = None if actions is None else actions.repeat_interleave(n, 0)
        frames, predicted, _ = model.rollout(repeated, h)
        futures.append(frames.unflatten(0, (-1, n)))
        if predicted is not None and first == 0:
            rewards = predicted[::n].cpu()  # of each video's first future
    rows = dict(model=torch.cat(futures, 1))
    if others is not None:
        model.reset(clips[:, :t])
        rows["wrong_actions"] = model.rollout(others, h)[0][:, None]
    rows["repeat_last"] = clips[:, None, t - 1 : t].expand(-1, -1, h, -1, -1, -1)
    for row, future in rows.items():
        context = whole[:, :, :t].expand(-1, future.shape[1], -1, -1, -1, -1)
        rows[row] = torch.cat([context, future], 2)
    return dict(rows, reconstruction=whole), rewards


def measure(model, data, part, cfg, networks):
    """`predict` and measure a slice `part` of segments (data.py). A goal frame does not count.

    returns  metrics {row: {metric: (B, K or 1, T)}}, features {row: (M, 400)}, rewards (B, h)"""
    t = model.context_frames
    clips = data["frames"][part].to(model.device)
    actions = others = None
    if model.action_dim:
        leading = data["actions"][:, t - 1 : clips.shape[1] - 1]
        actions = leading[part]
        others = leading.roll(1, 0)[part] if len(leading) > 1 else None
    rows, rewards = predict(model, clips, actions, others, cfg.samples, cfg.batch_size)
    goal = int(model.goal_conditioned)
    truth = clips[:, goal:]
    metrics = {}
    features = {}
    if "fvd" in networks:
        features["truth"] = video_features(truth, networks["fvd"])
    for row, videos in rows.items():
        videos = videos[:, :, goal:]
        metrics[row] = frame_metrics(videos, truth, networks.get("lpips"))
        if "fvd" in networks:
            features[row] = video_features(videos.flatten(0, 1), networks["fvd"])
    return dict(metrics=metrics, features=features, rewards=rewards, true_rewards=data["rewards"][part, t:])


def summarize(parts, cfg):
    """What `measure` returned for all batches -> {metric: {row: mean over videos}}.

    best: of K futures, chosen for each metric;  single: the mean of K futures;  all: FVD of all futures"""
    table = {}
    h = parts[0]["true_rewards"].shape[1]
    for frames in cfg.frames:
        first = dict(all=0, future=-h, last=-1)[frames]
        for row, metrics in parts[0]["metrics"].items():
            for metric in metrics:
                values = torch.cat([part["metrics"][row][metric] for part in parts])  # (N, K or 1, T)
                values = values[:, :, first:].mean(2)
                column = table.setdefault(metric if frames == cfg.frames[0] else f"{metric}_{frames}", {})
                if row == "model" and cfg.samples > 1:
                    best = values.amax(1) if metric in ("psnr", "ssim") else values.amin(1)
                    column["best"] = best.mean().item()
                    column["single"] = values.mean().item()
                else:
                    column[row] = values.mean().item()
    features = {row: torch.cat([part["features"][row] for part in parts]) for row in parts[0]["features"]}
    if features:
        truth = features.pop("truth")
        table["fvd"] = {row: frechet_distance(truth, videos) for row, videos in features.items()}
        if cfg.samples > 1:
            table["fvd"]["all"] = table["fvd"].pop("model")
    return table


def reward_correlation(parts):
    """Of predicted and true rewards; None without a reward head, or where rewards do not vary."""
    if parts[0]["rewards"] is None:
        return None
    pair = [torch.cat([part[kind] for part in parts]).flatten() for kind in ("rewards", "true_rewards")]
    pair = torch.stack(pair)
    return torch.corrcoef(pair)[0, 1].item() if pair.shape[1] > 1 and pair.std(1).all() else None


def combine(tables):
    """Tables of several repeats -> their means and, of two or more, the standard errors of these means."""
    means = {}
    errors = {}
    for metric, column in tables[0].items():
        for row in column:
            values = [table[metric][row] for table in tables]
            means.setdefault(metric, {})[row] = statistics.mean(values)
            if len(values) > 1:
                errors.setdefault(metric, {})[row] = statistics.stdev(values) / len(values) ** 0.5
    return means, errors


def find_networks(device, lpips, fvd):
    """The networks of LPIPS and FVD, {metric: network}, and for the others {metric: why it is missing}."""
    networks = {}
    missing = dict(lpips="left out by --lpips false", fvd=f"no detector: pass --fvd FILE, {DETECTOR}")
    if lpips:
        try:
            networks["lpips"] = perceptual_loss(device)
        except FileNotFoundError as error:
            missing["lpips"] = str(error)
    if fvd:
        networks["fvd"] = load_torchscript(fvd, device, DETECTOR)
    return networks, {metric: why for metric, why in missing.items() if metric not in networks}


def parts_folder(cfg, model, data, networks):
    """The folder of measured batches, from which an interrupted run continues: one for each set of settings,
    weights and videos, whose checksum is in its name."""
    settings = {k: str(v) for k, v in vars(cfg).items() if k not in ("out", "overwrite", "device", "given")}
    tensors = [*model.gpt.parameters(), *model.tokenizer.parameters(), *data.values()]
    key = [settings, model.temperature, model.top_k, list(networks), checksum(tensors)]
    return beside(cfg.out, f".parts-{zlib.crc32(repr(key).encode()):08x}")


def main(cfg):
    require_positive(cfg, "episodes", "samples", "horizon", "repeats", "batch_size")
    if not cfg.frames or set(cfg.frames) - {"all", "future", "last"}:
        raise ValueError(f"frames is {','.join(cfg.frames)!r}; expected some of all, future, last")
    cfg.out = claim_result(cfg.out, cfg.overwrite)
    rank, world, device = setup_ddp()
    how = dict(temperature=cfg.temperature, top_k=cfg.top_k, dtype=cfg.dtype)
    model = WorldModel.load(cfg.ckpt, cfg.device or str(device), cfg.tokenizer, cfg.context_frames, **how)
    networks, missing = find_networks(model.device, cfg.lpips, cfg.fvd)
    data = segments_for(model, cfg.data, cfg.episodes, cfg.horizon, None if cfg.from_start else cfg.seed)
    if model.action_dim and cfg.episodes == 1:
        missing["wrong_actions"] = "needs a second video; pass --episodes 2 or more"
    folder = parts_folder(cfg, model, data, networks)

    videos = max(1, cfg.batch_size // cfg.samples)  # at once; all futures of each
    jobs = list(itertools.product(range(cfg.repeats), range(0, cfg.episodes, videos)))
    try:
        for i, start in tqdm(jobs[rank::world], "evaluate", disable=rank > 0):
            path = folder / f"{i}-{start}.pt"
            if not path.is_file():  # else an interrupted run has measured it
                model.generator.manual_seed((cfg.seed * 1000 + i) * 100_000 + start)
                save_checkpoint(path, **measure(model, data, slice(start, start + videos), cfg, networks))
    except KeyboardInterrupt:
        raise SystemExit(f"\ninterrupted; {folder} keeps what was measured for the same command") from None
    if dist.is_initialized():
        dist.barrier()
    if rank > 0:
        return

    parts = [torch.load(folder / f"{i}-{start}.pt") for i, start in jobs]
    n = len(parts) // cfg.repeats
    draws = [parts[i : i + n] for i in range(0, len(parts), n)]  # one for each repeat
    columns, errors = combine([summarize(draw, cfg) for draw in draws])
    correlations = [reward_correlation(draw) for draw in draws]
    correlation = None if None in correlations else statistics.mean(correlations)
    print(f"\n{cfg.episodes} videos, {model.context_frames} context and {cfg.horizon} predicted frames; "
          f"futures of each: {cfg.samples}")
    report(cfg.out, columns, errors, missing, episodes=cfg.episodes, samples=cfg.samples, repeats=cfg.repeats,
           frames=cfg.frames, reward_correlation=correlation)
    if correlation is not None:
        print(f"reward correlation {correlation:.3f}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__, presets=PRESETS))
