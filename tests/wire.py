"""Talk HTTP byte by byte: send bytes as they are, check what comes back and take it apart."""
import collections
import json
import re
import socket

# headers: [(name, value)] in their order
Answer = collections.namedtuple("Answer", "status headers body")
STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d{3}) [A-Z][A-Za-z' -]+\r\n")
PROBE = (b"GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: 127.0.0.1\r\n"
         b"Connection: keep-alive\r\n\r\n")


def request(line, *headers, body=b"", host="127.0.0.1", keep=True):
    """Return the bytes of a request: line (HTTP/1.1 unless it says), Host unless None, headers.

    It asks for keep-alive, unless `keep` is False, a header says what it wants, or by HTTP/1.0.
    """
    keep = keep and " HTTP/" not in line and not any(
        header.lower().startswith("connection:") for header in headers)
    line += "" if " HTTP/" in line else " HTTP/1.1"
    lines = [line] + (["Host: " + host] if host is not None else []) + list(headers)
    lines += ["Connection: keep-alive"] if keep else []
    return "\r\n".join(lines + ["", ""]).encode("latin-1") + body


def get(*headers, path="/latest/meta-data/instance-id", **options):
    """Return the bytes of a GET."""
    return request("GET " + path, *headers, **options)


class Wire:
    """One connection to a service."""

    def __init__(self, service, timeout=5):
        self.socket = service.connect(timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""

    def send(self, data, piece=None):
        """Send bytes, at once or in pieces; a service that closes early has heard enough."""
        try:
            for at in range(0, len(data), piece or len(data) or 1):
                self.socket.sendall(data[at:at + (piece or len(data))])
        except (BrokenPipeError, ConnectionResetError):
            pass

    def answer(self, head_only=False):
        """Return the next answer, past interim ones (1xx), or None if the other side closed."""
        while True:
            answer = self.any_answer(head_only)
            if not answer or answer.status >= 200:
                return answer

    def any_answer(self, head_only=False):
        """Return the next answer, an interim one too."""
        while b"\r\n\r\n" not in self._received:
            if not self._receive():
                assert not self._received, self._received
                return None
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        match = STATUS_LINE.match(head + b"\r\n")
        assert match, head
        status = int(match.group(1))
        headers = [tuple(line.decode("latin-1").split(": ", 1)) for line in head.split(b"\r\n")[1:]]
        if status < 200:
            return Answer(status, headers, b"")
        length = int(dict(headers)["Content-Length"])
        while not head_only and len(self._received) < length:
            assert self._receive(), "closed inside a body"
        body, self._received = (b"", self._received) if head_only else (
            self._received[:length], self._received[length:])
        return checked(Answer(status, headers, body), head_only)

    def closed(self):
        """Tell whether the other side has closed, and said nothing more before."""
        return not self._received and not self._receive()

    def kept(self):
        """Tell whether another request on this connection is answered, and nothing else comes."""
        assert not self._received, self._received
        self.send(PROBE)
        answer = self.answer()
        return (bool(answer) and answer.status == 200 and answer.body.startswith(b"i-")
                and not self._received)

    def _receive(self):
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError:
            data = b""
        self._received += data
        return data

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()


def checked(answer, head_only=False):
    """Return an answer, checked: no 500, no HTML, no CORS, the server's name, an error in JSON."""
    names = [name for name, _ in answer.headers]
    fields = dict(answer.headers)
    assert answer.status != 500 and len(set(names)) == len(names), answer
    assert fields["Server"] == "EC2ws" and fields["Date"].endswith(" GMT"), answer
    assert not [name for name in names if name.lower().startswith("access-control")], answer
    if answer.status >= 400:
        assert fields["Content-Type"] == "application/json", answer
        assert head_only or set(json.loads(answer.body.decode())) == {"error"}, answer
    return answer
