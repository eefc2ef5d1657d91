"""plan.py: visual planning: model-predictive control in imagination (paper section 4.2; appendices A.4, C.3).

    newest t frames ------------+
                                +--> model --> imagined frames (N,h,3,H,W) --> scores (N,) --+
    N action sequences (N,h,A) -+                                 goal (3,H,W) --^           |
         ^                                                                                   |
         +---- planner: warm start, noise, weights <-----------------------------------------+
                   +--> first action --> environment --> next frame, and again

N candidates, h horizon, A action size, t context frames. Frames are in [0, 1].

The protocol is VP2's (Tian et al. 2023): restore the start, fill the history with the frame after an
uncounted zero action, take `steps` decisions, of which the first is zero and the others are planned; it is a
success if the criterion holds at any moment. Unlike in VP2, an episode ends with its success, and the score
leaves out the first of 11 frames, which all candidates share.

A new planner is a function like `mppi`, (score, memory, shape, std, cfg, rng) -> plan, memory, in PLANNERS;
a new term of the score is a weight in CONFIG and its lines in Score.__call__.

Run: python plan.py                                                    PushWorld with the released checkpoint
     python plan.py --preset vp2 --task push_red --ckpt out/gpt.pt     RoboDesk, robosuite: VP2's planner
         [--goals FILE.hdf5 --classifier FILE.pt --pixel 0.5]          and VP2's own tasks and score
Writes OUT (numbers), NAME-episodes.json (records, from which the same command continues), and GIFs: goal |
executed | what the model expects of its best candidate, next and at its end."""

import atexit
import functools
import itertools
import json
import math
import multiprocessing
import os
import signal
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import numpy as np
import torch
from tqdm import tqdm

from common import configure, require_not_negative, require_positive, run
from data import to_float
from envs import make_environment
from envs.base import HELD_OUT
from envs.vp2 import CLASSIFIER, load_classifier, make_task, read_goals
from evaluate import perceptual_distance
from sample import WorldModel
from support.devices import keep_memory
from support.files import beside, claim, resolve, write_whole
from support.networks import perceptual_loss
from support.pictures import save_gif
from support.results import read_result, write_result

CONFIG = dict(
    preset="push",  # or vp2, the benchmark's planner
    task="push_red",  # of RoboDesk; robosuite_push; push_anywhere of PushWorld, or push, onto the pad
    ckpt="assets/push-tiny.pt",
    tokenizer="",  # another tokenizer's checkpoint
    out="out/plan/vp2.json",
    overwrite=False,  # begin anew where OUT has other settings; by default that is an error
    models=("random", "world_model", "oracle"),  # oracle: plans in the simulator; or script
    episodes=50,  # tasks, the same for every seed
    seeds=3,  # of planner and model
    goals="",  # VP2's .hdf5 file of tasks instead of our own
    steps=15,  # decisions
    lead=8,  # decisions of the scripted player from start to goal
    # the planner
    planner="mppi",  # or icem
    candidates=200,  # per decision, VP2's; it has 800 for open_slide and open_drawer; icem: >= 2 elites
    batch=0,  # candidates imagined at once; 0: all of them
    horizon=10,
    std=(0.0,),  # of the noise on each action dimension; 0: VP2's
    beta=0.5,  # mppi: share of the noise that each step keeps of the one before
    gamma=0.05,  # mppi: how sharply weights fall with the score; of summed squared errors of 64x64 pixels
    iterations=3,  # icem; candidates are shared out, each time 1.25 times fewer
    elites=10,  # icem
    execute_mean=False,  # icem: the elites' mean instead of the best candidate
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
    workers=0,  # processes; 0: one per core, on a GPU one
    device="",
    dtype="auto",
    seed=0,  # of tasks
)
PUSH = dict(  # coloured noise finds its way where mppi's does not
    task="push_anywhere", out="out/plan/push.json", planner="icem", candidates=60, iterations=2, elites=6,
    execute_mean=True, horizon=8, lead=7,
)  # fmt: skip
PRESETS = dict(push=PUSH, vp2={})
MODELS = "random", "world_model", "oracle", "script"
STD = {2: (0.5, 0.5), 4: (0.5, 0.5, 0.5, 0.0), 5: (0.5, 0.5, 0.5, 0.1, 0.1)}  # VP2's, by the action size
RUN_SETTINGS = "workers out overwrite device gifs preset given models episodes seeds diagnose".split()


