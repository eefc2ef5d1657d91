"""sample.py: a trained world model as an environment, and pictures of what it imagines (paper section 3.3).

    frames (B,t,3,H,W) --reset--> cache --step--> frame (B n_b, 3, H, W), reward (B n_b,)
                                          ^         |
                     actions (B n_b, A) --+-- policy(frame)

The context is encoded and read once; a frame then costs its own n tokens, however long the rollout is. A
rollout that reaches the end of the segment that the transformer was trained on takes a new context: its last
t frames, one for each branch, which from then on share nothing.

B batch, n_b branches (futures of one context), t context frames, h horizon, A action size. Frames are in
[0, 1].

Run: python sample.py                                        the released checkpoint, fresh PushWorld episodes
     python sample.py --ckpt out/gpt.pt --data data/mine     validation segments of your own episodes
     python sample.py --ckpt thuml/ivideogpt-oxe-64-act-free --data data/mine     the authors' models
     python sample.py --ckpt out/gpt.pt --episode FILE       a file of your own: .npz, .mp4, .webm or .gif"""

import copy
import itertools

import torch

import official
from checkpoints import load_gpt, load_tokenizer
from common import configure, load_checkpoint, require_positive, run
from support.devices import can_compile, find_device, uses_bf16
from support.export import claim_exports, export, export_official
from support.files import claim_folder
from support.pictures import save_contact_sheet, save_side_by_side
from support.segments import find_segments
from variants.draft import imagine_frame

CONFIG = dict(
    ckpt="assets/push-tiny.pt",
    tokenizer="",  # checkpoint of another tokenizer, adapted to new pictures (zero-shot transfer, Figure 8)
    data="",  # a folder of episodes (its validation split), "push" or "pusht"; by default the model's own
    episode="",  # one file instead of data
    key="image",  # array of an .npz episode that holds the frames
    out="out/samples",
    n=4,  # segments
    branches=1,  # futures of each
    horizon=14,  # frames to imagine; longer than the trained segment works
    temperature=-1.0,  # of sampling; 0: the most likely code; -1: as the checkpoint says
    top_k=-1,  # codes, the most likely, to sample from; 0: all; -1: as the checkpoint says
    device="",  # by default a GPU if there is one
    dtype="auto",  # of weights and cache: bf16, float32, or by "auto" the former on GPUs, the latter on CPUs
    seed=0,
    context_frames=0,  # use fewer than the model was trained with; 0 leaves it
    segment_length=0,  # frames after which to take a new context; 0: as trained (16, of an authors' model)
    goal_conditioned=False,  # of an authors' model, whose files do not say so: the goal comes first
    export="",  # write the models alone to this file, in half precision, and stop
    export_official="",  # write them to this folder in the layout of the authors' code, and stop
    overwrite=False,  # let --export and --export_official replace files; by default that is refused
)


# What a checkpoint says about the use of its model: settings of its training.
TRAINED = dict(
    data="", stride=1, action_agg="sample", goal_conditioned=False, top_k=100, temperature=1.0
)  # fmt: skip


def trained_settings(path):
    """TRAINED of a checkpoint of ours.   raises  ValueError if an older version wrote it"""
    settings = load_checkpoint(path, needs=("gpt", "tokenizer", "train_config"))["train_config"]
    missing = sorted(TRAINED.keys() - settings.keys())
    if missing:
        raise ValueError(f"{path} does not say its {', '.join(missing)}: an older version wrote it; "
                         "save it again with the script that did, --resume true")
    return {key: settings[key] for key in TRAINED}


