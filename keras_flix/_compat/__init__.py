"""All access to what Keras and KerasHub do not document, in one place.

Written against Keras 3.13 to 3.15 and KerasHub 0.27 to 0.32. Each function says
what it relies on, so that a new release can be checked function by function.
"""

from keras_flix._compat.layers import (
    BaseVariablesCheck as BaseVariablesCheck,
)
from keras_flix._compat.layers import (
    Mixin as Mixin,
)
from keras_flix._compat.layers import (
    add_table as add_table,
)
from keras_flix._compat.layers import (
    change_class as change_class,
)
from keras_flix._compat.layers import (
    fresh_seed as fresh_seed,
)
from keras_flix._compat.layers import (
    kernel_shape as kernel_shape,
)
from keras_flix._compat.layers import (
    memory_of as memory_of,
)
from keras_flix._compat.layers import (
    own_variables as own_variables,
)
from keras_flix._compat.layers import (
    quantized_output as quantized_output,
)
from keras_flix._compat.layers import (
    rounds_logits as rounds_logits,
)
from keras_flix._compat.layers import (
    unlocked as unlocked,
)
from keras_flix._compat.models import (
    archive_read_without_checksums as archive_read_without_checksums,
)
from keras_flix._compat.models import (
    asks_for_shapes as asks_for_shapes,
)
from keras_flix._compat.models import (
    clone as clone,
)
from keras_flix._compat.models import (
    dry_run as dry_run,
)
from keras_flix._compat.models import (
    flatten_layers as flatten_layers,
)
from keras_flix._compat.models import (
    freeze as freeze,
)
from keras_flix._compat.models import (
    input_keys as input_keys,
)
from keras_flix._compat.models import (
    input_names as input_names,
)
from keras_flix._compat.models import (
    is_functional as is_functional,
)
from keras_flix._compat.models import (
    layers_with_parents as layers_with_parents,
)
from keras_flix._compat.models import (
    may_overwrite as may_overwrite,
)
from keras_flix._compat.models import (
    register_class_name as register_class_name,
)
from keras_flix._compat.models import (
    seed_states as seed_states,
)
from keras_flix._compat.models import (
    symbolic_inputs as symbolic_inputs,
)
from keras_flix._compat.models import (
    takes_dict as takes_dict,
)
from keras_flix._compat.models import (
    unpickle_function as unpickle_function,
)
from keras_flix._compat.optimizer_guard import guard_rows as guard_rows
from keras_flix._compat.optimizer_state import (
    carried_rows as carried_rows,
)
from keras_flix._compat.optimizer_state import (
    check_growable as check_growable,
)
from keras_flix._compat.optimizer_state import (
    regrow_optimizer as regrow_optimizer,
)
from keras_flix._compat.optimizer_state import (
    resize_variable as resize_variable,
)
from keras_flix._compat.sparse_rows import (
    LazyRows as LazyRows,
)
from keras_flix._compat.sparse_rows import (
    RowGradient as RowGradient,
)
from keras_flix._compat.sparse_rows import (
    first_place as first_place,
)
from keras_flix._compat.sparse_rows import (
    take_rows as take_rows,
)
from keras_flix._compat.sparse_rows import (
    take_with_row_gradient as take_with_row_gradient,
)
from keras_flix._compat.trainers import (
    accept_training as accept_training,
)
from keras_flix._compat.trainers import (
    begin_at_epoch as begin_at_epoch,
)
from keras_flix._compat.trainers import (
    in_replica as in_replica,
)
from keras_flix._compat.trainers import (
    is_running as is_running,
)
from keras_flix._compat.trainers import (
    number_sources as number_sources,
)
from keras_flix._compat.trainers import (
    optimizer_knows as optimizer_knows,
)
from keras_flix._compat.trainers import (
    reset_functions as reset_functions,
)
from keras_flix._compat.trainers import (
    source_kind as source_kind,
)
from keras_flix._compat.trainers import (
    track_torch_parameters as track_torch_parameters,
)
from keras_flix._compat.trainers import (
    training_state as training_state,
)
from keras_flix._compat.trainers import (
    variables_survive as variables_survive,
)
from keras_flix._compat.trainers import (
    wrap_rematerialization as wrap_rematerialization,
)
