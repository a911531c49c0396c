"""KServe's gRPC client against a real server, in its own environment (use_kserve.py)."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

CLIENTS = Path(__file__).parents[3] / ".venv-clients" / "bin" / "python"
"""The Python of clients that can't share our environment. scripts/test makes it."""

SCRIPT = Path(__file__).parent / "clients" / "use_kserve.py"


def test_kserve_client(served: Any) -> None:
    if not CLIENTS.exists():
        pytest.fail(f"{CLIENTS} is missing: scripts/test makes it (with Python 3.11 to 3.13)")
    done = subprocess.run(
        [CLIENTS, SCRIPT, served.address], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout.splitlines()[-1])
    failed = {name: error for name, error in outcomes.items() if error is not None}
    assert outcomes and not failed, "\n".join(failed.values())
