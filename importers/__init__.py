"""importers: episodes in other people's formats -> folders that data.py reads. TensorFlow is not needed.

    recording.py <-- engine.py <-- video.py <-- hdf5.py, lerobot.py;  engine.py <-- tfrecord.py

Run: python prepare.py video --src FOLDER --out data/mine --size 64    and the other names of IMPORTERS"""

import inspect

from importers.hdf5 import import_robonet, import_vp2
from importers.lerobot import import_lerobot
from importers.tfrecord import import_bair, import_rlds
from importers.video import import_npz, import_sthsth, import_video, load_episode

__all__ = ["IMPORTERS", "load_episode"]

SHARED_SETTINGS = """

    Settings of all or most importers:
    src         the folder to import, with its subfolders;  out  the folder to write
    size        pixels per side, after a crop to the centre square; 0: unchanged
    min_frames  shorter episodes are skipped
    val_every   episodes whose number is a multiple of it are for validation
    exclude     file with an episode's number or name in each line, which are left out
    workers     processes; 0: one for each core that torch may use
    jpeg        quality at which frames are stored as JPEG, say 95 for 256x256; 0: as bytes"""


def _describe(function):
    """A function and its settings {name: default}, from its signature; the shared ones join its docstring."""
    function.__doc__ += SHARED_SETTINGS
    parameters = inspect.signature(function).parameters.values()
    return function, {parameter.name: parameter.default for parameter in parameters}


IMPORTERS = {
    "npz": _describe(import_npz),
    "video": _describe(import_video),
    "vp2": _describe(import_vp2),
    "bair": _describe(import_bair),
    "robonet": _describe(import_robonet),
    "rlds": _describe(import_rlds),
    "lerobot": _describe(import_lerobot),
    "sthsth": _describe(import_sthsth),
}
