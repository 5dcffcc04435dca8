"""What staging asks of a file server and of the disk: counted, since no test may measure time."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from bench.slow_mount import slow_mount, unavailable
from orchestrator.data import Manifest, Staging, Store, resolve

COUNTED = """
import collections, json, sys
from pathlib import Path
from orchestrator.data import Manifest, Staging, Store
what, root, manifest = sys.argv[1], Path(sys.argv[2]), Manifest.read(Path(sys.argv[3]))
store = Store(root, Staging(keep_free_gb=0, threads=4))
counts, counting = collections.Counter(), True
def count(event, arguments):
    if counting and (event == "open" or event.startswith("os.")):
        counts[event] += 1
sys.addaudithook(count)
staged = store.stage(manifest) if what == "stage" else store.find(manifest.digest)
counting = False
assert staged is not None and staged.hit == (what == "hit")
staged.release()
print(json.dumps(counts))
"""


def version(folder: Path, files: int) -> Manifest:
    """Make a version of so many files, ten in a folder, all different."""
    for number in range(files):
        path = folder / "data" / f"{number // 10:03d}" / f"{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"file {number}")
    return resolve({"source": "directory", "path": str(folder / "data")}, project=folder, cache=folder / "cache")


def counted(what: str, folder: Path) -> Counter[str]:
    argv = [sys.executable, "-c", COUNTED, what, str(folder / "scratch"), str(folder / "manifest.json")]
    return Counter(json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout))


def both_sizes(tmp_path: Path, what: str) -> tuple[Counter[str], Counter[str]]:
    found = []
    for files in (40, 400):
        folder = tmp_path / str(files)
        folder.mkdir(exist_ok=True)
        version(folder, files).write(folder / "manifest.json")
        found.append(counted(what, folder))
    return found[0], found[1]


def test_a_file_server_is_asked_to_look_up_open_and_read_each_file_once(tmp_path):
    if (reason := unavailable()) is not None:
        pytest.skip(f"no slow mount here: {reason}")
    manifest = version(tmp_path, 200)
    folder, at = tmp_path / "data", tmp_path / "mount"
    text = json.dumps(manifest.to_json()).replace(str(folder), str(at))
    with slow_mount(folder, at, reads=True) as mount:
        staged = Store(tmp_path / "scratch", Staging(keep_free_gb=0)).stage(Manifest.from_json(json.loads(text)))
        asked = mount.counts()
    assert staged.copied_files == 200
    assert (asked.pop("open"), asked.pop("read")) == (200, 200)
    assert 200 <= asked.pop("getattr") <= 200 + 20 + 64  # the folders; more than one thread may look up the same
    assert not asked


def test_what_a_hit_asks_for_does_not_grow_with_the_version(tmp_path):
    both_sizes(tmp_path, "stage")
    small, large = both_sizes(tmp_path, "hit")
    assert small == large
    assert sum(large.values()) < 20


def test_staging_ten_times_as_many_files_takes_ten_times_as_many_operations(tmp_path):
    small, large = both_sizes(tmp_path, "stage")
    assert sum(large.values()) <= 10 * sum(small.values())
    each = {event: large[event] / 400 for event in large}
    assert each["open"] <= 2.7  # from the source, and onto scratch; again where there is no folder yet, of 256
    assert each["os.rename"] <= 1.1
    assert each["os.link"] <= 2.1  # one look, whether it is there, and one into the view
    assert sum(each.values()) < 8
