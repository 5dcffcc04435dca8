"""The text that sbatch gets: all of it as it is, whatever the options and paths hold; no Slurm is needed."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from orchestrator.errors import ConfigError
from orchestrator.slurm import script, submission
from orchestrator.slurm.options import TEXTS, SlurmOptions
from orchestrator.spec import Resources

PROFILES = Path(__file__).parent.parent / "conf" / "cluster"
FOLDER = Path("/shared/it's a run/submitit")
CPU = Resources()
DDP = Resources(nodes=2, gpus_per_node=4, cpus_per_node=34, mem_gb_per_node=1.5, hours=1.51)

HEAD = """\
#!/bin/bash

# Parameters
"""
BODY = """
# setup
orch_exit='/shared/it'"'"'s a run/submitit'/"$SLURM_ARRAY_JOB_ID"_"$SLURM_ARRAY_TASK_ID".exit
rm -f "$orch_exit"
trap 'orch_status=$?; [ $orch_status = 0 ] || echo $orch_status > "$orch_exit"' EXIT
export PYTHONPATH='/project/of mine:/orch'
export PYTHONSAFEPATH=1
export PYTHONUNBUFFERED=1
export SLURM_KILL_BAD_EXIT=1
export OMP_NUM_THREADS=1
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
ln -sf start.0.pkl '/shared/it'"'"'s a run/submitit'/"$SLURM_ARRAY_JOB_ID"_"$SLURM_ARRAY_TASK_ID"_submitted.pkl

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/shared/it'"'"'s a run/submitit/%j_%t_log.out' --output submitit/%A_%a_%t.out PYTHON -u \
-m submitit.core._submit '/shared/it'"'"'s a run/submitit'
"""
PLAIN = """\
#SBATCH --array=0-2,5
#SBATCH --comment=orch:token:0
#SBATCH --cpus-per-task=1
#SBATCH --job-name=exp.0001
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=submitit/%A_%a.out
#SBATCH --requeue
#SBATCH --signal=USR2@90
"""
DISTRIBUTED = """\
#SBATCH --array=0-2,5%2
#SBATCH --comment=orch:token:0
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=4
#SBATCH --job-name=exp.0001
#SBATCH --mem=1536MB
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=submitit/%A_%a.out
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=91
"""

NASTY = ["it's", 'say "hi"', "$(touch x)", "`touch x`", "a  b", "ünï ✓", "a; b & c | d > e", "#no", "back\\slash", "!$HOME", ""]
lines = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]))


@pytest.fixture(autouse=True)
def srun_on_path(tmp_path_factory, monkeypatch):
    """Submitit looks for srun before it writes a line; it is never run."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def profile(name: str, *overrides: str) -> SlurmOptions:
    with initialize_config_dir(str(PROFILES), version_base=None):
        return SlurmOptions.parse(OmegaConf.to_container(compose(name, overrides=list(overrides)), resolve=True))


def rendered(options: SlurmOptions, need: Resources = CPU, *, folder: Path = FOLDER, python_path=("/project/of mine", "/orch")):
    shape = script.Shape(resources=need, python_path=python_path)
    array = script.Array(shape=shape, offset=0, indices=(0, 1, 2, 5))
    told = script.comment("token", array.offset)
    parameters = script.parameters(array, options, name="exp.0001", comment=told, folder=folder)
    return submission.text(parameters, folder).replace(shlex.quote(sys.executable), "PYTHON")


def flags(text: str) -> dict[str, str]:
    """Return sbatch's options as a shell's quoting rules read them: one word a line."""
    found = {}
    for line in text.partition("\n# setup\n")[0].split("\n"):
        if line.startswith("#SBATCH "):
            (word,) = shlex.split(line.removeprefix("#SBATCH "))
            key, _, value = word.removeprefix("--").partition("=")
            found[key] = value
    return found


def with_flags(text: str, *more: str) -> str:
    return "".join(sorted([*text.splitlines(keepends=True), *(f"#SBATCH --{flag}\n" for flag in more)]))


def parses_in_bash(text: str) -> bool:
    return subprocess.run(["bash", "-n"], input=text.encode(), capture_output=True, check=False).returncode == 0


