"""The records on disk: launches published whole, attempts claimed once, events appended by one writer.

`mkdir` and `rename` are the only locks (atomic on NFS too); nothing here relies on flock.
Reading writes nothing but the user's cache. What a dying process left torn or NUL at the end of a file is skipped.

header.py       the header of a launch, parsed
planned.py      the plan of a launch: a line per task, parsed
launches.py     launches, published whole
searches.py     adaptive sweeps: what a launch keeps of one, what a trial was given
packs.py        which tasks of a launch share a job
record.py       events, and what they fold to (pure)
cause.py        which line of an output says why a job failed (pure)
attempts.py     claims, events, the index
checkpoints.py  the checkpoints that a run resumes from
ownership.py    whose runs these are: what this user made here is theirs to act on
ended.py        what can never change any more, kept in the user's cache
experiment.py   all of it together
orphans.py      recording attempts that ended without a final event
"""
