"""mbpo.py: reinforcement learning inside the imagined world (paper section 4.3, appendix A.5, Algorithm 1).

    environment --frames, rewards--> real replay --segments--> tokenizer, transformer
         ^                              |    |                           |
         | actions                      |    +--starts--> WorldModel rollouts --> imagined replay
         |                              v                                              |
         +-------------- DrQ-v2 <-- batches, half real, half imagined -----------------+

The agent is DrQ-v2 (Yarats et al. 2021), the loop MBPO (Janner et al. 2019): the world model stands in for
the environment and adds experience that costs no real step. `--imagine false` leaves it out: DrQ-v2 alone.

Everything that is due is a function of the number of real steps: so many updates of the models, rollouts,
updates of the agent. A run that was broken off therefore knows what it owes.

B batch, k stacked frames, T frames of an episode, h horizon, A action size. A decision of the agent is
action_repeat steps of the environment; all intervals are in steps. The observation after action i is frame
i + 1, as in data.py. Frames are in [0, 1] for tokenizer, transformer and agent, real and imagined alike (the
authors' code divides imagined ones by 255 once more). Other differences: of what is due at a decision, the
tokenizer's updates come first, then the transformer's, rollouts, the agent's, and the action last; codebooks
learn where nothing was pre-trained; evaluation episodes, which nothing learns from, judge the world model.

Run: python mbpo.py --preset push                             PushWorld, the released checkpoint, two cores
     python mbpo.py --task plate-slide --init_from out/gpt.pt Meta-World, as the paper
     python mbpo.py --preset metaworld-tiny                   Meta-World on two cores, from scratch
     python mbpo.py --report out/mbpo --out results/mbpo      table and curves of the runs in a folder
Continue a run with --resume true. Writes OUT (agent, world model, optimizers), the same name with .jsonl (the
numbers), .png (learning curves), .gif (imagined beside real), and a folder of that name with both replays."""

import contextlib
import copy
import functools
import shutil
import statistics
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import gpt
import tokenizer
from checkpoints import TOKENIZER_OF
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
from envs import demonstrations, make_environment, play
from envs.base import HELD_OUT
from envs.push import push_segments
from gpt import GPT
from mixture import open_data
from sample import TRAINED, WorldModel
from support.devices import autocast_for, find_device, uses_bf16
from support.files import beside, claim
from support.networks import perceptual_loss
from support.pictures import save_gif, write_on
from support.results import claim_result, draw_curves, read_curve, write_result
from tokenizer import Tokenizer

try:  # optional: pip install gymnasium
    from gymnasium import Env, spaces
    from gymnasium.vector import AutoresetMode, VectorEnv
    from gymnasium.vector.utils import batch_space
except ImportError:
    Env = VectorEnv = object

CONFIG = dict(
    preset="metaworld",
    task="plate-slide",  # of Meta-World, or "push"
    scene=-1,  # of PushWorld: >= 0 is the same in all episodes, but for small moves; -1 is always another
    robot="red",  # of PushWorld
    out="out/mbpo/agent.pt",
    resume=False,  # continue OUT
    overwrite=False,  # replace an OUT that exists; by default it is refused
    report="",  # a folder of runs NAME-SEED: write what came out of them to OUT.json and OUT.png, and stop
    imagine=True,  # False: DrQ-v2 alone
    init_from="",  # checkpoint of a world model to start from; "" starts from scratch, with sizes of `world`
    keep_heads=False,  # what that checkpoint knows about actions and rewards; by default they start anew
    world="small",  # or tiny, medium
    steps=100_000,  # of the environment
    seed_steps=4000,  # taken with random actions, before anything is learned
    demos=5,  # successful episodes of the scripted expert, in the replay from the beginning
    demo_data="",  # a folder of episodes instead, such as the authors' demonstrations imported by data.py
    size=64,  # pixels per side of the environment's frames
    stack=3,  # newest frames that the agent sees
    # the agent
    agent_size=64,  # pixels per side that it sees, a divisor of `size`
    channels=32,  # of the convolutions
    features=50,
    hidden=1024,
    agent_lr=1e-4,
    agent_batch=512,
    agent_updates=2,  # per decision
    discount=0.99,
    n_step=3,
    tau=0.01,  # the target critic's step towards the critic
    std_first=1.0,  # exploration noise falls to
    std_last=0.1,  # in
    std_decisions=100_000,
    std_clip=0.3,  # of the noise on actions that the updates draw
    shift=4,  # pixels: random shifts of what the agent learns from
    # the world model
    model_batch=16,
    segment=12,  # frames
    model_lr=1e-4,  # of tokenizer and transformer
    grad_clip=1.0,
    lpips=True,
    l2=0.0,
    future_frames=5,  # that the tokenizer learns from, of a segment
    init_updates=1000,
    gpt_every=10,  # steps
    tokenizer_every=40,
    val_segments=16,  # of evaluation episodes
    # imagination
    horizon=10,
    starts=32,  # rollouts at once
    rollout_every=200,
    init_rollouts=20,
    real_share=0.5,  # of the agent's batches
    imagined_age=0,  # newest rollouts that batches are drawn from; 0: all
    eval_every=20_000,
    eval_episodes=20,
    save_every=10_000,
    device="",  # by default a GPU if there is one
    dtype="auto",  # of matrix products of the world model
    seed=0,
)
PUSH = dict(
    task="push", scene=3, init_from="assets/push-tiny.pt", keep_heads=True, steps=3600, seed_steps=300,
    agent_size=32, channels=16, hidden=256, agent_lr=3e-4, agent_batch=128, discount=0.95, std_decisions=2400,
    shift=2, model_batch=8, model_lr=3e-4, lpips=False, l2=10.0, future_frames=3, init_updates=100,
    gpt_every=5, horizon=5, starts=48, rollout_every=50, init_rollouts=10, eval_every=300, eval_episodes=50,
    save_every=1200,
)  # fmt: skip
METAWORLD_TINY = dict(  # on two cores: three to five steps a second
    world="tiny", steps=20_000, seed_steps=1000, agent_size=32, channels=16, hidden=256, agent_lr=3e-4,
    agent_batch=128, std_decisions=3000, shift=2, model_batch=8, model_lr=3e-4, lpips=False, l2=10.0,
    future_frames=3, init_updates=300, horizon=5, init_rollouts=10, eval_every=2000, eval_episodes=5,
    save_every=2000,
)  # fmt: skip
PRESETS = {"metaworld": {}, "metaworld-tiny": METAWORLD_TINY, "push": PUSH}
FREE = (  # settings that --resume may change
    "resume", "overwrite", "out", "preset", "report", "steps", "device", "dtype", "eval_every",
    "eval_episodes", "val_segments", "save_every",
)  # fmt: skip
POSITIVE = (
    "stack", "n_step", "agent_batch", "channels", "features", "hidden", "std_decisions", "model_batch",
    "future_frames", "horizon", "starts", "eval_episodes", "val_segments",
)  # fmt: skip
NOT_NEGATIVE = (
    "agent_lr", "model_lr", "seed", "seed_steps", "demos", "agent_updates", "shift", "init_updates",
    "init_rollouts", "imagined_age",
)  # fmt: skip
FRACTIONS = "real_share", "discount", "tau"


