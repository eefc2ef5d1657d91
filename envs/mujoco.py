"""envs/mujoco.py: what the robots' worlds share: importing their simulators, and MuJoCo's renderer."""

import contextlib
import os
import sys


@contextlib.contextmanager
def optional_import(name, packages):
    """Import a simulator in this context; raises ImportError with the pip line where a package is missing."""
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")  # draws without a display
    import torch._dynamo  # noqa: F401  Triton's LLVM crashes if it is loaded after the renderer's

    try:
        yield
    except (ImportError, AttributeError) as error:  # the latter is PyOpenGL's, where a library is missing
        need = f"pip install {packages}; Debian: apt install libegl1 libgl1"
        raise ImportError(f"{name} needs {need} ({error})") from None


def mujoco_renderer(model, height, width, fast=False):
    """A renderer of a model's cameras; fast: no shadows, reflections or smooth edges, a tenth of the time.

    raises  ValueError where MuJoCo cannot draw"""
    import mujoco

    if fast:
        model.vis.quality.offsamples = 0
    try:
        renderer = mujoco.Renderer(model, height, width)
    except mujoco.FatalError as error:
        raise ValueError(f"MuJoCo cannot draw: set MUJOCO_GL=egl before Python ({error})") from None
    if fast:
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
    return renderer
