"""python train.py model=glm41v dataset=slake        python train.py --help shows every group and option"""

import atexit
import gc

import hydra
from omegaconf import DictConfig

import vlmft.schema  # noqa: F401  registers the schema that conf/config.yaml begins with
from vlmft.errors import told_plainly
from vlmft.run import run


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    run(cfg)


if __name__ == "__main__":
    # Looking for garbage at every 700 objects, and in all of them at the end, is a quarter of a short start.
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
    told_plainly(main)
