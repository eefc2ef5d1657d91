"""experiments/analyses.py: section 4.4 (to be split into a file each)."""


import functools
import re
import subprocess
import sys
from pathlib import Path

import torch
from tqdm import tqdm

import gpt
import tokenizer
from common import beside, claim, configure, load_checkpoint, run
from support.devices import autocast_for, find_device
from data import Episodes, save_contact_sheet
from gpt import GPT
from sample import WorldModel
from support.segments import segments_for
from tokenizer import Tokenizer


def lab(name, *groups, **own):
    """Settings of an analysis, and where its checkpoints, its numbers and its picture go."""
    merged = {k: v for group in groups for k, v in group.items()}
    places = dict(folder=f"out/{name}", out=f"out/{name}/numbers.json", picture=f"out/{name}/picture.png")
    return {**merged, **places, "overwrite": False, **own}


TRAINING = dict(  # what is in the folder already is not trained again
    preset="tiny",
    data="data/push",  # a folder of episodes
    ckpt="assets/push-tiny.pt",
    processes=1,  # with batch_size segments each
    batch_size=8,
    seed=0,
)
VIDEOS = dict(videos=64, horizon=14, device="", dtype="auto")  # validation segments; predicted frames
WORLDS = dict(samples=1, frames=("future",), lpips=True, fvd="")  # as in CONFIG
TUNING = dict(data="data/push-cyan", tune_lr=3e-4, tokenizer_steps=500, steps=500)  # updates of each model
TOKENIZERS = lab("tokenizers", TRAINING, VIDEOS, kinds=("compressive", "16x16", "4x4"), patch=2, steps=1000,
                 lpips=True, repeats=3)
DECOUPLE = dict(VIDEOS, ckpt=TRAINING["ckpt"], data="push", batch_size=8, seed=0,
                out="out/decouple/numbers.json", picture="out/decouple/picture.png", overwrite=False)
TRANSFER = lab("transfer", TRAINING, VIDEOS, WORLDS, TUNING)
ADAPT = lab("adapt", TRAINING, VIDEOS, WORLDS, TUNING, shots=(10, 100, 1000))  # episodes
SCALING = lab("scaling", TRAINING, sizes=("2x96", "4x192"), steps=1500, eval_every=100)  # layers x width
GOAL = lab("goal", TRAINING, VIDEOS, WORLDS, frames=("last",), tune_lr=1.5e-3, steps=3000)


# ---- analyses (section 4.4): each trains what it compares, prints a table and draws a picture ----


def train(script, out, cfg, steps, **settings):
    """Run a training script, as a reader would; or what is left to do, if it was broken off.

    raises  ValueError if OUT was trained with other settings, ChildProcessError if training fails"""
    settings.update({k: getattr(cfg, k) for k in ("preset", "data", "batch_size", "seed")}, max_steps=steps)
    if Path(out).is_file():
        state = load_checkpoint(out, needs=("step", "train_config"))
        if wrong := [k for k, v in settings.items() if state["train_config"].get(k) != v]:
            raise ValueError(f"{out} was trained with other {', '.join(wrong)}; delete it to train it anew")
        if state["step"] >= steps:
            return
        settings = dict(resume=True)
    flags = [*(f"--{k}={v}" for k, v in settings.items()), f"--out={out}"]
    many = ["-m", "torch.distributed.run", f"--nproc_per_node={cfg.processes}"] if cfg.processes > 1 else []
    print("$ python", *many, script, *flags, flush=True)
    child = subprocess.Popen([sys.executable, *many, Path(__file__).with_name(script), *flags])
    try:
        failed = child.wait()
    except KeyboardInterrupt:  # it has been told, too: let it save
        child.wait()
        raise SystemExit(f"{out} is kept: the same command goes on") from None
    if failed or load_checkpoint(out)["step"] < steps:
        raise ChildProcessError(f"{script} has failed or was stopped; its own message is above")


