"""Rounds in turn, A B C A B C …, so that a drift of the machine falls on all alike."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import orjson

from keyop.bench.local import payload
from keyop.bench.peers.contender import Contender
from keyop.bench.peers.measures import MEMORY_MESSAGES, Measure, Round, Sample
from keyop.bench.peers.place import PUBLISHER, SERVER, SUBSCRIBERS, Certificate
from keyop.bench.peers.worker import Job
from keyop.keygen import ensure_development_certificates

_SECONDS = 1.0
# What a first round over TLS takes to tell how many messages take about a second.
_TRIED = 5_000


class Peers:
    """Runs measures below one directory. ``scale`` is the share of the full work."""

    def __init__(self, directory: str, scale: float, rounds: int) -> None:
        self._directory = directory
        self._scale = scale
        self._rounds = rounds
        self._certificates: dict[str, Certificate] = {}
        path = os.path.join(directory, "payloads.json")
        with open(path, "wb") as file:
            file.write(orjson.dumps([payload(number) for number in range(1_000)]))
        self._job = Job("", path, _SECONDS * scale)

    def measure(
        self, measure: Measure, contenders: Sequence[Contender], say: Callable[[str], object]
    ) -> dict[str, Any]:
        """Return a measure's results, one for each contender that can do it, in their order.

        ``say`` is given a word at the beginning of each round.

        Raises:
            ContenderError: one of them, named, has failed.
        """
        able = [each for each in contenders if measure.name in each.measures]
        jobs = {each.key: self._job_of(measure, each) for each in able}
        samples: dict[str, list[Sample]] = {each.key: [] for each in able}
        for number in range(self._rounds):
            for each in able:
                say(f"{measure.name}, round {number + 1} of {self._rounds}: {each.title}")
                samples[each.key].append(self._round(measure, each, jobs[each.key]))
        results = []
        for each in able:
            traced = None
            if measure.counts_syncs:
                say(f"{measure.name}, syncs: {each.title}")
                job = replace(jobs[each.key], seconds=self._job.seconds / 5)
                traced = self._round(measure, each, job, traced=True)
            results.append(_result(measure, each, samples[each.key], traced))
        return {
            "measure": measure.name,
            "title": measure.title,
            "unit": measure.unit,
            "more_is_better": measure.more_is_better,
            "durability": measure.durability,
            "results": results,
        }

    def _job_of(self, measure: Measure, contender: Contender) -> Job:
        """Return what its workers are told; those of several processes are told a count."""
        if measure.name == "memory":
            return replace(self._job, count=max(64, int(MEMORY_MESSAGES * self._scale)))
        if not (measure.tls and measure.unit == "messages/s"):
            return self._job
        tried = replace(self._job, count=max(64, int(_TRIED * self._scale)))
        sample = self._round(measure, contender, tried)
        published = sample.value / (len(SUBSCRIBERS) if measure.name == "mtls-ten" else 1)
        return replace(tried, count=max(64, int(published * self._job.seconds)))

    def _round(
        self, measure: Measure, contender: Contender, job: Job, traced: bool = False
    ) -> Sample:
        certificates = self._made_certificates() if measure.tls else {}
        directory = tempfile.mkdtemp(prefix=f"{contender.key}-", dir=self._directory)
        try:
            turn = Round(contender, measure, directory, job, certificates, traced)
            return measure.run(turn)
        finally:
            shutil.rmtree(directory)

    def _made_certificates(self) -> dict[str, Certificate]:
        if not self._certificates:
            names = [SERVER, PUBLISHER, *SUBSCRIBERS]
            directory = os.path.join(self._directory, "certificates")
            made = ensure_development_certificates(directory, names)
            self._certificates = {
                name: Certificate(files.cert, files.key, made.ca.cert)
                for name, files in made.instances.items()
            }
        return self._certificates


def _result(
    measure: Measure, contender: Contender, samples: list[Sample], traced: Sample | None
) -> dict[str, Any]:
    rounds = [sample.value for sample in samples]
    result: dict[str, Any] = {
        "name": contender.name_in(measure.name),
        "version": contender.version(),
        "median": statistics.median(rounds),
        "rounds": rounds,
    }
    worst = [sample.p99 for sample in samples if sample.p99 is not None]
    if worst:
        result["p99"] = statistics.median(worst)
    notes = [contender.note_in(measure.name)]
    if traced is not None:
        result["syncs_per_message"] = traced.syncs
        notes.append(traced.note)
    if note := "; ".join(filter(None, notes)):
        result["note"] = note
    return result
