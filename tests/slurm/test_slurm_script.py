"""The text that sbatch gets, for every site profile, and what may not be in a `cluster:` section. Needs no Slurm."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import ConfigError, RequestError
from orchestrator.slurm import script, site_defaults, submission
from orchestrator.slurm.options import TEXTS, SlurmOptions
from orchestrator.spec import Resources

PROFILES = Path(__file__).parents[2] / "conf" / "cluster"
FOLDER = Path("/home/you/it's runs/digits/launches/0007/submitit")
SHAPE = script.Shape(resources=Resources(), python_path=("/home/you/it's runs/digits/code/abc/tree",))
WIDE = script.Shape(
    resources=Resources(nodes=2, gpus_per_node=4, cpus_per_node=32, mem_gb_per_node=1.5, hours=3.01),
    python_path=("/a", "/a/src", "/b"),
)
NAME, TOKEN = "digits.0007", "f00d"

PLAIN = """\
#!/bin/bash

# Parameters
#SBATCH --array=0-2,5
#SBATCH --comment=orch:f00d:0
#SBATCH --cpus-per-task=1
#SBATCH --job-name=digits.0007
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=submitit/%A_%a.out
#SBATCH --requeue
#SBATCH --signal=USR2@90

# setup
export ORCH_LAUNCH_ID=f00d
orch_exit='/home/you/it'"'"'s runs/digits/launches/0007/submitit'/"$SLURM_ARRAY_JOB_ID"_"$SLURM_ARRAY_TASK_ID".exit
rm -f "$orch_exit"
orch_end() {
  orch_status=$?; set +e
  [ $orch_status = 0 ] || echo $orch_status > "$orch_exit"
  [ -z "$(ls -A '/home/you/it'"'"'s runs/.waiting' 2>/dev/null)" ] || \
PYTHONPATH='/home/you/it'"'"'s runs/digits/code/abc/tree' PYTHONSAFEPATH=1 timeout 120 PYTHON -m \
orchestrator.slurm.teardown '/home/you/it'"'"'s runs' >> '/home/you/it'"'"'s runs/digits/launches/0007/submitit'/teardown.out 2>&1
}
trap orch_end EXIT
srun() {
  local pause=5 from status
  while :; do
    from=$(stat -c %s '/home/you/it'"'"'s runs/digits/launches/0007/submitit'/"$SLURM_ARRAY_JOB_ID"_"$SLURM_ARRAY_TASK_ID".out \
2>/dev/null || echo 0) status=0
    command srun "$@" || status=$?
    [ $status = 0 ] && return
    tail -c +$((from + 1)) \
'/home/you/it'"'"'s runs/digits/launches/0007/submitit'/"$SLURM_ARRAY_JOB_ID"_"$SLURM_ARRAY_TASK_ID".out | \
grep -E "srun: error: Unable to (confirm allocation|create step).*(contact|timed out|refused|Zero Bytes)" > /dev/null || return $status
    echo "orch: slurmctld does not answer; srun is tried again in $pause s" >&2
    sleep $pause; pause=$((pause < 30 ? pause * 2 : 60))
  done
}
for orch_blocked in 'env --block-signal=TERM,USR2' \
'perl -MPOSIX -esigprocmask(SIG_BLOCK,POSIX::SigSet->new(SIGTERM,SIGUSR2));exec(@ARGV)' ''; do \
$orch_blocked true 2>/dev/null && break; done
export PYTHONPATH='/home/you/it'"'"'s runs/digits/code/abc/tree'
export PYTHONSAFEPATH=1
export PYTHONUNBUFFERED=1
export SLURM_KILL_BAD_EXIT=1
export OMP_NUM_THREADS=1
export SLURM_EXPORT_ENV=ALL
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
ln -sf start.0.pkl '/home/you/it'"'"'s runs/digits/launches/0007/submitit'/"$SLURM_ARRAY_JOB_ID"_"$SLURM_ARRAY_TASK_ID"_submitted.pkl

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/home/you/it'"'"'s runs/digits/launches/0007/submitit/%j_%t_log.out' \
--output submitit/%A_%a_%t.out $orch_blocked PYTHON -u -m submitit.core._submit '/home/you/it'"'"'s runs/digits/launches/0007/submitit'
"""  # noqa: E501 - as it is; the second --output counts

WIDE_HEAD = """\
#SBATCH --array=0-2,5
#SBATCH --comment=orch:f00d:0
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=4
#SBATCH --job-name=digits.0007
#SBATCH --mem=1536MB
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=submitit/%A_%a.out
#SBATCH --requeue
#SBATCH --signal=USR2@90
#SBATCH --time=181
"""
FILLED_IN = {
    "slurm": {},
    "slurm_accounts": {"account": "proj-1"},
    "slurm_private_scratch": {},
    "slurm_container": {
        "extra": {"container-image": "nvcr.io#nvidia/pytorch:24.05", "container-mounts": "/data:/data"}
    },
}
ADDED = {
    "slurm": set(),
    "slurm_accounts": {"#SBATCH --account=proj-1", "#SBATCH --partition=gpu", "#SBATCH --qos=normal"},
    "slurm_private_scratch": {"#SBATCH --tmp=50G"},
    "slurm_container": {
        "#SBATCH --container-image='nvcr.io#nvidia/pytorch:24.05'", "#SBATCH --container-mounts=/data:/data"
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def _srun(tmp_path, monkeypatch):
    """Let submitit's executor believe that there is a Slurm; it looks for srun."""
    (tmp_path / "srun").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


def text(shape=SHAPE, indices=(0, 1, 2, 5), folder=FOLDER, **options):
    array = script.Array(shape=shape, offset=0, indices=indices)
    parsed = SlurmOptions.parse(options)
    parameters = script.parameters(array, parsed, name=NAME, token=TOKEN, folder=folder)
    return submission.text(parameters, folder).replace(shlex.quote(sys.executable), "PYTHON")


def head(written):
    return "".join(line + "\n" for line in written.splitlines() if line.startswith("#SBATCH"))


def profile(name):
    """Return a site profile as it is composed, its blanks filled in."""
    section = yaml.safe_load((PROFILES / f"{name}.yaml").read_text())
    base = profile("slurm") if section.pop("defaults", None) else {}
    merged = {**base, **section}
    return {**merged, **FILLED_IN[name]}


# --- golden text ------------------------------------------------------------------------------------------


def test_the_plain_script_is_this_text():
    assert text() == PLAIN


def test_resources_become_options():
    assert head(text(WIDE)) == WIDE_HEAD
    assert "export PYTHONPATH=/a:/a/src:/b\n" in text(WIDE)
    assert "export OMP_NUM_THREADS=8\n" in text(WIDE)


def test_every_profile_is_known_here():
    assert sorted(path.stem for path in PROFILES.glob("slurm*.yaml")) == sorted(FILLED_IN)


@pytest.mark.parametrize("name", FILLED_IN)
def test_a_profile_adds_these_options_and_nothing_else(name):
    plain, written = text().splitlines(), text(**profile(name)).splitlines()
    assert set(written) - set(plain) == ADDED[name]
    assert set(plain) <= set(written)


def test_all_options_of_slurm_s_own_arrive_as_they_are():
    given = {
        "partition": "a,b",
        "account": "x",
        "qos": "y",
        "constraint": "a|h",
        "exclude": "n[1-3]",
        "nodelist": "n4",
        "reservation": "maint",
        "gres": "shard:1",
    }
    written = head(
        text(
            **given,
            comment="mine",
            throttle=7,
            signal_seconds=30,
            extra={"exclusive": True, "nice": 5, "hold": False, "x": None},
        )
    )
    for key, value in given.items():
        assert f"#SBATCH --{key}={shlex.quote(value)}\n" in written
    for line in ("comment='orch:f00d:0 mine'", "array=0-2,5%7", "signal=USR2@30", "exclusive", "nice=5"):
        assert f"#SBATCH --{line}\n" in written
    assert "hold" not in written
    assert "--x" not in written


def test_setup_lines_stand_before_our_own_and_after_the_trap():
    lines = text(setup=["module load cuda/12", "source ~/env/bin/activate"]).splitlines()
    first = lines.index("module load cuda/12")
    assert lines[first - 1].startswith("trap ")
    assert lines[first + 1] == "source ~/env/bin/activate"
    assert lines[first + 2] == "srun() {"


@pytest.mark.parametrize(
    ("need", "option"),
    [
        (Resources(hours=0.001), "time=1"),
        (Resources(hours=1), "time=60"),
        (Resources(hours=48), "time=2880"),
        (Resources(mem_gb_per_node=0.0001), "mem=1MB"),
        (Resources(mem_gb_per_node=2), "mem=2048MB"),
        (Resources(gpus_per_node=4), "cpus-per-task=1"),
        (Resources(gpus_per_node=4, cpus_per_node=34), "cpus-per-task=8"),
    ],
)
def test_what_is_needed_is_rounded_up_and_cores_are_shared(need, option):
    assert f"#SBATCH --{option}\n" in text(script.Shape(resources=need, python_path=()))


@pytest.mark.parametrize(("version_bytes", "option"), [(1, "tmp=1M"), (100 * 2**20, "tmp=110M")])
def test_the_scratch_that_a_data_version_needs_can_be_asked_for(version_bytes, option):
    need = script.tmp_mb(version_bytes)
    assert f"#SBATCH --{option}\n" in text(script.Shape(resources=Resources(), python_path=(), tmp_mb=need))
    assert "--tmp" not in text(script.Shape(resources=Resources(), python_path=(), tmp_mb=script.tmp_mb(0)))


@pytest.mark.parametrize(
    "staging",
    [
        {"threads": 0},
        {"threads": True},
        {"max_gb": -1},
        {"keep_free_gb": float("nan")},
        {"verify": "never"},
        {"request_tmp": 1},
        {"thread": 1},
        "fast",
        {"jitter_seconds": "5"},
    ],
)
def test_staging_that_makes_no_sense_is_refused(staging):
    with pytest.raises(ConfigError, match=r"cluster\.staging"):
        SlurmOptions.parse({"kind": "slurm", "staging": staging})


def test_scratch_is_not_asked_for_twice():
    with pytest.raises(ConfigError, match="request_tmp"):
        SlurmOptions.parse({"kind": "slurm", "staging": {"request_tmp": True}, "extra": {"tmp": "50G"}})


@pytest.mark.parametrize("value", [None, False])
def test_an_extra_option_without_a_value_is_absent(value):
    assert text(extra={"licenses": value}) == PLAIN


def test_an_extra_option_that_is_true_stands_alone_and_zero_is_a_value():
    assert "#SBATCH --hold\n#SBATCH" in text(extra={"hold": True})
    assert "#SBATCH --nice=0\n" in text(extra={"nice": 0})


def test_a_site_s_defaults_stand_where_nothing_else_is_set():
    defaults = {"partition": "gpu", "time": "8:00:00", "mem-per-cpu": "4G", "hint": "nomultithread", "wckey": "w"}
    lines = {f"#SBATCH --{key}={value}" for key, value in defaults.items()}
    assert set(text(sbatch_defaults=defaults).splitlines()) - set(text().splitlines()) == lines
    need = Resources(hours=1, mem_gb_per_node=2)
    shape = script.Shape(resources=need, python_path=())
    written = head(text(shape, sbatch_defaults=defaults, partition="cpu", extra={"hint": "compute_bound"}))
    for line in ("partition=cpu", "time=60", "mem=2048MB", "hint=compute_bound", "wckey=w"):
        assert f"#SBATCH --{line}\n" in written
    assert "mem-per-cpu" not in written


@pytest.mark.parametrize("key", ["array", "nodes", "requeue", "gpus"])
def test_what_the_engine_sets_has_no_default(key):
    with pytest.raises(ConfigError, match=rf"cluster\.sbatch_defaults\.{key}"):
        text(sbatch_defaults={key: 1})


def test_variables_of_sbatch_are_defaults_that_the_cluster_section_overrules():
    environ = {
        "SBATCH_PARTITION": "gpu",
        "SBATCH_ACCOUNT": "vision",
        "SBATCH_TIMELIMIT": "1-0",
        "SBATCH_MEM_PER_CPU": "4G",
        "SBATCH_EXCLUSIVE": "",
        "SBATCH_ARRAY_INX": "1-9",
        "SBATCH_GPUS": "4",
    }
    given = {"kind": "slurm", "partition": "cpu", "account": None, "sbatch_defaults": {"mem": 0}}
    found, notes = site_defaults.add(given, environ)
    assert found["sbatch_defaults"] == {"account": "vision", "time": "1-0", "exclusive": True, "mem": 0}
    assert notes[0] == "SBATCH_ACCOUNT=vision: the default for --account"
    assert len(notes) == 3
    parsed = SlurmOptions.parse(found)
    assert (parsed.partition, parsed.account) == ("cpu", "vision")
    assert site_defaults.add(found, {}) == (found, ())
    assert site_defaults.add(given, {"PATH": "/usr/bin"}) == (given, ())


def test_one_variable_of_two_names_the_cluster_and_never_several():
    both = {"SLURM_CLUSTERS": "gamma", "SBATCH_CLUSTERS": "delta"}
    assert site_defaults.add({"clusters": None}, both)[0]["clusters"] == "gamma"
    assert site_defaults.add({}, {"SBATCH_CLUSTERS": "delta"})[0]["clusters"] == "delta"
    assert site_defaults.add({"clusters": "beta"}, both) == ({"clusters": "beta"}, ())
    for several in ("gamma,delta", "all"):
        with pytest.raises(RequestError, match="SLURM_CLUSTERS is"):
            site_defaults.add({}, {"SLURM_CLUSTERS": several})
        with pytest.raises(ConfigError, match=r"cluster\.clusters"):
            SlurmOptions.parse({"clusters": several})


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ({"gpu_type": "a100"}, ["gpus-per-node=a100:4"]),
        ({"gpu_type": 3090}, ["gpus-per-node=3090:4"]),
        ({"gpu_type": "1g.5gb", "gpu_option": "gres"}, ["gres=gpu:1g.5gb:4"]),
        ({"gpu_option": "gres", "gres": "lic:1"}, ["gres=gpu:4,lic:1"]),
        ({"gpu_option": "gpus-per-task"}, ["gpus-per-task=1", "gpu-bind=none"]),
        ({"gpu_type": "a100", "gpu_option": "gpus-per-task", "extra": {"gpu-bind": "closest"}}, ["gpu-bind=closest"]),
        ({"gres": "shard:8"}, ["gres=shard:8"]),
        ({"mem_option": "mem-per-cpu"}, ["mem-per-cpu=48MB"]),
        ({"mem_option": "whole-node", "extra": {"exclusive": True}}, ["mem=0", "exclusive"]),
    ],
)
def test_gpus_and_memory_are_requested_as_the_site_wants(options, lines):
    written = head(text(WIDE, **options))
    for line in lines:
        assert f"#SBATCH --{line}\n" in written
    assert len(re.findall("--(gpus-per-node|gpus-per-task|gres)=", written)) == 1
    assert len(re.findall("--(mem|mem-per-cpu)=", written)) == 1


