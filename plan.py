"""plan.py: visual planning: model-predictive control in imagination (paper section 4.2; appendices A.4, C.3).

    newest t frames ------------+
                                +--> model --> imagined frames (N,h,3,H,W) --> scores (N,) --+
    N action sequences (N,h,A) -+                                 goal (3,H,W) --^           |
         ^                                                                                   |
         +---- planner: warm start, noise, weights <-----------------------------------------+
                   +--> first action --> environment --> next frame, and again

As in the benchmark VP2 (Tian et al. 2023): the start is restored, one uncounted zero action fills the history
with its frame twice, then come `steps` decisions, the first of them zero, the others planned anew each time.
It is a success if the criterion holds at any of these moments.

Models stand in for each other: `world_model`; `oracle`, the simulator itself; and without planning `random`
and `script`. Tasks are successes of the scripted player in episodes that no training has seen, from `lead`
decisions before; or VP2's own, from its files (--goals). Where we differ from VP2: an episode ends with its
success, and the first of the 11 frames that VP2 sums over, which is the same for all candidates, is left out.

N candidates, h horizon, A action size, t context frames. Frames are in [0, 1].

Run: python plan.py                                                    PushWorld with the released checkpoint
     python plan.py --preset vp2 --task push_red --ckpt out/gpt.pt     RoboDesk, robosuite: VP2's planner
     python plan.py --preset vp2 --task push_red --ckpt out/gpt.pt --goals FILE.hdf5 --classifier FILE.pt \
         --pixel 0.5                                                   and its tasks
Writes OUT (numbers), NAME.jsonl beside it (a line per episode: the same command, or one for more of them,
goes on from there) and GIFs: goal | executed | what it expects of its best candidate, next and at its end."""

import atexit
import functools
import json
import math
import multiprocessing
import os
import signal
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from common import (
    beside,
    claim,
    claim_folder,
    configure,
    find_device,
    keep_memory,
    perceptual_loss,
    require_not_negative,
    require_positive,
    run,
)
from data import HELD_OUT, make_environment, save_gif, to_float
from evaluate import load_torchscript, perceptual_distance, read_result, write_result
from importers.hdf5 import open_vp2, vp2_frames
from sample import WorldModel

CONFIG = dict(
    preset="push",  # or vp2, the benchmark's planner
    task="push_red",  # of RoboDesk; robosuite_push; push_anywhere of PushWorld, or push, onto the pad
    ckpt="assets/push-tiny.pt",
    tokenizer="",  # another tokenizer's checkpoint
    out="out/plan/vp2.json",
    overwrite=False,  # begin anew where OUT is of other settings; by default it is refused
    models=("random", "world_model", "oracle"),  # or script
    episodes=50,  # tasks, the same for every seed
    seeds=3,  # of planner and model
    scene=-1,  # of PushWorld: >= 0 is the same in all episodes, but for small moves; -1 is always another
    goals="",  # VP2's .hdf5 file of tasks instead of our own
    steps=15,  # decisions
    lead=8,  # decisions of the scripted player from start to goal
    settle=2,  # decisions that it goes on after its success, before the goal is photographed
    # the planner
    planner="mppi",  # or icem
    candidates=0,  # per decision; 0: VP2's, 200; 800 for open_slide and open_drawer; icem: >= 2 elites
    horizon=10,
    std=(),  # of the noise on each action dimension; by default VP2's
    beta=0.5,  # mppi: share of the noise that each step keeps of the one before
    gamma=0.05,  # mppi: how sharply weights fall with the score; of summed squared errors of 64x64 pixels
    iterations=3,  # icem; candidates are shared out, each time 1.25 times fewer
    elites=10,  # icem
    execute="best",  # icem: or the elites' mean
    momentum=0.1,  # icem: share of the old mean and deviation
    colour=2.0,  # icem: exponent of the noise's spectrum, 0 is white
    # the score: a weighted sum
    pixel=1.0,  # of minus the squared error to the goal, summed over frames, pixels and colours
    reward=0.0,  # of the sum of predicted rewards, which are for the pad, wherever push_anywhere has its goal
    lpips=0.0,  # of minus LPIPS to the goal, summed over frames
    classifier="",  # VP2's file, or TorchScript: frames (M, 3, 64, 64) -> logits of success
    classifier_weight=10.0,  # of the sum of these logits
    diagnose=True,  # simulate the candidates of failed episodes: why did they fail?
    gifs=3,  # episodes to draw, of the first seed
    temperature=1.0,
    top_k=-1,  # 0: all codes; -1: as the model was made for
    workers=0,  # processes; by default one per core, on a GPU one
    device="",
    dtype="auto",
    seed=0,  # of tasks
)
PUSH = dict(  # coloured noise finds its way where mppi's does not
    task="push_anywhere", out="out/plan/push.json", planner="icem", candidates=60, iterations=2, elites=6,
    execute="mean", horizon=8, lead=7,
)  # fmt: skip
PRESETS = dict(push=PUSH, vp2={})
DESK_STD, DESK_MANY = (0.5, 0.5, 0.5, 0.1, 0.1), ("open_slide", "open_drawer")
STD = dict(push=(0.5, 0.5), push_anywhere=(0.5, 0.5), robosuite_push=(0.5, 0.5, 0.5, 0.0))
ELSEWHERE = (  # settings that change no episode
    "workers", "out", "overwrite", "device", "gifs", "preset", "given", "models", "episodes", "seeds",
    "diagnose",
)  # fmt: skip


