"""train_tokenizer.py: train the conditional VQGAN (paper section 3.1, appendix A.2, Table 3).

    segments (B,T,3,H,W) -> Tokenizer.loss -> reconstruction + LPIPS + VQ [+ discriminator] -> AdamW

A segment is t context frames and `future_frames` others, drawn from a window of `horizon` frames. The
defaults are the paper's low-resolution pre-training; batch_size counts segments per process and micro-step
(the paper: 16 on 4 GPUs). A step is one update of the tokenizer. The discriminator, once it is on, is
updated in the same step; the authors alternate the two and count both, so their 1,000,000 steps are 500,000
of ours.

Where we differ from the authors: no augmentation unless asked for, and then of the stored square, while
theirs crops from the whole picture; `large` starts from scratch (theirs from aMUSEd's VQ weights); the
discriminator learns at a constant rate, from the last micro-batch of a step.

Run:   python train_tokenizer.py --preset tiny --data data/push
       torchrun --nproc_per_node=4 train_tokenizer.py --data data/mine
       torchrun --nproc_per_node=4 train_tokenizer.py --preset bair     one of the paper's runs (recipes.py)
Continue a run with --resume true; fine-tune another checkpoint with --init_from out/tokenizer.pt --lr 1e-4.
Writes OUT (the checkpoint), the same name with .jsonl (the numbers) and .png (validation: truth above
reconstruction)."""

from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import recipes
import tokenizer
from checkpoints import load_tokenizer, new_tokenizer, tokenizer_from
from common import (
    Progress,
    changes_given,
    configure,
    load_checkpoint,
    lr_at,
    require_not_negative,
    require_positive,
    require_unchanged,
    run,
    save_checkpoint,
)
from data import draw_segments, prefetch
from mixture import open_data
from support.devices import autocast_for, can_compile
from support.networks import perceptual_loss
from support.pictures import save_contact_sheet
from tokenizer import Decoder, Discriminator, Encoder
from variants import tiny
from variants.muon import optimizers_for

MODEL = {**tokenizer.SMALL, **tiny.TOKENIZER_OFF}
CONFIG = dict(
    preset="small",
    data="data/push",  # a folder of episodes, or of such folders: a mixture
    mixture="oxe_sthsth",  # how these are weighted: one of mixture.py's, or "all"
    augment="",  # or paper, strong: random crops and colours
    episodes=0,  # train on the first so many alone; 0: all
    out="out/tokenizer.pt",
    init_from="",  # a checkpoint to fine-tune; it sets the sizes of the model, context_frames may change
    resume=False,  # continue OUT exactly where it stopped
    overwrite=False,  # replace an OUT that exists; by default it is refused
    kind="compressive",  # or the same number of tokens for every frame, such as "16x16" (section 4.4)
    horizon=16,  # frames of the window that a segment is drawn from
    future_frames=6,
    shuffle=False,  # frames of the window in any order: for goal-conditioned prediction
    stride=1,  # source frames per step of the context
    batch_size=16,  # segments per process and micro-step
    accumulate=1,  # micro-steps per update
    max_steps=500_000,  # updates
    max_minutes=0.0,  # stop earlier than max_steps; 0: no limit
    lr=5e-4,  # 1e-4 for fine-tuning
    warmup=500,
    schedule="constant",
    weight_decay=0.0,
    grad_clip=1.0,  # 0: none
    muon=False,  # hidden layers learn by Muon instead of AdamW (variants/muon.py)
    lpips=True,  # perceptual loss; needs the VGG-16 weights
    discriminator_start=-1,  # update at which the adversarial loss sets in; -1: never
    freeze_codebooks=False,
    log_every=10,
    eval_every=2500,  # evaluate and save
    eval_segments=64,
    compile=True,  # on GPUs
    dtype="auto",  # of matrix products: bf16, float32, or by "auto" the former on GPUs, the latter on CPUs
    seed=0,
    **MODEL,
)
PRESETS = dict(
    # No LPIPS in `tiny`: on a CPU, VGG-16 would cost a hundred times the model that it trains.
    tiny=dict(
        tiny.TOKENIZER, lpips=False, muon=True, lr=3e-3, schedule="cosine", max_steps=5000, batch_size=8,
        future_frames=3, warmup=100, eval_every=500,
    ),
    small=tokenizer.SMALL,
    large=dict(tokenizer.LARGE, batch_size=2, accumulate=4, discriminator_start=125_000),
)  # fmt: skip
PRESETS.update(recipes.tokenizers(PRESETS["large"]))


def update_discriminator(discriminator, optimizer, model, frames, grad_clip, autocast):
    """One update of the discriminator on frames (B, T, 3, H, W); returns its loss."""
    optimizer.zero_grad(set_to_none=True)
    with autocast:
        with torch.no_grad():
            fake = model.decode(model.encode(frames))
        loss = discriminator.loss(frames.flatten(0, 1), fake.flatten(0, 1))
    loss.backward()
    if dist.is_initialized():
        for p in discriminator.parameters():
            dist.all_reduce(p.grad)
            p.grad /= dist.get_world_size()
    if grad_clip:
        nn.utils.clip_grad_norm_(discriminator.parameters(), grad_clip)
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def evaluate(model, segments, lpips, cfg, picture):
    """Mean validation metrics; writes rows of truth above reconstruction to `picture`."""
    model.eval()
    device = next(model.parameters()).device
    frames = segments["frames"]
    totals = {}
    for chunk in frames.split(cfg.batch_size):
        loss, metrics = model.loss(chunk.to(device), lpips)
        for name, value in dict(metrics, loss=loss).items():
            totals[name] = totals.get(name, 0) + value.item() * len(chunk) / len(frames)
    rows = []
    for truth in frames[:4]:
        rows += [truth, model.reconstruct(truth[None].to(device))[0][0].cpu()]
    save_contact_sheet(picture, rows)
    model.train()
    return totals


