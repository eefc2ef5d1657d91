"""tokenizer.py: frames <-> discrete tokens, the conditional VQGAN (paper section 3.1, appendix A.1).

    frames (B,T,3,H,W) -+- first t -> encoder ------> VQ -> context codes  (B,t,N) -> decoder ------> frames
                        |               | features                                       | features
                        +- others --> cond_encoder -> VQ -> dynamics codes (B,f,n) -> cond_decoder -> frames

A context frame costs N = 256 tokens. A future frame costs n = 16, because both of its networks look the
scene up in the context by cross-attention, so that only what has changed needs words. One sequence holds a
whole video:

    c_1 (N)  [S1]  c_2 (N)  [S2] d_1 (n)  [S2] d_2 (n) ...      S1, S2: slot tokens; the first S1 is left out
    |------ context ------| |---- a future frame ---|

B batch, T frames, t context frames, f = T-t future frames, N/n tokens per context/future frame, L tokens in
a sequence, C channels, D code size, K codes, h w latent grid. Frames are in [0, 1]; `decode` does not clamp.

Where we differ from the paper. At all sizes: unused codes are drawn anew from encoder outputs
(`revive_after`), and weights start out keeping the variance. In `tiny` alone, so that it learns on a laptop:
`patch` folds 4x4 pixels into channels before the first convolution; a context frame is 64 tokens, not 256;
dynamics codes are taught to tell of changes alone (`still`, `disguise`), else they describe the scenery
again, and the transformer has to predict that;
the cross-attention starts from sinusoids with keys projected like queries, so that each place first looks at
itself in the context (`pos_init`; the paper's embeddings start from zero).

Run: python train_tokenizer.py --preset tiny --max_steps 100"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import official
from common import load_checkpoint

# Paper Table 2: small is its low-resolution model (114M), large its high-resolution one (310M).
SMALL = dict(
    resolution=64,
    patch=1,  # pixels folded into channels before the first convolution
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
    commitment=1.0,  # weight of the encoder's share of the VQ loss
    pos_init=0.0,  # amplitude of sinusoids that the position embeddings start from
    revive_after=200,  # forward passes without use after which a code is drawn anew; 0 is off
)
LARGE = {**SMALL, "resolution": 256, "channels": (128, 256, 256, 512, 768), "max_att_resolution": 32}
TINY = {
    **SMALL, "patch": 4, "channels": (48, 64), "layers_per_block": 1, "code_dim": 32, "context_codes": 1024,
    "dynamics_codes": 128, "norm_groups": 8, "n_head": 2, "dropout": 0.0, "commitment": 0.25, "pos_init": 1.5,
    "revive_after": 50,
}  # fmt: skip
PRESETS = dict(tiny=TINY, small=SMALL, large=LARGE)


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

    def slots(self, f):
        """Positions of the slot tokens of f future frames, a slice: where their actions are added."""
        first, step = self.prompt - 1, self.tokens_future + 1
        return slice(first, first + step * f, step)

    def ends(self, f):
        """Positions of the last token of f future frames, a slice: where their rewards are read."""
        slots = self.slots(f)
        return slice(slots.start + self.tokens_future, slots.stop, slots.step)

    def places(self, L):
        """Which of prompt + n places each of L positions is at, (L,): all future frames share theirs."""
        i, first = torch.arange(L), self.prompt - 1
        return torch.where(i < first, i, first + (i - first) % (self.tokens_future + 1))

    def pack(self, context, dynamics):
        """Codes (B, t, N) and (B, f, n) -> token ids (B, L)."""
        before = F.pad(context, (1, 0), value=self.context_slot).flatten(1)[:, 1:]
        after = F.pad(dynamics + self.context_codes, (1, 0), value=self.future_slot).flatten(1)
        return torch.cat([before, after], 1)

    def unpack(self, tokens):
        """Token ids (B, L) of whole frames -> codes (B, t, N) and (B, f, n).

        raises  ValueError if L fits no number of frames or an id is no code of its place"""
        B, L = tokens.shape
        t, N, n = self.context_frames, self.tokens_context, self.tokens_future
        if L < self.prompt - 1 or (L - self.prompt + 1) % (n + 1):
            raise ValueError(f"{L} tokens; expected {self.prompt - 1} + {n + 1} per future frame")
        context = F.pad(tokens[:, : self.prompt - 1], (1, 0)).view(B, t, N + 1)[..., 1:]
        dynamics = tokens[:, self.prompt - 1 :].reshape(B, -1, n + 1)[..., 1:] - self.context_codes
        for codes, K in ((context, self.context_codes), (dynamics, self.dynamics_codes)):
            if codes.numel() and not 0 <= codes.min() <= codes.max() < K:
                raise ValueError(f"codes {codes.min()}..{codes.max()} where 0..{K - 1} are expected")
        return context, dynamics


def layout_of(cfg):
    """The TokenLayout of a tokenizer with these settings, a dict as SMALL."""
    grid = cfg["resolution"] // (cfg["patch"] * 2 ** (len(cfg["channels"]) - 1))
    codes = cfg["context_codes"], cfg["dynamics_codes"]
    return TokenLayout(cfg["context_frames"], grid**2, cfg["dynamics_grid"] ** 2, *codes)


def official_config(path):
    """Settings of the authors' tokenizer in a folder of theirs or of a hub name, and its own folder."""
    config, folder = official.read_config(path, "tokenizer")
    return {**SMALL, **official.tokenizer_settings(config, folder)}, folder


