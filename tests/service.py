"""Run fake_metadata.py as a user does: a real process on a free port, talked to over a socket."""
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = os.path.join(ROOT, "fake_metadata.py")
CREDENTIALS = "/latest/meta-data/iam/security-credentials/BaseIAMRole"
TOKEN_HEADER = "X-aws-ec2-metadata-token"
TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"

# Runs the program with other limits than its own:
# NAME=SECONDS..., then the command line of tests/service.py.
WITH_LIMITS = """
import sys
sys.path.insert(0, %r)
import fake_metadata
at = next(n for n, argument in enumerate(sys.argv) if "=" not in argument and n)
for limit in sys.argv[1:at]:
    name, value = limit.split("=")
    assert hasattr(fake_metadata, name), name
    setattr(fake_metadata, name, float(value) if "." in value else int(value))
sys.exit(fake_metadata.main(sys.argv[at + 2:]))
""" % ROOT


def readme():
    """Return the text of the README."""
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        return file.read()


def with_limits(**limits):
    """Return the command that runs the program with other limits."""
    return [sys.executable, "-c", WITH_LIMITS] + ["%s=%s" % limit for limit in limits.items()]


def wait_for(condition, timeout=30, what="the condition"):
    """Return the first true value of condition(), asked until timeout seconds have passed.

    Half a minute is for a machine that is busy with other things; what comes comes at once.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError("%s did not come within %s s" % (what, timeout))
        time.sleep(0.003)


class Service:
    """A running fake_metadata.py, its configuration and its log, below one folder.

    Stopped by `stop()`, or at the end of a `with`. `config` is the text of the configuration;
    `within` is a command that runs its arguments in a place of its own, such as a network
    namespace.
    """

    def __init__(self, folder, config=None, args=(), env=None, python=sys.executable,
                 bind="127.0.0.1:0", wait=True, preexec_fn=None, within=()):
        self.folder = str(folder)
        self.config_path = os.path.join(self.folder, "fake-metadata.conf")
        self.log_path = os.path.join(self.folder, "server.log")
        self.stderr_path = os.path.join(self.folder, "stderr")
        command = list(within) + [python, PROGRAM, "--log", self.log_path]
        if config is not None:
            self.write_config(config)
            command += ["--config", self.config_path]
        command += [bind] if bind else []
        with open(self.stderr_path, "wb") as stderr:
            self.process = subprocess.Popen(
                command + list(args), stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr,
                cwd=self.folder, preexec_fn=preexec_fn, env=dict(os.environ, **(env or {})))
        self.host, self.port = "127.0.0.1", None
        if wait:
            self.wait_until_listening()

    def wait_until_listening(self):
        def listening():
            found = re.search(r"listening on http://(\S+):(\d+)/", self.log() + self.stderr())
            if not found and self.process.poll() is not None:
                raise AssertionError("ended with %s: %s" % (
                    self.process.returncode, self.stderr() + self.log()))
            return found
        found = wait_for(listening, what="'listening on'")
        self.host, self.port = found.group(1).strip("[]"), int(found.group(2))

    @property
    def url(self):
        return "http://%s:%d" % (self.host, self.port)

    def write_config(self, text):
        with open(self.config_path + ".new", "w") as file:
            file.write(text)
        os.replace(self.config_path + ".new", self.config_path)  # whole at any moment

    def reload(self, text=None):
        """Write a new configuration if given, send HUP, wait until the log says it was acted on."""
        before = self.log().count("reload")
        if text is not None:
            self.write_config(text)
        self.signal(signal.SIGHUP)
        wait_for(lambda: self.log().count("reload") > before, what="the reload in the log")

    def signal(self, number):
        self.process.send_signal(number)

    def log(self):
        return text_of(self.log_path)

    def stderr(self):
        return text_of(self.stderr_path)

    def request(self, method, path, headers=(), body=None, timeout=30):
        """Send one request on a connection of its own; return (status, headers, body as bytes)."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            connection.request(method, path, body=body, headers=dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def get(self, path, token=None, **headers):
        """Return (status, headers, body as text) of a GET."""
        if token:
            headers[TOKEN_HEADER] = token
        status, answer, body = self.request("GET", path, headers)
        return status, answer, body.decode("utf-8", "replace")

    def token(self, ttl=21600):
        """Return a new session token."""
        status, _, body = self.request("PUT", "/latest/api/token", {TTL_HEADER: str(ttl)})
        assert status == 200, (status, body)
        return body.decode()

    def connect(self, timeout=30):
        return socket.create_connection((self.host, self.port), timeout=timeout)

    def raw(self, data, timeout=10, close=False):
        """Send bytes as they are; return all that comes until the other side closes or timeout."""
        with self.connect(timeout) as connection:
            connection.sendall(data)
            if close:
                connection.shutdown(socket.SHUT_WR)
            return receive_all(connection)

    def stop(self):
        """TERM the process if it still runs; return its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError("did not stop within 30 s of TERM")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def receive_all(connection):
    """Return what comes until the other side closes, or until its time-out."""
    received = b""
    try:
        while True:
            data = connection.recv(65536)
            if not data:
                return received
            received += data
    except (socket.timeout, ConnectionResetError):
        return received


def text_of(path):
    """Return the text of a file, "" without one."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""


# ---------------------------------------------------------------- what a service uses, and logs

LOG_LINE = re.compile(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (fake-metadata: [^\n]+'
                      r'|[0-9a-f.:]+ "[^"\n]*" \d+ \d+ \d+\.\dms "[^"\n]*"( [^\n]+)?)')


def check_lines(text):
    """Check that a log has nothing but whole lines; return them."""
    assert text.endswith("\n"), text[-200:]
    lines = text.split("\n")[:-1]
    for line in lines:
        assert LOG_LINE.fullmatch(line), line
    return lines


def cpu_seconds(service):
    """Return the processor time that a service has used."""
    with open("/proc/%d/stat" % service.process.pid) as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(service):
    """Return the bytes of memory that a service has resident."""
    with open("/proc/%d/statm" % service.process.pid) as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def open_files(service):
    """Return how many files a service has open."""
    return len(os.listdir("/proc/%d/fd" % service.process.pid))


def open_connections(service):
    """Return how many clients a service has: its sockets but the listener and the waking pair."""
    sockets = [path for path in map(_target, _open_paths(service)) if path.startswith("socket:")]
    return len(sockets) - 3


def threads(service):
    """Return how many threads a service has."""
    return len(os.listdir("/proc/%d/task" % service.process.pid))


def free_port():
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _open_paths(service):
    folder = "/proc/%d/fd/" % service.process.pid
    return [folder + name for name in os.listdir(folder)]


def _target(path):
    try:
        return os.readlink(path)
    except FileNotFoundError:  # closed meanwhile
        return ""
