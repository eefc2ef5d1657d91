"""support/hood.py: what happens inside a WorldModel as it imagines a frame."""

import contextlib
import math

import torch


class Hood:
    """Keeps what the codes of a frame are drawn from, while it is open."""

    def __init__(self, world):
        self.is_open = False
        self.is_watching = False
        self.logits = []  # (n_b, K) of each code of the newest frame, before temperature and top-k
        self.codes = None  # of the frame before
        code_logits = world.gpt.code_logits

        def watched(h):
            logits = code_logits(h)
            if self.is_watching:
                self.logits.append(logits)
            return logits

        world.gpt.code_logits = watched

    @contextlib.contextmanager
    def watch(self, world):
        """Keep what the step in this context does."""
        self.logits = []
        self.codes = world.codes
        if self.is_open and world.cache:
            world.cache.newest = None  # without a draft, each code is drawn from logits of its own
        self.is_watching = self.is_open
        try:
            yield
        finally:
            self.is_watching = False

    @torch.no_grad()
    def look(self, world):
        """Of the first future's newest frame: ids of its codes, whether each has changed since the frame
        before, its bits of entropy, each (n,); and the frame (3, R, R) that the codes draw alone."""
        codes = world.codes[:1, -1:]
        before = codes if self.codes is None else self.codes[:1, -1:]
        logits = torch.stack(self.logits)[:, 0].float()
        entropy = torch.distributions.Categorical(logits=logits).entropy() / math.log(2)
        with world.autocast:
            alone = world.tokenizer.decode_future(codes, None)[0, 0].float()
        ids = codes.flatten()
        return ids.tolist(), (ids != before.flatten()).tolist(), entropy.tolist(), alone
