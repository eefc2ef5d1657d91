"""variants/drift.py: a transformer that reads mistakes in training, so that its own do less harm later.

    tokens (B,L) -+------------------------- targets --+-> loss
                  +- some codes replaced -> GPT -------+

In training the model reads the true past, in imagination its own. Here it reads some wrong codes in training
too, and still has to predict what is true. Random ones are what 1X's world-model challenge and Copilot4D
(Zhang et al. 2024, arXiv 2311.01017) take; the model's own samples, which look like the mistakes that it will
make, are scheduled sampling in two passes (Mihaylova and Martins 2019, arXiv 1906.07651).

Run: python train_gpt.py --preset tiny --corrupt 0.2 --corrupt_by own        Letters: tokenizer.py"""

import torch


@torch.no_grad()
def own_samples(model, tokens, actions):
    """One sample of every future code (B, f, n), each given what is true before it."""
    layout = model.layout
    f = layout.future_frames(tokens.shape[1])
    h = model.hidden(tokens, actions, first=layout.prompt - 1)  # from the first slot on
    logits = model.code_logits(h.unflatten(1, (f, -1))[:, :, :-1])  # (B, f, n, K); slots are not sampled
    noise = torch.empty_like(logits, dtype=torch.float32).exponential_()
    return (logits.float() - noise.log()).argmax(-1)  # Gumbel noise: a sample of the softmax


def corrupt(model, tokens, actions, share, by):
    """Sequences (B, L) as they are read: some future codes replaced.

    share  of a clip's codes: 0 in its first future frame, rising to at most `share` in the last
    by     what they are replaced by: "random" codes, or the model's "own" samples"""
    layout = model.layout
    context, dynamics = layout.unpack(tokens)
    B, f, n = dynamics.shape
    if by == "own":
        others = own_samples(model, tokens, actions)
    elif by == "random":
        others = torch.randint_like(dynamics, layout.dynamics_codes)
    else:
        raise ValueError(f"corrupt_by is {by!r}; expected random or own")
    how = dict(device=tokens.device)
    odds = share * torch.rand(B, 1, 1, **how) * torch.linspace(0, 1, f, **how)[:, None]
    is_wrong = torch.rand(B, f, n, **how) < odds
    return layout.pack(context, torch.where(is_wrong, others, dynamics))
