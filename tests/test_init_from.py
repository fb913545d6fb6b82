"""Training from weights of before: what it starts with, what it ends in, what is refused; and stages."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from vlmft import sweep
from vlmft.data import leakage
from vlmft.data.samples.flare25 import write_flare25
from vlmft.errors import ConfigError, DataError
from vlmft.evaluation.evaluate import TRAINED_ON
from vlmft.evaluation.runs import Together
from vlmft.files import write_json
from vlmft.identity import run_name, weights_fingerprint
from vlmft.models.load import load_model
from vlmft.schema import Config
from vlmft.status import Status
from vlmft.training import checkpoints, init_from
from vlmft.worker import train

Composed = Callable[..., Config]
Command = Callable[..., subprocess.CompletedProcess[str]]
SHORT = ("model=tiny_glm41v", "hardware=cpu", "method.trainer.max_steps=2", "method.batch_size=4",
         "method.trainer.warmup_steps=0", "eval.generation.max_new_tokens=8")  # fmt: skip
SMALL = (*SHORT, "dataset=demo_ct", "dataset.max_rows=16", "method.trainer.learning_rate=1e-2", "eval=none")
# So little that the weights stay as they were when training began.
STILL = (*SMALL, "method.trainer.learning_rate=1e-30", "method.trainer.max_steps=1", "method.trainer.weight_decay=0")


def write(config: Config, run: Path) -> Path:
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    return run


def adapter(folder: Path, base: str, **settings: Any) -> Path:
    """A folder that looks like an adapter's."""
    folder.mkdir(parents=True)
    write_json(folder / "adapter_config.json", {"r": 8, "base_model_name_or_path": base} | settings)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


# --- what is refused, and how a run is named: nothing is loaded


@pytest.fixture
def run(composed: Composed, tmp_path: Path) -> Path:
    """A run whose training is done, as far as anyone can see who does not load it."""
    config = composed(*SMALL)
    run = write(config, tmp_path / "outputs" / "earlier")
    adapter(run / "final", config.model.path)
    return run


def test_the_weights_are_part_of_the_name_wherever_they_lie(run: Path, composed: Composed, tmp_path: Path) -> None:
    def name(folder: Path) -> str:
        return run_name(composed(*SMALL, f"init_from={folder}"))

    assert name(run) == name(run / "final") != run_name(composed(*SMALL))
    moved = Path(shutil.copytree(run, tmp_path / "elsewhere" / "moved"))
    shutil.rmtree(moved / "final")
    adapter(moved / "final", "/another/place")
    (moved / "final" / "training_args.bin").write_bytes(b"with paths")
    assert name(moved) == name(run)
    (moved / "final" / "adapter_model.safetensors").write_bytes(b"other weights")
    assert name(moved) != name(run)
    shutil.rmtree(moved / "final")
    adapter(moved / "final", "/another/place", lora_alpha=1)
    assert name(moved) != name(run)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.answer_style=plain",), r"model\.answer_style=think_answer, and here it is plain.*Set model\.answer"),
        (("model.max_pixels=null",), r"earlier was trained with model\.max_pixels=12544, and here it is null"),
        (("model.min_pixels=3136",), r"model\.min_pixels=null, and here it is 3136"),
        (("model=tiny_qwen3vl", "model.answer_style=think_answer", "model.max_pixels=12544"),
         r"earlier was trained from .*/tiny_glm41v, and model=tiny_qwen3vl is .*/tiny_qwen3vl: choose the model"),
    ],
    ids=["style", "most pixels", "fewest pixels", "model"],
)  # fmt: skip
def test_what_belongs_to_a_run_belongs_to_the_next(
    overrides: tuple[str, ...], message: str, run: Path, composed: Composed
) -> None:
    assert init_from.start(composed(*SMALL, f"init_from={run}")) is not None
    with pytest.raises(DataError, match=message):
        init_from.start(composed(*SMALL, f"init_from={run}", *overrides))


def test_what_cannot_be_started_from(run: Path, composed: Composed, tmp_path: Path) -> None:
    shutil.rmtree(run / "final")
    foreign = adapter(tmp_path / "foreign", "other/base")
    model = tmp_path / "model"
    model.mkdir()
    write_json(model / "config.json", {"model_type": "qwen3_vl"})
    twin = Path(composed(*SMALL).model.path)
    load_model(composed(*SMALL).model, "float32")  # which writes it
    assert json.loads((twin / "config.json").read_text())["model_type"] == "glm4v"
    for folder, message in (
        (run, r"earlier has no final/: its training is not done, or it holds only scores"),
        (tmp_path, r"is no run directory with a trained model in final/, no adapter folder \(adapter_config.json\)"),
        (foreign, r"foreign was trained on other/base, and model=tiny_glm41v is .*tiny_glm41v: set model\.path"),
        (model, r"model is a model of type qwen3_vl, and model=tiny_glm41v is of type glm4v"),
    ):
        with pytest.raises(DataError, match=rf"init_from: .*{message}"):
            init_from.start(composed(*SMALL, f"init_from={folder}"))


