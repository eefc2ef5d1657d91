"""variants/per_frame.py: tokenizers of single frames, which the paper compares with (section 4.4, B.4).

    frames (B,T,3,H,W) -> encoder -> VQ -> codes (B,T,n) -> decoder -> frames

Every frame is grid x grid tokens of one codebook. Its codes are other ids in a context frame than in a later
one, so the transformer is the same whichever tokenizer it stands on. Letters: tokenizer.py.

Run: python train_tokenizer.py --preset tiny --kind 4x4"""

import torch
from torch import nn

from support.codes import code_use
from tokenizer import (
    RevivingQuantizer,
    Tokenizer,
    TokenLayout,
    init_weights,
    latent_grid,
    objective,
    patchify,
    unpatchify,
)
from variants.tiny import FoldedDecoder, FoldedEncoder, TinyTokenizer


class PerFrameTokenizer(nn.Module):
    """A VQGAN of single frames. Settings as of TinyTokenizer; context_codes is the size of its codebook.

    raises  ValueError if `grid` does not divide the side of the latents"""

    def __init__(self, grid, **cfg):
        super().__init__()
        self.config = dict(cfg, grid=grid)
        cfg = {**cfg, "resolution": cfg["resolution"] // cfg["patch"]}
        latents = latent_grid(cfg)
        if latents % grid:
            raise ValueError(f"grid is {grid}; expected a divisor of {latents}, the side of the latents")
        self.side = latents // grid
        D = cfg["code_dim"]
        K = cfg["context_codes"]
        self.layout = TokenLayout(cfg["context_frames"], grid**2, grid**2, K, K)
        self.encoder = FoldedEncoder(cfg, False, cfg["patch"])
        self.decoder = FoldedDecoder(cfg, False, cfg["patch"])
        self.quant_linear = nn.Linear(D * self.side**2, D)
        self.post_quant_linear = nn.Linear(D, D * self.side**2)
        self.quantize = RevivingQuantizer(K, D, cfg["commitment"], cfg["revive_after"])
        self.apply(init_weights)

    check = Tokenizer.check
    pixel_loss = TinyTokenizer.pixel_loss

    @property
    def dynamics_quantize(self):
        """The one codebook serves all frames."""
        return self.quantize

    def latents(self, frames):
        """Frames (B, T, 3, H, W) -> latents (B T, n, D)."""
        z, _ = self.encoder(frames.flatten(0, 1))
        return self.quant_linear(patchify(z, self.side))

    def pictures(self, zq):
        """Quantized latents (M, n, D) -> frames (M, 3, H, W)."""
        return self.decoder(unpatchify(self.post_quant_linear(zq), self.side))[0]

    def reconstruct(self, frames):
        """Frames through the codebook -> frames (B, T, 3, H, W), ids, VQ loss."""
        zq, ids, vq = self.quantize(self.latents(frames))
        return self.pictures(zq).unflatten(0, frames.shape[:2]), ids, vq

    def loss(self, frames, lpips=None, discriminator=None):
        """As `Tokenizer.loss`."""
        recon, ids, vq = self.reconstruct(frames)
        t = self.config["context_frames"]
        last_weight = self.decoder.conv_out.weight
        networks = lpips, discriminator
        loss, metrics = objective(frames, recon, t, dict(vq=vq), last_weight, *networks, self.pixel_loss)
        return loss, metrics | code_use("frames", ids, self.quantize.idle)

    forward = loss

    def encode(self, frames):
        """Frames (B, T >= t, 3, H, W) -> token ids (B, L), laid out as TokenLayout says."""
        t = self.config["context_frames"]
        ids = self.quantize.ids(self.latents(frames)).unflatten(0, frames.shape[:2])
        return self.layout.pack(ids[:, :t], ids[:, t:])

    def decode(self, tokens):
        """Token ids (B, L) -> frames (B, T, 3, H, W), not clamped."""
        return self.decode_future(torch.cat(self.layout.unpack(tokens), 1))

    def decode_context(self, context):
        """Nothing: no frame attends to another."""

    def decode_future(self, codes, context=None):
        """Codes (B, f, n) -> frames (B, f, 3, H, W), not clamped."""
        return self.pictures(self.quantize.embedding(codes.flatten(0, 1))).unflatten(0, codes.shape[:2])

    def checkpoint(self):
        return dict(config=self.config, weights=self.state_dict())