# ---- planners: score (N,h,A) -> (N,) is all they know ----


def shifted(plan):
    """A plan (..., h, A) one step later, its last row repeated."""
    return np.concatenate([plan[..., 1:, :], plan[..., -1:, :]], -2)


def mppi(score, memory, shape, std, cfg, rng):
    """Model-predictive path integral control, VP2's planner: one iteration of noise around the last plan.

    score   candidates (N,h,A) in [-1, 1] -> (N,), higher is better
    memory  what the last decision returned, {} at first;  shape (N,h,A);  std (A,)
    returns plan (h,A), whose first row is to be executed, memory, (candidates, scores, sample size)
    Source: Williams et al. 2016; VP2's mppi.py and sampler.py"""
    N, h, A = shape
    mean = shifted(memory["mean"]) if memory else np.zeros((h, A))
    noise = rng.normal(size=shape) * std
    for k in range(1, h):
        noise[:, k] = cfg.beta * noise[:, k - 1] + (1 - cfg.beta) * noise[:, k]
    candidates = np.clip(mean + noise, -1, 1)
    scores = score(candidates)
    weights = np.exp(cfg.gamma * (scores - scores.max()))
    weights /= weights.sum()
    plan = np.tensordot(weights, candidates, 1)
    return plan, dict(mean=plan), (candidates, scores, 1 / (weights**2).sum())


def coloured(shape, exponent, rng):
    """Noise (N,h,A) of deviation 1, whose power falls with frequency as f^-exponent."""
    h = shape[1]
    f = np.maximum(np.fft.rfftfreq(h), 1 / h)
    real, imaginary = rng.normal(size=(2, shape[0], len(f), shape[2]))
    noise = np.fft.irfft((real + 1j * imaginary) * f[:, None] ** (-exponent / 2), h, 1)
    return noise / noise.std()


