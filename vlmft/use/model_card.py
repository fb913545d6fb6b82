"""README.md of an exported model: where it comes from, what it was trained on, how it was scored, how it is used."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from vlmft.data import leakage
from vlmft.data.mixture import training_sets
from vlmft.evaluation import results
from vlmft.evaluation.evaluate import TRAINED_ON
from vlmft.evaluation.floors import QUESTION_ONLY
from vlmft.evaluation.protocols import PROTOCOLS
from vlmft.evaluation.table import is_share, number
from vlmft.files import read_json
from vlmft.history import ranked
from vlmft.identity import method_facts
from vlmft.report.markdown import plain, table
from vlmft.report.tables import interval
from vlmft.schema import AnswerStyle, Config, Task

_FORM = {
    AnswerStyle.plain: "the answer alone",
    AnswerStyle.think: "`<think>thought</think>` and then the answer",
    AnswerStyle.answer: "`<answer>answer</answer>`",
    AnswerStyle.think_answer: "`<answer>answer</answer>`, after `<think>thought</think>` where it thinks first",
}
_TOKENS = {AnswerStyle.plain: 64, AnswerStyle.answer: 64, AnswerStyle.think: 2048, AnswerStyle.think_answer: 2048}


def card(run: Path, config: Config, parity: str, made: str, dtype: str, named: str) -> str:
    """The model card of what `run` trained: Markdown with YAML front matter, without any path of this machine.

    `parity` says how the exported model's logits differ from the run's, and `made` how it came to be.
    """
    sees = _sees(run, config)
    parts = [
        _front(config, sees),
        f"# {plain(named.rpartition('/')[2])}",
        f"{_origin(config)} {plain(made)} Saved in {dtype}, it was read back and compared with the model that was "
        f"trained: {plain(parity)}.",
        "## Training",
        *_training(run, config),
        "## Scores",
        *_scores(run),
        "## Use",
        f"Replies have the form {_FORM[config.model.answer_style]}."
        " The chat template, the pixel limits and the tokens that end a reply are saved with the model.",
        "```python\n" + _use(named, sees, _TOKENS[config.model.answer_style]) + "\n```",
        "It answers questions for research. It is no medical device, and its answers are no diagnosis.",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _sees(run: Path, config: Config) -> bool:
    """Whether the model takes pictures at all."""
    from vlmft.models.load import load_config
    from vlmft.use.trained import here

    said = load_config(here(run, config)[0])
    return getattr(said, "vision_config", None) is not None


def _front(config: Config, sees: bool) -> str:
    found: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text" if sees else "text-generation",
        "tags": ["vlmft", "medical", "visual-question-answering", config.method.name or "lora"],
    }
    if base := _repository(config):
        found["base_model"] = base
    if hubs := [spec.hub for spec in training_sets(config.dataset).values() if spec.hub]:
        found["datasets"] = list(dict.fromkeys(hubs))
    return f"---\n{yaml.safe_dump(found, sort_keys=False, allow_unicode=True)}---"


def _repository(config: Config) -> str | None:
    """The Hub's name of the base model; None where it is a folder here, which others do not have."""
    path = config.model.path
    named = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path) and not config.model.tiny and not Path(path).exists()
    return path if named else None


def _origin(config: Config) -> str:
    base = _repository(config)
    if base:
        revision = f" at revision {plain(config.model.revision)}" if config.model.revision else ""
        return f"Trained with vlmft from [{plain(base)}](https://huggingface.co/{base}){revision}."
    kind = ", a tiny random model" if config.model.tiny else ", a model in a folder"
    return f"Trained with vlmft from {plain(config.model.name)}{kind}."


