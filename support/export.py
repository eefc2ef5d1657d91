"""support/export.py: write models to hand out: one file in half precision, or the authors' layout."""

from pathlib import Path

import official
from common import save_checkpoint
from support.files import claim


def claim_exports(cfg):
    """Check that cfg.export and cfg.export_official can be written, before the model is loaded."""
    if cfg.export:
        cfg.export = claim(cfg.export, overwrite=cfg.overwrite, name="export")
    for part in official.FILES if cfg.export_official else ():
        file = Path(cfg.export_official) / part / "config.json"
        claim(file, overwrite=cfg.overwrite, name="export_official")


def export(world, path, data=""):
    """Write a checkpoint to hand out, in half precision, which samples as `world` does now.

    data  what to show with it by default"""
    models = dict(gpt=world.gpt.checkpoint(), tokenizer=world.tokenizer.checkpoint())
    for model in models.values():
        for key, weight in model["weights"].items():
            if weight.is_floating_point():
                model["weights"][key] = weight.half()
    trained = dict(world.trained, temperature=world.temperature, top_k=world.top_k)
    trained["data"] = data or trained["data"]
    save_checkpoint(path, **models, step=0, train_config=trained)
    print(f"{path}: {Path(path).stat().st_size / 1e6:.1f} MB")


def export_official(world, folder):
    """Write both models in the layout of the authors' code."""
    official.export(folder, world.tokenizer, world.gpt)
    print(f"{folder}: tokenizer/ and transformer/ in the authors' layout")
