"""`request`: what a server of exported adapters is asked for features; no model."""

from __future__ import annotations

import argparse
import json
import shlex

from keras_flix.command_line.combinations import parse_features
from keras_flix.command_line.output import Answer
from keras_flix.exports.adapter_index import read_index


def request(arguments: argparse.Namespace) -> Answer:
    """What a request says besides its prompt, or how the server is started."""
    if arguments.server_arguments == (arguments.features is not None):
        raise ValueError(
            "`request` takes either --features or --server-arguments. Received: "
            f"{'both' if arguments.server_arguments else 'neither'}. Pass one of them."
        )
    index = read_index(arguments.directory)
    if arguments.server_arguments:
        words = index.server_arguments()
        return Answer({"arguments": words}, [shlex.join(words)])
    found = index.request(parse_features(index.schema, arguments.features))
    return Answer(found, [json.dumps(found)])