def _training(run: Path, config: Config) -> Iterator[str]:
    if config.task is Task.eval:
        yield "The adapter was trained elsewhere; what on is not known here."
        return
    provenance, trained = read_json(run / "provenance.json") or {}, results.read(run)["train"] or {}
    rows = [[plain(name), f"{n:,}", f"{pictures:,}"] for name, n, pictures in _trained_on(run)]
    if rows:
        yield table(["set", "training questions", "pictures"], rows)
    if trained:
        loss = "" if trained.get("loss") is None else f", last loss {trained['loss']:.4f}{ranked(trained)}"
        yield f"{trained['steps']:,} steps, {trained['questions']:,} questions in {trained['seconds']:.0f} s{loss}."
    if config.init_from:
        before = (provenance.get("init_from") or {}).get("run")
        yield f"Training began with the weights of {f'the run {plain(before)}' if before else 'an earlier training'}."
    settings = {
        "method": config.method.name, "seed": config.seed, "answer_style": config.model.answer_style.value,
        "min_pixels": config.model.min_pixels, "max_pixels": config.model.max_pixels,
        "frozen": [part for part, still in vars(config.model.freeze).items() if still],
        "lora_targets": config.model.lora_targets if config.method.peft is not None else None,
    } | method_facts(config.method)  # fmt: skip
    yield table(["setting", "value"], [[plain(key), plain(value)] for key, value in _flat(settings)], names=2)
    attempt = (provenance.get("attempts") or [{}])[-1]
    versions = [f"{name} {version}" for name, version in attempt.get("packages", {}).items() if version]
    if versions:
        code = f"; vlmft at commit {attempt['commit'][:12]}" if attempt.get("commit") else ""
        yield f"Versions: {plain(', '.join(versions))}{code}."


def _trained_on(run: Path) -> list[tuple[str, int, int]]:
    """Of each set the questions and the pictures that were trained on."""
    found: dict[str, tuple[int, set[str]]] = {}
    for entry in leakage.read(run / TRAINED_ON) or []:
        n, pictures = found.get(entry["set"], (0, set()))
        found[entry["set"]] = n + len(entry["ids"]), pictures | {image["sha256"] for image in entry["images"]}
    return [(name, n, len(pictures)) for name, (n, pictures) in found.items()]


def _flat(node: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The settings that say something, without those that name a place on this machine."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        elif value not in (None, [], "") and not str(value).startswith(("/", "~")):
            yield f"{above}{key}", ", ".join(map(str, value)) if isinstance(value, list) else value


def _scores(run: Path) -> Iterator[str]:
    evaluations = {name: of for name, of in results.read(run)["evaluations"].items() if "." not in name}
    rows = []
    for name, found in evaluations.items():
        for protocol, scores in found["scores"].items():
            floor = found["floor"].get(QUESTION_ONLY, {}).get(protocol, {})
            head = scores["headline"]
            for metric in sorted(scores["metrics"], key=lambda metric: metric != head):
                of = scores["metrics"][metric]
                if of["value"] is None:
                    continue
                unit = " (%)" if is_share(metric) else ""
                rows.append([
                    plain(name), plain(protocol), plain(metric.replace("_", " ")) + unit, number(of["value"], metric),
                    interval(of["low"], of["high"], metric) or "–", f"{of['n']:,}", number(floor.get(metric), metric),
                ])  # fmt: skip
    if not rows:
        yield "It was not scored."
        return
    yield table(["set", "protocol", "metric", "value", "95 % interval", "n", "floor"], rows, names=3)
    yield "Floor: what the question alone gives away, as the most common training answer to it."
    used = dict.fromkeys(protocol for found in evaluations.values() for protocol in found["scores"])
    yield "\n".join(f"- {plain(name)}: {plain(PROTOCOLS[name].about)}" for name in used if name in PROTOCOLS)
    yield "\n".join(f"- {plain(line)}" for name, found in evaluations.items() for line in _leakage(name, found))


def _leakage(name: str, found: dict[str, Any]) -> list[str]:
    if "leakage" not in found:
        return [f"{name}: whether it was trained on is not known"]
    return leakage.sentences(found["leakage"], name) or [f"nothing of {name} is in train"]


def _use(named: str, sees: bool, tokens: int) -> str:
    kind, reader = ("ImageTextToText", "AutoProcessor") if sees else ("CausalLM", "AutoTokenizer")
    content = '[{"type": "image", "path": "picture.png"}, {"type": "text", "text": question}]' if sees else "question"
    place = "model.device, dtype=model.dtype" if sees else "model.device"
    return f"""\
from transformers import AutoModelFor{kind}, {reader}

processor = {reader}.from_pretrained("{named}")
model = AutoModelFor{kind}.from_pretrained("{named}", dtype="auto")
question = "Is there a fracture?"
said = [{{"role": "user", "content": {content}}}]
batch = processor.apply_chat_template(
    said, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
).to({place})
reply = model.generate(**batch, max_new_tokens={tokens}, do_sample=False)
print(processor.decode(reply[0, batch["input_ids"].shape[1] :], skip_special_tokens=True))"""
