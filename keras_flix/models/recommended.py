"""What to start with: the one place that says so.

The command `keras-flix train` takes its defaults from here, and guides name them. They
are not the defaults of `enable_flix`, which keep what 0.1 had. Where they come from is
told in `guides/does_flix_help` and `benchmarks/quality`.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Recommended:
    """Settings to start with.

    Attributes:
        rank: Of every feature. Equal ranks were as good as any split; try four times
            the rank at half of the learning rate before giving up on either.
        shared: Whether an always-on feature stands next to the others. It was part of
            what did best.
        dropout: Of features. None of the rates that were tried helped.
        targets: On a base that follows its prompts, all linear layers were better than
            the attention projections, for LoRA too.
        learning_rate: Of Adam: a quarter to a half of what a LoRA of the same rank
            would get. 1.5e-3 to 6e-3 were best on bases of 0.7 million parameters;
            for larger ones this is a first guess. Of two that are close, the lower
            is better on combinations that were never seen.
        warmup: The share of the steps in which the learning rate rises from 0; after
            that it falls to 0 as a cosine.
        clipnorm: The norm that all gradients together are clipped to.
        batch_size: Examples per step.
        epochs: How often as many examples are drawn as there are.
    """

    rank: int = 4
    shared: bool = True
    dropout: float = 0.0
    targets: str = "all-linear"
    learning_rate: float = 1e-3
    warmup: float = 0.1
    clipnorm: float = 1.0
    batch_size: int = 16
    epochs: int = 3


RECOMMENDED = Recommended()
"""The settings to start with."""
