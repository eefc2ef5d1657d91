"""train_gpt.py: train the transformer on a frozen tokenizer's tokens (paper section 3, A.2).

    segments (B,T,3,H,W) -> Tokenizer.encode -> tokens (B,L) -> GPT.loss: CE [+ reward error] -> AdamW
             actions (B,T,A), rewards (B,T) ---------------------^

The defaults are the paper's pre-training; batch_size counts segments per process and micro-step (the paper:
16 on 4 GPUs). Actions and rewards are used where the data has them, whose size is read from there. The paper
pre-trains without actions (--actions false) and adds them in fine-tuning (--init_from out/gpt.pt), from a
zero projection.

Where we differ from the authors: no augmentation unless asked for, and then of the stored square, while
theirs crops from the whole picture; gradients are not clipped (as in their scripts, but for `medium`; Table 3
says that they are); rewards are those of arriving (gpt.py). What the preset `tiny` does otherwise is in
variants/ (tiny.py, muon.py, drift.py); it also samples from the likeliest codes alone (`top_k`,
`temperature`).

Run:   python train_gpt.py --preset tiny --data data/push --tokenizer out/tokenizer.pt
       torchrun --nproc_per_node=4 train_gpt.py --data data/mine --tokenizer out/tokenizer.pt
       torchrun --nproc_per_node=4 train_gpt.py --preset bair       one of the paper's runs, see recipes.py
Continue a run with --resume true. Writes OUT (one file: the transformer and its tokenizer), and the same
name with .jsonl (the numbers) and .png (validation: truth above imagined)."""

from contextlib import nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gpt
import recipes
from checkpoints import gpt_from, load_gpt, load_tokenizer, new_gpt, tokenizer_from
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
from data import draw_segments, goal_first, prefetch
from mixture import open_data
from support.devices import autocast_for, can_compile
from support.pictures import save_contact_sheet
from support.tokens import TokenFile
from variants import tiny
from variants.drift import corrupt
from variants.muon import optimizers_for

MODEL = {**gpt.SMALL, **tiny.GPT_OFF}
del MODEL["action_dim"], MODEL["reward"]  # these two follow from the data
CONFIG = dict(
    preset="small",
    data="data/push",  # a folder of episodes, or of such folders: a mixture
    mixture="oxe",  # how these are weighted: one of mixture.py's, or "all"
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
    action_agg="sample",  # of the stride actions up to the next frame, or their "sum", or all: "concat"
    stride=1,  # source frames per step
    batch_size=16,  # segments per process and micro-step
    accumulate=1,  # micro-steps per update
    max_steps=1_000_000,  # updates
    max_minutes=0.0,  # stop earlier than max_steps; 0: no limit
    lr=1e-4,
    warmup=5000,
    schedule="cosine",
    weight_decay=0.01,
    grad_clip=0.0,  # 0: none
    muon=False,  # the blocks' matrices learn by Muon instead of AdamW
    log_every=10,
    eval_every=2500,  # evaluate and save
    eval_segments=64,
    corrupt=0.0,  # up to this share of the codes that the model reads is random (variants/drift.py)
    tokens="",  # a file of segments that prepare.py has tokenized, instead of new ones at every step
    top_k=100,  # codes, the most likely, that an imagined one is sampled from; 0: all
    temperature=1.0,  # of sampling; it and top_k are validated with, and kept in the checkpoint
    compile=True,  # on GPUs
    dtype="auto",  # of matrix products: bf16, float32, or by "auto" the former on GPUs, the latter on CPUs
    seed=0,
    **MODEL,
)


def training_settings(model):
    """Settings of a transformer, less those that follow from the data."""
    return {key: value for key, value in model.items() if key in MODEL}


PRESETS = dict(
    tiny=dict(
        training_settings(tiny.TRANSFORMER), lr=1.5e-3, warmup=100, batch_size=8, max_steps=18_000,
        eval_every=1000, grad_clip=1.0, muon=True, corrupt=0.2, top_k=10, temperature=0.5,
    ),
    small=training_settings(gpt.SMALL),
    medium=dict(training_settings(gpt.MEDIUM), batch_size=8, accumulate=2, grad_clip=1.0),
)  # fmt: skip
PRESETS.update(recipes.transformers(PRESETS["medium"]))