def test_an_adapter_goes_on_only_as_it_was(composed: Composed, tmp_path: Path) -> None:
    from peft import LoraConfig

    config = composed(*SMALL)
    for targets, said in (
        ("null", config.model.lora_targets),
        ("[v_proj,q_proj]", ["q_proj", "v_proj"]),
        ("all-linear", "all-linear"),
    ):
        overrides = (*SMALL, f"method.peft.target_modules={targets}") if targets != "null" else SMALL
        saved = init_from._with_its_modules(
            LoraConfig(r=8, lora_alpha=16, target_modules=said, task_type="CAUSAL_LM"), config.model
        )
        folder = adapter(tmp_path / f"{len(targets)}", config.model.path)
        saved.base_model_name_or_path = config.model.path
        saved.save_pretrained(str(folder))
        same = composed(*overrides, f"init_from={folder}", "method.peft.lora_dropout=0.1")
        assert init_from.adapter_to_go_on(same) == folder and not init_from.on_another_base(same)
        for change in ("method.peft.r=4", "method.peft.lora_alpha=8", "method.peft.target_modules=[o_proj]",
                       "method.peft.use_rslora=true"):  # fmt: skip
            other = composed(*overrides, change, f"init_from={folder}")
            assert init_from.adapter_to_go_on(other) is None and init_from.on_another_base(other), change
        full = composed(*SMALL, "method=full", f"init_from={folder}")
        assert init_from.adapter_to_go_on(full) is None and not init_from.on_another_base(full)


def test_what_was_seen_before_counts_as_trained_on(run: Path, composed: Composed) -> None:
    own, seen = ({"set": name, "images": [], "ids": [], "questions": [], "pairs": []} for name in ("own", "seen"))
    config = composed(*SMALL, f"init_from={run}")
    assert init_from.with_earlier_rows(config, [own]) == [own], "nothing is known of the run before"
    leakage.write(run / TRAINED_ON, [seen, own])
    assert init_from.with_earlier_rows(config, [own]) == [seen, own]
    assert init_from.with_earlier_rows(composed(*SMALL), [own]) == [own]


# --- stages


def test_stages_are_runs_in_the_order_they_are_named(composed: Composed) -> None:
    config = composed(*SHORT, "+dataset@stages.second=demo_ct", "+dataset@stages.first=demo", "debug=true")
    found = init_from.stages(config)
    assert [(name, one.dataset.name, one.stages) for name, one in found.items()] == [
        ("second", "demo_ct", {}), ("first", "demo", {}),
    ]  # fmt: skip
    alone = composed(*SHORT, "dataset=demo_ct", "debug=true")
    assert run_name(found["second"]) == run_name(alone) and init_from.stages(alone) == {"": alone}
    with pytest.raises(ConfigError, match=r"stages and dataset=demo: the stages second are what is trained on"):
        composed(*SHORT, "+dataset@stages.second=demo_ct", "dataset=demo")
    with pytest.raises(ConfigError, match=r"stages\.a: dataset\.language belongs to one set"):
        composed(*SHORT, "+dataset@stages.a=demo", "stages.a.language=en")


