"""What each verb does: ask the api, print the answer, return the exit status."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import api, ledger, selection
from orchestrator.cli import comparison, render
from orchestrator.cli.confirm import confirming
from orchestrator.cli.foreground import Tail, launch_and_follow
from orchestrator.cli.watch import Watch, wait
from orchestrator.cluster import Change
from orchestrator.comparison import SEEDS, Comparison
from orchestrator.credentials import masked, masked_override
from orchestrator.errors import OrchError, RequestError, nearest
from orchestrator.ledger import Ledger
from orchestrator.plan import Rerun, to_do
from orchestrator.project import Project, find_project
from orchestrator.record import Record, RunState
from orchestrator.spec import Objective

if TYPE_CHECKING:
    from orchestrator.local.inline import Inline


def plan(arguments: Namespace) -> int:
    project = _project(arguments)
    with api.prepare(project, arguments.words) as prepared:
        planned = api.plan(project, prepared, rerun=arguments.rerun, weigh=arguments.forecast)
        scripts = api.scripts(prepared, planned) if arguments.sbatch else []
    if arguments.json:
        _print_json(render.plan_json(prepared, planned, scripts if arguments.sbatch else None))
        return 0
    if arguments.sbatch:
        _print(render.script_lines(planned, scripts))
    else:
        _print(render.plan_lines(planned, everything=arguments.all))
    _say(*(f"note: {note}" for note in (*prepared.notes, *planned.notes)))
    return 0


def launch(arguments: Namespace) -> int:
    project = _project(arguments)
    with api.prepare(project, [*arguments.words, *_let_loose(arguments)]) as prepared:
        _say(*(f"note: {note}" for note in prepared.notes))
        return _launch(project, api.tagged(prepared, arguments.tag), arguments, rerun=arguments.rerun)


def _let_loose(arguments: Namespace) -> list[str]:
    """Return the overrides that the options of a launch stand for."""
    given = {"canary": arguments.canary, "brake": arguments.brake}
    return [f"launch.{key}={value}" for key, value in given.items() if value is not None]


def retry(arguments: Namespace) -> int:
    project = _project(arguments)
    name, _, records = _select(project, arguments.words)
    stopped = {RunState.FAILED, RunState.INTERRUPTED, RunState.CANCELLED}
    chosen = [record for record in records if record.state in stopped]
    if not chosen:
        _say(f"{name}: none of {len(records)} chosen runs is failed, interrupted or cancelled")
        return 0
    with api.prepare_again(project, chosen, name) as prepared:
        return _launch(project, prepared, arguments, rerun="never")


def _launch(project: Project, prepared: api.Prepared, arguments: Namespace, *, rerun: Any) -> int:
    from orchestrator.local.inline import Inline

    name = prepared.experiment.name
    cluster = api.cluster_for(prepared.experiment.cluster)
    launched = api.launch(
        project, prepared, cluster=cluster, message=arguments.message, rerun=rerun,
        confirm=confirming(prepared.experiment, yes=arguments.yes),
    )  # fmt: skip
    _say(*(f"note: {note}" for note in launched.notes))
    skipped = len(launched.steps) - len(to_do(launched.steps))
    if launched.paths is None:
        book = api.read(project, name)
        _say(f"{name}: nothing to do; {render.states(book)}")
        model, tracking = prepared.experiment.tracking.get("register"), book.launches[-1].header["tracking"]
        status = _status_of(book.records.values())
        if model and tracking["kind"] != "none" and tracking.get("register") != model:
            # No job does it: they were launched before it was asked for.
            status = max(status, _sync(project, name, model=model))
        return status
    number = launched.paths.number
    runs = len(to_do(launched.steps))
    _say(f"{name}: launch {number:04d}, {render.count(runs)}, {skipped} already there or under way")
    if launched.waiting is not None:
        _say(render.submitted(runs, launched.waiting))
    if isinstance(cluster, Inline):
        _drive(project, name, number, cluster)
    elif arguments.wait or arguments.watch:
        wait(project, name, number, quiet=not arguments.watch)
    else:
        _say(f"they run in the background: orch status {name} -w")
        return 0
    return _conclude(project, name, number)


def _drive(project: Project, name: str, number: int, cluster: Inline) -> None:
    watch = Watch(project, name, launch=number)
    try:
        cluster.run(until=lambda: not watch.tick() and False)
        watch.show()
    except KeyboardInterrupt:
        _say("", f"stopped; `orch launch` goes on where it stopped: orch status {name}")
        raise
    finally:
        cluster.close()


def _conclude(project: Project, name: str, number: int) -> int:
    book = api.read(project, name)
    _say(f"{name}: {render.states(book)}", f"compare: orch compare {name}      MLflow: orch ui")
    return _status_of(record for record in book.records.values() if record.planned.launch == number)


def _status_of(records: Iterable[Record]) -> int:
    bad = {RunState.FAILED, RunState.INTERRUPTED, RunState.CANCELLED}
    return 1 if any(record.state in bad for record in records) else 0


def run(arguments: Namespace) -> int:
    project = _project(arguments)
    words, batches = _where(arguments)
    with api.prepare(project, words, batches=batches) as prepared:
        if len(prepared.experiment.runs) != 1:
            raise RequestError(
                f"{prepared.experiment.name} has {len(prepared.experiment.runs)} points",
                why="`orch run` runs one", fix="give each swept key one value, or sweep=none; or use orch launch",
            )  # fmt: skip
        _say(*(f"note: {note}" for note in prepared.notes))
        cluster = api.cluster_for(prepared.experiment.cluster)
        if batches and cluster.background:
            record = launch_and_follow(project, prepared, cluster, message=arguments.message)
            return _last_word(record)
        rerun: Rerun = "anew" if batches else arguments.rerun
        return _run_here(project, prepared, message=arguments.message, rerun=rerun)


def _where(arguments: Namespace) -> tuple[list[str], int | None]:
    """Return the overrides, and of how many batches a debug run is to be; None where it is none."""
    if arguments.on is None and arguments.batches is not None:
        raise RequestError(
            "--batches is given, but --on is not", why="a run that is no debug run has all of its batches",
            fix="orch run --on inline --batches 3 ..., or trainer.limit_train_batches=3",
        )  # fmt: skip
    if arguments.on is None:
        return arguments.words, None
    if chosen := [word for word in arguments.words if word.startswith("cluster=")]:
        raise RequestError(f"--on {arguments.on} and {chosen[0]} are given", why="both choose", fix="give one of them")
    batches = api.DEBUG_BATCHES if arguments.batches is None else arguments.batches
    if batches < 1:
        raise RequestError(f"--batches is {batches}", why="it is at least 1", fix=f"--batches {api.DEBUG_BATCHES}")
    return [*arguments.words, f"cluster={arguments.on}"], batches


def _run_here(project: Project, prepared: api.Prepared, *, message: str, rerun: Rerun) -> int:
    name = prepared.experiment.name
    cluster = api.in_foreground(prepared.experiment.cluster)
    launched = api.launch(project, prepared, cluster=cluster, message=message, rerun=rerun)
    _say(*(f"note: {note}" for note in launched.notes))
    only = launched.steps[0]
    if launched.paths is None:
        _say(f"{only.run.id[:8]}: {only.reason}; --rerun always runs it anew")
        return 0
    attempt = project.runs.experiment(name).run(only.run.id).attempt(only.attempt)
    tail = Tail(attempt.log)
    try:
        cluster.run(until=tail.copy)
    finally:
        tail.copy(ended=True)
        cluster.close()
    record = api.read(project, name).records[only.run.id]
    if record.failure and not attempt.log.exists():  # it died before it had a log of its own
        _say(record.failure.traceback)
    return _last_word(record)


def _last_word(record: Record) -> int:
    _say(f"{record.id[:8]}: {record.state.value}{': ' + record.reason if record.reason else ''}")
    return _status_of([record])


def status(arguments: Namespace) -> int:
    project = _project(arguments)
    if not arguments.words and len(list(project.runs.experiments())) != 1:
        return _overview(project, as_json=arguments.json)
    name, book, records = _select(project, arguments.words)
    records = _shown(book, records, arguments)
    if arguments.watch:
        Watch(project, name).until_ended()
        return _status_of(api.read(project, name).records.values())
    if arguments.json:
        runs = [render.record_json(record) for record in records]
        _print_json({"experiment": name, **render.outlook_json(book, time.time()), "runs": runs})
    else:
        _print(render.status_lines(book, records, everything=arguments.all))
    return 0


def _overview(project: Project, *, as_json: bool) -> int:
    found = {paths.name: api.overview(project, paths) for paths in project.runs.experiments()}
    if as_json:
        _print_json(found)
    elif not found:
        _say(f"no experiments in {project.runs.path}", "start one: orch launch experiment=NAME")
    else:
        rows = [[name, ", ".join(f"{n} {state}" for state, n in counts.items())] for name, counts in found.items()]
        _print(render.table(["EXPERIMENT", "RUNS THAT HAVE STARTED"], rows))
    return 0


def show(arguments: Namespace) -> int:
    project = _project(arguments)
    name, book, records = _select(project, arguments.words)
    record = _one(records)
    launch = book.launch(record.planned.launch)
    line = ledger.read_line(launch.paths, record.planned.index)
    config = ledger.read_config(launch.paths, line, record.given)
    document = {
        "experiment": name, **render.record_json(record),
        "folder": str(book.experiment.run(record.id).path), "config": masked(config),
        "resources": line["resources"], "data": {"digest": line["data"], **launch.header["data"].get(line["data"], {})},
        "frozen": launch.header["code"], "cluster": launch.header["cluster"], "launched": {
            "by": launch.header["user"], "time": launch.header["time"], "why": launch.header["message"],
            "command": f"orch launch {' '.join(map(masked_override, launch.header['overrides']))}",
        },
        "attempts": [_attempt_json(attempt) for attempt in record.attempts],
    }  # fmt: skip
    if arguments.json:
        _print_json(document)
    else:
        import yaml

        print(yaml.safe_dump(json.loads(json.dumps(document)), sort_keys=False, allow_unicode=True), end="")
        if record.failure:
            print(f"\n{record.failure.traceback}")
    return 0


def _attempt_json(attempt: Any) -> dict[str, Any]:
    claim = attempt.claim
    return {
        "attempt": attempt.number, "state": attempt.state.value, "reason": attempt.reason,
        "launch": claim.launch if claim else None, "code": claim.code if claim else None,
        "host": claim.process.host if claim else None, "pid": claim.process.pid if claim else None,
        "staged": dict(attempt.data), "usage": dict(attempt.usage),
    }  # fmt: skip


def diff(arguments: Namespace) -> int:
    from orchestrator.cli.difference import lines

    project = _project(arguments)
    ids = [word for word in arguments.words if not _is_experiment(project, word)]
    names = [word for word in arguments.words if _is_experiment(project, word)]
    if len(ids) != 2:
        raise RequestError(
            f"{render.count(len(ids))} given",
            why="a difference needs two",
            fix="orch diff 3fa2 77c1, or orch diff NAME 3fa2 77c1",
        )
    found = []
    for word in ids:
        _, book, records = _select(project, [*names, word])
        found.append((book, _one(records)))
    _print(lines(*found[0], *found[1]))
    return 0


def logs(arguments: Namespace) -> int:
    project = _project(arguments)
    name, book, records = _select(project, arguments.words)
    begun = [record for record in records if record.attempts or _printed(book, record)]
    if not begun and not arguments.follow:
        _say(f"{name}: none of {len(records)} chosen runs has started")
        return 0
    if arguments.follow:
        return _follow(project, name, _one(records))
    for record in begun:
        number = arguments.attempt or (record.attempts[-1].number if record.attempts else record.planned.attempt)
        path = book.experiment.run(record.id).attempt(number).log
        if len(begun) > 1:
            print(f"==> {record.id[:8]} {api.told(record.point)} (attempt {number}) <==")
        text = path.read_text(errors="replace") if path.exists() else ""
        sys.stdout.write(text or f"{_printed(book, record) or _without_log(record, number)}\n")
    return 0


def _printed(book: Ledger, record: Record) -> str:
    """Return what a scheduler's job printed that has ended: all that is left of one that never came to its run."""
    if not record.job or record.state.active or record.state is RunState.DONE:
        return ""
    launch = book.experiment.launch(record.task[0])
    return ledger.job_output(launch, record.job, processes=record.planned.resources.world_size)


