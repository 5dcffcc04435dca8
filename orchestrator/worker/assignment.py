"""What a launch's plan tells this process to do, and the claim of the attempt in which it does it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from orchestrator.errors import ClusterError
from orchestrator.layout import AttemptPaths, ExperimentPaths, LaunchPaths, RunPaths
from orchestrator.records.attempts import claim_attempt, is_superseded, read_attempt, read_claim
from orchestrator.records.header import LaunchHeader
from orchestrator.records.launches import read_launch
from orchestrator.records.planned import PlannedRun, read_planned_run
from orchestrator.records.record import Claim, RunState
from orchestrator.system.files import listed, names_in
from orchestrator.system.processes import ProcessId
from orchestrator.worker.context import ProcessContext

_LEADER_SECONDS = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One task of a launch, seen by one of its processes. `planned.attempt` is the attempt to work in."""

    launch: LaunchPaths
    header: LaunchHeader
    planned: PlannedRun
    context: ProcessContext

    @classmethod
    def read(cls, folder: Path, index: int) -> Self:
        launch = LaunchPaths(folder)
        header = read_launch(launch).header
        context = ProcessContext.of(os.environ, slurm=header.cluster_kind == "slurm")
        planned = read_planned_run(launch, index)
        planned = replace(planned, attempt=max(planned.attempt, context.attempt))
        return cls(launch=launch, header=header, planned=planned, context=context)

    @property
    def experiment(self) -> ExperimentPaths:
        return self.launch.experiment

    @property
    def run(self) -> RunPaths:
        return self.experiment.run(self.planned.run)

    @property
    def attempt(self) -> AttemptPaths:
        return self.run.attempt(self.planned.attempt)

    @property
    def code(self) -> list[str]:
        """The folders that this process imports the project from."""
        return self.experiment.python_path(self.planned.code)

    @property
    def leads(self) -> bool:
        """Whether this process claims, records and logs for the run."""
        return self.context.rank == 0

    @property
    def cancelled(self) -> bool:
        """Whether somebody has cancelled this run in its launch."""
        return listed(self.launch.cancelled / self.planned.run)

    @property
    def rank_failed(self) -> bool:
        """Whether a rank other than 0 has failed, and with it the run."""
        return any(self.attempt.failed_ranks())

    @property
    def superseded(self) -> bool:
        """Whether a later attempt of the run has been claimed: Slurm had lost this one's node."""
        return is_superseded(self.attempt)

    def take(self) -> Self | None:
        """Return the assignment with the attempt that is ours; None if the run is somebody else's, or has ended.

        Rank 0 claims; the others wait for its claim. A requeued job goes on in the next attempt.
        """
        return self._claim() if self.leads else self._await_claim()

    def _claim(self) -> Self | None:
        if self.cancelled:
            return None
        chosen = self.next_start()
        if chosen is None or self.cancelled:
            return None
        planned = chosen.planned
        claim = Claim(
            launch=planned.launch,
            index=planned.index,
            code=planned.code,
            generation=planned.generation,
            history=planned.history,
            process=ProcessId.current(),
            time=time.time(),
            job=self.context.job,
            restart=self.context.restart,
            address=self.context.listen_address(),
            devices=self.context.devices,
        )
        if not claim_attempt(chosen.attempt, claim):
            return None
        if claim.address:
            _meet(claim.address)
        return chosen

    def _await_claim(self) -> Self | None:
        deadline = time.monotonic() + _LEADER_SECONDS
        while time.monotonic() < deadline:
            ours = self.attempts_of_this_job() if self.context.job else [self]
            claim = read_claim(ours[-1].attempt) if ours and listed(ours[-1].attempt.path) else None
            if claim is not None and self._leads_us(claim):
                _meet(claim.address)
                return ours[-1]
            chosen = self.next_start()
            if chosen is None or self.cancelled or chosen.taken_by_others:
                return None
            time.sleep(0.1)
        raise ClusterError(
            f"rank {self.context.rank} has waited {_LEADER_SECONDS:.0f} s for rank 0",
            why="rank 0 has claimed no attempt",
            fix="see the job's own output for what became of rank 0",
        )

    def _leads_us(self, claim: Claim) -> bool:
        """Return whether a claim of our task is that of our own rank 0."""
        return claim.restart == self.context.restart if self.context.job else claim.process.pid == self.context.leader

    def next_start(self) -> Self | None:
        """Return the attempt that a start of this job begins; None if the run has ended in an earlier one.

        Nor does a start begin any that the job has left behind: Slurm had lost its node, and started the job again.
        """
        ours = self.attempts_of_this_job()
        claim = read_claim(ours[-1].attempt) if ours else None
        if claim is not None and claim.restart > self.context.restart:
            return None
        if ours and read_attempt(self.run, ours[-1].attempt).state in {RunState.DONE, RunState.FAILED}:
            return None
        return ours[-1].following() if ours else self

    def attempts_of_this_job(self) -> list[Self]:
        """Return this task's attempts that the same scheduler's job has claimed, oldest first."""
        found = []
        candidate = self
        there = set(names_in(self.run.path)) if self.context.job else set()
        while candidate.attempt.path.name in there:
            claim = read_claim(candidate.attempt)
            if claim is not None and claim.job == self.context.job and claim.launch == self.planned.launch:
                found.append(candidate)
            candidate = candidate.following()
        return found

    @property
    def taken_by_others(self) -> bool:
        """Whether another job, or another start, has claimed the attempt."""
        claim = read_claim(self.attempt) if listed(self.attempt.path) else None
        if claim is None:
            return False
        return claim.job != self.context.job if self.context.job else not self._leads_us(claim)

    def following(self) -> Self:
        """Return the same assignment, in the next attempt."""
        return replace(self, planned=replace(self.planned, attempt=self.planned.attempt + 1))


def _meet(address: str) -> None:
    """Have torch.distributed meet where rank 0 listens."""
    host, _, port = address.rpartition(":")
    os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": port}
