"""variants/tiny.py: what the preset `tiny` does differently from the paper, to learn on a CPU.

    TinyTokenizer  patch      folds 4x4 pixels into channels: a sixteenth of the convolutions' work
                   copy       the decoder copies what does not change from the last context frame
                   still      one code stands wherever nothing has changed since the context: otherwise most
                              codes are noise, which no transformer can predict
                   disguise   dynamics codes of half of the clips come from copies in other colours, so that
                              they tell where things are, while their looks come from the context
                   fsq        another quantizer (fsq.py), off by default
                   pos_init   the cross-attention starts with sinusoids as position embeddings and keys
                              projected like queries, so that each pixel first attends to its own place
                   l2         a squared error beside the absolute one finds small moving things sooner
                   cell_loss  each code has to draw its cell of the picture by itself, too, and a dynamics one
                              stays while its cell does. Codes that the decoder understands only from their
                              neighbours say little: a transformer takes many times as long to learn what
                              moves. Off by default
    TinyGPT        pos_init   learned position embeddings beside RoPE, with which the model learns far sooner
                              to copy the context's objects into the first future frame
    muon.py                   an optimizer that is 2.4 dB ahead of AdamW after 600 updates of the tokenizer
    drift.py                  random codes that the transformer reads in training

The paper's path through tokenizer.py and gpt.py enters none of this: checkpoints.py chooses these classes
where one of their settings is on. Letters: tokenizer.py, gpt.py."""

import math

import torch
import torch.nn.functional as F
from torch import nn

import gpt
import tokenizer
from gpt import GPT
from tokenizer import CrossAttention, Decoder, Encoder, Tokenizer, patchify
from variants.fsq import FiniteScalarQuantizer

# Settings with which a TinyTokenizer would be a Tokenizer, and a TinyGPT a GPT.
TOKENIZER_OFF = dict(
    patch=1, copy=False, still=0.0, disguise=False, fsq=False, pos_init=0.0, l2=0.0, cell_loss=0.0
)  # fmt: skip
GPT_OFF = dict(pos_init=0.0)
TOKENIZER = {
    **tokenizer.SMALL, "channels": (64,), "layers_per_block": 1, "code_dim": 32, "context_codes": 2048,
    "dynamics_codes": 2048, "norm_groups": 8, "n_head": 2, "dropout": 0.0, "commitment": 0.25,
    "revive_after": 50, "patch": 4, "copy": True, "still": 0.03, "disguise": True, "fsq": False,
    "pos_init": 1.5, "l2": 10.0, "cell_loss": 0.0,
}  # fmt: skip
TRANSFORMER = {
    **gpt.SMALL, "n_layer": 4, "n_head": 3, "n_embd": 192, "n_mlp": 512, "att_dropout": 0.0, "pos_init": 0.03,
}  # fmt: skip


# ---- the tokenizer ----


class FoldedEncoder(Encoder):
    """An Encoder of frames whose patches of patch x patch pixels are folded into channels."""

    def __init__(self, cfg, conditional, patch):
        super().__init__(cfg, conditional, c_in=3 * patch**2)
        self.patch = patch

    def forward(self, frames, context=None):
        return super().forward(F.pixel_unshuffle(frames, self.patch), context)


class FoldedDecoder(Decoder):
    """The Decoder that goes with FoldedEncoder."""

    def __init__(self, cfg, conditional, patch, c_out=3):
        super().__init__(cfg, conditional, c_out * patch**2)
        self.patch = patch

    def forward(self, z, context=None):
        folded, features = super().forward(z, context)
        return F.pixel_shuffle(folded, self.patch), features


