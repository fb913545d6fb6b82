"""python train.py model=glm41v dataset=slake        python train.py --help shows every group and option"""

import gc

import hydra
from omegaconf import DictConfig

import vlmft.schema  # noqa: F401  registers the schema that conf/config.yaml begins with
from vlmft.errors import told_plainly
from vlmft.run import run


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    gc.enable()
    run(cfg)


if __name__ == "__main__":
    gc.disable()  # until the config is there: it is kept whole, and looking for garbage in it takes time
    told_plainly(main)
