"""tokenizer.py: frames <-> discrete tokens, the conditional VQGAN (paper section 3.1, appendix A.1).

    frames (B,T,3,H,W) -+- first t -> encoder ------> VQ -> context codes  (B,t,N) -> decoder ------> frames
                        |               | features                                       | features
                        +- others --> cond_encoder -> VQ -> dynamics codes (B,f,n) -> cond_decoder -> frames

A context frame costs N = 256 tokens, a future frame n = 16, because its encoder and decoder read the scene
from the context by cross-attention: its codes say only what has changed. A video is one sequence:

    c_1 (N)  [S1]  c_2 (N)  [S2] d_1 (n)  [S2] d_2 (n) ...      S1, S2: slot tokens; the first S1 is left out
    |------ context ------| |---- a future frame ---|

B batch, T frames, t context frames, f = T-t future frames, N/n tokens per context/future frame, L tokens in
a sequence, M pictures, C channels, D code size, K codes, h w latent grid. Frames are in [0, 1].

Where we differ from the paper: codes that are not used are drawn anew (`revive_after`), and initial weights
keep the variance of activations. The preset `tiny` differs in more: variants/tiny.py."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from support.codes import code_use

# Paper Table 2: small is its low-resolution model (114M), large its high-resolution one (310M).
SMALL = dict(
    resolution=64,
    channels=(128, 256, 512),  # one entry per level; every level but the last halves the resolution
    layers_per_block=2,  # residual blocks per level of an encoder; a decoder has one more
    code_dim=64,
    context_codes=8192,
    dynamics_codes=8192,
    context_frames=2,
    dynamics_grid=4,  # a future frame is dynamics_grid^2 tokens
    max_att_resolution=16,  # cross-attention where feature maps are at most this wide
    norm_groups=32,
    n_head=4,
    dropout=0.1,  # of the cross-attention, in training
    commitment=1.0,  # weight of the encoder's part of the VQ loss
    revive_after=200,  # forward passes without use after which a code is drawn anew; 0: never
)
LARGE = {**SMALL, "resolution": 256, "channels": (128, 256, 256, 512, 768), "max_att_resolution": 32}


@dataclass(frozen=True)
class TokenLayout:
    """Which id means what, and where it stands in the sequence: the one definition, used by every file."""

    context_frames: int
    tokens_context: int  # N
    tokens_future: int  # n
    context_codes: int
    dynamics_codes: int

    @property
    def context_slot(self):
        return self.context_codes + self.dynamics_codes

    @property
    def future_slot(self):
        return self.context_slot + 1

    @property
    def vocab_size(self):
        return self.context_slot + 2

    @property
    def prompt(self):
        """Tokens before the first one that is predicted: the context and the first future slot."""
        return (self.tokens_context + 1) * self.context_frames

    def length(self, T):
        """Tokens in the sequence of a T-frame video."""
        return self.prompt - 1 + (self.tokens_future + 1) * (T - self.context_frames)

    def future_frames(self, L):
        """Future frames in a sequence of L tokens, an unfinished last one included."""
        return max(0, -(-(L - self.prompt + 1) // (self.tokens_future + 1)))

    def slots(self, f):
        """Positions of the slot tokens of f future frames, a slice: their actions are added here."""
        first = self.prompt - 1
        step = self.tokens_future + 1
        return slice(first, first + step * f, step)

    def ends(self, f):
        """Positions of the last token of f future frames, a slice: their rewards are read here."""
        slots = self.slots(f)
        return slice(slots.start + self.tokens_future, slots.stop, slots.step)

    def pack(self, context, dynamics=None):
        """Codes (B, t, N) and, if there are any, (B, f, n) -> token ids (B, L)."""
        before = F.pad(context, (1, 0), value=self.context_slot).flatten(1)[:, 1:]
        if dynamics is None:
            return before
        after = F.pad(dynamics + self.context_codes, (1, 0), value=self.future_slot).flatten(1)
        return torch.cat([before, after], 1)

    def unpack(self, tokens):
        """Token ids (B, L) of whole frames -> codes (B, t, N) and (B, f, n).

        raises  ValueError if L fits no number of frames or an id is not a code that its position can hold"""
        L = tokens.shape[1]
        n = self.tokens_future
        if L < self.prompt - 1 or (L - self.prompt + 1) % (n + 1):
            raise ValueError(f"{L} tokens; expected {self.prompt - 1} + {n + 1} per future frame")
        context = F.pad(tokens[:, : self.prompt - 1], (1, 0)).unflatten(1, (self.context_frames, -1))[..., 1:]
        dynamics = tokens[:, self.prompt - 1 :].unflatten(1, (-1, n + 1))[..., 1:] - self.context_codes
        for codes, K in ((context, self.context_codes), (dynamics, self.dynamics_codes)):
            if codes.numel() and not 0 <= codes.min() <= codes.max() < K:
                raise ValueError(f"codes {codes.min()}..{codes.max()}; expected 0..{K - 1}")
        return context, dynamics


def latent_grid(cfg):
    """Side of the latent grid of a tokenizer with these settings."""
    return cfg["resolution"] // 2 ** (len(cfg["channels"]) - 1)


def layout_of(cfg):
    """The TokenLayout of a tokenizer with these settings, a dict as SMALL."""
    tokens = latent_grid(cfg) ** 2, cfg["dynamics_grid"] ** 2
    return TokenLayout(cfg["context_frames"], *tokens, cfg["context_codes"], cfg["dynamics_codes"])


def conv3(c_in, c_out):
    return nn.Conv2d(c_in, c_out, 3, padding=1)


class ResBlock(nn.Module):
    """GN -> SiLU -> conv -> GN -> SiLU -> conv, plus the input."""

    def __init__(self, c_in, c_out, groups):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in, 1e-6)
        self.conv1 = conv3(c_in, c_out)
        self.norm2 = nn.GroupNorm(groups, c_out, 1e-6)
        self.conv2 = conv3(c_out, c_out)
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class SelfAttention(nn.Module):
    """One head over all pixels, residual."""

    def __init__(self, C, groups):
        super().__init__()
        self.norm = nn.GroupNorm(groups, C, 1e-6)
        self.qkv = nn.Linear(C, 3 * C)
        self.out = nn.Linear(C, C)

    def forward(self, x):
        B, C, H, W = x.shape
        q, k, v = self.qkv(self.norm(x).flatten(2).mT).chunk(3, -1)  # (B, HW, C)
        h = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.out(h).mT.reshape(B, C, H, W)


class CrossAttention(nn.Module):
    """Every pixel of a future frame attends to the features of all t context frames (paper eq. 5)."""

    def __init__(self, cfg, C, size):
        super().__init__()
        self.n_head = cfg["n_head"]
        self.dropout = cfg["dropout"]
        self.q_norm = nn.GroupNorm(cfg["norm_groups"], C, 1e-5)
        self.kv_norm = nn.GroupNorm(cfg["norm_groups"], C, 1e-5)
        self.q_pos_emb = nn.Parameter(torch.zeros(size * size, C))
        self.kv_pos_emb = nn.Parameter(torch.zeros(cfg["context_frames"] * size * size, C))
        self.q = nn.Linear(C, C)
        self.kv = nn.Linear(C, 2 * C)
        self.out = nn.Linear(C, C)

    def keys_values(self, context):
        """Context features (B, t, C, H, W) -> keys, values (B, heads, tHW, C/heads) for all future frames."""
        B, t, C, H, W = context.shape
        stacked = context.transpose(1, 2).reshape(B, C, t * H, W)  # frames share the statistics of the norm
        x = self.kv_norm(stacked).flatten(2).mT + self.kv_pos_emb  # (B, tHW, C)
        return self.kv(x).unflatten(-1, (2 * self.n_head, -1)).transpose(1, 2).chunk(2, 1)

    def forward(self, x, k, v):
        M, C, H, W = x.shape  # M = B f
        B = len(k)
        q = self.q(self.q_norm(x).flatten(2).mT + self.q_pos_emb)  # (M, HW, C)
        q = q.reshape(B, -1, self.n_head, C // self.n_head).transpose(1, 2)  # (B, heads, f HW, C/heads)
        h = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        h = self.out(h.transpose(1, 2).reshape(M, H * W, C))
        h = F.dropout(h, self.dropout, self.training)
        return F.silu(x + h.mT.reshape(M, C, H, W))


class Stack(nn.Module):
    """One level of an encoder or a decoder: residual blocks, then a change of resolution."""

    def __init__(self, c_in, c_out, layers, groups, resample):
        super().__init__()
        blocks = [ResBlock(c_in if i == 0 else c_out, c_out, groups) for i in range(layers)]
        self.resnets = nn.ModuleList(blocks)
        self.resample = resample  # "down", "up" or ""
        if resample:
            self.conv = nn.Conv2d(c_out, c_out, 3, stride=2) if resample == "down" else conv3(c_out, c_out)

    def forward(self, x):
        for resnet in self.resnets:
            x = resnet(x)
        if self.resample == "down":
            return self.conv(F.pad(x, (0, 1, 0, 1)))  # padded right and below only, as in the original
        if self.resample == "up":
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x


class MidBlock(nn.Module):
    def __init__(self, C, groups, attention):
        super().__init__()
        self.resnets = nn.ModuleList([ResBlock(C, C, groups), ResBlock(C, C, groups)])
        self.attention = SelfAttention(C, groups) if attention else nn.Identity()

    def forward(self, x):
        return self.resnets[1](self.attention(self.resnets[0](x)))


def project_context(network, features):
    """Feature maps (B, t, C, H, W) of a context -> {level: (keys, values)} for the cross-attentions."""
    return {level: cross.keys_values(features[int(level)]) for level, cross in network.cross.items()}


class Encoder(nn.Module):
    """Frames -> latents, and the feature map after each level; `conditional` on a context's feature maps."""

    def __init__(self, cfg, conditional, c_in=3):
        super().__init__()
        channels = cfg["channels"]
        groups = cfg["norm_groups"]
        size = cfg["resolution"]
        self.conv_in = conv3(c_in, channels[0])
        self.down_blocks = nn.ModuleList()
        self.cross = nn.ModuleDict()
        for i, C in enumerate(channels):
            down = "down" if i < len(channels) - 1 else ""
            self.down_blocks.append(Stack(channels[max(i - 1, 0)], C, cfg["layers_per_block"], groups, down))
            size //= 2 if down else 1
            if conditional and size <= cfg["max_att_resolution"]:
                self.cross[str(i)] = CrossAttention(cfg, C, size)
        self.mid_block = MidBlock(C, groups, attention=conditional)
        self.conv_norm_out = nn.GroupNorm(groups, C, 1e-6)
        self.conv_out = conv3(C, cfg["code_dim"])

    def forward(self, frames, context=None):
        """frames (M, 3, H, W), `project_context` of a context -> latents (M, D, h, w), features."""
        h = self.conv_in(frames)
        features = []
        for i, block in enumerate(self.down_blocks):
            h = block(h)
            if str(i) in self.cross:
                h = self.cross[str(i)](h, *context[str(i)])
            features.append(h)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(h)))), features


