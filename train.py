"""python train.py model=glm41v dataset=slake        python train.py --help shows every group and option"""

import hydra
from omegaconf import DictConfig

import vlmft.schema  # noqa: F401  registers the schema that conf/config.yaml begins with
from vlmft.errors import told_plainly
from vlmft.run import run


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    run(cfg)


if __name__ == "__main__":
    told_plainly(main)