# ---- the agent ----


def random_shift(x, most):
    """Shift every picture of x (B, C, H, W) by up to `most` pixels each way; edges are repeated."""
    (B, _, H, W), drawn = x.shape, (2, len(x), 1)
    rows, columns = torch.randint(2 * most + 1, drawn, device=x.device) + torch.arange(H, device=x.device)
    padded = F.pad(x, [most] * 4, "replicate").permute(0, 2, 3, 1)
    images = torch.arange(B, device=x.device)[:, None, None]
    return padded[images, rows[:, :, None], columns[:, None, :W]].permute(0, 3, 1, 2)


def noisy(mean, std, clip=None):
    """Actions around `mean`, in [-1, 1], with noise of at most `clip`; the gradient ignores both limits."""
    noise = torch.randn_like(mean) * std
    action = mean + (noise if clip is None else noise.clamp(-clip, clip))
    return action + (action.clamp(-1 + 1e-6, 1 - 1e-6) - action).detach()


def mlp(n_in, hidden, n_out):
    return nn.Sequential(
        nn.Linear(n_in, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, n_out)
    )


def trunk(n_in, features):
    return nn.Sequential(nn.Linear(n_in, features), nn.LayerNorm(features), nn.Tanh())


def init_orthogonal(module):
    if isinstance(module, nn.Linear | nn.Conv2d):
        gain = nn.init.calculate_gain("relu") if isinstance(module, nn.Conv2d) else 1.0
        nn.init.orthogonal_(module.weight, gain)
        nn.init.zeros_(module.bias)


class Critic(nn.Module):
    """Two estimates of the return after an action (twin Q)."""

    def __init__(self, n_in, A, features, hidden):
        super().__init__()
        self.trunk = trunk(n_in, features)
        self.heads = nn.ModuleList([mlp(features + A, hidden, 1) for _ in range(2)])

    def forward(self, z, action):  # -> (2, B)
        x = torch.cat([self.trunk(z), action], -1)
        return torch.stack([head(x).squeeze(-1) for head in self.heads])


class DrQ(nn.Module):
    """DrQ-v2: an actor and two critics on convolutional features of randomly shifted frames.

    size  pixels per side of the frames that `act` and `update` get;  cfg: see CONFIG
    Source: Yarats et al. 2021, Algorithm 1; paper A.5"""

    def __init__(self, action_dim, size, cfg):
        super().__init__()
        if cfg.agent_size < 16 or size % cfg.agent_size:
            raise ValueError(f"agent_size is {cfg.agent_size}; expected a divisor of {size}, at least 16")
        self.cfg, self.pool = cfg, size // cfg.agent_size
        widths = [3 * cfg.stack, *[cfg.channels] * 4]
        layers = []
        for i in range(4):
            layers += [nn.Conv2d(*widths[i : i + 2], 3, stride=2 if i == 0 else 1), nn.ReLU()]
        self.encoder = nn.Sequential(*layers, nn.Flatten())
        n_in = self.encoder(torch.zeros(1, 3 * cfg.stack, cfg.agent_size, cfg.agent_size)).shape[1]
        think = mlp(cfg.features, cfg.hidden, action_dim)
        self.actor = nn.Sequential(trunk(n_in, cfg.features), think, nn.Tanh())
        self.critic = Critic(n_in, action_dim, cfg.features, cfg.hidden)
        self.apply(init_orthogonal)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)

    def optimizers(self):
        """Of the critic, with the encoder, and of the actor."""
        learned = [*self.encoder.parameters(), *self.critic.parameters()], self.actor.parameters()
        return [torch.optim.Adam(list(parameters), lr=self.cfg.agent_lr) for parameters in learned]

    def see(self, stacks):
        """Frames (B, k, 3, H, W) in [0, 1] -> the encoder's input (B, 3k, agent_size, agent_size)."""
        if stacks.ndim != 5 or not stacks.is_floating_point():
            got = f"{stacks.dtype} {tuple(stacks.shape)}"
            raise ValueError(f"frames are {got}; expected float (B, k, 3, H, W)")
        x, p = stacks.flatten(1, 2), self.pool  # on CPUs slices are faster than avg_pool2d
        return sum(x[..., i::p, j::p] for i in range(p) for j in range(p)) / p**2 - 0.5

    @torch.no_grad()
    def act(self, stacks, std=0.0):
        """Actions (B, A) in [-1, 1] for the newest k frames (B, k, 3, H, W) in [0, 1], oldest first."""
        return noisy(self.actor(self.encoder(self.see(stacks))), std)

    def update(self, optimizers, batch, std):
        """One update on a batch of `Replay.transitions`: critic and encoder, then actor, then target critic.

        returns metrics, a dict of scalars"""
        cfg = self.cfg
        views = [random_shift(self.see(batch[k]), cfg.shift) for k in ("stacks", "next_stacks")]
        with torch.no_grad():
            z_next = self.encoder(views[1])
            worse = self.target(z_next, noisy(self.actor(z_next), std, cfg.std_clip)).amin(0)
            # No episode ends but for its time, so its last frame promises more, too.
            target = batch["returns"] + cfg.discount**cfg.n_step * worse
        z = self.encoder(views[0])
        q = self.critic(z, batch["actions"])
        critic_loss = (q - target).square().mean(1).sum()
        optimizers[0].zero_grad(set_to_none=True)
        critic_loss.backward()
        optimizers[0].step()

        z = z.detach()  # the encoder learns from the critic alone
        actor_loss = -self.critic(z, noisy(self.actor(z), std, cfg.std_clip)).amin(0).mean()
        optimizers[1].zero_grad(set_to_none=True)
        actor_loss.backward()
        optimizers[1].step()
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.critic.parameters(), strict=True):
                slow.lerp_(fast, cfg.tau)
        return dict(critic_loss=critic_loss.detach(), q=q.detach().mean())


