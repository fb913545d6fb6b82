"""A run, seen from the parent: find or make its directory, start the worker, tell how it ended. No torch here."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vlmft import nodes, plan, start, status, sweep
from vlmft.check import preflight
from vlmft.config_check import check, require
from vlmft.data.load import fingerprint, source
from vlmft.data.mixture import training_sets
from vlmft.errors import ConfigError, DataError, RunFailed, fail
from vlmft.evaluation import judge, results
from vlmft.evaluation.evaluate import chosen_sets, wanted
from vlmft.evaluation.folders import named, run_of
from vlmft.evaluation.predictions import predictions_file, read_predictions
from vlmft.evaluation.table import print_matches, print_table
from vlmft.fetch import look_through, make_ready, model_folder
from vlmft.files import write_text
from vlmft.identity import evaluated_name, run_name
from vlmft.lock import Locked, RunLock
from vlmft.provenance import record_attempt
from vlmft.schema import Backend, Config, Device, Eval, Task
from vlmft.training import init_from

SHOWN_MATCHES = 5  # of each set, with eval.debug_matches=true


def run(cfg: DictConfig) -> None:
    """Do what the composed config asks for. What is wrong is told on stderr, and by the exit code of the command."""
    try:
        config = check(sweep.as_launched(cfg))
        if nodes.started_by_torchrun():
            if os.environ.get("LOCAL_RANK", "0") != "0":
                return  # the first process of a machine starts what there is to start
            config.hardware = nodes.as_torchrun_says(config.hardware)
        meeting = nodes.here(config)
        if meeting and not meeting.leads:
            start.follow(config, meeting)
            return
        with start.on(meeting):
            _do(config)
    except (ConfigError, DataError, RunFailed) as error:
        fail(error)


def _do(config: Config) -> None:
    if config.samples:
        place = Path(config.paths["cache"]) / "samples"
        print(f"samples   small drawn sets stand in for the published ones: {place}", flush=True)
    if (job := sweep.this_job()) and config.tracking.group is None:
        config.tracking.group = job[0].name  # the worker knows of no sweep
    if config.task is Task.fetch:
        _fetch(config)
    elif config.task is Task.plan:
        for stage in init_from.stages(config).values():
            plan.start(stage)
    elif config.task is Task.check:
        for stage in init_from.stages(config).values():
            _check(stage)
    elif config.task is Task.eval and (config.runs or config.models_dir or config.init_from):
        _evaluate_runs(config)
    elif config.models_dir:
        raise ConfigError("models_dir belongs to task=eval; training starts from one of its folders: init_from=…")
    elif config.task is Task.dry_run:
        for stage in init_from.stages(config).values():
            _dry_run(stage)
    else:
        _in_stages(config)


def _in_stages(config: Config) -> None:
    """The run that the config names; with stages one for each, which starts from the weights of the one before."""
    folders: list[Path] = []
    stages = init_from.stages(config)
    for number, (name, stage) in enumerate(stages.items(), 1):
        require(stage, *(["model"] if config.task is Task.eval else ["model", "dataset", "method"]))
        if name:
            print(f"stage     {number} of {len(stages)}: {name}", flush=True)
        if folders and config.task is Task.train:
            stage = replace(stage, init_from=str(folders[-1]))
        try:
            folders.append(_one_run(stage, name))
            if config.eval.baseline and config.task is Task.train:
                _baseline(stage)
        finally:
            sweep.report_of_this_job()
    if len(set(folders)) > 1 and not sweep.this_job():
        print(f"together  vlmft report {' '.join(map(str, folders))}")


def _servers(config: Config) -> dict[str, Any] | None:
    """What the server that answers says of itself, None where the model is loaded here; DataError where one is away."""
    answers = None
    if config.eval.backend is Backend.server or config.eval.judge.url:
        from vlmft.evaluation import server  # a client of its own, which nothing else loads

        if config.eval.backend is Backend.server:
            answers = server.look(server.answering(config.eval))
        if (judging := server.judging(config.eval)) and config.task is Task.eval:
            server.look(judging)  # after training it may be another day
    return answers


def _baseline(config: Config) -> None:
    """The scores of the model as it is, on the same sets; another job of a sweep may be at them already."""
    try:
        _one_run(replace(config, task=Task.eval, init_from=None, force=False))
    except RunFailed as failed:
        if not isinstance(failed.__cause__, Locked):
            raise
        print(f"{failed}; it will have the scores of the model as it is")


def _fetch(config: Config) -> None:
    """Bring the chosen model and sets here, and look them through."""
    model = config.model if config.model.name else None
    datasets = [stage.dataset for stage in init_from.stages(config).values()]
    sets = {name: spec for dataset in datasets for name, spec in training_sets(dataset).items()}
    sets |= chosen_sets(config.eval, config.dataset)
    if not model and not sets:
        raise ConfigError("task=fetch: nothing is chosen; name a model=… or a dataset=… (or both, or eval=…)")
    make_ready(model, [(spec, split) for spec in sets.values() for split in source(spec).splits(spec)], again=True)
    look_through(model, sets.values())


def _dry_run(config: Config) -> None:
    """Try the run for five steps, in a folder that goes again whatever happens."""
    require(config, "model", "dataset", "method")
    sets = [(spec, "train") for spec in training_sets(config.dataset).values()]
    sets += [(spec, "test") for spec in chosen_sets(config.eval, config.dataset).values()]
    make_ready(init_from.base(config), sets)
    with tempfile.TemporaryDirectory(prefix="vlmft-dry-run-") as scratch:
        folder = Path(scratch)
        write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(config)))
        try:
            start.work([folder], ["-m", "vlmft.dry_run", scratch], config)
        except RunFailed as failed:
            error = status.read(folder).get("error")
            raise RunFailed(f"failed    dry run: {error or failed}") from failed  # its log goes with the folder


def _check(config: Config) -> None:
    """Look at every row of the chosen sets as the chosen model would read it."""
    require(config, "model")
    sets = [(spec, "test") for spec in chosen_sets(config.eval, config.dataset).values()]
    sets += [(spec, "train") for spec in training_sets(config.dataset).values()]
    if not sets:
        raise ConfigError("task=check: nothing is chosen; name a dataset=… (or eval=…)")
    with suppress(DataError):  # what is still missing is one of the findings
        make_ready(None, sets)
    preflight.check(config)


def _one_run(config: Config, stage: str = "") -> Path:
    """Skip, resume or begin the run that the config names, and return its folder; `stage` is its name among others."""
    served = config.eval.backend is Backend.server
    origin, model = init_from.start(config), None if served else init_from.base(config)
    sets = chosen_sets(config.eval, config.dataset)
    if config.task is Task.eval and not sets:
        raise ConfigError("task=eval: no set to evaluate on; choose eval=… or a dataset whose test split to use")

    def identified() -> tuple[Path, dict[str, str]]:
        # What is trained plays no part in the scores of a model as it is; the sets may come from `dataset`.
        name = evaluated_name(config) if config.task is Task.eval else run_name(config)
        return Path(config.paths["outputs"]) / name, wanted(name, sets, config.eval)

    try:
        folder, hashes = identified()
    except DataError:
        train = training_sets(config.dataset) if config.task is Task.train else {}
        needed = [(spec, "train") for spec in train.values()] + [(spec, config.eval.split) for spec in sets.values()]
        make_ready(model, needed)  # or say everything that is missing
        folder, hashes = identified()
    if config.task is Task.train:
        sweep.found(folder, config, stage)
    if not folder.is_dir():
        make_ready(model, [])  # before anything is made
    with _locked(folder) as lock:
        if config.force and folder.exists():
            aside = folder.with_name(f"{folder.name}.old-{time.strftime('%Y%m%d-%H%M%S')}")
            folder.rename(aside)
            print(f"force     the run there was is now {aside}")
        trained = config.task is Task.eval or (folder / "final").is_dir()
        generate, rescore = results.pending(folder, hashes, config.eval.protocols)
        if not (trained and not generate and results.read(folder)["state"] == "done"):
            make_ready(model, [])  # a run that is done did not need it until now
            answers = _servers(config)
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(config)))
            place = model_folder(model) if model else None
            record_attempt(folder, _fingerprints(config), place, origin.as_dict() if origin else None, answers)
            print(f"run       {folder}", flush=True)
            if config.check and not trained:
                _looked_at(config, folder)
            start.work([folder], ["-m", "vlmft.worker", str(folder)], _without_gpu(config) if served else config, lock)
            _judge(folder, hashes, config.eval)
        else:
            _rescore(folder, rescore, hashes, config.eval.protocols)
            if not _judge(folder, hashes, config.eval) and not rescore:
                print(f"done      {folder} (nothing to do; force=true begins again)")
                if sweep.this_job():
                    return folder  # its scores are in the sweep's report
    _report([folder], config.eval)
    return folder


def _looked_at(config: Config, folder: Path) -> None:
    """Look at rows and pictures before the worker starts; what is wrong is the run's error, which its report shows."""
    try:
        preflight.before_training(config)
    except DataError as error:
        status.correct(folder, "failed", str(error))
        results.update(folder, state="failed")
        raise


