// Print the credentials, the region and the instance id that the AWS SDK for Go v2 finds by itself;
// the credentials again after each line on standard input.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"log"
	"os"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
)

func main() {
	log.SetFlags(0)
	log.Println(aws.SDKVersion)
	ctx := context.Background()
	current, err := config.LoadDefaultConfig(ctx, config.WithEC2IMDSRegion())
	if err != nil {
		log.Fatal(err)
	}
	instance := ""
	if os.Getenv("AWS_EC2_METADATA_DISABLED") == "" {
		document, err := imds.NewFromConfig(current).GetInstanceIdentityDocument(ctx, nil)
		if err != nil {
			log.Fatal(err)
		}
		instance = document.InstanceID
	}
	show := func() {
		value, err := current.Credentials.Retrieve(ctx)
		if err != nil {
			log.Fatal(err)
		}
		json.NewEncoder(os.Stdout).Encode(map[string]string{
			"AccessKeyId": value.AccessKeyID, "SecretAccessKey": value.SecretAccessKey, "Token": value.SessionToken,
			"Region": current.Region, "InstanceId": instance})
	}
	show()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		show()
	}
}
