"""variants/draft.py: the codes of the last frame as a draft of the next one: the same codes in fewer passes.

    last frame's codes   7 7 3 0 0 5     a pass reads 7 7 3 0 as guesses, and draws the code after each:
    drawn                7 2 . . . .     7 is right; 2 is drawn after it, where 7 was guessed wrongly;
                             3 0 0 .     the next pass reads 2 and goes on behind it, and so on
    next frame           7 2 3 0 0 1

Most of a picture stays from frame to frame, so that most guesses are right. Each future goes on by itself. A
code is the likeliest after the codes before it, or with the noise that was drawn for its place the first
among samples, whether it was guessed or not: nothing else changes (up to rounding). The first frame's draft
says that nothing has changed, if there is a code for that (`still`, tiny.py). On CPUs alone: on GPUs it has
not been measured.

Source: speculative decoding (Leviathan et al. 2023, arXiv 2211.17192), whose draft is a smaller model."""

import torch

from gpt import sample_code


def window(M):
    """How many codes of each of M drafts are read at once: what is read in vain costs time."""
    return max(16 // M, 4) if M <= 64 else 0


def imagine_frame(model, cache, action, noise, temperature):
    """What GPT.imagine_frame does, for M futures; from the draft `cache.newest` (M, n) if there is one."""
    M = len(cache.pending)
    n = model.layout.tokens_future
    w = min(n - 1, window(M))
    if cache.newest is None or not cache.pending.is_cpu or not w:
        return model.imagine_frame(cache, action, noise, temperature)
    codes = cache.newest  # the first `known` are drawn, the others guesses
    known = codes.new_zeros(M, 1)
    start = torch.cat([cache.pending, torch.full_like(cache.pending, model.layout.future_slot)], 1)
    action = model.embed_actions(action, (M,))
    places = torch.arange(w + 2).expand(M, -1)  # in the frame: pending token 0, slot 1, codes from 2 on
    before = None
    while known.min() < n:
        tokens = torch.cat([start, codes + model.layout.context_codes], 1).gather(1, places)
        added = 0 if action is None else action[:, None] * (places == 1)[..., None]  # to the slot
        positions = cache.length + places
        h = cache.step(cache, tokens, added, positions, int(positions.max()) + 1)
        if before is None:
            before = h[:, 0]
            h = h[:, 1:]
            places = places[:, 1:]
        index = places - 1  # of the codes that h predicts
        chance = noise.take_along_dim(index[..., None], 1) if temperature else None
        drawn = sample_code(model.code_logits(h), chance, temperature)
        guess = codes.gather(1, index)
        is_new = index >= known
        wrong = is_new & (drawn != guess)
        is_right = is_new & (wrong.cumsum(1) - wrong.int() == 0)  # up to the first wrong guess
        codes = codes.scatter(1, index, torch.where(is_right, drawn, guess))
        known = known + is_right.sum(1, keepdim=True)
        places = known.clamp(max=n - 1 - w) + torch.arange(1, w + 2)
    cache.length += n + 1
    cache.pending = codes[:, -1:] + model.layout.context_codes
    return codes, before
