"""mixture.py: several sets of episodes as one: the paper's 36 sets and their weights (Table 4)."""

import os
from pathlib import Path

import numpy as np
import torch

from data import Episodes, floats, uniform

# The paper's Table 4: share (%) of the robots' data, source frames per step, camera. Names: TFDS', less
RLDS_SUFFIX = "_converted_externally_to_rlds"
OXE = dict(
    fractal20220817_data=(15, 1, "image"),
    bridge=(15, 2, "image"),
    bc_z=(15, 3, "image"),
    robo_net=(15, 1, "image"),
    kuka=(10, 3, "image"),
    language_table=(5, 3, "rgb"),
    stanford_mask_vit=(5, 1, "image"),
    uiuc_d3field=(4 * 20 / 31, 1, "image_1,image_2,image_3,image_4"),
    taco_play=(20 / 31, 5, "rgb_static"),
    jaco_play=(20 / 31, 3, "image"),
    roboturk=(20 / 31, 3, "front_rgb"),
    viola=(20 / 31, 7, "agentview_rgb"),
    toto=(20 / 31, 10, "image"),
    columbia_cairlab_pusht_real=(20 / 31, 3, "image"),
    stanford_kuka_multimodal_dataset=(20 / 31, 7, "image"),
    stanford_hydra_dataset=(20 / 31, 3, "image"),
    austin_buds_dataset=(20 / 31, 7, "image"),
    nyu_franka_play_dataset=(20 / 31, 1, "image"),
    furniture_bench_dataset=(20 / 31, 3, "image"),
    ucsd_kitchen_dataset=(20 / 31, 1, "image"),
    ucsd_pick_and_place_dataset=(20 / 31, 1, "image"),
    austin_sailor_dataset=(20 / 31, 7, "image"),
    utokyo_pr2_tabletop_manipulation=(20 / 31, 3, "image"),
    utokyo_xarm_pick_and_place=(20 / 31, 3, "image"),
    utokyo_xarm_bimanual=(20 / 31, 3, "image"),
    kaist_nonprehensile=(20 / 31, 3, "image"),
    dlr_sara_pour=(20 / 31, 3, "image"),
    dlr_sara_grid_clamp=(20 / 31, 3, "image"),
    dlr_edan_shared_control=(20 / 31, 3, "image"),  # their code: 2
    asu_table_top=(20 / 31, 4, "image"),
    utaustin_mutex=(20 / 31, 7, "image"),
    berkeley_fanuc_manipulation=(20 / 31, 3, "image"),
    cmu_playing_with_food=(20 / 31, 3, "image"),
    cmu_play_fusion=(20 / 31, 2, "image"),
    cmu_stretch=(20 / 31, 3, "image"),
)
SSV2 = dict(sthsth=(15 * 100 / 85, 1, ""))  # 15 % of all; for the tokenizer alone
MIXTURES = dict(oxe=OXE, oxe_sthsth=OXE | SSV2)