def _without_log(record: Record, number: int) -> str:
    attempt = next((attempt for attempt in record.attempts if attempt.number == number), None)
    if attempt is None:
        raise RequestError(f"{record.id[:8]} has no attempt {number}", fix=f"it has 1 to {len(record.attempts)}")
    return attempt.failure.traceback if attempt.failure else f"no log: {attempt.reason or 'it has just begun'}"


def _follow(project: Project, name: str, record: Record) -> int:
    tails: dict[int, Tail] = {}
    told = ""
    look = api.looker(project, name)
    while True:
        record = look().records[record.id]
        for attempt in record.history:
            path = project.runs.experiment(name).run(record.id).attempt(attempt.number).log
            tails.setdefault(attempt.number, Tail(path)).copy()
        if not tails and not told:
            told = f"{record.id[:8]}: {record.state.value}, {record.reason}"
            _say(told)
        if not record.state.active:
            return _last_word(record)
        time.sleep(0.5)


def cancel(arguments: Namespace) -> int:
    project = _project(arguments)
    name, _, records = _select(project, arguments.words, look=api.read)  # what waits is not handed over first
    chosen = api.cancel(project, name, records)
    told = f"{len(chosen)} of {len(records)} chosen runs cancelled" if chosen else "nothing waits or runs"
    _say(f"{name}: {told}")
    return 0


