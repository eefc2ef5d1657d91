"""results.py: where numbers come from, how they are written and read."""

import json
import sys

import pytest

from support import results


def test_learning_curves_are_read_without_lists_and_damaged_lines(tmp_path):
    lines = [dict(step=1, val_psnr=20.123456, loss=1.0, val_used=[1, 2]), dict(step=2, val_psnr=21.0)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "a.jsonl").write_text(text + '{"step": 3, "val_ps')
    assert results.read_curve(tmp_path / "a.jsonl") == dict(val_psnr=[[1, 20.12], [2, 21.0]])
    with pytest.raises(FileNotFoundError, match="no learning curve at .*none.jsonl"):
        results.read_curve(tmp_path / "none.jsonl")


def test_curves_are_drawn_and_without_matplotlib_a_line_says_so(tmp_path, monkeypatch, capsys):
    panel = "title", "step", "loss", dict(a=[(1, 2.0), (2, 1.0)], b=[(1, 3.0), (2, 2.0)])
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    results.draw_curves(tmp_path / "new" / "a.png", [panel])
    assert "pip install matplotlib" in capsys.readouterr().out
    monkeypatch.undo()
    pytest.importorskip("matplotlib", reason="pip install matplotlib")
    results.draw_curves(tmp_path / "new" / "a.png", [panel, panel], log_x=True)
    assert (tmp_path / "new" / "a.png").stat().st_size > 1000


def test_a_table_is_printed_and_written_with_gaps_where_numbers_are_missing(tmp_path, capsys):
    columns = dict(psnr=dict(model=20.0, best=21.5), tokens=dict(model=16))
    errors = dict(psnr=dict(model=0.5, best=0.0), tokens=dict(model=0.0))
    results.report(tmp_path / "m.json", columns, errors, missing=dict(fvd="no detector"), steps=3)
    table = (tmp_path / "m.md").read_text()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert cells[0] == ["", "PSNR (dB)", "tokens"] and set(cells[1]) == {"---"}
    assert cells[2:] == [["model", "20.00 ± 0.5", "16"], ["best", "21.50", ""]]
    printed = capsys.readouterr().out
    assert table in printed and "FVD: no detector" in printed
    numbers = json.loads((tmp_path / "m.json").read_text())
    assert numbers["psnr"] == columns["psnr"] and numbers["stderr"] == errors and numbers["steps"] == 3


def test_results_say_what_they_started_from_also_where_git_is_missing(tmp_path, monkeypatch):
    results.provenance.cache_clear()
    monkeypatch.setenv("PATH", "")
    results.claim_result(tmp_path / "a.json", overwrite=False)
    monkeypatch.undo()
    results.write_result(tmp_path / "a.json", dict(psnr=20.0))
    written = results.read_result(tmp_path / "a.json")
    results.provenance.cache_clear()
    assert written["commit"] == "unknown" and {"psnr", "command", "machine"} < set(written)