# ---- planners ----


def shifted(plan):
    """A plan (..., h, A) one step later, its last row repeated."""
    return np.concatenate([plan[..., 1:, :], plan[..., -1:, :]], -2)


def mppi(score, memory, shape, std, cfg, rng):
    """Model-predictive path integral control, VP2's planner: one iteration of noise around the last plan.

    score    function of candidates (N,h,A) in [-1, 1] -> (N,), higher is better
    memory   what the last decision returned, {} at first;  shape (N,h,A);  std (A,)
    returns  plan (h,A), whose first row is executed, and memory
    Source: Williams et al. 2016; VP2's mppi.py and sampler.py"""
    mean = shifted(memory["mean"]) if memory else np.zeros(shape[1:])
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
    """Improved cross-entropy method: fit mean and deviation of coloured noise to the elites, a few times.

    The best elites stay for the next iteration, and are scored anew in the next decision; the mean is a
    candidate of the last iteration. The plan is the best candidate or (execute_mean) the elites' mean, about
    which a learned model errs less.
    Arguments and results are those of `mppi`.   Source: Pinneri et al. 2020, Algorithm 1"""
    N, h, A = shape
    n_kept = math.ceil(0.3 * cfg.elites)
    first = N / sum(1.25**-i for i in range(cfg.iterations))
    mean = shifted(memory["mean"]) if memory else np.zeros((h, A))
    deviation = np.tile(std, (h, 1))
    elites = np.zeros((0, h, A))
    elite_scores = np.zeros(0)
    for i in range(cfg.iterations):
        n = max(round(first * 1.25**-i), 2 * cfg.elites)
        candidates = np.clip(mean + deviation * coloured((n, h, A), cfg.colour, rng), -1, 1)
        if i == 0 and memory:
            candidates[:n_kept] = shifted(memory["elites"])
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


PLANNERS = dict(mppi=mppi, icem=icem)


# ---- futures and their scores ----


def imagine_candidates(world, frames, candidates, batch=0):
    """Imagine candidates (N,h,A) as branches of one context (t,3,H,W), `batch` at once (0: all of them).

    yields  frames (n,h,3,H,W), rewards (n,h) or None.   Moves `world`: pass a session if others use it"""
    h = candidates.shape[1]
    keeps_context = h <= world.gpt.config["segment_length"] - world.context_frames
    n_branches = 0
    for chunk in torch.as_tensor(candidates).split(batch or len(candidates)):
        if len(chunk) == n_branches and keeps_context:
            world.rewind()
        else:
            n_branches = len(chunk)
            world.reset(frames[None], n_branches, h)
        imagined, rewards, _ = world.rollout(chunk, h)
        yield imagined, rewards


