"""Container endpoints: the forms of their agents, who gets the keys and who does not, roles' paths.

Forms: amazon-ecs-agent (tmds/handlers, credentials), eks-pod-identity-agent (pkg/handlers,
pkg/credentials) and amazon-ecs-local-container-endpoints (handlers).
"""
import json
import re

import pytest

import fake_metadata
from conversation import converse
from service import CREDENTIALS, TOKEN_HEADER
from wire import request

STATIC = ("source = static\naccess-key-id = AKIAIOSFODNN7EXAMPLE\nsession-token = the-token\n"
          "secret-access-key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY\n")
ROLES = "[credentials]\n%s[role Build]\n%s" % (STATIC, STATIC.replace("AKIAI", "AKIAB"))
TASK = ('{"RoleArn":"arn:aws:iam::123456789012:role/%s","AccessKeyId":"%sOSFODNN7EXAMPLE",'
        '"SecretAccessKey":"wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY","Token":"the-token",'
        '"Expiration":"TIME"}')
POD = ('{"AccessKeyId":"%sOSFODNN7EXAMPLE",'
       '"SecretAccessKey":"wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY","Token":"the-token",'
       '"AccountId":"123456789012","Expiration":"TIME"}')
LOCAL = ('{"AccessKeyId":"%sOSFODNN7EXAMPLE","Expiration":"TIME",'
         '"RoleArn":"arn:aws:iam::123456789012:role/%s",'
         '"SecretAccessKey":"wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY","Token":"the-token"}\n')
OF_BASE, OF_BUILD = ("BaseIAMRole", "AKIAI"), ("Build", "AKIAB")
NOT_FOUND = "404 page not found\n"
JSON, TEXT = "application/json", "text/plain; charset=utf-8"

CONTAINER = "[container]\nauthorization-token = of-all\n"
TOKENS = CONTAINER + ROLES + "authorization-token = of-build\n"
REQUIRED = "[metadata-options]\nhttp-tokens = required\n"


def task_error(code, message, status=400):
    """Return the body of an error of the ECS agent."""
    return '{"code":"%s","message":"%s","HTTPErrorCode":%d}' % (code, message, status)


UNKNOWN = task_error("InvalidIdInRequest", "CredentialsV2Request: Credentials not found")
NO_TOKEN = "Service account token cannot be empty\n"

