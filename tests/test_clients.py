"""Unmodified AWS clients take from a running service what they take from a real instance.

A client is told of the service by AWS_EC2_METADATA_SERVICE_ENDPOINT ("variable"), or told nothing:
then it runs in a network namespace where 169.254.169.254 is the service's own ("address").
A client that is not installed skips, or fails where FAKE_METADATA_NO_SKIP is set;
`sh tests/clients/install.sh` installs all of them on Debian 12.
"""
import contextlib
import functools
import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from readme import blocks
from service import CREDENTIALS, PROGRAM, TOKEN_HEADER, TTL_HEADER, Service, wait_for

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "clients")
GO_LIBRARIES = "/usr/share/gocode"
ADDRESS = "http://169.254.169.254"
ROOT_USER = os.geteuid() == 0
NAMESPACE = (["unshare", "--net"] + ([] if ROOT_USER else ["--map-root-user"])
             + ["sh", FOLDER + "/namespace.sh"])
LIKE_EC2 = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "sh", FOLDER + "/like_ec2.sh"]
REQUIRED = "[metadata-options]\nhttp-tokens = required\n"
CONTAINER = "[container]\nauthorization-token = Basic c2VjcmV0\n"
SHORT_LIVED = "[credentials]\nlifetime = 4s\n"
PATIENCE = 60  # seconds for a client to end