class WorldModel:
    """An environment made of a tokenizer and a transformer.

    Weights are shared by all `session`s of a model; each has its own context, KV cache, branches and random
    numbers.
    trained  settings of its training (TRAINED), temperature and top_k among them; with goal_conditioned, the
             first context frame is the goal, which stays when a long rollout takes a new context"""

    def __init__(self, tokenizer, gpt, device="cpu", trained=TRAINED, temperature=-1.0, top_k=-1, seed=0):
        temperature = trained["temperature"] if temperature == -1 else temperature
        top_k = trained["top_k"] if top_k == -1 else top_k
        if not (temperature >= 0 and top_k >= 0):  # nan is neither
            raise ValueError(f"temperature is {temperature}, top_k {top_k}; expected both at least 0")
        if tokenizer.layout != gpt.layout:
            raise ValueError(f"the tokenizer has {tokenizer.layout}, the transformer {gpt.layout}")
        self.tokenizer = tokenizer.to(device, memory_format=torch.channels_last).eval()
        self.gpt = gpt.to(device).eval()
        self.device = torch.device(device)
        self.trained = trained
        self.goal_conditioned = trained["goal_conditioned"]
        self.context_frames = gpt.layout.context_frames
        self.action_dim = gpt.config["action_dim"]
        self.temperature = temperature
        self.top_k = top_k
        self.generator = torch.Generator(device).manual_seed(seed)
        self.seeds = itertools.count(seed + 1)  # of sessions
        self.recent = None  # the newest t frames, (B n_b, t, 3, H, W)
        self.codes = None  # of the frames that were imagined last, (B n_b, h, n)
        self.left = 0  # frames until a new context is due
        self.n_branches = 1
        self.scene = None  # what the decoder attends to, `Tokenizer.decode_context`
        self.cache = None
        self.anchor = None  # what `rewind` goes back to
        bf16 = gpt.embed.weight.dtype == torch.bfloat16
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)
        self.decode = self.tokenizer.decode_future
        if can_compile(self.device):  # launching a hundred small layers costs more than their work
            self.decode = torch.compile(self.decode, mode="reduce-overhead", dynamic=False)

    @classmethod
    def load(cls, path, device="", tokenizer="", context_frames=0, segment_length=0, goal_conditioned=False,
             temperature=-1.0, top_k=-1, seed=0, dtype="auto"):
        """Load any checkpoint: of train_gpt.py, mbpo.py, or of the authors: a folder, or a hub name such as
        thuml/ivideogpt-oxe-64-act-free. `tokenizer` is a path of another tokenizer to use with it; CONFIG
        describes the others.

        raises  FileNotFoundError or ValueError, saying which file and what is wrong with it"""
        device = find_device(device)
        folder = official.find(path)
        if folder:
            trained = {**TRAINED, "goal_conditioned": goal_conditioned}
        elif goal_conditioned:
            raise ValueError(f"{path} says whether it is goal-conditioned; leave --goal_conditioned out")
        else:
            trained = trained_settings(path)
        changes = dict(context_frames=context_frames) if context_frames else {}
        vqgan = load_tokenizer(tokenizer or folder or path, **changes)
        changes = dict(segment_length=segment_length) if segment_length else {}
        gpt = load_gpt(folder or path, vqgan.layout if folder or context_frames else None, **changes)
        if uses_bf16(device, dtype):
            gpt = gpt.bfloat16()
        return cls(vqgan, gpt, device, trained, temperature, top_k, seed)

    def session(self, seed=None):
        """A WorldModel on the same weights, whose reset and steps change nothing here.

        seed  of its random numbers; None: another one for each session"""
        other = copy.copy(self)  # the count of seeds stays shared
        other.generator = torch.Generator(self.device).manual_seed(next(self.seeds) if seed is None else seed)
        other.recent = other.cache = other.anchor = None
        return other

    @torch.no_grad()
    def reset(self, frames, n_branches=1, horizon=0):
        """Start from context frames (B, t, 3, H, W) in [0, 1], with n_branches futures of each.

        horizon  frames to be imagined, if known: memory for these is allocated, not for a whole segment
        raises   ValueError if frames are of another shape than the model's, or not in [0, 1]"""
        t = self.context_frames
        self.tokenizer.check(frames, t)
        if n_branches < 1:
            raise ValueError(f"n_branches is {n_branches}; expected at least 1")
        if frames.shape[1] != t:
            raise ValueError(f"{frames.shape[1]} context frames; the model takes {t}, newest last")
        if not frames.is_floating_point() or not (frames.min() >= 0 and frames.max() <= 1):
            got = f"{frames.dtype}, {frames.min():.3g}..{frames.max():.3g}"
            raise ValueError(f"frames are {got}; expected float in [0, 1]")
        self._read_context(frames.to(self.device), n_branches, horizon)
        self.anchor = self.recent, self.left, self.cache.pending

    def _read_context(self, frames, n_branches, horizon=0):
        """Encode and read a context; `left` frames can be imagined before the next one is due."""
        rest = self.gpt.config["segment_length"] - self.context_frames
        self.left = min(horizon or rest, rest)
        self.n_branches = n_branches
        with self.autocast:
            tokens = self.tokenizer.encode(frames)
            self.scene = self.tokenizer.decode_context(self.tokenizer.layout.unpack(tokens)[0])
        self.cache = self.gpt.prefill(tokens, n_branches=n_branches, room=self.left, reuse=self.cache)
        self.recent = frames.repeat_interleave(n_branches, 0)
        self._guess_first()

    def _guess_first(self):
        """A draft of the first frame (variants/draft.py): with `still`, code 0 says "as in the context"."""
        if self.tokenizer.config.get("still"):
            self.cache.newest = self.cache.pending.new_zeros(len(self.recent), self.gpt.layout.tokens_future)

    def rewind(self):
        """Back to where `reset` left the model: other futures of the context that it has read.

        raises  ValueError before `reset`, or if a long rollout has taken a new context since"""
        if self.anchor is None:
            raise ValueError("nothing to rewind to: call reset(frames); a long rollout took a new context")
        self.recent, self.left, pending = self.anchor
        self.cache.rewind(pending)
        self._guess_first()

    @torch.no_grad()
    def step(self, actions=None):
        """Imagine the next frame, to which actions (B n_b, A) in [-1, 1] lead (None for an action-free
        model).

        Branches of one context are neighbours.   returns frame (B n_b, 3, H, W), reward (B n_b,) in
        environment units (None without a reward head).   raises ValueError before `reset` or at actions of
        another shape"""
        frames, rewards, _ = self.rollout(None if actions is None else torch.as_tensor(actions)[:, None], 1)
        return frames[:, 0], None if rewards is None else rewards[:, 0]

    @torch.no_grad()
    def rollout(self, policy_or_actions, horizon, newest=0):
        """Imagine `horizon` frames from where `reset` or the last step left off.

        policy_or_actions  a function of the newest frame (B n_b, 3, H, W) that returns actions (B n_b, A), or
                           actions (B n_b, h >= horizon, A), or None for an action-free model
        newest             so many frames are decoded and returned: decoding takes half of the time; 0: all
        returns            frames (B n_b, h, 3, H, W), rewards (B n_b, h) or None, actions (B n_b, h, A) or
                           None"""
        if self.recent is None:
            raise ValueError("no context: call reset(frames) with the context frames first")
        known = None if callable(policy_or_actions) else policy_or_actions
        if horizon < 1 or known is not None and known.shape[1] < horizon:
            there = "" if known is None else f"; there are {known.shape[1]} actions"
            raise ValueError(f"horizon is {horizon}; expected 1 or more, and an action for each frame{there}")
        decoded = max(newest, self.context_frames) if newest else horizon  # a context is made of frames
        frames = []
        rewards = []
        actions = []
        done = 0
        while done < horizon:
            if not self.left:  # the end of the trained segment
                self._read_context(self.recent, 1)
                self.anchor = None
            if callable(policy_or_actions):
                chunk = policy_or_actions(self.recent[:, -1])[:, None]  # it needs to see the frame before
            else:
                chunk = None if known is None else known[:, done : min(horizon, done + self.left)]
            if chunk is not None:
                chunk = torch.as_tensor(chunk, dtype=torch.float32, device=self.device)
                actions.append(chunk)
            n = min(self.left, horizon - done) if chunk is None else chunk.shape[1]
            sampling = self.temperature, self.top_k, self.generator
            codes, rewards_chunk = self.gpt.imagine(self.cache, n, chunk, *sampling, imagine_frame)
            self.codes = codes
            rewards.append(rewards_chunk)
            self.left -= n
            done += n
            frames.append(self._decode(codes[:, -decoded:]))
        frames = torch.cat(frames, 1)[:, -(newest or horizon) :]
        rewards = None if self.gpt.reward is None else torch.cat(rewards, 1)
        return frames, rewards, torch.cat(actions, 1) if actions else None

    def _decode(self, codes):
        """Codes (B n_b, h, n) -> the next frames (B n_b, h, 3, H, W), which become the newest of `recent`.

        A frame depends on its codes and the scene alone. Many futures of one scene have frames in common, and
        each of these is decoded once; compiled code wants one shape instead."""
        n_b = self.n_branches
        h = codes.shape[1]
        codes = codes.unflatten(0, (-1, n_b)).transpose(1, 2).flatten(1, 2)  # (B, h n_b, n)
        origin = slice(None)
        if len(codes) == 1 and codes.is_cpu:
            codes, origin = codes.unique(dim=1, return_inverse=True)
        with self.autocast:
            parts = [self.decode(part, self.scene).float().clamp(0, 1) for part in codes.split(n_b, 1)]
        frames = torch.cat(parts, 1)[:, origin].unflatten(1, (h, n_b)).transpose(1, 2).flatten(0, 1)
        first = int(self.goal_conditioned)  # a goal stays
        newest = torch.cat([self.recent[:, first:], frames], 1)[:, first - self.context_frames :]
        self.recent = torch.cat([self.recent[:, :first], newest], 1)
        return frames


