"""How the program is written, as far as a test can see it."""
import ast
import os

import pytest

from service import PROGRAM, ROOT

with open(PROGRAM, encoding="utf-8") as file:
    SOURCE = file.read()
LINES = SOURCE.split("\n")
TREE = ast.parse(SOURCE)
IMPORTS = [node for node in ast.walk(TREE) if isinstance(node, (ast.Import, ast.ImportFrom))]
FOLDERS = ROOT, os.path.join(ROOT, "tests"), os.path.join(ROOT, "tests", "clients")
SCRIPTS = ["install.sh", "uninstall.sh", "init.d/fake-metadata", "init.d/fake-metadata.run",
           "init.d/fake-metadata.if-up", "init.d/fake-metadata.service"]
PYTHON_FILES = sorted(os.path.join(folder, name) for folder in FOLDERS
                      for name in os.listdir(folder) if name.endswith(".py"))


def parts_of(node):
    """Return the modules and names of an import, each with its dots taken apart."""
    names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
    return [part for name in names for part in name.split(".")]


def public_definitions(tree):
    """Yield (name, node) of all functions, classes and methods whose name has no underscore."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node.name, node
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                    yield "%s.%s" % (node.name, inner.name), inner


def test_no_private_module():
    """Nothing is imported that Python keeps to itself."""
    private = [part for node in IMPORTS for part in parts_of(node) if part.startswith("_")]

    assert [part for part in private if part != "__future__"] == []


def test_imports_stand_at_the_top():
    """All imports are one block at the top."""
    first_other = next(node for node in TREE.body[1:] if node not in IMPORTS)

    assert [node for node in IMPORTS if node.lineno > first_other.lineno] == []


def test_modules_are_left_alone():
    """No module is taken apart, replaced or reached behind its name."""
    assert "sys.modules" not in SOURCE and "__dict__" not in SOURCE
    names = [node.attr for node in ast.walk(TREE) if isinstance(node, ast.Attribute)
             and isinstance(node.value, ast.Name) and node.value.id not in ("self", "cls")]
    private = [name for name in names if name.startswith("_") and not name.endswith("__")]
    assert private == []


def test_no_global_state():
    """No function changes a name of the module."""
    assert [node for node in ast.walk(TREE) if isinstance(node, (ast.Global, ast.Nonlocal))] == []


@pytest.mark.parametrize("path", PYTHON_FILES + [os.path.join(ROOT, name) for name in SCRIPTS],
                         ids=[os.path.basename(path) for path in PYTHON_FILES] + SCRIPTS)
def test_no_long_line(path):
    """No line is over 100 columns."""
    with open(path, encoding="utf-8") as lines:
        too_long = [number for number, line in enumerate(lines, 1) if len(line.rstrip("\n")) > 100]

    assert too_long == []


def test_what_is_public_has_a_docstring():
    """Every public function, class and method says what it is for, in a sentence."""
    for name, node in public_definitions(TREE):
        docstring = ast.get_docstring(node)
        assert docstring and docstring.split("\n\n")[0].rstrip().endswith((".", ":")), name


def test_public_functions_have_annotations():
    """Every public function says what it takes and what it returns."""
    for name, node in public_definitions(TREE):
        if isinstance(node, ast.FunctionDef) and "." not in name:
            given = [argument.arg for argument in node.args.args if not argument.annotation]
            assert not given and node.returns is not None, name


def test_no_function_is_long():
    """A function is a few lines; the longest fits a screen."""
    lengths = {node.name: len([line for line in LINES[node.lineno - 1:end_of(node)] if line])
               for node in ast.walk(TREE) if isinstance(node, ast.FunctionDef)}

    assert {name: length for name, length in lengths.items() if length > 40} == {}
    assert sorted(lengths.values())[len(lengths) // 2] <= 10


def end_of(node):
    """Return the last line of a node; Python 3.7 does not say it."""
    return max(getattr(inner, "lineno", 0) for inner in ast.walk(node))


def test_no_name_hides_another():
    """No argument or variable has the name of a function, class or module of this file."""
    known = {node.name for node in TREE.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    known |= {alias.asname or alias.name for node in IMPORTS for alias in node.names}
    for function in ast.walk(TREE):
        if isinstance(function, ast.FunctionDef):
            names = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
            names |= {node.id for node in ast.walk(function)
                      if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
            assert names & known == set(), function.name
