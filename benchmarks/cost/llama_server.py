"""llama.cpp's server in a process of its own, so that its memory can be told.

    python -m benchmarks.cost.llama_server BASE.gguf [ADAPTER.gguf ...]

Prints its address, and serves until its standard input is closed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence

SLOTS = 8
"""Requests that a server computes at a time."""

CONTEXT = 128
"""Tokens of a slot: those of a prompt and its answer."""


class LlamaServer:
    """A running server.

    Args:
        process: Which has printed its address.
        address: Where it answers.
    """

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self.process, self.address = process, address

    def complete(self, **body: object) -> tuple[float, float, int]:
        """A completion, streamed.

        Returns:
            Seconds to the first token, seconds to the last, and how many came.
        """
        request = urllib.request.Request(
            f"{self.address}/completion",
            json.dumps({**body, "stream": True}).encode(),
            {"Content-Type": "application/json"},
        )
        start = time.perf_counter()
        first, count = 0.0, 0
        with urllib.request.urlopen(request, timeout=600) as response:
            for line in response:
                if not line.startswith(b"data: "):
                    continue
                event = json.loads(line.removeprefix(b"data: "))
                if event.get("tokens"):
                    first = first or time.perf_counter() - start
                    count += len(event["tokens"])
        return first, time.perf_counter() - start, count

    def mebibytes(self) -> float:
        """Its memory, what it shares with other processes counted in parts (PSS)."""
        rollup = pathlib.Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        line = next(one for one in rollup.splitlines() if one.startswith("Pss:"))
        return int(line.split()[1]) / 1024


@contextlib.contextmanager
def serving(
    base: pathlib.Path, adapters: Sequence[pathlib.Path] = ()
) -> Iterator[LlamaServer]:
    """A server of a base and its adapters, which all are at scale 0."""
    command = [sys.executable, "-m", __spec__.name, str(base), *map(str, adapters)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        for line in process.stdout:
            if line.startswith("http"):
                break
        else:
            raise RuntimeError(f"A server must print its address. Received: {command}")
        yield LlamaServer(process, line.strip())
        process.stdin.close()


def main() -> None:
    """Serves."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base")
    parser.add_argument("adapters", nargs="*")
    options = parser.parse_args()
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = options.base
    params.lora_adapters = [
        xllamacpp.CommonAdapterLoraInfo(path, 0.0) for path in options.adapters
    ]
    params.n_ctx, params.n_parallel = SLOTS * CONTEXT, SLOTS
    params.cpuparams.n_threads = 1
    params.verbosity = 0
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
