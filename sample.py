"""sample.py: a trained world model as an environment, and pictures of what it imagines (paper section 3.3).

    frames (B,t,3,H,W) --reset--> cache --step--> frame (B n_b, 3, H, W), reward (B n_b,)
                                          ^         |
                     actions (B n_b, A) --+-- policy(frame)

The context is encoded and read once; a frame then costs its own n tokens, whatever has gone before. A
rollout that reaches the end of the segment that the transformer was trained on goes on: its last t frames
become the new context.

B batch, n_b branches (futures of one context), t context frames, h horizon, A action size. Frames are in [0,
1].

Run: python sample.py                                        the released checkpoint, fresh PushWorld episodes
     python sample.py --ckpt out/gpt.pt --data data/mine     validation segments of your own episodes
     python sample.py --ckpt thuml/ivideogpt-oxe-64-act-free --data data/mine     the authors' models
     python sample.py --ckpt out/gpt.pt --episode FILE       a file of your own: .npz, .mp4, .webm or .gif"""

import copy
import itertools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import official
from common import (
    can_compile,
    configure,
    find_device,
    load_checkpoint,
    require_positive,
    run,
    save_checkpoint,
    uses_bf16,
)
from data import goal_first, save_contact_sheet, save_side_by_side, to_float
from envs.push import push_segments
from files import claim, claim_folder
from gpt import GPT
from importers import load_episode
from mixture import open_data
from tokenizer import Tokenizer

CONFIG = dict(
    ckpt="assets/push-tiny.pt",
    tokenizer="",  # checkpoint of another tokenizer, adapted to new pictures (zero-shot transfer, Figure 8)
    data="",  # a folder of episodes (its validation split) or "push"; by default the model's own
    episode="",  # one file instead of data
    key="image",  # array of an .npz episode that holds the frames
    out="out/samples",
    n=4,  # segments
    branches=1,  # futures of each
    horizon=14,  # frames to imagine; longer than the trained segment works
    temperature=1.0,
    top_k=-1,  # codes that each is drawn from, the likeliest ones; 0: all; -1: as the model was made for
    device="",  # by default a GPU if there is one
    dtype="auto",  # of weights and cache: bf16, float32, or by "auto" the former on GPUs, the latter on CPUs
    seed=0,
    context_frames=0,  # use fewer than the model was trained with; 0 leaves it
    segment_length=0,  # frames after which to take a new context; 0: as trained (16, of an authors' model)
    goal_conditioned=False,  # of an authors' model, which does not say it itself: the goal is shown first
    export="",  # write the models alone to this file, in half precision, and stop
    export_official="",  # write them to this folder in the layout of the authors' code, and stop
    overwrite=False,  # replace a file of these two that exists; by default it is refused
)


# What a model is made for, of the settings it was trained with.
TRAINED = dict(data="", stride=1, action_agg="sample", goal_conditioned=False, top_k=100)


