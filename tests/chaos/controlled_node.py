"""`progressor-node` with a control socket, since it has no client interface of its own yet.

    python -m tests.chaos.controlled_node CONTROL_SOCKET --config FILE

Each connection carries one request, a line of JSON: `{"verb": ..., "arguments": {...}}`, bytes as latin-1 text. The
answer is a line too: `{"result": ...}` or `{"error": class name, "text": ...}`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingUnixStreamServer
from threading import Thread
from typing import Any

import progressor.node
from progressor import Node
from progressor.errors import ProgressorError


def serve(node: Node, path: Path) -> None:
    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            request = json.loads(self.rfile.readline())
            self.wfile.write(json.dumps(answer(node, request)).encode() + b"\n")

    class Server(ThreadingUnixStreamServer):
        daemon_threads = True
        request_queue_size = 128

    Thread(target=Server(str(path), Handler).serve_forever, daemon=True).start()


def answer(node: Node, request: dict[str, Any]) -> dict[str, Any]:
    arguments = {
        name: value.encode("latin-1") if name in ("args", "context") else value
        for name, value in request["arguments"].items()
    }
    try:
        result = getattr(node.client, request["verb"])(**arguments)
    except ProgressorError as error:
        return {"error": type(error).__name__, "text": str(error)}
    return {"result": result.decode("latin-1") if isinstance(result, bytes) else result}


def main(control: str, *arguments: str) -> int:
    class Controlled(Node):
        def start(self) -> None:
            super().start()
            serve(self, Path(control))

    progressor.node.Node = Controlled  # type: ignore[attr-defined]
    return progressor.node.main(arguments)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
