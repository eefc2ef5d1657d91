"""drq.py: DrQ-v2, the agent of mbpo.py, and the replay that it learns from (Yarats et al. 2021; paper A.5).

    frames (B,k,3,H,W) --random_shift, encoder--> z --+--> actor --> action (B,A)
                                                      |                 |
                                                      +-------------> critic --> two returns (2,B)

The critic and the encoder learn from n-step returns, the actor from the critic. Nothing here knows of a world
model: episodes in a Replay may be real or imagined.

B batch, k stacked frames, z features, A action size. Frames are in [0, 1]; settings (cfg) are those of
mbpo.py."""

import copy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from common import load_checkpoint
from data import to_float
from support.files import write_whole

AGENT = dict(
    stack=3,  # newest frames that the agent sees
    agent_size=64,  # pixels per side that it sees, a divisor of the environment's
    channels=32,  # of the convolutions
    features=50,
    hidden=1024,
    agent_lr=1e-4,
    agent_batch=512,
    agent_updates=2,  # per decision
    discount=0.99,
    n_step=3,
    tau=0.01,  # the target critic's step towards the critic
    std_first=1.0,  # of the exploration noise, which falls linearly
    std_last=0.1,  # to this
    std_decisions=100_000,  # in so many decisions
    std_clip=0.3,  # of the noise on actions within updates
    shift=4,  # pixels: random shifts of the frames that the agent learns from
)


def random_shift(images, pad):
    """Shift each image of (B, C, H, W) by up to `pad` pixels each way; edges are repeated."""
    B, _, H, W = images.shape
    offset_y, offset_x = torch.randint(2 * pad + 1, (2, B, 1), device=images.device)
    rows = offset_y + torch.arange(H, device=images.device)  # (B, H)
    columns = offset_x + torch.arange(W, device=images.device)  # (B, W)
    padded = F.pad(images, [pad] * 4, "replicate").permute(0, 2, 3, 1)
    image = torch.arange(B, device=images.device)[:, None, None]
    return padded[image, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def noisy_action(mean, std, clip=None):
    """Add noise of at most `clip` to an action and keep it in [-1, 1]; the gradient ignores both limits."""
    noise = torch.randn_like(mean) * std
    if clip is not None:
        noise = noise.clamp(-clip, clip)
    action = mean + noise
    return action + (action.clamp(-1 + 1e-6, 1 - 1e-6) - action).detach()


def exploration_std(cfg, decisions):
    """Standard deviation of the exploration noise after so many decisions."""
    return float(np.interp(decisions, (0, cfg.std_decisions), (cfg.std_first, cfg.std_last)))


def trunk(n_in, features):
    return nn.Sequential(nn.Linear(n_in, features), nn.LayerNorm(features), nn.Tanh())


def mlp(n_in, hidden, n_out):
    return nn.Sequential(
        nn.Linear(n_in, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, n_out)
    )


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
    """An actor and twin critics on convolutional features of randomly shifted frames.

    size  pixels per side of the frames that `act` and `update` take;  cfg  settings (AGENT)
    Source: Yarats et al. 2021, Algorithm 1"""

    def __init__(self, A, size, cfg):
        super().__init__()
        if cfg.agent_size < 16 or size % cfg.agent_size:
            raise ValueError(f"agent_size is {cfg.agent_size}; expected a divisor of {size}, at least 16")
        self.cfg = cfg
        self.pool = size // cfg.agent_size
        layers = []
        channels = 3 * cfg.stack
        for stride in (2, 1, 1, 1):
            layers += [nn.Conv2d(channels, cfg.channels, 3, stride), nn.ReLU()]
            channels = cfg.channels
        self.encoder = nn.Sequential(*layers, nn.Flatten())
        n_in = self.encoder(torch.zeros(1, 3 * cfg.stack, cfg.agent_size, cfg.agent_size)).shape[1]
        self.actor = nn.Sequential(trunk(n_in, cfg.features), mlp(cfg.features, cfg.hidden, A), nn.Tanh())
        self.critic = Critic(n_in, A, cfg.features, cfg.hidden)
        self.apply(init_orthogonal)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        critic_parameters = [*self.encoder.parameters(), *self.critic.parameters()]
        self.critic_optimizer = torch.optim.Adam(critic_parameters, lr=cfg.agent_lr)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=cfg.agent_lr)

    def preprocess(self, stacks):
        """Frames (B, k, 3, H, W) in [0, 1] -> the encoder's input (B, 3k, agent_size, agent_size)."""
        if stacks.ndim != 5 or not stacks.is_floating_point():
            got = f"{stacks.dtype} {tuple(stacks.shape)}"
            raise ValueError(f"frames are {got}; expected float (B, k, 3, H, W)")
        x = stacks.flatten(1, 2)
        pooled = 0.0  # average pooling, on CPUs three times as fast as avg_pool2d
        for row in range(self.pool):
            for column in range(self.pool):
                pooled = pooled + x[..., row :: self.pool, column :: self.pool]
        return pooled / self.pool**2 - 0.5

    @torch.no_grad()
    def act(self, frames, std=0.0):
        """Actions (B, A) in [-1, 1] for the newest k of frames (B, T, 3, H, W) in [0, 1], oldest first.

        Where there are fewer than k, the first one stands for those before it."""
        stacks = frames[:, -self.cfg.stack :]
        if missing := self.cfg.stack - stacks.shape[1]:
            stacks = torch.cat([stacks[:, :1]] * missing + [stacks], 1)
        return noisy_action(self.actor(self.encoder(self.preprocess(stacks))), std)

    def update(self, batch, std):
        """Update critic and encoder, actor and target critic on a batch (`to_batch`); returns metrics."""
        z = self.encoder(random_shift(self.preprocess(batch["stacks"]), self.cfg.shift))
        with torch.no_grad():
            z_next = self.encoder(random_shift(self.preprocess(batch["next_stacks"]), self.cfg.shift))
        metrics = self.update_critic(z, batch["actions"], batch["returns"], z_next, std)
        self.update_actor(z.detach(), std)  # the encoder learns from the critic alone
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.critic.parameters(), strict=True):
                slow.lerp_(fast, self.cfg.tau)
        return metrics

    def update_critic(self, z, actions, returns, z_next, std):
        with torch.no_grad():
            next_actions = noisy_action(self.actor(z_next), std, self.cfg.std_clip)
            value = self.target(z_next, next_actions).amin(0)
            # Episodes end by their time limit alone, so their last frames are bootstrapped as well.
            target = returns + self.cfg.discount**self.cfg.n_step * value
        q = self.critic(z, actions)
        loss = (q - target).square().mean(1).sum()
        self.critic_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.critic_optimizer.step()
        return dict(critic_loss=loss.detach(), q=q.detach().mean())

    def update_actor(self, z, std):
        actions = noisy_action(self.actor(z), std, self.cfg.std_clip)
        loss = -self.critic(z, actions).amin(0).mean()
        self.actor_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.actor_optimizer.step()


