"""gRPC behind nginx, configured as docs/how-to/grpc.md shows."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc

from ..server.conftest import nginx
from .test_stream import Stream

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "grpc.md"
AROUND = """
user root;
daemon off;
pid {directory}/pid;
error_log {directory}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/1;
    proxy_temp_path {directory}/2;
    fastcgi_temp_path {directory}/3;
    uwsgi_temp_path {directory}/4;
    scgi_temp_path {directory}/5;
"""


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_behind_nginx(served: Any, tmp_path: Path) -> None:
    command = shutil.which("nginx")
    assert command is not None
    shown = re.search(r"```nginx\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert shown is not None
    site = shown[1].replace("{", "{{").replace("}", "}}").replace("443 ssl", "127.0.0.1:{port}")
    site = site.replace("127.0.0.1:8001", "127.0.0.1:{server}")
    port_of_server = int(served.address.rpartition(":")[2])
    with nginx(command, port_of_server, tmp_path, AROUND + site + "}}\n") as port:
        client: Any = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{port}")
        assert client.get_model_metadata("simple").name == "simple"
        with pytest.raises(Exception, match="unknown model: 'nope' is not found"):
            client.get_model_metadata("nope")
        stream = Stream(client)
        stream.send("letters", "ab", enable_empty_final_response=True)
        parts = [stream.next().get_response() for _ in range(3)]
        assert [len(part.outputs) for part in parts] == [1, 1, 0]
        client.stop_stream()
        client.close()
