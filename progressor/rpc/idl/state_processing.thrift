// The machinegun protocol: Automaton is what a node serves, Processor and Modernizer are what it calls.
// Fields stand in the order in which Erlang writes them; a decoder must take any order.
namespace py progressor.rpc.gen.state_processing

include "base.thrift"
include "msgpack.thrift"

typedef msgpack.Value Args
typedef msgpack.Value CallResponse
typedef msgpack.Value RepairResponse
typedef string        NotificationID

struct Content {
  1: optional i32           format_version
  2: required msgpack.Value data
}

typedef Content         EventBody
typedef list<EventBody> EventBodies
typedef Content         AuxState

struct Event {
  1: required base.EventID   id
  2: required base.Timestamp created_at
  5: optional i32            format_version
  4: required msgpack.Value  data
}

typedef list<Event> History

struct MachineStatusWorking {}

struct MachineStatusFailed {
  1: optional string reason
}

union MachineStatus {
  1: MachineStatusWorking working
  2: MachineStatusFailed  failed
}

enum Direction {
  forward  = 1
  backward = 2
}

/** Events behind `after` (forward, ascending) or before it (backward, descending), at most `limit`. */
struct HistoryRange {
  1: optional base.EventID after
  2: optional i32          limit
  3: optional Direction    direction = Direction.forward
}

struct Machine {
  1: required base.Namespace ns
  2: required base.ID        id
  3: required History        history
  4: required HistoryRange   history_range
  8: optional MachineStatus  status
  7: optional AuxState       aux_state
  6: optional base.Timestamp timer
}

union Reference {
  1: base.ID id
}

struct MachineDescriptor {
  1: required base.Namespace ns
  2: required Reference      ref
  3: required HistoryRange   range
}

struct MachineEvent {
  1: required base.Namespace ns
  2: required base.ID        id
  3: required Event          event
}

struct SetTimerAction {
  1: required base.Timer   timer
  2: optional HistoryRange range
  3: optional base.Timeout timeout
}

struct UnsetTimerAction {}

union TimerAction {
  1: SetTimerAction   set_timer
  2: UnsetTimerAction unset_timer
}

struct RemoveAction {}

struct ComplexAction {
  3: optional TimerAction  timer
  4: optional RemoveAction remove
}

struct MachineStateChange {
  3: optional AuxState    aux_state
  4: optional EventBodies events
}

struct CallArgs {
  1: required Args    arg
  2: required Machine machine
}

struct CallResult {
  1: required CallResponse       response
  2: required MachineStateChange change
  3: required ComplexAction      action
}

struct RepairArgs {
  1: required Args    arg
  2: required Machine machine
}

struct RepairResult {
  1: required RepairResponse     response
  2: required MachineStateChange change
  3: required ComplexAction      action
}

struct InitSignal {
  1: required msgpack.Value arg
}

struct TimeoutSignal {}

struct NotificationSignal {
  1: required msgpack.Value arg
}

union Signal {
  1: InitSignal         init
  2: TimeoutSignal      timeout
  3: NotificationSignal notification
}

struct SignalArgs {
  1: required Signal  signal
  2: required Machine machine
}

struct SignalResult {
  1: required MachineStateChange change
  2: required ComplexAction      action
}

struct ModernizeEventResult {
  1: required EventBody event_payload
}

struct NotifyResponse {
  1: required NotificationID id
}

exception EventNotFound {}
exception MachineNotFound {}
exception NamespaceNotFound {}
exception MachineAlreadyExists {}
exception MachineFailed {}
exception MachineAlreadyWorking {}

exception RepairFailed {
  1: required msgpack.Value reason
}

service Processor {
  SignalResult ProcessSignal(1: SignalArgs a)
  CallResult ProcessCall(1: CallArgs a)
  RepairResult ProcessRepair(1: RepairArgs a) throws (1: RepairFailed ex1)
}

service Modernizer {
  ModernizeEventResult ModernizeEvent(1: MachineEvent ev)
}

service Automaton {
  void Start(1: base.Namespace ns, 2: base.ID id, 3: Args a)
    throws (1: NamespaceNotFound ex1, 2: MachineAlreadyExists ex2, 3: MachineFailed ex3)

  RepairResponse Repair(1: MachineDescriptor desc, 2: Args a)
    throws (1: NamespaceNotFound ex1, 2: MachineNotFound ex2, 3: MachineFailed ex3, 4: MachineAlreadyWorking ex4,
            5: RepairFailed ex5)

  void SimpleRepair(1: base.Namespace ns, 2: Reference ref)
    throws (1: NamespaceNotFound ex1, 2: MachineNotFound ex2, 3: MachineFailed ex3, 4: MachineAlreadyWorking ex4)

  CallResponse Call(1: MachineDescriptor desc, 2: Args a)
    throws (1: NamespaceNotFound ex1, 2: MachineNotFound ex2, 3: MachineFailed ex3)

  Machine GetMachine(1: MachineDescriptor desc)
    throws (1: NamespaceNotFound ex1, 2: MachineNotFound ex2, 3: EventNotFound ex3)

  void Remove(1: base.Namespace ns, 2: base.ID id)
    throws (1: NamespaceNotFound ex1, 2: MachineNotFound ex2)

  void Modernize(1: MachineDescriptor desc)
    throws (1: NamespaceNotFound ex1, 2: MachineNotFound ex2)

  NotifyResponse Notify(1: MachineDescriptor desc, 2: Args a)
    throws (1: NamespaceNotFound ex1, 2: MachineNotFound ex2)
}
