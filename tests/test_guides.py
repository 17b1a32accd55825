"""The guides run, reach their numbers, and equal their notebooks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext")

ROOT = Path(__file__).parents[1]
GUIDES = ROOT / "guides"


def cells(notebook):
    return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


def test_notebook_equals_its_source():
    source = jupytext.read(GUIDES / "quickstart.py")
    notebook = jupytext.read(GUIDES / "quickstart.ipynb")
    assert cells(source) == cells(notebook)


def test_preset_is_small():
    files = [f for f in (GUIDES / "cldr_gemma").rglob("*") if f.is_file()]
    assert 0 < sum(f.stat().st_size for f in files) <= 12e6


@pytest.mark.slow
@pytest.mark.guide
def test_quickstart_reaches_its_numbers(tmp_path):
    result = subprocess.run(
        [sys.executable, GUIDES / "quickstart.py"],
        cwd=tmp_path,
        env={**os.environ, "FLIX_OUTPUT": str(tmp_path / "output")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(result.stdout[-6000:])
    assert result.returncode == 0
    found = dict(
        re.findall(r"Exact match on (seen|unseen) cells:\s+([\d.]+) %", result.stdout)
    )
    assert float(found["seen"]) >= 70
    assert float(found["unseen"]) >= 40
    for name in ("heatmap.png", "cldr.flix.safetensors"):
        assert (tmp_path / "output" / name).stat().st_size > 10_000
