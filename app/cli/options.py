"""Command line options: one for each field of `Settings`, and those that several commands take.

A setting's default and description are written down once, in `Settings`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

import typer
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from penstock.backends.errors import ConfigError, Problem
from penstock.backends.suggestions import did_you_mean
from penstock.pipelines.config.presets import (
    COLOR_NAMES,
    PRESETS,
    ImageOptions,
    read_numbers,
    read_size,
)

from ..settings import PREFIX, Settings, read_secret

if TYPE_CHECKING:  # imported when a command runs
    from penstock.pipelines.repository import Repository

Source = Annotated[
    Path,
    typer.Argument(
        metavar="PATH",
        help="A pipeline file (.toml), a directory of them, a Triton model repository, or an image "
        "model (.onnx).",
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="For a bare .onnx model: file with its classes' names, one per line."
    ),
]
Token = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="API key or admin token of the server. Here ps shows it to all users of this "
        "machine: better set the environment variable (PENSTOCK_API_KEY for a key), or use "
        "--token-file.",
        envvar="PENSTOCK_ADMIN_TOKEN",
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="File with what --token takes, on one line.",
        envvar="PENSTOCK_ADMIN_TOKEN_FILE",
    ),
]

Headers = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="Header to send, 'Name: value'; or @FILE, a file of such lines, which `ps` does "
        "not show. May be repeated.",
    ),
]


def headers_of(given: list[str] | None) -> dict[str, str]:
    """Return the headers that the option --header gives, by name."""
    return dict(_header(text) for one in given or () for text in _lines(one))


def _lines(given: str) -> list[str]:
    """Return the headers that an option gives: itself, or the lines of the file @FILE."""
    if not given.startswith("@"):
        return [given]
    try:
        text = Path(given[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise typer.BadParameter(f"--header: {given[1:]} can't be read: {reason}") from None
    return [line for line in text.splitlines() if line.strip()]


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise typer.BadParameter(f"--header: {text!r} is not a header: expected 'Name: value'")
    return name.strip(), value.strip()


def given_token(token: str | None, token_file: Path | None) -> str | None:
    """Return what --token or --token-file gives.

    Raises ValueError for a file that can't be read.
    """
    if token is None and token_file is not None:
        return read_secret("--token-file", token_file).get_secret_value()
    return token


def authorization(token: str | None) -> dict[str, str]:
    """Return the header that carries a token; if there is none, the environment's API key."""
    key = os.environ.get("PENSTOCK_API_KEY") if token is None else token
    return {"Authorization": f"Bearer {key}"} if key else {}


