"""Constitutions made of others (`path`, `extends`, `mixture`), and checks of the principles that result."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_lightning.constitutions.rendering import ALLOWED, unknown_placeholders
from rlhf_lightning.constitutions.settings import ConstitutionSettings
from rlhf_lightning.errors import ConfigError, Problem

Raw = Mapping[str, Any]

KEY = "constitution"
"""The section of a config that holds it."""

BASIS = "none"
"""The option whose values stand for the keys that a constitution leaves out."""

INHERITED = "defaults"
"""Hydra's key for the options that a file begins with: here, other constitutions."""

KNOWN = (INHERITED, *ConstitutionSettings.model_fields)

EXAMPLES = ("critique", "revision", "judge")


@dataclass(frozen=True)
class ConstitutionSource:
    """A constitution as its file has it.

    Attributes:
        place: the file. The paths of other files in `raw` do not depend on where they stand.
    """

    place: str
    raw: Raw


Load = Callable[[str], ConstitutionSource]
"""Finds a constitution by name or path; raises ConfigError where there is none, or its file cannot be read."""


@dataclass(frozen=True)
class PrincipleOrigin:
    """Origin of a principle: the file (None: the config itself), and its index in it, from 0."""

    place: str | None
    number: int


@dataclass(frozen=True)
class ResolvedConstitution:
    """A constitution with all its principles.

    Attributes:
        plain: as the schema wants it where nothing is wrong; `path`, `extends` and `mixture` are empty.
        origins: of the principles.
        places: the files that the other keys come from, of those that do not stand in the config itself.
        problems: what could not be resolved, and was left out.
    """

    plain: dict[str, Any]
    origins: tuple[PrincipleOrigin, ...]
    places: dict[str, str]
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class _Reference:
    """A constitution that another one names: under which key, and in which file."""

    key: str
    name: Any
    place: str | None


@dataclass(frozen=True)
class _Principle:
    plain: Any
    origin: PrincipleOrigin


def resolve(raw: Raw, load: Load, place: str | None = None) -> ResolvedConstitution:
    """Resolves the references of a constitution.

    Principles of `extends` come first, then those of `mixture`, then its own. Of both only the principles are taken;
    the weights of a mixture's constitution are scaled so that their sum is its share. What stands beside a `path` holds
    over what is in its file, and the option `none` is below everything.

    Args:
        raw: as the config has it.
        load: finds other constitutions.
        place: the file that `raw` comes from, where it is known, so that it does not extend itself.
    """
    reader = _Reader(load)
    chain = (place,) if place else ()
    laid = reader.merged_keys(raw, None, chain)
    principles = reader.principles(laid, chain)
    plain = copy.deepcopy(_merged(load(BASIS).raw, laid.keys))
    plain |= {"path": None, "extends": [], "mixture": {}}
    if isinstance(plain["principles"], list):
        plain["principles"] = [one.plain for one in principles]
    if not {"path", "principles", "extends", "mixture"} & (set(raw) | set(laid.keys)):
        del plain["path"]  # nothing says what the constitution is: the schema asks for it
    places = {key: place for key, place in laid.places.items() if place is not None}
    return ResolvedConstitution(plain, tuple(one.origin for one in principles), places, tuple(reader.problems))


@dataclass(frozen=True)
class _MergedKeys:
    """The keys of a constitution, with those of the files that it stands on below its own, and where each is set."""

    keys: dict[str, Any]
    places: dict[str, str | None]


