"""Talking to a real Slurm from a test: commands that must succeed, and waiting for what they set in motion."""

import subprocess
import time

PATIENCE_SECONDS = 60


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


def wait_for(condition):
    """Wait until a condition holds; give up only when it surely never will."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