def load_agent(path, A, size):
    """The agent of a checkpoint of mbpo.py, for A-D actions and frames of size x size pixels.

    raises  FileNotFoundError, or ValueError saying what is wrong with the file"""
    state = load_checkpoint(path, needs=("agent", "train_config"))
    agent = DrQ(A, size, SimpleNamespace(**state["train_config"]))
    try:
        agent.load_state_dict(state["agent"])
    except RuntimeError:
        ours = f"{size} x {size} frames and {A}-D actions"
        raise ValueError(f"the agent of {path} takes other than {ours}") from None
    return agent.eval()


@torch.no_grad()
def critic_bias(agent, episodes):
    """How much more the critic expects, on average, than the discounted return that followed.

    episodes  as envs.play yields them; of their decisions the first half, after which enough is still to come
    Source: overestimation as in Fujimoto et al. 2018, figure 1"""
    cfg = agent.cfg
    device = next(agent.parameters()).device
    errors = []
    for episode in episodes:
        returns = np.append(episode["rewards"][1:], 0.0)
        for i in reversed(range(len(returns) - 1)):
            returns[i] += cfg.discount * returns[i + 1]
        half = len(episode["actions"]) // 2
        index = np.arange(half)[:, None] + np.arange(1 - cfg.stack, 1)
        stacks = to_float(episode["frames_u8"][index.clip(0)]).to(device)
        actions = torch.from_numpy(episode["actions"][:half]).to(device)
        q = agent.critic(agent.encoder(agent.preprocess(stacks)), actions).amin(0)
        errors.append(q.mean().item() - returns[:half].mean())
    return float(np.mean(errors))


