"""The arrays of a launch, and the script of each. Pure: what is printed is what is submitted.

Jobs start in the launch's folder, and their files are named relative to it, so that no path of the user's is in an
`#SBATCH` line, which has quoting rules of its own. All other paths are in shell lines, quoted.
"""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from orchestrator.errors import RequestError
from orchestrator.layout import LaunchPaths
from orchestrator.records.ownership import LAUNCH_ID
from orchestrator.slurm.options import TEXTS, SlurmOptions
from orchestrator.spec import Attempts, Resources

_TEARDOWN_SECONDS = 120
_INTERRUPTED = 125
"""From this exit status on a job was not ended by its run itself: 125 is Slurm's of a step that ran out of memory."""
_UNREACHED = "srun: error: Unable to (confirm allocation|create step).*(contact|timed out|refused|Zero Bytes)"
"""A pattern for grep -E: srun's message when slurmctld did not answer, so that nothing was started."""
_MEMORY = frozenset({"mem", "mem-per-cpu", "mem-per-gpu"})
REQUEUED = 75
"""The exit status of `orchestrator.slurm.restart` once it has requeued the job."""
BLOCKED = "orch_blocked"
"""The shell variable with the prefix that starts a program with TERM and USR2 blocked. It needs no quotes."""
_BLOCKED_BY = (
    "env --block-signal=TERM,USR2",  # coreutils 8.31
    "perl -MPOSIX -esigprocmask(SIG_BLOCK,POSIX::SigSet->new(SIGTERM,SIGUSR2));exec(@ARGV)",
    "",
)
MARK = "orch:"
"""The beginning of the comment of each job submitted by `orch`."""
FOLDER = "submitit"
"""The folder in a launch's folder, see `LaunchPaths.submitit`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the tasks of an array have in common: resources, the folders that they import from, and scratch.

    `resources` are those of a run; with `resources.pack`, each task is a pack of such runs. `tmp_mb` is requested with
    `--tmp`; 0: not requested.
    """

    resources: Resources
    python_path: tuple[str, ...]
    tmp_mb: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Array:
    """Tasks of one shape. Slurm's index of a task is its index in the plan minus `offset` (because of MaxArraySize).

    The index of a pack is that of its first run.
    """

    shape: Shape
    offset: int
    indices: tuple[int, ...]

    @property
    def spec(self) -> str:
        return ranges([index - self.offset for index in self.indices])

    @property
    def halves(self) -> tuple[Array, Array]:
        """The same tasks in two arrays: if they exceed a submit limit together, one half may still fit."""
        middle = len(self.indices) // 2
        return replace(self, indices=self.indices[:middle]), replace(self, indices=self.indices[middle:])


