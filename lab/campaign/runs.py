"""Makes the runs of a campaign: one after the other or on several processes, each from its own seed."""

from __future__ import annotations

import gc
import json
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lab.api import run
from lab.campaign.generate import random_scenario
from lab.errors import LabError
from lab.scenario import Scenario
from lab.topology import Topology
from lab.verdict import FAIL, Result, schedule_json

JOBS_MAX = 256
GC_THRESHOLD = 500_000
"""Runs make millions of short-lived objects without cycles; looking for those in vain costs a tenth of the time."""
RUNS_PER_COLLECTION = 4
"""What a run leaves is a few big cycles, some 30 MB with its cards: so many of them lie about at the most."""


@dataclass(frozen=True, slots=True)
class Task:
    """One run of a campaign."""

    topology: Topology
    scenario: Scenario | None
    """None: random faults, drawn from the seed."""
    world: str
    seed: int
    report: Path | None = None
    """Where a run that does not pass leaves its directory, named by its seed."""

    def played(self) -> Scenario:
        """What is run."""
        return self.scenario or random_scenario(self.topology, self.seed, world=self.world)


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of one run."""

    seed: int
    verdict: str
    problems: tuple[str, ...]
    """Of the checks that failed: "name: detail"."""
    schedule_hash: str
    faults: int
    virtual_ns: int
    """How long the run took on its own clock, from the first moment to the last."""
    cpu_ns: int
    report: str | None

    def to_json(self) -> dict[str, object]:
        """For `lab campaign --json`."""
        return {
            "seed": self.seed,
            "verdict": self.verdict,
            "problems": list(self.problems),
            "schedule_hash": self.schedule_hash,
            "faults": self.faults,
            "report": self.report,
        }


def run_one(task: Task) -> Ran:
    """One run. An error of the manager or the lab itself counts as a failure, with what it said."""
    scenario = task.played()
    begun = time.process_time_ns()
    try:
        result = run(scenario, topology=task.topology, world=task.world, seed=task.seed)
    except Exception as error:  # a defect is what a campaign looks for: it must not end the other runs
        problem = f"{type(error).__name__}: {error}"
        directory = _record(task, scenario, None)
        if directory is not None:
            (Path(directory) / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        return Ran(task.seed, FAIL, (problem,), "", len(scenario.steps), 0, time.process_time_ns() - begun, directory)
    spent = time.process_time_ns() - begun
    problems = tuple(f"{check.name}: {check.detail}" for check in result.checks if check.ok is False)
    directory = _record(task, scenario, result) if result.verdict == FAIL else None
    return Ran(
        task.seed, result.verdict, problems, result.schedule_hash, len(scenario.steps),
        result.outcome.timings.ready + result.outcome.timings.run, spent, directory,
    )  # fmt: skip


def _record(task: Task, scenario: Scenario, result: Result | None) -> str | None:
    """Leaves the directory of a failed run; of one that broke off the schedule alone."""
    if task.report is None:
        return None
    directory = task.report / f"seed-{task.seed}"
    directory.mkdir(parents=True, exist_ok=True)
    if result is not None:
        from lab.report.directory import write_report

        write_report(result, task.topology, directory)
    else:
        source = task.topology.source
        text = source.read_text(encoding="utf-8") if source else ""
        data = schedule_json(scenario, text, task.world, "", task.seed, directory=str(task.topology.directory))
        (directory / "schedule.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    return str(directory)


def run_all(tasks: list[Task], jobs: int, tell: Callable[[Ran], None]) -> list[Ran]:
    """All runs, `jobs` at a time; `tell` is called as each ends. Gives them in the order of the tasks. Raises LabError
    when a process of them dies.
    """
    if jobs <= 1 or len(tasks) <= 1:
        found = []
        with rare_collections():
            for task in tasks:
                found.append(_run_next(task))
                tell(found[-1])
        return found
    ended: dict[int, Ran] = {}
    context = multiprocessing.get_context("fork")
    workers = min(jobs, len(tasks))
    # Workers know the tasks from their parent, as they are forked: not everything in a task can be sent.
    with ProcessPoolExecutor(workers, context, _begin_worker, (tasks,)) as pool:
        try:
            for future in as_completed([pool.submit(_run_number, number) for number in range(len(tasks))]):
                ran = future.result()
                ended[ran.seed] = ran
                tell(ran)
        except BrokenProcessPool as error:
            left = sorted(task.seed for task in tasks if task.seed not in ended)
            raise LabError(f"a run ended its process; it is among the seeds {left[: 2 * workers]}") from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise
    return [ended[task.seed] for task in tasks]


def _run_next(task: Task) -> Ran:
    """One of many runs of this process."""
    ran = run_one(task)
    if task.seed % RUNS_PER_COLLECTION == 0:
        gc.collect()
    return ran


_tasks: list[Task] = []
"""Of a worker: those of its campaign."""


def _run_number(number: int) -> Ran:
    return _run_next(_tasks[number])


def _begin_worker(tasks: list[Task]) -> None:
    import signal

    _tasks[:] = tasks
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers,
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # like this
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 50)


@contextmanager
def rare_collections() -> Iterator[None]:
    """Lets the garbage collector look rarely while the block runs, and not at what was there before it."""
    former = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 50)
    try:
        yield
    finally:
        gc.set_threshold(*former)
        gc.unfreeze()


def tasks_of(
    topology: Topology, scenario: Scenario | None, *, world: str, seed: int, runs: int, report: Path | None
) -> Iterator[Task]:
    """The runs of a campaign: their seeds follow each other from `seed` on."""
    return map(partial(_task, topology, scenario, world, report), range(seed, seed + runs))


def _task(topology: Topology, scenario: Scenario | None, world: str, report: Path | None, seed: int) -> Task:
    return Task(topology, scenario, world, seed, report)
