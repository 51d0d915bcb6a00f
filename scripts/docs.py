"""Build the documentation as a site: the README, the architecture page, one page a topic, and the API.

    pip install -e .[docs]
    python scripts/docs.py                       # writes runs/docs/site; ends with status 1 if there is a warning
    python -m http.server -d runs/docs/site      # to read it, with its search, at http://localhost:8000

A topic page is the docstring of a sub-package.  The API pages are read from the source code by mkdocstrings, which does
not import it.  Formulas between dollar signs, or in blocks called math, become MathML, so no page needs a network.
"""

import argparse
import ast
import io
import logging
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import ddpm_jax

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(ddpm_jax.__file__).resolve().parent  # elsewhere if the package is installed
# The sub-packages in the order of the navigation, and the title of each page.
TOPICS = {
    "diffusion": "Diffusion",
    "sampling": "Sampling",
    "nets": "Networks",
    "data": "Data",
    "training": "Training",
    "metrics": "Metrics",
    "features": "Features",
    "evaluation": "Evaluation",
    "interop": "Exchange with diffusers",
    "devices": "Devices",
    "storage": "Storage",
    "cli": "Commands",
}
PAGES = {"README.md": "index.md", "ddpm_jax/README.md": "architecture.md", ".github/CONTRIBUTING.md": "contributing.md"}
PAGES |= {".github/CHANGELOG.md": "changelog.md"}
PAGES |= {f"ddpm_jax/{topic}/__init__.py": f"topics/{topic}.md" for topic in TOPICS}
API_OPTIONS = {
    "docstring_style": "google",
    # Griffe would warn of an entry for several arguments, "x, y: ..."; tests/test_docs.py checks the names.
    "docstring_options": {"warnings": False},
    "filters": ["!^_"],
    "heading_level": 2,
    "members_order": "source",
    "merge_init_into_class": True,
    "separate_signature": True,
    "show_root_heading": False,
    "show_root_toc_entry": False,
    "show_signature_annotations": True,
    "show_source": True,
    "signature_crossrefs": True,
}


def public_modules() -> dict[str, str]:
    """The public name of each module with an API page, and the full name of the module.

    These are the modules of `ddpm_jax.MODULES`, of the functions and classes that `ddpm_jax` itself has, and of the
    packages in `ddpm_jax.MODULES`.  The packages themselves have topic pages.
    """
    found = {}
    for name, path in ddpm_jax.MODULES.items():
        folder = PACKAGE / path.replace(".", "/")
        if folder.is_dir():
            names = sorted(file.stem for file in folder.glob("*.py") if not file.stem.startswith("_"))
            found |= {f"ddpm_jax.{path}.{name}": f"ddpm_jax.{path}.{name}" for name in names}
        else:
            found[f"ddpm_jax.{name}"] = f"ddpm_jax.{path}"
    of_objects = {f"ddpm_jax.{path}" for path in ddpm_jax.OBJECTS.values()} - set(found.values())
    return found | {full: full for full in sorted(of_objects)}


def navigation() -> list[dict[str, Any]]:
    """The navigation: titles and pages, as MkDocs takes them."""
    folders: dict[str, list[dict[str, str]]] = {}
    for public, full in sorted(public_modules().items(), key=lambda item: item[1]):
        folders.setdefault(full.split(".")[1], []).append({public.removeprefix("ddpm_jax."): f"api/{full}.md"})
    api = [{name: pages if len(pages) > 1 else pages[0][next(iter(pages[0]))]} for name, pages in folders.items()]
    return [
        {"Home": "index.md"},
        {"Architecture": "architecture.md"},
        {"Topics": [{title: f"topics/{topic}.md"} for topic, title in TOPICS.items()]},
        {"API": api},
        {"Contributing": "contributing.md"},
        {"Changes": "changelog.md"},
    ]


def docstring(path: Path) -> str:
    """The docstring of a Python file, which is not run."""
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def topic_page(topic: str) -> str:
    """A topic page: the docstring of a sub-package below its title."""
    return f"# {TOPICS[topic]}\n\n{docstring(PACKAGE / topic / '__init__.py')}\n"


def api_links(topic: str) -> str:
    """Links from a topic page to the API of its modules; empty if there are none."""
    modules = {public: full for public, full in public_modules().items() if full.startswith(f"ddpm_jax.{topic}.")}
    links = ", ".join(f"[`{public}`](../api/{full}.md)" for public, full in modules.items())
    return f"\n## API\n\n{links}\n" if links else ""


def api_page(public: str, full: str) -> str:
    """An API page, which mkdocstrings fills in."""
    name = public.removeprefix("ddpm_jax.")
    code = f"import {full}" if "." in name else f"from ddpm_jax import {name}"
    return f"# {name}\n\n`{code}`\n\n::: {full}\n"


