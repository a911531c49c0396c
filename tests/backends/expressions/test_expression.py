"""Parsing and printing backend expressions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.backends.errors import ConfigError
from penstock.backends.expressions.expression import (
    MAX_EXPRESSION_CHARACTERS,
    MAX_NESTED_BACKENDS,
    Expression,
    parse,
    walk,
)


def test_a_name() -> None:
    assert parse("Identity") == Expression("Identity")


def test_children_and_arguments() -> None:
    assert parse("A(x,k=v)[B,C(1)]") == Expression(
        "A", ("x",), (("k", "v"),), (Expression("B"), Expression("C", ("1",)))
    )


def test_a_prefix_is_arguments() -> None:
    assert parse("(x,k=v)A") == parse("A(x,k=v)")
    assert parse("(x)A(y,k=v)") == parse("A(x,y,k=v)")


def test_a_prefix_inside_a_sequential_is_a_filter() -> None:
    first, second = parse("S[A,(or)B(k=v)]").children
    assert (first.filter, second.filter, second.kwargs) == (None, "or", (("k", "v"),))


def test_a_prefix_deeper_inside_a_sequential_is_arguments() -> None:
    assert parse("S[A,W[(x)B]]").children[1].children[0] == Expression("B", ("x",))


def test_empty_parentheses_have_no_effect() -> None:
    assert parse("A()") == parse("A")


def test_whitespace_has_no_effect() -> None:
    assert parse(" S [ A ( x , k = v ) ,\n\t( or ) B ] ") == parse("S[A(x,k=v),(or)B]")


def test_inside_quotes_everything_is_literal() -> None:
    assert parse("""A(' a,b]=(',k="it's & so")""") == Expression(
        "A", (" a,b]=(",), (("k", "it's & so"),)
    )
    assert parse("A('')").args == ("",)
    assert parse("A('k=v')").args == ("k=v",)


def test_a_value_can_hold_an_equals_sign() -> None:
    assert parse("A(k=a=b)").kwargs == (("k", "a=b"),)


def test_a_key_with_colons() -> None:
    assert parse("A(model::cache=x.trt)").kwargs == (("model::cache", "x.trt"),)


@pytest.mark.parametrize("name", ["Copy", "Move", "Add", "Remove", "Keep"])
def test_brackets_of_key_backends_hold_text(name: str) -> None:
    assert parse(f"{name}[a:b,c]") == parse(f"{name}(a:b,c)") == Expression(name, ("a:b", "c"))


def test_has_key_has_an_argument_and_branches() -> None:
    assert parse("HasKey(key)[A,B]") == Expression(
        "HasKey", ("key",), (), (Expression("A"), Expression("B"))
    )


def test_brackets_of_python_hold_text() -> None:
    assert parse("Python[my/ops.py:Blur]") == Expression("Python", ("my/ops.py:Blur",))


@pytest.mark.parametrize(
    ("text", "position", "message"),
    [
        ("S[A,B", 6, "expected ',' or ']', found the end"),
        ("S[A,,B]", 5, "expected a backend's name, found ','"),
        ("S[A,]", 5, "expected a backend's name, found ']'"),
        ("A[]", 3, "expected a backend's name, found ']'"),
        ("A]", 2, "expected the end of the expression, found ']'"),
        ("A,B", 2, "chain with S[A,B]"),
        ("A(x", 4, "expected ',' or ')', found the end"),
        ("A(x,)", 5, "expected a value"),
        ("A(k=)", 5, "expected a value"),
        ("A(k='v)", 5, "expected a closing '"),
        ("A('x'y)", 6, "expected ',' or ')', found 'y'"),
        ("A(x(y))", 4, "must be quoted"),
        ("A(k=v,x)", 7, "a positional argument after a keyword argument"),
        ("A(k=v,k=w)", 7, "the argument k is given twice"),
        ("(k=v)A(k=w)", 8, "the argument k is given twice"),
        ("S", 2, "S has no members"),
        ("Sequential[]", 12, "expected a backend's name"),
        ("S[(or)A,B]", 3, "first member"),
        ("S[A,(x,y)B]", 5, "is a filter"),
        ("S[A,(k=v)B]", 5, "is a filter"),
        ("S[B,A[A]]", 5, "A is directly inside A"),
        ("1A", 1, "expected a backend's name, found '1'"),
        ("A B", 3, "expected the end"),
    ],
)
def test_errors_name_the_position_and_what_was_expected(
    text: str, position: int, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"at character {position} of the expression: ")
    assert message in lines[0]
    assert lines[2].index("^") - 4 == position - 1


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_expression_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="empty"):
        parse(text)


@pytest.mark.parametrize(
    "text",
    ["S[S[A]]", "Sequential[S[A]]", "SyncTensor[SyncTensor[A]]", "Torch[Torch[A]]", "A[B[A]]"],
)
def test_nesting_that_is_allowed(text: str) -> None:
    assert str(parse(text)) == text


def test_depth_is_bounded() -> None:
    def nested(depth: int) -> str:
        return "S[" * (depth - 1) + "A" + "]" * (depth - 1)

    parse(nested(MAX_NESTED_BACKENDS))
    with pytest.raises(ConfigError, match=f"nested more than {MAX_NESTED_BACKENDS} levels deep"):
        parse(nested(MAX_NESTED_BACKENDS + 1))


def test_length_is_bounded() -> None:
    parse("A" * MAX_EXPRESSION_CHARACTERS)
    with pytest.raises(ConfigError, match=f"at most {MAX_EXPRESSION_CHARACTERS}"):
        parse("A" * (MAX_EXPRESSION_CHARACTERS + 1))


def test_walk_is_outermost_first() -> None:
    assert [tree.name for tree in walk(parse("S[A[B],C]"))] == ["S", "A", "B", "C"]


def test_a_value_with_both_quotes_cannot_be_printed() -> None:
    with pytest.raises(ValueError, match="both kinds of quotes"):
        str(Expression("A", ("'\"",)))


NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.\-]{0,8}", fullmatch=True)
VALUES = st.text(max_size=12).filter(lambda text: not ("'" in text and '"' in text))
PARAMETER_KEYS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.:\-]{0,8}", fullmatch=True)
LEAVES = st.builds(
    Expression,
    NAMES.map(lambda name: f"X{name}"),
    st.lists(VALUES, max_size=3).map(tuple),
    st.dictionaries(PARAMETER_KEYS, VALUES, max_size=3).map(lambda kwargs: tuple(kwargs.items())),
)


def _chain(members: list[Expression]) -> Expression:
    rest = (
        Expression(member.name, member.args, member.kwargs, member.children, "or")
        for member in members[1:]
    )
    return Expression("Sequential", children=(members[0], *rest))


def _nest(members: list[Expression]) -> Expression:
    return Expression("Y", ("a",), (("k", "v"),), (Expression("S", children=tuple(members)),))


TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map(_chain)
        | st.lists(inner, min_size=1, max_size=2).map(_nest)
    ),
    max_leaves=8,
)


@given(TREES)
def test_printing_and_parsing_is_a_round_trip(tree: Expression) -> None:
    assert parse(str(tree)) == tree


@given(st.text(alphabet="AS()[],=' k", max_size=20))
def test_any_text_parses_or_is_a_config_error(text: str) -> None:
    try:
        tree = parse(text)
    except ConfigError:
        return
    assert parse(str(tree)) == tree