class CopyingDecoder(FoldedDecoder):
    """A FoldedDecoder that chooses for every pixel what it draws or what the last context frame shows there.

    What does not change is as sharp as the context then, and only the rest has to be learned."""

    def __init__(self, cfg, conditional, patch):
        super().__init__(cfg, conditional, patch, c_out=4)

    def forward(self, z, context=None):
        channels, features = super().forward(z, context)
        drawn, gate = channels.split([3, 1], 1)
        if context is None:
            return drawn, features
        last = context["last"].repeat_interleave(len(z) // len(context["last"]), 0)
        return last + torch.sigmoid(gate) * (drawn - last), features


def sinusoids(C, size):
    """2-D sinusoidal position embeddings (size^2, C); wavelengths from a few cells to the whole frame."""
    angle = torch.arange(size)[:, None] * float(size) ** -torch.linspace(0, 1, C // 4)
    wave = torch.cat([angle.sin(), angle.cos()], 1)  # (size, C/2)
    rows = wave[:, None].expand(-1, size, -1)
    columns = wave[None].expand(size, -1, -1)
    return torch.cat([rows, columns], -1).flatten(0, 1)


def recolour(frames):
    """Clips (B, T, 3, H, W), about half of them in other colours: channels shuffled, squeezed, inverted."""
    B = len(frames)
    order = torch.rand(B, 3, device=frames.device).argsort(1)[:, None, :, None, None]
    low, high = torch.rand(2, B, 1, 3, 1, 1, device=frames.device) * 0.4
    squeezed = low + (1 - high - low) * frames.gather(2, order.expand_as(frames))
    inverted = torch.where(torch.rand_like(low) < 0.5, 1 - squeezed, squeezed)
    stays = torch.rand(B, 1, 1, 1, 1, device=frames.device) < 0.5
    return torch.where(stays, frames, inverted)


def cell_decoder(cfg, grid):
    """A small network that draws a cell of a grid x grid picture from its code alone."""
    pixels = 3 * (cfg["resolution"] // grid) ** 2
    return nn.Sequential(nn.Linear(cfg["code_dim"], 256), nn.SiLU(), nn.Linear(256, pixels))


class TinyTokenizer(Tokenizer):
    """A Tokenizer with these tricks; inside, a frame has resolution / patch pixels of 3 patch^2 channels."""

    def __init__(self, patch, copy, still, disguise, fsq, pos_init, l2, cell_loss, **cfg):
        if patch < 1 or cfg["resolution"] % patch:
            raise ValueError(f"resolution is {cfg['resolution']}; expected a multiple of patch = {patch}")
        self.patch = patch  # these three are needed by what Tokenizer's constructor calls
        self.copy = copy
        self.fsq = fsq
        super().__init__(**{**cfg, "resolution": cfg["resolution"] // patch})
        extras = dict(patch=patch, copy=copy, still=still, disguise=disguise, fsq=fsq, pos_init=pos_init)
        self.config = dict(self.config, resolution=cfg["resolution"], l2=l2, cell_loss=cell_loss, **extras)
        if cell_loss:
            drawn = dict(context=self.grid, dynamics=cfg["dynamics_grid"])
            self.cells = nn.ModuleDict({kind: cell_decoder(cfg, grid) for kind, grid in drawn.items()})
        for module in self.modules():
            if isinstance(module, CrossAttention) and pos_init:
                self.init_positions(module)

    def networks(self, cfg, conditional):
        decoder = CopyingDecoder if self.copy and conditional else FoldedDecoder
        return FoldedEncoder(cfg, conditional, self.patch), decoder(cfg, conditional, self.patch)

    def quantizer(self, K, cfg):
        return FiniteScalarQuantizer(K, cfg["code_dim"]) if self.fsq else super().quantizer(K, cfg)

    def unchanged(self, frames):
        """Where future frames look like the last context frame, as True (B, f, n): one per dynamics token.

        Means of patch x patch pixels are compared: a camera's noise is no change."""
        t = self.config["context_frames"]
        side = self.config["resolution"] // self.config["dynamics_grid"]
        change = F.avg_pool2d((frames[:, t:] - frames[:, t - 1 : t]).flatten(0, 1), self.patch)
        largest = F.max_pool2d(change.abs().amax(1), side // self.patch)
        return largest.unflatten(0, (len(frames), -1)).flatten(2) < self.config["still"]

    def quantize_context(self, frames, z):
        zq, ids, loss = self.quantize(z)
        return zq, ids, loss + self.loss_of_cells("context", zq, frames[:, : self.config["context_frames"]])

    def quantize_future(self, frames, features):
        """As Tokenizer's, but with code 0 where nothing has changed, and in training with `disguise`."""
        t = self.config["context_frames"]
        quantizer = self.dynamics_quantize
        seen = frames
        if self.training and self.config["disguise"]:
            seen = recolour(frames)
            _, features = self.encode_context(seen[:, :t])
        w = self.encode_future(seen[:, t:], features)
        if not self.config["still"]:
            wq, ids, loss = quantizer(w)
            return wq, ids, loss + self.loss_of_cells("dynamics", wq, frames[:, t:])
        changed = ~self.unchanged(frames)
        ids = torch.zeros_like(changed, dtype=torch.long)
        wq = quantizer.embedding(ids)
        if self.training:
            changed[0, 0, 0] |= ~changed.any()  # every process calls the quantizer, which has collectives
        elif not changed.any():
            return wq, ids, 0 * w.sum()
        found, found_ids, loss = quantizer(w[changed])
        if self.training:
            quantizer.idle[0] = 0  # never to be revived
        wq = wq.masked_scatter(changed[..., None], found)
        loss = loss + self.loss_of_cells("dynamics", wq, frames[:, t:], changed)
        return wq, ids.masked_scatter(changed, found_ids), changed.float().mean() * loss

    def hold(self, dynamics, frames):
        """Codes (B, f, n), each again where its cell looks as in the frame before."""
        side = self.config["resolution"] // self.config["dynamics_grid"]
        future = frames[:, self.config["context_frames"] :]
        change = (future[:, 1:] - future[:, :-1]).abs().amax(2, keepdim=True)
        same = F.max_pool2d(change.flatten(0, 1), side).view(dynamics[:, 1:].shape) < 1 / 255
        held = [dynamics[:, 0]]
        for k in range(1, dynamics.shape[1]):
            held.append(torch.where(same[:, k - 1], held[-1], dynamics[:, k]))
        return torch.stack(held, 1)

    def loss_of_cells(self, kind, zq, frames, chosen=slice(None)):
        """Weighted squared error of what quantized codes (B, T, n, D) draw of their cells by themselves."""
        if not self.config["cell_loss"]:
            return 0.0
        side = self.config["resolution"] // math.isqrt(zq.shape[2])
        true = patchify(frames.flatten(0, 1), side).unflatten(0, zq.shape[:2])
        return self.config["cell_loss"] * F.mse_loss(self.cells[kind](zq[chosen]), true[chosen])

    def encode(self, frames):
        tokens = super().encode(frames)
        if frames.shape[1] == self.config["context_frames"]:
            return tokens
        context, dynamics = self.layout.unpack(tokens)
        if self.config["cell_loss"]:
            dynamics = self.hold(dynamics, frames)
        if not self.config["still"]:
            return self.layout.pack(context, dynamics)
        return self.layout.pack(context, dynamics.masked_fill(self.unchanged(frames), 0))

    def scene(self, past, features):
        read = super().scene(past, features)
        return {**read, "last": past[:, -1]} if self.copy else read

    def decode_context(self, context):
        if not self.copy:
            return super().decode_context(context)
        return self.scene(*self.frames_context(self.quantize.embedding(context)))

    @torch.no_grad()
    def init_positions(self, attention):
        """Sinusoids as position embeddings, and keys projected like queries: equal positions match."""
        pixels, C = attention.q_pos_emb.shape
        positions = self.config["pos_init"] * sinusoids(C, int(pixels**0.5))
        attention.q_pos_emb.copy_(positions)
        attention.kv_pos_emb.copy_(positions.repeat(self.config["context_frames"], 1))
        attention.kv.weight[:C] = attention.q.weight

    def pixel_loss(self, x, y):
        squared = self.config["l2"] * F.mse_loss(x, y) if self.config["l2"] else 0
        return F.l1_loss(x, y) + squared


# ---- the transformer ----


def place_in_frame(layout, L):
    """Rows (L,) of the position embeddings for L positions: all future frames share theirs."""
    i = torch.arange(L)
    first = layout.prompt - 1
    return torch.where(i < first, i, first + (i - first) % (layout.tokens_future + 1))


def position_table(layout, D):
    """Position embeddings of the context and of one future frame, whose slot comes first, (prompt + n, D).

    Half of the channels tell where in the picture a token lies, and half where its successor does, as
    sinusoids; slots lie nowhere: zeros."""
    nowhere = torch.full((1, 2), torch.nan)
    rows = []
    for n, count in ((layout.tokens_context, layout.context_frames), (layout.tokens_future, 1)):
        centres = (torch.arange(n**0.5) + 0.5) / n**0.5  # of the cells of a square grid, side 1
        rows += [nowhere, torch.cartesian_prod(centres, centres)] * count
    own = torch.cat(rows)  # (1 + prompt + n, 2): row, column
    both = torch.stack([own, own.roll(-1, 0)], 1)[1:]  # the first slot is left out; a slot follows the last
    angle = both[..., None] * torch.pi * 2 ** torch.linspace(0, 4, D // 8)  # wavelengths: 2 sides to 1/8
    return torch.cat([angle.sin(), angle.cos()], -1).nan_to_num(0.0).flatten(1)


class TinyGPT(GPT):
    """A GPT with learned position embeddings beside RoPE; pos_init is the amplitude that they start with."""

    def __init__(self, layout, pos_init, **cfg):
        super().__init__(layout, **cfg)
        self.config = dict(self.config, pos_init=pos_init)
        D = cfg["n_embd"]
        if D % 8:
            raise ValueError(f"n_embd is {D}; with pos_init, expected a multiple of 8")
        self.pos_emb = nn.Parameter(pos_init * position_table(layout, D))
        self.register_buffer("place", place_in_frame(layout, self.rope.shape[1]), persistent=False)

    def add_positions(self, x, positions):
        return x + self.pos_emb[self.place[positions]]

    def undecayed(self):
        return ["embed.weight", "pos_emb"]
