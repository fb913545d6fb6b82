"""Training that starts from weights of before: `init_from=` a run, an adapter's folder or a model's, and stages.

An adapter of the same LoraConfig is trained on. Any other one is merged into its base first, unquantised; a whole model
takes the place of the base. LoRA that stands on such a base is merged into it at the end, as an adapter without its
base could not be loaded: whoever reads `final/` needs nothing else.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlmft.data import leakage
from vlmft.errors import DataError
from vlmft.evaluation.evaluate import TRAINED_ON
from vlmft.fetch import model_folder
from vlmft.files import read_json
from vlmft.identity import model_facts, weights_fingerprint, weights_folder
from vlmft.models import adapters
from vlmft.models.base import place
from vlmft.schema import Config, Model, read_config

logger = logging.getLogger(__name__)

# Of a LoraConfig, what does not say which weights there are, nor what they mean.
_APART = ("auto_mapping", "base_model_name_or_path", "inference_mode", "lora_dropout", "peft_version", "revision",
          "runtime_config", "task_type")  # fmt: skip


@dataclass(frozen=True)
class Start:
    """Where training starts: a folder of weights, whether they are an adapter's, and the run that made them, if any."""

    folder: Path
    adapter: bool
    run: Path | None

    def as_dict(self) -> dict[str, Any]:
        """For the provenance of the run that starts from here."""
        return {
            "folder": str(self.folder),
            "run": self.run and self.run.resolve().name,
            "fingerprint": weights_fingerprint(self.folder),
        }


def start(config: Config) -> Start | None:
    """What `init_from` names; None where training starts from the model as it is.

    Raises DataError where it cannot be trained on: it is not there or not done, another model's, or of a run that asks
    its questions in another way than the config does.
    """
    if not config.init_from:
        return None
    folder = weights_folder(config.init_from)
    found = Start(folder, adapters.is_adapter(folder), _run_of(folder))
    if found.run:
        _refuse_other_run(found.run, config.model)
    elif found.adapter:
        _refuse_other_base(folder, config.model)
    else:
        _refuse_other_family(folder, config.model)
    return found


def base(config: Config) -> Model:
    """The checkpoint that the run loads: the whole model that `init_from` names, else `model`. DataError as `start`."""
    found = start(config)
    if found is None or found.adapter:
        return config.model
    return replace(config.model, path=str(found.folder), tiny=None, revision=None)


def with_earlier_rows(config: Config, own: Sequence[leakage.Entry]) -> list[leakage.Entry]:
    """What the weights will have been trained on: `own` of this run, after what the run it starts from had seen."""
    found = start(config)
    earlier = leakage.read(found.run / TRAINED_ON) if found and found.run else None
    if found and earlier is None:
        logger.info("leakage   what %s was trained on is not known: it is not looked for", found.folder)
    return list({repr(entry): entry for entry in [*(earlier or []), *own]}.values())


def stages(config: Config) -> dict[str, Config]:
    """The run of each stage by name, in order; of a config without stages itself, under ""."""
    named = {name: replace(config, dataset=dataset, stages={}) for name, dataset in config.stages.items()}
    return named or {"": config}


def load(config: Config, dtype: str, scratch: Path) -> Any:
    """The model that training begins with, in `dtype`, before any LoRA of its own is put around it.

    Raises DataError as `start`, and where weights are missing or do not fit.
    """
    from vlmft.models.load import load_model

    found, quantization = start(config), config.method.quantization
    if found is None or not found.adapter or adapter_to_go_on(config):
        if found:
            logger.info("start     from %s", found.folder)
        return load_model(base(config), dtype, quantization)
    logger.info("start     from %s, merged into its base", found.folder)
    merged = _merged(load_model(config.model, dtype), found.folder)
    if not quantization:
        return merged
    with tempfile.TemporaryDirectory(prefix=".base-", dir=scratch) as folder:
        merged.save_pretrained(folder)
        del merged
        return load_model(replace(config.model, path=folder, tiny=None, revision=None), dtype, quantization)


