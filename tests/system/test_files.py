"""Files that are whole or absent, and names that only one process can take."""

import threading
from pathlib import Path

import pytest

from orchestrator.system.files import draft_of, replace_text, replacing, take_by_rename


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
