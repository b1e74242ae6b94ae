"""Print the credentials that awscrt finds by itself."""
import json
import sys

import awscrt
from awscrt.auth import AwsCredentialsProvider
from awscrt.io import ClientBootstrap, DefaultHostResolver, EventLoopGroup

print(awscrt.__version__, file=sys.stderr)
group = EventLoopGroup(1)
bootstrap = ClientBootstrap(group, DefaultHostResolver(group))
found = AwsCredentialsProvider.new_default_chain(bootstrap).get_credentials().result(timeout=20)
print(json.dumps({"AccessKeyId": found.access_key_id, "SecretAccessKey": found.secret_access_key,
                  "Token": found.session_token}))
