"""A modernizer in a process of its own: machinegun's `Modernizer` over woody.

`python -m tests.acceptance.modernizer PORT` marks what it has seen, and does what the payload of an event says.
"""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from progressor.rpc import codec
from progressor.rpc.gen.msgpack.ttypes import Value
from progressor.rpc.gen.state_processing import Modernizer
from progressor.rpc.gen.state_processing import ttypes as mg


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer goes as a whole: else its body waits for the acknowledgement of its head

    def do_POST(self) -> None:
        _, _, seqid, body = codec.message_head(self.rfile.read(int(self.headers["content-length"])))
        asked = codec.decode(Modernizer.ModernizeEvent_args, body).ev
        told = bytes(asked.event.data.bin)
        status = {b"unavailable": 503, b"broken": 500}.get(told, 200)
        version = {b"lower": 0, b"same": asked.event.format_version, b"none": None}.get(told, 2)
        data = Value(bin=f"{asked.ns} {asked.id} {asked.event.id} ".encode() + told)
        result = Modernizer.ModernizeEvent_result(mg.ModernizeEventResult(mg.Content(version, data)))
        self.send_response(status)
        reply = codec.encode_message("ModernizeEvent", codec.REPLY, seqid, result) if status == 200 else b""
        self.send_header("content-length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, format: str, *args: object) -> None:
        pass


if __name__ == "__main__":
    with ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler) as server:
        print("ready", flush=True)
        server.serve_forever()
