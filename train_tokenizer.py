"""train_tokenizer.py: train the conditional VQGAN (paper section 3.1, appendix A.2, Table 3).

    segments (B,T,3,H,W) -> Tokenizer.loss -> reconstruction + LPIPS + VQ [+ discriminator] -> AdamW

A segment is t context frames and `future_frames` others, drawn from a window of `horizon` frames. The
defaults are the paper's low-resolution pre-training; batch_size counts segments per process and micro-step
(the paper: 16 on 4 GPUs). A step is one update of the tokenizer. The discriminator, once it is on, is
updated in the same step; the authors alternate the two and count both, so their 1,000,000 steps are 500,000
of ours.

Where we differ from the authors: no augmentation unless asked for, and then of the stored square, which
theirs crops from the whole picture; `large` starts from scratch (theirs from aMUSEd's VQ weights); the
discriminator learns at a constant rate, from the last micro-batch of a step.

Run:   python train_tokenizer.py --preset tiny --data data/push
       torchrun --nproc_per_node=4 train_tokenizer.py --data data/mine
       torchrun --nproc_per_node=4 train_tokenizer.py --preset bair     one of the paper's runs, see RECIPES
Continue a run with --resume true; fine-tune another checkpoint with --init_from out/tokenizer.pt --lr 1e-4.
Writes OUT (the checkpoint), the same name with .jsonl (the numbers) and .png (validation: truth above
reconstruction)."""

import time
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import tokenizer
from common import (
    agreed,
    autocast_for,
    can_compile,
    changes_given,
    configure,
    load_checkpoint,
    log,
    lr_at,
    perceptual_loss,
    require_positive,
    run,
    save_checkpoint,
    setup_ddp,
    start_log,
    stop_signal,
)
from data import draw_segments, prefetch, save_contact_sheet
from files import beside, claim
from mixture import open_data
from official import OXE_64, OXE_256
from tokenizer import Decoder, Discriminator, Encoder, Tokenizer, VectorQuantizer

CONFIG = dict(
    preset="small",
    data="data/push",  # a folder of episodes, or of such folders: a mixture
    mixture="oxe_sthsth",  # how these are weighted: one of data.py's, or "all"
    augment="",  # or paper, strong: random crops and colours
    episodes=0,  # train on the first so many alone; 0: all
    out="out/tokenizer.pt",
    init_from="",  # a checkpoint to fine-tune; it sets the sizes of the model, context_frames may change
    resume=False,  # continue OUT exactly where it stopped
    overwrite=False,  # replace an OUT that exists; by default it is refused
    kind="compressive",  # or one that spends as many tokens on every frame, such as "16x16"
    horizon=16,  # frames of the window that a segment is drawn from
    future_frames=6,
    shuffle=False,  # frames of the window in any order: for goal-conditioned prediction
    stride=1,  # source frames per step of the context
    batch_size=16,  # segments per process and micro-step
    accumulate=1,  # micro-steps per update
    max_steps=500_000,  # updates
    max_minutes=0.0,  # stop earlier than max_steps; 0 is off
    lr=5e-4,  # 1e-4 for fine-tuning
    warmup=500,
    schedule="constant",
    grad_clip=1.0,
    l2=0.0,  # weight of a squared error beside the absolute one
    decouple_start=-1,  # from here on dynamics codes are to tell of changes alone (before, a little); -1 off
    lpips=True,  # perceptual loss; needs the VGG-16 weights
    discriminator_start=-1,  # update at which the adversarial loss sets in; -1 never
    freeze_codebooks=False,
    log_every=10,
    eval_every=2500,  # evaluate and save
    eval_segments=64,
    compile=True,  # on GPUs
    dtype="auto",  # of matrix products: bf16, float32, or by "auto" the former on GPUs, the latter on CPUs
    seed=0,
    **tokenizer.SMALL,
)
# No LPIPS in `tiny`: on a CPU, VGG-16 would cost a hundred times the model that it judges.
# The squared error finds small moving things sooner.
# If dynamics codes were to tell of changes alone from the beginning, or suddenly, they would become one code.
TINY = dict(lpips=False, l2=10.0, decouple_start=2000, lr=2e-3, schedule="cosine", max_steps=5000)
TINY.update(batch_size=8, future_frames=3, warmup=100, eval_every=500)
LARGE = dict(batch_size=2, accumulate=4, discriminator_start=125_000)
PRESETS = dict(tiny=tokenizer.TINY | TINY, small=tokenizer.SMALL, large=tokenizer.LARGE | LARGE)

