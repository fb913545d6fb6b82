from __future__ import annotations

from pathlib import Path

from vlmft.training import checkpoints


def checkpoint(run: Path, step: int, sealed: bool = True) -> Path:
    folder = run / f"checkpoint-{step}"
    (folder / "deeper").mkdir(parents=True)
    (folder / "weights").write_bytes(b"w" * step)
    (folder / "deeper" / "state").write_bytes(b"s")
    if sealed:
        checkpoints.seal(folder, step, seconds=1.5)
    return folder


def test_the_newest_whole_one_is_taken_by_number(tmp_path: Path) -> None:
    checkpoint(tmp_path, 9)
    newest = checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 11, sealed=False)
    assert checkpoints.newest(tmp_path) == newest
    manifest = checkpoints.manifest(newest)
    assert manifest and manifest["step"] == 10 and manifest["seconds"] == 1.5


def test_damage_is_noticed(tmp_path: Path) -> None:
    kept = checkpoint(tmp_path, 1)
    (checkpoint(tmp_path, 2) / "weights").write_bytes(b"w")
    (checkpoint(tmp_path, 3) / "deeper" / "state").unlink()
    (checkpoint(tmp_path, 4) / checkpoints.MANIFEST).write_text("{")
    assert checkpoints.newest(tmp_path) == kept
    assert sorted(checkpoints.remove_broken(tmp_path)) == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_one_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    written = checkpoint(tmp_path / checkpoints.SAVING, 5, sealed=False)
    assert checkpoints.newest(tmp_path) is None
    checkpoints.put_in_place(tmp_path, "checkpoint-5", 5, seconds=1.5)
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoint-5" and not written.parent.exists()
    checkpoint(tmp_path / checkpoints.SAVING, 5, sealed=False)
    checkpoints.put_in_place(tmp_path, "checkpoint-5", 5, seconds=9.0)  # saved for a second reason
    assert checkpoints.manifest(tmp_path / "checkpoint-5") == {  # as it was
        "step": 5, "seconds": 1.5, "files": {"deeper/state": 1, "weights": 5},
    }  # fmt: skip
    checkpoint(tmp_path / checkpoints.SAVING, 6, sealed=False)
    assert checkpoints.remove_broken(tmp_path) == ["checkpoint-6"] and not (tmp_path / checkpoints.SAVING).exists()


def test_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path) is None and checkpoints.remove_broken(tmp_path) == []
