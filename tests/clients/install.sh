#!/bin/sh
# Install the clients that tests/test_clients.py runs: Debian 12 as root, with a Node.js of its own or Debian's.
# Usage: sh tests/clients/install.sh
# Debian's packages go where packages go; boto3 and the AWS CLI v1 into a venv, the Node SDK into node_modules, and
# cloud-init, unpacked only, into cloud-init: all in the folder of this script. (Installed, cloud-init would
# set up this very machine at its next boot.)
set -eu

CLIENTS="awscli golang-go golang-github-aws-aws-sdk-go-dev golang-github-aws-aws-sdk-go-v2-dev ruby ruby-aws-sdk-core
    s3fs facter ohai amazon-ec2-utils cloud-guest-utils curl wget netcat-openbsd openssl golang-github-fullsailor-pkcs7-dev"
# What cloud-init imports.
LIBRARIES="python3-configobj python3-jinja2 python3-jsonpatch python3-jsonschema python3-netifaces python3-oauthlib
    python3-requests python3-serial python3-yaml"
TOOLS="python3-venv iproute2 iptables util-linux faketime"

die() {
    echo "tests/clients/install.sh: $*" >&2
    exit 1
}

install_packages() {
    apt-get -q update
    # shellcheck disable=SC2086  # lists of words
    DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends $CLIENTS $LIBRARIES $TOOLS
    command -v npm >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends nodejs npm
}

make_venv() {
    python3 -m venv --clear venv
    venv/bin/python -m pip --disable-pip-version-check install -q -r requirements.txt
    # The last that sends no Host is 0.16.16.
    python3 -m venv --clear venv-2023
    venv-2023/bin/python -m pip --disable-pip-version-check install -q awscrt==0.16.10
}

install_node_modules() {
    npm install --no-package-lock --no-audit --no-fund
}

unpack_cloud_init() {
    rm -rf cloud-init
    mkdir cloud-init
    (cd cloud-init && apt-get -q -o APT::Sandbox::User=root download cloud-init && dpkg -x cloud-init_*.deb . && rm cloud-init_*.deb)
}

main() {
    [ "$(id -u)" -eq 0 ] || die "must be root, to install Debian's packages"
    cd "$(dirname "$0")"
    install_packages
    make_venv
    install_node_modules
    unpack_cloud_init
}

main "$@"