def conv3(c_in, c_out):
    return nn.Conv2d(c_in, c_out, 3, padding=1)


class ResBlock(nn.Module):
    """GN -> SiLU -> conv -> GN -> SiLU -> conv, plus the input."""

    def __init__(self, c_in, c_out, groups):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, c_in, 1e-6), conv3(c_in, c_out)
        self.norm2, self.conv2 = nn.GroupNorm(groups, c_out, 1e-6), conv3(c_out, c_out)
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class SelfAttention(nn.Module):
    """One head over all pixels, residual."""

    def __init__(self, C, groups):
        super().__init__()
        self.norm, self.qkv, self.out = nn.GroupNorm(groups, C, 1e-6), nn.Linear(C, 3 * C), nn.Linear(C, C)

    def forward(self, x):
        B, C, H, W = x.shape
        q, k, v = self.qkv(self.norm(x).flatten(2).mT).chunk(3, -1)  # (B, HW, C)
        h = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.out(h).mT.reshape(B, C, H, W)


def sinusoids(C, size):
    """2-D sinusoidal position embeddings (size^2, C); wavelengths from a few cells to the whole frame."""
    angle = torch.arange(size)[:, None] * float(size) ** -torch.linspace(0, 1, C // 4)
    wave = torch.cat([angle.sin(), angle.cos()], 1)  # (size, C/2)
    rows, columns = wave[:, None].expand(-1, size, -1), wave[None].expand(size, -1, -1)
    return torch.cat([rows, columns], -1).flatten(0, 1)


class CrossAttention(nn.Module):
    """Every pixel of a future frame looks into the features of all t context frames (paper eq. 5)."""

    def __init__(self, C, size, t, groups, n_head, dropout, pos_init):
        super().__init__()
        self.n_head, self.dropout, self.pos_init = n_head, dropout, pos_init
        self.q_norm, self.kv_norm = nn.GroupNorm(groups, C, 1e-5), nn.GroupNorm(groups, C, 1e-5)
        pos = pos_init * sinusoids(C, size) if pos_init else torch.zeros(size * size, C)
        self.q_pos_emb, self.kv_pos_emb = nn.Parameter(pos), nn.Parameter(pos.repeat(t, 1))
        self.q, self.kv, self.out = nn.Linear(C, C), nn.Linear(C, 2 * C), nn.Linear(C, C)

    def keys_values(self, context):
        """Context features (B, t, C, H, W) -> keys, values (B, heads, tHW, C/heads) for all future frames."""
        B, t, C, H, W = context.shape
        stacked = context.transpose(1, 2).reshape(B, C, t * H, W)  # frames share the statistics of the norm
        x = self.kv_norm(stacked).flatten(2).mT + self.kv_pos_emb  # (B, tHW, C)
        return [y.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for y in self.kv(x).chunk(2, -1)]

    def forward(self, x, k, v):
        (BF, C, H, W), B = x.shape, k.shape[0]
        q = self.q(self.q_norm(x).flatten(2).mT + self.q_pos_emb)  # (B f, HW, C)
        q = q.reshape(B, -1, self.n_head, C // self.n_head).transpose(1, 2)  # (B, heads, f HW, C/heads)
        h = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        h = self.out(h.transpose(1, 2).reshape(BF, H * W, C))
        h = F.dropout(h, self.dropout, self.training)
        return F.silu(x + h.mT.reshape(BF, C, H, W))


class Stack(nn.Module):
    """One level of an encoder or a decoder: residual blocks, then a change of resolution."""

    def __init__(self, c_in, c_out, layers, groups, resample):
        super().__init__()
        widths = [c_in] + [c_out] * layers
        self.resnets = nn.ModuleList([ResBlock(widths[i], c_out, groups) for i in range(layers)])
        self.resample = resample
        if resample:
            self.conv = nn.Conv2d(c_out, c_out, 3, stride=2) if resample == "down" else conv3(c_out, c_out)

    def forward(self, x):
        for resnet in self.resnets:
            x = resnet(x)
        if self.resample == "down":
            return self.conv(F.pad(x, (0, 1, 0, 1)))  # padded right and below only, as in the original
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")) if self.resample else x


class MidBlock(nn.Module):
    def __init__(self, C, groups, attention):
        super().__init__()
        self.resnets = nn.ModuleList([ResBlock(C, C, groups) for _ in range(2)])
        self.attention = SelfAttention(C, groups) if attention else nn.Identity()

    def forward(self, x):
        return self.resnets[1](self.attention(self.resnets[0](x)))


def look_up(network, features):
    """What the cross-attention of a conditional encoder or decoder sees of a context: once for all frames.

    features of the context's encoder or decoder;  returns {level: (keys, values)}"""
    return {i: cross.keys_values(features[int(i)]) for i, cross in network.cross.items()}


def cross_attention(cfg, C, size):
    settings = (cfg[k] for k in ("context_frames", "norm_groups", "n_head", "dropout", "pos_init"))
    return CrossAttention(C, size, *settings)


class Encoder(nn.Module):
    """Frames -> latents, and the feature map after each level; `conditional` on a context's feature maps."""

    def __init__(self, cfg, conditional):
        super().__init__()
        channels, groups, last = cfg["channels"], cfg["norm_groups"], len(cfg["channels"]) - 1
        self.patch, size = cfg["patch"], cfg["resolution"] // cfg["patch"]
        self.conv_in = conv3(3 * self.patch**2, channels[0])
        self.down_blocks, self.cross = nn.ModuleList(), nn.ModuleDict()
        for i, C in enumerate(channels):
            down = "down" if i < last else None
            self.down_blocks.append(Stack(channels[max(i - 1, 0)], C, cfg["layers_per_block"], groups, down))
            size //= 2 if down else 1
            if conditional and size <= cfg["max_att_resolution"]:
                self.cross[str(i)] = cross_attention(cfg, C, size)
        self.mid_block = MidBlock(C, groups, attention=conditional)
        self.conv_norm_out, self.conv_out = nn.GroupNorm(groups, C, 1e-6), conv3(C, cfg["code_dim"])

    def forward(self, frames, context=None):
        """frames (M, 3, H, W), what to `look_up` of a context -> latents (M, D, h, w), features."""
        h, features = self.conv_in(F.pixel_unshuffle(frames, self.patch)), []
        for i, block in enumerate(self.down_blocks):
            h = block(h)
            if str(i) in self.cross:
                h = self.cross[str(i)](h, *context[str(i)])
            features.append(h)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(h)))), features


