"""From wanted runs and known records to jobs.

plan.py           wanted runs x known records -> steps, each with its reason (pure)
packing.py        which steps share a job (pure)
launch.py         the one act: freeze, publish, hand to the cluster
runs.py           composed points -> runs with ids (pure)
facts.py          the code, the environment and the data versions of a launch
starts.py         where a run starts from: `init_from`, `resume_from`
unpickle_probe.py a program of its own: whether a checkpoint holds nothing but weights and plain values
dependencies.py   `after`: launches that wait for others
pending.py        runs that their cluster could not take yet, submitted later
recovery.py       whether a run that has ended early is started again, and with what (pure)
relaunch.py       runs that are started again by the next command, since their jobs could not be requeued
canary.py         what may not start yet: runs behind the canary, and those that somebody holds
failure_limit.py  what shall never start: after failures of one kind, or of the canary
notification.py   the message at the first failure, and at the end
exactness.py      why runs may not resume exactly, as far as their configuration says (pure)
adoption.py       runs that were copied here, made one's own
estimate/         what a plan would ask for

No `orch` process watches a launch: the process that ends a run, or a command that reads it, updates the launch's files.
"""
