"""checkpoints.py: every kind of checkpoint and every size of model through one door.

    a file of ours, a folder of the authors' or a hub name --load_tokenizer, load_gpt--> model
    settings (a dict as tokenizer.SMALL, gpt.SMALL)        --new_tokenizer, new_gpt----> model

Which class a model is follows from its settings: the paper's Tokenizer and GPT, the laptop's (tiny.py), or a
per-frame tokenizer (per_frame.py)."""

import zlib

import torch

import gpt
import official
import tokenizer
from common import load_checkpoint
from gpt import GPT
from tokenizer import Tokenizer, TokenLayout
from variants import tiny
from variants.per_frame import PerFrameTokenizer
from variants.tiny import TinyGPT, TinyTokenizer

# Settings of the tokenizer and of the transformer that go together.
SIZES = dict(
    tiny=(tiny.TOKENIZER, tiny.TRANSFORMER),
    small=(tokenizer.SMALL, gpt.SMALL),
    medium=(tokenizer.SMALL, gpt.MEDIUM),
)


def new_tokenizer(settings, kind="compressive"):
    """A new tokenizer: "compressive", or "4x4": that grid of tokens for every frame.

    raises  ValueError at another kind, or at settings that do not fit each other"""
    settings = {**tiny.TOKENIZER_OFF, **settings}
    if kind != "compressive":
        grid, x, same = kind.partition("x")
        if grid != same or not grid.isdecimal():
            raise ValueError(f"kind is {kind!r}; expected compressive, or a square such as 16x16 or 4x4")
        without = {**tiny.TOKENIZER_OFF, "patch": settings["patch"], "l2": settings["l2"]}
        return PerFrameTokenizer(int(grid), **{**settings, **without})
    extras = {key: settings.pop(key) for key in tiny.TOKENIZER_OFF}
    if extras == tiny.TOKENIZER_OFF:
        return Tokenizer(**settings)
    return TinyTokenizer(**extras, **settings)


def new_gpt(layout, settings):
    """A new transformer for a tokenizer's TokenLayout.   raises  ValueError as GPT"""
    settings = {**tiny.GPT_OFF, **settings}
    pos_init = settings.pop("pos_init")
    return TinyGPT(layout, pos_init, **settings) if pos_init else GPT(layout, **settings)


def resize_context(weights, old, new):
    """Position embeddings for `new` context frames: the last are kept, the earliest is repeated."""
    resized = dict(weights)
    for key in weights:
        if key.endswith("kv_pos_emb"):
            frames = weights[key].unflatten(0, (old, -1))
            resized[key] = torch.cat([frames[:1]] * max(new - old, 0) + [frames[-new:]]).flatten(0, 1)
    return resized


def require_layers(state, key):
    """Raise ValueError if a model is said to have more layers than weights: building it would not end."""
    layers = state["config"][key]
    if layers > len(state["weights"]):
        raise ValueError(f"{key} is {layers}, but there are {len(state['weights'])} weights: no checkpoint")


def fill(model, weights):
    """Load weights into a model.   raises  ValueError naming some that are not finite"""
    model.load_state_dict(weights)
    bad = [name for name, x in weights.items() if x.is_floating_point() and not x.isfinite().all()]
    if bad:
        raise ValueError(f"weights are not finite, such as {bad[0]}; take an older checkpoint")


def tokenizer_from(state, **changes):
    """A tokenizer from its part of a checkpoint; `changes` are to its settings, context_frames among them."""
    require_layers(state, "layers_per_block")
    old = state["config"]
    config = {**old, **changes}
    grid = config.pop("grid", None)
    model = new_tokenizer(config, f"{grid}x{grid}" if grid else "compressive")
    before = old["context_frames"]
    after = model.config["context_frames"]
    if after > before:
        print(f"context grows from {before} to {after} frames: fine-tune before trusting the pictures")
    fill(model, state["weights"] if after == before else resize_context(state["weights"], before, after))
    return model


def gpt_from(state, layout=None, **changes):
    """A transformer from its part of a checkpoint; `changes` to its settings may add, resize or drop heads.

    layout  that of another tokenizer, with as many codes and at most as many context frames
    raises  ValueError if weights are missing, left over or of another shape"""
    require_layers(state, "n_layer")
    old = state["config"]
    weights = dict(state["weights"])
    config = {**old, **changes}
    model = new_gpt(layout or TokenLayout(**state["layout"]), config)
    expected = model.state_dict()
    for head, size in (("action", "action_dim"), ("reward", "reward")):
        if old[size] == config[size]:
            continue
        print(f"{head} head: {'starts anew' if config[size] else 'left out'}")
        weights = {key: weight for key, weight in weights.items() if not key.startswith(f"{head}.")}
        weights.update({key: weight for key, weight in expected.items() if key.startswith(f"{head}.")})
    if "pos_emb" in expected and "pos_emb" in weights:  # fewer context frames: the last ones'
        weights["pos_emb"] = weights["pos_emb"][-len(expected["pos_emb"]) :]
    wrong = expected.keys() ^ weights.keys()
    wrong |= {key for key in expected.keys() & weights.keys() if expected[key].shape != weights[key].shape}
    if wrong:
        names = ", ".join(sorted(wrong))
        raise ValueError(f"weights missing, left over or of another shape: {names}; {model.layout}")
    fill(model, weights)
    return model


def checksum(tensors):
    """CRC-32 of weights or data, to recognise them by."""
    total = 0
    for x in tensors:
        total = zlib.crc32(x.detach().cpu().flatten().view(torch.uint8).numpy(), total)
    return total


def load_tokenizer(path, **changes):
    """The tokenizer, in eval mode, of a checkpoint of ours, or of the authors: a folder or a hub name.

    raises  FileNotFoundError, ValueError saying what is wrong with it"""
    if folder := official.find(path):
        model = official.load_tokenizer(folder)
        return tokenizer_from(model.checkpoint(), **changes).eval() if changes else model
    return tokenizer_from(load_checkpoint(path, needs=("tokenizer",))["tokenizer"], **changes).eval()


def load_gpt(path, layout=None, **changes):
    """The transformer, in eval mode, of a checkpoint of ours, or of the authors: a folder or a hub name.

    layout  of the tokenizer that it is used with, by default its own
    raises  as load_tokenizer"""
    if folder := official.find(path):
        model = official.load_gpt(folder, layout)
        return gpt_from(model.checkpoint(), **changes).eval() if changes else model
    return gpt_from(load_checkpoint(path, needs=("gpt",))["gpt"], layout, **changes).eval()
