"""The pages: their code runs, their links lead somewhere, the navigation is complete, and names in Args exist."""

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path

import docs
import pytest

import ddpm_jax

ROOT = Path(__file__).parents[1]
PACKAGE = Path(ddpm_jax.__file__).parent
PAGES = {"README": PACKAGE / "README.md", **{topic: PACKAGE / topic / "__init__.py" for topic in docs.TOPICS}}
FILES = sorted(PACKAGE.rglob("*.py"))


def code_of(page: str) -> str:
    """The Python blocks of a page, one after another."""
    return "\n".join(re.findall(r"```python\n(.*?)```", PAGES[page].read_text(), re.DOTALL))


def run_page(page: str, folder: Path, monkeypatch) -> None:
    """Run the blocks of a page in a folder, as a file, so that its classes have a source."""
    monkeypatch.chdir(folder)
    (folder / "page.py").write_text(code_of(page))
    runpy.run_path("page.py")


def test_the_examples_of_the_architecture_page(tmp_path, monkeypatch):
    """A schedule, a sampler and a metric; their assertions are in the page."""
    assert code_of("README").count("@dataclass") == 2
    run_page("README", tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("topic", [topic for topic in docs.TOPICS if topic != "cli" and topic != "evaluation"])
def test_the_examples_of_the_topic_pages(topic, tmp_path, monkeypatch):
    assert code_of(topic)
    run_page(topic, tmp_path, monkeypatch)


def test_every_folder_has_a_topic_page():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set(docs.TOPICS) == folders
    for topic in folders:
        lines = docs.docstring(PAGES[topic]).splitlines()
        assert "?" in lines[0], f"{topic}/__init__.py: the first line asks no question"
        assert len(lines) > 10, f"{topic}/__init__.py has no topic page"


@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("ELBO", "diffusion"),
        ("classifier guidance", "diffusion"),
        ("reparameterization", "diffusion"),
        ("algorithm 1 of Ho", "training"),
        ("algorithm 2 of Ho", "sampling"),
    ],
)
def test_the_terms_of_the_field_are_found(words, page):
    assert words in docs.docstring(PAGES[page])


def pages_of(entry) -> set[str]:
    """The pages in a part of the navigation."""
    if isinstance(entry, str):
        return {entry}
    parts = entry.values() if isinstance(entry, dict) else entry
    return set().union(*map(pages_of, parts))


def test_the_navigation_names_every_public_module():
    named = pages_of(docs.navigation())
    for path in (*ddpm_jax.MODULES.values(), *ddpm_jax.OBJECTS.values()):
        page = f"topics/{path}.md" if (PACKAGE / path).is_dir() else f"api/ddpm_jax.{path}.md"
        assert page in named, path
    modules = {f"api/{full}.md" for full in docs.public_modules().values()}
    assert modules <= named
    for full in docs.public_modules().values():
        assert (PACKAGE.parent / full.replace(".", "/")).with_suffix(".py").exists(), full


def test_links_lead_to_pages_files_or_the_repository(tmp_path):
    pictures: set[str] = set()
    text = "[a](ddpm_jax/README.md#layers) ![b](experiments/digits.png) [c](pyproject.toml) [d](https://a.org) [e](#x)"
    found = docs.linked(text, "README.md", "topics/data.md", pictures)
    assert found == (
        "[a](../architecture.md#layers) ![b](../experiments/digits.png) "
        f"[c]({docs.repository()}/blob/main/pyproject.toml) [d](https://a.org) [e](#x)"
    )
    assert pictures == {"experiments/digits.png"}
    with pytest.raises(SystemExit, match=r"README.md: the link nowhere.md leads nowhere"):
        docs.linked("[a](nowhere.md)", "README.md", "index.md", set())


def test_formulas_become_mathml_and_code_stays():
    pytest.importorskip("latex2mathml")
    found = docs.with_formulas("Here $x_t$.\n\n```math\na = b\n```\n\n`echo $HOME $OUT`\n\n```\n$a$\n```\n")
    assert found.count("<math") == 2
    assert 'display="block"' in found
    assert "`echo $HOME $OUT`" in found
    assert "```\n$a$\n```" in found


def test_a_warning_ends_the_build():
    assert docs.settings(Path("pages"), Path("site"))["strict"] is True


@pytest.mark.slow
@pytest.mark.parametrize(("link", "status"), [("index.md", 0), ("missing.md", 1)])
def test_a_small_site(link, status, tmp_path):
    """In a process of its own, as MkDocs configures the logging of its process."""
    pytest.importorskip("mkdocs")
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages/index.md").write_text(f"# A page\n\n[link]({link})\n")
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r}); import docs; from pathlib import Path\n"
        "docs.navigation = lambda: [{'Home': 'index.md'}]\n"
        "docs.build(Path('pages').resolve(), Path('site').resolve())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert ("missing.md" in done.stderr) == (status == 1)


@pytest.mark.slow
def test_the_site_is_built_without_warnings(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings_handlers.python")
    if not (ROOT / ".github").exists():
        pytest.skip("some pages are not here")
    command = [sys.executable, ROOT / "scripts/docs.py", "--output", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    forward = (tmp_path / "site/api/ddpm_jax.diffusion.forward.html").read_text()
    assert "diffuse" in forward
    assert "<math" in (tmp_path / "site/architecture.html").read_text()


def arguments_of(node: ast.FunctionDef) -> set[str]:
    args = node.args
    named = [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]
    return {arg.arg for arg in named if arg is not None}


def documented(docstring: str) -> list[str]:
    """The names of the Args section of a docstring."""
    section = re.search(r"^Args:\n((?:(?: .*)?\n)*)", docstring + "\n", re.MULTILINE)
    entries = re.findall(r"^    (\S.*?):", section[1], re.MULTILINE) if section else []
    return [name.strip("* ") for entry in entries for name in entry.split(",")]


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_documented_arguments_exist(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and (text := ast.get_docstring(node)):
            wrong = set(documented(text)) - arguments_of(node)
            # `bind` of a protocol has open arguments.
            assert not wrong or node.args.kwarg is not None, f"{path}:{node.lineno}: {node.name} has no {sorted(wrong)}"


def test_the_names_of_an_args_section():
    assert documented("Do.\n\nArgs:\n    a, b: two.\n        More: of it.\n    *c: rest.\n\nReturns:\n    x: y.\n") == [
        "a",
        "b",
        "c",
    ]
