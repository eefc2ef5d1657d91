"""support/server.py: a page in the browser, and a program behind it that follows its commands, one at a time.

    page --POST /do {"do": NAME, "visitor": ID, ...}--> Server --NAME(...)--> game
      ^                                                                         |
      +------------------------------ {...} or {"error": one line} -------------+"""

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MOST_BYTES = 16_000_000  # of a message: a picture may be in it
IDLE = 60.0  # seconds of silence after which another visitor may come
BAD_MESSAGE = ValueError, TypeError, RecursionError  # what wrong commands and wrong JSON raise


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # a connection stays open
    timeout = 600  # seconds of silence until it is closed
    disable_nagle_algorithm = True  # else each answer waits 40 ms for the browser to confirm its first part
    wbufsize = -1  # an answer is sent at once

    def answer(self, body, kind, status=200):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/":
            self.answer(self.server.page.read_bytes(), "text/html; charset=utf-8")
        elif self.path in self.server.files:
            kind, make = self.server.files[self.path]
            self.answer(self.server.work(make), kind)
        else:
            self.answer(b"nothing here", "text/plain", 404)

    def do_POST(self):
        try:
            found = self.server.work(self.server.obey, self.message())
        except BAD_MESSAGE as error:
            found = dict(error=str(error)[:300])
        self.answer(json.dumps(found).encode(), "application/json")

    def message(self):
        """What the page sent.   raises  ValueError unless that is a JSON object, not too large"""
        size = self.headers.get("Content-Length", "")
        if not size.isdecimal() or int(size) > MOST_BYTES:
            self.close_connection = True  # what follows stays unread
            raise ValueError(f"expected a message of at most {MOST_BYTES:,} bytes")
        body = self.rfile.read(int(size))
        if self.headers.get("Content-Type") != "application/json":  # which no form of another site can send
            raise ValueError("expected application/json")
        message = json.loads(body)
        if not isinstance(message, dict):
            raise ValueError("expected an object")
        return message

    def log_request(self, *_):
        """Not a line for each frame."""


class Server(ThreadingHTTPServer):
    """Serves one visitor at a time.

    page      Path of the page
    commands  {name: function}, called with what a message holds beside "do" and "visitor"
    files     {address: (content type, function that returns bytes)}
    raises    OSError if the port is taken"""

    daemon_threads = True

    def __init__(self, page, commands, files, host, port):
        super().__init__((host, port), Handler)
        self.page = page
        self.commands = commands
        self.files = files
        self.visitor = ""
        self.heard = -math.inf  # when the visitor sent something
        self.worker = ThreadPoolExecutor(1)  # of all commands: connections have threads of their own

    def work(self, function, *arguments):
        return self.worker.submit(function, *arguments).result()

    def obey(self, message):
        """Follow the command message["do"] -> what it returns.   raises  what it raises, ValueError"""
        do = message.pop("do", "")
        visitor = str(message.pop("visitor", ""))[:40]
        now = time.monotonic()
        if visitor != self.visitor and now - self.heard < IDLE:
            raise ValueError("somebody else is playing; reload this page when they have closed theirs")
        self.visitor = visitor
        self.heard = -math.inf if do == "leave" else now
        if do == "leave":
            return {}
        if not isinstance(do, str) or do not in self.commands:
            raise ValueError(f"do is {str(do)[:40]!r}; expected one of {', '.join(self.commands)}")
        return self.commands[do](**message)