class Mixture:
    """Folders of episodes as one: a segment's set is drawn by weight, the rest as `Episodes` does.

    folder  holds a folder per set, named as in MIXTURES[name]; those that are there share the weights
    name    or "all": whatever is there, weighted by its number of episodes, every frame; "": oxe if any of
            its sets is there, else all
    has     as Episodes, but neither actions nor rewards: they mean something else in each set
    raises  ValueError where no set of the mixture is there, or frames differ in shape"""

    action_dim = 0
    has_reward = False

    def __init__(self, folder, split="train", name=""):
        if name not in (*MIXTURES, "all", ""):
            raise ValueError(f"mixture is {name!r}; expected one of {', '.join(MIXTURES)}, all")
        found = [path.parent for path in sorted(Path(folder).glob("*/meta.json"))]
        keys = {path: path.name.removesuffix(RLDS_SUFFIX) for path in found if path.suffix != ".partial"}
        name = name or ("oxe" if OXE.keys() & set(keys.values()) else "all")
        self.sets = []
        self.steps = []  # source frames per step of each set
        weights = []
        ignored = []
        for path, key in keys.items():
            if name != "all" and key not in MIXTURES[name]:
                ignored.append(path.name)
                continue
            data = Episodes(path, split)
            weight, step, _ = (data.n_episodes, 1, "") if name == "all" else MIXTURES[name][key]
            self.sets.append(data)
            self.steps.append(step)
            weights.append(weight)
        if not self.sets:
            raise ValueError(f"{folder} has no set of mixture {name!r}; --mixture all takes what is there")
        shapes = {data.frame_shape for data in self.sets}
        if len(shapes) > 1:
            raise ValueError(f"{folder} has frames {sorted(shapes)}; import all sets with the same --size")
        for data in self.sets:
            data.max_files = max(1, data.max_files // len(self.sets))
        self.weights = np.array(weights) / sum(weights)
        self.frame_shape = self.sets[0].frame_shape
        self.n_episodes = sum(data.n_episodes for data in self.sets)
        if os.environ.get("RANK", "0") == "0":  # one of torchrun's processes
            print(f"{folder} ({split}): {len(self.sets)} sets, {self.n_episodes} episodes; mixture {name}")
            print("  (without actions and rewards: they mean something else in each set)")
            for data, weight, step in zip(self.sets, self.weights, self.steps, strict=True):
                row = f"weight {weight:.4f}, every {step}. frame, {data.n_episodes} episodes"
                print(f"  {data.folder.name}: {row}")
            if ignored:
                print(f"  left out, as the mixture does not name them: {', '.join(ignored)}")

    def batch(self, first, batch_size, T, seed=0, **how):
        """As Episodes.batch; stride multiplies that of the set."""
        return floats(self.batch_u8(first, batch_size, T, seed, **how))

    def batch_u8(self, first, batch_size, T, seed=0, stride=1, **how):
        """As Episodes.batch_u8."""
        strides = [max(1, round(stride * step)) for step in self.steps]
        draws = uniform(seed, first, batch_size, 3 + T * max(strides))
        which = self.choose(draws[:, 0])
        parts = []
        order = []
        for k in np.unique(which):
            rows = np.flatnonzero(which == k)
            parts.append(self.sets[k].take(draws[rows], T, strides[k], **how))
            order.extend(rows)
        return self._join(parts, order)

    def choose(self, draws):
        """Numbers in [0, 1) -> the set that each of them chooses."""
        return np.searchsorted(self.weights.cumsum()[:-1], draws, "right")

    def segments(self, n, T, stride=1, seed=None, action_agg="sample"):
        """As Episodes.segments; of each set as many as its share, spread over the n."""
        counts = np.bincount(self.choose((np.arange(n) + 0.5) / n), minlength=len(self.sets))
        parts = []
        places = []  # in [0, 1], of the segments among the n
        for data, count, step in zip(self.sets, counts, self.steps, strict=True):
            if count:
                parts.append(data.segments(count, T, max(1, round(stride * step)), seed, action_agg))
                places.extend((np.arange(count) + 0.5) / count)
        return self._join(parts, np.argsort(np.argsort(places, kind="stable")))

    def _join(self, parts, order):
        """Batches -> one, whose row order[i] is the i-th of theirs."""
        order = torch.as_tensor(np.argsort(order))
        keys = parts[0].keys() - {"actions"}
        joined = {key: torch.cat([part[key] for part in parts])[order] for key in keys}
        joined["actions"] = joined["rewards"].new_zeros(*joined["rewards"].shape, 0)
        return joined


def open_data(folder, split="train", limit=0, mixture=""):
    """The Episodes of a folder, or the Mixture of those in its folders.   raises  as they do"""
    if (Path(folder) / "meta.json").is_file() or not any(Path(folder).glob("*/meta.json")):
        return Episodes(folder, split, limit)
    if limit:
        raise ValueError(f"--episodes {limit} is for one folder of episodes; {folder} is a mixture")
    return Mixture(folder, split, mixture)
