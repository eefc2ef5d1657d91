"""gpt.py: a LLaMA-style transformer that predicts a video's next tokens (paper sections 3.1, 3.3; A.1).

    ids     c_1 (N) [S1] c_2 (N) [S2] d_1 d_2 ... d_n [S2] d_1 ... d_n    layout and letters: tokenizer.py
                                  + action_1           + action_2         added to the slots' embeddings
    logits                        d_1 d_2 ... d_n [S2] d_1 ... d_n        cross-entropy, on future frames only
    reward                                     r_1             r_2        read at each frame's last token

Of T actions, actions[k] leads from frame k to frame k+1 (data.py). So the slot of frame k carries
actions[k-1], and its last token predicts rewards[k], received on arriving there. (The authors' code trains
the head on the reward of the next transition, but stores it in imagination as the reward of arriving.)

Action-free: action_dim=0. With actions: action_dim=A, a zero-initialised projection. Goal-conditioned: the
trainer puts the last frame first (train_gpt.py), and nothing changes here. The laptop's preset `tiny` has
learned position embeddings beside RoPE: variants/tiny.py.

B batch, n_b branches (futures of one context), L tokens, P tokens that `prefill` reads, s newest tokens,
D width, H heads, d = D/H, V vocabulary, A action size, h frames; the others are tokenizer.py's.

Run: python train_gpt.py --preset tiny --tokenizer out/tokenizer.pt --max_steps 100"""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from support.devices import can_compile

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
)
MEDIUM = {**SMALL, "n_layer": 24, "n_head": 16, "n_embd": 1024, "n_mlp": 4096}


def symlog(x):
    """Squash rewards of any scale (DreamerV3, Hafner et al. 2023); `symexp` undoes it."""
    return x.sign() * x.abs().log1p()


def symexp(x):
    return x.sign() * x.abs().expm1()


class RMSNorm(nn.Module):
    def __init__(self, D, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(D))
        self.eps = eps

    def forward(self, x):
        y = x.float()
        return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


def linear(x, weight):
    """x (..., D), weight (M, D) -> (..., M): F.linear, by oneDNN where that is faster.

    torch calls MKL on CPUs. For a few tokens oneDNN takes half of its time (AMD EPYC); it has no gradient."""
    large = x.is_cpu and x.dtype == torch.float32 and weight.numel() >= 2**18
    if large and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu"):
        if torch.backends.mkldnn.is_available():
            return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return F.linear(x, weight)


def rope_table(length, d, theta=10000.0):
    """Cosines and sines (2, length, d) of rotary position embeddings."""
    inverse = theta ** -(torch.arange(0, d, 2) / d)
    angle = torch.outer(torch.arange(length).float(), inverse).repeat(1, 2)
    return torch.stack([angle.cos(), angle.sin()])


def rotate(x, rope):
    """Rotate x (..., L, d) by its positions; dimension i is paired with i + d / 2."""
    a, b = x.chunk(2, -1)
    cos, sin = rope.to(x.dtype)
    return x * cos + torch.cat([-b, a], -1) * sin


class Block(nn.Module):
    """x + attention(norm(x)), then x + SwiGLU(norm(x))."""

    def __init__(self, D, n_head, n_mlp, att_dropout):
        super().__init__()
        self.n_head = n_head
        self.att_dropout = att_dropout
        self.norm1 = RMSNorm(D)
        self.norm2 = RMSNorm(D)
        self.qkv = nn.Linear(D, 3 * D, bias=False)
        self.out = nn.Linear(D, D, bias=False)
        self.gate_up = nn.Linear(D, 2 * n_mlp, bias=False)
        self.down = nn.Linear(n_mlp, D, bias=False)

    def forward(self, x, rope, attend=None, first=0):
        """x (B, L, D) -> (B, L - first, D).

        attend  (q, k, v), each (B, H, L, d) -> (B, H, L, d); by default causal attention over x alone
        first   the first position whose output is needed; the ones before it only give keys and values"""
        B, L, D = x.shape
        qkv = linear(self.norm1(x), self.qkv.weight).view(B, L, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)
        q, k = rotate(qkv[:2], rope)
        attend = attend or self.causal
        h = attend(q, k, qkv[2]).transpose(1, 2)[:, first:].flatten(2)
        x = x[:, first:] + linear(h, self.out.weight)
        gate, up = linear(self.norm2(x), self.gate_up.weight).chunk(2, -1)
        return x + linear(F.silu(gate) * up, self.down.weight)

    def causal(self, q, k, v):
        dropout = self.att_dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)


