"""Time one case with every provider, after a look at what each of them gives."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import limits, measure
from benchmarks.cases import CASES, Workload, input_sets
from benchmarks.expected import Expected, expected
from benchmarks.libraries import Arrays, LeftOut, NumPy
from benchmarks.providers import LIMIT, PROVIDERS, Provider, Run
from gpubce.backends.cpu.launch import thread_count

Row = dict[str, Any]
"""One provider at one case and size. "status" is "timed", "left out", "wrong" or "failed", the last three with a
"reason"; a timed row has "first_call" and "median" in seconds, "middle_half" (the quartiles of the rounds), "rounds",
"calls" (in each round) and "sets" (of inputs)."""

ENOUGH = {"cpu": 0.03, "cuda": 0.01}
"""Seconds of a round: on a CPU several calls, so that what came before weighs less; on a GPU a hundred times what an
idle device takes to begin."""

SAME_BITS = 1 << 22
"""A GPU's results are compared with the CPU's, bit by bit, up to so many elements."""


@dataclass(frozen=True)
class Settings:
    """How to measure."""

    device: str = "cpu"
    rounds: int = 9
    budget: float = 10.0
    """Seconds for one provider at one case and size: who is slow takes part in fewer rounds, in three at least."""
    cache: int = 1 << 25
    """Bytes of the last-level cache, which the inputs exceed together."""


def compare(
    name: str, elements: int, providers: Sequence[Provider] = PROVIDERS, settings: Settings | None = None
) -> list[Row]:
    """The rows of a case of :data:`CASES` with so many elements: the limit's, then those of the providers."""
    settings = settings or Settings()
    workload = CASES[name]
    hosts = input_sets(workload.arrays(elements), settings.cache)
    truth = expected(workload, hosts[0], thread_count())
    start = {
        "case": name,
        "device": settings.device,
        "size": elements,
        "elements": hosts[0]["predictions"].size,
        "bytes": limits.moved_bytes(workload, hosts[0]),
        "sets": len(hosts),
    }
    places = _Places(hosts, settings.device)
    rows, functions, clocks = [], {}, {}
    for provider in (LIMIT, *providers):
        row = {**start, "provider": provider.name}
        rows.append(row)
        try:
            library, sets = places.of(provider.library(workload, settings.device))
            run = provider.build(workload, library, sets[0])
            first_call, result = _first_call(run, sets[0], library)
            problem = "" if provider is LIMIT else _problem(workload, truth, hosts[0], result, library, provider)
        except LeftOut as reason:
            row |= {"status": "left out", "reason": str(reason)}
        except Exception as error:  # Another library's: no compiler, no memory, no kernel for a type.
            row |= _failed(error)
        else:
            if problem:
                row |= {"status": "wrong", "reason": problem}
            else:
                row |= {"status": "timed", "first_call": _rounded(first_call)}
                functions[provider.name] = lambda call, run=run, sets=sets: run(sets[call % len(sets)])
                clocks[provider.name] = library.clock
    measured = measure.samples(functions, settings.rounds, clocks, ENOUGH[settings.device], settings.budget)
    for row in rows:
        sample = measured.get(row["provider"])
        if sample and sample.error:
            row |= _failed(sample.error)
        elif sample:
            row["median"] = _rounded(statistics.median(sample.seconds))
            row["middle_half"] = [_rounded(time) for time in measure.middle_half(sample.seconds)]
            row |= {"rounds": len(sample.seconds), "calls": sample.calls}
    return rows


class _Places:
    """The sets of inputs in the memory of each library, which several providers share."""

    def __init__(self, hosts: list[dict[str, np.ndarray]], device: str):
        self.hosts, self.device = hosts, device
        self.made: dict[type[NumPy], tuple[NumPy, list[Arrays]]] = {}

    def of(self, kind: type[NumPy]) -> tuple[NumPy, list[Arrays]]:
        if kind not in self.made:
            library = kind(self.device)
            self.made[kind] = library, [library.place(arrays) for arrays in self.hosts]
        return self.made[kind]


def _failed(error: Exception) -> Row:
    text = str(error).strip().splitlines() or [""]
    return {"status": "failed", "reason": f"{type(error).__name__}: {text[0]}"}


def _rounded(seconds: float) -> float:
    """With four digits, more than a median has."""
    return float(f"{seconds:.4g}")


def _first_call(run: Run, arrays: Arrays, library: NumPy) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run(arrays)
    library.wait(result)
    return time.perf_counter() - start, result


def _problem(
    workload: Workload,
    truth: Expected,
    arrays: dict[str, np.ndarray],
    result: Any,
    library: NumPy,
    provider: Provider,
) -> str:
    """What is wrong with a provider's result, in words; "" if nothing is."""
    value, gradient = result if workload.gradient else (result, None)
    found = [library.to_host(part) for part in (value, gradient) if part is not None]
    if problem := truth.problem(found[0], found[1] if workload.gradient else None):
        return problem
    if provider.name == "gpubce" and library.device == "cuda" and arrays["predictions"].size <= SAME_BITS:
        loss = workload.case.loss
        given = {**arrays, "device": "cpu"}
        ours = loss.value_and_grad(**given) if workload.gradient else (loss(**given),)
        for one, two in zip(ours, found, strict=True):
            if not np.array_equal(np.asarray(one, two.dtype), two):
                return "its bits differ from those of the CPU"
    return ""
