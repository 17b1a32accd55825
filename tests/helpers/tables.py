"""The same rows as a table of every form that the entry points take."""

import pytest


def columns_of(rows):
    """A dict of columns."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def _needs(package):
    reason = f"{package} is not installed (the extra `test` brings it)"
    return pytest.importorskip(package, reason=reason)


def _hugging_face(rows):
    return _needs("datasets").Dataset.from_list(rows)


FORMS = {
    "dict": columns_of,
    "records": list,
    "pandas": lambda rows: _needs("pandas").DataFrame(rows),
    "polars": lambda rows: _needs("polars").DataFrame(rows),
    "pyarrow": lambda rows: _needs("pyarrow").Table.from_pylist(rows),
    "hugging face": _hugging_face,
}
FRAMES = [name for name in FORMS if name not in ("dict", "records")]
