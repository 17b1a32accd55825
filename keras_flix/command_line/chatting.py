"""`chat`: lines in, answers out, with features that can be switched."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from typing import Any

from keras_flix._utils.imported_late import imported_late
from keras_flix._utils.near_names import hint
from keras_flix.command_line.answering import Adapted
from keras_flix.command_line.combinations import parse_features, parse_some_features
from keras_flix.command_line.output import on_stderr, say

HELP = (
    "/features shows the features, /features language=sw switches some of them, /quit "
    "ends, //text sends '/text'"
)
COMMANDS = ("/features", "/help", "/quit")


def chat(arguments: argparse.Namespace) -> int:
    """Answers each line of stdin.

    Returns:
        0, or 2 if a line that was not typed at a terminal could not be answered.
    """
    adapted = Adapted.of(arguments)
    if arguments.sequence_length is None:
        # A chat may be longer than what was trained on.
        adapted.settings["sequence_length"] = None
    features = parse_features(adapted.schema, arguments.features)
    with on_stderr():
        load = imported_late("keras_flix.command_line.bases:load_adapted")
        model = load(adapted, arguments.sampler)
    session = Session(model, adapted, features, arguments.json)
    code = 0
    for line in _lines():
        try:
            if not session.take(line):
                break
        except ValueError as error:
            say(" ".join(str(error).split()))
            code = 0 if sys.stdin.isatty() else 2
    return code


class Session:
    """A chat: every line is a turn of its own, and the model remembers none.

    Args:
        model: An adapted model.
        adapted: What it was made of.
        features: The combination to begin with.
        as_json: Whether answers are JSON, one object a line.
    """

    def __init__(
        self, model: Any, adapted: Adapted, features: dict[str, Any], as_json: bool
    ) -> None:
        self.model, self.adapted = model, adapted
        self.features, self.as_json = features, as_json

    def take(self, line: str) -> bool:
        """Does what a line says; whether the chat goes on."""
        if not line.strip():
            return True
        if not line.startswith("/") or line.startswith("//"):
            self._answer(line.removeprefix("/"))
            return True
        command, *entries = shlex.split(line)
        if command == "/features":
            self._switch(entries)
        elif command == "/help":
            say(HELP)
        elif command != "/quit":
            raise ValueError(
                f"A command must be one of {', '.join(COMMANDS)}. Received: "
                f"{command!r}.{hint(command, COMMANDS)}"
            )
        return command != "/quit"

    def _switch(self, entries: list[str]) -> None:
        schema = self.adapted.schema
        features = {**self.features, **parse_some_features(schema, entries)}
        schema.encode_one(features)
        self.features = features
        say(" ".join(f"{name}={value}" for name, value in features.items()))

    def _answer(self, prompt: str) -> None:
        template = self.adapted.template
        tokenizer = self.model.preprocessor.tokenizer
        stop: Any = "auto"
        if template.end:
            stop = [tokenizer.end_token_id, tokenizer.token_to_id(template.end)]
        entries = {name: [value] for name, value in self.features.items()}
        with on_stderr():
            (answer,) = self.model.generate(
                {"prompts": [template.prompt(prompt)], **entries},
                max_length=self.adapted.settings["sequence_length"],
                stop_token_ids=stop,
                strip_prompt=True,
            )
        answer = template.answer(answer)
        if self.as_json:
            found = {"features": self.features, "prompt": prompt, "answer": answer}
            answer = json.dumps(found, ensure_ascii=False)
        print(answer, flush=True)


def _lines() -> Iterator[str]:
    """The lines of stdin, after a prompt if they are typed at a terminal."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\r\n") for line in sys.stdin)
        return
    say(HELP)
    while True:
        try:
            yield input("> ")
        except EOFError:
            return
