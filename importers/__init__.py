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
    jpeg        quality at which frames are stored as JPEG, say 95 for 256x256; 0: as bytes
    raises      FileNotFoundError without files, ImportError without the format's package, ValueError if no
                episode is usable: then nothing is written"""

IMPORTERS = {}  # name: the function, its settings {name: default}
for importer in (import_npz, import_video, import_vp2, import_bair, import_robonet, import_rlds,
                 import_lerobot, import_sthsth):
    importer.__doc__ += SHARED_SETTINGS
    settings = inspect.signature(importer).parameters.values()
    defaults = {setting.name: setting.default for setting in settings}
    IMPORTERS[importer.__name__.removeprefix("import_")] = (importer, defaults)