class _Reader:
    """Follows references, and notes what is wrong with them."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.problems: list[Problem] = []

    def merged_keys(self, raw: Raw, place: str | None, chain: tuple[str, ...]) -> _MergedKeys:
        """A constitution's keys.

        Args:
            raw: its own.
            place: where they stand.
            chain: the files that led to it, its own included.
        """
        keys: dict[str, Any] = {}
        places: dict[str, str | None] = {}
        for reference in self._parents(raw, place):
            source = self._source(reference, chain)
            if source is not None:
                below = self.merged_keys(source.raw, source.place, (*chain, source.place))
                keys, places = _merged(keys, below.keys), {**places, **below.places}
        own = {key: value for key, value in raw.items() if key not in ("path", INHERITED)}
        return _MergedKeys(_merged(keys, own), {**places, **dict.fromkeys(own, place)})

    def principles(self, laid: _MergedKeys, chain: tuple[str, ...]) -> list[_Principle]:
        """All principles of a constitution, in order."""
        found: list[_Principle] = []
        for reference in self._extended(laid):
            found += self._of(reference, chain) or []
        for reference, share in self._mixed(laid):
            mixed = self._of(reference, chain)
            if mixed == []:
                self._add_problem(reference, "has no principles that could have a share")
            found += _scaled(mixed or [], share)
        own = laid.keys.get("principles", [])
        if isinstance(own, list):
            place = laid.places.get("principles")
            found += [_Principle(_with_defaults(one), PrincipleOrigin(place, number)) for number, one in enumerate(own)]
        return found

    def _of(self, reference: _Reference, chain: tuple[str, ...]) -> list[_Principle] | None:
        """The principles of another constitution; None where it cannot be had, which is noted."""
        if reference.place is not None and reference.place not in chain:
            chain = (*chain, reference.place)
        source = self._source(reference, chain)
        if source is None:
            return None
        chain = (*chain, source.place)
        return self.principles(self.merged_keys(source.raw, source.place, chain), chain)

    def _source(self, reference: _Reference, chain: tuple[str, ...]) -> ConstitutionSource | None:
        """Load the referenced constitution; None if there is none, or the reference is circular."""
        try:
            source = self.load(reference.name)
        except ConfigError as error:
            self.problems += [
                Problem(reference.key, one.what, one.source or reference.place, one.fix) for one in error.problems
            ]
            return None
        if source.place in chain:
            circle = " -> ".join((*chain[chain.index(source.place) :], source.place))
            self._add_problem(reference, f"goes in a circle: {circle}", "drop one of these references")
            return None
        for unknown in [name for name in source.raw if name not in KNOWN]:
            alike = difflib.get_close_matches(str(unknown), KNOWN, n=1)
            fix = f"did you mean {alike[0]}?" if alike else f"there are: {', '.join(KNOWN[1:])}"
            self.problems.append(Problem(f"{KEY}.{unknown}", "there is no such key", source.place, fix))
        return ConstitutionSource(source.place, {name: value for name, value in source.raw.items() if name in KNOWN})

    def _parents(self, raw: Raw, place: str | None) -> Iterator[_Reference]:
        """Yield the parents of a constitution: the options in its file's defaults, and its `path`."""
        inherited = raw.get(INHERITED, [])
        for number, name in enumerate(inherited if isinstance(inherited, list) else [inherited]):
            reference = _Reference(f"{KEY}.{INHERITED}.{number}", name, place)
            if name not in ("_self_", BASIS) and self._is_name(reference):
                yield reference
        path = raw.get("path")
        reference = _Reference(f"{KEY}.path", path, place)
        if path is not None and "principles" in raw:
            fix = "keep one of the two; to add to a constitution, name it in the file's extends"
            self._add_problem(reference, "a file is a whole constitution, and another one stands beside it", fix)
        elif path is not None and self._is_name(reference):
            yield reference

    def _extended(self, laid: _MergedKeys) -> Iterator[_Reference]:
        names, place = laid.keys.get("extends", []), laid.places.get("extends")
        if not isinstance(names, list):
            what = f"expects a list of constitutions, got {names!r}"
            self.problems.append(Problem(f"{KEY}.extends", what, place, "write [harmless, helpful]"))
            return
        references = [_Reference(f"{KEY}.extends.{number}", name, place) for number, name in enumerate(names)]
        yield from filter(self._is_name, references)

    def _mixed(self, laid: _MergedKeys) -> Iterator[tuple[_Reference, float]]:
        shares, place = laid.keys.get("mixture", {}), laid.places.get("mixture")
        if not isinstance(shares, dict):
            what = f"expects constitutions with their shares, got {shares!r}"
            self.problems.append(Problem(f"{KEY}.mixture", what, place, "write {harmless: 2, helpful: 1}"))
            return
        for name, share in shares.items():
            reference = _Reference(f"{KEY}.mixture.{name}", name, place)
            if not _is_positive(share):
                self._add_problem(reference, f"expects a number > 0, got {share!r}")
            elif self._is_name(reference):
                yield reference, float(share)

    def _is_name(self, reference: _Reference) -> bool:
        if isinstance(reference.name, str) and reference.name:
            return True
        self._add_problem(reference, f"expects the name of a constitution, or a file, got {reference.name!r}")
        return False

    def _add_problem(self, reference: _Reference, what: str, fix: str | None = None) -> None:
        self.problems.append(Problem(reference.key, what, reference.place, fix))


