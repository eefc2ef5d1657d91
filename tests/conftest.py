"""Shared by all tests: very small settings, an in-process trainer, a small data set and checkpoints."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("MUJOCO_GL", "egl")  # before anybody imports mujoco

import train_gpt  # noqa: E402
import train_tokenizer  # noqa: E402
from common import configure  # noqa: E402
from prepare import collect_push  # noqa: E402
from variants import tiny  # noqa: E402

torch.set_num_threads(1)  # the models are too small for more, and subprocesses must compute the same bits

TOKENIZER = {
    **tiny.TOKENIZER, "resolution": 32, "channels": (16,), "code_dim": 8, "context_codes": 32,
    "dynamics_codes": 32, "norm_groups": 4, "revive_after": 4,
}  # fmt: skip
GPT = {**tiny.TRANSFORMER, "n_layer": 2, "n_head": 2, "n_embd": 32, "n_mlp": 64, "segment_length": 6}
STEPS = dict(preset="tiny", batch_size=4, eval_segments=4, max_steps=2, eval_every=2, log_every=1, warmup=1)
TOKENIZER_RUN = {**STEPS, **TOKENIZER, "horizon": 6, "future_frames": 2}
GPT_RUN = {**STEPS, **{k: v for k, v in GPT.items() if k in train_gpt.MODEL}}
TOKENIZER_TUNE = {k: v for k, v in TOKENIZER_RUN.items() if k not in TOKENIZER}  # a checkpoint sets the rest
GPT_TUNE = {k: v for k, v in GPT_RUN.items() if k not in GPT}


def pytest_configure(config):
    """Register the markers; hide GPUs unless the tests that need one are asked for (pytest -m gpu)."""
    config.addinivalue_line("markers", "slow: kills, several processes, whole runs (make test-slow)")
    config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU (pytest -m gpu)")
    wants_gpu = "gpu" in config.getoption("markexpr").replace("not gpu", "")
    if not wants_gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the same numbers on every machine


def flags(**settings):
    """Settings as command-line arguments."""
    text = {k: ",".join(map(str, v)) if isinstance(v, tuple) else v for k, v in settings.items()}
    return [f"--{k}={v}" for k, v in text.items()]


def train(script, **settings):
    """Run a training script's main in-process; Ctrl-C keeps its meaning for pytest."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        script.main(configure(script.CONFIG, script.__doc__, flags(**settings), script.PRESETS))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def python(*args):
    """Run this Python in the repository's root on one thread; returns the finished process and its output."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, args)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="session")
def push(tmp_path_factory):
    """A folder of 12 PushWorld episodes of 21 frames, 32x32; three are for validation."""
    folder = tmp_path_factory.mktemp("data") / "push"
    collect_push(folder, 12, val_every=4, length=20, size=32, seed=0, expert_share=0.6, action_noise=0.3)
    return folder


@pytest.fixture(scope="session")
def push64(tmp_path_factory):
    """A folder of 4 PushWorld episodes of 8 frames, 64x64; two are for validation."""
    folder = tmp_path_factory.mktemp("data") / "push64"
    collect_push(folder, 4, val_every=2, length=7, size=64, seed=0, expert_share=0.6, action_noise=0.3)
    return folder


@pytest.fixture(scope="session")
def trained(push, tmp_path_factory):
    """Checkpoints after two steps: a tokenizer, a transformer with actions and rewards, one without."""
    out = tmp_path_factory.mktemp("out")
    paths = SimpleNamespace(tokenizer=out / "tokenizer.pt", gpt=out / "gpt.pt", free=out / "free.pt")
    train(train_tokenizer, **TOKENIZER_RUN, data=push, out=paths.tokenizer)
    train(train_gpt, **GPT_RUN, data=push, tokenizer=paths.tokenizer, out=paths.gpt)
    free = dict(actions=False, rewards=False, out=paths.free)
    train(train_gpt, **GPT_RUN, data=push, tokenizer=paths.tokenizer, **free)
    return paths
