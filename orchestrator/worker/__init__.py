"""The process of a run on its node: claim the attempt, stage the data, build, train, and record the end.

__main__.py     the entry point: signals first, then the claim, then everything else
assignment.py   one task of a plan, and the claim of an attempt
context.py      this process's rank, and the scheduler's job that it belongs to
staging.py      the data version, staged before the training and checked during it
cause.py        errors that are symptoms: of a rank that has died, of a disk that fails
superseded.py   the end of an attempt whose run continues in a later one
attempt.py      one attempt, from its claim to its final event
trial.py        the values of an adaptive sweep's trial, and its reports
pack.py         the process of a job that several runs share
warm.py         the prefork server: imports torch and Lightning once, and forks a process for each run of a pack
signals.py      the only module that handles signals
requeue.py      the duties of an interrupted process towards the scheduler
on_run_end.py   consequences of a run's end for its launch
upload.py       the uploader process of a run
log.py          the log of an attempt
monitor/        resource usage of a run and its node
fit/            the training itself: everything that imports torch and Lightning
"""
