"""mbpo.py: reinforcement learning with imagined experience (paper section 4.3, appendix A.5, Algorithm 1).

    environment --frames, rewards--> real replay --segments--> tokenizer, transformer
         ^                              |    |                           |
         | actions                      |    +--starts--> imagined_rollouts --> imagined replay
         |                              v                                              |
         +-------------- DrQ-v2 <-- update_agent: half real, half imagined ------------+

The agent is DrQ-v2 (drq.py), the loop is MBPO (Janner et al. 2019): the world model adds experience that
costs no step of the environment. `--imagine false` leaves it out: DrQ-v2 alone. `schedule` says how many
updates and rollouts belong to a number of steps; `MBPO.learn` catches up with it before each decision.

B batch, k stacked frames, t context frames, T frames of a segment, h horizon, A action size. A decision lasts
action_repeat steps of the environment; intervals are in steps. Action i leads to frame i + 1, as in data.py.
All models take frames in [0, 1] (the authors' agent gets imagined ones that were divided by 255 twice). Other
differences: the order of updates within a decision, and codebooks that learn if nothing was pre-trained.

Run: python mbpo.py --preset push                             PushWorld, the released checkpoint, two cores
     python mbpo.py --task plate-slide --init_from out/gpt.pt     Meta-World, as in the paper
     python mbpo.py --preset metaworld-tiny                   Meta-World on two cores, from scratch
Add --resume true to continue a run. Writes OUT (agent, world model, optimizers) and, of the same name, .jsonl
(numbers), .png (learning curves), .gif (real | imagined | difference) and a folder with both replays."""

import copy
import functools
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from checkpoints import SIZES, gpt_from, load_gpt, load_tokenizer, new_gpt, new_tokenizer, tokenizer_from
from common import (
    configure,
    load_checkpoint,
    log,
    require_not_negative,
    require_positive,
    run,
    save_checkpoint,
    start_log,
    stop_signal,
)
from data import Episodes, to_float, to_u8
from drq import AGENT, DrQ, Replay, critic_bias, exploration_std, to_batch
from envs import demonstrations, make_environment, play
from envs.base import HELD_OUT
from sample import TRAINED, WorldModel
from support.devices import autocast_for, find_device, uses_bf16
from support.files import beside, claim
from support.networks import perceptual_loss
from support.pictures import save_side_by_side
from support.results import draw_curves, read_curve

CONFIG = dict(
    preset="metaworld",
    task="plate-slide",  # of Meta-World, or "push"
    scene=-1,  # of PushWorld: >= 0 is the same scene in all episodes, up to small moves; -1 a new one each
    robot="red",  # of PushWorld
    out="out/mbpo/agent.pt",
    resume=False,  # continue OUT
    overwrite=False,  # replace an OUT that exists; by default it is refused
    imagine=True,  # False: DrQ-v2 alone
    init_from="",  # checkpoint of a world model to start from; "" starts from scratch with the size `world`
    keep_heads=False,  # keep that checkpoint's action and reward heads; by default they start anew
    world="small",  # or tiny, medium
    steps=100_000,  # of the environment
    seed_steps=4000,  # taken with random actions before anything is learned
    demos=5,  # successful episodes of the scripted expert, in the replay from the beginning
    demo_data="",  # a folder of episodes instead, such as the authors' demonstrations, imported
    size=64,  # pixels per side of the environment's frames
    **AGENT,
    model_batch=16,  # segments, of the world model's updates
    segment=12,  # frames
    model_lr=1e-4,  # of tokenizer and transformer
    grad_clip=1.0,
    lpips=True,
    future_frames=5,  # of a segment, that the tokenizer learns from
    init_updates=1000,
    gpt_every=10,  # steps
    tokenizer_every=40,
    temperature=1.0,  # of imagined codes, as the paper's, whatever the checkpoint says
    top_k=100,
    horizon=10,  # frames of an imagined rollout
    starts=32,  # rollouts at once
    rollout_every=200,
    init_rollouts=20,
    real_share=0.5,  # of the agent's batches
    eval_every=20_000,
    eval_episodes=20,
    save_every=10_000,
    keep_agents=False,  # the agent of each evaluation, for experiments/policies.py
    device="",  # by default a GPU if there is one
    dtype="auto",  # of the world model's matrix products
    seed=0,
)
CPU = dict(  # an agent and a world model that two cores can train
    agent_size=32, channels=16, hidden=256, agent_lr=3e-4, agent_batch=128, shift=2, model_batch=8,
    model_lr=3e-4, lpips=False, future_frames=3, horizon=5, init_rollouts=10,
)  # fmt: skip
PUSH = dict(
    CPU, task="push", scene=3, init_from="assets/push-tiny.pt", keep_heads=True, steps=3600, seed_steps=300,
    discount=0.95, std_decisions=2400, init_updates=100, gpt_every=5, starts=48, rollout_every=50,
    eval_every=300, eval_episodes=50, save_every=1200,
)  # fmt: skip
METAWORLD_TINY = dict(
    CPU, world="tiny", steps=20_000, seed_steps=1000, std_decisions=3000, init_updates=300, eval_every=2000,
    eval_episodes=5, save_every=2000,
)  # fmt: skip
PRESETS = {"metaworld": {}, "metaworld-tiny": METAWORLD_TINY, "push": PUSH}
MAY_CHANGE = (
    "resume overwrite out preset steps device dtype eval_every eval_episodes save_every keep_agents"
).split()
POSITIVE = (
    "stack n_step agent_batch channels features hidden std_decisions model_batch horizon future_frames "
    "starts gpt_every tokenizer_every rollout_every eval_every eval_episodes save_every"
).split()
NOT_NEGATIVE = "agent_lr model_lr seed seed_steps demos agent_updates shift init_updates".split()


