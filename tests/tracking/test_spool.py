"""The spool keeps what it was given: whatever kills the process, fills the disk or tears the file."""

import errno
import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import StateError
from orchestrator.tracking.spool import ArtifactLine, Metrics, Params, SpoolWriter, Tags, read

GOOD = b'{"v":1,"kind":"metrics","step":1,"time_ms":5,"values":{"a":1.0}}\n'


@pytest.fixture(params=["plain", "a b'c\"d\né"])
def spool(request, tmp_path):
    folder = tmp_path / request.param / "a001"
    folder.mkdir(parents=True)
    return folder / "metrics.jsonl"


def records(path, offset=0):
    return [record for record, _ in read(path, offset)]


def test_what_is_written_is_read_back(spool):
    with SpoolWriter(spool) as writer:
        writer.metrics({"loss": 0.1, "acc@5 é\n\ud800": 1}, step=-3, time_ms=7)
        writer.params({"model": {"lr": 1e-3, "layers": (64, 64), "act": math.sqrt, "odd": math.nan}, 3: None})
        writer.tags({"best": True})
        writer.artifact(spool.parent.parent / "artifacts" / "plots" / "a.png", "plots")
    assert records(spool) == [
        Metrics(step=-3, time_ms=7, values={"loss": 0.1, "acc@5 é\n\ud800": 1.0}),
        Params(values={"model": {"lr": 1e-3, "layers": [64, 64], "act": "math.sqrt", "odd": "nan"}, "3": None}),
        Tags(values={"best": "True"}),
        ArtifactLine(path="../artifacts/plots/a.png", folder="plots"),
    ]


@given(st.floats(), st.integers())
def test_every_float_and_step_survives_strict_json(tmp_path_factory, value, step):
    path = tmp_path_factory.mktemp("spool") / "metrics.jsonl"
    with SpoolWriter(path) as writer:
        writer.metrics({"x": value}, step=step, time_ms=1)

    def refuse(constant):
        raise AssertionError(constant)

    json.loads(path.read_bytes(), parse_constant=refuse)
    (back,) = records(path)
    assert repr(back.values["x"]) == repr(value)
    assert back.step == step


def test_a_metric_is_in_the_file_before_the_call_returns(spool):
    writer = SpoolWriter(spool)
    writer.metrics({"loss": 1.0}, step=0)
    assert len(records(spool)) == 1
    writer.close()


def test_kill_9_loses_nothing(spool):
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from orchestrator.tracking.spool import SpoolWriter\n"
        "writer = SpoolWriter(Path(sys.argv[1]))\n"
        "for step in range(500): writer.metrics({'loss': step / 7}, step=step)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(spool)], check=False)
    assert done.returncode == -signal.SIGKILL
    found = [(record.step, record.values["loss"]) for record in records(spool)]
    assert found == [(step, step / 7) for step in range(500)]


def test_what_is_no_number_is_left_out_and_the_rest_is_kept(spool, caplog):
    with SpoolWriter(spool) as writer:
        writer.metrics({"text": "abc", "none": None, "huge": 10**400, "list": [1], "ok": 2}, step=1)
        writer.metrics({"text": "abc"}, step=2)
    (record,) = records(spool)
    assert record.values == {"huge": math.inf, "ok": 2.0}
    assert caplog.text.count("is not a number") == 1


def test_several_threads_write_whole_lines(spool):
    with SpoolWriter(spool) as writer:

        def work(number):
            for step in range(200):
                writer.metrics({f"m{number}": step}, step=step)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(records(spool)) == 800


def test_reading_goes_on_from_an_offset(spool):
    spool.write_bytes(GOOD * 3)
    offsets = [end for _, end in read(spool)]
    assert offsets == [len(GOOD) * n for n in (1, 2, 3)]
    assert [end for _, end in read(spool, offsets[1])] == offsets[2:]
    assert list(read(spool, offsets[2])) == []


def test_a_torn_last_line_is_not_consumed_until_it_is_whole(spool):
    spool.write_bytes(GOOD + GOOD[:-10])
    assert [end for _, end in read(spool)] == [len(GOOD)]
    spool.write_bytes(GOOD + GOOD)
    assert [end for _, end in read(spool, len(GOOD))] == [2 * len(GOOD)]


def test_a_last_line_without_only_its_newline_is_not_consumed(spool):
    spool.write_bytes(GOOD[:-1])
    assert records(spool) == []


@pytest.mark.parametrize(
    "broken",
    [
        b"\0" * 4096 + b"\n",
        b"\n",
        b"{}\n",
        b"[]\n",
        b"null\n",
        b"3\n",
        b'"text"\n',
        b"\xff\xfe\n",
        b"[" * 200_000 + b"\n",
        b'{"v":null,"kind":"metrics"}\n',
        b'{"v":1,"kind":"from the future"}\n',
        b'{"v":1,"kind":"metrics","step":1\n',
        b'{"v":1,"kind":"metrics","step":"x","time_ms":1,"values":{}}\n',
        b'{"v":1,"kind":"metrics","step":1e999,"time_ms":1,"values":{}}\n',
        b'{"v":1,"kind":"metrics","step":1,"time_ms":1,"values":[1]}\n',
        b'{"v":1,"kind":"params","values":3}\n',
        b'{"v":1,"kind":"artifact","path":"x","folder":"../../home"}\n',
        b'{"v":1,"kind":"artifact","path":"x","folder":"/etc"}\n',
        b'{"v":1,"kind":"artifact","path":"x","folder":7}\n',
    ],
)
def test_a_broken_line_is_skipped_and_the_next_is_read(spool, broken):
    spool.write_bytes(GOOD + broken + GOOD)
    found = list(read(spool))
    assert [end for _, end in found] == [len(GOOD), 2 * len(GOOD) + len(broken)]
    assert all(record.values == {"a": 1.0} for record, _ in found)


