"""train_gpt.py: train the transformer on a frozen tokenizer's tokens (paper section 3, A.2).

    segments (B,T,3,H,W) -> Tokenizer.encode -> tokens (B,L) -> GPT.loss: CE [+ reward error] -> AdamW
             actions (B,T,A), rewards (B,T) ---------------------^

The defaults are the paper's pre-training; batch_size counts segments per process and micro-step (the paper:
16 on 4 GPUs). Actions and rewards are used where the data has them: nobody has to tell this script their
size. The paper pre-trains without actions (--actions false) and adds them in fine-tuning (--init_from
out/gpt.pt), from a zero projection.

Where we differ from the authors: no augmentation unless asked for, and then of the stored square, which
theirs crops from the whole picture; gradients are not clipped (as in their scripts, but for `medium`; Table 3
says that they are); rewards are those of arriving (gpt.py); in `tiny` alone, token embeddings start from the
codebooks (`codebook_init`), so that what is learned of one code holds for those that look like it, and
matrices learn by Muon (muon.py), which needs about half of AdamW's updates there; and the codes
that one is drawn from are fewer (`top_k`), since there are fewer: the unlikely ones add up to drift.

Run:   python train_gpt.py --preset tiny --data data/push --tokenizer out/tokenizer.pt
       torchrun --nproc_per_node=4 train_gpt.py --data data/mine --tokenizer out/tokenizer.pt
       torchrun --nproc_per_node=4 train_gpt.py --preset bair       one of the paper's runs, see RECIPES
Continue a run with --resume true. Writes OUT (one file: the transformer and its tokenizer), and the same
name with .jsonl (the numbers) and .png (validation: truth above imagined)."""

import functools
import time
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import gpt
from common import (
    agreed,
    autocast_for,
    can_compile,
    changes_given,
    configure,
    load_checkpoint,
    log,
    lr_at,
    require_positive,
    run,
    save_checkpoint,
    setup_ddp,
    start_log,
    stop_signal,
)
from data import draw_segments, goal_first, prefetch, save_contact_sheet
from files import beside, claim
from gpt import GPT
from mixture import open_data
from muon import Muon
from official import OXE_64, OXE_256
from tokenizer import Tokenizer

MODEL = {
    k: v for k, v in gpt.SMALL.items() if k not in ("action_dim", "reward")
}  # those two follow from the data
CONFIG = dict(
    preset="small",
    data="data/push",  # a folder of episodes, or of such folders: a mixture
    mixture="oxe",  # how these are weighted: one of data.py's, or "all"
    augment="",  # or paper, strong: random crops and colours
    episodes=0,  # train on the first so many alone; 0: all
    tokenizer="",  # checkpoint of the tokenizer; by default the one inside --init_from, else out/tokenizer.pt
    out="out/gpt.pt",
    init_from="",  # a checkpoint to fine-tune; it sets the sizes of the model, segment_length may change
    resume=False,  # continue OUT exactly where it stopped
    overwrite=False,  # replace an OUT that exists; by default it is refused
    actions=True,  # use the data's actions, if it has any
    rewards=True,  # predict the data's rewards, if it has any
    goal_conditioned=False,  # show the segment's last frame first; segment_length counts it twice
    action_agg="sample",  # with stride > 1: "sample" takes every stride-th action, "sum" adds all up
    stride=1,  # source frames per step
    pretokenize=0,  # tokenize so many segments per process once, and train on no others; 0: always new ones
    batch_size=16,  # segments per process and micro-step
    accumulate=1,  # micro-steps per update
    max_steps=1_000_000,  # updates
    max_minutes=0.0,  # stop earlier than max_steps; 0 is off
    lr=1e-4,
    warmup=5000,
    schedule="cosine",
    weight_decay=0.01,
    grad_clip=0.0,  # 0 is off
    muon=False,  # the blocks' matrices learn by Muon instead of AdamW
    log_every=10,
    eval_every=2500,  # evaluate and save
    eval_segments=64,
    top_k=100,  # codes, the likeliest, that an imagined one is drawn from; 0: all
    codebook_init=False,  # start from token embeddings in which codes with similar vectors are similar
    compile=True,  # on GPUs
    dtype="auto",  # of matrix products: bf16, float32, or by "auto" the former on GPUs, the latter on CPUs
    seed=0,
    **MODEL,
)
TINY = {k: v for k, v in gpt.TINY.items() if k in MODEL}
TINY.update(lr=1.5e-3, warmup=200, batch_size=8, max_steps=26_000, eval_every=1000, grad_clip=1.0)
TINY.update(codebook_init=True, muon=True, top_k=10)  # of 128 codes; the paper: 100 of 8192
MEDIUM = {k: v for k, v in gpt.MEDIUM.items() if k in MODEL}
PRESETS = {
    "tiny": TINY,
    "small": MODEL,
    "medium": {**MEDIUM, "batch_size": 8, "accumulate": 2, "grad_clip": 1.0},
}

