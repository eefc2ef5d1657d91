"""common.py: settings, learning rates, checkpoints, logs and signals."""

import ast
import inspect
import json
import os
import signal

import pytest
import torch
from conftest import ROOT

import common
import gpt
import prepare
import tokenizer
from common import configure, load_checkpoint, log, lr_at, run, save_checkpoint, start_log, stop_signal
from support.devices import autocast_for
from variants import tiny

CONFIG = dict(preset="a", steps=10, lr=1e-3, flag=True, channels=(1, 2), out="x")
PRESETS = dict(a={}, b=dict(steps=20, lr=2.0))


def settings(*argv, presets=None):
    return configure(CONFIG, "the doc", argv, presets)


# ---- configure ----


def test_configure_without_arguments_returns_the_defaults():
    assert vars(settings()) == CONFIG


def test_configure_reads_both_syntaxes_in_the_types_of_the_defaults():
    cfg = settings("--steps", "-5", "--lr=2e-4", "--flag", "False", "--channels", "3,4,5", "--out=a=b")
    assert vars(cfg) == dict(preset="a", steps=-5, lr=2e-4, flag=False, channels=(3, 4, 5), out="a=b")
    assert settings("--flag=1").flag is True and settings("--flag=0").flag is False


def test_configure_takes_dashes_for_underscores():
    assert configure(dict(max_steps=1), "", ["--max-steps", "3"]).max_steps == 3


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--step", "5"], "--step: no such key; did you mean --steps"),
        (["--steps"], "--steps: a value is missing, like --steps 10"),
        (["--steps", "--lr", "1"], "--steps: a value is missing"),
        (["--steps", "1.5"], "--steps 1.5: expected a int, like 10"),
        (["--lr", "fast"], "--lr fast: expected a float, like 0.001"),
        (["--flag", "maybe"], "--flag maybe: expected a bool, like True"),
        (["--channels", "1,x"], "--channels 1,x: expected a tuple, like 1,2"),
        (["steps", "5"], "steps: expected --key value or --key=value"),
        (["--preset", "c\nd"], "--preset 'c\\nd': expected one of a, b"),
        (["--lr", "nan"], "--lr nan: expected a float, like 0.001"),
        (["--lr=-inf"], "--lr -inf: expected a float"),
        (["--steps", str(2**63)], f"--steps {2**63}: expected a int, like 10"),
        (["--channels", "1,99999999999999999999"], "--channels 1,99999999999999999999: expected a tuple"),
    ],
)
def test_configure_exits_with_one_line_that_names_the_mistake(argv, message):
    with pytest.raises(SystemExit) as exit:
        settings(*argv, presets=PRESETS)
    assert str(exit.value).startswith(message) and "\n" not in str(exit.value)


def test_a_seed_is_not_negative():
    with pytest.raises(SystemExit, match="--seed -1: expected 0 or more"):
        configure(dict(seed=0), "", ["--seed", "-1"])


def test_a_preset_changes_defaults_and_an_argument_changes_a_preset_wherever_it_stands():
    assert settings(presets=PRESETS).steps == 10
    cfg = settings("--steps", "7", "--preset", "b", presets=PRESETS)
    assert (cfg.steps, cfg.lr, cfg.preset) == (7, 2.0, "b")
    assert sorted(cfg.given) == ["preset", "steps"]


def test_a_resumed_run_takes_its_settings_from_its_checkpoint_unless_they_are_given(tmp_path):
    out, config = tmp_path / "x.pt", {**CONFIG, "resume": False}
    save_checkpoint(out, train_config=dict(preset="b", steps=7, lr=3.0, out=str(out), gone=1))
    arguments = ["--resume", "true", "--out", str(out), "--lr", "5"]
    cfg = configure(config, "", arguments, PRESETS)
    assert (cfg.preset, cfg.steps, cfg.lr, cfg.flag, cfg.resume) == ("b", 7, 5.0, True, True)
    with pytest.raises(SystemExit, match="--resume: no checkpoint at .*none.pt"):
        configure(config, "", ["--resume=true", f"--out={tmp_path / 'none.pt'}"], PRESETS)


def test_a_copied_checkpoint_is_resumed_in_its_own_place(tmp_path):
    save_checkpoint(tmp_path / "copy.pt", train_config=dict(out=str(tmp_path / "original.pt")))
    config = {**CONFIG, "resume": False, "out": str(tmp_path / "copy.pt")}
    assert configure(config, "", ["--resume=true"]).out == config["out"]


