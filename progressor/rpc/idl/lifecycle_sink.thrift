// What stands in the lifecycle topic: a bare LifecycleEvent per message.
namespace py progressor.rpc.gen.lifecycle_sink

include "base.thrift"
include "state_processing.thrift"

struct MachineLifecycleCreatedEvent {}

struct MachineLifecycleStatusChangedEvent {
  1: required state_processing.MachineStatus new_status
}

struct MachineLifecycleRemovedEvent {}

union MachineLifecycleEvent {
  1: MachineLifecycleCreatedEvent       created
  2: MachineLifecycleStatusChangedEvent status_changed
  3: MachineLifecycleRemovedEvent       removed
}

union LifecycleEventData {
  1: MachineLifecycleEvent machine
}

struct LifecycleEvent {
  1: required base.Namespace     machine_ns
  2: required base.ID            machine_id
  3: required base.Timestamp     created_at
  4: required LifecycleEventData data
}