def adapter_to_go_on(config: Config) -> Path | None:
    """The folder of the adapter that the run's LoRA takes its first weights from; None where it begins anew."""
    from peft import PeftConfig

    found = start(config)
    if found is None or not found.adapter or config.method.peft is None:
        return None
    wanted = adapters.lora_config(config.method, config.model)
    before = PeftConfig.from_pretrained(str(found.folder))
    if _deciding(before) != _deciding(wanted):
        wanted = _with_its_modules(wanted, config.model)
    return found.folder if _deciding(before) == _deciding(wanted) else None


def on_another_base(config: Config) -> bool:
    """Whether the run's LoRA stands on other weights than those of `model`, so that it has to be merged at the end."""
    return config.method.peft is not None and start(config) is not None and adapter_to_go_on(config) is None


def whole(config: Config, trained: Any, dtype: str, scratch: Path, weights: dict[str, Any] | None = None) -> Any:
    """The base that LoRA was trained on with `trained` merged into it, unquantised; `weights` are its own where it has
    but a part of them."""
    if not config.method.quantization and weights is None:
        return trained.merge_and_unload(safe_merge=True)
    with tempfile.TemporaryDirectory(prefix=".adapter-", dir=scratch) as folder:
        trained.save_pretrained(folder, state_dict=weights)
        unquantised = replace(config, method=replace(config.method, quantization=None))
        return _merged(load(unquantised, dtype, scratch), Path(folder))


def _merged(model: Any, adapter: Path) -> Any:
    merged = adapters.load_adapter(model, adapter).merge_and_unload(safe_merge=True)
    return merged.requires_grad_(True)  # PEFT had stopped the gradients


def _run_of(folder: Path) -> Path | None:
    """The run that a folder is `final/` or a checkpoint of."""
    return folder.parent if (folder.parent / "config.yaml").is_file() else None


def _refuse_other_run(run: Path, model: Model) -> None:
    """Resolution, answer style and base model belong to a run, and to what is trained from it."""
    before = read_config(run / "config.yaml").model
    for key in ("answer_style", "min_pixels", "max_pixels"):
        then, now = (getattr(value, "value", value) for value in (getattr(before, key), getattr(model, key)))
        if then != now:
            said = [str("null" if value is None else value) for value in (then, now)]
            raise DataError(
                f"init_from: {run} was trained with model.{key}={said[0]}, and here it is {said[1]}: its weights know "
                f"questions and answers as they were. Set model.{key}={said[0]}, or start from another run"
            )
    if (before.path, before.revision) == (model.path, model.revision):
        return
    if model_facts(before)["weights"] != model_facts(model)["weights"]:
        raise DataError(
            f"init_from: {run} was trained from {_named(before)}, and model={model.name} is {_named(model)}: choose "
            "the model that it was trained from"
        )


def _refuse_other_base(adapter: Path, model: Model) -> None:
    """Nothing but its own file says what an adapter that no run made was trained on."""
    said = adapters.said(adapter)
    trained = replace(model, path=said.get("base_model_name_or_path") or "", revision=said.get("revision"))
    if place(trained) not in (place(model), (place(model)[0], None)):
        raise DataError(
            f"init_from: {adapter} was trained on {_named(trained)}, and model={model.name} is {_named(model)}: set "
            "model.path to the adapter's base, or write into its base_model_name_or_path where that lies now"
        )


def _refuse_other_family(folder: Path, model: Model) -> None:
    there = model_folder(model)
    types = [(read_json(place / "config.json") or {}).get("model_type") for place in (folder, there or folder)]
    if types[0] != types[1]:
        raise DataError(
            f"init_from: {folder} is a model of type {types[0]}, and model={model.name} is of type {types[1]}: choose "
            "a model=… of its own family"
        )


def _named(model: Model) -> str:
    return f"{model.path or 'no model that it names'}{f' at {model.revision}' if model.revision else ''}"


def _deciding(lora: Any) -> dict[str, Any]:
    return {key: value for key, value in lora.to_dict().items() if key not in _APART}


def _with_its_modules(lora: Any, model: Model) -> Any:
    """The LoraConfig as PEFT saves it: "all-linear" and long lists of modules are turned into others."""
    import torch
    from peft import get_peft_model

    from vlmft.models.load import auto_class, load_config

    config = load_config(model)
    with torch.device("meta"):
        built = get_peft_model(auto_class(config).from_config(config), lora)
    return built.peft_config["default"]
