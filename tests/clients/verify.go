// Verify the signatures of an instance identity document as Vault (PKCS#7) and SPIRE (signature) do:
// verify CERTIFICATE DOCUMENT PKCS7 SIGNATURE, files as they are served. Print what PKCS#7 has in it.
package main

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"log"
	"os"

	"go.mozilla.org/pkcs7"
)

func read(number int) []byte {
	data, err := os.ReadFile(os.Args[number])
	if err != nil {
		log.Fatal(err)
	}
	return data
}

func main() {
	log.SetFlags(0)
	block, _ := pem.Decode(read(1))
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		log.Fatal(err)
	}
	document := read(2)

	// Vault: builtin/credential/aws/path_login.go
	wrapped := "-----BEGIN PKCS7-----\n" + string(read(3)) + "\n-----END PKCS7-----"
	block, rest := pem.Decode([]byte(wrapped))
	if len(rest) != 0 {
		log.Fatal("more than one block")
	}
	signed, err := pkcs7.Parse(block.Bytes)
	if err != nil {
		log.Fatal(err)
	}
	signed.Certificates = []*x509.Certificate{certificate}
	if err := signed.Verify(); err != nil {
		log.Fatal(err)
	}
	if !bytes.Equal(signed.Content, document) {
		log.Fatal("another document")
	}

	// SPIRE: pkg/server/plugin/nodeattestor/awsiid
	signature, err := base64.StdEncoding.DecodeString(string(read(4)))
	if err != nil {
		log.Fatal(err)
	}
	hash := sha256.Sum256(document)
	key := certificate.PublicKey.(*rsa.PublicKey)
	if err := rsa.VerifyPKCS1v15(key, crypto.SHA256, hash[:], signature); err != nil {
		log.Fatal(err)
	}
	os.Stdout.Write(signed.Content)
}
