"""experiments/decouple.py: future frames decoded without cross-attention to the context (Figure 10).

They show what the dynamics tokens carry: in the paper motion, but no appearance. `motion` is the correlation
of decoded with true changes from frame to frame, over all pixels.

Run: python -m experiments.decouple"""

import torch

from common import configure, run
from evaluate import psnr, ssim
from experiments.lab import draw_sheet, open_world, validation
from support.results import claim_result, report

CONFIG = dict(
    ckpt="assets/push-tiny.pt",
    data="push",
    videos=64,  # validation segments
    horizon=14,  # future frames of each
    batch_size=8,
    seed=0,
    device="",
    dtype="auto",
    out="out/decouple/numbers.json",
    overwrite=False,
)


def motion(frames):
    """Brightness changes of frames (B, T, 3, H, W), in a row."""
    return (frames[:, 1:] - frames[:, :-1]).abs().mean(2).flatten()


@torch.no_grad()
def main(cfg):
    cfg.out = claim_result(cfg.out, cfg.overwrite)
    model = open_world(cfg, cfg.ckpt)
    tokenizer = model.tokenizer
    clips = validation(cfg, model)["frames"]
    truth = clips[:, model.context_frames :]
    decoded = {"cross-attention": [], "dropped": []}
    for part in clips.split(cfg.batch_size):
        with model.autocast:
            context, dynamics = tokenizer.layout.unpack(tokenizer.encode(part.to(model.device)))
            features = tokenizer.decode_context(context)
            decoded["cross-attention"].append(tokenizer.decode_future(dynamics, features).float().cpu())
            decoded["dropped"].append(tokenizer.decode_future(dynamics, None).float().cpu())
    columns = dict(psnr={}, ssim={}, motion={})
    videos = [truth[:2]]
    for name, parts in decoded.items():
        frames = torch.cat(parts).clamp(0, 1)
        columns["psnr"][name] = psnr(frames, truth).mean().item()
        columns["ssim"][name] = ssim(frames, truth).mean().item()
        columns["motion"][name] = torch.corrcoef(torch.stack([motion(truth), motion(frames)]))[0, 1].item()
        videos.append(frames[:2])
    report(cfg.out, columns)
    draw_sheet(cfg, videos)


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__))