def test_a_runs_own_type_of_gpu_counts_before_that_of_its_cluster():
    shape = replace(WIDE, resources=replace(WIDE.resources, gpu_type="h100"))
    assert "#SBATCH --gpus-per-node=h100:4\n" in text(shape, gpu_type="a100")


def test_a_name_that_looks_like_a_number_is_a_name():
    assert "#SBATCH --partition=7\n#SBATCH" in text(partition=7, account="0123")
    assert "#SBATCH --account=0123\n" in text(partition=7, account="0123")


def test_a_job_submits_nothing_where_nodes_may_not():
    written = text(nodes_may_submit=False)
    assert "teardown" not in written
    assert set(written.splitlines()) < set(PLAIN.splitlines())


@pytest.mark.parametrize("value", ["None", "LEVEL=None"])
def test_a_text_that_looks_like_nothing_is_kept(value):
    assert f"#SBATCH --export={value}\n" in text(extra={"export": value})


def test_a_setup_line_that_ends_in_none_is_kept():
    assert "export X=None\n" in text(setup=["export X=None"])


# --- nothing is executed ----------------------------------------------------------------------------------

LINE = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="\\\u2028\u2029"),
    min_size=1,
    max_size=30,
)


@given(LINE)
def test_a_text_is_one_word_of_one_option(value):
    written = head(text(comment=value, extra={"mail-user": value}))
    (line,) = [line for line in written.splitlines() if line.startswith("#SBATCH --mail-user=")]
    assert shlex.split(line.removeprefix("#SBATCH --mail-user=")) == [value]
    assert len(written.splitlines()) == len(head(text(comment="x", extra={"mail-user": "x"})).splitlines())


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=30)
)
def test_paths_are_words_for_the_shell(name):
    shape = script.Shape(resources=Resources(), python_path=(f"/a/{name}",))
    array = script.Array(shape=shape, offset=0, indices=(0,))
    lines = script.setup(array, SlurmOptions(), Path("/a") / "b", token=TOKEN)
    (found,) = [line for line in lines if line.startswith("export PYTHONPATH=")]
    assert shlex.split(found) == ["export", f"PYTHONPATH=/a/{name}"]