class Decoder(nn.Module):
    """Latents -> frames, and the feature map of the mid block and after each level."""

    def __init__(self, cfg, conditional, c_out=3):
        super().__init__()
        channels = cfg["channels"][::-1]
        groups = cfg["norm_groups"]
        size = latent_grid(cfg)
        self.conv_in = conv3(cfg["code_dim"], channels[0])
        self.mid_block = MidBlock(channels[0], groups, attention=conditional)
        self.up_blocks = nn.ModuleList()
        self.cross = nn.ModuleDict()
        if conditional:
            self.cross["0"] = CrossAttention(cfg, channels[0], size)
        for i, C in enumerate(channels):
            up = "up" if i < len(channels) - 1 else ""
            layers = cfg["layers_per_block"] + 1
            self.up_blocks.append(Stack(channels[max(i - 1, 0)], C, layers, groups, up))
            size *= 2 if up else 1
            if conditional and up and size <= cfg["max_att_resolution"]:
                self.cross[str(i + 1)] = CrossAttention(cfg, C, size)
        self.conv_norm_out = nn.GroupNorm(groups, C, 1e-6)
        self.conv_out = conv3(C, c_out)

    def features(self, z, context=None, levels=None):
        """latents (M, D, h, w), `project_context` of a context -> feature maps, by default of all levels.

        Without a context, a conditional decoder leaves its cross-attention out (Figure 10)."""
        h = self.mid_block(self.conv_in(z))
        features = []
        for i, block in enumerate([nn.Identity(), *self.up_blocks][:levels]):
            h = block(h)
            if str(i) in self.cross:
                h = self.cross[str(i)](h, *context[str(i)]) if context else F.silu(h)
            features.append(h)
        return features

    def forward(self, z, context=None):
        """latents (M, D, h, w), `project_context` of a context -> frames (M, 3, H, W), features."""
        features = self.features(z, context)
        return self.conv_out(F.silu(self.conv_norm_out(features[-1]))), features