class Machine:
    """A running service, and clients that reach it by a variable or by the address."""

    def __init__(self, folder, reach, config=""):
        self.reach, self.home = reach, str(folder)
        inside = reach == "address"
        need(not inside or not namespace_trouble(), namespace_trouble())
        self.service = Service(folder, config, bind="127.0.0.1:8000" if inside else "127.0.0.1:0",
                               within=NAMESPACE if inside else ())
        self.url = ADDRESS if inside else self.service.url
        self.enter = (
            ["nsenter", "--target", str(self.service.process.pid), "--net"] if inside else [])
        self.enter += ["--user", "--preserve-credentials"] if inside and not ROOT_USER else []

    def environment(self, **variables):
        """Return a client's environment: nothing of AWS and no proxy but what the test says."""
        kept = {name: value for name, value in os.environ.items()
                if not name.startswith("AWS_") and not name.lower().endswith("_proxy")}
        if self.reach == "variable":
            kept["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = self.url + "/"
        return dict(kept, HOME=self.home, **variables)

    def run(self, *command, **variables):
        """Run a client to its end; return what it prints."""
        done = subprocess.run(
            self.enter + list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env=self.environment(**variables), cwd=self.home,
            timeout=PATIENCE)
        assert done.returncode == 0, "%s: %s\n%s" % (
            command, done.stderr.decode(), self.service.log())
        return done.stdout.decode()

    def run_json(self, *command, **variables):
        return json.loads(self.run(*command, **variables))

    @contextlib.contextmanager
    def running(self, *command, stdin=subprocess.PIPE, **variables):
        """Run a client beside the test, which reads its lines; a silent one is ended in time."""
        client = subprocess.Popen(
            self.enter + list(command), stdin=stdin, stdout=subprocess.PIPE,
            env=self.environment(**variables), cwd=self.home, universal_newlines=True)
        alarm = threading.Timer(PATIENCE, client.kill)
        alarm.start()
        try:
            yield client
        finally:
            alarm.cancel()
            client.terminate()
            client.communicate(timeout=PATIENCE)

    def get(self, path):
        """Return the text at a path, with a session token, as seen where the clients run."""
        return self.run(sys.executable, FOLDER + "/get.py", self.url, path)

    def credentials(self):
        """Return the credentials document that is served now."""
        return json.loads(self.get(CREDENTIALS))

    def rotate(self):
        """Make new credentials; return their document once they are served."""
        old = self.credentials()["AccessKeyId"]
        self.service.signal(signal.SIGUSR1)
        return wait_for(
            lambda: next((new for new in [self.credentials()] if new["AccessKeyId"] != old), None),
            what="the next generation")


@functools.lru_cache(maxsize=None)
def namespace_trouble():
    """Return why no network namespace can be had, or an empty text."""
    for program in ("unshare", "nsenter", "ip", "iptables"):
        if not which(program):
            return program + " is not installed"
    tried = subprocess.run(NAMESPACE + ["true"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return "no network namespace: " + tried.stdout.decode().strip() if tried.returncode else ""


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    """Start machines: machines(reach, config); one of each kind for tests that change nothing."""
    started = {}

    def start(reach, config=""):
        if (reach, config) not in started:
            started[reach, config] = Machine(tmp_path_factory.mktemp(reach), reach, config)
        return started[reach, config]

    yield start
    for machine in started.values():
        machine.service.stop()


@pytest.fixture
def machine_of(tmp_path):
    """Start the one machine of a test that changes it: machine_of(reach, config)."""
    started = []

    def start(reach, config=""):
        started.append(Machine(tmp_path, reach, config))
        return started[0]

    yield start
    for machine in started:
        machine.service.stop()


# What is installed. Each function returns the path of a client, or skips the test.

def need(found, reason):
    """Return what was found; without it skip the test, saying why."""
    if not found:
        pytest.skip(reason)
    return found


def which(program):
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def tool(program):
    return need(which(program), program + " is not installed")


@functools.lru_cache(maxsize=None)
def works(*command):
    return subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def python_with(module):
    """Return a Python that has a module: that of the clients' venv, this one, or the system's."""
    pythons = [FOLDER + "/venv/bin/python", sys.executable, "/usr/bin/python3"]
    found = [path for path in pythons
             if os.path.exists(path) and works(path, "-c", "import " + module)]
    return need(found, "no Python has %s" % module)[0]


@functools.lru_cache(maxsize=None)
def aws_versions():
    """Return {major version of the AWS CLI: path} of all on this machine."""
    folders = ([FOLDER + "/venv/bin"] + os.environ.get("PATH", "").split(":")
               + ["/usr/local/bin", "/usr/bin"])
    found = {}
    for path in [folder + "/aws" for folder in folders if os.access(folder + "/aws", os.X_OK)]:
        said = subprocess.run(
            [path, "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout.decode()
        if said.startswith("aws-cli/"):
            found.setdefault(said[len("aws-cli/")], path)
    return found


def aws_cli(major):
    return need(aws_versions().get(major), "no AWS CLI v%s is installed" % major)


def node(program):
    """Return the command of a Node program beside its modules."""
    need(os.path.isdir(FOLDER + "/node_modules/@aws-sdk"), "the Node SDK is not installed")
    return [tool("node"), os.path.join(FOLDER, program)]


@functools.lru_cache(maxsize=None)
def go(program, library):
    """Build a Go program with Debian's copy of the SDK; return its path."""
    tool("go")
    need(os.path.isdir(os.path.join(GO_LIBRARIES, "src", library)),
         library + " is not installed")
    built = os.path.join(FOLDER, "build", "%s-%d" % (program, os.getpid()))
    subprocess.run(["go", "build", "-o", built, os.path.join(FOLDER, program + ".go")], check=True,
                   env=dict(os.environ, GO111MODULE="off", GOPATH=GO_LIBRARIES, GOFLAGS="",
                            GOPROXY="off"))
    return built


def ruby():
    need(works(tool("ruby"), "-e", "require 'aws-sdk-core'"), "the Ruby SDK is not installed")
    return ["ruby", FOLDER + "/ruby.rb"]


def cloud_init():
    """Return the folder of the cloudinit module: the system's, or one unpacked beside the tests."""
    folders = ["/usr/lib/python3/dist-packages",
               FOLDER + "/cloud-init/usr/lib/python3/dist-packages"]
    found = [folder for folder in folders if os.path.isdir(folder + "/cloudinit")]
    need(found
         and works("/usr/bin/python3", "-c", "import configobj, jinja2, jsonpatch, requests, yaml"),
         "cloud-init is not installed")
    return found[0]


def on_ec2(*command):
    """Return the command of a client that looks at the hardware first."""
    need(ROOT_USER, "root is needed to look like EC2")
    return LIKE_EC2 + list(command)


# The clients. Each function takes a machine and returns what the client found, in the words of the
# real document.

EITHER_WAY = [("variable", "optional"), ("variable", "required"),
              ("address", "optional"), ("address", "required")]
BY_ADDRESS = EITHER_WAY[2:]
CLIENTS = []


def client(name, cases):
    """Enter a function into the table of clients, with the cases to run it in."""
    def enter(function):
        CLIENTS.extend(pytest.param(function, reach, tokens, id="%s-%s-%s" % (name, reach, tokens))
                       for reach, tokens in cases)
        return function
    return enter


@client("boto3", EITHER_WAY)
def boto3(machine):
    return machine.run_json(python_with("boto3"), FOLDER + "/boto3_session.py")


@client("AWS CLI v1", EITHER_WAY)
def aws_cli_v1(machine):
    return signed_by(machine, aws_cli("1"))


@client("AWS CLI v2", EITHER_WAY)
def aws_cli_v2(machine):
    found = machine.run_json(aws_cli("2"), "configure", "export-credentials", "--format", "process")
    listed = machine.run(aws_cli("2"), "configure", "list").split()
    return {"AccessKeyId": found["AccessKeyId"], "SecretAccessKey": found["SecretAccessKey"],
            "Token": found["SessionToken"], "Region": listed[listed.index("region") + 1]}


@client("JavaScript SDK v3", EITHER_WAY)
def javascript_chain(machine):
    return machine.run_json(*node("javascript.mjs"))


@client("JavaScript SDK v3 fromInstanceMetadata", EITHER_WAY)
def javascript_instance_metadata(machine):
    return machine.run_json(*node("javascript.mjs") + ["fromInstanceMetadata"])


@client("JavaScript SDK v3 MetadataService", EITHER_WAY)
def javascript_metadata_service(machine):
    paths = [CREDENTIALS, "/latest/meta-data/placement/region", "/latest/meta-data/instance-id"]
    document, region, instance = map(
        json.loads, machine.run(*node("javascript_metadata.mjs") + paths).splitlines())
    return dict(json.loads(document), Region=region, InstanceId=instance)


@client("Go SDK v1", EITHER_WAY)
def go_v1(machine):
    return machine.run_json(go("go_v1", "github.com/aws/aws-sdk-go"))


@client("Go SDK v2", EITHER_WAY)
def go_v2(machine):
    return machine.run_json(go("go_v2", "github.com/aws/aws-sdk-go-v2"))


@client("awscrt", EITHER_WAY)
def awscrt(machine):
    return awscrt_of(machine, "venv")


@client("awscrt of early 2023", BY_ADDRESS)  # which sends no Host
def awscrt_2023(machine):
    return awscrt_of(machine, "venv-2023")


def awscrt_of(machine, venv):
    """Run the awscrt of a venv; Debian's, which comes with the AWS CLI, would be another one."""
    python = os.path.join(FOLDER, venv, "bin/python")
    need(os.path.exists(python) and works(python, "-c", "import awscrt"),
         "awscrt is not installed in " + venv)
    return machine.run_json(python, FOLDER + "/awscrt_chain.py")


@client("Ruby SDK", BY_ADDRESS)  # Debian's 3.168 takes the host of the variable, but not its port
def ruby_sdk(machine):
    return machine.run_json(*ruby())


@client("s3fs", [("address", "optional")])  # 1.90 asks for the role without a token
def s3fs(machine):
    need(ROOT_USER and os.path.exists("/dev/fuse"), "s3fs needs root and /dev/fuse")
    mount = os.path.join(machine.home, "mount")
    os.makedirs(mount, exist_ok=True)
    with bucket(machine) as (port, signed):
        options = "iam_role=auto,use_path_request_style,url=http://127.0.0.1:%d" % port
        s3fs_command = ["unshare", "--mount", tool("s3fs"), "bucket", mount, "-f", "-o", options]
        # s3fs takes the body of the token PUT from standard input.
        with machine.running(*s3fs_command, stdin=subprocess.DEVNULL):
            return signed()


@client("curl", EITHER_WAY)
def curl(machine):
    get = [tool("curl"), "--silent", "--show-error", "--fail"]
    token = machine.run(
        *get + ["-X", "PUT", "-H", TTL_HEADER + ": 60", machine.url + "/latest/api/token"])
    return machine.run_json(
        *get + ["-H", "%s: %s" % (TOKEN_HEADER, token), machine.url + CREDENTIALS])


@client("wget", EITHER_WAY)
def wget(machine):
    get = [tool("wget"), "--quiet", "--output-document=-"]
    token = machine.run(
        *get + ["--method=PUT", "--header=%s: 60" % TTL_HEADER, machine.url + "/latest/api/token"])
    return machine.run_json(
        *get + ["--header=%s: %s" % (TOKEN_HEADER, token), machine.url + CREDENTIALS])


# As the fetchers of NixOS images do it: they wait for the end of the connection.
BY_NC = r"""
send() { timeout 5 nc "$HOST" "$PORT"; }
"""
BY_DEV_TCP = r"""
send() { timeout 5 bash -c 'exec 3<>"/dev/tcp/$HOST/$PORT"; cat >&3; cat <&3'; }
"""
FETCH = r"""
ask() { printf '%s HTTP/1.1\r\nHost: 169.254.169.254\r\n%s\r\n\r\n' "$1" "$2" | send; }
token=$(ask "PUT /latest/api/token" "X-aws-ec2-metadata-token-ttl-seconds: 60" | tail -n 1)
ask "GET $1" "X-aws-ec2-metadata-token: $token" | sed '1,/^\r$/d'
"""


def fetch(machine, send):
    """Run a fetcher without a client of HTTP."""
    host, _, port = machine.url.partition("//")[2].partition(":")
    return machine.run_json("bash", "-e", "-o", "pipefail", "-c", send + FETCH, "-", CREDENTIALS,
                            HOST=host, PORT=port or "80")


@client("nc", EITHER_WAY)
def nc(machine):
    tool("nc")
    return fetch(machine, BY_NC)


@client("/dev/tcp of bash", EITHER_WAY)
def dev_tcp(machine):
    tool("bash")
    return fetch(machine, BY_DEV_TCP)


@contextlib.contextmanager
def bucket(machine):
    """Run an S3 where a machine's clients run; give its port, and what awaits a signed request."""
    with machine.running(sys.executable, FOLDER + "/s3.py") as s3:
        yield int(s3.stdout.readline()), lambda: json.loads(s3.stdout.readline())


def signed_by(machine, aws, **variables):
    """Return the keys with which the AWS CLI signs a request."""
    with bucket(machine) as (port, signed):
        machine.run(aws, "s3api", "list-objects-v2", "--bucket", "bucket", "--region", "us-east-1",
                    "--endpoint-url", "http://127.0.0.1:%d" % port, **variables)
        return signed()


def same_credentials(found, document):
    """Tell whether a client found a document's keys; a signed request does not show the secret."""
    return (all(found.get(key, document[key]) == document[key]
                for key in ("AccessKeyId", "SecretAccessKey", "Token"))
            and found["AccessKeyId"] and found["Token"])


@pytest.mark.parametrize("ask, reach, tokens", CLIENTS)
def test_client_takes_what_is_served(machines, ask, reach, tokens):
    """A client finds the credentials served, and region and instance id where it looks for them."""
    machine = machines(reach, REQUIRED if tokens == "required" else "")

    found = ask(machine)

    assert same_credentials(found, machine.credentials())
    assert found.get("Region", "us-east-1") == "us-east-1"
    assert found.get("InstanceId") in (None, machine.get("/latest/meta-data/instance-id"))


# Rotation.

def going_on(name):
    """Return the command of a client that prints its credentials again when told, and its reach."""
    return {
        "JavaScript SDK v3": lambda: (node("javascript.mjs"), "variable"),
        "Go SDK v1": lambda: ([go("go_v1", "github.com/aws/aws-sdk-go")], "variable"),
        "Go SDK v2": lambda: ([go("go_v2", "github.com/aws/aws-sdk-go-v2")], "variable"),
        "Ruby SDK": lambda: (ruby(), "address"),
    }[name]()


def tell(running):
    """Make a running client print its credentials once more; return them."""
    running.stdin.write("\n")
    running.stdin.flush()
    return json.loads(running.stdout.readline())


@pytest.mark.parametrize("name", ["JavaScript SDK v3", "Go SDK v1", "Go SDK v2", "Ruby SDK"])
def test_running_client_takes_the_next_generation(machine_of, name):
    """A running client takes later keys: most within five minutes of expiry, Go v2 at expiry."""
    command, reach = going_on(name)
    machine = machine_of(reach, SHORT_LIVED)
    with machine.running(*command) as running:
        first = json.loads(running.stdout.readline())

        later = wait_for(lambda: next((new for new in [tell(running)] if new != first), None),
                         what="the next generation")

        assert later["AccessKeyId"] != first["AccessKeyId"] and later["Token"] != first["Token"]
        for found in first, later:  # the log is written just after the answers of a round
            line = "new credentials for BaseIAMRole: ...%s," % found["AccessKeyId"][-4:]
            wait_for(lambda: line in machine.service.log(), what=line)


def libfaketime():
    return need(glob.glob("/usr/lib/*/faketime/libfaketime.so.1"),
                "libfaketime is not installed")[0]


def test_running_boto3_session_takes_the_next_generation(machine_of):
    """A running boto3 session takes the next keys when its own have less than 15 minutes left.

    botocore keeps any keys for at least two minutes, so its clock is moved, nothing else.
    """
    python, machine = python_with("boto3"), machine_of("variable")
    clock = os.path.join(machine.home, "clock")
    with open(clock, "w") as file:
        file.write("+0")
    with machine.running(
            python, FOLDER + "/boto3_session.py", LD_PRELOAD=libfaketime(), FAKETIME_NO_CACHE="1",
            FAKETIME_TIMESTAMP_FILE=clock, DONT_FAKE_MONOTONIC="1") as running:
        first, before = json.loads(running.stdout.readline()), machine.credentials()
        after = machine.rotate()
        kept = tell(running)

        with open(clock, "w") as file:
            file.write("+345m")
        taken = tell(running)

        assert same_credentials(first, before) and same_credentials(kept, before)
        assert same_credentials(taken, after)


# Containers: the same credentials in the form of ECS and EKS.

CONTAINER_CLIENTS = {
    "boto3": lambda machine, **container: machine.run_json(
        python_with("boto3"), FOLDER + "/boto3_session.py", **container),
    "AWS CLI v1": lambda machine, **container: signed_by(machine, aws_cli("1"), **container),
    "AWS CLI v2": lambda machine, **container: signed_by(machine, aws_cli("2"), **container),
    "JavaScript SDK v3": lambda machine, **container: machine.run_json(
        *node("javascript.mjs"), **container),
    "JavaScript SDK v3 fromHttp": lambda machine, **container: machine.run_json(
        *node("javascript.mjs") + ["fromHttp"], **container),
    "JavaScript SDK v3 fromContainerMetadata": lambda machine, **container: machine.run_json(
        *node("javascript.mjs") + ["fromContainerMetadata"], **container),
    "Go SDK v1": lambda machine, **container: machine.run_json(
        go("go_v1", "github.com/aws/aws-sdk-go"), **container),
    "Go SDK v2": lambda machine, **container: machine.run_json(
        go("go_v2", "github.com/aws/aws-sdk-go-v2"), **container),
}


@pytest.mark.parametrize("name", sorted(CONTAINER_CLIENTS))
def test_client_takes_container_credentials(machines, name):
    """A client told of the container endpoint gets the same keys with the authorization token."""
    machine = machines("variable", CONTAINER)

    found = CONTAINER_CLIENTS[name](
        machine,
        AWS_CONTAINER_CREDENTIALS_FULL_URI=machine.service.url + "/v2/credentials/BaseIAMRole",
        AWS_CONTAINER_AUTHORIZATION_TOKEN="Basic c2VjcmV0", AWS_EC2_METADATA_DISABLED="true",
        AWS_REGION="us-east-1")

    assert same_credentials(found, machine.credentials())
    assert found.get("Method") in (None, "container-role")


ROLES = ("[credentials]\nlifetime = 1h\n[container]\nauthorization-token-file = %s\n"
         "[role Build]\nauthorization-token = of-build\n")


@pytest.fixture(params=["", REQUIRED], ids=["optional", "required"])
def roles(request, machine_of, tmp_path):
    """A machine with two roles, each with an authorization token of its own, one in a file."""
    (tmp_path / "token").write_text("of-all")
    return machine_of("variable", request.param + ROLES % (tmp_path / "token"))


def boto3_in_container(machine, path, **authorization):
    """Return what boto3 takes from a container endpoint."""
    return machine.run_json(
        python_with("boto3"), FOLDER + "/boto3_session.py", AWS_EC2_METADATA_DISABLED="true",
        AWS_CONTAINER_CREDENTIALS_FULL_URI=machine.service.url + path, **authorization)


@pytest.mark.parametrize("path, token", [
    ("/v2/credentials/BaseIAMRole", "of-all"), ("/v1/credentials?id=BaseIAMRole", "of-all"),
    ("/v1/credentials", "of-all"), ("/creds", "of-all"), ("/role/BaseIAMRole", "of-all"),
    ("/v2/credentials/Build", "of-build"), ("/v1/credentials?id=Build", "of-build"),
    ("/v1/credentials", "of-build"), ("/role/Build", "of-build")])
def test_boto3_at_every_container_endpoint(roles, path, token):
    """boto3 gets the credentials of the role that path or token name, where v1 is off too."""
    found = boto3_in_container(roles, path, AWS_CONTAINER_AUTHORIZATION_TOKEN=token)

    is_of_instance = found["AccessKeyId"] == roles.credentials()["AccessKeyId"]
    assert found["Method"] == "container-role" and is_of_instance is (token == "of-all")


def test_boto3_with_a_token_file_that_is_renewed(roles, tmp_path):
    """boto3 and the service read the same token file, before and after it is renewed."""
    token = tmp_path / "token"
    for text in "of-all", "renewed":
        token.write_text(text)
        found = boto3_in_container(
            roles, "/v1/credentials", AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=str(token))

        assert same_credentials(found, roles.credentials())
    with pytest.raises(AssertionError, match="no credentials|CredentialRetrievalError"):
        boto3_in_container(roles, "/v1/credentials", AWS_CONTAINER_AUTHORIZATION_TOKEN="of-all")


# Signatures.

def go_verify():
    """Build the verifier with Debian's copy of the library that Vault's comes from."""
    return go("verify", "go.mozilla.org/pkcs7")


@pytest.mark.parametrize("form", ["pkcs7", "rsa2048"])
def test_vault_and_spire_verify_the_document(serve, tmp_path, form):
    """The signatures verify as Vault and SPIRE verify them; those of another document do not."""
    verifier = go_verify()
    kept = {"STATE_DIRECTORY": str(tmp_path)}
    service = serve(env=kept)
    names = ["document", form, "signature"]
    for name in names:
        text = service.get("/latest/dynamic/instance-identity/" + name)[2]
        (tmp_path / name).write_text(text)
    (tmp_path / "certificate").write_bytes(subprocess.check_output(
        [sys.executable, PROGRAM, "--certificate"], env=dict(os.environ, **kept)))
    command = [verifier] + [str(tmp_path / name) for name in ["certificate"] + names]

    assert subprocess.check_output(command).decode() == (tmp_path / "document").read_text()
    changed = (tmp_path / "document").read_text().replace("t3.micro", "t3.large")
    (tmp_path / "document").write_text(changed)
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 1


# Crawlers and agents, on an instance with all that they look for.

WHOLE = """[instance]
availability-zone = eu-central-1b
instance-type = m5.large
public-ipv4 = 203.0.113.77
key-name = my-key
[interface eth1]
local-ipv4 = 172.31.9.9
[metadata-options]
http-tokens = %s
instance-metadata-tags = enabled
[tags]
Name = web server
team = blue
[user-data]
text = #!/bin/sh
"""
TOKENS = ["optional", "required"]


@pytest.fixture(params=TOKENS)
def whole(request, machines):
    """A machine with tags, a key pair, two interfaces and user data, reached by the address."""
    return machines("address", WHOLE % request.param)


def test_cloud_init_crawls_everything(whole, tmp_path):
    """cloud-init's EC2 datasource recognises AWS and crawls the whole tree."""
    module = cloud_init()

    found = whole.run_json(*on_ec2(
        "/usr/bin/python3", FOLDER + "/cloud_init.py", ADDRESS, str(tmp_path), module))

    data = found["meta-data"]
    assert (found["found"], found["cloud"]) == (True, "aws")
    assert found["instance-id"] == whole.get("/latest/meta-data/instance-id")
    assert found["user-data"] == "#!/bin/sh"
    assert data["placement"]["availability-zone"] == "eu-central-1b"
    assert data["public-keys"]["my-key"][0].startswith("ssh-")
    assert sorted(data["tags"]["instance"].items()) == [("Name", "web server"), ("team", "blue")]
    assert len(data["network"]["interfaces"]["macs"]) == 2


def test_cloud_init_by_its_own_setting(machines, tmp_path):
    """cloud-init's EC2 datasource takes another address from its setting metadata_urls."""
    machine, module = machines("variable", WHOLE % "required"), cloud_init()

    found = machine.run_json(*on_ec2(
        "/usr/bin/python3", FOLDER + "/cloud_init.py", machine.url, str(tmp_path), module))

    assert (found["found"], found["cloud"]) == (True, "aws")
    assert found["meta-data"]["placement"]["region"] == "eu-central-1"


def test_settings_of_cloud_init(machines, tmp_path):
    """With the settings of the README cloud-init finds the service where nothing looks like EC2."""
    machine, module = machines("address", "[user-data]\ntext = #!/bin/sh\n"), cloud_init()
    settings, = [block.text for block in blocks() if "cloud.cfg.d" in block.text]
    (tmp_path / "99-ec2.cfg").write_text(settings)

    found = machine.run_json("/usr/bin/python3", FOLDER + "/cloud_init.py",
                             str(tmp_path / "99-ec2.cfg"), str(tmp_path), module)

    assert found["found"] and found["user-data"] == "#!/bin/sh"
    assert found["instance-id"] == machine.get("/latest/meta-data/instance-id")


def test_facter(whole):
    """facter shows the metadata and the user data of the instance as facts."""
    facts = whole.run_json(*on_ec2(tool("facter"), "--json", "ec2_metadata", "ec2_userdata"))

    found = facts["ec2_metadata"]
    assert found["instance-id"] == whole.get("/latest/meta-data/instance-id")
    assert found["placement"]["region"] == "eu-central-1"
    assert found["public-keys"]["0"]["openssh-key"].startswith("ssh-")
    assert facts["ec2_userdata"] == "#!/bin/sh"


def test_ohai(whole):
    """ohai collects its ec2 attributes."""
    found = whole.run_json(*on_ec2(tool("ohai"), "ec2"))

    assert found["instance_id"] == whole.get("/latest/meta-data/instance-id")
    assert (found["region"], found["availability_zone"]) == ("eu-central-1", "eu-central-1b")
    assert found["iam"]["role_name"] == "BaseIAMRole"
    assert len(found["network_interfaces_macs"]) == 2
    assert found["userdata"] == "#!/bin/sh"


def test_amazons_ec2_metadata_script(whole):
    """Amazon's ec2-metadata script shows the instance with its tags and key."""
    lines = whole.run(tool("ec2-metadata")).splitlines()

    assert "instance-id: " + whole.get("/latest/meta-data/instance-id") in lines
    assert "placement: eu-central-1b" in lines
    assert "public-ipv4: 203.0.113.77" in lines
    assert "keyname:my-key" in lines
    assert "user-data: #!/bin/sh" in lines
    assert [line.strip() for line in lines][-2:] == ["Name: web server", "team: blue"]


def test_ec2metadata_of_cloud_utils(whole):
    """ec2metadata of cloud-utils shows what it asks for below 2009-04-04."""
    lines = whole.run(tool("ec2metadata")).splitlines()

    assert "instance-id: " + whole.get("/latest/meta-data/instance-id") in lines
    assert "availability-zone: eu-central-1b" in lines
    assert "region: eu-central-1" in lines
    assert "instance-type: m5.large" in lines


@pytest.mark.parametrize("tokens", TOKENS)
def test_spot_interruption_watcher(machine_of, tokens):
    """A watcher that polls as the node termination handler does sees 404 until the notice comes."""
    config = ("[metadata-options]\nhttp-tokens = %s\n"
              "[events]\nspot-interruption = +2s terminate\n" % tokens)
    machine = machine_of("variable", config)

    notice = machine.run_json(sys.executable, FOLDER + "/spot_watcher.py", machine.url, "20")

    assert notice["action"] == "terminate"
    assert notice == json.loads(machine.get("/latest/meta-data/spot/instance-action"))
    assert '"GET /latest/meta-data/spot/instance-action HTTP/1.1" 404 ' in machine.service.log()


# Failures.

RETRYING = {
    "boto3": lambda machine: machine.run_json(
        python_with("boto3"), FOLDER + "/boto3_session.py", AWS_METADATA_SERVICE_NUM_ATTEMPTS="3"),
    "AWS CLI v1": lambda machine: signed_by(
        machine, aws_cli("1"), AWS_METADATA_SERVICE_NUM_ATTEMPTS="3"),
    "AWS CLI v2": lambda machine: signed_by(
        machine, aws_cli("2"), AWS_METADATA_SERVICE_NUM_ATTEMPTS="3"),
    "JavaScript SDK v3": lambda machine: machine.run_json(
        *node("javascript.mjs") + ["fromInstanceMetadata", '{"maxRetries": 2}']),
    "Go SDK v1": go_v1,
    "Go SDK v2": go_v2,
}
FAULTS = {
    "503": "once = /latest/meta-data/iam/* status 503 times 1",
    "late": "late = /latest/meta-data/iam/* delay 300ms",
    # Most clients give up after one second, and ask again.
    "too late": "once = /latest/meta-data/iam/* delay 1500ms times 1",
    "reset": "once = /latest/meta-data/iam/* reset times 1",
}


@pytest.mark.parametrize("name, fault", [
    (name, fault) for name in sorted(RETRYING) for fault in sorted(FAULTS)
    if (name, fault) != ("Go SDK v1", "reset")])  # which forgives a kept connection only
def test_client_rides_through_a_fault(machine_of, name, fault):
    """A client that retries gets its credentials in spite of one failure, or of late answers."""
    machine = machine_of("variable", "[faults]\n" + FAULTS[fault])

    found = RETRYING[name](machine)

    assert same_credentials(found, machine.credentials())


@pytest.mark.parametrize("name", ["JavaScript SDK v3", "Go SDK v2", "Ruby SDK"])
def test_running_client_keeps_its_credentials_through_an_outage(machine_of, name):
    """A running client keeps its credentials, expired or not, while the service answers 503."""
    command, reach = going_on(name)
    machine = machine_of(reach, SHORT_LIVED)
    with machine.running(*command) as running:
        first = json.loads(running.stdout.readline())

        machine.service.reload(
            SHORT_LIVED + "[faults]\noutage = /latest/meta-data/iam/* status 503")
        during = wait_for(
            lambda: next((keys for keys in [tell(running)]
                          if '" 503 ' in machine.service.log()), None),
            what="an attempt of the client during the outage")

        assert during == first


# As COMMAND.

COMMAND_CONFIG = """
[instance]
availability-zone = eu-central-1b

[credentials]
source = static
access-key-id = ASIAIOSFODNN7EXAMPLE
secret-access-key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY
session-token = the-token
"""

HIDDEN_BY = {
    "AWS_ACCESS_KEY_ID": "AKIAI44QH8DHBEXAMPLE", "AWS_SECRET_ACCESS_KEY": "other",
    "AWS_SESSION_TOKEN": "other", "AWS_PROFILE": "dev", "AWS_DEFAULT_PROFILE": "dev",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "/nowhere/token",
    "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/Other",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:1/",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:1/",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE": "IPv6",
    "HTTP_PROXY": "http://127.0.0.1:1/", "http_proxy": "http://127.0.0.1:1/",
}

OTHER_KEYS = """
[%s]
aws_access_key_id = AKIAI44QH8DHBEXAMPLE
aws_secret_access_key = other
"""


class Wrapped:
    """Runs clients by `fake_metadata.py -- CLIENT`, amid what hides a metadata service."""

    def __init__(self, folder):
        self.home = str(folder)
        self.config = os.path.join(self.home, "fake-metadata.conf")
        files = {
            "fake-metadata.conf": COMMAND_CONFIG,
            ".aws/credentials": OTHER_KEYS % "default" + OTHER_KEYS % "dev",
            ".aws/config": OTHER_KEYS % "profile dev",
            ".boto": OTHER_KEYS % "Credentials",
        }
        for name, text in files.items():
            path = os.path.join(self.home, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w") as file:
                file.write(text)

    def run(self, *command, **variables):
        """Run a client to its end; return what it prints."""
        kept = {name: value for name, value in os.environ.items()
                if not name.startswith("AWS_") or name == "AWS_CA_BUNDLE"}
        done = subprocess.run(
            [sys.executable, PROGRAM, "--config", self.config, "--", *command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=dict(kept, HOME=self.home, **HIDDEN_BY, **variables), timeout=PATIENCE)
        assert done.returncode == 0, "%s: %s" % (command, done.stderr.decode())
        return done.stdout.decode()

    def run_json(self, *command, **variables):
        return json.loads(self.run(*command, **variables))


def aws_cli_v1_in_command(wrapped):
    listed = wrapped.run(aws_cli("1"), "configure", "list").splitlines()
    found = {line.split()[0]: line.split() for line in listed}
    assert "iam-role" in found["access_key"]
    found_region = found["region"][1]
    return dict(signed_in_command(wrapped, aws_cli("1")), Region=found_region)


def signed_in_command(wrapped, aws):
    with subprocess.Popen([sys.executable, FOLDER + "/s3.py"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, universal_newlines=True) as s3:
        port = int(s3.stdout.readline())
        wrapped.run(aws, "s3api", "list-objects-v2", "--bucket", "bucket",
                    "--endpoint-url", "http://127.0.0.1:%d" % port)
        signed = json.loads(s3.stdout.readline())
        s3.terminate()
    return signed


IN_COMMAND = {
    "boto3": lambda wrapped: wrapped.run_json(
        python_with("boto3"), FOLDER + "/boto3_client.py"),
    "AWS CLI v1": aws_cli_v1_in_command,
    "AWS CLI v2": aws_cli_v2,
    "JavaScript SDK v3": lambda wrapped: wrapped.run_json(*node("javascript_client.mjs")),
    "Go SDK v1": go_v1,
    "Go SDK v2": go_v2,
    "awscrt": awscrt,
}


@pytest.mark.parametrize("name", IN_COMMAND)
def test_client_as_command(tmp_path, name):
    """As COMMAND a client takes keys and region from us, whatever there is outside."""
    found = IN_COMMAND[name](Wrapped(tmp_path))

    assert same_credentials(found, {
        "AccessKeyId": "ASIAIOSFODNN7EXAMPLE", "Token": "the-token",
        "SecretAccessKey": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"})
    assert found.get("Region", "eu-central-1") == "eu-central-1"


def test_region_outside_stays(tmp_path):
    """A region that is set outside is the client's."""
    found = Wrapped(tmp_path).run_json(
        python_with("boto3"), FOLDER + "/boto3_client.py", AWS_REGION="us-west-2")

    assert found["Region"] == "us-west-2"