class Decoder(nn.Module):
    """Latents -> frames, and the feature map of the mid block and after each level."""

    def __init__(self, cfg, conditional):
        super().__init__()
        channels, groups, last = cfg["channels"][::-1], cfg["norm_groups"], len(cfg["channels"]) - 1
        self.patch, size = cfg["patch"], cfg["resolution"] // cfg["patch"] // 2**last
        self.conv_in = conv3(cfg["code_dim"], channels[0])
        self.mid_block = MidBlock(channels[0], groups, attention=conditional)
        self.up_blocks, self.cross = nn.ModuleList(), nn.ModuleDict()
        if conditional:
            self.cross["0"] = cross_attention(cfg, channels[0], size)
        for i, C in enumerate(channels):
            up = "up" if i < last else None
            self.up_blocks.append(Stack(channels[max(i - 1, 0)], C, cfg["layers_per_block"] + 1, groups, up))
            size *= 2 if up else 1
            if conditional and up and size <= cfg["max_att_resolution"]:
                self.cross[str(i + 1)] = cross_attention(cfg, C, size)
        self.conv_norm_out, self.conv_out = nn.GroupNorm(groups, C, 1e-6), conv3(C, 3 * self.patch**2)

    def features(self, z, context=None, levels=None):
        """latents (M, D, h, w), what to `look_up` of a context -> feature maps, by default of all levels.

        Without a context, a conditional decoder does without its cross-attention (Figure 10)."""
        h, features = self.mid_block(self.conv_in(z)), []
        for i, block in enumerate([nn.Identity(), *self.up_blocks][:levels]):
            h = block(h)
            if str(i) in self.cross:
                h = self.cross[str(i)](h, *context[str(i)]) if context else F.silu(h)
            features.append(h)
        return features

    def forward(self, z, context=None):
        """latents (M, D, h, w), what to `look_up` of a context -> frames (M, 3, H, W), features."""
        features = self.features(z, context)
        h = self.conv_out(F.silu(self.conv_norm_out(features[-1])))
        return F.pixel_shuffle(h, self.patch), features


