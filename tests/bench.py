#!/usr/bin/env python3
"""Measure fake-metadata beside a plain ThreadingHTTPServer and a bare epoll loop.

    python3 tests/bench.py [--quick] [--against NAME=URL ...]

Prints a table of figures, and one of ratios with what each must reach. Standard library only, on
127.0.0.1, three minutes (--quick: one). The load comes from another process, the runs of the
servers are interleaved, each figure is the median of its rounds, each ratio the median of the
ratios within a round. --against takes an endpoint that runs already into the same table: a URL
without a path is asked for the credentials document.

Reading order: the servers, the load, the measures, the report, main.
"""
import argparse
import collections
import contextlib
import datetime
import http.client
import itertools
import json
import os
import platform
import resource
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = os.path.join(ROOT, "fake_metadata.py")
CREDENTIALS = "/latest/meta-data/iam/security-credentials/BaseIAMRole"
TOKEN_HEADER = "X-aws-ec2-metadata-token"
DOCUMENT_BYTES = 1278  # of the credentials document; the other two serve as much
IDLE_CONNECTIONS = 1000
PYTHON = [sys.executable, "-S"]  # a .pth file may import most of what the plain server needs
BURST_CLIENTS = 200
BURST_PATIENCE = 3  # seconds
START_PATIENCE = 10  # seconds
IP_BIND_ADDRESS_NO_PORT = 24  # Linux: the port is chosen by connect, not by bind

# What `python3 -c` runs with a port and the size of the document.
PLAIN = """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DOCUMENT = b"x" * int(sys.argv[2])

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(DOCUMENT)))
        self.end_headers()
        self.wfile.write(DOCUMENT)

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

BARE = """
import select, socket, sys

document = b"x" * int(sys.argv[2])
answer = (b"HTTP/1.1 200 OK\\r\\nContent-Type: text/plain\\r\\nAccept-Ranges: none\\r\\n"
          b"Last-Modified: Tue, 01 Dec 2026 08:00:00 GMT\\r\\nContent-Length: %d\\r\\n"
          b"Date: Tue, 01 Dec 2026 08:00:00 GMT\\r\\nServer: EC2ws\\r\\n\\r\\n"
          % len(document)) + document
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024) \\
    if hasattr(socket, "create_server") else None
if listener is None:  # Python 3.7
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", int(sys.argv[1])))
    listener.listen(1024)
poll = select.epoll()
poll.register(listener, select.EPOLLIN)
clients = {}
while True:
    for number, _ in poll.poll():
        client = clients.get(number)
        if client is None:
            client, _ = listener.accept()
            client.setblocking(False)
            clients[client.fileno()] = client
            poll.register(client, select.EPOLLIN)
            continue
        try:
            received = client.recv(4096)
            if received:
                client.send(answer)
        except OSError:
            received = b""
        if not received:
            del clients[number]
            client.close()