# ---- the KV cache ----


class LayerCache(nn.Module):
    """Keys and values of one layer: the context's once per scene, the future's once per branch.

    shared (2, B, H, P, d), keys and values (B, H, n_b, capacity, d): allocated once, of fixed shape. With one
    branch there is nothing to share: these are (B, H, P + capacity, d), and `shared` is their first part."""

    def __init__(self, weight, B, n_branches, H, d, P, capacity):
        super().__init__()
        self.n_branches = n_branches
        self.first = P if n_branches == 1 else 0  # where the future begins in own
        branches = () if n_branches == 1 else (n_branches,)
        own = weight.new_zeros(2, B, H, *branches, self.first + capacity, d)
        shared = own[..., :P, :] if self.first else weight.new_zeros(2, B, H, P, d)
        self.register_buffer("shared", shared)
        self.register_buffer("keys", own[0])  # apart: compiled code would copy both at each write
        self.register_buffer("values", own[1])

    def read_context(self, q, k, v):
        """Causal attention over the context (B, H, P, d), whose keys and values are stored."""
        self.shared[0].copy_(k)
        self.shared[1].copy_(v)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def attend(self, q, k, v, positions, mask):
        """Attention of s new tokens (M, H, s, d), M = B n_b, stored at `positions` (M, s) of their future.

        mask (M, s, P + end): -inf where a token may not look, which is later tokens; memory from `end` on is
        not read. All branches of a scene attend to the shared keys in one matrix product and to their own
        keys in another; one softmax covers both."""
        rows = q, k, v, positions[:, None, :, None], mask[:, None]
        if self.n_branches > 1:  # (M, H, s, d) -> (B, H, n_b, s, d)
            rows = (x.unflatten(0, (-1, self.n_branches)).transpose(1, 2) for x in rows)
        q, k, v, positions, mask = rows
        P = self.shared.shape[3]
        end = self.first + mask.shape[-1] - P
        index = (positions + self.first).expand_as(k)
        self.keys.scatter_(-2, index, k)
        self.values.scatter_(-2, index, v)
        keys = self.keys[..., :end, :]
        values = self.values[..., :end, :]
        if self.n_branches == 1:
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        B, H, n_b, s, d = q.shape
        q = q * d**-0.5
        shared = q.flatten(2, 3) @ self.shared[0].mT  # for the shared keys, branches are more queries
        scores = torch.cat([shared.view(B, H, n_b, s, P), q @ keys.mT + mask[..., P:]], -1)
        weights = scores.float().softmax(-1).to(q.dtype)
        shared = weights[..., :P].flatten(2, 3) @ self.shared[1]
        h = shared.view(B, H, n_b, s, d) + weights[..., P:] @ values
        return h.transpose(1, 2).flatten(0, 1)


class Cache(nn.Module):
    """The keys and values of B scenes with n_b branches each, and how far the branches have come.

    pending (B n_b, 1) is the newest token. It is not read yet: it goes with the next slot, in one pass."""

    def __init__(self, model, B, n_branches, P, capacity):
        super().__init__()
        H = model.config["n_head"]
        d = model.config["n_embd"] // H
        self.sizes = (B, n_branches, P, capacity)
        weight = model.embed.weight
        layers = [LayerCache(weight, B, n_branches, H, d, P, capacity) for _ in model.blocks]
        self.layers = nn.ModuleList(layers)
        mask = weight.new_full((capacity, P + capacity), float("-inf")).triu(P + 1)  # row: a future token
        self.register_buffer("mask", mask)
        self.step = model.step
        if can_compile(weight.device):  # as in gpt-fast, CUDA graphs included. Not run on a GPU yet.
            self.step = torch.compile(model.step, mode="reduce-overhead", dynamic=False)

    def rewind(self, pending):
        """Back to the end of the context, whose last token is `pending` (B n_b, 1)."""
        self.pending = pending
        self.length = 0  # future tokens read
        self.newest = None  # codes of the last frame that was imagined, for variants/draft.py
        for layer in self.layers:  # masked positions have weight 0, but 0 x NaN is NaN
            layer.keys[..., layer.first :, :].zero_()
            layer.values[..., layer.first :, :].zero_()


