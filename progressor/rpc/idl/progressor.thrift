// The native service of a node: every verb of Progressor, with its errors as exceptions (docs/thrift.md, "The native service").
// Methods are written as those of the machinegun protocol: Thrift reserves the name `list`.
namespace py progressor.rpc.gen.native

typedef string Namespace
typedef string ProcessID
typedef i64    EventID
typedef i64    TaskID

/** Microseconds since 1970-01-01T00:00:00Z: what the database keeps, without a text to parse. */
typedef i64 Timestamp

/** A JSON object as text: what it may hold, Thrift's types cannot say. */
typedef string Object

/** Seconds, fractions too. */
typedef double Seconds

enum Direction {
  forward  = 1
  backward = 2
}

enum ProcessStatus {
  init    = 1
  running = 2
  error   = 3
}

enum TaskType {
  init    = 1
  timeout = 2
  call    = 3
  notify  = 4
  repair  = 5
  remove  = 6
}

enum TaskStatus {
  waiting   = 1
  running   = 2
  blocked   = 3
  error     = 4
  finished  = 5
  cancelled = 6
}

enum Health {
  passing  = 1
  critical = 2
}

/** Events behind `offset` (forward, ascending) or before it (backward, descending), at most `limit`. */
struct Range {
  1: optional EventID   offset
  2: optional i64       limit
  3: optional Direction direction = Direction.forward
}

/** What a step is asked to do. SimpleRepair and Remove run none: they use neither arguments nor range. */
struct Request {
  1: required Namespace ns
  2: required ProcessID id
  3: optional binary    arguments
  4: optional binary    context
  /** The slice of the history that the step is given; all of it when it is left out. */
  5: optional Range     range
  /** 1 to 256 characters. All requests with one key have one effect, and get the same answer. */
  6: optional string    idempotency_key
  /** How long to wait for the answer, at most the `process_step_timeout` of the namespace. */
  7: optional Seconds   timeout
}

struct Answer {
  /** Of the step; left out when it gave none. */
  1: optional binary  response
  2: required TaskID  task_id
  /** For `at_least_event_id` of a later Get; left out when the node does not know it. */
  3: optional EventID last_event_id
}

struct Event {
  1: required EventID   event_id
  2: required Timestamp timestamp
  3: required Object    metadata
  4: required binary    payload
  5: optional TaskID    task_id
}

struct Process {
  1:  required ProcessID     process_id
  2:  required ProcessStatus status
  3:  optional string        detail
  4:  optional binary        aux_state
  5:  optional Object        metadata
  6:  required list<Event>   history
  7:  required EventID       last_event_id
  8:  required Range         range
  9:  optional Timestamp     created_at
  10: optional ProcessStatus previous_status
  11: optional Timestamp     status_changed_at
  12: optional TaskID        corrupted_by
}

struct GetRequest {
  1: required Namespace ns
  2: required ProcessID id
  3: optional Range     range
  /** False: read the database, whatever the cache holds. */
  4: optional bool      cache = true
  /** A process that has this event, however old the cache is. */
  5: optional EventID   at_least_event_id
  6: optional Seconds   timeout
}

/** An event to import: its number, its time and its metadata may be left out. */
struct NewEvent {
  1: optional EventID   event_id
  2: optional Timestamp timestamp
  3: optional Object    metadata
  4: required binary    payload
}

struct NewProcess {
  1: optional ProcessStatus  status = ProcessStatus.running
  2: optional string         detail
  3: optional binary         aux_state
  4: optional Object         metadata
  5: optional list<NewEvent> history
  6: optional Timestamp      created_at
  7: optional ProcessStatus  previous_status
  8: optional Timestamp      status_changed_at
}

struct SetTimer {
  1: required Timestamp at
  /** Remove the process then, instead of a step. */
  2: optional bool      remove = false
}

struct PutRequest {
  1: required Namespace  ns
  2: required ProcessID  id
  3: required NewProcess process
  4: optional SetTimer   timer
  5: optional binary     context
}

/** One task of a process, with the events that it produced. `retry_attempts`: those that have failed, or ended with their
    node; `retry_interval`: from the failed one to the next, while that is awaited or runs. */
