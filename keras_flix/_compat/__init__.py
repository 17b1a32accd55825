"""All access to what Keras and KerasHub do not document, in one place.

Written against Keras 3.15 to 3.16 and KerasHub 0.32 to 0.33. Each function says
what it relies on, so that a new release can be checked function by function.
"""

from keras_flix._compat import eager_ops as eager_ops
from keras_flix._compat.dry_runs import (
    assigned_variables as assigned_variables,
    dry_run as dry_run,
    kernels_read_elsewhere as kernels_read_elsewhere,
)
from keras_flix._compat.kernel_products import (
    UnknownUse as UnknownUse,
    Watch as Watch,
    WatchedProducts as WatchedProducts,
    attributes_read as attributes_read,
    mark_kernel as mark_kernel,
    multiplies_itself as multiplies_itself,
    multiplying_class as multiplying_class,
    unknown_use as unknown_use,
    watched_products as watched_products,
)
from keras_flix._compat.layers import (
    BaseVariablesCheck as BaseVariablesCheck,
    Mixin as Mixin,
    NumberedVariables as NumberedVariables,
    add_table as add_table,
    change_class as change_class,
    fresh_seed as fresh_seed,
    has_untrained_variables as has_untrained_variables,
    kernel_shape as kernel_shape,
    kernel_variable as kernel_variable,
    mask_of as mask_of,
    memory_of as memory_of,
    own_variables as own_variables,
    plain_twin as plain_twin,
    quantized_output as quantized_output,
    rounds_logits as rounds_logits,
    set_mask as set_mask,
    torch_value as torch_value,
    unlocked as unlocked,
)
from keras_flix._compat.lazy_rows import (
    LazyRows as LazyRows,
    moves_all_rows as moves_all_rows,
)
from keras_flix._compat.learning_rates import Rate as Rate, set_rates as set_rates
from keras_flix._compat.models import (
    archive_read_without_checksums as archive_read_without_checksums,
    asks_for_shapes as asks_for_shapes,
    attribute_of as attribute_of,
    clone as clone,
    example_inputs as example_inputs,
    flatten_layers as flatten_layers,
    heeds_training as heeds_training,
    input_keys as input_keys,
    input_names as input_names,
    is_functional as is_functional,
    layers_with_parents as layers_with_parents,
    may_overwrite as may_overwrite,
    name_without_count as name_without_count,
    register_class_name as register_class_name,
    seed_states as seed_states,
    stems_of_counts as stems_of_counts,
    symbolic_inputs as symbolic_inputs,
    takes_dict as takes_dict,
    unpickle_function as unpickle_function,
    variables_of as variables_of,
    without_count as without_count,
)
from keras_flix._compat.optimizer_guard import (
    guard_rows as guard_rows,
    workers as workers,
)
from keras_flix._compat.optimizer_state import (
    carried_rows as carried_rows,
    check_growable as check_growable,
    innermost as innermost,
    regrow_optimizer as regrow_optimizer,
    resize_variable as resize_variable,
    trained_by as trained_by,
)
from keras_flix._compat.processes import (
    is_split as is_split,
    to_host as to_host,
    written_once as written_once,
)
from keras_flix._compat.rematerialization import (
    wrap_rematerialization as wrap_rematerialization,
)
from keras_flix._compat.sparse_rows import (
    RowGradient as RowGradient,
    Taken as Taken,
    first_place as first_place,
    take_apart as take_apart,
    take_rows as take_rows,
    take_with_row_gradient as take_with_row_gradient,
    with_rows as with_rows,
    without_gradient as without_gradient,
)
from keras_flix._compat.survival import (
    is_between_steps as is_between_steps,
    is_compiled_by_keras as is_compiled_by_keras,
    is_running as is_running,
    protect_values as protect_values,
    sync_state as sync_state,
    training_state as training_state,
    variables_survive as variables_survive,
)
from keras_flix._compat.trainable_flags import (
    Flagged as Flagged,
    KeepsFrozen as KeepsFrozen,
    by_gradients as by_gradients,
    flags_of as flags_of,
    is_on as is_on,
    switch as switch,
    with_flags as with_flags,
)
from keras_flix._compat.trainers import (
    accept_training as accept_training,
    averages_gradients as averages_gradients,
    begin_at_epoch as begin_at_epoch,
    cannot_read_data as cannot_read_data,
    compilation as compilation,
    drafting as drafting,
    fitting_processes as fitting_processes,
    in_replica as in_replica,
    initial_epoch as initial_epoch,
    loss_weights as loss_weights,
    number_sources as number_sources,
    optimizer_knows as optimizer_knows,
    remake_functions as remake_functions,
    renew_tokenizer as renew_tokenizer,
    reset_functions as reset_functions,
    reset_parameters as reset_parameters,
    source_kind as source_kind,
    tokenized_both_ways as tokenized_both_ways,
    track_torch_parameters as track_torch_parameters,
    untrack_assistant as untrack_assistant,
)
from keras_flix._compat.undo import (
    Undo as Undo,
    undo_model as undo_model,
    undo_optimizer as undo_optimizer,
    undo_shapes as undo_shapes,
    undo_variables as undo_variables,
)
from keras_flix._compat.value_counts import (
    NO_LIMIT as NO_LIMIT,
    check_counts as check_counts,
    counts_of as counts_of,
)