"""


# ---------------------------------------------------------------- the servers ------------------

class Endpoint:
    """Where requests go: an address, a path, and the head of a request for it."""

    def __init__(self, host, port, path=CREDENTIALS):
        self.host, self.port, self.path = host, port, path
        self.token = None

    def get(self, token=None):
        """Return the bytes of a GET as an SDK sends it."""
        return self._request("GET", self.path, [(TOKEN_HEADER, token)] if token else [])

    def put(self):
        """Return the bytes of a token PUT."""
        return self._request("PUT", "/latest/api/token",
                             [("X-aws-ec2-metadata-token-ttl-seconds", "21600"),
                              ("Content-Length", "0")])

    def _request(self, method, path, headers):
        lines = ["%s %s HTTP/1.1" % (method, path), "Host: %s:%d" % (self.host, self.port),
                 "Accept-Encoding: identity", "Connection: keep-alive",
                 "User-Agent: Boto3/1.34.46 md/Botocore#1.34.46 ua/2.0 os/linux lang/python#3.11.2"]
        return "\r\n".join(lines + ["%s: %s" % header for header in headers] + ["", ""])

    def ask(self, method, path, headers=()):
        """Return (status, body) of one request."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=5)
        try:
            connection.request(method, path, headers=dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.read().decode("latin-1")
        finally:
            connection.close()

    def take_token(self):
        """Take a session token for the measures, if the endpoint gives one."""
        status, body = self.ask(
            "PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "21600"})
        self.token = body if status == 200 else None
        return self.token


class Server(Endpoint):
    """A server of our own, running from `start` until `stop`."""

    def __init__(self, folder, command):
        super().__init__("127.0.0.1", free_port())
        self._folder, self._command, self.process = folder, command, None

    def start(self):
        """Start it; return the seconds until its first answer."""
        began = time.perf_counter()
        command = [part.replace("{port}", str(self.port)) for part in self._command]
        self.process = subprocess.Popen(
            PYTHON + command, cwd=self._folder, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not self._answers():
            if time.perf_counter() - began > START_PATIENCE or self.process.poll() is not None:
                raise SystemExit("bench: %s does not start" % self._command[0][:60])
            time.sleep(0.0005)
        return time.perf_counter() - began

    def _answers(self):
        try:
            with socket.create_connection((self.host, self.port), timeout=5) as connection:
                connection.sendall(self.get().encode())
                return connection.recv(4096).startswith(b"HTTP/1.")
        except OSError:
            return False

    def stop(self):
        """End it."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def resident(self):
        """Return its resident memory in MB."""
        with open("/proc/%d/status" % self.process.pid) as file:
            return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmRSS:"))

    def cpu(self):
        """Return the seconds of processor time that it has used."""
        with open("/proc/%d/stat" % self.process.pid) as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port():
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fake_metadata(folder, config=""):
    """Return fake-metadata with its access log on."""
    name = tempfile.mktemp(dir=folder)
    with open(name + ".conf", "w") as file:
        file.write(config)
    options = ["--config", name + ".conf"] if config else []
    return Server(folder, [PROGRAM, "--log", name + ".log", *options, "127.0.0.1:{port}"])


def plain(folder):
    """Return the server that many write first; its access log goes to /dev/null."""
    return Server(folder, ["-c", PLAIN, "{port}", str(DOCUMENT_BYTES)])


def bare(folder):
    """Return what Python can do at most: it answers whatever comes."""
    return Server(folder, ["-c", BARE, "{port}", str(DOCUMENT_BYTES)])


# ---------------------------------------------------------------- the load ---------------------

class Load:
    """The other process, which plays the clients: a job in, an outcome out, a line of JSON each."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), "--load"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, universal_newlines=True)

    def run(self, endpoint, requests, clients, seconds, each=None, renew=False):
        """Have clients repeat requests for some seconds.

        each: requests of a client at most; renew: a connection for each. A request "{token}" is
        filled with the token that the request before it brought. Return what `drive` returns.
        """
        job = dict(host=endpoint.host, port=endpoint.port, requests=requests, clients=clients,
                   seconds=seconds, each=each, renew=renew)
        json.dump(job, self._process.stdin)
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self):
        """End the process."""
        self._process.stdin.close()
        self._process.wait()


def serve_load():
    """Be the other process."""
    for line in sys.stdin:
        print(json.dumps(drive(**json.loads(line))), flush=True)


def talk(requests, each):
    """Yield the requests of one client, being sent the answer to each."""
    answer = b""
    for request in itertools.islice(itertools.cycle(requests), each):
        answer = yield request.replace(b"{token}", answer[-56:])


def ask_same(request):
    """Yield one request for ever: the lightest client."""
    while True:
        yield request


class Client:
    """One client: its address, socket, requests, and what it has received of an answer."""

    __slots__ = ("address", "socket", "requests", "request", "asked", "received")

    def __init__(self, address, requests):
        self.address, self.socket = address, None
        self.requests, self.request = requests, next(requests)


def drive(host, port, requests, clients, seconds, each, renew):
    """Keep clients busy; return requests answered, seconds, median and p99, failures, token.

    Each has an address of its own: one has ports for 14,000 connections a second and no more.
    An answer whose length is that of an earlier whole answer is whole: so most need no look inside.
    """
    requests = [request.encode() for request in requests]
    poll, busy, latencies, whole, failures = select.epoll(), {}, [], {}, 0
    clock, note, answer = time.perf_counter, latencies.append, b""

    def connect(client):
        client.socket, client.received, client.asked = socket.socket(), b"", clock()
        client.socket.setblocking(False)
        if host.startswith("127."):
            client.socket.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            client.socket.bind((client.address, 0))
        client.socket.connect_ex((host, port))
        busy[client.socket.fileno()] = client
        try:
            client.socket.send(client.request)
            poll.register(client.socket, select.EPOLLIN)
        except BlockingIOError:  # its queue is full
            poll.register(client.socket, select.EPOLLOUT)

    def disconnect(client):
        del busy[client.socket.fileno()]
        client.socket.close()

    began = clock()
    now, deadline = began, began + seconds
    for number in range(clients):
        is_simple = len(requests) == 1 and not each
        asking = ask_same(requests[0]) if is_simple else talk(requests, each)
        connect(Client("127.0.1.%d" % (number % 250 + 1), asking))
    while busy and now < deadline:
        for number, event in poll.poll(0.05):
            client = busy[number]
            if event & select.EPOLLOUT:
                client.socket.send(client.request)
                poll.modify(number, select.EPOLLIN)
                continue
            try:
                data = client.socket.recv(8192)
            except ConnectionError:
                data = b""
            if not data:  # gone before it answered
                failures += 1
                disconnect(client)
                connect(client)
                continue
            if client.received or len(data) not in whole:
                data = client.received = client.received + data
                closing = look_inside(data)
                if closing is None:
                    continue
                whole[len(data)], client.received = closing, b""
            now = clock()
            note(now - client.asked)
            if data[9:12] != b"200":
                failures += 1
            answer = data
            try:
                client.request = client.requests.send(data)
            except StopIteration:
                disconnect(client)
                continue
            if renew or whole[len(data)]:
                disconnect(client)
                connect(client)
            else:
                client.asked = now
                client.socket.send(client.request)
        now = clock()
    spent = now - began
    for client in list(busy.values()):
        disconnect(client)
    poll.close()
    latencies.sort()
    return dict(requests=len(latencies), seconds=spent, failures=failures,
                answer=answer[-56:].decode("latin-1"),
                median=latencies[len(latencies) // 2] if latencies else None,
                p99=latencies[len(latencies) * 99 // 100] if latencies else None)


def look_inside(data):
    """Tell whether the other side closes after this answer; None while the answer is not whole."""
    head, blank, body = data.partition(b"\r\n\r\n")
    if not blank:
        return None
    fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:])
    if len(body) < int(fields.get(b"content-length", b"0")):
        return None
    options = fields.get(b"connection", b"")
    return b"close" in options or head.startswith(b"HTTP/1.0") and b"keep-alive" not in options


# ---------------------------------------------------------------- the measures -----------------

RATES = (  # measure, clients, a new connection for each request
    ("keep-alive, 1 client, requests/s", 1, False),
    ("keep-alive, 16 clients, requests/s", 16, False),
    ("keep-alive, 64 clients, requests/s", 64, False),
    ("new connection each, 16 clients, requests/s", 16, True))
ONE, SIXTEEN, SIXTY_FOUR, NEW = (row[0] for row in RATES)
P99_16, P99_64 = "p99 under 16 clients, ms", "p99 under 64 clients, ms"
CPU = "processor time of a request (16 clients), µs"
SDK = "token PUT and GET, 16 clients, requests/s"
BURST, UNANSWERED = "200 clients at once, median ms", "200 clients at once, not answered"
START, RESIDENT = "start to first answer, ms", "resident, idle, MB"
LATER = "resident after the requests and tokens below, MB"
IDLE_COST = "1000 idle connections, MB"
IDLE_NEW = "new connection each beside 1000 idle, requests/s"
FEW, ROUTES = "10 routes, 1 token, requests/s", "10,000 routes, requests/s"
TOKENS = "100,000 tokens, requests/s"
IN_TURN = "1,000 tokens in turn, requests/s"
TOLD_APART = "250 clients that are told apart, requests/s"
TOLD_APART_NEW = "250 clients that are told apart, new connection each, requests/s"
ROWS = (START, RESIDENT, LATER, ONE, SIXTEEN, SIXTY_FOUR, P99_16, P99_64, CPU, NEW, SDK, BURST,
        UNANSWERED, IDLE_COST,
        IDLE_NEW, FEW, ROUTES, TOKENS, IN_TURN)
OURS, WITH_TOKEN, PLAIN_ONE, BARE_ONE = "fake-metadata", "with token", "plain", "bare"

Effort = collections.namedtuple("Effort", "rounds seconds starts requests tokens")
FULL = Effort(rounds=5, seconds=1.0, starts=5, requests=1000000, tokens=300000)
QUICK = Effort(rounds=3, seconds=0.4, starts=5, requests=60000, tokens=20000)


class Bench:
    """All figures, by measure and column, and what takes them."""

    def __init__(self, folder, load, effort):
        self.folder, self.load, self.effort = folder, load, effort
        self.figures = collections.defaultdict(list)  # (measure, column) -> a figure for each round

    def note(self, measure, column, figure):
        self.figures[measure, column].append(figure)

    def median(self, measure, column):
        """Return the median of the rounds, None if it was not measured."""
        figures = self.figures.get((measure, column))
        return statistics.median(figures) if figures else None

    def starts(self):
        """Measure start and idle memory of our three: printed, and no goals."""
        for _ in range(self.effort.starts):
            for column, make in ((OURS, fake_metadata), (PLAIN_ONE, plain), (BARE_ONE, bare)):
                with running(make(self.folder)) as server:
                    self.note(START, column, server.began * 1000)
                    self.note(RESIDENT, column, server.resident())

    def rates(self, columns):
        """Measure rates, latencies and processor time of {column: (endpoint, token)}."""
        for number in range(self.effort.rounds):
            for measure, clients, renew in RATES:
                for column, (endpoint, token) in in_turn(columns, number):
                    self._rate(measure, column, endpoint, token, clients, renew)
            for column, (endpoint, token) in columns.items():
                self._burst(column, endpoint, token)
                if token:
                    self._sdk(column, endpoint)

    def _rate(self, measure, column, endpoint, token, clients, renew):
        before = endpoint.cpu() if isinstance(endpoint, Server) else None
        outcome = self._run(endpoint, [endpoint.get(token)], clients, renew=renew)
        self.note(measure, column, outcome["requests"] / outcome["seconds"])
        p99 = {SIXTEEN: P99_16, SIXTY_FOUR: P99_64}.get(measure)
        if p99:
            self.note(p99, column, outcome["p99"] * 1000)
        if measure == SIXTEEN and before is not None:
            self.note(CPU, column, (endpoint.cpu() - before) / outcome["requests"] * 1e6)

    def _run(self, endpoint, requests, clients, **options):
        seconds = options.pop("seconds", self.effort.seconds)
        outcome = self.load.run(endpoint, requests, clients, seconds, **options)
        if outcome["failures"]:
            print("bench: %d failures of %d at port %d" % (
                outcome["failures"], outcome["requests"], endpoint.port), file=sys.stderr)
        return outcome

    def _burst(self, column, endpoint, token):
        outcome = self.load.run(
            endpoint, [endpoint.get(token)], BURST_CLIENTS, BURST_PATIENCE, each=1)
        self.note(BURST, column, outcome["median"] * 1000)
        self.note(UNANSWERED, column, BURST_CLIENTS - outcome["requests"])

    def _sdk(self, column, endpoint):
        outcome = self._run(endpoint, [endpoint.put(), endpoint.get("{token}")], 16)
        self.note(SDK, column, outcome["requests"] / outcome["seconds"])

    def endurance(self):
        """Measure what many requests and tokens leave behind in memory."""
        with running(fake_metadata(self.folder)) as server:
            before = server.resident()
            request = server.get(server.take_token())
            self._run(server, [request], 16, seconds=600, each=self.effort.requests // 16)
            self._run(server, [server.put()], 16, seconds=600, each=self.effort.tokens // 16)
            self.note(LATER, OURS, server.resident())
            self.note("grown", OURS, server.resident() - before)

    def idle(self):
        """Measure what 1000 idle connections cost, in memory and in the rate of a new client.

        Not of the plain server, whose queue of five takes minutes to let them in.
        """
        for column, make in ((OURS, fake_metadata), (BARE_ONE, bare)):
            with running(make(self.folder)) as server:
                for _ in range(self.effort.rounds):
                    before = server.resident()
                    outcome = self._run(server, [server.get()], 16, renew=True)
                    self.note("alone", column, outcome["requests"] / outcome["seconds"])
                    with idle_connections(server):
                        self.note(IDLE_COST, column, server.resident() - before)
                        outcome = self._run(server, [server.get()], 16, renew=True)
                        self.note(IDLE_NEW, column, outcome["requests"] / outcome["seconds"])

    def sources(self):
        """Measure what it costs to tell clients apart: their users, their instances, both rates."""
        with contextlib.ExitStack() as stack:
            columns = {kind: stack.enter_context(running(fake_metadata(self.folder, config)))
                       for kind, config in KINDS_OF_CLIENTS.items()}
            for server in columns.values():
                server.path = "/latest/meta-data/instance-id"
            for number in range(self.effort.rounds):
                for kind, server in in_turn(columns, number):
                    for measure, renew in ((TOLD_APART, False), (TOLD_APART_NEW, True)):
                        outcome = self._run(server, [server.get()], 250, renew=renew)
                        self.note(measure, kind, outcome["requests"] / outcome["seconds"])

    def sizes(self):
        """Measure whether the number of routes and of tokens issued matters."""
        few, many = routes_of_its_own(10), routes_of_its_own(10000)
        with running(fake_metadata(self.folder, few)) as one, \
                running(fake_metadata(self.folder, many)) as routes, \
                running(fake_metadata(self.folder, few)) as tokens:
            columns = {FEW: one, ROUTES: routes, TOKENS: tokens}
            for server in columns.values():
                server.path = "/latest/meta-data/bench/00005"
                server.take_token()
            self._run(tokens, [tokens.put()], 16, seconds=60, each=100000 // 16)
            requests = [tokens.get(tokens.take_token()) for _ in range(1000)]
            for number in range(self.effort.rounds):
                for measure, server in in_turn(columns, number):
                    outcome = self._run(server, [server.get(server.token)], 16)
                    self.note(measure, OURS, outcome["requests"] / outcome["seconds"])
                outcome = self._run(tokens, requests, 16)
                self.note(IN_TURN, OURS, outcome["requests"] / outcome["seconds"])


# How clients are told apart; the load comes from the addresses 127.0.1.1 to 127.0.1.250.
ALIKE = "all alike"
KINDS_OF_CLIENTS = {
    ALIKE: "",
    "log-clients": "[server]\nlog-clients = yes\n",
    "a role by user": "[role A]\nusers = nobody\n",
    "200 instances": "".join(
        "[instance i%d]\nfrom = 127.0.1.%d\n" % (number, number) for number in range(1, 201)),
    "a fleet": "[instance fleet]\nfrom = 127.0.1.0/24\neach = yes\n",
}


def routes_of_its_own(count):
    """Return a configuration with a number of routes."""
    return "[metadata]\n" + "".join("bench/%05d = value\n" % number for number in range(count))


def in_turn(columns, number):
    """Return the columns in an order that is turned round each round: the place matters."""
    return list(columns.items())[::-1 if number % 2 else 1]


@contextlib.contextmanager
def running(server):
    """Have a server run; `began` is how long it took to start."""
    try:
        server.began = server.start()
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def idle_connections(server):
    """Have idle connections, all of them accepted."""
    sockets = []
    try:
        for _ in range(IDLE_CONNECTIONS):
            sockets.append(socket.create_connection((server.host, server.port), timeout=10))
        server.ask("GET", server.path)  # the last one accepted: then the others are
        yield
    finally:
        for connection in sockets:
            connection.close()


# ---------------------------------------------------------------- the report -------------------

def report(bench, columns):
    """Print the figures and the ratios as two tables."""
    print("| measure | %s |" % " | ".join(columns))
    print("|---|%s" % ("---|" * len(columns)))
    for row in ROWS:
        figures = [bench.median(row, column) for column in columns]
        if any(figure is not None for figure in figures):
            print("| %s | %s |" % (row, " | ".join(map(shown, figures))))
    print("\n| ratio | to reach | reached | |\n|---|---|---|---|")
    for name, goal, value, good in ratios(bench):
        print("| %s | %s | %s | %s |" % (name, goal, shown(value), "yes" if good else "**no**"))


def shown(figure):
    """Return a figure with three digits that count."""
    if figure is None:
        return ""
    return "%.0f" % figure if abs(figure) >= 100 else "%.3g" % figure if figure else "0"


def ratios(bench):
    """Yield (what, the goal in words, the figure, whether it is reached)."""
    for column, words, to_plain, to_bare in ((OURS, "", 20, 0.45),
                                             (WITH_TOKEN, ", with token", 16, 0.38)):
        for measure, plain_goal, bare_goal in ((SIXTEEN, to_plain, to_bare),
                                               (SIXTY_FOUR, to_plain, to_bare),
                                               (ONE, 3, None), (NEW, 6, 0.7)):
            name = measure.split(", requests")[0] + words
            value = ratio(bench, measure, column, measure, PLAIN_ONE)
            yield at_least(name + ": to plain", plain_goal, value)
            if bare_goal:
                value = ratio(bench, measure, column, measure, BARE_ONE)
                yield at_least(name + ": to bare", bare_goal, value)
        value = ratio(bench, P99_64, column, P99_16, PLAIN_ONE)
        yield below("p99 of 64 clients to plain's of 16" + words, 1, value)
        value = ratio(bench, BURST, column, BURST, BARE_ONE)
        yield below("200 clients at once: to bare" + words, 2, value)
        value = max(bench.figures[UNANSWERED, column])
        yield below("200 clients at once, not answered" + words, 0, value)
    value = ratio(bench, SDK, WITH_TOKEN, SIXTEEN, PLAIN_ONE)
    yield at_least("token PUT and GET: to plain's GET", 8, value)
    yield below("resident after %d requests and %d tokens: more than idle, MB" % (
        bench.effort.requests, bench.effort.tokens), 1, bench.median("grown", OURS))
    yield below("1000 idle connections, MB", 3, max(bench.figures[IDLE_COST, OURS]))
    value = ratio(bench, IDLE_NEW, OURS, "alone", OURS)
    yield at_least("a new client beside them: to without", 0.9, value)
    yield at_least("10,000 routes: to 10", 0.9, ratio(bench, ROUTES, OURS, FEW, OURS))
    yield at_least("100,000 tokens: to 1", 0.9, ratio(bench, TOKENS, OURS, FEW, OURS))
    for kind in KINDS_OF_CLIENTS:
        if kind != ALIKE:
            for measure, words in ((TOLD_APART, ""), (TOLD_APART_NEW, ", new connections")):
                value = ratio(bench, measure, kind, measure, ALIKE)
                yield at_least("clients told apart by %s%s" % (kind, words), 0.75, value)


def ratio(bench, measure, column, other_measure, other_column):
    """Return the median of the ratios of the rounds: what slows one side slows both."""
    pairs = zip(bench.figures[measure, column], bench.figures[other_measure, other_column])
    return statistics.median(figure / other for figure, other in pairs)


def at_least(name, goal, value):
    """Return the row of a figure that should be high."""
    return name, "%s or more" % goal, value, value >= goal


def below(name, goal, value):
    """Return the row of a figure that should be low."""
    return name, "%s or less" % goal, value, value <= goal


# ---------------------------------------------------------------- main -------------------------

def other_endpoint(text):
    """Return (name, Endpoint) of NAME=URL."""
    name, _, url = text.partition("=")
    parts = urllib.parse.urlsplit(url)
    if not name or parts.scheme != "http" or not parts.hostname:
        raise argparse.ArgumentTypeError("%r is not NAME=http://HOST:PORT/PATH" % text)
    path = parts.path if parts.path.strip("/") else CREDENTIALS
    endpoint = Endpoint(parts.hostname, parts.port or 80, path)
    try:
        token = endpoint.take_token()
        status, _ = endpoint.ask("GET", endpoint.path, {TOKEN_HEADER: token} if token else {})
    except (OSError, http.client.HTTPException) as error:
        raise argparse.ArgumentTypeError("%s: %s" % (url, error))
    if status != 200:
        raise argparse.ArgumentTypeError("%s answers %d" % (url, status))
    return name, endpoint


def parse_arguments(arguments):
    """Return the options of a command line."""
    parser = argparse.ArgumentParser(description="Measure fake-metadata beside two other servers.")
    parser.add_argument("--quick", action="store_true", help="one minute: rough figures")
    parser.add_argument("--against", metavar="NAME=URL", action="append", default=[],
                        type=other_endpoint, help="an endpoint that runs already")
    parser.add_argument("--load", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def raise_open_files_limit():
    """Allow for the idle connections, here and in the servers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 4096:
        wanted = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def measure(bench, against):
    """Take all figures; return the columns."""
    bench.starts()
    with running(fake_metadata(bench.folder)) as ours, running(plain(bench.folder)) as slow, \
            running(bare(bench.folder)) as fast:
        columns = {OURS: (ours, None), WITH_TOKEN: (ours, ours.take_token()),
                   PLAIN_ONE: (slow, None), BARE_ONE: (fast, None)}
        columns.update((name, (endpoint, endpoint.token)) for name, endpoint in against)
        bench.rates(columns)
    bench.idle()
    bench.sizes()
    bench.sources()
    bench.endurance()
    return list(columns)


def main(arguments=None):
    """Run the command line; return its exit code."""
    options = parse_arguments(arguments)
    if options.load:
        serve_load()
        return 0
    raise_open_files_limit()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers are stopped
    folder, load = tempfile.mkdtemp(prefix="fake-metadata-bench-"), Load()
    try:
        bench = Bench(folder, load, QUICK if options.quick else FULL)
        columns = measure(bench, options.against)
        print("%s, Python %s, %s, %d cores, medians of %d rounds of %s s\n" % (
            datetime.date.today(), platform.python_version(), platform.machine(),
            os.cpu_count(), bench.effort.rounds, bench.effort.seconds))
        report(bench, columns)
    finally:
        load.close()
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
