"""experiments/lab.py: what the analyses of section 4.4 share: training, comparing and drawing.

Checkpoints that are already in `folder` are not trained again; an interrupted training continues."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from checkpoints import SIZES, new_gpt
from common import load_checkpoint
from evaluate import find_networks, measure, predict, summarize
from sample import WorldModel
from support.devices import find_device
from support.files import beside
from support.pictures import save_contact_sheet
from support.segments import segments_for

TRAINING = dict(
    preset="tiny",
    data="data/push",  # a folder of episodes
    processes=1,  # with batch_size segments each
    batch_size=8,
    seed=0,
    overwrite=False,
)
VIDEOS = dict(
    videos=64,  # validation segments
    horizon=14,  # predicted frames
    lpips=True,
    fvd="",  # as in evaluate.py
    device="",
    dtype="auto",
)
SOURCES = "tokenizer", "init_from", "tokens"  # settings of a training that name files
TUNING = dict(
    TRAINING,
    ckpt="assets/push-tiny.pt",
    data="data/push-cyan",
    tune_lr=3e-4,  # of fine-tuning
    tokenizer_steps=500,
    steps=500,  # of the transformer
)


def sizes(preset):
    """Settings of a preset's tokenizer and transformer.   raises  ValueError at an unknown preset"""
    if preset not in SIZES:
        raise ValueError(f"preset is {preset!r}; expected one of {', '.join(SIZES)}")
    return SIZES[preset]


def update_flops(layout, settings):
    """FLOPs of an update of the transformer on one segment, forward and backward, counted without computing.

    Attention counts in full, as in PaLM's MFU (Chowdhery et al. 2022), although its causal half would do."""
    with torch.device("meta"):
        model = new_gpt(layout, {**settings, "action_dim": 0, "reward": False})
        tokens = torch.zeros(1, layout.length(settings["segment_length"]), dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model.loss(tokens)[0].backward()
    return counter.get_total_flops()


def flags(**settings):
    """Settings as command-line arguments."""
    texts = {key: ",".join(map(str, v)) if isinstance(v, tuple) else v for key, v in settings.items()}
    return [f"--{key}={text}" for key, text in texts.items()]


def run_script(script, out, settings, processes=1):
    """Run one of the scripts beside this folder, with settings and --out; returns its exit status."""
    command = [str(Path(__file__).parent.with_name(script)), f"--out={out}", *flags(**settings)]
    if processes > 1:
        command = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", *command]
    print("$ python", *command, flush=True)
    child = subprocess.Popen([sys.executable, *command])
    try:
        return child.wait()
    except KeyboardInterrupt:  # the child has it, too: let it save
        child.wait()
        raise SystemExit(f"{out} is kept: the same command continues") from None


def train(script, out, cfg, steps, **settings):
    """Run a training script up to `steps` updates, or what is left of them after an interruption.

    settings  of the script; preset, data, batch_size and seed are cfg's where they are not given
    raises  ValueError if OUT was trained with other settings, ChildProcessError if training fails"""
    for key in ("preset", "data", "batch_size", "seed"):
        if key not in settings:
            settings[key] = getattr(cfg, key)
    settings["max_steps"] = steps
    if Path(out).is_file():
        state = load_checkpoint(out, needs=("step", "train_config"))
        wrong = [k for k, v in settings.items() if state["train_config"].get(k) != v]
        if wrong:
            raise ValueError(f"{out} was trained with other {', '.join(wrong)}; delete it to train it anew")
        for name in SOURCES:
            source = Path(settings.get(name, ""))
            if source.is_file() and source.stat().st_mtime > Path(out).stat().st_mtime:
                raise ValueError(f"{out} is older than {source}; delete it to train it anew")
        if state["step"] >= steps:
            return
        settings = dict(resume=True)
    if run_script(script, out, settings, cfg.processes) or load_checkpoint(out)["step"] < steps:
        raise ChildProcessError(f"{script} has failed or was stopped; its own message is above")


def train_both(cfg, name, tune, **settings):
    """A tokenizer and a transformer on it, from scratch or fine-tuned from cfg.ckpt -> their paths."""
    if not Path(cfg.data).is_dir():
        make = f"python prepare.py push --robot cyan --seed 1 --episodes 1100 --out {cfg.data}"
        raise FileNotFoundError(f"no episodes of another robot at {cfg.data}; try: {make}")
    tokenizer = f"{cfg.folder}/{name}-tokenizer.pt"
    gpt = f"{cfg.folder}/{name}.pt"
    frozen = {}
    if tune:
        settings.update(init_from=cfg.ckpt, lr=cfg.tune_lr)
        frozen["freeze_codebooks"] = True  # the transformer has learned what codes mean
    train("train_tokenizer.py", tokenizer, cfg, cfg.tokenizer_steps, **frozen, **settings)
    train("train_gpt.py", gpt, cfg, cfg.steps, tokenizer=tokenizer, **settings)
    return tokenizer, gpt


def open_world(cfg, ckpt, tokenizer=""):
    return WorldModel.load(ckpt, cfg.device, tokenizer, seed=cfg.seed, dtype=cfg.dtype)


def validation(cfg, model):
    """Validation segments, whose last frames are the same for models with and without a goal."""
    return segments_for(model, cfg.data, cfg.videos, cfg.horizon + int(model.goal_conditioned), cfg.seed)


def compare(cfg, models, frames="future"):
    """{name: WorldModel} -> {metric: {row: mean}}, {metric: why it is missing}. frames: see evaluate.py"""
    networks, missing = find_networks(find_device(cfg.device), cfg.lpips, cfg.fvd)
    protocol = SimpleNamespace(samples=1, frames=(frames,), batch_size=cfg.batch_size)
    columns = {}
    for name, model in models.items():
        data = validation(cfg, model)
        parts = []
        for start in tqdm(range(0, cfg.videos, cfg.batch_size), name):
            parts.append(measure(model, data, slice(start, start + cfg.batch_size), protocol, networks))
        for metric, rows in summarize(parts, protocol).items():
            column = columns.setdefault(metric, {})
            column[name] = rows["model"]
            column[f"{name}: reconstruction"] = rows["reconstruction"]
            column["repeat_last"] = rows["repeat_last"]
    return columns, missing


def draw_sheet(cfg, sources, count=8):
    """Contact sheet beside OUT: `count` frames of each video, one row per source (n, T, 3, H, W)."""
    rows = []
    for i in range(len(sources[0])):
        for videos in sources:
            indices = torch.linspace(0, videos.shape[1] - 1, count).round().long()
            rows.append(videos[i].cpu()[indices])
    save_contact_sheet(beside(cfg.out, ".png"), rows)
    print(f"drawn to {beside(cfg.out, '.png')}")


def draw_futures(cfg, models, n=2):
    """`draw_sheet` of n videos: the truth above what each of the models imagines."""
    sources = []
    for model in models.values():
        data = validation(cfg, model)
        clips = data["frames"][:n]
        actions = data["actions"][:n, model.context_frames - 1 : -1] if model.action_dim else None
        rows, _ = predict(model, clips.to(model.device), actions, None, 1, n)
        goal = int(model.goal_conditioned)
        sources.append(rows["model"][:, 0, goal:])
    draw_sheet(cfg, [clips[:, goal:], *sources])
