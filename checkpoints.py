"""checkpoints.py: every kind of checkpoint and every size of model, by one name each."""

import gpt
import tokenizer
from gpt import GPT
from tokenizer import Tokenizer

# A transformer's preset and the tokenizer's that goes with it.
TOKENIZER_OF = dict(tiny=tokenizer.TINY, small=tokenizer.SMALL, medium=tokenizer.SMALL)


def load_tokenizer(path, **changes):
    """The tokenizer of any checkpoint."""
    return Tokenizer.load(path, **changes)


def load_gpt(path, layout=None, **changes):
    """The transformer of any checkpoint."""
    return GPT.load(path, layout, **changes)


def tokenizer_from(state, **changes):
    """A tokenizer from its part of a checkpoint, `Tokenizer.checkpoint()`."""
    return Tokenizer.from_checkpoint(state, **changes)


def gpt_from(state, layout=None, **changes):
    """A transformer from its part of a checkpoint, `GPT.checkpoint()`."""
    return GPT.from_checkpoint(state, layout, **changes)


def new_tokenizer(settings):
    """A new tokenizer with these settings, as tokenizer.SMALL."""
    return Tokenizer(**settings)


def new_gpt(layout, settings):
    """A new transformer with these settings, as gpt.SMALL."""
    return GPT(layout, **settings)

SIZES = dict(
    tiny=(tokenizer.TINY, gpt.TINY),
    small=(tokenizer.SMALL, gpt.SMALL),
    medium=(tokenizer.SMALL, gpt.MEDIUM),
)