ANSWERS = [  # configuration, path, Authorization or None, status, content type, body
    (ROLES, "/v2/credentials/BaseIAMRole", None, 200, JSON, TASK % OF_BASE),
    (ROLES, "/v2/credentials/Build", None, 200, JSON, TASK % OF_BUILD),
    (ROLES, "/v2/credentials/Other", None, 400, JSON, UNKNOWN),
    (ROLES, "/v2/credentials/Build/x", None, 400, JSON, UNKNOWN),
    (ROLES, "/v2/credentials/aws:ec2-instance", None, 400, JSON, UNKNOWN),
    (ROLES, "/v2/credentials/", None, 400, JSON, task_error(
        "NoIdInRequest", "CredentialsV2Request: No Credential ID in the request")),
    (ROLES, "/v1/credentials?id=Build", None, 200, JSON, TASK % OF_BUILD),
    (ROLES, "/v1/credentials?id=Other", None, 400, JSON, task_error(
        "InvalidIdInRequest", "CredentialsV1Request: Credentials not found")),
    (ROLES, "/v1/credentials?id=", None, 400, JSON, task_error(
        "NoIdInRequest", "CredentialsV1Request: No Credential ID in the request")),
    (ROLES, "/v1/credentials", None, 200, JSON, POD % "AKIAI"),
    (ROLES, "/v1/credentials", "anything", 200, JSON, POD % "AKIAI"),
    (ROLES, "/v1/credentials/x", None, 404, TEXT, NOT_FOUND),
    (ROLES, "/creds", None, 200, JSON, LOCAL % ("AKIAI", "BaseIAMRole")),
    (ROLES, "/creds/", None, 200, JSON, LOCAL % ("AKIAI", "BaseIAMRole")),
    (ROLES, "/role/Build", None, 200, JSON, LOCAL % ("AKIAB", "Build")),
    (ROLES, "/role/Other", None, 404, TEXT, NOT_FOUND),
    (ROLES, "/role", None, 404, TEXT, NOT_FOUND),
    # A token of all, and one of a role.
    (TOKENS, "/v2/credentials/BaseIAMRole", "of-all", 200, JSON, TASK % OF_BASE),
    (TOKENS, "/v2/credentials/Build", "of-build", 200, JSON, TASK % OF_BUILD),
    (TOKENS, "/v2/credentials/Build", "of-all", 401, JSON, task_error(
        "AccessDenied", "the Authorization header is missing or wrong", 401)),
    (TOKENS, "/v2/credentials/BaseIAMRole", "of-build", 401, JSON, task_error(
        "AccessDenied", "the Authorization header is missing or wrong", 401)),
    (TOKENS, "/v2/credentials/Other", "of-build", 401, JSON, task_error(
        "AccessDenied", "the Authorization header is missing or wrong", 401)),
    (TOKENS, "/v2/credentials/Other", "of-all", 400, JSON, UNKNOWN),
    (TOKENS, "/v1/credentials", "of-all", 200, JSON, POD % "AKIAI"),
    (TOKENS, "/v1/credentials", "of-build", 200, JSON, POD % "AKIAB"),
    (TOKENS, "/v1/credentials", None, 400, TEXT, NO_TOKEN),
    (TOKENS, "/v1/credentials", "", 400, TEXT, NO_TOKEN),
    (TOKENS, "/v1/credentials", "other", 400, TEXT,
     "Service account token cannot be parsed: it is not configured\n"),
    (TOKENS, "/v1/credentials?id=Build", "of-build", 200, JSON, TASK % OF_BUILD),
    (TOKENS, "/v1/credentials?id=Build", "of-all", 401, JSON, task_error(
        "AccessDenied", "the Authorization header is missing or wrong", 401)),
    (TOKENS, "/creds", None, 401, TEXT, "the Authorization header is missing or wrong\n"),
    (TOKENS, "/creds", "of-all", 200, JSON, LOCAL % ("AKIAI", "BaseIAMRole")),
    (TOKENS, "/role/Build", "of-build", 200, JSON, LOCAL % ("AKIAB", "Build")),
    # Where session tokens are required.
    (REQUIRED + ROLES, "/v2/credentials/BaseIAMRole", None, 404, TEXT, NOT_FOUND),
    (REQUIRED + ROLES, "/v2/credentials/BaseIAMRole", "x", 404, TEXT, NOT_FOUND),
    (REQUIRED + ROLES, "/v1/credentials", None, 404, TEXT, NOT_FOUND),
    (REQUIRED + ROLES, "/v1/credentials?id=Build", None, 404, TEXT, NOT_FOUND),
    (REQUIRED + ROLES, "/creds", None, 404, TEXT, NOT_FOUND),
    (REQUIRED + ROLES, "/role/Build", None, 404, TEXT, NOT_FOUND),
    (REQUIRED + ROLES, "/role/Other", None, 404, TEXT, NOT_FOUND),
    (REQUIRED + TOKENS, "/v2/credentials/BaseIAMRole", "of-all", 200, JSON, TASK % OF_BASE),
    (REQUIRED + TOKENS, "/v2/credentials/Build", "of-build", 200, JSON, TASK % OF_BUILD),
    (REQUIRED + ROLES + "authorization-token = of-build\n", "/v2/credentials/Build", "of-build",
     200, JSON, TASK % OF_BUILD),
    (REQUIRED + ROLES + "authorization-token = of-build\n", "/v2/credentials/BaseIAMRole",
     "of-build", 404, TEXT, NOT_FOUND),
    (REQUIRED + ROLES + "authorization-token = of-build\n", "/v1/credentials", "of-build",
     200, JSON, POD % "AKIAB"),
    (REQUIRED + ROLES + "authorization-token = of-build\n", "/v1/credentials", "other",
     404, TEXT, NOT_FOUND),
    # Ids that are none, or several.
    (ROLES, "/v1/credentials?grid=1", None, 200, JSON, POD % "AKIAI"),
    (ROLES, "/v1/credentials?id=Build&id=Other", None, 200, JSON, TASK % OF_BUILD),
    (ROLES, "/v2/credentials/Other?id=", None, 400, JSON, UNKNOWN),
    # What any path refuses, in the form of the endpoint.
    (ROLES + "[faults]\nx = /* status 503\n", "/v2/credentials/Build", None, 503, JSON,
     task_error("ServiceUnavailable", "Service Unavailable", 503)),
    (ROLES + "[faults]\nx = /* status 429\n", "/v1/credentials", None, 429, TEXT,
     "Too Many Requests\n"),
    ("[metadata-options]\nhttp-endpoint = disabled\n", "/creds", None, 403, TEXT, "Forbidden\n"),
    # error-bodies is for IMDS.
    ("[server]\nerror-bodies = ec2\n" + ROLES, "/v2/credentials/Other", None, 400, JSON, UNKNOWN),
    ("[server]\nerror-bodies = ec2\n" + ROLES, "/role/Other", None, 404, TEXT, NOT_FOUND),
    # Without an instance profile.
    ("[credentials]\nrole =\n", "/creds", None, 404, TEXT, NOT_FOUND),
    ("[credentials]\nrole =\n", "/v1/credentials", None, 404, TEXT, NOT_FOUND),
    # Faults, and a source that fails.
    (ROLES + "[faults]\nx = /v2/* code Denied message \"Not you\"\n", "/v2/credentials/Build",
     None, 400, JSON, task_error("Denied", "Not you")),
    (ROLES + "[faults]\nx = /v1/* code Denied\n", "/v1/credentials", None, 400, TEXT,
     "Denied: fault x in the configuration of fake-metadata\n"),
]


