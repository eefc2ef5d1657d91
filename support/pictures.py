"""support/pictures.py: GIFs and contact sheets of clips, frames (T,3,H,W) in [0, 1]."""

from pathlib import Path

import imageio.v3 as iio
import torch

from data import to_u8
from support.files import write_whole


def _join(clips, dim, gap=2):
    """Float clips one after another along dim, with a white line between."""
    line = torch.ones_like(clips[0].narrow(dim, 0, gap))
    parts = [clips[0]]
    for clip in clips[1:]:
        parts += [line, clip]
    return torch.cat(parts, dim)


def _enlarge(frames, scale):
    return to_u8(frames).repeat(scale, -3).repeat(scale, -2)  # repeated pixels: nothing is smoothed away


def _write_picture(path, frames_u8, **how):
    """Write a picture or GIF; encoded in memory first, as imageio tries a full disk twice."""
    write_whole(path, iio.imwrite("<bytes>", frames_u8, extension=Path(path).suffix, **how))


def save_gif(path, frames, fps=8, scale=4):
    """Write a GIF of frames (T,3,H,W) in [0, 1]; a batch (B,T,3,H,W) is laid side by side."""
    frames = _join(list(frames), -1) if frames.ndim == 5 else frames
    _write_picture(path, _enlarge(frames, scale), duration=1000 / fps, loop=0)  # milliseconds


def save_side_by_side(path, truth, imagined, fps=8, scale=4):
    """Write a GIF: truth | imagined | difference around grey; (T,3,H,W), or a batch (B,T,3,H,W) in rows."""
    if truth.shape != imagined.shape:
        raise ValueError(f"truth {tuple(truth.shape)}, imagined {tuple(imagined.shape)}; expected the same")
    columns = _join([truth, imagined, 0.5 + (imagined - truth) / 2], -1)
    save_gif(path, _join(list(columns), -2) if columns.ndim == 5 else columns, fps, scale)


def save_contact_sheet(path, rows, scale=2):
    """Write a PNG with one row per clip: rows is a list of (T,3,H,W) in [0, 1]; short clips end in white."""
    T = max(len(row) for row in rows)
    strips = []
    for row in rows:
        white = torch.ones_like(row[:1]).expand(T - len(row), -1, -1, -1)
        strips.append(_join(list(torch.cat([row, white])), -1))
    _write_picture(path, _enlarge(_join(strips, -2), scale))
