"""The mixture of real words: many tasks in many languages, from installed packages."""

from benchmarks.quality.words.drawing import Example, Mix, build

__all__ = ["Example", "Mix", "build"]
