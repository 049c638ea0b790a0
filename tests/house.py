"""The house rules that a machine can check, over the source as text: nothing of the package is imported here.

Every rule is a function that yields offences, each of which names the place and says what to do about it.
"""

from __future__ import annotations

import ast
import contextlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"

LAYERS: tuple[tuple[int, tuple[str, ...]], ...] = (
    (0, ("errors",)),  # what a user did wrong may be noticed anywhere
    (1, ("nn",)),
    (2, ("document", "visual", "images", "packages")),
    (3, ("lm", "generate", "sampling", "beams", "narrate", "grammar", "sequence", "diffusion", "checkpoint")),
    (4, ("system", "data", "train", "evals", "mini")),
    (5, ("papers",)),
    (6, ("apps", "studies")),
)
LAYER_OF = {name: layer for layer, names in LAYERS for name in names}

# One foreign library, one place. A library that is not named here may be used anywhere below the apps only if it is in
# EVERYWHERE; the apps may use what they like, except what is named here for somewhere else.
EVERYWHERE = {"torch", "einops", "numpy", "PIL", "safetensors"}
PLACES: dict[str, tuple[str, ...]] = {
    "diffusers": ("rebus.diffusion",),
    "transformers": (
        "rebus.nn.text_model",
        "rebus.nn.row_cache",
        "rebus.nn.text_tokenizer",
        "rebus.nn.text_attention",
        "rebus.nn.text_encoder",
        "rebus.nn.image_encoder",
    ),
    "tokenizers": ("rebus.nn.text_tokenizer", "rebus.mini.llm"),
    "peft": ("rebus.nn.lora",),
    "torchao": ("rebus.nn.text_model",),
    "huggingface_hub": ("rebus.checkpoint",),
    "gguf": ("rebus.mini", "rebus.checkpoint"),
    "resvg_py": ("rebus.data",),
    "webdataset": ("rebus.data",),
    "pyarrow": ("rebus.data",),
    "tensorboard": ("rebus.train.log",),
    "matplotlib": ("rebus.train.log", "rebus.evals", "rebus.studies"),
    "tyro": ("rebus.apps",),
    "rich": ("rebus.apps", "rebus.train.log"),
    "fastapi": ("rebus.apps.server",),
    "uvicorn": ("rebus.apps.server",),
    "starlette": ("rebus.apps.server",),
    "pydantic": ("rebus.apps.server",),
    "prometheus_client": ("rebus.apps.server",),
    "python_multipart": ("rebus.apps.server",),
    "httpcore": ("rebus.apps.server",),
    "ray": ("rebus.apps.bulk_ray", "rebus.apps.server.replicas"),
    "gradio": ("rebus.apps.web",),
}
NOWHERE = ("torchvision", "timm", "open_clip", "flash_attn", "omegaconf", "hydra", "lightning", "pytorch_lightning")

STANDARD = sys.stdlib_module_names


