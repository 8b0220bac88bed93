"""What stands beside the code agrees with it: versions, dependencies, workflows, templates."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import jaxsim

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PYTHONS = {"3.11", "3.12", "3.13"}

spec = importlib.util.spec_from_file_location("notes", ROOT / ".github" / "release_notes.py")
release = importlib.util.module_from_spec(spec)
spec.loader.exec_module(release)


def name_of(requirement):
    return re.match(r"[\w-]+", requirement)[0]


def test_the_version_stands_in_one_place():
    assert "version" not in PROJECT["project"]
    path = ROOT / PROJECT["tool"]["hatch"]["version"]["path"]
    assert f'__version__ = "{jaxsim.__version__}"\n' in path.read_text()
    assert PROJECT["project"]["dynamic"] == ["version"]


def test_the_notes_of_a_release_are_its_part_of_the_changelog(tmp_path):
    (tmp_path / "jaxsim").mkdir()
    (tmp_path / "jaxsim" / "_version.py").write_text('"""."""\n\n__version__ = "1.2.0"\n')
    (tmp_path / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 1.2.0\n")
    (tmp_path / "CHANGELOG.md").write_text(
        "# Changelog\n\n## Unreleased\n\n- c\n\n## 1.2.0 (2026-01-01)\n\n- b\n\n## 1.1.0\n\n- a\n"
    )
    assert release.notes("1.2.0", tmp_path) == "- b\n"
    with pytest.raises(ValueError, match=r"_version.py: has '1.2.0', not '1.1.0'"):
        release.notes("1.1.0", tmp_path)
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n")
    with pytest.raises(ValueError, match=r"no section .1\.2\.0."):
        release.notes("1.2.0", tmp_path)


def test_citation_and_changelog_are_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == jaxsim.__version__
    assert cited["license"] == PROJECT["project"]["license"]
    assert cited["repository-code"] == PROJECT["project"]["urls"]["Repository"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert changes.startswith("# Changelog\n\n## Unreleased\n")


def test_the_pythons_that_are_promised_are_those_that_are_tried():
    said = set(re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["project"]["classifiers"])))
    tried = set(re.findall(r"\$\(interpreter (3\.\d+)\)", (ROOT / ".ci" / "run").read_text()))
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]
    assert said == tried == PYTHONS == set(jobs["wheel"]["strategy"]["matrix"]["python"])


def test_every_dependency_has_a_reason():
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    table = text[text.index("## What it depends on") : text.index("## Versions, and names")]
    needed = set(map(name_of, PROJECT["project"]["dependencies"]))
    said = {row.split("|")[1].strip(" `") for row in table.splitlines() if row.startswith("| `")}
    extras = PROJECT["project"]["optional-dependencies"]
    assert said == needed | set(extras)
    for extra, packages in extras.items():
        rows = "".join(row for row in table.splitlines() if row.startswith(f"| `{extra}`"))
        assert set(re.findall(r"`([\w-]+)`", rows)) - {extra} == set(map(name_of, packages))


YAML = (".pre-commit-config.yaml", *map(str, sorted(ROOT.glob(".github/**/*.yml"))))


@pytest.mark.parametrize("path", YAML, ids=lambda path: Path(path).name)
def test_what_the_forge_reads_is_yaml(path):
    assert yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_links_of_the_pages_at_the_root_lead_to_files():
    for page in ROOT.glob("*.md"):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (ROOT / link).exists(), f"{page.name}: {link}"
