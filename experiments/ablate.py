"""experiments/ablate.py: what is each trick of the preset `tiny` worth? Each is left out, or added, alone.

    TOKENIZERS    short runs of both models                   --+
    TRANSFORMERS  short runs on one trained tokenizer         --+--> loss, PSNR, SSIM
    TUNINGS       further updates of one trained transformer  --+

Models that exist are not trained again. Two cores train two rows at a time:

    OMP_NUM_THREADS=1 python -m experiments.ablate --part tokenizer --rows plain --out out/ablate/a.json
    python -m experiments.ablate --part tokenizer               the table, when all rows are there

`loss` is the cross-entropy of the true codes (nats); the rest is of imagined frames and reconstructions.

Run: python -m experiments.ablate"""

from pathlib import Path

from common import configure, require_positive, run
from experiments.lab import TRAINING, VIDEOS, compare, open_world, train
from support.files import beside
from support.results import claim_result, read_curve, report

CONFIG = dict(
    **TRAINING,
    **VIDEOS,
    part="tokenizer",  # or transformer, tuning
    rows=(),  # of this part; none: all of them
    ckpt="assets/push-tiny.pt",  # whose tokenizer the transformers stand on, and what is tuned
    tokens="",  # segments that it has encoded (prepare.py tokens)
    tokenizer_steps=500,
    steps=500,  # of the transformer
    segment_length=16,
    warmup=50,
    tune_lr=5e-4,
    train_dtype="auto",  # of the transformer's training: bf16 is faster on CPUs that have it
    folder="out/ablate",
    out="",  # by default FOLDER/PART.json
)
FSQ = dict(fsq=True, context_codes=1000, dynamics_codes=1000)
TOKENIZERS = {  # what each row changes in train_tokenizer.py
    "plain": {},
    "no copy": dict(copy=False),
    "no still": dict(still=0.0),
    "no disguise": dict(disguise=False),
    "no l2": dict(l2=0.0),
    "no pos_init": dict(pos_init=0.0),
    "AdamW": dict(muon=False),
    "64 tokens a context frame": dict(channels=(48, 64)),
    "patch 2": dict(patch=2, channels=(32, 64)),
    "128 dynamics codes": dict(dynamics_codes=128),
    "fsq": FSQ,
    "no revival": dict(revive_after=0),
}
TRANSFORMERS = {  # and in train_gpt.py
    "plain": {},
    "no pos_init": dict(pos_init=0.0),
    "AdamW": dict(muon=False),
    "no corrupt": dict(corrupt=0.0),
}
TUNINGS = {
    "plain": {},
    "no corrupt": dict(corrupt=0.0),
    "corrupt 0.5": dict(corrupt=0.5),
}
PARTS = dict(tokenizer=TOKENIZERS, transformer=TRANSFORMERS, tuning=TUNINGS)


def train_row(cfg, row):
    """Train what a row needs -> the path of its transformer."""
    name = f"{cfg.folder}/{cfg.part}-" + row.replace(" ", "-")
    settings = dict(segment_length=cfg.segment_length, warmup=cfg.warmup, dtype=cfg.train_dtype)
    changes = PARTS[cfg.part][row]
    if cfg.part == "tokenizer":
        settings["tokenizer"] = f"{name}-alone.pt"
        changes = dict(changes, warmup=cfg.warmup)
        train("train_tokenizer.py", settings["tokenizer"], cfg, cfg.tokenizer_steps, **changes)
    else:
        start = dict(tokenizer=cfg.ckpt)
        if cfg.part == "tuning":
            start = dict(init_from=cfg.ckpt, lr=cfg.tune_lr)
        settings |= dict(start, tokens=cfg.tokens, **changes)
    train("train_gpt.py", f"{name}.pt", cfg, cfg.steps, **settings)
    return f"{name}.pt"


def main(cfg):
    if cfg.part not in PARTS:
        raise ValueError(f"part is {cfg.part!r}; expected one of {', '.join(PARTS)}")
    require_positive(cfg, "tokenizer_steps", "steps", "videos", "horizon", "batch_size")
    if cfg.tokens and cfg.part == "tokenizer":
        raise ValueError("each tokenizer of this part makes its own tokens; leave --tokens out")
    known = PARTS[cfg.part]
    rows = cfg.rows or tuple(known)
    if unknown := sorted(set(rows) - set(known)):
        raise ValueError(f"rows are {', '.join(unknown)}; expected some of {', '.join(known)}")
    cfg.out = claim_result(cfg.out or f"{cfg.folder}/{cfg.part}.json", cfg.overwrite)
    Path(cfg.folder).mkdir(parents=True, exist_ok=True)
    columns = dict(loss={})
    for row in rows:
        path = train_row(cfg, row)
        columns["loss"][row] = read_curve(beside(path, ".jsonl"))["val_ce"][-1][1]
        found, missing = compare(cfg, {row: open_world(cfg, path)})
        for metric, rows_found in found.items():
            for kind in (row, f"{row}: reconstruction", "repeat_last"):
                columns.setdefault(metric, {})[kind] = rows_found[kind]
    report(cfg.out, columns, missing=missing)


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__))