def ask(metadata, path, authorization=None, host="127.0.0.1", headers=(), method="GET"):
    """Return (status, content type, body) of a request, with each time as TIME."""
    tokens = fake_metadata.SessionTokens(b"key")
    if authorization is not None:
        headers = list(headers) + ["Authorization: " + authorization]
    head, _, body = converse(
        metadata, tokens, request("%s %s" % (method, path), *headers, host=host)
    )[1].sent.decode().partition("\r\n\r\n")
    content_type = re.search("\r\nContent-Type: (.*)", head).group(1).strip()
    body = re.sub('"Expiration":"[0-9TZ:-]{20}"', '"Expiration":"TIME"', body)
    return int(head.split()[1]), content_type, body


@pytest.mark.parametrize("config, path, authorization, status, content_type, body", ANSWERS)
def test_answer(make_metadata, config, path, authorization, status, content_type, body):
    """A container endpoint answers byte for byte as its agent does."""
    assert ask(make_metadata(config), path, authorization) == (status, content_type, body)


PATHS = ["/v2/credentials/BaseIAMRole", "/v1/credentials?id=BaseIAMRole", "/v1/credentials",
         "/creds", "/role/BaseIAMRole", "/own/place", "/v2//credentials/./x/../BaseIAMRole",
         "/v1/credentials%3Fid=BaseIAMRole", "/%76%32/credentials/BaseIAMRole",
         "http://169.254.169.254/v2/credentials/BaseIAMRole"]
OWN_PLACE = "[role Other]\npath = /own/place\nform = container\n"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("host", ["169.254.169.254", "169.254.169.254:80", "[fd00:ec2::254]", None])
@pytest.mark.parametrize("config", ["", REQUIRED, REQUIRED + CONTAINER],
                         ids=["optional", "required", "with a token"])
def test_address_of_imds(make_metadata, config, host, path):
    """At the address of IMDS, or without a Host, nothing of container endpoints is served."""
    metadata = make_metadata(config + OWN_PLACE)
    wanted = 401 if "required" in config else 404

    for authorization in None, "of-all":
        status, content_type, body = ask(metadata, path, authorization, host)
        assert (status, content_type) == (wanted, "application/json")
        assert "AccessKeyId" not in body


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("host", [
    "127.0.0.1", "localhost", "[::1]", "169.254.170.2", "169.254.170.23", "[fd00:ec2::23]"])
def test_no_keys_for_a_plain_get(make_metadata, host, path):
    """Where session tokens are required no path gives keys to a request without any token."""
    assert "AccessKeyId" not in ask(make_metadata(REQUIRED + OWN_PLACE), path, host=host)[2]


def test_absolute_target_with_the_address_of_imds(make_metadata):
    """The host of an absolute target counts as Host does."""
    path = "http://169.254.169.254/v2/credentials/BaseIAMRole"

    assert ask(make_metadata(), path)[0] == 404


def test_head_of_credentials(make_metadata):
    """HEAD gives the status and no keys."""
    assert ask(make_metadata(), "/creds", method="HEAD")[::2] == (200, "")


# A token in a file.

@pytest.fixture
def token_file(tmp_path):
    """A file with a token in it."""
    path = tmp_path / "token"
    path.write_text("first")
    return path


def test_token_file_is_read_again(make_metadata, token_file):
    """authorization-token-file counts as it is now: renewed, emptied, deleted, written again."""
    metadata = make_metadata("[container]\nauthorization-token-file = %s\n" % token_file)

    def statuses():
        return [ask(metadata, "/v2/credentials/BaseIAMRole", token)[0]
                for token in ("first", "second", "", None)]

    assert statuses() == [200, 401, 401, 401]
    token_file.write_text("second\n")
    assert statuses() == [401, 200, 401, 401]
    token_file.write_text("")
    assert statuses() == [401, 401, 401, 401]
    token_file.unlink()
    assert statuses() == [401, 401, 401, 401]
    token_file.write_text("first")
    assert statuses() == [200, 401, 401, 401]


