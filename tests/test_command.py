"""fake_metadata.py -- COMMAND: served for as long as it runs; all else is as if a shell ran it."""
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest

from service import PROGRAM, wait_for

ROLE = "latest/meta-data/iam/security-credentials/BaseIAMRole"
GET = ("%s -c 'import sys, urllib.request; print(urllib.request.build_opener("
       "urllib.request.ProxyHandler({})).open(sys.argv[1]).read().decode())' " % sys.executable)


def run(*arguments, **options):
    """Run the program to its end; return its exit status, stdout and stderr."""
    done = subprocess.run([sys.executable, PROGRAM, *arguments], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, timeout=30, **options)
    return done.returncode, done.stdout, done.stderr


def states_in(session):
    """List the states of the processes of a session: T is stopped."""
    found = subprocess.run(["ps", "-s", str(session), "-o", "state="],
                           stdout=subprocess.PIPE, universal_newlines=True).stdout
    return found.split()


@pytest.fixture
def start():
    """Start programs, start(ARGUMENT...), each in a session of its own, without a terminal."""
    started = []

    def start(*arguments):
        started.append(subprocess.Popen(
            [sys.executable, PROGRAM, *arguments], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, universal_newlines=True, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        for pid in running_in(process.pid):
            os.kill(int(pid), signal.SIGKILL)
        process.wait()
        process.stdout.close()


def running_in(session):
    """List the processes of a session."""
    found = subprocess.run(["ps", "-s", str(session), "-o", "pid=", "-o", "stat="],
                           stdout=subprocess.PIPE, universal_newlines=True).stdout
    return [line.split()[0] for line in found.splitlines() if "Z" not in line]


@pytest.mark.parametrize("command, status, error", [
    (["true"], 0, ""),
    (["sh", "-c", "exit 3"], 3, ""),
    (["sh", "-c", "exit 255"], 255, ""),
    (["sh", "-c", "kill -9 $$"], 137, ""),
    (["sh", "-c", "kill -15 $$"], 143, ""),
    (["no-such-command"], 127, "fake-metadata: no-such-command: No such file or directory\n"),
    (["/"], 126, "fake-metadata: /: Permission denied\n"),
    (["/etc/passwd"], 126, "fake-metadata: /etc/passwd: Permission denied\n"),
])
def test_exit_status(command, status, error):
    """The exit status is that of COMMAND, as a shell tells it; 126 and 127 if it cannot run."""
    assert run("--", *command) == (status, "", error)


@pytest.mark.parametrize("arguments, error", [
    (["--"], "COMMAND is missing after --"),
    (["127.0.0.1", "--", "true"], "COMMAND gets a free port; leave out HOST"),
    (["--dump", "--", "true"], "COMMAND cannot be combined with an option"),
    (["--test-config", "--", "true"], "COMMAND cannot be combined with an option"),
    (["--certificate", "--", "true"], "COMMAND cannot be combined with an option"),
    (["--nonsense", "--", "true"], "unrecognized arguments: --nonsense"),
    (["aws", "configure", "list"], "put -- in front of it: fake_metadata.py -- aws configure list"),
])
def test_what_does_not_go_together(arguments, error):
    """HOST and COMMAND, and the like, are an error of usage."""
    status, said, words = run(*arguments)

    assert (status, said) == (2, "")
    assert error in words


def test_arguments():
    """All behind the first -- is COMMAND's, options and further -- too."""
    assert run("--", "printf", "%s,", "--config", "--", "-h", "", "a b") == (
        0, "--config,--,-h,,a b,", "")


def test_mistake_in_the_configuration(tmp_path):
    """A mistake in the configuration ends with 1, and COMMAND does not run."""
    (tmp_path / "a.conf").write_text("[instance]\nregion = x\n")

    status, said, error = run("--config", str(tmp_path / "a.conf"), "--", "echo", "ran")

    assert (status, said) == (1, "")
    assert error.startswith("fake-metadata: %s/a.conf:2: [instance] region: " % tmp_path)


def test_service_is_there():
    """COMMAND finds the service, its process and a region in its environment."""
    status, said, error = run(
        "--set", "instance.availability-zone=eu-central-1b", "--", "sh", "-c",
        GET + '"${FAKE_METADATA_URL}%s"; echo "$AWS_REGION $AWS_EC2_METADATA_SERVICE_ENDPOINT" '
        '"$FAKE_METADATA_PID $PPID"' % ROLE,
        env={"PATH": os.environ["PATH"]})

    assert (status, error) == (0, "")
    assert '"Code" : "Success"' in said
    region, endpoint, pid, parent = said.split()[-4:]
    assert region == "eu-central-1" and pid == parent
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", endpoint)


def test_standard_files(tmp_path):
    """stdin, stdout, stderr and any other open file are COMMAND's own."""
    with open(str(tmp_path / "other"), "w") as other:
        status, said, error = run(
            "--", "sh", "-c", "cat; echo error >&2; echo other >/proc/self/fd/%d" % other.fileno(),
            input="hello\n", pass_fds=[other.fileno()])

    assert (status, said, error) == (0, "hello\n", "error\n")
    assert (tmp_path / "other").read_text() == "other\n"


def test_closed_standard_files():
    """COMMAND runs with stdin and stderr closed, too."""
    status, said, _ = run("--", "echo", "ran", preexec_fn=lambda: (os.close(0), os.close(2)))

    assert (status, said) == (0, "ran\n")


def test_log_only_if_asked_for(tmp_path):
    """Requests are logged to the file of --log; without it nowhere."""
    ask = ["--", "sh", "-c", GET + '"${FAKE_METADATA_URL}latest/" >/dev/null']

    assert run("--config", os.devnull, *ask) == (0, "", "")
    assert run("--log", str(tmp_path / "log"), *ask) == (0, "", "")
    assert '"GET /latest/ HTTP/1.1" 200' in (tmp_path / "log").read_text()


def test_configured_log_and_bind_do_not_count(tmp_path):
    """What the configuration says of the daemon's log and address is not for COMMAND."""
    log = tmp_path / "log"

    assert run("--set", "server.log=%s" % log, "--set", "server.bind=203.0.113.1:1",
               "--", "true") == (0, "", "")
    assert not log.exists()


def test_trouble_with_credentials_is_said():
    """What goes wrong with credentials is said on stderr, once."""
    status, _, error = run("--set", "credentials.source=process", "--set",
                           "credentials.command=false", "--", "true")

    assert status == 0
    assert error.startswith("fake-metadata: no new credentials for BaseIAMRole: ")
    assert error.count("\n") == 1


def test_signal_handling_is_not_inherited():
    """COMMAND begins with the signals as we found them: none blocked, none ignored but by us."""
    show = ["grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"]
    plain = subprocess.run(show, stdout=subprocess.PIPE, universal_newlines=True)

    assert usual_signals(run("--", *show)[1]) == usual_signals(plain.stdout)


def usual_signals(status):
    """Return the sets in /proc/PID/status, without the signals that the C library uses."""
    return [int(mask, 16) & 0x7fffffff for mask in re.findall(r"\t([0-9a-f]+)", status)]


def test_what_is_ignored_stays_ignored():
    """COMMAND ignores what we were given as ignored, as below nohup."""
    status, said, _ = run(
        "--", "grep", "SigIgn", "/proc/self/status",
        preexec_fn=lambda: [signal.signal(number, signal.SIG_IGN)
                            for number in (signal.SIGHUP, signal.SIGTERM)])

    assert status == 0
    assert usual_signals(said) == [1 << signal.SIGHUP - 1 | 1 << signal.SIGTERM - 1]


@pytest.mark.parametrize("name, status", [("INT", 130), ("TERM", 143), ("QUIT", 131)])
def test_signal_before_command(start, tmp_path, name, status):
    """A signal while the first credentials are fetched ends us; COMMAND does not run."""
    begun = tmp_path / "begun"
    process = start("--set", "credentials.source=process", "--set",
                    "credentials.command=sh -c 'echo $$ > %s; exec sleep 60'" % begun,
                    "--", "echo", "ran")
    pid = wait_for(lambda: begun.exists() and begun.read_text().strip(), what="the source")

    process.send_signal(getattr(signal, "SIG" + name))

    assert process.wait(30) == status
    assert process.stdout.read() == ""
    assert not os.path.exists("/proc/" + pid)


@pytest.mark.parametrize("name", ["INT", "TERM", "QUIT"])
def test_signal_is_passed_on(start, name):
    """A signal that only we are sent reaches COMMAND, once; we end after it."""
    command = "trap 'n=$((n + 1))' %s; echo up; while [ -z \"$n\" ]; do sleep 0.05; done; " \
              "sleep 0.2; exit $((n + 10))" % name
    process = start("--", "sh", "-c", command)
    assert process.stdout.readline() == "up\n"

    process.send_signal(getattr(signal, "SIG" + name))

    assert process.wait(30) == 11


def test_usr1_rotates_and_hup_reloads(tmp_path):
    """USR1 to FAKE_METADATA_PID makes new keys, HUP reads the configuration again."""
    config = tmp_path / "a.conf"
    config.write_text("[instance]\ninstance-id = i-00000000000000001\n")
    script = tmp_path / "script"
    script.write_text(WATCHER)

    status, said, error = run(
        "--config", str(config), "--", sys.executable, str(script), str(config))

    assert (status, said, error) == (0, "rotated\nreloaded\n", "")


WATCHER = """
import os, signal, sys, time, urllib.request
def get(path):
    return urllib.request.urlopen(os.environ["FAKE_METADATA_URL"] + path).read()
def await_other(path, number):
    before = get(path)
    os.kill(int(os.environ["FAKE_METADATA_PID"]), number)
    while get(path) == before:
        time.sleep(0.01)
await_other("latest/meta-data/iam/security-credentials/BaseIAMRole", signal.SIGUSR1)
print("rotated", flush=True)
with open(sys.argv[1], "w") as file:
    file.write("[instance]\\ninstance-id = i-00000000000000002\\n")
await_other("latest/meta-data/instance-id", signal.SIGHUP)
print("reloaded", flush=True)
"""


@pytest.mark.parametrize("kill", [
    lambda process: os.killpg(process.pid, signal.SIGKILL),
    lambda process: process.kill()], ids=["group", "process"])
def test_killed(start, kill):
    """After SIGKILL nothing of ours runs on, and the port is closed."""
    process = start("--", "sh", "-c", "echo $FAKE_METADATA_URL; exec sleep 60")
    port = int(re.search(r":(\d+)/", process.stdout.readline()).group(1))

    kill(process)
    process.wait()

    def listening():
        return ":%04X " % port in open("/proc/net/tcp").read()
    wait_for(lambda: not listening(), what="the end of the port")
    mine = [pid for pid in running_in(process.pid)
            if PROGRAM in open("/proc/%s/cmdline" % pid).read()]
    assert mine == []


def test_killed_command(start):
    """When COMMAND is killed we end, and nothing is left."""
    process = start("--", "sh", "-c", "echo $$; exec sleep 60")
    os.kill(int(process.stdout.readline()), signal.SIGKILL)

    assert process.wait(30) == 137
    assert running_in(process.pid) == []


# On a terminal.

class Terminal:
    """A terminal with a program on it."""

    def __init__(self, *command, **environ):
        self.pid, self.file = pty.fork()
        if not self.pid:
            os.execvpe(command[0], command, dict(os.environ, **environ))
        self.shown = ""

    def type(self, text):
        os.write(self.file, text.encode())

    def wait_for(self, pattern, timeout=30):
        """Wait until what is shown since the last match has a pattern."""
        deadline = time.monotonic() + timeout
        while not re.search(pattern, self.shown):
            assert time.monotonic() < deadline, "no %s in %r" % (pattern, self.shown)
            if select.select([self.file], [], [], 0.05)[0]:
                self.shown += os.read(self.file, 4096).decode()
        match = re.search(pattern, self.shown)
        self.shown = self.shown[match.end():]
        return match

    def close(self):
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.waitpid(self.pid, 0)
        os.close(self.file)


SLEEPER = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_DFL)
print("sleeps", flush=True)
time.sleep(60)
"""


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """An interactive shell with job control; what ^C is to end is `sleeper`: dash may lose it."""
    (tmp_path / "sleeper").write_text(SLEEPER)
    monkeypatch.chdir(tmp_path)
    terminal = Terminal("bash", "--norc", "--noprofile", "--noediting", "-i", PS1="ready$ ", ENV="",
                        TERM="dumb", PYTHON=sys.executable,
                        IMDS="%s %s" % (sys.executable, PROGRAM))
    terminal.wait_for(r"ready\$ ")
    yield terminal
    terminal.close()


def test_interrupt_at_a_terminal(shell, tmp_path):
    """^C reaches COMMAND once; we end after it, with its exit status."""
    script = tmp_path / "script"
    script.write_text("trap 'n=$((n + 1)); echo got $n' INT\necho up\n"
                      "until [ -n \"$n\" ]; do sleep 0.1; done\nsleep 0.3\nexit 4$n\n")
    shell.type("$IMDS -- sh %s\n" % script)
    shell.wait_for("up\r\n")
    shell.type("\x03")
    shell.wait_for("got 1\r\n")
    shell.wait_for(r"ready\$ ")
    shell.type("echo status $?\n")
    shell.wait_for("status 41\r\n")


def test_interrupt_of_a_command_without_a_handler(shell):
    """^C ends COMMAND, and us with 130."""
    shell.type("$IMDS -- $PYTHON sleeper\n")
    shell.wait_for("sleeps\r\n")
    shell.type("\x03")
    shell.wait_for(r"ready\$ ")
    shell.type("echo status $?\n")
    shell.wait_for("status 130\r\n")


def test_interrupt_while_the_configuration_is_read(shell, tmp_path):
    """^C ends us while we wait for a configuration."""
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    shell.type("$IMDS --config %s -- echo ran; echo status $?\n" % pipe)
    with open(pipe, "w"):  # returns when the pipe is open for reading
        wait_for(lambda: states_in(shell.pid).count("S") == 2, what="a read that waits")
        shell.type("\x03")
        shell.wait_for("status 130\r\n")


def test_job_control(shell):
    """^Z stops both, fg lets both go on."""
    shell.type("$IMDS -- sh -c 'echo up; read line; echo got $line; exit 7'\n")
    shell.wait_for("up\r\n")
    shell.type("\x1a")
    shell.wait_for("Stopped")
    shell.wait_for(r"ready\$ ")
    wait_for(lambda: states_in(shell.pid).count("T") == 2, what="the stop of both")
    shell.type("fg\n")
    shell.wait_for("exit 7'\r\n")
    shell.type("hello\n")
    shell.wait_for("got hello\r\n")
    shell.wait_for(r"ready\$ ")
    shell.type("echo status $?\n")
    shell.wait_for("status 7\r\n")


def test_shell_as_command(shell):
    """An interactive shell as COMMAND has its own jobs, and gives the terminal back."""
    shell.type("PS1='inner$ ' $IMDS -- bash --norc --noprofile --noediting -i\n")
    shell.wait_for(r"inner\$ ")
    shell.type("$PYTHON sleeper\n")
    shell.wait_for("sleeps\r\n")
    shell.type("\x03")
    shell.wait_for(r"inner\$ ")
    shell.type("echo inner $?; exit 9\n")
    shell.wait_for("inner 130\r\n")
    shell.wait_for(r"ready\$ ")
    shell.type("echo status $?\n")
    shell.wait_for("status 9\r\n")


# A whole test run as COMMAND, and the fixture.

TEST_FILE = """
import json, os, urllib.request

def get(path):
    url = os.environ["AWS_EC2_METADATA_SERVICE_ENDPOINT"] + "latest/meta-data/" + path
    return urllib.request.urlopen(url).read().decode()

def test_role():
    assert get("iam/security-credentials/") == "BaseIAMRole"

def test_id():
    assert get("instance-id") == "i-0123456789abcdef0"
"""


@pytest.mark.parametrize("options", [[], ["-n", "2"]], ids=["plain", "xdist"])
def test_pytest_as_command(tmp_path, options):
    """A whole test run works, split over processes too."""
    if options:
        pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    (tmp_path / "test_it.py").write_text(TEST_FILE)

    status, said, error = run(
        "--set", "instance.instance-id=i-0123456789abcdef0", "--", sys.executable, "-m", "pytest",
        "-q", "-p", "no:cacheprovider", *options, str(tmp_path))

    assert status == 0, said + error
    assert "2 passed" in said


def test_module_is_found_beside_the_tests(tmp_path):
    """`import fake_metadata` finds the one file beside conftest.py."""
    os.symlink(PROGRAM, str(tmp_path / "fake_metadata.py"))
    (tmp_path / "conftest.py").write_text(
        "import fake_metadata, pytest\n\n@pytest.fixture\ndef imds():\n"
        "    with fake_metadata.serve() as imds:\n        yield imds\n")
    (tmp_path / "test_it.py").write_text(
        "def test_it(imds):\n    assert imds.url.startswith('http://127.0.0.1:')\n")

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        stdout=subprocess.PIPE, universal_newlines=True, cwd=str(tmp_path),
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"})

    assert "1 passed" in done.stdout
