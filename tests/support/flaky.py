"""A proxy before an S3 server that answers badly when it is told to."""

import http.client
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

STALL_S = 1.5
ERRORS = {"500": "InternalError", "503": "SlowDown", "403": "ExpiredToken"}


class FlakyProxy:
    """Each entry of `faults` befalls one request; then all goes well.

    `500`, `503` and `403` are answers; `drop` closes the connection without an answer; `reset`
    breaks it in the middle of the body; `stall` sends nothing for `STALL_S` seconds.
    """

    def __init__(self, host: str, port: int) -> None:
        self.target, self.faults, self.lock, self.met = (
            (host, port),
            list[str](),
            threading.Lock(),
            0,
        )
        self.bytes_sent = 0
        self.server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self})
        )
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def next_fault(self) -> str:
        with self.lock:
            self.met += bool(self.faults)
            return self.faults.pop(0) if self.faults else ""

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FlakyProxy

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.proxy.next_fault()
        if fault in ERRORS:
            self.answer(int(fault), {}, f"<Error><Code>{ERRORS[fault]}</Code></Error>".encode())
            return
        if fault == "stall":
            time.sleep(STALL_S)
        if fault in ("drop", "stall"):
            self.close_connection = True
            return
        connection = http.client.HTTPConnection(*self.proxy.target)
        connection.request(self.command, self.path, body, dict(self.headers))
        response = connection.getresponse()
        content = response.read()
        if fault == "reset" and not content:  # done, but nobody hears of it
            self.close_connection = True
            return
        self.answer(response.status, dict(response.headers), content, broken=fault == "reset")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815

    def answer(
        self, status: int, headers: dict[str, str], body: bytes, broken: bool = False
    ) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        length = (
            headers.get("Content-Length", str(len(body)))
            if self.command == "HEAD"
            else str(len(body))
        )
        self.send_header("Content-Length", length)
        self.end_headers()
        if broken:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            # Closing with this option sends a reset instead of a farewell.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif self.command != "HEAD":
            self.proxy.bytes_sent += len(body)
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass
