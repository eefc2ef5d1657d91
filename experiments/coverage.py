"""experiments/coverage.py: what episodes of PushT hold: the places and turns of the block, and contacts.

    play_pusht --states--> shares and a picture;  the script alone --> how often and how soon it is there

Run: python -m experiments.coverage"""

import numpy as np
from tqdm import trange

from common import configure, require_positive, run
from envs.pusht import AGENT, CORNERS, MIDDLE, PLAY, PushT, depth, play_pusht, turned
from support.results import claim_result, write_result

CONFIG = dict(
    episodes=300,  # of data/pusht, played again
    tasks=100,  # random poses for the script
    seed=0,
    out="out/coverage/pusht.json",
    overwrite=False,
)
TOUCHES = 1.0  # distance from disc to block that counts as a contact


def play_script(tasks, seed):
    """Random poses -> the moves that the script took to each (tasks,), nan where 300 did not lead there."""
    world = PushT(32, seed, 300, chunk=1, anywhere=True)
    moves = np.full(tasks, np.nan)
    for i in trange(tasks, desc="script"):
        world.reset()
        done = success = False
        while not (done or success):
            _, _, success, done = world.step(world.expert())
        if success:
            moves[i] = world.time[0]
    return moves


def draw(path, states, touched):
    """Middles of the block, its angles, and where it was touched, in its own frame."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (places, angles, contacts) = plt.subplots(1, 3, figsize=(12, 3.8))
    middles = states[:, 2:4] + turned(MIDDLE, states[:, 4])
    places.hist2d(*middles.T, bins=32, range=[[0, 512]] * 2)
    places.set(title="middle of the block", aspect="equal", xlim=(0, 512), ylim=(512, 0))
    angles.hist(np.degrees(states[:, 4]) % 360, bins=36)
    angles.set(title="angle of the block", xlabel="degrees")
    contacts.fill(*CORNERS.T, color="lightgrey")
    contacts.plot(*touched.T, ".", markersize=2, alpha=0.3)
    contacts.set(title="middle of the disc at contacts", aspect="equal")
    contacts.invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def main(cfg):
    require_positive(cfg, "episodes", "tasks")
    out = claim_result(cfg.out, cfg.overwrite)
    played = [play_pusht(i, cfg.seed, 32, **PLAY) for i in trange(cfg.episodes, desc="play")]
    states = np.concatenate([episode["states"] for episode in played])
    offset = states[:, :2] - states[:, 2:4]
    disc = np.stack([turned(d, -angle) for d, angle in zip(offset, states[:, 4], strict=True)])
    touches = depth(disc) < AGENT + TOUCHES
    moved = [np.abs(np.diff(episode["states"][:, 2:], axis=0)).max(1) > 0.01 for episode in played]
    is_expert = [episode["kind"] == "expert" for episode in played]
    moves = play_script(cfg.tasks, cfg.seed + 1)
    numbers = dict(
        frames=len(states),
        expert_share=np.mean(is_expert),
        touched_share=touches.mean(),
        block_moves_share=np.mean(moved),
        first_pose_reached=np.mean([e["success"] for e in played if e["kind"] == "expert"]),
        script=dict(success=np.isfinite(moves).mean(), median_moves=np.nanmedian(moves)),
    )
    print(numbers)
    write_result(out, numbers)
    draw(out.with_suffix(".png"), states, disc[touches])


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__))
