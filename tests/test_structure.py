"""The rules that keep the source small and readable, checked on its syntax trees."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

from plumbing.cli import REPO

FILES = {path.relative_to(REPO / "src").with_suffix("").as_posix(): path for path in (REPO / "src").rglob("*.py")}
SRC = {name.removesuffix("/__init__").replace("/", "."): path for name, path in FILES.items()}
SOURCES = [*SRC.values(), REPO / "hubconf.py", *(REPO / "tools").glob("*.py"), *(REPO / "benchmarks").glob("*.py")]
LAYERS = [  # each imports from its own and from earlier ones only
    *("plumbing", "trimap", "augment", "models", "losses", "oxford_pet", "split", "recipes", "settings"),
    *("checkpoint", "engine", "predictor", "metrics", "report", "run", "train"),
    *("matting", "photos", "rle", "evaluate", "compare", "inference"),
]
HEART = (
    "oxford_pet",
    "split",
    "augment",
    "trimap",
    "models.blocks",
    "models.resnet34_unet",
    "losses",
    "engine",
    "train",
)
HEART += ("metrics", "predictor")


def nodes(path: Path, kind: type) -> list:
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, kind)]


def imports(path: Path) -> set[str]:
    """The modules of src that a file imports, also those within functions."""
    found = {alias.name for node in nodes(path, ast.Import) for alias in node.names}
    for node in nodes(path, ast.ImportFrom):
        names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name if name in SRC else node.module for name in names}
    return found & SRC.keys()


def test_no_import_leads_upwards_or_in_a_circle() -> None:
    graph = {name: imports(path) for name, path in SRC.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError
    layer = {name: LAYERS.index(name.split(".")[0]) for name in SRC}
    assert [f"{name} imports {other}" for name in SRC for other in graph[name] if layer[other] > layer[name]] == []


def test_no_namespace_leaves_a_scripts_main() -> None:
    found = []
    for path in set(SOURCES) - {SRC["plumbing.cli"]}:
        for function in nodes(path, ast.FunctionDef):
            if function.name in ("main", "parse_args", "parse_scoring_args", "__torch_dispatch__"):
                continue
            parameters = {node for node in ast.walk(function.args) if isinstance(node, ast.arg)} - {
                function.args.vararg
            }
            if any(one.arg == "args" or "Namespace" in ast.unparse(one) for one in parameters):
                found.append(f"{path.name}: {function.name} takes a Namespace")
        for call in nodes(path, ast.Call):
            values = [ast.unparse(value) for value in (*call.args, *(keyword.value for keyword in call.keywords))]
            if "args" in values and ast.unparse(call.func) not in ("getattr", "hasattr", "setattr", "vars"):
                found.append(f"{path.name}, line {call.lineno}: args is handed on")
    assert found == []


def test_functions_and_the_files_of_the_heart_are_short() -> None:
    functions = [(path, function) for path in SOURCES for function in nodes(path, ast.FunctionDef)]
    long = [f"{path.name}: {one.name}" for path, one in functions if one.end_lineno - one.lineno >= 60]
    long += [name for name in HEART if len(SRC[name].read_text(encoding="utf-8").splitlines()) > 320]
    assert long == []
