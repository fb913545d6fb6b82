"""Who a run is: a readable name that ends in a hash of what decides its weights, and nothing else.

Where things lie, hardware, logging, labels and evaluation are never hashed, so the same work is the same run on a
laptop and on a cluster. Evaluation has a second hash (set, weights, generation settings) and scoring a third.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from vlmft.data import load
from vlmft.data.mixture import training_sets
from vlmft.data.training_split import validation_sets
from vlmft.errors import DataError
from vlmft.evaluation import terms
from vlmft.files import file_digests
from vlmft.library_keys import TRAINERS, weights_fields
from vlmft.models import adapters
from vlmft.models.tiny import RECIPE
from vlmft.schema import (
    Algorithm,
    AnswerStyle,
    Backend,
    Closed,
    Config,
    Dataset,
    Eval,
    Method,
    Model,
    Packing,
    QuestionSet,
)

# Of a set, beside its rows, their language and number.
_READING = ("tasks", "modalities", "images", "include", "box_space", "options", "shuffle_options", "reasoning",
            "max_knowledge_words")  # fmt: skip
# Of a trained folder, what only tells of the training. The rest decides what a model says, or how it is asked.
_BESIDE = {"training_args.bin", "trainer_state.json", "optimizer.pt", "scheduler.pt", "complete.json", "README.md"}


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
    if config.init_from:
        decides["init_from"] = weights_fingerprint(weights_folder(config.init_from))
    return f"{config.model.name}-{config.dataset.name}-{config.method.name}-s{config.seed}-{digest(decides)}"


def base_name(model: Model, quantization: dict[str, Any] | None = None) -> str:
    """Name of the run that holds the scores of a model as it is."""
    return f"{model.name}-base-{digest([model_facts(model), quantization])}"


def served_name(config: Eval, style: AnswerStyle) -> str:
    """Name of the run that holds the scores of a server's model, wherever the server is."""
    readable = re.sub(r"[^\w.-]+", "_", (config.served_model or "").rstrip("/").rpartition("/")[2]).strip(".")
    decides = [config.served_model, style.value, config.request]
    return f"{readable[:60] or 'model'}-server-{digest(decides)}"


def evaluated_name(config: Config) -> str:
    """Name of the run of a `task=eval`: of a model as it is, or of what a server answers."""
    if config.eval.backend is Backend.server:
        return served_name(config.eval, config.model.answer_style)
    return base_name(config.model, config.method.quantization)


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
    if dataset.streaming:  # in another order, so the weights are others
        facts["streaming"] = dataset.buffer_size
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
    deciding = weights_fields(TRAINERS[method.algorithm], method.trainer)
    rates = {part: rate for part, rate in vars(method.learning_rates).items() if rate is not None}
    early = vars(method.early_stopping) if method.early_stopping.patience is not None else {}
    return {
        **({"algorithm": method.algorithm.value} if method.algorithm is not Algorithm.sft else {}),
        "batch_size": method.batch_size,
        # How many questions share a row decides which come in one step.
        "packing": method.packing.value,
        "max_questions_per_row": method.max_questions_per_row if method.packing is Packing.image else 1,
        "max_row_tokens": method.max_row_tokens,
        "trainer": {key: value for key, value in method.trainer.items() if key in deciding},
        "peft": method.peft,
        "quantization": method.quantization,
        **({"learning_rates": rates} if rates else {}),
        **({"early_stopping": early} if early else {}),
    }


def generation_hash(weights: str, spec: QuestionSet, config: Eval, without: str = "") -> str:
    """Hash of what decides the predictions on one set: the weights (a run's name), the set's rows, how it generates.

    The rows are those of `config.split`; `without` names a pass without their pictures.
    """
    settings = {key: value for key, value in vars(config.generation).items() if key not in ("batch_size", "packing")}
    of_test = config.split == Eval.split
    most = spec.max_test_rows if of_test else None
    rows = [load.fingerprint(spec, config.split), spec.language, spec.bad_rows.value, most, config.max_rows]
    closed = [config.closed.value] if config.closed is not Closed.generate else []
    read = [reading(spec)] if reading(spec) else []
    passed = [without] if without else [] if of_test else [config.split]  # one file may hold several splits
    return digest([weights, rows, settings, *closed, *passed, *read])


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


def weights_folder(init_from: str) -> Path:
    """Where the weights lie that `init_from` names: `final/` of a run, or the folder of an adapter or model itself.

    Raises DataError where it is none of these, and for a run that has trained nothing, or is not done with it.
    """
    folder = Path(init_from).expanduser()
    if (folder / "config.yaml").is_file():
        if (folder / "final").is_dir():
            return folder / "final"
        raise DataError(
            f"init_from: {folder} has no final/: its training is not done, or it holds only scores. Start its own "
            "command again until it is done, or name another run, an adapter or a model folder"
        )
    if adapters.is_adapter(folder) or (folder / "config.json").is_file():
        return folder
    raise DataError(
        f"init_from: {folder} is no run directory with a trained model in final/, no adapter folder "
        f"({adapters.CONFIG}) and no model folder (config.json)"
    )


def weights_fingerprint(folder: Path) -> str:
    """16 hex digits of what the weights in a folder are and how they are asked, wherever they and their base lie."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name not in _BESIDE]
    files = [path for path in files if not path.name.startswith(("rng_state", "."))]
    content = dict(zip((path.name for path in files), file_digests(files), strict=True))
    if adapters.CONFIG in content:
        said = json.loads((folder / adapters.CONFIG).read_text(encoding="utf-8"))
        said = {key: sorted(value) if isinstance(value, list) else value for key, value in said.items()}  # sets
        content[adapters.CONFIG] = digest({key: said[key] for key in said if key != "base_model_name_or_path"})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