# ---- replay ----


class Replay:
    """Episodes in a file that only grows: as many as the disk holds, and no memory for any of them.

    An episode is there as soon as the index counts it; what a kill left beyond that is cut off on opening.
    A row holds frame, action that led to it and reward received there.
    least   episodes that must be there;  has: lengths (episodes,), frames
    raises  ValueError, before anything is cut off, if they are not"""

    def __init__(self, folder, frame_shape, action_dim, least=0):
        self.row = np.dtype([("frame", "u1", frame_shape), ("action", "f4", (action_dim,)), ("reward", "f4")])
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.rows, self.index = open(folder / "rows.bin", "a+b", 0), open(folder / "index.bin", "a+b", 0)
        self.index.seek(0)
        table = self.index.read()
        table = np.frombuffer(table, np.int32, len(table) // 8 * 2)
        self.lengths, self.firsts = table.reshape(-1, 2).T
        self.ends = np.cumsum(self.lengths, dtype=np.int64)
        size = int(self.lengths.sum()) * self.row.itemsize
        is_sound = len(self) >= least and (0 <= self.firsts).all() and (self.firsts < self.lengths).all()
        if not is_sound or (folder / "rows.bin").stat().st_size < size:
            raise ValueError(f"{folder} has lost episodes; copy its rows.bin and index.bin again")
        self.index.truncate(table.nbytes)
        self.rows.truncate(size)

    def __len__(self):
        return len(self.lengths)

    def add(self, frames_u8, actions, rewards):
        """Append an episode: frames_u8 (T,H,W,3), actions (n,A) and rewards (n,) that led to the last n.

        Its first frame is the one before these; any earlier ones are there to be stacked only."""
        rows, first = np.zeros(len(frames_u8), self.row), len(frames_u8) - 1 - len(actions)
        rows["frame"], rows["action"][first + 1 :], rows["reward"][first + 1 :] = frames_u8, actions, rewards
        if self.rows.write(rows.tobytes()) < rows.nbytes:  # cut off when opened again
            raise OSError(f"no space for {rows.nbytes / 1e6:.0f} MB more in {self.rows.name}; free some, "
                          "then --resume true, or --overwrite true where no checkpoint was saved")
        self.index.write(np.array([len(rows), first], np.int32).tobytes())
        self.lengths, self.firsts = np.append(self.lengths, len(rows)), np.append(self.firsts, first)
        self.ends = np.append(self.ends, self.lengths.sum())

    def read(self, episode, start, stop):
        """Rows start..stop-1 of an episode; before the beginning the first row, after the end the last."""
        lo, hi = max(start, 0), min(stop, int(self.lengths[episode]))
        at = int(self.ends[episode] - self.lengths[episode]) + lo
        self.rows.seek(at * self.row.itemsize)
        rows = np.frombuffer(self.rows.read((hi - lo) * self.row.itemsize), self.row)
        return rows[np.clip(np.arange(start, stop) - lo, 0, hi - lo - 1)]

    def draw(self, n, ahead, rng, newest=0):
        """n random (episode, frame) with `ahead` frames after it: episode uniform, frame uniform."""
        usable = np.flatnonzero(self.lengths - self.firsts > ahead)
        if not len(usable):
            raise ValueError(f"no episode has more than {ahead} frames after its first; make them longer")
        episodes = rng.choice(usable[-newest:], n)
        firsts = self.firsts[episodes]
        return episodes, firsts + (rng.random(n) * (self.lengths[episodes] - firsts - ahead)).astype(int)

    def transitions(self, n, cfg, rng, newest=0):
        """n transitions of n_step decisions for `DrQ.update`, as numpy arrays: stacks_u8 and next_stacks_u8
        (n,k,H,W,3), actions (n,A), returns (n,), the discounted sum of rewards."""
        weights, read = cfg.discount ** np.arange(cfg.n_step), []
        for episode, i in zip(*self.draw(n, cfg.n_step, rng, newest), strict=True):
            rows = self.read(episode, i - cfg.stack + 1, i + cfg.n_step + 1)
            frames_u8, later = rows["frame"], rows[cfg.stack :]
            stacks = frames_u8[: cfg.stack], frames_u8[-cfg.stack :]
            read.append((*stacks, later["action"][0], later["reward"] @ weights))
        names = "stacks_u8", "next_stacks_u8", "actions", "returns"
        return {k: np.stack(column) for k, column in zip(names, zip(*read, strict=True), strict=True)}

    def segments(self, n, T, rng):
        """n random segments for the world model, aligned as those of data.py: frames (n,T,3,H,W) in [0, 1],
        actions (n,T,A), rewards (n,T)."""
        drawn = zip(*self.draw(n, T - 1, rng), strict=True)
        rows = np.stack([self.read(episode, i, i + T) for episode, i in drawn])
        actions = np.concatenate([rows["action"][:, 1:], np.zeros_like(rows["action"][:, :1])], 1)
        rewards = torch.from_numpy(rows["reward"].copy())
        return dict(frames=to_float(rows["frame"]), actions=torch.from_numpy(actions), rewards=rewards)

    def stacks(self, n, k, rng):
        """k successive frames (n, k, 3, H, W) in [0, 1], up to random ones."""
        drawn = zip(*self.draw(n, 0, rng), strict=True)
        return to_float(np.stack([self.read(e, i - k + 1, i + 1)["frame"] for e, i in drawn]))


def mixed_batch(real, imagined, cfg, rng, device):
    """A batch for `DrQ.update`, real_share of it real; all of it while nothing has been imagined."""
    n_real = round(cfg.agent_batch * cfg.real_share) if len(imagined) else cfg.agent_batch
    parts = [real.transitions(n_real, cfg, rng)] if n_real else []
    if n_real < cfg.agent_batch:
        parts.append(imagined.transitions(cfg.agent_batch - n_real, cfg, rng, cfg.imagined_age))
    joined = {k: torch.from_numpy(np.concatenate([part[k] for part in parts])).to(device) for k in parts[0]}
    frames = {k: to_float(joined[f"{k}_u8"]) for k in ("stacks", "next_stacks")}
    return frames | {k: joined[k].float() for k in ("actions", "returns")}


# ---- the world model, while it learns ----


def load_models(cfg, action_dim, size, state=None):
    """Tokenizer and transformer: of a run's checkpoint, of cfg.init_from, or new ones of size cfg.world."""
    if state:
        return Tokenizer.from_checkpoint(state["tokenizer"]), GPT.from_checkpoint(state["gpt"])
    heads = dict(action_dim=action_dim, reward=True)
    if not cfg.init_from:
        if cfg.world not in TOKENIZER_OF:
            raise ValueError(f"world is {cfg.world!r}; expected one of {', '.join(TOKENIZER_OF)}")
        model = tokenizer.build("compressive", TOKENIZER_OF[cfg.world])
        return model, GPT(model.layout, **{**gpt.PRESETS[cfg.world], **heads, "segment_length": cfg.segment})
    model = Tokenizer.load(cfg.init_from, revive_after=0)
    if model.config["resolution"] != size:
        raise ValueError(f"{cfg.init_from} is for {model.config['resolution']} pixels; pass --size")
    none = {} if cfg.keep_heads else dict(action_dim=0, reward=False)
    transformer = GPT.load(cfg.init_from, model.layout, **none)
    return model, GPT.from_checkpoint(transformer.checkpoint(), **heads)


def trained_on(cfg):
    """What the checkpoint says of the world model's use (sample.TRAINED)."""
    is_push = cfg.task in ("push", "push_anywhere") and cfg.robot == "red"  # what "push" shows
    return dict(TRAINED, data="push" if is_push else "")


class Learner:
    """A world model that learns from replay: `world`, a WorldModel, is what it has learned so far.

    models  tokenizer and transformer;  resumed  a run's checkpoint, for the optimizers"""

    def __init__(self, cfg, models, device, resumed=None):
        self.cfg, (self.tokenizer, self.gpt) = cfg, models
        self.device, self.lpips = device, perceptual_loss(device) if cfg.lpips else None
        for codebook in (self.tokenizer.quantize, self.tokenizer.dynamics_quantize) if cfg.init_from else ():
            codebook.requires_grad_(False)  # the transformer has learned what codes mean
        bf16 = uses_bf16(device, cfg.dtype)
        self.gpt.to(device)
        played = copy.deepcopy(self.gpt).bfloat16() if bf16 else self.gpt  # learning needs more digits
        self.world = WorldModel(self.tokenizer, played, device, trained_on(cfg), seed=cfg.seed)
        self.t, self.autocast = self.world.context_frames, autocast_for(device, cfg.dtype)
        if cfg.segment <= self.t:
            raise ValueError(f"segment is {cfg.segment}; expected more than the {self.t} context frames")
        learned = [[p for p in m.parameters() if p.requires_grad] for m in models]
        settings = dict(lr=cfg.model_lr, weight_decay=0.0, fused=True)
        self.optimizers = [torch.optim.AdamW(p, **settings) for p in learned]
        for i, saved in enumerate(resumed["model_optimizers"] if resumed else ()):
            self.optimizers[i].load_state_dict(saved)

    def descend(self, model, optimizer, loss_of):
        """One update of a model on loss_of() -> loss, metrics."""
        model.train()
        with self.autocast:
            loss, metrics = loss_of()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], self.cfg.grad_clip)
        optimizer.step()
        model.eval()
        return metrics

    def update_tokenizer(self, batch):
        """On the context and a few of the later frames of segments (`Replay.segments`)."""
        frames, t = batch["frames"], self.t
        later = t + torch.randperm(frames.shape[1] - t)[: self.cfg.future_frames].sort().values
        chosen = frames[:, torch.cat([torch.arange(t), later])].to(self.device)
        loss_of = functools.partial(self.tokenizer.loss, chosen, self.lpips, l2=self.cfg.l2)
        metrics = self.descend(self.tokenizer, self.optimizers[0], loss_of)
        return dict(psnr=metrics["psnr"])

    def update_gpt(self, batch):
        """On all tokens and rewards of segments (`Replay.segments`)."""
        frames, actions, rewards = (batch[k].to(self.device) for k in ("frames", "actions", "rewards"))
        with torch.no_grad(), self.autocast:
            tokens = self.tokenizer.encode(frames)
        loss_of = functools.partial(self.gpt.loss, tokens, actions, rewards)
        return self.descend(self.gpt, self.optimizers[1], loss_of)

    @torch.no_grad()
    def refresh(self):
        """Let `world` play what has been learned."""
        if self.world.gpt is not self.gpt:
            for played, learned in zip(self.world.gpt.parameters(), self.gpt.parameters(), strict=True):
                played.copy_(learned)