class Loss(nn.Module):
    """The model's loss as a forward: DistributedDataParallel averages gradients of forward alone."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens, actions, rewards, read=None):
        return self.model.loss(tokens, actions, rewards, read)


def tokenize(batch, tokenizer, model, dtype="auto"):
    """A batch of data -> arguments of GPT.loss: tokens; actions and rewards, or None where it takes none."""
    actions = batch["actions"] if model.config["action_dim"] else None
    rewards = batch["rewards"] if model.config["reward"] else None
    if "tokens" in batch:
        return batch["tokens"], actions, rewards
    frames = batch["frames"]
    dtype = dtype if frames.is_cuda else "float32"  # bf16 changes some codes, and is no faster on CPUs
    with torch.inference_mode(), autocast_for(frames.device, dtype):
        tokens = tokenizer.encode(frames)
    return tokens.clone(), actions, rewards


@torch.no_grad()
def evaluate(model, tokenizer, segments, cfg, picture):
    """Teacher-forced metrics, and PSNR of one imagined future per segment, drawn below the truth."""
    model.eval()
    device = next(model.parameters()).device
    t = model.layout.context_frames
    generator = torch.Generator(device).manual_seed(0)
    totals = {}
    rows = []
    for start in range(0, cfg.eval_segments, cfg.batch_size):
        batch = {name: value[start : start + cfg.batch_size].to(device) for name, value in segments.items()}
        tokens, actions, rewards = tokenize(batch, tokenizer, model, cfg.dtype)
        loss, metrics = model.loss(tokens, actions, rewards)
        metrics["loss"] = loss
        context, dynamics = model.layout.unpack(tokens)
        leading = None if actions is None else actions[:, t - 1 :]  # actions[k] leads to frame k + 1
        cache = model.prefill(model.layout.pack(context))
        codes, _ = model.imagine(cache, dynamics.shape[1], leading, cfg.temperature, cfg.top_k, generator)
        future = tokenizer.decode_future(codes, tokenizer.decode_context(context)).clamp(0, 1)
        errors = (future - batch["frames"][:, t:]).square().mean((2, 3, 4))
        metrics["psnr"] = -10 * torch.log10(errors + 1e-8).mean()
        for name, value in metrics.items():
            totals[name] = totals.get(name, 0) + value.item() * len(future) / cfg.eval_segments
        for truth, imagined in zip(batch["frames"].cpu(), future.cpu(), strict=True):
            rows += [truth, torch.cat([truth[:t], imagined])]
    save_contact_sheet(picture, rows[:8])
    model.train()
    return totals


def build(cfg, data):
    """Tokenizer, transformer and, with --resume, the state to go on from."""
    state = None
    if cfg.resume:
        state = load_checkpoint(cfg.out, needs=("gpt", "tokenizer", "step", "segments", "optimizers", "rng"))
        tokenizer = tokenizer_from(state["tokenizer"])
    else:
        tokenizer = load_tokenizer(cfg.tokenizer or cfg.init_from or "out/tokenizer.pt")
    R = tokenizer.config["resolution"]
    if data.frame_shape != (R, R, 3):
        raise ValueError(f"{cfg.data} has frames {data.frame_shape}, expected {(R, R, 3)}: import --size {R}")
    if cfg.goal_conditioned and tokenizer.layout.context_frames < 2:
        raise ValueError("goal_conditioned needs 2 context frames, goal and present; the tokenizer has 1")
    action_dim = data.action_dim * (cfg.stride if cfg.action_agg == "concat" else 1)
    heads = dict(action_dim=action_dim if cfg.actions else 0, reward=cfg.rewards and data.has_reward)
    if cfg.resume:
        require_unchanged(cfg, state, (*MODEL, "muon", "actions", "rewards", "goal_conditioned"))
        return tokenizer, gpt_from(state["gpt"]), state
    if cfg.init_from:
        given = changes_given(cfg, MODEL, ("segment_length", "att_dropout"))
        return tokenizer, load_gpt(cfg.init_from, tokenizer.layout, **given, **heads), None
    settings = {key: getattr(cfg, key) for key in MODEL}
    return tokenizer, new_gpt(tokenizer.layout, {**settings, **heads}), None


def main(cfg):
    require_positive(cfg, "accumulate")
    require_not_negative(cfg, "temperature", "top_k", "pos_init")
    require_not_negative(cfg, "corrupt", "att_dropout", most=1)
    progress = Progress(cfg)
    rank = progress.rank
    world = progress.world
    device = progress.device

    # data and models
    train = open_data(cfg.data, "train", cfg.episodes, cfg.mixture)
    val = open_data(cfg.data, "val", mixture=cfg.mixture)
    torch.manual_seed(cfg.seed)  # the same weights on all processes
    tokenizer, model, resumed = build(cfg, train)
    tokenizer.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    model.to(device).train()
    optimizers = optimizers_for(model, model.param_groups(cfg.weight_decay), cfg)

    # where to go on
    step = 0  # updates
    seen = 0  # segments
    if resumed:
        step = resumed["step"]
        seen = resumed["segments"]
        for optimizer, saved in zip(optimizers, resumed["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
    torch.manual_seed(cfg.seed + rank + world * step)  # dropout differs between processes
    if resumed and world == 1:
        torch.set_rng_state(resumed["rng"].cpu())

    # one process or many
    ddp = Loss(model)
    if world > 1:
        ddp = DistributedDataParallel(ddp, [device.index] if device.type == "cuda" else None)
    loss_of = torch.compile(ddp) if cfg.compile and can_compile(device) else ddp
    autocast = autocast_for(device, cfg.dtype)
    T = cfg.segment_length = model.config["segment_length"]
    segments_per_step = cfg.batch_size * cfg.accumulate * world

    def save():
        save_checkpoint(
            progress.out, gpt=model.checkpoint(), tokenizer=tokenizer.checkpoint(), train_config=vars(cfg),
            step=step, segments=seen, optimizers=[optimizer.state_dict() for optimizer in optimizers],
            rng=torch.get_rng_state(), tokens=source.checksum if cfg.tokens else None,
        )  # fmt: skip

    recorded = T - 1 if cfg.goal_conditioned else T  # frames of a segment; the goal is its last one, again
    source = train
    if cfg.tokens:
        if cfg.augment or cfg.goal_conditioned or cfg.episodes:
            raise ValueError("tokens are of all episodes, without augmentation and goal; leave --tokens out")
        source = TokenFile(cfg, tokenizer, T, train)
        if resumed and resumed.get("tokens") not in (None, source.checksum):
            raise ValueError(f"{cfg.out} has read other tokens than those of {cfg.tokens}; use --init_from")
    fetch = draw_segments(source, cfg, recorded, seen, rank, world, cfg.augment, action_agg=cfg.action_agg)
    batches = prefetch(fetch, 0, (cfg.max_steps - step) * cfg.accumulate, device)
    val_segments = val.segments(cfg.eval_segments, recorded, cfg.stride, cfg.seed, cfg.action_agg)
    if cfg.goal_conditioned:
        batches = map(goal_first, batches)
        val_segments = goal_first(val_segments)
    size = sum(p.numel() for p in model.parameters())
    sizes = f"{size:,} parameters | {model.config['action_dim']}-D actions"
    progress.start(step, f"{sizes} | {segments_per_step} segments per step")

    while not progress.ends:
        lr = lr_at(step, cfg.lr, cfg.warmup, cfg.max_steps, cfg.schedule)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = lr
        total = 0.0
        for micro in range(cfg.accumulate):
            inputs = tokenize(progress.next(batches), tokenizer, model, cfg.dtype)
            is_last = micro == cfg.accumulate - 1
            with nullcontext() if world == 1 or is_last else ddp.no_sync():
                with autocast:
                    read = corrupt(model.layout, inputs[0], cfg.corrupt) if cfg.corrupt else None
                    loss, metrics = loss_of(*inputs, read=read)
                (loss / cfg.accumulate).backward()
            total = total + loss.detach() / cfg.accumulate
        if cfg.grad_clip:
            nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        seen += segments_per_step
        progress.losses.append(total)
        if progress.is_due(step):
            progress.log(step, lr, metrics, tokens=segments_per_step * model.layout.length(T))
            if progress.saves:
                progress.validate(step, evaluate, model, tokenizer, val_segments, cfg, progress.picture)
                save()
                progress.reset()


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__, presets=PRESETS))