def icem(score, memory, shape, std, cfg, rng):
    """Improved cross-entropy method: mean and deviation of the elites, a few times over.

    Noise is coloured; some elites are kept for the next iteration, and for the next decision, where they are
    judged anew; the mean is a candidate of the last iteration. The plan is the best candidate of all or, as a
    learned model is mistaken about each but less about all, the elites' mean (cfg.execute).
    Arguments and results are those of `mppi`, sample size None.   Source: Pinneri et al. 2020, Algorithm 1"""
    (N, h, A), share = shape, math.ceil(0.3 * cfg.elites)
    first = N / sum(1.25**-i for i in range(cfg.iterations))
    mean = shifted(memory["mean"]) if memory else np.zeros((h, A))
    kept = shifted(memory["elites"]) if memory else np.zeros((0, h, A))
    spread, seen, kept_scores = np.tile(np.asarray(std, float), (h, 1)), [], np.zeros(0)
    for i in range(cfg.iterations):
        n = max(round(first * 1.25**-i), 2 * cfg.elites)
        fresh = np.clip(mean + spread * coloured((n, h, A), cfg.colour, rng), -1, 1)
        if i == 0:
            fresh[: len(kept)], kept = kept, kept[:0]
        if i == cfg.iterations - 1:
            fresh[-1] = mean
        seen.append((fresh, score(fresh)))
        pool = np.concatenate([fresh, kept])
        pool_scores = np.concatenate([seen[-1][1], kept_scores])
        best = np.argsort(-pool_scores)[: cfg.elites]
        elites, kept, kept_scores = pool[best], pool[best[:share]], pool_scores[best[:share]]
        mean = cfg.momentum * mean + (1 - cfg.momentum) * elites.mean(0)
        spread = cfg.momentum * spread + (1 - cfg.momentum) * elites.std(0)
    candidates, scores = map(np.concatenate, zip(*seen, strict=True))
    plan = mean if cfg.execute == "mean" else candidates[scores.argmax()]
    return plan, dict(mean=mean, elites=kept), (candidates, scores, None)


PLANNERS = dict(mppi=mppi, icem=icem)


# ---- models ----


