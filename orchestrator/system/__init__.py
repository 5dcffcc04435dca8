"""The operating system. It knows no runs.

processes.py  programs run to their end, asked a question, or recognised later
files.py      private folders, whole files, names taken by rename
git.py        the one door to git: no program runs that a repository names
cache.py      answers kept in the user's cache folder
threads.py    threads over the items of a list
extras.py     packages that only some uses need
ports.py      a port of ours on loopback, and whose process has one
mounts.py     which kind of filesystem a folder lies on
memory.py     how much memory this process may still take
units.py      bytes, durations and times as people read them
"""