@pytest.mark.parametrize("name", ["$(touch executed)", "`touch executed`", "a;touch executed", 'a"b', "it's", "a\nb"])
def test_a_shell_makes_of_the_setup_lines_what_was_meant(name, tmp_path):
    folder = tmp_path / "submit" / name
    folder.mkdir(parents=True)
    array = script.Array(shape=script.Shape(resources=Resources(), python_path=(name,)), offset=0, indices=(0,))
    lines = [*script.setup(array, SlurmOptions(), folder, token=TOKEN), 'printf %s "$PYTHONPATH"', "exit 7"]
    env = {"PATH": "/usr/bin:/bin", "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "0", "SLURM_CPUS_PER_TASK": "1"}
    done = subprocess.run(["bash", "-c", "\n".join(lines)], cwd=tmp_path, env=env, capture_output=True, check=False)
    assert (done.stdout.decode(), done.stderr, done.returncode) == (name, b"", 7)
    assert sorted(path.name for path in folder.iterdir()) == ["5_0.exit", "5_0_submitted.pkl"]
    assert (folder / "5_0.exit").read_text() == "7\n"
    assert [path.name for path in tmp_path.iterdir() if path.name != "srun"] == ["submit"]


@pytest.mark.parametrize("lacking", [[], ["env"], ["env", "perl"]])
def test_a_program_starts_with_the_signals_blocked_by_what_a_node_has(lacking, tmp_path):
    """An older `env` has no such option, and a node may have no Perl; then the program starts as it is."""
    for name in lacking:
        (tmp_path / name).write_text("#!/bin/sh\nexit 125\n")
        (tmp_path / name).chmod(0o755)
    lines = script.setup(script.Array(shape=SHAPE, offset=0, indices=(0,)), SlurmOptions(), tmp_path, token=TOKEN)
    (line,) = [line for line in lines if line.startswith(f"for {script.BLOCKED} in")]
    program = "import signal; print(*sorted(one.name for one in signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
    started = f'set -eu; {line}\n${script.BLOCKED} {shlex.quote(sys.executable)} -c "$1"'
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", "-c", started, "-", program], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout == ("\n" if "perl" in lacking else "SIGTERM SIGUSR2\n")


CLOSED = "srun: error: Unable to confirm allocation for job 5: Unable to contact slurm controller (connect failure)"
TIMED_OUT = "srun: error: Unable to create step for job 5: Socket timed out on send/recv operation"
FAILED = "srun: error: n0: task 0: Exited with exit code 1"
NO_SUCH = "srun: error: Unable to create step for job 5: Invalid generic resource (gres) specification"


@pytest.mark.parametrize("strict", ["", "set -eu -o pipefail"])
@pytest.mark.parametrize(
    ("said", "times", "status"),
    [
        ([CLOSED, TIMED_OUT, ""], 3, 0),
        ([CLOSED, FAILED], 2, 1),
        ([FAILED], 1, 1),
        ([NO_SUCH], 1, 1),
        ([""], 1, 0),
    ],
)
def test_srun_is_tried_again_only_where_nothing_was_started(said, times, status, strict, tmp_path):
    """`said` are its last words, time after time; none: it did well."""
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    (folder / "5_0.out").write_text(f"{CLOSED}\n")  # of an earlier attempt of this job
    for number, words in enumerate(said):
        (folder / f"said.{number}").write_text(words)
    array = script.Array(shape=SHAPE, offset=0, indices=(0,))
    fake = """
cd "$(dirname "$0")"; echo "$*" >> called
said=$(cat "said.$(($(wc -l < called) - 1))"); echo "$said" >&2; [ -z "$said" ]"""
    (folder / "srun").write_text(f"#!/bin/bash{fake}\n")
    (folder / "sleep").write_text("#!/bin/bash\n")
    for program in ("srun", "sleep"):
        (folder / program).chmod(0o755)
    env = {
        "PATH": f"{folder}:/usr/bin:/bin",
        "SLURM_ARRAY_JOB_ID": "5",
        "SLURM_ARRAY_TASK_ID": "0",
        "SLURM_CPUS_PER_TASK": "1",
    }
    lines = [
        *script.setup(array, SlurmOptions(setup=(strict,), nodes_may_submit=False), folder, token=TOKEN),
        "srun -n 'a b'",
    ]
    with (folder / "5_0.out").open("a") as log:
        found = subprocess.call(["bash", "-c", "\n".join(lines)], cwd=tmp_path, env=env, stdout=log, stderr=log)
    assert found == status
    assert (folder / "called").read_text() == "-n a b\n" * times
    assert (folder / "5_0.out").read_text().count("slurmctld does not answer") == times - 1


@pytest.mark.parametrize("value", ["it's", 'say "hi"', "$(x)", "`x`", "a  b", "ü ✓", "a; b | c > d", "#no", "\u2028"])
def test_bash_reads_the_script_whatever_its_options_and_paths_hold(value):
    shape = script.Shape(resources=Resources(), python_path=(f"/{value}",))
    written = text(shape, folder=Path("/a") / value, **dict.fromkeys(TEXTS, value), extra={"mail-user": value})
    assert shlex.split(written.partition("\n# command\n")[2])[-1] == f"/a/{value}"
    for key in {*TEXTS, "mail-user"} - {"comment"}:
        assert f"#SBATCH --{key}={shlex.quote(value)}\n" in written
    assert subprocess.run(["bash", "-n"], input=written.encode(), check=True, capture_output=True).stderr == b""


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/a/100%", "%"),
        ("/b\\c", "\\"),
        ("/a/b\nc", "\n"),
        ("/a:b", ":"),
        ("/a\x7f", "\x7f"),
        ("/a \"b' $(c) `d` ü", ""),
    ],
)
def test_folders_that_would_be_misread_are_told(path, found):
    assert script.forbidden_character(path) == found


