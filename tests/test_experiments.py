"""experiments/: speed, the loader, the analyses of section 4.4, on models that have learned for two steps."""

import ast
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    GPT_RUN,
    GPT_TUNE,
    TOKENIZER_RUN,
    TOKENIZER_TUNE,
    flags,
    train,
)

import common
import plan
import train_gpt
import train_tokenizer
from checkpoints import SIZES, new_tokenizer
from common import configure
from data import to_float
from envs.push import ROBOTS, play_push
from experiments import (
    ablate,
    adapt,
    decouple,
    dreams,
    goal,
    lab,
    loader,
    plan_pusht,
    readout,
    rlvr,
    scaling,
    speed,
    tokenizers,
    transfer,
)
from sample import WorldModel
from support.networks import load_torchscript

# ---- speed ----


@pytest.mark.slow
def test_speed_is_measured_and_written_down(tmp_path, capsys):
    out = tmp_path / "speed.json"
    settings = dict(preset="tiny", device="cpu", horizon=2, branches=3, branch_horizon=2, batches=1)
    settings.update(train_batch=1, repeats=1, group=2, out=out)
    speed.main(configure(speed.CONFIG, "", flags(**settings)))
    numbers = json.loads(out.read_text())
    assert {"ours", "naive"} <= set(numbers["imagine_tiny"]["b1"])
    assert set(numbers["branches_tiny"]) == {"shared", "copies", "naive", "vs_naive"}
    assert numbers["decision"]["shared"]["seconds"] > 0
    assert numbers["draft"]["n1"]["vs_plain"] > 0
    assert numbers["group_tiny"]["vs_copies"] > 0
    assert numbers["interactive_tiny"]["frames_per_s"] > 0 and numbers["train_tiny"]["flops_per_s"] > 0
    assert numbers["train_tiny"]["vs_encoding"] > 1
    assert set(numbers["tokenizers_tiny"]) == {"4x4", "16x16", "compressive"}
    assert {"tokenize", "detokenize", "generate", "update"} < set(numbers["tokenizers_tiny"]["4x4"])
    assert {"commit", "machine"} <= set(numbers) and "branches_tiny" in capsys.readouterr().out


def test_unknown_presets_and_parts_are_refused():
    with pytest.raises(ValueError, match="preset is 'large'; expected one of tiny, small, medium"):
        speed.main(configure(speed.CONFIG, "", ["--preset", "large"]))
    with pytest.raises(ValueError, match="--parts typing: expected some of interactive,"):
        speed.main(configure(speed.CONFIG, "", ["--parts", "typing"]))


@pytest.mark.parametrize("actions", [True, False])
def test_the_authors_way_imagines_the_same_frames_and_rewards(trained, push, actions):
    """Greedy, for several branches of two scenes."""
    model = WorldModel.load(trained.gpt if actions else trained.free, "cpu", temperature=0.0)
    segments = lab.segments_for(model, str(push), 2, 4, seed=0)
    frames = segments["frames"][:, :2]
    given = segments["actions"][:, 1:5].repeat_interleave(3, 0) if actions else None
    model.reset(frames, 3)
    ours = model.rollout(given, 4)
    naive = speed.rollout_naive(model, frames, given, 4, n_branches=3)
    assert torch.allclose(naive[0], ours[0], atol=1e-4)
    assert torch.allclose(naive[1], ours[1], atol=1e-4) if actions else naive[1] is None


@pytest.mark.parametrize("preset", ["tiny", "small"])
def test_flops_of_an_update_are_those_of_a_hand_count(preset):
    tokenizer_settings, settings = SIZES[preset]
    layout = new_tokenizer(tokenizer_settings, "compressive").layout
    D, L = settings["n_embd"], layout.length(settings["segment_length"])
    n = L - layout.prompt + 1  # positions with logits; elsewhere, the last block stops at keys and values
    attention = 2 * L * D  # queries x keys and weights x values, for each token
    block = 4 * D * D + 3 * D * settings["n_mlp"]
    count = settings["n_layer"] * L * (block + attention) - (L - n) * (block - 3 * D * D)
    count += n * D * layout.vocab_size
    assert lab.update_flops(layout, settings) == pytest.approx(6 * count, rel=0.02)  # backward: twice as many


