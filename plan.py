"""plan.py: model-predictive control in imagination (paper section 4.2; appendices A.4, C.3).

    newest t frames ------------+
                                +--> model --> imagined frames (N,h,3,H,W) --> scores (N,) --+
    N action sequences (N,h,A) -+                                 goal (3,H,W) --^           |
         ^                                                                                   |
         +---- planner: warm start, noise, weights <-----------------------------------------+
                   +--> first action --> environment --> next frame, and again

N candidates, h horizon, A action size, t context frames. The protocol is VP2's (Tian et al. 2023): restore
the start, take a zero action, then `steps` decisions, of which the first is zero. Unlike in VP2, an episode
ends with its success, and the score leaves out the first of 11 frames, which all candidates share.
A new planner is a function like `mppi` in PLANNERS; a new term of the score stands in CONFIG and Score.

Run: python plan.py                                                    PushWorld with the released checkpoint
     python plan.py --preset vp2 --task push_red --ckpt out/gpt.pt     RoboDesk, robosuite: VP2's planner
         [--goals FILE.hdf5 --classifier FILE.pt --pixel 0.5]          and VP2's own tasks and score
Writes OUT (numbers), NAME-episodes.json (records, from which the same command continues), and GIFs."""

import atexit
import functools
import itertools
import json
import math
import os
import signal
import statistics
import time
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from checkpoints import checksum
from common import configure, require_not_negative, require_positive, run
from data import to_float
from envs import make_environment
from envs.base import HELD_OUT
from envs.vp2 import CLASSIFIER, load_classifier, make_task, read_goals
from sample import WorldModel
from support.files import beside, claim, resolve, write_whole
from support.networks import load_torchscript
from support.plan_report import diagnose, draw, tabulate
from support.processes import run_jobs
from support.results import provenance, read_result, write_result

