"""Runs evaluated together: what they say is what each says by itself, and what they share is made once."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from vlmft.chat.encode import Encoder
from vlmft.errors import DataError
from vlmft.evaluation.folders import named, run_of
from vlmft.evaluation.runs import Together, in_turn, trained
from vlmft.identity import run_name
from vlmft.models import load
from vlmft.models.adapters import WEIGHTS
from vlmft.schema import Config, Task, read_config
from vlmft.status import Status
from vlmft.worker import train

pytestmark = pytest.mark.slow  # trains, starts processes, or opens a browser


Composed = Callable[..., Config]
Command = Callable[..., subprocess.CompletedProcess[str]]
MODEL = ("model=tiny_glm41v", "hardware=cpu")
SMALL = (*MODEL, "dataset=demo_ct", "dataset.max_rows=16", "method.trainer.max_steps=2", "method.batch_size=4",
         "method.trainer.learning_rate=1e-2", "method.trainer.warmup_steps=0", "eval=none")  # fmt: skip
TWO_SETS = ("~eval.sets.demo_path", "eval.max_rows=6", "eval.generation.max_new_tokens=8", "eval.protocols=[strict]")


def write(config: Config, run: Path) -> Path:
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    return run


@pytest.fixture(scope="module")
def outputs(composed: Composed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of LoRA, with seeds 0 and 1, one of every weight, and one of the model as it is."""
    folder = tmp_path_factory.mktemp("trained") / "outputs"
    for name, chosen in (("a", "seed=0"), ("full", "method=full"), ("b", "seed=1")):
        config = composed(*SMALL, chosen)
        run = write(config, folder / f"{name}-{run_name(config)}")
        train(config, run, Status(run))
    write(replace(composed(*MODEL), task=Task.eval), folder / "c-base")
    return folder


@pytest.fixture
def runs(outputs: Path, tmp_path: Path) -> list[Path]:
    """a, b, c, full: copies with nothing evaluated yet."""
    return sorted(Path(shutil.copytree(outputs, tmp_path / "outputs")).iterdir())


