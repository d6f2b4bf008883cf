// Azure's library for Go: go_azidentity azure STEP... (as python_clouds.py)
package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
)

const (
	bucket  = "data"
	content = "written and read"
	scope   = "https://storage.azure.com/.default"
)

var kept *azidentity.DefaultAzureCredential

func made() (*azidentity.DefaultAzureCredential, error) {
	var err error
	if kept == nil {
		kept, err = azidentity.NewDefaultAzureCredential(nil)
	}
	return kept, err
}

func identity(ctx context.Context) (string, error) {
	credential, err := made()
	if err != nil {
		return "", err
	}
	token, err := credential.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{scope}})
	return token.Token, err
}

func api(ctx context.Context) (string, error) {
	credential, err := made()
	if err != nil {
		return "", err
	}
	client, err := azblob.NewClient(os.Getenv("BLOBS"), credential, nil)
	if err != nil {
		return "", err
	}
	// Each process has an object of its own.
	random := make([]byte, 8)
	_, _ = rand.Read(random)
	name := fmt.Sprintf("object-%x", random)
	if _, err = client.UploadBuffer(ctx, bucket, name, []byte(content), nil); err != nil {
		return "", err
	}
	got, err := client.DownloadStream(ctx, bucket, name, nil)
	if err != nil {
		return "", err
	}
	defer got.Body.Close()
	body, err := io.ReadAll(got.Body)
	return string(body), err
}

func main() {
	stage, ctx := bufio.NewReader(os.Stdin), context.Background()
	for _, name := range os.Args[2:] {
		bare, wait, _ := strings.Cut(name, "@")
		if pause, err := time.ParseDuration(wait + "s"); err == nil {
			time.Sleep(pause)
		}
		var value string
		var err error
		switch bare {
		case "api":
			value, err = api(ctx)
		case "refresh":
			// It has no means to discard a token; a new one asks again.
			kept = nil
			value, err = identity(ctx)
		default:
			value, err = identity(ctx)
		}
		said := map[string]string{"step": name}
		if err != nil {
			said["error"] = err.Error()
		} else {
			said["value"] = value
		}
		line, _ := json.Marshal(said)
		fmt.Println(string(line))
		_, _ = stage.ReadString('\n')
	}
}
