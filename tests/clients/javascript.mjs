// Print the credentials that the AWS SDK for JavaScript v3 finds by itself; again after each line on standard input.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import * as providers from "@aws-sdk/credential-providers";

const name = process.argv[2] ?? "fromNodeProviderChain";
const options = JSON.parse(process.argv[3] ?? "{}");
console.error(createRequire(import.meta.url)("@aws-sdk/credential-providers/package.json").version);

const provide = providers[name](options);

async function show() {
  const keys = await provide();
  console.log(JSON.stringify({
    AccessKeyId: keys.accessKeyId, SecretAccessKey: keys.secretAccessKey, Token: keys.sessionToken,
    AccountId: keys.accountId,
  }));
}

await show();
for await (const line of createInterface({ input: process.stdin })) await show();
