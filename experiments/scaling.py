"""experiments/scaling.py: validation loss of transformers of several sizes, by updates and FLOPs (Figure 9b).

Run: python -m experiments.scaling --sizes 2x96,4x192"""

from checkpoints import load_gpt
from common import configure, run
from experiments.lab import TRAINING, sizes, train, update_flops
from support.files import beside
from support.results import claim_result, draw_curves, read_curve, report

CONFIG = dict(
    **TRAINING,
    ckpt="assets/push-tiny.pt",  # whose tokenizer is used
    sizes=("2x96", "4x192"),  # layers x width
    steps=1500,
    eval_every=100,
    folder="out/scaling",
    out="out/scaling/numbers.json",
)


def main(cfg):
    _, whole = sizes(cfg.preset)
    cfg.out = claim_result(cfg.out, cfg.overwrite)
    by_step = {}
    by_flops = {}
    columns = dict(parameters={}, FLOPs={}, loss={})
    for name in cfg.sizes:
        n_layer, n_embd = map(int, name.split("x"))
        size = dict(n_layer=n_layer, n_embd=n_embd, eval_every=cfg.eval_every)
        for key in ("n_head", "n_mlp"):
            size[key] = max(1, n_embd * whole[key] // whole["n_embd"])
        out = f"{cfg.folder}/{name}.pt"
        train("train_gpt.py", out, cfg, cfg.steps, tokenizer=cfg.ckpt, **size)
        model = load_gpt(out)
        flops = update_flops(model.layout, model.config) * cfg.batch_size * cfg.processes
        by_step[name] = read_curve(beside(out, ".jsonl"))["val_ce"]
        by_flops[name] = [(step * flops, loss) for step, loss in by_step[name]]
        columns["parameters"][name] = sum(p.numel() for p in model.parameters())
        columns["FLOPs"][name] = float(by_flops[name][-1][0])
        columns["loss"][name] = by_step[name][-1][1]
    report(cfg.out, columns, curves=by_step)
    panels = [("", x, "validation loss (nats)", y) for x, y in (("update", by_step), ("FLOPs", by_flops))]
    draw_curves(beside(cfg.out, ".png"), panels, log_x=True)


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__))