class WorldModel:
    """An environment made of a tokenizer and a transformer.

    Weights are shared by all `session`s of a model; each has its own context, KV cache, branches and random
    numbers.
    trained  settings of its training (TRAINED); with goal_conditioned, the first context frame is the goal,
             which stays when a long rollout takes a new context"""

    def __init__(self, tokenizer, gpt, device="cpu", trained=TRAINED, temperature=1.0, top_k=100, seed=0):
        if temperature < 0 or top_k < 0:
            raise ValueError(f"temperature is {temperature}, top_k {top_k}; expected both at least 0")
        if tokenizer.layout != gpt.layout:
            raise ValueError(f"tokenizer with {tokenizer.layout}, transformer with {gpt.layout}: no pair")
        self.tokenizer = tokenizer.to(device, memory_format=torch.channels_last).eval()
        self.gpt = gpt.to(device).eval()
        self.device, self.trained = torch.device(device), trained
        self.goal_conditioned = trained["goal_conditioned"]
        self.temperature, self.top_k = temperature, top_k
        self.generator = torch.Generator(device).manual_seed(seed)
        self.context_frames, self.action_dim = gpt.layout.context_frames, gpt.config["action_dim"]
        self.recent = self.cache = self.anchor = None
        self.seeds = itertools.count(seed + 1)  # of sessions
        bf16 = gpt.embed.weight.dtype == torch.bfloat16
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)
        self.decode = self.tokenizer.decode_future
        if can_compile(self.device):  # the launches of a hundred small layers cost more than their work
            self.decode = torch.compile(self.decode, mode="reduce-overhead", dynamic=False)

    @classmethod
    def load(cls, path, device="", tokenizer="", context_frames=0, segment_length=0, goal_conditioned=False,
             temperature=1.0, top_k=-1, seed=0, dtype="auto"):
        """Load a checkpoint of train_gpt.py, or of the authors: a folder, or a hub name such as
        thuml/ivideogpt-oxe-64-act-free. `tokenizer` is a path of another tokenizer to use with it; the others
        are described in CONFIG.

        raises  FileNotFoundError or ValueError, saying which file and what is wrong with it"""
        device = find_device(device)
        folder = official.find(path)
        if folder:  # nothing there says what it was trained on
            trained = {**TRAINED, "data": "", "goal_conditioned": goal_conditioned}
        else:
            settled = load_checkpoint(path, needs=("gpt", "tokenizer", "train_config"))["train_config"]
            if missing := sorted(TRAINED.keys() - settled.keys()):
                raise ValueError(f"{path} does not say its {', '.join(missing)}: an older version wrote it; "
                                 "save it again with the script that did, --resume true")
            trained = {k: settled[k] for k in TRAINED}
        changes = dict(context_frames=context_frames) if context_frames else {}
        tokenizer = Tokenizer.load(tokenizer or folder or path, **changes)
        changes = dict(segment_length=segment_length) if segment_length else {}
        layout = tokenizer.layout if folder or context_frames else None
        gpt = GPT.load(folder or path, layout, **changes)
        gpt = gpt.bfloat16() if uses_bf16(device, dtype) else gpt
        top_k = trained["top_k"] if top_k == -1 else top_k
        return cls(tokenizer, gpt, device, trained, temperature, top_k, seed)

    def session(self, seed=None):
        """A WorldModel on the same weights, whose reset and steps change nothing here.

        seed  of its random numbers; None: another one for each session"""
        other = copy.copy(self)  # one count of seeds serves them all
        other.generator = torch.Generator(self.device).manual_seed(next(self.seeds) if seed is None else seed)
        other.recent = other.cache = other.anchor = None
        return other

    def export(self, path, data=""):
        """Write a checkpoint to hand out, in half precision; `data` is what to show it by default."""
        models = dict(gpt=self.gpt.checkpoint(), tokenizer=self.tokenizer.checkpoint())
        for model in models.values():
            weights = model["weights"].items()
            model["weights"] = {k: w.half() if w.is_floating_point() else w for k, w in weights}
        trained = dict(self.trained, data=data or self.trained["data"])
        save_checkpoint(path, **models, step=0, train_config=trained)
        print(f"{path}: {Path(path).stat().st_size / 1e6:.1f} MB")

    @torch.no_grad()
    def reset(self, frames, n_branches=1, horizon=0):
        """Start from context frames (B, t, 3, H, W) in [0, 1], with n_branches futures of each.

        horizon  how many frames are wanted, if that is known: less memory is taken than for a segment's
        raises   ValueError if frames are of another shape than the model's, or not in [0, 1]"""
        self.tokenizer.check(frames, self.context_frames)
        if frames.shape[1] != self.context_frames:
            raise ValueError(
                f"{frames.shape[1]} context frames; the model takes {self.context_frames}, newest last"
            )
        if not frames.is_floating_point() or not (frames.min() >= 0 and frames.max() <= 1):
            raise ValueError(
                f"frames are {frames.dtype}, {frames.min():.3g}..{frames.max():.3g}; expected float in [0, 1]"
            )
        self._anchor(frames.to(self.device), n_branches, horizon)

    def _anchor(self, frames, n_branches, horizon=0):
        whole = self.gpt.config["segment_length"] - self.context_frames
        self.n_branches, self.left = n_branches, min(horizon or whole, whole)
        with self.autocast:
            context, _ = self.tokenizer.layout.unpack(self.tokenizer.encode(frames))
            self.scenery = self.tokenizer.decode_context(context)
        self.cache = self.gpt.prefill(context, n_branches, room=self.left, reuse=self.cache)
        self.recent = frames.repeat_interleave(n_branches, 0)  # (B n_b, t, 3, H, W)
        self.anchor = self.recent, self.left, self.cache.pending.clone()

    def rewind(self):
        """Back to where `reset` left the model: other futures of the context that it has read.

        raises  ValueError before `reset`, or if a long rollout has taken a new context since"""
        if self.anchor is None:
            raise ValueError("nothing to rewind to: call reset(frames) first")
        self.recent, self.left, pending = self.anchor
        self.cache.rewind(pending)

    @torch.no_grad()
    def step(self, actions=None):
        """Imagine the next frame, to which actions (B n_b, A) in [-1, 1] lead (None for an action-free
        model).

        Branches of one context are neighbours.   returns frame (B n_b, 3, H, W), reward (B n_b,) in
        environment units (None without a reward head).   raises ValueError before `reset` or at actions of
        another shape"""
        frame, _ = self._imagine(actions)
        return frame, self._reward()

    @torch.no_grad()
    def _imagine(self, actions):
        """The next frame, and the state from which the reward of the one before it can be read."""
        if self.recent is None:
            raise ValueError("step before reset: call reset(frames) with the context frames first")
        if not self.left:
            self._anchor(self.recent, 1)
            self.anchor = None  # what `reset` read is gone
        if actions is not None:
            actions = torch.as_tensor(actions, dtype=torch.float32, device=self.device)
        settings = self.temperature, self.top_k, self.generator
        codes, ended = self.gpt.imagine(self.cache, actions, *settings)
        self.left -= 1
        codes = codes.unflatten(0, (-1, self.n_branches))  # (B, n_b, n): branches stand in for future frames
        with self.autocast:
            frame = self.decode(codes, self.scenery).flatten(0, 1).float().clamp(0, 1)
        kept = int(self.goal_conditioned)
        self.recent = torch.cat([self.recent[:, :kept], self.recent[:, kept + 1 :], frame[:, None]], 1)
        return frame, ended

    def _reward(self):
        return None if self.gpt.reward is None else self.gpt.rewards(self.gpt.last_state(self.cache))

    @torch.no_grad()
    def rollout(self, policy_or_actions, horizon):
        """Imagine `horizon` frames from where `reset` or the last step left off.

        policy_or_actions  a function of the newest frame (B n_b, 3, H, W) that returns actions (B n_b, A), or
                           actions (B n_b, h >= horizon, A) known beforehand, or None for an action-free model
        returns            frames (B n_b, h, 3, H, W), rewards (B n_b, h) or None, actions (B n_b, h, A) or
                           None"""
        frames, rewards, actions, owed = [], [], [], False
        given = policy_or_actions
        if horizon < 1 or hasattr(given, "shape") and given.shape[1] < horizon:
            raise ValueError(f"horizon is {horizon}; expected 1 to the number of actions given")
        if hasattr(given, "shape"):
            given = torch.as_tensor(given, dtype=torch.float32, device=self.device)
        for i in range(horizon):
            action = given(self.recent[:, -1]) if callable(given) else None if given is None else given[:, i]
            frame, ended = self._imagine(action)
            if owed:
                rewards.append(self.gpt.rewards(ended))
            # Where the next action is known, its pass reads this frame's last token too: 16 passes, not 17.
            owed = self.gpt.reward is not None and not callable(given) and self.left and i + 1 < horizon
            if not owed:
                rewards.append(self._reward())
            frames.append(frame)
            actions.append(None if action is None else torch.as_tensor(action, device=self.device))
        return tuple(None if x[0] is None else torch.stack(x, 1) for x in (frames, rewards, actions))

    @torch.no_grad()
    def rollout_naive(self, frames, actions, horizon, n_branches=1):
        """What `reset` and `rollout` imagine, in the authors' plain way, to measure against: one context
        for every branch, which is read again for each new frame; and all frames decoded again.

        frames as for `reset`, actions (B n_b, h, A) or None
        returns frames (B n_b, h, 3, H, W), rewards (B n_b, h) or None"""
        layout, past = self.tokenizer.layout, (0, 0, self.context_frames - 1, 0)  # actions without effect
        with self.autocast:
            context, _ = layout.unpack(self.tokenizer.encode(frames.repeat_interleave(n_branches, 0)))
        codes, rewards = context.new_empty(len(context), 0, layout.tokens_future), []
        for i in range(horizon):
            known = None if actions is None else F.pad(actions[:, : i + 1], past)
            sampling = self.temperature, self.top_k, self.generator
            code, reward = self.gpt.imagine_naive(context, codes, known, *sampling)
            codes = torch.cat([codes, code[:, None]], 1)
            with self.autocast:
                decoded = self.tokenizer.decode(layout.pack(context, codes)).float().clamp(0, 1)
            rewards.append(reward)
        return decoded[:, self.context_frames :], None if reward is None else torch.stack(rewards, 1)