# ---- the loader ----


def test_the_loader_is_measured(tmp_path):
    settings = dict(episodes=40, size=16, seconds=0.2, out=tmp_path / "loader.json")
    loader.main(configure(loader.CONFIG, "", flags(**settings)))
    numbers = json.loads((tmp_path / "loader.json").read_text())
    assert numbers["segments_per_s"] > 0 and numbers["settings"]["episodes"] == 40


# ---- analyses ----


@pytest.fixture
def analyse(monkeypatch, tmp_path, push, trained):
    """Runs an analysis on small models that learn for two steps; returns its numbers."""

    def train_small(script, out, cfg, steps, **settings):
        run, tune = (TOKENIZER_RUN, TOKENIZER_TUNE) if "tokenizer" in script else (GPT_RUN, GPT_TUNE)
        module = train_tokenizer if "tokenizer" in script else train_gpt
        train(module, **{**(tune if "init_from" in settings else run), "data": push, "out": out, **settings})

    def analyse(module, **settings):
        settings.update(data=push, out=tmp_path / "numbers.json")
        given = dict(ckpt=trained.gpt, folder=tmp_path, device="cpu", videos=3, horizon=4, lpips=False)
        settings.update({k: v for k, v in given.items() if k in module.CONFIG})
        module.main(configure(module.CONFIG, "", flags(**settings)))
        assert module is ablate or (tmp_path / "numbers.png").stat().st_size > 1000
        assert "| ---" in (tmp_path / "numbers.md").read_text()
        return json.loads((tmp_path / "numbers.json").read_text())

    for module in (ablate, goal, lab, scaling, tokenizers):
        monkeypatch.setattr(module, "train", train_small)
    return analyse


@pytest.mark.slow
def test_tokenizers_are_compared(analyse):
    numbers = analyse(tokenizers, kinds="compressive,2x2", patch=4)
    assert numbers["tokens"] == {"compressive": 64 + 1 + 64 + 4 * 17, "2x2": 4 + 1 + 4 + 4 * 5}
    assert all(set(numbers[m]) == {"compressive", "2x2"} for m in ("psnr", "ssim", "mse"))


def test_frames_are_decoded_without_their_context(analyse):
    numbers = analyse(decouple, batch_size=2)
    assert set(numbers["motion"]) == {"cross-attention", "dropped"}
    assert numbers["psnr"]["cross-attention"] != numbers["psnr"]["dropped"]


@pytest.mark.slow
def test_three_models_are_compared_on_another_robot(analyse):
    models = {"as it was", "adapted tokenizer", "fine-tuned"}
    rows = models | {"repeat_last"} | {f"{name}: reconstruction" for name in models}
    assert set(analyse(transfer)["psnr"]) == rows


@pytest.mark.slow
def test_few_episodes_are_learned_from_scratch_and_from_a_checkpoint(analyse):
    rows = {f"{start}, {n} episodes" for start in ("scratch", "checkpoint") for n in (1, 2)}
    assert rows < set(analyse(adapt, shots="1,2")["psnr"])


@pytest.mark.slow
def test_sizes_are_compared_by_updates_and_flops(analyse):
    numbers = analyse(scaling, sizes="1x32,2x64", eval_every=1)
    assert [step for step, _ in numbers["curves"]["2x64"]] == [1, 2]
    assert all(numbers[k]["2x64"] > numbers[k]["1x32"] for k in ("parameters", "FLOPs"))


@pytest.mark.slow
def test_a_model_that_knows_the_goal_is_compared_where_it_should_arrive(analyse):
    assert {"action-free", "goal-conditioned"} < set(analyse(goal)["psnr"])


