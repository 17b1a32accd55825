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
        end: The token that ends the turn, before the tokenizer's end token; empty if
            there is none.

    Example:

    >>> TEMPLATES["gemma"].prompt("Habari?")
    '<start_of_turn>user\nHabari?<end_of_turn>\n<start_of_turn>model\n'
    >>> TEMPLATES["none"].prompt("Habari?")
    'Habari?'
    >>> TEMPLATES["gemma"].response("Nzuri.")
    'Nzuri.<end_of_turn>'
    >>> TEMPLATES["gemma"].answer("Nzuri.<end_of_turn>")
    'Nzuri.'
    >>> TEMPLATES["gemma4"].prompt("Habari?")
    '<|turn>user\nHabari?<turn|>\n<|turn>model\n'
    """

    before: str = ""
    after: str = ""
    end: str = ""

    def prompt(self, text: str) -> str:
        """A prompt as the base gets it."""
        return f"{self.before}{text.strip()}{self.after}" if self.after else text

    def response(self, text: str) -> str:
        """A response as the base learns it; its preprocessor adds the end token."""
        return f"{text.strip()}{self.end}" if self.end else text

    def answer(self, text: str) -> str:
        """An answer or a response without the token that ends the turn."""
        return text.removesuffix(self.end)


TEMPLATES: Mapping[str, Template] = MappingProxyType(
    {
        "none": Template(),
        # Of the instruction-tuned Gemma 1, 2 and 3; blanks at the ends go, as there.
        "gemma": Template(
            "<start_of_turn>user\n",
            "<end_of_turn>\n<start_of_turn>model\n",
            "<end_of_turn>",
        ),
        "gemma4": Template("<|turn>user\n", "<turn|>\n<|turn>model\n", "<turn|>"),
    }
)
"""The templates, by name. Each line of a chat is a turn of its own, without history."""
