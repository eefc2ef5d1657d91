"""envs/mujoco.py: what the robots' worlds share: importing their simulators, and MuJoCo's renderer."""

import contextlib
import os
import sys


@contextlib.contextmanager
def optional_import(name, packages):
    """Import a simulator inside this context: prepares MuJoCo, and names the missing packages.

    raises  ImportError with the pip line"""
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")  # draws without a display; mujoco reads it when imported
    import torch._dynamo  # noqa: F401  loads Triton's LLVM, which crashes if the renderer's LLVM came first
    try:
        yield
    except (ImportError, AttributeError) as error:  # PyOpenGL raises the latter where a library is missing
        need = f"pip install {packages}; Debian: apt install libegl1 libgl1"
        raise ImportError(f"{name} needs {need} ({error})") from None


def mujoco_renderer(model, height, width, fast=False):
    """A mujoco.Renderer of a model's cameras; fast: no shadows, reflections or smooth edges, a tenth of the time.

    raises  ValueError if MuJoCo cannot draw here"""
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