def train_both(cfg, name, tune, **settings):
    """A tokenizer and, on it, a transformer, from scratch or fine-tuned from cfg.ckpt -> their paths."""
    first, second = f"{cfg.folder}/{name}-tokenizer.pt", f"{cfg.folder}/{name}.pt"
    settings.update(dict(init_from=cfg.ckpt, lr=cfg.tune_lr) if tune else {})
    if not Path(cfg.data).is_dir():
        make = f"python data.py push --robot cyan --seed 1 --episodes 1100 --out {cfg.data}"
        raise FileNotFoundError(f"no episodes of another robot at {cfg.data}; try: {make}")
    freeze = dict(freeze_codebooks=True) if tune else {}  # the transformer has learned what codes mean
    train("train_tokenizer.py", first, cfg, cfg.tokenizer_steps, **freeze, **settings)
    train("train_gpt.py", second, cfg, cfg.steps, tokenizer=first, **settings)
    return first, second


def world_of(cfg, ckpt, tokenizer=""):
    return WorldModel.load(ckpt, cfg.device, tokenizer, seed=cfg.seed, dtype=cfg.dtype)


def videos_for(cfg, model):
    """Validation segments, which end with the same frames for goal-conditioned models and others."""
    return segments_for(model, cfg.data, cfg.videos, cfg.horizon + model.goal_conditioned, cfg.seed)


def compare(cfg, models):
    """{name: WorldModel} -> {metric: {name: mean}}, {name: all that `summarize` says}, missing networks."""
    networks, missing = find_networks(find_device(cfg.device), cfg.lpips, cfg.fvd)
    columns, tables = {}, {}
    for name, model in models.items():
        data = videos_for(cfg, model)
        require_frames(cfg, data["frames"].shape[1] - model.goal_conditioned)
        starts = batch_starts(cfg.videos, cfg)
        parts = [measure(model, data, slice(i, i + starts.step), cfg, networks) for i in tqdm(starts, name)]
        tables[name], _ = summarize(parts, cfg)
        for metric, rows in tables[name].items():
            columns.setdefault(metric, {})[name] = rows.get("single", rows.get("all", rows.get("model")))
    return columns, tables, missing


def save_sheet(cfg, clips, count=8):
    """Contact sheet to cfg.picture, a row for each of `clips`, lists of videos (T, 3, H, W), video by video.

    Of each it shows `count` frames, the first and the last among them."""
    rows = [video.cpu() for same in zip(*clips, strict=True) for video in same]
    kept = [torch.linspace(0, len(row) - 1, count).round().long() for row in rows]
    save_contact_sheet(cfg.picture, [row[i] for row, i in zip(rows, kept, strict=True)])
    print(f"drawn to {cfg.picture}")


def draw_futures(cfg, models, n=2):
    """`save_sheet` of n videos: the truth above what each of the models imagines."""
    imagined = []
    for model in models.values():
        data = {k: v[:n] for k, v in videos_for(cfg, model).items()}
        truth = data["frames"][:, model.goal_conditioned :]
        actions = data["actions"][:, model.context_frames - 1 : -1] if model.action_dim else None
        rows, _ = predict(model, data["frames"].to(model.device), actions, None, 1, n)
        imagined.append(rows["model"][:, 0, model.goal_conditioned :])
    save_sheet(cfg, [truth, *imagined])


