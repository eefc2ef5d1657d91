"""gpt.py: a LLaMA-style transformer that predicts a video's next tokens (paper sections 3.1, 3.3; A.1).

    ids     c_1 (N) [S1] c_2 (N) [S2] d_1 d_2 ... d_n [S2] d_1 ... d_n    layout and letters: tokenizer.py
                                  + action_1           + action_2         added to the slots' embeddings
    logits                        d_1 d_2 ... d_n [S2] d_1 ... d_n        cross-entropy, on future frames only
    reward                                     r_1             r_2        read at each frame's last token

Of T actions, actions[k] leads from frame k to frame k+1 (data.py). So the slot of frame k carries
actions[k-1], and its last token predicts rewards[k], received on arriving there. (The authors' code trains
the head on the reward of the next transition, but stores it in imagination as the reward of arriving.)

Action-free: action_dim=0. With actions: action_dim=A, a zero-initialised projection. Goal-conditioned: the
trainer puts the last frame first (train_gpt.py), and nothing changes here.

Where we differ from the paper, in `tiny` alone: tokens carry learned position embeddings beside RoPE, which
start from where in the picture a token and its successor lie, and one head of each layer starts out looking
at the successor's place (`places`). With RoPE alone, it is learned too late for a laptop how the context's
objects get into the first future frame. (Token embeddings start from the codebooks there: train_gpt.py.)

B batch, n_b branches (futures of one context), L tokens, P context tokens, D width, H heads, V vocabulary, A
action size; the others are tokenizer.py's.

Run: python train_gpt.py --preset tiny --tokenizer out/tokenizer.pt --max_steps 100"""

import functools

import torch
import torch.nn.functional as F
from torch import nn

import official
from common import can_compile, load_checkpoint
from tokenizer import TokenLayout, layout_of, official_config

# Paper Table 2 and 3. segment_length: frames per training clip, after which a rollout takes a new context.
SMALL = dict(
    n_layer=12,
    n_head=12,
    n_embd=768,
    n_mlp=3072,  # inner width of the SwiGLU
    att_dropout=0.1,  # of the attention weights, in training
    segment_length=16,
    action_dim=0,  # 0: action-free
    reward=False,  # a reward head
    places=0.0,  # amplitude of the learned position embeddings beside RoPE; 0: none, as in the paper
)
MEDIUM = {**SMALL, "n_layer": 24, "n_head": 16, "n_embd": 1024, "n_mlp": 4096}
TINY = {**SMALL, "n_layer": 4, "n_head": 3, "n_embd": 192, "n_mlp": 512, "att_dropout": 0.0, "places": 0.03}
PRESETS = dict(tiny=TINY, small=SMALL, medium=MEDIUM)


def symlog(x):
    """Squash rewards of any scale (DreamerV3, Hafner et al. 2023); `symexp` undoes it."""
    return x.sign() * x.abs().log1p()


def symexp(x):
    return x.sign() * x.abs().expm1()


class RMSNorm(nn.Module):
    def __init__(self, D, eps=1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(D)), eps

    def forward(self, x):
        y = x.float()
        return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


def linear(x, weight):
    """x (..., D), weight (M, D) -> (..., M). On CPUs by oneDNN, whose function has no gradient: for a few
    tokens it took half the time of MKL, which torch calls there (AMD EPYC)."""
    large = x.is_cpu and x.dtype == torch.float32 and weight.numel() >= 2**18
    if large and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu"):
        if torch.backends.mkldnn.is_available():
            return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return F.linear(x, weight)


def rope_table(length, head_dim, theta=10000.0):
    """Cosines and sines (2, length, head_dim) of rotary position embeddings."""
    inverse = theta ** -(torch.arange(0, head_dim, 2) / head_dim)
    angle = torch.outer(torch.arange(length).float(), inverse).repeat(1, 2)
    return torch.stack([angle.cos(), angle.sin()])