def init_weights(module):
    """Keep the variance of activations, without biases: torch's defaults lose the signal before the codes."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.normal_(module.weight, 0, module.weight[0].numel() ** -0.5)
        nn.init.zeros_(module.bias)
    if isinstance(module, Decoder):  # the first pictures are grey
        module.conv_out.weight.data.mul_(0.1)
        nn.init.constant_(module.conv_out.bias, 0.5)


class VectorQuantizer(nn.Module):
    """Nearest of K learned vectors (van den Oord et al. 2017)."""

    def __init__(self, K, D, commitment):
        super().__init__()
        self.commitment = commitment
        self.embedding = nn.Embedding(K, D)
        nn.init.uniform_(self.embedding.weight, -1 / K, 1 / K)

    @torch.no_grad()
    def nearest(self, z):
        """Vectors (..., D) -> distance and index of the nearest code (...), in float32 in any autocast."""
        with torch.autocast(z.device.type, enabled=False):
            distances = torch.cdist(z.float().reshape(1, -1, z.shape[-1]), self.embedding.weight[None])[0]
        distance, ids = distances.min(-1)
        return distance.view(z.shape[:-1]), ids.view(z.shape[:-1])

    def ids(self, z):
        return self.nearest(z)[1]

    def forward(self, z):
        """z (..., D) -> quantized z, ids (...), loss: codebook + weighted commitment."""
        z = z.float()
        ids = self.ids(z)
        zq = self.embedding(ids)
        loss = self.commitment * F.mse_loss(z, zq.detach()) + F.mse_loss(zq, z.detach())
        return z + (zq - z).detach(), ids, loss  # straight-through: argmin has no gradient, z gets zq's


class RevivingQuantizer(VectorQuantizer):
    """A VectorQuantizer that counts the use of its codes, and draws unused ones anew from what it sees."""

    def __init__(self, K, D, commitment, revive_after):
        super().__init__(K, D, commitment)
        self.revive_after = revive_after
        # Training passes since each code was used. All start overdue: the first batch fills the codebook.
        self.register_buffer("idle", torch.full((K,), 1000 * max(1, revive_after)))

    def forward(self, z):
        if self.training:
            self.revive(z)
        zq, ids, loss = super().forward(z)
        if self.training:
            self.count_use(ids)
        return zq, ids, loss

    def count_use(self, ids):
        self.idle += 1
        self.idle[ids.flatten()] = 0
        if dist.is_initialized():  # here: before the next forward, DDP broadcasts the buffers of process 0
            dist.all_reduce(self.idle, dist.ReduceOp.MIN)

    @torch.no_grad()
    def revive(self, z):
        """Replace each code by a vector of z (..., D) after every `revive_after` passes without use.

        Vectors far from all codes are drawn most often, as in k-means++: no two codes become alike."""
        dead = (self.idle > 0) & (self.idle % max(1, self.revive_after) == 0)
        if not self.revive_after or not dead.any():
            return
        z = z.float().reshape(-1, z.shape[-1])
        weight = self.embedding.weight
        odds = self.nearest(z)[0].square().nan_to_num(0, 0) + 1e-8
        fresh = z[torch.multinomial(odds, len(weight), replacement=True)]
        if dist.is_initialized():  # all processes must draw the same codes
            dist.broadcast(fresh, 0)
        weight.copy_(torch.where(dead[:, None], fresh, weight))


def patchify(z, side):
    """Latents (M, D, h, w) -> (M, n, side side D): patches row-major, in each (row, column, channel)."""
    x = z.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # (M, D, h / side, side, w / side, side)
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(x, side):
    """The inverse of `patchify`, for square latents."""
    g = int(x.shape[1] ** 0.5)
    x = x.unflatten(2, (side, side, -1)).unflatten(1, (g, g))  # (M, g, g, side, side, D)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def adversarial_weight(perceptual, gen, last_weight):
    """Balance of two gradients at a decoder's last layer (Esser et al. 2021, eq. 7)."""
    grad_p = torch.autograd.grad(perceptual, last_weight, retain_graph=True)[0].norm()
    grad_g = torch.autograd.grad(gen, last_weight, retain_graph=True)[0].norm()
    return (grad_p / grad_g.clamp(min=1e-8)).clamp(max=1e4).detach()


