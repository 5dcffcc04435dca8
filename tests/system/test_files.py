"""Files that are whole or absent, and names that only one process can take."""

import errno
import os
import threading
from pathlib import Path

import pytest

from orchestrator.errors import StateError
from orchestrator.system import files
from orchestrator.system.files import (
    create,
    draft_of,
    listed,
    make_folder,
    make_private,
    parsing,
    read_json,
    read_text,
    replace_text,
    replacing,
    take_by_rename,
    write_text,
)


def take(path: Path, content: str, *, mine=lambda: False) -> bool:
    with draft_of(path) as draft:
        draft.mkdir()
        (draft / "claim").write_text(content)
        return take_by_rename(draft, path, mine=mine)


def test_of_many_who_take_a_name_at_once_one_has_it_and_no_draft_is_left(tmp_path):
    name, together, won = tmp_path / "a 001", threading.Barrier(8), []

    def work(number: int) -> None:
        together.wait()
        if take(name, str(number)):
            won.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(name / "claim").read_text()] == [str(number) for number in won]
    assert list(tmp_path.iterdir()) == [name]


def test_a_rename_that_succeeded_and_was_reported_as_failed_has_taken_the_name(tmp_path):
    name = tmp_path / "name"
    assert take(name, "ours")
    assert take(name, "ours", mine=lambda: (name / "claim").read_text() == "ours")
    assert not take(name, "theirs", mine=lambda: (name / "claim").read_text() == "theirs")


def test_an_empty_folder_is_nobodys(tmp_path):
    (tmp_path / "name").mkdir()
    assert take(tmp_path / "name", "ours")


def test_a_rename_that_fails_while_nobody_has_the_name_is_an_error_and_leaves_no_draft(tmp_path):
    with draft_of(tmp_path / "name") as draft:
        draft.mkdir()
        with pytest.raises(FileNotFoundError):
            take_by_rename(draft, tmp_path / "absent" / "name", mine=lambda: False)
        assert not draft.exists()
    assert list(tmp_path.iterdir()) == []


def test_what_is_drafted_and_never_renamed_leaves_nothing(tmp_path):
    with draft_of(tmp_path / "name") as draft:
        draft.mkdir()
        (draft / "claim").write_text("half")
    assert list(tmp_path.iterdir()) == []


def _fail_half_way(file: Path) -> None:
    assert file.suffix == ".txt"
    file.write_text("half")
    raise ZeroDivisionError


@pytest.mark.parametrize("sync", [False, True])
def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path, sync):
    path = tmp_path / "an 'odd' name\n.txt"
    replace_text(path, "größe", sync=sync)
    with pytest.raises(ZeroDivisionError), replacing(path, sync=sync, suffix=".txt") as temporary:
        _fail_half_way(temporary)
    assert path.read_text(encoding="utf-8") == "größe"
    assert list(tmp_path.iterdir()) == [path]


def test_what_writes_nothing_replaces_nothing(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "file", sync=True):
        pass
    assert list(tmp_path.iterdir()) == []


# --- a network filesystem: lost answers ------------------------------------------------------------------------