def init_weights(module):
    """Keep the variance of what passes, without biases: torch's defaults lose the signal before the codes."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.normal_(module.weight, 0, module.weight[0].numel() ** -0.5)
        nn.init.zeros_(module.bias)
    if isinstance(module, Decoder):  # the first pictures are grey
        module.conv_out.weight.data.mul_(0.1)
        nn.init.constant_(module.conv_out.bias, 0.5)
    if isinstance(module, CrossAttention) and module.pos_init:  # keys like queries: equal positions match
        module.kv.weight.data[: len(module.q.weight)] = module.q.weight.data


class VectorQuantizer(nn.Module):
    """Nearest of K learned vectors (van den Oord et al. 2017), with revival of the ones that nobody uses."""

    def __init__(self, K, D, commitment, revive_after):
        super().__init__()
        self.embedding, self.commitment, self.revive_after = nn.Embedding(K, D), commitment, revive_after
        nn.init.uniform_(self.embedding.weight, -1 / K, 1 / K)
        # Training passes since each code was used. All start out overdue: the first batch fills the codebook.
        self.register_buffer("idle", torch.full((K,), 1000 * max(1, revive_after)))

    def nearest(self, z):
        """Vectors (..., D) -> distance and index of the nearest code (...), in float32 in any autocast."""
        with torch.autocast(z.device.type, enabled=False):
            distance = torch.cdist(z.float().reshape(1, -1, z.shape[-1]), self.embedding.weight[None])[0]
            return tuple(x.view(z.shape[:-1]) for x in distance.min(-1))

    def ids(self, z):
        return self.nearest(z)[1]

    def forward(self, z, zeros=None, pull=1.0):
        """z (..., D) -> quantized z, ids (...), loss: codebook + weighted commitment.

        zeros  (...) where code 0 stands in for the nearest, and z learns nothing but to come nearer to it,
               with `pull` times the commitment"""
        z = z.float()
        if self.training and self.revive_after:
            self.revive((z if zeros is None or zeros.all() else z[~zeros]).detach().reshape(-1, z.shape[-1]))
        ids = self.ids(z) if zeros is None else self.ids(z).masked_fill(zeros, 0)
        if self.training:
            self.idle += 1
            self.idle[ids.flatten()] = 0
        zq = self.embedding(ids)
        weight = 1 if zeros is None else torch.where(zeros, pull, 1.0)[..., None]
        loss = self.commitment * (weight * (z - zq.detach()).square()).mean() + F.mse_loss(zq, z.detach())
        learner = z if zeros is None else torch.where(zeros[..., None], zq, z)
        return learner + (zq - learner).detach(), ids, loss  # straight-through, where argmin has no gradient

    @torch.no_grad()
    def revive(self, z):
        """Redraw each code from rows of z (M, D) after every `revive_after` passes without use.

        Rows far from all codes are drawn most (as in k-means++): no code is drawn twice where all is well."""
        weight = self.embedding.weight
        distance, _ = self.nearest(z)
        fresh = z[torch.multinomial(distance.square().nan_to_num(0, 0) + 1e-8, len(weight), replacement=True)]
        if dist.is_initialized():  # all processes must redraw the same codes alike
            dist.all_reduce(self.idle, dist.ReduceOp.MIN)
            dist.broadcast(fresh, 0)
        dead = (self.idle > 0) & (self.idle % self.revive_after == 0)
        weight.copy_(torch.where(dead[:, None], fresh, weight))

    def metrics(self, ids):
        """Perplexity of a batch's codes, and the share of the codebook used within the last 100 passes."""
        p = torch.bincount(ids.flatten(), minlength=len(self.idle)).float() / ids.numel()
        return torch.exp(-torch.xlogy(p, p).sum()), (self.idle < 100).float().mean()


