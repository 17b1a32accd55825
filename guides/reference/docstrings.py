"""Keras heads one example with `Example:` and does not indent it; griffe wants both.

Without this, the site would show `>>>` as quotations.
"""

import textwrap

import griffe

MARK = "\nExample:\n"


class Examples(griffe.Extension):
    """Makes the examples, which end our docstrings, a section of griffe's."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring is not None and MARK in obj.docstring.value:
            before, example = obj.docstring.value.split(MARK)
            example = textwrap.indent(example.strip("\n"), "    ")
            obj.docstring.value = f"{before}\nExamples:\n{example}\n"
