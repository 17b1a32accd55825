"""Trains an adapted Gemma in two processes, and prints the numbers.

    python on_torch.py FOLDER

Prints one JSON object: what one process computes on the whole batch, and what each
of two computes on its half. The processes meet in `FOLDER`.
"""

import json
import os
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"

import torch
import torch.distributed
from gemma import BATCH, FEATURES, LABELS, base_of, draw, make_gemma, values

import keras_flix


def adapted(seed):
    """An adapted Gemma whose tables differ from those of another seed."""
    model = make_gemma()
    keras_flix.enable_flix(model, FEATURES, rank=2, seed=seed)
    draw(model.trainable_variables, seed=seed)
    return model


def train(model, module, rows):
    """A loop of two steps on rows of the batch; `module` may wrap the model."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    batch = {key: value[rows] for key, value in BATCH.items()}
    labels = torch.as_tensor(LABELS[rows], dtype=torch.long)
    result = {"losses": [], "gradients": [], "optimized": len(parameters)}
    before = base_of(model)
    for _ in range(2):
        optimizer.zero_grad()
        logits = module(batch, training=True)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        result["losses"].append(float(loss))
        gradients = {v.path: v.value.grad.tolist() for v in model.trainable_variables}
        result["gradients"].append(gradients)
        optimizer.step()
    result["base stayed"] = base_of(model) == before
    result["trained"] = values(model.trainable_variables)
    return result


def process(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    model = adapted(seed=rank)
    started = values(model.trainable_variables)
    module = torch.nn.parallel.DistributedDataParallel(model)
    half = len(LABELS) // 2
    result = train(model, module, slice(rank * half, (rank + 1) * half))
    result["started"] = started
    Path(folder, f"{rank}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    (folder,) = sys.argv[1:]
    # A fork has imported all of this already; elsewhere it is not safe.
    method = "fork" if sys.platform == "linux" else "spawn"
    torch.multiprocessing.start_processes(
        process, (folder,), nprocs=2, start_method=method
    )
    model = adapted(seed=0)
    results = {"single": train(model, model, slice(None))}
    for rank in range(2):
        results[f"process {rank}"] = json.loads(
            Path(folder, f"{rank}.json").read_text()
        )
    print(json.dumps(results))