def test_a_plan_has_every_stage_and_learns_where_it_is(
    composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.test_sweep import node

    stages = ("+dataset@stages.b=demo_xray", "+dataset@stages.a=demo_ct", f"paths.outputs={tmp_path / 'o'}")
    cfg = node(*SHORT, *stages, "hydra.mode=RUN")
    (first, second) = sweep._planned(3, ["x"], cfg)
    assert (first["number"], first["stage"], first["config"]["dataset"]["name"]) == (3, "b", "demo_xray")
    assert first["folder"].startswith(str(tmp_path / "o" / "tiny_glm41v-demo_xray-lora-s0-"))
    assert (second["stage"], second["folder"], second["error"]) == ("a", None, None)
    monkeypatch.setattr(sweep, "this_job", lambda: (tmp_path, 3))
    write_json(tmp_path / "plan.json", {"jobs": [{"number": 1, "folder": "other"}, first, second]})
    done = write(composed(*SHORT, "dataset=demo_xray"), Path(first["folder"]))
    adapter(done / "final", composed(*SHORT).model.path)
    (_, known) = sweep._planned(3, ["x"], cfg)
    assert known["folder"].startswith(str(tmp_path / "o" / "tiny_glm41v-demo_ct-lora-s0-"))
    config = composed(*SHORT, "dataset=demo_ct", f"init_from={done}", stages[-1])
    sweep.found(Path(known["folder"]), config, "a")
    folders = [job["folder"] for job in json.loads((tmp_path / "plan.json").read_text())["jobs"]]
    assert folders == ["other", first["folder"], known["folder"]]


def test_the_curriculum_of_flare25(composed: Composed, tmp_path: Path) -> None:
    stages = composed("experiment=flare25_curriculum").stages
    starters, broader = (set(stages[name].include) for name in ("starters", "broader"))
    assert (len(starters), len(broader), stages["all"].include) == (5, 15, []) and starters < broader


# --- trained for real


@pytest.fixture(scope="module")
def outputs(composed: Composed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that are done: lora, and full."""
    folder = tmp_path_factory.mktemp("trained") / "outputs"
    for method in ("lora", "full"):
        trained(composed(*SMALL, f"method={method}"), folder / method)
    return folder


def trained(config: Config, run: Path) -> Path:
    if not run.exists():
        write(config, run)
    train(config, run, Status(run))
    return run


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    (file,) = folder.glob("*model.safetensors")
    return load_file(file)


def same(one: dict[str, Any], other: dict[str, Any], within: float = 0) -> bool:
    return one.keys() == other.keys() and all(one[name].allclose(other[name], 0, within) for name in one)


def answers(run: Path, composed: Composed) -> list[str]:
    """What a run says when it is evaluated, from its own folder alone."""
    wanted = composed("task=eval", *SHORT, "eval=demo", "eval.max_rows=4", "~eval.sets.demo_path")
    from vlmft.schema import read_config

    Together().evaluate(read_config(run / "config.yaml"), run, wanted, Status(run))
    return [
        json.loads(line)["raw"] for file in sorted(run.glob("pred*.jsonl")) for line in file.read_text().splitlines()
    ]


@pytest.mark.slow
def test_the_same_lora_goes_on_where_it_was(outputs: Path, composed: Composed, tmp_path: Path) -> None:
    run = trained(composed(*STILL, "dataset=demo_xray", f"init_from={outputs / 'lora'}"), tmp_path / "next")
    assert same(weights(run / "final"), weights(outputs / "lora" / "final"))
    assert {entry["set"] for entry in leakage.read(run / TRAINED_ON) or []} == {"demo_ct", "demo_xray"}
    moving = trained(composed(*SMALL, f"init_from={outputs / 'lora'}"), tmp_path / "moving")
    before, after = weights(outputs / "lora" / "final"), weights(moving / "final")
    assert before.keys() == after.keys() and not any(before[name].equal(after[name]) for name in before)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["method.peft.r=4", "method=full"])
def test_another_lora_begins_on_the_merged_base(method: str, outputs: Path, composed: Composed, tmp_path: Path) -> None:
    config = composed(*STILL, method, f"init_from={outputs / 'lora'}")
    merged = init_from._merged(load_model(config.model, "float32"), outputs / "lora" / "final")
    merged.save_pretrained(tmp_path / "merged")
    run = trained(config, tmp_path / "next")
    assert not (run / "final" / "adapter_config.json").exists()
    assert same(weights(run / "final"), weights(tmp_path / "merged"), within=1e-20)
    assert not same(weights(run / "final"), weights(outputs / "full" / "final"), within=1e-20)
    assert answers(run, composed) == answers(outputs / "lora", composed)


@pytest.mark.slow
def test_a_whole_model_takes_the_place_of_the_base(outputs: Path, composed: Composed, tmp_path: Path) -> None:
    """Also where its own base is gone, and for one who comes after and starts from what is left at the end."""
    full = outputs / "full"
    lost = ("model.tiny=null", "model.path=gone/away")
    found = Path(shutil.copytree(full / "final", tmp_path / "found"))
    run = trained(composed(*STILL, *lost, f"init_from={found}"), tmp_path / "lora")
    assert same(weights(run / "final"), weights(full / "final"))
    again = trained(composed(*STILL, *lost, "method=full", f"init_from={run}"), tmp_path / "again")
    assert same(weights(again / "final"), weights(full / "final"), within=1e-20)
    assert answers(again, composed) == answers(full, composed)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["lora", "full"])
def test_a_killed_run_goes_on_from_the_base_it_had(
    start: str, outputs: Path, composed: Composed, tmp_path: Path
) -> None:
    more = (
        f"init_from={outputs / start}",
        "method.peft.r=4",
        "method.trainer.max_steps=3",
        "method.trainer.save_steps=1",
    )
    config = composed(*SMALL, *more)
    whole = trained(config, tmp_path / "whole")
    killed = Path(shutil.copytree(whole, tmp_path / "killed", ignore=shutil.ignore_patterns("final", "checkpoint-3")))
    assert checkpoints.newest(killed) == killed / "checkpoint-2"
    trained(config, killed)
    assert same(weights(killed / "final"), weights(whole / "final"))
    assert not same(weights(whole / "final"), weights(outputs / "full" / "final"))
    assert not [path for path in killed.iterdir() if path.name.startswith(".")], "and nothing of the way there is left"


@pytest.mark.slow
def test_a_quantised_base_is_merged_unquantised(outputs: Path, composed: Composed, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    few = ("method.peft.r=4", "method.quantization.load_in_8bit=true", f"init_from={outputs / 'lora'}")
    config = composed(*STILL, *few)
    merged = init_from._merged(load_model(config.model, "float32"), outputs / "lora" / "final")
    merged.save_pretrained(tmp_path / "merged")
    run = trained(config, tmp_path / "next")
    assert same(weights(run / "final"), weights(tmp_path / "merged"))
    assert len(answers(run, composed)) > 5


@pytest.mark.slow
def test_by_command(outputs: Path, command: Command, tmp_path: Path) -> None:
    small = (*SHORT, "dataset=demo_xray", "dataset.max_rows=16", "eval=own", "eval.max_rows=4")
    done = command(*small, f"init_from={outputs / 'lora'}", "method.peft.r=4")
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / "outputs").glob("tiny*")
    provenance = json.loads((run / "provenance.json").read_text())
    fingerprint = weights_fingerprint(outputs / "lora" / "final")
    assert provenance["init_from"] == {
        "folder": str(outputs / "lora" / "final"), "run": "lora", "fingerprint": fingerprint,
    }  # fmt: skip
    assert json.loads((run / "result.json").read_text())["evaluations"]["demo_xray"]["leakage"].keys() == {
        "demo_ct", "demo_xray",
    }  # fmt: skip
    other = command("task=eval", f"runs=[{run}]", "eval=demo", "eval.max_rows=4", "hardware=cpu",
                    "eval.generation.max_new_tokens=8")  # fmt: skip
    assert other.returncode == 0, other.stderr
    assert set(json.loads((run / "result.json").read_text())["evaluations"]) == {"demo_ct", "demo_xray", "demo_path"}


@pytest.mark.slow
def test_the_curriculum_by_command(command: Command, tmp_path: Path) -> None:
    """With drawn collections in the place of the published ones; the second time there is nothing to do."""
    write_flare25(tmp_path / "flare", 8)
    small = (
        "experiment=flare25_curriculum", "model=tiny_qwen3vl", f"paths.flare25={tmp_path / 'flare'}", "hardware=cpu",
        "stages.broader.include=[retino,BUSI-det,neojaundice,boneresorption,bone_marrow,periapical]",
        "method.batch_size=16", "method.trainer.max_steps=2", "eval.max_rows=8", "eval.generation.max_new_tokens=8",
        "method.max_row_tokens=2048",
    )  # fmt: skip
    done = command(*small)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stage     2 of 3: broader" in done.stdout and "4 runs, 4 cells: 4 done" in done.stdout
    plan = json.loads((tmp_path / "multirun_reports" / "flare25_curriculum" / "plan.json").read_text())
    runs = [tmp_path / job["folder"] for job in plan["jobs"]]
    assert [run.name.split("-")[1] for run in runs] == ["flare25_starters", "flare25_broader", "flare25_all"]
    for before, run in pairwise(runs):
        assert json.loads((run / "provenance.json").read_text())["init_from"]["run"] == before.name
    seen = [{entry["set"] for entry in leakage.read(run / TRAINED_ON) or []} for run in runs]
    assert [len(sets) for sets in seen] == [1, 2, 3]
    assert "flare25_broader" in (tmp_path / "multirun_reports" / "flare25_curriculum" / "report.md").read_text()
    again = command(*small)
    assert again.returncode == 0 and again.stdout.count("nothing to do") >= 4 and "training 1" not in again.stdout
