"""support/server.py: a page in the browser, and a program behind it that follows its commands, one at a time.

    page --POST /do {"do": NAME, "visitor": ID, ...}--> Server --NAME(...)--> game
      ^                                                                         |
      +------------------------------ {...} or {"error": one line} -------------+"""

import json
import math
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MOST_BYTES = 16_000_000  # of a message: a picture may be in it
IDLE = 60.0  # seconds of silence after which another visitor may come
BAD_MESSAGE = ValueError, TypeError, RecursionError  # what wrong commands and wrong JSON raise
LOCAL = "127.0.0.1", "localhost"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # a connection stays open
    timeout = 600  # seconds of silence until it is closed
    disable_nagle_algorithm = True  # else an answer's end waits 40 ms for the browser
    wbufsize = -1  # head and body of an answer go out together

    def answer(self, body, kind, status=200):
        """Send bytes of a content type."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def is_allowed(self, paths):
        """Whether a path is here; else the answer is 404. On this machine alone, a page of another host whose
        name leads here (DNS rebinding) is refused, too."""
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        is_stranger = self.server.server_address[0] in LOCAL and host not in LOCAL
        if is_stranger or self.path not in paths:
            self.close_connection = True  # a body stays unread
            self.answer(b"nothing here", "text/plain", 404)
            return False
        return True

    def do_GET(self):
        if not self.is_allowed(("/", *self.server.files)):
            return
        if self.path == "/":
            self.answer(self.server.page.read_bytes(), "text/html; charset=utf-8")
        else:
            kind, make = self.server.files[self.path]
            self.answer(self.server.work(make), kind)

    def do_POST(self):
        if not self.is_allowed(("/do",)):
            return
        try:
            answer = json.dumps(self.server.work(self.server.obey, self.message()), allow_nan=False)
        except Exception as error:  # whatever it is, the server goes on
            if not isinstance(error, BAD_MESSAGE):
                traceback.print_exc()
            answer = json.dumps(dict(error=str(error)[:300] or repr(error)))
        self.answer(answer.encode(), "application/json")

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

    def handle_error(self, *_):
        """Tell of errors, but not that a page was closed or left."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            traceback.print_exc()

    def work(self, function, *arguments):
        """Let the worker call a function -> what it returns."""
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
