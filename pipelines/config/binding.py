"""Bind the expression of a node to backend classes, and its keys to their parameters.

The nearest value wins: an argument in the expression, then `A::key`, then a plain key of the node,
then a default of the file. A plain key reaches every member that declares it. `&` in a value makes
instance groups, one `Spec` for each.
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
class ExpressionMember:
    """One backend of an expression, with its class."""

    name: str
    cls: type[Backend]
    tree: Expression
    args: tuple[str, ...]
    addresses: frozenset[str]
    """The names that stand for this member in `A::key`."""
    children: list[ExpressionMember] = field(default_factory=list)

    @property
    def parameters(self) -> dict[str, str] | None:
        """Every way to write a declared parameter -> the way pydantic reads it.

        None: the backend declares none and takes any key.
        """
        if self.cls.parameters is None:
            return None
        fields = self.cls.parameters.model_fields
        return {key: parameter.alias or key for key, parameter in fields.items()} | {
            parameter.alias: parameter.alias for parameter in fields.values() if parameter.alias
        }

    def walk(self) -> Iterator[ExpressionMember]:
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(slots=True)
class Binding:
    """The result of binding the keys of one node."""

    specs: list[Spec | None] = field(default_factory=list)
    """One for each `&` group, None if its parameters are wrong. Empty if the number of groups is
    not known."""
    own: list[dict[str, Any]] = field(default_factory=list)
    """For each group, the node's own keys."""
    defaults: list[dict[str, Any]] = field(default_factory=list)
    """For each group, the defaults of the file that hold for it."""
    used_defaults: set[str] = field(default_factory=set)
    known_keys: set[str] = field(default_factory=set)
    """The parameters that any member declares, as a file writes them."""
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


def bind(
    tree: Expression, own: Mapping[str, Any], defaults: Mapping[str, Any], directory: Path
) -> Binding:
    """Make the specs of a node. The problems have keys, and no node yet."""
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
    # A default that the node overrides may make another number of groups: it is left out.
    remaining = {key: value for key, value in defaults.items() if key not in own}
    binding.defaults = [_pick(remaining, splittable, group, groups) for group in range(groups)]
    for own_keys, default_keys in zip(binding.own, binding.defaults, strict=True):
        spec = _spec(root, members, own_keys, default_keys, binding.problems)
        binding.specs.append(spec)
    return binding


def _find(tree: Expression, directory: Path, problems: list[Problem]) -> ExpressionMember | None:
    """Find the classes of an expression. None if one of them is not known."""
    members = [_find(child, directory, problems) for child in tree.children]
    name, args, addresses = tree.name, tree.args, {tree.name}
    try:
        if tree.name == "Python":
            if not args:
                message = (
                    "Python needs a name, as in Python[name], Python[module:Class] or "
                    "Python[file.py:Class]"
                )
                raise ConfigError([Problem(message)])
            name, *rest = args
            args = tuple(rest)
            if name.endswith(".py"):
                message = f"Python[{name}] names no class: expected Python[{name}:Class]"
                raise ConfigError([Problem(message)])
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
    if len(members) < fewest or (most is not None and len(members) > most):
        message = f"{name} takes {_how_many(fewest, most)} in brackets, found {len(members)}"
        problems.append(Problem(message, key="backend"))
    children = [member for member in members if member is not None]
    for child in children:
        if issubclass(child.cls, CompositeBackend):
            message = (
                f"{child.name} inside {name}: it must be the whole expression of a node, since it "
                "waits for other nodes and a thread that runs backends must not wait"
            )
            problems.append(Problem(message, key="backend"))
    return ExpressionMember(name, cls, tree, args, frozenset(addresses), children)


def _how_many(fewest: int, most: int | None) -> str:
    """Say how many backends an expression takes in brackets."""
    if most == 0:
        return "none"
    if most is None:
        return f"at least {fewest}"
    return str(fewest) if most == fewest else f"{fewest} to {most}"


def _check_filters(tree: Expression, problems: list[Problem]) -> None:
    """Check the filters before members.

    The classes must have been found: the module of a user's class may register filters.
    """
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