@pytest.mark.slow
def test_what_was_trained_is_not_trained_again_and_an_interrupted_training_continues(push64, tmp_path, capfd):
    given = dict(data=push64, batch_size=1, folder=tmp_path)
    cfg = configure(tokenizers.CONFIG, "", flags(**given))
    out, settings = tmp_path / "t.pt", dict(eval_segments=1, patch=8, channels=(16,))
    lab.train("train_tokenizer.py", out, cfg, 2, **settings)
    first = out.stat().st_mtime_ns
    lab.train("train_tokenizer.py", out, cfg, 2, **settings)
    assert out.stat().st_mtime_ns == first and capfd.readouterr().out.count("$ python ") == 1
    with pytest.raises(ValueError, match="t.pt was trained with other patch; delete it to train it anew"):
        lab.train("train_tokenizer.py", out, cfg, 2, **{**settings, "patch": 4})
    told = "train_gpt.py has failed or was stopped; its own message is above"
    with pytest.raises(ChildProcessError, match=told):
        lab.train("train_gpt.py", tmp_path / "g.pt", cfg, 2, tokenizer="nowhere.pt")
    state = common.load_checkpoint(out)
    common.save_checkpoint(out, **{**state, "step": 1})
    lab.train("train_tokenizer.py", out, cfg, 2, **settings)
    assert "--resume=True" in capfd.readouterr().out and common.load_checkpoint(out)["step"] == 2


def test_a_model_that_is_older_than_what_it_stands_on_is_not_taken_for_its_own(tmp_path):
    cfg = configure(tokenizers.CONFIG, "", [])
    source, out = tmp_path / "tokenizer.pt", tmp_path / "gpt.pt"
    settings = {key: getattr(cfg, key) for key in ("preset", "data", "batch_size", "seed")}
    settings.update(max_steps=2, tokenizer=str(source))
    common.save_checkpoint(out, step=2, train_config=settings)
    lab.train("train_gpt.py", out, cfg, 2, tokenizer=str(source))
    source.touch()
    os.utime(out, (0, 0))
    with pytest.raises(ValueError, match="gpt.pt is older than .*tokenizer.pt; delete it to train it anew"):
        lab.train("train_gpt.py", out, cfg, 2, tokenizer=str(source))


def test_episodes_that_are_not_there_name_the_command_that_makes_them(tmp_path):
    cfg = configure(transfer.CONFIG, "", flags(data=tmp_path / "none", folder=tmp_path))
    with pytest.raises(FileNotFoundError, match="try: python prepare.py push --robot cyan"):
        lab.train_both(cfg, "tuned", tune=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "row"),
    [("tokenizer", "no copy"), ("transformer", "no pos_init"), ("tuning", "no corrupt")],
)
def test_tricks_are_left_out_alone(analyse, part, row):
    numbers = analyse(ablate, part=part, rows=f"plain,{row}", segment_length=6)
    decoded = numbers["psnr"]
    assert set(numbers["loss"]) == {"plain", row} < set(decoded)
    assert (decoded["plain: reconstruction"] == decoded[f"{row}: reconstruction"]) == (part != "tokenizer")


def test_unknown_tricks_are_refused():
    with pytest.raises(ValueError, match="rows are copy; expected some of plain, no copy"):
        ablate.main(configure(ablate.CONFIG, "", ["--rows", "copy"]))


def test_a_long_dream_is_measured_at_some_frames(trained, tmp_path):
    out = tmp_path / "d.json"
    settings = dict(ckpt=trained.gpt, videos=3, frames="2,7", batch_size=2, device="cpu", out=out)
    dreams.main(configure(dreams.CONFIG, "", flags(**settings)))
    numbers = json.loads(out.read_text())
    for column in ("psnr", "repeat_last", "all_there"):
        assert set(numbers[column]) == {"frame 2", "frame 7"}
    assert numbers["repeat_last"]["frame 2"] > numbers["repeat_last"]["frame 7"]
    with pytest.raises(ValueError, match=r"frames are \(0, 3\); expected numbers of 1 or more"):
        dreams.main(configure(dreams.CONFIG, "", flags(**{**settings, "frames": "0,3"}, overwrite=True)))


def test_objects_are_counted_by_their_colours():
    episode = next(play_push(1, 4, seed=5))
    truth = to_float(episode["frames_u8"])[None]
    gripper = torch.tensor([ROBOTS["red"][0]])
    colours = torch.cat([gripper, torch.from_numpy(episode["colours"])])[None] / 255
    counts = dreams.pixels_of(truth, colours)
    assert 40 < counts.min() and counts.max() < 250  # a disc of 104 less its mark, squares
    assert (dreams.count_there(truth, truth, colours) == 3).all()
    table = truth[:, :, :, :1, :1].expand_as(truth)
    assert not dreams.count_there(table, truth, colours).any()


