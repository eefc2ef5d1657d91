"""experiments/transfer.py: a trained model on episodes of another robot (Figure 8).

Three models are compared: as it was, with an adapted tokenizer (zero-shot), and fine-tuned as a whole.

Run: python -m experiments.transfer"""

from common import configure, run
from experiments.lab import TUNING, VIDEOS, compare, draw_futures, open_world, train_both
from support.results import claim_result, report

CONFIG = dict(**TUNING, **VIDEOS, folder="out/transfer", out="out/transfer/numbers.json")


def main(cfg):
    cfg.out = claim_result(cfg.out, cfg.overwrite)
    tokenizer, gpt = train_both(cfg, "tuned", tune=True)
    models = {
        "as it was": open_world(cfg, cfg.ckpt),
        "adapted tokenizer": open_world(cfg, cfg.ckpt, tokenizer),
        "fine-tuned": open_world(cfg, gpt),
    }
    columns, missing = compare(cfg, models)
    report(cfg.out, columns, missing=missing, steps=(cfg.tokenizer_steps, cfg.steps))
    draw_futures(cfg, models)


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__))