def free_bytes(device):
    """Memory that is left: of the GPU, or on Linux of the machine."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if not Path("/proc/meminfo").is_file():
        return 4e9
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return 1024 * int(lines["MemAvailable"].split()[0])


class Dreamer:
    """The world model as planners use it: candidates are branches of one context, read once.

    Branches at once are as many as half of the free memory holds; if a GPU runs out of it, half as many."""

    def __init__(self, world, share=1.0):
        self.world = world.session()  # nobody else's reset moves what is planned from
        self.share, self.fits, self.at_once = share, 0, 0

    def branch_bytes(self, horizon):
        """About what a branch takes: its keys and values, the widest pictures of the decoder, its frames."""
        gpt, vqgan = self.world.gpt, self.world.tokenizer
        pixels, layers = vqgan.config["resolution"] ** 2, gpt.config["n_layer"]
        tokens = horizon * (gpt.layout.tokens_future + 1) + 1
        cache = 2 * layers * tokens * gpt.config["n_embd"] * gpt.embed.weight.element_size()
        return cache + 4 * pixels * (6 * vqgan.config["channels"][0] + 3 * horizon)

    def __call__(self, frames, actions):
        """Context frames (t,3,H,W), actions (N,h,A) -> yields frames (n,h,3,H,W), rewards (n,h) or None."""
        (N, h, _), done, read = actions.shape, 0, 0
        free = self.share * free_bytes(self.world.device)
        self.fits = self.fits or max(1, int(free / 2 / self.branch_bytes(h)))
        self.at_once = max(self.at_once, N)
        while done < N:
            part = actions[done : done + self.fits]
            recorded = self.world.device.type == "cuda"  # in one shape
            n = min(self.fits, self.at_once) if recorded else len(part)
            padded = np.concatenate([part, part[-1:].repeat(n - len(part), 0)])
            try:
                if read == n:
                    self.world.rewind()
                else:
                    self.world.reset(frames[None], n, h)
                imagined, rewards, _ = self.world.rollout(padded, h)
            except torch.OutOfMemoryError:
                if n == 1:
                    raise
                self.fits, read, self.world.cache = n // 2, 0, None
                continue
            read = n if h <= self.world.gpt.config["segment_length"] - self.world.context_frames else 0
            yield imagined[: len(part)], None if rewards is None else rewards[: len(part)]
            done += len(part)


class VP2Model:
    """What VP2's evaluation script calls a model (the package `vp2`, VideoPredictionModel).

    model({"video": (N,2,H,W,3) in [0, 1], "actions": (N,11,A)}) -> {"rgb": (N,11,H,W,3)}, all numpy: the last
    context frame, as it is, and 10 imagined ones. The first action leads to that frame and has no effect."""

    num_context, base_prediction_modality = 2, "rgb"

    def __init__(self, ckpt, device="", **how):
        self.dream = Dreamer(WorldModel.load(ckpt, device, **how))
        if (t := self.dream.world.context_frames) != 2:
            raise ValueError(f"{ckpt} has {t} context frames; VP2 gives 2")

    def __call__(self, batch, grad_enabled=False):
        if grad_enabled:
            raise ValueError("tokens have no gradient; use one of VP2's planners that sample: mppi or cem")
        video, actions = (np.asarray(batch[k], np.float32) for k in ("video", "actions"))
        out = np.empty((*actions.shape[:2], *video.shape[2:]), np.float32)
        out[:, 0] = video[:, -1]
        contexts, which = np.unique(video.reshape(len(video), -1), axis=0, return_inverse=True)
        for i in range(len(contexts)):  # all are the same while VP2 plans
            rows = np.flatnonzero(which.reshape(-1) == i)
            context = torch.from_numpy(video[rows[0]]).movedim(-1, -3)
            frames = torch.cat([frames for frames, _ in self.dream(context, actions[rows, 1:])])
            out[rows, 1:] = frames.movedim(-3, -1).cpu().numpy()
        return dict(rgb=out)

    def close(self):
        self.dream = None


# ---- what is a good future? ----


CLASSIFIER = "VP2's classifier of the task, or TorchScript: frames (M, 3, 64, 64) in [0, 1] -> logits (M, 1)"


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        first, second = (nn.Conv2d(32, 32, 3, padding=1) for _ in range(2))
        self.cnv = nn.Sequential(first, nn.ReLU(), second)

    def forward(self, x):
        return x + self.cnv(x)


def load_classifier(path, device):
    """Frames (M,3,64,64) in [0, 1] -> logits (M,1) of success: VP2's weights, or any network as TorchScript.

    raises  FileNotFoundError, ValueError.   Source: VP2's conv_predictor.py (names of tensors)"""
    try:
        return load_torchscript(path, device, CLASSIFIER)
    except ValueError as error:
        layers = [nn.Conv2d(3, 32, 3, padding=1)]
        for _ in range(3):
            layers += [Residual(), nn.ReLU()]
        layers += [nn.Conv2d(32, 3, 3, padding=1), nn.Flatten(), nn.Linear(3 * 64 * 64, 1024), nn.ReLU()]
        network = nn.Module()
        network.net = nn.Sequential(*layers, nn.Linear(1024, 1))
        try:
            network.load_state_dict(torch.load(path, map_location=device, weights_only=True))
        except Exception:  # whatever it is, it is neither
            raise error from None
        return network.net.to(device).eval()


class Score:
    """How good imagined futures are, higher is better: a weighted sum of the terms in CONFIG.

    raises  FileNotFoundError, ValueError where a classifier or LPIPS' weights are missing or others"""

    def __init__(self, cfg, device):
        self.cfg = cfg
        self.classifier = load_classifier(cfg.classifier, device) if cfg.classifier else None
        self.lpips = perceptual_loss(device) if cfg.lpips else None

    @torch.no_grad()
    def __call__(self, frames, rewards, goal):
        """Frames (N,h,3,H,W), rewards (N,h) or None, goal (3,H,W) -> (N,).

        Source: VP2's objectives; pixels and logits are summed over the frames, not averaged"""
        cfg, total = self.cfg, torch.zeros(len(frames), device=frames.device)
        if cfg.pixel:
            total -= cfg.pixel * (frames - goal).square().sum((1, 2, 3, 4))
        if cfg.reward:
            if rewards is None:
                raise ValueError("the model predicts no rewards; pass --reward 0")
            total += cfg.reward * rewards.sum(1)
        if self.classifier is not None:
            logits = torch.cat([self.classifier(part) for part in frames.flatten(0, 1).split(1024)])
            if logits.numel() != frames.shape[:2].numel():
                raise ValueError(f"{cfg.classifier} returns {tuple(logits.shape)}; expected {CLASSIFIER}")
            total += cfg.classifier_weight * logits.view(frames.shape[:2]).sum(1)
        if self.lpips is not None:
            parts = [perceptual_distance(f, goal.expand_as(f), self.lpips) for f in frames.split(32)]
            total -= cfg.lpips * torch.cat(parts).sum(1)
        return total


