"""The arms that PyTorch trains without Keras: Hugging Face's and AdapterHub's.

All have the Gemma of the Keras arms, with the same weights and logits, and adapt its
query and value projections. PyTorch, transformers, peft and adapters are imported on
use; adapters 1.3 pins transformers 4.57.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import tempfile
import time
from typing import Any

from benchmarks.cost.arm import Arm
from benchmarks.cost.workload import Workload
from benchmarks.shared.torch_gemma import export_base, integers, load_base, optional

PEER_ARMS = {
    "hf_floor": "transformers' Gemma, frozen as the floor",
    "peft_lora": "PEFT LoRA, rank 8",
    "peft_poly": "PEFT Poly, 8 skills of rank 8, `task_ids` of 8 tasks",
    "adapters_multitask": "AdapterHub `MultiTask` of 8 LoRAs of rank 8, `task_ids`",
    "adapters_mtl_lora": "AdapterHub `MultiTask` of MTL-LoRA, rank 8, 8 tasks",
}
NEEDS = {"hf": "transformers", "peft": "peft", "adapters": "adapters"}
TARGETS = ["q_proj", "v_proj"]


def available_peers() -> list[str]:
    """The arms whose packages are installed."""
    return [
        name
        for name in PEER_ARMS
        if importlib.util.find_spec(NEEDS[name.partition("_")[0]])
        and importlib.util.find_spec("transformers")
    ]


def peer_arm(name: str, workload: Workload) -> TorchArm:
    """An arm of `PEER_ARMS`."""
    torch = optional("torch")
    # The batch is no part of the model.
    base = load_base(base_directory(dataclasses.replace(workload, batch=1, length=1)))
    base = base.to(device(), getattr(torch, workload.dtype))
    torch.manual_seed(0)
    model, takes_tasks = MAKERS[name](base, workload)
    model.to(device()).train()
    if workload.compiled:
        model = torch.compile(model)
    arm = TorchArm(name, model, takes_tasks)
    arm.use(workload)
    return arm


@functools.cache
def base_directory(workload: Workload) -> str:
    """The Keras arms' Gemma, written for transformers; its logits are compared."""
    directory = tempfile.mkdtemp(prefix="gemma_")
    # As bfloat16 is compared poorly, the base is written in float32.
    # What costs the same need not be as close as what is compared in quality.
    exact = dataclasses.replace(workload, dtype="float32").model()
    export_base(exact, directory, tolerance=1e-3)
    return directory


def device() -> str:
    """Where Keras computes, too."""
    return "cuda" if optional("torch").cuda.is_available() else "cpu"


def hf_floor(base: Any, workload: Workload) -> tuple[Any, bool]:
    base.requires_grad_(False)
    base.model.layers[0].input_layernorm.weight.requires_grad_(True)
    return base, False


def peft_lora(base: Any, workload: Workload) -> tuple[Any, bool]:
    peft = optional("peft")
    rank = workload.rank
    config = peft.LoraConfig(
        r=rank, lora_alpha=rank, target_modules=TARGETS, task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(base, config), False


def peft_poly(base: Any, workload: Workload) -> tuple[Any, bool]:
    peft = optional("peft")
    config = peft.PolyConfig(
        poly_type="poly",
        r=workload.rank,
        n_tasks=workload.values,
        n_skills=8,
        n_splits=1,
        target_modules=TARGETS,
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(base, config), True


def adapters_multitask(base: Any, workload: Workload) -> tuple[Any, bool]:
    return multi_task(base, workload, "LoRAConfig"), True


def adapters_mtl_lora(base: Any, workload: Workload) -> tuple[Any, bool]:
    return multi_task(base, workload, "MTLLoRAConfig"), True


def multi_task(base: Any, workload: Workload, config_class: str) -> Any:
    """AdapterHub's `MultiTask`: an adapter per task, and a batch of any tasks.

    AdapterHub has no Gemma of its own, so it is told where its layers are.
    """
    adapters = optional("adapters")
    interface = adapters.AdapterModelInterface(
        adapter_methods=["lora"],
        model_embeddings="embed_tokens",
        model_layers="layers",
        layer_self_attn="self_attn",
        layer_cross_attn=None,
        attn_q_proj="q_proj",
        attn_k_proj="k_proj",
        attn_v_proj="v_proj",
        attn_o_proj="o_proj",
        layer_intermediate_proj="mlp.up_proj",
        layer_output_proj="mlp.down_proj",
    )
    adapters.init(base, interface=interface)
    # Its interface refuses MTL-LoRA by name; the LoRA layers it has made hold it.
    interface.adapter_methods.append("mtl_lora")
    names = [f"task_{i}" for i in range(workload.values)]
    config = getattr(adapters, config_class)(
        r=workload.rank, alpha=workload.rank, attn_matrices=["q", "v"]
    )
    for name in names:
        base.add_adapter(name, config=config)
    if config_class == "MTLLoRAConfig":
        base.share_parameters(adapter_names=names)
    setup = optional("adapters.composition").MultiTask(*names)
    base.train_adapter(setup)
    base.set_active_adapters(setup)
    return base


MAKERS = {
    "hf_floor": hf_floor,
    "peft_lora": peft_lora,
    "peft_poly": peft_poly,
    "adapters_multitask": adapters_multitask,
    "adapters_mtl_lora": adapters_mtl_lora,
}


@dataclasses.dataclass
class TorchArm(Arm):
    """A PyTorch model, its batch and PyTorch's Adam."""

    name: str
    model: Any
    takes_tasks: bool

    def __post_init__(self) -> None:
        torch = optional("torch")
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trainable, lr=1e-4)

    def use(self, workload: Workload) -> None:
        torch = optional("torch")
        x, self.y = workload.data(workload.values)
        self.inputs = integers(x)
        if self.takes_tasks:
            self.inputs["task_ids"] = torch.tensor(x["task"].astype("int64"))

    def step(self) -> float:
        return self._step().item()

    def steps(self, count: int) -> float:
        for _ in range(count - 1):
            self._step()
        return self.step()

    def _step(self) -> Any:
        torch = optional("torch")
        where = device()
        inputs = {name: value.to(where) for name, value in self.inputs.items()}
        y = torch.tensor(self.y.astype("int64")).to(where)
        self.optimizer.zero_grad()
        # Keras computes its loss in float32 as well, over all positions.
        logits = self.model(**inputs, use_cache=False).logits.float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
        loss.backward()
        start = time.process_time()
        self.optimizer.step()
        self.optimizer_seconds += time.process_time() - start
        return loss.detach()

    def adapted_layers(self) -> list[str]:
        names = [n for n, p in self.model.named_parameters() if p.requires_grad]
        return sorted({layer_of(name) for name in names})

    def facts(self) -> dict[str, Any]:
        sizes = [p.numel() for p in self.model.parameters() if p.requires_grad]
        return {"what": PEER_ARMS[self.name], "trainable_parameters": sum(sizes)}


def layer_of(name: str) -> str:
    """`layers.0.self_attn.q_proj` of the name of a parameter in it."""
    parts = name.split(".")
    start = parts.index("layers")
    return ".".join(parts[start : start + 4])
