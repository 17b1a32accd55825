"""Prints a version's entry of the changelog, as the notes of its release.

    python tests/tools/changelog.py 0.2.0

It fails where there is none.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

CHANGELOG = Path(__file__).parents[2] / "guides" / "changelog.md"
HEADING = re.compile(r"^## \[(.+?)\](?: - (\d{4}-\d{2}-\d{2}))?$", re.MULTILINE)


def entries(text: str) -> dict[str, str]:
    """The entries by version, newest first."""
    headings = [*HEADING.finditer(text)]
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    return {
        heading.group(1): text[heading.end() : end].strip()
        for heading, end in zip(headings, ends, strict=True)
    }


def main() -> int:
    """Prints the entry of the version that is asked for; returns the exit status."""
    (version,) = sys.argv[1:]
    known = entries(CHANGELOG.read_text())
    if not known.get(version):
        print(
            "The changelog must have an entry of the version that is released. "
            f"Received: {version!r}, beside {list(known)}. Write what users notice.",
            file=sys.stderr,
        )
        return 1
    print(known[version])
    return 0


if __name__ == "__main__":
    sys.exit(main())