def test_no_file_is_an_empty_spool(tmp_path):
    assert list(read(tmp_path / "none")) == []


def test_lines_of_a_newer_version_are_refused_not_dropped(spool):
    spool.write_bytes(GOOD.replace(b'"v":1', b'"v":2'))
    with pytest.raises(StateError, match="version 2"):
        list(read(spool))


def test_a_line_torn_by_a_crash_does_not_swallow_the_next(spool):
    spool.write_bytes(GOOD + b'{"v":1,"ki')
    with SpoolWriter(spool) as writer:
        writer.metrics({"b": 2.0}, step=2)
    assert [record.values for record in records(spool)] == [{"a": 1.0}, {"b": 2.0}]


def test_a_folder_that_appears_late_gets_everything(tmp_path, caplog):
    path = tmp_path / "late" / "metrics.jsonl"
    with SpoolWriter(path) as writer:
        for step in range(5):
            writer.metrics({"a": step}, step=step)
        path.parent.mkdir()
        writer.metrics({"a": 5}, step=5)
        assert [record.step for record in records(path)] == [0, 1, 2, 3, 4, 5]
    assert caplog.text.count("cannot write") == 1


def test_a_disk_that_stays_full_disturbs_nobody_until_close(tmp_path):
    writer = SpoolWriter(Path("/dev/full"))
    for step in range(50):
        writer.metrics({"a": 1.0}, step=step)
    writer.flush()
    with pytest.raises(StateError, match="50 metric records"):
        writer.close()
    writer.close()


def test_a_disk_that_is_full_in_the_middle_of_a_line_loses_nothing(spool):
    """A file size limit cuts a write short as a full disk does; once it is lifted the line goes on."""
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with SpoolWriter(spool) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            for step in range(100):
                writer.metrics({"a": step}, step=step)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, ignored)
        assert spool.stat().st_size == 1000
    assert [record.step for record in records(spool)] == list(range(100))


class LossyDisk:
    """A file whose pages are gone when it is to be forced to the disk, as NFS tells of a full disk; `fails` times."""

    def __init__(self, fails):
        self.fails, self.forced = fails, 0

    def __call__(self, fd):
        if not self.fails:
            self.forced = os.fstat(fd).st_size
            return
        self.fails -= 1
        os.ftruncate(fd, self.forced)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("fails", [1, 2])
def test_what_could_not_be_forced_to_the_disk_is_written_again(spool, fails, caplog):
    disk = LossyDisk(fails)
    with SpoolWriter(spool, force=disk) as writer:
        for step in range(200):
            writer.metrics({"a": step}, step=step)
            if step == 99:
                assert not writer.flush()
        assert disk.fails == fails - 1
    assert sorted({record.step for record in records(spool)}) == list(range(200))
    assert caplog.text.count("cannot force") == 1
    assert writer.lost == 0


def test_what_stays_unforced_is_counted(spool):
    writer = SpoolWriter(spool, force=LossyDisk(99))
    for step in range(20):
        writer.metrics({"a": step}, step=step)
    with pytest.raises(StateError, match=r"\b20 metric records"):
        writer.close()


def test_zeros_in_a_file_that_grows_are_pages_still_to_come(spool):
    """The pages of a file may arrive out of order at a network filesystem's client."""
    whole = GOOD * 3
    spool.write_bytes(GOOD + b"\0" * len(GOOD) + GOOD)
    assert [end for _, end in read(spool, growing=True)] == [len(GOOD)]
    assert [end for _, end in read(spool)] == [len(GOOD), 3 * len(GOOD)]
    spool.write_bytes(whole)
    assert [end for _, end in read(spool, len(GOOD), growing=True)] == [2 * len(GOOD), 3 * len(GOOD)]


def test_the_error_that_ends_the_training_is_not_hidden_by_a_full_disk():
    def train():
        with SpoolWriter(Path("/dev/full")) as writer:
            writer.metrics({"a": 1.0}, step=0)
            raise KeyError("the user's")

    with pytest.raises(KeyError, match="the user's"):
        train()


def test_a_record_after_close_is_counted_not_raised(spool, caplog):
    writer = SpoolWriter(spool)
    writer.close()
    writer.metrics({"a": 1.0}, step=0)
    assert writer.lost == 1
    assert "is closed" in caplog.text
    assert not spool.exists()


def test_closing_ends_the_thread_and_the_file(spool):
    before, open_files = threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))
    writer = SpoolWriter(spool)
    writer.metrics({"a": 1.0}, step=0)
    assert threading.active_count() == before + 1
    writer.close()
    assert threading.active_count() == before
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files


def test_the_spool_is_private(spool):
    with SpoolWriter(spool) as writer:
        writer.metrics({"a": 1.0}, step=0)
    assert spool.stat().st_mode & 0o077 == 0


def test_the_package_loads_only_the_standard_library_and_our_errors():
    program = (
        "import sys; import orchestrator.errors; before = set(sys.modules); import orchestrator.tracking\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new - set(sys.stdlib_module_names) - {'orchestrator'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert done.stdout.strip() == b""
