"""Makes tests/assets/runs-0.1.0.tar.xz: a project and its runs, as version 0.1.0 (commit 3b1b950) left them.

    python tests/support/make_contract_fixture.py        as root, with the development tools and Slurm's packages

Never make it again with newer code: what it holds is what users have on their disks, and in their Slurm queues.
Whatever version runs this file, the code that makes the fixture is that commit's, taken from git, built as a wheel and
installed beside the libraries of this environment. So the frozen trees hold the project only, and queued jobs take
`orchestrator` from the environment that they name.

What it holds, below a folder that was /tmp/orch-fixture (ROOT):

    project/        conf/, nets.py, numbers/ (a data version), and runs/:
      tiny/         inline: two runs done, one failed, one stopped by SIGTERM and one by SIGKILL while it trained
      search/       inline: an adaptive sweep; two trials done, one stopped by SIGTERM
      packed/       on Slurm: four runs done, two a job
      queued/       on Slurm: a canary in the queue, two runs that wait for it
      queued-packs/ on Slurm: one job of two runs in the queue
Nothing in it was edited. Host and user were called so while it was made (`login`, `ada`), in a namespace of this
program's own. Absolute paths stand where that version writes them; who unpacks it elsewhere replaces /tmp/orch-fixture,
see tests/old_runs.py. Left out are the tracking store, which is derived, and `__pycache__`.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import venv
import zipfile
from pathlib import Path

COMMIT, VERSION = "3b1b950", "0.1.0"
ROOT = Path("/tmp/orch-fixture")
REPOSITORY = Path(__file__).resolve().parents[2]
TARGET = REPOSITORY / "tests" / "assets" / f"runs-{VERSION}.tar.xz"
HOST, USER = "login", "ada"
PROJECT, ENVIRONMENT = ROOT / "project", ROOT / "env"
RUNS = PROJECT / "runs"

NETS = '''"""A model of one weight that goes to 1, and the numbers that it is trained with."""

import os
import signal
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset


class Numbers(pl.LightningDataModule):
    def __init__(self, folder):
        super().__init__()
        self.folder = Path(folder)

    def loader(self):
        numbers = [float(line) for line in (self.folder / "train.txt").read_text().split()]
        return DataLoader(TensorDataset(torch.tensor(numbers)), batch_size=1)

    train_dataloader = val_dataloader = loader


class Tiny(pl.LightningModule):
    """`stops`: the signal that it sends itself once, in the midst of an accumulation of gradients.

    SIGTERM during a validation, SIGKILL a batch after one: the regular checkpoint is that validation's.
    """

    def __init__(self, lr=0.1, breaks=False, stops=None):
        super().__init__()
        self.save_hyperparameters()
        self.lr, self.breaks, self.stops = lr, breaks, stops or os.environ.get("TINY_STOPS")
        self.seen, self.resumed = 0, False
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        if self.breaks and self.global_step == 1:
            raise ArithmeticError("this run was to fail")
        self.seen += 1
        self._stop("SIGKILL", 19)
        loss = ((self.weight - batch[0]) ** 2).mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self._stop("SIGTERM", 14)
        self.log("val/loss", ((self.weight - 1) ** 2).sum())
        self.log("val/late", float(abs(self.global_step - 2)))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def on_load_checkpoint(self, checkpoint):
        self.resumed = True

    def _stop(self, signal_name, batches):
        if self.stops == signal_name and self.seen == batches and not self.resumed:
            os.kill(os.getpid(), getattr(signal, signal_name))


class Bowl(Tiny):
    """Its loss is lowest where x is 2."""

    def __init__(self, x=0.0):
        super().__init__()
        self.x = x

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.log("loss", (self.x - 2) ** 2 + 1 / (1 + self.trainer.current_epoch))


class Alone(Tiny):
    """Brings its own numbers."""

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(8)), batch_size=1)

    val_dataloader = train_dataloader
'''
EXPERIMENTS = {
    "tiny": """
# @package _global_
defaults: [override /data: numbers]
name: tiny
model: {_target_: nets.Tiny, lr: 0.1, breaks: false, stops: null}
objective: {metric: val/late, mode: min}
trainer: {max_epochs: 3, accumulate_grad_batches: 4, val_check_interval: 2, log_every_n_steps: 1}
tracking: {system_metrics: 1, register: tiny}
resources: {pack: {runs: 8}}
sweep:
  list:
    - {model.lr: 0.1}
    - {model.lr: 0.2}
    - {model.lr: 0.3, model.breaks: true}
    - {model.lr: 0.1, model.stops: SIGTERM}
    - {model.lr: 0.1, model.stops: SIGKILL}