# The paper's runs (Table 3), on 4 GPUs; what is not said is as above. Fine-tuning begins with their models.
OXE = dict(data="data/oxe", augment="paper")
TUNED = dict(init_from=OXE_64, augment="paper", lr=1e-4, max_steps=100_000)
RECIPES = dict(
    oxe64=dict(OXE, out="out/oxe64-tokenizer.pt"),
    oxe64_goal=dict(
        OXE, init_from=OXE_64, lr=1e-4, shuffle=True, max_steps=275_000, out="out/oxe64_goal-tokenizer.pt"
    ),
    oxe256=dict(PRESETS["large"], **OXE, mixture="oxe", out="out/oxe256-tokenizer.pt"),
    bair=dict(TUNED, data="data/bair", context_frames=1, future_frames=7, out="out/bair-tokenizer.pt"),
    robonet64=dict(
        TUNED, data="data/robonet", horizon=12, max_steps=300_000, out="out/robonet64-tokenizer.pt"
    ),
    robonet256=dict(
        TUNED, data="data/robonet256", horizon=12, init_from=OXE_256, augment="", batch_size=2, accumulate=4,
        out="out/robonet256-tokenizer.pt",
    ),
    vp2=dict(TUNED, data="data/vp2", horizon=12, out="out/vp2-tokenizer.pt"),
)  # fmt: skip
PRESETS |= RECIPES


def update_judge(judge, optimizer, model, frames, grad_clip, autocast):
    """One update of the discriminator on frames (B, T, 3, H, W); returns its loss."""
    optimizer.zero_grad(set_to_none=True)
    with autocast:
        with torch.no_grad():
            fake = model.decode(model.encode(frames))
        loss = judge.loss(frames.flatten(0, 1), fake.flatten(0, 1))
    loss.backward()
    for p in judge.parameters() if dist.is_initialized() else ():
        dist.all_reduce(p.grad)
        p.grad /= dist.get_world_size()
    if grad_clip:
        nn.utils.clip_grad_norm_(judge.parameters(), grad_clip)
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def evaluate(model, segments, lpips, cfg, picture):
    """Mean validation metrics; writes rows of truth above reconstruction to `picture`."""
    model.eval()
    totals, frames, device = {}, segments["frames"], next(model.parameters()).device
    chunks = frames.split(cfg.batch_size)
    for chunk in chunks:
        loss, metrics = model.loss(chunk.to(device), lpips, l2=cfg.l2)
        for k, v in dict(metrics, loss=loss).items():
            totals[k] = totals.get(k, 0) + v.item() * len(chunk) / len(frames)
    shown = frames[:4]
    recon = model.reconstruct(shown.to(device))[0].cpu()
    save_contact_sheet(picture, [clip for pair in zip(shown, recon, strict=True) for clip in pair])
    model.train()
    return totals


def build(cfg):
    """The tokenizer to train and, with --resume, the state to go on from."""
    path = cfg.out if cfg.resume else cfg.init_from
    if not path:
        return tokenizer.build(cfg.kind, {k: getattr(cfg, k) for k in tokenizer.SMALL}), None
    if cfg.resume:
        state = load_checkpoint(path, needs=("tokenizer", "step", "segments", "optimizer", "rng"))
        return Tokenizer.from_checkpoint(state["tokenizer"]), state
    free = "context_frames", "dropout", "commitment", "revive_after"
    given = changes_given(cfg, tokenizer.SMALL, free)
    # Unless asked for, codes get no new meaning, by revival or otherwise: the transformer has learned theirs.
    if "decouple_start" not in cfg.given:
        cfg.decouple_start = -1
    return Tokenizer.load(path, **{"revive_after": 0, **given}), None