struct TraceUnit {
  1:  required TaskID      task_id
  2:  required TaskType    task_type
  3:  required TaskStatus  status
  4:  required Timestamp   scheduled
  5:  optional Timestamp   running
  6:  optional Timestamp   finished
  7:  required binary      arguments
  8:  optional Object      metadata
  9:  required binary      context
  10: optional string      idempotency_key
  11: optional binary      response
  12: optional string      error
  13: required Seconds     retry_interval
  14: required i32         retry_attempts
  15: required list<Event> events
}

/** Which processes a page shows: all that are asked for at once. Intervals include their beginning only. */
struct ListRequest {
  1:  required Namespace     ns
  2:  optional ProcessStatus status
  /** Contains it. */
  3:  optional Object        metadata
  4:  optional string        id_prefix
  5:  optional Timestamp     created_from
  6:  optional Timestamp     created_to
  7:  optional Timestamp     status_changed_from
  8:  optional Timestamp     status_changed_to
  /** 1 to 10,000. */
  9:  optional i32           limit = 100
  /** Of the page before. */
  10: optional string        cursor
}

/** Processes in the order of their ids, without histories. */
struct Page {
  1: required list<Process> items
  /** Left out at the end. */
  2: optional string        cursor
}

struct HealthReport {
  1: required Health health
  2: required Object details
}

exception NamespaceNotFound {
  1: required string message
}

exception ProcessNotFound {
  1: required string message
}

exception ProcessAlreadyExists {
  1: required string message
}

exception ProcessRunning {
  1: required string message
}

exception ProcessInError {
  1: required string message
}

exception ProcessInInit {
  1: required string message
}

/** The step failed; the process is in error now. */
exception ProcessorError {
  1: required string reason
}

/** No answer in time. The outcome is unknown: the task goes on. */
exception RequestTimeout {
  1: required string message
}

exception InvalidRequest {
  1: required string field
  2: required string problem
}

exception IdempotencyConflict {
  1: required string message
}

/** Nothing was stored: try again. When something may have been, it is a RequestTimeout. */
exception StorageUnavailable {
  1: required string message
}

/** The database refuses these data: do not try again. */
exception StorageRejected {
  1: required string message
}

/** Nothing was done: the secret, or the certificate of the client, is missing or none of those that are let in. */
exception AccessDenied {
  1: required string message
}

