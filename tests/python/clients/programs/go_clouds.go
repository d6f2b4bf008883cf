// Go's libraries for AWS and Azure as Debian has them, one of them by name: go_clouds LIBRARY STEP... (as python_clouds.py)
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/Azure/azure-storage-blob-go/azblob"
	"github.com/Azure/go-autorest/autorest/adal"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	aws1 "github.com/aws/aws-sdk-go/aws"
	session1 "github.com/aws/aws-sdk-go/aws/session"
	s31 "github.com/aws/aws-sdk-go/service/s3"
	sts1 "github.com/aws/aws-sdk-go/service/sts"
)

const (
	bucket   = "data"
	content  = "written and read"
	resource = "https://storage.azure.com"
)

// Each process has an object of its own.
var name = func() string {
	random := make([]byte, 8)
	_, _ = rand.Read(random)
	return fmt.Sprintf("object-%x", random)
}()

type step func() (string, error)

func read(body io.ReadCloser) (string, error) {
	defer body.Close()
	all, err := io.ReadAll(body)
	return string(all), err
}

func awsSteps() map[string]step {
	ctx := context.Background()
	var kept *aws.Config
	found := func() (aws.Config, error) {
		if kept == nil {
			loaded, err := config.LoadDefaultConfig(ctx)
			if err != nil {
				return loaded, err
			}
			kept = &loaded
		}
		return *kept, nil
	}
	identity := func() (string, error) {
		loaded, err := found()
		if err != nil {
			return "", err
		}
		said, err := sts.NewFromConfig(loaded).GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
		if err != nil {
			return "", err
		}
		return *said.Arn, nil
	}
	return map[string]step{
		"identity": identity, "again": identity, "use": identity,
		"region": func() (string, error) {
			loaded, err := found()
			return loaded.Region, err
		},
		"refresh": func() (string, error) {
			kept.Credentials.(*aws.CredentialsCache).Invalidate()
			return identity()
		},
		"api": func() (string, error) {
			loaded, err := found()
			if err != nil {
				return "", err
			}
			client := s3.NewFromConfig(loaded, func(options *s3.Options) { options.UsePathStyle = true })
			key, body := name, strings.NewReader(content)
			if _, err = client.PutObject(ctx, &s3.PutObjectInput{Bucket: aws.String(bucket), Key: &key, Body: body}); err != nil {
				return "", err
			}
			got, err := client.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String(bucket), Key: &key})
			if err != nil {
				return "", err
			}
			return read(got.Body)
		},
	}
}

func aws1Steps() map[string]step {
	var kept *session1.Session
	// This version does not know AWS_ENDPOINT_URL.
	there := &aws1.Config{Endpoint: aws1.String(os.Getenv("AWS_ENDPOINT_URL")), S3ForcePathStyle: aws1.Bool(true)}
	found := func() (*session1.Session, error) {
		var err error
		if kept == nil {
			kept, err = session1.NewSession()
		}
		return kept, err
	}
	identity := func() (string, error) {
		session, err := found()
		if err != nil {
			return "", err
		}
		said, err := sts1.New(session, there).GetCallerIdentity(&sts1.GetCallerIdentityInput{})
		if err != nil {
			return "", err
		}
		return *said.Arn, nil
	}
	return map[string]step{
		"identity": identity, "again": identity, "use": identity,
		"region": func() (string, error) {
			session, err := found()
			if err != nil {
				return "", err
			}
			return *session.Config.Region, nil
		},
		"refresh": func() (string, error) {
			kept.Config.Credentials.Expire()
			return identity()
		},
		"api": func() (string, error) {
			session, err := found()
			if err != nil {
				return "", err
			}
			client, body := s31.New(session, there), strings.NewReader(content)
			if _, err = client.PutObject(&s31.PutObjectInput{Bucket: aws1.String(bucket), Key: &name, Body: body}); err != nil {
				return "", err
			}
			got, err := client.GetObject(&s31.GetObjectInput{Bucket: aws1.String(bucket), Key: &name})
			if err != nil {
				return "", err
			}
			return read(got.Body)
		},
	}
}

func azureSteps() map[string]step {
	ctx := context.Background()
	var kept *adal.ServicePrincipalToken
	identity := func() (string, error) {
		var err error
		if kept == nil {
			if kept, err = adal.NewServicePrincipalTokenFromManagedIdentity(resource, nil); err != nil {
				return "", err
			}
		}
		if err = kept.EnsureFreshWithContext(ctx); err != nil {
			return "", err
		}
		return kept.OAuthToken(), nil
	}
	return map[string]step{
		"identity": identity, "again": identity, "use": identity,
		"refresh": func() (string, error) {
			if err := kept.RefreshWithContext(ctx); err != nil {
				return "", err
			}
			return kept.OAuthToken(), nil
		},
		"api": func() (string, error) {
			token, err := identity()
			if err != nil {
				return "", err
			}
			at, err := url.Parse(os.Getenv("BLOBS") + "/" + bucket)
			if err != nil {
				return "", err
			}
			pipeline := azblob.NewPipeline(azblob.NewTokenCredential(token, nil), azblob.PipelineOptions{})
			blob := azblob.NewContainerURL(*at, pipeline).NewBlockBlobURL(name)
			if _, err = blob.Upload(ctx, bytes.NewReader([]byte(content)), azblob.BlobHTTPHeaders{}, azblob.Metadata{},
				azblob.BlobAccessConditions{}, azblob.DefaultAccessTier, nil, azblob.ClientProvidedKeyOptions{},
				azblob.ImmutabilityPolicyOptions{}); err != nil {
				return "", err
			}
			got, err := blob.Download(ctx, 0, azblob.CountToEnd, azblob.BlobAccessConditions{}, false, azblob.ClientProvidedKeyOptions{})
			if err != nil {
				return "", err
			}
			return read(got.Body(azblob.RetryReaderOptions{}))
		},
	}
}

func main() {
	found := map[string]func() map[string]step{"aws": awsSteps, "aws1": aws1Steps, "azure": azureSteps}[os.Args[1]]()
	stage := bufio.NewReader(os.Stdin)
	for _, name := range os.Args[2:] {
		bare, wait, _ := strings.Cut(name, "@")
		if pause, err := time.ParseDuration(wait + "s"); err == nil {
			time.Sleep(pause)
		}
		said := map[string]string{"step": name}
		if value, err := found[bare](); err != nil {
			said["error"] = err.Error()
		} else {
			said["value"] = value
		}
		line, _ := json.Marshal(said)
		fmt.Println(string(line))
		_, _ = stage.ReadString('\n')
	}
}
