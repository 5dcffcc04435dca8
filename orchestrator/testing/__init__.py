"""For tests of clusters and of projects: runs that train nothing, launched and recorded like real ones.

script.py    a scripted run: it takes steps, waits, raises, dies
net.py       a network that really trains, and can be made to fail or to die
worker.py    the worker that plays a script; the rest (claim, data, events, exit status) is the real worker's
launches.py  experiments of scripted runs, launched without composing a configuration
__main__.py  the command line, with that worker
"""