def segments_for(model, data, n, horizon, seed):
    """n segments of t + horizon frames, strided as in training, of PushWorld or a folder's validation.

    seed  of random starts in their episodes; None: from frame 0, but for PushWorld's"""
    T, trained = model.context_frames + horizon - model.goal_conditioned, model.trained
    data = data or trained["data"]
    if not data:
        raise ValueError("the checkpoint does not say what it was trained on; pass --data or --episode")
    if data == "push":
        batch = push_segments(n, T, seed or 0, model.tokenizer.config["resolution"])
    else:
        episodes = open_data(data, "val")
        if n > episodes.n_episodes:
            print(f"{n} segments of {episodes.n_episodes} episodes: some show the same episode")
        batch = episodes.segments(n, T, trained["stride"], seed, trained["action_agg"])
    return goal_first(batch) if model.goal_conditioned else batch


def find_segments(cfg, model):
    """Frames (B, T, 3, H, W) and actions (B, T, A) or None to start from."""
    t, stride = model.context_frames, model.trained["stride"]
    if cfg.episode and model.goal_conditioned:
        raise ValueError("a goal-conditioned model takes segments, whose last frame is the goal; use --data")
    if cfg.episode:
        frames_u8, actions = load_episode(cfg.episode, cfg.key, model.tokenizer.config["resolution"])
        frames_u8 = frames_u8[::stride]
        if len(frames_u8) < t:
            raise ValueError(f"{cfg.episode} has {len(frames_u8)} frames; expected {t} for the context")
        batch = dict(frames=to_float(frames_u8)[None], actions=actions)
        if actions is not None:
            added = model.trained["action_agg"] == "sum"
            actions = np.add.reduceat(actions, range(0, len(actions), stride)) if added else actions[::stride]
            batch["actions"] = torch.from_numpy(actions)[None]
    else:
        batch = segments_for(model, cfg.data, cfg.n, cfg.horizon, cfg.seed)
    frames, A = batch["frames"][:, : t + cfg.horizon], model.action_dim
    actions = batch["actions"] if A else None
    if A and (actions is None or actions.shape[-1] != A):
        got, source = "none" if actions is None else f"{actions.shape[-1]}-D", cfg.episode or cfg.data
        raise ValueError(f"the model takes {A}-D actions, {source or 'its data'} has {got}")
    return frames, actions