def linked(text: str, source: str, target: str, pictures: set[str]) -> str:
    """A page's text with its links turned to the pages of the site.

    Links to files of the repository that are no pages lead to the repository's address.

    Args:
        text: Markdown.
        source: the file that it is from, relative to the repository; its links are relative to the file's folder, or
            to the repository in a topic page.
        target: the page, relative to the site.
        pictures: the pictures that the pages show; those of this page are added.
    """
    up, folder = "../" * target.count("/"), Path() if source.endswith(".py") else Path(source).parent

    def replace(match: re.Match[str]) -> str:
        path, anchor = match[2], match[3] or ""
        file = (ROOT / folder / path).resolve()
        inside = file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else path
        if inside in PAGES:
            return f"{match[1]}({up}{PAGES[inside]}{anchor})"
        if not file.exists():
            raise SystemExit(f"{source}: the link {path} leads nowhere")
        if match[1].startswith("!"):
            pictures.add(inside)
            return f"{match[1]}({up}{inside})"
        return f"{match[1]}({repository()}/blob/main/{inside}{anchor})"

    return re.sub(r"(!?\[[^\]]*\])\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)", replace, text)


def repository() -> str:
    """The address of the repository, from pyproject.toml."""
    found = re.search(r'^Repository = "([^"]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def write_pages(folder: Path) -> None:
    """Write every page of the navigation, and the pictures that they show."""
    texts, pictures = {}, set[str]()
    for source, target in PAGES.items():
        is_topic = target.startswith("topics/")
        folder_of_source = PACKAGE.parent if source.startswith("ddpm_jax/") else ROOT
        text = topic_page(Path(target).stem) if is_topic else (folder_of_source / source).read_text()
        texts[target] = with_formulas(linked(text, source, target, pictures))
        texts[target] += api_links(Path(target).stem) if is_topic else ""
    texts |= {f"api/{full}.md": api_page(public, full) for public, full in public_modules().items()}
    for target, text in texts.items():
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        (folder / target).write_text(text)
    for picture in pictures:
        (folder / picture).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / picture, folder / picture)
    (folder / "style.css").write_text(STYLE)


STYLE = """\
.md-typeset math[display="block"] { margin: 1em 0; overflow-x: auto; }
.md-typeset math { font-size: 1.1em; }
.md-typeset pre > code { font-size: .62rem; }
.md-grid { max-width: 76rem; }
.md-typeset__table { width: 100%; }
"""


def with_formulas(text: str) -> str:
    """Markdown whose formulas in LaTeX, `$...$` in a line and blocks called math, have become MathML."""
    if "$" not in text and "```math" not in text:
        return text
    from latex2mathml.converter import convert  # pyright: ignore[reportMissingImports]

    def formulas(part: str) -> str:
        return part if part.startswith("`") else re.sub(r"\$([^$\n]+)\$", inline, part)

    def inline(found: re.Match[str]) -> str:
        return f"<span>{convert(found[1])}</span>"

    def block(found: re.Match[str]) -> str:
        return f"<div>{convert(found[1], display='block')}</div>"

    text = re.sub(r"```math\n(.*?)```", block, text, flags=re.DOTALL)
    return "".join(map(formulas, re.split(r"(```.*?```|`[^`\n]*`)", text, flags=re.DOTALL)))


def settings(pages: Path, site: Path) -> dict[str, Any]:
    """The configuration of MkDocs; with `strict`, a warning ends the build."""

    extensions = ["admonition", "attr_list", "md_in_html", "tables", "pymdownx.highlight", "pymdownx.superfences"]
    handler = {"paths": [str(PACKAGE.parent)], "options": API_OPTIONS}
    return {
        "site_name": "ddpm_jax",
        "site_description": "Denoising diffusion probabilistic models in JAX and Flax",
        "repo_url": repository(),
        "edit_uri": "",
        "docs_dir": str(pages),
        "site_dir": str(site),
        "strict": True,
        "use_directory_urls": False,  # so that the pages open from a disk too
        "nav": navigation(),
        "theme": {"name": "material", "font": False, "features": ["toc.follow", "search.suggest", "content.code.copy"]},
        "extra_css": ["style.css"],
        "plugins": ["search", {"mkdocstrings": {"handlers": {"python": handler}}}],
        "markdown_extensions": [*extensions, {"toc": {"permalink": True}}],
        "validation": {"links": {"anchors": "warn", "unrecognized_links": "warn", "absolute_links": "warn"}},
    }


def build(pages: Path, site: Path) -> None:
    """Build the site of the pages in a folder.

    Raises:
        SystemExit: MkDocs is not installed, or there was a warning.
    """
    try:
        from mkdocs.commands import build as mkdocs  # pyright: ignore[reportMissingImports]
        from mkdocs.config import load_config  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise SystemExit("MkDocs is not installed; run pip install -e .[docs]") from None
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    # Code such as source[i]["label"] in a docstring looks like a reference to a page that is missing.
    logging.getLogger("mkdocs.plugins.mkdocs_autorefs").setLevel(logging.ERROR)
    mkdocs.build(load_config(io.BytesIO(b"{}"), **settings(pages, site)))


def main() -> None:
    """Write the pages, and build the site from them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/docs"), help="the folder of the pages and the site")
    folder = parser.parse_args().output.resolve()
    shutil.rmtree(folder / "pages", ignore_errors=True)
    write_pages(folder / "pages")
    build(folder / "pages", folder / "site")
    print(f"wrote {folder / 'site' / 'index.html'}")


if __name__ == "__main__":
    sys.exit(main())
