"""Talking to a real Slurm from a test: commands that must succeed, and what they set in motion."""

import os
import subprocess
import time

import psutil


def output(*argv, cwd="/"):
    """Run a program that must succeed; returns what it printed, stripped."""
    done = subprocess.run(argv, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv} ended with {done.returncode}: {done.stderr}"
    return done.stdout.strip()


def submit(folder, body, *options):
    """Submit a shell script whose job writes to `<folder>/log`; returns the job's id."""
    script = folder / f"job {time.monotonic_ns()}.sh"
    script.write_text(f"#!/bin/bash\n{body}\n")
    log = ("--open-mode=append", f"--output={folder}/log")
    return output("sbatch", "--parsable", *log, *options, str(script), cwd=folder)


def job_state(job):
    """Return a job's state as squeue says it; empty for a job that has ended."""
    return output("squeue", "--noheader", "--states=PD,R,CG,S,CF", f"--jobs={job}", "--format=%T")


def processes_with(text):
    """Return the processes of this machine, other than this one, that have a text in their command line."""
    found = [(each, " ".join(each.info["cmdline"] or ())) for each in psutil.process_iter(["cmdline"])]
    return [each for each, line in found if text in line and each.pid != os.getpid()]


def processes_of(cluster):
    """Return the processes started with a cluster's SLURM_CONF: its daemons, their children, and its jobs."""
    conf, found = str(cluster.slurm_conf), psutil.process_iter(["environ", "status"])
    alive = [each for each in found if each.info["status"] != psutil.STATUS_ZOMBIE and each.pid != os.getpid()]
    return [each for each in alive if (each.info["environ"] or {}).get("SLURM_CONF") == conf]