def main(cfg):
    require_positive(cfg, "n", "branches", "horizon")
    if cfg.export:
        cfg.export = claim(cfg.export, overwrite=cfg.overwrite, name="export")
    if cfg.export_official:
        for part in official.FILES:
            config = Path(cfg.export_official) / part / "config.json"
            claim(config, overwrite=cfg.overwrite, name="export_official")
    if not (cfg.export or cfg.export_official):
        claim_folder(cfg.out)
    model = WorldModel.load(
        cfg.ckpt, cfg.device, cfg.tokenizer, cfg.context_frames, cfg.segment_length, cfg.goal_conditioned,
        cfg.temperature, cfg.top_k, cfg.seed, "float32" if cfg.export or cfg.export_official else cfg.dtype,
    )  # fmt: skip
    if cfg.export:
        model.export(cfg.export, cfg.data)
    if cfg.export_official:
        official.export(cfg.export_official, model.tokenizer, model.gpt)
        print(f"{cfg.export_official}: tokenizer/ and transformer/ in the authors' layout")
    if cfg.export or cfg.export_official:
        return
    frames, actions = find_segments(cfg, model)
    t, (B, T), h = model.context_frames, frames.shape[:2], cfg.horizon
    model.reset(frames[:, :t], cfg.branches)
    if actions is not None:
        actions = actions[:, t - 1 : t - 1 + h].repeat_interleave(cfg.branches, 0)
    imagined = model.rollout(actions, h)[0].cpu().unflatten(0, (B, cfg.branches))
    rows, out = [], Path(cfg.out)
    for b in range(B):
        rows.append(frames[b])
        for k in range(cfg.branches):
            whole = torch.cat([frames[b, :t], imagined[b, k]])
            rows.append(whole)
            end = frames[b, -1:].expand(t + h - T, -1, -1, -1)  # a truth that ends early stands still
            truth = torch.cat([frames[b], end])
            save_side_by_side(out / f"{b}-{k}.gif", truth, whole)
    save_contact_sheet(out / "sheet.png", rows)
    print(f"{out}/sheet.png: truth above imagined ({t} context frames); {B * cfg.branches} GIFs beside it")


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__))