class Score:
    """How good futures are, higher is better: the weighted sum of the terms in CONFIG.

    Source: VP2's objectives, which sum pixels and logits over the frames, not average them
    raises  FileNotFoundError, ValueError where a classifier or LPIPS' weights are missing or damaged"""

    def __init__(self, cfg, device):
        self.cfg = cfg
        self.classifier = load_classifier(cfg.classifier, device) if cfg.classifier else None
        self.lpips = perceptual_loss(device) if cfg.lpips else None

    @torch.no_grad()
    def __call__(self, frames, rewards, goal):
        """Frames (N,h,3,H,W), rewards (N,h) or None, goal (3,H,W) -> (N,)."""
        cfg = self.cfg
        total = torch.zeros(len(frames), device=frames.device)
        if cfg.pixel:
            total -= cfg.pixel * (frames - goal).square().sum((1, 2, 3, 4))
        if cfg.reward and rewards is None:
            raise ValueError("the model predicts no rewards; pass --reward 0")
        if cfg.reward:
            total += cfg.reward * rewards.sum(1)
        if self.classifier is not None:
            logits = torch.cat([self.classifier(part) for part in frames.flatten(0, 1).split(1024)])
            if logits.numel() != frames.shape[:2].numel():
                raise ValueError(f"{cfg.classifier} returns {tuple(logits.shape)}; expected {CLASSIFIER}")
            total += cfg.classifier_weight * logits.view(frames.shape[:2]).sum(1)
        if self.lpips is not None:
            distances = [perceptual_distance(f, goal.expand_as(f), self.lpips) for f in frames.split(32)]
            total -= cfg.lpips * torch.cat(distances).sum(1)
        return total


# ---- episodes ----


@functools.cache
def open_bench(settings):
    """What a process needs to play episodes, opened once: cfg, world, env, score, std, shape, goals.

    settings  cfg as JSON;  raises  ValueError if checkpoint, task and settings do not fit together"""
    keep_memory()
    cfg = SimpleNamespace(**json.loads(settings))
    sampling = dict(temperature=cfg.temperature, top_k=cfg.top_k, dtype=cfg.dtype)
    world = WorldModel.load(cfg.ckpt, cfg.device, cfg.tokenizer, **sampling)
    env = make_environment(cfg.task, 1, HELD_OUT + cfg.seed, world.tokenizer.config["resolution"])
    atexit.register(env.close)  # before Python ends, or OpenGL complains
    A = env.action_dim
    if not hasattr(env, "foresee"):
        raise ValueError(f"task is {cfg.task!r}; expected push, robosuite_push or one of RoboDesk's")
    if "world_model" in cfg.models and world.action_dim != A:
        raise ValueError(f"{cfg.ckpt} takes {world.action_dim}-D actions, {cfg.task} {A}-D; pass --ckpt")
    std = np.array(cfg.std if any(cfg.std) else STD[A])
    if len(std) != A or std.min() < 0:
        raise ValueError(f"std is {cfg.std}; expected {A} numbers of 0 or more, one per action dimension")
    score = Score(cfg, world.device)
    shape = cfg.candidates, cfg.horizon, A
    goals = read_goals(cfg.goals, env) if cfg.goals else []
    return SimpleNamespace(cfg=cfg, world=world, env=env, score=score, std=std, shape=shape, goals=goals)


def simulate(bench, candidates, task):
    """True futures of candidates: frames (N,h,3,H,W), rewards (N,h); and distances (N,h), in numpy."""
    frames_u8, rewards, distances = bench.env.foresee(candidates, task.positions)
    device = bench.world.device
    return to_float(frames_u8).to(device), torch.from_numpy(rewards).to(device), distances


class Decision:
    """One decision: `score` for its planner, and a record of what was scored, for `draw` and `diagnose`."""

    def __init__(self, bench, model, task, frames_u8):
        self.bench = bench
        self.model = model
        self.task = task
        self.context = to_float(np.stack(frames_u8[-bench.world.context_frames :]))
        self.state = bench.env.state()
        self.candidates = np.zeros((0, *bench.shape[1:]))
        self.scores = np.zeros(0)
        self.best_future = None  # frames (h,3,H,W) of the best candidate

    def score(self, candidates):
        """Candidates (N,h,A) -> scores (N,) of the futures that the model expects."""
        bench = self.bench
        if self.model == "oracle":
            futures = [simulate(bench, candidates, self.task)[:2]]
        else:
            futures = imagine_candidates(bench.world, self.context, candidates, bench.cfg.batch)
        for frames, rewards in futures:
            scores = bench.score(frames, rewards, self.task.goal).cpu().double().numpy()
            if scores.max() > self.scores.max(initial=-math.inf):
                self.best_future = frames[scores.argmax()].cpu()
            self.scores = np.append(self.scores, scores)
        self.candidates = np.concatenate([self.candidates, candidates])
        return self.scores[-len(candidates) :]


