"""The grammar of backend expressions, such as `S[DecodeMat, ResizeMat(resize_h=224), (or)B['x']]`.

    expression = [ "(" arguments ")" ] name [ "(" arguments ")" ]
                 [ "[" expression { "," expression } "]" ]
    arguments  = argument { "," argument }            positional before keyword
    argument   = value | key "=" value
    value      = 'anything but this quote' | "anything but this quote"
               | bare text without , ( ) [ ]

A prefix gives arguments (`(x,k=v)A` is `A(x,k=v)`), except on a direct member of a Sequential,
where it names a filter. Whitespace outside quotes has no meaning. This module knows the grammar
only; the registry knows which names exist.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from ..errors import ConfigError, Problem

MAX_EXPRESSION_CHARACTERS = 16_384
MAX_NESTED_BACKENDS = 64
"""Bounds on what is parsed, in characters and levels. Both are far above what a person writes.

The parser recurses once per level.
"""

SEQUENTIAL = frozenset({"Sequential", "S"})
WRAPPERS = frozenset({"SyncTensor", "Torch"})
TEXT_ARGUMENTS = frozenset(
    {
        *("Copy", "cp", "Move", "mv", "Add", "AddInt", "Remove", "del", "Del", "rm", "Keep"),
        *("Python", "Jump", "MapReduce", "CopySplit"),
    }
)
"""Backends with text in their brackets instead of backends: `Copy[a:b]` is `Copy(a:b)`."""

NAME = re.compile(r"[A-Za-z_][\w.\-]*", re.ASCII)
_KEY = re.compile(r"[A-Za-z_][\w.\-:]*", re.ASCII)
_SPACE = re.compile(r"\s*")
_BARE = re.compile(r"[^,()\[\]'\"]*")


@dataclass(frozen=True, slots=True)
class Expression:
    """One backend of an expression. Values are text as written, without their quotes."""

    name: str
    args: tuple[str, ...] = ()
    kwargs: tuple[tuple[str, str], ...] = ()
    children: tuple[Expression, ...] = ()
    filter: str | None = None

    def __str__(self) -> str:
        """Return text that parses to the same tree."""
        arguments = ",".join(
            [*map(_quote, self.args), *(f"{key}={_quote(value)}" for key, value in self.kwargs)]
        )
        prefix = f"({_quote(self.filter)})" if self.filter is not None else ""
        children = ",".join(map(str, self.children))
        return (
            prefix
            + self.name
            + (f"({arguments})" if arguments else "")
            + (f"[{children}]" if children else "")
        )


def parse(text: str) -> Expression:
    """Parse `text` into a tree.

    Raises ConfigError with the position, what was found and what was expected.
    """
    if len(text) > MAX_EXPRESSION_CHARACTERS:
        message = (
            f"the expression has {len(text)} characters: "
            f"at most {MAX_EXPRESSION_CHARACTERS} are read"
        )
        raise ConfigError([Problem(message)])
    if not text.strip():
        message = "the expression is empty: expected a backend's name, as in 'Identity' or 'S[A,B]'"
        raise ConfigError([Problem(message)])
    return _ExpressionParser(text).whole()


def _quote(value: str) -> str:
    if value and _BARE.fullmatch(value) and "=" not in value and not re.search(r"\s", value):
        return value
    quote = '"' if "'" in value else "'"
    if quote in value:
        raise ValueError(
            f"a value with both kinds of quotes can't be written in an expression: {value!r}"
        )
    return f"{quote}{value}{quote}"


class _ExpressionParser:
    """A recursive-descent parser of `text`; `at` is the index of the next character."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def whole(self) -> Expression:
        tree = self.expression(depth=1, chained=False, first=True)
        if self.peek():
            self.expected(
                "the end of the expression"
                if self.peek() != ","
                else "the end of the expression (chain with S[A,B])"
            )
        return tree

    def expression(self, *, depth: int, chained: bool, first: bool) -> Expression:
        """Parse one backend.

        `chained`: it is a direct member of a Sequential. `first`: it is the first member.
        """
        if depth > MAX_NESTED_BACKENDS:
            self.fail(f"backends are nested more than {MAX_NESTED_BACKENDS} levels deep")
        args: list[str] = []
        kwargs: dict[str, str] = {}
        filter_name = None
        start = self.skip()
        if self.peek() == "(":
            self.arguments(")", args, kwargs)
            if chained:
                if len(args) != 1 or kwargs:
                    self.fail(
                        "a prefix inside a Sequential is a filter: expected one name, as in "
                        "(or)B (arguments: B(k=v))",
                        start,
                    )
                if first:
                    self.fail(
                        "the first member of a Sequential can't have a filter: put it on a later "
                        "member or on the node",
                        start,
                    )
                filter_name = args.pop()
        start = self.skip()
        name = self.word(NAME, "a backend's name")
        if self.peek() == "(":
            self.arguments(")", args, kwargs)
        children: list[Expression] = []
        if self.peek() == "[":
            if name in TEXT_ARGUMENTS:
                self.arguments("]", args, kwargs)
            else:
                children = self.members(name, depth)
        elif name in SEQUENTIAL:
            self.fail(f"{name} has no members: expected '[', as in {name}[A,B]")
        tree = Expression(name, tuple(args), tuple(kwargs.items()), tuple(children), filter_name)
        self.check_nesting(tree, start)
        return tree

    def members(self, name: str, depth: int) -> list[Expression]:
        self.take("[")
        members: list[Expression] = []
        while True:
            members.append(
                self.expression(depth=depth + 1, chained=name in SEQUENTIAL, first=not members)
            )
            if self.peek() == "]":
                self.at += 1
                return members
            if self.peek() != ",":
                self.expected("',' or ']'")
            self.at += 1

    def check_nesting(self, tree: Expression, start: int) -> None:
        if tree.name in SEQUENTIAL or tree.name in WRAPPERS:
            return
        if any(child.name == tree.name for child in tree.children):
            self.fail(f"{tree.name} is directly inside {tree.name}", start)

    def arguments(self, end: str, args: list[str], kwargs: dict[str, str]) -> None:
        """Add the arguments between the current bracket and `end`."""
        self.at += 1
        if self.peek() == end and end == ")":
            self.at += 1
            return
        while True:
            start = self.skip()
            key, value = self.argument(end)
            if key is None:
                if kwargs:
                    self.fail("a positional argument after a keyword argument", start)
                args.append(value)
            elif key in kwargs:
                self.fail(f"the argument {key} is given twice", start)
            else:
                kwargs[key] = value
            if self.peek() == end:
                self.at += 1
                return
            if self.peek() != ",":
                self.expected(f"',' or '{end}'")
            self.at += 1

    def argument(self, end: str) -> tuple[str | None, str]:
        if self.peek() in ("'", '"'):
            return None, self.value(end)
        key = _KEY.match(self.text, self.skip())
        if key is not None:
            equals = _SPACE.match(self.text, key.end())
            if equals is not None and self.text.startswith("=", equals.end()):
                self.at = equals.end() + 1
                return key[0], self.value(end)
        return None, self.value(end)

    def value(self, end: str) -> str:
        start = self.skip()
        quote = self.peek()
        if quote in ("'", '"'):
            close = self.text.find(quote, start + 1)
            if close < 0:
                self.fail(f"expected a closing {quote}, found the end of the expression", start)
            self.at = close + 1
            return self.text[start + 1 : close]
        bare = _BARE.match(self.text, start)
        value = "".join(bare[0].split()) if bare else ""
        if not value:
            self.expected("a value (an empty one is written '')")
        self.at = start + len(bare[0]) if bare else start
        if (
            self.at < len(self.text)
            and self.text[self.at] in "()[]'\""
            and self.text[self.at] != end
        ):
            self.expected(
                f"',' or '{end}' (a value with one of ,()[] or a quote in it must be quoted)"
            )
        return value

    def word(self, pattern: re.Pattern[str], wanted: str) -> str:
        match = pattern.match(self.text, self.skip())
        if match is None:
            self.expected(wanted)
        self.at = match.end()
        return match[0]

    def take(self, character: str) -> None:
        if self.peek() != character:
            self.expected(f"'{character}'")
        self.at += 1

    def skip(self) -> int:
        """Skip whitespace and return the index of the next character."""
        match = _SPACE.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return self.at

    def peek(self) -> str:
        """Return the next character that isn't whitespace, or "" at the end."""
        return self.text[self.skip() : self.at + 1]

    def expected(self, wanted: str) -> NoReturn:
        character = self.peek()
        self.fail(
            f"expected {wanted}, found "
            f"{repr(character) if character else 'the end of the expression'}"
        )

    def fail(self, message: str, at: int | None = None) -> NoReturn:
        at = self.at if at is None else at
        left = max(0, at - 60)
        excerpt = "".join(
            " " if character.isspace() else character for character in self.text[left : at + 40]
        )
        marker = " " * (at - left) + "^"
        place = f"at character {at + 1} of the expression"
        raise ConfigError([Problem(f"{place}: {message}\n    {excerpt}\n    {marker}")])


def walk(tree: Expression) -> Sequence[Expression]:
    """Return `tree` and everything inside it, outermost first."""
    trees = [tree]
    for child in tree.children:
        trees.extend(walk(child))
    return trees
