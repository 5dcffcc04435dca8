"""What a launch's files say, parsed once: older keys get their defaults, newer ones are kept, and damage is named."""

import json

import pytest
from launches import planned_run

from orchestrator.errors import StateError
from orchestrator.layout import RunsRoot
from orchestrator.records.header import LaunchHeader
from orchestrator.records.launches import publish_launch, read_launch
from orchestrator.records.planned import read_plan, read_planned_run
from orchestrator.spec import CheckpointOptions, LaunchOptions, Objective, SnapshotOptions

HEADER = LaunchHeader(
    experiment="digits",
    message="why",
    argv=("launch", "experiment=digits"),
    overrides=("experiment=digits",),
    choices={"model": "mlp"},
    sweep={"grid": {"seed": [1, 2]}},
    objective=Objective(metric="val/acc", mode="max"),
    cluster={"kind": "slurm", "partition": "gpu"},
    tracking={"kind": "embedded"},
    env="refuse",
    snapshot=SnapshotOptions(include=("a b",)),
    launch=LaunchOptions(canary=1, brake=3, notify=("mail", "me")),
    tags=("paper",),
    after=("pretrain",),
    environment={"python": "3.11"},
    python="/usr/bin/python",
    worker=("-m", "orchestrator.worker"),
    code=({"tree": "c0de"},),
    data={"d1": {"bytes": 5}},
    unknown={"of_tomorrow": [1]},
)


@pytest.fixture
def launch(tmp_path):
    return publish_launch(RunsRoot(tmp_path / "it's").experiment("digits"), 1, HEADER, [{}], [planned_run()])


def rewrite(path, changes, *, without=()):
    """Change the JSON object of a file's last line, or of its whole."""
    written = {**json.loads(path.read_bytes()), **changes}
    path.write_text(json.dumps({key: value for key, value in written.items() if key not in without}) + "\n")


def test_a_header_is_read_as_it_was_written(launch):
    assert read_launch(launch).header == HEADER
    assert json.loads(launch.header.read_bytes()) == json.loads(json.dumps(HEADER.to_json()))


def test_the_keys_of_a_header_are_written_in_the_same_order_as_ever(launch):
    written = json.loads(launch.header.read_bytes())
    assert list(written) == [
        *("v", "token", "time", "user", "process", "experiment", "message", "argv", "overrides", "choices", "sweep"),
        *("objective", "cluster", "tracking", "env", "snapshot", "launch", "tags", "after", "environment", "python"),
        *("worker", "code", "data", "checkpoint", "of_tomorrow"),
    ]
    assert written["launch"] == {"canary": 1, "brake": 3, "notify": ["mail", "me"]}
    assert written["snapshot"] == {"include": ["a b"], "max_file_mb": 10.0, "max_total_mb": 200.0}


def test_what_an_older_version_did_not_write_has_its_default(launch):
    required = {"v", "token", "time", "user", "process", "cluster"}
    rewrite(launch.header, {}, without=HEADER.to_json().keys() - required)
    old = read_launch(launch).header
    found = (old.tags, old.after, old.launch, old.objective, old.tracking_kind, old.checkpoint)
    assert found == ((), (), LaunchOptions(), None, "none", CheckpointOptions())


def test_an_option_of_tomorrow_is_ignored(launch):
    rewrite(launch.header, {"launch": {"canary": 2, "of_tomorrow": 1}, "objective": None})
    assert read_launch(launch).header.launch == LaunchOptions(canary=2)
    assert read_launch(launch).header.objective is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("token", 7),
        ("time", "noon"),
        ("user", None),
        ("process", {"host": "here"}),
        ("process", []),
        ("overrides", "a=1"),
        ("tags", [1]),
        ("checkpoint", {"minutes": "1"}),
        ("checkpoint", {"exact": "maybe"}),
        ("choices", {"model": 1}),
        ("objective", {"metric": "acc"}),
        ("objective", {"metric": "acc", "mode": "best"}),
        ("cluster", {}),
        ("cluster", {"kind": 1}),
        ("tracking", "none"),
        ("env", "ignore"),
        ("snapshot", {"max_file_mb": "10"}),
        ("launch", {"brake": "soon"}),
        ("code", [1]),
        ("data", {"d1": 5}),
        ("worker", {}),
    ],
)
def test_a_header_with_a_wrong_type_is_damaged_and_the_key_is_named_with_what_it_holds(launch, key, value):
    rewrite(launch.header, {key: value})
    with pytest.raises(StateError, match=r"launch\.json is damaged") as caught:
        read_launch(launch)
    assert f"{key} is {value!r}" in caught.value.why


@pytest.mark.parametrize("key", ["token", "time", "user", "process", "cluster"])
def test_a_header_without_what_every_version_wrote_is_damaged(launch, key):
    rewrite(launch.header, {}, without=[key])
    with pytest.raises(StateError, match=r"launch\.json is damaged") as caught:
        read_launch(launch)
    assert caught.value.why == f"it lacks {key}"


# --- the plan ---------------------------------------------------------------------------------------------


def test_the_keys_of_a_line_are_written_in_the_same_order_as_ever(launch):
    assert list(json.loads(launch.plan.read_bytes())) == [
        *("index", "run", "action", "reason", "attempt", "generation", "history", "code", "data", "base", "set"),
        *("point", "resources"),
    ]
    trial = planned_run(search="5ea7c4", trial=3).to_json()
    assert list(trial)[-3:] == ["resources", "search", "trial"]


def test_a_trial_and_the_keys_of_tomorrow_are_read_as_they_were_written(launch):
    rewrite(launch.plan, {"search": "5ea7c4", "trial": 3, "of_tomorrow": {"a": 1}})
    (planned,) = read_plan(launch)
    assert planned == planned_run(search="5ea7c4", trial=3, unknown=(("of_tomorrow", {"a": 1}),))
    assert planned.to_json() == json.loads(launch.plan.read_bytes())


def test_a_line_may_lack_its_reason_and_its_data_version(launch):
    rewrite(launch.plan, {}, without=["reason", "data"])
    assert read_plan(launch) == [planned_run(reason="")]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("index", "0"),
        ("index", True),
        ("run", 7),
        ("attempt", 1.0),
        ("data", 5),
        ("set", {}),
        ("point", []),
        ("resources", {"gpus": 1}),
        ("resources", None),
        ("trial", "3"),
    ],
)
def test_a_line_with_a_wrong_type_is_damaged_and_the_key_is_named_with_what_it_holds(launch, key, value):
    rewrite(launch.plan, {key: value})
    for read in (lambda: read_plan(launch), lambda: read_planned_run(launch, 0)):
        with pytest.raises(StateError, match=r"plan\.jsonl is damaged") as caught:
            read()
        assert f"{key} of a line is {value!r}" in caught.value.why


@pytest.mark.parametrize("key", ["run", "attempt", "base", "set", "point"])
def test_a_line_without_what_every_version_wrote_is_damaged(launch, key):
    rewrite(launch.plan, {}, without=[key])
    with pytest.raises(StateError, match=r"plan\.jsonl is damaged") as caught:
        read_plan(launch)
    assert caught.value.why == f"a line lacks {key}"
