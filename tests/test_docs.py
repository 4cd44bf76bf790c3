"""What the documentation says is there: links, verbs, options, names, examples."""

from __future__ import annotations

import importlib
import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import click
import pytest

from l4s_geo.cli import VERBS, main

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "examples").glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
API = ROOT / "docs" / "api.md"

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")

#: Options of other programs that the pages name, and whole commands of those that have many.
FOREIGN = {"--nproc-per-node", "--standalone", "--noversioncheck"}
SCRIPT = re.compile(r"python3? examples/[^\n`]*")


def content(page: Path) -> str:
    """Of a page, or the words between the code of a notebook."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".md":
        return text
    return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")


def prose(page: Path) -> str:
    return FENCE.sub("", content(page))


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@cache
def anchors(page: Path) -> frozenset[str]:
    """Of the headings of a page, as web pages of repositories make them."""
    found = Counter[str]()
    slugs = []
    for heading in HEADING.findall(prose(page)):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        slugs.append(f"{slug}-{found[slug]}" if found[slug] else slug)
        found[slug] += 1
    return frozenset(slugs)


@cache
def options_of(verb: str) -> frozenset[str]:
    """All option names of a verb and of the verbs below it."""
    command = main.get_command(click.Context(main), verb)
    assert command is not None
    below = [command, *(command.commands.values() if isinstance(command, click.Group) else ())]
    params = [p for c in below for p in c.params if isinstance(p, click.Option)]
    return frozenset(o for p in params for o in (*p.opts, *p.secondary_opts)) | {"--help"}


def commands(page: Path) -> list[list[str]]:
    """Words of every `l4s-map` command on a page, in blocks and in lines, up to what ends it."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for _, _, body in FENCE.findall(text) for line in body.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    starts = [re.split(r"(?:^|[\s/\\])l4s-map(?=\s)", line, maxsplit=1) for line in lines]
    found = [re.split(r"[#&|;>]", words[1])[0].split() for words in starts if len(words) == 2]
    return [words for words in found if words]


@pytest.mark.parametrize("page", PAGES + NOTEBOOKS, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in anchors(there)):
            wrong.append(target)
    assert not wrong


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / t.partition("#")[0]).resolve() for t in LINK.findall(prose(index))}
    assert {p for p in PAGES if p.parent == index.parent} - {index} <= linked


def test_every_verb_is_documented() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [v for v in VERBS if not re.search(rf"\bl4s-map {v}\b", text)] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_options_exist(page: Path) -> None:
    known = FOREIGN.union(*map(options_of, VERBS))
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    assert {*OPTION.findall(SCRIPT.sub("", text))} - known == set()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_use_options_of_their_verb(page: Path) -> None:
    wrong = []
    for words in commands(page):
        verb = words[0] if words[0] in VERBS else "map"
        wrong += [f"{verb} {o}" for w in words if (o := w.split("=")[0]).startswith("--") and o not in options_of(verb)]
    assert wrong == []


@pytest.mark.parametrize("verb", ["map", "search", "check", "polygonize", "evaluate", "batch", "adapt"])
def test_options_of_the_verbs_for_mapping_are_documented(verb: str) -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    command = main.get_command(click.Context(main), verb)
    assert command is not None
    every = [[o for o in (*p.opts, *p.secondary_opts) if o.startswith("--")] for p in command.params]
    unsaid = [names for names in every if names and not any(re.search(rf"{o}(?![\w-])", text) for o in names)]
    # Explained by its name; the others beside it go by their short names
    assert [names for names in unsaid if names[0] not in ("--seed", "--quiet", "--verbose", "--threads")] == []


def test_figures_on_the_front_page_are_those_of_the_full_table() -> None:
    rows = [line for line in content(ROOT / "README.md").splitlines() if re.search(r"\| A2 \|", line)]
    assert len(rows) > 8
    assert {*rows} <= {*content(ROOT / "docs" / "accuracy.md").splitlines()}


def test_names_of_the_api_can_be_imported_and_explain_themselves() -> None:
    names = re.findall(r"^\| `(l4s_geo[\w.]*)\.(\w+)` \|", API.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(names) > 30
    for module, attribute in names:
        assert getattr(importlib.import_module(module), attribute).__doc__


def test_examples_of_the_api_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = [body for _, language, body in FENCE.findall(API.read_text(encoding="utf-8")) if language == "python"]
    assert len(blocks) >= 8
    space: dict[str, object] = {"__name__": "__main__"}
    for number, body in enumerate(blocks, 1):
        exec(compile(body, f"{API.name}, example {number}", "exec"), space)
    assert (tmp_path / "api-example" / "surer.gpkg").exists()
