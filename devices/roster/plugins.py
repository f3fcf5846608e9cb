"""All installed plugins and what is known of each: `devices`' own are loaded here, a stranger's only if it is needed.

A stranger's plugin is first imported in a child process. One that dies, hangs or is broken there is never imported
here. pluggy's own entry-point loader is not used: it stops at the first plugin that fails to import, and a second
plugin of a name is skipped in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any, final

from devices._backend import Backend
from devices._store import Store
from devices.errors import PluginError
from devices.roster import answers as roster_answers
from devices.roster import survey as roster_survey
from devices.roster.installed import OWN_DISTRIBUTION, distribution_of, order
from devices.roster.once_per_host import once_per_host
from devices.roster.plugin import Loaded, load, words
from devices.roster.survey import Answer

LONGER = 20.0
"""Seconds that a plugin has for a question that may need torch, whose import takes a while, or its hardware."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """One entry point in the group `devices`, and what is known of it.

    Args:
        name: the entry point's name.
        distribution: the installed distribution that has it.
        version: that distribution's version.
        backends: the names of the backends that it provides; none if it is broken or not allowed.
        hooks: the names of the hooks that it implements.
        allowed: whether DEVICES_PLUGINS allows it; one that is not allowed is not imported.
        error: what is wrong with it, or None.
    """

    name: str
    distribution: str
    version: str
    backends: tuple[str, ...] = ()
    hooks: tuple[str, ...] = ()
    allowed: bool = True
    error: PluginError | None = None

    @property
    def own(self) -> bool:
        """Whether it is part of `devices` itself."""
        return self.distribution == OWN_DISTRIBUTION


@dataclass(frozen=True, slots=True)
class Facts:
    """What is plain data about a backend, present or not."""

    name: str
    device_type: str
    priority: int | None
    verified: str


@final
class Roster:
    """The plugins that were found when this was made. Not for several threads at once."""

    def __init__(self, found: Sequence[EntryPoint], allowed: tuple[str, ...] | None) -> None:
        self.entries = sorted(found, key=order)
        self.allowed = [allowed is None or entry.name in allowed for entry in self.entries]
        self.holders: dict[str, int] = {}
        self.errors: dict[str, PluginError] = {}
        self._faults: dict[int, PluginError] = {}
        self._faults_here: dict[int, PluginError] = {}
        self._loaded: dict[int, Loaded] = {}
        self._answers: dict[int, Answer] = {}
        for place in range(len(self.entries)):
            if self.is_own(place) and self.allowed[place]:
                self._load_own(place)
        self._own = dict(self.holders), dict(self.errors), dict(self._faults)

    def is_own(self, place: int) -> bool:
        """Return whether a plugin is part of `devices` itself."""
        return distribution_of(self.entries[place])[0] == OWN_DISTRIBUTION

    def who(self, place: int) -> str:
        """Return what a plugin is called in an error."""
        return f"plugin {self.entries[place].name!r} of {' '.join(distribution_of(self.entries[place]))}"

    def plugin(self, place: int) -> Plugin:
        """Return what is known of a plugin."""
        error = self.fault(place)
        names = () if error else tuple(name for name, holder in self.holders.items() if holder == place)
        known = self._loaded.get(place) or self._answers.get(place)
        hooks = known.hooks if known is not None and not error else ()
        entry = self.entries[place]
        return Plugin(entry.name, *distribution_of(entry), names, hooks, self.allowed[place], error)

    def fault(self, place: int) -> PluginError | None:
        """Return what is wrong with a plugin, as far as is known."""
        return self._faults.get(place) or self._faults_here.get(place)

    def facts(self, name: str) -> Facts:
        """Return what is plain data about a backend that somebody holds."""
        place = self.holders[name]
        if place in self._loaded:
            backend = self._backend_here(place, name)
            return Facts(name, backend.device_type, backend.priority, backend.verified)
        return next(Facts(**facts) for facts in self._answers[place].backends if facts["name"] == name)

    # Strangers, in children.

    def unasked(self, name: str | None = None) -> list[int]:
        """Return the strangers that were not imported anywhere yet: all of them, or those of that name."""
        return [
            place
            for place, entry in enumerate(self.entries)
            if self.allowed[place] and place not in self._answers and place not in self._loaded
            if not self.is_own(place) and name in (None, entry.name) and place not in self._faults
        ]

    def find(self, name: str, questions: Sequence[str] = ()) -> None:
        """Find out who holds backend `name`, from as few strangers as can be."""
        for places in (self.unasked(name), self.unasked()):
            if name not in self.holders and name not in self.errors:
                self.survey([place for place in places if place not in self._answers], questions)

    def survey(
        self,
        places: Sequence[int],
        questions: Sequence[str] = (),
        store: Store | None = None,
    ) -> None:
        """Have strangers imported and asked in children, side by side, by one rank of a host if there is a store."""
        if not places:
            return
        entries = [self.entries[place] for place in places]
        deadline = roster_survey.DEADLINE if set(questions) <= {roster_answers.PROBE} else LONGER

        def ask() -> list[dict[str, Any]]:
            return [answer.as_data() for answer in roster_survey.ask(entries, questions, deadline)]

        key = "/".join([*questions, *(f"{distribution_of(entry)[0]}:{entry.name}" for entry in entries)])
        data = ask() if store is None else once_per_host(store, key, ask)
        for place, answer in zip(places, map(Answer.from_data, data), strict=True):
            before = self._answers.get(place)
            if before is None:
                self._answers[place] = answer
                continue
            before.results.update(answer.results)
            before.errors.update(answer.errors)
            if answer.error:
                # It could be imported once, and now it cannot.
                for question in questions:
                    before.errors.update(
                        {(question, name): answer.error for name in ("", *self.plugin(place).backends)}
                    )
        self._resolve()

    def answer(self, question: str, place: int, name: str = "") -> Any:
        """Return a plugin's answer about itself or a backend of it: given here if it is loaded, else in a child.

        Raises:
            PluginError: there is none.
        """
        if place in self._loaded:
            for about, _, ask in roster_answers.steps(self._loaded[place], question):
                if about == name:
                    return roster_answers.from_data(question, ask())
            return None
        known = self._answers[place]
        if (question, name) not in known.results and (question, name) not in known.errors:
            self.survey([place], [question])
        if error := known.errors.get((question, name)):
            raise PluginError(error)
        return roster_answers.from_data(question, known.results.get((question, name)))

    def prepare(self, question: str, places: Sequence[int]) -> None:
        """Ask those strangers that were not asked yet at once, so that `answer` does not wait for one by one."""
        asked = {place for place, known in self._answers.items() if any(question == key for key, _ in _keys(known))}
        places = [place for place in places if place in self._answers and place not in asked]
        self.survey([place for place in places if place not in self._loaded], [question])

    # Plugins, here.

    def backend(self, name: str) -> Backend:
        """Return a backend that somebody holds, and load its plugin into this process if it is not."""
        return self._backend_here(self.holders[name], name)

    def loaded(self, place: int) -> Loaded:
        """Return a plugin, loaded into this process."""
        if error := self.fault(place):
            raise again(error)
        if place not in self._loaded:
            try:
                self._loaded[place] = load(self.entries[place], [])
            except (Exception, SystemExit) as cause:
                self._faults_here[place] = self._broken(place, cause)
                raise again(self._faults_here[place]) from cause
        return self._loaded[place]

    def _backend_here(self, place: int, name: str) -> Backend:
        for backend in self.loaded(place).backends:
            if backend.name == name:
                return backend
        raise PluginError(f"{self.who(place)} provides backend {name!r} in a child process, but not in this one")

    def _load_own(self, place: int) -> None:
        claimed: list[str] = []
        try:
            self._loaded[place] = load(self.entries[place], claimed)
            if taken := [name for name in claimed if name in self.holders]:
                raise self._taken(taken[0], self.holders[taken[0]])
            self.holders.update(dict.fromkeys(claimed, place))
        except (Exception, SystemExit) as cause:
            self._loaded.pop(place, None)
            self._note_fault(place, self._broken(place, cause), claimed)

    def _broken(self, place: int, cause: BaseException) -> PluginError:
        is_ours = isinstance(cause, PluginError)
        error = PluginError(f"{self.who(place)} is broken: {cause if is_ours else words(cause)}")
        error.__cause__ = None if is_ours else cause
        return error

    def _note_fault(self, place: int, error: PluginError, claimed: Sequence[str]) -> None:
        self._faults[place] = error
        for name in (self.entries[place].name, *claimed):
            self.errors.setdefault(name, error)

    def _taken(self, name: str, holder: int) -> PluginError:
        return PluginError(f"it claims the backend name {name!r}, which {self.who(holder)} has")

    def _resolve(self) -> None:
        """Say who holds which backend: our own, then a plugin of that very name, then the first by distribution."""
        # Anew each time, so that it makes no difference in which order strangers were asked.
        holders, errors, faults = self._own
        self.holders, self.errors, self._faults = dict(holders), dict(errors), dict(faults)
        answers = sorted(self._answers.items())
        named: dict[str, int] = {}
        for place, answer in answers:
            if not answer.error and (name := self.entries[place].name) in answer.claimed:
                named.setdefault(name, place)
        for place, answer in answers:
            if answer.error:
                error = PluginError(f"{self.who(place)} is broken: {answer.error}")
                if answer.trace:
                    error.add_note(f"Where it was imported:\n{answer.trace}")
                self._note_fault(place, error, answer.claimed)
                continue
            others = {name: self.holders.get(name, named.get(name, place)) for name in answer.claimed}
            if taken := [name for name, holder in others.items() if holder != place]:
                error = PluginError(f"{self.who(place)} is broken: {self._taken(taken[0], others[taken[0]])}")
                self._note_fault(place, error, answer.claimed)
            else:
                self.holders.update(dict.fromkeys(answer.claimed, place))


def again(error: PluginError) -> PluginError:
    """Return a copy to raise: one raised again and again would gather tracebacks."""
    copy = PluginError(str(error))
    copy.__cause__ = error.__cause__
    for note in getattr(error, "__notes__", ()):
        copy.add_note(note)
    return copy


def _keys(answer: Answer) -> Sequence[tuple[str, str]]:
    return (*answer.results, *answer.errors)
