"""All schedules of some operations on a scene, and what broke a rule."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.interleave import scenes
from tests.interleave.kit import GatedStore, Lab, Node, Stuck
from tests.interleave.operations import World, bind
from tests.interleave.rules import broken
from tests.interleave.scenes import Scene, SceneName

Changes = Mapping[str, tuple[str, str]]
VACUUM = 300
"""Schedules after which the rows that resets have left are cleared away."""


@dataclass(slots=True)
class Report:
    """What exploring some operations has shown. redundant: schedules that were given up as repeats of others."""

    scene: SceneName
    operations: tuple[str, ...]
    schedules: int = 0
    redundant: int = 0
    seconds: float = 0.0
    words: dict[tuple[str, ...], int] = field(default_factory=dict[tuple[str, ...], int])
    violations: list[str] = field(default_factory=list[str])

    @property
    def title(self) -> str:
        return f"{self.scene}: {' x '.join(self.operations)}"

    def line(self) -> str:
        rate = self.schedules / self.seconds if self.seconds else 0.0
        return f"{self.schedules:>6} schedules {rate:>5.0f}/s  {len(self.violations):>3} broken  {self.title}"


class Runner:
    """Explores on one Lab. `changes`: what is broken in the statements, by name: old text, new text."""

    def __init__(self, lab: Lab, changes: Changes | None = None) -> None:
        self._lab = lab
        self._store = GatedStore("queuert", changes)
        lab.learn(self._store)
        self._scenes: dict[SceneName, Scene] = {}

    async def scene(self, name: SceneName) -> Scene:
        if name not in self._scenes:
            self._scenes[name] = await scenes.build(self._lab.monitor, name)
        return self._scenes[name]

    async def explore(
        self, name: SceneName, operations: Sequence[str], *, holds: int = 0, most: int | None = None, until: str | None = None
    ) -> Report:
        """Every schedule, at most `most`; `until`: one breaks a rule, and the violation has this in it."""
        scene, path = await self.scene(name), list[Node]()
        report, begun = Report(name, tuple(operations)), time.perf_counter()
        world = World(self._store, scene)
        labels = [f"{each}{'' if list(operations).count(each) == 1 else f' {number}'}" for number, each in enumerate(operations)]
        while True:
            await self._lab.monitor.execute(scene.reset)
            found: list[str] = []
            try:
                new = await self._lab.play({label: bind(each, world) for label, each in zip(labels, operations, strict=True)}, path, holds)
            except (Stuck, TimeoutError) as stuck:
                new, found = True, [f"stuck: {stuck!r}"]
            report.schedules += new
            report.redundant += not new
            found += await self._judge(scene, report)
            if found:
                report.violations.append("\n".join([f"{report.title}:", *(f"  ! {each}" for each in found), *self._trace()]))
            while path and not path[-1].advance():
                path.pop()
            if (
                not path
                or (most is not None and report.schedules >= most)
                or (until is not None and any(until in each for each in report.violations))
            ):
                break
            if self._lab.schedules % VACUUM == 0:
                await self._lab.vacuum()
        report.seconds = time.perf_counter() - begun
        return report

    async def _judge(self, scene: Scene, report: Report) -> list[str]:
        actors = self._lab.actors
        errors = [f"{actor.name} raised {actor.error!r}" for actor in actors if actor.error is not None]
        outcomes = [actor.outcome for actor in actors if actor.outcome is not None]
        words = tuple(outcome.word for outcome in outcomes)
        report.words[words] = report.words.get(words, 0) + 1
        return errors + broken(scene.before, await scenes.state(self._lab.monitor), outcomes)

    def _trace(self) -> list[str]:
        words = [f"  = {actor.name}: {actor.outcome.word if actor.outcome else 'no answer'}" for actor in self._lab.actors]
        return [*(f"    {number}. {step}" for number, step in enumerate(self._lab.trace, 1)), *words]
