"""variants/muon.py: an optimizer for matrices, with which `tiny` learns faster than with AdamW.

    gradients (K, M, N) of one shape --momentum--> --Newton-Schulz--> all singular values near 1 --> step

Both models of `tiny` learn with it (--muon true of their trainers); the paper's sizes learn by AdamW.
torch.optim.Muon computes in bf16 on every device, which CPUs without bf16 instructions emulate: an update of
`tiny` took five times as long there. Here it is bf16 on GPUs and float32 on CPUs, and the matrices of one
shape share one product. (On a GPU it has not been run yet.)

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon"""

import torch

COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of the polynomial; singular values end between 0.7 and 1.2
OUTER = "emb", "conv_in", "conv_out", "lm_head", "action", "reward"  # in names of other layers


def orthogonalize(matrices, steps=5):
    """Matrices (K, M, N) -> their nearest orthogonal ones, about: all singular values come near 1.

    Source: Newton-Schulz iteration, X <- a X + (b X X^T + c (X X^T)^2) X"""
    a, b, c = COEFFICIENTS
    K, M, N = matrices.shape
    X = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    if M > N:
        X = X.mT  # the smaller square matrix is the cheaper one
    X = X / X.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        A = X @ X.mT
        X = a * X + (b * A + c * A @ A) @ X
    return X.mT if M > N else X


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for matrices alone.

    Steps are as long as AdamW's, so that one learning rate serves both. Equal to torch.optim.Muon with
    adjust_lr_fn="match_rms_adamw", up to the precision of bf16; so are the names in its state.
    Source: Jordan et al. 2024; the length of steps: Liu et al. 2025, arXiv 2502.16982, eq. 4"""

    def __init__(self, matrices, lr, weight_decay, momentum=0.95):
        super().__init__(matrices, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for matrices in by_shape.values():
                self.update(matrices, group)

    def update(self, matrices, group):
        """One step of matrices of one shape."""
        directions = []
        for p in matrices:
            state = self.state[p]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p)
            average = state["momentum_buffer"]
            average.lerp_(p.grad, 1 - group["momentum"])
            ahead = p.grad.lerp(average, group["momentum"])  # Nesterov
            directions.append(ahead.flatten(1))  # a convolution is a matrix (c_out, c_in 3 3)
        length = 0.2 * max(directions[0].shape) ** 0.5  # root mean square 0.2, as AdamW's steps have
        for p, direction in zip(matrices, orthogonalize(torch.stack(directions)), strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(direction.view(p.shape).to(p.dtype), alpha=-group["lr"] * length)


def hidden_matrices(model):
    """The parameters that Muon is for: weights of hidden layers, matrices or convolutions; no embeddings, and
    neither first nor last layers."""
    found = []
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and parameter.requires_grad and not any(part in name for part in OUTER):
            found.append(parameter)
    return found


def optimizers_for(model, groups, cfg):
    """A list: AdamW for these groups of parameters; or with cfg.muon Muon for the `hidden_matrices` and AdamW
    for the others."""
    matrices = hidden_matrices(model) if cfg.muon else []
    by_muon = {id(p) for p in matrices}
    for group in groups:
        group["params"] = [p for p in group["params"] if id(p) not in by_muon]
    how = dict(lr=cfg.lr, betas=(0.9, 0.999), weight_decay=cfg.weight_decay, fused=True)
    optimizers = [torch.optim.AdamW(groups, **how)]
    if matrices:
        optimizers.append(Muon(matrices, cfg.lr, cfg.weight_decay))
    return optimizers