CONFIG = dict(
    preset="push",  # or pusht, pusht_a; or vp2, the benchmark's planner
    task="push_red",  # of RoboDesk; robosuite_push; push or push_anywhere, PushWorld; pusht_anywhere
    ckpt="assets/push-tiny.pt",
    tokenizer="",  # another tokenizer's checkpoint
    out="out/plan/vp2.json",
    overwrite=False,  # begin anew where OUT has other settings; by default that is an error
    models=("random", "world_model", "oracle"),  # oracle: plans in the simulator; or script, nothing
    episodes=50,  # tasks, the same for every seed
    seeds=3,  # of planner and model
    goals="",  # VP2's .hdf5 file of tasks instead of our own
    steps=15,  # decisions
    lead=8,  # decisions of the scripted player from start to goal
    # the planner
    planner="mppi",  # or icem, evolution
    candidates=200,  # per decision, VP2's; it has 800 for open_slide and open_drawer; icem: >= 2 elites
    batch=0,  # candidates imagined at once; 0: all of them
    horizon=10,
    replan=1,  # decisions that are executed of each plan
    countdown=False,  # plan for what is left of the horizon, then for a new one: a goal with a date
    std=(0.0,),  # of the noise on each action dimension; 0: VP2's
    beta=0.5,  # mppi: share of the noise that each step keeps of the one before
    gamma=0.05,  # mppi: how sharply weights fall with the score; of summed squared errors of 64x64 pixels
    iterations=3,  # icem, evolution; candidates are shared out
    decay=1.25,  # icem: each time so many times fewer
    keep=0.3,  # icem: share of the elites that stay for the next iteration and decision
    elites=10,  # icem, evolution
    shrink=0.65,  # evolution: factor of the noise from each iteration to the next
    execute_mean=False,  # icem: the elites' mean instead of the best candidate
    momentum=0.1,  # icem: share of the old mean and deviation
    colour=2.0,  # icem: exponent of the noise's spectrum, 0 is white
    # the score: a weighted sum
    pixel=1.0,  # of minus the squared error to the goal, summed over frames, pixels and colours
    blur=0.0,  # of the same for frames averaged over squares of 8 and of 16 pixels: things may be apart
    latent=0.0,  # of minus the squared distance between latents of the context's encoder
    features="",  # TorchScript: frames (M, 3, H, W) -> features (M, D), such as readout.py's
    features_weight=1.0,  # of minus the squared distance between these
    reward=0.0,  # of the sum of predicted rewards, which are for the pad, wherever push_anywhere has its goal
    classifier="",  # VP2's file, or TorchScript: frames (M, 3, 64, 64) -> logits of success
    classifier_weight=10.0,  # of the sum of these logits
    last=0,  # frames that are scored, the horizon's last ones; 0, or more than it has: all
    diagnose=True,  # simulate the candidates of failed episodes: why did they fail?
    gifs=3,  # episodes to draw, of the first seed
    temperature=-1.0,  # -1: as the checkpoint says
    top_k=-1,  # 0: all codes; -1: as the checkpoint says
    workers=0,  # processes; 0: one per core, on a GPU one
    device="",
    dtype="auto",
    seed=0,  # of tasks
)
# icem's correlated noise succeeds here, mppi's does not. Only the last frames are scored, because the way
# round a block first leads away from the goal.
PUSH = dict(
    task="push_anywhere", out="out/plan/push.json", planner="icem", candidates=60, iterations=2, elites=6,
    execute_mean=True, horizon=8, last=4, lead=7,
)  # fmt: skip
# The benchmark of PushT: goals lie five decisions ahead. It allows ten (protocol B), or goes on until success
# (A); here for 25.
PUSHT = dict(
    task="pusht_anywhere", ckpt="assets/pusht-tiny.pt", out="out/plan/pusht.json", planner="evolution",
    candidates=60, iterations=2, horizon=5, countdown=True, last=1, lead=5, steps=10, pixel=0.0,
    features="assets/pusht-readout.pt", temperature=0.0,
)  # fmt: skip
PUSHT_A = dict(PUSHT, out="out/plan/pusht-a.json", steps=25)
PRESETS = dict(push=PUSH, pusht=PUSHT, pusht_a=PUSHT_A, vp2={})
MODELS = "nothing", "random", "script", "world_model", "oracle"
STD = {2: (0.5, 0.5), 4: (0.5, 0.5, 0.5, 0.0), 5: (0.5, 0.5, 0.5, 0.1, 0.1), 10: (0.4,) * 10}  # mostly VP2's
BLUR = 8, 16
FEATURES = "TorchScript: frames (M, 3, H, W) in [0, 1] -> features (M, D)"
RUN_SETTINGS = "workers out overwrite device gifs preset given models episodes seeds diagnose".split()


def shifted(plan, h):
    """A plan (..., h or h+1, A) one step later, (..., h, A), its last row repeated if need be."""
    return np.concatenate([plan[..., 1:, :], plan[..., -1:, :]], -2)[..., :h, :]


def mppi(score, memory, shape, std, cfg, rng):
    """Model-predictive path integral control (Williams et al. 2016), as in VP2's mppi.py and sampler.py.

    score    function of candidates (N,h,A) in [-1, 1] -> (N,), higher is better
    memory   what the last decision returned, {} at first;  shape (N,h,A);  std (A,)
    returns  plan (h,A), whose first row is executed, and memory"""
    mean = shifted(memory["mean"], shape[1]) if memory else np.zeros(shape[1:])
    noise = rng.normal(size=shape) * std
    for k in range(1, shape[1]):
        noise[:, k] = cfg.beta * noise[:, k - 1] + (1 - cfg.beta) * noise[:, k]
    candidates = np.clip(mean + noise, -1, 1)
    scores = score(candidates)
    weights = np.exp(cfg.gamma * (scores - scores.max()))
    plan = np.tensordot(weights / weights.sum(), candidates, 1)
    return plan, dict(mean=plan)