def build(cfg):
    """The tokenizer to train and, with --resume, the state to go on from."""
    if cfg.resume:
        state = load_checkpoint(cfg.out, needs=("tokenizer", "step", "segments", "optimizers", "rng"))
        require_unchanged(cfg, state, (*MODEL, "kind", "muon", "freeze_codebooks"))
        return tokenizer_from(state["tokenizer"]), state
    if not cfg.init_from:
        return new_tokenizer({key: getattr(cfg, key) for key in MODEL}, cfg.kind), None
    free = "context_frames", "dropout", "commitment", "revive_after", "l2"
    given = changes_given(cfg, MODEL, free)
    # Unless asked for, codes keep their meaning, which the transformer has learned: no revival.
    return load_tokenizer(cfg.init_from, **{"revive_after": 0, **given}), None


def main(cfg):
    require_positive(cfg, "accumulate")
    require_not_negative(cfg, "l2", "pos_init", "commitment")
    require_not_negative(cfg, "still", "dropout", most=1)
    if cfg.kind != "compressive" and cfg.fsq:
        raise ValueError(f"--kind {cfg.kind} has no fsq; leave it out")
    progress = Progress(cfg)
    rank = progress.rank
    world = progress.world
    device = progress.device

    # data and models
    train = open_data(cfg.data, "train", cfg.episodes, cfg.mixture)
    val = open_data(cfg.data, "val", mixture=cfg.mixture)
    torch.manual_seed(cfg.seed)  # the same weights on all processes
    model, resumed = build(cfg)
    lpips = perceptual_loss(device) if cfg.lpips else None
    model.to(device, memory_format=torch.channels_last).train()
    t = model.config["context_frames"]
    R = model.config["resolution"]
    if train.frame_shape != (R, R, 3):
        raise ValueError(f"{cfg.data} has frames {train.frame_shape}, expected {R} x {R}; import --size {R}")
    for name, module in model.named_children():
        if cfg.freeze_codebooks and "quantize" in name:
            module.requires_grad_(False)
            module.revive_after = 0
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizers = optimizers_for(model, [dict(params=parameters)], cfg)
    discriminator = None
    if cfg.discriminator_start >= 0:
        discriminator = Discriminator().to(device)
        discriminator_optimizer = torch.optim.AdamW(discriminator.parameters(), lr=cfg.lr, weight_decay=0.0)

    # where to go on
    step = 0  # updates
    seen = 0  # segments
    if resumed:
        step = resumed["step"]
        seen = resumed["segments"]
        for optimizer, saved in zip(optimizers, resumed["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if discriminator:
            if "discriminator" not in resumed:
                raise ValueError(f"{cfg.out} has no discriminator; start one with --init_from, not --resume")
            discriminator.load_state_dict(resumed["discriminator"])
            discriminator_optimizer.load_state_dict(resumed["discriminator_optimizer"])
    torch.manual_seed(cfg.seed + rank + world * step)  # dropout and revival differ between processes
    if resumed and world == 1:
        torch.set_rng_state(resumed["rng"].cpu())

    # one process or many
    ddp = model
    if world > 1:
        ddp = DistributedDataParallel(model, [device.index] if device.type == "cuda" else None)
    if cfg.compile and can_compile(device):
        for network in model.children():
            if isinstance(network, Encoder | Decoder):
                network.compile()
    autocast = autocast_for(device, cfg.dtype)
    segments_per_step = cfg.batch_size * cfg.accumulate * world

    def save():
        state = dict(optimizers=[optimizer.state_dict() for optimizer in optimizers])
        state.update(rng=torch.get_rng_state(), train_config=vars(cfg))
        if discriminator:
            state["discriminator"] = discriminator.state_dict()
            state["discriminator_optimizer"] = discriminator_optimizer.state_dict()
        save_checkpoint(progress.out, tokenizer=model.checkpoint(), step=step, segments=seen, **state)

    how = dict(context=t, future=cfg.future_frames, shuffle=cfg.shuffle)
    fetch = draw_segments(train, cfg, cfg.horizon, seen, rank, world, cfg.augment, **how)
    batches = prefetch(fetch, 0, (cfg.max_steps - step) * cfg.accumulate, device)
    val_segments = val.segments(cfg.eval_segments, t + cfg.future_frames, cfg.stride, cfg.seed)
    size = sum(p.numel() for p in model.parameters())
    progress.start(step, f"{size:,} parameters | {segments_per_step} segments per step")

    while not progress.ends:
        lr = lr_at(step, cfg.lr, cfg.warmup, cfg.max_steps, cfg.schedule)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = lr
        adversary = discriminator if 0 <= cfg.discriminator_start <= step else None
        total = 0.0
        for micro in range(cfg.accumulate):
            frames = progress.next(batches)["frames"]
            is_last = micro == cfg.accumulate - 1
            with nullcontext() if world == 1 or is_last else ddp.no_sync():
                with autocast:
                    loss, metrics = ddp(frames, lpips, adversary)
                (loss / cfg.accumulate).backward()
            total = total + loss.detach() / cfg.accumulate
        if cfg.grad_clip:
            nn.utils.clip_grad_norm_(parameters, cfg.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
        if adversary:
            metrics["discriminator"] = update_discriminator(
                discriminator, discriminator_optimizer, model, frames, cfg.grad_clip, autocast
            )
        step += 1
        seen += segments_per_step
        progress.losses.append(total)
        if progress.is_due(step):
            progress.log(step, lr, metrics)
            if progress.saves:
                progress.validate(step, evaluate, model, val_segments, lpips, cfg, progress.picture)
                save()
                progress.reset()


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__, presets=PRESETS))
