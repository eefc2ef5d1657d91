"""post_train.py: reinforcement learning on the world model itself, with rewards that can be verified.

    B contexts --imagine--> G futures of each --against the truth--> rewards (B,G) --> advantages (B,G)
                  ^                                                                        |
                  +-------- transformer <-- clipped surrogate, KL to the start <-----------+

A likely next token is not what a world model is used for; a future that looks like what really happened is,
and that can be checked. The transformer is a policy, whose actions are tokens; the tokenizer stays as it is.
Source: RLVR-World (Wu et al. 2025, arXiv 2505.13934), with GRPO (Shao et al. 2024, arXiv 2402.03300).

The G futures are branches of one context, which is read once for all of them, also where gradients are needed
(`attend_branches`). The data's true actions lead to them. Sampling is at temperature 1; log-probabilities are
those of the softmax over all dynamics codes, although the model may sample from the `top_k` likeliest alone.

B contexts, G futures of each (a group), f frames of n tokens, P tokens of a context, F = f (n + 1) of a
future; the others are gpt.py's.

Run: python post_train.py                     the released model; PushWorld's episodes: python prepare.py push
     torchrun --nproc_per_node=4 post_train.py --ckpt out/gpt.pt --data data/mine
Continue a run with --resume true. Writes OUT, a checkpoint like train_gpt.py's, whose temperature is 1, and
the same name with .jsonl (the numbers) and .png (validation: truth above imagined)."""

import copy
import functools

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from checkpoints import checksum
from common import (
    Progress,
    configure,
    load_checkpoint,
    lr_at,
    require_not_negative,
    require_positive,
    run,
    save_checkpoint,
)
from data import draw_segments, goal_first, prefetch
from evaluate import find_networks, perceptual_distance, psnr, ssim
from gpt import symlog
from mixture import open_data
from sample import WorldModel
from support.devices import autocast_for
from support.pictures import save_contact_sheet

CONFIG = dict(
    preset="push",  # or paper: its batches
    ckpt="assets/push-tiny.pt",  # where it starts; with or without actions, of ours or of the authors'
    data="data/push",  # a folder of episodes, or of such folders: a mixture
    mixture="oxe",  # how these are weighted
    out="out/post-train.pt",
    resume=False,  # continue OUT exactly where it stopped
    overwrite=False,  # replace an OUT that exists; by default it is refused
    horizon=14,  # frames that are imagined
    batch_size=8,  # contexts per process
    group=16,  # futures of each
    mini_batches=4,  # updates per batch, each of a part of its contexts
    max_steps=100,  # batches
    max_minutes=0.0,  # stop earlier than max_steps; 0: no limit
    lr=5e-5,
    warmup=0,
    schedule="constant",
    weight_decay=0.0,
    grad_clip=1.0,  # 0: none
    clip=0.2,  # how far the ratio of probabilities may go from 1
    kl=1e-3,  # weight of the divergence from the start
    # the reward: minus the sum over frames of these errors, times their weights
    l1=1.0,
    lpips=1.0,  # without VGG-16's weights it is left out, and a line says so
    l2=0.0,
    reward_error=0.0,  # squared, of the reward head (symlog); 0 where the model has none
    top_k=-1,  # codes, the most likely, that an imagined one is sampled from; 0: all; -1: as the model says
    log_every=1,
    eval_every=20,  # evaluate and save
    eval_segments=32,
    best_of=20,  # futures of each in evaluation
    eval_temperatures=(1.0, 0.5),
    dtype="auto",  # of matrix products in updates: bf16, float32; "auto": bf16 on GPUs, float32 on CPUs
    seed=0,
)
PRESETS = dict(push={}, paper=dict(ckpt="out/gpt.pt", batch_size=32, eval_temperatures=(1.0,)))  # on 4 GPUs


# ---- the policy ----


def attend_branches(q, k, v, P, G):
    """Causal attention over sequences (B, H, P + G F, d): a context, then G futures which do not see each
    other."""
    context = F.scaled_dot_product_attention(q[:, :, :P], k[:, :, :P], v[:, :, :P], is_causal=True)
    q = q[:, :, P:].unflatten(2, (G, -1)).transpose(1, 2)  # (B, G, H, F, d)
    length = q.shape[3]
    keys = []
    for x in (k, v):
        own = x[:, :, P:].unflatten(2, (G, -1)).transpose(1, 2)
        shared = x[:, None, :, :P].expand(-1, G, -1, -1, -1)
        keys.append(torch.cat([shared, own], 3).flatten(0, 1))  # (B G, H, P + F, d)
    mask = torch.ones(length, P + length, dtype=torch.bool, device=q.device).tril(P)
    futures = F.scaled_dot_product_attention(q.flatten(0, 1), *keys, attn_mask=mask)
    futures = futures.unflatten(0, (-1, G)).transpose(1, 2).flatten(2, 3)
    return torch.cat([context, futures], 2)


