"""What README says is so: its example, its numbers, its links, its commands."""

import os
import posixpath
import re
import subprocess
import sys

import pytest
from helpers.places import GUIDES, ROOT

from benchmarks.quality import evidence_page, recipe_tables
from benchmarks.quality.smollm import real_tables

pytestmark = pytest.mark.short("torch")
README = (ROOT / "README.md").read_text()
TABLE = re.compile(r"^\| \| seen pairs .*?\n\n", re.MULTILINE | re.DOTALL)
ARMS = "smollm_cpu arms"
"""The table of `benchmarks/quality` whose first arms README shows."""
PAGES = [
    path
    for folder in (ROOT, GUIDES, ROOT / "benchmarks", ROOT / ".github")
    for path in sorted(folder.glob("*.md" if folder == ROOT else "**/*.md"))
    if not {"output", "build"} & set(path.parts)
]


def python_block():
    (text,) = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return text


def anchors(text):
    """The names that GitHub gives headings."""
    lines = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ (.+)$", lines, re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_it_is_short():
    assert len(README.splitlines()) <= 120
    assert len(python_block().strip().splitlines()) <= 12
    before = README.partition("pip install")[0]
    assert len(before.splitlines()) <= 10


@pytest.mark.slow
def test_the_example_prints_what_is_said():
    result = subprocess.run(
        [sys.executable, "-c", python_block()],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    (said,) = re.findall(r"it \[prints\]\(.+?\)\n`(.+?)`", README)
    assert said in result.stdout


def test_its_table_is_that_of_the_stored_results():
    (table,) = TABLE.findall(README)
    stored = evidence_page.README.read_text()
    stored = stored.partition(f"<!-- table: {ARMS} -->")[2].partition("<!-- end -->")[0]
    numbers = [re.split(r" *\| *", row)[2:-1] for row in table.strip().splitlines()[2:]]
    flix, lora, difference = (cells[:3] for cells in numbers)
    for name, scores in (("flix_shared", flix), ("lora_12", lora)):
        found = rf"^\| `{name}` \|.* \| {' | '.join(scores)} \|".replace(" | ", r" \| ")
        assert re.search(found, stored, re.MULTILINE), scores
    assert f"| {' | '.join(difference)} |" in stored
    for page in ("index.md", "evidence.md"):
        assert table in (GUIDES / page).read_text() + "\n"


def test_the_lead_on_the_real_base_is_that_of_the_stored_results():
    said = " ".join((GUIDES / "evidence.md").read_text().split())
    rows = real_tables.arms().splitlines()
    columns, flix, lora = (
        [cell.strip() for cell in row.split("|")] for row in (rows[0], rows[3], rows[2])
    )
    assert (lora[1], flix[1]) == ("`lora_12`", "`flix_shared`")
    for kind in ("seen", "few-shot", "held-out"):
        place = columns.index(kind)
        assert flix[place] in said and lora[place] in said
        assert flix[columns.index(f"{kind}, minus `lora_12`")] in said


def test_what_is_said_of_the_small_base_is_that_of_the_stored_results():
    rows = [
        [cell.strip() for cell in row.split("|")]
        for row in recipe_tables.arms().splitlines()
    ]
    columns, flix, lora = rows[0], rows[3], rows[2]
    assert (lora[1], flix[1]) == ("`lora`", "`flix_shared`")
    said = " ".join((GUIDES / "evidence.md").read_text().split())
    differences = []
    for kind in ("seen", "few-shot", "held-out"):
        apart = flix[columns.index(f"{kind}, minus `lora`")]
        differences.append(apart.partition(" ")[0])
        for found in (apart, flix[columns.index(kind)], lora[columns.index(kind)]):
            assert found in said
    assert "{}, {} and {}".format(*differences) in " ".join(README.split())
    assert flix[columns.index("seeds")] == lora[columns.index("seeds")] == "3"


def test_what_is_said_of_the_course_on_the_real_base_is_that_of_the_stored_results():
    said = " ".join((GUIDES / "evidence.md").read_text().split())
    lora, flix = (
        [cell.strip() for cell in row.split("|")]
        for row in real_tables.compute().splitlines()[2:]
    )
    assert f"after {flix[5]} of its {lora[5]} steps" in said
    assert f"its step took {float(flix[3]) / float(lora[3]):.1f} times as long" in said
    base, lora, flix = (
        [cell.strip() for cell in row.split("|")]
        for row in real_tables.outside().splitlines()[2:]
    )
    nats = [f"{float(row[4]):.0f}" for row in (flix, lora, base)]
    seeds = {"1": "one seed", "2": "two seeds", "3": "three seeds"}[flix[2]]
    assert (
        "FLix has {} nats for the base's own answers ({}), the LoRA {}, "
        "the base itself {};".format(nats[0], seeds, *nats[1:])
        in said
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    text = re.sub(
        r"^```.*?^```$|`[^`\n]*\]\([^`\n]*`",
        "",
        page.read_text(),
        flags=re.MULTILINE | re.DOTALL,
    )
    for target in re.findall(r"\]\(([^()\s]+)\)", text):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        if anchor and path.suffix == ".md":
            assert anchor in set(anchors(path.read_text())), target


def test_its_commands_are_where_they_are_looked_for():
    for name in ("quickstart-command", "test-command"):
        form = rf"^<!-- {name} -->\n```bash\n(.+)\n```\n<!-- end -->$"
        assert re.search(form, README, re.MULTILINE), name
    assert "test-command" in (ROOT / ".ci" / "run").read_text()


def test_pages_of_the_site_are_links_of_the_first_one():
    first = (GUIDES / "index.md").read_text()
    for path in [*GUIDES.glob("*.md"), *(GUIDES / "how_to").glob("*.md")]:
        name = posixpath.relpath(path, GUIDES)
        assert name == "index.md" or f"({name})" in first, name