def patchify(z, side):
    """Latents (M, D, h, w) -> (M, n, side side D): patches row-major, in each (row, column, channel)."""
    x = z.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # (M, D, h / side, side, w / side, side)
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(x, side):
    """The way back from `patchify`, of square latents."""
    g = int(x.shape[1] ** 0.5)
    x = x.unflatten(2, (side, side, -1)).unflatten(1, (g, g))  # (M, g, g, side, side, D)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def recolour(frames):
    """Clips (B, T, 3, H, W), every second one in other colours: channels shuffled, squeezed, inverted."""
    B = len(frames)
    order = torch.rand(B, 3, device=frames.device).argsort(1)[:, None, :, None, None]
    low, high = torch.rand(2, B, 1, 3, 1, 1, device=frames.device) * 0.4
    squeezed = low + (1 - high - low) * frames.gather(2, order.expand_as(frames))
    inverted = torch.where(torch.rand_like(low) < 0.5, 1 - squeezed, squeezed)
    return torch.where(torch.arange(B, device=frames.device).view(-1, 1, 1, 1, 1) % 2 == 0, frames, inverted)


def resize_context(weights, old, new):
    """Position embeddings for `new` context frames: the last are kept, the earliest is repeated."""
    resized = dict(weights)
    for key in [key for key in weights if key.endswith("kv_pos_emb") and old != new]:
        frames = weights[key].unflatten(0, (old, -1))
        resized[key] = torch.cat([frames[:1]] * max(new - old, 0) + [frames[-new:]]).flatten(0, 1)
    if new > old:
        print(f"context grows from {old} to {new} frames: fine-tune before trusting the pictures")
    return resized


def adversarial_weight(perceptual, gen, last):
    """Balance of two gradients at a decoder's last layer (Esser et al. 2021, eq. 7)."""
    g_p, g_g = (torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (perceptual, gen))
    return (g_p / g_g.clamp(min=1e-8)).clamp(max=1e4).detach()


def objective(recon, frames, t, vq, lpips, discriminator, l2, last):
    """Frames and what was decoded of them (B, T, 3, H, W), VQ losses -> loss and metrics: `Tokenizer.loss`.

    Frames of the context, the first t, weigh as much as all others. last  weights of the last layer"""
    split = [part.flatten(0, 1) for x in (recon, frames) for part in (x[:, :t], x[:, t:])]
    pairs = list(zip(split[:2], split[2:], strict=True))  # (decoded, true) of the context, of the future
    errors = [F.l1_loss(x, y) + (l2 * F.mse_loss(x, y) if l2 else 0) for x, y in pairs]
    parts = dict(recon_context=errors[0], recon=errors[1], **vq)
    if lpips is not None:
        with torch.autocast(frames.device.type, enabled=False):
            distances = [lpips(2 * x - 1, 2 * y - 1).mean() for x, y in pairs]
        parts.update(lpips_context=distances[0], lpips=distances[1])
    loss = sum(parts.values())
    if discriminator is not None:
        gen = -discriminator(recon.flatten(0, 1)).mean()
        loss = loss + 0.8 * adversarial_weight(parts.get("lpips", parts["recon"]), gen, last) * gen
        parts["gen"] = gen
    metrics = {k: v.detach() for k, v in parts.items()}
    error = (recon[:, t:].detach().clamp(0, 1) - frames[:, t:]).square().mean((2, 3, 4))
    metrics["psnr"] = -10 * torch.log10(error + 1e-8).mean()
    return loss, metrics


