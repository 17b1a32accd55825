"""Trains an adapted Gemma under layouts over 8 host devices, and prints the numbers.

    python on_jax.py FOLDER LAYOUT...

Prints one JSON object, by layout. `FOLDER` takes adapter files.
"""

import contextlib
import json
import os
import sys

os.environ["KERAS_BACKEND"] = "jax"
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
)

import keras
import keras_hub
from gemma import (
    BATCH,
    FEATURES,
    OWN,
    base_of,
    draw,
    fit,
    generate,
    listed,
    make_gemma,
    predict,
    values,
)
from lazy import train_lazily

import keras_flix

TARGETS = ["query", "attention_output", "ffw_linear"]


def distribution(layout):
    """The distribution that a layout's name means, and its layout map."""
    if layout == "single":
        return None, None
    if layout == "data":
        return keras.distribution.DataParallel(), None
    mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"))
    layout_map = keras_hub.models.GemmaBackbone.get_layout_map(mesh)
    return keras.distribution.ModelParallel(layout_map=layout_map), layout_map


def parts(variables):
    """By path: the mesh axes of a value, and the shape of one device's part."""
    return {
        v.path: [
            list(getattr(v.value.sharding, "spec", [None] * len(v.shape))),
            list(v.value.addressable_shards[0].data.shape),
            len(v.value.sharding.device_set),
        ]
        for v in variables
    }


def run(layout, folder):
    chosen, layout_map = distribution(layout)
    result = {}
    with chosen.scope() if chosen else contextlib.nullcontext():
        model = make_gemma()
        if layout == "model":
            keras_flix.add_adapter_rules(layout_map, model)
        keras_flix.enable_flix(
            model, FEATURES, rank=2, dropout=0.25, targets=TARGETS, seed=3
        )
        draw(model.trainable_variables)
        result["parts"] = parts(model.backbone.variables)
        result["predicted"] = listed(predict(model))
        if layout == "whole":
            return result
        result["greedy"] = generate(model)
        result["beam"] = generate(model, keras_hub.samplers.BeamSampler(num_beams=2))
        before = base_of(model)
        result["losses"] = fit(model)
        result["base stayed"] = base_of(model) == before
        result["trained"] = values(model.trainable_variables)
        result["parts after"] = parts(model.trainable_variables)
        result["predicted after"] = listed(predict(model))

        combination = {"task": "qa", "language": ["en", "sw"]}
        everywhere = {"task": "qa", "language": [["en", "sw"]] * len(BATCH["task"])}
        result["combination"] = listed(predict(model, {**OWN, **everywhere}))
        if layout in ("single", "data"):
            result["lazy"] = values(train_lazily().trainable_variables)
        if layout == "single":
            return result

        path = f"{folder}/{layout}.flix.safetensors"
        keras_flix.save_adapters(model, path)
        loaded = keras_flix.load_adapters(make_gemma(), path)
        result["loaded"] = listed(predict(loaded))
        result["loaded parts"] = parts(loaded.trainable_variables)
        merged = keras_flix.merge_features(model, combination)
        result["merged"] = listed(predict(merged, OWN))
    return result


if __name__ == "__main__":
    folder, *layouts = sys.argv[1:]
    print(json.dumps({layout: run(layout, folder) for layout in layouts}))
