"""Print what is at a path of a metadata service, asked for with a session token.

Arguments: the URL, the path.
"""
import sys
import urllib.request


def ask(path, method="GET", **headers):
    """Return the text of the answer."""
    request = urllib.request.Request(
        sys.argv[1] + path, method=method,
        headers={name.replace("_", "-"): value for name, value in headers.items()})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return answer.read().decode()


token = ask("/latest/api/token", "PUT", X_aws_ec2_metadata_token_ttl_seconds="60")
sys.stdout.write(ask(sys.argv[2], X_aws_ec2_metadata_token=token))
