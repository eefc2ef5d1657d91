"""Imports point one way; files are short and their code is not dense (tests/imports.py counts)."""

import ast

import pytest
from conftest import ROOT
from imports import (
    CORE,
    count,
    count_source,
    find_circle,
    import_graph,
    imports_of,
    is_test,
    is_tuple_assignment,
    is_unpacked_call,
    total,
)


@pytest.fixture(scope="module")
def graph():
    return import_graph(ROOT)


@pytest.fixture(scope="module")
def counts(graph):
    found, _ = count(ROOT, graph)
    return found


# ---- this repository ----


def test_no_circle_lazy_imports_included(graph):
    assert len(graph) > 20 and "sample.py" in graph["plan.py"]
    assert not find_circle(graph)


@pytest.mark.parametrize("file", ["common.py", "support/files.py"])
def test_the_lowest_files_import_support_alone(graph, file):
    assert all(target.startswith("support/") for target in graph[file])


def test_nothing_imports_experiments_tests_or_prepare(graph):
    wrong = []
    for file, targets in graph.items():
        for target in targets:
            is_outer = is_test(target) or target == "prepare.py"
            if is_outer or target.startswith("experiments/") and not file.startswith("experiments/"):
                wrong.append(f"{file} -> {target}")
    assert not wrong


def test_no_file_is_longer_than_600_lines(counts):
    assert not {file: numbers["lines"] for file, numbers in counts.items() if numbers["lines"] > 600}


def test_the_code_is_not_dense(counts):
    core = {file: numbers for file, numbers in counts.items() if file in CORE}
    assert len(core) >= 10
    assert total(core)["tuples_per_100"] <= 2.5
    assert total(counts)["tuples_per_100"] <= 2.5


# ---- the counting itself ----


MODULES = {"a": "a.py", "envs": "envs/__init__.py", "envs.push": "envs/push.py", "common": "common.py"}


@pytest.mark.parametrize(
    ("source", "file", "expected"),
    [
        ("import a, numpy", "b.py", ["a.py"]),
        ("import envs.push as p", "b.py", ["envs/push.py"]),
        ("from envs import push", "b.py", ["envs/push.py"]),
        ("from envs import make_environment", "b.py", ["envs/__init__.py"]),
        ("from . import push", "envs/base.py", ["envs/push.py"]),
        ("from .push import f", "envs/base.py", ["envs/push.py"]),
        ("def f():\n    from common import run", "b.py", ["common.py"]),
        ("import importlib\nm = importlib.import_module('envs.push')", "b.py", ["envs/push.py"]),
        ("import os", "b.py", []),
    ],
)
def test_imports_are_found_wherever_they_stand(source, file, expected):
    assert imports_of(file, ast.parse(source), MODULES) == expected


def test_circles_are_found():
    assert find_circle(dict(a=["b"], b=["c"], c=["b"], d=[])) == ["b", "c", "b"]
    assert find_circle(dict(a=["b", "c"], b=["c"], c=[])) == []


@pytest.mark.parametrize(
    ("line", "is_assigned", "is_unpacked"),
    [
        ("a, b = 1, 2", True, False),
        ("self.x, self.y = x, y", True, False),
        ("[a, b] = f(), g()", True, False),
        ("a, b = c, d = f()", True, True),
        ("a, b = f()", False, True),
        ("B, T = x.shape", False, False),
        ("a = 1, 2", False, False),
    ],
)
def test_tuple_assignments_are_told_from_unpacking(line, is_assigned, is_unpacked):
    node = ast.parse(line).body[0]
    assert (is_tuple_assignment(node), is_unpacked_call(node)) == (is_assigned, is_unpacked)


SOURCE = '''"""A docstring
of two lines."""

import os  # code

# a comment


class A:
    """A docstring."""

    def f(self):
        x = """a string

        of three lines"""
        return [y for y in x]
'''


def test_lines_of_code_leave_out_blank_lines_comments_and_docstrings():
    counts, functions = count_source(SOURCE, "a.py")
    assert counts == dict(lines=16, code=6, tuples=0, calls=0, comprehensions=1)
    assert functions == [(5, "a.py", "A.f")]