""",
    "search": """
# @package _global_
defaults: [override /data: numbers]
name: search
model: {_target_: nets.Bowl, x: 0.0}
objective: {metric: loss, mode: min}
trainer: {max_epochs: 3, accumulate_grad_batches: 4, val_check_interval: 2, log_every_n_steps: 1}
tracking: {system_metrics: false}
resources: {pack: {runs: 8}}
sweep:
  optuna:
    n: 2
    space: {model.x: "uniform(-10, 10)"}
    pruner: {_target_: optuna.pruners.MedianPruner, n_startup_trials: 3}
""",
    "packed": """
# @package _global_
defaults: [override /cluster: slurm]
name: packed
model: {_target_: nets.Alone, lr: 0.1}
objective: {metric: val/loss, mode: min}
trainer: {max_epochs: 2, log_every_n_steps: 1}
tracking: {system_metrics: false}
resources: {pack: {runs: 2}}
sweep: {grid: {model.lr: [0.1, 0.2], seed: [0, 1]}}
""",
    "queued": """
# @package _global_
defaults: [override /cluster: slurm]
name: queued
model: {_target_: nets.Alone, lr: 0.1}
objective: {metric: val/loss, mode: min}
trainer: {max_epochs: 2, log_every_n_steps: 1}
tracking: {kind: none}
launch: {canary: 1}
sweep: {grid: {model.lr: [0.1, 0.2, 0.3]}}
""",
    "queued-packs": """
