"""support/hood.py: what happens inside a WorldModel as it imagines a frame."""

import math

import torch


class Hood:
    """Sees what codes are drawn from, while it is open."""

    def __init__(self, world):
        self.is_open = False
        self.logits = []  # (B n_b, K) of each code, since `clear`
        code_logits = world.gpt.code_logits

        def watched(h):
            logits = code_logits(h)
            if self.is_open:
                self.logits.append(logits)
            return logits

        world.gpt.code_logits = watched

    def clear(self):
        self.logits.clear()

    @torch.no_grad()
    def look(self, world):
        """Of the first future's newest frame: ids and bits of entropy of its codes (n,), and the frame
        (3, R, R) that the decoder draws of the codes alone."""
        logits = torch.stack(self.logits)[:, 0].float()
        entropy = torch.distributions.Categorical(logits=logits).entropy() / math.log(2)
        codes = world.codes[:1, -1:]
        with world.autocast:
            alone = world.tokenizer.decode_future(codes, None)[0, 0].float()
        return codes.flatten().tolist(), entropy.tolist(), alone
