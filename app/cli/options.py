"""Command line options from `Settings`: each field is one, with its environment variable, default and description, written down once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from ..settings import Settings

PREFIX = Settings.model_config.get("env_prefix", "")


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """A command with an option for each setting instead of its parameter `settings`."""

    @wraps(command)
    def run(**arguments: Any) -> None:
        given = {
            name: value
            for name in Settings.model_fields
            if (value := arguments.pop(name)) is not None
        }
        try:
            settings = Settings(**given)
        except ValidationError as error:
            problems = [
                f"{_option(str(found['loc'][0]))}: {found['msg']}"
                for found in error.errors(include_input=False)
            ]
            raise typer.BadParameter("; ".join(problems)) from None
        command(**arguments, settings=settings)

    hints = get_type_hints(command, include_extras=True)
    own = [
        each.replace(annotation=hints[name])
        for name, each in inspect.signature(command).parameters.items()
        if name != "settings"
    ]
    options = [_parameter(name, field) for name, field in Settings.model_fields.items()]
    run.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in (*own, *options)}
    return run


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    """The default is None, so that what was not given is left to `Settings`."""
    secret = field.annotation == SecretStr | None
    kind: Any = str if secret else field.annotation
    option = typer.Option(
        f"{_option(name)}/--no-{name.replace('_', '-')}" if kind is bool else _option(name),
        envvar=f"{PREFIX}{name.upper()}",
        help=field.description,
        show_default=False
        if field.default is None
        else str(field.default).lower()
        if kind is bool
        else str(field.default),
        metavar="TEXT" if secret else None,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
