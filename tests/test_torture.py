"""experiments/torture: its judges notice what they are to notice, and its programs run."""

import json
import mmap
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, flags

from common import save_checkpoint

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it forks")

from experiments.torture import commands, damages, endurance, faults, hostile, small  # noqa: E402


def ended(status=0, stdout="", stderr=""):
    return small.Result(status=status, stdout=stdout, stderr=stderr, seconds=1.0)


def test_how_commands_end():
    refused = ended(1, stderr="--lr fast: expected a float\n")
    assert commands.complain(refused, True, {}, {}) == ""
    assert commands.complain(refused, True, {}, {"a": 1}) == "written"
    late = small.Result(**{**vars(refused), "seconds": 3.0})
    assert commands.complain(late, True, {}, {}) == "late"
    assert commands.complain(ended(1, stderr="one\ntwo\n"), True, {}, {}) == "long"
    assert commands.complain(ended(1, stderr="x: 5%|#| 1/2\none\n"), True, {}, {}) == ""  # a progress bar
    assert commands.complain(ended(70, stderr="Traceback (most recent"), False, {}, {}) == "traceback"
    assert commands.complain(ended(-11), False, {}, {}) == "traceback"
    assert commands.complain(ended(0), True, {}, {}) == "taken"
    assert commands.complain(ended(None), True, {}, {}) == "taken"  # still at work
    assert commands.complain(ended(0), False, {}, {"a": 1}) == ""


@pytest.mark.parametrize("default, text, absurd", [
    (1, "1.5", True), (1, "3", False), (1.0, "nan", True), (1.0, "-1", False), (True, "maybe", True),
    ("a", "", False), ((1, 2), "1,x", False), (1, "", True),
])  # fmt: skip
def test_which_values_no_setting_can_have(default, text, absurd):
    assert commands.is_absurd(default, text) == absurd


def test_how_damage_is_taken(tmp_path):
    out = tmp_path / "x.json"
    out.write_text(json.dumps(dict(psnr=1.0, command="a")))
    expected = damages.fingerprint(out)
    path = tmp_path / "gpt.pt"
    assert damages.judge(ended(1, stderr="gpt.pt is damaged"), path, out, expected) == "refused"
    assert damages.judge(ended(1, stderr="something is damaged"), path, out, expected) == "unnamed"
    assert damages.judge(ended(None), path, out, expected) == "hangs"
    assert damages.judge(ended(70, stderr="Traceback"), path, out, expected) == "traceback"
    out.write_text(json.dumps(dict(psnr=1.0, command="b")))
    assert damages.judge(ended(0), path, out, expected) == "harmless"
    out.write_text(json.dumps(dict(psnr=2.0, command="a")))
    assert damages.judge(ended(0), path, out, expected) == "silent"
    assert damages.judge(ended(0), tmp_path / "actions.npy", out, expected) == "unprotected"


def test_the_pickles_would_leave_their_mark_where_they_are_believed(tmp_path):
    mark = tmp_path / "executed"
    paths = hostile.pickles(tmp_path, mark)
    for how in ("torch", "legacy"):
        torch.load(paths[how], weights_only=False)
        assert mark.exists(), how
        mark.unlink()


def test_a_fork_reports_what_its_script_did(tmp_path):
    save_checkpoint(tmp_path / "x.pt", a=1)
    result = small.attempt("sample.py", flags(ckpt=tmp_path / "x.pt"), tmp_path, 60)
    assert result.status == 1 and "x.pt holds no" in result.stderr and result.seconds < 60
    assert small.attempt("sample.py", ["--help"], tmp_path, 60).status == 0
    assert small.attempt("sample.py", ["--help"], tmp_path, 0.001).status is None  # killed


def test_how_a_full_disk_is_taken():
    full = "Traceback\nOSError: [Errno 28] No space left on device\n"
    assert faults.ends_well(ended(0)) and faults.ends_well(ended(1, stderr="x.pt: free some disk space\n"))
    assert not faults.ends_well(ended(70, stderr=full))
    assert not faults.ends_well(ended(1, stderr="step is missing\n"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_loop_that_leaks_or_changes_is_noticed():
    kept = []

    def leak(seed=None):
        kept.append(mmap.mmap(-1, 2**20))  # memory that nothing else has given back
        kept[-1].write(bytes(2**20))
        return [np.zeros(1)]

    def change(seed=None):
        kept.append(0)
        return [np.array(len(kept))]

    assert endurance.watch("leak", leak, 100)["growth_mb"] > endurance.MOST_GROWTH
    assert not endurance.watch("change", change, 20)["same"]


@pytest.mark.slow
def test_all_but_the_odd_machines(tmp_path):
    out = tmp_path / "torture.json"
    parts = "commands,damages,hostile,kills,faults,endurance,processes"
    few = dict(parts=parts, commands=6, damages=6, kills=1, disks=1, endurance=0.002, out=out)
    command = [sys.executable, "-m", "experiments.torture", *flags(**few)]
    subprocess.run(command, cwd=ROOT, check=True)  # forks of a process without threads
    numbers = json.loads(out.read_text())
    assert numbers["commands"]["tried"] == 6 and numbers["commands"]["tracebacks"] == 0
    assert numbers["damages"]["tried"] == 6 and numbers["damages"]["silent"] == 0
    assert numbers["hostile"]["tried"] > 90 and numbers["hostile"]["executed"] == 0
    assert numbers["kills"]["tried"] >= 9 and numbers["kills"]["lost"] == 0
    assert numbers["faults"]["tried"] in (0, 18) and not numbers["faults"].get("wrong")
    assert all(loop["same"] for loop in numbers["endurance"]["loops"].values())
    assert numbers["processes"]["tried"] == 4 and numbers["processes"]["failed"] == 0