# ---- tasks ----


def make_task(env, i, cfg):
    """Task i: the scripted player's success in some episode, from `lead` decisions before.

    returns  a namespace: start (for env.restore), goal_u8 (H,W,3), places (for env.distance)
    raises   ValueError if the script does not succeed from far enough away"""
    for attempt in range(50):
        env.episode[:] = 50 * i + attempt - 1
        frame, states, won, done = env.reset(), [], 0, False
        while not done and won <= cfg.settle:
            states.append(env.state())
            frame, _, success, ended = env.step(env.expert())
            won, done = won + (won > 0 or bool(success[0])), bool(ended[0])
        if won and success[0] and len(states) >= cfg.lead:
            task = SimpleNamespace(start=states[-cfg.lead], goal_u8=frame[0], places=env.places())
            env.restore(task.start)
            if env.distance(task.places)[0] > 3 * env.tolerance:
                return task
    raise ValueError(f"the script of {cfg.task} hardly ever succeeds from {cfg.lead} decisions away")


def read_goals(path, env):
    """VP2's tasks, a list of namespaces as of `make_task`.   raises  as open_vp2, ValueError"""
    if not hasattr(env, "state_of_vp2"):
        raise ValueError("--goals is for RoboDesk's and robosuite's tasks")
    tasks, (file, names), want = [], open_vp2(path), (env.size, env.size, 3)
    env.reset()  # states hold what files do not say
    with file:
        for name in names:
            try:
                demo = file["data"][name]
                first = int(demo["start_index"][()]) if "start_index" in demo else 0
                start, end = (env.state_of_vp2(demo["states"][k]) for k in (first, -1))
                goal_u8 = vp2_frames(demo)[-1]
            except (OSError, KeyError, IndexError, ValueError) as error:
                raise ValueError(f"{path}, {name} is no task of VP2's: {error}") from None
            if goal_u8.shape != want or goal_u8.dtype != np.uint8:
                got = f"{goal_u8.dtype} {goal_u8.shape}"
                raise ValueError(f"{path}, {name}: goal is {got}; expected uint8 {want}")
            env.restore(end)
            tasks.append(SimpleNamespace(start=start, goal_u8=goal_u8, places=env.places()))
    return tasks


# ---- episodes ----


