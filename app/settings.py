"""What an operator may set. Every field is a command line option of `penstock serve` and an environment variable PENSTOCK_…"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from .http.restriction import Restriction


class Settings(BaseSettings):
    """Settings of a server. Arguments come before the environment; what neither names has the default below."""

    model_config = SettingsConfigDict(
        env_prefix="PENSTOCK_",
        frozen=True,
        extra="forbid",
        env_ignore_empty=True,
        hide_input_in_errors=True,
    )

    host: str = Field(
        default="127.0.0.1",
        description="Address to listen on; 0.0.0.0 is every one of this machine.",
    )
    port: int = Field(
        default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one."
    )
    api_key: SecretStr | None = Field(
        default=None,
        description="Bearer key that every request must carry, but for health. Unset: none needed.",
    )
    admin_token: SecretStr | None = Field(
        default=None,
        description="Bearer token of whoever may change the server. Unset: nobody may.",
    )
    allow_model_control: bool = Field(
        default=False,
        description="Let the admin token load and unload pipelines, which runs their code.",
    )
    allow_model_overrides: bool = Field(
        default=False,
        description="Let such a load at /v2 bring its configuration and ONNX files along.",
    )
    allow_trace: bool = Field(
        default=False,
        description="Give the admin token, where a request asks, the trace of what it did.",
    )
    allow_shared_memory: bool = Field(
        default=False,
        description="Let the admin token register POSIX shared memory for tensors at /v2.",
    )
    map_shared_memory: bool = Field(
        default=False,
        description="Use tensors in shared memory in place. Fast; a client that truncates its memory meanwhile ends the server.",
    )
    restricted_api: SecretStr | None = Field(
        default=None,
        description="Rules for groups of APIs, with ; between: 'statistics,metadata:header=secret', 'shared-memory:off'. Unset: none.",
    )
    max_body: int = Field(default=64 * 2**20, ge=1, description="Largest request body, bytes.")
    max_chunks: int = Field(
        default=65536, ge=1, description="Most chunks of a request body at /v2."
    )
    max_inflated: int = Field(
        default=64 * 2**20,
        ge=1,
        description="Largest request body at /v2 once it is decompressed, bytes.",
    )
    max_json_depth: int = Field(
        default=100, ge=1, le=1000, description="Most levels of a JSON request at /v2."
    )
    body_timeout: float = Field(
        default=30.0, gt=0, description="A request's body must have come within this time, seconds."
    )
    max_images: int = Field(default=256, ge=1, description="Most images in one batch request.")
    allow_url: bool = Field(
        default=False,
        description='Take {"url": …} for an image, and fetch it: from public addresses only.',
    )
    url_timeout: float = Field(
        default=10.0, gt=0, description="An image by URL must have come within this time, seconds."
    )
    url_ports: str = Field(
        default="80,443",
        pattern=r"^\d{1,5}(,\d{1,5})*$",
        description="Ports that a URL may name, commas between.",
    )
    drain_timeout: float = Field(
        default=30.0,
        ge=0,
        description="At shutdown, what is inside may take this long to end, seconds.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level that is logged."
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="Log lines as text or as JSON objects."
    )
    access_log: bool = Field(default=False, description="Log a line for every request.")

    @field_validator("api_key", "admin_token")
    @classmethod
    def _check_token(cls, value: SecretStr | None) -> SecretStr | None:
        """An empty key would let anybody in; one with spaces or beyond ASCII can't travel in the header."""
        if value is None:
            return None
        text = value.get_secret_value()
        if not text or not text.isascii() or not text.isprintable() or " " in text:
            raise ValueError("expected at least one visible ASCII character, and no others")
        return value

    @field_validator("restricted_api")
    @classmethod
    def _check_rules(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            Restriction(value.get_secret_value())
        return value
