"""A file or folder gets its name after its content is on the disk, and the name is on the disk after that."""

from pathlib import Path

import pytest

from megaslm.errors import ConfigError
from megaslm.files import finish_folder, new_folder, require_absent, start_folder, unfinished, write_file
from tests.disk_order import Call, record_disk_order


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    return record_disk_order(monkeypatch)


def test_a_file_is_synced_before_its_name_and_the_folder_after(tmp_path: Path, calls: list[Call]) -> None:
    path = tmp_path / "a.json"
    write_file(path, "{}")
    assert calls == [("sync", unfinished(path).name), ("rename", "a.json"), ("sync", tmp_path.name)]
    assert path.read_text() == "{}"


def test_all_of_a_folder_is_synced_before_its_name(tmp_path: Path, calls: list[Call]) -> None:
    path = tmp_path / "model"
    inner = start_folder(path) / "deep"
    inner.mkdir()
    (inner / "weights").write_bytes(b"w")
    calls.clear()
    finish_folder(path)
    before = calls[: calls.index(("rename", "model"))]
    assert set(before) == {("sync", name) for name in ("deep", "weights", unfinished(path).name)}
    assert calls[len(before) :] == [("rename", "model"), ("sync", tmp_path.name)]


def test_a_new_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a" / "b") as folder:
        (folder / "file").write_text("x")
    assert (tmp_path / "a/b/file").read_text() == "x"
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "c"):
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_cannot_be_made_is_the_mistake_of_its_user(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file/b"), new_folder(tmp_path / "file" / "b"):
        pass
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "link"):
        with pytest.raises(ConfigError, match=name):
            require_absent(tmp_path / name)
    require_absent(tmp_path / "free")