class Policy(nn.Module):
    """The transformer's log-probabilities of futures, as a forward: DistributedDataParallel needs one."""

    def __init__(self, gpt):
        super().__init__()
        self.gpt = gpt

    def forward(self, prompt, codes, actions=None):
        """Contexts (B, P), codes (B, G, f, n) of their futures, actions (B, T, A) of a group or None ->
        log-probabilities of the codes (B, G, f, n), and entropies of what they were drawn from."""
        gpt = self.gpt
        B, G, f, n = codes.shape
        P = prompt.shape[1]
        t = gpt.layout.context_frames
        context, _ = gpt.layout.unpack(prompt)
        whole = gpt.layout.pack(context.repeat_interleave(G, 0), codes.flatten(0, 1))  # (B G, P + F)
        place = torch.arange(whole.shape[1], device=codes.device)
        positions = torch.cat([place[:P], place[P:].repeat(G)])
        tokens = torch.cat([prompt, whole[:, P:].reshape(B, -1)], 1)  # (B, P + G F)
        x = gpt.add_positions(gpt.embed(tokens), positions)
        added = gpt.embed_actions(actions, (B, t + f))
        if added is not None:
            slots = x[:, P:].unflatten(1, (G, f, n + 1))[:, :, :, 0]
            slots += added[:, None, t - 1 : t - 1 + f]
        rope = gpt.rope[:, positions]
        attend = functools.partial(attend_branches, P=P, G=G)
        for block in gpt.blocks[:-1]:
            x = block(x, rope, attend)
        h = gpt.norm(gpt.blocks[-1](x, rope, attend, first=P))
        h = h.unflatten(1, (G, f, n + 1))[:, :, :, :n]  # a frame's last token predicts the next slot
        log_probs = gpt.code_logits(h).float().log_softmax(-1)
        chosen = log_probs.gather(-1, codes[..., None])[..., 0]
        log_probs = log_probs.detach()
        return chosen, -(log_probs.exp() * log_probs).sum(-1)


# ---- the objective ----


def verify(futures, truth, cfg, lpips=None, predicted=None, rewards=None):
    """Rewards (B, G) of futures (B, G, f, 3, H, W): minus their distance from truth (B, f, 3, H, W), summed
    over frames.

    lpips  the network of `perceptual_loss`, or None;  predicted (B, G, f), rewards (B, f)  those of the model
           and of the data, or None.   Source: RLVR-World, section 4.2"""
    truth = truth[:, None].expand_as(futures)
    error = futures - truth
    distance = cfg.l1 * error.abs().mean((3, 4, 5)) + cfg.l2 * error.square().mean((3, 4, 5))
    if lpips is not None:
        distance += cfg.lpips * perceptual_distance(futures, truth, lpips)
    if cfg.reward_error:
        distance += cfg.reward_error * (symlog(predicted) - symlog(rewards)[:, None]).square()
    return -distance.sum(2)


def normalize(rewards):
    """Rewards (B, G) -> advantages: how many deviations of its group a future is above the group's mean.

    Zero where all are equal.   Source: GRPO, section 4.1.2"""
    rewards = rewards.double()
    away = rewards - rewards.mean(1, keepdim=True)
    return (away / (rewards.std(1, keepdim=True) + 1e-6)).float()


def surrogate(new, old, start, advantages, clip, kl):
    """The loss of log-probabilities `new`, `old` (of the model that drew the codes) and `start` (of the one
    that the run began with), all (B, G, f, n), and advantages (B, G).

    GRPO, eq. 3: -mean(min(ratio A, clamp(ratio) A)) + kl k3, where k3 is its eq. 4, an estimate of
    KL(new || start) that is never negative.   returns loss and metrics, a dict of scalars"""
    A = advantages[..., None, None]
    ratio = (new - old).exp()
    gain = torch.minimum(ratio * A, ratio.clamp(1 - clip, 1 + clip) * A)
    k3 = (start - new).exp() - (start - new) - 1
    loss = kl * k3.mean() - gain.mean()
    is_clipped = gain.detach() < (ratio * A).detach()
    return loss, dict(kl=k3.detach().mean(), clipped=is_clipped.float().mean())