def main(cfg):
    require_positive(cfg, "n", "branches", "horizon")
    if cfg.export or cfg.export_official:
        claim_exports(cfg)
        cfg.dtype = "float32"
    out = claim_folder(cfg.out)
    model = WorldModel.load(
        cfg.ckpt, device=cfg.device, tokenizer=cfg.tokenizer, context_frames=cfg.context_frames,
        segment_length=cfg.segment_length, goal_conditioned=cfg.goal_conditioned,
        temperature=cfg.temperature, top_k=cfg.top_k, seed=cfg.seed, dtype=cfg.dtype,
    )  # fmt: skip
    if cfg.export:
        export(model, cfg.export, cfg.data)
    if cfg.export_official:
        export_official(model, cfg.export_official)
    if cfg.export or cfg.export_official:
        return
    frames, actions = find_segments(cfg, model)
    B, T = frames.shape[:2]
    t = model.context_frames
    h = cfg.horizon
    model.reset(frames[:, :t], cfg.branches)
    if actions is not None:
        actions = actions[:, t - 1 : t - 1 + h].repeat_interleave(cfg.branches, 0)
    imagined, _, _ = model.rollout(actions, h)
    imagined = imagined.cpu().unflatten(0, (B, cfg.branches))
    rows = []
    for b in range(B):
        rows.append(frames[b])
        last = frames[b, -1:].expand(t + h - T, -1, -1, -1)  # repeat the last true frame
        truth = torch.cat([frames[b], last])
        for k in range(cfg.branches):
            clip = torch.cat([frames[b, :t], imagined[b, k]])
            rows.append(clip)
            save_side_by_side(out / f"{b}-{k}.gif", truth, clip)
    save_contact_sheet(out / "sheet.png", rows)
    print(f"{out}/sheet.png: truth above imagined ({t} context frames); {B * cfg.branches} GIFs beside it")


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__))
