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
    if not gc.isenabled():  # the first job of a sweep, or the only one
        gc.freeze()
        gc.enable()
    run(cfg)


if __name__ == "__main__":
    # Looking for garbage in what is loaded and composed takes a third of a short start, and finds none.
    gc.disable()
    atexit.register(gc.freeze)
    told_plainly(main)
