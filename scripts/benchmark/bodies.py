"""Texts and JSON as bodies, against an image of the same size: no-op pipelines, by wrk."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from figures import Figure, of_runs
from servers import penstock
from wrk import Side, compared, in_turns, ratios, require_wrk

PART = "bodies"
CONNECTIONS = 64

NOOP = """
def nothing(data):
    return None
"""
PIPELINE = """
[pipeline]
name = "{kind}"

[pipeline.inputs]
data = {{ kind = "{kind}" }}

[noop]
backend = "Python[noop_backend.py:nothing]"
max = 32
"""
WRK = """
wrk.method = "POST"
wrk.body = {body}
wrk.headers["Content-Type"] = "{media_type}"
"""
MEDIA_TYPES = {"image": "image/png", "text": "text/plain", "json": "application/json"}
LEAST = {("text", 1): 0.95, ("json", 1): 0.9}
"""Targets by kind and kB, as multiples of the rate of images."""


def measure(quick: bool) -> list[Figure]:
    require_wrk()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pipelines = folder / "pipelines"
        pipelines.mkdir()
        (pipelines / "noop_backend.py").write_text(NOOP)
        for kind in MEDIA_TYPES:
            (pipelines / f"{kind}.toml").write_text(PIPELINE.format(kind=kind))
        with penstock(pipelines) as server:
            for size in (1, 10):
                body = json.dumps({"lines": ["a line of some words"] * (size * 1000 // 24)})
                sides = []
                for kind, media_type in MEDIA_TYPES.items():
                    script = folder / f"{kind}_{size}.lua"
                    script.write_text(WRK.format(body=json.dumps(body), media_type=media_type))
                    sides.append(Side(kind, server, f"/predict/{kind}", script))
                runs = in_turns(sides, CONNECTIONS, quick=quick)
                figures += [
                    of_runs(
                        PART,
                        f"{kind}: rate ÷ that of images, {size} kB",
                        ratios(runs[kind], runs["image"]),
                        least=LEAST.get((kind, size)),
                        note=compared(runs[kind], runs["image"]),
                    )
                    for kind in ("text", "json")
                ]
    return figures
