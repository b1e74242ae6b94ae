// Print the credentials, the region and the instance id that the AWS SDK for Go v1 finds by itself;
// the credentials again after each line on standard input.
package main

import (
	"bufio"
	"encoding/json"
	"log"
	"os"

	"github.com/aws/aws-sdk-go/aws"
	"github.com/aws/aws-sdk-go/aws/ec2metadata"
	"github.com/aws/aws-sdk-go/aws/session"
)

func main() {
	log.SetFlags(0)
	log.Println(aws.SDKVersion)
	current := session.Must(session.NewSession())
	document, err := ec2metadata.New(current).GetInstanceIdentityDocument()
	if err != nil && os.Getenv("AWS_EC2_METADATA_DISABLED") == "" {
		log.Fatal(err)
	}
	show := func() {
		value, err := current.Config.Credentials.Get()
		if err != nil {
			log.Fatal(err)
		}
		json.NewEncoder(os.Stdout).Encode(map[string]string{
			"AccessKeyId": value.AccessKeyID, "SecretAccessKey": value.SecretAccessKey, "Token": value.SessionToken,
			"Region": document.Region, "InstanceId": document.InstanceID})
	}
	show()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		show()
	}
}
