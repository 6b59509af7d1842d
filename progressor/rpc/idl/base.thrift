// The types that the machinegun protocol shares. Facts of the wire: docs/thrift.md.
namespace py progressor.rpc.gen.base

typedef string ID
typedef string Namespace
typedef i64    EventID
typedef binary Opaque
/** RFC 3339, UTC */
typedef string Timestamp
typedef map<string, string> StringMap
/** seconds */
typedef i32    Timeout

struct Content {
  1: required string type
  2: required binary data
}

enum BoundType {
  inclusive = 0
  exclusive = 1
}

struct TimestampIntervalBound {
  1: required BoundType bound_type
  2: required Timestamp bound_time
}

/** A bound that is missing bounds nothing. */
struct TimestampInterval {
  1: optional TimestampIntervalBound lower_bound
  2: optional TimestampIntervalBound upper_bound
}

struct Rational {
  1: required i64 p
  2: required i64 q
}

union Timer {
  1: Timeout   timeout
  2: Timestamp deadline
}

exception InvalidRequest {
  1: required list<string> errors
}