def place_table(layout, D):
    """Position embeddings of the context and of one future frame, whose slot comes first, (prompt + n, D).

    Half of the channels tell where in the picture a token lies and half where its successor does, as
    sinusoids; slots lie nowhere: zeros."""
    own = []
    for n, count in ((layout.tokens_context, layout.context_frames), (layout.tokens_future, 1)):
        centres = (torch.arange(n**0.5) + 0.5) / n**0.5  # of the cells of a square grid, side 1
        own += [torch.full((1, 2), torch.nan), torch.cartesian_prod(centres, centres)] * count
    own = torch.cat(own)  # (1 + prompt + n, 2): row, column
    both = torch.stack([own, own.roll(-1, 0)], 1)[1:]  # the first slot is left out; a slot follows the last
    angle = both[..., None] * torch.pi * 2 ** torch.linspace(0, 4, D // 8)  # wavelengths: 2 sides to 1/8
    return torch.cat([angle.sin(), angle.cos()], -1).nan_to_num(0.0).flatten(1)


def rotate(x, rope):
    """Rotate x (..., L, head_dim) by its positions; dimension i is paired with i + head_dim / 2."""
    a, b = x.chunk(2, -1)
    cos, sin = rope.to(x.dtype)
    return x * cos + torch.cat([-b, a], -1) * sin


class LayerCache:
    """Keys and values of one layer: the context's once per scene, shared; the future's once per branch, own.

    shared (2, B, H, P, d), own (2, B n_b, H, capacity, d): taken once and never moved or resized. Of a single
    future nothing has to be shared: own is (2, B, H, P + capacity, d), and `shared` its first part."""

    def __init__(self, shared, own, n_branches):
        self.shared, self.n_branches = shared, n_branches
        self.own = tuple(own)  # apart: compiled code would copy both at each write

    def fill(self, q, k, v):
        """Causal attention over the context (B, H, P, d), which is kept."""
        self.shared[0].copy_(k)
        self.shared[1].copy_(v)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def attend(self, q, k, v, positions, unseen, end):
        """Attention of s new tokens (B n_b, H, s, d), written to `positions` (s,) of their branch's own.

        unseen (s, P + end) is -inf where a new token may not look: what was written after it, or never. Of
        own nothing has been written from `end` on.
        The queries of all branches meet the shared keys in one matrix product and their own keys in another;
        one softmax over both."""
        (BN, H, s, d), n_b, P = q.shape, self.n_branches, self.shared.shape[3]
        for kept, new in zip(self.own, (k, v), strict=True):
            kept.index_copy_(2, positions, new)
        keys, values = (kept[:, :, :end] for kept in self.own)
        if n_b == 1:
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=unseen)
        # (B n_b, H, s, d) <-> (B, H, n_b s, d): to the shared keys, branches are just more queries
        fold = lambda x: x.view(-1, n_b, H, s, x.shape[-1]).transpose(1, 2).flatten(2, 3)  # noqa: E731
        unfold = lambda x: x.view(-1, H, n_b, s, x.shape[-1]).transpose(1, 2).reshape(BN, H, s, -1)  # noqa: E731
        q = q * d**-0.5
        scores = torch.cat([unfold(fold(q) @ self.shared[0].mT), q @ keys.mT], -1) + unseen
        weights = scores.float().softmax(-1).to(q.dtype)
        return unfold(fold(weights[..., :P]) @ self.shared[1]) + weights[..., P:] @ values


