"""Hugging Face PEFT's LoRA and Poly, trained as Keras trains its models.

The base is the same Gemma, written for transformers. The examples come in the same
order, and loss, optimizer, clipping and learning rate are those of Keras: what differs
between the arms is the method, and how `A` starts: uniform with a standard deviation of
`(3 * d_in) ** -0.5` in PEFT, normal with `d_in ** -0.5` in keras_flix.

PyTorch, transformers and PEFT are imported on use. Everything runs on the CPU; the
number of threads is the process' own (`OMP_NUM_THREADS`).
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from benchmarks.quality.torch_training import KerasAdam, weighted_loss
from benchmarks.shared.torch_gemma import (
    export_base,
    integers,
    load_base,
    logits_agree,
    optional,
)

__all__ = [
    "adapt",
    "export_base",
    "facts",
    "hits",
    "load_base",
    "logits_agree",
    "train",
    "train_peft",
]

TARGETS = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)
"""All linear layers of a Gemma's blocks, as `targets="all-linear"` has them."""


def adapt(
    base_directory: str | pathlib.Path,
    kind: str,
    *,
    rank: int,
    seed: int,
    n_tasks: int = 1,
    n_skills: int = 8,
) -> Any:
    """The base with PEFT's adapters in all linear layers.

    An update of LoRA has scale 1 here, as in `enable_flix`. PEFT's Poly always
    divides by the rank, and averages its skills: it needs a learning rate of its own.

    Args:
        base_directory: What `export_base` wrote.
        kind: `"lora"` or `"poly"`.
        rank: Rank of the update; with Poly, of each skill.
        seed: Seeds the initial weights. PyTorch's own generator stays as it was.
        n_tasks: Number of Poly's task ids.
        n_skills: Number of LoRAs that Poly mixes, per layer.

    Returns:
        A `PeftModel`, the adapters trainable and all else frozen.

    Raises:
        ValueError: If `kind` is neither.
    """
    torch, peft = optional("torch"), optional("peft")
    shared = {"r": rank, "target_modules": list(TARGETS), "task_type": "CAUSAL_LM"}
    if kind == "lora":
        config = peft.LoraConfig(lora_alpha=rank, lora_dropout=0.0, **shared)
    elif kind == "poly":
        config = peft.PolyConfig(
            poly_type="poly", n_tasks=n_tasks, n_skills=n_skills, n_splits=1, **shared
        )
    else:
        raise ValueError(
            "The kind of a PEFT arm must be 'lora' or 'poly'. Received: "
            f"kind={kind!r}. Pass one of them."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return peft.get_peft_model(load_base(base_directory), config)


def train(
    model: Any,
    x: Mapping[str, np.ndarray],
    y: np.ndarray,
    sample_weight: np.ndarray,
    *,
    learning_rate: float,
    steps: int,
    batch_size: int,
    seed: int,
    task_ids: np.ndarray | None = None,
    warmup: int | None = None,
    clip: float = 1.0,
) -> list[float]:
    """Trains the adapters as Keras would: Adam, global clipping, warm-up and cosine.

    Args:
        model: What `adapt` returned. It is left in inference mode.
        x: `{"token_ids", "padding_mask"}`, both integers `(examples, length)`, in
            the order of training: step `k` takes the rows from `k * batch_size` on.
        y: Labels, the next tokens, `(examples, length)`.
        sample_weight: Weights of the labels, `(examples, length)`.
        learning_rate: The peak, after the warm-up.
        steps: Number of steps; there are `steps * batch_size` examples.
        batch_size: Examples per step.
        seed: Seeds Poly's sampling of skills. PyTorch's own generator stays.
        task_ids: Poly's task of each example, `(examples,)`.
        warmup: Steps of warm-up; `None` is a tenth of all, at least one.
        clip: Highest global norm of the gradients.

    Returns:
        The loss of each step.

    Raises:
        ValueError: If the shapes do not fit, or task ids are missing or unused.
    """
    torch = optional("torch")
    _check(model, x, y, sample_weight, task_ids)
    if len(y) != steps * batch_size:
        raise ValueError(
            "The examples must be steps * batch_size in number. Received: "
            f"{len(y)} examples, steps={steps}, batch_size={batch_size}. Repeat or "
            "cut the examples."
        )
    warmup = max(steps // 10, 1) if warmup is None else warmup
    if not 0 <= warmup <= steps:
        raise ValueError(
            "The warm-up must be part of the steps. Received: "
            f"warmup={warmup}, steps={steps}. Pass None for a tenth."
        )
    optimizer = KerasAdam(
        (p for p in model.parameters() if p.requires_grad),
        peak=learning_rate,
        steps=steps,
        warmup=warmup,
        clip=clip,
    )
    losses = []
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rows = _batches(x, y, sample_weight, task_ids, batch_size)
        for inputs, labels, weights, tasks in rows:
            loss = weighted_loss(_logits(model, inputs, tasks), labels, weights)
            optimizer.step(loss)
            losses.append(loss.item())
    model.eval()
    return losses


def train_peft(
    base_directory: str | pathlib.Path,
    kind: str,
    x: Mapping[str, np.ndarray],
    y: np.ndarray,
    sample_weight: np.ndarray,
    *,
    rank: int,
    learning_rate: float,
    steps: int,
    batch_size: int,
    seed: int,
    task_ids: np.ndarray | None = None,
    n_tasks: int | None = None,
    n_skills: int = 8,
    warmup: int | None = None,
    clip: float = 1.0,
) -> Any:
    """A PEFT arm from base to trained model: `adapt`, then `train`.

    Args:
        n_tasks: Number of Poly's task ids; `None` is the highest one and one more.
            Ids that training does not see keep their random mixture of skills.

    The other arguments are those of `adapt` and `train`.

    Returns:
        The trained `PeftModel`, in inference mode.
    """
    if n_tasks is None:
        n_tasks = 1 if task_ids is None else int(np.max(task_ids)) + 1
    model = adapt(
        base_directory, kind, rank=rank, seed=seed, n_tasks=n_tasks, n_skills=n_skills
    )
    train(
        model,
        x,
        y,
        sample_weight,
        learning_rate=learning_rate,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        task_ids=task_ids,
        warmup=warmup,
        clip=clip,
    )
    return model


def hits(
    torch_model: Any,
    x: Mapping[str, np.ndarray],
    y: np.ndarray,
    sample_weight: np.ndarray,
    task_ids: np.ndarray | None = None,
    batch_size: int = 64,
) -> np.ndarray:
    """Which examples are right: every weighted label is the most likely token.

    The model reads the true tokens before each label (teacher forcing). That is
    exact match of greedy generation, as one wrong token is a miss in both.

    Args:
        torch_model: A `PeftModel`, or a plain base.
        x: `{"token_ids", "padding_mask"}`, both integers `(examples, length)`.
        y: Labels, `(examples, length)`.
        sample_weight: Weights, `(examples, length)`; labels of weight 0 do not count.
        task_ids: Poly's task of each example, `(examples,)`.
        batch_size: Examples at a time.

    Returns:
        Booleans `(examples,)`.

    Raises:
        ValueError: If the shapes do not fit, an example has no weighted label, or
            task ids are missing or unused.
    """
    torch = optional("torch")
    _check(torch_model, x, y, sample_weight, task_ids)
    empty = np.flatnonzero(~np.any(np.asarray(sample_weight) != 0, axis=1))
    if empty.size:
        raise ValueError(
            "Every example must have a label of non-zero weight. Received: "
            f"{empty.size} without one, the first at {empty[0]}. Leave them out."
        )
    found = []
    torch_model.eval()
    with torch.inference_mode():
        for inputs, labels, weights, tasks in _batches(
            x, y, sample_weight, task_ids, batch_size
        ):
            right = _logits(torch_model, inputs, tasks).argmax(-1) == labels
            found.append((right | (weights == 0)).all(-1).numpy())
    return np.concatenate(found)


def facts(model: Any) -> dict[str, Any]:
    """What an arm is: how much of it trains, and by which packages."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    trainable = sum(size for size, trains in sizes if trains)
    return {
        "trainable_parameters": trainable,
        "frozen_parameters": sum(size for size, _ in sizes) - trainable,
        "versions": {
            name: optional(name).__version__
            for name in ("torch", "transformers", "peft")
        },
    }


def _takes_tasks(model: Any) -> bool:
    peft = optional("peft")
    return (
        isinstance(model, peft.PeftModel)
        and model.active_peft_config.peft_type == peft.PeftType.POLY
    )


def _check(
    model: Any,
    x: Mapping[str, np.ndarray],
    y: np.ndarray,
    sample_weight: np.ndarray,
    task_ids: np.ndarray | None,
) -> None:
    arrays = {**x, "y": y, "sample_weight": sample_weight}
    shapes = {name: np.shape(array) for name, array in arrays.items()}
    if len(set(shapes.values())) != 1 or np.ndim(y) != 2:
        raise ValueError(
            "Tokens, padding mask, labels and weights must have one shape, "
            f"(examples, length). Received: {shapes}. Take them from one batch."
        )
    if _takes_tasks(model) != (task_ids is not None):
        needed = "must" if task_ids is None else "must not"
        given = None if task_ids is None else "an array"
        raise ValueError(
            f"Task ids {needed} be given: Poly needs them, other models ignore them. "
            f"Received: task_ids={given}. Pass them with Poly only."
        )
    if task_ids is None:
        return
    n_tasks = model.active_peft_config.n_tasks
    # PEFT refuses ids that are too high, but counts negative ones from the end.
    if np.shape(task_ids) != (len(y),) or not np.all(
        (0 <= np.asarray(task_ids)) & (np.asarray(task_ids) < n_tasks)
    ):
        raise ValueError(
            f"Task ids must be one of 0 to {n_tasks - 1} for each of {len(y)} "
            f"examples. Received: task_ids of shape {np.shape(task_ids)} from "
            f"{np.min(task_ids)} to {np.max(task_ids)}. Number the tasks from 0."
        )


def _batches(
    x: Mapping[str, np.ndarray],
    y: np.ndarray,
    sample_weight: np.ndarray,
    task_ids: np.ndarray | None,
    batch_size: int,
) -> Iterator[tuple[dict[str, Any], Any, Any, Any]]:
    """Tensors of the next rows: inputs, labels, weights and task ids."""
    torch = optional("torch")
    for start in range(0, len(y), batch_size):
        rows = slice(start, start + batch_size)
        yield (
            integers({name: array[rows] for name, array in x.items()}),
            torch.tensor(np.asarray(y[rows], "int64")),
            torch.tensor(np.asarray(sample_weight[rows], "float32")),
            None
            if task_ids is None
            else torch.tensor(np.asarray(task_ids[rows], "int64")),
        )


def _logits(model: Any, inputs: Mapping[str, Any], task_ids: Any) -> Any:
    tasks = {} if task_ids is None else {"task_ids": task_ids}
    return model(**inputs, **tasks, use_cache=False).logits