def test_help_prints_the_doc_and_every_key_and_exits_with_0(capsys):
    with pytest.raises(SystemExit) as exit:
        settings("--help")
    printed = capsys.readouterr().out
    assert exit.value.code == 0 and "the doc" in printed
    assert all(f"--{key} {value!r}" in printed for key, value in CONFIG.items())


# ---- the scripts' settings ----


def nodes_of(module, kind):
    """Syntax nodes of one kind in the module's functions and classes, that is outside of its settings."""
    parts = ast.parse(inspect.getsource(module)).body
    code = [part for part in parts if isinstance(part, ast.FunctionDef | ast.ClassDef)]
    return [node for part in code for node in ast.walk(part) if isinstance(node, kind)]


@pytest.mark.parametrize("model", [tokenizer, gpt])
def test_every_setting_of_a_model_is_read(model):
    assert not set(model.SMALL) - {node.value for node in nodes_of(model, ast.Constant)}


def test_every_setting_of_a_variant_is_taken():
    for model, settings in ((tiny.TinyTokenizer, tiny.TOKENIZER_OFF), (tiny.TinyGPT, tiny.GPT_OFF)):
        assert set(settings) <= set(inspect.signature(model).parameters)
    assert set(tiny.TOKENIZER) == {*tokenizer.SMALL, *tiny.TOKENIZER_OFF}
    assert set(tiny.TRANSFORMER) == {*gpt.SMALL, *tiny.GPT_OFF}


@pytest.mark.parametrize("command", prepare.COMMANDS)
def test_every_setting_of_an_importer_is_a_parameter_of_its_function(command):
    function, config = prepare.COMMANDS[command]
    taken = set(inspect.signature(function).parameters) - {"how"}
    if command == "push":  # it hands the others on
        taken |= set(inspect.signature(prepare.play_push).parameters) - {"look"}
    assert set(config) == taken


def test_what_a_preset_that_fine_tunes_sets_counts_as_given():
    config, presets = dict(CONFIG, init_from=""), dict(PRESETS, tuned=dict(init_from="x.pt", steps=5))
    given = configure(config, "", ["--preset=tuned", "--lr=1"], presets).given
    assert given == ("init_from", "steps", "preset", "lr")
    assert configure(config, "", ["--preset=b"], presets).given == ("preset",)


ROOMS = "support", "variants", "envs", "importers", "experiments"
FILES = sorted([*ROOT.glob("*.py"), *(path for room in ROOMS for path in ROOT.glob(f"{room}/*.py"))])
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES if path.name != "__init__.py"]


@pytest.mark.parametrize("name", NAMES)
def test_every_file_begins_with_its_name(name):
    assert ast.get_docstring(ast.parse((ROOT / name).read_text())).startswith(name)


# ---- learning rate ----


def test_lr_warms_up_linearly_then_stays_or_falls_as_a_cosine():
    rates = [lr_at(step, 8.0, 4, 12, "cosine") for step in (0, 1, 3, 4, 8, 12, 99)]
    assert rates == pytest.approx([2, 4, 8, 8, 4, 0, 0])
    assert [lr_at(step, 8.0, 4, 12, "constant") for step in (0, 4, 99)] == [2, 8, 8]
    assert lr_at(0, 8.0, 0, 12, "cosine") == 8


@pytest.mark.parametrize("step", [0, 5])
def test_an_unknown_schedule_is_an_error(step):
    with pytest.raises(ValueError, match="schedule is 'linear'; expected constant or cosine"):
        lr_at(step, 1.0, 2, 10, "linear")


def test_mixed_precision_is_on_where_it_is_asked_for():
    cpu = torch.device("cpu")
    enabled = [autocast_for(cpu, dtype)._enabled for dtype in ("auto", "bf16", "float32")]
    assert enabled == [False, True, False]
    with pytest.raises(ValueError, match="dtype is 'fp16'; expected auto, bf16 or float32"):
        autocast_for(cpu, "fp16")


# ---- checkpoints ----


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    state = dict(weights=dict(a=torch.randn(3)), step=7, config=dict(channels=(1, 2), name="x"))
    save_checkpoint(tmp_path / "new" / "x.pt", **state)
    loaded = load_checkpoint(tmp_path / "new" / "x.pt", needs=("weights", "step"))
    assert torch.equal(loaded.pop("weights")["a"], state.pop("weights")["a"]) and loaded == state


