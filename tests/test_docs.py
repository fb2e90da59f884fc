"""The documentation: its code runs, its site builds without a warning, and its reference has every public name.

In a page, the Python blocks share one scope, from top to bottom. Comments that no reader sees steer the test:
`<!-- run` begins code that prepares or checks, `<!-- not run: reason -->` before a block leaves it out, and
`<!-- needs: package -->` skips the rest of the page where the package is not installed.
"""

import functools
import importlib
import inspect
import pkgutil
import re
import shlex
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

import npn
from npn import errors, integrations

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TESTED_ELSEWHERE = {  # methods/test_page.py, test_growth_init.py, test_prune.py, test_unstructured.py check them, too
    ROOT / "docs" / name for name in ("methods.md", "growing.md", "pruning.md", "weights.md")
}
PART = re.compile(
    r"<!-- needs: (?P<needs>\S+) -->"
    r"|<!-- run\n(?P<hidden>.*?)-->"
    r"|(?P<off><!-- not run: [^\n]+ -->\n)?^```python\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


def parts(page: Path) -> list[re.Match[str]]:
    return list(PART.finditer(page.read_text(encoding="utf-8")))


WITH_CODE = [page for page in PAGES if page not in TESTED_ELSEWHERE and any(part["code"] for part in parts(page))]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
@pytest.mark.filterwarnings("ignore")
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    scope: dict[str, Any] = {"__name__": "page"}
    text = page.read_text(encoding="utf-8")
    for part in parts(page):
        if part["needs"]:
            pytest.importorskip(part["needs"])
        elif not part["off"]:
            group = "hidden" if part["hidden"] else "code"
            lines = "\n" * text.count("\n", 0, part.start(group))  # so that an error names the line of the page
            exec(compile(lines + part[group], str(page), "exec"), scope)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_code_of_a_page_is_overlooked(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r"```\s*(?:python|py)\b", text)) == sum(part["code"] is not None for part in parts(page))
    steering = re.findall(r"<!-- (?:needs|run|not run)", text)
    assert len(steering) == sum(bool(part["needs"] or part["hidden"] or part["off"]) for part in parts(page))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site, in strict mode: a warning, such as one of a broken link, is an error."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings_handlers.python")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        out = tmp_path_factory.mktemp("site")
        config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(out))
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
    return out


def public_names() -> set[str]:
    modules = [npn, npn.functional, npn.methods, npn.distributed]
    names = {f"{module.__name__}.{name}" for module in modules for name in module.__all__}
    own = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == "npn.errors"]
    names |= {f"npn.errors.{kind.__name__}" for kind in own}
    return names


def test_the_reference_has_every_public_name(site: Path) -> None:
    found = inventory(site)
    missing = sorted(name for name in public_names() if name not in found)
    assert not missing, f"add `::: NAME` to a page of docs/reference/ for each of {missing}"


def test_the_reference_has_every_integration(site: Path) -> None:
    found = inventory(site)
    for module in pkgutil.iter_modules(integrations.__path__):
        name = f"npn.integrations.{module.name}"
        assert name in found, f"add `::: {name}` to docs/reference/integrations.md"
        try:
            loaded = importlib.import_module(name)
        except errors.ConfigurationError:  # its extra is not installed
            continue
        public = [
            key for key, value in vars(loaded).items() if key[0] != "_" and getattr(value, "__module__", "") == name
        ]
        assert public and [key for key in public if f"{name}.{key}" not in found] == []


def inventory(site: Path) -> set[str]:
    """Names that the built reference has an anchor for."""
    content = (site / "objects.inv").read_bytes()
    lines = zlib.decompress(content[content.index(b"zlib.\n") + 6 :]).decode().splitlines()
    return {line.split(" ", 1)[0] for line in lines}


def test_the_site_needs_nothing_from_elsewhere(site: Path) -> None:
    """It opens from disk, without a network."""
    fetched = re.compile(r'<(?:script|link|img|iframe)\b[^>]*?(?:src|href)="?(https?:[^"\s>]+)')
    assert {url for page in site.rglob("*.html") for url in fetched.findall(page.read_text(encoding="utf-8"))} == set()


def test_every_page_of_docs_is_in_the_menu(site: Path) -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    missing = [str(page.relative_to(ROOT / "docs")) for page in PAGES]
    assert [name for name in missing if not re.search(rf": {re.escape(name)}$|- {re.escape(name)}$", menu, re.M)] == []


def command_lines() -> list[tuple[str, list[str]]]:
    """Every call of npn in the shell blocks of the documentation and the README, comments left out."""
    found = []
    for page in [*PAGES, ROOT / "README.md"]:
        for block in re.findall(r"^```sh\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            words = (shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines())
            found += [(page.name, line) for line in words if line and "npn" in line[:1]]
    return found


@pytest.mark.parametrize(("page", "words"), command_lines(), ids=lambda value: "" if isinstance(value, list) else value)
def test_the_commands_that_a_page_shows_exist(page: str, words: list[str]) -> None:
    command = commands()
    for word in words[1:]:
        inside = getattr(command, "commands", None)
        if inside is None:
            break
        assert word in inside, f"{page}: {shlex.join(words)}"
        command = inside[word]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert [word for word in words if word.startswith("--") and word not in known] == []


def test_the_page_of_the_command_line_names_every_command() -> None:
    text = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    for name, command in commands().commands.items():
        for inside in getattr(command, "commands", {name: command}):
            assert re.search(rf"^## npn {name}$", text, re.MULTILINE) and re.search(rf"\b{inside}\b", text), inside


def test_the_layout_names_every_part_of_the_package() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("```")[1]
    named = re.findall(r"^  (\w+)(?:\.py|/) +\S", text, re.MULTILINE)
    there = {path.stem for path in (ROOT / "src" / "npn").iterdir() if path.suffix in ("", ".py")}
    assert sorted(named) == sorted(there - {"__init__", "__main__", "__pycache__"})


@functools.cache
def commands() -> Any:
    typer = pytest.importorskip("typer")

    from npn.cli.main import app

    return typer.main.get_command(app)
