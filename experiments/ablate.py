"""experiments/ablate.py: what is each trick of the preset `tiny` worth? Each is left out alone.

    ROWS --short runs, equal updates--> reconstruction, what is imagined (PSNR, SSIM): a table

A row that changes the tokenizer trains both models, the others a transformer on the first row's tokenizer.
Models that exist are not trained again, so that several processes can share the rows:

    OMP_NUM_THREADS=1 python -m experiments.ablate --rows plain --out out/ablate/a.json     and so on, then
    python -m experiments.ablate                                                            the table"""

from pathlib import Path

from common import configure, run
from experiments.lab import TRAINING, VIDEOS, compare, open_world, train
from support.results import claim_result, report

CONFIG = dict(
    **TRAINING,
    **VIDEOS,
    rows=(),  # of ROWS; none: all of them
    tokenizer_steps=600,
    steps=1000,  # of the transformer
    folder="out/ablate",
    out="out/ablate/numbers.json",
)
# What each row changes: settings of the tokenizer's training, of the transformer's.
ROWS = {
    "plain": ({}, {}),
    "without copy": (dict(copy=False), {}),
    "without l2": (dict(l2=0.0), {}),
    "without pos_init of the tokenizer": (dict(pos_init=0.0), {}),
}


def path_of(cfg, row, kind):
    return f"{cfg.folder}/{row.replace(' ', '-')}-{kind}.pt"


def train_row(cfg, row):
    """Train what a row needs -> the path of its transformer."""
    changes, gpt_changes = ROWS[row]
    owner = row if changes else "plain"
    tokenizer = path_of(cfg, owner, "tokenizer")
    train("train_tokenizer.py", tokenizer, cfg, cfg.tokenizer_steps, **changes)
    gpt = path_of(cfg, row, "gpt")
    train("train_gpt.py", gpt, cfg, cfg.steps, tokenizer=tokenizer, **gpt_changes)
    return gpt


def main(cfg):
    rows = cfg.rows or tuple(ROWS)
    if unknown := sorted(set(rows) - set(ROWS)):
        raise ValueError(f"rows are {', '.join(unknown)}; expected some of {', '.join(ROWS)}")
    cfg.out = claim_result(cfg.out, cfg.overwrite)
    Path(cfg.folder).mkdir(parents=True, exist_ok=True)
    columns = {name: {} for name in ("reconstruction", "psnr", "ssim")}
    for row in rows:
        model = open_world(cfg, train_row(cfg, row))
        found, missing = compare(cfg, {row: model})
        columns["reconstruction"][row] = found["psnr"][f"{row}: reconstruction"]
        columns["psnr"][row] = found["psnr"][row]
        columns["ssim"][row] = found["ssim"][row]
    report(cfg.out, columns, missing=missing)


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__))
