"""README and docs/ keep their word: what they show is run here, what they link to exists.

A page is a session. It gets an empty folder, and from its top to its end

    ```yaml, ```python and ```toml blocks whose first line is `# some/path` are written there,
    ```console blocks are run: each `$ ` line in bash, each other line must appear in what it printed.

Hashes of code, times, paths and measured numbers are compared loosely, how far a running run is does not count, and
`...` stands for anything. Run ids and the hashes of data count, and so do numbers in `key=value`: they are the same on
every machine.

A comment above a block says what is not plain:

    <!-- run: exit=1 -->            the block's last command ends with this status; otherwise every one ends with 0
    <!-- run: in=own-project -->    the block's commands are run, and the page goes on, in this folder below the page's
    <!-- not run: reason -->        for what cannot be run here, such as a server in the foreground
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
HOME = "/home/you"
"""Stands on the pages for the folder that a page's session is in."""

_FENCE = re.compile(r"^```(\w*)\s*$")
_DIRECTIVE = re.compile(r"^<!-- (run|not run): (.+?) -->$")
_PATH = re.compile(r"^# ([\w./-]+\.(?:yaml|py|toml))$")
_LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
_LOOSE = (
    (re.compile(r"\b\d{4}-\d\d-\d\d \d\d:\d\d\b"), "DATE"),
    (re.compile(r"\b\d+:\d\d(:\d\d)?\b"), "TIME"),
    (re.compile(r"(?<=  running  TIME)  .*"), ""),
    (re.compile(r"\b(?:plain-)?[0-9a-f]{40}\b|(?<=\b(?:code|tree) )[0-9a-f]{8,12}\b|(?<=\bnow )[0-9a-f]{8}\b"), "CODE"),
    (re.compile(r"\bby [\w.-]+"), "by USER"),
    (re.compile(r"(?<![=\w.])\d+\.\d+(e-?\d+)?\b"), "NUMBER"),
    (re.compile(r"\s+"), " "),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One fenced block: its language, its lines, where it begins, and the directive above it."""

    language: str
    lines: tuple[str, ...]
    number: int
    directive: tuple[str, str] | None

    @property
    def path(self) -> str | None:
        match = _PATH.fullmatch(self.lines[0]) if self.lines else None
        return match[1] if match and self.language in {"yaml", "python", "toml"} else None

    @property
    def options(self) -> Mapping[str, str]:
        kind, text = self.directive or ("", "")
        return dict(word.split("=", 1) for word in text.split()) if kind == "run" else {}

    @property
    def skipped(self) -> bool:
        return self.directive is not None and self.directive[0] == "not run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One `$ ` line, and the output shown below it."""

    text: str
    shown: tuple[str, ...]


def blocks_of(page: Path) -> Iterator[Block]:
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), 1))
    directive = None
    for number, line in lines:
        if match := _DIRECTIVE.fullmatch(line):
            directive = (match[1], match[2])
        elif match := _FENCE.fullmatch(line):
            body = []
            for _, inner in lines:
                if inner == "```":
                    break
                body.append(inner)
            yield Block(language=match[1], lines=tuple(body), number=number, directive=directive)
            directive = None
        elif line.strip():
            assert directive is None, f"{page}:{number}: a directive stands right above its block"


def commands_of(block: Block) -> Iterator[Command]:
    text, shown = "", []
    for line in block.lines:
        if line.startswith("$ "):
            if text:
                yield Command(text=text, shown=tuple(shown))
            text, shown = line[2:], []
        elif line.strip():
            shown.append(line)
    if text:
        yield Command(text=text, shown=tuple(shown))


def loose(text: str) -> str:
    for pattern, word in _LOOSE:
        text = pattern.sub(word, text)
    return text.strip()


def missing(shown: tuple[str, ...], printed: str, home: Path) -> list[str]:
    """Return the shown lines that were not printed."""
    found = [loose(line.replace(str(home), HOME)) for line in printed.splitlines()]
    return [line for line in shown if not any(_matches(loose(line), candidate) for candidate in found)]


def _matches(shown: str, printed: str) -> bool:
    pattern = ".*".join(map(re.escape, (part.strip() for part in shown.split("..."))))
    return re.fullmatch(pattern, printed) is not None


ORCH = """#!/bin/sh
export PYTHONPATH="{root}"
case "$1" in launch|retry|run) exec "{python}" "{warm}" "$@";; esac
exec "{python}" -m orchestrator "$@"
"""


