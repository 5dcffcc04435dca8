"""What happens on the node: claim the attempt, stage the data, build, train, and record how it ended.

__main__.py     the process: signals first, then the claim, then everything else
assignment.py   what the plan asks for, and the claim of an attempt
context.py      this process's rank, and the scheduler's job it belongs to
staging.py      the data version, staged before the training and watched beside it
cause.py        what an error is a symptom of: a rank that is gone, a disk that fails
superseded.py   the end of an attempt whose run goes on in a later one
attempt.py      one attempt from its claim to its final event
trial.py        the values of an adaptive sweep's trial, and its reports
pack.py         the process of a job that several runs share
warm.py         imports torch and Lightning once, and forks a process for each run of a pack
signals.py      the one owner of signals
requeue.py      what an interrupted process owes the scheduler
on_run_end.py   what the end of a run means for its launch
upload.py       the uploader beside a run
log.py          the log of an attempt
monitor/        what a run and its node use
fit/            the training itself: all that imports torch and Lightning
"""
