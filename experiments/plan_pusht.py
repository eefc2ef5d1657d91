"""experiments/plan_pusht.py: PushT as the field's planning benchmark: both protocols, goal costs, budgets.

    plan.py, many times --numbers--> one file, and success against budget as a curve

Rows of protocol B stand at the top of the file, those of A under `protocol_a`. `published` is the simulator
with the optimizer and budget of the published numbers: the cross-entropy method, 300 candidates in each of
30 iterations, whose plans are executed whole.

Run: python -m experiments.plan_pusht                    (hours on two cores; it goes on where it stopped)"""

from pathlib import Path

from common import configure, require_positive, run
from experiments.lab import run_script
from support.files import beside
from support.results import claim_result, draw_curves, read_result, write_result

CONFIG = dict(
    ckpt="assets/pusht-tiny.pt",
    features="assets/pusht-readout.pt",
    episodes=50,  # tasks of the protocols' runs,
    seeds=3,
    few=20,  # tasks of the other runs, which have one seed
    budgets=(20, 180),  # candidates per decision, beside those of protocol B
    seed=0,  # of tasks
    folder="out/plan-pusht",
    out="out/plan-pusht/numbers.json",
    overwrite=False,
)
CEM = dict(
    planner="icem", decay=1, keep=0, momentum=0, colour=0, execute_mean=True, candidates=9000, iterations=30,
    elites=30, countdown=False, replan=5,
)  # fmt: skip
ALL = dict(models="nothing,random,script,world_model,oracle")
SHORT = dict(models="world_model,oracle", seeds=1, diagnose=False, gifs=0)
PROTOCOLS = dict(protocol_b=ALL, protocol_a=dict(ALL, preset="pusht_a"))
VARIANTS = {
    "published": dict(CEM, models="oracle"),
    "pixel": dict(pixel=1, features=""),
    "blur": dict(blur=1, features=""),
    "latent": dict(latent=1, features=""),
    "replan_5": dict(countdown=False, replan=5, candidates=300),
}


def plan(cfg, name, settings):
    """The numbers of a run of plan.py."""
    out = Path(cfg.folder) / f"{name}.json"
    shared = {key: getattr(cfg, key) for key in ("ckpt", "features", "episodes", "seeds", "seed")}
    if run_script("plan.py", out, {"preset": "pusht", **shared, **settings}):
        raise ChildProcessError("plan.py has failed or was stopped; its own message is above")
    return read_result(out)


def main(cfg):
    require_positive(cfg, "episodes", "seeds", "few")
    cfg.out = claim_result(cfg.out, cfg.overwrite)
    rows = {name: plan(cfg, name, settings) for name, settings in PROTOCOLS.items()}
    short = dict(SHORT, episodes=cfg.few)
    variants = {name: plan(cfg, name, {**short, **settings}) for name, settings in VARIANTS.items()}
    budgets = {n: plan(cfg, f"budget-{n}", dict(short, candidates=n)) for n in cfg.budgets}
    budgets[rows["protocol_b"]["settings"]["candidates"]] = rows["protocol_b"]
    lines = {}
    for n, numbers in sorted(budgets.items()):
        for model in ("world_model", "oracle"):
            lines.setdefault(model, []).append((n, numbers[model]["mean"]))
    panel = "PushT, 50 environment steps", "candidates per decision", "success", lines
    draw_curves(beside(cfg.out, ".png"), [panel], log_x=True)
    others = dict(protocol_a=rows["protocol_a"], variants=variants, budgets=budgets)
    write_result(cfg.out, {**rows["protocol_b"], **others})


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__))