class Bench:
    """What one process needs to play episodes: environment, model, score, tasks."""

    def __init__(self, cfg):
        self.cfg, self.device = cfg, find_device(cfg.device)
        how = dict(tokenizer=cfg.tokenizer, temperature=cfg.temperature, top_k=cfg.top_k, dtype=cfg.dtype)
        self.world = WorldModel.load(cfg.ckpt, cfg.device, **how)
        self.dream = Dreamer(self.world, 1 / cfg.workers)
        size = self.world.tokenizer.config["resolution"]  # whoever plans sees as much
        self.env = env = make_environment(cfg.task, 1, HELD_OUT + cfg.seed, size, cfg.scene)
        atexit.register(env.close)  # before Python ends, or OpenGL complains
        if not hasattr(env, "foresee"):
            raise ValueError(f"task is {cfg.task!r}; expected push, robosuite_push or one of RoboDesk's")
        if "world_model" in cfg.models and self.world.action_dim != env.action_dim:
            got = self.world.action_dim, env.action_dim
            raise ValueError(f"{cfg.ckpt} takes {got[0]}-D actions, {cfg.task} {got[1]}-D; pass --ckpt")
        self.score = Score(cfg, self.device)
        self.std = np.array(cfg.std or STD.get(cfg.task, DESK_STD), float)
        if self.std.shape != (env.action_dim,):
            raise ValueError(f"std is {cfg.std}; expected {env.action_dim} numbers, one per action dimension")
        self.shape = cfg.candidates or (800 if cfg.task in DESK_MANY else 200), cfg.horizon, env.action_dim
        self.tasks = dict(enumerate(read_goals(cfg.goals, env))) if cfg.goals else {}

    def task(self, i):
        if i not in self.tasks:
            self.tasks[i] = make_task(self.env, i, self.cfg)
        return self.tasks[i]

    def futures(self, model, seen, candidates, places):
        """Frames (n,h,3,H,W) and rewards (n,h) or None that a model expects of candidates, in batches."""
        if model == "world_model":
            context = to_float(np.stack(seen[-self.world.context_frames :]))
            yield from self.dream(context, candidates)
        else:
            frames_u8, rewards, _ = self.env.foresee(candidates, places)
            yield to_float(frames_u8).to(self.device), torch.from_numpy(rewards).to(self.device)

    def judge(self, model, seen, task, candidates):
        """Scores (N,) of candidates (N,h,A); keeps the best one and what is expected of it, (h,3,H,W)."""
        goal, scores = to_float(task.goal_u8).to(self.device), []
        for frames, rewards in self.futures(model, seen, candidates, task.places):
            scores.append(self.score(frames, rewards, goal).cpu().double().numpy())
            if scores[-1].max() > self.best[0]:
                self.best = scores[-1].max(), frames[scores[-1].argmax()].cpu()
        return np.concatenate(scores)

    def play(self, model, seed, i, draw=""):
        """Play task i; draw: path of a GIF.   returns  a record of what came out"""
        cfg, env, task = self.cfg, self.env, self.task(i)
        rng = np.random.default_rng([cfg.seed, seed, i, *model.encode()])
        self.dream.world.generator.manual_seed(int(rng.integers(2**31)))
        env.restore(task.start)
        still, memory, decisions, expected = np.zeros((1, env.action_dim)), {}, [], []
        frame = env.step(still)[0][0]
        seen, distances, seconds = [frame, frame], [env.distance(task.places)[0]], []
        for k in range(cfg.steps):
            if min(distances) < env.tolerance:
                break
            action = still
            if k and model == "random":
                action = rng.normal(size=still.shape) * self.std
            elif k and model == "script":
                action = env.expert()
            elif k:
                began, self.best = time.perf_counter(), (-math.inf, None)
                score = functools.partial(self.judge, model, seen, task)
                plan, memory, told = PLANNERS[cfg.planner](score, memory, self.shape, self.std, cfg, rng)
                seconds.append(time.perf_counter() - began)
                decisions.append((env.state(), *told))
                expected.append(self.best[1])
                action = plan[:1]
            seen.append(env.step(np.clip(action, -1, 1))[0][0])
            distances.append(env.distance(task.places)[0])
        won = min(distances) < env.tolerance
        record = dict(model=model, seed=seed, episode=i, success=bool(won), decisions=len(distances) - 1)
        record.update(first=float(distances[0]), least=float(min(distances)))
        if decisions:
            record["seconds"] = statistics.median(seconds)
            if cfg.planner == "mppi":
                record["ess"] = statistics.mean(size for *_, size in decisions)
        if cfg.diagnose and model == "world_model" and not won:
            record["lacks"] = self.diagnose(decisions, task)
        if draw:
            self.draw(draw, task, seen, expected)
        return record

    def diagnose(self, decisions, task):
        """Why an episode failed: how much of the distance left is owed to the optimizer, the cost, the model.

        In the simulator each candidate comes to some least distance from the goal. What the best of all lacks
        was never sampled; what the favourite of the cost on true frames lacks more, the cost ranked low; what
        the favourite of the model lacks still more, the model imagined wrong. Means over the decisions.
        returns  {reason: distance}.   Source: after appendix C.3"""
        goal, lacks = to_float(task.goal_u8).to(self.device), []
        for state, candidates, scores, _ in decisions:
            self.env.restore(state)
            frames_u8, rewards, distances = self.env.foresee(candidates, task.places)
            futures = to_float(frames_u8).to(self.device), torch.from_numpy(rewards).to(self.device)
            least = distances.min(1)
            favourites = least[self.score(*futures, goal).argmax().item()], least[scores.argmax()]
            lacks.append(np.diff([self.env.tolerance, least.min(), *favourites]))
        return dict(zip(REASONS, np.mean(lacks, 0).tolist(), strict=True))

    def draw(self, path, task, seen, expected):
        """GIF: goal | executed | what is expected of the best candidate, next and last (grey: of none)."""
        seen, h = to_float(np.stack(seen[1:])), len(seen) - 1
        goal = to_float(task.goal_u8).expand_as(seen)
        grey = torch.full_like(seen[:1], 0.5)
        columns = [goal, seen]
        for which in (0, -1) if expected else ():
            column = torch.stack([future[which] for future in expected])
            columns.append(torch.cat([grey.expand(h - len(column), -1, -1, -1), column]))
        save_gif(path, torch.stack(columns), fps=3)


