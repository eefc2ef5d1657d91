"""variants/fsq.py: finite scalar quantization, a codebook that is not learned (Mentzer et al. 2023).

    z (..., D) --linear, squash, round--> d digits, digit i of LEVELS[K][i] values --linear--> (..., D)

The codes are the points of a grid: none can die, none has to be revived, and there is no loss to weigh. Our
quantizer in tokenizer.py is ahead after the first 600 updates (results/README.md), so that this is an option:
train_tokenizer.py --preset tiny --fsq true --context_codes 1000 --dynamics_codes 1000."""

import math

import torch
from torch import nn

# Values of each digit by the number of codes.   Source: Mentzer et al. 2023, Table 1
LEVELS = {math.prod(levels): levels for levels in ((8, 6, 5), (8, 5, 5, 5), (7, 5, 5, 5, 5), (8, 8, 8, 6, 5))}


class FiniteScalarQuantizer(nn.Module):
    """Takes the place of a VectorQuantizer.   raises  ValueError unless K is one of LEVELS"""

    def __init__(self, K, D):
        super().__init__()
        if K not in LEVELS:
            known = ", ".join(map(str, LEVELS))
            raise ValueError(f"{K} codes; with fsq, expected context_codes and dynamics_codes of {known}")
        levels = torch.tensor(LEVELS[K])
        self.inward = nn.Linear(D, len(levels))
        self.outward = nn.Linear(len(levels), D)
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("place", levels.cumprod(0) // levels, persistent=False)  # value of a digit's 1
        self.register_buffer("idle", torch.full((K,), 1000))  # training passes since its last use

    def digits(self, z):
        """Vectors (..., D) -> digits (..., d) before rounding, each from 0 to its levels - 1."""
        with torch.autocast(z.device.type, enabled=False):
            squashed = torch.sigmoid(1.6 * self.inward(z.float()))  # uniform, about, for a normal variable
            return (self.levels - 1) * squashed

    def vectors(self, digits):
        return self.outward(2 * digits / (self.levels - 1) - 1)

    def ids(self, z):
        return (self.digits(z).round().long() * self.place).sum(-1)

    def embedding(self, ids):
        """Ids (...) -> vectors (..., D)."""
        return self.vectors(ids[..., None] // self.place % self.levels)

    def forward(self, z):
        """z (..., D) -> quantized z, ids (...), loss: 0."""
        digits = self.digits(z)
        rounded = digits.round()
        ids = (rounded.long() * self.place).sum(-1)
        if self.training:
            self.idle += 1
            self.idle[ids.flatten()] = 0
        return self.vectors(digits + (rounded - digits).detach()), ids, z.new_zeros(())
