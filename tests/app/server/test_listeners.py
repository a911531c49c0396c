"""Where a server listens: ports, both families, Unix sockets, TLS; and why it can't."""

from __future__ import annotations

import errno
import shutil
import socket
import ssl
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from pydantic import SecretStr, ValidationError

from penstock.app.factory import create_app
from penstock.app.http.tls import TlsError, tls_context
from penstock.app.server.listeners import ListenError, listen, listen_often
from penstock.app.settings import Settings, unknown_variables

from .conftest import nginx


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def closed(listeners: list[socket.socket]) -> list[Any]:
    names = [listener.getsockname() for listener in listeners]
    for listener in listeners:
        listener.close()
    return names


def test_a_double_colon_is_all_addresses_of_both_families_on_one_port() -> None:
    names = closed(listen(Settings(host="::", port=0)))
    assert "0.0.0.0" in [name[0] for name in names]
    assert len({name[1] for name in names}) == 1
    assert len(names) == (2 if has_ipv6() else 1)


def test_listening_often_shares_one_port() -> None:
    lists = listen_often(Settings(host="localhost", port=0), 3)
    names = [closed(listeners) for listeners in lists]
    assert len(lists) == 3 and names[0] == names[1] == names[2]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("shared", [False, True])
def test_a_taken_port_says_what_to_do(count: int, shared: bool) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=shared) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=rf"^port {port} of 127.0.0.1 is taken .*--port"):
            listen_often(Settings(port=port), count)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("no host", "'no host' is no address of this machine and no name that it knows"),
        ("192.0.2.1", "192.0.2.1 is not an address of this machine"),
        ("a" * 64, "is no address of this machine and no name that it knows"),
    ],
)
def test_an_unknown_host_says_what_to_do(host: str, expected: str) -> None:
    with pytest.raises(ListenError, match=expected) as raised:
        listen(Settings(host=host, port=0))
    assert "127.0.0.1" in str(raised.value) and "\n" not in str(raised.value)


def test_a_port_of_root_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(ListenError, match=r"port 80 needs the rights of root: .*--port"):
        listen(Settings(port=80))


def test_a_unix_socket_is_for_other_users_and_replaces_one_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "server"
    for _ in range(2):  # the file of the first is still there
        (listener,) = listen(Settings(uds=path))
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        with pytest.raises(ListenError, match="another server listens there"):
            listen(Settings(uds=path))
        listener.close()
    (tmp_path / "file").touch()
    with pytest.raises(ListenError, match="a file is there"):
        listen(Settings(uds=tmp_path / "file"))
    with pytest.raises(ListenError, match=r"can't listen at .*missing"):
        listen(Settings(uds=tmp_path / "missing" / "server"))


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tls")
    certificate = authority.issue_cert("127.0.0.1", "::1")
    certificate.private_key_pem.write_to_path(directory / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    authority.cert_pem.write_to_path(directory / "ca.pem")
    authority.issue_cert("other.example").private_key_pem.write_to_path(directory / "other.pem")
    (directory / "text.pem").write_text("no certificate")
    return directory


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"ssl_certfile": "missing.pem"}, "ssl_certfile: .*missing.pem can't be read: No such"),
        ({"ssl_keyfile": "missing.pem"}, "ssl_keyfile: .*missing.pem can't be read: No such"),
        ({"ssl_keyfile": "other.pem"}, "other.pem is not the key of the certificate in .*cert.pem"),
        ({"ssl_certfile": "text.pem"}, "are not a certificate and its key in PEM format"),
        ({"ssl_ca_certs": "text.pem"}, "ssl_ca_certs: .*text.pem has no certificate"),
        ({"ssl_ciphers": "none such"}, "ssl_ciphers: OpenSSL knows none of 'none such'"),
    ],
)
def test_tls_files_that_cant_be_used(files: Path, settings: dict[str, str], expected: str) -> None:
    named = {"ssl_certfile": "cert.pem", "ssl_keyfile": "key.pem"} | settings
    given: dict[str, Any] = {
        name: value if name == "ssl_ciphers" else files / value for name, value in named.items()
    }
    with pytest.raises(TlsError, match=expected):
        tls_context(Settings(**given), "h2")


