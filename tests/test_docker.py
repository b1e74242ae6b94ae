"""Containers of a real Docker on a box: dockerd of Debian, its bridges, its rules, its restarts.

All tests but the last share one booted box, on which dockerd is started after the service. The
containers have the programs of the box, and each test leaves all as it found it. They need root,
debootstrap, and apt-get of the Debian that the boxes have.
"""
import json
import re
import subprocess

import pytest

from box import HOME, Box, Neighbour, layer, why_not
from readme import SUDO, Shell, sections_at
from service import readme, wait_for
from test_box import (
    AS_NOBODY,
    GET,
    INSTALL,
    LOG,
    META_DATA,
    PURGE,
    ROUND_TRIP,
    SERVICE,
)
from test_network import DEFAULTS, STATUS, set_defaults

pytestmark = [pytest.mark.skipif(bool(why_not()), reason=why_not() or ""),
              pytest.mark.xdist_group("docker")]

PACKAGES = ["docker.io", "containerd", "runc", "tini", "libdevmapper1.02.1",
            "slirp4netns", "libslirp0", "libglib2.0-0", "passt",
            "docker-compose"] + ["python3-" + module for module in (
                "attr", "cached-property", "certifi", "chardet", "charset-normalizer", "distro",
                "distutils", "docker", "dockerpty", "docopt", "dotenv", "idna", "jsonschema",
                "lib2to3", "pkg-resources", "pyrsistent", "requests", "six", "texttable",
                "urllib3", "websocket", "yaml")]
# The disk of a box is layers already, on which Docker can put none: vfs copies.
START = ("start-stop-daemon --start --background --no-close --exec /usr/sbin/dockerd -- "
         "--pidfile /run/docker.pid --storage-driver vfs >>/var/log/docker.log 2>&1 </dev/null")
STOP = "start-stop-daemon --stop --pidfile /run/docker.pid --retry 20"
# The rest of it comes with -v /usr:/usr.
IMAGE = """
mkdir -p image/etc image/tmp image/usr && cd image
for name in bin sbin lib lib64; do ln -s usr/$name $name; done
tar -c . | docker import - my-image
"""
BOTO3 = """
import boto3
print(boto3.Session().get_credentials().get_frozen_credentials().access_key)
"""
RUN = "docker run -v /usr:/usr:ro "
SERVER = "my-image python3 -m http.server --directory /usr/share/doc/curl 80"
SERVED = "changelog"  # is in the listing of that folder
LIMIT = "metadata-options.http-put-response-hop-limit"
NETWORKS = {"on-docker0": "bridge", "on-mine": "mine", "on-other": "other"}
LET_IN = ("on-docker0", "on-mine")


@pytest.fixture(scope="module")
def programs():
    """The folder with the programs of Docker, to lie over the disk of a box."""
    try:
        return layer("docker-programs", PACKAGES)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs apt-get, of the Debian that the boxes have, with docker.io and passt")


@pytest.fixture(scope="module")
def docker(programs, tmp_path_factory):
    """A box with the product and, started after it, dockerd: three containers on three bridges."""
    with Box("sysvinit", tmp_path_factory.mktemp("docker"), programs) as box:
        box.copy_product()
        box.ok("CONTAINERS='docker0 br-+' " + INSTALL)
        start_docker(box)
        box.ok(IMAGE)
        box.ok("docker network create mine && docker network create "
               "--opt com.docker.network.bridge.name=other0 other")
        for name, network in NETWORKS.items():
            box.ok(RUN + "--detach --restart always --stop-signal KILL --name %s --network %s "
                   "my-image sleep infinity" % (name, network))
        yield box


def start_docker(box):
    box.ok(START)
    wait_for(lambda: box.run("docker version").code == 0, what="dockerd")


def inside(box, name, script):
    """Run a script in a container; return Result(code, out, err)."""
    return box.run("docker exec -i %s sh" % name, stdin=script)