// Wherever it is thrown, an exception has the same number. What runs a step, or waits for one, throws them all: a request
// with an idempotency key gets the answer of the first one, whatever that was.
service Progressor {
  /** The first call of a connection over TCP, when the node wants a secret. Over HTTP the secret is a header,
      `Authorization: Bearer SECRET`. */
  void Authenticate(1: string secret) throws (1: AccessDenied access_denied)

  Answer Init(1: Request request) throws (
    1:  AccessDenied         access_denied
    2:  InvalidRequest       invalid_request
    3:  NamespaceNotFound    namespace_not_found
    4:  StorageUnavailable   storage_unavailable
    5:  StorageRejected      storage_rejected
    6:  RequestTimeout       request_timeout
    7:  ProcessNotFound      process_not_found
    8:  ProcessAlreadyExists process_already_exists
    9:  ProcessRunning       process_running
    10: ProcessInError       process_in_error
    11: ProcessInInit        process_in_init
    12: IdempotencyConflict  idempotency_conflict
    13: ProcessorError       processor_error
  )

  Answer Call(1: Request request) throws (
    1:  AccessDenied         access_denied
    2:  InvalidRequest       invalid_request
    3:  NamespaceNotFound    namespace_not_found
    4:  StorageUnavailable   storage_unavailable
    5:  StorageRejected      storage_rejected
    6:  RequestTimeout       request_timeout
    7:  ProcessNotFound      process_not_found
    8:  ProcessAlreadyExists process_already_exists
    9:  ProcessRunning       process_running
    10: ProcessInError       process_in_error
    11: ProcessInInit        process_in_init
    12: IdempotencyConflict  idempotency_conflict
    13: ProcessorError       processor_error
  )

  /** Answers when the notification is stored: with its task, and no response. */
  Answer Notify(1: Request request) throws (
    1:  AccessDenied         access_denied
    2:  InvalidRequest       invalid_request
    3:  NamespaceNotFound    namespace_not_found
    4:  StorageUnavailable   storage_unavailable
    5:  StorageRejected      storage_rejected
    6:  RequestTimeout       request_timeout
    7:  ProcessNotFound      process_not_found
    8:  ProcessAlreadyExists process_already_exists
    9:  ProcessRunning       process_running
    10: ProcessInError       process_in_error
    11: ProcessInInit        process_in_init
    12: IdempotencyConflict  idempotency_conflict
    13: ProcessorError       processor_error
  )

  Answer Repair(1: Request request) throws (
    1:  AccessDenied         access_denied
    2:  InvalidRequest       invalid_request
    3:  NamespaceNotFound    namespace_not_found
    4:  StorageUnavailable   storage_unavailable
    5:  StorageRejected      storage_rejected
    6:  RequestTimeout       request_timeout
    7:  ProcessNotFound      process_not_found
    8:  ProcessAlreadyExists process_already_exists
    9:  ProcessRunning       process_running
    10: ProcessInError       process_in_error
    11: ProcessInInit        process_in_init
    12: IdempotencyConflict  idempotency_conflict
    13: ProcessorError       processor_error
  )

  Answer SimpleRepair(1: Request request) throws (
    1:  AccessDenied         access_denied
    2:  InvalidRequest       invalid_request
    3:  NamespaceNotFound    namespace_not_found
    4:  StorageUnavailable   storage_unavailable
    5:  StorageRejected      storage_rejected
    6:  RequestTimeout       request_timeout
    7:  ProcessNotFound      process_not_found
    8:  ProcessAlreadyExists process_already_exists
    9:  ProcessRunning       process_running
    10: ProcessInError       process_in_error
    11: ProcessInInit        process_in_init
    12: IdempotencyConflict  idempotency_conflict
    13: ProcessorError       processor_error
  )

  Answer Remove(1: Request request) throws (
    1:  AccessDenied         access_denied
    2:  InvalidRequest       invalid_request
    3:  NamespaceNotFound    namespace_not_found
    4:  StorageUnavailable   storage_unavailable
    5:  StorageRejected      storage_rejected
    6:  RequestTimeout       request_timeout
    7:  ProcessNotFound      process_not_found
    8:  ProcessAlreadyExists process_already_exists
    9:  ProcessRunning       process_running
    10: ProcessInError       process_in_error
    11: ProcessInInit        process_in_init
    12: IdempotencyConflict  idempotency_conflict
    13: ProcessorError       processor_error
  )

  Process Get(1: GetRequest request) throws (
    1: AccessDenied       access_denied
    2: InvalidRequest     invalid_request
    3: NamespaceNotFound  namespace_not_found
    4: StorageUnavailable storage_unavailable
    5: StorageRejected    storage_rejected
    6: RequestTimeout     request_timeout
    7: ProcessNotFound    process_not_found
  )

  void Put(1: PutRequest request) throws (
    1: AccessDenied         access_denied
    2: InvalidRequest       invalid_request
    3: NamespaceNotFound    namespace_not_found
    4: StorageUnavailable   storage_unavailable
    5: StorageRejected      storage_rejected
    6: RequestTimeout       request_timeout
    8: ProcessAlreadyExists process_already_exists
  )

  list<TraceUnit> Trace(1: Namespace ns, 2: ProcessID id) throws (
    1: AccessDenied       access_denied
    2: InvalidRequest     invalid_request
    3: NamespaceNotFound  namespace_not_found
    4: StorageUnavailable storage_unavailable
    5: StorageRejected    storage_rejected
    6: RequestTimeout     request_timeout
    7: ProcessNotFound    process_not_found
  )

  Page List(1: ListRequest request) throws (
    1: AccessDenied       access_denied
    2: InvalidRequest     invalid_request
    3: NamespaceNotFound  namespace_not_found
    4: StorageUnavailable storage_unavailable
    5: StorageRejected    storage_rejected
    6: RequestTimeout     request_timeout
  )

  HealthReport HealthCheck(1: list<Namespace> namespaces) throws (
    1: AccessDenied       access_denied
    2: InvalidRequest     invalid_request
    3: NamespaceNotFound  namespace_not_found
    4: StorageUnavailable storage_unavailable
    5: StorageRejected    storage_rejected
    6: RequestTimeout     request_timeout
  )
}
