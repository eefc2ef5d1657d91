"""experiments/live.py: play.py in a real browser: how fast is it, and does it last?

    speed   a key is held: frames/s that the page gets, and the share of a step that is not the model's
    hour    random play: keys, forks, choices, undo, scenes, pictures, settings, nonsense

The server is a process of its own, whose memory is read from /proc (Linux). Needs playwright and Chromium.

Run: python -m experiments.live"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from common import configure, require_positive, run
from support.browser import open_browser, open_page
from support.results import claim_result, read_result, write_result

CONFIG = dict(
    parts=("speed", "hour"),
    ckpt="assets/push-tiny.pt",
    seconds=30,  # of each measurement of speed
    repeats=3,
    minutes=60,  # of random play; its first and last sixth are compared
    seed=0,
    out="out/live/play.json",
    overwrite=False,
)
COUNT = """() => {  // steps that the page has shown, and what the server said of them
  const plain = showStep;
  window.made = 0; window.model_ms = 0; window.worst = [];
  showStep = found => { plain(found); if (found) { made++; model_ms += found.model_ms; } };
  const told = say;
  say = (text, isError) => { if (isError) worst.push(text); told(text, isError); };
}"""
NONSENSE = (
    '{"do": "step", "action": [NaN, 0]}',
    '{"do": "step", "action": [9, 9]}',
    '{"do": "picture", "file": "!"}',
    '{"do": "scene", "seed": -5}',
    '{"do": "choose", "future": 99}',
    '{"do": 1}',
    "[",
    "",
)


class Visit:
    """A server, and a page of it in a browser, in a `with` statement."""

    def __init__(self, browser, cfg):
        program = Path(__file__).parents[1] / "play.py"
        command = [sys.executable, str(program), f"--ckpt={cfg.ckpt}", "--port=0", "--open=false"]
        self.server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.browser = browser

    def __enter__(self):
        try:
            lines = iter(self.server.stdout.readline, "")
            address = next((line.split()[0] for line in lines if line.startswith("http")), "")
            if not address:
                raise OSError("play.py has ended; its message is above")
            self.page = open_page(self.browser, address)
        except BaseException:
            self.server.kill()
            raise
        self.page.evaluate(COUNT)
        return self

    def __exit__(self, *_):
        self.page.close()
        self.server.terminate()
        self.server.wait()

    def memory(self):
        """Resident memory of the server, in megabytes."""
        pages = int(Path(f"/proc/{self.server.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE") / 1e6

    def hold(self, key, seconds):
        """Hold a key -> frames/s, and the model's share of the time."""
        made, model_ms = self.page.evaluate("[made, model_ms]")
        began = time.perf_counter()
        self.page.keyboard.down(key)
        self.page.wait_for_timeout(1000 * seconds)
        self.page.keyboard.up(key)
        self.page.evaluate("answered()")
        passed = time.perf_counter() - began
        steps, total_ms = self.page.evaluate("[made, model_ms]")
        return (steps - made) / passed, (total_ms - model_ms) / 1000 / passed


def speed(visit, cfg):
    rows = dict(beside=[], alone=[], share=[])
    visit.hold("ArrowRight", 5)
    for k in range(cfg.repeats):
        visit.page.evaluate("seed => tell({do: 'scene', seed})", k)
        rate, share = visit.hold("ArrowRight", cfg.seconds)
        rows["beside"].append(rate)
        rows["share"].append(1 - share)
        # a picture of the dream itself is a scene without a truth
        visit.page.evaluate("document.querySelector('canvas').toBlob(take)")
        visit.page.wait_for_function("!about.has_truth")
        rows["alone"].append(visit.hold("ArrowRight", cfg.seconds)[0])
    return dict(
        frames_per_s=statistics.median(rows["beside"]),
        frames_per_s_dream_alone=statistics.median(rows["alone"]),
        overhead_share=statistics.median(rows["share"]),
        measured=rows,
    )


def act_at_random(page, rng):
    """One thing that a visitor might do besides holding keys."""
    what = rng.integers(10)
    if what < 3:
        page.click(("#undo", "#once", "#back")[what], no_wait_after=True, force=True)
    elif what == 3:
        page.click("#fork")
        page.keyboard.down("ArrowUp")
        page.wait_for_timeout(1000)
        page.keyboard.up("ArrowUp")
        page.evaluate("answered()")
        page.locator(".dream").nth(int(rng.integers(page.locator(".dream").count()))).click()
    elif what < 6:
        page.click("#scene")
    elif what == 6:
        page.keyboard.press("ht"[rng.integers(2)])  # without a truth on the page, t does nothing
    elif what == 7:
        page.evaluate("document.querySelector('canvas').toBlob(take)")
    elif what == 8:
        page.evaluate("fetch('/episode.gif').then(answer => answer.blob())")
    else:
        body = NONSENSE[rng.integers(len(NONSENSE))]
        headers = {"Content-Type": "application/json"}
        page.evaluate("([body, headers]) => fetch('/do', {method: 'POST', headers, body})", [body, headers])
    page.evaluate("answered()")


def hour(visit, cfg):
    rng = np.random.default_rng(cfg.seed)
    began = time.perf_counter()
    marks = []  # (seconds, steps, megabytes) every few seconds
    while (now := time.perf_counter() - began) < 60 * cfg.minutes:
        marks.append((now, visit.page.evaluate("made"), visit.memory()))
        for _ in range(3):
            visit.hold(rng.choice(["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"]), rng.uniform(0.5, 2))
        act_at_random(visit.page, rng)
    errors = visit.page.evaluate("worst") + visit.page.complaints
    seconds, steps, megabytes = np.array(marks).T
    part = 10 * cfg.minutes  # seconds of a sixth
    early = np.searchsorted(seconds, part)
    late = np.searchsorted(seconds, seconds[-1] - part)
    rate = [steps[early] / seconds[early], (steps[-1] - steps[late]) / (seconds[-1] - seconds[late])]
    return dict(
        steps=int(steps[-1]), errors=len(errors), what=errors[:20],
        memory_growth_megabytes=float(megabytes[late:].max() - megabytes[:early].max()),
        megabytes=[round(x) for x in megabytes[:: max(1, len(megabytes) // 12)]],
        frames_per_s=rate[1] / rate[0], rates=rate,
    )  # fmt: skip


def main(cfg):
    require_positive(cfg, "seconds", "repeats", "minutes")
    numbers = {} if cfg.overwrite else read_result(cfg.out)
    out = claim_result(cfg.out, cfg.overwrite or bool(numbers), endings=())
    with open_browser() as browser:
        if "speed" in cfg.parts:
            with Visit(browser, cfg) as visit:
                numbers.update(speed(visit, cfg))
        if "hour" in cfg.parts:
            with Visit(browser, cfg) as visit:
                numbers["hour"] = hour(visit, cfg)
    print(json.dumps(numbers, indent=1))
    write_result(out, numbers)


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__))
