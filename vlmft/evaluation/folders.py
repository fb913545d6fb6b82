"""What `runs`, `models_dir` and `init_from` name: run directories, and folders of adapters and models that no run made.

Such a folder is evaluated in a run directory of its own, which is named after it and its content.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vlmft.errors import DataError
from vlmft.fetch import model_folder
from vlmft.files import read_json
from vlmft.identity import digest, folder_fingerprint, model_facts
from vlmft.models import adapters
from vlmft.models.base import place
from vlmft.schema import Config, Model, Task, read_config

_NONE = (
    "no run directory with a trained model in final/, no adapter folder (adapter_config.json) "
    "and no model folder (config.json)"
)


def named(config: Config) -> list[Path]:
    """The folders to evaluate, each once; those of `models_dir` by name. Prints what is left out of that.

    Raises DataError where one cannot be evaluated, or where `models_dir` has none that can.
    """
    found = [Path(name).expanduser() for name in (*config.runs, *filter(None, [config.init_from]))]
    for folder in found:
        if not _usable(folder):
            raise DataError(f"{'runs' if config.runs else 'init_from'}: {folder} is {_NONE}")
    if config.models_dir:
        folder = Path(config.models_dir).expanduser()
        below = [path for path in sorted(folder.glob("*/")) if path.name[0] != "." and ".old-" not in path.name]
        if not any(map(_usable, below)):
            raise DataError(f"models_dir: directly below {folder} there is {_NONE}")
        for path in below:
            if _usable(path):
                found.append(path)
            else:
                print(f"left out  {path}: {_NONE}")
    return list({folder.resolve(): folder for folder in found}.values())


def run_of(folder: Path, config: Config) -> tuple[Path, Config]:
    """The run directory for the scores of `folder`, which may have to be made, and its config.

    Raises DataError where an adapter's base is not here, or where `model=…` is missing or of another family.
    """
    if _is_run(folder):
        return folder, _of_run(folder)
    if not config.model.name:
        raise DataError(
            f"{folder} is no run, so nothing says how it is asked: choose model=… as well, whose answer style and "
            "pixel limits it has"
        )
    folder = folder.resolve()
    adapter = adapters.is_adapter(folder)
    model = _base_of(folder, config.model) if adapter else _at(str(folder), None, config.model)
    family, chosen = _family(model), _family(config.model)
    if family and chosen and family != chosen:
        raise DataError(
            f"{folder} is {'for ' if adapter else ''}a model of type {family}, and model={config.model.name} is of "
            f"type {chosen}: choose a model=… of its own family"
        )
    decides = digest([folder_fingerprint(folder), model_facts(model), config.method.quantization])
    # In reports it has a name of its own, since its scores are not those of the model as it is.
    made = replace(
        config, task=Task.eval, model=replace(model, name=folder.name), init_from=str(folder) if adapter else None,
        runs=[], models_dir=None,
    )  # fmt: skip
    return Path(config.paths["outputs"]) / f"{folder.name}-eval-{decides}", made


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and (
        (folder / "final").is_dir() or read_config(folder / "config.yaml").task is Task.eval
    )


def _usable(folder: Path) -> bool:
    return _is_run(folder) or adapters.is_adapter(folder) or (folder / "config.json").is_file()


def _of_run(folder: Path) -> Config:
    """Its config. DataError where it is about an adapter that is gone, or is not what it was."""
    config = read_config(folder / "config.yaml")
    if config.task is Task.eval and config.init_from:
        adapter = Path(config.init_from)
        if not adapters.is_adapter(adapter):
            raise DataError(f"{folder} has the scores of the adapter {adapter}, which is not there any more")
        if (now := run_of(adapter, config)[0].name) != folder.name:
            raise DataError(
                f"{folder} has the scores of the adapter {adapter}, which is another now: name that one in runs=[…], "
                f"and {now} will have its scores"
            )
    return config


def _base_of(adapter: Path, chosen: Model) -> Model:
    """The model that an adapter was trained on, asked as `chosen` is. DataError where it is not here."""
    file, said = adapter / adapters.CONFIG, adapters.said(adapter)
    base, revision = said.get("base_model_name_or_path"), said.get("revision")
    if not base:
        raise DataError(
            f"{file} names no base_model_name_or_path; it should be the folder or the repository of the model that "
            "the adapter was trained on"
        )
    model = _at(base, revision, chosen)
    if place(model) in (place(chosen), (place(chosen)[0], None)):
        return chosen  # which may say a revision where the adapter does not
    if model_folder(model) is None:
        raise DataError(
            f"{file}: base_model_name_or_path is {base}, which is no folder here, and no repository in the Hugging "
            "Face cache. Fetch it (python train.py task=fetch model=… model.path=REPOSITORY), or write there where "
            "the adapter's base lies"
        )
    return model


def _at(path: str, revision: str | None, chosen: Model) -> Model:
    return replace(chosen, path=path, revision=revision, tiny=None)


def _family(model: Model) -> str | None:
    """The `model_type` of a checkpoint; None where it is not here."""
    folder = model_folder(model) if model.path else None
    return (read_json(folder / "config.json") or {}).get("model_type") if folder else None