# --- arrays -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([0], "0"),
        ([0, 1], "0-1"),
        ([0, 1, 2, 5, 7, 8], "0-2,5,7-8"),
        ([3, 9], "3,9"),
        ([], ""),
    ],
)
def test_ranges_as_slurm_writes_them(numbers, expected):
    assert script.ranges(numbers) == expected


@given(st.sets(st.integers(0, 300)))
def test_ranges_name_each_number_once(numbers):
    named = []
    for part in filter(None, script.ranges(sorted(numbers)).split(",")):
        first, _, last = part.partition("-")
        named += range(int(first), int(last or first) + 1)
    assert named == sorted(numbers)


@given(st.dictionaries(st.integers(0, 200), st.sampled_from([SHAPE, WIDE])), st.integers(2, 60))
def test_arrays_hold_every_task_once_of_one_shape_below_the_largest_index(shapes, most):
    made = script.arrays(shapes, max_array_size=most)
    assert sorted(index for array in made for index in array.indices) == sorted(shapes)
    assert script.total(made) == len(shapes)
    for array in made:
        assert {shapes[index] for index in array.indices} == {array.shape}
        assert all(0 <= index - array.offset < most for index in array.indices)
        assert array.spec == script.ranges([index - array.offset for index in array.indices])


def test_thousands_of_runs_of_two_shapes_make_few_arrays():
    made = script.arrays({index: WIDE if index % 2 else SHAPE for index in range(4000)}, max_array_size=1001)
    assert [(array.offset, len(array.indices)) for array in made][:2] == [(0, 501), (0, 500)]
    assert len(made) == 8


