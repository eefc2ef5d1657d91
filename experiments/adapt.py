"""experiments/adapt.py: few episodes of another robot: fine-tuning against training from scratch (Figure 9a).

Run: python -m experiments.adapt --shots 10,100,1000"""

from common import configure, run
from experiments.lab import TUNING, VIDEOS, compare, open_world, train_both
from support.files import beside
from support.results import claim_result, draw_curves, report

CONFIG = dict(**TUNING, **VIDEOS, shots=(10, 100, 1000), folder="out/adapt", out="out/adapt/numbers.json")


def main(cfg):
    cfg.out = claim_result(cfg.out, cfg.overwrite)
    models = {}
    for start in ("scratch", "checkpoint"):
        for n in cfg.shots:
            _, gpt = train_both(cfg, f"{start}-{n}", tune=start == "checkpoint", episodes=n)
            models[f"{start}, {n} episodes"] = open_world(cfg, gpt)
    columns, missing = compare(cfg, models)
    report(cfg.out, columns, missing=missing, steps=(cfg.tokenizer_steps, cfg.steps))
    metric = "fvd" if "fvd" in columns else "psnr"
    curves = {}
    for start in ("scratch", "checkpoint"):
        curves[f"from {start}"] = [(n, columns[metric][f"{start}, {n} episodes"]) for n in cfg.shots]
    panel = "", "episodes of the other robot", metric.upper(), curves
    draw_curves(beside(cfg.out, ".png"), [panel], log_x=True)


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__))
