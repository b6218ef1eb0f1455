"""Trains the network in `tests/fixtures/scenes_encnet`.

    python -m tests.make_scenes_model

`configs/scenes.py` at half the width: 2 minutes on two CPU cores, mean IoU 72.
"""

import tempfile
from pathlib import Path

from configs.scenes import get_config
from encnet_jax import Segmenter
from encnet_jax.train.trainer import train

FOLDER = Path(__file__).parent / "fixtures" / "scenes_encnet"


def main():
    """Trains the network and writes its model folder."""
    config = get_config()
    config.model.width = 8
    config.model.head_channels = 32
    config.model.num_codes = 16
    with tempfile.TemporaryDirectory() as parent:
        workdir = Path(parent) / "scenes_encnet"
        train(config, workdir)
        Segmenter.from_workdir(workdir).save_pretrained(FOLDER, license="apache-2.0")


if __name__ == "__main__":
    main()