class Tokenizer(nn.Module):
    """The conditional VQGAN. Settings: see SMALL above.

    raises  ValueError if the settings do not fit each other"""

    def __init__(self, **cfg):
        super().__init__()
        if unknown := sorted(set(cfg) ^ set(SMALL)):
            raise ValueError(f"settings missing or unknown: {', '.join(unknown)}; see tokenizer.SMALL")
        cfg["channels"] = tuple(cfg["channels"])
        counts = [k for k, v in SMALL.items() if type(v) is int and k != "revive_after"]
        if low := [k for k in counts if cfg[k] < 1]:
            raise ValueError(f"{', '.join(low)} must be at least 1")
        D, factor = cfg["code_dim"], cfg["patch"] * 2 ** (len(cfg["channels"]) - 1)
        if cfg["resolution"] % (factor * cfg["dynamics_grid"]):
            fix = f"a multiple of {factor} (downsampling) x {cfg['dynamics_grid']} (dynamics_grid)"
            raise ValueError(f"resolution is {cfg['resolution']}; expected {fix}")
        if bad := [C for C in cfg["channels"] if C % cfg["norm_groups"] or C % cfg["n_head"] or C % 4]:
            raise ValueError(f"channels {bad} must be multiples of norm_groups, n_head and 4")
        self.config, self.grid = cfg, cfg["resolution"] // factor
        self.side = self.grid // cfg["dynamics_grid"]  # a dynamics token covers side x side latents
        self.encoder, self.decoder = Encoder(cfg, False), Decoder(cfg, False)
        self.cond_encoder, self.cond_decoder = Encoder(cfg, True), Decoder(cfg, True)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(D, D, 1), nn.Conv2d(D, D, 1)
        self.quant_linear = nn.Linear(D * self.side**2, D)
        self.post_quant_linear = nn.Linear(D, D * self.side**2)
        self.layout = layout_of(cfg)
        self.quantize, self.dynamics_quantize = (
            VectorQuantizer(cfg[k], D, cfg["commitment"], cfg["revive_after"])
            for k in ("context_codes", "dynamics_codes"))
        self.apply(init_weights)

    def check(self, frames, least):
        """Raise ValueError unless frames are (B, T >= least, 3, H, W) of this tokenizer's resolution."""
        R = self.config["resolution"]
        if frames.ndim != 5 or tuple(frames.shape[2:]) != (3, R, R) or frames.shape[1] < least:
            raise ValueError(f"frames are {tuple(frames.shape)}; expected (B, T >= {least}, 3, {R}, {R})")

    def latents_context(self, frames):
        """Context frames (B, t, 3, H, W) -> latents (B, t, N, D) and the encoder's features."""
        B, t = frames.shape[:2]
        z, features = self.encoder(frames.flatten(0, 1))
        z = self.quant_conv(z).flatten(2).mT.unflatten(0, (B, t))
        return z, [x.unflatten(0, (B, t)) for x in features]

    def latents_future(self, frames, features):
        """Future frames (B, f, 3, H, W), a context's encoder features -> latents (B, f, n, D)."""
        z, _ = self.cond_encoder(frames.flatten(0, 1), look_up(self.cond_encoder, features))
        return self.quant_linear(patchify(z, self.side)).unflatten(0, frames.shape[:2])

    def maps_context(self, zq):
        """Quantized latents (B, t, N, D) -> what their decoder takes, (B t, D, h, w)."""
        return self.post_quant_conv(zq.flatten(0, 1).mT.unflatten(-1, (self.grid, self.grid)))

    def frames_context(self, zq):
        """Quantized latents (B, t, N, D) -> frames (B, t, 3, H, W) and the decoder's features."""
        frames, features = self.decoder(self.maps_context(zq))
        return frames.unflatten(0, zq.shape[:2]), [x.unflatten(0, zq.shape[:2]) for x in features]

    def frames_future(self, zq, context):
        """Quantized latents (B, f, n, D), what to `look_up` of a context -> frames (B, f, 3, H, W)."""
        z = unpatchify(self.post_quant_linear(zq.flatten(0, 1)), self.side)
        frames, _ = self.cond_decoder(z, context)
        return frames.unflatten(0, zq.shape[:2])

    def encode(self, frames):
        """Frames (B, T >= t, 3, H, W), context first -> token ids (B, L), laid out as TokenLayout says."""
        t = self.config["context_frames"]
        self.check(frames, t)
        z, features = self.latents_context(frames[:, :t])
        context = self.quantize.ids(z)
        dynamics = context.new_empty(len(frames), 0, self.layout.tokens_future)
        if frames.shape[1] > t:
            dynamics = self.dynamics_quantize.ids(self.latents_future(frames[:, t:], features))
        return self.layout.pack(context, dynamics)

    def decode(self, tokens):
        """Token ids (B, L) -> frames (B, T, 3, H, W), context included, not clamped."""
        context, dynamics = self.layout.unpack(tokens)
        frames, features = self.frames_context(self.quantize.embedding(context))
        if not dynamics.shape[1]:
            return frames
        return torch.cat([frames, self.decode_future(dynamics, look_up(self.cond_decoder, features))], 1)

    def decode_context(self, context):
        """Context codes (B, t, N) -> what `decode_future` looks up there; computed once per context."""
        levels = 1 + max(map(int, self.cond_decoder.cross))  # what comes after them nobody looks at
        features = self.decoder.features(self.maps_context(self.quantize.embedding(context)), levels=levels)
        return look_up(self.cond_decoder, [x.unflatten(0, context.shape[:2]) for x in features])

    def decode_future(self, dynamics, context):
        """Dynamics codes (B, f, n), a `decode_context` or None -> frames (B, f, 3, H, W), not clamped.

        Every frame is decoded by itself: a new one does not decode the ones before it again."""
        return self.frames_future(self.dynamics_quantize.embedding(dynamics), context)

    def reconstruct(self, frames, still=(), disguised=None):
        """Frames through both bottlenecks -> frames, [ids, loss] of context, [ids, loss] of future frames.

        still      what else the dynamics quantizer takes;  disguised  frames like the others but for their
        colours, whose dynamics codes are taken instead"""
        t = self.config["context_frames"]
        self.check(frames, t + 1)
        z, features = self.latents_context(frames[:, :t])
        zq, *context = self.quantize(z)
        if disguised is not None:
            frames, (_, features) = disguised, self.latents_context(disguised[:, :t])
        w = self.latents_future(frames[:, t:], features)
        wq, *future = self.dynamics_quantize(w, *still)
        past, features = self.frames_context(zq)
        looked_up = look_up(self.cond_decoder, features)
        return torch.cat([past, self.frames_future(wq, looked_up)], 1), context, future

    def unchanged(self, frames):
        """Where future frames look like the last context frame, as True (B, f, n), one per dynamics token."""
        t, side = self.config["context_frames"], self.config["resolution"] // self.config["dynamics_grid"]
        change = (frames[:, t:] - frames[:, t - 1 : t]).abs().amax(2)  # (B, f, H, W)
        return F.max_pool2d(change, side).flatten(2) < 0.03

    def loss(self, frames, lpips=None, discriminator=None, l2=0.0, still=0.0, disguise=False):
        """The training objective: reconstruction + LPIPS + VQ [+ adversarial], context and future alike.

        frames (B, T > t, 3, H, W), context first;  lpips a callable on [-1, 1];  discriminator or None
        l2     weight of a squared error beside the absolute one (0 in the paper)
        still  > 0 teaches dynamics code 0, in training, that nothing has changed here since the context;
               weight of the commitment there
        disguise  take the dynamics codes, in training, from a copy of the clip in other colours
        returns loss and metrics, a dict of scalars.   Source: paper section 3.1, all weights 1 (A.2)"""
        t = self.config["context_frames"]
        zeros = (self.unchanged(frames), still) if still and self.training else ()
        disguised = recolour(frames) if disguise and self.training else None
        recon, (c_ids, c_vq), (d_ids, d_vq) = self.reconstruct(frames, zeros, disguised)
        judges, last = (lpips, discriminator), self.cond_decoder.conv_out.weight
        loss, metrics = objective(recon.float(), frames, t, dict(vq_context=c_vq, vq=d_vq), *judges, l2, last)
        metrics["ppl_context"], metrics["used_context"] = self.quantize.metrics(c_ids)
        metrics["ppl_dynamics"], metrics["used_dynamics"] = self.dynamics_quantize.metrics(d_ids)
        return loss, metrics

    forward = loss  # what DistributedDataParallel calls

    def checkpoint(self):
        """Plain data that `from_checkpoint` builds the same model from."""
        return dict(config=self.config, weights=self.state_dict())

    @classmethod
    def from_checkpoint(cls, state, **changes):
        """Rebuild from `checkpoint()`, a per-frame one too; context_frames, of the `changes`, may differ."""
        config = {**state["config"], **changes}
        model = PerFrameTokenizer(**config) if "grid" in config else cls(**config)
        frames = state["config"]["context_frames"], model.config["context_frames"]
        model.load_state_dict(resize_context(state["weights"], *frames))
        return model

    @classmethod
    def load(cls, path, **changes):
        """The tokenizer of a checkpoint of ours, or of the authors (a folder or a hub name)."""
        if folder := official.find(path):
            return cls.from_official(folder, **changes)
        return cls.from_checkpoint(load_checkpoint(path, needs=("tokenizer",))["tokenizer"], **changes)

    @classmethod
    def from_official(cls, folder, **changes):
        """The authors' tokenizer, in eval mode, from a folder of theirs, tokenizer/ in it, or a hub name.

        changes  as in from_checkpoint
        raises  FileNotFoundError, or ValueError naming the tensor or setting that does not fit"""
        config, folder = official_config(folder)
        model = cls(**config)
        weights = official.read_tensors(folder, "tokenizer")
        official.fill(model, weights, official.tokenizer_pairs(model), folder)
        return (cls.from_checkpoint(model.checkpoint(), **changes) if changes else model).eval()