def test_a_key_with_a_password(files: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key((files / "key.pem").read_bytes(), None)
    path = tmp_path / "locked.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"open"),
        )
    )
    given: dict[str, Any] = {"ssl_certfile": files / "cert.pem", "ssl_keyfile": path}
    assert tls_context(Settings(**given, ssl_keyfile_password=SecretStr("open")), "h2") is not None
    with pytest.raises(TlsError, match=r"locked.pem needs a password: set ssl_keyfile_password"):
        tls_context(Settings(**given), "h2")
    with pytest.raises(TlsError, match="ssl_keyfile_password: it does not open"):
        tls_context(Settings(**given, ssl_keyfile_password=SecretStr("wrong")), "h2")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"ssl_keyfile": "key.pem"}, "ssl_keyfile needs ssl_certfile"),
        ({"ssl_ca_certs": "ca.pem"}, "ssl_ca_certs needs ssl_certfile"),
        (
            {"ssl_certfile": "cert.pem", "ssl_cert_reqs": "required"},
            "ssl_cert_reqs = required needs ssl_ca_certs",
        ),
        ({"root_path": "models"}, "'models' is not a path: expected one like /models"),
        ({"url_ports": "80,http"}, "'http' is not a port: expected 1 to 65535"),
    ],
)
def test_settings_that_dont_fit(settings: Any, expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        Settings(**settings)


def test_https_with_certificates_of_clients(
    spawn: Any, digits: Path, digit: bytes, authority: trustme.CA, files: Path
) -> None:
    server = spawn(
        "serve",
        digits,
        *("--port", 0, "--host", "::", "--max-body", 300000, "--timeout-keep-alive", 60),
        *("--ssl-certfile", files / "cert.pem", "--ssl-keyfile", files / "key.pem"),
        *("--ssl-ca-certs", files / "ca.pem"),
        PENSTOCK_PROT="1",
    )
    server.wait_for("PENSTOCK_PROT is no setting .*did you mean PENSTOCK_PORT\\?")
    port = server.wait_for(r"listening on https://\S+:(\d+),")[1]
    server.wait_for("ready after")
    trusting = ssl.create_default_context(cafile=str(files / "ca.pem"))
    with httpx.Client(verify=trusting, timeout=30) as client, pytest.raises(httpx.TransportError):
        client.get(f"https://127.0.0.1:{port}/health/ready")
    authority.issue_cert("client.example").configure_cert(trusting)
    hosts = ["127.0.0.1", "[::1]"] if has_ipv6() else ["127.0.0.1"]
    with httpx.Client(verify=trusting, timeout=30) as client:
        for url in [f"https://{host}:{port}" for host in hosts]:
            assert client.post(f"{url}/predict/digits", content=digit).json()["class"] == 3
            assert client.post(f"{url}/predict/digits", content=bytes(400000)).status_code == 413
            assert client.get(f"{url}/pipelines").status_code == 200
    server.process.terminate()
    assert server.end() == 0


@pytest.mark.parametrize("prefix", ["", "/models"])
def test_a_root_path_may_be_in_the_request_or_cut_off(
    running: Any, digits: Path, digit: bytes, prefix: str
) -> None:
    with running(create_app(digits), http="penstock", root_path="/models") as client:
        assert client.post(f"{prefix}/predict/digits", content=digit).json()["class"] == 3
        many = client.post(f"{prefix}/predict/digits/batch", files=[("images", digit)])
        assert many.json()["results"][0]["class"] == 3
        assert client.get(f"{prefix}/v2/models/digits").json()["name"] == "digits"
        assert client.get(f"{prefix}/openapi.json").json()["servers"] == [{"url": "/models"}]
        for page in ("/", "/docs"):  # their links are relative
            assert client.get(f"{prefix}{page}").status_code == 200
        assert client.get("/models").headers["location"] == "./models/"


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_the_pages_work_behind_a_proxy_that_cuts_the_path_or_leaves_it(
    running: Any, digits: Path, tmp_path: Path
) -> None:
    command = shutil.which("nginx")
    assert command is not None
    with (
        running(create_app(digits), http="penstock", root_path="/models") as server,
        nginx(command, server.base_url.port, tmp_path) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", follow_redirects=True) as client,
    ):
        for prefix in ("/cut", "/models"):
            page = client.get(f"{prefix}/")
            assert "page/main.js" in page.text and page.url.path == f"{prefix}/"
            for path in ("page/main.js", "docs", "docs/assets/docs.js", "openapi.json"):
                assert client.get(f"{prefix}/{path}").status_code == 200
            script = client.get(f"{prefix}/page/main.js")
            assert script.headers["content-encoding"] == "gzip"
            known = {"If-None-Match": script.headers["etag"]}
            assert client.get(f"{prefix}/page/main.js", headers=known).status_code == 304
        # nginx itself leads from /cut to /cut/. /models is ours.
        assert client.get("/models").url == f"http://127.0.0.1:{port}/models/"


def test_variables_that_are_no_settings_are_told_with_the_nearest_name() -> None:
    told = unknown_variables(
        ["PATH", "PENSTOCK_HOST", "penstock_prot", "PENSTOCK_QQQ", "PENSTOCK_MODEL_KEY"]
    )
    assert told == [
        "the environment variable PENSTOCK_QQQ is no setting of Penstock and has no effect",
        "the environment variable penstock_prot is no setting of Penstock and has no effect, "
        "did you mean PENSTOCK_PORT?",
    ]
    # what Kubernetes sets for a service called penstock
    assert not unknown_variables(
        ["PENSTOCK_SERVICE_HOST", "PENSTOCK_SERVICE_PORT_HTTP", "PENSTOCK_PORT_80_TCP_ADDR"]
    )
