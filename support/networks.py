"""support/networks.py: trained networks that judge pictures: LPIPS' VGG-16, FVD's I3D, classifiers."""

import hashlib
import warnings
from pathlib import Path

import torch

from support.files import require_content

VGG = "vgg16-397923af.pth"  # torchvision's name, which ends in the file's SHA-256


def perceptual_loss(device):
    """LPIPS with VGG-16, frozen, of frames in [-1, 1] (Zhang et al. 2018).

    raises  FileNotFoundError where its weights can neither be found nor downloaded; ValueError if they are
            others"""
    place = Path(torch.hub.get_dir()) / "checkpoints" / VGG
    try:
        import lpips

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision's, of the way that lpips asks for weights
            network = lpips.LPIPS(net="vgg", verbose=False).requires_grad_(False).eval().to(device)
    except OSError as error:
        fix = f"put torchvision's {VGG} at {place}, or do without: --lpips false"
        raise FileNotFoundError(f"no VGG-16 weights for LPIPS: download failed ({error}); {fix}") from None
    found = hashlib.sha256(place.read_bytes()).hexdigest()  # torch checks only what it downloads itself
    if not found.startswith(Path(VGG).stem.split("-")[1]):
        raise ValueError(f"{place} is not torchvision's file (SHA-256 {found[:8]}...); delete it")
    return network


def load_torchscript(path, device, expected):
    """A network from a TorchScript file.   raises  FileNotFoundError, ValueError saying what is expected"""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}; expected {expected}")
    require_content(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that TorchScript is old
            return torch.jit.load(path, map_location=device).eval()
    except RuntimeError:
        raise ValueError(f"{path} is no TorchScript; expected {expected}") from None
