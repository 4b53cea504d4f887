"""A local stand-in for the carrier's web service, as slow as the real one."""

import json
import threading
import time
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ANSWER_AFTER = 7.0


class _Quote(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        time.sleep(ANSWER_AFTER)
        body = json.dumps({"price": 4.9}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (inherited)
        """Write no access log."""


@cache
def url() -> str:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Quote)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="carrier", daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"