# --- profiles ---------------------------------------------------------------------------------------------


def test_the_plain_profile():
    assert rendered(profile("slurm")) == HEAD + PLAIN + BODY


def test_a_site_with_accounts_and_a_qos():
    text = rendered(profile("slurm_accounts", "account=lab"))
    assert text == HEAD + with_flags(PLAIN, "account=lab", "partition=gpu", "qos=normal") + BODY


def test_a_site_with_private_scratch():
    options = profile("slurm_private_scratch")
    assert options.scratch == "/tmp"
    assert rendered(options) == HEAD + with_flags(PLAIN, "tmp=50G") + BODY


def test_a_site_with_containers():
    given = ["+extra={container-image: 'a b.sqsh', container-mounts: '/data:/data'}"]
    text = rendered(profile("slurm_container", *(item.removeprefix("+") for item in given)))
    more = ["container-image='a b.sqsh'", "container-mounts=/data:/data"]
    assert text == HEAD + with_flags(PLAIN, *more) + BODY


def test_two_nodes_of_four_gpus_are_eight_processes_with_their_share_of_cores():
    text = rendered(profile("slurm", "throttle=2", "signal_seconds=300"), DDP)
    assert text == HEAD + DISTRIBUTED + BODY.replace("OMP_NUM_THREADS=1", "OMP_NUM_THREADS=8")


@pytest.mark.parametrize(("hours", "minutes"), [(1, "60"), (0.001, "1"), (1.51, "91"), (48, "2880")])
def test_hours_are_rounded_up_to_whole_minutes(hours, minutes):
    assert flags(rendered(SlurmOptions(), Resources(hours=hours)))["time"] == minutes


@pytest.mark.parametrize(("mem_gb", "told"), [(1, "1024MB"), (0.0001, "1MB"), (2.5, "2560MB")])
def test_memory_is_rounded_up_to_whole_megabytes(mem_gb, told):
    assert flags(rendered(SlurmOptions(), Resources(mem_gb_per_node=mem_gb)))["mem"] == told


def test_more_gpus_than_cores_still_gives_each_process_one():
    assert flags(rendered(SlurmOptions(), Resources(gpus_per_node=4)))["cpus-per-task"] == "1"


def test_every_text_goes_to_sbatch_under_its_own_name():
    found = flags(rendered(SlurmOptions.parse({key: f"its {key}" for key in TEXTS})))
    assert {key: found[key] for key in TEXTS} == {key: f"its {key}" for key in TEXTS} | {
        "comment": "orch:token:0 its comment"
    }


def test_extra_goes_to_sbatch_as_it_is():
    found = flags(rendered(SlurmOptions.parse({"extra": {"mail_type": "END", "exclusive": True, "nice": 5, "gone": None}})))
    assert (found["mail-type"], found["exclusive"], found["nice"]) == ("END", "", "5")
    assert "gone" not in found


def test_a_value_that_ends_like_an_absent_one_is_kept():
    assert flags(rendered(SlurmOptions.parse({"extra": {"export": "LEVEL=None"}})))["export"] == "LEVEL=None"


def test_setup_lines_stand_as_they_are_between_the_trap_and_our_exports():
    lines = rendered(SlurmOptions(setup=("module load cuda/12", 'echo "$(hostname)=None"'))).splitlines()
    start = lines.index("module load cuda/12")
    assert lines[start - 1].startswith("trap ")
    assert lines[start + 1] == 'echo "$(hostname)=None"'
    assert lines[start + 2].startswith("export PYTHONPATH=")


# --- nothing of a text is executed ------------------------------------------------------------------------


@pytest.mark.parametrize("text", NASTY)
def test_a_nasty_value_stays_one_word(text):
    options = SlurmOptions.parse({**dict.fromkeys(TEXTS, text), "extra": {"mail-user": text}})
    written = rendered(options)
    found = flags(written)
    assert {found[key] for key in (*TEXTS, "mail-user") if key != "comment"} == {text}
    assert found["comment"] == f"orch:token:0 {text}".removesuffix("" if text else " ")
    assert parses_in_bash(written)


