"""imports.py: which file imports which, how long files and functions are, and how dense their code is.

    .py files --ast--> imports of each other, those inside functions too --> a table; an error at a circle
                   --> lines, code lines, tuple assignments, comprehensions, longest functions

Code lines are those that are not blank, not a comment alone and not part of a docstring.
A tuple assignment is `a, b = 1, 2` or `a, b = c, d = f()`; `a, b = f()`, an unpacked call, is counted apart.

Run: python tests/imports.py             this repository, without tests/
     python tests/imports.py FOLDER      another project, also without its tests/: counts alone"""

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = (
    "tokenizer.py", "gpt.py", "data.py", "train_tokenizer.py", "train_gpt.py", "sample.py", "evaluate.py",
    "mbpo.py", "drq.py", "plan.py", "post_train.py", "common.py",
)  # fmt: skip
COMPREHENSIONS = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
NO_CODE = (
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING,
    tokenize.ENDMARKER,
)  # fmt: skip


# ---- files ----


def python_files(root):
    """Relative names of the .py files that git tracks; without git, of all outside hidden folders."""
    command = ["git", "-C", str(root), "ls-files", "*.py"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True)
        names = listed.stdout.splitlines() if listed.returncode == 0 else []
    except FileNotFoundError:
        names = []
    if not names:
        names = [path.relative_to(root).as_posix() for path in root.rglob("*.py")]
    visible = []
    for name in sorted(names):
        if (root / name).is_file() and not name.startswith(".") and "/." not in name:
            visible.append(name)
    return visible


def is_test(name):
    return name.startswith("tests/")


# ---- imports ----


def module_names(files):
    """{dotted module name: file}; the folder of the tests is on the path of the tests."""
    names = {}
    for file in files:
        parts = file.removesuffix(".py").split("/")
        if parts[-1] == "__init__":
            parts.pop()
        names[".".join(parts)] = file
        if is_test(file):
            names.setdefault(parts[-1], file)
    return names


