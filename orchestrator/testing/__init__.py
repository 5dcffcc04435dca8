"""For tests of clusters and of projects: runs that train nothing, launched and recorded as real ones are.

script.py    what such a run does: takes steps, waits, raises, dies
net.py       a network that really trains, and may be told to fail or to die
worker.py    the worker that plays it; all around it (claim, data, events, exit status) is the real worker's
launches.py  experiments of scripted runs, launched without composing a configuration
__main__.py  the command line, with that worker
"""