def tokenizers(cfg):
    """Tokenizers trained alike: the compressive one, and some that take every frame by itself (Figure 9c)."""
    require_preset(cfg)
    device = find_device(cfg.device)
    (networks, missing), data = find_networks(device, cfg.lpips), Episodes(cfg.data, "val")
    t = tokenizer.PRESETS[cfg.preset]["context_frames"]
    clips = data.segments(cfg.videos, t + cfg.horizon, seed=cfg.seed)["frames"]
    settings = dict(gpt.PRESETS[cfg.preset], segment_length=t + cfg.horizon)
    columns, shown = {}, [clips[:2]]
    for kind in cfg.kinds:
        out = f"{cfg.folder}/{kind}.pt"
        plain = dict(decouple_start=-1)  # the paper's objective for each of them
        train("train_tokenizer.py", out, cfg, cfg.steps, kind=kind, patch=cfg.patch, **plain)
        vqgan = Tokenizer.load(out).to(device).eval()
        with torch.no_grad(), autocast_for(device, cfg.dtype):
            parts = [vqgan.decode(vqgan.encode(part.to(device))) for part in clips.split(cfg.batch_size)]
        decoded = torch.cat(parts).float().clamp(0, 1)
        shown.append(decoded[:2])
        quality = frame_metrics(decoded[:, None, t:], clips[:, t:].to(device), networks.get("lpips"))
        row = {metric: value.mean().item() for metric, value in quality.items()}  # over videos and frames
        sizes = {k: v for k, v in vqgan.config.items() if k != "grid"}
        row.update(tokenizer_costs(sizes, settings, kind, 1, device, cfg.dtype, cfg.repeats))
        for name, value in row.items():
            columns.setdefault(name, {})[kind] = value
    print(f"\n{cfg.horizon} future frames of {cfg.videos} clips from their tokens; seconds and GB for one")
    report(cfg.out, columns, missing=missing, steps=cfg.steps)
    save_sheet(cfg, shown)


def decouple(cfg):
    """Frames from their tokens without cross-attention to the context: what the tokens tell (Figure 10)."""
    model = world_of(cfg, cfg.ckpt)
    vqgan, clips, decoded = model.tokenizer, videos_for(cfg, model)["frames"], {}
    for chunk in clips.split(cfg.batch_size):
        with torch.no_grad(), model.autocast:
            context, dynamics = vqgan.layout.unpack(vqgan.encode(chunk.to(model.device)))
            ways = {"cross-attention": vqgan.decode_context(context), "dropped": None}
            for name, way in ways.items():
                frames = vqgan.decode_future(dynamics, way).float().clamp(0, 1)
                decoded.setdefault(name, []).append(frames.cpu())
    decoded, truth = {k: torch.cat(v) for k, v in decoded.items()}, clips[:, model.context_frames :]
    columns = {name: {k: metric(x, truth).mean().item() for k, x in decoded.items()}
               for name, metric in (("psnr", psnr), ("ssim", ssim))}
    changes = lambda x: (x[:, 1:] - x[:, :-1]).abs().mean(2).flatten()  # noqa: E731
    pairs = {k: torch.stack([changes(truth), changes(x)]) for k, x in decoded.items()}
    columns["motion"] = {k: torch.corrcoef(pair)[0, 1].item() for k, pair in pairs.items()}
    print("motion: correlation of decoded with true changes from frame to frame, over all pixels")
    report(cfg.out, columns)
    save_sheet(cfg, [x[:2] for x in (truth, *decoded.values())])


def transfer(cfg):
    """Another robot: the model as it was; with an adapted tokenizer; fine-tuned as a whole (Figure 8)."""
    adapted, tuned = train_both(cfg, "tuned", True)
    places = {"as it was": [cfg.ckpt], "adapted tokenizer": [cfg.ckpt, adapted], "fine-tuned": [tuned]}
    columns, tables, missing = compare(cfg, models := {k: world_of(cfg, *v) for k, v in places.items()})
    for metric, column in columns.items():
        column["repeat_last"] = tables["as it was"][metric]["repeat_last"]
        for name in ("as it was", "adapted tokenizer"):
            column[f"reconstruction, {name}"] = tables[name][metric]["reconstruction"]
    report(cfg.out, columns, missing=missing, steps=(cfg.tokenizer_steps, cfg.steps))
    draw_futures(cfg, models)


def adapt(cfg):
    """Fine-tuning on few episodes of another robot, and training from scratch on as many (Figure 9a)."""
    models = {}
    for start in ("scratch", "checkpoint"):
        for n in cfg.shots:
            _, path = train_both(cfg, f"{start}-{n}", start == "checkpoint", episodes=n)
            models[f"{start}, {n} episodes"] = world_of(cfg, path)
    columns, _, missing = compare(cfg, models)
    report(cfg.out, columns, missing=missing, steps=(cfg.tokenizer_steps, cfg.steps))
    y, lines = "fvd" if "fvd" in columns else "psnr", {}
    for name, value in columns[y].items():
        start, n, _ = name.replace(",", "").split()
        lines.setdefault(f"from {start}", []).append((int(n), value))
    draw_curves(cfg.picture, [("", "episodes of the other robot", y.upper(), lines)], log_x=True)


