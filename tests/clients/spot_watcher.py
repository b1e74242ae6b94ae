"""Watch for a spot interruption like aws-node-termination-handler; print it, or what came instead.

Arguments: the metadata URL, and for how many seconds to watch.
"""
import json
import sys
import time
import urllib.error
import urllib.request

POLL = 0.1  # seconds; the node termination handler takes 2
TTL = "X-aws-ec2-metadata-token-ttl-seconds"


def ask(path, method="GET", **headers):
    """Return (status, headers, text) of a request."""
    request = urllib.request.Request(
        sys.argv[1] + path, method=method,
        headers={name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, ""


def new_token():
    """Return a session token; without the TTL in the answer the handler falls back to IMDSv1."""
    status, headers, token = ask(
        "/latest/api/token", "PUT", X_aws_ec2_metadata_token_ttl_seconds="3600")
    if status != 200 or headers[TTL] != "3600":
        sys.exit("token: %s %s" % (status, headers))
    return token


def watch(seconds):
    """Return the notice when it comes: 404 means not yet, 401 a new token, all else an error."""
    token, deadline = new_token(), time.monotonic() + seconds
    while time.monotonic() < deadline:
        status, _, text = ask(
            "/latest/meta-data/spot/instance-action", X_aws_ec2_metadata_token=token)
        if status == 200:
            return json.loads(text)
        if status == 401:
            token = new_token()
        elif status != 404:
            sys.exit("instance-action: %s" % status)
        time.sleep(POLL)
    sys.exit("no notice within %s s" % seconds)


print(json.dumps(watch(float(sys.argv[2]))))