@torch.no_grad()
def imagine(world, act, stacks, horizon):
    """Rollouts from real frames stacks (B, k, 3, H, W) in [0, 1]; act: stacks -> actions (B, A).

    What the agent sees is always its k newest frames: first real ones, then more and more imagined ones.
    returns  frames (B, k + h, 3, H, W) in [0, 1], actions (B, h, A), rewards (B, h) in environment units"""
    k, t = stacks.shape[1], world.context_frames
    world.reset(stacks[:, -t:])
    frames, actions, rewards = stacks, [], []
    for _ in range(horizon):
        actions.append(act(frames[:, -k:]))
        frame, reward = world.step(actions[-1])
        frames = torch.cat([frames, frame[:, None]], 1)
        rewards.append(reward)
    return frames, torch.stack(actions, 1), torch.stack(rewards, 1)


# ---- playing and judging ----


def stack_of(frames_u8, k, device):
    """The newest k of a list of frames_u8 (n,H,W,3) -> (n, k, 3, H, W); before the first one is the first."""
    newest = [frames_u8[max(i, 0)] for i in range(len(frames_u8) - k, len(frames_u8))]
    return to_float(torch.from_numpy(np.stack(newest, 1)).to(device))


def validate(world, episodes, cfg, picture):
    """Errors of the world model on real episodes (`play`) at each horizon; draws the first few segments.

    returns  frame_mse, repeat_mse (of the last frame repeated) and reward_error (mean absolute), lists"""
    t, h, rng, parts = world.context_frames, cfg.horizon, np.random.default_rng(0), []
    for i in range(cfg.val_segments):
        e = episodes[i % len(episodes)]
        s = rng.integers(len(e["frames_u8"]) - t - h + 1)
        acted = e["actions"][s + t - 1 : s + t - 1 + h]
        parts.append((e["frames_u8"][s : s + t + h], acted, e["rewards"][s + t : s + t + h]))
    frames_u8, actions, rewards = map(np.stack, zip(*parts, strict=True))
    frames, rewards = to_float(frames_u8).to(world.device), torch.from_numpy(rewards).to(world.device)
    world.reset(frames[:, :t])
    imagined, predicted, _ = world.rollout(actions, h)
    errors = dict(frame_mse=imagined - frames[:, t:], repeat_mse=frames[:, t - 1 : t] - frames[:, t:])
    numbers = {k: error.square().mean((0, 2, 3, 4)).tolist() for k, error in errors.items()}
    numbers["reward_error"] = (predicted - rewards).abs().mean(0).tolist()
    titles = [[[f"{r:.2f}" for r in row] for row in rows[:4].tolist()] for rows in (rewards, predicted)]
    clips = [[write_on(video.cpu(), text) for video, text in zip(videos, texts, strict=False)]
             for videos, texts in zip((frames[:4, t:], imagined[:4]), titles, strict=True)]
    save_gif(picture, torch.cat([torch.stack(column) for column in clips], -2), fps=4)
    return numbers