# ---- futures ----


@torch.no_grad()
def imagine(world, batch, G, h):
    """G futures of h frames of each segment in a batch -> frames (B, G, h, 3, H, W), codes (B, G, h, n),
    rewards (B, G, h) or None."""
    t = world.context_frames
    actions = None
    if world.action_dim:
        actions = batch["actions"][:, t - 1 : t - 1 + h].repeat_interleave(G, 0)
    world.reset(batch["frames"][:, :t], G, h)
    frames, rewards, _ = world.rollout(actions, h)
    split = functools.partial(torch.unflatten, dim=0, sizes=(-1, G))
    return split(frames), split(world.codes), None if rewards is None else split(rewards)


@torch.no_grad()
def evaluate(gpt, world, segments, cfg, picture):
    """PSNR and SSIM of one future of each segment, their mean and the best of several, at each temperature.

    Draws the first futures at the first temperature below the truth."""
    world = world.session(seed=0)
    t = world.context_frames
    metrics = {}
    rows = []
    for temperature in cfg.eval_temperatures:
        world.temperature = temperature
        parts = {}
        for first in range(0, cfg.eval_segments, cfg.batch_size):
            batch = {k: v[first : first + cfg.batch_size].to(world.device) for k, v in segments.items()}
            futures = imagine(world, batch, cfg.best_of, cfg.horizon)[0]
            truth = batch["frames"][:, None, t:].expand_as(futures)
            for name, metric in dict(psnr=psnr, ssim=ssim).items():
                parts.setdefault(name, []).append(metric(futures, truth).mean(2))
            if temperature == cfg.eval_temperatures[0]:
                for clip, future in zip(batch["frames"].cpu(), futures[:, 0].cpu(), strict=True):
                    rows += [clip, torch.cat([clip[:t], future])]
        for name, values in parts.items():
            values = torch.cat(values)  # (segments, best_of)
            metrics[f"{name}_{temperature:g}"] = values.mean().item()
            metrics[f"{name}_{temperature:g}_best"] = values.amax(1).mean().item()
    save_contact_sheet(picture, rows[:8])
    return metrics


# ---- the loop ----


def start_from(cfg, device):
    """The world model to improve, and with --resume the state to go on from."""
    world = WorldModel.load(cfg.ckpt, str(device), temperature=1.0, top_k=cfg.top_k, dtype="float32")
    t = world.context_frames
    if (rest := world.gpt.config["segment_length"] - t) < cfg.horizon:
        raise ValueError(f"horizon is {cfg.horizon}; {cfg.ckpt} imagines {rest} frames from a context")
    if cfg.reward_error and world.gpt.reward is None:
        raise ValueError(f"{cfg.ckpt} predicts no rewards; pass --reward_error 0")
    if not cfg.resume:
        return world, None
    state = load_checkpoint(cfg.out, needs=("gpt", "step", "segments", "optimizer", "generator", "start"))
    if state["start"] != checksum(world.gpt.parameters()):
        raise ValueError(f"{cfg.out} began with other weights than those of {cfg.ckpt}; pass its --ckpt")
    return world, state


