// What stands in the event topic: a bare SinkEvent per message.
namespace py progressor.rpc.gen.event_sink

include "base.thrift"
include "msgpack.thrift"

struct MachineEvent {
  1: required base.Namespace source_ns
  2: required base.ID        source_id
  3: required base.EventID   event_id
  4: required base.Timestamp created_at
  5: optional i32            format_version
  6: required msgpack.Value  data
}

union SinkEvent {
  1: MachineEvent event
}
