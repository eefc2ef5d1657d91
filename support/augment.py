"""support/augment.py: random crops and colours, the same for all frames of a segment (appendix A.3).

    numbers (B, DRAWS) in [0, 1) --plan--> a Change per segment --augment--> frames (B,T,3,size,size)

Random numbers come from outside (data.uniform): a segment is augmented alike on any process. The crop is
torchvision's RandomResizedCrop, areas being shares of the shorter side's square; colours are its
ColorJitter."""

from typing import NamedTuple

import numpy as np
import torch

# The crop's share of the shorter side's square, and aspect; jitter of brightness, contrast, saturation.
KINDS = dict(
    paper=dict(scale=(0.8, 1.0), ratio=(0.9, 1.1), jitter=0.1, hue=0.05),
    strong=dict(scale=(0.6, 1.0), ratio=(0.75, 4 / 3), jitter=0.4, hue=0.5),
)
DRAWS = 30


class Change(NamedTuple):
    """What happens to one segment."""

    box: tuple  # top, left, height, width of the crop
    factors: tuple  # of brightness, contrast, saturation, hue
    order: tuple  # in which they are applied


def crop_box(draws, H, W, scale, ratio):
    """Numbers (22,) -> top, left, height, width; the first of 10 tries that fits, or the middle."""
    side = min(H, W)
    for share, shape in draws[:20].reshape(10, 2):
        area = side**2 * (scale[0] + (scale[1] - scale[0]) * share)
        low, high = np.log(ratio)
        aspect = np.exp(low + (high - low) * shape)
        height = round(np.sqrt(area / aspect))
        width = round(np.sqrt(area * aspect))
        if height <= H and width <= W:
            top = int(draws[20] * (H - height + 1))
            left = int(draws[21] * (W - width + 1))
            return top, left, height, width
    return (H - side) // 2, (W - side) // 2, side, side


def plan(draws, H, W, kind="paper"):
    """Numbers (B, DRAWS) in [0, 1) -> a Change for each of B segments of H x W pixels."""
    if kind not in KINDS:
        raise ValueError(f"augment is {kind!r}; expected one of {', '.join(KINDS)}, or nothing")
    how = KINDS[kind]
    changes = []
    for row in draws:
        box = crop_box(row[:22], H, W, how["scale"], how["ratio"])
        spread = 2 * row[22:26] - 1
        factors = (*(1 + how["jitter"] * spread[:3]), how["hue"] * spread[3])
        changes.append(Change(box, factors, tuple(np.argsort(row[26:30]))))
    return changes


def augment(frames, changes, size):
    """Frames (B,T,3,H,W) in [0, 1], a Change each -> (B,T,3,size,size)."""
    from torchvision.transforms.v2 import functional as tv  # slow to import

    adjust = tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue
    augmented = []
    for clip, change in zip(frames, changes, strict=True):
        clip = tv.resized_crop(clip, *change.box, [size, size], antialias=True)
        clip = (255 * clip).round() / 255  # as of pictures that were stored
        for i in change.order:
            clip = adjust[i](clip, float(change.factors[i]))
        augmented.append(clip)
    return torch.stack(augmented)
