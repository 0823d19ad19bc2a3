"""The commands that the pages show are understood, and what they name exists."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from absl import flags

from jaxeff import main
from jaxeff.train.check import check

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PUNCTUATION = "|&;<"
#: Programs of others, and of a page itself, that nothing is known of here.
OTHERS = {".", "build/classify", "cmake", "gcloud", "pre-commit", "sensor"}


def name(path):
    return path.relative_to(ROOT).as_posix()


def commands(text):
    """The commands of shell blocks and of inline code, as words, each program first."""
    shown = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    rest = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    inline = re.findall(r"`((?:make|pip|python) [^`]+|--config=[^`]+)`", rest.replace("\n", " "))
    lines = "".join(shown).replace("\\\n", " ").splitlines()
    for line in [*lines, *inline]:
        words = []
        for word in [*_words(line), ";"]:
            if not set(word) <= set(PUNCTUATION):
                words.append(word)
                continue
            yield from _programs(words)
            # What follows a redirection is a file.
            words = ["#"] if word == "<" else []


def _words(line):
    lexer = shlex.shlex(line, posix=True, punctuation_chars=PUNCTUATION)
    lexer.whitespace_split = True
    return list(lexer)


def _programs(words):
    """Yields a command without the variables and the launcher before it, and one in its options."""
    while words and (re.match(r"[A-Z_]+=", words[0]) or words[0] == "srun"):
        words = words[1:]
    if words and words[0].startswith("--config="):
        words = ["python", "-m", "jaxeff.main", *words]
    if words and words[0] != "#":
        yield words
    for word in words:
        if word.startswith("--command="):
            yield shlex.split(word.removeprefix("--command="))


def check_run(arguments):
    """Parses a command line of the package, and checks its config without training."""
    if any(word.startswith("--config=my_") for word in arguments):
        return  # a file that the page shows; tests/test_extending.py runs it
    values = flags.FlagValues()
    main.define(values)
    # Numbers and addresses that a page leaves open.
    filled = [re.sub(r"=[NIK]$", "=1", word) for word in arguments]
    config, _, _ = main.parse(["main", *filled], values)
    if not any("HOST" in word or "coordinator=auto" in word for word in arguments):
        check(config)


def check_script(path, options):
    """Checks that a script is there and takes the options."""
    text = (ROOT / path).read_text("utf-8")
    for option in options:
        if option.startswith("--"):
            assert option.partition("=")[0] in text, f"{path} has no {option}"


def check_make(words):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for word in words:
        assert word in targets or re.fullmatch(r"[A-Z]+=.*", word), f"make has no target {word}"


def check_pip(words):
    known = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    extras = known["project"]["optional-dependencies"]
    for word in words:
        for extra in re.findall(r"^(?:jaxeff|\.)\[(.*)\]$", word):
            assert set(extra.split(",")) <= set(extras), f"there is no extra {extra}"


def check_page(text):
    """Checks every command of a page."""
    for words in commands(text):
        check_command(words)


def check_command(words):
    program = Path(words[0]).name
    if words[0] in OTHERS:
        return
    if program == "python" and words[1:3] == ["-m", "jaxeff.main"]:
        check_run(words[3:])
    elif program == "python" and words[1:3] == ["-m", "jaxeff.stream"]:
        check_script("jaxeff/stream.py", words[4:])
    elif program == "python" and words[1:3] == ["-m", "venv"]:
        assert len(words) == 4
    elif program == "python":
        check_script(words[1], words[2:])
    elif program == "make":
        check_make(words[1:])
    elif program == "pip":
        check_pip(words[2:])
    else:
        assert (ROOT / words[0]).exists(), f"what is {words[0]}?"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_commands_of_a_page_are_understood(page):
    check_page(page.read_text("utf-8"))


def test_all_commands_are_seen():
    every = [words for page in PAGES for words in commands(page.read_text("utf-8"))]
    assert len(every) > 100
    assert {Path(words[0]).name for words in every} >= {"python", "make", "pip", "cmake", "run"}


@pytest.mark.parametrize(
    "text",
    [
        "`make nothing_like_it`",
        "```sh\npip install 'jaxeff[nothing]'\n```",
        "```sh\npython -m jaxeff.main --config=configs/irnn.py --config.no_field=1\n```",
        "```sh\nA=1 srun python -m jaxeff.main \\\n  --config=configs/nothing.py\n```",
        "```sh\nssh --command='python -m jaxeff.main --config=configs/irnn.py:nothing'\n```",
        "```sh\nls | python -m jaxeff.stream digits-tarnn --nothing\n```",
        "`python benchmarks/nothing.py`",
        "`python benchmarks/rnn_speed.py --nothing`",
    ],
)
def test_a_wrong_command_is_noticed(text, monkeypatch):
    monkeypatch.setitem(globals(), "OTHERS", OTHERS | {"ssh", "ls"})
    with pytest.raises((AssertionError, OSError, ValueError)):
        check_page(text)
