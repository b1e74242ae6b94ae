// Print the credentials and the region that a client of the AWS SDK for JavaScript v3 takes by itself.
import { STSClient } from "@aws-sdk/nested-clients/sts";
import { fromNodeProviderChain } from "@aws-sdk/credential-providers";

const { config } = new STSClient({ credentials: fromNodeProviderChain() });
const keys = await config.credentials();
console.log(JSON.stringify({
  AccessKeyId: keys.accessKeyId, SecretAccessKey: keys.secretAccessKey, Token: keys.sessionToken,
  Region: await config.region(),
}));