def objective(frames, recon, t, vq_losses, last_weight, lpips=None, discriminator=None, pixel_loss=F.l1_loss):
    """Reconstruction + LPIPS + VQ [+ adversarial] loss, with equal weights (paper section 3.1, A.2).

    frames, recon  true and decoded (B, T, 3, H, W); the first t, the context, weigh as much as the rest
    vq_losses      {name: scalar};  last_weight  of the decoder's last layer;  lpips  a callable on [-1, 1]
    returns loss and metrics, a dict of scalars"""
    recon = recon.float()
    context = recon[:, :t].flatten(0, 1), frames[:, :t].flatten(0, 1)  # decoded, true
    future = recon[:, t:].flatten(0, 1), frames[:, t:].flatten(0, 1)
    parts = dict(recon_context=pixel_loss(*context), recon=pixel_loss(*future), **vq_losses)
    if lpips is not None:
        with torch.autocast(frames.device.type, enabled=False):
            for name, (x, y) in dict(lpips_context=context, lpips=future).items():
                parts[name] = lpips(2 * x - 1, 2 * y - 1).mean()
    loss = sum(parts.values())
    if discriminator is not None:
        gen = -discriminator(recon.flatten(0, 1)).mean()
        loss = loss + 0.8 * adversarial_weight(parts.get("lpips", parts["recon"]), gen, last_weight) * gen
        parts["gen"] = gen
    metrics = {name: part.detach() for name, part in parts.items()}
    error = (future[0].detach().clamp(0, 1) - future[1]).square().mean((1, 2, 3))
    metrics["psnr"] = -10 * torch.log10(error + 1e-8).mean()
    return loss, metrics