def arrays(shapes: Mapping[int, Shape], *, max_array_size: int) -> list[Array]:
    """Return the arrays for tasks by index: one per shape and per stretch of `max_array_size` indices.

    Raises RequestError if Slurm allows no arrays at all.
    """
    if max_array_size < 1:
        raise RequestError(
            "this Slurm takes no job arrays",
            why=f"its MaxArraySize is {max_array_size}",
            fix="ask its administrators for MaxArraySize=1001 or more in slurm.conf",
        )
    found: dict[tuple[Shape, int], list[int]] = {}
    for index, shape in sorted(shapes.items()):
        found.setdefault((shape, index // max_array_size), []).append(index)
    return [
        Array(shape=shape, offset=chunk * max_array_size, indices=tuple(indices))
        for (shape, chunk), indices in found.items()
    ]


def ranges(numbers: Sequence[int]) -> str:
    """Return sorted numbers as Slurm writes them: `0-4,7`."""
    parts = []
    for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        stretch = [number for _, number in run]
        parts.append(str(stretch[0]) if len(stretch) == 1 else f"{stretch[0]}-{stretch[-1]}")
    return ",".join(parts)


def comment(token: str, offset: int) -> str:
    """Return a job comment that identifies the array's launch, to find the array if sbatch's answer is lost."""
    return f"{MARK}{token}:{offset}"


def offset_in(text: str, token: str) -> int | None:
    """Return the offset in a job's comment; None if the job is not of that launch."""
    found = re.match(rf"{MARK}{re.escape(token)}:([0-9]+)(?: |$)", text)
    return int(found[1]) if found else None


def pickle_name(array: Array) -> str:
    """Return the name of the file that starts an array's tasks; it is written before sbatch is called."""
    return f"start.{array.offset}{'.packs' if array.shape.resources.pack else ''}.pkl"


def parameters(
    array: Array, options: SlurmOptions, *, name: str, token: str, folder: Path, after: Sequence[str] = ()
) -> dict[str, object]:
    """Return submitit's parameters for an array of a launch, to start once these jobs have ended in any way.

    They override unwanted defaults of submitit (FACTS 15).
    """
    need = array.shape.resources.job
    throttle = f"%{options.throttle}" if options.throttle else ""
    fixed: dict[str, object] = {
        "job_name": name,
        "nodes": need.nodes,
        "ntasks_per_node": need.processes_per_node,
        "cpus_per_task": _cpus_per_process(need),
        "signal_delay_s": options.signal_seconds,
        "stderr_to_stdout": True,
        "setup": setup(array, options, folder, token=token),
        "srun_args": ["--output", f"{FOLDER}/%A_%a_%t.out"],
    }
    texts = {key: value for key in TEXTS if (value := getattr(options, key)) is not None}
    more = {
        **{key.replace("_", "-"): value for key, value in options.extra.items() if not _absent(value)},
        **{key: value for key, value in texts.items() if key == "reservation"},
        **_memory(need, options),
        "array": f"{array.spec}{throttle}",
        "output": f"{FOLDER}/%A_%a.out",
        **_requeue(options, need.attempts),
        "time": minutes(need.hours) if need.hours else None,
        "wckey": None,
        **({"dependency": f"afterany:{':'.join(after)}"} if after else {}),
        **({"tmp": f"{array.shape.tmp_mb}M"} if array.shape.tmp_mb else {}),
        "comment": " ".join(filter(None, [comment(token, array.offset), options.comment])),
    }
    native = {key: value for key, value in texts.items() if key not in {"reservation", "comment"}}
    gpus = _gpus(need, options)
    native |= {"gres": ",".join(filter(None, [gpus.pop("gres", ""), options.gres or ""]))} if "gres" in gpus else {}
    more = {**gpus, **more}
    more |= _defaults(options, {key for key, value in {**fixed, **more}.items() if value is not None})
    return {**fixed, **native, "additional_parameters": more}


def _defaults(options: SlurmOptions, taken: Collection[str]) -> dict[str, object]:
    """Return the site's defaults for options that nothing else sets. The options for memory exclude each other."""
    known = _MEMORY.union(taken) if not _MEMORY.isdisjoint(taken) else taken
    return {key: value for key, value in options.sbatch_defaults.items() if key not in known and not _absent(value)}


def _gpus(need: Resources, options: SlurmOptions) -> dict[str, str]:
    """Return the request for a run's GPUs, with the option that the site wants; none if `gres` asks for shards instead.

    Each process sees all GPUs of its job on its node, however they are requested.
    """
    count, kind = need.gpus_per_node, need.gpu_type or options.gpu_type
    prefix = f"{kind}:" if kind else ""
    if not count or re.search(r"(^|,)shard\b", options.gres or ""):
        return {}
    match options.gpu_option:
        case "gres":
            return {"gres": f"gpu:{prefix}{count}"}
        case "gpus-per-task":
            return {"gpus-per-task": f"{prefix}1", "gpu-bind": "none"}
        case _:
            return {"gpus-per-node": f"{prefix}{count}"}


def _memory(need: Resources, options: SlurmOptions) -> dict[str, str]:
    """Return the request for a run's memory, with the option that the site wants; `--mem=0` requests a whole node's."""
    if options.mem_option == "whole-node":
        return {"mem": "0"}
    if not need.mem_gb_per_node:
        return {}
    megabytes = need.mem_gb_per_node * 1024
    if options.mem_option == "mem":
        return {"mem": f"{math.ceil(megabytes)}MB"}
    return {"mem-per-cpu": f"{math.ceil(megabytes / (need.processes_per_node * _cpus_per_process(need)))}MB"}


def _requeue(options: SlurmOptions, attempts: Attempts | None) -> dict[str, bool]:
    often = (attempts or Attempts()).without_progress if options.max_requeues is None else options.max_requeues
    return {"requeue": True} if often else {"no-requeue": True}


def _absent(value: object) -> bool:
    return value is None or value is False  # 0 is a value


def setup(array: Array, options: SlurmOptions, folder: Path, *, token: str) -> list[str]:
    """Return the shell lines before the job's program. The engine's lines quote every path; the site's are unchanged.

    The trap writes a file with the exit status of a job that failed by itself, however early. Then it submits pending
    tasks, if there are any: by then the run has written its final event, and nothing here changes the exit status.
    A job that begins while slurmctld is restarting waits for it: srun alone gives up after nine seconds.
    A signal that comes while Python starts stays blocked (BLOCKED) until the worker has installed its handlers: without
    a handler it would end the job, which Slurm would not requeue. The launch's token shows who owns the job, even on a
    node without the user's home folder.
    """
    task = '"$SLURM_ARRAY_JOB_ID"_"$SLURM_ARRAY_TASK_ID"'
    here = shlex.quote(str(folder))
    own = {
        "PYTHONPATH": ":".join(array.shape.python_path),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "SLURM_KILL_BAD_EXIT": "1",
        "OMP_NUM_THREADS": str(_cpus_per_process(array.shape.resources)),
    }
    return [
        f"export {LAUNCH_ID}={shlex.quote(token)}",
        f"orch_exit={here}/{task}.exit",
        'rm -f "$orch_exit"',
        "orch_end() {",
        "  orch_status=$?; set +e",
        '  [ $orch_status = 0 ] || echo $orch_status > "$orch_exit"',
        *([_restart(array, folder)] if options.nodes_may_submit and _starts_again(array.shape) else []),
        *([_submit_pending(array.shape, folder)] if options.nodes_may_submit else []),
        "}",
        "trap orch_end EXIT",
        *options.setup,
        *_patient_srun(f"{here}/{task}.out"),
        f"for {BLOCKED} in {' '.join(map(shlex.quote, _BLOCKED_BY))}; do ${BLOCKED} true 2>/dev/null && break; done",
        *(f"export {key}={shlex.quote(value)}" for key, value in own.items()),
        "export SLURM_EXPORT_ENV=ALL",  # with --export=NONE, srun would pass on none of the above
        'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"',  # srun no longer inherits it (FACTS 6)
        f"ln -sf {pickle_name(array)} {here}/{task}_submitted.pkl",
    ]


def _patient_srun(log: str) -> list[str]:
    """Return a shell function `srun` that retries if slurmctld does not answer; `log` is the job's output, quoted."""
    return [
        "srun() {",
        "  local pause=5 from status",
        "  while :; do",
        f"    from=$(stat -c %s {log} 2>/dev/null || echo 0) status=0",
        '    command srun "$@" || status=$?',
        "    [ $status = 0 ] && return",
        f'    tail -c +$((from + 1)) {log} | grep -E "{_UNREACHED}" > /dev/null || return $status',
        '    echo "orch: slurmctld does not answer; srun is tried again in $pause s" >&2',
        "    sleep $pause; pause=$((pause < 30 ? pause * 2 : 60))",
        "  done",
        "}",
    ]


def minutes(hours: float) -> int:
    """Return a time limit in whole minutes, rounded up, as Slurm counts."""
    return math.ceil(hours * 60)


def tmp_mb(version_bytes: int) -> int:
    """Return the scratch to request, in MiB as Slurm counts: the size of the version, and a tenth more for overhead."""
    return math.ceil(version_bytes * 11 / 10 / 2**20)


def _submit_pending(shape: Shape, folder: Path) -> str:
    """Return the line that submits pending tasks, with the job's frozen code; if there are none, it only runs `ls`."""
    runs = LaunchPaths(folder.parent).runs
    code, here = shlex.quote(":".join(shape.python_path)), shlex.quote(str(folder))
    run = f"timeout {_TEARDOWN_SECONDS} {shlex.quote(sys.executable)} -m orchestrator.slurm.teardown"
    return (
        f'  [ -z "$(ls -A {shlex.quote(str(runs.waiting))} 2>/dev/null)" ] || PYTHONPATH={code} PYTHONSAFEPATH=1 '
        f"{run} {shlex.quote(str(runs.path))} >> {here}/teardown.out 2>&1"
    )


def _starts_again(shape: Shape) -> bool:
    return shape.resources.attempts is not None and shape.resources.attempts.of > 1


def _restart(array: Array, folder: Path) -> str:
    """Return the line that requeues a job whose run was interrupted. Bash ignores SIGTERM, as the program does.

    A job that was requeued stays in the queue: it frees no place for pending tasks.
    """
    code = shlex.quote(":".join(array.shape.python_path))
    run = f"timeout {_TEARDOWN_SECONDS} {shlex.quote(sys.executable)} -m orchestrator.slurm.restart"
    task = f'{shlex.quote(str(folder.parent))} "$(({array.offset} + SLURM_ARRAY_TASK_ID))" "$orch_status"'
    return (
        f'  [ "$orch_status" -lt {_INTERRUPTED} ] || {{ trap "" TERM; PYTHONPATH={code} PYTHONSAFEPATH=1 '
        f"{run} {task} >> {shlex.quote(str(folder))}/teardown.out 2>&1; [ $? != {REQUEUED} ] || return; }}"
    )


def forbidden_character(path: str) -> str:
    """Return the first character that a path may not have (Slurm reads `%` and backslashes, Python `:`), or nothing."""
    return next((each for each in path if each in "%\\:" or ord(each) < 32 or ord(each) == 127), "")


def without_none(text: str, options: Mapping[str, object]) -> str:
    """Return a script without the options that were set to None to remove a default of submitit."""
    head, mark, body = text.partition("\n# setup\n")
    for key in (key for key, value in options.items() if value is None):
        head = head.replace(f"\n#SBATCH --{key}=None\n", "\n")
    return head + mark + body


def _cpus_per_process(resources: Resources) -> int:
    return max(1, resources.cpus_per_node // resources.processes_per_node)


def total(items: Iterable[Array]) -> int:
    """Return the number of tasks in all arrays."""
    return sum(len(array.indices) for array in items)
