"""Answers kept in the user's cache: read as they were written, and never trusted more than that."""

import os

import pytest

from orchestrator.system.cache import Answers


def test_an_answer_is_found_by_its_question_alone(tmp_path):
    answers = Answers(tmp_path / "a cache")
    answers.write({"größe": [1, None]}, "what is it?", 3)
    assert answers.read("what is it?", 3) == {"größe": [1, None]}
    assert answers.read("what is it?", 4) is None
    assert answers.folder.stat().st_mode & 0o777 == 0o700


def test_an_answer_that_is_older_than_asked_for_is_not_known(tmp_path):
    answers = Answers(tmp_path)
    answers.write("yes", "question")
    assert answers.read("question", seconds=600) == "yes"
    (kept,) = tmp_path.iterdir()
    for shift in (-700, 700):  # long ago, and of the future: a clock was set
        os.utime(kept, (kept.stat().st_atime, kept.stat().st_mtime + shift))
        assert answers.read("question", seconds=600) is None
        assert answers.read("question") == "yes"
        os.utime(kept)


@pytest.mark.parametrize("damage", [b"", b"\0", b"[]", b'{"question": 3}', b"[" * 100_000, b'{"question": ["other"]}'])
def test_a_damaged_answer_is_not_known(tmp_path, damage):
    answers = Answers(tmp_path)
    answers.write("yes", "question")
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(damage)
    assert answers.read("question") is None


def test_a_folder_that_cannot_be_written_costs_a_warning_and_nothing_else(tmp_path, caplog):
    (tmp_path / "file").write_text("where the folder should be")
    answers = Answers(tmp_path / "file")
    for number in range(3):
        answers.write("yes", number)
    assert answers.read(0) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