@dataclass(frozen=True)
class Module:
    """One file of the package, as text."""

    name: str
    text: str
    path: str = "example.py"

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def part(self) -> str:
        """`nn` of `rebus.nn.vit`; empty for the package itself."""
        return (self.name.split(".") + [""])[1]

    @property
    def layer(self) -> int | None:
        """None for `rebus/__init__.py`, the door to everything."""
        return LAYER_OF[self.part] if self.part else None

    @property
    def in_apps(self) -> bool:
        return self.part in ("apps", "studies")

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    def imports(self) -> list[tuple[str, int, bool]]:
        """(dotted name, line, whether it happens when this module is imported), relative ones resolved."""
        return self._imports

    @cached_property
    def _imports(self) -> list[tuple[str, int, bool]]:
        return list(self._find_imports())

    def _find_imports(self) -> Iterator[tuple[str, int, bool]]:
        later = {
            id(inner)
            for node in self.nodes
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or _is_type_checking(node)
            for inner in ast.walk(node)
        }
        package = self.name if self.path.endswith("__init__.py") else self.name.rpartition(".")[0]
        for node in self.nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield alias.name, node.lineno, id(node) not in later
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    above = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1])
                    base = f"{above}.{base}".rstrip(".")
                for alias in node.names:
                    yield f"{base}.{alias.name}", node.lineno, id(node) not in later


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def source_modules() -> list[Module]:
    found = []
    for path in sorted((SOURCE / "rebus").rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append(Module(name, path.read_text(), str(path.relative_to(ROOT))))
    return found


MODULES = source_modules()
NAMES = {module.name for module in MODULES}


# ------------------------------------------------------------------------------------------------ who may import whom


def known_parts(module: Module) -> Iterator[str]:
    if module.part and module.part not in LAYER_OF:
        yield f"{module.path}: rebus.{module.part} is in no layer. Give it one in LAYERS of tests/house.py."


def imports_go_down(module: Module) -> Iterator[str]:
    for imported, line, _ in module.imports():
        parts = imported.split(".")
        if parts[0] != "rebus" or module.layer is None:
            continue
        at = f"{module.path}:{line}"
        if len(parts) == 1 or parts[1] not in LAYER_OF:
            yield f"{at}: imports {imported!r} from the package's door. Import it from the module that defines it."
        elif LAYER_OF[parts[1]] > module.layer:
            yield (
                f"{at}: layer {module.layer} ({module.part}) imports {imported}, which is layer {LAYER_OF[parts[1]]}. "
                "Imports go down only: move what is shared down, or hand it in as an argument."
            )
        elif parts[1] == "papers" and module.part == "papers" and parts[2] != module.name.split(".")[2]:
            yield (
                f"{at}: the paper {module.name.split('.')[2]} imports the paper {parts[2]}. "
                "What two papers need moves down to nn/ or diffusion/."
            )


def no_circles(modules: list[Module]) -> Iterator[str]:
    names = {module.name for module in modules}
    graph = {m.name: {t for i, _, now in m.imports() if now and (t := _target(i, names)) != m.name} for m in modules}
    done: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> Iterator[str]:
        if name in trail:
            circle = [*trail[trail.index(name) :], name]
            yield f"{' → '.join(circle)} is a circle of imports. Move what both need into the lower of them."
        elif name not in done:
            for imported in sorted(t for t in graph[name] if t):
                yield from walk(imported, (*trail, name))
            done.add(name)

    for name in graph:
        yield from walk(name, ())


def _target(imported: str, names: set[str]) -> str | None:
    """The module that an import of `a.b.c` reads: `a.b.c`, or `a.b` that defines c."""
    parent = imported.rpartition(".")[0]
    return imported if imported in names else parent if parent in names and parent != "rebus" else None


def foreign_in_one_place(module: Module) -> Iterator[str]:
    for imported, line, _ in module.imports():
        library = imported.split(".")[0]
        if imported.startswith("torch.utils.tensorboard"):
            library = "tensorboard"
        if library in STANDARD or library in EVERYWHERE or library == "rebus":
            continue
        at = f"{module.path}:{line}"
        if library in NOWHERE:
            yield f"{at}: imports {library}, which pins the whole installation. Use PIL, torch or own code."
        elif library in PLACES:
            if not any(module.name == place or module.name.startswith(place + ".") for place in PLACES[library]):
                yield f"{at}: imports {library}, whose place is {' and '.join(PLACES[library])}. Call what is there."
        elif not module.in_apps:
            yield f"{at}: imports {library}, which has no place yet. Give it one file, and that a line in PLACES."


# ------------------------------------------------------------------------------------------------ what a file may hold


def opens_with_docstring(module: Module) -> Iterator[str]:
    if not ast.get_docstring(module.tree):
        yield f"{module.path}: has no docstring. Say in its first line what the file is."


def at_most_400_lines(module: Module) -> Iterator[str]:
    lines = module.text.count("\n")
    if lines > 400:
        yield f"{module.path}: has {lines} lines. Split it at its seams; 250 is the aim, 400 the end."


def named_for_what_it_is(module: Module) -> Iterator[str]:
    last = module.name.split(".")[-1]
    if re.fullmatch(r"utils?|misc|helpers?|common|tools", last):
        yield f"{module.path}: {last!r} says nothing. Name the file for what it holds."


def dotted(node: ast.AST) -> str:
    """`a.b` of an attribute of a plain name, else nothing."""
    plain = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    return f"{node.value.id}.{node.attr}" if plain else ""


def silent_below_apps(module: Module) -> Iterator[str]:
    if module.in_apps:
        return
    for node in module.nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "input"):
            yield f"{module.path}:{node.lineno}: calls {node.func.id}(). Return it, or report through an argument."
        if dotted(node) in ("sys.stdout", "sys.stderr"):
            yield f"{module.path}:{node.lineno}: uses {dotted(node)}. Return it, or report through an argument."


def no_environment_below_apps(module: Module) -> Iterator[str]:
    if module.in_apps or module.name == "rebus.packages":
        return
    for node in module.nodes:
        if dotted(node) in ("os.environ", "os.getenv", "os.putenv"):
            yield f"{module.path}:{node.lineno}: uses {dotted(node)}. Take it as an argument; the apps read it."
    for imported, line, _ in module.imports():
        if imported in ("os.environ", "os.getenv"):
            yield f"{module.path}:{line}: imports {imported}. Take it as an argument; the apps read the environment."


