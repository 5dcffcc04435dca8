"""What a launch's plan tells this process to do, and the claim of the attempt in which it does it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from orchestrator import ledger
from orchestrator.errors import ClusterError
from orchestrator.layout import AttemptPaths, ExperimentPaths, LaunchPaths, RunPaths
from orchestrator.process import ProcessId
from orchestrator.record import Claim, Planned, RunState
from orchestrator.worker.place import Place

_LEADER_SECONDS = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One task of a launch, seen by one of its processes. `wish.attempt` is the attempt to work in."""

    launch: LaunchPaths
    header: Mapping[str, Any]
    line: Mapping[str, Any]
    wish: Planned
    place: Place

    @classmethod
    def read(cls, folder: Path, index: int) -> Self:
        launch = LaunchPaths(folder)
        line = ledger.read_line(launch, index)
        header = ledger.read_launch(launch).header
        place = Place.of(os.environ, slurm=header["cluster"]["kind"] == "slurm")
        return cls(launch=launch, header=header, line=line, wish=ledger.planned(line, launch.number), place=place)

    @property
    def experiment(self) -> ExperimentPaths:
        return self.launch.experiment

    @property
    def run(self) -> RunPaths:
        return self.experiment.run(self.wish.run)

    @property
    def attempt(self) -> AttemptPaths:
        return self.run.attempt(self.wish.attempt)

    @property
    def code(self) -> list[str]:
        """The folders that this process imports the project from."""
        return self.experiment.python_path(self.wish.code)

    @property
    def leads(self) -> bool:
        """Whether this process claims, records and logs for the run."""
        return self.place.rank == 0

    @property
    def cancelled(self) -> bool:
        """Whether somebody has cancelled this run in its launch."""
        return (self.launch.cancelled / self.wish.run).exists()

    @property
    def rank_failed(self) -> bool:
        """Whether a rank other than 0 has failed, and with it the run."""
        return any(self.attempt.failed_ranks())

    def take(self) -> Self | None:
        """Return the assignment with the attempt that is ours; None if the run is somebody else's, or has ended.

        Rank 0 claims; the others wait for its claim. A requeued job goes on in the next attempt.
        """
        return self._claim() if self.leads else self._await_claim()

    def _claim(self) -> Self | None:
        if (self.launch.cancelled / self.wish.run).exists():
            return None
        chosen = self.next_start()
        if chosen is None or self.cancelled:
            return None
        wish = chosen.wish
        claim = Claim(
            launch=wish.launch, index=wish.index, code=wish.code, generation=wish.generation, history=wish.history,
            process=ProcessId.current(), time=time.time(), job=self.place.job, restart=self.place.restart,
            address=self.place.listen_address(), devices=self.place.devices,
        )  # fmt: skip
        if not ledger.claim_attempt(chosen.attempt, claim):
            return None
        if claim.address:
            _meet(claim.address)
        return chosen

    def _await_claim(self) -> Self | None:
        deadline = time.monotonic() + _LEADER_SECONDS
        while time.monotonic() < deadline:
            ours = self.attempts_of_this_job() if self.place.job else [self]
            claim = ledger.read_claim(ours[-1].attempt) if ours else None
            if claim is not None and self._leads_us(claim):
                _meet(claim.address)
                return ours[-1]
            chosen = self.next_start()
            if chosen is None or self.cancelled or chosen.taken_by_others:
                return None
            time.sleep(0.1)
        raise ClusterError(
            f"rank {self.place.rank} has waited {_LEADER_SECONDS:.0f} s for rank 0",
            why="rank 0 has claimed no attempt", fix="see the job's own output for what became of rank 0",
        )  # fmt: skip

    def _leads_us(self, claim: Claim) -> bool:
        """Return whether a claim of our task is that of our own rank 0."""
        return claim.restart == self.place.restart if self.place.job else claim.process.pid == self.place.leader

    def next_start(self) -> Self | None:
        """Return the attempt that a start of this job begins; None if the run has ended in an earlier one."""
        ours = self.attempts_of_this_job()
        if ours and ledger.read_attempt(self.run, ours[-1].attempt).state in {RunState.DONE, RunState.FAILED}:
            return None
        return ours[-1].following() if ours else self

    def attempts_of_this_job(self) -> list[Self]:
        """Return this task's attempts that the same scheduler's job has claimed, oldest first."""
        found = []
        candidate = self
        while self.place.job and (claim := ledger.read_claim(candidate.attempt)) is not None:
            if claim.job == self.place.job and claim.launch == self.wish.launch:
                found.append(candidate)
            candidate = candidate.following()
        return found

    @property
    def taken_by_others(self) -> bool:
        """Whether another job, or another start, has claimed the attempt."""
        claim = ledger.read_claim(self.attempt)
        if claim is None:
            return False
        return claim.job != self.place.job if self.place.job else not self._leads_us(claim)

    def following(self) -> Self:
        """Return the same assignment, in the next attempt."""
        return replace(self, wish=replace(self.wish, attempt=self.wish.attempt + 1))


def _meet(address: str) -> None:
    """Have torch.distributed meet where rank 0 listens."""
    host, _, port = address.rpartition(":")
    os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": port}