# @package _global_
defaults: [override /cluster: slurm]
name: queued-packs
model: {_target_: nets.Alone, lr: 0.1}
objective: {metric: val/loss, mode: min}
trainer: {max_epochs: 2, log_every_n_steps: 1}
tracking: {kind: none}
resources: {pack: {runs: 2}}
sweep: {grid: {model.lr: [0.1, 0.2]}}
""",
}
NUMBERS = """_target_: nets.Numbers
folder: ${view:}
version: {source: directory, path: numbers}
"""
LEFT_OUT = {".mlflow", "__pycache__"}


def main() -> None:
    if os.uname().nodename != HOST:
        command = f'hostname {HOST} && exec "$@"'
        os.execvp("unshare", ["unshare", "--uts", "sh", "-c", command, "sh", sys.executable, *sys.argv])
    if ROOT.exists():
        raise SystemExit(f"error: {ROOT} is there\nfix: end what runs in it, and delete it")
    os.umask(0o022)
    make_project()
    make_environment()
    make_inline_runs()
    with_slurm()
    check()
    pack()
    say(f"{TARGET}: {TARGET.stat().st_size} bytes")


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


# --- what runs it -------------------------------------------------------------------------------------------


def make_project() -> None:
    files = {
        "nets.py": NETS,
        "conf/data/numbers.yaml": NUMBERS,
        "numbers/train.txt": "".join(f"{number}\n" for number in (1, 2, 0, 1, 2, 1, 1, 0)),
        **{f"conf/experiment/{name}.yaml": text.lstrip() for name, text in EXPERIMENTS.items()},
    }
    for name, text in files.items():
        (PROJECT / name).parent.mkdir(parents=True, exist_ok=True)
        (PROJECT / name).write_text(text)


def make_environment() -> None:
    """Make a virtual environment with the old wheel, over the libraries of the one that this program runs in."""
    old, wheels = ROOT / "old", ROOT / "wheels"
    for folder in (old, wheels, ROOT / "tmp"):
        folder.mkdir()
    archive = subprocess.run(["git", "archive", COMMIT], cwd=REPOSITORY, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(old, filter="data")
    build = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(wheels)], cwd=old, check=True, capture_output=True)
    venv.create(ENVIRONMENT, with_pip=False, symlinks=True)
    (site,) = ENVIRONMENT.glob("lib/python*/site-packages")
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(site)
    (ROOT / "libraries").symlink_to(sysconfig.get_path("purelib"))
    (site / "libraries.pth").write_text(f"{ROOT / 'libraries'}\n")
    shutil.rmtree(old)


def python(*words: str, status: int | None = 0, **more: str) -> str:
    """Return what `python WORDS` printed, of the old environment and in the project."""
    kept = {key: value for key, value in os.environ.items() if key in {"PATH", "LANG", "LC_ALL"}}
    own = {
        "HOME": str(ROOT / "home"),
        "USER": USER,
        "LOGNAME": USER,
        "TZ": "UTC",
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(ROOT / "tmp"),
        "XDG_CACHE_HOME": str(ROOT / "cache"),
        "XDG_STATE_HOME": str(ROOT / "state"),
    }
    argv = [str(ENVIRONMENT / "bin" / "python"), *words]
    done = subprocess.run(argv, cwd=PROJECT, env={**kept, **own, **more}, capture_output=True, text=True, check=False)
    say(f"$ {' '.join(words)}\n{done.stdout}{done.stderr}")
    if status is not None and done.returncode != status:
        raise SystemExit(f"error: it ended with {done.returncode}")
    return done.stdout


def orch(*words: str, status: int | None = 0, **more: str) -> str:
    return python("-m", "orchestrator", *words, status=status, **more)


# --- the runs -----------------------------------------------------------------------------------------------


def make_inline_runs() -> None:
    orch("launch", "experiment=tiny", "-m", "the first look", "--tag", "old", status=1)
    orch("launch", "experiment=search")
    orch("launch", "experiment=search", "sweep.optuna.n=3", TINY_STOPS="SIGTERM", status=1)


def with_slurm() -> None:
    """Make what needs a Slurm: one that is idle, and then one that is full."""
    cluster = ("-m", "orchestrator.slurm.devcluster", "--state", str(ROOT / "dc"))
    libraries = (ROOT / "libraries").resolve()
    shares = [ROOT, *([libraries] if libraries.is_relative_to("/tmp") else [])]  # nodes have a /tmp of their own
    options = [word for folder in shares for word in ("--share", str(folder))]
    python(*cluster, "up", "--nodes", "1", "--gpus", "0", *options)
    slurm = {"SLURM_CONF": str(ROOT / "dc" / "etc" / "slurm.conf")}
    try:
        orch("launch", "experiment=packed", "--wait", **slurm)
        block = ["sbatch", "--exclusive", "--output=/dev/null", "--wrap=sleep 3600"]
        subprocess.run(block, env={**os.environ, **slurm}, cwd="/", check=True, capture_output=True)
        orch("launch", "experiment=queued", **slurm)
        orch("launch", "experiment=queued-packs", **slurm)
        say(subprocess.run(["squeue"], env={**os.environ, **slurm}, capture_output=True, text=True, check=True).stdout)
        orch("status", **slurm)
    finally:
        python(*cluster, "down", status=None)


# --- the archive --------------------------------------------------------------------------------------------


def check() -> None:
    """Raise where something was not made as the tests expect it, or names what is of no concern to them."""
    states = {name: _states(name) for name in ("tiny", "search", "packed", "queued", "queued-packs")}
    say(json.dumps(states, indent=1))
    for path in _chosen():
        text = path.read_bytes() if path.is_file() else b""
        for word in (str(REPOSITORY), sys.prefix):
            if word.encode() in text:
                raise SystemExit(f"error: {path} names {word}")
        if path.name == "plan.jsonl" and str(ROOT).encode() in text:
            raise SystemExit(f"error: {path} names {ROOT}: its lines lie where plan.offsets says")


def _states(name: str) -> dict[str, str]:
    return {run["run"]: run["state"] for run in json.loads(orch("status", name, "--json"))["runs"]}


def _chosen() -> list[Path]:
    """Return what the archive holds, each folder before what lies in it."""
    found = [PROJECT, *PROJECT.rglob("*")]
    return sorted(path for path in found if LEFT_OUT.isdisjoint(path.relative_to(ROOT).parts))


def pack() -> None:
    """Write the archive: sorted, without owners, and with the modes and times that the files have."""
    TARGET.parent.mkdir(exist_ok=True)
    with tarfile.open(TARGET, "w:xz", preset=9, format=tarfile.PAX_FORMAT) as archive:
        for path in _chosen():
            entry = archive.gettarinfo(path, str(path.relative_to(ROOT)))
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            entry.mtime = int(entry.mtime)
            if entry.isfile():
                with path.open("rb") as file:
                    archive.addfile(entry, file)
            else:
                archive.addfile(entry)


if __name__ == "__main__":
    began = time.monotonic()
    main()
    say(f"{time.monotonic() - began:.0f} s")