def finished(module: Module) -> Iterator[str]:
    for number, line in enumerate(module.text.splitlines(), 1):
        if re.search(r"#.*\b(TODO|FIXME|XXX|HACK)\b", line):
            yield f"{module.path}:{number}: leaves something to do. Do it, or write it where work is planned."
    for node in module.nodes:
        if isinstance(node, ast.Name) and node.id == "NotImplementedError":
            yield f"{module.path}:{node.lineno}: NotImplementedError. Write it, or leave the function out."


# ------------------------------------------------------------------------------------------------ configs and stages

CONFIG_NAME = re.compile(r"(.*Config|.*Sampling|Optim|Trainable)")


def configs_documented(module: Module) -> Iterator[str]:
    for node in module.nodes:
        if not isinstance(node, ast.ClassDef) or not CONFIG_NAME.fullmatch(node.name):
            continue
        marks = [ast.unparse(mark) for mark in node.decorator_list if "dataclass" in ast.unparse(mark)]
        if not marks:
            continue
        if not any("frozen=True" in mark for mark in marks):
            yield f"{module.path}:{node.lineno}: the config {node.name} is not frozen. Use @dataclass(frozen=True)."
        if not ast.get_docstring(node):
            yield f"{module.path}:{node.lineno}: the config {node.name} has no docstring. Say what it configures."
        for field, after in zip(node.body, [*node.body[1:], None], strict=True):
            if not isinstance(field, ast.AnnAssign) or "ClassVar" in ast.unparse(field.annotation):
                continue
            documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if not (documented and isinstance(after.value.value, str)):
                yield (
                    f"{module.path}:{field.lineno}: {node.name}.{ast.unparse(field.target)} has no docstring, which is its "
                    "help text. Write one under it."
                )


def stages_name_their_command(module: Module) -> Iterator[str]:
    parts = module.name.split(".")
    in_stages = len(parts) == 5 and parts[1] == "papers" and parts[3] == "stages"
    has_stage = any(isinstance(node, ast.FunctionDef) and node.name == "stage" for node in module.tree.body)
    if in_stages:
        command = f"rebus train {parts[2]}.{parts[4]}"
    elif parts[:2] == ["rebus", "mini"] and has_stage:
        command = f"rebus train {'.'.join(parts[1:])}"
    else:
        return
    if in_stages and not has_stage:
        yield f"{module.path}: has no function `stage`. A stage file offers Config, CONFIGS and stage(config, …)."
    if command not in (ast.get_docstring(module.tree) or ""):
        yield f"{module.path}: its docstring lacks the command `{command} …`. Write the one that was run."


# ------------------------------------------------------------------------------------------------ the whole repository

# spelled in pieces, so that this file does not find itself
MACHINE_PATH = re.compile(
    r"(?<![\w.~/:}])/(?:"
    + "|".join(["ho" + "me", "ro" + "ot", "Us" + "ers", "wo" + "rk", "op" + "t/", "mn" + "t/"])
    + r")\b/?"
)
TEXT_ENDINGS = {".py", ".md", ".toml", ".sh", ".txt", ".yml", ".html", ""}
SKIPPED_FOLDERS = {".git", ".venv", ".venv-web", ".hypothesis", "state", "demo", "build", "dist", "site", "__pycache__"}


def no_machine_paths(path: str, text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        if found := MACHINE_PATH.search(line):
            yield f"{path}:{number}: {found.group()!r} is a path of one machine. Take it as an argument or make it relative."


def repository_texts() -> Iterator[tuple[str, str]]:
    for folder, folders, files in os.walk(ROOT):
        folders[:] = sorted(name for name in folders if not name.endswith(("cache", ".egg-info")))
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        for path in sorted(Path(folder, name) for name in files if name != ".git"):  # a worktree's is a file
            if path.suffix in TEXT_ENDINGS and path.stat().st_size < 1_000_000:
                with contextlib.suppress(UnicodeDecodeError):
                    yield str(path.relative_to(ROOT)), path.read_text()


# ------------------------------------------------------------------------------------------------ all of them

MODULE_RULES = [
    known_parts,
    imports_go_down,
    foreign_in_one_place,
    opens_with_docstring,
    at_most_400_lines,
    named_for_what_it_is,
    silent_below_apps,
    no_environment_below_apps,
    finished,
    configs_documented,
    stages_name_their_command,
]
