"""Nothing that a test asks for may stand in training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Entry = tuple[str, str, tuple[str, ...]]

# Neither is trained on or reported: they may share items.
SAME = {"validation_held_out": "validation"}


def check(splits: Mapping[str, Iterable[Entry]]) -> None:
    """Raises where a prompt stands twice, or where two splits share a key.

    Args:
        splits: Entries `(task, prompt, keys)` of each split, keys as in `Item`.

    Raises:
        ValueError: Where a prompt stands twice or a key in two splits.
    """
    prompts: dict[str, str] = {}
    owners: dict[str, tuple[str, str]] = {}
    for split, entries in splits.items():
        for task, prompt, keys in entries:
            if prompt in prompts:
                raise ValueError(
                    "A prompt stands once in a mixture. Received twice, in "
                    f"{prompts[prompt]!r} and {split!r}: {prompt!r}."
                )
            prompts[prompt] = split
            for key in keys:
                other, owner = owners.setdefault(key, (split, task))
                if SAME.get(other, other) != SAME.get(split, split):
                    raise ValueError(
                        "What a test asks for may not stand in training, in any "
                        f"language or task. Received: {key!r} in {other!r} (task "
                        f"{owner!r}) and in {split!r} (task {task!r})."
                    )