def hold(arguments: Namespace) -> int:
    return _say_to_queued(arguments, "held: `orch release` lets them go", api.hold)


def release(arguments: Namespace) -> int:
    return _say_to_queued(arguments, "released", api.release)


def change(arguments: Namespace) -> int:
    options = {key: value for key in ("partition", "account", "qos") if (value := getattr(arguments, key)) is not None}
    wanted = Change(hours=arguments.hours, throttle=arguments.throttle, options=options)
    if wanted == Change():
        raise RequestError("nothing is to be changed", fix="orch change NAME --hours 8 --partition long --throttle 4")
    if arguments.hours is not None and not 0 < arguments.hours < float("inf"):
        raise RequestError(f"--hours is {arguments.hours}", why="it is a positive number", fix="--hours 8")
    if arguments.throttle is not None and arguments.throttle < 0:
        raise RequestError(
            f"--throttle is {arguments.throttle}", why="it is at least 0", fix="--throttle 0 for no limit"
        )
    return _say_to_queued(arguments, "changed", partial(api.change, wanted=wanted))


def _say_to_queued(arguments: Namespace, done: str, act: Callable[[Project, str, list[Record]], list[Record]]) -> int:
    project = _project(arguments)
    name, _, records = _select(project, arguments.words, look=api.read)  # what waits is not handed over first
    chosen = act(project, name, records)
    _say(f"{name}: {len(chosen)} of {len(records)} chosen runs {done}" if chosen else f"{name}: nothing waits")
    return 0