def _check_keys(members: list[ExpressionMember], own: Mapping[str, Any], binding: Binding) -> None:
    """Report every key of the node that neither the node nor a member knows."""
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
            addresses = {name for member in members for name in member.addresses}
            message = f"the expression has no backend {prefix!r}{did_you_mean(prefix, addresses)}"
        else:
            known = binding.known_keys | RESERVED_BY_NODE
            if separator:
                known |= {
                    f"{member.name}::{written}"
                    for member in members
                    for written in (member.parameters or {}).values()
                }
            names = ", ".join(dict.fromkeys(member.name for member in members))
            message = (
                f"this is neither a key of a node nor a parameter of {names}"
                f"{did_you_mean(key, known)}"
            )
        binding.problems.append(Problem(message, key=key))


def check_roughly(own: Mapping[str, Any], defaults: Mapping[str, Any], binding: Binding) -> None:
    """Report keys that no backend at all declares.

    Call it for an expression that is wrong: its backends, and so the right keys, aren't known.
    """
    known = set(RESERVED_BY_NODE)
    for name in backend_names():
        try:
            cls = find_backend(name)
        except (ConfigError, ImportError):
            continue
        if cls.parameters:
            fields = cls.parameters.model_fields
            known |= {parameter.alias or key for key, parameter in fields.items()}
    binding.known_keys = known
    binding.used_defaults = {key for key in defaults if key in known or "::" in key}
    for key in own:
        if key not in known and "::" not in key:
            message = (
                "this is neither a key of a node nor a parameter of any backend"
                f"{did_you_mean(key, known)}"
            )
            binding.problems.append(Problem(message, key=key))


def _receivers(key: str, members: list[ExpressionMember]) -> list[ExpressionMember]:
    """Return the members that a key of the node reaches."""
    declaring = [
        member for member in members if member.parameters is not None and key in member.parameters
    ]
    if declaring:
        return _with_range(declaring) if key == "force_range" else declaring
    prefix, separator, last = key.rpartition("::")
    if separator:
        addressed = [member for member in members if prefix in member.addresses]
        return [
            member for member in addressed if member.parameters is None or last in member.parameters
        ]
    return [member for member in members if member.parameters is None]


def _with_range(members: list[ExpressionMember]) -> list[ExpressionMember]:
    """Return the members whose range a node's `force_range` sets: the engines, as in torchpipe.

    Without an engine it is the range of the whole expression.
    """
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
    """Return how many instance groups the values with `&` make; 0 if they don't agree.

    A default that the node overrides does not count.
    """
    counts: dict[str, int] = {}
    for key, value in {**defaults, **own}.items():
        if key in splittable and isinstance(value, str) and "&" in value:
            pieces = value.split("&")
            counts[key] = len(pieces)
            if not all(piece.strip() for piece in pieces):
                problems.append(
                    Problem(
                        f"an empty piece beside & in {value!r}: expected a value for each group",
                        key=key,
                    )
                )
                return 0
    if len(set(counts.values())) > 1:
        numbers = ", ".join(f"{key} has {count}" for key, count in counts.items())
        message = f"the values with & make different numbers of instance groups: {numbers}"
        problems.append(Problem(message, key=next(iter(counts))))
        return 0
    return next(iter(counts.values()), 1)


def _pick(keys: Mapping[str, Any], splittable: set[str], group: int, groups: int) -> dict[str, Any]:
    """Return the keys of one group. A value without `&` holds for every group."""

    def pick(key: str, value: Any) -> Any:
        if groups == 1 or key not in splittable or not isinstance(value, str) or "&" not in value:
            return value
        return value.split("&")[group].strip()

    return {key: pick(key, value) for key, value in keys.items()}


