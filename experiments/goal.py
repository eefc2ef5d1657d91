"""experiments/goal.py: futures of a model that knows the last frame, and of one that does not (Figure 4).

Both are action-free, and compared on the last frame that they imagine: the goal.

Run: python -m experiments.goal"""

from checkpoints import load_tokenizer
from common import configure, run
from experiments.lab import TRAINING, VIDEOS, compare, draw_futures, open_world, train
from support.results import claim_result, report

CONFIG = dict(
    **TRAINING,
    **VIDEOS,
    ckpt="assets/push-tiny.pt",
    tune_lr=1.5e-3,
    steps=3000,
    folder="out/goal",
    out="out/goal/numbers.json",
)


def main(cfg):
    cfg.out = claim_result(cfg.out, cfg.overwrite)
    t = load_tokenizer(cfg.ckpt).layout.context_frames
    models = {}
    for name, conditioned in (("action-free", False), ("goal-conditioned", True)):
        path = f"{cfg.folder}/{name}.pt"
        kind = dict(actions=False, rewards=False, goal_conditioned=conditioned)
        kind["segment_length"] = t + cfg.horizon + conditioned
        train("train_gpt.py", path, cfg, cfg.steps, init_from=cfg.ckpt, lr=cfg.tune_lr, **kind)
        models[name] = open_world(cfg, path)
    columns, missing = compare(cfg, models, frames="last")
    report(cfg.out, columns, missing=missing, steps=cfg.steps)
    draw_futures(cfg, models)


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__))
