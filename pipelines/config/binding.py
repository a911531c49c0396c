"""Binds a node's expression to backend classes and its keys to their parameters.

Nearest wins: argument in the expression, `A::key`, plain key of the node, default of the file. A plain key reaches every member
that declares it. `&` in a value makes instance groups: one `Spec` each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from penstock.backends.base import Backend
from penstock.backends.errors import ConfigError, Problem
from penstock.backends.expressions.composite import CompositeBackend
from penstock.backends.expressions.expression import Expression
from penstock.backends.expressions.filters import find_filter
from penstock.backends.expressions.registry import BUILTINS, backend_names, find_backend
from penstock.backends.expressions.spec import Spec
from penstock.backends.expressions.user import adapt
from penstock.backends.params import EngineParams
from penstock.backends.suggestions import did_you_mean
from penstock.backends.user_code import load

from .tables import GROUP_KEYS, NODE_KEYS, SHARED_KEYS, STRUCTURE_KEYS, problems_of

RESERVED_BY_NODE = NODE_KEYS | STRUCTURE_KEYS


@dataclass(slots=True)
class Member:
    """One backend of an expression, found."""

    name: str
    cls: type[Backend]
    tree: Expression
    args: tuple[str, ...]
    addresses: frozenset[str]
    """Names by which `A::key` means this one."""
    children: list[Member] = field(default_factory=list)

    @property
    def parameters(self) -> dict[str, str] | None:
        """Every way to write a declared parameter -> the way pydantic reads it; None: takes anything."""
        if self.cls.parameters is None:
            return None
        fields = self.cls.parameters.model_fields
        return {key: found.alias or key for key, found in fields.items()} | {
            found.alias: found.alias for found in fields.values() if found.alias
        }

    def walk(self) -> Iterator[Member]:
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(slots=True)
class Binding:
    """What became of one node's keys."""

    specs: list[Spec | None] = field(default_factory=list)
    """One per `&` group, None where its parameters are wrong; empty where it is not known how many there are."""
    own: list[dict[str, Any]] = field(default_factory=list)
    """The node's own keys, one dict per group."""
    defaults: list[dict[str, Any]] = field(default_factory=list)
    used_defaults: set[str] = field(default_factory=set)
    known_keys: set[str] = field(default_factory=set)
    """What any member declares, as a file writes it."""
    problems: list[Problem] = field(default_factory=list)


def bind(
    tree: Expression, own: Mapping[str, Any], defaults: Mapping[str, Any], directory: Path
) -> Binding:
    """The specs of a node. Problems have keys and no node yet."""
    binding = Binding()
    root = _find(tree, directory, binding.problems)
    _check_filters(tree, binding.problems)
    if root is None or binding.problems:
        check_roughly(own, defaults, binding)
        return binding
    members = list(root.walk())
    binding.known_keys = {
        written for member in members for written in (member.parameters or {}).values()
    }
    _check_keys(members, own, binding)
    binding.used_defaults = {
        key for key in defaults if key in RESERVED_BY_NODE or _receivers(key, members)
    }
    splittable = {
        key
        for key in (*own, *defaults)
        if key in GROUP_KEYS or (key not in RESERVED_BY_NODE and _receivers(key, members))
    }
    groups = _groups(own, defaults, splittable, binding.problems)
    binding.own = [_pick(own, splittable, group, groups) for group in range(groups)]
    remaining = {
        key: value for key, value in defaults.items() if key not in own
    }  # the others may make other numbers of groups
    binding.defaults = [_pick(remaining, splittable, group, groups) for group in range(groups)]
    for own_keys, default_keys in zip(binding.own, binding.defaults, strict=True):
        spec = _spec(root, members, own_keys, default_keys, binding.problems)
        binding.specs.append(spec)
    return binding


def _find(tree: Expression, directory: Path, problems: list[Problem]) -> Member | None:
    """The classes of an expression; None where one of them is unknown."""
    children = [_find(child, directory, problems) for child in tree.children]
    name, args, addresses = tree.name, tree.args, {tree.name}
    try:
        if tree.name == "Python":
            if not args:
                raise ConfigError(
                    [
                        Problem(
                            "Python needs a name, as in Python[name], Python[module:Class] or Python[file.py:Class]"
                        )
                    ]
                )
            name, *rest = args
            args = tuple(rest)
            addresses |= {name, name.rpartition(":")[2]}
            cls = adapt(name, load(name, directory)) if ":" in name else find_backend(name)
        else:
            cls = find_backend(name)
            addresses |= {
                alias for alias, target in BUILTINS.items() if target == BUILTINS.get(name)
            }
    except ConfigError as error:
        problems.extend(Problem(problem.message, key="backend") for problem in error.problems)
        return None
    except TypeError as error:
        problems.append(Problem(str(error), key="backend"))
        return None
    fewest, most = cls.child_count
    if len(children) < fewest or (most is not None and len(children) > most):
        expected = (
            "none"
            if most == 0
            else str(fewest)
            if most == fewest
            else f"{fewest} to {most}"
            if most
            else f"at least {fewest}"
        )
        problems.append(
            Problem(f"{name} takes {expected} in brackets, found {len(children)}", key="backend")
        )
    found = [child for child in children if child is not None]
    for child in found:
        if issubclass(child.cls, CompositeBackend):
            reason = "it waits for other nodes, and a thread that runs backends must never be held by waiting"
            problems.append(
                Problem(
                    f"{child.name} inside {name}: it must be a node's whole expression, since {reason}",
                    key="backend",
                )
            )
    return Member(name, cls, tree, args, frozenset(addresses), found)