# ---- the loop ----


class Stopwatch:
    """Where the time goes: `with clock("agent"): ...` adds to that share."""

    def __init__(self):
        self.seconds, self.began = defaultdict(float), time.time()

    @contextlib.contextmanager
    def __call__(self, name):
        began = time.time()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[name] += time.time() - began

    def total(self):
        return time.time() - self.began

    def shares(self):
        return {f"time_{name}": seconds / self.total() for name, seconds in self.seconds.items()}


def expert_episodes(cfg, new_env, action_dim):
    """Yield frames_u8, actions, rewards of cfg.demos episodes by a script, or of all in cfg.demo_data."""
    if cfg.demo_data:
        data = Episodes(cfg.demo_data, "all")
        got, wanted = (data.frame_shape, data.action_dim), ((cfg.size, cfg.size, 3), action_dim)
        if got != wanted or not data.has_reward:
            raise ValueError(
                f"{cfg.demo_data} has frames and actions {got}{'' if data.has_reward else ', no rewards'}; "
                f"expected {wanted} with rewards"
            )
        for i, (row, T) in enumerate(zip(data.rows, data.lengths, strict=True)):
            yield data.read(i), data.actions[row : row + T - 1], data.rewards[row + 1 : row + T]
    elif cfg.demos:
        with contextlib.closing(new_env(1, HELD_OUT + cfg.seed + 1)) as env:
            for e in demonstrations(env, cfg.demos):
                yield e["frames_u8"], e["actions"], e["rewards"][1:]