def main(cfg):
    require_positive(cfg, "batch_size", "accumulate", "max_steps", "log_every", "eval_every", "eval_segments")
    out = claim(cfg.out, (".jsonl", ".png"), cfg.overwrite, cfg.resume)
    rank, world, device = setup_ddp()
    stop = stop_signal()
    train = open_data(cfg.data, "train", cfg.episodes, cfg.mixture)
    val = open_data(cfg.data, "val", mixture=cfg.mixture)
    torch.manual_seed(cfg.seed)  # the same weights on all processes
    model, resumed = build(cfg)
    lpips = perceptual_loss(device) if cfg.lpips else None
    model.to(device, memory_format=torch.channels_last).train()
    t, R = model.config["context_frames"], model.config["resolution"]
    if train.frame_shape != (R, R, 3):
        raise ValueError(f"{cfg.data} has frames {train.frame_shape}, expected {R} x {R}; import --size {R}")
    quantizers = [m for m in model.children() if isinstance(m, VectorQuantizer)]
    for quantizer in quantizers:  # frozen: out of the clipped norm, too
        quantizer.requires_grad_(not cfg.freeze_codebooks)
        if cfg.freeze_codebooks:
            quantizer.revive_after = 0
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=cfg.lr, weight_decay=0.0, fused=True)
    judge = Discriminator().to(device) if cfg.discriminator_start >= 0 else None
    if judge and resumed and "discriminator" not in resumed:
        raise ValueError(f"{cfg.out} holds no discriminator; start one with --init_from instead of --resume")
    judge_optimizer = torch.optim.AdamW(judge.parameters(), lr=cfg.lr, weight_decay=0.0) if judge else None
    step = seen = 0  # updates; segments
    if resumed:
        step, seen = resumed["step"], resumed["segments"]
        optimizer.load_state_dict(resumed["optimizer"])
        if judge:
            judge.load_state_dict(resumed["discriminator"])
            judge_optimizer.load_state_dict(resumed["discriminator_optimizer"])
    torch.manual_seed(cfg.seed + rank + world * step)  # dropout and revival differ between processes
    if resumed and world == 1:
        torch.set_rng_state(resumed["rng"].cpu())
    ddp = model
    if world > 1:
        ddp = DistributedDataParallel(model, [device.index] if device.type == "cuda" else None)
    if cfg.compile and can_compile(device):
        for network in model.children():
            if isinstance(network, Encoder | Decoder):
                network.compile()
    autocast = autocast_for(device, cfg.dtype)
    if step >= cfg.max_steps:
        raise ValueError(f"{out} is at step {step} already; raise --max_steps to go on")
    batch = cfg.batch_size * cfg.accumulate * world
    if rank == 0:
        numbers, picture = beside(out, ".jsonl"), beside(out, ".png")
        if not resumed:  # --overwrite: nobody shall resume the old run with the new one's log
            out.unlink(missing_ok=True)
        start_log(numbers, step)
        size = sum(p.numel() for p in model.parameters())
        print(f"{device} x {world} | {size:,} parameters | {batch} segments per step")

    def save():
        state = dict(optimizer=optimizer.state_dict(), rng=torch.get_rng_state(), train_config=vars(cfg))
        if judge:
            state["discriminator"] = judge.state_dict()
            state["discriminator_optimizer"] = judge_optimizer.state_dict()
        save_checkpoint(out, tokenizer=model.checkpoint(), step=step, segments=seen, **state)

    how = dict(context=t, future=cfg.future_frames, shuffle=cfg.shuffle)
    fetch = draw_segments(train, cfg, cfg.horizon, seen, rank, world, cfg.augment, **how)
    segments = val.segments(cfg.eval_segments, t + cfg.future_frames, cfg.stride, cfg.seed)
    batches = prefetch(fetch, 0, (cfg.max_steps - step) * cfg.accumulate, device)
    started = since = time.time()
    losses, waited = [], 0.0
    while step < cfg.max_steps:
        lr = lr_at(step, cfg.lr, cfg.warmup, cfg.max_steps, cfg.schedule)
        adversary = judge if 0 <= cfg.discriminator_start <= step else None
        decouple = 0 <= cfg.decouple_start <= step
        still = 10.0 if decouple else float(cfg.decouple_start >= 0)
        extras = dict(l2=cfg.l2, still=still, disguise=decouple)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for micro in range(cfg.accumulate):
            asked = time.time()
            frames = next(batches)["frames"]
            waited += time.time() - asked
            last = micro == cfg.accumulate - 1
            with nullcontext() if world == 1 or last else ddp.no_sync():
                with autocast:
                    loss, metrics = ddp(frames, lpips, adversary, **extras)
                (loss / cfg.accumulate).backward()
            total = total + loss.detach() / cfg.accumulate
        if cfg.grad_clip:
            nn.utils.clip_grad_norm_(parameters, cfg.grad_clip)
        optimizer.step()
        if adversary:
            metrics["judge"] = update_judge(judge, judge_optimizer, model, frames, cfg.grad_clip, autocast)
        losses.append(total)
        step, seen = step + 1, seen + batch
        leaving = step == cfg.max_steps or (world == 1 and stop.is_set())
        if step % cfg.log_every and step % cfg.eval_every and not leaving:
            continue

        bad = (~torch.stack(losses).isfinite()).nonzero()
        if agreed(len(bad) > 0, device):
            first = step - len(losses) + int(bad[0]) + 1 if len(bad) else "nearby, on another process"
            raise FloatingPointError(f"loss is not finite at step {first}; lower --lr ({out} is older)")
        if rank == 0:
            seconds = time.time() - since
            speed = dict(ms=1000 * seconds / len(losses), wait=waited / seconds)  # wait: the share for data
            values = {k: v.item() for k, v in metrics.items()}
            log(step, numbers, loss=torch.stack(losses).mean().item(), lr=lr, **speed, **values)
        late = 0 < cfg.max_minutes * 60 < time.time() - started
        leaving = agreed(leaving or stop.is_set() or late, device)
        if rank == 0 and (leaving or step % cfg.eval_every == 0):
            if not all(p.isfinite().all() for p in model.parameters()):
                raise FloatingPointError(f"weights not finite at step {step}; lower --lr ({out} is older)")
            if not stop.is_set():  # who stops a run may not wait for an evaluation
                values = evaluate(model, segments, lpips, cfg, picture)
                log(step, numbers, **{f"val_{k}": v for k, v in values.items()})
            save()
        if leaving:
            break
        losses, waited, since = [], 0.0, time.time()


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__, presets=PRESETS))
