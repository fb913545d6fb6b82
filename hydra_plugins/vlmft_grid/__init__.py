"""Hydra's basic sweeper, with a plan before the first job and a report after the last one, whatever happened to them.

Hydra composes a job's config when it starts, and calls nothing at the end of a sweep in which a job failed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import open_dict


@dataclass
class GridConf(BasicSweeperConf):
    _target_: str = "hydra_plugins.vlmft_grid.Grid"


ConfigStore.instance().store(group="hydra/sweeper", name="vlmft_grid", node=GridConf, provider="vlmft")


class Grid(BasicSweeper):
    """Every combination of the axes; `multirun_reports/<sweep>/` says what was planned and what came of it."""

    def sweep(self, arguments: list[str]) -> Any:
        from vlmft import sweep

        assert self.config is not None and self.hydra_context is not None
        loader = self.hydra_context.config_loader
        overrides = OverridesParser.create(config_loader=loader).parse_overrides([*self._parse_config(), *arguments])
        chosen = {
            override.get_key_element(): list(override.sweep_string_iterator())
            if override.is_discrete_sweep()
            else [override.get_value_element_as_str()]
            for override in overrides
        }
        axes = {key: values for key, values in chosen.items() if len(values) > 1}
        sweep.refuse_fixed_axes(axes)
        if self.config.get("task") not in sweep.LEAVES_RUNS:
            try:
                return super().sweep(arguments)
            finally:  # Hydra's record of a sweep whose folder this would be
                Path(self.config.hydra.sweep.dir, "multirun.yaml").unlink(missing_ok=True)
        experiment = self.config.hydra.runtime.choices.get("experiment")
        folder = sweep.folder_of(self.config.get("sweep") or "", experiment, chosen)
        with open_dict(self.config):
            self.config.hydra.sweep.dir = str(folder)
            self.config.hydra.overrides.hydra.append(f"hydra.sweep.dir={folder}")
        (batch,) = self.split_arguments(overrides, None)
        sweep.write_plan(folder, axes, [(job, loader.load_sweep_config(self.config, job)) for job in batch])
        try:
            return super().sweep(arguments)
        finally:
            sweep.report(folder)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Every job was composed and checked for the plan."""