def _scaled(principles: list[_Principle], share: float) -> list[_Principle]:
    """Principles with weights that have the share as their sum."""
    weights: list[Any] = [one.plain.get("weight") if isinstance(one.plain, dict) else None for one in principles]
    if not all(_is_positive(weight) for weight in weights):  # the schema complains of them
        return principles
    return [
        _Principle({**one.plain, "weight": share * weight / sum(weights)}, one.origin)
        for one, weight in zip(principles, weights, strict=True)
    ]


def _merged(below: Raw, above: Raw) -> dict[str, Any]:
    """Keys laid over others, as Hydra does it: mappings key by key, everything else as a whole."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _with_defaults(principle: Any) -> Any:
    """A principle with all that it may leave out."""
    if not isinstance(principle, dict):
        return principle
    filled = {"weight": 1.0, "tags": [], "applies_to": None, "world": None, "fewshots": {}, **principle}
    if isinstance(filled["fewshots"], dict):
        filled["fewshots"] = {**{kind: [] for kind in EXAMPLES}, **filled["fewshots"]}
    return filled


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def principle_problems(resolved: ResolvedConstitution, traits: Collection[str]) -> list[Problem]:
    """Problems with the principles of a config that is not validated yet.

    Args:
        resolved: the constitution; what is of the wrong type is the schema's to complain of.
        traits: the names that the courtesy world has for principles.
    """
    principles: Any = resolved.plain["principles"]
    if not isinstance(principles, list):
        return []
    found = list(_repeated(principles, resolved))
    for number, principle in enumerate(principles):
        if isinstance(principle, dict):
            place = f"{KEY}.principles.{number}"
            found += [*_unanswerable(principle, place), *_unknown_trait(principle, place, traits)]
    return found


def _repeated(principles: Sequence[Any], resolved: ResolvedConstitution) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for number, principle in enumerate(principles):
        name = principle.get("id") if isinstance(principle, dict) else None
        if not isinstance(name, str):
            continue
        earlier = first.setdefault(name, number)
        if earlier != number:
            place = resolved.origins[earlier].place
            what = f"there is a principle {name!r} already" + (f", in {place}" if place else "")
            yield Problem(f"{KEY}.principles.{number}.id", what, fix="drop one of them, or rename it")


def _unanswerable(principle: Mapping[str, Any], place: str) -> Iterator[Problem]:
    for field, allowed in ALLOWED.items():
        text = principle.get(field)
        if not isinstance(text, str) or not text:
            continue
        if not text.strip():
            yield Problem(f"{place}.{field}", "is blank", fix="write what the model shall be asked")
        if unknown := unknown_placeholders(field, text):
            named = ", ".join(f"{{{name}}}" for name in unknown)
            what = f"{named} {'is no placeholder' if len(unknown) == 1 else 'are no placeholders'}"
            known = ", ".join(f"{{{name}}}" for name in allowed)
            yield Problem(f"{place}.{field}", f"{what} of this text", fix=f"there are: {known}")


def _unknown_trait(principle: Mapping[str, Any], place: str, traits: Collection[str]) -> Iterator[Problem]:
    world = principle.get("world")
    tag = world.get("tag") if isinstance(world, dict) else None
    if isinstance(tag, str) and tag and tag not in traits:
        alike = difflib.get_close_matches(tag, traits, n=1)
        fix = f"did you mean {alike[0]}?" if alike else f"there are: {', '.join(traits)}"
        yield Problem(f"{place}.world.tag", f"the courtesy world has no trait {tag!r}", fix=fix)
