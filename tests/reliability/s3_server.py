"""A real S3 server (moto's) on a loopback address, in a process of its own that ends when this one does."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import fsspec

_LIFETIME_SECONDS = 4 * 3600
BUCKET = "harvests"


class S3Server:
    """The server's process, as :func:`s3_server` starts it. Objects live in its memory."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.endpoint = self._say("up")

    def down(self) -> None:
        """Refuse connections."""
        self._say("down")

    def up(self) -> None:
        """Answer again, at the same port, with what was there."""
        assert self._say("up") == self.endpoint

    def hang(self) -> None:
        """Take connections and answer nothing, until :meth:`go_on`."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def ignore_conditions(self, ignore: bool) -> None:
        """Whether to do as servers that don't know ``If-None-Match``."""
        self._say("careless" if ignore else "careful")

    def stop(self) -> None:
        self.go_on()
        self._process.communicate(timeout=30)

    def _say(self, word: str) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()


@contextlib.contextmanager
def s3_server() -> Iterator[S3Server]:
    """A server with one empty bucket, found by s3fs through the environment (also in child processes)."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.reliability.s3_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    server = S3Server(process)
    settings = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": server.endpoint,
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # another server's clients know its address for good
    try:
        yield server
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        server.stop()


def _serve() -> None:
    import boto3
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.0"  # no connection outlives its request: one that does would still be served

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = DomainDispatcherApplication(create_backend_app)
    one_at_a_time = threading.Lock()  # moto looks for an object and then puts one, where a real store does both at once
    careless = False

    def serve(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if careless:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        with one_at_a_time:
            return list(application(environ, start_response))

    signal.alarm(_LIFETIME_SECONDS)
    port = 0
    running: BaseWSGIServer | None = None
    for line in sys.stdin:  # ends with the process that started this one
        word = line.strip()
        if word == "up":
            running = make_server("127.0.0.1", port, serve, threaded=True, request_handler=Handler)
            threading.Thread(target=running.serve_forever, daemon=True).start()
            if port == 0:
                port = running.server_port
                keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
                boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **keys).create_bucket(Bucket=BUCKET)
        elif word == "down" and running is not None:
            running.shutdown()
            running.server_close()
        careless = word == "careless"
        print(f"http://127.0.0.1:{port}", flush=True)


if __name__ == "__main__":
    _serve()