def is_served(box, names=LET_IN):
    """Tell whether containers get credentials by IMDSv2, and a fact without a token."""
    answers = [inside(box, name, script) for name in names
               for script in (ROUND_TRIP, GET + META_DATA + "instance-id")]
    return all(answer.code == 0 for answer in answers) and all(
        '"SecretAccessKey"' in answer.out for answer in answers[::2])


def refusals(box, name):
    """Return curl's exit codes in a container, for port 80 and for the service's own ports."""
    return [inside(box, name, "curl -s --max-time 5 " + place).code for place in (
        "http://169.254.169.254/", "http://169.254.169.254:8000/", "http://172.17.0.1:8000/")]


def address(box, name):
    return box.ok("docker inspect --format "
                  "'{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' " + name).strip()


def first_rules(box):
    """Return the beginnings of nat's OUTPUT and PREROUTING, where Docker has jumps, too."""
    rules = {}
    for chain in ("OUTPUT", "PREROUTING"):
        rules[chain] = box.ok("iptables -t nat -S " + chain).splitlines()[1:]
        assert "DOCKER" in rules[chain][-1]
    return rules["OUTPUT"][:1] + rules["PREROUTING"][:2]


def ours_are_first(box):
    rules = first_rules(box)
    return len(rules) == 3 and all("fake-metadata" in rule for rule in rules)


JUMP = "-m addrtype --dst-type LOCAL -j DOCKER"
REFUSED = 7  # curl's word for it


def test_bridges(docker):
    """Containers on Docker's bridge and on one made later are served; the log has their address."""
    assert is_served(docker)
    log = docker.read(LOG)
    for name in LET_IN:
        assert re.search(r'^\S+ %s "PUT /latest/api/token' % address(docker, name), log, re.M)
    assert " 172.17.0.1 " not in log and " 172.18.0.1 " not in log
    for name in ("host.docker.internal", "host.containers.internal", "192.0.2.7"):
        assert inside(docker, "on-mine", GET + "-H 'Host: %s' %s" % (name, META_DATA)).code == 0
    result = inside(docker, "on-mine", GET + "-H 'Host: attacker.example' " + META_DATA)
    assert result.code == 22 and "403" in result.err


def test_nobody_else(docker):
    """Neither a bridge that is not named nor a neighbour is let in; with no CONTAINERS, nobody."""
    assert refusals(docker, "on-other") == [REFUSED] * 3
    assert refusals(docker, "on-mine")[1:] == [REFUSED] * 2
    with Neighbour(docker) as neighbour:
        for place in ("169.254.169.254", "169.254.169.254:8000", Neighbour.BOX + ":8000"):
            assert neighbour.run("curl -s --max-time 2 http://%s/" % place).code in (7, 28), place
    set_defaults(docker, "CONTAINERS=")
    docker.ok(SERVICE + "reload")
    assert [refusals(docker, name) for name in NETWORKS] == [[REFUSED] * 3] * 3
    docker.ok("rm %s && %sreload" % (DEFAULTS, SERVICE))
    assert is_served(docker)


def test_hop_limit(docker):
    """With a limit of 1 a container waits for a token in vain, without a byte; GET goes on."""
    put = ("curl -s --max-time 1 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "
           "-w '%{http_code} %{size_header} %{size_download}' "
           "http://169.254.169.254/latest/api/token")
    docker.ok("%sset %s 1" % (SERVICE, LIMIT))
    for name in LET_IN:
        result = inside(docker, name, put)
        assert (result.code, result.out) == (28, "000 0 0")
        assert inside(docker, name, GET + META_DATA + "instance-id").code == 0
    assert docker.ok(put).partition("200 ")[1]
    docker.ok("%sunset %s" % (SERVICE, LIMIT))
    assert is_served(docker)


