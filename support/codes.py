"""support/codes.py: how the codes of a codebook are used."""

import torch
from torch.distributions import Categorical


def code_use(name, ids, idle):
    """Metrics of ids (...): perplexity, the same without the most frequent code, which often stands where
    nothing changes, and the share of the codebook used in the last 100 passes, with `idle` (K,) of it."""
    counts = torch.bincount(ids.flatten(), minlength=len(idle)).float()
    others = counts.clone()
    others[counts.argmax()] = 1e-6
    metrics = {f"ppl_{name}": Categorical(counts).perplexity()}
    metrics[f"ppl_{name}_others"] = Categorical(others).perplexity()
    metrics[f"used_{name}"] = (idle < 100).float().mean()
    return metrics