def sample_code(logits, noise=None, temperature=1.0):
    """Logits (..., K), Exp(1) noise (..., top_k) -> one index each (...), out of the top_k most likely.

    Greedy without noise. -log(noise) is Gumbel noise: the argmax of logits plus it is a sample of their
    softmax, and needs no host sync."""
    if noise is None:
        return logits.argmax(-1)
    values, indices = logits.float().topk(noise.shape[-1])
    return indices.gather(-1, (values / temperature - noise.log()).argmax(-1, keepdim=True))[..., 0]


class GPT(nn.Module):
    """The transformer. Settings: see SMALL above; `layout` is the tokenizer's TokenLayout.

    raises  ValueError if settings are missing, unknown or do not fit each other"""

    def __init__(self, layout, **cfg):
        super().__init__()
        if unknown := sorted(set(cfg) ^ set(SMALL)):
            raise ValueError(f"transformer settings missing or unknown: {', '.join(unknown)}; see gpt.SMALL")
        D = cfg["n_embd"]
        H = cfg["n_head"]
        T = cfg["segment_length"]
        if min(cfg["n_layer"], H, D, cfg["n_mlp"]) < 1 or D % (2 * H):
            raise ValueError(f"n_embd is {D}, n_head {H}; expected a multiple of 2 n_head, sizes above 0")
        if T <= layout.context_frames:
            raise ValueError(f"segment_length is {T}; the context alone is {layout.context_frames}")
        self.layout = layout
        self.config = cfg
        self.embed = nn.Embedding(layout.vocab_size, D)
        blocks = [Block(D, H, cfg["n_mlp"], cfg["att_dropout"]) for _ in range(cfg["n_layer"])]
        self.blocks = nn.ModuleList(blocks)
        self.norm = RMSNorm(D)
        self.lm_head = nn.Linear(D, layout.vocab_size, bias=False)
        self.action = nn.Linear(cfg["action_dim"], D) if cfg["action_dim"] else None
        self.reward = nn.Linear(D, 1) if cfg["reward"] else None
        self.register_buffer("rope", rope_table(layout.length(T), D // H), persistent=False)
        for name, parameter in self.named_parameters():
            if name.endswith("bias") or name == "action.weight":
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, 0, 0.02)

    def embed_actions(self, actions, shape):
        """Actions (*shape, A) -> (*shape, D), or None for an action-free model.   raises  ValueError"""
        A = self.config["action_dim"]
        got = None if actions is None else tuple(actions.shape)
        expected = (*shape, A) if A else None
        if got != expected:
            raise ValueError(f"actions are {got or 'none'}; expected {expected or 'none: no action_dim'}")
        return self.action(actions.to(self.embed.weight.dtype)) if A else None

    def add_positions(self, x, positions):
        """A hook for TinyGPT: x (B, L, D) at positions (L,). Here RoPE alone encodes positions."""
        return x

    def hidden(self, tokens, actions=None, attends=None, first=0):
        """Last hidden states (B, L - first, D) of sequences (B, L), with actions (B, T, A) of their T frames.

        The last frame may be unfinished.  attends  one attention function per block
        first  see `Block`; only the last block can leave positions out"""
        B, L = tokens.shape
        t = self.layout.context_frames
        f = self.layout.future_frames(L)
        if L > self.rope.shape[1]:
            raise ValueError(f"{L} tokens; the segment has {self.rope.shape[1]}: take a new context")
        x = self.add_positions(self.embed(tokens), torch.arange(L, device=tokens.device))
        if f:
            added = self.embed_actions(actions, (B, t + f))
            if added is not None:
                x[:, self.layout.slots(f)] += added[:, t - 1 : t - 1 + f]
        *others, last = zip(self.blocks, attends or [None] * len(self.blocks), strict=True)
        for block, attend in others:
            x = block(x, self.rope[:, :L], attend)
        block, attend = last
        return self.norm(block(x, self.rope[:, :L], attend, first))

    def forward(self, tokens, actions=None):
        """Token ids (B, L), actions (B, T, A) -> logits (B, L, V) of the next token at every position."""
        return self.lm_head(self.hidden(tokens, actions))

    def rewards(self, hidden):
        """Hidden states (..., D) at frames' last tokens -> rewards (...) in environment units."""
        return symexp(self.reward(hidden).squeeze(-1).float())

    def loss(self, tokens, actions=None, rewards=None, read=None):
        """Cross-entropy of all future tokens, later slots included, plus (symlog reward error)^2.

        tokens (B, L);  actions (B, T, A) or None;  rewards (B, T) in environment units, or None
        read   what the model reads in the place of `tokens`, if that is damaged: variants/drift.py
        returns loss and metrics, a dict of scalars.   Source: paper eq. 3 and section 3.3"""
        layout = self.layout
        first = layout.prompt - 1  # the context is never predicted: no logits for two thirds of the tokens
        h = self.hidden(tokens if read is None else read, actions, first=first)
        logits = self.lm_head(h[:, :-1])
        targets = tokens[:, layout.prompt :]
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        accuracy = (logits.detach().argmax(-1) == targets).float().mean()
        metrics = dict(ce=loss.detach(), accuracy=accuracy)
        if self.reward is not None:
            if rewards is None:
                raise ValueError("the model has a reward head but the data has no rewards: --rewards false")
            ends = layout.ends(layout.future_frames(tokens.shape[1]))
            predicted = self.reward(h[:, ends.start - first :: ends.step]).squeeze(-1).float()  # (B, f)
            error = F.mse_loss(predicted, symlog(rewards[:, layout.context_frames :]))
            loss = loss + error
            metrics["reward_mse"] = error.detach()
        return loss, metrics

    def code_logits(self, h):
        """Hidden states (..., D) -> logits (..., K) over dynamics codes: no other id can be drawn."""
        first = self.layout.context_codes
        return linear(h, self.lm_head.weight[first : first + self.layout.dynamics_codes])

    @torch.no_grad()
    def imagine_plainly(self, tokens, actions=None):
        """The next frame without a cache, greedily: what `imagine` does, with all the work repeated.

        tokens (B, L) of whole frames;  actions (B, T + 1, A) or None;  returns codes (B, n)"""
        slot = torch.full_like(tokens[:, :1], self.layout.future_slot)
        tokens = torch.cat([tokens, slot], 1)
        for _ in range(self.layout.tokens_future):
            h = self.hidden(tokens, actions)  # every token attends to every earlier one, again
            code = sample_code(self.code_logits(h[:, -1]))
            tokens = torch.cat([tokens, code[:, None] + self.layout.context_codes], 1)
        return tokens[:, -self.layout.tokens_future :] - self.layout.context_codes

    @torch.no_grad()
    def prefill(self, tokens, actions=None, n_branches=1, room=0, reuse=None):
        """Read the tokens (B, L) of whole frames once, for n_branches futures each -> a Cache for `imagine`.

        actions  (B, T, A) of these frames, if there are future ones among them
        room     frames to come, by default the rest of the segment
        reuse    a Cache whose memory to take if its sizes are the same"""
        B, L = tokens.shape
        per_frame = self.layout.tokens_future + 1
        T = self.config["segment_length"]
        room = room or T - self.layout.context_frames - self.layout.future_frames(L)
        if (total := L + room * per_frame) > self.rope.shape[1]:
            raise ValueError(f"{total} tokens; the segment has {self.rope.shape[1]}: take a new context")
        sizes = (B, n_branches, L - 1, room * per_frame + 1)
        cache = reuse if reuse is not None and reuse.sizes == sizes else Cache(self, *sizes)
        self.hidden(tokens[:, :-1], actions, [layer.read_context for layer in cache.layers], first=-1)
        cache.rewind(tokens[:, -1:].repeat_interleave(n_branches, 0))
        return cache

    def step(self, cache, tokens, added, positions, end):
        """Newest tokens (M, s), with `added` to their embeddings -> last hidden states (M, s, D); M = B n_b.

        positions  (M, s) in the future, or (1, s);  end  how many to attend to: later ones are empty"""
        P = cache.sizes[2]
        x = self.add_positions(self.embed(tokens) + added, positions + P)
        rope = self.rope[:, positions + P][:, :, None]  # for all heads
        mask = cache.mask[positions, : P + end].expand(len(tokens), -1, -1)
        positions = positions.expand(len(tokens), -1)
        for block, layer in zip(self.blocks, cache.layers, strict=True):
            x = block(x, rope, functools.partial(layer.attend, positions=positions, mask=mask))
        return self.norm(x)

    def extend(self, cache, tokens, added=0):
        """`step` for tokens that follow what the cache has read."""
        start = cache.length
        stop = start + tokens.shape[1]
        positions = torch.arange(start, stop, device=tokens.device)[None]
        end = stop if tokens.is_cpu else cache.sizes[3]  # compiled code wants one shape
        return cache.step(cache, tokens, added, positions, end)

    def imagine_frame(self, cache, action, noise, temperature):
        """Codes (B n_b, n) of the next frame, and the state (B n_b, D) of the token that was pending.

        n passes: the first reads the pending token and the slot, each other one the code just drawn."""
        n = self.layout.tokens_future
        slot = torch.full_like(cache.pending, self.layout.future_slot)
        added = self.embed_actions(action, (len(slot),))
        added = 0 if added is None else F.pad(added[:, None], (0, 0, 1, 0))  # to the slot
        h = self.extend(cache, torch.cat([cache.pending, slot], 1), added)
        before = h[:, 0].clone()  # a compiled step reuses its memory
        cache.length += 2
        codes = []
        for i in range(n):
            code = sample_code(self.code_logits(h[:, -1]), noise[:, i] if temperature else None, temperature)
            codes.append(code)
            cache.pending = code[:, None] + self.layout.context_codes
            if i < n - 1:
                h = self.extend(cache, cache.pending)
                cache.length += 1
        return torch.stack(codes, 1), before

    @torch.no_grad()
    def imagine(self, cache, frames=1, actions=None, temperature=1.0, top_k=100, generator=None,
                one_frame=None):  # fmt: skip
        """Imagine the next h = `frames` frames: n codes each, every code seen by the ones after it.

        cache from `prefill`;  actions (B n_b, h, A) that lead to them, or None;  temperature 0 is greedy
        one_frame  in place of `imagine_frame`, that of variants/draft.py
        returns codes (B n_b, h, n), rewards (B n_b, h) in environment units or None
        raises  ValueError if the cache has no room.   Source: paper section 3.3, Table 3"""
        n = self.layout.tokens_future
        K = self.layout.dynamics_codes
        if (length := cache.length + frames * (n + 1)) >= cache.sizes[3]:
            raise ValueError(f"no room for {length} tokens in the cache: take a new context")
        codes = []
        states = []  # of each frame's last token, which is read with the next frame's slot: one frame late
        for k in range(frames):
            noise = None
            if temperature:
                noise = torch.empty(len(cache.pending), n, min(top_k or K, K), device=cache.pending.device)
                noise.exponential_(generator=generator)
            action = None if actions is None else actions[:, k]
            cache.newest, before = (one_frame or GPT.imagine_frame)(self, cache, action, noise, temperature)
            codes.append(cache.newest)
            states.append(before)
        if self.reward is None:
            return torch.stack(codes, 1), None
        states.append(self.extend(cache, cache.pending)[:, -1])  # it stays pending: cache.length is the same
        return torch.stack(codes, 1), self.rewards(torch.stack(states[1:], 1))

    def undecayed(self):
        """Names of the matrices without weight decay (as the authors)."""
        return ["embed.weight"]

    def param_groups(self, weight_decay):
        """AdamW groups: matrices decay; biases, norms and the embedding do not."""
        decayed = []
        others = []
        for name, parameter in self.named_parameters():
            group = decayed if parameter.ndim == 2 and name not in self.undecayed() else others
            group.append(parameter)
        return [dict(params=decayed, weight_decay=weight_decay), dict(params=others, weight_decay=0.0)]

    def checkpoint(self):
        """Plain data that checkpoints.gpt_from builds the same model from."""
        return dict(config=self.config, layout=vars(self.layout), weights=self.state_dict())