def test_published_ports(docker):
    """Docker publishes ports as ever, 80 too, and the service keeps its own address."""
    docker.ok(RUN + "--detach --name server --stop-signal KILL -p 8081:80 -p 80:80 " + SERVER)
    places = ["http://%s%s/" % (host, port) for host in ("127.0.0.1", "172.17.0.1")
              for port in ("", ":8081")]
    for place in places:
        wait_for(lambda: SERVED in docker.run("curl -s " + place).out, what=place)
    for name in NETWORKS:
        assert SERVED in inside(docker, name, GET + "http://172.17.0.1:8081/").out, name
    with Neighbour(docker) as neighbour:
        for port in (80, 8081):
            place = "http://%s:%d/" % (Neighbour.BOX, port)
            assert SERVED in neighbour.run(GET + place).out
    assert is_served(docker) and '"SecretAccessKey"' in docker.ok(ROUND_TRIP)
    docker.ok("docker rm --force server")


def test_repair_and_restart(docker):
    """A reload puts ours before a jump, and back after a flush; Docker may start again."""
    assert ours_are_first(docker)
    for harm in ("iptables -t nat -I OUTPUT " + JUMP,
                 "iptables -t nat -F OUTPUT; iptables -t nat -F PREROUTING"):
        docker.ok(harm)
        assert docker.run(STATUS).code == 1
        docker.ok(SERVICE + "reload && " + STATUS)
        assert is_served(docker) and '"SecretAccessKey"' in docker.ok(ROUND_TRIP)
    docker.ok(STOP)
    start_docker(docker)  # which puts its own jumps back
    wait_for(lambda: is_served(docker), what="the containers")
    assert ours_are_first(docker)
    docker.ok(STATUS)


# What gives a rootless container its network, and a request out of it.
ROOTLESS = {"pasta": "exec pasta --config-net -- sh -c '%s'" % (GET + META_DATA + "instance-id"),
            "slirp4netns": """
cd "$(mktemp -d)"
unshare --user --map-root-user --net sleep 60 >/dev/null 2>&1 & pid=$!
until [ "$(readlink /proc/$pid/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
slirp4netns --configure --ready-fd=3 $pid tap0 3>ready >/dev/null 2>&1 & slirp=$!
until [ -s ready ]; do sleep 0.05; kill -0 $slirp || exit; done
nsenter --target $pid --user --net --preserve-credentials sh <<'ASK'
%s
ASK
code=$?
kill $pid $slirp
exit $code
""" % ROUND_TRIP}


@pytest.mark.parametrize("network", ROOTLESS)
def test_rootless(docker, network):
    """Rootless containers, for whom a program of the box does the asking, need no setting."""
    docker.ok("mkdir -p /dev/net && cd /dev/net && [ -e tun ] || mknod -m 666 tun c 10 200")
    with Neighbour(docker):
        docker.ok("ip route add default via 192.0.2.1")  # pasta takes the addresses of this one
        docker.write("/tmp/rootless", ROOTLESS[network])
        docker.ok(AS_NOBODY + "sh /tmp/rootless")


# What Docker of this box needs beside what the README says: the images have no /usr of their own.
README_HEAD = SUDO + """
cd %s
docker() {
    verb=$1
    shift
    case $verb in
        run) command docker run -v /usr:/usr:ro "$@" ;;
        compose) docker-compose "$@" ;;
        *) command docker "$verb" "$@" ;;
    esac
}
"""
IN_YOUR_OWN = "In your own container"


@pytest.mark.parametrize("section", [s for s in sections_at("docker") if s != IN_YOUR_OWN])
def test_section_of_the_readme(docker, section):
    """What the README says of containers of a box works as it stands, in its order."""
    with readme_shell(docker, HOME, "app") as shell:
        printed = shell.run_section("docker", section)

    if section == "Containers and VMs":
        assert len(re.findall(r"ASIA\w{16}\b", printed)) == 2, printed
    docker.ok("rm -f compose*")
    assert is_served(docker)


def test_section_of_ones_own_container(docker):
    """What the README says of a service for containers alone works where the box has none."""
    docker.ok("sh fake-metadata/uninstall.sh")
    folder = HOME + "/fake-metadata"
    docker.write(folder + "/application.py", BOTO3)
    docker.ok("docker tag my-image python:3-slim")

    with readme_shell(docker, folder, "app", "imds") as shell:
        printed = shell.run_section("docker", IN_YOUR_OWN)

    keys = re.findall(r"\b(ASIA[A-Z0-9]{16})\b", printed)
    of_services = re.findall(r"new credentials for BaseIAMRole: \.\.\.(\w{4})", printed)
    assert [key[-4:] for key in keys[:2]] == of_services and len(keys) == 3, printed
    docker.ok("rm {0}/application.py {0}/compose*".format(folder))
    docker.ok("CONTAINERS='docker0 br-+' " + INSTALL)
    assert is_served(docker)