@pytest.mark.parametrize("name", NASTY)
def test_a_nasty_path_is_one_word_to_the_shell(name, tmp_path):
    folder = tmp_path / name / "submitit"
    written = rendered(SlurmOptions(), folder=folder, python_path=(f"/{name}", "/b"))
    told = written.partition("\n# command\n")[2]
    assert shlex.split(told)[-1] == str(folder)
    assert f"PYTHONPATH=/{name}:/b" in shlex.split(written, comments=False)
    assert parses_in_bash(written)


@pytest.mark.parametrize("name", NASTY)
def test_the_lines_before_the_program_do_what_they_say_in_any_folder(name, tmp_path):
    folder = tmp_path / (name.replace("/", "_") or "plain") / "submitit"
    folder.mkdir(parents=True)
    array = script.Array(shape=script.Shape(resources=CPU, python_path=(f"/{name}",)), offset=1000, indices=(1003,))
    program = "\n".join([*script.setup(array, SlurmOptions(), folder), 'printf %s "$PYTHONPATH"', "exit 3"])
    env = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3", "SLURM_CPUS_PER_TASK": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", program], env=env, cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (3, f"/{name}", b"")
    assert (folder / "7_3.exit").read_text() == "3\n"
    assert (folder / "7_3_submitted.pkl").readlink() == Path("start.1000.pkl")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [folder.parent.name]


@given(text=lines.filter(bool))
def test_any_one_line_of_text_is_one_word_and_adds_no_option(text):
    found = flags(rendered(SlurmOptions.parse({"comment": text, "extra": {"mail-user": text}})))
    plain = flags(rendered(SlurmOptions()))
    assert found == plain | {"comment": f"orch:token:0 {text}"} | ({"mail-user": text} if text != "None" else {})


@pytest.mark.parametrize("character", ["\n", "\r", "\0", "\x1b", "\x7f"])
@pytest.mark.parametrize("key", ["comment", "partition", "scratch"])
def test_control_characters_are_refused(key, character):
    with pytest.raises(ConfigError, match=f"cluster.{key} is .*on one line"):
        SlurmOptions.parse({key: f"a{character}#SBATCH --uid=0"})


def test_control_characters_are_refused_in_extra():
    with pytest.raises(ConfigError, match=r"cluster.extra.mail-user is .*one line"):
        SlurmOptions.parse({"extra": {"mail-user": "a\n#SBATCH --uid=0"}})


@pytest.mark.parametrize("name", ["100%", "back\\slash", "co:lon", "new\nline", "tab\t", "del\x7f"])
def test_a_folder_that_slurm_would_misread_is_told_by_its_character(name):
    assert script.unfit(f"/runs/{name}") in name
    assert script.unfit(f"/runs/{name}") != ""


@pytest.mark.parametrize("name", ["it's", 'a "b"', "$(x)", "ünï ✓", "a b"])
def test_other_folders_are_fit(name):
    assert script.unfit(f"/runs/{name}") == ""


# --- arrays -----------------------------------------------------------------------------------------------


def expanded(spec: str) -> list[int]:
    bounds = [[int(number) for number in part.split("-")] for part in spec.split(",")]
    return [number for bound in bounds for number in range(bound[0], bound[-1] + 1)]


@pytest.mark.parametrize(
    ("numbers", "spec"),
    [([0], "0"), ([0, 1], "0-1"), ([0, 1, 2, 5], "0-2,5"), ([3, 5, 7], "3,5,7"), ([0, 2, 3, 9, 10], "0,2-3,9-10"), ([], "")],
)
def test_ranges(numbers, spec):
    assert script.ranges(numbers) == spec


@given(st.sets(st.integers(0, 300), min_size=1))
def test_ranges_expand_to_the_numbers(numbers):
    assert expanded(script.ranges(sorted(numbers))) == sorted(numbers)