def main(cfg):
    require_positive(cfg, "horizon", "mini_batches", "best_of")
    require_not_negative(cfg, "clip", "kl", "l1", "l2", "lpips", "reward_error")
    if cfg.group < 2 or cfg.mini_batches > cfg.batch_size:
        got = f"group is {cfg.group}, mini_batches {cfg.mini_batches}, batch_size {cfg.batch_size}"
        raise ValueError(f"{got}; expected a group of 2 or more, and a context or more per mini-batch")
    progress = Progress(cfg)
    rank = progress.rank
    device = progress.device

    # data and models
    world, resumed = start_from(cfg, device)
    gpt = world.gpt
    networks, missing = find_networks(device, cfg.lpips > 0, "")
    lpips = networks.get("lpips")
    if cfg.lpips and lpips is None and rank == 0:
        print(f"LPIPS is left out of the reward: {missing['lpips']}")
    trained = world.trained
    how = dict(action_agg=trained["action_agg"])
    train = open_data(cfg.data, "train", mixture=cfg.mixture)
    val = open_data(cfg.data, "val", mixture=cfg.mixture)
    start = copy.deepcopy(gpt).requires_grad_(False)
    began = checksum(start.parameters())
    step = 0  # batches
    seen = 0  # segments
    if resumed:
        gpt.load_state_dict(resumed["gpt"]["weights"])
        step = resumed["step"]
        seen = resumed["segments"]
    for module in (world.tokenizer, gpt.reward):
        if module is not None:
            module.requires_grad_(False)
    parameters = [p for p in gpt.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, cfg.lr, weight_decay=cfg.weight_decay)
    world.generator.manual_seed(cfg.seed + rank + progress.world * step)
    if resumed:
        optimizer.load_state_dict(resumed["optimizer"])
        if progress.world == 1:
            world.generator.set_state(resumed["generator"].cpu())
    policy = ddp = Policy(gpt)
    if progress.world > 1:
        ddp = DistributedDataParallel(policy, [device.index] if device.type == "cuda" else None)
    frozen = Policy(start)
    autocast = autocast_for(device, cfg.dtype)
    t = world.context_frames
    goal = int(world.goal_conditioned)
    T = t + cfg.horizon - goal
    cfg.stride = trained["stride"]
    settings = {**trained, **vars(cfg), "temperature": 1.0, "top_k": world.top_k}

    def save():
        save_checkpoint(
            progress.out, gpt=gpt.checkpoint(), tokenizer=world.tokenizer.checkpoint(), train_config=settings,
            step=step, segments=seen, optimizer=optimizer.state_dict(), start=began,
            generator=world.generator.get_state(),
        )  # fmt: skip

    fetch = draw_segments(train, cfg, T, seen, rank, progress.world, **how)
    batches = prefetch(fetch, 0, cfg.max_steps - step, device)
    val_segments = val.segments(cfg.eval_segments, T, cfg.stride, cfg.seed, **how)
    if goal:
        batches = map(goal_first, batches)
        val_segments = goal_first(val_segments)
    per_step = cfg.batch_size * progress.world
    progress.start(step, f"{per_step} contexts per step, {cfg.group} futures of each")

    while not progress.ends:
        lr = lr_at(step, cfg.lr, cfg.warmup, cfg.max_steps, cfg.schedule)
        for group in optimizer.param_groups:
            group["lr"] = lr
        batch = progress.next(batches)
        truth = batch["frames"][:, t:]
        futures, codes, predicted = imagine(world, batch, cfg.group, cfg.horizon)
        rewards = verify(futures, truth, cfg, lpips, predicted, batch["rewards"][:, t:])
        advantages = normalize(rewards)
        with torch.no_grad(), autocast:
            prompt = world.tokenizer.encode(batch["frames"][:, :t])
        inputs = [prompt, codes]
        if world.action_dim:
            inputs.append(batch["actions"])
        parts = list(zip(*(x.chunk(cfg.mini_batches) for x in inputs), strict=True))
        with torch.no_grad(), autocast:
            old = [policy(*part)[0] for part in parts]
            first = [frozen(*part)[0] for part in parts]
        metrics = {}  # means over the parts
        for part, before, begun, A in zip(parts, old, first, advantages.chunk(cfg.mini_batches), strict=True):
            with autocast:
                new, entropy = ddp(*part)
            loss, numbers = surrogate(new, before, begun, A, cfg.clip, cfg.kl)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if cfg.grad_clip:
                nn.utils.clip_grad_norm_(parameters, cfg.grad_clip)
            optimizer.step()
            numbers.update(loss=loss.detach(), entropy=entropy.mean())
            for name, value in numbers.items():
                metrics[name] = metrics.get(name, 0) + value / len(parts)
        step += 1
        seen += per_step
        progress.losses.append(metrics.pop("loss"))
        if progress.is_due(step):
            repeats = (codes[:, :, 1:] == codes[:, :, :-1]).all(-1).float()  # of a frame the one before
            metrics |= dict(reward=rewards.mean(), spread=rewards.std(1).mean())
            metrics["repeated"] = repeats.mean() if cfg.horizon > 1 else torch.zeros(())
            progress.log(step, lr, metrics, tokens=per_step * cfg.group * codes.shape[2:].numel())
            if progress.saves:
                progress.validate(step, evaluate, gpt, world, val_segments, cfg, progress.picture)
                save()
                progress.reset()


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__, presets=PRESETS))
