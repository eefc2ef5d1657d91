"""What scripts write: refused in the first second where it could not be written, never replaced by a slip."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import GPT_RUN, TOKENIZER_RUN, flags, python, train

import evaluate
import mbpo
import plan
import post_train
import sample
import train_gpt
import train_tokenizer
from common import configure, load_checkpoint, save_checkpoint, start_log
from data import Episodes
from experiments import decouple, mbpo_report, speed
from prepare import collect_push
from support.files import beside, claim, write_whole
from support.results import read_result
from support.writer import EpisodeWriter

PUSH = dict(val_every=2, length=5, size=32, seed=0, expert_share=0.6, action_noise=0.3)
LINKS = pytest.mark.skipif(os.name == "nt", reason="links need rights there")


# ---- folders and links ----


@LINKS
def test_a_link_to_an_empty_folder_is_filled_on_the_disk_it_leads_to(tmp_path):
    large = tmp_path / "large/data"
    large.mkdir(parents=True)
    (tmp_path / "small").mkdir()
    link = tmp_path / "small/data"
    link.symlink_to(large)
    collect_push(link, 2, **PUSH)
    assert link.is_symlink() and Episodes(link, "all").n_episodes == 2
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == ["data"]
    assert sorted(path.name for path in (tmp_path / "large").iterdir()) == ["data"]


@LINKS
def test_a_checkpoint_behind_a_link_is_written_where_the_link_leads(push, tmp_path):
    (tmp_path / "large").mkdir()
    (tmp_path / "large/t.pt").write_bytes(b"")
    (tmp_path / "t.pt").symlink_to(tmp_path / "large/t.pt")
    train(train_tokenizer, **TOKENIZER_RUN, data=push, out=tmp_path / "t.pt", overwrite=True)
    assert (tmp_path / "t.pt").is_symlink() and load_checkpoint(tmp_path / "large/t.pt")["step"] == 2
    assert (tmp_path / "large/t.jsonl").is_file()


def test_a_mount_point_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "disk")
    with pytest.raises(ValueError, match="disk is a mount point, which cannot be replaced; pass --out"):
        EpisodeWriter(tmp_path / "disk", "test")


# ---- files that cannot be written ----

SCRIPTS = dict(
    tokenizer=(train_tokenizer, {**TOKENIZER_RUN, "data": "/nowhere"}, ".pt", (".jsonl", ".png")),
    gpt=(train_gpt, {**GPT_RUN, "data": "/nowhere"}, ".pt", (".jsonl", ".png")),
    mbpo=(mbpo, dict(preset="push"), ".pt", (".jsonl", ".png", ".gif")),
    post_train=(post_train, dict(ckpt="/nowhere"), ".pt", (".jsonl", ".png")),
    evaluate=(evaluate, dict(ckpt="/nowhere"), ".json", (".md", ".png")),
    plan=(plan, dict(ckpt="/nowhere"), ".json", ("-episodes.json",)),
)


def start(script, **settings):
    """main of a script whose data or checkpoint is not there: what comes before that has been checked."""
    script.main(configure(script.CONFIG, "", flags(**settings), script.PRESETS))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_folder_in_the_place_of_a_file_is_refused_at_once(name, tmp_path):
    script, settings, suffix, endings = SCRIPTS[name]
    for ending in (suffix, *endings):
        folder = tmp_path / f"{ending}/x{ending}"
        folder.mkdir(parents=True)
        with pytest.raises(ValueError, match=f"x{ending} is a folder; expected the name of a file"):
            start(script, **settings, out=tmp_path / f"{ending}/x{suffix}")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_folder_that_cannot_be_written_to_is_refused_at_once(name, tmp_path):
    script, settings, suffix, _ = SCRIPTS[name]
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write to .*/file"):
        start(script, **settings, out=tmp_path / f"file/x{suffix}")


def test_files_to_hand_out_are_checked_before_the_model_is_loaded(tmp_path):
    (tmp_path / "x.pt").mkdir()
    for settings, message in ((dict(export=tmp_path / "x.pt"), "x.pt is a folder"),
                              (dict(out=tmp_path / "x.pt"), "no checkpoint at /nowhere.pt")):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            sample.main(configure(sample.CONFIG, "", flags(ckpt="/nowhere.pt", **settings)))


def test_runs_whose_names_differ_after_a_point_share_no_file(push, tmp_path):
    assert beside("out/lr0.001", ".png").name == "lr0.001.png" and beside("out/a.pt", ".png").name == "a.png"
    for lr in ("0.001", "0.003"):
        train(train_tokenizer, **{**TOKENIZER_RUN, "lr": lr}, data=push, out=tmp_path / f"lr{lr}")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"lr{lr}{ending}" for lr in ("0.001", "0.003") for ending in ("", ".jsonl", ".png")}


# ---- what is there is not replaced by a slip ----


@pytest.mark.parametrize("name", ["tokenizer", "gpt", "mbpo", "post_train"])
def test_a_run_started_again_is_refused_in_one_line_and_nothing_changes(name, tmp_path):
    script, settings, *_ = SCRIPTS[name]
    out = tmp_path / "x.pt"
    out.write_bytes(b"a long run")
    (tmp_path / "x.jsonl").write_text("its numbers\n")
    done = python(f"{script.__name__}.py", *flags(**{**settings, "out": out}))
    assert done.returncode == 1 and "\n" not in done.stderr.strip()
    assert "x.pt exists: --resume true goes on with it, --overwrite true replaces it, or pass" in done.stderr
    assert out.read_bytes() == b"a long run" and (tmp_path / "x.jsonl").read_text() == "its numbers\n"


def test_overwrite_begins_anew(push, tmp_path):
    out = tmp_path / "x.pt"
    train(train_tokenizer, **{**TOKENIZER_RUN, "max_steps": 3}, data=push, out=out)
    train(train_tokenizer, **TOKENIZER_RUN, data=push, out=out, overwrite=True)
    steps = [json.loads(line)["step"] for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert load_checkpoint(out)["step"] == 2 and steps == [1, 2, 2]


def test_exports_and_numbers_of_another_command_are_kept(trained, tmp_path, monkeypatch):
    def call(**how):
        sample.main(configure(sample.CONFIG, "", flags(ckpt=trained.gpt, **how)))

    call(export=tmp_path / "x.pt")
    with pytest.raises(ValueError, match="x.pt exists: --overwrite true replaces it, or pass another --exp"):
        call(export=tmp_path / "x.pt")
    call(export=tmp_path / "x.pt", overwrite=True)

    settings = dict(ckpt=trained.gpt, out=tmp_path / "m.json", episodes=2, horizon=3, lpips=False)
    start(evaluate, **settings)
    start(evaluate, **settings)  # the same command
    numbers = (tmp_path / "m.json").read_text()
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--ckpt", "other.pt"])
    with pytest.raises(ValueError, match="m.json exists: --overwrite true replaces it"):
        start(evaluate, **settings)
    assert (tmp_path / "m.json").read_text() == numbers
    start(evaluate, **settings, overwrite=True)


# ---- a full disk ----


def test_a_checkpoint_that_does_not_fit_is_told_in_one_line_and_the_old_one_kept(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    save_checkpoint(path, step=1)

    def full(state, file):  # what torch.save does on a full disk
        Path(file).write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="cannot write .*x.pt .disk full; .* MB were free.: free some"):
        save_checkpoint(path, step=2)
    assert load_checkpoint(path)["step"] == 1 and [p.name for p in tmp_path.iterdir()] == ["x.pt"]
    with pytest.raises(OSError, match="free some, then the same command"):
        save_checkpoint(tmp_path / "y.pt", step=2)

    def other(state, file):
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(torch, "save", other)
    with pytest.raises(RuntimeError, match="CUDA error"):
        save_checkpoint(path, step=2)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs a small disk: mount as root")
def test_on_a_full_disk_a_run_ends_in_one_line_that_says_so(push, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount")
    try:
        training = {**TOKENIZER_RUN, "data": push, "out": disk / "x.pt"}
        for script, settings, message in (
            ("train_tokenizer.py", training, "cannot write .*x.pt"),
            ("prepare.py push", dict(out=disk / "push", episodes=8), "free some disk space"),
            ("sample.py", dict(out=disk / "s", device="cpu"), "writing .*disk/s.*free some disk space"),
        ):
            done = python(*script.split(), *flags(**settings))
            assert done.returncode == 1 and "Traceback" not in done.stderr
            assert re.search(message, done.stderr.splitlines()[-1])
            for path in disk.iterdir():
                path.unlink() if path.is_file() else shutil.rmtree(path)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_damaged_line_in_the_log_does_not_stand_in_the_way_of_resuming(tmp_path):
    log = tmp_path / "x.jsonl"
    log.write_bytes(b'{"step": 1}\n\0\0\0\xff\n[]\n{"step": 2}\n{"step": 3}\n{"st')
    start_log(log, 2)
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("name", ["tokenizer", "gpt", "mbpo"])
def test_a_log_of_another_script_is_not_replaced(name, tmp_path):
    script, settings, *_ = SCRIPTS[name]
    (tmp_path / "x.jsonl").write_text('{"ckpt": "a.pt"}\n{"model": "oracle"}\n')  # plan.py's
    with pytest.raises(ValueError, match="x.jsonl is no log of a training; pass another --out"):
        start(script, **settings, out=tmp_path / "x.pt")
    assert "oracle" in (tmp_path / "x.jsonl").read_text()


def test_plan_keeps_the_episodes_and_the_numbers_of_others(tmp_path):
    (tmp_path / "x-episodes.json").write_text('{"psnr": 1.0}\n')
    with pytest.raises(ValueError, match="x-episodes.json is there, of something else; pass another --out"):
        start(plan, ckpt="/nowhere", out=tmp_path / "x.json")
    (tmp_path / "m.json").write_text('{"psnr": {"model": 1.0}, "command": "python evaluate.py"}')
    with pytest.raises(ValueError, match="m.json exists: --overwrite true replaces it"):
        start(plan, ckpt="/nowhere", out=tmp_path / "m.json")
    with pytest.raises(ValueError, match="nums.json exists: --overwrite true replaces it"):
        (tmp_path / "nums.json").write_text("{}")
        report = flags(runs=tmp_path, out=tmp_path / "nums")
        mbpo_report.main(configure(mbpo_report.CONFIG, "", report))
    with pytest.raises(ValueError, match="d.png is there, of something else; pass another --out"):
        (tmp_path / "d.png").write_bytes(b"a picture")
        decouple.main(configure(decouple.CONFIG, "", flags(out=tmp_path / "d.json")))


@pytest.mark.parametrize("there, new", [("a.pt", "a"), ("a", "a.pt"), ("a.pt", "a.json"), ("a.json", "a.pt")])
def test_names_that_would_share_a_log_or_a_picture_are_refused(there, new, tmp_path):
    (tmp_path / there).write_text("")
    with pytest.raises(ValueError, match=f"there is .*/{there}, whose .jsonl, .png it would replace; pass"):
        claim(tmp_path / new, (".jsonl", ".png"), overwrite=False)


def test_pictures_and_folders_of_others_are_kept(tmp_path):
    (tmp_path / "x.png").write_bytes(b"a picture")
    with pytest.raises(ValueError, match="x.png is there, of something else; pass another --out"):
        start(train_tokenizer, **TOKENIZER_RUN, data="/nowhere", out=tmp_path / "x.pt")
    (tmp_path / "x.jsonl").write_text('{"step": 1}\n')  # of a run that was killed before it was saved
    with pytest.raises(FileNotFoundError, match="no episodes at /nowhere"):
        start(train_tokenizer, **TOKENIZER_RUN, data="/nowhere", out=tmp_path / "x.pt")
    (tmp_path / "b/real").mkdir(parents=True)
    (tmp_path / "b/real/mine.txt").write_text("x")
    with pytest.raises(ValueError, match="b/real holds other files than a replay; move"):
        start(mbpo, preset="push", out=tmp_path / "b.pt")
    (tmp_path / "m.json").write_text('{"psnr": {}, "command": "python evaluate.py"}')
    with pytest.raises(ValueError, match="m.json exists: --overwrite true replaces it"):
        speed.main(configure(speed.CONFIG, "", flags(preset="tiny", out=tmp_path / "m.json")))


def test_an_overwritten_run_that_is_killed_is_not_resumed_from_the_old_one(push, tmp_path, monkeypatch):
    out = tmp_path / "x.pt"
    train(train_tokenizer, **TOKENIZER_RUN, data=push, out=out)
    monkeypatch.setattr(train_tokenizer, "lr_at", lambda *settings: 1 / 0)  # a kill, before the first update
    with pytest.raises(ZeroDivisionError):
        train(train_tokenizer, **TOKENIZER_RUN, data=push, out=out, overwrite=True)
    with pytest.raises(SystemExit, match="--resume: no checkpoint at"):
        train(train_tokenizer, out=out, resume=True)


def test_whatever_is_in_the_way_is_one_line(tmp_path):
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "a").symlink_to(tmp_path / "b")
    for writes in (claim, lambda out: EpisodeWriter(out, "test")):
        with pytest.raises(ValueError, match="a: a link that leads nowhere"):
            writes(tmp_path / "a")
    (tmp_path / "x.pt.partial").mkdir()
    with pytest.raises(ValueError, match="x.pt.partial is a folder; expected the name of a file"):
        claim(tmp_path / "x.pt")
    (tmp_path / "list.json").write_text("[]")
    assert read_result(tmp_path / "list.json") == {}


def test_numbers_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "m.json"
    write_whole(path, b"old")

    def full(self, content):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["m.json"]


def test_too_little_memory_is_one_line(tmp_path):
    code = "import torch, common; common.run(lambda cfg: torch.empty(2**60), None)"
    done = python("-c", code)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("out of memory: ")


def test_claim_makes_no_folder_and_follows_links(tmp_path):
    assert claim(tmp_path / "a/b/x.pt") == (tmp_path / "a/b/x.pt").resolve() and not list(tmp_path.iterdir())
    (tmp_path / "large").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "large")
    assert claim(tmp_path / "link/x.pt") == tmp_path.resolve() / "large/x.pt"
