"""Run the parts of the benchmark and print their figures. `scripts/bench` starts it."""

from __future__ import annotations

import argparse
import importlib
import json
import time
from pathlib import Path

from figures import (
    FIGURES,
    SECTIONS,
    WEB_PAGE,
    WEB_PAGE_FIGURES,
    Figure,
    machine,
    say,
    table,
    table_of_part,
    write_page,
)

PARTS = {
    "in_process": "in_process",
    "graphs": "graphs",
    "threads": "threads",
    "http": "http_noop",
    "bodies": "bodies",
    "protocol": "protocol",
    "grpc": "rpc",
    "trace": "tracing",
    "sequences": "sequences",
    "cache": "caching",
    "decode": "decoding",
    "resnet": "resnet",
    "openvino": "openvino_resnet",
    "memory": "memory",
    "instances": "instances",
    "overload": "overload",
    "process": "processes",
    "scale": "scale",
    "triton": "triton_models",
    "profile": "stages",
    "page": "page",
}
"""Part -> the module that measures it."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measure what docs/explanation/performance.md states."
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; default: all"
    )
    parser.add_argument("--quick", action="store_true", help="run for minutes only: noisy figures")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the JSON to FILE instead of printing it"
    )
    parser.add_argument(
        "--write", action="store_true", help="write the tables into docs/explanation/performance.md"
    )
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown part {sorted(unknown)[0]!r}: expected {', '.join(PARTS)}")
    environment = machine()
    figures: list[Figure] = []
    skipped: dict[str, str] = {}
    for part in arguments.parts or PARTS:
        started = time.perf_counter()
        say(f"== {part}")
        try:
            figures += importlib.import_module(PARTS[part]).measure(arguments.quick)
        except (RuntimeError, ImportError, OSError) as error:
            skipped[part] = f"{type(error).__name__}: {error}"
            say(f"   not measured: {skipped[part]}")
        say(f"   {time.perf_counter() - started:.0f} s")
    of_page = [figure for figure in figures if figure.part == WEB_PAGE]
    others = [figure for figure in figures if figure.part != WEB_PAGE]
    missing = "\n".join(
        f"Not measured: {part}: {reason.splitlines()[0]}" for part, reason in skipped.items()
    )
    sections = {
        section: table_of_part(figures, part, environment, arguments.quick)
        for part, (section, _) in SECTIONS.items()
    } | {
        WEB_PAGE_FIGURES: table(of_page, environment, arguments.quick),
        FIGURES: table(others, environment, arguments.quick),
    }
    if missing and sections[FIGURES]:
        sections[FIGURES] += f"\n\n{missing}"
        missing = ""
    print("\n\n".join(filter(None, [*sections.values(), missing])))
    result = json.dumps(
        {
            "machine": environment,
            "figures": [figure.to_dict() for figure in figures],
            "skipped": skipped,
        },
        indent=1,
    )
    if arguments.json:
        arguments.json.write_text(result + "\n")
    else:
        print(result)
    if arguments.write:
        write_page(sections)


if __name__ == "__main__":
    main()
