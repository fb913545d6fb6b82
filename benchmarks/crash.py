"""Kills at drawn moments: a training that is started again comes to the weights of an undisturbed one, bit for bit.

    python benchmarks/crash.py [--kills 30] [--seed 0] [--together 2] [--json]

Short runs of the tiny GLM-4.1V on the CPU: all weights, LoRA with dropout, and DPO. Half of the kills fall into the
steps, half into the saving of a checkpoint: before one of its calls, or with half of a file written. The ordinary
command is killed, started again, perhaps killed at a later moment, and in the end left to finish. A run that cannot
go on, or goes on from before the last save that had ended, counts as not equal. All is drawn from the seed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import deadly
from deadly import IN_A_STEP, ORDER, WRITES

ROOT = Path(__file__).resolve().parents[1]
STEPS, SAVE_EVERY, PAIRS = 24, 4, 48
COMMON = ("model=tiny_glm41v", "method.batch_size=4", "hardware.micro_batch=2", "hardware=cpu", "eval=none",
          "check=false", "method.trainer.learning_rate=1e-3", f"method.trainer.max_steps={STEPS}",
          f"method.trainer.save_steps={SAVE_EVERY}")  # fmt: skip
DEMO = ("dataset=demo_ct", "dataset.max_rows=40")
KINDS = {
    "full": (*DEMO, "method=full"),
    "lora": (*DEMO, "method=lora", "method.peft.lora_dropout=0.1"),
    "dpo": ("dataset=pairs", "dataset.absolute_paths=true", "method=dpo"),
}
SIGNALS = ("SIGKILL", "SIGTERM", "SIGUSR2", "SIGKILL", "SIGKILL")  # to all, to the command, to all
PATIENCE = 300  # seconds for one start

# Found by Python at start through PYTHONPATH, in the command and in its worker.
AT_START = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("deadly", {deadly.__file__!r})
deadly = importlib.util.module_from_spec(spec)
spec.loader.exec_module(deadly)
deadly.arm()
"""


@dataclass(frozen=True)
class Kill:
    """A moment in the training, and what is sent then."""

    kind: str
    signal: str
    step: int
    in_step: str = ""  # of IN_A_STEP; "" for one inside the save after the step
    call: int = 0  # of the save's calls, from 1
    calls: int = 0  # that the save has when nothing happens
    half: bool = False  # with half of the call's file written


@dataclass
class Fallen:
    """A kill that was carried out: where it fell, how the run went on, and what is wrong; "" where nothing is."""

    kill: Kill
    moment: str
    call: int
    then: str = ""
    wrong: str = ""


