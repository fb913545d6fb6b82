"""Weights and sets from a Hugging Face Hub, here a small server that speaks its protocol."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zipfile import ZipFile

import pytest
from PIL import Image

from vlmft.fetch import without_waiting
from vlmft.models.tiny import write_tiny
from vlmft.schema import Model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Command = Callable[..., subprocess.CompletedProcess[str]]


class Hub:
    """Repositories are folders below `root`: models at <owner>/<name>, data sets at datasets/<owner>/<name>."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.gated: set[str] = set()
        self.broken: set[str] = set()  # file names that end in an error
        hub = self

        class Answer(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                path = urlsplit(self.path).path.strip("/")
                if path.startswith("api/"):
                    self._listing(path.removeprefix("api/").removeprefix("models/"))
                else:
                    repo, _, file = path.partition("/resolve/")
                    self._file(repo, file.partition("/")[2])

            def _listing(self, path: str) -> None:
                repo = "/".join(path.split("/")[: 3 if path.startswith("datasets/") else 2])
                folder = hub.root / repo
                if not folder.is_dir():
                    return self._say(401, b"{}", {"X-Error-Code": "RepoNotFound"})
                if "/tree/" in path:
                    tree = [{"type": "file", "path": str(f.relative_to(folder)), "size": f.stat().st_size,
                             "oid": _digest(f)} for f in folder.rglob("*") if f.is_file()]  # fmt: skip
                    return self._say(200, json.dumps(tree).encode())
                self._say(200, json.dumps({"id": repo.removeprefix("datasets/"), "sha": COMMIT}).encode())

            def _file(self, repo: str, name: str) -> None:
                if repo in hub.gated:
                    return self._say(403, b"", {"X-Error-Code": "GatedRepo"})
                if name in hub.broken:
                    return self._say(400, b"")
                file = hub.root / repo / name
                self._say(200, file.read_bytes(), {"ETag": f'"{_digest(file)}"', "X-Repo-Commit": COMMIT})

            def _say(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
                self.send_response(code)
                for key, value in (headers or {}).items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


def _digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    served = Hub(tmp_path / "hub")
    yield served
    served.server.shutdown()


@pytest.fixture
def environment(tmp_path: Path, hub: Hub) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    return kept | {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1"}


def slake(folder: Path) -> None:
    """Two pictures with two questions each, as BoKelvin/SLAKE holds them: validation.json and a zip of the images."""
    folder.mkdir(parents=True)
    rows = [
        {"img_id": n, "img_name": f"xmlab{n}/source.jpg", "question": f"Is it {word}?", "answer": answer,
         "q_lang": "en", "location": "Chest", "modality": "CT", "answer_type": "CLOSED", "base_type": "vqa",
         "content_type": "Color", "triple": ["vhead", "_", "_"], "qid": 2 * n + k}
        for n in (1, 2) for k, (word, answer) in enumerate((("red", "Yes"), ("blue", "No")))
    ]  # fmt: skip
    for name in ("train", "validation", "test"):
        (folder / f"{name}.json").write_text(json.dumps(rows))
    with ZipFile(folder / "imgs.zip", "w") as archive:
        for n in (1, 2):
            Image.new("RGB", (60, 60), (200, 30 * n, 30)).save(picture := folder.parent / "source.jpg")
            archive.write(picture, f"imgs/xmlab{n}/source.jpg")


def test_one_error_names_all_that_is_missing_and_nothing_is_left_behind(command: Command, tmp_path: Path) -> None:
    started = time.monotonic()
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = command("model=glm41v", "dataset=slake", "paths.root=data", env=environment)
    assert time.monotonic() - started < 5
    assert done.returncode == 1 and not done.stdout
    model, data = done.stderr.strip().splitlines()
    assert "zai-org/GLM-4.1V-9B-Thinking is no folder here" in model and "task=fetch model=glm41v" in model
    assert f"looked in {tmp_path / 'data' / 'slake'}" in data and "BoKelvin/SLAKE" in data
    assert str(tmp_path / "hf") in data and "task=fetch dataset=slake" in data and "paths.slake=" in data
    assert "no network" in model and "no network" in data
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_done_run_is_skipped_without_its_model(command: Command, tmp_path: Path, tiny: Model) -> None:
    """Only what is asked for is fetched: a skipped run needs neither weights nor network."""
    arguments = ("model=tiny_glm41v", "dataset=demo_ct", "debug=true", "eval=none", "hardware=cpu")
    assert command(*arguments).returncode == 0
    (run,) = (tmp_path / "outputs").glob("tiny*")
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    again = command(*arguments, env=environment)
    assert again.returncode == 0 and f"done      {run.relative_to(tmp_path)}" in again.stdout


def test_fetched_weights_and_data_train_without_a_network(
    command: Command, hub: Hub, environment: dict[str, str], tmp_path: Path
) -> None:
    write_tiny("glm41v", hub.root / "lab" / "twin")
    slake(hub.root / "datasets" / "lab" / "slake")
    chosen = ("model=tiny_glm41v", "model.tiny=null", "model.path=lab/twin", "dataset=slake", "dataset.hub=lab/slake")
    hub.broken.add("imgs.zip")
    cut_off = command("task=fetch", *chosen, env=environment)
    assert cut_off.returncode == 1 and "lab/slake: " in cut_off.stderr and not (tmp_path / "outputs").exists()
    hub.broken.clear()
    fetched = command("task=fetch", *chosen, env=environment)
    assert fetched.returncode == 0, fetched.stderr
    assert "set       slake train: 4 questions on 2 images" in fetched.stdout
    hub.server.shutdown()
    hub.server.server_close()
    trained = command(*chosen, "debug=true", "hardware=cpu", "dataset.absolute_paths=true", env=environment)
    assert trained.returncode == 0, trained.stderr
    (run,) = (tmp_path / "outputs").glob("tiny_glm41v-slake-lora-*")
    adapter = json.loads((run / "final" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "lab/twin", "the repository, not this machine's cache"
    assert json.loads((run / "provenance.json").read_text())["model"]["commit"] == COMMIT
    of_train = "2 of 2 test images of slake are in train (slake), 4 (image, question, answer) of 4 as well, 4 by id"
    assert f"leakage   {of_train}" in trained.stdout
    assert "slake: 2 of its 2 images are also trained on (with slake); without the 4 duplicate rows accuracy –" in (
        trained.stdout
    )


@pytest.mark.parametrize(
    ("token", "said"),
    [({}, "it is gated: ask for access at https://huggingface.co/lab/twin, then set HF_TOKEN"),
     ({"HF_TOKEN": "hf_wrong"}, "it is gated, and the token that is set (HF_TOKEN or `hf auth login`) has no access")],
)  # fmt: skip
def test_a_gated_repository_says_so(
    token: dict[str, str], said: str, command: Command, hub: Hub, environment: dict[str, str]
) -> None:
    write_tiny("glm41v", hub.root / "lab" / "twin")
    hub.gated.add("lab/twin")
    done = command("task=fetch", "model=glm41v", "model.path=lab/twin", env=environment | token)
    assert done.returncode == 1 and said in done.stderr, done.stderr


def test_a_repository_that_is_not_there_or_private_says_so(
    command: Command, hub: Hub, environment: dict[str, str]
) -> None:
    done = command("task=fetch", "model=glm41v", "model.path=lab/nothing", env=environment)
    assert done.returncode == 1 and "there is no such repository, or it is private and needs HF_TOKEN" in done.stderr


def test_a_child_asks_the_hub_only_where_it_answers_and_has_to(
    monkeypatch: pytest.MonkeyPatch, tiny: Model, tmp_path: Path
) -> None:
    monkeypatch.setattr("vlmft.hub.here", lambda *_: None)
    answers: list[str | None] = ["no network"]
    monkeypatch.setattr("vlmft.hub.unreachable", lambda *_: answers[0])
    there = replace(tiny, tiny=None, path="lab/model")
    assert without_waiting(there) == {"HF_HUB_OFFLINE": "1"}
    answers[0] = None
    assert without_waiting(there) == {}
    monkeypatch.setattr("vlmft.hub.here", lambda *_: tmp_path)
    assert without_waiting(there) == without_waiting(tiny) == {"HF_HUB_OFFLINE": "1"}