def test_a_slurm_without_arrays_is_refused_in_words():
    with pytest.raises(RequestError, match="this Slurm takes no job arrays: its MaxArraySize is 0"):
        script.arrays({0: SHAPE}, max_array_size=0)


def test_halves_are_the_same_tasks():
    array = script.Array(shape=SHAPE, offset=10, indices=(10, 11, 14))
    first, second = array.halves
    assert (first.spec, second.spec) == ("0", "1,4")
    assert first.indices + second.indices == array.indices


@pytest.mark.parametrize(
    ("comment", "found"),
    [
        ("orch:f00d:0", 0),
        ("orch:f00d:1001 mine", 1001),
        ("orch:f00d:", None),
        ("orch:beef:0", None),
        ("", None),
        ("mine orch:f00d:0", None),
        ("orch:f00d:0x", None),
        ("5", None),
        ("5 orch:f00d:5", None),
        ("(null)", None),
    ],
)
def test_the_offset_is_read_back_from_a_comment(comment, found):
    assert script.offset_in(comment, "f00d") == found
    assert script.offset_in(script.comment("f00d", 7), "f00d") == 7


# --- limits -----------------------------------------------------------------------------------------------

POLICY = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
GENERIC = f"Batch job submission failed: {POLICY}"
QOS = "QOSMaxSubmitJobPerUserLimit"


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (f"sbatch: error: {QOS}\nsbatch: error: {GENERIC}", f"submit limit ({QOS})"),
        (f"sbatch: error: AssocGrpSubmitJobsLimit\nsbatch: error: {GENERIC}", "submit limit (AssocGrpSubmitJobsLimit)"),
        (f"sbatch: error: {GENERIC}", "submit limit"),
        (f"sbatch: INFO: note this\nsbatch: error:  \nsbatch: error: {GENERIC}", "submit limit"),
        ("sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying", "submit limit (MaxJobCount)"),
        ("sbatch: error: Batch job submission failed: Resource temporarily unavailable", "submit limit (MaxJobCount)"),
    ],
)
def test_a_limit_that_passes_is_told_from_a_refusal(told, why):
    assert submission.limit(told).why == why


