"""The settings that an operator may set.

Each field is an option of `penstock serve` and an environment variable PENSTOCK_….
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from penstock.backends.log_writer import MAX_QUEUED_BYTES
from penstock.backends.suggestions import did_you_mean, nearest
from penstock.pipelines.cache.responses import DEFAULT_CACHE_BYTES

API_GROUPS = (
    "health",
    "metadata",
    "inference",
    "shared-memory",
    "model-config",
    "model-repository",
    "statistics",
    "trace",
    "logging",
)
"""Triton's names for groups of APIs, which `restricted_api` uses."""

OFF = "off"

REDIS_SCHEMES = {
    "redis": "redis",
    "rediss": "rediss",
    "valkey": "redis",
    "valkeys": "rediss",
    "unix": "unix",
}
"""The schemes that the URL of a second level may have, and those of its client for them."""

PREFIX = "PENSTOCK_"
"""The prefix of the environment variables."""

SECRETS = ("ssl_keyfile_password", "api_key", "admin_token", "restricted_api", "cache_redis")
"""The settings that hold secrets. Each may be read from a file: the setting `…_file` names it."""

MAX_SECRET_BYTES = 1 << 16
"""The largest file with a secret that is read."""

MAX_PROCESSES = 256
"""The most front processes."""


def _processes(value: Any) -> Any:
    """Check `processes`: pydantic's errors would name both of its types."""
    text = str(value)
    if text != "auto" and not (
        text.isascii() and text.isdecimal() and 1 <= int(text[:6]) <= MAX_PROCESSES
    ):
        raise ValueError(
            f"{text!r} is no number of processes: expected 1 to {MAX_PROCESSES}, or auto"
        )
    return text if text == "auto" else int(text)


Processes = Annotated[int | Literal["auto"], BeforeValidator(_processes)]


