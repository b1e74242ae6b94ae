#!/usr/bin/env python3
"""Serve honest and hostile clients while logs rotate, credentials renew, configurations reload.

    python3 tests/soak.py [--seconds 600]

Exit 0 if each honest request had the right answer and one whole line in the log, if the log tells
of no error that is not a client's, and if memory, threads and files are at the end what they were.
On 127.0.0.1, some hundred requests a second.
"""
import argparse
import collections
import contextlib
import json
import os
import random
import re
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time

from service import (CREDENTIALS, TTL_HEADER, Service, check_lines, open_connections, open_files,
                     resident, threads, wait_for)
from wire import Wire, get, request

PAUSE = 0.005  # seconds between two requests of a client
HELD = 30  # connections that a hostile client holds at most
GROWTH = 2 << 20  # bytes
HONEST = "User-Agent: honest"
TOKEN_PATH = "/latest/api/token"

SLOW = "slow = /latest/meta-data/slow delay 1h\n"  # for clients who leave before
GOOD_CONFIGS = [
    "[faults]\n" + SLOW +
    "[metadata]\nsoak = one\n[role Tool]\nsource = process\ncommand = sh {script}\nlifetime = 1h\n",
    "[faults]\n" + SLOW +
    "[metadata]\nsoak = two\n[tags]\nName = soak\n"
    "[metadata-options]\ninstance-metadata-tags = enabled\n",
    "[faults]\n" + SLOW +
    "[metadata]\nsoak = three\n[credentials]\nlifetime = 5s\n[role Tool]\nsource = generate\n"]
BAD_CONFIGS = [
    "[metadata\n", "[nonsense]\nx = y\n", "[credentials]\nlifetime = for ever\n", "\xff\0",
    "[server]\nbind = a b\n", "[instance]\navailability-zone = x\n",
    "[credentials]\nsource = process\n"]
TOOL = """\
echo '{"Version": 1, "AccessKeyId": "ASIASOAKSOAKSOAKSOAK", "SecretAccessKey": "soak"}'
"""


