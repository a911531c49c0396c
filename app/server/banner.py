"""What the log says once the server is ready: for each pipeline its URL, inputs and a curl line."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from penstock.pipelines.config.definition import PipelineConfig, Port

from ..http.inputs.datatypes import datatype_of
from ..settings import Settings, split

MAX_LINES = 20
"""The most pipelines that have a line of their own."""

MAX_LISTED_VALUES = 64
"""A tensor of more values is sent as binary zeros, not as JSON."""

MAX_LOOKED_AT = 1000
"""So many files of a pipeline's folder are looked at for an image."""

SMALLEST_IMAGE = (
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAAAAAA6mKC9AAAAD0lEQVR42mNoQAMMI1sAAAUMgAHjM1mKAAAAAElFTkSu"
    "QmCC"
)
"""A grey PNG of 16×16 pixels, in base64."""

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_EXAMPLES: dict[str, Any] = {
    "text": "hello",
    "integer": 1,
    "number": 1.5,
    "boolean": True,
    "json": {"key": "value"},
    "bytes": "aGVsbG8=",
    "image": SMALLEST_IMAGE,
}


def banner(configs: Iterable[PipelineConfig], url: str, settings: Settings) -> Iterator[str]:
    """Yield a line for each pipeline. It ends with a command that calls it.

    `url`: where the server listens, as `base_url` writes it.
    """
    configs = list(configs)
    for config in configs[:MAX_LINES]:
        place, path, body = _request(config)
        inputs = ", ".join(f"{port.name} ({_described(port)})" for port in config.inputs)
        yield (
            f"{config.name}: {_url(url)}/predict/{config.name} takes {inputs or 'nothing'}; try: "
            f"{place}curl -sS{_options(url, settings)} {body} {shlex.quote(_url(url) + path)}"
        )
    if len(configs) > MAX_LINES:
        yield f"and {len(configs) - MAX_LINES} more pipelines: GET {_url(url)}/pipelines lists them"


def _url(url: str) -> str:
    """Return the URL that a client on this machine uses."""
    if url.startswith("unix:"):
        return "http://localhost"
    return url.replace("://0.0.0.0:", "://127.0.0.1:").replace("://[::]:", "://127.0.0.1:")


def _options(url: str, settings: Settings) -> str:
    """Write the options of curl that every request to this server needs."""
    options = []
    if settings.uds is not None:
        options.append(f"--unix-socket {shlex.quote(str(settings.uds.absolute()))}")
    if settings.ssl_certfile is not None:
        options.append("-k")
    if settings.api_key_file is not None:
        file = shlex.quote(str(settings.api_key_file.absolute()))
        options.append(f'-H "Authorization: Bearer $(cat {file})"')
    elif settings.api_key is not None:
        options.append('-H "Authorization: Bearer $PENSTOCK_API_KEY"')
    hosts = split(settings.allowed_hosts)
    if hosts and not any(host in ("*", "127.0.0.1", "localhost", "::1") for host in hosts):
        options.append(f"-H {shlex.quote('Host: ' + hosts[0].replace('*', 'a'))}")
    return "".join(f" {option}" for option in options)


def _request(config: PipelineConfig) -> tuple[str, str, str]:
    """Return what comes before curl, the path, and curl's options for the body."""
    path = f"/predict/{config.name}{'?sequence=1' if config.takes_sequences else ''}"
    ports = [port for port in config.inputs if not port.optional] or list(config.inputs)
    if len(ports) == 1:
        (port,) = ports
        if port.kind == "image":
            if (file := _image_of(config.directory)) is not None:
                return "", path, f"--data-binary {shlex.quote(f'@{file}')}"
            return f"echo {SMALLEST_IMAGE} | base64 -d | ", path, "--data-binary @-"
        if port.kind == "bytes":
            return "", path, "-H 'Content-Type: application/octet-stream' --data-binary hello"
        if port.kind == "text":
            return "", path, "-H 'Content-Type: text/plain' --data-binary hello"
        is_large = math.prod(_shape(port)) > MAX_LISTED_VALUES
        if is_large and not config.takes_sequences and (size := _zeros(port)):
            # A terminal would show the tensors of the answer as rubbish.
            options = (
                "-o answer.bin -w '%{http_code}, see answer.bin\\n' "
                "-H 'Inference-Header-Content-Length: 0' --data-binary @-"
            )
            return f"head -c {size} /dev/zero | ", f"/v2/models/{config.name}/infer", options
        body = _example(port)
    else:
        body = {port.name: _example(port) for port in ports}
    text = shlex.quote(json.dumps(body))
    return "", path, f"-H 'Content-Type: application/json' --data-binary {text}"


def _image_of(directory: Path) -> Path | None:
    """Return an image in the folder of a pipeline; None if there is none."""
    try:
        files = sorted(islice(directory.absolute().iterdir(), MAX_LOOKED_AT))
    except OSError:
        return None
    return next((file for file in files if file.suffix.lower() in _IMAGE_SUFFIXES), None)


def _described(port: Port) -> str:
    shape = "" if port.shape is None else f" {'×'.join(map(str, port.shape))}".replace("-1", "any")
    dtype = "" if port.dtype is None else f" {port.dtype}"
    return f"{'optional ' if port.optional else ''}{port.kind}{dtype}{shape}"


def _shape(port: Port) -> tuple[int, ...]:
    """Return the shape of a tensor to send: 1 where any size will do."""
    return tuple(1 if size < 0 else size for size in port.shape or (1,))


def _zeros(port: Port) -> int:
    """Return the bytes of zeros that the input takes; 0 for one that is no such tensor."""
    datatype = datatype_of(port.dtype or "")
    if port.kind != "tensor" or datatype is None or port.shape is None:
        return 0
    return math.prod(_shape(port)) * datatype.size


def _example(port: Port) -> Any:
    if port.kind == "list":
        return [_EXAMPLES["json"] if port.items is None else _example(port.items)]
    if port.schema is not None and (example := port.schema.example()) is not None:
        return example
    if port.kind != "tensor":
        return _EXAMPLES.get(port.kind, 1)
    value: Any = "text" if port.dtype in ("str", "BYTES") else 0
    for size in reversed(_shape(port)):
        value = [value] * size
    return value
