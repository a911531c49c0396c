"""Keys are read from files, and stay out of `ps`, the environment and child processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from penstock.app.settings import MAX_SECRET_BYTES, SECRETS, Settings
from penstock.backends.process.environment import SECRET_VARIABLES

ENVIRON = """
import os
from penstock.backends.base import Backend

class Environ(Backend):
    'Gives the environment and the command lines of its process and of that one\\'s parent.'

    def forward(self, batch):
        for item in batch:
            files = [f"/proc/{pid}/{name}" for pid in (os.getpid(), os.getppid())
                     for name in ("environ", "cmdline")]
            seen = [open(file, "rb").read().decode("latin-1") for file in files]
            item["result"] = [*seen, str(dict(os.environ)), str(os.getpid())]
"""


@pytest.fixture
def environ(tmp_path: Path) -> Path:
    (tmp_path / "operators.py").write_text(ENVIRON)
    for name, executor in (("child", "process"), ("thread", "thread")):
        (tmp_path / f"{name}.toml").write_text(
            f'[a]\nbackend = "Python[operators.py:Environ]"\nexecutor = "{executor}"\n'
        )
    return tmp_path


@pytest.mark.parametrize("name", ["PENSTOCK_API_KEY", "penstock_api_key"])
def test_no_process_of_the_server_shows_a_secret(spawn: Any, environ: Path, name: str) -> None:
    secrets = {
        name: "k3y-in-environment",
        "PENSTOCK_RESTRICTED_API": "statistics:x-secret=s3cret",
    }
    options = ("--port", 0, "--admin-token", "t0ken-on-line", "--log-level", "info")
    server = spawn("serve", environ, *options, **secrets)
    with server.listening() as client:
        server.wait_for("ready")
        assert client.post("/predict/child", content=b"x").status_code == 401
        assert client.get("/metrics", headers=bearer("t0ken-on-line")).status_code == 403
        for pipeline in ("child", "thread"):
            answer = client.post(
                f"/predict/{pipeline}", content=b"x", headers=bearer("k3y-in-environment")
            )
            own, line, parents, parents_line, variables, pid = answer.json()["result"]
            assert (int(pid) == server.process.pid) == (pipeline == "thread")
            assert "penstock" in line and "PATH=" in own and "PATH" in variables
            seen = f"{own}{line}{variables}"
            if pipeline == "child":
                assert "--admin-token" in parents_line and "PATH=" in parents
                seen += parents + parents_line
            for secret in ("k3y-in-environment", "s3cret", "t0ken-on-line"):
                assert secret not in seen, (pipeline, secret)
    server.process.terminate()
    assert server.end() == 0
    log = "".join(server.lines)
    assert "WARNING penstock.serve --admin-token on the command line shows" in log
    assert "use --admin-token-file, or the environment variable PENSTOCK_ADMIN_TOKEN" in log


def test_a_host_keeps_its_environment_and_its_children_get_no_secret(
    environ: Path, running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from penstock import create_app

    monkeypatch.setenv("PENSTOCK_API_KEY", "k3y")
    monkeypatch.setenv("PENSTOCK_MODEL_KEY", "other")
    with running(create_app(environ)) as client:
        answer = client.post("/predict/child", content=b"x", headers=bearer("k3y"))
        own = answer.json()["result"][0]
        assert "k3y" not in own and "PENSTOCK_MODEL_KEY=other" in own
    assert os.environ["PENSTOCK_API_KEY"] == "k3y"


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def test_the_secrets_are_those_of_the_settings() -> None:
    fields = Settings.model_fields.items()
    assert [name for name, field in fields if "SecretStr" in str(field.annotation)] == [*SECRETS]
    assert tuple(f"PENSTOCK_{name.upper()}" for name in SECRETS) == SECRET_VARIABLES


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
def test_a_key_is_read_from_a_file(tmp_path: Path, end: str) -> None:
    file = tmp_path / "key"
    file.write_bytes(f"k3y{end}".encode())
    settings = Settings(api_key_file=file)
    assert settings.api_key == SecretStr("k3y")


def test_the_server_reads_keys_from_files(tmp_path: Path, spawn: Any, digits: Path) -> None:
    for name, mode in (("key", 0o600), ("token", 0o644), ("rules", 0o640)):
        text = "health:x-s=s3cret" if name == "rules" else name
        (tmp_path / name).write_text(f"{text}\n")
        (tmp_path / name).chmod(mode)
    server = spawn(
        *("serve", digits, "--port", 0, "--api-key-file", tmp_path / "key"),
        *("--admin-token-file", tmp_path / "token"),
        PENSTOCK_RESTRICTED_API_FILE=str(tmp_path / "rules"),
    )
    with server.listening() as client:
        assert client.get("/pipelines").status_code == 401
        assert client.get("/pipelines", headers=bearer("key")).status_code == 200
        assert client.get("/pipelines", headers=bearer("token")).status_code == 200
        assert client.get("/health/live").status_code == 403
    server.process.terminate()
    assert server.end() == 0
    loose = [line for line in server.lines if "other users can read" in line]
    assert len(loose) == 1 and "admin_token_file" in loose[0] and "(mode 0644)" in loose[0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "can't be read: No such file"),
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"a\nb\n", "visible ASCII"),
        (b" a", "visible ASCII"),
        ("kéy".encode(), "visible ASCII"),
        (b"x" * (MAX_SECRET_BYTES + 1), "more than"),
    ],
)
def test_a_file_without_a_key_is_refused(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValidationError, match=reason):
        Settings(api_key_file=file)


def test_a_key_and_a_file_with_a_key_are_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("k3y")
    with pytest.raises(ValidationError, match="api_key and api_key_file are both set") as caught:
        Settings(api_key=SecretStr("0ther"), api_key_file=tmp_path / "key")
    assert "k3y" not in str(caught.value) and "0ther" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "variables", "warned"),
    [
        (("--host", "0.0.0.0"), {}, True),
        (("--host", "::"), {}, True),
        (("--host", "0.0.0.0"), {"PENSTOCK_API_KEY": "k3y"}, False),
        ((), {}, False),
    ],
)
def test_listening_on_all_addresses_without_a_key_is_warned_of(
    spawn: Any, echo: Path, options: Any, variables: Any, warned: bool
) -> None:
    server = spawn("serve", echo, "--port", 0, *options, **variables)
    server.wait_for("listening on")
    server.process.terminate()
    assert server.end() == 0
    log = "".join(server.lines)
    assert ("WARNING penstock.serve listening on all addresses without an API key" in log) is warned