def _spec(
    member: ExpressionMember,
    members: list[ExpressionMember],
    own: dict[str, Any],
    defaults: dict[str, Any],
    problems: list[Problem],
) -> Spec | None:
    """Make the spec of a member for one group. None if its parameters are wrong."""
    children = [_spec(child, members, own, defaults, problems) for child in member.children]
    values: dict[str, Any] = {}
    written: dict[str, str] = {}  # for each parameter, the key that sets it
    for keys in (defaults, own):
        targets = {
            key: target for key in keys if (target := _target(key, member, members)) is not None
        }
        given: dict[tuple[str, bool], str] = {}
        for key in sorted(targets, key=lambda key: targets[key][1]):  # `A::key` comes last and wins
            parameter, _ = targets[key]
            if (other := given.setdefault(targets[key], key)) != key:
                message = f"{other} and {key} are one parameter, and both are given: keep one"
                problems.append(Problem(message, key=key))
            values[parameter] = keys[key]
            written[parameter] = key
    values |= _arguments(member, problems, written)
    if member.cls.parameters is None:
        params: BaseModel | dict[str, Any] = values
    else:
        try:
            params = member.cls.parameters.model_validate(values)
        except ValidationError as error:
            problems += _parameter_problems(error, member, written)
            if not issubclass(member.cls, CompositeBackend):
                return None
            # Without validation, so that the target of a jump is checked all the same.
            wrong = {str(details["loc"][0]) for details in error.errors(include_url=False)}
            right = {key: value for key, value in values.items() if key not in wrong}
            params = member.cls.parameters.model_construct(**right)
    if None in children:
        return None
    return Spec(
        member.name,
        member.cls,
        params,
        tuple(child for child in children if child is not None),
        member.tree.filter,
    )


def _parameter_problems(
    error: ValidationError, member: ExpressionMember, written: Mapping[str, str]
) -> Iterator[Problem]:
    """Yield what is wrong with the parameters of a member, by the keys that the file has."""
    for problem in problems_of(error, subject=member.name):
        first, dot, rest = problem.key.partition(".")
        if written.get(first) == "backend":  # an argument of the expression, which has no own key
            message = f"{member.name}'s {problem.key}: {problem.message}"
            yield Problem(message, key="backend")
        else:
            yield Problem(problem.message, key=written.get(first, first) + dot + rest)


def _target(
    key: str, member: ExpressionMember, members: list[ExpressionMember]
) -> tuple[str, bool] | None:
    """Return the parameter of `member` that a key sets, and whether it is addressed (`A::key`).

    None if the key sets no parameter of this member.
    """
    if member not in _receivers(key, members):
        return None
    declared = member.parameters
    prefix, _, last = key.rpartition("::")
    if declared is None:
        if key in RESERVED_BY_NODE:
            return None
        return (last, True) if prefix in member.addresses else (key, False)
    if key in RESERVED_BY_NODE - SHARED_KEYS:
        return None  # `min` and `max` are the node's and an engine's, most others the node's alone
    return (declared[key], False) if key in declared else (declared[last], True)


def _arguments(
    member: ExpressionMember, problems: list[Problem], written: dict[str, str]
) -> dict[str, Any]:
    """Return the arguments in the expression, by parameter.

    Positional arguments are in the order of declaration. `written` gets the key `backend` for each.
    """
    declared = member.parameters
    if declared is None:
        if member.args:
            message = f"{member.name} declares no parameters, so it takes no positional argument"
            problems.append(Problem(message, key="backend"))
        return dict(member.tree.kwargs)
    keyword_only: frozenset[str] = getattr(member.cls.parameters, "keyword_only", frozenset())
    order = [key for key in dict.fromkeys(declared.values()) if key not in keyword_only]
    args: tuple[Any, ...] = (
        (member.args,)
        if getattr(member.cls.parameters, "variadic", False) and member.args
        else member.args
    )
    if len(args) > len(order):
        plural = "s" * (len(order) != 1)
        most = f"at most {len(order)} argument{plural}" if order else "no arguments"
        message = f"{member.name} takes {most}, found {len(args)}"
        problems.append(Problem(message, key="backend"))
    values: dict[str, Any] = dict(zip(order, args, strict=False))
    for key, value in member.tree.kwargs:
        if key not in declared:
            hint = did_you_mean(key, declared.values())
            message = f"{member.name} has no parameter {key!r}{hint}"
            problems.append(Problem(message, key="backend"))
        elif declared[key] in values:
            message = f"the argument {key} of {member.name} is given twice"
            problems.append(Problem(message, key="backend"))
        else:
            values[declared[key]] = value
    written.update(dict.fromkeys(values, "backend"))
    return values