class Settings(BaseSettings):
    """The settings of a server: arguments first, then the environment, then the defaults below."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        env_ignore_empty=True,
        hide_input_in_errors=True,
    )

    host: str = Field(
        default="127.0.0.1",
        description="Address to listen on; 0.0.0.0 listens on every IPv4 address of the machine, "
        ":: on every IPv6 and IPv4 address.",
    )
    port: int = Field(
        default=8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one."
    )
    grpc_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Serve the Open Inference Protocol by gRPC at this port of host, too; Triton's "
        "is 8001, 0 picks a free one. Needs the extra grpc.",
    )
    uds: Path | None = Field(
        default=None,
        description="Unix socket to listen on, instead of host and port.",
    )
    backlog: int = Field(
        default=2048,
        ge=1,
        description="Most connections that wait in the kernel until the server accepts them.",
    )
    processes: Processes = Field(
        default=1,
        description="Serve with so many front processes, which read requests, decode images and "
        "write answers, and one process for the models. auto: one for each processor. 1: one "
        "process does everything. Linux only.",
    )
    balance: Literal["even", "kernel"] = Field(
        default="even",
        description="How connections are spread over several processes: each goes to the one with "
        "the fewest (even), or the kernel chooses (SO_REUSEPORT).",
    )
    control_socket: Path | None = Field(
        default=None,
        description="Unix socket where penstock reload finds a server of several processes. Unset: "
        "one without a file, named by port or uds.",
    )
    root_path: str = Field(
        default="",
        description="Path at which a proxy serves this server, as /models. Requests may come with "
        "it or without it.",
    )
    ssl_certfile: Path | None = Field(
        default=None,
        description="Serve HTTPS with this certificate: a PEM file, with its chain.",
    )
    ssl_keyfile: Path | None = Field(
        default=None,
        description="PEM file with the certificate's key. Unset: it is in ssl-certfile.",
    )
    ssl_keyfile_password: SecretStr | None = Field(
        default=None, description="Password of the certificate's key."
    )
    ssl_keyfile_password_file: Path | None = Field(
        default=None, description="File with the password of the certificate's key, on one line."
    )
    ssl_ca_certs: Path | None = Field(
        default=None,
        description="PEM file with the authorities whose certificates clients must show.",
    )
    ssl_cert_reqs: Literal["none", "optional", "required"] | None = Field(
        default=None,
        description="Whether clients must show a certificate. Unset: required with ssl-ca-certs, "
        "else none.",
    )
    ssl_ciphers: str | None = Field(
        default=None,
        description="Ciphers of TLS 1.2, in OpenSSL's notation. Unset: Python's choice.",
    )
    api_key: SecretStr | None = Field(
        default=None,
        description="Bearer key that every request except health and the files of the pages must "
        "carry. Unset: none needed.",
    )
    api_key_file: Path | None = Field(
        default=None,
        description="File with the API key, on one line. Only its owner should read it.",
    )
    admin_token: SecretStr | None = Field(
        default=None,
        description="Bearer token that lets its holder change the server. Unset: changes are off.",
    )
    admin_token_file: Path | None = Field(
        default=None, description="File with the admin token, on one line."
    )
    allow_model_control: bool = Field(
        default=False,
        description="Let the admin token load and unload pipelines, which runs their code.",
    )
    allow_model_overrides: bool = Field(
        default=False,
        description="Let a load at /v2 bring its own configuration and ONNX files.",
    )
    allow_trace: bool = Field(
        default=False,
        description="Return a trace to requests that ask and carry the admin token.",
    )
    allow_trace_settings: bool = Field(
        default=False,
        description="Let the admin token change the trace settings at /v2.",
    )
    allow_shared_memory: bool = Field(
        default=False,
        description="Let the admin token register shared memory for tensors at /v2, POSIX's "
        "and that of GPUs.",
    )
    allow_log_settings: bool = Field(
        default=False,
        description="Let the admin token change what is logged, at /v2/logging.",
    )
    map_shared_memory: bool = Field(
        default=False,
        description="Use tensors in shared memory in place. Fast, but a client that truncates "
        "its memory meanwhile crashes the server.",
    )
    max_shared_memory_regions: int = Field(
        default=256, ge=1, description="Most regions of shared memory that may be registered."
    )
    restricted_api: SecretStr | None = Field(
        default=None,
        description="Rules for groups of APIs, separated by ; as in "
        "'statistics,metadata:header=secret' or 'shared-memory:off'. Unset: none.",
    )
    restricted_api_file: Path | None = Field(
        default=None, description="File with the rules of restricted-api, on one line."
    )
    max_memory: int | None = Field(
        default=None,
        ge=1,
        description="Most memory that all requests may hold together, bytes. Unset: half of what "
        "the cgroup, ulimit -v and the machine leave when the pipelines are loaded.",
    )
    cache_size: int = Field(
        default=DEFAULT_CACHE_BYTES,
        ge=0,
        description="Most memory that the answers of all pipelines with a cache may hold together, "
        "bytes; 0: no pipeline keeps answers.",
    )
    cache_redis: SecretStr | None = Field(
        default=None,
        description="URL of a Redis or Valkey server where the caches of several processes keep "
        "answers too, as redis://user:password@host:6379/0; rediss:// is TLS. Unset: none.",
    )
    cache_redis_file: Path | None = Field(
        default=None, description="File with the URL of cache-redis, on one line."
    )
    allowed_hosts: str | None = Field(
        default=None,
        description="Names that the Host header may have, separated by commas; *.example.com are "
        "all names below it. Unset: any.",
    )
    cors_origins: str | None = Field(
        default=None,
        description="Origins whose pages may use the server, as https://example.com, separated by "
        "commas; or *. Unset: none (CORS is off).",
    )
    trusted_proxies: str | None = Field(
        default=None,
        description="Addresses and networks of proxies whose X-Forwarded-For and X-Forwarded-Proto "
        "are believed, separated by commas; or *. Unset: none.",
    )
    page: bool = Field(
        default=True, description="Serve a page at / to try and watch the pipelines."
    )
    max_body: int = Field(default=64 * 2**20, ge=1, description="Largest request body, bytes.")
    max_stream: int | None = Field(
        default=None,
        ge=1,
        description="Most bytes of a streamed input. Unset: its pipeline's timeout bounds it.",
    )
    max_message: int = Field(
        default=2**20, ge=1, description="Largest message of a WebSocket, bytes."
    )
    ping_interval: float = Field(
        default=20.0,
        gt=0,
        description="How often the client of a WebSocket is asked for a sign of life, seconds. "
        "One that gives none until the next time is disconnected.",
    )
    max_chunks: int = Field(
        default=65536, ge=1, description="Most chunks of a request body at /v2."
    )
    max_inflated: int = Field(
        default=64 * 2**20,
        ge=1,
        description="Largest request body after decompression, bytes.",
    )
    max_json_depth: int = Field(
        default=100, ge=1, le=1000, description="Most levels of nesting in a JSON request."
    )
    max_json_values: int = Field(
        default=2**20, ge=1, description="Most values and keys in a JSON request."
    )
    body_timeout: float = Field(
        default=30.0,
        gt=0,
        description="Longest time for a request's body to arrive, and longest silence of a "
        "streamed one, seconds.",
    )
    max_head: int = Field(
        default=64 * 2**10, ge=1024, description="Largest head of a request, bytes."
    )
    max_fields: int = Field(
        default=100, ge=1, description="Most header fields of a request's head."
    )
    max_connections: int | None = Field(
        default=None,
        ge=1,
        description="Most connections at a time. Unset: 128 less than the file descriptors that "
        "ulimit -n allows.",
    )
    idle_timeout: float = Field(
        default=75.0,
        gt=0,
        description="Longest time that a connection stays open between two requests, seconds.",
    )
    head_timeout: float = Field(
        default=30.0, gt=0, description="Longest time for a request's head to arrive, seconds."
    )
    send_timeout: float = Field(
        default=30.0,
        gt=0,
        description="Longest time that a client may read nothing of its answer, seconds.",
    )
    discard_timeout: float = Field(
        default=10.0,
        gt=0,
        description="Longest time to read and throw away the rest of a refused body, seconds.",
    )
    max_discard: int = Field(
        default=64 * 2**20,
        ge=0,
        description="Most bytes of a refused body that are read and thrown away.",
    )
    max_watchers: int = Field(
        default=16, ge=1, description="Most clients that may watch /status as events at a time."
    )
    max_images: int = Field(default=256, ge=1, description="Most items in one batch request.")
    allow_url: bool = Field(
        default=False,
        description='Accept {"url": …} for an image and fetch it, from public addresses only.',
    )
    url_timeout: float = Field(
        default=10.0, gt=0, description="Longest time to fetch an image by URL, seconds."
    )
    url_ports: str = Field(
        default="80,443",
        description="Ports that a URL may name, separated by commas.",
    )
    strict: bool = Field(
        default=False,
        description="Refuse to start if a pipeline of a directory can't be read or loaded. "
        "Otherwise it is left out and the rest is served.",
    )
    ready_when: Literal["all", "any"] = Field(
        default="all",
        description="The server is ready when all pipelines are, or when any of them is.",
    )
    drain_timeout: float = Field(
        default=30.0,
        ge=0,
        description="Longest time for requests in flight to finish at shutdown, seconds.",
    )
    drain_grace: float = Field(
        default=1.0,
        ge=0,
        description="At shutdown, longest time for a request under way to arrive, seconds.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lowest level that is logged."
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="Write log lines as text or as JSON objects."
    )
    max_log_buffer: int = Field(
        default=MAX_QUEUED_BYTES,
        ge=4096,
        description="Most bytes of log lines that wait to be written. More are dropped.",
    )
    access_log: bool = Field(default=False, description="Log a line for every request.")
    request_history: int = Field(
        default=1024,
        ge=0,
        le=1 << 20,
        description="How many of the last requests are remembered, of all pipelines together, to "
        "explain why one was slow; 0: none.",
    )

    trace_mode: Literal["off", "triton", "opentelemetry"] = Field(
        default="off",
        description="Trace requests: into Triton's trace files, or as OpenTelemetry's spans.",
    )
    trace_level: str = Field(
        default="TIMESTAMPS",
        description="What is traced at the start: TIMESTAMPS, TENSORS, both with a comma, or OFF.",
    )
    trace_rate: int = Field(
        default=1000,
        ge=0,
        le=2**32 - 1,
        description="One of so many requests is traced. 0 with OpenTelemetry: only those whose "
        "callers are.",
    )
    trace_count: int = Field(
        default=-1,
        ge=-1,
        le=2**31 - 1,
        description="So many requests are traced, then none; -1: no limit.",
    )
    log_frequency: int = Field(
        default=0,
        ge=0,
        le=2**32 - 1,
        description="Write so many traces into each of the files trace-file.0, trace-file.1, …; "
        "0: all into trace-file.",
    )
    trace_file: Path | None = Field(
        default=None, description="File for Triton's traces. An existing one is replaced."
    )
    trace_url: str = Field(
        default="http://localhost:4318/v1/traces",
        description="Where OpenTelemetry's spans are sent, by OTLP over HTTP.",
    )
    trace_resource: str = Field(
        default="",
        description="Attributes of OpenTelemetry's resource, as service.name=ocr,team=vision.",
    )

    @model_validator(mode="after")
    def _check_trace(self) -> Settings:
        if self.trace_mode == "off":
            return self
        if self.trace_mode == "triton":
            if self.trace_file is None:
                raise ValueError("trace_mode = triton needs trace_file, where traces are written")
            if not self.trace_file.absolute().parent.is_dir():
                raise ValueError(f"trace_file: there is no folder {self.trace_file.parent}")
            if not self.trace_rate:
                raise ValueError("trace_rate = 0 is for trace_mode = opentelemetry")
        elif "TENSORS" in split(self.trace_level):
            raise ValueError("trace_level = TENSORS needs trace_mode = triton")
        return self

    @model_validator(mode="after")
    def _check_balance(self) -> Settings:
        if self.balance == "kernel" and self.uds is not None:
            raise ValueError("balance = kernel is for ports: with uds, expected even")
        return self

    @field_validator("trace_level")
    @classmethod
    def _check_trace_level(cls, value: str) -> str:
        levels = [level.upper() for level in split(value)]
        if levels != ["OFF"] and not (levels and set(levels) <= {"TIMESTAMPS", "TENSORS"}):
            raise ValueError(f"{value!r} is no level: expected OFF, TIMESTAMPS, TENSORS or both")
        return ",".join(levels)

    @field_validator("trace_url")
    @classmethod
    def _check_trace_url(cls, value: str) -> str:
        if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", value):
            raise ValueError(
                f"{value!r} is not a URL: expected one like http://localhost:4318/v1/traces"
            )
        return value

    @field_validator("trace_resource")
    @classmethod
    def _check_trace_resource(cls, value: str) -> str:
        for entry in split(value):
            key, equals, _ = entry.partition("=")
            if not equals or not key.strip():
                raise ValueError(f"{entry!r} is no attribute: expected key=value")
        return value

    @model_validator(mode="after")
    def _check_tls(self) -> Settings:
        if self.ssl_certfile is None:
            names = ("ssl_keyfile", "ssl_ca_certs", "ssl_cert_reqs", "ssl_ciphers")
            if alone := [name for name in names if getattr(self, name) is not None]:
                raise ValueError(f"{alone[0]} needs ssl_certfile, the certificate of this server")
        elif self.ssl_cert_reqs in ("optional", "required") and self.ssl_ca_certs is None:
            raise ValueError(
                f"ssl_cert_reqs = {self.ssl_cert_reqs} needs ssl_ca_certs, the authorities whose "
                "certificates are accepted"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _read_secrets(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Read the secrets that are in files."""
        read = dict(values)
        for name in SECRETS:
            path = read.get(f"{name}_file")
            if path is None:
                continue
            if read.get(name) is not None:
                raise ValueError(f"{name} and {name}_file are both set: set one of them")
            read[name] = read_secret(f"{name}_file", Path(path))
        return read

    @field_validator("api_key", "admin_token")
    @classmethod
    def _check_token(cls, value: SecretStr | None) -> SecretStr | None:
        """Refuse an empty token, which would let anyone in, and one that no header can carry."""
        if value is None:
            return None
        text = value.get_secret_value()
        if not text or not text.isascii() or not text.isprintable() or " " in text:
            raise ValueError("expected at least one visible ASCII character, and no others")
        return value

    @field_validator("cache_redis")
    @classmethod
    def _check_redis(cls, value: SecretStr | None) -> SecretStr | None:
        """Refuse what is not a URL of Redis. The text never quotes it: it may hold a password."""
        if value is None:
            return None
        try:
            parts = urlsplit(value.get_secret_value())
            place = parts.path if parts.scheme == "unix" else parts.hostname
            port = parts.port
        except ValueError:
            raise ValueError("expected a URL, as redis://host:6379/0") from None
        if parts.scheme not in REDIS_SCHEMES or not place or port == 0:
            raise ValueError(
                "expected redis://host:6379/0, rediss:// for TLS, or unix:///path/of/socket"
            )
        return value

    @field_validator("url_ports")
    @classmethod
    def _check_ports(cls, value: str) -> str:
        ports = split(value)
        for port in ports:
            if not (port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 1 << 16):
                raise ValueError(f"{port!r} is not a port: expected 1 to 65535")
        if not ports:
            raise ValueError("expected at least one port, as 80,443")
        return ",".join(ports)

    @field_validator("root_path")
    @classmethod
    def _check_root_path(cls, value: str) -> str:
        if value and not _ROOT_PATH.fullmatch(value):
            raise ValueError(
                f"{value!r} is not a path: expected one like /models, of letters, digits and "
                "- . _ ~ /"
            )
        return value.rstrip("/")

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, value: str | None) -> str | None:
        hosts = split(value)
        for number, host in enumerate(hosts):
            name = host.lower().removeprefix("[").removesuffix("]")
            if not (name == "*" or is_address(name) or _HOST.fullmatch(name)):
                raise ValueError(
                    f"{host!r} is not a host: expected a name without scheme and port, an address, "
                    "or *.example.com"
                )
            hosts[number] = name.removesuffix(".")
        return ",".join(hosts) or None

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: str | None) -> str | None:
        for origin in split(value):
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} is not an origin: expected https://example.com, with a port if it "
                    "has one and without a path, or *"
                )
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, value: str | None) -> str | None:
        for proxy in split(value):
            if proxy != "*" and not is_address(proxy):
                try:
                    ip_network(proxy)
                except ValueError as error:
                    raise ValueError(f"{proxy!r} is not an address or a network: {error}") from None
        return value

    @field_validator("restricted_api")
    @classmethod
    def _check_rules(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            parse_restrictions(value.get_secret_value())
        return value


_HOST = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?")
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+/?|/")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9._-]+(:\d+)?|[a-z]+://\[[0-9a-f:.]+\](:\d+)?")