def test_token_file_of_a_role(make_metadata, token_file):
    """A role may have a file of its own, which tells it at the endpoint of EKS."""
    metadata = make_metadata(ROLES + "authorization-token-file = %s\n" % token_file)

    assert ask(metadata, "/v1/credentials", "first")[2] == POD % "AKIAB"
    assert ask(metadata, "/v1/credentials", "other")[2] == POD % "AKIAI"


@pytest.mark.parametrize("text, error", [
    ("[container]\nauthorization-token-file = /nowhere\n",
     "[container] authorization-token-file: /nowhere: No such file or directory"),
    ("[role Build]\nauthorization-token-file = /\n", "[role Build] authorization-token-file: /: "),
    ("[container]\nauthorization-token = x\nauthorization-token-file = /etc/passwd\n",
     "[container] authorization-token-file: authorization-token is set as well"),
    ("[role a]\npath = /x\n[role b]\npath = /x\n", "[role b] path: /x is already a path of"),
    ("[role a]\npath = /latest\n", "[role a] path: not a path"),
    ("[role a]\npath = /latest/api/token\n", "[role a] path: not a path"),
    ("[role a]\npath = /latest/meta-data/iam\n", "[role a] path: iam cannot have a value: "),
    ("[role a]\npath = /latest/meta-data/mac/x\n", "[role a] path: mac cannot have a value: "),
])
def test_bad_configuration(check, text, error):
    """What cannot be is said with section and key."""
    code, said = check(text)

    assert code == 1 and error in said


# Paths of a role.

LIVE = ("[role Build]\npath = /latest/meta-data/iam-ecs-1/security-credentials/a-TaskApplication, "
        "/latest/meta-data/my/creds\nform = %s\n")


def test_role_at_paths_of_its_own(make_metadata):
    """A role is served at any path in the form of the instance, and listed there."""
    metadata = make_metadata(LIVE % "instance")
    keys = json.loads(ask(metadata, "/latest/meta-data/my/creds")[2])
    others = json.loads(ask(
        metadata, "/2021-03-23/meta-data/iam-ecs-1/security-credentials/a-TaskApplication")[2])

    assert list(keys) == ["Code", "LastUpdated", "Type", "AccessKeyId", "SecretAccessKey", "Token",
                          "Expiration"]
    assert keys == others and keys["Code"] == "Success"
    assert keys["AccessKeyId"] != json.loads(ask(metadata, CREDENTIALS)[2])["AccessKeyId"]
    assert ask(metadata, "/latest/meta-data/iam-ecs-1")[2] == "security-credentials/"
    assert ask(metadata, "/latest/meta-data/my")[2] == "creds"


def test_role_in_the_form_of_the_container(make_metadata):
    """The form of the container is that of the ECS agent; below /latest/ IMDS serves it too."""
    metadata = make_metadata(LIVE % "container")

    status, content_type, body = ask(
        metadata, "/latest/meta-data/my/creds", host="169.254.169.254")

    assert (status, content_type) == (200, "application/json")
    assert list(json.loads(body))[:2] == ["RoleArn", "AccessKeyId"]


@pytest.mark.parametrize("form", ["instance", "container"])
def test_path_of_a_role_needs_a_session_token(make_metadata, form):
    """Where session tokens are required a path of IMDS needs one, whatever its form."""
    metadata = make_metadata(REQUIRED + LIVE % form)
    token = fake_metadata.SessionTokens(b"key").issue(60)

    assert ask(metadata, "/latest/meta-data/my/creds")[0] == 401
    assert ask(metadata, "/latest/meta-data/my/creds",
               headers=["%s: %s" % (TOKEN_HEADER, token)])[0] == 200


@pytest.mark.parametrize("form, status", [("instance", 401), ("container", 404)])
def test_path_of_a_role_elsewhere(make_metadata, form, status):
    """Outside /latest the form tells whose rules a path has."""
    metadata = make_metadata(REQUIRED + "[role Build]\npath = /own/place\nform = %s\n" % form)

    assert ask(metadata, "/own/place")[0] == status


def test_role_changes_at_its_paths(make_metadata):
    """New credentials of a role are served at all of its paths."""
    metadata = make_metadata(LIVE % "instance")
    before = ask(metadata, "/latest/meta-data/my/creds")

    metadata.find("/v2/credentials/Build").credentials.refresh()

    after = ask(metadata, "/latest/meta-data/my/creds")
    assert before[2] != after[2]
    assert json.loads(after[2])["AccessKeyId"] == json.loads(
        ask(metadata, "/v2/credentials/Build")[2])["AccessKeyId"]
