"""KServe's own client against a real server, in its own environment (use_kserve.py)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.app.v2.conftest import Served

SCRIPT = Path(__file__).parent / "clients" / "use_kserve.py"
USES = re.findall(r"^async def (use_\w+)", SCRIPT.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def outcomes(served: Served, client_run: Any, digits: Path) -> Any:
    done = client_run("kserve", SCRIPT, served.address, digits.parent / "digit.png")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("use", USES)
def test_kserve_client(outcomes: Any, use: Any) -> None:
    assert outcomes[use] is None, outcomes[use]