class Cache:
    """All that `imagine` needs to know of B scenes and their n_b branches each.

    pending (B n_b, 1) is the newest token: it is read with the slot that follows, in one pass. All memory is
    taken here and all shapes are fixed: no frame allocates, and a GPU replays the recording of the first."""

    def __init__(self, model, B, n_branches, P, capacity):
        layers, H, D = (model.config[k] for k in ("n_layer", "n_head", "n_embd"))
        weight = model.embed.weight
        self.first = P if n_branches == 1 else 0  # where in own the future begins
        self.own = weight.new_empty(layers, 2, B * n_branches, H, self.first + capacity, D // H)
        self.shared = self.own[..., :P, :] if self.first else weight.new_empty(layers, 2, B, H, P, D // H)
        self.layers = [LayerCache(*pair, n_branches) for pair in zip(self.shared, self.own, strict=True)]
        self.unseen = weight.new_full((capacity, P + capacity), float("-inf")).triu(P + 1)  # by future tokens
        self.position = torch.zeros((), dtype=torch.long, device=weight.device)  # the pending token's, in it
        self.pending = self.position.new_zeros(B * n_branches, 1)
        self.acted = weight.new_zeros(B * n_branches, D)  # what the next frame's action adds to its slot
        self.sizes, self.length = (B, n_branches, P, capacity), 0  # length of own, as the CPU knows it
        self.grows = weight.is_cpu  # attention is over what is written; a GPU's recording has one shape
        self.noise = None  # of the next frame
        self.recordings = {} if weight.is_cuda else None  # CUDA graphs by name; None: nothing is recorded
        self.compiles = can_compile(weight.device)

    def rewind(self, pending):
        """Back to the end of what was read, whose last token is `pending` (B n_b, 1)."""
        self.position.zero_()
        self.pending.copy_(pending)
        self.length = 0

    def repeat(self, name, fn):
        """fn(), which returns a tuple and does the same work every time: GPUs record it as a CUDA graph, and
        then replay that, without a Python line or a launch for every small operation."""
        if self.recordings is None:
            return fn()
        if name not in self.recordings:
            with torch.cuda.device(self.pending.device):
                self.recordings[name] = self.record(fn)
        graph, out = self.recordings[name]
        graph.replay()
        return tuple(x.clone() for x in out)  # the next replay overwrites them

    def record(self, fn):
        position, pending, stream = self.position.clone(), self.pending.clone(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # compiles, and lets libraries take their memory
                fn()
                self.position.copy_(position)
                self.pending.copy_(pending)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # on the stream that libraries know by now; "thread_local" as other threads may be loading data
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            out = fn()
        return graph, out


class Block(nn.Module):
    """x + attention(norm(x)), then x + SwiGLU(norm(x))."""

    def __init__(self, D, n_head, n_mlp, att_dropout):
        super().__init__()
        self.n_head, self.att_dropout = n_head, att_dropout
        self.norm1, self.norm2 = RMSNorm(D), RMSNorm(D)
        self.qkv, self.out = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
        self.gate_up, self.down = nn.Linear(D, 2 * n_mlp, bias=False), nn.Linear(n_mlp, D, bias=False)

    def forward(self, x, rope, attend=None, first=0):
        """x (B, L, D) -> the same; attend(q, k, v), by default causal over x alone.

        first  with keys and values of all, go on with the tokens from here on alone"""
        B, L, D = x.shape
        qkv = linear(self.norm1(x), self.qkv.weight).view(B, L, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)
        (q, k), v = rotate(qkv[:2], rope), qkv[2]  # (B, H, L, D/H) each
        if attend is None:
            dropout = self.att_dropout if self.training else 0.0
            h = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        else:
            h = attend(q, k, v)
        x = x[:, first:] + linear(h.transpose(1, 2)[:, first:].flatten(2), self.out.weight)
        gate, up = linear(self.norm2(x), self.gate_up.weight).chunk(2, -1)
        return x + linear(F.silu(gate) * up, self.down.weight)


@functools.cache
def compiled_block():
    """Block.forward for GPUs: compiled once for all layers, for each shape; torch ends at eight of them."""
    return torch.compile(Block.forward, dynamic=False, fullgraph=True)


def sample_code(logits, noise=None, temperature=1.0):
    """Logits (M, K), Exp(1) noise (M, top_k) -> one index each (M,), out of the top_k likeliest.

    Greedy without noise. -log(noise) is Gumbel noise, and the largest of logits plus that is distributed as
    their softmax says: no number has to leave the GPU."""
    if noise is None:
        return logits.argmax(-1)
    values, indices = logits.float().topk(noise.shape[-1])
    return indices.gather(1, (values / temperature - noise.log()).argmax(-1, keepdim=True))[:, 0]


class GPT(nn.Module):
    """The transformer. Settings: see SMALL above; `layout` is the tokenizer's TokenLayout.

    raises  ValueError if settings are missing, unknown or do not fit each other"""

    def __init__(self, layout, **cfg):
        super().__init__()
        if unknown := sorted(set(cfg) ^ set(SMALL)):
            raise ValueError(
                f"transformer settings missing or unknown: {', '.join(unknown)}; see SMALL in gpt.py"
            )
        D, T = cfg["n_embd"], cfg["segment_length"]
        if low := [k for k in ("n_layer", "n_head", "n_embd", "n_mlp") if cfg[k] < 1]:
            raise ValueError(f"{', '.join(low)} must be at least 1")
        if D % (2 * cfg["n_head"]):
            raise ValueError(f"n_embd is {D}; expected a multiple of 2 n_head = {2 * cfg['n_head']}")
        if T <= layout.context_frames:
            raise ValueError(
                f"segment_length is {T}; expected more than the {layout.context_frames} context frames"
            )
        self.layout, self.config = layout, cfg
        self.embed = nn.Embedding(layout.vocab_size, D)
        sizes = D, cfg["n_head"], cfg["n_mlp"], cfg["att_dropout"]
        self.blocks = nn.ModuleList([Block(*sizes) for _ in range(cfg["n_layer"])])
        self.norm, self.lm_head = RMSNorm(D), nn.Linear(D, layout.vocab_size, bias=False)
        self.action = nn.Linear(cfg["action_dim"], D) if cfg["action_dim"] else None
        self.reward = nn.Linear(D, 1) if cfg["reward"] else None
        self.register_buffer("rope", rope_table(layout.length(T), D // cfg["n_head"]), persistent=False)
        self.register_buffer("place_of", layout.places(layout.length(T)), persistent=False)
        if cfg["places"]:
            self.places = nn.Parameter(cfg["places"] * place_table(layout, D))
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2 and name != "places":
                nn.init.zeros_(parameter) if name == "action.weight" else nn.init.normal_(parameter, 0, 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        if cfg["places"]:  # one head of each layer starts out looking at where the next token will lie
            d = D // cfg["n_head"]
            for block in self.blocks:
                match, zeros = 0.1 * torch.randn(d, D // 2), torch.zeros(d, D // 2)
                block.qkv.weight.data[:d] = torch.cat([zeros, match], 1)  # queries see the successor's place,
                block.qkv.weight.data[D : D + d] = torch.cat([match, zeros], 1)  # keys see their own

    def act(self, actions, shape):
        """Embed actions, after checking that they are (*shape, A) just where the model takes any."""
        A = self.config["action_dim"]
        if (actions is None) != (A == 0) or (A and tuple(actions.shape) != (*shape, A)):
            got = "none" if actions is None else tuple(actions.shape)
            raise ValueError(
                f"actions are {got}; expected {(*shape, A) if A else 'none: the model is action-free'}"
            )
        return self.action(actions.to(self.action.weight.dtype)) if A else None

    def hidden(self, tokens, actions=None, attends=None, first=0):
        """Last hidden states (B, L - first, D) of sequences (B, L), with actions (B, T, A) of their T frames.

        The last frame may be unfinished, and L is not limited. attends: each block's attention function.
        first: where they begin, so that the last block is left out where nobody reads it"""
        (B, L), layout, t = tokens.shape, self.layout, self.layout.context_frames
        f = max(0, -(-(L - layout.prompt + 1) // (layout.tokens_future + 1)))  # future frames that have begun
        rope, place = self.rope[:, :L], self.place_of[:L]
        if L > len(self.place_of):
            rope, place = rope_table(L, rope.shape[2]).to(rope), layout.places(L).to(place)
        x = self.embed(tokens) + (self.places[place] if self.config["places"] else 0)
        if f and (acted := self.act(actions, (B, t + f))) is not None:
            x[:, layout.slots(f)] += acted[:, t - 1 : t - 1 + f]
        firsts = [0] * (len(self.blocks) - 1) + [first]
        for block, attend, i in zip(self.blocks, attends or [None] * len(firsts), firsts, strict=True):
            x = block(x, rope, attend, i)
        return self.norm(x)

    def forward(self, tokens, actions=None):
        """Token ids (B, L), actions (B, T, A) -> logits (B, L, V) of the next token at every position."""
        return self.lm_head(self.hidden(tokens, actions))

    def rewards(self, hidden):
        """Hidden states (..., D) at frames' last tokens -> rewards (...) in environment units."""
        return symexp(self.reward(hidden).squeeze(-1).float())

    def loss(self, tokens, actions=None, rewards=None):
        """Cross-entropy of all future tokens, later slots included, plus (symlog reward error)^2.

        tokens (B, L);  actions (B, T, A) or None;  rewards (B, T) in environment units, or None
        returns loss and metrics, a dict of scalars.   Source: paper eq. 3 and section 3.3"""
        layout, f = self.layout, (tokens.shape[1] - self.layout.prompt + 1) // (self.layout.tokens_future + 1)
        first, ends = layout.prompt - 1, layout.ends(f)
        # The context is never predicted: two thirds of the last block and of the output layer are saved.
        h = self.hidden(tokens, actions, first=first)
        logits, targets = self.lm_head(h[:, :-1]), tokens[:, layout.prompt :]
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        accuracy = (logits.detach().argmax(-1) == targets).float().mean()
        metrics = dict(ce=loss.detach(), accuracy=accuracy)
        if self.reward is not None:
            if rewards is None:
                raise ValueError(
                    "the model has a reward head but the data has no rewards; set --rewards false"
                )
            predicted = self.reward(h[:, ends.start - first :: ends.step]).squeeze(-1).float()  # (B, f)
            error = F.mse_loss(predicted, symlog(rewards[:, layout.context_frames :]))
            loss, metrics["reward_mse"] = loss + error, error.detach()
        return loss, metrics

    @torch.no_grad()
    def prefill(self, context, n_branches=1, past=None, actions=None, room=0, reuse=None):
        """Read context codes (B, t, N) once, for n_branches futures each -> a Cache for `imagine`.

        past   (B, k, n) future frames to read too, with actions (B, t+k, A)
        room   for so many more frames, by default the rest of the segment
        reuse  a Cache whose memory to take, if it is as large"""
        layout, T = self.layout, self.config["segment_length"]
        past = context.new_empty(len(context), 0, layout.tokens_future) if past is None else past
        tokens = layout.pack(context, past)
        room = room or T - layout.context_frames - past.shape[1]
        if (L := tokens.shape[1] + room * (layout.tokens_future + 1)) > len(self.place_of):
            raise ValueError(f"{L} tokens; there is room for {len(self.place_of)}: take a new context")
        sizes = len(context), n_branches, tokens.shape[1] - 1, room * (layout.tokens_future + 1) + 1
        cache = reuse if reuse is not None and reuse.sizes == sizes else Cache(self, *sizes)
        cache.own[..., cache.first :, :].zero_()  # a NaN in there would stay one, whatever its weight
        self.hidden(tokens[:, :-1], actions, [layer.fill for layer in cache.layers], first=-1)
        cache.rewind(tokens[:, -1:].repeat_interleave(n_branches, 0))
        return cache

    def extend(self, tokens, cache, acted=0):
        """Newest tokens (B n_b, s) [+ actions] -> hidden states (B n_b, s, D). Advances cache.position."""
        positions = cache.position + torch.arange(tokens.shape[1], device=tokens.device)
        place = positions + cache.sizes[2]  # in the sequence
        x = self.embed(tokens) + acted
        if self.config["places"]:
            x = x + self.places[self.place_of[place]]
        run = compiled_block() if cache.compiles else Block.forward
        rope = self.rope[:, place]
        (*_, P, capacity), first = cache.sizes, cache.first
        end = int(positions[-1]) + 1 if cache.grows else capacity
        where = dict(positions=positions + first, unseen=cache.unseen[positions, : P + end], end=first + end)
        for block, layer in zip(self.blocks, cache.layers, strict=True):
            x = run(block, x, rope, functools.partial(layer.attend, **where))
        cache.position += tokens.shape[1]
        return self.norm(x)

    def code_logits(self, h):
        """Hidden states (..., D) -> logits (..., K) over dynamics codes: no other id can ever be drawn."""
        first = self.layout.context_codes
        return linear(h, self.lm_head.weight[first : first + self.layout.dynamics_codes])

    def frame(self, cache, temperature):
        """Codes (B n_b, n) of the next frame, and the state (B n_b, D) of the token that was pending.

        n passes, without a look at any number: the first reads the pending token and the slot."""
        slot = torch.full_like(cache.pending, self.layout.future_slot)
        token, acted = torch.cat([cache.pending, slot], 1), F.pad(cache.acted[:, None], (0, 0, 1, 0))
        codes, states = [], []
        for i in range(self.layout.tokens_future):
            states.append(self.extend(token, cache, acted))
            noise = cache.noise[:, i] if temperature else None
            codes.append(sample_code(self.code_logits(states[-1][:, -1]), noise, temperature))
            token, acted = codes[-1][:, None] + self.layout.context_codes, 0
        cache.pending.copy_(token)
        return torch.stack(codes, 1), states[0][:, 0]

    @torch.no_grad()
    def imagine(self, cache, actions=None, temperature=1.0, top_k=100, generator=None):
        """Imagine the next frame: n codes, each seen by the ones after it.

        cache from `prefill`;  actions (B n_b, A) or None: what leads to that frame;  temperature 0 is greedy
        returns codes (B n_b, n), and the state (B n_b, D) of the last token before this frame, from which
        `rewards` tells the previous frame's.   Source: paper section 3.3, Table 3"""
        BN, layout, K = len(cache.pending), self.layout, self.layout.dynamics_codes
        length = cache.length + layout.tokens_future + 1
        if length >= cache.sizes[-1]:
            raise ValueError(f"no room for {length} tokens in the cache: take a new context")
        if (acted := self.act(actions, (BN,))) is not None:
            cache.acted.copy_(acted)
        cache.length = length
        if temperature:
            shape = BN, layout.tokens_future, min(top_k or K, K)
            if cache.noise is None or cache.noise.shape != shape:
                cache.noise = torch.empty(shape, device=cache.pending.device)
                cache.recordings = cache.recordings and {}  # they read the old one
            cache.noise.exponential_(generator=generator)
        return cache.repeat(f"frame at {temperature}", lambda: self.frame(cache, temperature))

    @torch.no_grad()
    def last_state(self, cache):
        """State (B n_b, D) of the newest token, for `rewards`. It stays pending, for the next slot."""

        def read():
            h = self.extend(cache.pending, cache)[:, -1]
            cache.position -= 1
            return (h,)

        return cache.repeat("last state", read)[0]

    @torch.no_grad()
    def rollout(self, context, actions=None, f=0, n_branches=1, temperature=1.0, top_k=100, generator=None):
        """Imagine f frames (0: the rest of the segment) after context codes (B, t, N), n_branches of each.

        actions (B n_b, T, A), of which rows t-1 ... t+f-2 are used
        returns codes (B n_b, f, n), rewards (B n_b, f) in environment units or None"""
        t, codes, states = self.layout.context_frames, [], []
        cache = self.prefill(context, n_branches, room=f)
        for i in range(f or self.config["segment_length"] - t):
            action = None if actions is None else actions[:, t - 1 + i]
            code, state = self.imagine(cache, action, temperature, top_k, generator)
            codes.append(code)
            states.append(state)
        if self.reward is None:
            return torch.stack(codes, 1), None
        states = torch.stack([*states[1:], self.last_state(cache)], 1)
        return torch.stack(codes, 1), self.rewards(states)

    @torch.no_grad()
    def imagine_naive(self, context, past, actions=None, temperature=1.0, top_k=100, generator=None):
        """The next frame the plain way, everything before it read again: to measure against, and to teach.

        context codes (B, t, N), future frames so far (B, k, n), actions (B, t+k, A) or None
        returns codes (B, n), rewards (B,) in environment units or None"""
        cache = self.prefill(context, past=past, actions=actions, room=1)
        cache.recordings, cache.compiles = None, False  # for a single frame
        action = None if actions is None else actions[:, -1]
        codes, _ = self.imagine(cache, action, temperature, top_k, generator)
        return codes, None if self.reward is None else self.rewards(self.last_state(cache))

    def param_groups(self, weight_decay):
        """AdamW groups: matrices decay; biases, norms and the embedding do not (as the authors)."""
        table = ("embed.weight", "places")
        decayed = [p for n, p in self.named_parameters() if p.ndim == 2 and n not in table]
        others = [p for n, p in self.named_parameters() if p.ndim != 2 or n in table]
        return [dict(params=decayed, weight_decay=weight_decay), dict(params=others, weight_decay=0.0)]

    def checkpoint(self):
        """Plain data that `from_checkpoint` builds the same model from."""
        return dict(config=self.config, layout=vars(self.layout), weights=self.state_dict())

    @classmethod
    def from_checkpoint(cls, state, layout=None, **changes):
        """Rebuild from `checkpoint()`. `changes` to the config may add, resize or drop the two heads.

        layout  that of another tokenizer, with as many codes and at most as many context frames
        raises  ValueError if weights are missing, left over or of another shape"""
        old = state["config"]
        model = cls(layout or TokenLayout(**state["layout"]), **{**old, **changes})
        own, weights = model.state_dict(), dict(state["weights"])
        for head, size in (("action", "action_dim"), ("reward", "reward")):
            if old[size] != model.config[size]:
                print(f"{head} head: {'starts anew' if model.config[size] else 'left out'}")
                weights = {k: w for k, w in weights.items() if not k.startswith(f"{head}.")}
                weights.update((k, w) for k, w in own.items() if k.startswith(f"{head}."))
        if "places" in own and "places" in weights:  # of fewer context frames: the last ones'
            weights["places"] = weights["places"][-len(own["places"]) :]
        wrong = own.keys() ^ weights.keys()
        wrong |= {k for k in own.keys() & weights.keys() if own[k].shape != weights[k].shape}
        if wrong:
            told = ", ".join(sorted(wrong))
            raise ValueError(f"weights missing, left over or of another shape: {told}; {model.layout}")
        model.load_state_dict(weights)
        return model

    @classmethod
    def load(cls, path, layout=None, **changes):
        """The transformer of a checkpoint of ours, or of the authors (a folder or a hub name)."""
        if folder := official.find(path):
            return cls.from_official(folder, layout, **changes)
        return cls.from_checkpoint(load_checkpoint(path, needs=("gpt",))["gpt"], layout, **changes)

    @classmethod
    def from_official(cls, folder, layout=None, **changes):
        """The authors' transformer, in eval mode, from a folder of theirs, transformer/ in it, or a hub name.

        layout   by default that of the tokenizer beside it
        changes  as above. The files do not say how long segments were: 16 frames, if segment_length does not
                 (the authors: 16; 12 for RoboNet and VP2; 17 goal-conditioned)
        raises   FileNotFoundError, or ValueError naming the tensor or setting that does not fit"""
        config, folder = official.read_config(folder, "transformer")
        weights = official.read_tensors(folder, "transformer")
        weights = {k: w for k, w in weights.items() if "action_recon_linear." not in k}  # nothing uses it
        layout = layout or layout_of(official_config(folder.absolute().parent)[0])
        model = cls(layout, **{**SMALL, **official.gpt_settings(config, weights, folder)})
        wrapped = any(k.startswith("llm.") for k in weights)
        official.fill(model, weights, official.gpt_pairs(model, wrapped), folder)
        return (cls.from_checkpoint(model.checkpoint(), **changes) if changes else model).eval()
