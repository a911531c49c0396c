"""Makes the simulation importable: the tests are a short form of `scripts/overload_sim`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[3] / "scripts" / "simulation"))
