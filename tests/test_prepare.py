"""prepare.py: its commands."""

import pytest
from conftest import python

import prepare
from data import Episodes


def test_the_push_command_writes_a_folder_and_wrong_commands_exit_with_a_message(tmp_path, capsys):
    out = tmp_path / "push"
    prepare.main(["push", "--out", str(out), "--episodes=3", "--length", "4", "--size", "32"])
    assert Episodes(out, "all").lengths.tolist() == [5, 5, 5] and "success" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="^ValueError: .* exists and is not an empty folder"):
        prepare.main(["push", "--out", str(out)])
    with pytest.raises(SystemExit, match="pull: no such command; expected push, .*, video, vp2, bair"):
        prepare.main(["pull"])
    with pytest.raises(SystemExit) as exit:
        prepare.main([])
    assert exit.value.code == 0 and "python prepare.py push" in capsys.readouterr().out


def test_every_command_is_listed_and_has_help(capsys):
    with pytest.raises(SystemExit):
        prepare.main(["--help"])
    listed = capsys.readouterr().out
    for name, (_, config) in prepare.COMMANDS.items():
        assert f"\n  {name} " in listed
        with pytest.raises(SystemExit) as exit:
            prepare.main([name, "--help"])
        shown = capsys.readouterr().out
        assert exit.value.code == 0 and all(f"--{key} " in shown for key in config)


def test_data_py_says_where_its_commands_have_gone():
    done = python("data.py", "push", "--out", "data/push")
    assert done.returncode == 1 and "python prepare.py push --out data/push" in done.stderr


def test_an_unknown_task_is_one_line():
    pytest.importorskip("metaworld")
    done = python("prepare.py", "script", "--tasks", "fly", "--out", "out/fly")
    assert done.returncode == 1 and "task is 'fly'; expected push" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