def play(settings, model, seed, i):
    """Play task i with one of MODELS; draw it if it is among the first seed's GIFs.

    settings  cfg as JSON;  returns  a record: success, least distance from the goal, why it failed"""
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
    env.restore(task.start)
    frame_u8 = env.step(no_action)[0][0]
    frames_u8 = [frame_u8, frame_u8]  # the history
    distances = [env.distance(task.positions)[0]]
    for k in range(cfg.steps):
        if distances[-1] < env.tolerance:
            break
        if k == 0:
            action = no_action
        elif model == "random":
            action = rng.normal(size=no_action.shape) * bench.std
        elif model == "script":
            action = env.expert()
        else:
            decision = Decision(bench, model, task, frames_u8)
            plan, memory = PLANNERS[cfg.planner](decision.score, memory, bench.shape, bench.std, cfg, rng)
            decisions.append(decision)
            action = plan[:1]
        frames_u8.append(env.step(np.clip(action, -1, 1))[0][0])
        distances.append(env.distance(task.positions)[0])
    won = bool(distances[-1] < env.tolerance)
    record = dict(model=model, seed=seed, episode=i, success=won, least=float(min(distances)))
    if decisions and cfg.diagnose and model == "world_model" and not won:
        record["shortfall"] = diagnose(bench, decisions, task)
    if seed == 0 and i < cfg.gifs:
        draw(beside(cfg.out, "") / f"{model}-{i}.gif", task, frames_u8[1:], decisions)
    return record


def draw(path, task, frames_u8, decisions):
    """GIF: goal | executed | first | last frame of each decision's best future (grey: no decision)."""
    executed = to_float(np.stack(frames_u8))
    columns = [task.goal.cpu().expand_as(executed), executed]
    if decisions:
        grey = torch.full_like(executed[: len(executed) - len(decisions)], 0.5)
        for k in (0, -1):
            columns.append(torch.cat([grey, torch.stack([d.best_future[k] for d in decisions])]))
    save_gif(path, torch.stack(columns), fps=3)


def diagnose(bench, decisions, task):
    """Why an episode failed: {reason: distance}, means over its decisions (after appendix C.3).

    The simulator tells how near each candidate comes to the goal. What the nearest one lacks to success was
    `never sampled`; what the best by score on true frames lacks more was `ranked low`; what the best by the
    model's frames lacks still more was `imagined wrong`."""
    gaps = []
    for decision in decisions:
        bench.env.restore(decision.state)
        frames, rewards, distances = simulate(bench, decision.candidates, task)
        least = distances.min(1)
        of_score = least[bench.score(frames, rewards, task.goal).argmax().item()]
        of_model = least[decision.scores.argmax()]
        gaps.append(np.diff([bench.env.tolerance, least.min(), of_score, of_model]))
    never, low, wrong = np.mean(gaps, 0).tolist()
    return {"never sampled": never, "ranked low": low, "imagined wrong": wrong}


# ---- many episodes ----