def coloured(shape, exponent, rng):
    """Noise (N,h,A) of deviation 1, whose power falls with frequency as f^-exponent."""
    N, h, A = shape
    f = np.maximum(np.fft.rfftfreq(h), 1 / h)
    real, imaginary = rng.normal(size=(2, N, len(f), A))
    noise = np.fft.irfft((real + 1j * imaginary) * f[:, None] ** (-exponent / 2), h, 1)
    return noise / noise.std()


def icem(score, memory, shape, std, cfg, rng):
    """Improved cross-entropy method (Pinneri et al. 2020, Algorithm 1), with arguments as of `mppi`."""
    N, h, A = shape
    n_kept = math.ceil(cfg.keep * cfg.elites)
    first = N / sum(cfg.decay**-i for i in range(cfg.iterations))
    mean = shifted(memory["mean"], h) if memory else np.zeros((h, A))
    deviation = np.tile(std, (h, 1))
    elites = np.zeros((0, h, A))
    elite_scores = np.zeros(0)
    for i in range(cfg.iterations):
        n = max(round(first * cfg.decay**-i), 2 * cfg.elites)
        candidates = np.clip(mean + deviation * coloured((n, h, A), cfg.colour, rng), -1, 1)
        if i == 0 and memory:
            candidates[:n_kept] = shifted(memory["elites"], h)  # scored anew, after one more frame
        if i == cfg.iterations - 1:
            candidates[-1] = mean
        pool = np.concatenate([candidates, elites[:n_kept]])
        pool_scores = np.concatenate([score(candidates), elite_scores[:n_kept]])
        order = np.argsort(-pool_scores)[: cfg.elites]
        elites = pool[order]
        elite_scores = pool_scores[order]
        mean = cfg.momentum * mean + (1 - cfg.momentum) * elites.mean(0)
        deviation = cfg.momentum * deviation + (1 - cfg.momentum) * elites.std(0)
    return mean if cfg.execute_mean else elites[0], dict(mean=mean, elites=elites[:n_kept])


