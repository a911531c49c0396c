"""The commands of scripts/triton_config."""

from __future__ import annotations

import argparse
from pathlib import Path

from triton_corpus import write_corpus
from triton_page import PAGE, page_of

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("page", help="write the tables of docs/reference/triton-config.md")
    corpus = commands.add_parser("corpus", help="write tests/pipelines/triton/fields/corpus.json")
    corpus.add_argument("--git", type=Path, help="folder of git directories OWNER+NAME")
    arguments = parser.parse_args()
    if arguments.command == "corpus":
        print(write_corpus(arguments.git))
    else:
        PAGE.write_text(page_of(PAGE.read_text()))
