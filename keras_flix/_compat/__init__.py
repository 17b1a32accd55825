"""All access to what Keras and KerasHub do not document, in one place.

Written against Keras 3.13 to 3.15 and KerasHub 0.27 to 0.32. Each function says
what it relies on, so that a new release can be checked function by function.
"""

from keras_flix._compat.layers import (
    BaseVariablesCheck as BaseVariablesCheck,
    Mixin as Mixin,
    add_table as add_table,
    change_class as change_class,
    fresh_seed as fresh_seed,
    kernel_shape as kernel_shape,
    memory_of as memory_of,
    own_variables as own_variables,
    quantized_output as quantized_output,
    rounds_logits as rounds_logits,
    unlocked as unlocked,
)
from keras_flix._compat.models import (
    archive_read_without_checksums as archive_read_without_checksums,
    asks_for_shapes as asks_for_shapes,
    clone as clone,
    dry_run as dry_run,
    flatten_layers as flatten_layers,
    freeze as freeze,
    input_keys as input_keys,
    input_names as input_names,
    is_functional as is_functional,
    layers_with_parents as layers_with_parents,
    may_overwrite as may_overwrite,
    register_class_name as register_class_name,
    seed_states as seed_states,
    symbolic_inputs as symbolic_inputs,
    takes_dict as takes_dict,
    unpickle_function as unpickle_function,
)
from keras_flix._compat.optimizer_guard import guard_rows as guard_rows
from keras_flix._compat.optimizer_state import (
    carried_rows as carried_rows,
    check_growable as check_growable,
    regrow_optimizer as regrow_optimizer,
    resize_variable as resize_variable,
)
from keras_flix._compat.sparse_rows import (
    LazyRows as LazyRows,
    RowGradient as RowGradient,
    first_place as first_place,
    take_rows as take_rows,
    take_with_row_gradient as take_with_row_gradient,
)
from keras_flix._compat.trainers import (
    accept_training as accept_training,
    begin_at_epoch as begin_at_epoch,
    in_replica as in_replica,
    initial_epoch as initial_epoch,
    is_running as is_running,
    number_sources as number_sources,
    optimizer_knows as optimizer_knows,
    reset_functions as reset_functions,
    source_kind as source_kind,
    tokenized_both_ways as tokenized_both_ways,
    track_torch_parameters as track_torch_parameters,
    training_state as training_state,
    variables_survive as variables_survive,
    wrap_rematerialization as wrap_rematerialization,
)