OTHER_VARIABLES = ("model_key", "model_key_file")
"""The variables PENSTOCK_… that are no settings: the key of encrypted models."""

_SERVICE_LINK = re.compile(r"(.+_)?SERVICE_(HOST|PORT(_.+)?)|(.+_)?PORT_\d+_(TCP|UDP)(_.+)?")


def unknown_variables(environment: Iterable[str]) -> list[str]:
    """Describe each variable PENSTOCK_… that is not a setting, with the nearest one that is.

    Kubernetes sets others for a service called penstock. They are left out.
    """
    known = [name.upper() for name in (*Settings.model_fields, *OTHER_VARIABLES)]
    unknown = []
    for variable in sorted(environment):
        prefix, name = variable[: len(PREFIX)], variable[len(PREFIX) :].upper()
        if prefix.upper() != PREFIX or name in known or _SERVICE_LINK.fullmatch(name):
            continue
        hint = nearest(name, known)
        unknown.append(
            f"the environment variable {variable} is no setting of Penstock and has no effect"
            + (f", did you mean {PREFIX}{hint}?" if hint else "")
        )
    return unknown


def split(value: str | None) -> list[str]:
    """Return the entries of a setting that are separated by commas."""
    return [] if value is None else [entry for entry in map(str.strip, value.split(",")) if entry]


