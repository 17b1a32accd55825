"""What prompts are put into for a base that was tuned to follow instructions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType


@dataclasses.dataclass(frozen=True)
class Template:
    r"""A turn of a chat, of one prompt and its answer.

    Attributes:
        before: What stands before a prompt.
        after: What stands between it and the answer.
        end: The token that a base may end its answer with, besides its tokenizer's
            end token; empty if there is none.

    Example:

    >>> TEMPLATES["gemma"].wrap("Habari?")
    '<start_of_turn>user\nHabari?<end_of_turn>\\n<start_of_turn>model\\n'
    >>> TEMPLATES["none"].wrap("Habari?")
    'Habari?'
    >>> TEMPLATES["gemma"].answer("Nzuri.<end_of_turn>")
    'Nzuri.'
    """

    before: str = ""
    after: str = ""
    end: str = ""

    def wrap(self, prompt: str) -> str:
        """The prompt as the base gets it."""
        return f"{self.before}{prompt}{self.after}"

    def answer(self, text: str) -> str:
        """An answer without the token that ends the turn."""
        return text.removesuffix(self.end)


TEMPLATES: Mapping[str, Template] = MappingProxyType(
    {
        "none": Template(),
        # As Google's documentation of the instruction-tuned Gemma 1, 2 and 3 has it.
        "gemma": Template(
            "<start_of_turn>user\n",
            "<end_of_turn>\n<start_of_turn>model\n",
            "<end_of_turn>",
        ),
    }
)
"""The templates, by name. Each line of a chat is a turn of its own, without history."""
