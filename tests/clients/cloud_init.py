"""Crawl an instance metadata service with cloud-init's EC2 datasource; print what it found.

Arguments: the metadata URL, or a file with cloud-init's settings; a folder to work in; and the
folder of the cloudinit module, where it is not installed.
"""
import json
import os
import sys

import yaml

sys.path[:0] = sys.argv[3:]

from cloudinit import distros, helpers, version  # noqa: E402
from cloudinit.sources.DataSourceEc2 import DataSourceEc2  # noqa: E402

url, folder = sys.argv[1:3]
print(version.version_string(), file=sys.stderr)
paths = helpers.Paths({"cloud_dir": folder, "run_dir": folder})
if os.path.isfile(url):
    with open(url, encoding="utf-8") as file:
        settings = yaml.safe_load(file)
else:
    settings = {"datasource": {"Ec2": {"metadata_urls": [url], "max_wait": 5, "timeout": 5}}}
source = DataSourceEc2(settings, distros.fetch("debian")("debian", {}, paths), paths)
found = source.get_data()
print(json.dumps({
    "found": found, "cloud": source.cloud_name, "instance-id": found and source.get_instance_id(),
    "user-data": found and (source.get_userdata_raw() or b"").decode(),
    "meta-data": source.metadata}))