REASONS = "never sampled", "ranked low", "imagined wrong"


@functools.cache
def bench_of(settings):
    return Bench(SimpleNamespace(**dict(settings)))


def play_job(settings, *job):
    return bench_of(settings).play(*job)


def start_worker(threads):
    keep_memory()
    torch.set_num_threads(threads)


def played(settings, workers, jobs):
    """Play all jobs (model, seed, episode, draw), over processes; yields their records as they come."""
    if workers == 1:
        yield from (play_job(settings, *job) for job in jobs)
        return
    threads, context = max(1, (os.cpu_count() or 1) // workers), multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, start_worker, (threads,)) as pool:
        try:
            for future in as_completed([pool.submit(play_job, settings, *job) for job in jobs]):
                yield future.result()
        except BrokenProcessPool:
            raise OSError("a process was killed: too little memory? Lower --workers") from None
        except (ValueError, OSError) as error:
            raise type(error)(str(error)) from None  # without the traceback of another process
        finally:
            for child in multiprocessing.active_children():  # whatever is under way is played again
                child.kill()


def summarize(records, cfg):
    """Records of one model -> its numbers."""
    rates = [statistics.mean(r["success"] for r in records if r["seed"] == s) for s in range(cfg.seeds)]
    row = dict(mean=statistics.mean(rates), min=min(rates), max=max(rates), seeds=rates)
    row["least_distance"] = statistics.mean(r["least"] for r in records)
    for key in ("seconds", "ess"):
        if known := [r[key] for r in records if key in r]:
            row[key] = statistics.median(known)
    if lacks := [r["lacks"] for r in records if "lacks" in r]:
        largest = [max(x, key=x.get) for x in lacks]
        row["failures"] = {reason: largest.count(reason) for reason in REASONS}
        row["lacks"] = {reason: statistics.mean(x[reason] for x in lacks) for reason in REASONS}
    return row


def read_records(path, settings, overwrite=False):
    """What an interrupted run has played.   raises  ValueError if it was another run, unless overwrite"""
    lines = path.read_text().splitlines(True) if path.is_file() else []
    whole = [line for line in lines if line.endswith("\n")]  # a kill tears the last one
    fault = ""
    try:
        first, *records = map(json.loads, whole or ["{}"])
    except json.JSONDecodeError:
        first, records = settings, []
        fault = "is damaged"
    if whole and "ckpt" not in first:
        raise ValueError(f"{path} is no record of plan.py; pass another --out")
    if changed := [k for k in settings if records and first.get(k) != settings[k]]:
        fault = f"is of a run with other {', '.join(changed)}"
    if fault and not overwrite:
        raise ValueError(f"{path} {fault}; pass --overwrite true to delete it, or another --out")
    if fault:
        records = []
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(whole) if records else json.dumps(settings) + "\n")
    return records