class Soak:
    """One service and all that is done to it."""

    def __init__(self, folder):
        self.folder, self.counts, self.troubles, self.over = (
            folder, collections.Counter(), [], threading.Event())
        script = os.path.join(folder, "tool.sh")
        with open(script, "w") as file:
            file.write(TOOL)
        self.good = [config.format(script=script) for config in GOOD_CONFIGS]
        self.service = Service(folder, self.good[0])
        self.samples, self.grown = [], 0  # (bytes of memory, threads, files); bytes

    def run(self, seconds):
        """Let everybody loose for so long; return what went wrong."""
        hostile = [Hostile() for _ in range(3)]
        acts = [keep_asking, ask_as_an_sdk, ask_what_is_not_there, Soak._operate] + [
            client.act for client in hostile]
        clients = [threading.Thread(target=self._repeat, args=(act, random.Random(seed)))
                   for seed, act in enumerate(acts)]
        files = open_files(self.service)
        for client in clients:
            client.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.troubles:
            self.samples.append(
                (resident(self.service), threads(self.service), open_files(self.service)))
            self.over.wait(min(1, seconds / 50))
        self.over.set()
        for client in clients:
            client.join()
        for client in hostile:
            client.leave_all()
        self._check_the_end(files)
        return self.troubles

    def _repeat(self, act, randomness):
        try:
            while not self.over.is_set():
                act(self, randomness)
                self.over.wait(PAUSE)
        except Exception as error:
            self.troubles.append("%s: %s: %s" % (act.__name__, type(error).__name__, error))
            self.over.set()

    def _operate(self, randomness):
        """Rotate the log, renew the credentials, reload good and bad configurations."""
        self.over.wait(0.1)
        act = randomness.choice("rotate renew good bad".split())
        self.counts[act] += 1
        if act == "rotate":
            os.rename(self.service.log_path, self.service.log_path + ".1")
            self.service.signal(signal.SIGHUP)
            wait_for(lambda: os.path.exists(self.service.log_path), what="the new log")
            self._read_log(self.service.log_path + ".1")
        elif act == "renew":
            self.service.signal(signal.SIGUSR1)
        else:
            before = self.service.log().count("reloaded")
            self._write_config(randomness.choice(self.good if act == "good" else BAD_CONFIGS))
            self.service.signal(signal.SIGHUP)
            wait_for(lambda: self.service.log().count("reloaded") > before, what="the reload")

    def _write_config(self, text):
        """Put a configuration in another's place at once: a rotation may send HUP at any time."""
        with open(self.service.config_path + ".new", "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(self.service.config_path + ".new", self.service.config_path)

    def _read_log(self, path):
        """Check a log, count what it tells, and remove it."""
        with open(path) as file:
            lines = check_lines(file.read())
        os.remove(path)
        self.counts["honest in the log"] += sum(
            '"honest"' in line and '" 200 ' in line for line in lines)
        self.troubles += [line for line in lines
                          if re.search(r'" 500 |internal error|Traceback|were lost', line)]

    def _check_the_end(self, files):
        """Compare with the beginning, once all clients are gone."""
        wait_for(lambda: open_connections(self.service) <= 0, timeout=15,
                 what="the end of all connections")
        wait_for(lambda: threads(self.service) == 1, what="the end of all threads but one")
        self.samples.append(
            (resident(self.service), threads(self.service), open_files(self.service)))
        fifth = max(1, len(self.samples) // 5)
        before, after = (statistics.median(sample[0] for sample in part)
                         for part in (self.samples[fifth:2 * fifth], self.samples[-fifth:]))
        self.grown = after - before
        if self.grown > GROWTH:
            self.troubles.append("memory grew by %d kB" % (self.grown >> 10))
        if self.samples[-1][2] > files:
            self.troubles.append("%d files open, %d at the beginning" % (
                self.samples[-1][2], files))
        if self.service.stop() != 0:
            self.troubles.append("exit code %d" % self.service.process.returncode)
        self._read_log(self.service.log_path)
        if self.service.stderr():
            self.troubles.append("stderr: " + self.service.stderr()[:1000])
        if self.counts["honest in the log"] != self.counts["honest"]:
            self.troubles.append("%d honest requests, %d in the log" % (
                self.counts["honest"], self.counts["honest in the log"]))

    def ask(self, wire, sent, status=200):
        """Be honest: ask, and insist on the answer that is right."""
        wire.send(sent)
        answer = wire.answer(head_only=sent.startswith(b"HEAD"))
        assert answer and answer.status == status, (sent[:100], answer)
        if status < 400:  # refusals are summed, together with those of the hostile
            self.counts["honest"] += 1
        return answer


# ---------------------------------------------------------------- honest clients ---------------

def keep_asking(soak, randomness):
    """Ask for this and that on one connection."""
    with Wire(soak.service) as wire:
        for _ in range(50):
            assert soak.ask(wire, get(HONEST)).body.startswith(b"i-")
            assert soak.ask(wire, get(HONEST, path="/latest/meta-data/soak")).body in (
                b"one", b"two", b"three")
            check_document(soak.ask(wire, get(HONEST, path=CREDENTIALS)))
            if soak.over.wait(PAUSE):
                break


def ask_as_an_sdk(soak, randomness):
    """Take a session token and the credentials, a connection each, as SDKs do."""
    with Wire(soak.service) as wire:
        token = soak.ask(wire, request("PUT " + TOKEN_PATH, HONEST, TTL_HEADER + ": 300",
                                       "Connection: close")).body.decode()
    with Wire(soak.service) as wire:
        header = "X-aws-ec2-metadata-token: " + token
        role = soak.ask(wire, get(HONEST, header,
                                  path=CREDENTIALS.rpartition("/")[0] + "/")).body.decode()
        assert role == "BaseIAMRole"
        check_document(soak.ask(wire, get(HONEST, header, path=CREDENTIALS)))


def ask_what_is_not_there(soak, randomness):
    """Make the mistakes that honest clients make."""
    with Wire(soak.service) as wire:
        soak.ask(wire, get(HONEST, path="/latest/meta-data/spot/instance-action"), 404)
        soak.ask(wire, request("HEAD /latest/", HONEST))
        soak.ask(wire, request("OPTIONS /latest/", HONEST))
        soak.ask(wire, get(HONEST, "X-aws-ec2-metadata-token: old"), 401)
        soak.ask(wire, request("POST /latest/", HONEST, "Content-Length: 5", body=b"hello"), 403)
        soak.ask(wire, request("PUT " + TOKEN_PATH, HONEST), 400)


def check_document(answer):
    found = json.loads(answer.body.decode())
    assert (found["Code"] == "Success"
            and re.fullmatch("ASIA[A-Z2-7]{16}", found["AccessKeyId"])), found
    assert len(found["SecretAccessKey"]) == 40 and len(found["Token"]) > 500, found
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    assert found["LastUpdated"] < found["Expiration"] > now, found


# ---------------------------------------------------------------- hostile clients --------------

class Hostile:
    """Does what no client should, and leaves connections as they are for a while."""

    def __init__(self):
        self.held = []

    def act(self, soak, randomness):
        """Open a connection, abuse it, leave some of those opened before."""
        connection = soak.service.connect()
        soak.counts["hostile"] += 1
        connection.setblocking(False)
        self.held.append(connection)
        with contextlib.suppress(OSError):
            for data in randomness.choice(HOSTILITIES)(randomness):
                connection.send(data)
        while len(self.held) > randomness.randrange(HELD):
            leave(self.held.pop(randomness.randrange(len(self.held))), randomness)

    def leave_all(self):
        """Leave all connections."""
        for connection in self.held:
            connection.close()


def leave(connection, randomness):
    """Close a connection in one of the ways there are."""
    with contextlib.suppress(OSError):
        if randomness.random() < 0.3:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        elif randomness.random() < 0.3:
            connection.shutdown(socket.SHUT_WR)
        elif randomness.random() < 0.5:
            connection.recv(1 << 20)
    connection.close()


def noise(randomness):
    yield bytes(randomness.randrange(256) for _ in range(randomness.randrange(2000)))


def damaged(randomness):
    whole = bytearray(request("PUT " + TOKEN_PATH, TTL_HEADER + ": 60",
                              "Transfer-Encoding: chunked", body=b"5\r\nhello\r\n0\r\n\r\n"))
    for _ in range(randomness.randrange(1, 4)):
        whole[randomness.randrange(len(whole))] = randomness.randrange(256)
    yield bytes(whole)


def cut_off(randomness):
    whole = get(path=CREDENTIALS)
    yield whole[:randomness.randrange(len(whole))]


def byte_by_byte(randomness):
    for byte in get("bad line")[:randomness.randrange(80)]:
        yield bytes([byte])


def unread(randomness):
    yield get(path=CREDENTIALS) * randomness.randrange(1, 200)


def large(randomness):
    yield get("X: " + "x" * randomness.randrange(40000),
              path="/" + "x" * randomness.randrange(10000))
    yield request("POST /", "Content-Length: 9999999") + b"x" * randomness.randrange(100000)


def smuggled(randomness):
    yield request("POST /", "Content-Length: 5", "Transfer-Encoding: chunked",
                  body=b"0\r\n\r\nGET / HTTP/1.1\r\n\r\n")


def tokens(randomness):
    yield request("PUT " + TOKEN_PATH, TTL_HEADER + ": %d" % randomness.randrange(-5, 22000)) * 20


def rebound(randomness):
    yield get("User-Agent: " + '"' * 4000, path="/" + '"' * 4000, host="evil.example") * 20


def postponed(randomness):
    yield get(path="/latest/meta-data/slow")


def containers(randomness):
    path = randomness.choice(["/creds", "/v1/credentials?id=x", "/v2/credentials/BaseIAMRole"])
    yield get("Authorization: guess", path=path, host=randomness.choice([None, "169.254.169.254"]))


def nothing(randomness):
    yield from ()


HOSTILITIES = [noise, damaged, cut_off, byte_by_byte, unread, large, smuggled, tokens, rebound,
               postponed, containers, nothing]


# ---------------------------------------------------------------- main -------------------------

def main(arguments=None):
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description="Honest and hostile clients for ten minutes.")
    parser.add_argument("--seconds", type=float, default=600)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="fake-metadata-soak-") as folder:
        soak = Soak(folder)
        try:
            troubles = soak.run(options.seconds)
        finally:
            soak.over.set()
            soak.service.stop()
    print(", ".join("%s: %d" % count for count in sorted(soak.counts.items())))
    print("memory %.1f MB, most threads %d, most files %d, grown by %d kB" % (
        soak.samples[-1][0] / (1 << 20), max(sample[1] for sample in soak.samples),
        max(sample[2] for sample in soak.samples), soak.grown / 1024))
    for trouble in troubles[:20]:
        print("trouble: " + trouble[:500])
    return 1 if troubles else 0


if __name__ == "__main__":
    sys.exit(main())