def _evaluate_runs(config: Config) -> None:
    """Evaluate what exists already in one worker; sets whose predictions are there already are only scored."""
    if config.force:
        raise ConfigError("force=true does not go with runs=[…]: delete or move what is to be made again")
    runs = dict({of[0].resolve(): of for of in (run_of(folder, config) for folder in named(config))}.values())
    todo = {}
    with ExitStack() as stack:
        locks = [stack.enter_context(_locked(folder)) for folder in runs]
        for folder, of_run in runs.items():
            sets = chosen_sets(config.eval, of_run.dataset)
            if not sets:
                raise ConfigError("task=eval: no set to evaluate on; choose eval=…")
            make_ready(None, [(spec, config.eval.split) for spec in sets.values()])
            hashes = wanted(folder.name, sets, config.eval)
            generate, rescore = results.pending(folder, hashes, config.eval.protocols)
            _rescore(folder, rescore, hashes, config.eval.protocols)
            if generate and of_run.eval.backend is Backend.server:
                raise ConfigError(
                    f"{folder} has what a server answered, and no weights: to have more answered, say task=eval "
                    f"eval.backend=server eval.url=… eval.served_model={of_run.eval.served_model}"
                )
            if generate:
                whole = (folder / "final" / "config.json").is_file()
                make_ready(None if whole else of_run.model, [])
                todo[folder] = of_run
        for folder, of_run in todo.items():
            if (folder / "final").is_dir():
                record_attempt(folder, {}, None)
                continue
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(of_run)))
            record_attempt(folder, _fingerprints(of_run), model_folder(of_run.model))
        if todo:
            with tempfile.TemporaryDirectory(prefix="vlmft-") as scratch:
                request = Path(scratch) / "config.yaml"
                request.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)), encoding="utf-8")
                command = ["-m", "vlmft.worker", "--evaluation", str(request), *map(str, todo)]
                start.work(list(todo), command, config, *locks)
        for folder, of_run in runs.items():
            _judge(folder, wanted(folder.name, chosen_sets(config.eval, of_run.dataset), config.eval), config.eval)
    _report(list(runs), config.eval)
    if len(runs) > 1:
        print(f"together  vlmft report {' '.join(map(str, runs))}")


