"""The rules of the house: imports follow the data, the app knows no torch, help is instant, the README is true."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = [
    "errors", "licences", "domain", "config", "db", "audio_facts", "clips", "anchors", "studies", "moderation",
    "pairing", "serving", "listening_credit", "absolute", "accounts", "invites", "admission", "answers", "crediting",
    "votes", "requests", "withdrawal", "study_edit", "backup", "music", "preferences", "rewards", "training",
    "evaluation", "flags", "study_power", "study_figures", "releases", "exports", "imports", "store_check",
    "simulation", "versions", "jobs", "circle", "worker", "cli",
    "simulation", "versions", "circle", "worker", "jobs", "cli",
]  # fmt: skip
ACROSS = {"circle", "worker", "jobs", "cli"}  # the only parts that may import simulation, or the whole house


def imported_modules(path: Path) -> set[str]:
    """Dotted names that a file imports anywhere, functions included; TYPE_CHECKING blocks left out."""
    names: set[str] = set()

    def walk(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                names.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module and child.level == 0:
                names.add(child.module)
                names.update(f"{child.module}.{alias.name}" for alias in child.names)
            walk(child)

    walk(ast.parse(path.read_text(encoding="utf-8")))
    return names


def part_of(path: Path) -> str:
    inside = path.relative_to(ROOT / "alignment")
    return inside.parts[0].removesuffix(".py")


FILES = sorted(p for p in (ROOT / "alignment").rglob("*.py") if p != ROOT / "alignment" / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_parts_that_come_before_its_own(path: Path) -> None:
    part = part_of(path)
    assert part in ORDER, f"{part} has no place in the order of the house"
    for name in imported_modules(path):
        if name.startswith("alignment."):
            other = name.split(".")[1]
            if (ROOT / "alignment" / other).exists() or (ROOT / "alignment" / f"{other}.py").exists():
                assert ORDER.index(other) <= ORDER.index(part), f"{path.name} imports {name}, which comes later"
                assert other != "simulation" or part in ACROSS | {"simulation"}, f"{part} may not know the simulation"
        if name.split(".")[0] == "rating_app":
            assert part == "cli", f"{path.name} imports the app"


def test_the_rating_app_imports_no_torch_and_no_job_engine() -> None:
    code = (
        "import sys, rating_app.serve, rating_app.demo; print({'torch', 'transformers', 'dbos'} & {*sys.modules} or '')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == ""


def test_help_loads_neither_torch_nor_gradio_nor_sqlalchemy() -> None:
    code = (
        "import sys, alignment.cli as c\n"
        "from typer.testing import CliRunner\n"
        "assert CliRunner().invoke(c.app, ['--help']).exit_code == 0\n"
        "print(sorted({'torch', 'gradio', 'sqlalchemy', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize("package", ["alignment.music.sampler", "alignment.training.dpo", "alignment.rewards.train"])
def test_the_numeric_parts_need_only_torch_transformers_peft_and_accelerate(package: str) -> None:
    absent = [
        "trl",
        "sqlalchemy",
        "alembic",
        "gradio",
        "soundfile",
        "pyloudnorm",
        "fastapi",
        "typer",
        "evalica",
        "audiocraft",
    ]
    code = f"import sys\nfor name in {absent}: sys.modules[name] = None\nimport {package}; print('ok')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip().endswith("ok"), done.stderr[-800:]


def test_every_attune_command_in_the_documents_exists() -> None:
    from typer.testing import CliRunner

    from alignment.cli import app

    text = "\n".join(p.read_text(encoding="utf-8") for p in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
    # As a command: at the start of a line or a piece of code, after a user's name or a path.
    groups = "db|reward|align|versions|study|account|reproduce|gate|jobs|models|import|export|clips"
    word = rf"(?:{groups}) [a-z][a-z-]*|[a-z][a-z-]+"
    commands = set(re.findall(rf"(?m)(?:^|`|bin/|-u attune )attune ({word})", text))
    mentioned = {c for c in commands if (ROOT / "alignment").exists() and _is_code(text, c)}
    assert len(mentioned) >= 8
    for command in sorted(mentioned):
        result = CliRunner().invoke(app, [*command.split(), "--help"])
        assert result.exit_code == 0, f"`attune {command}` is in the documents and not in the program"


def _is_code(text: str, command: str) -> bool:
    """Whether the command stands in a code block or between backticks."""
    quoted = re.findall(r"`[^`\n]+`", text) + re.findall(r"```.*?```", text, flags=re.S)
    return any(f"attune {command}" in piece for piece in quoted)


def test_every_link_of_the_documents_leads_somewhere_and_no_figure_is_left_out() -> None:
    for page in [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"\b[A-Z]+_FIGURES\b", text), page
        for target in re.findall(r"\]\(([^)#]+)", text):
            if not target.startswith(("http://", "https://")):
                assert (page.parent / target).exists(), f"{page.name} links {target}"


def test_the_constraints_name_versions_and_no_addresses() -> None:
    lines = [x for x in (ROOT / "constraints.txt").read_text().splitlines() if x and not x.startswith("#")]
    assert len(lines) > 50
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!_-]+", line) for line in lines)