def main(cfg):
    require_positive(cfg, "episodes", "seeds", "steps", "lead", "horizon", "iterations", "elites")
    zero_or_more = "settle", "candidates", "gamma", "beta", "momentum", "colour", "gifs", "workers", "seed"
    require_not_negative(cfg, *zero_or_more)
    try:
        cfg.std = tuple(map(float, cfg.std))
    except ValueError:
        raise ValueError(f"std is {','.join(cfg.std)}; expected numbers, one per action dimension") from None
    if min(cfg.std, default=0) < 0:
        raise ValueError(f"std is {cfg.std}; expected 0 or more")
    known = "random", "world_model", "oracle", "script"
    if not cfg.models or set(cfg.models) - set(known):
        raise ValueError(f"models is {','.join(cfg.models)!r}; expected some of {', '.join(known)}")
    if cfg.planner not in PLANNERS:
        raise ValueError(f"planner is {cfg.planner!r}; expected one of {', '.join(PLANNERS)}")
    if cfg.execute not in ("best", "mean"):
        raise ValueError(f"execute is {cfg.execute!r}; expected best or mean")
    device, cfg.models = find_device(cfg.device), tuple(dict.fromkeys(cfg.models))
    if Path(cfg.out).suffix != ".json":
        raise ValueError(f"out is {cfg.out}; expected a .json file")
    ours = json.loads(json.dumps({k: v for k, v in vars(cfg).items() if k not in ELSEWHERE}))
    out = claim(cfg.out, (".jsonl",), cfg.overwrite or read_result(cfg.out).get("settings") == ours)
    claim_folder(beside(out, ""))
    cfg.workers = cfg.workers or (1 if device.type == "cuda" else os.cpu_count() or 1)
    settings = tuple(sorted(vars(cfg).items()))
    bench = bench_of(settings)  # says here what is wrong, and not in each process
    if cfg.goals and len(bench.tasks) < cfg.episodes:
        print(f"{cfg.goals} holds {len(bench.tasks)} tasks")
        cfg.episodes = len(bench.tasks)
    kept = beside(out, ".jsonl")
    jobs = [(m, s, i) for m in cfg.models for s in range(cfg.seeds) for i in range(cfg.episodes)]
    records = read_records(kept, ours, cfg.overwrite)
    done = {(r["model"], r["seed"], r["episode"]): r for r in records}
    records, todo = [done[job] for job in jobs if job in done], [job for job in jobs if job not in done]
    drawn = [str(beside(out, "") / f"{m}-{i}.gif") if s == 0 and i < cfg.gifs else "" for m, s, i in todo]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    coming = played(settings, cfg.workers, [(*job, gif) for job, gif in zip(todo, drawn, strict=True)])
    bar = tqdm(coming, "plan", len(jobs), initial=len(records))
    try:
        with open(kept, "a") as file:
            for record in bar:
                records.append(record)
                file.write(json.dumps(record) + "\n")
                file.flush()
                wins = [r["success"] for r in records if r["model"] == record["model"]]
                bar.set_postfix_str(f"{record['model']} {statistics.mean(wins):.2f}")
    except KeyboardInterrupt:
        raise SystemExit(f"\nwhat was played is kept in {kept}: the same command goes on") from None
    numbers = {m: summarize([r for r in records if r["model"] == m], cfg) for m in cfg.models}
    print(f"\n{cfg.task}: {cfg.episodes} tasks, {cfg.seeds} seeds, {cfg.planner}")
    print(f"{'':14}{'success':>9}{'min':>7}{'max':>7}{'s/decision':>12}")
    for m, row in numbers.items():
        line = f"{m:14}{row['mean']:9.3f}{row['min']:7.2f}{row['max']:7.2f}"
        line += f"{row['seconds']:12.3g}" if "seconds" in row else ""
        print(line + (f"   effective sample size {row['ess']:.1f}" if "ess" in row else ""))
        if "failures" in row:
            parts = (f"{n} {reason} ({row['lacks'][reason]:.3f})" for reason, n in row["failures"].items())
            print("  failed for the most part: " + ", ".join(parts))
    if oracle := numbers.get("oracle", {}).get("mean"):
        numbers["share_of_oracle"] = {m: numbers[m]["mean"] / oracle for m in cfg.models}
    write_result(out, {**numbers, "episodes": cfg.episodes, "settings": ours})


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__, presets=PRESETS))