def evolution(score, memory, shape, std, cfg, rng):
    """A (mu + lambda) evolution strategy (Schwefel 1981), with arguments as of `mppi`: every candidate is one
    of the best so far and noise, which shrinks.

    Unlike those of a mean, candidates that go round a block on different sides stay apart."""
    N, h, A = shape
    n = max(N // cfg.iterations, cfg.elites)
    elites = shifted(memory["elites"], h) if memory else np.zeros((1, h, A))
    scores = np.full(len(elites), -np.inf)  # not scored yet
    for i in range(cfg.iterations):
        noise = std * cfg.shrink**i * rng.normal(size=(n, h, A))
        candidates = np.clip(elites[rng.integers(len(elites), size=n)] + noise, -1, 1)
        if i == 0 and memory:
            candidates[: len(elites)] = elites
        pool = np.concatenate([elites, candidates])
        pool_scores = np.concatenate([scores, score(candidates)])
        order = np.argsort(-pool_scores)[: cfg.elites]
        elites = pool[order]
        scores = pool_scores[order]
    return elites[0], dict(elites=elites)


PLANNERS = dict(mppi=mppi, icem=icem, evolution=evolution)


def imagine_candidates(world, frames, candidates, batch=0, last=0):
    """Imagine candidates (N,h,A) as branches of one context (t,3,H,W), `batch` at once (0: all of them).

    last    so many frames are decoded, the newest; 0: all
    yields  frames (n,last,3,H,W), rewards (n,h) or None.   Moves `world`: pass a session if others use it"""
    h = candidates.shape[1]
    keeps_context = h <= world.gpt.config["segment_length"] - world.context_frames
    n_branches = 0
    for chunk in torch.as_tensor(candidates).split(batch or len(candidates)):
        if len(chunk) == n_branches and keeps_context:
            world.rewind()
        else:
            n_branches = len(chunk)
            world.reset(frames[None], n_branches, h)
        yield world.rollout(chunk, h, min(last, h))[:2]


class Score:
    """How good futures are, higher is better: the weighted sum of the terms in CONFIG (VP2's objectives)."""

    def __init__(self, cfg, device, tokenizer=None):
        self.cfg = cfg
        self.tokenizer = tokenizer
        self.classifier = load_classifier(cfg.classifier, device) if cfg.classifier else None
        self.features = load_torchscript(cfg.features, device, FEATURES) if cfg.features else None

    @torch.no_grad()
    def __call__(self, frames, rewards, goal):
        """Frames (N,h,3,H,W), rewards (N,h) or None, goal (3,H,W) -> (N,)."""
        cfg = self.cfg
        last = cfg.last or frames.shape[1]
        frames = frames[:, -last:]
        difference = frames - goal
        total = -cfg.pixel * difference.square().sum((1, 2, 3, 4))
        for side in BLUR if cfg.blur else ():
            mean = F.avg_pool2d(difference.flatten(0, 1), side)
            total -= cfg.blur * side**2 * mean.square().sum((1, 2, 3)).view(len(frames), -1).sum(1)
        if cfg.latent:
            z = torch.cat([self.tokenizer.encode_context(part)[0] for part in frames.split(64)])
            z_goal, _ = self.tokenizer.encode_context(goal[None, None])
            total -= cfg.latent * (z - z_goal).square().sum((1, 2, 3))
        if self.features is not None:
            f = torch.cat([self.features(part) for part in frames.flatten(0, 1).split(1024)])
            distance = (f - self.features(goal[None])).square().flatten(1).sum(1)
            total -= cfg.features_weight * distance.view(frames.shape[:2]).sum(1)
        if cfg.reward and rewards is None:
            raise ValueError("the model predicts no rewards; pass --reward 0")
        if cfg.reward:
            total += cfg.reward * rewards[:, -last:].sum(1)
        if self.classifier is not None:
            logits = torch.cat([self.classifier(part) for part in frames.flatten(0, 1).split(1024)])
            if logits.numel() != frames.shape[:2].numel():
                raise ValueError(f"{cfg.classifier} returns {tuple(logits.shape)}; expected {CLASSIFIER}")
            total += cfg.classifier_weight * logits.view(frames.shape[:2]).sum(1)
        return total


class Bench:
    """What a process needs to play episodes."""

    def __init__(self, cfg):
        self.cfg = cfg
        sampling = dict(temperature=cfg.temperature, top_k=cfg.top_k, dtype=cfg.dtype)
        self.world = WorldModel.load(cfg.ckpt, cfg.device, cfg.tokenizer, **sampling)
        size = self.world.tokenizer.config["resolution"]
        self.env = make_environment(cfg.task, 1, HELD_OUT + cfg.seed, size)
        atexit.register(self.env.close)  # before Python ends, or OpenGL complains
        A = self.env.action_dim
        if not hasattr(self.env, "foresee"):
            known = "push, pusht, robosuite_push or one of RoboDesk's"
            raise ValueError(f"task is {cfg.task!r}; expected a world that can be planned in: {known}")
        if self.world.goal_conditioned:
            raise ValueError(f"{cfg.ckpt} is goal-conditioned; planning needs a model without goals")
        if "world_model" in cfg.models and self.world.action_dim != A:
            takes = f"{cfg.ckpt} takes {self.world.action_dim}-D actions"
            raise ValueError(f"{takes}, {cfg.task} {A}-D; pass --ckpt")
        self.std = np.array(cfg.std if any(cfg.std) else STD.get(A, cfg.std))
        if len(self.std) != A or self.std.min() < 0:
            raise ValueError(f"std is {cfg.std}; expected {A} numbers of 0 or more, one per action dimension")
        self.score = Score(cfg, self.world.device, self.world.tokenizer)
        self.goals = read_goals(cfg.goals, self.env) if cfg.goals else []

    def simulate(self, candidates, task):
        """True futures of candidates: frames (N,last,3,H,W), rewards (N,h); and distances (N,h), in numpy."""
        frames_u8, rewards, distances = self.env.foresee(candidates, task.positions, self.cfg.last)
        device = self.world.device
        return to_float(frames_u8).to(device), torch.from_numpy(rewards).to(device), distances


@functools.cache
def open_bench(settings):
    """The Bench of a process, opened once;  settings: cfg as JSON."""
    return Bench(SimpleNamespace(**json.loads(settings)))


class Decision:
    """One decision: `score` for its planner, and a record of what was scored, for `draw` and `diagnose`."""

    def __init__(self, bench, model, task, frames_u8, made_at=0):
        self.bench = bench
        self.model = model
        self.task = task
        self.made_at = made_at  # number of the decision in its episode
        self.context = to_float(np.stack(frames_u8[-bench.world.context_frames :]))
        self.state = bench.env.state()
        self.candidates = []  # as the planner drew them, iteration by iteration
        self.scores = np.zeros(0)
        self.best_future = None  # frames (h or last,3,H,W) of the best candidate

    def score(self, candidates):
        """Candidates (N,h,A) -> scores (N,) of the futures that the model expects."""
        if self.model == "oracle":
            futures = [self.bench.simulate(candidates, self.task)[:2]]
        else:
            world = self.bench.world
            cfg = self.bench.cfg
            futures = imagine_candidates(world, self.context, candidates, cfg.batch, cfg.last)
        for frames, rewards in futures:
            scores = self.bench.score(frames, rewards, self.task.goal).cpu().double().numpy()
            if scores.max() > self.scores.max(initial=-math.inf):
                self.best_future = frames[scores.argmax()].cpu()
            self.scores = np.append(self.scores, scores)
        self.candidates.append(candidates)
        return self.scores[-len(candidates) :]

    def plan(self, memory, h, rng):
        """A plan (h, A) and the planner's memory, as of `mppi`; keeps the seconds that it took."""
        began = time.perf_counter()
        cfg = self.bench.cfg
        shape = cfg.candidates, h, len(self.bench.std)
        result = PLANNERS[cfg.planner](self.score, memory, shape, self.bench.std, cfg, rng)
        self.seconds = time.perf_counter() - began
        return result


def play(settings, model, seed, i):
    """Play task i with one of MODELS; returns a record: success, least distance from the goal, seconds."""
    bench = open_bench(settings)
    cfg = bench.cfg
    env = bench.env
    task = bench.goals[i] if cfg.goals else make_task(env, i, cfg.lead)
    task.goal = to_float(task.goal_u8).to(bench.world.device)
    rng = np.random.default_rng([cfg.seed, seed, i, *model.encode()])
    bench.world.generator.manual_seed(int(rng.integers(2**31)))
    no_action = np.zeros((1, env.action_dim))
    decisions = []
    memory = {}
    rows = []  # of the plan, that are left to be executed
    env.restore(task.start)
    frames_u8 = task.frames_u8[:] or [env.step(no_action)[0][0]] * max(2, bench.world.context_frames)
    history = len(frames_u8)
    distances = [env.distance(task.positions)[0]]
    for k in range(cfg.steps):
        if distances[-1] < env.tolerance:
            break
        if model == "nothing" or k == 0 and not task.frames_u8:
            action = no_action
        elif model == "random":
            action = rng.normal(size=no_action.shape) * bench.std
        elif model == "script":
            action = env.expert()
        elif rows:
            action = rows.pop(0)
        else:
            decisions.append(Decision(bench, model, task, frames_u8, k))
            h = cfg.horizon
            if cfg.countdown:
                h -= (k - decisions[0].made_at) % h
                memory = memory if h < cfg.horizon else {}
            plan, memory = decisions[-1].plan(memory, h, rng)
            action, *rows = plan[: cfg.replan, None]
            memory = memory if cfg.replan == 1 else {}  # it is of the decision before
        frames_u8.append(env.step(np.clip(action, -1, 1))[0][0])
        distances.append(env.distance(task.positions)[0])
    won = bool(distances[-1] < env.tolerance)
    record = dict(model=model, seed=seed, episode=i, success=won, least=float(min(distances)))
    if decisions:
        record["seconds"] = statistics.median(d.seconds for d in decisions)
    if decisions and cfg.diagnose and model == "world_model" and not won:
        record["shortfall"] = diagnose(bench, decisions, task)
    if seed == 0 and i < cfg.gifs:
        draw(beside(cfg.out, "") / f"{model}-{i}.gif", task.goal, frames_u8[history - 1 :], decisions)
    return record


def check(cfg):
    require_positive(cfg, "episodes", "seeds", "steps", "lead", "candidates", "horizon")
    require_positive(cfg, "iterations", "elites", "decay", "replan")
    require_not_negative(cfg, "batch", "gamma", "colour", "gifs", "workers", "seed", "last")
    require_not_negative(cfg, "beta", "momentum", "keep", most=1)
    if not cfg.models or set(cfg.models) - set(MODELS):
        raise ValueError(f"models is {','.join(cfg.models)!r}; expected some of {', '.join(MODELS)}")
    if cfg.planner not in PLANNERS:
        raise ValueError(f"planner is {cfg.planner!r}; expected one of {', '.join(PLANNERS)}")
    if not cfg.out.endswith(".json"):
        raise ValueError(f"out is {cfg.out}; expected a .json file")


def main(cfg):
    check(cfg)
    provenance()  # of the code that starts
    cfg.out = str(resolve(cfg.out))
    settings = json.dumps(vars(cfg))
    ours = {k: v for k, v in json.loads(settings).items() if k not in RUN_SETTINGS}  # of records
    records_file = beside(cfg.out, "-episodes.json")
    saved = read_result(records_file)
    continues = saved.get("settings") == ours
    claim(cfg.out, ("-episodes.json",), cfg.overwrite or continues)
    bench = open_bench(settings)  # an error comes once, not from each process
    world = bench.world
    weights = checksum([*world.tokenizer.parameters(), *world.gpt.parameters()])
    model = dict(weights=weights, temperature=world.temperature, top_k=world.top_k)
    is_same_model = saved.get("model") == model
    if continues and not is_same_model and not cfg.overwrite:
        raise ValueError(f"{records_file} is of another model at {cfg.ckpt}; --overwrite true replaces it")
    workers = cfg.workers or (1 if world.device.type == "cuda" else os.cpu_count() or 1)
    episodes = min(cfg.episodes, len(bench.goals)) if cfg.goals else cfg.episodes
    records = {}
    for record in saved["records"] if continues and is_same_model else ():
        records[record["model"], record["seed"], record["episode"]] = record
    jobs = list(itertools.product(cfg.models, range(cfg.seeds), range(episodes)))
    todo = [job for job in jobs if job not in records]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        played = run_jobs(functools.partial(play, settings), todo, workers)
        for record in tqdm(played, "plan", len(jobs), initial=len(jobs) - len(todo)):
            records[record["model"], record["seed"], record["episode"]] = record
            log = dict(settings=ours, model=model, records=[*records.values()])
            write_whole(records_file, json.dumps(log).encode())
    except KeyboardInterrupt:
        raise SystemExit(f"\n{records_file} keeps the episodes played; the same command continues") from None
    print(f"\n{cfg.task}: {episodes} tasks, {cfg.seeds} seeds, {cfg.planner}")
    numbers = tabulate([records[job] for job in jobs], cfg.models, cfg.seeds)
    write_result(cfg.out, {**numbers, "episodes": episodes, "settings": ours})


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__, presets=PRESETS))
