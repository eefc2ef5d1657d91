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
    has     as Episodes, but neither actions nor rewards: they mean another thing in each set
    raises  ValueError where no set of the mixture is there, or frames differ in shape"""

    action_dim, has_reward = 0, False

    def __init__(self, folder, split="train", name=""):
        if name not in (*MIXTURES, "all", ""):
            raise ValueError(f"mixture is {name!r}; expected one of {', '.join(MIXTURES)}, all")
        found = sorted(place.parent for place in Path(folder).glob("*/meta.json"))
        places = {place.name: place for place in found if place.suffix != ".partial"}
        name = name or ("oxe" if any(s.removesuffix(RLDS_SUFFIX) in OXE for s in places) else "all")
        rows = {s: MIXTURES.get(name, {}).get(s.removesuffix(RLDS_SUFFIX)) for s in places}
        chosen = [s for s in rows if name == "all" or rows[s]]
        if not chosen:
            raise ValueError(f"{folder} has no set of mixture {name!r}; --mixture all takes what is there")
        self.sets = [Episodes(places[s], split) for s in chosen]
        for data in self.sets:
            data.max_files = max(1, data.max_files // len(self.sets))
        if name == "all":
            rows = {s: (data.n_episodes, 1) for s, data in zip(chosen, self.sets, strict=True)}
        weights, self.steps = np.array([rows[s][0] for s in chosen]), [rows[s][1] for s in chosen]
        self.weights = weights / weights.sum()
        shapes = {data.frame_shape for data in self.sets}
        if len(shapes) > 1:
            raise ValueError(f"{folder} has frames {sorted(shapes)}; import all sets with the same --size")
        self.frame_shape, self.n_episodes = shapes.pop(), sum(data.n_episodes for data in self.sets)
        told = [f"{folder} ({split}): {len(chosen)} sets, {self.n_episodes} episodes; mixture {name}",
                "  (actions and rewards are left out: they mean another thing in each set)"]
        for s, data, weight, step in zip(chosen, self.sets, self.weights, self.steps, strict=True):
            told.append(f"  {s}: weight {weight:.4f}, every {step}. frame, {data.n_episodes} episodes")
        if others := [s for s in places if s not in chosen]:
            told.append(f"  left out, as the mixture does not name them: {', '.join(others)}")
        if os.environ.get("RANK", "0") == "0":  # of torchrun's processes one tells
            print("\n".join(told))

    def batch(self, first, batch_size, T, seed=0, **how):
        """As Episodes.batch; stride multiplies that of the set."""
        return floats(self.batch_u8(first, batch_size, T, seed, **how))

    def batch_u8(self, first, batch_size, T, seed=0, stride=1, **how):
        """As Episodes.batch_u8."""
        strides = [max(1, round(stride * step)) for step in self.steps]
        draws = uniform(seed, first, batch_size, 3 + T * max(strides))
        which, parts, order = self.choose(draws[:, 0]), [], []
        for k in np.unique(which):
            rows = np.flatnonzero(which == k)
            parts.append(self.sets[k].take(draws[rows], T, strides[k], **how))
            order.extend(rows)
        return self._join(parts, order)

    def choose(self, draws):
        """Numbers in [0, 1) -> which set each of them is for."""
        return np.searchsorted(self.weights.cumsum()[:-1], draws, "right")

    def segments(self, n, T, stride=1, seed=None, action_agg="sample"):
        """As Episodes.segments; of each set as many as are its share, spread over the n."""
        which = np.sort(self.choose((np.arange(n) + 0.5) / n))
        counts = np.bincount(which, minlength=len(self.sets))
        parts = [
            data.segments(count, T, max(1, round(stride * step)), seed, action_agg)
            for data, count, step in zip(self.sets, counts, self.steps, strict=True) if count
        ]
        places = np.concatenate([(np.arange(c) + 0.5) / c for c in counts if c])
        return self._join(parts, np.argsort(np.argsort(places, kind="stable")))

    def _join(self, parts, order):
        """Batches -> one, whose row order[i] is the i-th of theirs."""
        order = torch.as_tensor(np.argsort(order))
        frames = next(key for key in parts[0] if key.startswith("frames"))
        joined = {key: torch.cat([part[key] for part in parts])[order] for key in (frames, "rewards")}
        return dict(joined, actions=joined["rewards"].new_zeros(*joined["rewards"].shape, 0))


def open_data(folder, split="train", limit=0, mixture=""):
    """The Episodes of a folder, or the Mixture of those in its folders.   raises  as they do"""
    if (Path(folder) / "meta.json").is_file() or not any(Path(folder).glob("*/meta.json")):
        return Episodes(folder, split, limit)
    if limit:
        raise ValueError(f"--episodes {limit} is for one folder of episodes; {folder} is a mixture")
    return Mixture(folder, split, mixture)