@pytest.fixture
def wanted(composed: Composed) -> Config:
    return composed("task=eval", *MODEL, "eval=demo", *TWO_SETS)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many models were loaded, and prompts encoded."""
    counts = {"models": 0, "prompts": 0}
    load_model, row = load.load_model, Encoder._row

    def loaded(*args: Any) -> Any:
        counts["models"] += 1
        return load_model(*args)

    def encoded(encoder: Encoder, question: Any, pieces: list[list[int]]) -> Any:
        counts["prompts"] += len(pieces) == 1
        return row(encoder, question, pieces)

    monkeypatch.setattr(load, "load_model", loaded)
    monkeypatch.setattr(Encoder, "_row", encoded)
    return counts


def evaluate(runs: list[Path], wanted: Config) -> None:
    together, configs = Together(), {run: read_config(run / "config.yaml") for run in runs}
    for run in in_turn(configs):
        together.evaluate(configs[run], run, wanted, Status(run))


def said(run: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in sorted(run.glob("predictions_*.jsonl"))}


def answers(run: Path) -> list[str]:
    return [json.loads(line)["raw"] for text in said(run).values() for line in text.splitlines()]


def test_together_as_each_by_itself(
    runs: list[Path], outputs: Path, wanted: Config, made: dict[str, int], tmp_path: Path
) -> None:
    evaluate([runs[0], runs[3], runs[1], runs[2]], wanted)
    together = dict(made)
    assert together["models"] == 2, "the base, and the run that trained every weight"
    for run in runs[:3]:
        alone = Path(shutil.copytree(outputs / run.name, tmp_path / "alone" / run.name))
        evaluate([alone], wanted)
        assert said(run) == said(alone) and set(said(run)) == {
            "predictions_demo_ct.jsonl",
            "predictions_demo_xray.jsonl",
        }
    assert made["models"] == 2 + 3
    assert made["prompts"] * 2 == together["prompts"] * 5, "two readers together: the base's, and that of the full run"
    assert len({tuple(answers(run)) for run in runs}) == 4, "and the four do not say the same"


def test_runs_on_one_base_follow_each_other(composed: Composed) -> None:
    one, other = composed(*SMALL), composed(*SMALL, "model=tiny_qwen3vl")
    small = replace(one, model=replace(one.model, max_pixels=3136))
    configs = {"a": one, "b": other, "c": small, "d": one, "e": composed(*SMALL, "model.dtype=float32")}
    order = in_turn({Path(name): config for name, config in configs.items()})
    assert [path.name for path in order] == ["a", "d", "c", "b", "e"]


def test_an_adapter_that_changes_nothing_is_refused_and_the_next_goes_on(runs: list[Path], wanted: Config) -> None:
    file = runs[0] / "final" / WEIGHTS[0]
    save_file({name: 0 * weight if "lora_A" in name else weight for name, weight in load_file(file).items()}, file)
    together = Together()
    with pytest.raises(DataError, match=rf"the adapter of {runs[0]} changes nothing: all its weights are zero, or"):
        together.evaluate(read_config(runs[0] / "config.yaml"), runs[0], wanted, Status(runs[0]))
    assert not said(runs[0])
    together.evaluate(read_config(runs[1] / "config.yaml"), runs[1], wanted, Status(runs[1]))
    assert len(said(runs[1])) == 2


# --- folders that no run made


@pytest.fixture
def adapter(runs: list[Path], tmp_path: Path) -> Path:
    """An adapter in a folder of its own."""
    return Path(shutil.copytree(runs[0] / "final", tmp_path / "found" / "mine"))


def changed(adapter: Path, **values: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_folders_are_named_by_their_content(adapter: Path, composed: Composed, tmp_path: Path) -> None:
    config = composed("task=eval", *MODEL, f"paths.outputs={tmp_path / 'outputs'}")
    run, made = run_of(adapter, config)
    assert run.parent == tmp_path / "outputs" and run.name.startswith("mine-eval-") and len(run.name) == 18
    assert (made.task, made.init_from, made.model.name) == (Task.eval, str(adapter), "mine")
    assert made.model.path == config.model.path and trained(made, run)[2] == adapter
    elsewhere = Path(shutil.copytree(adapter, tmp_path / "other" / "mine"))
    assert run_of(elsewhere, config)[0] == run
    assert run_of(adapter, composed("task=eval", *MODEL, "model.answer_style=plain"))[0].name != run.name
    write(made, run)
    assert run_of(run, config) == (run, read_config(run / "config.yaml"))
    changed(adapter, lora_alpha=1)
    assert run_of(adapter, config)[0] != run
    with pytest.raises(DataError, match=r"which is another now: name that one in runs=\[…\], and mine-eval-"):
        run_of(run, config)
    shutil.rmtree(adapter)
    with pytest.raises(DataError, match="which is not there any more"):
        run_of(run, config)


def test_a_model_folder_is_read_where_it_lies(runs: list[Path], composed: Composed) -> None:
    config = composed("task=eval", *MODEL)
    run, made = run_of(runs[3] / "final", config)
    assert run.name.startswith("final-eval-") and made.init_from is None
    assert (made.model.path, made.model.tiny) == (str(runs[3] / "final"), None)
    assert made.model.answer_style is config.model.answer_style


@pytest.mark.parametrize(
    ("values", "overrides", "message"),
    [
        ({}, (), r"mine is no run.*choose model=… as well"),
        ({}, ("model=tiny_qwen3vl",), r"mine is for a model of type glm4v, and model=tiny_qwen3vl is of type qwen3_vl"),
        ({"base_model_name_or_path": None}, MODEL, r"names no base_model_name_or_path; it should be the folder or"),
        (
            {"base_model_name_or_path": "no/where"},
            MODEL,
            r"base_model_name_or_path is no/where, which is no folder here",
        ),
        (
            {"base_model_name_or_path": "no/where", "revision": "abc"},
            (*MODEL, "model.path=no/where"),
            r"is no/where, which",
        ),
    ],
    ids=str,
)
def test_what_a_folder_lacks_is_said(
    values: dict[str, Any], overrides: tuple[str, ...], message: str, adapter: Path, composed: Composed
) -> None:
    for model in ("tiny_qwen3vl", "tiny_glm41v"):
        load.source(composed(f"model={model}").model)  # written, so that both are here
    changed(adapter, **values)
    with pytest.raises(DataError, match=message):
        run_of(adapter, composed("task=eval", *overrides))


def test_which_folders_are_meant(
    runs: list[Path], adapter: Path, composed: Composed, capsys: pytest.CaptureFixture[str]
) -> None:
    place = runs[0].parent
    (place / "notes").mkdir()
    (place / ".locks").mkdir()
    shutil.rmtree(runs[1] / "final")
    found = named(composed("task=eval", f"runs=[{adapter},{runs[3]}]", f"models_dir={place}"))
    assert found == [adapter, runs[3], runs[0], runs[2]], "each once, and of models_dir by name"
    left = capsys.readouterr().out
    assert left.count("left out") == 2 and str(runs[1]) in left and str(place / "notes") in left
    for wrong, message in ((f"models_dir={place / 'notes'}", "directly below .*notes there is no run directory"),
                           (f"runs=[{place / 'notes'}]", "runs: .*notes is no run directory"),
                           (f"init_from={place / 'notes'}", "init_from: .*notes is no run directory")):  # fmt: skip
        with pytest.raises(DataError, match=message):
            named(composed("task=eval", wrong))


@pytest.mark.slow
def test_by_command(command: Command, runs: list[Path], adapter: Path, tmp_path: Path) -> None:
    found = adapter.parent
    shutil.copytree(runs[3] / "final", found / "whole")
    what = ("task=eval", *MODEL, "eval=demo", *TWO_SETS)
    done = command(*what, f"models_dir={found}", f"runs=[{runs[0]}]")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sum(line.startswith("model     ") for line in done.stdout.splitlines()) == 2, (
        "the run and the adapter stand on one base"
    )
    (mine,) = (tmp_path / "outputs").glob("mine-eval-*")
    (whole,) = (tmp_path / "outputs").glob("whole-eval-*")
    assert answers(mine) == answers(runs[0]) != answers(whole)
    for run in (mine, whole):
        result = json.loads((run / "result.json").read_text())
        assert (result["state"], result["run"], result["train"]) == ("done", run.name, None)
        assert set(result["evaluations"]) == {"demo_ct", "demo_xray"}
        assert json.loads((run / "provenance.json").read_text())["datasets"].keys() == {"demo_ct", "demo_xray"}
    before = {run: (run / "status.json").read_text() for run in (mine, whole)}
    again = command(*what, f"models_dir={found}", f"init_from={adapter}", f"runs=[{whole}]")
    assert again.returncode == 0 and "model     " not in again.stdout
    assert {run: (run / "status.json").read_text() for run in before} == before, "nothing was done again"


@pytest.mark.parametrize(
    ("key", "said"), [("init_from", "somewhere is no run directory"), ("models_dir", "models_dir belongs to task=eval")]
)
def test_nothing_is_trained_from_a_folder(key: str, said: str, command: Command, tmp_path: Path) -> None:
    refused = command(*SMALL, f"{key}=somewhere")
    assert refused.returncode == 1 and said in refused.stderr
    assert not (tmp_path / "outputs").exists()
