// Print what the MetadataService of the AWS SDK for JavaScript v3 finds at each path given.
import { createRequire } from "node:module";
import { MetadataService } from "@aws-sdk/ec2-metadata-service";

console.error(createRequire(import.meta.url)("@aws-sdk/ec2-metadata-service/package.json").version);
const service = new MetadataService({});
for (const path of process.argv.slice(2)) console.log(JSON.stringify(await service.request(path, {})));