def check_config(cfg):
    """Raise ValueError unless the settings of a tokenizer fit each other."""
    for key, default in SMALL.items():
        if isinstance(default, int) and key != "revive_after" and cfg[key] < 1:
            raise ValueError(f"{key} is {cfg[key]}; expected at least 1")
    factor = 2 ** (len(cfg["channels"]) - 1) * cfg["dynamics_grid"]
    if cfg["resolution"] % factor:
        raise ValueError(f"resolution is {cfg['resolution']}; expected a multiple of {factor} (grid)")
    if any(C % cfg["norm_groups"] or C % cfg["n_head"] for C in cfg["channels"]):
        raise ValueError(f"channels are {cfg['channels']}: no multiples of norm_groups and n_head")


class Tokenizer(nn.Module):
    """The conditional VQGAN. Settings: see SMALL above.

    raises  ValueError if settings are missing, unknown or do not fit each other"""

    def __init__(self, **cfg):
        super().__init__()
        if unknown := sorted(set(cfg) ^ set(SMALL)):
            raise ValueError(f"settings missing or unknown: {', '.join(unknown)}; see tokenizer.SMALL")
        cfg["channels"] = tuple(cfg["channels"])
        check_config(cfg)
        self.config = cfg
        self.layout = layout_of(cfg)
        self.grid = latent_grid(cfg)
        self.side = self.grid // cfg["dynamics_grid"]  # a dynamics token covers side x side latents
        D = cfg["code_dim"]
        self.encoder, self.decoder = self.networks(cfg, conditional=False)
        self.cond_encoder, self.cond_decoder = self.networks(cfg, conditional=True)
        self.quant_conv = nn.Conv2d(D, D, 1)
        self.post_quant_conv = nn.Conv2d(D, D, 1)
        self.quant_linear = nn.Linear(D * self.side**2, D)
        self.post_quant_linear = nn.Linear(D, D * self.side**2)
        self.quantize = self.quantizer(cfg["context_codes"], cfg)
        self.dynamics_quantize = self.quantizer(cfg["dynamics_codes"], cfg)
        self.apply(init_weights)

    pixel_loss = staticmethod(F.l1_loss)  # this and the next five are there for `variants` to override

    def networks(self, cfg, conditional):
        return Encoder(cfg, conditional), Decoder(cfg, conditional)

    def quantizer(self, K, cfg):
        return RevivingQuantizer(K, cfg["code_dim"], cfg["commitment"], cfg["revive_after"])

    def quantize_context(self, frames, z):
        return self.quantize(z)

    def quantize_future(self, frames, features):
        w = self.encode_future(frames[:, self.config["context_frames"] :], features)
        return self.dynamics_quantize(w)

    def scene(self, past, features):
        """What future frames are drawn from: the decoded context (B, t, 3, H, W), the decoder's features."""
        return project_context(self.cond_decoder, features)

    def check(self, frames, least):
        """Raise ValueError unless frames are (B, T >= least, 3, H, W) of this tokenizer's resolution."""
        R = self.config["resolution"]
        if frames.ndim != 5 or tuple(frames.shape[2:]) != (3, R, R) or frames.shape[1] < least:
            raise ValueError(f"frames are {tuple(frames.shape)}; expected (B, T >= {least}, 3, {R}, {R})")

    def encode_context(self, frames):
        """Context frames (B, t, 3, H, W) -> latents (B, t, N, D) and the encoder's features."""
        B, t = frames.shape[:2]
        z, features = self.encoder(frames.flatten(0, 1))
        z = self.quant_conv(z).flatten(2).mT.unflatten(0, (B, t))
        return z, [x.unflatten(0, (B, t)) for x in features]

    def encode_future(self, frames, features):
        """Future frames (B, f, 3, H, W), a context's encoder features -> latents (B, f, n, D)."""
        z, _ = self.cond_encoder(frames.flatten(0, 1), project_context(self.cond_encoder, features))
        return self.quant_linear(patchify(z, self.side)).unflatten(0, frames.shape[:2])

    def decoder_input(self, zq):
        """Quantized latents (B, t, N, D) -> maps (B t, D, h, w)."""
        return self.post_quant_conv(zq.flatten(0, 1).mT.unflatten(-1, (self.grid, self.grid)))

    def frames_context(self, zq):
        """Quantized latents (B, t, N, D) -> frames (B, t, 3, H, W) and the decoder's features."""
        frames, features = self.decoder(self.decoder_input(zq))
        return frames.unflatten(0, zq.shape[:2]), [x.unflatten(0, zq.shape[:2]) for x in features]

    def frames_future(self, zq, context):
        """Quantized latents (B, f, n, D), the `scene` -> frames (B, f, 3, H, W)."""
        z = unpatchify(self.post_quant_linear(zq.flatten(0, 1)), self.side)
        return self.cond_decoder(z, context)[0].unflatten(0, zq.shape[:2])

    def encode(self, frames):
        """Frames (B, T >= t, 3, H, W), context first -> token ids (B, L), laid out as TokenLayout says."""
        t = self.config["context_frames"]
        self.check(frames, t)
        z, features = self.encode_context(frames[:, :t])
        context = self.quantize.ids(z)
        if frames.shape[1] == t:
            return self.layout.pack(context)
        dynamics = self.dynamics_quantize.ids(self.encode_future(frames[:, t:], features))
        return self.layout.pack(context, dynamics)

    def decode(self, tokens):
        """Token ids (B, L) -> frames (B, T, 3, H, W), context included, not clamped."""
        context, dynamics = self.layout.unpack(tokens)
        frames, features = self.frames_context(self.quantize.embedding(context))
        if not dynamics.shape[1]:
            return frames
        future = self.decode_future(dynamics, self.scene(frames, features))
        return torch.cat([frames, future], 1)

    def decode_context(self, context):
        """Context codes (B, t, N) -> the `scene` for `decode_future`: computed once per context."""
        levels = 1 + max(map(int, self.cond_decoder.cross))  # later levels are not attended to
        features = self.decoder.features(self.decoder_input(self.quantize.embedding(context)), levels=levels)
        return project_context(self.cond_decoder, [x.unflatten(0, context.shape[:2]) for x in features])

    def decode_future(self, dynamics, context):
        """Dynamics codes (B, f, n), a `decode_context` or None -> frames (B, f, 3, H, W), each by itself."""
        return self.frames_future(self.dynamics_quantize.embedding(dynamics), context)

    def reconstruct(self, frames):
        """Frames through both codebooks -> frames, then ids and VQ loss of the context and of the future."""
        t = self.config["context_frames"]
        self.check(frames, t + 1)
        z, features = self.encode_context(frames[:, :t])
        zq, context_ids, context_loss = self.quantize_context(frames, z)
        wq, future_ids, future_loss = self.quantize_future(frames, features)
        past, features = self.frames_context(zq)
        future = self.frames_future(wq, self.scene(past, features))
        return torch.cat([past, future], 1), (context_ids, context_loss), (future_ids, future_loss)

    def loss(self, frames, lpips=None, discriminator=None):
        """The training `objective` on frames (B, T > t, 3, H, W), context first -> loss, metrics."""
        recon, (context_ids, context_vq), (future_ids, future_vq) = self.reconstruct(frames)
        t = self.config["context_frames"]
        vq = dict(vq_context=context_vq, vq=future_vq)
        last = self.cond_decoder.conv_out.weight
        loss, metrics = objective(frames, recon, t, vq, last, lpips, discriminator, self.pixel_loss)
        metrics |= code_use("context", context_ids, self.quantize.idle)
        metrics |= code_use("dynamics", future_ids, self.dynamics_quantize.idle)
        return loss, metrics

    forward = loss  # what DistributedDataParallel calls

    def checkpoint(self):
        """Plain data that checkpoints.tokenizer_from builds the same model from."""
        return dict(config=self.config, weights=self.state_dict())


class Discriminator(nn.Module):
    """Logits of patches of single frames: real above 0, decoded below (appendix A.1; hinge loss)."""

    def __init__(self, widths=(64, 128, 256, 512)):
        super().__init__()
        layers = []
        for c_in, c_out in zip((3, *widths), widths, strict=False):
            norm = [nn.InstanceNorm2d(c_out)] if layers else []
            layers += [spectral_norm(nn.Conv2d(c_in, c_out, 3, 2, 1)), *norm, nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 1))

    def forward(self, frames):
        """Frames (M, 3, H, W) in [0, 1] -> logits (M, 1, H/16, W/16)."""
        return self.layers(frames)

    def loss(self, real, fake):
        """Hinge loss on frames (M, 3, H, W); `fake` is detached here."""
        return F.relu(1 - self(real)).mean() + F.relu(1 + self(fake.detach())).mean()