def owed(cfg, step, repeat):
    """What must have been done in total when `step` steps have been taken: updates, rounds of rollouts."""
    since = step - cfg.seed_steps
    if since < 0:
        return dict(tokenizer=0, gpt=0, rollouts=0, agent=0)
    models = dict(tokenizer=cfg.init_updates + since // cfg.tokenizer_every)
    models.update(gpt=cfg.init_updates + since // cfg.gpt_every)
    models.update(rollouts=cfg.init_rollouts + 1 + since // cfg.rollout_every)
    agent = dict(agent=cfg.agent_updates * (since // repeat + 1))
    return (models if cfg.imagine else dict.fromkeys(models, 0)) | agent


class Loop:
    """Agent, world model, both replays, and what has been done so far: all that a checkpoint brings back."""

    def __init__(self, cfg):
        self.cfg, self.clock, self.metrics = cfg, Stopwatch(), {}
        self.out = claim(cfg.out, (".jsonl", ".png", ".gif"), cfg.overwrite, cfg.resume)
        self.stop = stop_signal()
        self.device, folder = find_device(cfg.device), beside(self.out, "")
        if folder.is_file():
            raise ValueError(f"--out {cfg.out}: {folder} is a file; the replays need a folder of that name")
        for kind in ("real", "imagined"):
            if any(path.name not in ("rows.bin", "index.bin") for path in (folder / kind).glob("*")):
                told = f"{folder / kind} holds other files than a replay"
                raise ValueError(f"--out {cfg.out}: {told}; move them or pass another --out")
        self.numbers = beside(self.out, ".jsonl")
        state = load_checkpoint(self.out, needs=("agent", "done")) if cfg.resume else None
        if state:
            began = state["train_config"]
            if changed := [k for k in cfg.given if k not in FREE and getattr(cfg, k) != began[k]]:
                raise ValueError(f"{self.out} was begun with another {', '.join(changed)}; leave it out")
        new_env = functools.partial(
            make_environment, cfg.task, size=cfg.size, scene=cfg.scene, robot=cfg.robot
        )
        self.env, self.judge_env = new_env(1, cfg.seed), new_env(cfg.eval_episodes, HELD_OUT + cfg.seed)
        least, most = cfg.n_step, self.env.length - 2  # frames of an episode, but for a context
        if cfg.imagine and not (least <= cfg.horizon <= most and cfg.segment <= most):
            got = f"horizon and segment are {cfg.horizon}, {cfg.segment}"
            raise ValueError(f"{got}; expected {least} (n_step) to {most}, and at most {most}")
        A = self.env.action_dim
        torch.manual_seed(cfg.seed)
        self.agent = DrQ(A, cfg.size, cfg).to(self.device)
        self.optimizers = self.agent.optimizers()
        models = load_models(cfg, A, cfg.size, state) if cfg.imagine else None
        self.learner = Learner(cfg, models, self.device, state) if cfg.imagine else None
        row = (cfg.size, cfg.size, 3), A
        shown = [] if state else list(expert_episodes(cfg, new_env, A))
        for kind in () if state else ("real", "imagined"):  # of a run that ended before it was first saved
            shutil.rmtree(folder / kind, ignore_errors=True)
        counts = state["done"] if state else dict(real=0, imagined=0)
        self.real, self.imagined = (Replay(folder / k, *row, counts[k]) for k in ("real", "imagined"))
        if state:
            self.agent.load_state_dict(state["agent"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            torch.set_rng_state(state["rng"][0])
            if len(state["rng"]) == 1 + torch.cuda.device_count():
                torch.cuda.set_rng_state_all(state["rng"][1:])
            self.done = state["done"]
        else:
            for episode in shown:
                self.real.add(*episode)
            self.done = dict(tokenizer=0, gpt=0, agent=0, judged=0, demos=len(self.real))
            self.save()
        own = self.real.lengths[self.done["demos"] :]
        self.env.episode[:] = len(own) - 1
        self.step = self.started = self.env.action_repeat * int((own - 1).sum())  # of the environment

    def save(self):
        """Write everything but the replays, which are files already."""
        state = dict(agent=self.agent.state_dict(), optimizers=[o.state_dict() for o in self.optimizers])
        if self.learner:
            state.update(tokenizer=self.learner.tokenizer.checkpoint(), gpt=self.learner.gpt.checkpoint())
            state["model_optimizers"] = [o.state_dict() for o in self.learner.optimizers]
        self.done.update(real=len(self.real), imagined=len(self.imagined))
        rng = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
        state.update(done=self.done, rng=rng, train_config=vars(self.cfg) | trained_on(self.cfg))
        save_checkpoint(self.out, **state)

    def std(self):
        """Of the exploration noise, now."""
        cfg, decisions = self.cfg, self.step / self.env.action_repeat
        return float(np.interp(decisions, (0, cfg.std_decisions), (cfg.std_first, cfg.std_last)))

    def due(self, kind):
        """A random generator for each update or round of that kind that is owed; counts them."""
        done = len(self.imagined) // self.cfg.starts if kind == "rollouts" else self.done[kind]
        total = owed(self.cfg, self.step, self.env.action_repeat)[kind]
        for i in tqdm(range(done, total), kind, leave=False, disable=total - done < 20):
            if self.stop.is_set():
                return
            yield np.random.default_rng([self.cfg.seed, *kind.encode(), i])
            if kind in self.done:
                self.done[kind] = i + 1

    def learn(self):
        """Whatever is due: updates of tokenizer and transformer, rollouts, updates of the agent."""
        cfg, learner, std = self.cfg, self.learner, self.std()
        with self.clock("model"):
            for rng in self.due("tokenizer"):
                batch = self.real.segments(cfg.model_batch, cfg.segment, rng)
                self.metrics.update(learner.update_tokenizer(batch))
            for rng in self.due("gpt"):
                self.metrics.update(learner.update_gpt(self.real.segments(cfg.model_batch, cfg.segment, rng)))
        with self.clock("rollout"):
            for rng in self.due("rollouts"):
                learner.refresh()
                learner.world.generator.manual_seed(int(rng.integers(2**31)))
                stacks = self.real.stacks(cfg.starts, max(cfg.stack, learner.t), rng).to(self.device)
                act = lambda frames: self.agent.act(frames[:, -cfg.stack :], std)  # noqa: E731
                frames, actions, rewards = imagine(learner.world, act, stacks, cfg.horizon)
                columns = to_u8(frames), actions.cpu().numpy(), rewards.cpu().numpy()
                for rollout in zip(*columns, strict=True):
                    self.imagined.add(*rollout)
        with self.clock("agent"):
            for rng in self.due("agent"):
                batch = mixed_batch(self.real, self.imagined, cfg, rng, self.device)
                self.metrics.update(self.agent.update(self.optimizers, batch, std))

    def act(self, frames_u8, std=0.0):
        """Frames so far, a list of bytes (n,H,W,3) -> actions (n,A) as numpy."""
        return self.agent.act(stack_of(frames_u8, self.cfg.stack, self.device), std).cpu().numpy()

    def explore(self):
        """Play one real episode, learn between its steps, and keep it. One that is broken off is not kept."""
        cfg, env, frames, actions, rewards = self.cfg, self.env, [self.env.reset()], [], []
        done = won = False
        while not done:
            if self.step >= cfg.seed_steps:
                self.learn()
            if self.stop.is_set():
                return
            with self.clock("environment"):
                if self.step < cfg.seed_steps:
                    drawn = np.random.default_rng([cfg.seed, self.step])
                    action = drawn.uniform(-1, 1, (1, env.action_dim)).astype(np.float32)
                else:
                    action = self.act(frames, self.std())
                frame, reward, success, ended = env.step(action)
            frames.append(frame)
            actions.append(action[0])
            rewards.append(float(reward[0]))
            won, done, self.step = won or bool(success[0]), bool(ended[0]), self.step + env.action_repeat
        self.real.add(np.concatenate(frames), actions, rewards)
        told = {"return": sum(rewards), "success": float(won), "std": self.std()}
        told.update({k: v.item() for k, v in self.metrics.items()})
        told["steps/s"] = (self.step - self.started) / self.clock.total()
        log(self.step, self.numbers, **told, **self.clock.shares())

    def judge(self):
        """Play evaluation episodes, always the same ones, without noise; judge the world model on them."""
        with self.clock("evaluation"):
            self.judge_env.episode[:] = -1
            played = list(play(self.judge_env, self.cfg.eval_episodes, self.act))
            told = dict(success=float(np.mean([e["success"] for e in played])))
            told["return"] = float(np.mean([e["rewards"].sum() for e in played]))
            if self.learner:
                self.learner.refresh()
                told |= validate(self.learner.world, played, self.cfg, beside(self.out, ".gif"))
        log(self.step, self.numbers, **{f"eval_{k}": v for k, v in told.items()})
        curves = read_curve(self.numbers, "eval_")
        panels = [(name, "real steps", "", {name: curves[name]}) for name in ("eval_success", "eval_return")]
        draw_curves(beside(self.out, ".png"), panels)
        self.done["judged"] = self.step


def main(cfg):
    if cfg.report:
        return report(cfg.report, beside(cfg.out, ""), cfg.overwrite)
    if Path(cfg.out).suffix != ".pt":
        raise ValueError(f"out is {cfg.out}; expected NAME.pt, with NAME.jsonl and others beside it")
    require_positive(cfg, *(k for k in vars(cfg) if k.endswith("_every")), *POSITIVE)
    require_not_negative(cfg, *NOT_NEGATIVE)
    require_not_negative(cfg, *FRACTIONS, most=1)
    loop = Loop(cfg)
    start_log(loop.numbers, loop.step)
    size = sum(p.numel() for p in loop.agent.parameters())
    known = f"{loop.step} steps so far, {loop.done['demos']} demonstrations"
    print(f"{loop.device} | {size:,} parameters of the agent | {known}")
    bar = tqdm(total=cfg.steps, initial=loop.step, desc=loop.out.stem, unit="step")
    while not loop.stop.is_set():
        judged, over = loop.done["judged"], loop.step >= cfg.steps
        if loop.step // cfg.eval_every > judged // cfg.eval_every or (over and loop.step > judged):
            loop.judge()
            loop.save()
        if over:
            break
        before = loop.step
        loop.explore()
        bar.update(loop.step - before)
        if loop.step // cfg.save_every > before // cfg.save_every:
            loop.save()
    loop.save()
    loop.env.close()
    loop.judge_env.close()


# ---- a door for other people's agents ----


class WorldModelEnv(VectorEnv):
    """n imagined worlds with Gymnasium's interface for vectors of environments.

    world    a WorldModel with actions and rewards, of which this is a session: several can be made of one
    starts   (n, seed) -> context frames (n, t, 3, H, W) in [0, 1], where episodes begin: `starts_from`
    horizon  decisions after which all n are truncated; nothing terminates. The next step begins anew
    Observations are the newest `stack` frames, bytes (n, H, W, 3 stack), the oldest first; actions (n, A) in
    [-1, 1]; rewards (n,) in environment units.   raises  ImportError, ValueError"""

    def __init__(self, world, starts, n=1, horizon=15, stack=1):
        if VectorEnv is object:
            raise ImportError("WorldModelEnv needs gymnasium: pip install gymnasium")
        if n < 1 or horizon < 1:
            raise ValueError(f"n and horizon are {n} and {horizon}; expected at least 1")
        if not world.action_dim or world.gpt.reward is None:
            raise ValueError("the model has no actions or no rewards; train one on data that has both")
        if not 1 <= stack <= world.context_frames:
            raise ValueError(f"stack is {stack}; expected 1 to the {world.context_frames} context frames")
        self.world = world.session()
        self.starts, self.horizon, self.stack, self.num_envs = starts, horizon, stack, n
        R = world.tokenizer.config["resolution"]
        self.metadata = dict(autoreset_mode=AutoresetMode.NEXT_STEP, render_modes=[])
        self.single_observation_space = spaces.Box(0, 255, (R, R, 3 * stack), np.uint8)
        self.single_action_space = spaces.Box(-1, 1, (world.action_dim,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, n)
        self.action_space = batch_space(self.single_action_space, n)
        self.left = None

    def see(self):
        newest = to_u8(self.world.recent[:, -self.stack :])  # (n, stack, H, W, 3)
        return np.concatenate(list(newest.swapaxes(0, 1)), -1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.world.generator.manual_seed(seed)
        self.world.reset(self.starts(self.num_envs, int(self.np_random.integers(2**31))))
        self.left = self.horizon
        return self.see(), {}

    def step(self, actions):
        if self.left is None:
            raise ValueError("step before reset")
        nothing, never = np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, bool)
        if not self.left:
            return self.reset()[0], nothing, never, never.copy(), {}
        actions = np.asarray(actions, np.float32)
        if not np.isfinite(actions).all():
            raise ValueError("actions are not finite; expected numbers in [-1, 1]")
        _, reward = self.world.step(actions)
        self.left -= 1
        return self.see(), reward.cpu().numpy(), never, np.full(self.num_envs, not self.left), {}


class SingleWorldModelEnv(Env):
    """One imagined world with Gymnasium's interface for single environments; arguments as WorldModelEnv."""

    def __init__(self, world, starts, horizon=15, stack=1):
        self.worlds = WorldModelEnv(world, starts, 1, horizon, stack)
        self.observation_space = self.worlds.single_observation_space
        self.action_space = self.worlds.single_action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.worlds.reset(seed=seed)[0][0], {}

    def step(self, action):
        frames, reward, _, truncated, _ = self.worlds.step(np.asarray(action)[None])
        return frames[0], float(reward[0]), False, bool(truncated[0]), {}


def starts_from(world, data):
    """Where imagined episodes begin: anywhere in a folder's training episodes, or in fresh PushWorld ones.

    returns  (n, seed) -> context frames (n, t, 3, H, W) in [0, 1]"""
    t, R = world.context_frames, world.tokenizer.config["resolution"]
    if data == "push":
        return lambda n, seed: push_segments(n, t, seed, R)["frames"]
    episodes = open_data(data)
    return lambda n, seed: episodes.batch(0, n, t, seed, stride=world.trained["stride"])["frames"]


# ---- what came out of it ----


def runs_in(folder):
    """{variant: {seed: [[step, success], ...]}} of all runs NAME-SEED.jsonl in a folder."""
    variants = {}
    for path in sorted(Path(folder).glob("*-*.jsonl")):
        curve, (variant, seed) = read_curve(path, "eval_").get("eval_success"), path.stem.rsplit("-", 1)
        if curve:  # a run that went on from a checkpoint may have told a step twice
            variants.setdefault(variant, {})[seed] = [list(point) for point in dict(curve).items()]
    if not variants:
        raise ValueError(f"{folder} has no evaluated run; train some with --out {folder}/NAME-SEED.pt")
    return variants


def spread_of(runs, step):
    """Mean, least and most success of some runs at a step."""
    values = [dict(curve)[step] for curve in runs.values()]
    return dict(step=step, mean=statistics.mean(values), min=min(values), max=max(values))


def report(folder, out, overwrite):
    """Table of the runs in a folder: real steps until 50 % and 80 % success, and how much there is after the
    steps that all runs have taken, and at a variant's end. Written to OUT.json, with curves in OUT.png."""
    claim_result(f"{out}.json", overwrite, (".png",))
    variants, numbers, panels, steps = runs_in(folder), {}, [], {}
    for variant, runs in variants.items():  # that all its seeds have taken
        steps[variant] = sorted(set.intersection(*({step for step, _ in curve} for curve in runs.values())))
    both = sorted(set.intersection(*map(set, steps.values())))
    if not both:
        raise ValueError(f"no step at which all runs in {folder} were evaluated; pass the same --eval_every")
    head = "variant", "seeds", "steps to 50 %", "steps to 80 %", "success after", "at the end"
    print("".join(cell.ljust(24) for cell in head))
    for variant, runs in variants.items():
        row, line = dict(success=runs), [variant, str(len(runs))]
        for percent in (50, 80):
            first = {s: next((k for k, v in curve if 100 * v >= percent), None) for s, curve in runs.items()}
            row[f"steps_to_{percent}"] = first
            line.append(", ".join(str(k or "never") for k in first.values()))
        ends = dict(same_budget=both[-1], final=steps[variant][-1])
        for name, step in ends.items():
            row[name] = spread_of(runs, step)
            line.append("{step}: {mean:.2f} ({min:.2f}-{max:.2f})".format(**row[name]))
        print("".join(cell.ljust(24) for cell in line))
        numbers[variant] = row
        panels.append((variant, "real steps", "success", runs))
    write_result(f"{out}.json", numbers)
    means = {k: [(step, spread_of(runs, step)["mean"]) for step in steps[k]] for k, runs in variants.items()}
    draw_curves(f"{out}.png", [("mean of seeds", "real steps", "success", means), *panels])


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__, presets=PRESETS))
