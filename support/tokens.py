"""support/tokens.py: segments that a tokenizer has encoded once, for a transformer to read many times.

    episodes --draw, encode--> tokens (N,L), actions (N,T,A), rewards (N,T) in one file --TokenFile--> batches

Encoding takes a third of an update of `tiny`. Only without augmentation: what is stored does not change.
With --data push, each segment is of a new episode of PushWorld, whose frames are not stored.

Run: python prepare.py tokens --tokenizer out/tokenizer.pt --data data/push --out data/push-tokens.pt
     python train_gpt.py --preset tiny --tokens data/push-tokens.pt"""

import itertools
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from checkpoints import checksum, load_tokenizer
from common import load_checkpoint, save_checkpoint
from data import floats, require_action_agg
from envs.base import HELD_OUT
from envs.push import play_segments, stack_segments
from mixture import open_data
from support.devices import find_device
from support.files import claim

TOKENS_CONFIG = dict(
    out="data/push-tokens.pt",
    data="data/push",  # or push: new episodes of PushWorld
    tokenizer="out/tokenizer.pt",
    segments=24_000,
    segment_length=32,  # frames
    stride=1,
    action_agg="sample",
    batch_size=16,  # segments at once
    device="",
    seed=0,
    overwrite=False,
)
TABLES = "tokens", "actions", "rewards"


def batches_of_pushworld(segments, batch_size, T, seed, size):
    """Yield batches as Episodes.batch_u8; every segment has a new episode, of seeds from 500,000 on."""
    if not 0 <= seed < HELD_OUT // 2:
        raise ValueError(f"seed is {seed}; expected 0 to {HELD_OUT // 2 - 1}")
    played = play_segments(segments, T, HELD_OUT // 2 + seed, size)
    while batch := list(itertools.islice(played, batch_size)):
        yield stack_segments(batch)


def batches_of_folder(data, segments, batch_size, T, seed, **how):
    """Yield batches of Episodes.batch_u8."""
    episodes = open_data(data, "train")
    for first in range(0, segments, batch_size):
        yield episodes.batch_u8(first, min(batch_size, segments - first), T, seed, **how)


@torch.inference_mode()
def tokenize_segments(out, data, tokenizer, segments, segment_length, stride, action_agg, batch_size, device,
                      seed, overwrite):  # fmt: skip
    """Random segments of the training episodes, encoded: a file for train_gpt.py --tokens."""
    if min(segments, segment_length, batch_size) < 1:
        sizes = segments, segment_length, batch_size
        raise ValueError(f"segments, segment_length, batch_size are {sizes}; expected 1 or more")
    require_action_agg(action_agg)
    out = claim(out, overwrite=overwrite)
    device = find_device(device)
    model = load_tokenizer(tokenizer).to(device, memory_format=torch.channels_last)
    if data == "push":
        if stride != 1:
            raise ValueError(f"stride is {stride}; new episodes of PushWorld have 1")
        size = model.config["resolution"]
        batches = batches_of_pushworld(segments, batch_size, segment_length, seed, size)
    else:
        how = dict(stride=stride, action_agg=action_agg)
        batches = batches_of_folder(data, segments, batch_size, segment_length, seed, **how)
    parts = {name: [] for name in TABLES}
    for batch in tqdm(batches, "tokenize", -(-segments // batch_size)):
        tokens = model.encode(floats(batch)["frames"].to(device))
        parts["tokens"].append(tokens.int().cpu())
        parts["actions"].append(batch["actions"])
        parts["rewards"].append(batch["rewards"])
    tables = {name: torch.cat(rows) for name, rows in parts.items()}
    data = data if data == "push" else str(Path(data).resolve())
    source = dict(tokenizer=checksum(model.parameters()), data=data, stride=stride, action_agg=action_agg)
    save_checkpoint(out, **tables, source=source)
    print(f"written to {out}: {segments} segments of {segment_length} frames")


class TokenFile:
    """Batches of what `tokenize_segments` has written; each pass over it is in another order.

    train   the episodes that segments would come from otherwise
    raises  ValueError if another tokenizer, folder, stride or action_agg made it, or segments are short"""

    def __init__(self, cfg, tokenizer, T, train):
        if not Path(cfg.tokens).is_file():
            raise FileNotFoundError(f"no tokens at {cfg.tokens}; make them: python prepare.py tokens --help")
        state = load_checkpoint(cfg.tokens, needs=(*TABLES, "source"))
        weights = checksum(tokenizer.parameters())
        source = dict(tokenizer=weights, stride=cfg.stride, action_agg=cfg.action_agg)
        if state["source"]["data"] != "push":  # new episodes, which go with any folder of PushWorld's
            source["data"] = str(Path(cfg.data).resolve())
        elif not getattr(train, "meta", {"source": "a mixture"})["source"].startswith("PushWorld"):
            raise ValueError(f"{cfg.tokens} holds PushWorld's segments, {cfg.data} other episodes")
        wrong = [key for key, value in source.items() if state["source"][key] != value]
        if wrong:
            raise ValueError(f"{cfg.tokens} was made with another {', '.join(wrong)}; make it anew")
        if state["rewards"].shape[1] < T:
            raise ValueError(f"{cfg.tokens} has segments of {state['rewards'].shape[1]} frames; expected {T}")
        self.layout = tokenizer.layout
        self.epoch = None  # whose permutation is kept
        self.tables = {name: state[name] for name in TABLES}
        self.checksum = checksum(self.tables.values())

    def batch_u8(self, first, n, T, seed, stride, action_agg):
        """The segments number first .. first + n - 1 of an endless stream -> tokens, actions, rewards.

        (As of Episodes, so that data.draw_segments takes either.)"""
        N = len(self.tables["tokens"])
        rows = np.empty(n, int)
        for k in range(n):
            epoch, row = divmod(first + k, N)
            rows[k] = self.order(seed, epoch)[row]
        lengths = dict(tokens=self.layout.length(T), actions=T, rewards=T)
        batch = {name: table[rows, : lengths[name]] for name, table in self.tables.items()}
        return dict(batch, tokens=batch["tokens"].long())

    def order(self, seed, epoch):
        """A permutation of all rows, kept while the epoch lasts."""
        if self.epoch != epoch:
            self.epoch = epoch
            rng = np.random.default_rng([seed, epoch])
            self.permutation = rng.permutation(len(self.tables["tokens"]))
        return self.permutation