# ---- the world model ----


def load_models(cfg, A, state=None):
    """Tokenizer and transformer: of a run's checkpoint, of cfg.init_from, or new ones of size cfg.world."""
    if state:
        return tokenizer_from(state["tokenizer"]), gpt_from(state["gpt"])
    heads = dict(action_dim=A, reward=True)
    if not cfg.init_from:
        if cfg.world not in SIZES:
            raise ValueError(f"world is {cfg.world!r}; expected one of {', '.join(SIZES)}")
        tokenizer_settings, gpt_settings = SIZES[cfg.world]
        tokenizer = new_tokenizer(tokenizer_settings)
        return tokenizer, new_gpt(tokenizer.layout, {**gpt_settings, **heads, "segment_length": cfg.segment})
    is_ours = Path(cfg.init_from).is_file()
    if is_ours and load_checkpoint(cfg.init_from).get("train_config", {}).get("goal_conditioned"):
        raise ValueError(f"{cfg.init_from} is goal-conditioned; an agent needs a model without goals")
    tokenizer = load_tokenizer(cfg.init_from, revive_after=0)
    if tokenizer.config["resolution"] != cfg.size:
        raise ValueError(f"{cfg.init_from} is for {tokenizer.config['resolution']} pixels; pass --size")
    dropped = {} if cfg.keep_heads else dict(action_dim=0, reward=False)
    gpt = load_gpt(cfg.init_from, tokenizer.layout, **dropped)
    return tokenizer, gpt_from(gpt.checkpoint(), **heads)


def trained_on(cfg):
    """What sample.py must know of the world model in a checkpoint (sample.TRAINED)."""
    is_push = cfg.task in ("push", "push_anywhere") and cfg.robot == "red"  # what "push" shows
    data = "push" if is_push else ""
    return dict(TRAINED, data=data, top_k=cfg.top_k, temperature=cfg.temperature)


