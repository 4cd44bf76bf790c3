"""A server of a folder's files and parts of them, as a program of its own: FOLDER LOG.

GDAL waits for some answers while it holds Python's lock, so a server in the same process could not give them.
"""

from __future__ import annotations

import re
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(SimpleHTTPRequestHandler):
    """Answers as object stores do; what lies under ``signed`` is given only to those who have the signature."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        with LOG.open("a") as log:
            log.write(f"{self.path}\n")
        path = Path(self.translate_path(self.path))
        if "signed" in path.parts and "sig=secret%2Ftoken" not in self.path:
            return self.send_error(403)
        if not path.is_file():
            return self.send_error(404)
        data, status = path.read_bytes(), 200
        size = len(data)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            first, last = int(wanted[1]), min(int(wanted[2] or size - 1), size - 1)
            data, status = data[first : last + 1], 206
        self.send_response(status)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        return None


if __name__ == "__main__":
    LOG = Path(sys.argv[2])
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=sys.argv[1])) as server:
        server.daemon_threads = True
        print(server.server_port, flush=True)
        server.serve_forever()