def started(words: Sequence[str], folder: Path, **order: Any) -> subprocess.CompletedProcess[str]:
    """The command with its outputs in `folder`, as it ended; watched where there is an order."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if order:
        paths = [str(folder.parent / "at_start"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment |= {"PYTHONPATH": os.pathsep.join(paths), ORDER: json.dumps(order)}
    return run([str(ROOT / "train.py"), *COMMON, *words, f"paths.outputs={folder}"], folder, environment)


def run(words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """What Python is told, in a session of its own; after PATIENCE it is killed, and its code is not 0."""
    process = subprocess.Popen(
        [sys.executable, *words], cwd=folder, env=environment,
        start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        said, wrong = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, wrong = process.communicate()
        wrong += f"still at work after {PATIENCE} s"
    return subprocess.CompletedProcess(process.args, process.returncode, said, wrong)


def weights(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of weights of the one run in `folder`; empty where it has no final/."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.glob("*/final/*.safetensors")}


def undisturbed(
    work: Path, words: Mapping[str, Sequence[str]], kind: str
) -> tuple[dict[str, str], dict[int, list[str]]]:
    """The weights that a kind of run comes to when nothing happens, and the calls of each of its saves."""
    folder = work / kind
    folder.mkdir()
    done = started(words[kind], folder, kill=None, saves=str(folder / "saves.jsonl"))
    if done.returncode or not weights(folder):
        raise SystemExit(f"the undisturbed run of {kind} failed ({folder}):\n{done.stderr[-2000:]}")
    lines = (folder / "saves.jsonl").read_text(encoding="utf-8").splitlines()
    return weights(folder), dict(map(json.loads, lines))


def draw(count: int, seed: int, saves: dict[str, dict[int, list[str]]]) -> list[list[Kill]]:
    """The kills of each run: of one kind, each at a later step than the one before, so that none is passed over."""
    chance = random.Random(seed)
    inside = [number % 2 == 0 for number in range(count)]
    signals = [SIGNALS[number % len(SIGNALS)] for number in range(count)]
    chance.shuffle(inside)
    chance.shuffle(signals)
    runs: dict[str, list[list[Kill]]] = {kind: [[]] for kind in saves}
    for number, (in_save, sent) in enumerate(zip(inside, signals, strict=True)):
        kind = list(saves)[number % len(saves)]
        kill = Kill(kind, sent, chance.randint(1, STEPS), chance.choice(IN_A_STEP))
        if in_save:
            step = chance.choice(list(saves[kind]))
            calls = saves[kind][step]
            name = chance.choice(sorted(set(calls)))  # else nearly all would fall before an fsync
            call = chance.choice([place for place, one in enumerate(calls, 1) if one == name])
            half = name in WRITES and sent == "SIGKILL" and chance.random() < 0.5  # else it would be written on
            kill = Kill(kind, sent, step, call=call, calls=len(calls), half=half)
        if runs[kind][-1] and runs[kind][-1][-1].step >= kill.step:
            runs[kind].append([])
        runs[kind][-1].append(kill)
    return [kills for of_kind in runs.values() for kills in of_kind if kills]


def killed(
    work: Path, words: Mapping[str, Sequence[str]], expected: dict[str, dict[str, str]], given: tuple[int, list[Kill]]
) -> list[Fallen]:
    """Carry out the kills of one run, and let it finish; its folder stays where anything is wrong."""
    number, kills = given
    kind, lost = kills[0].kind, ""
    folder = work / f"run-{number}"
    folder.mkdir()
    fallen: list[Fallen] = []
    for kill in (*kills, None):
        fell = folder / "fell.json"
        fell.unlink(missing_ok=True)
        order = {"kill": asdict(kill), "fell": str(fell), "saves": os.devnull} if kill else {}
        done = started(words[kind], folder, **order)
        if fallen:
            fallen[-1].then, fallen[-1].wrong = went_on(done, fallen[-1].kill)
        if kill and fell.is_file() and done.returncode:
            fallen.append(Fallen(kill, *json.loads(fell.read_text(encoding="utf-8"))))
        elif kill or done.returncode:
            lost = f"start {len(fallen) + 1} ended with {done.returncode}: {done.stderr.strip()[-600:]}"
            break
    fallen += [Fallen(kill, "not reached", kill.call) for kill in kills[len(fallen) :]]
    same = weights(folder) == expected[kind]
    for one in fallen:
        one.wrong = lost or one.wrong or ("" if same else "other weights")
        one.wrong += f" ({folder})" if one.wrong else ""
    if not any(one.wrong for one in fallen):
        shutil.rmtree(folder)
    return fallen


def went_on(done: subprocess.CompletedProcess[str], kill: Kill) -> tuple[str, str]:
    """How the start after a kill went on, and what is wrong with it."""
    saved = (kill.step - 1) // SAVE_EVERY * SAVE_EVERY
    found = re.search(r"^resume +from checkpoint-(\d+)$", done.stdout, re.MULTILINE)
    step = int(found[1]) if found else 0
    return f"went on from step {step}", f"checkpoint-{saved} was whole" if step < saved else ""


def line(one: Fallen) -> str:
    """A kill in words: of what, by what, where, and what came of it."""
    kill = one.kill
    place = f"step {kill.step}, {one.moment}"
    if not kill.in_step:
        half = ", half written" if kill.half else ""
        place = f"in the save of step {kill.step}, call {one.call} of {kill.calls}: {one.moment}{half}"
    came = ", ".join(filter(None, [one.then, f"NOT EQUAL: {one.wrong}" if one.wrong else "equal"]))
    return f"{kill.kind:5}{kill.signal:8} {place:74} {came}"


def place_of(one: Fallen) -> str:
    """The bar of the histogram: a fifth of the steps, or a call of a save."""
    if not one.kill.in_step:
        return f"save: {one.moment}"
    fifth = (one.kill.step - 1) * 5 // STEPS
    inside = [step for step in range(1, STEPS + 1) if (step - 1) * 5 // STEPS == fifth]
    return f"steps {inside[0]:2} to {inside[-1]:2}"


def counts(fallen: Sequence[Fallen], of: Callable[[Fallen], str]) -> dict[str, dict[str, int]]:
    """Kills, and those after which all was equal, by what `of` says of them."""
    told: dict[str, dict[str, int]] = {}
    for one in sorted(fallen, key=of):
        bar = told.setdefault(of(one), {"kills": 0, "equal": 0})
        bar["kills"] += 1
        bar["equal"] += not one.wrong
    return told


def pairs(folder: Path) -> None:
    """A folder of pairs about the drawn CT pictures: the gold answer, and that of another question."""
    from vlmft.config_check import composed
    from vlmft.data.load import load

    questions = load(composed(["dataset=demo_ct", "dataset.max_rows=null"]).dataset, "train").questions[:PAIRS]
    answers = sorted({question.answer for question in questions})
    rows = [
        {
            "id": question.id, "messages": [{"role": "user", "content": question.text}],
            "images": list(question.images), "chosen": question.answer,
            "rejected": answers[answers.index(question.answer) - 1],
        }
        for question in questions
    ]  # fmt: skip
    folder.mkdir()
    (folder / "train.json").write_text(json.dumps(rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of moments and signals")
    parser.add_argument("--together", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a line for each kill")
    options = parser.parse_args()
    if min(options.kills, options.together) < 1:
        parser.error("--kills and --together are at least 1")
    begun = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="crash-"))
    os.environ["VLMFT_CACHE"] = str(work / "cache")
    pairs(work / "pairs")
    (work / "at_start").mkdir()
    (work / "at_start" / "sitecustomize.py").write_text(AT_START, encoding="utf-8")
    words = {**KINDS, "dpo": (*KINDS["dpo"], f"paths.pairs={work / 'pairs'}")}
    fallen: list[Fallen] = []
    with ThreadPoolExecutor(options.together) as pool:
        known = dict(zip(words, pool.map(partial(undisturbed, work, words), words), strict=True))
        runs = draw(options.kills, options.seed, {kind: saves for kind, (_, saves) in known.items()})
        expected = {kind: files for kind, (files, _) in known.items()}
        for of_run in pool.map(partial(killed, work, words, expected), enumerate(runs, 1)):
            fallen += of_run
            if not options.json:
                print("\n".join(map(line, of_run)), flush=True)
    equal = sum(not one.wrong for one in fallen)
    result = {
        "kills": len(fallen),
        "inside_a_save": sum(not one.kill.in_step for one in fallen),
        "equal": equal,
        "by_kind": counts(fallen, lambda one: one.kill.kind),
        "by_signal": counts(fallen, lambda one: one.kill.signal),
        "by_place": counts(fallen, place_of),
        "seconds": time.monotonic() - begun,
    }
    if options.json:
        print(json.dumps(result))
    else:
        table(result)
    if equal < len(fallen):
        if options.json:
            print("\n".join(line(one) for one in fallen if one.wrong), file=sys.stderr)
        raise SystemExit(f"what was not equal is kept in {work}")
    shutil.rmtree(work)


def table(found: dict[str, Any]) -> None:
    for what in ("by_kind", "by_signal", "by_place"):
        print()
        for name, bar in found[what].items():
            print(f"  {name:26} {bar['kills']:3}  {'#' * bar['kills']}")
    print(f"\n{found['inside_a_save']} inside a save, {found['seconds']:.0f} s")
    print(f"{found['equal']} of {found['kills']} bitwise equal")


if __name__ == "__main__":
    main()