SCRIPTS = [path for path in Path(lab.__file__).parent.glob("*.py") if "__main__" in path.read_text()]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_experiment_says_how_to_run_it(path):
    assert f"Run: python -m experiments.{path.stem}" in ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.slow
def test_post_training_is_compared_with_lower_temperatures_and_more_likelihood(trained, push, tmp_path):
    out = tmp_path / "numbers.json"
    settings = dict(
        ckpt=trained.gpt, data=push, videos_of=push, videos=2, horizon=3, samples=2, best_of="1,2",
        temperatures="0,1", seeds=2, batch_size=2, batches=1, mini_batches=2, device="cpu", folder=tmp_path,
    )  # fmt: skip
    rlvr.main(configure(rlvr.CONFIG, "", flags(**settings, out=out)))
    numbers = json.loads(out.read_text())
    assert numbers["seeds"] == 2 and numbers["temperature"] in (0, 1)
    assert {"psnr", "ssim"} < set(numbers["before"]) == set(numbers["before_best_temperature"])
    for row in ("after", "more_likelihood"):
        assert set(numbers[row]["psnr"]) == {"mean", "min", "max"}
    assert set(numbers["best_of"]) == {"1", "2"}
    assert numbers["best_of"]["2"]["after"]["psnr"] >= numbers["best_of"]["1"]["after"]["psnr"]
    assert out.with_suffix(".png").is_file()


# ---- PushT ----


def test_every_run_of_pusht_is_one_that_plan_takes(tmp_path, monkeypatch):
    runs = {}

    def play(script, out, settings):
        cfg = configure(plan.CONFIG, "", flags(**settings), plan.PRESETS)
        plan.check(cfg)
        runs[out.stem] = cfg
        rows = {model: dict(mean=0.5) for model in cfg.models}
        out.write_text(json.dumps(dict(rows, settings=dict(candidates=cfg.candidates))))

    monkeypatch.setattr(plan_pusht, "run_script", play)
    settings = dict(budgets="50", folder=tmp_path, out=tmp_path / "numbers.json")
    plan_pusht.main(configure(plan_pusht.CONFIG, "", flags(**settings)))
    assert runs["protocol_a"].steps == 25 and runs["protocol_b"].steps == 10
    assert runs["published"].candidates == 9000 and runs["published"].episodes == 20
    assert runs["pixel"].pixel == 1 and not runs["pixel"].features and runs["protocol_b"].features
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert set(numbers["budgets"]) == {"50", "60"}
    assert {"nothing", "random", "script", "oracle", "world_model"} < set(numbers)
    assert {"nothing", "random", "script", "oracle", "world_model"} < set(numbers["protocol_a"])


def test_poses_are_read_from_pictures(tmp_path):
    """Nothing is learned in two steps; what is written is a network that plan.py takes."""
    out = tmp_path / "readout.pt"
    settings = dict(out=out, steps=2, batch_size=4, size=32)
    readout.main(configure(readout.CONFIG, "", flags(**settings)))
    network = load_torchscript(out, "cpu", "")
    assert network(torch.rand(5, 3, 32, 32)).shape == (5, 6)


def test_a_distance_of_features_is_the_benchmarks_and_the_block_counts_thrice():
    states = readout.draw_states(50, np.random.default_rng(0))
    features = readout.features_of(states)
    assert readout.errors(features, states) == dict(disc=0, block=0, angle=0)
    turn = 3 * 0.02 / (np.pi / 9)
    for change, distance in ((20, 0, 0, 0, 0), 1), ((0, 0, 12, 16, 0), 3), ((0, 0, 0, 0, 0.02), turn):
        moved = readout.features_of(states + np.array(change))
        np.testing.assert_allclose((moved - features).norm(dim=1), distance, rtol=1e-3)
    assert readout.errors(readout.features_of(states + [20, 0, 0, 0, 0]), states)["disc"] == pytest.approx(20)