def readme_shell(box, folder, *services):
    """Open a shell in a folder where Compose gives its services the /usr of the box."""
    volumes = {"volumes": ["/usr:/usr:ro"]}
    box.write(folder + "/compose.override.yaml",
              json.dumps({"services": {service: volumes for service in services}}))
    return Shell(box.entered(), env=box.environment(), head=README_HEAD % folder)


def test_addresses_of_the_readme(docker):
    """The variables that the README names for other addresses are right, also in containers."""
    variables = re.findall("`(AWS_[A-Z0-9_]+=[^`]+)`",
                           readme().partition("### IPv6, ECS and EKS")[2].partition("\n## ")[0])
    mode, relative, full, _ = variables
    docker.write(DEFAULTS, "ADDRESSES='169.254.169.254 fd00:ec2::254 169.254.170.2 "
                 "169.254.170.23'\nCONTAINERS='docker0 br-+'\n")
    docker.ok(SERVICE + "reload")
    docker.ok("docker network create --ipv6 --subnet fd00:cafe::/64 six && " + RUN +
              "--detach --name six --network six --stop-signal KILL my-image sleep infinity")
    ask = GET + "--globoff 'http://[fd00:ec2::254]/'"
    wait_for(lambda: inside(docker, "six", ask).code == 0, what="IPv6 of a network just made")
    for variable in (mode, relative):
        assert docker.ok(variable + " python3 -", stdin=BOTO3)
        assert docker.ok("docker exec -i --env %s six python3 -" % variable, stdin=BOTO3)
    docker.ok("docker rm --force six && docker network rm six")
    # boto3 of Debian 12 does not know EKS yet.
    ask = GET + "-H 'Authorization: token' " + full.partition("=")[2]
    for answer in (docker.ok(ask), inside(docker, "on-mine", ask).out):
        assert '"SecretAccessKey"' in answer
    docker.ok("rm %s && %sreload" % (DEFAULTS, SERVICE))
    assert inside(docker, "on-mine", ask).code == REFUSED


def test_reboot(docker):
    """After a reboot the containers that Docker starts again are served."""
    docker.reboot()
    start_docker(docker)
    wait_for(lambda: is_served(docker), what="the containers")
    assert ours_are_first(docker) and refusals(docker, "on-other") == [REFUSED] * 3


def test_docker_of_systemd(programs, tmp_path):
    """Where systemd starts Docker, it goes on after its restarts, and a purge leaves its rules."""
    with Box("systemd", tmp_path, programs) as box:
        box.copy_product()
        box.ok("groupadd docker && systemctl enable --now containerd docker.socket docker")
        box.ok("CONTAINERS='docker0 br-+' " + INSTALL)
        box.ok(IMAGE)
        box.ok("docker network create mine && " + RUN + "--detach --restart always --name on-mine "
               "--stop-signal KILL --network mine my-image sleep infinity")
        assert is_served(box, ["on-mine"]) and ours_are_first(box)
        box.ok("systemctl restart nftables && systemctl restart docker")
        wait_for(lambda: is_served(box, ["on-mine"]), what="the container after a flush")
        assert ours_are_first(box)
        box.reboot()
        wait_for(lambda: is_served(box, ["on-mine"]), what="the container after a reboot")
        assert ours_are_first(box)
        box.ok(STATUS)
        before = rules_of_others(box)
        box.ok(PURGE)
        assert rules_of_others(box) == before
        assert "fake-metadata" not in box.ok("iptables-save")


def rules_of_others(box):
    """Return all rules that are not ours, in the order in which they are looked at."""
    return box.ok("iptables-save | grep '^-A' | grep -v fake-metadata").splitlines()
