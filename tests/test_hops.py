"""The hop limit, in a network namespace where packets that have one hop left go no further."""
import os
import shutil
import subprocess
import sys

import pytest

from service import PROGRAM

# Packets of the service that may not be forwarded are dropped, as by a router: TTL of IPv4, hop
# limit of IPv6. Runs the service, then curl; prints curl's exit code and what it has received.
SCRIPT = r"""
ip link set lo up
iptables -A INPUT -p tcp --sport 8000 -m ttl --ttl-eq 1 -j DROP
ip6tables -A INPUT -p tcp --sport 8000 -m hl --hl-eq 1 -j DROP
"$PYTHON" "$PROGRAM" --config "$CONFIG" --log "$LOG" "$BIND" 2>/dev/null & service=$!
for _ in $(seq 100); do grep -qs listening "$LOG" && break; sleep 0.05; done
grep -q listening "$LOG" || exit 99
curl -s -o /dev/null --max-time 5 "http://$HOST:8000/latest/meta-data/mac" || exit 98
out=$(curl -s --max-time 0.7 -X PUT -H "X-aws-ec2-metadata-token-ttl-seconds: 60" -H "$HEADER" \
    "http://$HOST:8000/latest/api/token")
echo "$? $out"
kill $service
"""
NEEDS = ["unshare", "ip", "iptables", "ip6tables", "curl"]

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, NEEDS)),
    reason="needs root, and " + ", ".join(NEEDS))


def put_token(folder, limit, bind, host, header):
    """Ask for a token in a namespace; return curl's exit code and the token."""
    config = folder / "conf"
    config.write_text("[metadata-options]\nhttp-put-response-hop-limit = %d\n" % limit)
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", SCRIPT], stdout=subprocess.PIPE, timeout=30,
        universal_newlines=True, env=dict(
            os.environ, PYTHON=sys.executable, PROGRAM=PROGRAM, LOG=str(folder / "log"),
            CONFIG=str(config), BIND=bind, HOST=host, HEADER=header))
    assert done.returncode == 0
    code, _, token = done.stdout.strip().partition(" ")
    return int(code), token


@pytest.mark.parametrize("bind, host, header", [
    ("127.0.0.1:8000", "127.0.0.1", "Connection: close"),
    ("127.0.0.1:8000", "127.0.0.1", "Connection: keep-alive"),
    ("[::]:8000", "127.0.0.1", "Connection: close"),
    ("[::]:8000", "[::1]", "Connection: keep-alive")],
    ids=["IPv4", "IPv4, kept", "IPv4 at [::]", "IPv6, kept"])
def test_hop_limit_limits(tmp_path, bind, host, header):
    """With a limit of 1 a client behind a router waits for a token in vain; with 2 it gets one."""
    assert put_token(tmp_path, 1, bind, host, header) == (28, "")

    (tmp_path / "log").unlink()
    code, token = put_token(tmp_path, 2, bind, host, header)
    assert (code, len(token)) == (0, 56)
