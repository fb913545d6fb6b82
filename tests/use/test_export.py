"""vlmft export RUN_DIR: the folder is the trained model, and is not written where it is not."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from safetensors.torch import load_file

from vlmft.cli import main
from vlmft.errors import DataError
from vlmft.provenance import record_attempt
from vlmft.schema import Config, Device, Hardware, Model, Task, read_config
from vlmft.status import Status
from vlmft.use import export, parity, trained
from vlmft.use.parity import Parity, compare
from vlmft.worker import Together, train

Composed = Callable[..., Config]
ON_CPU = Hardware(device=Device.cpu)
QUICK = ("dataset=demo_ct", "dataset.max_rows=16", "method.trainer.max_steps=2", "method.batch_size=4",
         "method.trainer.learning_rate=1e-2", "method.trainer.warmup_steps=0", "hardware=cpu", "eval.max_rows=24",
         "eval.generation.max_new_tokens=8")  # fmt: skip


def made(config: Config, folder: Path) -> Path:
    """A run that has trained."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    record_attempt(folder, {}, None)
    train(config, folder, Status(folder))
    return folder


def exported(run: Path, out: Path, **how: Any) -> Parity:
    return export.export(run, read_config(run / "config.yaml"), out, hardware=ON_CPU, **how)


@pytest.fixture(scope="module")
def run(composed: Composed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = composed("model=tiny_glm41v", *QUICK)
    folder = made(config, tmp_path_factory.mktemp("outputs") / "glm-one")
    Together().evaluate(config, folder, config, Status(folder))
    return folder


@pytest.fixture(scope="module")
def out(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, exported."""
    folder = tmp_path_factory.mktemp("export") / "mine"
    found = exported(run, folder)
    assert found.problem() is None and found.same_top == found.places > export.QUESTIONS and found.moved == 0
    assert found.effect and found.largest < 1e-5 * found.scale < found.effect
    return folder


def names_and_shapes(folder: Path) -> dict[str, Any]:
    return {name: weight.shape for name, weight in load_file(folder / "model.safetensors").items()}


def test_it_is_a_folder_like_the_base_repository_s(run: Path, out: Path) -> None:
    base = Path(read_config(run / "config.yaml").model.path)
    assert names_and_shapes(out) == names_and_shapes(base)
    assert {file.name for file in out.iterdir()} == {file.name for file in base.iterdir()} - {"tiny.json"} | {
        "README.md"
    }
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (out, base))
    assert ours.keys() == theirs.keys() and ours["dtype"] == "float32" and ours["architectures"]
    before = json.loads((base / "generation_config.json").read_text())["eos_token_id"]
    assert set(json.loads((out / "generation_config.json").read_text())["eos_token_id"]) >= set(before)
    assert (out / "chat_template.jinja").read_text() == (base / "chat_template.jinja").read_text()
    changed = [name for name, weight in load_file(out / "model.safetensors").items()
               if not torch.equal(weight, load_file(base / "model.safetensors")[name])]  # fmt: skip
    assert changed and all("language_model.layers" in name for name in changed)
    assert out.stat().st_mode & 0o755 == 0o755


def test_the_card_s_own_lines_give_what_the_run_said(run: Path, out: Path) -> None:
    record = json.loads((run / "predictions_demo_ct.jsonl").read_text().splitlines()[0])
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    for written, now in (('"mine"', repr(str(out))), ('"picture.png"', repr(record["images"][0])),
                         ('"Is there a fracture?"', repr(record["question"])), ("=2048", "=8")):  # fmt: skip
        code = code.replace(written, now)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(code, {})
    tokenizer = trained.encoder_of(Model(name="mine", path=str(out))).tokenizer
    bare = tokenizer.decode(tokenizer(record["raw"]).input_ids, skip_special_tokens=True)
    assert said.getvalue() == bare + "\n" and bare.strip()


def test_the_card_says_where_it_comes_from_and_names_the_protocol_of_every_score(run: Path, out: Path) -> None:
    card = (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front == {"library_name": "transformers", "pipeline_tag": "image-text-to-text",
                     "tags": ["vlmft", "medical", "visual-question-answering", "lora"]}  # fmt: skip
    scored = json.loads((run / "result.json").read_text())["evaluations"]["demo_ct"]
    for protocol, scores in scored["scores"].items():
        for metric, of in scores["metrics"].items():
            if of["value"] is not None:
                named = rf"\| demo_ct \| {protocol} \| {metric.replace('_', ' ')}[^|]*\| {100 * of['value']:.1f} \|"
                assert re.search(named + rf" \[?[^|]*\| {of['n']} \|", card), (protocol, metric)
        floor = scored["floor"]["question_only"][protocol]["accuracy"]
        assert re.search(rf"\| demo_ct \| {protocol} \| accuracy \(%\) \|.*\| {100 * floor:.1f} \|", card)
    trained_for = json.loads((run / "result.json").read_text())["train"]["questions"]
    for text in ("nothing of demo_ct is in train", "| trainer.learning_rate | 0.01 |", "| peft.r | 8 |", "torch 2.",
                 "| demo_ct | 1", f"2 steps, {trained_for} questions", "logits in float32 differ by at most",
                 "a tiny random model",
                 "The LoRA adapter is merged into its base, in float32."):  # fmt: skip
        assert text in card, text


def test_nothing_of_this_machine_is_in_it(run: Path, out: Path) -> None:
    texts = [file for file in out.iterdir() if file.suffix in (".json", ".md", ".jinja")]
    for file in texts:
        text = file.read_text()
        assert not re.search(r"/tmp/|/root|/home|\.cache|pytest", text), file.name
    questions = [json.loads(line)["question"] for line in (run / "predictions_demo_ct.jsonl").read_text().splitlines()]
    assert not any(question in (out / "README.md").read_text() for question in questions)


def test_hub_names_are_told(run: Path, composed: Composed) -> None:
    from vlmft.use.model_card import _front, _origin

    config = composed("model=glm41v", "dataset=medvqa", "model.revision=abc")
    front = yaml.safe_load(_front(config, True).strip("-"))
    assert front["base_model"] == "zai-org/GLM-4.1V-9B-Thinking"
    assert front["datasets"] == ["BoKelvin/SLAKE", "flaviagiammarino/vqa-rad", "flaviagiammarino/path-vqa"]
    assert "at revision abc" in _origin(config)
    local = replace(config, model=replace(config.model, path="/data/glm", name="mine"))
    assert "base_model" not in _front(local, False) and "text-generation" in _front(local, False)
    assert _origin(local) == "Trained with vlmft from mine, a model in a folder."


@pytest.mark.slow
@pytest.mark.parametrize("what", ["lost", "nudged"])
def test_another_model_than_the_trained_one_is_not_left(
    what: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tampered(adapted: Any) -> Any:
        if what == "lost":
            return adapted.unload()
        model = adapted.merge_and_unload()
        weight = dict(model.named_parameters())["lm_head.weight"]
        with torch.no_grad():
            weight.view(-1)[::7].add_(3e-3)
        return model

    monkeypatch.setattr(export, "merged", tampered)
    with pytest.raises(DataError, match="is not what was trained, and is removed: logits in float32 differ by up to"):
        exported(run, tmp_path / "below" / "mine")
    assert list((tmp_path / "below").iterdir()) == []


@pytest.mark.slow
def test_weights_under_other_names_are_not_left(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = export._save

    def renamed(model: Any, encoder: Any, folder: Path) -> None:
        from safetensors.torch import save_file

        save(model, encoder, folder)
        file = folder / "model.safetensors"
        weights = {name.replace("q_proj", "query"): weight for name, weight in load_file(file).items()}
        save_file(weights, file, metadata={"format": "pt"})

    monkeypatch.setattr(export, "_save", renamed)
    with pytest.raises(DataError, match=r"do not fit their architecture: .*q_proj.*\(missing\)"):
        exported(run, tmp_path / "mine")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_lost_processor_setting_is_seen(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = export._save

    def without_limits(model: Any, encoder: Any, folder: Path) -> None:
        save(model, encoder, folder)
        template = folder / "chat_template.jinja"
        template.write_text("Well. " + template.read_text())

    monkeypatch.setattr(export, "_save", without_limits)
    with pytest.raises(DataError, match="in other tokens; nothing is written"):
        exported(run, tmp_path / "mine")


@pytest.mark.slow
def test_in_bfloat16_and_without_its_set(run: Path, tmp_path: Path) -> None:
    """Rounding is allowed for, and a drawn picture stands in for a set that is not here."""
    config = read_config(run / "config.yaml")
    gone = replace(config, dataset=replace(config.dataset, format="slake", path=str(tmp_path / "gone")))
    found = export.export(run, gone, tmp_path / "mine", hardware=ON_CPU, dtype="bfloat16")
    assert found.problem() is None and 1e-4 < found.largest / found.scale < parity.TOLERANCE_IN_FEW_BITS
    assert load_file(tmp_path / "mine" / "model.safetensors")["lm_head.weight"].dtype is torch.bfloat16
    assert "Saved in bfloat16" in (tmp_path / "mine" / "README.md").read_text()


def test_what_counts_as_the_same() -> None:
    ours = [torch.tensor([[1.0, 5.0, 2.0], [3.0, 0.0, 1.0]])]
    base = [ours[0] - 1]
    same = compare(ours, ours, base, "float32")
    assert (same.places, same.same_top, same.largest, same.scale, same.effect) == (2, 2, 0, 5, 1)
    assert same.problem() is None and same.lost == 0
    near = compare(ours, [ours[0] + 4e-4], base, "float32")
    assert near.problem() is None and "differ by at most 0.0004 of 5; the adapter changes them by up to 1;" in (
        near.describe()
    )
    assert "rounding explains 0.0005" in (compare(ours, [ours[0] + 6e-4], base, "float32").problem() or "")
    assert compare(ours, [ours[0] + 0.1], base, "bfloat16").problem() is None
    assert "the rounding of bfloat16 is 67 % of what the adapter does" in (
        compare(ours, [ours[0] + 0.1], [ours[0] - 0.15], "bfloat16").problem() or ""
    )
    assert compare(ours, [ours[0] + 0.1], None, "bfloat16").problem() is None, "a whole model loses no adapter"
    assert compare(ours, [ours[0] * float("nan")], base, "float32").problem()
    close = [torch.tensor([[5.0, 4.9]]), torch.tensor([[1.0, 5.0]])]
    tied = compare(close, [torch.tensor([[4.9, 5.0]]), close[1]], None, "bfloat16")
    assert (tied.tied, tied.moved, tied.same_top, tied.problem()) == (1, 0, 1, None)
    moved = replace(tied, tied=0, moved=1)
    assert "1 answers begin with another token" in (moved.problem() or "")


def test_what_can_be_exported(
    run: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained, "use_device", lambda device: None)

    def refused(*arguments: Any) -> str:
        with pytest.raises(SystemExit):
            main(["export", *map(str, arguments)])
        return capsys.readouterr().err

    assert "mine is there already" in refused(run, "--out", out)
    assert "it should be OWNER/NAME" in refused(run, "--push", "mine")
    assert "--private is of the repository" in refused(run, "--private")
    assert "name one RUN_DIR" in refused() and "name one RUN_DIR" in refused(run, run)
    assert "leave them out of --data" in refused("--data", "slake", "--push", "a/b")
    adapter = Path(shutil.copytree(run / "final", tmp_path / "found"))
    assert "name the new folder as well" in refused(adapter, "--model", "tiny_glm41v")
    base = tmp_path / "base"
    base.mkdir()
    as_it_is = replace(read_config(run / "config.yaml"), task=Task.eval)
    (base / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(as_it_is)))
    assert "nothing was trained here" in refused(base)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "found"]


class FakeHub:
    """Stands for huggingface_hub.HfApi."""

    calls: list[Any] = []  # noqa: RUF012
    broken = False

    def create_repo(self, repo: str, *, private: bool | None, exist_ok: bool) -> str:
        self.calls.append(("create", repo, private, exist_ok))
        return f"https://huggingface.co/{repo}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        if self.broken:
            raise OSError("no network\nmore")
        self.calls.append(("upload", repo_id, sorted(file.name for file in folder_path.iterdir())))


def test_push_uploads_the_folder_or_says_what_is_left_to_do(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(
        DataError, match=rf"no token is set \(HF_TOKEN, or `hf auth login`\)\. The folder is whole: {out}"
    ):
        export.push(out, "me/it")
    assert not FakeHub.calls
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "a token")
    assert export.push(out, "me/it", private=True) == "https://huggingface.co/me/it"
    assert FakeHub.calls == [
        ("create", "me/it", True, True), ("upload", "me/it", sorted(file.name for file in out.iterdir())),
    ]  # fmt: skip
    monkeypatch.setattr(FakeHub, "broken", True)
    with pytest.raises(DataError, match=r"--push me/it: no network\. The folder is whole"):
        export.push(out, "me/it")


@pytest.mark.slow
def test_by_command(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is not pushed is still written."""
    monkeypatch.setattr(trained, "use_device", lambda device: None)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    copy = Path(shutil.copytree(run, tmp_path / "mine"))
    with pytest.raises(SystemExit):
        main(["export", str(copy), "--push", "me/it", "--device", "cpu"])
    told = capsys.readouterr()
    assert "same      logits in float32" in told.out and f"written   {copy / 'export'} (0.00" in told.out
    assert "--push me/it: no token is set" in told.err and "pushed" not in told.out
    assert '.from_pretrained("me/it")' in (copy / "export" / "README.md").read_text()
    assert read_config(trained.config_of(copy)[0] / "config.yaml").model.name == "tiny_glm41v", "and it is a run still"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("tiny_glm41v", ("method=full",)),
        ("tiny_qwen3vl", ("method=lora",)),
        ("tiny_glm45v", ("method.peft.target_parameters=[mlp.experts.gate_up_proj,mlp.experts.down_proj]",)),
        ("tiny_llama32_vision", ("method=full",)),
        ("tiny_llama32_vision", ("method=lora",)),
        ("tiny_deepseek_r1", ("method=lora", "dataset.images=ignore")),
    ],
    ids=str,
)
def test_every_family_is_exported(model: str, more: tuple[str, ...], composed: Composed, tmp_path: Path) -> None:
    config = composed(f"model={model}", *QUICK, *more)
    run = made(config, tmp_path / "run")
    found = exported(run, tmp_path / "mine")
    assert found.problem() is None and found.same_top == found.places
    assert names_and_shapes(tmp_path / "mine") == names_and_shapes(Path(config.model.path))
    card = (tmp_path / "mine" / "README.md").read_text()
    assert ("AutoModelForCausalLM" in card) is (model == "tiny_deepseek_r1") and "It was not scored." in card


@pytest.mark.slow
def test_an_adapter_folder_and_a_quantised_base(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = Path(shutil.copytree(run / "final", tmp_path / "found"))
    where, config = trained.config_of(adapter, "tiny_glm41v")
    assert export.export(where, config, tmp_path / "mine", hardware=ON_CPU).problem() is None
    assert "The adapter was trained elsewhere" in (tmp_path / "mine" / "README.md").read_text()
    few = replace(config, method=replace(config.method, quantization={"load_in_4bit": True}))
    assert export.export(where, few, tmp_path / "few", hardware=ON_CPU).problem() is None
    assert "merged into the base as it is without them" in " ".join(capsys.readouterr().err.split())
    assert "on the base in few bits" in (tmp_path / "few" / "README.md").read_text()
    assert names_and_shapes(tmp_path / "few") == names_and_shapes(tmp_path / "mine")
