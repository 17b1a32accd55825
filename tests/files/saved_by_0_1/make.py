"""How the files here were made, by keras_flix 0.1.0 on PyTorch: `python make.py .`"""

import sys

import keras
import keras_hub
import numpy as np

import keras_flix
from keras_flix import Feature

FEATURES = [
    Feature("task", ["qa", "parse", "list"], rank={"qa": 1, "*": 2}),
    Feature("language", ["en", "sw", "yo"], rank=2, alpha=3.0, dropout=0.1),
    Feature("domain", ["news", "web"], rank=1, multiple=True),
    Feature("shared", always=True, rank=2),
]
BATCH = {
    "x": np.random.default_rng(1).normal(size=(3, 8)).astype("float32"),
    "task": ["qa", "parse", None],
    "language": ["en", "yo", "sw"],
    "domain": [["news", "web"], [], ["web"]],
}
TOKENS = {
    "token_ids": np.arange(8).reshape(2, 4),
    "padding_mask": np.ones((2, 4), "int32"),
    "task": ["qa", "parse"],
}


def randomize(model):
    generator = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(generator.normal(size=variable.shape) * 0.3)


def main(folder):
    assert keras_flix.__version__ == "0.1.0"
    keras.utils.set_random_seed(0)
    x = keras.Input((8,), name="x")
    hidden = keras.layers.Dense(6, activation="tanh", name="hidden")(x)
    mlp = keras.Model({"x": x}, keras.layers.Dense(4, name="head")(hidden))
    keras_flix.enable_flix(mlp, FEATURES, targets="all-linear", alpha=4.0, seed=1)
    randomize(mlp)
    keras_flix.set_trainable(mlp, {"task": ["qa"], "shared": ["shared"]})
    mlp.compile(keras_flix.LazyAdam(1e-3), loss="mse")
    mlp.fit(BATCH, np.zeros((3, 4)), epochs=2, verbose=0)
    mlp.save(f"{folder}/mlp.keras")
    mlp.save_weights(f"{folder}/mlp.weights.h5")
    keras_flix.save_adapters(mlp, f"{folder}/mlp.flix.safetensors")

    keras.utils.set_random_seed(0)
    x = keras.Input((5, 8), name="x")
    layer = keras_flix.FlixEinsumDense(
        "btd,ndh->btnh",
        (None, 2, 3),
        features=[Feature("shared", always=True, rank=2)],
        name="layer",
    )
    single = keras.Model(x, layer(x))
    randomize(single)
    single.save(f"{folder}/layer.keras")

    keras.utils.set_random_seed(0)
    gemma = keras_hub.models.GemmaBackbone(
        vocabulary_size=20,
        num_layers=1,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=8,
        intermediate_dim=8,
        head_dim=4,
    )
    keras_flix.enable_flix(gemma, {"task": ["qa", "parse"]}, rank=2, seed=2)
    randomize(gemma)
    gemma.save(f"{folder}/gemma.keras")
    keras_flix.save_adapters(gemma, f"{folder}/gemma.flix.safetensors")

    outputs = {
        "mlp": mlp(BATCH),
        "layer": single(np.ones((2, 5, 8), "float32")),
        "gemma": gemma(TOKENS),
    }
    np.savez(
        f"{folder}/outputs.npz",
        **{name: keras.ops.convert_to_numpy(value) for name, value in outputs.items()},
    )


if __name__ == "__main__":
    main(sys.argv[1])
