"""`vlmft export RUN_DIR`: the trained weights as a folder that plain `from_pretrained` reads, and a proof of it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmft.chat.encode import Encoder, Row
from vlmft.data.question import CLOSED, OPEN, Question, Turn
from vlmft.errors import DataError
from vlmft.files import whole_folder, write_json, write_text
from vlmft.models import split
from vlmft.models.base import free_memory
from vlmft.schema import Config, Device, Hardware, Model, SplitModel
from vlmft.use.ask import note
from vlmft.use.model_card import card
from vlmft.use.parity import Parity, compare, logits
from vlmft.use.trained import encoder_of, here, own_questions, placed

QUESTIONS = 4  # that the two models are compared on
_SHARD = "5GB"


def export(
    run: Path, config: Config, out: Path, *, hardware: Hardware, dtype: str | None = None, named: str = ""
) -> Parity:
    """Write the trained model of `run` to `out`, whole or not at all; how its logits differ from the run's.

    `dtype` is that of the base checkpoint unless given, and `named` what the model card calls the folder. Raises
    DataError where `out` is there already, where nothing was trained, or where what is read back is another model.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is there already: name another folder with --out, or remove it")
    spec, quantization, adapter = here(run, config)
    if adapter is None and not (run / "final").is_dir():
        raise DataError(f"{run}: nothing was trained here, so there is nothing to export; name a run that trained")
    encoder = encoder_of(spec)
    with tempfile.TemporaryDirectory(prefix="vlmft-export-") as scratch, whole_folder(out) as fresh:
        rows = _rows(encoder, _questions(config, encoder, Path(scratch)))
        model, told = _trained(spec, quantization, adapter, dtype, hardware)
        as_trained = logits(model, encoder, rows)
        without = None
        if adapter:
            with model.disable_adapter():
                without = logits(model, encoder, rows)
            model = merged(model)
        _save(model, encoder, fresh)
        saved_as = str(model.dtype).removeprefix("torch.")
        del model
        free_memory()
        read_back = encoder_of(Model(name="export", path=str(fresh), answer_style=spec.answer_style))
        again = _rows(read_back, _questions(config, read_back, Path(scratch)))
        if again != rows:
            raise DataError(f"{run}: the saved processor asks {rows[0].question} in other tokens; nothing is written")
        parity = compare(as_trained, logits(_plainly(fresh, spec, hardware), read_back, rows), without, saved_as)
        if problem := parity.problem():
            raise DataError(f"{run}: what was written is not what was trained, and is removed: {problem}")
        write_text(fresh / "README.md", card(run, config, parity.describe(), told, saved_as, named or out.name))
    return parity


def _questions(config: Config, encoder: Encoder, scratch: Path) -> list[Question]:
    """Some of the run's test questions; about a drawn picture where its sets are not here."""
    try:
        return own_questions(config, QUESTIONS, seed=0)
    except DataError:
        shown = (str(_drawn(scratch)),) if encoder.image_token else ()
        asked = {"Is there a bright spot?": "yes", "What is shown in this picture?": "A bright spot on grey."}
        return [
            Question(str(number), "drawn", shown, (Turn(text, answer),), CLOSED if answer == "yes" else OPEN)
            for number, (text, answer) in enumerate(asked.items())
        ]


def _drawn(folder: Path) -> Path:
    from PIL import Image, ImageDraw

    file = folder / "drawn.png"
    picture = Image.linear_gradient("L").convert("RGB")
    ImageDraw.Draw(picture).ellipse((60, 90, 140, 180), fill=(240, 230, 200))
    picture.save(file)
    return file


def _rows(encoder: Encoder, questions: Sequence[Question]) -> list[Row]:
    return [encoder.train_rows(question)[-1] for question in questions]


def _trained(
    spec: Model, quantization: dict[str, Any] | None, adapter: Path | None, dtype: str | None, hardware: Hardware
) -> tuple[Any, str]:
    """The model as it was trained, unquantised, and how it comes to be in the export, in words."""
    import torch

    from vlmft.models.adapters import load_adapter
    from vlmft.models.load import load_config

    dtype = dtype or str(getattr(load_config(spec), "dtype", None) or torch.float32).removeprefix("torch.")
    model = placed(spec, dtype, hardware)
    if hardware.split_model is SplitModel.auto:
        note(split.line(model))
    if adapter is None:
        return model, "All weights of the model are those of the training."
    told = f"The LoRA adapter is merged into its base, in {dtype}."
    if quantization:
        told += (
            " It was trained and scored on the base in few bits (bitsandbytes), and is merged into the base as it is "
            "without them: its answers may differ from those that were scored."
        )
    note(f"merging   {told}")
    return load_adapter(model, adapter), told


def merged(adapted: Any) -> Any:
    """The model without its adapter, whose work is now in its weights."""
    return adapted.merge_and_unload(safe_merge=True)


def _save(model: Any, encoder: Encoder, folder: Path) -> None:
    """Weights under the base repository's names, processor with the run's pixel limits, template, generation settings.

    Generation stops where the model was trained to stop, whatever the base repository says.
    """
    model.generation_config.eos_token_id = encoder.stop_ids
    model.save_pretrained(folder, max_shard_size=_SHARD)
    encoder.processor.save_pretrained(folder)
    file = folder / "config.json"
    said = json.loads(file.read_text(encoding="utf-8"))
    said.pop("fusion_config", None)  # how this process computes, which is no concern of others
    write_json(file, said)


def _plainly(folder: Path, spec: Model, hardware: Hardware) -> Any:
    """The model as anybody would load it. Raises DataError where the folder has other weights than its architecture."""
    import torch
    from transformers import AutoConfig

    from vlmft.models.load import auto_class

    splitting = split.loading() if hardware.split_model is SplitModel.auto else {}
    config = AutoConfig.from_pretrained(folder, trust_remote_code=spec.trust_remote_code)
    model, report = auto_class(config).from_pretrained(
        folder, dtype="auto", attn_implementation=spec.attention, trust_remote_code=spec.trust_remote_code,
        output_loading_info=True, **splitting,
    )  # fmt: skip
    split.refuse_outside(model, str(folder))
    wrong = [f"{key} ({kind.split('_')[0]})" for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
             for key in sorted(map(str, report.get(kind) or ()))]  # fmt: skip
    if wrong:
        raise DataError(f"the saved weights do not fit their architecture: {', '.join(wrong[:3])}")
    if hardware.device is not Device.cpu and torch.cuda.is_available():
        split.to_gpu(model)
    return model.eval()


def push(folder: Path, repository: str, private: bool = False) -> str:
    """Upload an exported folder to the Hub; its address. Raises DataError saying why not; the folder stays."""
    from huggingface_hub import HfApi, get_token

    later = f"The folder is whole: {folder}; later, hf upload {repository} {folder} does the rest"
    if get_token() is None:
        raise DataError(f"--push {repository}: no token is set (HF_TOKEN, or `hf auth login`). {later}")
    try:
        api = HfApi()
        address = str(api.create_repo(repository, private=private or None, exist_ok=True))
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Exported by vlmft")
    except Exception as error:  # whatever the network layer of the day raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"--push {repository}: {reason}. {later}") from error
    return address
