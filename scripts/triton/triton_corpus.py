"""Read the `config.pbtxt` files of public repositories, and write which fields they set.

Their texts stay where they are: `corpus.json` has the fields' names, and the values of those whose
treatment depends on them.
"""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from google.protobuf import text_format

from penstock.backends.errors import ConfigError
from penstock.pipelines.triton.fields.classify import Classified, backend_of, classify, is_map
from penstock.pipelines.triton.fields.table import FIELDS
from penstock.pipelines.triton.messages import new_config
from penstock.pipelines.triton.reading import parse_config

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "tests/pipelines/triton/fields/corpus.json"

REPOSITORIES = {
    "triton-inference-server/server": "e1db8a603d863b1317ee859bdeea2be19959462e",
    "triton-inference-server/tutorials": "e84895253165a887db5e25cd69d24def7a90b1ee",
    "triton-inference-server/python_backend": "f9088ff60944cc5a2e97ff16baba55f1666852bc",
    "triton-inference-server/dali_backend": "01783f8f28b2a29cb64b06201d9d7cc20db27f5d",
    "NVIDIA/DeepLearningExamples": "729963dd47e7c8bd462ad10bfac7a7b0b604e6dd",
    "nv-morpheus/Morpheus": "f5c6b1e517d0a4f9f074c977ecc0be69e0cb89cc",
    "wenet-e2e/wenet": "015469960db73eb19c49a48c020d5ac9db69bae5",
    "k2-fsa/sherpa": "6e00e3b0fc4aba9bc7c49366720e7c1f2e485f65",
    "levipereira/triton-server-yolo": "3397f4c3a2b66c1acd536e9461a042e938f48856",
    "rushai-dev/licence-plate-triton-server-ensemble": "bb0cef82d180a0da42e173b13f8b36bb5a088c7e",
}
"""Repositories on GitHub, and the commit of each that is read."""

_NAME = re.compile(r"\.pbtxt(\.template|\.in)?$")
_OTHER_MESSAGES = re.compile(r"label_map|/partial\.pbtxt$")
"""Files of other messages, and pieces of files."""


def write_corpus(mirrors: Path | None) -> str:
    """Read all files, from git directories `OWNER+NAME` in `mirrors` or from GitHub, and write
    `corpus.json`: the files of each repository, each with the number of its facts.
    """
    files: dict[str, dict[str, int]] = {}
    facts: dict[str, int] = {}
    for repository, commit in REPOSITORIES.items():
        folder = None if mirrors is None else mirrors / repository.replace("/", "+")
        texts = _fetched(repository, commit) if folder is None else _local(folder, commit)
        files[f"{repository}@{commit}"] = {
            path: facts.setdefault(json.dumps(_facts(text, path)), len(facts))
            for path, text in sorted(texts)
        }
    lines = ",\n".join(facts)
    CORPUS.write_text(f'{{"files": {json.dumps(files, indent=1)},\n"facts": [\n{lines}\n]}}\n')
    return f"{sum(map(len, files.values()))} files, {len(facts)} different ones"


def _fetched(repository: str, commit: str) -> Iterator[tuple[str, str]]:
    address = f"https://codeload.github.com/{repository}/tar.gz/{commit}"
    with (
        tempfile.TemporaryFile() as archive,
        urllib.request.urlopen(address, timeout=300) as response,
    ):
        while piece := response.read(1 << 20):
            archive.write(piece)
        archive.seek(0)
        with tarfile.open(fileobj=archive, mode="r:gz") as tar:
            for member in tar:
                path = member.name.partition("/")[2]
                if _is_config(path) and member.isfile():
                    yield path, cast("IO[bytes]", tar.extractfile(member)).read().decode()


