"""A run tried out, in a child process: `python -m vlmft.dry_run FOLDER`. Five steps on the largest rows, one batch of
answers to the longest prompts, and what the whole run would take. FOLDER holds its config and goes afterwards."""

from __future__ import annotations

import logging
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from vlmft import worker
from vlmft.errors import DataError
from vlmft.schema import Config, read_config
from vlmft.status import Status
from vlmft.training.out_of_memory import too_large
from vlmft.training.prepare import Prepared, prepare

logger = logging.getLogger("vlmft.dry_run")

_SHOWN = 200  # characters of a reply


def dry_run(config: Config, folder: Path, status: Status) -> dict[str, Any]:
    """Try the run of `config` out in `folder`, and return what was measured and what follows from it.

    Raises DataError, NonFinite and RuntimeError as training would, and DataError where memory does not suffice.
    """
    import torch

    from vlmft.models.base import free_memory
    from vlmft.training.callbacks import Progress
    from vlmft.training.rehearsal import rehearse

    ready = prepare(config, folder, status)
    try:
        model, facts = rehearse(
            config, model=ready.model, encoder=ready.encoder, rows=ready.rows.rows, decisions=ready.decisions,
            run=folder, callbacks=[Progress(status)], stream=ready.stream,
        )  # fmt: skip
    except torch.OutOfMemoryError as error:
        raise DataError(too_large(ready.decisions)) from error
    free_memory()  # of the optimiser, as evaluation would find it
    found = {"training": facts, "evaluation": None, "outputs": _free_bytes(Path(config.paths["outputs"]))}
    if ready.tests:
        try:
            found["evaluation"] = _answers(config, ready, model, status)
        except torch.OutOfMemoryError as error:
            size = config.eval.generation.batch_size
            raise DataError(
                "out of GPU memory while answering the longest prompts: lower eval.generation.batch_size "
                f"(it is {size}) or model.max_pixels"
            ) from error
    return found


def _answers(config: Config, ready: Prepared, model: Any, status: Status) -> dict[str, Any]:
    """One batch of answers to the longest prompts of the first set, and how long all sets take at that speed."""
    import torch

    from vlmft.evaluation.generate import answer_all
    from vlmft.training.rehearsal import peak_memory

    name, (loaded, prompts) = next(iter(ready.tests.items()))
    order = sorted(range(len(prompts.rows)), key=lambda number: -len(prompts.rows[number].input_ids))
    order = order[: config.eval.generation.batch_size]
    status.phase(f"answering {name}")
    if ready.decisions.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    rows = [prompts.rows[number] for number in order]
    replies: dict[int, dict[str, Any]] = {}
    for numbers, said in answer_all(model, ready.encoder, rows, config.eval.generation):
        replies |= dict(zip(numbers, said, strict=True))  # tokens are here, so the GPU has finished
    seconds = time.perf_counter() - began
    tokens = sum(reply["tokens"] for reply in replies.values())
    passes = (1 + len(config.eval.ablations)) * (2 if config.eval.baseline else 1)
    questions = passes * sum(len(test.questions) for test, _ in ready.tests.values())
    return {
        "set": name,
        "batch": len(rows),
        "batch_seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "cut": sum(reply["finish_reason"] == "length" for reply in replies.values()),
        "memory": peak_memory(ready.decisions.device),
        "asked": loaded.questions[order[0]].text,
        "raw": replies[0]["raw"],
        "questions": questions,
        "seconds": questions * seconds / len(rows),
    }


def lines(found: dict[str, Any], config: Config) -> list[str]:
    """What `dry_run` found, a line for each fact."""
    facts, answers = found["training"], found["evaluation"]
    losses, gradients = facts["loss"], facts["gradients"]
    idle = gradients["idle_experts"]
    told = [
        f"loss      {losses[0]:.4g} → {losses[-1]:.4g} in {len(losses)} steps on the largest rows",
        f"gradients {gradients['reached']} of {gradients['trained']} trained weights"
        + (f"; the other {idle} are of experts that no token was sent to" if idle else ""),
        f"memory    training: {_memory(facts['memory'])}",
        f"speed     {facts['step_seconds']:.3g} s for a step, {facts['questions_per_second']:.3g} questions/s",
    ]
    if answers:
        cut = f", {answers['cut']} of them cut at eval.generation.max_new_tokens" if answers["cut"] else ""
        told += [
            f"answers   {answers['batch']} of {answers['set']}, longest prompts first: "
            f"{answers['tokens_per_second']:.3g} tokens/s{cut}",
            f"memory    evaluation: {_memory(answers['memory'])}",
            f"reply     {_short(answers['asked'])} → {_short(answers['raw'])}",
        ]
    told.append(
        f"forecast  training: {facts['steps']:,} steps, about {_duration(facts['seconds'])} "
        f"(at most {_duration(facts['most_seconds'])})" + (", without validation" if facts["validated"] else "")
    )
    if answers:
        told.append(
            f"forecast  evaluation: {answers['questions']:,} answers, about {_duration(answers['seconds'])} "
            "if they are as long as these"
        )
        told.append(f"forecast  in all about {_duration(facts['seconds'] + answers['seconds'])}")
    need, free = facts["disk_bytes"], found["outputs"]
    told.append(
        f"forecast  disk: {_size(need)} at most, final/ {_size(facts['final_bytes'])} and up to "
        f"{facts['checkpoints']} x {_size(facts['checkpoint_bytes'])} of checkpoints; "
        f"{_size(free)} are free in {config.paths['outputs']}"
        + ("" if need < free else ": TOO LITTLE, lower method.trainer.save_total_limit or set paths.outputs")
    )
    return told


def _free_bytes(folder: Path) -> int:
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())
    return shutil.disk_usage(there).free


def _memory(peak: dict[str, int]) -> str:
    if "process" in peak:
        return f"{_size(peak['process'])} at the peak of the process"
    share = 100 * peak["reserved"] / peak["device"]
    return f"{_size(peak['allocated'])} at the peak, {_size(peak['reserved'])} reserved ({share:.0f} % of the GPU)"


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")


def _size(count: int) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def main(arguments: list[str]) -> int:
    folder = Path(arguments[0])
    worker.heed_signals()
    config = read_config(folder / "config.yaml")
    worker.stay_offline([config])
    worker.log_to(folder, config.log_level)
    status = Status(folder)
    try:
        worker.quiet_libraries()
        print("\n".join(lines(dry_run(config, folder, status), config)), flush=True)
        status.finish("done")
        return 0
    except KeyboardInterrupt:
        for again in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C reaches this process and its parent, which passes it on
            signal.signal(again, signal.SIG_IGN)
        shutil.rmtree(folder, ignore_errors=True)  # the parent may be gone
        return 130
    except Exception as error:
        from vlmft.training.trainer import NonFinite

        logger.debug("the dry run failed", exc_info=True)  # there will be no log to look it up in
        known = isinstance(error, DataError | NonFinite)
        status.finish("failed", str(error) if known else f"{type(error).__name__}: {error} (log_level=debug: where)")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