def _rescore(folder: Path, names: Sequence[str], hashes: dict[str, str], protocols: list[str]) -> None:
    for name in names:
        results.score_set(folder, name, protocols, hashes[name])
        print(f"rescored  {folder}: {name}")


def _judge(folder: Path, names: Iterable[str], wanted: Eval) -> bool:
    """Have `eval.judge` look at the answers on whole sets; whether it had anything to say that is new."""
    asked = [name for name in names if "." not in name and judge.judge_set(folder, name, wanted)]
    for name in asked:
        results.judged(folder, name)
    return bool(asked)


def _without_gpu(config: Config) -> Config:
    return replace(config, hardware=replace(config.hardware, device=Device.cpu, processes=1))


@contextmanager
def _locked(folder: Path) -> Iterator[RunLock]:
    try:
        with RunLock(folder.parent, folder.name) as lock:
            yield lock
    except Locked as held:
        raise RunFailed(f"locked    {folder}: {held}") from held


def _fingerprints(config: Config) -> dict[str, str]:
    split = config.eval.split
    sets = chosen_sets(config.eval, config.dataset)
    found = {name if split == Eval.split else f"{name} {split}": fingerprint(sets[name], split) for name in sets}
    if config.task is Task.train:
        found |= {f"{name} train": fingerprint(spec, "train") for name, spec in training_sets(config.dataset).items()}
    return found


def _report(folders: Sequence[Path], wanted: Eval) -> None:
    for folder in folders:
        result = results.read(folder)
        print_table(result)
        count = SHOWN_MATCHES if wanted.debug_matches is True else wanted.debug_matches
        for name in result["evaluations"] if count else []:
            print_matches(name, read_predictions(predictions_file(folder, name))[:count], wanted.protocols[0])
        written = [str(folder / name) for name in ("result.json", "train.log") if (folder / name).is_file()]
        print(f"written   {os.linesep.join(written) if len(written) == 1 else ', '.join(written)}")