class Replay:
    """Episodes, a file each as in DrQ-v2's own code, so that only the disk limits their number.

    A row of an episode holds a frame, the action that led to it and the reward received there.
    context  frames at the beginning of each episode that are only ever stacked before a later one
    raises   ValueError if the folder holds files of something else"""

    def __init__(self, folder, size, A, context=0):
        self.row = np.dtype([("frame", "u1", (size, size, 3)), ("action", "f4", (A,)), ("reward", "f4")])
        self.folder = Path(folder)
        self.context = context
        self.lengths = np.zeros(0, int)
        if any(".episode" not in path.name for path in self.folder.glob("*")):
            raise ValueError(f"{folder} holds other files than a replay; move them or pass another --out")

    def open(self, least=0):
        """Count the episodes in the folder.   raises  ValueError if fewer than `least` are whole"""
        while self.path(len(self)).is_file():
            length, rest = divmod(self.path(len(self)).stat().st_size, self.row.itemsize)
            if rest or not length:
                break
            self.lengths = np.append(self.lengths, length)
        if len(self) < least:
            found = f"{len(self)} of {least} are whole, {self.path(len(self)).name} is not"
            raise ValueError(f"{self.folder} has lost episodes: {found}; copy the folder again")

    def clear(self):
        """Delete all episodes."""
        for path in self.folder.glob("*.episode*"):
            path.unlink()
        self.lengths = np.zeros(0, int)

    def __len__(self):
        return len(self.lengths)

    def path(self, episode):
        return self.folder / f"{episode:06}.episode"

    def add(self, frames_u8, actions, rewards):
        """Append an episode: frames_u8 (T,H,W,3), actions (n,A) and rewards (n,) that led to the last n."""
        rows = np.zeros(len(frames_u8), self.row)
        rows["frame"] = frames_u8
        rows["action"][-len(actions) :] = actions
        rows["reward"][-len(rewards) :] = rewards
        write_whole(self.path(len(self)), rows.tobytes())
        self.lengths = np.append(self.lengths, len(rows))

    def read(self, episode, start, stop):
        """Rows start..stop-1 of an episode; beyond its ends the first or the last row is repeated."""
        first = max(start, 0)
        offset = first * self.row.itemsize
        rows = np.fromfile(self.path(episode), self.row, stop - first, offset=offset)
        return rows[np.clip(np.arange(start, stop) - first, 0, len(rows) - 1)]

    def windows(self, n, before, after, rng):
        """Rows (n, before + 1 + after) around random frames: episode uniform, frame uniform."""
        usable = np.flatnonzero(self.lengths - self.context > after)
        if not len(usable):
            raise ValueError(f"no episode has more than {after} frames after its first; make them longer")
        episodes = rng.choice(usable, n)
        offsets = rng.random(n) * (self.lengths[episodes] - self.context - after)
        rows = np.empty((n, before + 1 + after), self.row)
        for i in range(n):
            frame = self.context + int(offsets[i])
            rows[i] = self.read(episodes[i], frame - before, frame + after + 1)
        return rows

    def segments(self, n, T, rng):
        """n segments to train a world model on, aligned as in data.py: frames (n,T,3,H,W) in [0, 1], actions
        (n,T,A), rewards (n,T)."""
        rows = self.windows(n, 0, T - 1, rng)
        actions = np.zeros(rows["action"].shape, np.float32)
        actions[:, :-1] = rows["action"][:, 1:]  # from "led here" to "leads on from here"
        rewards = torch.from_numpy(rows["reward"].copy())
        return dict(frames=to_float(rows["frame"]), actions=torch.from_numpy(actions), rewards=rewards)


def to_batch(rows, cfg, device):
    """Rows of `Replay.windows` with stack - 1 frames before and n_step after -> a batch for `DrQ.update`.

    returns  stacks and, n_step decisions later, next_stacks (B,k,3,H,W) in [0, 1], actions (B,A), returns
             (B,): the discounted sums of the n_step rewards between them"""
    frames = to_float(torch.from_numpy(rows["frame"].copy()).to(device))
    actions = torch.from_numpy(rows["action"][:, cfg.stack].copy())
    returns = rows["reward"][:, cfg.stack :] @ cfg.discount ** np.arange(cfg.n_step)
    return dict(
        stacks=frames[:, : cfg.stack],
        next_stacks=frames[:, -cfg.stack :],
        actions=actions.to(device),
        returns=torch.from_numpy(returns).float().to(device),
    )