# The paper's runs (Table 3), on 4 GPUs, each after the tokenizer's of its name; what is not said is as above.
OXE = dict(data="data/oxe", augment="paper", tokenizer="out/oxe64-tokenizer.pt")
TUNED = dict(augment="paper", att_dropout=0.1, rewards=False)  # predicted in mbpo.py alone
BAIR = dict(TUNED, init_from=OXE_64, data="data/bair", tokenizer="out/bair-tokenizer.pt")
ROBONET = dict(TUNED, data="data/robonet", segment_length=12, max_steps=600_000)
RECIPES = dict(
    oxe64=dict(OXE, out="out/oxe64.pt"),
    oxe64_medium=dict(PRESETS["medium"], **OXE, out="out/oxe64_medium.pt"),
    oxe64_goal=dict(
        OXE, tokenizer="out/oxe64_goal-tokenizer.pt", goal_conditioned=True, segment_length=17,
        out="out/oxe64_goal.pt",
    ),
    oxe256=dict(OXE, tokenizer="out/oxe256-tokenizer.pt", batch_size=4, out="out/oxe256.pt"),
    bair=dict(BAIR, max_steps=100_000, out="out/bair.pt"),
    bair_free=dict(BAIR, actions=False, max_steps=70_000, out="out/bair_free.pt"),
    robonet64=dict(ROBONET, init_from=OXE_64, tokenizer="out/robonet64-tokenizer.pt", out="out/robonet64.pt"),
    robonet256=dict(
        ROBONET, init_from=OXE_256, data="data/robonet256", tokenizer="out/robonet256-tokenizer.pt",
        batch_size=4, accumulate=2, out="out/robonet256.pt",
    ),
    vp2=dict(
        TUNED, init_from=OXE_64, data="data/vp2", tokenizer="out/vp2-tokenizer.pt", segment_length=12,
        max_steps=200_000, out="out/vp2.pt",
    ),
)  # fmt: skip
PRESETS |= RECIPES


class Loss(nn.Module):
    """The model's loss as a forward: DistributedDataParallel averages gradients of forward alone."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *args):
        return self.model.loss(*args)


def tokenize(batch, tokenizer, model, dtype="auto"):
    """A batch of data -> what GPT.loss takes: tokens; actions and rewards, or None where it has no use."""
    frames = batch["frames"]
    dtype = dtype if frames.is_cuda else "float32"  # bf16 moves some codes, for nothing on CPUs
    with torch.inference_mode(), autocast_for(frames.device, dtype):
        tokens = tokenizer.encode(frames)
    actions = batch["actions"] if model.config["action_dim"] else None
    return tokens.clone(), actions, batch["rewards"] if model.config["reward"] else None


def shuffled(batches):
    """Tokenized batches -> a function: i -> a batch of theirs, in a new order every time through."""
    kept = [None if part[0] is None else torch.cat(part) for part in zip(*batches, strict=True)]
    count, size, M = len(batches), len(batches[0][0]), len(kept[0])

    @functools.lru_cache(1)
    def order(epoch):
        return torch.randperm(M, generator=torch.Generator().manual_seed(epoch)).to(kept[0].device)

    def draw(i):
        rows = order(i // count)[i % count * size :][:size]
        return [None if part is None else part[rows] for part in kept]

    return draw


@torch.no_grad()
def evaluate(model, tokenizer, segments, cfg, picture):
    """Teacher-forced metrics, and PSNR of one imagined future per segment, drawn below the truth."""
    model.eval()
    device, t, totals, imagined = next(model.parameters()).device, model.layout.context_frames, {}, []
    generator = torch.Generator(device).manual_seed(0)
    for start in range(0, cfg.eval_segments, cfg.batch_size):
        batch = {k: v[start : start + cfg.batch_size].to(device) for k, v in segments.items()}
        tokens, actions, rewards = tokenize(batch, tokenizer, model, cfg.dtype)
        loss, metrics = model.loss(tokens, actions, rewards)
        metrics["loss"] = loss
        context, _ = model.layout.unpack(tokens)
        codes, _ = model.rollout(context, actions, top_k=cfg.top_k, generator=generator)
        future = tokenizer.decode_future(codes, tokenizer.decode_context(context)).clamp(0, 1)
        errors = (future - batch["frames"][:, t:]).square().mean((2, 3, 4))
        metrics["psnr"] = -10 * torch.log10(errors + 1e-8).mean()
        imagined.append(torch.cat([batch["frames"][:, :t], future], 1))
        for k, v in metrics.items():
            totals[k] = totals.get(k, 0) + v.item() * len(future) / cfg.eval_segments
    rows = zip(segments["frames"][:4], torch.cat(imagined)[:4].cpu(), strict=True)
    save_contact_sheet(picture, [clip for pair in rows for clip in pair])
    model.train()
    return totals


@torch.no_grad()
def embed_codebooks(model, tokenizer):
    """Start token embeddings and output layer from random projections of the codebooks' vectors."""
    first = 0
    for codebook in (tokenizer.quantize, tokenizer.dynamics_quantize):
        vectors = codebook.embedding.weight
        vectors = (vectors - vectors.mean(0)) / vectors.std()
        for table in (model.embed.weight, model.lm_head.weight):
            projection = torch.randn(vectors.shape[1], table.shape[1]) * 0.02 / vectors.shape[1] ** 0.5
            table[first : first + len(vectors)] = vectors @ projection
        first += len(vectors)


