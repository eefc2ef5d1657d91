"""envs/mujoco.py: the renderer of the robots' worlds."""

import os
import sys


def before_mujoco():
    """What has to happen before anybody imports mujoco."""
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")  # draws without a display
    import torch._dynamo  # noqa: F401  triton's LLVM crashes if it is loaded after the renderer's


def mujoco_renderer(model, height, width, fast=False):
    """A renderer of a model's cameras; fast: no shadows, reflections or smooth edges, a tenth of the time."""
    import mujoco

    try:
        if fast:
            model.vis.quality.offsamples = 0
        renderer = mujoco.Renderer(model, height, width)
    except mujoco.FatalError as error:
        raise ValueError(f"MuJoCo cannot draw: set MUJOCO_GL=egl before Python ({error})") from None
    for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION) if fast else ():
        renderer.scene.flags[flag] = False
    return renderer