class Learner:
    """Trains tokenizer and transformer on a Replay; `world` is the WorldModel made of the two."""

    def __init__(self, cfg, tokenizer, gpt, replay, device):
        self.cfg = cfg
        self.tokenizer = tokenizer
        self.gpt = gpt.to(device)
        self.replay = replay
        self.played = copy.deepcopy(gpt).bfloat16() if uses_bf16(device, cfg.dtype) else gpt  # by `world`
        self.world = WorldModel(tokenizer, self.played, device, trained_on(cfg), seed=cfg.seed)
        self.t = self.world.context_frames
        if cfg.segment <= self.t:
            raise ValueError(f"segment is {cfg.segment}; expected more than the {self.t} context frames")
        if cfg.init_from:  # codebooks stay: the transformer has learned what their codes mean
            tokenizer.quantize.requires_grad_(False)
            tokenizer.dynamics_quantize.requires_grad_(False)
        self.lpips = perceptual_loss(device) if cfg.lpips else None
        self.autocast = autocast_for(device, cfg.dtype)
        settings = dict(lr=cfg.model_lr, weight_decay=0.0, fused=True)
        self.tokenizer_optimizer = torch.optim.AdamW(tokenizer.parameters(), **settings)
        self.gpt_optimizer = torch.optim.AdamW(gpt.parameters(), **settings)

    def descend(self, loss, model, optimizer):
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), self.cfg.grad_clip)
        if not norm.isfinite():
            raise FloatingPointError("a gradient of the world model is not finite; lower --model_lr")
        optimizer.step()
        model.eval()

    @torch.no_grad()
    def refresh(self):
        """Copy the float32 weights into the copy that `world` runs, if it is one."""
        for played, learned in zip(self.played.parameters(), self.gpt.parameters(), strict=True):
            if played is not learned:
                played.copy_(learned)

    def update_tokenizer(self, rng):
        """One update on the context and a few later frames of random segments; returns metrics."""
        frames = self.replay.segments(self.cfg.model_batch, self.cfg.segment, rng)["frames"]
        later = torch.randperm(self.cfg.segment - self.t)[: self.cfg.future_frames].sort().values
        chosen = torch.cat([torch.arange(self.t), self.t + later])
        self.tokenizer.train()
        with self.autocast:
            loss, metrics = self.tokenizer.loss(frames[:, chosen].to(self.world.device), self.lpips)
        self.descend(loss, self.tokenizer, self.tokenizer_optimizer)
        return dict(psnr=metrics["psnr"])

    def update_gpt(self, rng):
        """One update on all tokens and rewards of random segments; returns metrics."""
        segments = self.replay.segments(self.cfg.model_batch, self.cfg.segment, rng)
        batch = {name: tensor.to(self.world.device) for name, tensor in segments.items()}
        self.gpt.train()
        with self.autocast:
            with torch.no_grad():
                tokens = self.tokenizer.encode(batch["frames"])
            loss, metrics = self.gpt.loss(tokens, batch["actions"], batch["rewards"])
        self.descend(loss, self.gpt, self.gpt_optimizer)
        return metrics


@torch.no_grad()
def imagined_rollouts(world, policy, stacks, horizon):
    """Rollouts in the world model from real frames `stacks` (B, k, 3, H, W) in [0, 1].

    policy   the k newest frames, real ones at first, then more and more imagined ones -> actions (B, A)
    returns  frames (B, k + h, 3, H, W) in [0, 1], actions (B, h, A), rewards (B, h) in environment units"""
    k = stacks.shape[1]
    world.reset(stacks[:, -world.context_frames :])
    frames = stacks
    actions, rewards = [], []
    for _ in range(horizon):
        action = policy(frames[:, -k:])
        frame, reward = world.step(action)
        frames = torch.cat([frames, frame[:, None]], 1)
        actions.append(action)
        rewards.append(reward)
    return frames, torch.stack(actions, 1), torch.stack(rewards, 1)


def validate(world, episodes, horizon, picture, n=16):
    """Errors of the world model on n segments of real episodes (`play`), at each of `horizon` frames.

    picture  GIF to draw of four of them: real | imagined | difference
    returns  lists frame_mse, repeat_mse (of the last context frame repeated) and reward_error (absolute), and
             reward_bias, how much more reward is imagined than there is"""
    t = world.context_frames
    rng = np.random.default_rng(0)
    frames, actions, rewards = [], [], []
    for i in range(n):
        episode = episodes[i % len(episodes)]
        start = rng.integers(len(episode["frames_u8"]) - t - horizon + 1)
        first = start + t  # of the frames to predict
        frames.append(episode["frames_u8"][start : first + horizon])
        actions.append(episode["actions"][first - 1 : first - 1 + horizon])
        rewards.append(episode["rewards"][first : first + horizon])
    frames = to_float(np.stack(frames)).to(world.device)
    rewards = torch.from_numpy(np.stack(rewards)).to(world.device)
    future = frames[:, t:]
    world.reset(frames[:, :t])
    imagined, predicted, _ = world.rollout(np.stack(actions), horizon)
    save_side_by_side(picture, future[:4].cpu(), imagined[:4].cpu(), fps=4)
    return dict(
        frame_mse=(imagined - future).square().mean((0, 2, 3, 4)).tolist(),
        repeat_mse=(frames[:, t - 1 : t] - future).square().mean((0, 2, 3, 4)).tolist(),
        reward_error=(predicted - rewards).abs().mean(0).tolist(),
        reward_bias=(predicted - rewards).mean().item(),
    )


