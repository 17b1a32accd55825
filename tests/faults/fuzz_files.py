"""Fuzzes the reading of adapter files, guided by the coverage of the code.

    pip install "keras-flix[fuzz]"
    KERAS_BACKEND=torch python tests/faults/fuzz_files.py -runs=100000

Options are libFuzzer's, such as `-seed=1` or `-max_total_time=600`. An input either
loads, with all that holds for adapters, or raises the documented error and leaves the
model as it was; anything else, and whatever takes more than 10 seconds of the
processor's time or 4 GiB, ends the run and is kept as a file. What was tried is
written to `benchmarks/results/faults_fuzz_atheris.json`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import atheris  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402

SEEDS = 400
COUNTS = (
    "inputs",
    "refused",
    "read",
    "loaded",
    "read_and_not_loaded",
    "slowest_input_ms",
)
SECONDS = 10
"""Of the processor's time, that no input may take."""
LIMITS = ["-timeout=3600", "-rss_limit_mb=4096", "-max_len=256", "-print_final_stats=1"]


def instrumented() -> tuple[object, object]:
    """The library, of which the parts that read files report their coverage."""
    with atheris.instrument_imports(
        include=[
            "keras_flix.files",
            "keras_flix.features.feature",
            "keras_flix.features.schema",
            "keras_flix.features.dropout",
        ]
    ):
        from faults import file_corpus

        import keras_flix
    return keras_flix, file_corpus


class Fuzzer:
    """A model, a good file, and counts of what became of others."""

    def __init__(self, folder: Path) -> None:
        self.library, self.corpus = instrumented()
        from helpers.models import make_mlp

        features = {"task": ["qa", "parse", "list"], "language": ["en", "sw", "yo"]}
        self.model = self.library.enable_flix(
            make_mlp(), features, rank=2, alpha=4, targets="all-linear"
        )
        self.path = folder / "fuzzed.flix.safetensors"
        self.library.save_adapters(self.model, self.path)
        self.whole = self.path.read_bytes()
        # The fuzzer ends its process, so they are kept in a file.
        place = folder / "counts"
        counts = np.memmap(place, "int64", mode="w+", shape=len(COUNTS))
        self.counts = dict(zip(COUNTS, np.split(counts, len(COUNTS))))

    def values(self) -> list[bytes]:
        convert = keras.ops.convert_to_numpy
        return [convert(v.value).tobytes() for v in self.model.variables]

    def run(self, data: bytes) -> None:
        """Tries one input."""
        self.path.write_bytes(self.corpus.fuzzed(self.whole, data))
        start = time.process_time()
        found = self.corpus.read_or_refuse(self.path)
        self.counts["inputs"] += 1
        self.counts["refused" if found is None else "read"] += 1
        # What is not read cannot be loaded: asked of some of them only.
        if found is not None or self.counts["refused"] % 16 == 0:
            self.load(found)
        seconds = time.process_time() - start
        assert seconds < SECONDS, "too slow"
        slowest = self.counts["slowest_input_ms"]
        np.maximum(slowest, round(1000 * seconds), out=slowest)

    def load(self, found: object) -> None:
        """Loads the file into the model, or leaves that as it was."""
        before = self.values()
        loaded = self.corpus.read_or_refuse(
            self.path, lambda path: self.library.load_adapters(self.model, path)
        )
        after = self.values()
        if loaded is None:
            assert after == before, "a refused file changed the model"
            self.counts["read_and_not_loaded"] += found is not None
        else:
            self.counts["loaded"] += 1
            assert {t.tobytes() for t in found.tables.values()} <= set(after)
        if found is not None:
            self.corpus.check(found)


def fuzz(folder: Path, options: list[str]) -> None:
    """Runs the fuzzer, which ends the process."""
    fuzzer = Fuzzer(folder)
    seeds = folder / "seeds"
    seeds.mkdir()
    for i in range(SEEDS):
        # The first byte chooses the kind of a change, the others its places.
        seed = bytes([i % 8, *((i * 31 + k * 57) % 256 for k in range(24))])
        (seeds / str(i)).write_bytes(seed)
    foreign = fuzzer.corpus.foreign(folder / "sprung").values()
    for i, data in enumerate(foreign):
        (seeds / f"foreign{i}").write_bytes(b"\x00" + data[:250])
    atheris.Setup([sys.argv[0], *LIMITS, *options, str(seeds)], fuzzer.run)
    atheris.Fuzz()


def main() -> int:
    """Fuzzes in a process of its own, and keeps what it counted."""
    # Files of a few kilobytes are in memory where that can be had.
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        start = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, __file__, "--in", folder, *sys.argv[1:]],
            stderr=subprocess.PIPE,
            text=True,
        )
        covered = 0
        for line in process.stderr:
            print(line, end="", file=sys.stderr)
            if found := re.search(r"\bcov: (\d+)", line):
                covered = int(found[1])
        status = process.wait()
        assert not Path(folder, "sprung").exists(), "a file ran code"
        counts = np.fromfile(Path(folder, "counts"), "int64").tolist()
    facts = {
        **dict(zip(COUNTS, counts)),
        "crashes": int(status != 0),
        "branches_covered": covered,
        "seconds": round(time.monotonic() - start),
    }
    print(facts)
    from benchmarks.shared.environment import write_result
    from benchmarks.shared.places import RESULTS

    name = "files: any bytes, guided by coverage"
    write_result(RESULTS / "faults_fuzz_atheris.json", {"faults": {name: facts}})
    return status


if __name__ == "__main__":
    if sys.argv[1:2] == ["--in"]:
        fuzz(Path(sys.argv[2]), sys.argv[3:])
    else:
        sys.exit(main())