class Session:
    """A page's shell: where it stands, and what its commands see."""

    def __init__(self, home: Path, environ: Mapping[str, str]) -> None:
        self.home, self.at, self._environ = home, home, environ

    def write(self, block: Block) -> None:
        target = self.at / str(block.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("\n".join(block.lines[1:]) + "\n", encoding="utf-8")

    def run(self, command: str) -> tuple[int, str]:
        """Run a command in bash; a `cd` in it holds for what follows. Returns its status and all it printed."""
        place = self.home.with_name(f"{self.home.name}.pwd")
        script = f'{command}\nstatus=$?; pwd >"$PLACE"; exit $status'
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.at,
            env={**self._environ, "PLACE": str(place)},
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.at = Path(place.read_text(encoding="utf-8").strip())
        return done.returncode, done.stdout.decode(errors="replace")


@pytest.fixture
def session(tmp_path: Path, warm_parent: None) -> Session:
    """A shell in an empty folder, with `orch` as this checkout has it, and nobody's own settings."""
    programs = tmp_path / "bin"
    programs.mkdir()
    orch = programs / "orch"
    orch.write_text(ORCH.format(root=ROOT, python=sys.executable, warm=ROOT / "tests" / "support" / "warm_orch.py"))
    orch.chmod(0o755)
    home, scratch = tmp_path / "you", tmp_path / "scratch"
    home.mkdir()
    scratch.mkdir()
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    identity = {f"GIT_{who}_{what}": "you@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environ = {
        **os.environ,
        **identity,
        "PATH": path,
        "HOME": str(home),
        "TMPDIR": str(scratch),
        "NO_COLOR": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "OMP_NUM_THREADS": "1",
        "DVC_NO_ANALYTICS": "1",
    }
    return Session(home, environ)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_shown_does_what_is_shown(page: Path, session: Session) -> None:
    for block in blocks_of(page):
        where = f"{name(page)}:{block.number}"
        if block.skipped:
            continue
        if "in" in block.options:
            session.at = session.home / block.options["in"]
        if block.path:
            session.write(block)
        elif block.language == "console":
            _run_block(block, session, where)


def _run_block(block: Block, session: Session, where: str) -> None:
    commands = list(commands_of(block))
    assert commands, f"{where}: a console block without a command"
    for command in commands:
        status, printed = session.run(command.text)
        expected = int(block.options.get("exit", "0")) if command is commands[-1] else 0
        assert status == expected, f"{where}: {command.text!r} ended with {status}:\n{printed}"
        absent = missing(command.shown, printed, session.home)
        assert not absent, f"{where}: {command.text!r} did not print {absent}, but:\n{printed}"


def test_what_is_not_run_says_why_and_is_not_the_rule() -> None:
    consoles = [block for page in PAGES for block in blocks_of(page) if block.language == "console"]
    skipped = [block for block in consoles if block.skipped]
    assert all(len(block.directive[1]) > 10 for block in skipped if block.directive)
    assert len(skipped) * 3 < len(consoles)


def test_the_experiment_on_the_front_page_is_the_one_in_conf() -> None:
    [shown] = [block for block in blocks_of(ROOT / "README.md") if block.language == "yaml"]
    assert yaml.safe_load("\n".join(shown.lines)) == yaml.safe_load((ROOT / str(shown.path)).read_text())


# --- links and completeness -------------------------------------------------------------------------------


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def _links(page: Path) -> list[str]:
    return [link for link in _LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in _links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name(page)} links to {link}"
        assert not anchor or anchor in _anchors(target), f"{name(page)} links to {link}"


def test_every_page_is_reached_from_the_front_page() -> None:
    found, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in found and page.suffix == ".md" and page.exists():
            found.add(page)
            waiting += [(page.parent / link.partition("#")[0]).resolve() for link in _links(page)]
    assert set(PAGES) <= found


def test_the_reference_names_every_built_in_key() -> None:
    text = (ROOT / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")
    groups = ("cluster", "resources", "sweep", "tracking", "trainer")
    found = [
        ROOT / "conf" / "config.yaml",
        *(file for group in groups for file in (ROOT / "conf" / group).glob("*.yaml")),
    ]
    assert len(found) >= 12
    for file in found:
        for key in set(yaml.safe_load(file.read_text())) - {"defaults"}:
            assert f"`{key}`" in text, f"{key} of {file.relative_to(ROOT)}"


def test_the_page_of_processes_names_every_program() -> None:
    text = (ROOT / "docs" / "explanation" / "processes.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(orchestrator[\w.]*|[\w/]+\.py)`", text))
    programs = {file: _module_name(file) for file in _sources() if _is_program(file)}
    assert len(programs) >= 20
    assert [file for file, module in programs.items() if not {file, module} & named] == []
    assert named <= {*programs, *programs.values()}


def _sources() -> list[str]:
    return [
        file.relative_to(ROOT).as_posix() for top in ("orchestrator", "slurm") for file in ROOT.glob(f"{top}/**/*.py")
    ]


def _is_program(file: str) -> bool:
    return file.endswith("/__main__.py") or "\nif __name__ == " in (ROOT / file).read_text(encoding="utf-8")


def _module_name(file: str) -> str:
    """Return what `python -m` calls a module by."""
    name = file.removesuffix(".py").removesuffix("/__main__").replace("/", ".")
    return name if name.startswith("orchestrator") else f"orchestrator.{name}"


def test_the_reference_names_every_verb_and_option(session: Session) -> None:
    text = (ROOT / "docs" / "reference" / "command-line.md").read_text(encoding="utf-8")
    _, printed = session.run("orch --help")
    verbs = re.findall(r"^    ([a-z]+)\b", printed, flags=re.MULTILINE)
    assert len(verbs) >= 12
    for verb in verbs:
        assert f"### orch {verb}" in text
        _, options = session.run(f"orch {verb} --help")
        for option in set(re.findall(r"--[a-z-]+", options)) - {"--help"}:
            assert f"`{option}" in text, f"{option} of orch {verb}"