def play_all(jobs, settings, workers):
    """Play jobs (model, seed, i) in several processes; yields their records in the order of completion."""
    if workers == 1:
        for job in jobs:
            yield play(settings, *job)
        return
    threads = max(1, (os.cpu_count() or 1) // workers)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, torch.set_num_threads, (threads,)) as pool:
        pending = [pool.submit(play, settings, *job) for job in jobs]
        try:
            for future in as_completed(pending):
                yield future.result()
        except BrokenProcessPool:
            raise OSError("a process was killed: too little memory? Lower --batch or --workers") from None
        except (ValueError, OSError) as error:
            raise type(error)(str(error)) from None  # without the traceback of another process
        finally:
            for child in multiprocessing.active_children():  # the same command plays these episodes again
                child.kill()


def summarize(records, seeds):
    """Records of one model -> its numbers; mean, min and max are taken over the seeds' success rates."""
    rates = []
    for seed in range(seeds):
        rates.append(statistics.mean(r["success"] for r in records if r["seed"] == seed))
    row = dict(mean=statistics.mean(rates), min=min(rates), max=max(rates), seeds=rates)
    row["least_distance"] = statistics.mean(r["least"] for r in records)
    shortfalls = [r["shortfall"] for r in records if "shortfall" in r]
    if shortfalls:
        largest = [max(shortfall, key=shortfall.get) for shortfall in shortfalls]
        row["failures"] = {reason: largest.count(reason) for reason in shortfalls[0]}
        row["shortfall"] = {k: statistics.mean(s[k] for s in shortfalls) for k in shortfalls[0]}
    return row


def check(cfg):
    """Raise ValueError at settings out of range."""
    require_positive(cfg, "episodes", "seeds", "steps", "lead", "candidates", "horizon")
    require_positive(cfg, "iterations", "elites")
    require_not_negative(cfg, "batch", "gamma", "colour", "gifs", "workers", "seed")
    require_not_negative(cfg, "beta", "momentum", most=1)
    if not cfg.models or set(cfg.models) - set(MODELS):
        raise ValueError(f"models is {','.join(cfg.models)!r}; expected some of {', '.join(MODELS)}")
    if cfg.planner not in PLANNERS:
        raise ValueError(f"planner is {cfg.planner!r}; expected one of {', '.join(PLANNERS)}")
    if not cfg.out.endswith(".json"):
        raise ValueError(f"out is {cfg.out}; expected a .json file")


def main(cfg):
    check(cfg)
    cfg.out = str(resolve(cfg.out))
    settings = json.dumps(vars(cfg))
    ours = {k: v for k, v in json.loads(settings).items() if k not in RUN_SETTINGS}  # what episodes depend on
    records_file = beside(cfg.out, "-episodes.json")
    saved = read_result(records_file)
    continues = saved.get("settings") == ours
    claim(cfg.out, ("-episodes.json",), cfg.overwrite or continues)
    bench = open_bench(settings)  # an error comes once, not from each process
    workers = cfg.workers or (1 if bench.world.device.type == "cuda" else os.cpu_count() or 1)
    episodes = min(cfg.episodes, len(bench.goals)) if cfg.goals else cfg.episodes

    records = {}
    for record in saved["records"] if continues else ():
        records[record["model"], record["seed"], record["episode"]] = record
    jobs = list(itertools.product(cfg.models, range(cfg.seeds), range(episodes)))
    todo = [job for job in jobs if job not in records]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    playing = play_all(todo, settings, workers)
    try:
        for record in tqdm(playing, "plan", len(jobs), initial=len(jobs) - len(todo)):
            records[record["model"], record["seed"], record["episode"]] = record
            content = dict(settings=ours, records=list(records.values()))
            write_whole(records_file, json.dumps(content).encode())
    except KeyboardInterrupt:
        raise SystemExit(f"\n{records_file} keeps the episodes played; the same command continues") from None

    print(f"\n{cfg.task}: {episodes} tasks, {cfg.seeds} seeds, {cfg.planner}")
    print(f"{'':14}{'success':>9}{'min':>7}{'max':>7}")
    numbers = {}
    for model in cfg.models:
        row = summarize([records[job] for job in jobs if job[0] == model], cfg.seeds)
        print(f"{model:14}{row['mean']:9.3f}{row['min']:7.2f}{row['max']:7.2f}")
        if "failures" in row:
            print(f"  causes of failure: {row['failures']}")
        numbers[model] = row
    oracle = numbers["oracle"]["mean"] if "oracle" in cfg.models else 0
    if oracle:
        numbers["share_of_oracle"] = {model: numbers[model]["mean"] / oracle for model in cfg.models}
    write_result(cfg.out, {**numbers, "episodes": episodes, "settings": ours})


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__, presets=PRESETS))
