"""experiments/vp2_model.py: our world model as VP2's own evaluation script drives it (Tian et al. 2023).

    from experiments.vp2_model import VP2Model
    model = VP2Model("out/gpt.pt")      # model({"video": (N,2,64,64,3), "actions": (N,11,A)})["rgb"]"""

import numpy as np
import torch

from plan import imagine_candidates
from sample import WorldModel


class VP2Model:
    """A `VideoPredictionModel` of the package `vp2`.

    model({"video": (N,2,H,W,3) in [0, 1], "actions": (N,11,A)}) -> {"rgb": (N,11,H,W,3)}, all numpy: the last
    context frame, unchanged, then 10 imagined ones. The first action leads to that frame and has no effect.
    batch: candidates imagined at once, 0: all; settings: of WorldModel.load.   raises  ValueError"""

    num_context = 2
    base_prediction_modality = "rgb"

    def __init__(self, ckpt, device="", batch=0, **settings):
        self.world = WorldModel.load(ckpt, device, **settings)
        self.batch = batch
        if self.world.context_frames != 2:
            raise ValueError(f"{ckpt} has {self.world.context_frames} context frames; VP2 gives 2")

    def __call__(self, batch, grad_enabled=False):
        if grad_enabled:
            raise ValueError("tokens have no gradient; use one of VP2's planners that sample: mppi or cem")
        video = np.asarray(batch["video"], np.float32)
        actions = np.asarray(batch["actions"], np.float32)
        rgb = np.empty((*actions.shape[:2], *video.shape[2:]), np.float32)
        rgb[:, 0] = video[:, -1]
        contexts, rows_of = np.unique(video.reshape(len(video), -1), axis=0, return_inverse=True)
        for i in range(len(contexts)):  # one while VP2 plans: all candidates share their context
            rows = np.flatnonzero(rows_of.reshape(-1) == i)
            context = torch.from_numpy(video[rows[0]]).movedim(-1, -3)
            chunks = imagine_candidates(self.world, context, actions[rows, 1:], self.batch)
            rgb[rows, 1:] = torch.cat([frames for frames, _ in chunks]).movedim(-3, -1).cpu().numpy()
        return dict(rgb=rgb)

    def close(self):
        self.world = None
