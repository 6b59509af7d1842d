// Data without a schema, in the shape of MessagePack.
namespace py progressor.rpc.gen.msgpack

typedef list<Value>       Array
typedef map<Value, Value> Object

struct Nil {}

union Value {
  1: Nil    nl
  2: bool   b
  3: i64    i
  /** neither an infinity nor NaN */
  4: double flt
  5: string str
  6: binary bin
  7: Object obj
  8: Array  arr
}