# ---- the loop ----


def schedule(cfg, step, action_repeat):
    """How many updates and rounds of rollouts must be made in all once `step` steps have been taken."""
    since = step - cfg.seed_steps
    counts = dict(tokenizer=0, gpt=0, rollouts=0, agent=0)
    if since >= 0 and cfg.imagine:
        counts["tokenizer"] = cfg.init_updates + since // cfg.tokenizer_every
        counts["gpt"] = cfg.init_updates + since // cfg.gpt_every
        counts["rollouts"] = cfg.init_rollouts + 1 + since // cfg.rollout_every
    if since >= 0:
        counts["agent"] = cfg.agent_updates * (since // action_repeat + 1)
    return counts


class MBPO:
    """A run: agent, world model, environments, both replays, and counts of the updates made so far."""

    def __init__(self, cfg, out, state=None):
        self.cfg = cfg
        self.out = out
        self.log_path = beside(out, ".jsonl")
        self.stop = stop_signal()
        self.device = find_device(cfg.device)
        settings = dict(size=cfg.size, scene=cfg.scene, robot=cfg.robot)
        self.env = make_environment(cfg.task, 1, cfg.seed, **settings)
        self.eval_env = make_environment(cfg.task, cfg.eval_episodes, HELD_OUT + cfg.seed, **settings)
        most = self.env.length - 2  # frames of an episode less a context
        if cfg.imagine and not (cfg.n_step <= cfg.horizon <= most and cfg.segment <= most):
            expected = f"{cfg.n_step} (n_step) to {most}, and at most {most}"
            raise ValueError(f"horizon and segment are {cfg.horizon}, {cfg.segment}; expected {expected}")
        torch.manual_seed(cfg.seed)
        self.agent = DrQ(self.env.action_dim, cfg.size, cfg).to(self.device)
        self.optimizers = [self.agent.critic_optimizer, self.agent.actor_optimizer]
        self.metrics = {}  # of the newest updates
        self.real = Replay(beside(out, "") / "real", cfg.size, self.env.action_dim)
        self.learner = None
        if cfg.imagine:
            models = load_models(cfg, self.env.action_dim, state)
            self.learner = Learner(cfg, *models, self.real, self.device)
            self.optimizers += [self.learner.tokenizer_optimizer, self.learner.gpt_optimizer]
        context = max(cfg.stack, self.learner.t) - 1 if self.learner else 0  # before a rollout's first frame
        self.imagined = Replay(beside(out, "") / "imagined", cfg.size, self.env.action_dim, context)
        if state:
            self.resume(state)
        else:
            self.begin()
        played = self.real.lengths[self.counts["demos"] :] - 1
        self.env.episode[:] = len(played) - 1
        self.step = self.env.action_repeat * int(played.sum())  # of the environment

    def begin(self):
        """Put demonstrations into the real replay and save for the first time."""
        self.real.clear()
        self.imagined.clear()
        cfg = self.cfg
        if cfg.demo_data:
            data = Episodes(cfg.demo_data, "all")
            found = (data.frame_shape, data.action_dim, data.has_reward)
            expected = ((cfg.size, cfg.size, 3), self.env.action_dim, True)
            if found != expected:
                raise ValueError(f"{cfg.demo_data} has frames, actions, rewards {found}; expected {expected}")
            for i, (row, T) in enumerate(zip(data.rows, data.lengths, strict=True)):
                actions = data.actions[row : row + T - 1]
                self.real.add(data.read(i), actions, data.rewards[row + 1 : row + T])
        elif cfg.demos:
            env = make_environment(cfg.task, 1, HELD_OUT + cfg.seed + 1, cfg.size, cfg.scene, cfg.robot)
            for episode in demonstrations(env, cfg.demos):
                self.real.add(episode["frames_u8"], episode["actions"], episode["rewards"][1:])
            env.close()
        self.counts = dict(tokenizer=0, gpt=0, rollouts=0, agent=0, evaluated=0, demos=len(self.real))
        self.save()

    def resume(self, state):
        """Continue from a checkpoint. The replays may hold more episodes than it counted, but not fewer."""
        self.counts = state["counts"]
        self.real.open(self.counts["real"])
        self.imagined.open(self.counts["imagined"])
        self.counts["rollouts"] = len(self.imagined) // self.cfg.starts
        self.agent.load_state_dict(state["agent"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        torch.set_rng_state(state["rng"][0])
        if len(state["rng"]) == 1 + torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["rng"][1:])

    def save(self):
        """Write the checkpoint: everything but the replays, which are files already."""
        self.counts.update(real=len(self.real), imagined=len(self.imagined))
        state = dict(agent=self.agent.state_dict(), counts=self.counts)
        state["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
        state["rng"] = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
        state["train_config"] = vars(self.cfg) | trained_on(self.cfg)
        if self.learner:
            state.update(tokenizer=self.learner.tokenizer.checkpoint(), gpt=self.learner.gpt.checkpoint())
        save_checkpoint(self.out, **state)

    def std(self):
        return exploration_std(self.cfg, self.step / self.env.action_repeat)

    def learn(self):
        """Catch up with the schedule (Algorithm 1)."""
        if self.learner:
            self.catch_up("tokenizer", self.learner.update_tokenizer)
            self.catch_up("gpt", self.learner.update_gpt)
            self.catch_up("rollouts", self.add_rollouts)
        self.catch_up("agent", self.update_agent)

    def catch_up(self, kind, update):
        """Make the updates of one kind that the schedule has by now, each with random numbers of its own."""
        due = schedule(self.cfg, self.step, self.env.action_repeat)
        remaining = range(self.counts[kind], due[kind])
        for i in tqdm(remaining, kind, leave=False, disable=len(remaining) < 20):
            if self.stop.is_set():
                return
            metrics = update(np.random.default_rng([self.cfg.seed, *kind.encode(), i]))
            self.metrics.update(metrics)
            self.counts[kind] += 1

    def add_rollouts(self, rng):
        """Imagine rollouts from random real frames and put them, with their rewards, into the replay."""
        world = self.learner.world
        self.learner.refresh()
        world.generator.manual_seed(int(rng.integers(2**31)))
        rows = self.real.windows(self.cfg.starts, self.imagined.context, 0, rng)
        stacks = to_float(rows["frame"]).to(self.device)
        policy = functools.partial(self.agent.act, std=self.std())
        frames, actions, rewards = imagined_rollouts(world, policy, stacks, self.cfg.horizon)
        for rollout in zip(to_u8(frames), actions.cpu().numpy(), rewards.cpu().numpy(), strict=True):
            self.imagined.add(*rollout)
        return dict(imagined=len(self.imagined))

    def update_agent(self, rng):
        """One update of DrQ-v2 on a batch of which real_share is real; all, if nothing has been imagined."""
        cfg = self.cfg
        n_real = round(cfg.agent_batch * cfg.real_share) if len(self.imagined) else cfg.agent_batch
        rows = self.real.windows(n_real, cfg.stack - 1, cfg.n_step, rng)
        if n_real < cfg.agent_batch:  # imagined frames, actions and rewards enter here
            imagined = self.imagined.windows(cfg.agent_batch - n_real, cfg.stack - 1, cfg.n_step, rng)
            rows = np.concatenate([rows, imagined])
        return self.agent.update(to_batch(rows, cfg, self.device), self.std())

    def act(self, frames_u8, std=0.0):
        """Actions (n, A) for the frames of an episode so far, a list of bytes (n,H,W,3)."""
        stacks = np.stack(frames_u8[-self.cfg.stack :], 1)
        return self.agent.act(to_float(torch.from_numpy(stacks).to(self.device)), std).cpu().numpy()

    def play_episode(self):
        """Play a real episode, learning before each decision, and put it into the replay if it is whole."""
        began = time.time()
        frames = [self.env.reset()]
        actions, rewards = [], []
        won = done = False
        while not done:
            if self.step < self.cfg.seed_steps:
                rng = np.random.default_rng([self.cfg.seed, self.step])
                action = rng.uniform(-1, 1, (1, self.env.action_dim)).astype(np.float32)
            else:
                self.learn()
                action = self.act(frames, self.std())
            if self.stop.is_set():
                return
            frame, reward, success, ended = self.env.step(action)
            frames.append(frame)
            actions.append(action[0])
            rewards.append(float(reward[0]))
            won = won or bool(success[0])
            done = bool(ended[0])
            self.step += self.env.action_repeat
        self.real.add(np.concatenate(frames), actions, rewards)
        numbers = {"return": sum(rewards), "success": float(won), "std": self.std()}
        numbers.update((name, float(value)) for name, value in self.metrics.items())
        numbers["steps/s"] = len(actions) * self.env.action_repeat / (time.time() - began)
        log(self.step, self.log_path, **numbers)

    def evaluate(self):
        """Play evaluation episodes, always the same, without noise; validate the world model on them."""
        self.eval_env.episode[:] = -1
        episodes = list(play(self.eval_env, self.cfg.eval_episodes, self.act))
        numbers = dict(success=float(np.mean([episode["success"] for episode in episodes])))
        numbers["return"] = float(np.mean([episode["rewards"].sum() for episode in episodes]))
        numbers["critic_bias"] = critic_bias(self.agent, episodes)
        if self.cfg.keep_agents:
            agent = dict(agent=self.agent.state_dict(), train_config=vars(self.cfg))
            save_checkpoint(beside(self.out, "") / "agents" / f"{self.step}.pt", **agent)
        if self.learner:
            self.learner.refresh()
            self.learner.world.generator.manual_seed(self.step)  # the same after an interruption
            numbers |= validate(self.learner.world, episodes, self.cfg.horizon, beside(self.out, ".gif"))
        log(self.step, self.log_path, **{f"eval_{name}": value for name, value in numbers.items()})
        curves = read_curve(self.log_path, "eval_").items()
        panels = [(name, "real steps", "", {name: curve}) for name, curve in curves]
        draw_curves(beside(self.out, ".png"), panels)
        self.counts["evaluated"] = self.step


def claim_run(cfg):
    """Check settings and outputs before any work; returns OUT and, to resume, the checkpoint in it."""
    if Path(cfg.out).suffix != ".pt":
        raise ValueError(f"out is {cfg.out}; expected NAME.pt, with NAME.jsonl and others beside it")
    require_positive(cfg, *POSITIVE)
    require_not_negative(cfg, *NOT_NEGATIVE)
    require_not_negative(cfg, "real_share", "discount", "tau", most=1)
    out = claim(cfg.out, (".jsonl", ".png", ".gif"), cfg.overwrite, cfg.resume)
    if not cfg.resume:
        return out, None
    state = load_checkpoint(out, needs=("agent", "counts"))
    fixed = [key for key in cfg.given if key not in MAY_CHANGE]
    changed = [key for key in fixed if getattr(cfg, key) != state["train_config"][key]]
    if changed:
        raise ValueError(f"{out} was begun with another {', '.join(changed)}; leave it out")
    return out, state


def main(cfg):
    mbpo = MBPO(cfg, *claim_run(cfg))
    start_log(mbpo.log_path, mbpo.step, mbpo.counts["evaluated"])
    size = sum(p.numel() for p in mbpo.agent.parameters())
    print(f"{mbpo.device} | {size:,} parameters of the agent | {mbpo.step} steps | {len(mbpo.real)} episodes")
    while not mbpo.stop.is_set():
        step = mbpo.step
        is_over = step >= cfg.steps
        evaluated = mbpo.counts["evaluated"]  # the step of the last evaluation
        if step // cfg.eval_every > evaluated // cfg.eval_every or (is_over and step > evaluated):
            mbpo.evaluate()
            mbpo.save()
        if is_over:
            break
        mbpo.play_episode()
        if mbpo.step // cfg.save_every > step // cfg.save_every:
            mbpo.save()
    mbpo.save()
    mbpo.env.close()
    mbpo.eval_env.close()


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__, presets=PRESETS))