@pytest.mark.parametrize(
    "told",
    [
        f"sbatch: error: QOSMaxCpuPerJobLimit\nsbatch: error: {GENERIC}",
        f"sbatch: error: AssocMaxWallDurationPerJobLimit\nsbatch: error: {GENERIC}",
        f"sbatch: error:     --> error: requested timelimit exceeds max of 24 hours\nsbatch: error: {GENERIC}",
        f"sbatch: error: lua: no account given\nsbatch: error: {GENERIC}",
        "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
        "",
    ],
)
def test_what_never_passes_is_no_limit(told):
    assert submission.limit(told) is None


# --- options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"partion": "gpu"}, "cluster.partion is unknown (did you mean 'partition'?)"),
        ({"licenses": "foo"}, "fix: give other options of sbatch under cluster.extra: {licenses: ...}"),
        ({"partition": 7.5}, "cluster.partition is 7.5: it is text, on one line"),
        ({"gpu_type": "a100:4"}, "cluster.gpu_type is 'a100:4': it is a type of GPU"),
        ({"mem_option": "mem_per_cpu"}, "cluster.mem_option is 'mem_per_cpu' (did you mean 'mem-per-cpu'?)"),
        ({"extra": {"mem": 0}}, "fix: remove it, and set resources.mem_gb_per_node"),
        ({"extra": {"time": 1}}, "fix: remove it, and set resources.hours"),
        ({"extra": {"chdir": "/"}}, "fix: remove cluster.extra.chdir"),
        ({"comment": "a\nb"}, "cluster.comment is 'a\\nb': it is text, on one line and without a backslash"),
        ({"comment": "a\\"}, "without a backslash"),
        ({"extra": {"licenses": "\\"}}, "without a backslash"),
        ({"account": "a\x00b"}, "it is text, on one line"),
        ({"throttle": "many"}, "cluster.throttle is 'many': it is a whole number"),
        ({"throttle": True}, "cluster.throttle is True"),
        ({"signal_seconds": -1}, "cluster.signal_seconds is -1: it is a whole number, at least 0"),
        ({"setup": "module load cuda"}, "it is a list of shell lines"),
        ({"setup": [1]}, "it is a list of shell lines"),
        ({"extra": ["a"]}, "it maps sbatch options to values"),
        ({"extra": {"array": "0-9"}}, "cluster.extra.array is not for you to set"),
        ({"extra": {"ntasks_per_node": 2}}, "cluster.extra.ntasks_per_node is not for you to set"),
        ({"extra": {"partition": "x"}}, "fix: remove it, and set cluster.partition"),
        ({"extra": {"a b": "x"}}, "not for you to set"),
        ({"extra": {"licenses": "a\nb"}}, "it is one line"),
        (
            {"extra": {"licenses": ["a", "b"]}},
            "cluster.extra.licenses is ['a', 'b']: it is one line without a backslash",
        ),
        ({"extra": {"licenses": {"a": 1}}}, "several values are one text, such as 'a,b'"),
        ({"nodes_may_submit": "yes"}, "cluster.nodes_may_submit is 'yes': it is true or false"),
        ({"nodes_may_submit": 1}, "cluster.nodes_may_submit is 1"),
    ],
)
def test_what_cannot_be_is_refused(options, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        SlurmOptions.parse({"kind": "slurm", **options})


@pytest.mark.parametrize("key", [*TEXTS, "output", "error", "job_name", "nodes", "mem", "time", "signal", "wrap", ""])
def test_what_the_engine_sets_or_what_is_no_name_is_refused_in_extra(key):
    with pytest.raises(ConfigError, match="is not for you to set"):
        SlurmOptions.parse({"extra": {key: "1"}})


@pytest.mark.parametrize("character", ["\n", "\r", "\0", "\x1b", "\x7f"])
@pytest.mark.parametrize("key", [*TEXTS, "scratch"])
def test_control_characters_are_refused(key, character):
    with pytest.raises(ConfigError, match=f"cluster.{key} is .*on one line"):
        SlurmOptions.parse({key: f"a{character}#SBATCH --uid=0"})


@pytest.mark.parametrize("name", FILLED_IN)
def test_every_profile_is_accepted(name):
    SlurmOptions.parse(profile(name))