def scaling(cfg):
    """Validation loss of transformers of several sizes, against updates and FLOPs (Figure 9b)."""
    require_preset(cfg)
    by_step, by_flops, columns, whole = {}, {}, {}, gpt.PRESETS[cfg.preset]
    for name in cfg.sizes:
        if not re.fullmatch(r"\d+x\d+", name):
            raise ValueError(f"size is {name!r}; expected layers x width, like 4x192")
        layers, D = map(int, name.split("x"))
        sizes = dict(n_layer=layers, n_embd=D)
        sizes.update((k, max(1, D * whole[k] // whole["n_embd"])) for k in ("n_head", "n_mlp"))
        out, every = f"{cfg.folder}/{name}.pt", dict(eval_every=cfg.eval_every)
        train("train_gpt.py", out, cfg, cfg.steps, tokenizer=cfg.ckpt, **every, **sizes)
        model, curve = GPT.load(out), read_curve(beside(out, ".jsonl"))["val_ce"]
        flops = flops_of_segment(model) * cfg.batch_size * cfg.processes
        by_step[name], by_flops[name] = curve, [(step * flops, loss) for step, loss in curve]
        row = dict(parameters=sum(p.numel() for p in model.parameters()), FLOPs=float(by_flops[name][-1][0]))
        for key, value in dict(row, loss=curve[-1][1]).items():
            columns.setdefault(key, {})[name] = value
    report(cfg.out, columns, curves=by_step)
    y = "validation loss (nats)"
    draw_curves(cfg.picture, [("", "update", y, by_step), ("", "FLOPs", y, by_flops)], log_x=True)


def goal(cfg):
    """Futures of a model that is shown how they end, and of one that is not; without actions (Figure 4)."""
    models, t = {}, Tokenizer.load(cfg.ckpt).layout.context_frames
    for name, shown in (("action-free", False), ("goal-conditioned", True)):
        out, length = f"{cfg.folder}/{name}.pt", t + cfg.horizon + shown
        settings = dict(actions=False, rewards=False, goal_conditioned=shown, segment_length=length)
        train("train_gpt.py", out, cfg, cfg.steps, init_from=cfg.ckpt, lr=cfg.tune_lr, **settings)
        models[name] = world_of(cfg, out)
    columns, tables, missing = compare(cfg, models)
    for metric, column in columns.items():
        for row in ("repeat_last", "reconstruction"):
            column[row] = tables["action-free"][metric][row]
    print("\nThe last of the imagined frames against the goal")
    report(cfg.out, columns, missing=missing, steps=cfg.steps)
    draw_futures(cfg, models)


def analyse(function, cfg):
    """Run an analysis, once it is sure that its numbers and its picture can be written."""
    cfg.picture = claim(cfg.picture, overwrite=cfg.overwrite or Path(cfg.out).is_file(), name="picture")
    cfg.out = claim_result(cfg.out, cfg.overwrite)
    function(cfg)


COMMANDS = {
    "speed": (speed, SPEED),
    "loader": (loader, LOADER),
    "tokenizers": (tokenizers, TOKENIZERS),
    "decouple": (decouple, DECOUPLE),
    "transfer": (transfer, TRANSFER),
    "adapt": (adapt, ADAPT),
    "scaling": (scaling, SCALING),
    "goal": (goal, GOAL),
}


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        function, config = COMMANDS[sys.argv[1]]
        start = functools.partial(analyse, function) if "picture" in config else function
        run(start, configure(config, f"evaluate.py {sys.argv[1]}: {function.__doc__}", sys.argv[2:]))
    elif sys.argv[1:2] and not sys.argv[1].startswith("-"):
        raise SystemExit(f"{sys.argv[1]}: no such command; expected {', '.join(COMMANDS)}, or settings alone")
    else:
        run(main, configure(CONFIG, __doc__, presets=PRESETS))
