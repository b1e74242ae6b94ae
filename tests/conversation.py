"""Have a Handler answer without a server or a socket: what it would wait for is noted."""
import socket

import fake_metadata

SIGNER = fake_metadata.Signer(
    None, lambda cancelled: fake_metadata.made_identity(), print, lambda callback: callback())


class Loop:
    """Stands for the server of one handler: nothing waits, and what it would wait for is noted."""

    stopping, now, common_headers = False, 0.0, b"Date: now\r\nServer: EC2ws\r\n"
    requests = None

    def __init__(self, metadata, tokens):
        self.service, self.tokens, self.clock = metadata, tokens, metadata.clock
        self.log, self.slept = self, []

    def call_later(self, seconds, callback):
        self.slept.append(seconds)
        callback()

    def cancel(self, timer):
        pass

    def resume(self, handler):
        pass  # the test does

    def request(self, peer, request, status, size, seconds, reason, limit, client=None):
        self.noted = peer, request, status, size, seconds, reason


class Client:
    """Stands for the connection of a client that sends some bytes and then closes."""

    family = socket.AF_INET

    def __init__(self, data):
        self.data, self.sent, self.is_reset = [b"", data], b"", False

    def recv(self, size):
        return self.data.pop() if self.data else b""

    def send(self, data):
        self.sent += data
        return len(data)

    def setsockopt(self, level, option, value):
        self.is_reset = self.is_reset or (level, option) == (socket.SOL_SOCKET, socket.SO_LINGER)

    def getsockname(self):
        return "127.0.0.1", 8000

    def shutdown(self, how):
        pass


def converse(metadata, tokens, data, handler_class=fake_metadata.Handler, peer="127.0.0.1"):
    """Have a handler answer some bytes; return its server and its connection."""
    loop, client = Loop(metadata, tokens), Client(data)
    try:
        for _ in handler_class(client, (peer, 1), loop).handle():
            pass
    except OSError:  # the client has closed
        pass
    return loop, client