@given(
    sizes=st.dictionaries(st.integers(0, 500), st.integers(1, 3), min_size=1), max_array_size=st.integers(1, 120)
)
def test_every_task_is_in_exactly_one_array_of_its_shape_and_within_the_size(sizes, max_array_size):
    shapes = {index: script.Shape(resources=Resources(nodes=nodes), python_path=()) for index, nodes in sizes.items()}
    found = script.arrays(shapes, max_array_size=max_array_size)
    assert sorted(index for array in found for index in array.indices) == sorted(sizes)
    assert script.total(found) == len(sizes)
    for array in found:
        assert {shapes[index] for index in array.indices} == {array.shape}
        assert [number + array.offset for number in expanded(array.spec)] == list(array.indices)
        assert max(expanded(array.spec)) < max_array_size


def test_tasks_that_import_from_different_folders_are_in_different_arrays():
    shapes = {index: script.Shape(resources=CPU, python_path=(f"/{index % 2}",)) for index in range(4)}
    assert [array.spec for array in script.arrays(shapes, max_array_size=1001)] == ["0,2", "1,3"]


@given(st.lists(st.integers(0, 300), min_size=2, unique=True).map(sorted))
def test_halves_hold_the_same_tasks(indices):
    array = script.Array(shape=script.Shape(resources=CPU, python_path=()), offset=0, indices=tuple(indices))
    first, second = array.halves
    assert first.indices + second.indices == array.indices
    assert first.indices
    assert second.indices


@given(offset=st.integers(0, 10**6), text=lines)
def test_an_array_is_known_by_its_comment_whatever_the_user_adds(offset, text):
    own = script.comment("token", offset)
    assert script.offset_in(own, "token") == offset
    assert script.offset_in(f"{own} {text}", "token") == offset
    assert script.offset_in(f"{own} {text}", "other") is None


@pytest.mark.parametrize("text", ["", "5", "(null)", "5 orch:token:5", "orch:token:", "orch:token:x", "orch:tok:5", "orch:token:5a"])
def test_a_foreign_comment_is_never_taken_for_ours(text):
    assert script.offset_in(text, "token") is None


# --- options ----------------------------------------------------------------------------------------------


def test_an_empty_section_is_all_defaults_and_the_plain_profile_says_the_same():
    assert SlurmOptions.parse({}) == SlurmOptions() == SlurmOptions.parse({"kind": "slurm"}) == profile("slurm")


def test_an_unknown_key_is_refused_with_the_nearest():
    with pytest.raises(ConfigError) as caught:
        SlurmOptions.parse({"partitoin": "gpu"})
    assert "cluster.partitoin is unknown" in str(caught.value)
    assert "did you mean 'partition'" in str(caught.value)
    assert caught.value.fix == "give what sbatch alone knows under cluster.extra: {partitoin: ...}"


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("partition", 3, "cluster.partition is 3"), ("account", True, "cluster.account is True"),
        ("qos", ["a"], r"cluster.qos is \['a'\]"), ("throttle", "2", "cluster.throttle is '2'"),
        ("throttle", True, "cluster.throttle is True"), ("throttle", -1, "at least 0"),
        ("signal_seconds", 1.5, "a whole number"), ("max_requeues", -3, "cluster.max_requeues is -3"),
        ("setup", "module load cuda", "a list of shell lines"), ("setup", [1], "a list of shell lines"),
        ("extra", ["a"], "maps sbatch options to values"), ("extra", "--nice", "maps sbatch options to values"),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_refused(key, value, told):
    with pytest.raises(ConfigError, match=told) as caught:
        SlurmOptions.parse({key: value})
    assert caught.value.fix


@pytest.mark.parametrize(
    "key",
    [
        *TEXTS, "array", "output", "error", "job-name", "job_name", "nodes", "ntasks-per-node", "ntasks_per_node", "mem",
        "cpus-per-task", "time", "gpus-per-node", "signal", "requeue", "no-requeue", "chdir", "wrap", "parsable", "",
        "a b", "x=1 --uid", "a\nb", "--nice",
    ],
)  # fmt: skip
def test_extra_may_not_hold_what_is_set_elsewhere_or_is_no_name(key):
    if key == "--nice":
        assert flags(rendered(SlurmOptions.parse({"extra": {"nice": 1}})))["nice"] == "1"
        return
    with pytest.raises(ConfigError, match="is not for you to set"):
        SlurmOptions.parse({"extra": {key: "1"}})
