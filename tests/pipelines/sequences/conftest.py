"""Makes the driver importable: its test is a short form of `scripts/soak sequences`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[3] / "scripts" / "soaking"))