def _local(folder: Path, commit: str) -> Iterator[tuple[str, str]]:
    directory = next(path for path in (folder / "repo", folder / ".git", folder) if path.is_dir())

    def git(*arguments: str) -> str:
        command = ["git", "--git-dir", str(directory), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    for line in git("ls-tree", "-r", commit).splitlines():
        mode, path = line.split(maxsplit=1)[0], line.split("\t")[1]
        if _is_config(path) and mode != "120000":  # no links
            yield path, git("show", f"{commit}:{path}")


def _is_config(path: str) -> bool:
    return _NAME.search(path) is not None and _OTHER_MESSAGES.search(path) is None


def _facts(text: str, file: str) -> dict[str, Any]:
    """Return which backend and fields a file has. A template gets values first."""
    template = False
    try:
        config = parse_config(text, file)
    except ConfigError:
        config, template = _filled(text), True
    return {"backend": backend_of(config), "template": template, "fields": _fields(config)}


def _fields(config: Any) -> list[str]:
    """Return the fields that are set, in the order of the message: `input.dims`, or with a value
    where the table looks at it, `instance_group.kind=KIND_CPU`. A parameter has its key.
    """
    fields = []
    for one in classify(config):
        field = one.path if one.path.startswith("parameters.") else one.field
        looked_at = any(line.values for line in FIELDS.get(one.field, ()))
        fields.append(f"{field}={one.value}" if looked_at else field)
    return list(dict.fromkeys(fields))


_PLACEHOLDERS = {
    r"TYPE_#\w+": "TYPE_FP32",
    r'"#\w+"': '"1"',
    r"(?<=[\[ ])#\w+(?=\s*[,\]])": "1",
    r"\$\{\w+\}": "1",
}
_WORD = re.compile(r"Couldn't parse integer: (\w+)")


def _filled(text: str) -> Any:
    """Parse a template with values for its placeholders."""
    for placeholder, value in _PLACEHOLDERS.items():
        text = re.sub(placeholder, value, text)
    while True:
        try:
            return text_format.Parse(text, new_config())
        except text_format.ParseError as error:
            word = _WORD.search(str(error))
            if word is None:
                raise
            text = re.sub(rf"\b{word[1]}\b", "1", text)


def files_of_corpus() -> dict[str, dict[str, Any]]:
    """Return the facts of each file, by `OWNER/NAME:PATH`."""
    corpus = json.loads(CORPUS.read_bytes())
    return {
        f"{repository.partition('@')[0]}:{path}": corpus["facts"][number]
        for repository, paths in corpus["files"].items()
        for path, number in paths.items()
    }


def text_of(field: str, message: Any) -> str:
    """Write a `config.pbtxt` that sets one field of a message, as `corpus.json` names it."""
    path, _, value = field.partition("=")
    name, _, rest = path.partition(".")
    descriptor = message.fields_by_name[name]
    if is_map(descriptor):
        kind = descriptor.message_type.fields_by_name["value"]
        key, _, rest = (rest, "", "") if name == "parameters" else rest.partition(".")
        if kind.message_type is None:
            inner = f'value: "{value or "x"}"'
        elif name == "parameters":
            inner = f'value {{ string_value: "{value}" }}'
        else:
            inner = f"value {{ {text_of(rest, kind.message_type) if rest else ''} }}"
        number = descriptor.message_type.fields_by_name["key"].type != descriptor.TYPE_STRING
        return f"{name} {{ key: {1 if number else json.dumps(key)} {inner} }}"
    if descriptor.message_type is not None:
        inner = text_of(field.partition(".")[2], descriptor.message_type) if rest else ""
        return f"{name} {{ {inner} }}"
    if descriptor.enum_type is not None:
        return f"{name}: {value or descriptor.enum_type.values[-1].name}"
    if descriptor.type == descriptor.TYPE_STRING:
        return f"{name}: {json.dumps(value or 'x')}"
    return f"{name}: {value or 1}"


def classes_of(facts: Mapping[str, Any]) -> dict[str, Classified]:
    """Parse and classify each field that a file sets, one at a time."""
    found = {}
    for field in facts["fields"]:
        config = parse_config(text_of(field, new_config().DESCRIPTOR))
        (one,) = classify(config, facts["backend"])
        found[field] = one
    return found
