"""Who a run is: a readable name that ends in a hash of what decides its weights, and nothing else.

Where things lie, hardware, logging, labels and evaluation are never hashed, so the same work is the same run on a
laptop and on a cluster. Evaluation has a second hash (set, weights, generation settings) and scoring a third.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from vlmft.data import load
from vlmft.data.mixture import training_sets
from vlmft.data.training_split import validation_sets
from vlmft.errors import DataError
from vlmft.evaluation import terms
from vlmft.files import file_digests
from vlmft.library_keys import weights_fields
from vlmft.models.tiny import RECIPE
from vlmft.schema import Closed, Config, Dataset, Eval, Method, Model, Packing, QuestionSet

# Of a set, beside its rows, their language and number.
_READING = ("tasks", "modalities", "images", "include", "box_space", "options", "shuffle_options", "reasoning",
            "max_knowledge_words")  # fmt: skip


def digest(value: Any) -> str:
    """Eight hex digits of a JSON value, the same for the same content whatever the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:8]


def run_name(config: Config) -> str:
    """`<model>-<dataset>-<method>-s<seed>-<8 hex>` of a training run. Raises DataError where its data is not there."""
    decides = {
        "model": model_facts(config.model)
        | {"freeze": vars(config.model.freeze), "targets": config.model.lora_targets},
        "dataset": dataset_facts(config.dataset),
        "method": method_facts(config.method),
        "debug": config.debug,
        "seed": config.seed,
    }
    return f"{config.model.name}-{config.dataset.name}-{config.method.name}-s{config.seed}-{digest(decides)}"


def base_name(model: Model, quantization: dict[str, Any] | None = None) -> str:
    """Name of the run that holds the scores of a model as it is."""
    return f"{model.name}-base-{digest([model_facts(model), quantization])}"


def model_facts(model: Model) -> dict[str, Any]:
    """What decides the weights a model starts from and how it reads a question."""
    folder = Path(model.path).expanduser()
    if model.tiny:
        weights: Any = {"tiny": model.tiny, "recipe": RECIPE}
    elif folder.is_dir():
        weights = {"folder": folder_fingerprint(folder)}
    else:
        weights = {"repository": model.path, "revision": model.revision}
    return {
        "weights": weights,
        "answer_style": model.answer_style.value,
        "dtype": model.dtype.value,
        "attention": model.attention,
        "min_pixels": model.min_pixels,
        "max_pixels": model.max_pixels,
    }


def dataset_facts(dataset: Dataset) -> dict[str, Any]:
    """What decides the rows that are trained on, by content."""
    validation = [(spec.name, load.fingerprint(spec, split)) for spec, split in validation_sets(dataset)]
    facts: dict[str, Any] = {
        "validation": validation or dataset.validation,
        "over_long": dataset.over_long.value,
        "bad_rows": dataset.bad_rows.value,
        "max_rows": dataset.max_rows,
        "percent": dataset.percent,
    }
    if dataset.normalize_terms:
        facts["normalize_terms"] = terms.digest()
    for name, member in training_sets(dataset).items():
        facts[name] = {
            "rows": load.fingerprint(member, "train"),
            "bad_rows": member.bad_rows.value,
            "language": member.language,
            "max_rows": member.max_rows,
            "percent": member.percent,
            "weight": member.weight,
            **reading(member),
        }
    return facts


def reading(spec: QuestionSet) -> dict[str, Any]:
    """What a set says of how its rows are read, where that is not the default: a new key renames no earlier run."""
    default = QuestionSet()
    return {key: getattr(spec, key) for key in _READING if getattr(spec, key) != getattr(default, key)}


def method_facts(method: Method) -> dict[str, Any]:
    """What of the method decides the weights; TRL's fields by the committed list."""
    deciding = weights_fields("SFTConfig", method.trainer)
    return {
        "batch_size": method.batch_size,
        # How many questions share a row decides which come in one step.
        "packing": method.packing.value,
        "max_questions_per_row": method.max_questions_per_row if method.packing is Packing.image else 1,
        "max_row_tokens": method.max_row_tokens,
        "trainer": {key: value for key, value in method.trainer.items() if key in deciding},
        "peft": method.peft,
        "quantization": method.quantization,
    }


def generation_hash(weights: str, spec: QuestionSet, config: Eval, without: str = "") -> str:
    """Hash of what decides the predictions on one set: the weights (a run's name), the set's rows, how it generates.

    `without` names a pass without the rows' pictures.
    """
    settings = {key: value for key, value in vars(config.generation).items() if key not in ("batch_size", "packing")}
    rows = [load.fingerprint(spec, "test"), spec.language, spec.bad_rows.value, spec.max_test_rows, config.max_rows]
    closed = [config.closed.value] if config.closed is not Closed.generate else []
    read = [reading(spec)] if reading(spec) else []
    return digest([weights, rows, settings, *closed, *([without] if without else []), *read])


def folder_fingerprint(folder: Path) -> str:
    """16 hex digits of a model folder's content: every file, but for a run's own checkpoints."""
    folder = folder.expanduser()
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    names = sorted(name for name in names if not name.parts[0].startswith("checkpoint-"))
    if not names:
        raise DataError(f"{folder} is no folder with a model in it")
    total = hashlib.sha256()
    for name, content in zip(names, file_digests([folder / name for name in names]), strict=True):
        total.update(f"{name} {content}\n".encode())
    return total.hexdigest()[:16]