def test_a_missing_checkpoint_is_named(tmp_path):
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"no checkpoint at {path}"):
            load_checkpoint(path)


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = tmp_path / "x.pt"
    save_checkpoint(path, weights=torch.randn(1000))
    whole = path.read_bytes()
    for damaged in (b"not a checkpoint", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="x.pt is not a readable checkpoint"):
            load_checkpoint(path)


def test_a_bit_that_flips_in_a_checkpoints_weights_is_noticed(tmp_path):
    """torch.load by itself takes the file as it is."""
    path = tmp_path / "x.pt"
    save_checkpoint(path, weights=torch.zeros(1000))
    data = bytearray(path.read_bytes())
    data[data.index(bytes(4000)) + 2000] ^= 1
    path.write_bytes(data)
    assert torch.load(path, weights_only=True)["weights"].any()
    with pytest.raises(ValueError, match="x.pt is not a readable checkpoint .Bad CRC|inside is damaged"):
        load_checkpoint(path)


def test_a_checkpoint_without_a_needed_entry_names_it(tmp_path):
    save_checkpoint(tmp_path / "x.pt", step=1)
    with pytest.raises(ValueError, match="x.pt holds no gpt, tokenizer; expected .* gpt, step, tokenizer"):
        load_checkpoint(tmp_path / "x.pt", needs=("gpt", "step", "tokenizer"))


def test_a_save_that_breaks_off_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    def break_off(state, path):
        path.write_bytes(b"half a file")
        raise OSError("disk full")

    save_checkpoint(tmp_path / "x.pt", step=1)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(torch, "save", break_off)
        save_checkpoint(tmp_path / "x.pt", step=2)
    assert load_checkpoint(tmp_path / "x.pt") == dict(step=1)
    save_checkpoint(tmp_path / "x.pt", step=3)  # and what was left does not disturb the next save
    assert load_checkpoint(tmp_path / "x.pt") == dict(step=3)


def test_a_checkpoint_is_whole_before_it_takes_its_place(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "x.pt", step=1)
    save, seen = torch.save, []

    def watch(state, path):
        save(state, path)
        seen.append(load_checkpoint(tmp_path / "x.pt"))

    monkeypatch.setattr(torch, "save", watch)
    save_checkpoint(tmp_path / "x.pt", step=2)
    assert seen == [dict(step=1)] and load_checkpoint(tmp_path / "x.pt") == dict(step=2)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


# ---- logs, signals, errors ----


def test_log_prints_fixed_fields_and_appends_the_same_numbers(tmp_path, capsys):
    log(1200, tmp_path / "x.jsonl", loss=3.14159, lr=1e-4, ms=412.3)
    assert capsys.readouterr().out == "step 1200 | loss 3.142 | lr 1.0e-04 | 412 ms\n"
    assert json.loads((tmp_path / "x.jsonl").read_text()) == dict(step=1200, loss=3.14159, lr=1e-4, ms=412.3)


def test_start_log_drops_the_lines_after_the_resumed_step(tmp_path):
    out = tmp_path / "x.jsonl"
    for step in (1, 2, 2, 3, 4):
        log(step, out, loss=0.0)
    start_log(out, 2)
    assert [json.loads(line)["step"] for line in out.read_text().splitlines()] == [1, 2, 2]
    start_log(out, 0)
    assert out.read_text() == ""


@pytest.fixture
def handlers():
    """Signal handlers as they were before the test, put back after it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_sigterm_sets_the_stop_event_and_a_second_ctrl_c_leaves_at_once(handlers):
    stop = stop_signal()
    assert not stop.is_set()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.is_set()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()


def test_run_turns_our_own_errors_into_one_line_and_leaves_others_alone(tmp_path):
    with pytest.raises(SystemExit, match="^FileNotFoundError: no checkpoint at"):
        run(lambda cfg: load_checkpoint(cfg), tmp_path / "none.pt")
    with pytest.raises(ValueError, match="Expecting value"):
        run(lambda cfg: json.loads(cfg), "a bug, not bad input")


def test_agreed_is_the_flag_itself_in_a_single_process():
    assert common.agreed(True, "cpu") and not common.agreed(False, "cpu")
