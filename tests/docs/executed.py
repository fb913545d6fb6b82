"""The commands of pages, executed in order in one folder that has what a user would have."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conftest import ROOT
from tests.docs.commands import Command, commands, elsewhere, jobs, program, stood_in
from tests.evaluation.chat_server import said, serving
from tests.prepared import Prepared
from vlmft.config_check import composed
from vlmft.data.load import load
from vlmft.data.samples import write_sample
from vlmft.schema import QuestionSet

Run = Callable[..., "subprocess.CompletedProcess[str]"]
WATCHED = 4  # seconds that a command without an end of its own is watched for
QUESTIONS = "Which organ is this?\n/quit\n"  # of a conversation
ORGANS = ("liver", "lung", "heart", "brain")


class Folder:
    """Where the commands of some pages are typed."""

    def __init__(self, folder: Path, run: Run, prepared: Prepared) -> None:
        self.folder, self.run, self.prepared, self.server = folder, run, prepared, ""
        self.done: dict[str, str] = {}  # what was executed -> the place of the command
        self.elsewhere: list[Command] = []

    def prepare(self) -> None:
        """Drawn sets in their publishers' forms in data/, a set in the conversation form, two runs, a Slurm."""
        for kind in ("slake", "vqa_rad", "pathvqa", "pmc_vqa", "flare25", "aqua"):
            write_sample(kind, self.folder / "data" / kind)
        (self.folder / "data" / "semart").symlink_to("aqua")
        slake = QuestionSet(name="slake", format="slake", path=str(self.folder / "data" / "slake"), language="en")
        asked = {split: load(slake, split).questions for split in ("train", "test")}
        mine = self.folder / "my_set"
        (mine / "ct").mkdir(parents=True)
        for split, questions in asked.items():
            rows = []
            for number, question in enumerate(questions[:24]):
                name = f"ct/{split}{number}.jpg"
                shutil.copyfile(question.images[0], mine / name)
                human = {"from": "human", "value": f"<image>\n{question.turns[-1].question}"}
                turns = [human, {"from": "gpt", "value": question.turns[-1].answer}]
                rows.append(
                    {"id": number, "image": name, "modality": ("CT", "MRI")[number % 2], "conversations": turns}
                )
            (mine / f"{split}.json").write_text(json.dumps(rows))
        shutil.copyfile(asked["test"][0].images[0], self.folder / "scan.png")
        theirs = [{"question_id": question.id.split("/")[-1], "text": "Yes"} for question in asked["test"]]
        (self.folder / "theirs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in theirs))
        for seed, name in enumerate("ab"):
            command = Command("a run", seed, f"python train.py model=glm41v dataset=slake seed={seed}")
            done = self.run(*stood_in(command, "glm41v", "").words[2:])
            assert done.returncode == 0, done.stdout + done.stderr
            made = Path(next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("run ")))
            shutil.copytree(self.folder / made, self.folder / "outputs" / name)
        (self.folder / "my_models").mkdir()
        shutil.copytree(self.folder / "outputs" / "a" / "final", self.folder / "my_models" / "mine")
        programs = self.folder / "bin"
        programs.mkdir()
        for name, script in {"sbatch": "echo Submitted batch job 7", "squeue": "exit 1", "sacct": "exit 1"}.items():
            (programs / name).write_text(f"#!/bin/sh\n{script}\n")
            (programs / name).chmod(0o755)

    def execute(self, page: Path) -> Iterator[str]:
        """What went wrong with the commands of a page, if anything."""
        for command in commands(page):
            if not command.typed:
                continue
            if elsewhere(command):
                self.elsewhere.append(command)
                continue
            named = not command.keys or any(key.startswith("model=") for key in command.keys)
            model = "" if named else composed(jobs(command.keys)[0]).model.name
            own = stood_in(command, model, self.server)
            if own.text in self.done:
                continue
            begun = time.monotonic()
            code, said = self._one(own)
            self.done[own.text] = command.place
            print(f"{time.monotonic() - begun:5.1f} s  {command.place}\n         {own.text}")
            if code:
                yield f"{command.place}\n{own.text}\nexit code {code}\n{said[-3000:]}"

    def _one(self, command: Command) -> tuple[int, str]:
        name, words = program(command.text), command.words
        if name == "make":
            done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=300)
            return done.returncode, done.stdout + done.stderr
        if name == "vlmft":
            self._before(words)
            if words[1] == "export" and "--out" not in words and "--validate" not in words:
                words += ["--out", f"exported-{len(self.done)}"]
            words[0] = str(Path(sys.executable).with_name("vlmft"))
            if "--watch" in words:
                return self._watched(words)
            done = self.prepared.run(words, self.folder, stdin=QUESTIONS)
            return done.returncode, done.stdout + done.stderr
        assert name == "python train.py", f"{command.place}: no rule says how this is executed"
        # On PATH is a Slurm that submits; all else of train.py is told by the words.
        slurm = any(word.startswith("hardware=slurm") for word in words)
        path = {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"} if slurm else {}
        done = self.run(*words[2:], **({"env": os.environ | path} if slurm else {}))
        return done.returncode, done.stdout + done.stderr

    def _before(self, words: Sequence[str]) -> None:
        """What a random twin says cannot be read; of readable mistakes there are pairs."""
        if words[1] == "pairs":
            (file,) = (self.folder / words[2]).glob("predictions_*.train.jsonl")
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            for row in rows:
                wrong = next(organ for organ in ORGANS if organ not in row["gold"].lower())
                closed = {"yes": "no", "no": "yes"}.get(row["gold"].lower())
                row |= {"raw": f"<answer>{closed or wrong}</answer>", "finish_reason": "stop"}
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def _watched(self, words: Sequence[str]) -> tuple[int, str]:
        """A command that goes on until Ctrl-C, which ends it without an error."""
        process = subprocess.Popen(words, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        time.sleep(WATCHED)
        process.send_signal(signal.SIGINT)
        shown, _ = process.communicate(timeout=60)
        return process.returncode, shown


@contextmanager
def served(folder: Folder) -> Iterator[None]:
    """A server of chat completions, whose answer to every question is the same."""

    def answer(_: dict[str, Any], __: int) -> Any:
        return said("Yes")

    with serving(answer, models=("Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3-8B")) as server:
        folder.server = server.url
        yield