def hide(arguments: Namespace) -> int:
    project = _project(arguments)
    if not arguments.words:
        raise RequestError("no run is chosen", why="hiding all would hide the experiment", fix="orch hide NAME 3fa2")
    name, _, records = _select(project, arguments.words)
    api.hide(project, name, records, undo=arguments.undo)
    _say(f"{name}: {render.count(len(records))} {'shown again' if arguments.undo else 'hidden: --hidden shows them'}")
    return 0


def compare(arguments: Namespace) -> int:
    project = _project(arguments)
    _, book, records = _select(project, arguments.words)
    records = _shown(book, records, arguments)
    metrics = [name for text in arguments.metric for name in text.split(",")]
    objective = _objective(metrics[0] if metrics else None, book, records)
    over = () if arguments.each else arguments.over or SEEDS
    made = comparison.compare(book, records, objective, metrics, over=over)
    if arguments.html:
        return _write_page(book, made, Path(arguments.html))
    if arguments.json:
        _print_json(render.comparison_json(made))
    elif arguments.csv:
        import csv

        csv.writer(sys.stdout).writerows(render.comparison_csv(made))
    else:
        header, rows = render.comparison_table(made, most=None if arguments.all else render.ROWS)
        _print(render.table(header, [[render.cell(value) for value in row] for row in rows]))
        if len(rows) < len(made.groups):
            _say(f"... and {len(made.groups) - len(rows)} more: --all")
    return 0


def _write_page(book: Ledger, made: Comparison, path: Path) -> int:
    text = comparison.page(book, made)
    try:
        ledger.replace_text(path, text)
    except OSError as error:
        raise RequestError(
            f"cannot write {path}", why=error.strerror or str(error), fix="--html with another file"
        ) from error
    print(path)
    return 0


def _objective(metric: str | None, book: Ledger, records: Sequence[Record]) -> Objective | None:
    objective = render.objective_of(book)
    if metric is None:
        return objective
    known = sorted({name for record in records for name in record.metrics})
    if metric not in known:
        raise RequestError(
            f"no chosen run has logged {metric!r}{nearest(metric, known)}",
            why=f"logged are {', '.join(known) or 'none'}",
            fix="--metric with one of them",
        )  # fmt: skip
    mode = objective.mode if objective and objective.metric == metric else "min" if "loss" in metric else "max"
    return Objective(metric=metric, mode=mode)


