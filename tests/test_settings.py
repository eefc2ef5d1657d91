"""Every setting of every script is read, and every setting that is read exists.

From a script, settings are followed into the functions and classes of other files that get them."""

import ast
import importlib
import inspect

import pytest
from conftest import ROOT
from imports import imported_names, module_names, python_files
from torch.distributed.run import get_args_parser as torchrun_options

import prepare

MODULES = module_names(python_files(ROOT))
TREES = {}


def tree_of(file):
    if file not in TREES:
        TREES[file] = ast.parse((ROOT / file).read_text(), file)
    return TREES[file]


def scripts():
    """Dotted names of all modules that define CONFIG."""
    found = []
    for name, file in MODULES.items():
        if not file.startswith("tests/"):
            for node in tree_of(file).body:
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CONFIG":
                    found.append(name)
    return sorted(found)


SCRIPTS = scripts()


# ---- which settings a script reads ----


def definitions(file):
    """{name: function or class} of a file."""
    kinds = ast.FunctionDef | ast.ClassDef
    return {node.name: node for node in tree_of(file).body if isinstance(node, kinds)}


def imported(file):
    """{name in this file: (file of ours, name there or "" for the module itself)}."""
    package = file.split("/")[:-1]
    found = {}
    for node in ast.walk(tree_of(file)):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        for alias, candidates in zip(node.names, imported_names(node, package), strict=True):
            known = [name for name in candidates if name in MODULES]
            if known:
                is_module = known[0] == candidates[0]
                found[alias.asname or alias.name] = (MODULES[known[0]], "" if is_module else alias.name)
    return found


def resolve(file, function):
    """(file, definition) of what a call in `file` calls, or None if it is nothing of ours."""
    name = ast.unparse(function)
    first, _, rest = name.partition(".")
    if name in definitions(file):
        return file, definitions(file)[name]
    target, original = imported(file).get(first, ("", ""))
    inner = rest if not original else original
    if not target or inner not in definitions(target):
        return None
    return target, definitions(target)[inner]


def parameter(definition, position, keyword):
    """Name of the parameter that an argument is bound to."""
    if keyword:
        return keyword
    if isinstance(definition, ast.ClassDef):
        [definition] = [n for n in definition.body if getattr(n, "name", "") == "__init__"]
        position += 1
    arguments = definition.args.args
    return arguments[position].arg if position < len(arguments) else ""


def is_settings(node, name):
    """Whether an expression is the settings, called `name`: cfg, self.cfg, bench.cfg."""
    text = ast.unparse(node)
    return text == name or text.endswith(f".{name}")


def handed_on(file, node, name):
    """Yield (file, definition, name of its parameter) of all functions of ours that get the settings."""
    for call in ast.walk(node):
        if not isinstance(call, ast.Call):
            continue
        arguments = [(i, "", value) for i, value in enumerate(call.args)]
        arguments += [(0, keyword.arg, keyword.value) for keyword in call.keywords if keyword.arg]
        for position, keyword, value in arguments:
            if is_settings(value, name) and (target := resolve(file, call.func)):
                its_name = parameter(target[1], position, keyword)
                if its_name:
                    yield *target, its_name


def looped_over(file, node, name):
    """Keys that getattr(cfg, key) reads, where `key` goes over a constant of the module or a literal."""
    found = set()
    module = importlib.import_module(file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    loops = [n for n in ast.walk(node) if isinstance(n, ast.For | ast.comprehension)]
    for loop in loops:
        for call in ast.walk(node):
            is_getattr = isinstance(call, ast.Call) and ast.unparse(call.func) == "getattr"
            if not is_getattr or not is_settings(call.args[0], name):
                continue
            if ast.unparse(call.args[1]) == ast.unparse(loop.target):
                try:
                    found.update(eval(ast.unparse(loop.iter), vars(module)))
                except NameError:  # it goes over something else than a constant
                    continue
    return found


def attributes(node, name, kind):
    """Names x of all cfg.x in some code that are read (ast.Load) or set (ast.Store)."""
    found = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and isinstance(part.ctx, kind) and is_settings(part.value, name):
            found.add(part.attr)
    return found


def settings_used(file):
    """Settings that a script and the functions to which it hands them read, and those that it sets itself."""
    read = set()
    stored = set()
    waiting = [(file, node, "cfg") for node in definitions(file).values()]
    done = set()
    while waiting:
        where, node, name = waiting.pop()
        if (where, node.name, name) in done:
            continue
        done.add((where, node.name, name))
        read |= attributes(node, name, ast.Load) | looped_over(where, node, name)
        stored |= attributes(node, name, ast.Store)
        waiting += handed_on(where, node, name)
    return read, stored


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_setting_of_a_script_is_read(name):
    script = importlib.import_module(name)
    read, _ = settings_used(MODULES[name])
    by_configure = {"preset"} if hasattr(script, "PRESETS") else set()
    assert not set(script.CONFIG) - read - by_configure


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_setting_that_a_script_reads_exists(name):
    script = importlib.import_module(name)
    read, stored = settings_used(MODULES[name])
    by_configure = {"given"} if hasattr(script, "PRESETS") else set()
    assert not read - set(script.CONFIG) - stored - by_configure


def test_the_scripts_are_all_looked_at():
    core = {"train_tokenizer", "train_gpt", "sample", "evaluate", "mbpo", "plan", "post_train"}
    assert core <= set(SCRIPTS)
    assert any(name.startswith("experiments.") for name in SCRIPTS)


# ---- the commands of prepare.py, whose settings are parameters ----


def takes(function, tree):
    """Parameters of a function, and whether it hands others on as **keywords."""
    kinds = inspect.signature(function).parameters
    named = {name for name, p in kinds.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
    loaded = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    rest = [name for name, p in kinds.items() if p.kind is inspect.Parameter.VAR_KEYWORD]
    return named & loaded, rest


def keys_read(function):
    """Parameters that a function uses; for its **keywords, those of the functions that get them."""
    tree = ast.parse(inspect.getsource(function))
    used, rest = takes(function, tree)
    if not rest:
        return used
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        spread = [keyword for keyword in call.keywords if keyword.arg is None]
        if spread and ast.unparse(spread[0].value) == rest[0]:
            target = inspect.unwrap(function).__globals__.get(ast.unparse(call.func))
            if inspect.isfunction(target):
                used |= keys_read(target)
    return used


@pytest.mark.parametrize("command", prepare.COMMANDS)
def test_every_setting_of_a_command_of_prepare_is_read(command):
    function, config = prepare.COMMANDS[command][:2]
    parameters = set(inspect.signature(function).parameters)
    assert not set(config) - keys_read(function)
    assert not parameters - set(config) - {"how"}


# ---- the presets ----


@pytest.mark.parametrize("name", SCRIPTS)
def test_presets_change_settings_that_exist_and_keep_their_types(name):
    script = importlib.import_module(name)
    for preset, settings in getattr(script, "PRESETS", {}).items():
        for key, value in settings.items():
            assert key in script.CONFIG, f"{preset} sets {key}"
            assert isinstance(value, type(script.CONFIG[key])), f"{preset} sets {key} to {value!r}"


@pytest.mark.parametrize("name", ["train_tokenizer", "train_gpt", "post_train"])
def test_torchrun_takes_no_setting_of_a_trainer_for_options_of_its_own(name):
    """Its parser looks at the script's flags, too: one with which two of its options begin is an error."""
    options = torchrun_options()._option_string_actions
    for key in importlib.import_module(name).CONFIG:
        assert len([option for option in options if option.startswith(f"--{key}")]) < 2, key
