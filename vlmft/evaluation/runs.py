"""Trained models on test sets, one after the other in one process: what they have in common is made once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmft import ranks
from vlmft.evaluation.evaluate import Known, chosen_sets, evaluate
from vlmft.hardware import Decisions, decide
from vlmft.models.adapters import is_adapter
from vlmft.models.base import Base, base_key, place, use_own_gpu
from vlmft.schema import Config, Hardware, Model, SplitModel
from vlmft.status import Status

if TYPE_CHECKING:
    from vlmft.chat.encode import Encoder


def in_turn(runs: Mapping[Path, Config]) -> list[Path]:
    """The runs in their order, but those on one base follow each other, and among them those that read alike."""
    bases, readers = {}, {}
    for run, config in runs.items():
        spec, quantization, _ = trained(config, run)
        bases[run], readers[run] = base_key(spec, quantization), _reader_key(spec)
    first = {key: number for number, key in enumerate(dict.fromkeys([*bases.values(), *readers.values()]))}
    return sorted(runs, key=lambda run: (first[bases[run]], first[readers[run]]))


def trained(config: Config, run: Path) -> tuple[Model, dict[str, Any] | None, Path | None]:
    """What a run trained: the checkpoint that stands under it, its quantisation, and the adapter's folder, if any.

    Of a run that trained nothing: its model as it is, or with the adapter that `init_from` names.
    """
    final = run / "final"
    if final.is_dir() and not is_adapter(final):
        return replace(config.model, path=str(final), tiny=None, revision=None), None, None
    adapter = final if final.is_dir() else Path(config.init_from) if config.init_from else None
    return config.model, config.method.quantization, adapter


class Together:
    """The base model and the prompts that runs share; pass the same one for each, in the order of `in_turn`."""

    def __init__(self) -> None:
        self.base = Base()
        self._reader = ""
        self._encoder: Encoder | None = None
        self._known: Known = {}

    def evaluate(self, config: Config, run: Path, wanted: Config, status: Status) -> None:
        """The trained model of `run` on the sets that `wanted` names, as far as their predictions are missing.

        Several processes share the questions; each of them has to come here.
        """
        sets = chosen_sets(wanted.eval, config.dataset)
        if not sets:
            return
        status.phase("loading the model")
        use_own_gpu()
        decisions = _decided(config, wanted.hardware)
        spec, quantization, adapter = trained(config, run)
        encoder = self._encoder_of(spec)
        dtype = "bfloat16" if decisions.bf16 else decisions.load_dtype
        split_model = wanted.hardware.split_model is SplitModel.auto
        with self.base.wearing(adapter, spec, dtype, quantization, decisions.device, split_model) as model:
            evaluate(
                run, sets, wanted.eval, model=model, encoder=encoder, known=self._known,
                max_row_tokens=config.method.max_row_tokens,
                over_long=config.dataset.over_long, status=status,
            )  # fmt: skip

    def _encoder_of(self, spec: Model) -> Encoder:
        from vlmft.chat.encode import Encoder
        from vlmft.models.load import load_processor, stop_ids

        if self._encoder is None or self._reader != _reader_key(spec):
            self._encoder, self._known = Encoder(load_processor(spec), spec.answer_style, stop_ids(spec)), {}
            self._reader = _reader_key(spec)
        return self._encoder


def _decided(config: Config, hardware: Hardware) -> Decisions:
    """Where and in what type the model answers; no step is divided here, by whatever number of processes."""
    method = replace(config.method, batch_size=ranks.count())
    return decide(config.model, method, replace(hardware, micro_batch="auto"))


def _reader_key(spec: Model) -> str:
    """The same for models whose processors turn a question into the same tokens and patches."""
    limits = (spec.min_pixels, spec.max_pixels)
    return repr((place(spec), limits, spec.answer_style.value, spec.trust_remote_code))
