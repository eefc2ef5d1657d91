"""experiments/curves.py: validation curves of training runs, side by side, as one picture.

Run: python -m experiments.curves --logs out/push/tokenizer.jsonl,out/push/gpt.jsonl --out out/curves.png"""

from pathlib import Path

from common import configure, run
from support.files import claim
from support.results import draw_curves, read_curve

CONFIG = dict(
    logs=("out/tokenizer.jsonl", "out/gpt.jsonl"),  # beside the trainers' checkpoints
    metric="val_psnr",
    out="out/curves.png",
    overwrite=False,
)


def main(cfg):
    out = claim(cfg.out, overwrite=cfg.overwrite)
    panels = []
    for log in cfg.logs:
        curve = read_curve(log)
        if cfg.metric not in curve:
            raise ValueError(f"{log} has no {cfg.metric}; --metric takes one of {', '.join(curve)}")
        panels.append((Path(log).stem, "step", cfg.metric, {"": curve[cfg.metric]}))
    draw_curves(out, panels)


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__))
