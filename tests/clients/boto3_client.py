"""Print the credentials and the region that a client of boto3 takes by itself."""
import json

import boto3

client = boto3.client("ec2")
keys = boto3.Session().get_credentials().get_frozen_credentials()
print(json.dumps({
    "AccessKeyId": keys.access_key, "SecretAccessKey": keys.secret_key, "Token": keys.token,
    "Region": client.meta.region_name}))