def is_address(text: str) -> bool:
    """Return whether a text is an IP address."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def read_secret(setting: str, path: Path) -> SecretStr:
    """Read the one line of a file, without the line ends that editors and `echo` write after it."""
    try:
        with path.open("rb") as file:  # not its whole size: it may be a device
            content = file.read(MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{setting}: {path} can't be read: {error.strerror}") from None
    if len(content) > MAX_SECRET_BYTES:
        raise ValueError(f"{setting}: {path} has more than {MAX_SECRET_BYTES} bytes")
    text = content.decode("latin-1").rstrip("\r\n")
    if not text:
        raise ValueError(f"{setting}: {path} is empty")
    return SecretStr(text)


class AccessRule(NamedTuple):
    """The header and secret that a group of APIs asks for; without a header the group is off."""

    header: str = ""
    secret: bytes = b""


def parse_restrictions(rules: str) -> dict[str, AccessRule]:
    """Parse `restricted_api`: `api,api:header=secret` or `api:off`, separated by `;`.

    Returns the rules by group; an empty text has none. Raises ValueError for a malformed rule, with
    a text that quotes neither secrets nor names of groups: either may stand in the other's place.
    """
    parsed: dict[str, AccessRule] = {}
    for place, text in enumerate(filter(None, map(str.strip, rules.split(";"))), 1):
        names, colon, wanted = text.partition(":")
        header, equals, secret = (piece.strip() for piece in wanted.partition("="))
        off = bool(colon) and header == OFF and not equals
        if not off and not (
            equals and re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", header) and secret
        ):
            raise ValueError(f"rule {place}: expected APIs:header=secret or APIs:off")
        if not (secret.isascii() and secret.isprintable()):
            raise ValueError(
                f"rule {place}: expected only visible ASCII characters in the secret of {header}"
            )
        rule = AccessRule() if off else AccessRule(header.lower(), secret.encode())
        for number, name in enumerate(map(str.strip, names.split(",")), 1):
            if name not in API_GROUPS:
                # The name is not quoted: it may be a secret that holds a ; or is misplaced.
                raise ValueError(
                    f"rule {place}: API {number}: expected one of {', '.join(API_GROUPS)}"
                    f"{did_you_mean(name, API_GROUPS)}"
                )
            if name in parsed:
                raise ValueError(f"rule {place}: an earlier rule covers {name} already")
            parsed[name] = rule
    return parsed
