"""The task that a launch's plan assigns to this process, and the claim of an attempt for it."""

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
    """One task of a launch, as seen by one of its processes. `planned.attempt` is the attempt to work in."""

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
        """Whether this process is rank 0, which claims, records and logs for the run."""
        return self.context.rank == 0

    @property
    def cancelled(self) -> bool:
        """Whether this run has been cancelled in its launch."""
        return listed(self.launch.cancelled / self.planned.run)

    @property
    def rank_failed(self) -> bool:
        """Whether a rank other than 0 has failed, which fails the run."""
        return any(self.attempt.failed_ranks())

    @property
    def superseded(self) -> bool:
        """Whether a later attempt of the run has been claimed, because Slurm lost contact with this one's node."""
        return is_superseded(self.attempt)

    def take(self) -> Self | None:
        """Claim an attempt and return the assignment with it; None if another job has the run, or it has ended.

        Rank 0 claims; the others wait for its claim. A requeued job continues in the next attempt. Raises ClusterError
        if rank 0 does not claim in time.
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
            _set_rendezvous(claim.address)
        return chosen

    def _await_claim(self) -> Self | None:
        deadline = time.monotonic() + _LEADER_SECONDS
        while time.monotonic() < deadline:
            ours = self.attempts_of_this_job() if self.context.job else [self]
            claim = read_claim(ours[-1].attempt) if ours and listed(ours[-1].attempt.path) else None
            if claim is not None and self._leads_us(claim):
                _set_rendezvous(claim.address)
                return ours[-1]
            chosen = self.next_start()
            if chosen is None or self.cancelled or chosen.taken_by_others:
                return None
            time.sleep(0.1)
        raise ClusterError(
            f"rank {self.context.rank} has waited {_LEADER_SECONDS:.0f} s for rank 0",
            why="rank 0 has claimed no attempt",
            fix="look in the job's own output for the error of rank 0",
        )

    def _leads_us(self, claim: Claim) -> bool:
        """Return whether a claim of this task was made by this process's own rank 0."""
        return claim.restart == self.context.restart if self.context.job else claim.process.pid == self.context.leader

    def next_start(self) -> Self | None:
        """Return the assignment with the attempt that this start of the job may begin.

        None if the run has ended in an earlier attempt, or if a later start of the job has begun: then Slurm lost
        contact with this node, and restarted the job elsewhere.
        """
        ours = self.attempts_of_this_job()
        claim = read_claim(ours[-1].attempt) if ours else None
        if claim is not None and claim.restart > self.context.restart:
            return None
        if ours and read_attempt(self.run, ours[-1].attempt).state in {RunState.DONE, RunState.FAILED}:
            return None
        return ours[-1].following() if ours else self

    def attempts_of_this_job(self) -> list[Self]:
        """Return this task's attempts that the same job has claimed, oldest first; none outside of a job."""
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
        """Whether another job, or another start of the run, has claimed the attempt."""
        claim = read_claim(self.attempt) if listed(self.attempt.path) else None
        if claim is None:
            return False
        return claim.job != self.context.job if self.context.job else not self._leads_us(claim)

    def following(self) -> Self:
        """Return the same assignment with the next attempt."""
        return replace(self, planned=replace(self.planned, attempt=self.planned.attempt + 1))


def _set_rendezvous(address: str) -> None:
    """Set the rendezvous of torch.distributed to the address of rank 0."""
    host, _, port = address.rpartition(":")
    os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": port}
