"""Commands in README, file headers and Makefile parse, with settings that exist; links lead to files."""

import ast
import importlib
import importlib.util
import re
import shlex
from urllib.parse import unquote

import pytest
from conftest import ROOT
from imports import is_test, python_files

from common import configure

PAGES = [name for name in ("README.md", "results/README.md") if (ROOT / name).is_file()]
STARTS = ("python ", "python3 ", "torchrun ", "make ", ".venv/bin/")
OWN = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/*.py")}


# ---- finding commands ----


def commands_of(text):
    """Commands of a shell block: comments and environment variables are left out."""
    commands = []
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|;", re.sub(r"(^|\s)#.*", "", line).removeprefix("$ ")):
            words = part.split()
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words.pop(0)
            command = " ".join(words)
            if command.startswith(STARTS):
                commands.append(command)
    return commands


def commands_in_page(name):
    """Commands in a page's code blocks and, between single backquotes, in its text."""
    text = (ROOT / name).read_text()
    commands = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if language not in ("python", "bibtex"):
            commands += commands_of(block)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for span in re.findall(r"`([^`]+)`", prose):
        commands += commands_of(span.replace("\n", " "))
    return commands


def commands_in_headers():
    """Commands in the files' docstrings, as (file, command)."""
    commands = []
    for file in python_files(ROOT):
        header = "" if is_test(file) else ast.get_docstring(ast.parse((ROOT / file).read_text())) or ""
        for line in header.splitlines():
            line = re.sub(r"^(Run|or):", "", line.strip()).strip()
            command = without_prose(re.split(r"\s{2,}", line)[0])
            if re.match(r"(python|torchrun) .*(\.py|-m )", command):
                commands.append((file, command))
    return commands


def without_prose(command):
    """A command without the words that follow its script and its last setting."""
    words = command.split()
    end = 3 if words[1:2] == ["prepare.py"] else 2
    for i, word in enumerate(words):
        if word.startswith("-"):
            end = i + (1 if "=" in word else 2)
        elif word.endswith(".py"):
            end = max(end, i + 1)
    return " ".join(words[:end])


def commands_in_makefile():
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    variables = {name: value for name, value in re.findall(r"^(\w+) \??= *(.*)$", text, re.MULTILINE)}
    commands = []
    for line in text.splitlines():
        if line.startswith("\t"):
            for name, value in variables.items():
                line = line.replace(f"$({name})", value)
            commands += [c for c in commands_of(line.replace("@", "")) if "$" not in c and " -c " not in c]
    return commands


# ---- checking one command ----


def check_settings(module, arguments):
    """Parse the settings of a script of ours, without running it."""
    script = importlib.import_module(module)
    settings = re.sub(r"--resume[ =]true", "", " ".join(arguments))  # there is no checkpoint to resume here
    arguments = [argument.strip("[]") for argument in settings.split() if argument != "..."]
    if module == "prepare":
        if not arguments or arguments[0].startswith("-"):
            return
        assert arguments[0] in script.COMMANDS, f"prepare.py has no command {arguments[0]}"
        config = script.COMMANDS[arguments.pop(0)][1]
        presets = None
    elif hasattr(script, "CONFIG"):
        config = script.CONFIG
        presets = getattr(script, "PRESETS", None)
    else:
        assert not arguments, f"{module} takes no settings"
        return
    try:
        configure(config, "", arguments, presets)
    except SystemExit as exit:
        assert not exit.code, exit.code  # 0: --help


def check_python(words):
    """The words after `python`: a script or -m MODULE, and its arguments."""
    if words[0] == "-m":
        module = words[1]
        file = ROOT / f"{module.replace('.', '/')}.py"
        if file.with_suffix("").is_dir():
            module, file = f"{module}.__main__", file.with_suffix("") / "__main__.py"
        if module.endswith("NAME"):  # any of them
            return
        if module.split(".")[0] not in OWN:
            assert module in ("venv", "pip") or importlib.util.find_spec(module), f"no module {module}"
            return
        assert file.is_file(), f"no module {module}"
    elif words[0] == "-c":
        ast.parse(words[1])
        return
    else:
        file = ROOT / words[0]
        assert file.is_file(), f"no script {words[0]}"
        module = words[0].removesuffix(".py").replace("/", ".")
    if not file.is_relative_to(ROOT / "tests"):
        check_settings(module, words[2:] if words[0] == "-m" else words[1:])


def make_targets():
    text = (ROOT / "Makefile").read_text()
    targets = set()
    for names in re.findall(r"^([\w./ -]+):(?!=)", text, re.MULTILINE):
        targets.update(names.split())
    return targets


def check(command):
    """Raise AssertionError unless a command line names a script, settings and targets that exist."""
    words = shlex.split(command)
    program = words.pop(0).rsplit("/", 1)[-1]
    if program == "make":
        targets = [word for word in words if "=" not in word]
        assert set(targets) <= make_targets(), f"no such target: {command}"
    elif program == "torchrun":
        while words[0].startswith("-"):
            option = words.pop(0)
            if "=" not in option and words[0][-3:] != ".py":
                words.pop(0)
        check_python(words)
    elif program in ("python", "python3"):
        check_python(words)


def require_sound(commands):
    """Assert that `check` accepts all (place, command); name those that it does not."""
    wrong = []
    for place, command in commands:
        try:
            check(command)
        except AssertionError as error:
            wrong.append(f"{place}: {command}   {str(error).splitlines()[0]}")
    assert not wrong, "\n".join(wrong)


# ---- the tests ----


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_parses(page):
    commands = commands_in_page(page)
    assert len(commands) > (10 if page == "README.md" else 0)
    require_sound((page, command) for command in commands)


def test_every_command_in_a_files_header_parses():
    commands = commands_in_headers()
    assert len(commands) > 20
    require_sound(commands)


def test_every_command_of_the_makefile_parses():
    commands = commands_in_makefile()
    assert len(commands) > 5
    require_sound(("Makefile", command) for command in commands)


def anchors(text):
    """The anchors that GitHub gives the headings of a page."""
    found = []
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        found.append(re.sub(r"[^\w\- ]", "", words).replace(" ", "-"))
    repeated = [f"{anchor}-{found[:i].count(anchor)}" for i, anchor in enumerate(found)]
    return {*found, *repeated}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_or_a_heading(page):
    text = (ROOT / page).read_text()
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(([^)\s]+)", prose) + re.findall(r"(?:src|href)=\"([^\"]+)\"", prose)
    assert links
    wrong = []
    for link in links:
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        if path and not ((ROOT / page).parent / unquote(path)).exists():
            wrong.append(link)
        if not path and anchor not in anchors(prose):
            wrong.append(link)
    assert not wrong


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("python no_such.py", "no script"),
        ("python -m experiments.no_such", "no module"),
        ("python sample.py --no_such 1", "no such key"),
        ("python sample.py --n", "a value is missing"),
        ("torchrun --nproc_per_node=4 train_gpt.py --preset none", "expected one of"),
        ("torchrun --nnodes 2 train_gpt.py --lr fast", "expected a float"),
        ("python prepare.py nothing --src x", "no command nothing"),
        ("python prepare.py push --episode 3", "no such key"),
        ("make nothing", "no such target"),
    ],
)
def test_wrong_commands_are_found(command, fault):
    with pytest.raises(AssertionError, match=fault):
        check(command)


def test_right_commands_are_read_to_their_end():
    text = "$ OMP_NUM_THREADS=1 python sample.py --n 2 \\\n --horizon=3  # why\nmake test && python plan.py"
    found = commands_of(text)
    assert found == ["python sample.py --n 2 --horizon=3", "make test", "python plan.py"]
    for command in found:
        check(command)