class PerFrameTokenizer(nn.Module):
    """What the paper compares with (section 4.4, appendix B.4): every frame alone, as grid x grid tokens.

    Settings as of `Tokenizer`; context_codes is the size of the one codebook, whose codes are other words in
    a context frame than in a later one: so the transformer is the same, whichever tokenizer it stands on."""

    def __init__(self, grid, **cfg):
        super().__init__()
        latents, D = layout_of(cfg).tokens_context ** 0.5, cfg["code_dim"]
        if latents % grid:
            raise ValueError(f"grid is {grid}; expected a divisor of {latents:.0f}, the side of the latents")
        self.config, self.side = dict(cfg, grid=grid), int(latents) // grid
        self.layout = TokenLayout(cfg["context_frames"], grid**2, grid**2, *[cfg["context_codes"]] * 2)
        self.encoder, self.decoder = Encoder(cfg, False), Decoder(cfg, False)
        self.quant_linear = nn.Linear(D * self.side**2, D)
        self.post_quant_linear = nn.Linear(D, D * self.side**2)
        self.quantize = VectorQuantizer(cfg["context_codes"], D, cfg["commitment"], cfg["revive_after"])
        self.apply(init_weights)

    check, checkpoint = Tokenizer.check, Tokenizer.checkpoint

    @property
    def dynamics_quantize(self):
        """The one codebook serves all frames."""
        return self.quantize

    def latents(self, frames):
        """Frames (B, T, 3, H, W) -> latents (B T, n, D)."""
        z, _ = self.encoder(frames.flatten(0, 1))
        return self.quant_linear(patchify(z, self.side))

    def reconstruct(self, frames):
        """Frames through the bottleneck -> frames (B, T, 3, H, W), [ids, loss]."""
        self.check(frames, self.config["context_frames"] + 1)
        zq, *codes = self.quantize(self.latents(frames))
        z = unpatchify(self.post_quant_linear(zq), self.side)
        return self.decoder(z)[0].unflatten(0, frames.shape[:2]), codes

    def loss(self, frames, lpips=None, discriminator=None, l2=0.0, still=0.0, disguise=False):
        """As `Tokenizer.loss`; there are no dynamics codes to teach with `still` and `disguise`."""
        recon, (ids, vq) = self.reconstruct(frames)
        judges, last = (lpips, discriminator), self.decoder.conv_out.weight
        t = self.config["context_frames"]
        loss, metrics = objective(recon.float(), frames, t, dict(vq=vq), *judges, l2, last)
        metrics["ppl"], metrics["used"] = self.quantize.metrics(ids)
        return loss, metrics

    forward = loss

    def encode(self, frames):
        """Frames (B, T >= t, 3, H, W) -> token ids (B, L), laid out as TokenLayout says."""
        t = self.config["context_frames"]
        self.check(frames, t)
        ids = self.quantize.ids(self.latents(frames)).unflatten(0, frames.shape[:2])
        return self.layout.pack(ids[:, :t], ids[:, t:])

    def decode(self, tokens):
        """Token ids (B, L) -> frames (B, T, 3, H, W), not clamped."""
        return self.decode_future(torch.cat(self.layout.unpack(tokens), 1))

    def decode_context(self, context):
        """Nothing: no frame looks anything up in another."""

    def decode_future(self, codes, context=None):
        """Codes (B, f, n) -> frames (B, f, 3, H, W), not clamped."""
        z = unpatchify(self.post_quant_linear(self.quantize.embedding(codes.flatten(0, 1))), self.side)
        return self.decoder(z)[0].unflatten(0, codes.shape[:2])


