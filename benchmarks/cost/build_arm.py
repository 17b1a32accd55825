"""Makes any arm of its name: Keras' own, or one of the peers."""

from __future__ import annotations

from benchmarks.cost.arm import Arm, ArmSpec
from benchmarks.cost.keras_arms import KERAS_ARMS, keras_arm
from benchmarks.cost.peer_arms import peer_arm
from benchmarks.cost.workload import Workload


def build_arm(spec: ArmSpec, workload: Workload) -> Arm:
    """The arm's model, adapted and ready to train."""
    if spec.name in KERAS_ARMS:
        return keras_arm(spec, workload)
    return peer_arm(spec.name, workload)