def optimizers_for(model, cfg):
    """AdamW for all parameters, or Muon for the blocks' matrices and AdamW for the others: a list."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2] if cfg.muon else []
    groups, theirs = model.param_groups(cfg.weight_decay), {id(p) for p in matrices}
    for group in groups:
        group["params"] = [p for p in group["params"] if id(p) not in theirs]
    optimizers = [torch.optim.AdamW(groups, lr=cfg.lr, betas=(0.9, 0.999), fused=True)]
    if matrices:
        optimizers.append(Muon(matrices, cfg.lr, cfg.weight_decay))
    return optimizers


def build(cfg, data):
    """Tokenizer, transformer and, with --resume, the state to go on from."""
    state = None
    if cfg.resume:
        state = load_checkpoint(cfg.out, needs=("gpt", "tokenizer", "step", "segments", "optimizers", "rng"))
        tokenizer = Tokenizer.from_checkpoint(state["tokenizer"])
    else:
        tokenizer = Tokenizer.load(cfg.tokenizer or cfg.init_from or "out/tokenizer.pt")
    R = tokenizer.config["resolution"]
    if data.frame_shape != (R, R, 3):
        raise ValueError(f"{cfg.data} has frames {data.frame_shape}, expected {(R, R, 3)}: import --size {R}")
    if cfg.goal_conditioned and tokenizer.layout.context_frames < 2:
        raise ValueError("goal_conditioned needs 2 context frames, goal and present; the tokenizer has 1")
    heads = dict(action_dim=data.action_dim if cfg.actions else 0, reward=cfg.rewards and data.has_reward)
    if cfg.resume:
        model = GPT.from_checkpoint(state["gpt"])
    elif cfg.init_from:
        given = changes_given(cfg, MODEL, ("segment_length", "att_dropout"))
        model = GPT.load(cfg.init_from, tokenizer.layout, **given, **heads)
    else:
        model = GPT(tokenizer.layout, **{k: getattr(cfg, k) for k in MODEL}, **heads)
        if cfg.codebook_init:
            embed_codebooks(model, tokenizer)
    return tokenizer, model, state


def main(cfg):
    require_positive(cfg, "batch_size", "accumulate", "max_steps", "log_every", "eval_every", "eval_segments")
    out = claim(cfg.out, (".jsonl", ".png"), cfg.overwrite, cfg.resume)
    rank, world, device = setup_ddp()
    stop = stop_signal()
    train = open_data(cfg.data, "train", cfg.episodes, cfg.mixture)
    val = open_data(cfg.data, "val", mixture=cfg.mixture)
    torch.manual_seed(cfg.seed)  # the same weights on all processes
    tokenizer, model, resumed = build(cfg, train)
    tokenizer.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    model.to(device).train()
    optimizers = optimizers_for(model, cfg)
    step = seen = 0  # updates; segments
    if resumed:
        step, seen = resumed["step"], resumed["segments"]
        for optimizer, saved in zip(optimizers, resumed["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
    torch.manual_seed(cfg.seed + rank + world * step)  # dropout differs between processes
    if resumed and world == 1:
        torch.set_rng_state(resumed["rng"].cpu())
    ddp = loss_of = Loss(model)
    if world > 1:
        ddp = loss_of = DistributedDataParallel(ddp, [device.index] if device.type == "cuda" else None)
    if cfg.compile and can_compile(device):
        loss_of = torch.compile(ddp)
    autocast = autocast_for(device, cfg.dtype)
    T = cfg.segment_length = model.config["segment_length"]
    if step >= cfg.max_steps:
        raise ValueError(f"{out} is at step {step} already; raise --max_steps to go on")
    batch = cfg.batch_size * cfg.accumulate * world
    if rank == 0:
        numbers, picture = beside(out, ".jsonl"), beside(out, ".png")
        if not resumed:  # --overwrite: nobody shall resume the old run with the new one's log
            out.unlink(missing_ok=True)
        start_log(numbers, step)
        size, A = sum(p.numel() for p in model.parameters()), model.config["action_dim"]
        print(f"{device} x {world} | {size:,} parameters | {A}-D actions | {batch} segments per step")

    def save():
        state = dict(optimizers=[optimizer.state_dict() for optimizer in optimizers])
        state.update(rng=torch.get_rng_state(), train_config=vars(cfg), step=step, segments=seen)
        save_checkpoint(out, gpt=model.checkpoint(), tokenizer=tokenizer.checkpoint(), **state)

    recorded, arrange = (T - 1, goal_first) if cfg.goal_conditioned else (T, dict)
    first = 0 if cfg.pretokenize else seen
    fetch = draw_segments(train, cfg, recorded, first, rank, world, cfg.augment, action_agg=cfg.action_agg)
    segments = arrange(val.segments(cfg.eval_segments, recorded, cfg.stride, cfg.seed, cfg.action_agg))
    if cfg.pretokenize:
        count = -(-cfg.pretokenize // cfg.batch_size)
        once = tqdm(prefetch(fetch, 0, count, device), "tokenize", total=count, disable=rank > 0)
        draw = shuffled([tokenize(batch, tokenizer, model, cfg.dtype) for batch in map(arrange, once)])
        batches = map(draw, range(step * cfg.accumulate, cfg.max_steps * cfg.accumulate))
    else:
        batches = map(arrange, prefetch(fetch, 0, (cfg.max_steps - step) * cfg.accumulate, device))
    started = since = time.time()
    losses, waited = [], 0.0
    while step < cfg.max_steps:
        lr = lr_at(step, cfg.lr, cfg.warmup, cfg.max_steps, cfg.schedule)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = lr
        total = 0.0
        for micro in range(cfg.accumulate):
            asked = time.time()
            inputs = next(batches)
            waited += time.time() - asked
            if not cfg.pretokenize:
                inputs = tokenize(inputs, tokenizer, model, cfg.dtype)
            with nullcontext() if world == 1 or micro == cfg.accumulate - 1 else ddp.no_sync():
                with autocast:
                    loss, metrics = loss_of(*inputs)
                (loss / cfg.accumulate).backward()
            total = total + loss.detach() / cfg.accumulate
        if cfg.grad_clip:
            nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
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
            seconds = (time.time() - since) / len(losses)
            speed = {"ms": 1000 * seconds, "tok/s": batch * model.layout.length(T) / seconds}
            speed["wait"] = waited / (seconds * len(losses))  # share of the time, for data
            values = {k: v.item() for k, v in metrics.items()}
            log(step, numbers, loss=torch.stack(losses).mean().item(), lr=lr, **speed, **values)
        late = 0 < cfg.max_minutes * 60 < time.time() - started
        leaving = agreed(leaving or stop.is_set() or late, device)
        if rank == 0 and (leaving or step % cfg.eval_every == 0):
            if not all(p.isfinite().all() for p in model.parameters()):
                raise FloatingPointError(f"weights not finite at step {step}; lower --lr ({out} is older)")
            if not stop.is_set():  # who stops a run may not wait for an evaluation
                values = evaluate(model, tokenizer, segments, cfg, picture)
                log(step, numbers, **{f"val_{k}": v for k, v in values.items()})
            save()
        if leaving:
            break
        losses, waited, since = [], 0.0, time.time()


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__, presets=PRESETS))
