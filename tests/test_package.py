"""The package as a whole: its public names, and what importing it costs."""

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from packaging.version import Version

import longrope

HEAVY = {"torch", "transformers", "numpy", "pandas", "ray", "typer", "rich"}


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_public_names_are_pinned():
    assert longrope.__all__ == [
        "AdapterSettings",
        "AlgorithmSettings",
        "DataSettings",
        "EvaluationSettings",
        "ExecutionSettings",
        "FactorSchedule",
        "FinetuneSettings",
        "FixedFactors",
        "HarnessSettings",
        "HeldOutSettings",
        "LaunchSettings",
        "MemorySettings",
        "MultiDocumentQASettings",
        "NeedlePerplexitySettings",
        "NeedleSettings",
        "PasskeySettings",
        "PerplexitySettings",
        "Progress",
        "ReadjustSettings",
        "Recipe",
        "RopeFactors",
        "RopePolicy",
        "ScoreSettings",
        "SearchSettings",
        "SummarisationSettings",
        "Window",
        "__version__",
        "attach",
        "attached",
        "evaluate",
        "export_folder",
        "extend",
        "finetune",
        "load",
        "load_factors",
        "merge",
        "plan",
        "read_recipe",
        "readjust",
        "score",
        "search",
        "write_report",
    ]


def test_import_loads_nothing_heavy():
    loaded = run_python(f"import sys, longrope; dir(longrope); print(sorted({HEAVY!r} & sys.modules.keys()))")
    assert loaded == "[]"


def test_public_names_load_on_first_use():
    assert run_python("import longrope; print(longrope.RopeFactors.__module__)") == "longrope.rope.factors"


def test_star_import_gives_every_public_name():
    missing = run_python("from longrope import *; import longrope; print(sorted(set(longrope.__all__) - set(dir())))")
    assert missing == "[]"


@pytest.mark.parametrize("name", sorted(set(longrope.__all__) - {"__version__"}))
def test_public_name_comes_from_the_module_that_defines_it(name):
    value = getattr(longrope, name)
    if name in longrope._PACKAGES:
        value = getattr(import_module(longrope._MODULES[name]), name)
    assert value.__name__ == name
    assert getattr(import_module(value.__module__), name) is value
    assert value.__module__ == longrope._MODULES[name]


def test_type_checkers_see_what_runs():
    tree = ast.parse(Path(inspect.getfile(longrope)).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == longrope._MODULES
    assert set(longrope.__all__) == {*seen, "__version__"}


@pytest.mark.parametrize("first", ["", "import longrope.search.space, longrope.finetune.settings; "])
@pytest.mark.parametrize("verb", ["search", "finetune"])
def test_a_verb_is_called_whether_or_not_modules_of_its_package_were_imported_before(first, verb):
    settings = {"search": "SearchSettings", "finetune": "FinetuneSettings"}[verb]
    told = run_python(
        f"""
{first}import longrope
try:
    longrope.{verb}()
except TypeError as error:
    print(error)
import longrope.{verb}.settings as module
print(module.{settings}.__name__)
"""
    )
    assert told == f"{verb}() missing 1 required positional argument: 'settings'\n{settings}"


def test_dir_lists_public_names_before_they_are_loaded():
    assert run_python("import longrope; print(set(longrope.__all__) <= set(dir(longrope)))") == "True"


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'longrope' has no attribute 'RopeFactor'"):
        longrope.RopeFactor  # noqa: B018


def test_version_is_a_valid_version():
    assert str(Version(longrope.__version__)) == longrope.__version__
