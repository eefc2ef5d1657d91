"""variants/drift.py: a transformer that reads wrong codes in training, so that its own do less harm later.

    tokens (B,L) -+----------------------- targets --+-> loss
                  +- some codes random --> GPT ------+

In training the model reads the true past, in imagination its own. Here it reads some random codes in training
too, and still has to predict what is true, as in 1X's world-model challenge and Copilot4D (Zhang et al. 2024,
arXiv 2311.01017). The model's own samples in their place, scheduled sampling in two passes (Mihaylova and
Martins 2019, arXiv 1906.07651), helped half as much and cost a pass: results/README.md.

Run: python train_gpt.py --preset tiny --corrupt 0.1        Letters: tokenizer.py"""

import torch


def corrupt(layout, tokens, share):
    """Sequences (B, L) as they are read: some future codes are random ones.

    share  of a clip's codes: 0 in its first future frame, rising to at most `share` in the last; how much of
           that, is drawn for each clip"""
    context, dynamics = layout.unpack(tokens)
    B, f, n = dynamics.shape
    how = dict(device=tokens.device)
    odds = share * torch.rand(B, 1, 1, **how) * torch.linspace(0, 1, f, **how)[:, None]
    is_wrong = torch.rand(B, f, n, **how) < odds
    others = torch.randint_like(dynamics, layout.dynamics_codes)
    return layout.pack(context, torch.where(is_wrong, others, dynamics))