class LostAnswer:
    """Does what the system is asked to do, and raises for the first calls as if it had failed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, number: int, times: int = 1) -> None:
        self._real, self._number, self.left = getattr(os, name), number, times
        monkeypatch.setattr(os, name, self)

    def __call__(self, *args: object, **options: object) -> object:
        found = self._real(*args, **options)
        if self.left:
            self.left -= 1
            raise OSError(self._number, os.strerror(self._number), str(args[-1]))
        return found


LOST = [errno.EIO, errno.ENOENT, errno.ETIMEDOUT]
"""What a soft mount says of a rename that was done, and what the server says of its repetition."""


@pytest.mark.parametrize("number", LOST)
def test_what_was_published_though_its_rename_failed_stays(tmp_path, monkeypatch, number):
    name = tmp_path / "a001"
    LostAnswer(monkeypatch, "rename", number)
    assert take(name, "ours", mine=lambda: (name / "claim").read_text() == "ours")
    assert (name / "claim").read_text() == "ours"
    assert list(tmp_path.iterdir()) == [name]


def test_a_draft_that_cannot_be_told_from_what_was_published_is_not_removed(tmp_path, monkeypatch):
    name = tmp_path / "a001"
    with draft_of(name) as draft:
        draft.mkdir()
        (draft / "claim").write_text("ours")
        draft.rename(name)
        name.rename(draft)  # as a name that is remembered leads there
        monkeypatch.setattr(os, "listdir", lambda _: _raise(errno.EIO))
    monkeypatch.undo()
    assert (draft / "claim").read_text() == "ours"


def _raise(number: int) -> list[str]:
    raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("number", LOST)
@pytest.mark.parametrize("earlier", [None, "old"])
def test_a_file_whose_replacement_was_reported_as_failed_is_replaced(tmp_path, monkeypatch, number, earlier):
    path = tmp_path / "end.json"
    if earlier:
        replace_text(path, earlier)
    LostAnswer(monkeypatch, "replace", number)
    replace_text(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.EIO, errno.EEXIST])
def test_a_folder_or_file_that_was_made_though_that_failed_is_there(tmp_path, monkeypatch, number):
    LostAnswer(monkeypatch, "mkdir", number)
    make_private(tmp_path / "private" / "deep")
    LostAnswer(monkeypatch, "mkdir", number)
    make_folder(tmp_path / "folder" / "deep")
    assert (tmp_path / "private" / "deep").is_dir()
    assert (tmp_path / "folder" / "deep").is_dir()
    LostAnswer(monkeypatch, "open", errno.EIO)
    create(tmp_path / "file")
    assert (tmp_path / "file").is_file()
    with pytest.raises(FileExistsError):
        create(tmp_path / "file")
    LostAnswer(monkeypatch, "open", errno.EEXIST)
    replace_text(tmp_path / "replaced", "text")
    LostAnswer(monkeypatch, "open", errno.EEXIST)
    write_text(tmp_path / "written", "text")
    with pytest.raises(FileExistsError):
        write_text(tmp_path / "written", "other")
    assert (tmp_path / "replaced").read_text() == (tmp_path / "written").read_text() == "text"


def test_what_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "file")
    with pytest.raises(StateError):
        make_private(tmp_path / "file" / "below")


def test_a_name_that_is_believed_to_be_missing_is_found_by_listing(tmp_path, monkeypatch):
    """As a client that has looked for `run` before somebody else made it: only a listing of its parent shows it."""
    (tmp_path / "runs" / "run").mkdir(parents=True)
    (tmp_path / "runs" / "run" / "a001").touch()
    believed, real = {str(tmp_path / "runs" / "run"), str(tmp_path / "runs")}, os.listdir

    def listdir(folder: Path) -> list[str]:
        if str(folder) in believed:
            raise FileNotFoundError(errno.ENOENT, "believed", str(folder))
        found = real(folder)
        believed.difference_update(str(Path(folder) / name) for name in found)
        return found

    monkeypatch.setattr(os, "listdir", listdir)
    assert listed(tmp_path / "runs" / "run" / "a001")
    assert not listed(tmp_path / "runs" / "run" / "a002")
    assert not listed(tmp_path / "absent" / "deep" / "a001")


# --- a network filesystem: errors that pass ---------------------------------------------------------------------


class Failing:
    """Fails for the first calls, and does nothing of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: object, name: str, number: int, times: int) -> None:
        self._real, self._number, self.left = getattr(module, name), number, times
        monkeypatch.setattr(module, name, self)
        monkeypatch.setattr(files, "_PAUSES_SECONDS", (0.0, 0.0, 0.0))

    def __call__(self, *args: object, **options: object) -> object:
        if self.left:
            self.left -= 1
            raise OSError(self._number, os.strerror(self._number), str(args[0]))
        return self._real(*args, **options)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("name", ["open", "mkdir", "replace", "rename"])
def test_what_fails_for_a_moment_is_tried_again(tmp_path, monkeypatch, name, number):
    failing = Failing(monkeypatch, os, name, number, times=2)
    make_private(tmp_path / "deep" / "er")
    replace_text(tmp_path / "file", "text")
    assert read_text(tmp_path / "file") == "text"
    assert take(tmp_path / "name", "ours")
    assert failing.left == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "file", "name"]


@pytest.mark.parametrize(("number", "times"), [(errno.EIO, 100), (errno.ENOSPC, 1)])
def test_what_fails_for_longer_or_for_another_reason_is_an_error(tmp_path, monkeypatch, number, times):
    Failing(monkeypatch, os, "open", number, times)
    with pytest.raises(OSError, match=os.strerror(number)):
        create(tmp_path / "file")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_filesystem_that_fails_is_not_called_a_damaged_file(tmp_path, monkeypatch, number):
    path = tmp_path / "launch.json"
    path.write_text("{}")
    Failing(monkeypatch, os, "open", number, times=100)
    with pytest.raises(StateError, match="cannot read") as failed:
        read_json(path)
    assert os.strerror(number) in failed.value.why
    assert "backup" not in failed.value.fix
    with pytest.raises(StateError, match="cannot read"), parsing(path):
        read_text(path)
    monkeypatch.undo()
    path.write_text("{")
    with pytest.raises(StateError, match="is damaged"):
        read_json(path)
