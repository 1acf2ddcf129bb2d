"""The pages: their links lead somewhere, and the commands that they show exist."""

import re
import tomllib
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest
import typer
from test_imports import LINES

from hf_tokaccel.cli import app

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


@cache
def prose(page):
    """A page without its code."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", lambda match: match[0] if "](" not in match[0] else "", text)


@cache
def anchors(page):
    """Names that GitHub gives the headings of a page."""
    seen, names = {}, set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", prose(page), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = seen[name] = seen.get(name, -1) + 1
        names.add(f"{name}-{number}" if number else name)
    return names


def problems(page):
    """Links of a page that lead nowhere in this repository."""
    found = []
    for link in _LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        inside = target.is_relative_to(ROOT)
        if not inside or not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page):
    assert problems(page) == []


def test_wrong_links_are_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "other.md").write_text("# A heading, `with` code\n\n# Twice\n\n# Twice\n")
    right = "[a](other.md#a-heading-with-code) [b](other.md#twice-1) [c](#here) [d](https://example.org/x.md)"
    wrong = ["missing.md", "other.md#twice-2", "#nowhere", "../outside.md"]
    page = tmp_path / "page.md"
    links = " ".join(f"[x]({link})" for link in wrong)
    page.write_text(f"# Here\n\n{right} {links}\n\n```\n[code](nothing.md)\n```\n")
    assert problems(page) == wrong


def test_every_page_is_listed():
    index = ROOT / "docs" / "README.md"
    listed = {link.partition("#")[0] for link in _LINK.findall(prose(index))}
    missing = {page.name for page in PAGES if page.parent == index.parent} - listed - {index.name}
    assert not missing


def test_the_map_names_every_room_and_no_other():
    text = (ROOT / "docs" / "where_things_are.md").read_text(encoding="utf-8")
    rooms = [
        line.split("  ")[1] for line in re.search(r"^hf_tokaccel/\n(.*?)^tests/", text, re.S | re.M)[1].splitlines()
    ]
    named = [room for line in rooms for room in line.split()]
    assert len(named) == len(set(named))
    assert set(named) == set(LINES)
    assert [LINES[room] for room in named] == sorted(LINES[room] for room in named), "the order is that of imports"


def shown_options():
    """(page, command, option) of every hf_tokaccel command that a page shows, in a block of its own."""
    for page in PAGES:
        for block in re.findall(r"^```\w*\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                if match := re.match(r"(?:hf_tokaccel|tokaccel) (\w+)(.*)", line):
                    # What follows a # is a remark.
                    yield page.name, match[1], re.findall(r"(?<=\s)--[a-z][a-z-]*", match[2].partition(" #")[0])


def test_shown_commands_and_options_exist():
    commands = typer.main.get_command(app).commands
    shown = list(shown_options())
    assert {"accelerate", "evaluate", "bench", "tune", "show", "push"} <= {command for _, command, _ in shown}
    for page, command, options in shown:
        assert command in commands, f"{page} shows hf_tokaccel {command}"
        # Of a group any command: a page may name a model, which finds its own.
        found = getattr(commands[command], "commands", {"": commands[command]}).values()
        parameters = [parameter for one in found for parameter in one.params]
        known = {name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)}
        assert set(options) <= known | {"--help"}, f"{page}: hf_tokaccel {command}"


def test_every_command_has_examples():
    found = typer.main.get_command(app).commands
    commands = {name: command for name, command in found.items() if not hasattr(command, "commands")}  # no groups
    assert len(commands) > 5
    assert not [name for name, command in commands.items() if f"hf_tokaccel {name}" not in (command.help or "")]


def test_upgrading_names_the_ranges_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs" / "upgrading.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\w+) \| `([^`]+)` \|", page, re.MULTILINE))
    allowed = dict(re.match(r"([\w-]+)(.*)", line).groups() for line in project["dependencies"])
    expected = {name: allowed[name] for name in ("torch", "torchvision", "transformers")}
    assert rows == {"Python": project["requires-python"], **expected}