def _check_filters(tree: Expression, problems: list[Problem]) -> None:
    """The filters in front of members are known; after their classes are found, since a user's module may register some."""
    if tree.filter is not None:
        try:
            find_filter(tree.filter)
        except ConfigError as error:
            problems.extend(
                Problem(f"({tree.filter}){tree.name}: {problem.message}", key="backend")
                for problem in error.problems
            )
    for child in tree.children:
        _check_filters(child, problems)


def _check_keys(members: list[Member], own: Mapping[str, Any], binding: Binding) -> None:
    """Every key of the node must be known to the node or to some member."""
    takes_any = any(member.parameters is None for member in members)
    for key in own:
        if key in RESERVED_BY_NODE or _receivers(key, members):
            continue
        prefix, separator, last = key.rpartition("::")
        addressed = (
            [member for member in members if prefix in member.addresses] if separator else []
        )
        if addressed:
            known = {
                written for member in addressed for written in (member.parameters or {}).values()
            }
            message = f"{prefix} has no parameter {last!r}{did_you_mean(last, known)}"
        elif takes_any:
            message = f"the expression has no backend {prefix!r}{did_you_mean(prefix, {name for member in members for name in member.addresses})}"
        else:
            known = binding.known_keys | RESERVED_BY_NODE
            if separator:
                known |= {
                    f"{member.name}::{written}"
                    for member in members
                    for written in (member.parameters or {}).values()
                }
            names = ", ".join(dict.fromkeys(member.name for member in members))
            message = f"no key of a node, nor a parameter of {names}{did_you_mean(key, known)}"
        binding.problems.append(Problem(message, key=key))


def check_roughly(own: Mapping[str, Any], defaults: Mapping[str, Any], binding: Binding) -> None:
    """Finds keys that no backend at all declares, where the expression is broken and says nothing about which are right."""
    known = set(RESERVED_BY_NODE)
    for name in backend_names():
        try:
            cls = find_backend(name)
        except (ConfigError, ImportError):
            continue
        known |= (
            {found.alias or key for key, found in cls.parameters.model_fields.items()}
            if cls.parameters
            else set()
        )
    binding.known_keys = known
    binding.used_defaults = {key for key in defaults if key in known or "::" in key}
    for key in own:
        if key not in known and "::" not in key:
            binding.problems.append(
                Problem(
                    f"no key of a node, nor a parameter of any backend{did_you_mean(key, known)}",
                    key=key,
                )
            )


def _receivers(key: str, members: list[Member]) -> list[Member]:
    """The members that a key of the node reaches."""
    declaring = [
        member for member in members if member.parameters is not None and key in member.parameters
    ]
    if declaring:
        return _of_range(declaring) if key == "force_range" else declaring
    prefix, separator, last = key.rpartition("::")
    if separator:
        addressed = [member for member in members if prefix in member.addresses]
        return [
            member for member in addressed if member.parameters is None or last in member.parameters
        ]
    return [member for member in members if member.parameters is None]


def _of_range(members: list[Member]) -> list[Member]:
    """Whose range a node's `force_range` is: the engines', as in torchpipe; without one, the whole expression's."""
    return [
        member
        for member in members
        if member.cls.parameters and issubclass(member.cls.parameters, EngineParams)
    ] or members[:1]


def _groups(
    own: Mapping[str, Any],
    defaults: Mapping[str, Any],
    splittable: set[str],
    problems: list[Problem],
) -> int:
    """How many instance groups the values with `&` make; a default that the node overrides counts for nothing. 0: they don't agree."""
    counts: dict[str, int] = {}
    for key, value in {**defaults, **own}.items():
        if key in splittable and isinstance(value, str) and "&" in value:
            pieces = value.split("&")
            counts[key] = len(pieces)
            if not all(piece.strip() for piece in pieces):
                problems.append(Problem(f"an empty piece beside & in {value!r}", key=key))
                return 0
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{key} has {count}" for key, count in counts.items())
        problems.append(
            Problem(
                f"the values with & make different numbers of instance groups: {found}",
                key=next(iter(counts)),
            )
        )
        return 0
    return next(iter(counts.values()), 1)


