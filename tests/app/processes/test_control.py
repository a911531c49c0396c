"""The names of processes, and the settings that ask for several."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from penstock.app.processes.control import Role, role_of
from penstock.app.processes.count import front_count
from penstock.app.settings import Settings
from penstock.backends.engines.processors import processors


@pytest.mark.parametrize(("role", "name"), [(Role(0), "models"), (Role(12), "front 12")])
def test_a_role_is_named_for_people_and_for_a_command_line(role: Role, name: str) -> None:
    assert role.option.startswith(name.replace(" ", ":"))
    assert (str(role), role_of(role.option)) == (name, role)


@pytest.mark.parametrize("option", ["", "front", "front:", "front:0", "front:-1", "back:1"])
def test_other_roles_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{option!r} names no process")):
        role_of(option)


def test_a_process_of_another_release_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"the server runs Penstock 0\.0\.9, and this is .* restart"
    ):
        role_of("front:1@0.0.9")


@pytest.mark.parametrize(("value", "count"), [("4", 4), (2, 2), ("auto", processors())])
def test_the_number_of_fronts(value: Any, count: int) -> None:
    assert front_count(Settings(processes=value)) == count


@pytest.mark.parametrize("value", ["0", "257", "-1", "two", "", 2.5])
def test_another_number_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError, match="expected 1 to 256, or auto"):
        Settings(processes=value)


def test_the_kernel_balances_no_unix_socket() -> None:
    with pytest.raises(ValidationError, match="with uds, expected even"):
        Settings(balance="kernel", uds="/tmp/socket")  # type: ignore[arg-type]
