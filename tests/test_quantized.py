"""LoRA on a base in 8 or 4 bits, really trained by bitsandbytes' CPU kernels on the tiny twins."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vlmft.chat.encode import Encoder
from vlmft.data.load import load
from vlmft.errors import DataError
from vlmft.evaluation import results
from vlmft.evaluation.generate import answer_all
from vlmft.evaluation.predictions import read_predictions
from vlmft.evaluation.runs import Together
from vlmft.models import quantized
from vlmft.models.load import load_model, load_processor, part_of, stop_ids
from vlmft.schema import Config, Generation
from vlmft.status import Status
from vlmft.training import fine_tuning
from vlmft.training.callbacks import checksums
from vlmft.worker import train

bnb = pytest.importorskip("bitsandbytes")
LAYERS = {"lora8": bnb.nn.Linear8bitLt, "qlora4": bnb.nn.Linear4bit}
TRAINED = {"glm41v": {"lora8": 69_120, "qlora4": 92_160}, "qwen3vl": {"lora8": 73_728, "qlora4": 98_304}}
PAIRS = [
    ("qlora4", "glm41v"), ("lora8", "qwen3vl"),
    pytest.param(("qlora4", "qwen3vl"), marks=pytest.mark.slow),
    pytest.param(("lora8", "glm41v"), marks=pytest.mark.slow),
]  # fmt: skip
SMALL = ("dataset=demo_ct", "dataset.max_rows=24", "dataset.validation=0.2", "hardware=cpu", "eval=own",
         "eval.max_rows=6", "eval.generation.max_new_tokens=8", "method.batch_size=8", "method.trainer.max_steps=4",
         "method.trainer.warmup_steps=0", "method.trainer.learning_rate=1e-2", "method.trainer.save_steps=2",
         "method.trainer.eval_strategy=steps", "method.trainer.eval_steps=2", "method.peft.lora_dropout=0")  # fmt: skip


def trained(config: Config, run: Path) -> dict[str, torch.Tensor]:
    """Train in `run`, and return the weights of its adapter."""
    run.mkdir(parents=True, exist_ok=True)
    train(config, run, Status(run))
    return load_file(run / "final" / "adapter_model.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module", params=PAIRS, ids=lambda pair: "-".join(pair))
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def config(pair: tuple[str, str], composed: Callable[..., Config]) -> Callable[..., Config]:
    return lambda *overrides: composed(f"method={pair[0]}", f"model=tiny_{pair[1]}", *SMALL, *overrides)


@pytest.fixture(scope="module")
def run(config: Callable[..., Config], tmp_path_factory: Any) -> tuple[Path, Any, dict[str, int]]:
    """A run that has been trained, its model in memory, and the checksums of the base before."""
    caught: list[Any] = []
    folder: Path = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patched:

        def keep(*args: Any, of: Any = fine_tuning.trainer_of, **kwargs: Any) -> Any:
            before = checksums(kwargs["model"])
            trainer = of(*args, **kwargs)
            caught.extend([trainer.model, before])
            return trainer

        patched.setattr(fine_tuning, "trainer_of", keep)
        trained(config(), folder)
    return folder, *caught  # type: ignore[return-value]


def test_linear_layers_are_in_few_bits_but_for_head_and_projector(
    pair: tuple[str, str], config: Callable[..., Config], run: tuple[Path, Any, dict[str, int]]
) -> None:
    (method, twin), (_, model, before) = pair, run
    layers = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    few = {name for name, module in layers.items() if isinstance(module, LAYERS[method])}
    whole = {name for name in layers if "lora_" not in name} - few
    assert {part_of(name) for name in few} == {"vision", "llm"}
    kept = ("lm_head", "merger", "patch_embed")
    assert all(any(part in name for part in kept) for name in whole)
    assert all(any(part in name for name in whole) for part in kept)
    learnt = [weight for weight in model.parameters() if weight.requires_grad]
    assert {weight.dtype for weight in learnt} == {torch.float32}
    count = sum(weight.numel() for weight in learnt)
    base = sum(weight.numel() for weight in load_model(config().model, "float32").parameters())
    assert count == TRAINED[twin][method]
    assert fine_tuning.describe(model).startswith(f"training {count:,} of {base + count:,} weights")
    after = {name.replace("base_model.model.", "").replace(".base_layer", ""): value
             for name, value in checksums(model).items() if "lora_" not in name}  # fmt: skip
    assert after == before, "the base stays, its biases too"


def test_the_adapter_answers_alike_on_a_base_that_is_loaded_anew(
    config: Callable[..., Config], run: tuple[Path, Any, dict[str, int]], caplog: pytest.LogCaptureFixture
) -> None:
    chosen, (folder, model, _) = config(), run
    encoder = Encoder(load_processor(chosen.model), chosen.model.answer_style, stop_ids(chosen.model))
    questions = load(chosen.dataset, "test", limit=6).questions
    model.eval()
    said: dict[int, str] = {}
    rows = [encoder.prompt_row(question) for question in questions]
    for numbers, replies in answer_all(model, encoder, rows, Generation(max_new_tokens=8)):
        said |= {number: reply["raw"] for number, reply in zip(numbers, replies, strict=True)}
    Together().evaluate(chosen, folder, chosen, Status(folder))
    found = read_predictions(folder / "predictions_demo_ct.jsonl")
    assert [row["raw"] for row in found] == [said[number] for number in range(len(rows))] and any(said.values())
    assert results.read(folder)["evaluations"]["demo_ct"]["n"] == len(rows)
    assert "MatMul8bitLt" not in caplog.text, "no warning at every product"


def test_a_resumed_run_ends_as_an_undisturbed_one(
    config: Callable[..., Config], run: tuple[Path, Any, dict[str, int]], tmp_path: Path
) -> None:
    once = load_file(run[0] / "final" / "adapter_model.safetensors")
    again = shutil.copytree(run[0], tmp_path / "run")
    shutil.rmtree(again / "final")
    shutil.rmtree(again / "checkpoint-4")
    assert equal(trained(config(), again), once)
    assert {weight.dtype for weight in load_file(again / "checkpoint-2" / "adapter_model.safetensors").values()} == {
        torch.float32
    }


def test_validation_and_checkpointing_leave_training_as_it_is(
    config: Callable[..., Config], run: tuple[Path, Any, dict[str, int]], tmp_path: Path
) -> None:
    """After a validation the layers are what they were, and gradients come through what is computed again."""
    other = config("method.trainer.eval_strategy=no", "method.trainer.gradient_checkpointing=true",
                   "method.trainer.save_strategy=no")  # fmt: skip
    assert equal(trained(other, tmp_path / "run"), load_file(run[0] / "final" / "adapter_model.safetensors"))


FEW = {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"}


def test_what_is_skipped_can_be_named() -> None:
    assert quantized.settings({**FEW, "llm_int8_skip_modules": ["lm_head"]}).llm_int8_skip_modules == ["lm_head"]
    assert ".*merger" in quantized.settings(FEW).llm_int8_skip_modules


def test_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"not installed; pip install 'vlmft\[quantized\]'.*method=lora"):
        quantized.settings(FEW)


@pytest.mark.parametrize("few", [FEW, {"load_in_8bit": True}])
def test_a_device_that_bitsandbytes_cannot_use(few: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, x: Any) -> Any:
        raise RuntimeError("no kernel image\n is available")

    for layer in LAYERS.values():
        monkeypatch.setattr(layer, "forward", broken)
    with pytest.raises(
        DataError, match=r"bitsandbytes 0\.\d+\S* cannot compute on .* \(no kernel image is available\)"
    ):
        quantized.settings(few)


@pytest.mark.slow
@pytest.mark.parametrize("method", list(LAYERS))
def test_debug(method: str, command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    done = command("model=tiny_glm41v", "dataset=demo_ct", f"method={method}", "hardware=cpu", "debug=true",
                   "eval.generation.max_new_tokens=8")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / "outputs").glob("tiny_*")
    found = results.read(run)
    assert (found["state"], found["train"]["steps"]) == ("done", 2) and 0 < found["evaluations"]["demo_ct"]["n"] <= 8
    assert (run / "final" / "adapter_model.safetensors").is_file()
    assert (run / "train.log").read_text().count("float16") < 3