def with_image(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's parameter `image` with options for the images of a bare .onnx model."""

    @wraps(command)
    def run(**arguments: Any) -> None:
        command(image=_image_options(arguments), **arguments)

    hints = get_type_hints(command, include_extras=True)
    parameters = [
        parameter.replace(annotation=hints[name])
        for name, parameter in inspect.signature(command).parameters.items()
        if name != "image"
    ]
    parameters += [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[str | None, typer.Option(metavar=metavar, help=text)],
        )
        for name, (metavar, text) in _IMAGE_OPTIONS.items()
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # Typer reads it
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


_IMAGE_OPTIONS = {
    "preset": (
        "NAME",
        f"For a bare .onnx model: how its images are prepared: {', '.join(PRESETS)}. Options "
        "below override a part of it.",
    ),
    "size": (
        "HxW",
        "For a bare .onnx model that leaves them open: height and width of its images, such as "
        "320x320.",
    ),
    "mean": (
        "NUMBERS",
        "For a bare .onnx model: subtracted from each channel of pixels of 0 to 255, such as "
        "123.675,116.28,103.53.",
    ),
    "std": ("NUMBERS", "For a bare .onnx model: what each channel is divided by, after --mean."),
    "color": ("TEXT", "For a bare .onnx model: the order of its channels: rgb, bgr or gray."),
}


def _image_options(arguments: dict[str, Any]) -> ImageOptions:
    """Take the options for images out of the arguments of a command."""
    given = {
        name: value for name in _IMAGE_OPTIONS if (value := arguments.pop(name, None)) is not None
    }
    readers: dict[str, Callable[[str], Any]] = {
        "size": read_size, "mean": read_numbers, "std": read_numbers,
    }  # fmt: skip
    known = {"preset": PRESETS, "color": COLOR_NAMES}
    for name, value in given.items():
        try:
            given[name] = readers.get(name, str)(value)
        except ValueError as error:
            raise typer.BadParameter(f"--{name}: {error}") from None
        if name in known and value not in known[name]:
            raise typer.BadParameter(
                f"--{name}: found {value!r}: expected one of {', '.join(known[name])}"
                f"{did_you_mean(value, known[name])}"
            )
    return ImageOptions(**given)


def read_repository(
    path: Path, labels: Path | None, image: ImageOptions, *, strict: bool = False
) -> Repository:
    """Read the pipelines of PATH, with the options for a bare model. Raises `ConfigError`."""
    from penstock.pipelines.config.load import from_model
    from penstock.pipelines.repository import Repository

    if path.suffix == ".onnx":
        return Repository.read(from_model(path, labels, image))
    for name in _IMAGE_OPTIONS:
        if getattr(image, name):
            message = "this goes with a bare .onnx model only: a pipeline file says it itself"
            raise ConfigError([Problem(message, str(path), key=f"--{name}")])
    return Repository.read(path, labels=labels, strict=strict)


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's parameter `settings` with an option for each setting."""

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
                ": ".join(
                    [
                        *(_flag(str(name)) for name in detail["loc"][:1]),
                        detail["msg"].removeprefix("Value error, "),
                    ]
                )
                for detail in error.errors(include_input=False)
            ]
            raise typer.BadParameter("; ".join(problems)) from None
        command(**arguments, settings=settings)

    hints = get_type_hints(command, include_extras=True)
    parameters = [
        parameter.replace(annotation=hints[name])
        for name, parameter in inspect.signature(command).parameters.items()
        if name != "settings"
    ]
    parameters += [_option(name, field) for name, field in Settings.model_fields.items()]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # Typer reads it
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    """Make the option of a setting.

    Its default is None, so that an option that is not given is left to `Settings`, which reads the
    environment. The real default is written into the help text instead.
    """
    kind: Any = str if field.annotation in _TEXTS else field.annotation
    default = str(field.default).lower() if kind is bool else field.default
    flag = _flag(name)
    names = (f"{flag}/--no-{flag[2:]}",) if kind is bool else (flag, *UVICORNS_NAMES.get(name, ()))
    option = typer.Option(
        *names,
        envvar=f"{PREFIX}{name.upper()}",
        help=f"{field.description}{f' Default: {default}.' if default not in (None, '') else ''}",
        show_default=False,
        metavar=next(
            (
                _METAVARS[each]
                for each in (field.annotation, kind, *get_args(kind))
                if each in _METAVARS
            ),
            None,
        ),
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


_COUNT_OR_AUTO = int | Literal["auto"]

_TEXTS = (SecretStr | None, _COUNT_OR_AUTO)
"""The types of settings that Typer takes as text, for `Settings` to read."""

_METAVARS: dict[Any, str] = {
    str: "TEXT", int: "N", float: "NUMBER", Path: "FILE", _COUNT_OR_AUTO: "N|auto"
}  # fmt: skip

UVICORNS_NAMES = {
    "idle_timeout": ("--timeout-keep-alive",),
    "max_connections": ("--limit-concurrency",),
    "drain_timeout": ("--timeout-graceful-shutdown",),
    "trusted_proxies": ("--forwarded-allow-ips",),
    "processes": ("--workers",),
}
"""What uvicorn calls settings that have another name here. Its names work too."""


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