def imported_names(node, package):
    """Dotted names that an import statement may mean, lists of candidates, longest first."""
    if isinstance(node, ast.Import):
        return [[alias.name] for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        above = package[: len(package) - node.level + 1] if node.level else []
        base = ".".join([*above, *filter(None, [node.module])])
        return [[f"{base}.{alias.name}", base] for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
        if node.args and isinstance(node.args[0], ast.Constant):
            return [[node.args[0].value]]
    return []


def imports_of(file, tree, modules):
    """The files of ours that a file imports, wherever in it."""
    package = file.split("/")[:-1]
    found = set()
    for node in ast.walk(tree):
        for candidates in imported_names(node, package):
            known = [modules[name] for name in candidates if name in modules]
            found.update(known[:1])
    found.discard(file)
    return sorted(found)


def import_graph(root):
    """{file outside of tests/: the files of ours that it imports}."""
    files = python_files(root)
    modules = module_names(files)
    graph = {}
    for file in files:
        if not is_test(file):
            tree = ast.parse((root / file).read_text(), file)
            graph[file] = imports_of(file, tree, modules)
    return graph


def find_circle(graph):
    """Files of which each imports the next and the last is the first again; [] if there are none."""
    done = set()

    def visit(file, path):
        if file in path:
            return [*path[path.index(file) :], file]
        if file in done:
            return []
        for target in graph.get(file, ()):
            if circle := visit(target, [*path, file]):
                return circle
        done.add(file)
        return []

    for file in graph:
        if circle := visit(file, []):
            return circle
    return []


# ---- counts ----


def docstring_lines(tree):
    """Numbers of the lines that docstrings take."""
    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS | ast.ClassDef | ast.Module) and ast.get_docstring(node) is not None:
            text = node.body[0]
            lines.update(range(text.lineno, text.end_lineno + 1))
    return lines


def code_lines(source, tree):
    """How many lines are code."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    text = source.splitlines()
    blank = {number for number in lines if not text[number - 1].strip()}
    return len(lines - docstring_lines(tree) - blank)


def is_tuple(node):
    return isinstance(node, ast.Tuple | ast.List)


def is_tuple_assignment(node):
    """`a, b = 1, 2` or `a, b = c, d = f()`."""
    if not isinstance(node, ast.Assign):
        return False
    targets = [target for target in node.targets if is_tuple(target)]
    return len(targets) > 1 or bool(targets) and is_tuple(node.value)


def is_unpacked_call(node):
    """`a, b = f()`."""
    return isinstance(node, ast.Assign) and is_tuple(node.targets[0]) and isinstance(node.value, ast.Call)


def functions_of(tree, outer=""):
    """Yield (name, lines) of all functions, methods and inner functions."""
    for node in ast.iter_child_nodes(tree):
        name = outer
        if isinstance(node, FUNCTIONS | ast.ClassDef):
            name = f"{outer}.{node.name}" if outer else node.name
        if isinstance(node, FUNCTIONS):
            yield name, node.end_lineno - node.lineno + 1
        yield from functions_of(node, name)


def count_source(source, file=""):
    """Counts of one file: {what: number}, and its functions, [(lines, file, name)]."""
    tree = ast.parse(source, file)
    nodes = list(ast.walk(tree))
    counts = dict(
        lines=len(source.splitlines()),
        code=code_lines(source, tree),
        tuples=sum(map(is_tuple_assignment, nodes)),
        calls=sum(map(is_unpacked_call, nodes)),
        comprehensions=sum(isinstance(node, COMPREHENSIONS) for node in nodes),
    )
    functions = [(lines, file, name) for name, lines in functions_of(tree)]
    return counts, functions


def count(root, files):
    """{file: counts}, and all functions, the longest first."""
    counts = {}
    functions = []
    for file in files:
        counts[file], found = count_source((root / file).read_text(), file)
        functions += found
    return counts, sorted(functions, reverse=True)


def total(counts):
    """The sums of several files' counts; `tuples`, `calls`, `comprehensions` also per 100 lines of code."""
    sums = dict(files=len(counts))
    for numbers in counts.values():
        for name, number in numbers.items():
            sums[name] = sums.get(name, 0) + number
    for name in ("tuples", "calls", "comprehensions"):
        sums[f"{name}_per_100"] = 100 * sums.get(name, 0) / max(1, sums.get("code", 0))
    return sums


# ---- the tables ----


def core_first(file):
    return (file not in CORE, file.count("/"), CORE.index(file) if file in CORE else file)


def print_graph(graph, counts):
    for file in sorted(graph, key=core_first):
        targets = [target.removesuffix(".py").removesuffix("/__init__") for target in graph[file]]
        print(f"{file:28} {counts[file]['lines']:5}  {', '.join(targets).replace('/', '.') or '-'}")


def print_total(name, counts):
    sums = total(counts)
    print(
        f"{name:12} {sums['files']:4} files {sums.get('lines', 0):6} lines {sums.get('code', 0):6} of code | "
        f"per 100 lines of code: tuple assignments {sums['tuples_per_100']:.2f}, unpacked calls "
        f"{sums['calls_per_100']:.2f}, comprehensions {sums['comprehensions_per_100']:.2f}"
    )


def print_functions(functions, n=10):
    print(f"\nthe {n} longest functions")
    for lines, file, name in functions[:n]:
        print(f"{lines:5}  {file}: {name}")


def main(folder=""):
    """Print the tables; exits with an error where imports of this repository go in a circle."""
    if folder:
        root = Path(folder).resolve()
        if not root.is_dir():
            raise SystemExit(f"no folder {folder}; expected one with .py files")
        counts, functions = count(root, [file for file in python_files(root) if not is_test(file)])
        print_total(root.name, counts)
        print_functions(functions)
        return
    graph = import_graph(ROOT)
    counts, functions = count(ROOT, graph)
    print_graph(graph, counts)
    print()
    print_total("core", {file: counts[file] for file in CORE if file in counts})
    print_total("whole", counts)
    print_functions(functions)
    if circle := find_circle(graph):
        raise SystemExit(f"\nimports go in a circle: {' -> '.join(circle)}")
    print("\nno circle")


if __name__ == "__main__":
    main(*sys.argv[1:2])
