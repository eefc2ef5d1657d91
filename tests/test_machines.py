"""Every machine: CPUs without bf16 instructions, systems without POSIX' calls, other GPUs."""

import pytest
import torch
from conftest import python

from support.devices import can_compile, find_device, uses_bf16
from variants.muon import Muon, orthogonalize

# What Windows' Python has not. The rest of the standard library that our files use is there.
WITHOUT_POSIX = """
import sys
for name in ("resource", "fcntl", "pwd", "grp", "termios"):
    sys.modules[name] = None
import mmap, os
for name in ("pread", "posix_fadvise", "geteuid", "getuid", "fork"):
    if hasattr(os, name):
        delattr(os, name)
for name in [name for name in vars(mmap) if name.startswith("MADV_")]:
    delattr(mmap, name)
"""


# ---- instructions ----


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch older than 2.9 has no Muon")
@pytest.mark.parametrize("shape", [(96, 32), (32, 32), (32, 80)])
def test_muon_equals_torchs_up_to_bf16(shape):
    torch.manual_seed(0)
    start = [torch.randn(shape) for _ in range(3)]  # three matrices of a shape are one product
    gradients = [[torch.randn(shape) for _ in start] for _ in range(4)]
    ends = []
    for kind in ("ours", "torch"):
        matrices = [torch.nn.Parameter(matrix.clone()) for matrix in start]
        if kind == "ours":
            optimizer = Muon(matrices, lr=0.02, weight_decay=0.1)
        else:
            how = dict(lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
            optimizer = torch.optim.Muon(matrices, **how)
        for step in gradients:
            for matrix, gradient in zip(matrices, step, strict=True):
                matrix.grad = gradient.clone()
            optimizer.step()
        ends.append(torch.stack([matrix.detach() for matrix in matrices]))
        names = set(optimizer.state[matrices[0]])
        assert names == {"momentum_buffer"}  # either goes on from the other's checkpoint
    moved = (ends[1] - torch.stack(start)).norm()
    assert (ends[0] - ends[1]).norm() < 0.02 * moved
    other = (ends[0] - torch.stack(start)).norm()
    assert other / moved == pytest.approx(1, abs=0.01)


def test_muons_directions_have_singular_values_near_1():
    torch.manual_seed(0)
    for shape in ((4, 96, 32), (4, 32, 96)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
        assert 0.6 < values.min() and values.max() < 1.3


def test_an_update_of_muon_computes_in_float32_on_cpus():
    """bf16 products are emulated on CPUs without the instructions, at a fifth of the speed."""
    seen = []

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.extend(x.dtype for x in args if torch.is_tensor(x))
            return function(*args, **(kwargs or {}))

    matrix = torch.nn.Parameter(torch.randn(8, 4))
    matrix.grad = torch.randn(8, 4)
    with Record():
        Muon([matrix], lr=0.1, weight_decay=0.0).step()
    assert set(seen) == {torch.float32}


def test_auto_is_bf16_only_on_gpus_that_have_it(monkeypatch):
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    assert uses_bf16(gpu, "auto") and not uses_bf16(cpu, "auto") and uses_bf16(cpu, "bf16")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert not uses_bf16(gpu, "auto") and uses_bf16(gpu, "bf16")  # a T4 or a V100


def test_old_gpus_and_windows_do_without_torch_compile(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert not can_compile(torch.device("cuda")) and not can_compile(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not can_compile(torch.device("cuda"))


# ---- systems ----


@pytest.mark.slow
def test_the_core_imports_and_works_without_posix(tmp_path):
    code = WITHOUT_POSIX + f"""
import runpy
import checkpoints, common, data, evaluate, gpt, importers, mbpo, official, plan, prepare, sample, tokenizer
import train_gpt, train_tokenizer
prepare.collect_push({str(tmp_path / "push")!r}, 4, val_every=2, length=20, size=64, seed=0, expert_share=0.6,
                     action_noise=0.3)
how = [f"--data={tmp_path / "push"}", "--preset=tiny", "--max_steps=1", "--batch_size=2", "--eval_segments=2"]
def start(script, *settings):
    presets = getattr(script, "PRESETS", None)
    common.run(script.main, common.configure(script.CONFIG, "", [*settings], presets))
start(train_tokenizer, *how, "--out={tmp_path / "t.pt"}")
start(train_gpt, *how, "--tokenizer={tmp_path / "t.pt"}", "--out={tmp_path / "g.pt"}", "--n_layer=1")
start(sample, "--ckpt={tmp_path / "g.pt"}", "--out={tmp_path / "s"}", "--n=1", "--horizon=2")
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "s/sheet.png").is_file()


def test_segments_are_the_same_without_pread(push):
    code = """
import hashlib, sys, data
batch = data.Episodes(sys.argv[1]).batch_u8(0, 8, 6, stride=2)
print(hashlib.sha256(batch["frames_u8"].numpy().tobytes()).hexdigest())
"""
    plain, without = (python("-c", before + code, push) for before in ("", WITHOUT_POSIX))
    assert plain.stdout == without.stdout and len(plain.stdout) == 65, without.stderr


# ---- devices ----


def test_mps_is_taken_where_torch_has_it(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert find_device("mps") == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device is mps but torch sees no GPU; pass --device cpu"):
        find_device("mps")


def test_devices_that_are_not_there_are_one_line(monkeypatch):
    for name in ("meta", "xpu", "nonsense"):
        with pytest.raises(ValueError, match=f"device is '{name}'; expected cpu, cuda, cuda:1 .* or mps"):
            find_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="device is cuda:3 but torch sees 1, numbered from 0"):
        find_device("cuda:3")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is one here")
@pytest.mark.parametrize("script", ["sample.py", "evaluate.py", "plan.py", "mbpo.py --preset=push"])
def test_every_script_that_takes_a_device_says_in_one_line_that_it_is_not_there(script, tmp_path):
    name, *settings = script.split()
    out = tmp_path / ("x.pt" if name == "mbpo.py" else "x.json")
    done = python(name, *settings, "--device=mps", f"--out={out}")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("ValueError: device is mps")