def build(kind, settings):
    """A new tokenizer of these settings (SMALL): "compressive", or with so many tokens a frame as "4x4" says.

    raises  ValueError at another kind"""
    if kind == "compressive":
        return Tokenizer(**settings)
    grid, *others = kind.split("x")
    if others != [grid] or not grid.isdecimal():
        raise ValueError(f"kind is {kind!r}; expected compressive, or a square such as 16x16 or 4x4")
    return PerFrameTokenizer(int(grid), **settings)


class Discriminator(nn.Module):
    """Judges patches of single frames: real above 0, decoded below (appendix A.1; hinge loss)."""

    def __init__(self, widths=(64, 128, 256, 512)):
        super().__init__()
        layers = []
        for i, (c_in, c_out) in enumerate(zip((3, *widths), widths, strict=False)):
            layers.append(spectral_norm(nn.Conv2d(c_in, c_out, 3, 2, 1)))
            layers += ([nn.InstanceNorm2d(c_out)] if i else []) + [nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 1))

    def forward(self, frames):
        """Frames (M, 3, H, W) in [0, 1] -> logits (M, 1, H/16, W/16)."""
        return self.layers(frames)

    def loss(self, real, fake):
        """Hinge loss on frames (M, 3, H, W); `fake` is detached here."""
        return F.relu(1 - self(real)).mean() + F.relu(1 + self(fake.detach())).mean()
