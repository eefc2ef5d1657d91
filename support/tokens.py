"""support/tokens.py: segments that a tokenizer has encoded once, for a transformer to read many times.

    episodes --draw, encode--> tokens (N,L), actions (N,T,A), rewards (N,T) in one file --TokenFile--> batches

Encoding takes a third of an update of `tiny`. Only without augmentation: what is stored does not change.

Run: python prepare.py tokens --tokenizer out/tokenizer.pt --data data/push --out data/push-tokens.pt
     python train_gpt.py --preset tiny --tokens data/push-tokens.pt"""

import zlib

import numpy as np
import torch
from tqdm import tqdm

from checkpoints import load_tokenizer
from common import load_checkpoint, save_checkpoint
from data import floats
from mixture import open_data
from support.devices import find_device
from support.files import claim

TOKENS_CONFIG = dict(
    out="data/push-tokens.pt",
    data="data/push",
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


def checksum(tokenizer):
    """Of a tokenizer's weights: whose codes are these?"""
    total = 0
    for x in tokenizer.parameters():
        total = zlib.crc32(x.detach().float().cpu().contiguous().numpy(), total)
    return total


@torch.inference_mode()
def tokenize_segments(out, data, tokenizer, segments, segment_length, stride, action_agg, batch_size, device,
                      seed, overwrite):  # fmt: skip
    """Random segments of the training episodes, encoded: a file for train_gpt.py --tokens."""
    out = claim(out, overwrite=overwrite)
    device = find_device(device)
    model = load_tokenizer(tokenizer).to(device, memory_format=torch.channels_last)
    episodes = open_data(data, "train")
    parts = {name: [] for name in TABLES}
    for first in tqdm(range(0, segments, batch_size), "tokenize"):
        n = min(batch_size, segments - first)
        batch = episodes.batch_u8(first, n, segment_length, seed, stride, action_agg=action_agg)
        tokens = model.encode(floats(batch)["frames"].to(device))
        parts["tokens"].append(tokens.int().cpu())
        parts["actions"].append(batch["actions"])
        parts["rewards"].append(batch["rewards"])
    tables = {name: torch.cat(rows) for name, rows in parts.items()}
    source = dict(tokenizer=checksum(model), data=data, stride=stride, action_agg=action_agg)
    save_checkpoint(out, **tables, source=source)


class TokenFile:
    """Batches of what `tokenize_segments` has written; each pass over it is in another order.

    raises  ValueError if another tokenizer, folder, stride or action_agg made it, or segments are short"""

    def __init__(self, cfg, tokenizer, T):
        state = load_checkpoint(cfg.tokens, needs=(*TABLES, "source"))
        source = dict(tokenizer=checksum(tokenizer))
        source |= dict(data=cfg.data, stride=cfg.stride, action_agg=cfg.action_agg)
        wrong = [key for key, value in source.items() if state["source"][key] != value]
        if wrong:
            raise ValueError(f"{cfg.tokens} was made with another {', '.join(wrong)}; make it anew")
        if state["rewards"].shape[1] < T:
            raise ValueError(f"{cfg.tokens} has segments of {state['rewards'].shape[1]} frames; expected {T}")
        self.layout = tokenizer.layout
        self.epoch = None  # whose permutation is kept
        self.tables = {name: state[name] for name in TABLES}

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