def _pick(keys: Mapping[str, Any], splittable: set[str], group: int, groups: int) -> dict[str, Any]:
    """The keys of one group; a value without `&` holds for each."""

    def pick(key: str, value: Any) -> Any:
        if groups == 1 or key not in splittable or not isinstance(value, str) or "&" not in value:
            return value
        return value.split("&")[group].strip()

    return {key: pick(key, value) for key, value in keys.items()}


def _spec(
    member: Member,
    members: list[Member],
    own: dict[str, Any],
    defaults: dict[str, Any],
    problems: list[Problem],
) -> Spec | None:
    children = [_spec(child, members, own, defaults, problems) for child in member.children]
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    for keys in (defaults, own):
        targets = {
            key: target for key in keys if (target := _target(key, member, members)) is not None
        }
        given: dict[tuple[str, bool], str] = {}
        for key in sorted(
            targets, key=lambda key: targets[key][1]
        ):  # addressed ones last: they win
            parameter, _ = targets[key]
            if (other := given.setdefault(targets[key], key)) != key:
                problems.append(
                    Problem(
                        f"{other} and {key} are one parameter, and both are given: keep one",
                        key=key,
                    )
                )
            values[parameter] = keys[key]
            places[parameter] = key
    values |= _arguments(member, problems, places)
    if member.cls.parameters is None:
        params: BaseModel | dict[str, Any] = values
    else:
        try:
            params = member.cls.parameters.model_validate(values)
        except ValidationError as error:
            for problem in problems_of(error, subject=member.name):
                first, dot, rest = problem.key.partition(".")
                if (
                    places.get(first) == "backend"
                ):  # an argument: the key says no more than that it is in the expression
                    problems.append(
                        Problem(f"{member.name}'s {problem.key}: {problem.message}", key="backend")
                    )
                else:
                    problems.append(
                        Problem(problem.message, key=places.get(first, first) + dot + rest)
                    )
            if not issubclass(member.cls, CompositeBackend):
                return None
            wrong = {str(found["loc"][0]) for found in error.errors(include_url=False)}
            right = {key: value for key, value in values.items() if key not in wrong}
            params = member.cls.parameters.model_construct(
                **right
            )  # where it jumps to is checked all the same
    if None in children:
        return None
    return Spec(
        member.name,
        member.cls,
        params,
        tuple(child for child in children if child is not None),
        member.tree.filter,
    )


def _target(key: str, member: Member, members: list[Member]) -> tuple[str, bool] | None:
    """The parameter of `member` that a key sets, and whether it is addressed (`A::key`); None: it sets none."""
    if member not in _receivers(key, members):
        return None
    declared = member.parameters
    prefix, _, last = key.rpartition("::")
    if declared is None:
        if key in RESERVED_BY_NODE:
            return None
        return (last, True) if prefix in member.addresses else (key, False)
    if (
        key in RESERVED_BY_NODE - SHARED_KEYS
    ):  # `min` and `max` are a node's and an engine's; most others are the node's alone
        return None
    return (declared[key], False) if key in declared else (declared[last], True)


def _arguments(member: Member, problems: list[Problem], places: dict[str, str]) -> dict[str, Any]:
    """The arguments in the expression by parameter; positional ones in the order of declaration."""
    declared = member.parameters
    if declared is None:
        if member.args:
            problems.append(
                Problem(
                    f"{member.name} declares no parameters, so it takes no positional argument",
                    key="backend",
                )
            )
        return dict(member.tree.kwargs)
    keyword_only: frozenset[str] = getattr(member.cls.parameters, "keyword_only", frozenset())
    order = [key for key in dict.fromkeys(declared.values()) if key not in keyword_only]
    args: tuple[Any, ...] = (
        (member.args,)
        if getattr(member.cls.parameters, "variadic", False) and member.args
        else member.args
    )
    if len(args) > len(order):
        problems.append(
            Problem(
                f"{member.name} takes at most {len(order)} argument{'s' * (len(order) != 1)}, found {len(args)}",
                key="backend",
            )
        )
    values: dict[str, Any] = dict(zip(order, args, strict=False))
    for key, value in member.tree.kwargs:
        if key not in declared:
            message = (
                f"{member.name} has no parameter {key!r}{did_you_mean(key, declared.values())}"
            )
            problems.append(Problem(message, key="backend"))
        elif declared[key] in values:
            problems.append(
                Problem(f"the argument {key} of {member.name} is given twice", key="backend")
            )
        else:
            values[declared[key]] = value
    places.update(dict.fromkeys(values, "backend"))
    return values