def ui(arguments: Namespace) -> int:
    from orchestrator.cli.server import serve

    project = _project(arguments)
    names = [paths.name for paths in project.runs.experiments()]
    if not names:
        raise RequestError(f"no experiments in {project.runs.path}", fix="start one: orch launch experiment=NAME")
    servers = {name: uri for name in names if (uri := api.server_of(project, name))}
    local = [name for name in names if name not in servers]
    if local and not arguments.once:
        return serve(project, names, port=arguments.port)
    status = 0
    for name in names:
        status = max(status, _sync(project, name))
    _print(f"{name}: {uri}" for name, uri in servers.items())
    return status


def _sync(project: Project, name: str, *, model: str | None = None) -> int:
    """Sync one experiment and say so. A server that is down holds up no other."""
    try:
        report = api.sync(project, name)
        _say(f"{name}: {report.created} runs made, {report.metrics_sent} values sent")
        if done := api.register(project, name, model=model):
            _say(f"{name}: {done}")
    except OrchError as error:
        _say(f"error: {error}")
        return 1
    return 0


def data(arguments: Namespace) -> int:
    from orchestrator.cli.data import run

    return run(arguments)


# --- what verbs share -------------------------------------------------------------------------------------


def _project(arguments: Namespace) -> Project:
    return find_project(Path(arguments.project), runs=arguments.runs)


def _is_experiment(project: Project, word: str) -> bool:
    return any(paths.name == word for paths in project.runs.experiments())


def _select(
    project: Project, words: Sequence[str], *, look: Callable[[Project, str], Ledger] = api.look
) -> tuple[str, Ledger, list[Record]]:
    """Return the experiment that words name, or the only one whose runs they choose, and the chosen runs."""
    experiments = [paths.name for paths in project.runs.experiments()]
    named = [word for word in words if word in experiments]
    if len(named) > 1:
        raise RequestError(f"{named[0]} and {named[1]} are two experiments", fix="name one of them")
    chosen = selection.parse([word for word in words if word not in named], experiments=experiments)
    candidates = named or experiments
    found = [
        (book, chosen.choose(book.records.values(), book.tags)) for book in (look(project, name) for name in candidates)
    ]
    only_states = not (chosen.ids or chosen.point or chosen.tags)
    _check_keys(chosen, [record for book, _ in found for record in book.records.values()])
    hits = [(book, records) for book, records in found if records or named or (only_states and len(found) == 1)]
    if len(hits) != 1:
        _refuse(project, words, [book.experiment.name for book, _ in hits], experiments)
    book, records = hits[0]
    if (chosen.ids or chosen.point) and not records:
        raise RequestError(f"no run of {named[0]} is chosen by {' '.join(words)}", fix=f"orch status {named[0]}")
    return book.experiment.name, book, records


def _shown(book: Ledger, records: Sequence[Record], arguments: Namespace) -> list[Record]:
    """Return the runs that are not hidden, or all where that is asked for."""
    kept = [record for record in records if arguments.hidden or record.id not in book.hidden]
    if len(kept) < len(records):
        _say(f"note: {render.count(len(records) - len(kept))} hidden: --hidden")
    return kept


def _check_keys(chosen: selection.Selection, records: Sequence[Record]) -> None:
    known = sorted({key for record in records for key in record.point}) if chosen.point else []
    for key, values in chosen.point.items():
        if records and key not in known:
            raise RequestError(
                f"{key}={','.join(values)} chooses no runs{nearest(key, known)}",
                why=f"swept were {', '.join(known) or 'no keys'}",
                fix="choose by one of them, an id prefix, state=... or launch=N",
            )  # fmt: skip


def _refuse(project: Project, words: Sequence[str], hits: Sequence[str], experiments: Sequence[str]) -> None:
    if not experiments:
        raise RequestError(f"no experiments in {project.runs.path}", fix="start one: orch launch experiment=NAME")
    told = " ".join(words) or "nothing given"
    if hits:
        raise RequestError(f"{told}: runs of {', '.join(hits)}", why="one experiment at a time", fix="name one of them")
    hint = nearest(words[0], experiments) if words else ""
    raise RequestError(
        f"{told}: no such experiment or run{hint}", why=f"there are {', '.join(experiments)}",
        fix="orch status lists them",
    )  # fmt: skip


def _one(records: Sequence[Record]) -> Record:
    if len(records) != 1:
        some = "; ".join(f"{record.id[:8]} {api.told(record.point)}" for record in records[:4])
        more = " ..." if len(records) > 4 else ""
        chosen = f" ({some}{more})" if some else ""
        raise RequestError(f"{render.count(len(records))} chosen{chosen}", why="one is needed", fix="give an id prefix")
    return records[0]


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=1, default=str))


def _say(*lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr)
