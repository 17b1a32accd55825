"""All access to what Keras and KerasHub do not document, in one place.

Written against Keras 3.13 to 3.15 and KerasHub 0.27 to 0.32. Each function says
what it relies on, so that a new release can be checked function by function.
"""

from keras_flix._compat.guards import guard_rows
from keras_flix._compat.layers import (
    BaseVariablesCheck,
    Mixin,
    add_table,
    change_class,
    fresh_seed,
    kernel_shape,
    memory_of,
    own_variables,
    quantized_output,
    rounds_logits,
    unlocked,
)
from keras_flix._compat.models import (
    clone,
    dry_run,
    flatten_layers,
    freeze,
    input_keys,
    input_names,
    is_functional,
    layers_with_parents,
    register_class_name,
    seed_states,
    symbolic_inputs,
    takes_dict,
    unpickle_function,
)
from keras_flix._compat.optimizers import (
    carried_rows,
    check_growable,
    regrow_optimizer,
    resize_variable,
)
from keras_flix._compat.training import (
    accept_training,
    is_running,
    optimizer_knows,
    reset_functions,
    source_kind,
    track_torch_parameters,
    training_state,
    variables_survive,
    wrap_rematerialization,
)

__all__ = [
    "BaseVariablesCheck",
    "Mixin",
    "accept_training",
    "add_table",
    "carried_rows",
    "change_class",
    "check_growable",
    "clone",
    "dry_run",
    "flatten_layers",
    "freeze",
    "fresh_seed",
    "guard_rows",
    "input_keys",
    "input_names",
    "is_functional",
    "is_running",
    "kernel_shape",
    "layers_with_parents",
    "memory_of",
    "optimizer_knows",
    "own_variables",
    "quantized_output",
    "register_class_name",
    "regrow_optimizer",
    "reset_functions",
    "resize_variable",
    "rounds_logits",
    "seed_states",
    "source_kind",
    "symbolic_inputs",
    "takes_dict",
    "track_torch_parameters",
    "training_state",
    "unlocked",
    "unpickle_function",
    "variables_survive",
    "wrap_rematerialization",
]
