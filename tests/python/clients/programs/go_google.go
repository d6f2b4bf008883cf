// Go's libraries as Debian has them, one of them by name: go_google LIBRARY STEP...
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"cloud.google.com/go/compute/metadata"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"
)

const (
	scope  = "https://www.googleapis.com/auth/cloud-platform"
	object = "https://storage.googleapis.com/storage/v1/b/bucket/o/object?alt=media"
)

type step func() (interface{}, error)

func metadataSteps() map[string]step {
	get := func() (interface{}, error) {
		text, err := metadata.Get("instance/service-accounts/default/token?scopes=" + url.QueryEscape(scope))
		if err != nil {
			return nil, err
		}
		var said struct {
			Token string `json:"access_token"`
		}
		err = json.Unmarshal([]byte(text), &said)
		return said.Token, err
	}
	return map[string]step{
		"detect":   func() (interface{}, error) { return metadata.OnGCE(), nil },
		"project":  func() (interface{}, error) { return metadata.ProjectID() },
		"email":    func() (interface{}, error) { return metadata.Email("default") },
		"universe": func() (interface{}, error) { return metadata.Get("universe/universe_domain") },
		"identity": func() (interface{}, error) {
			audience := url.QueryEscape(os.Getenv("AUDIENCE"))
			return metadata.Get("instance/service-accounts/default/identity?format=full&audience=" + audience)
		},
		"token": get, "refresh": get, "again": get, "use": get,
	}
}

func oauthSteps() map[string]step {
	ctx := context.Background()
	var kept *google.Credentials
	find := func() (*google.Credentials, error) {
		var err error
		if kept == nil {
			kept, err = google.FindDefaultCredentials(ctx, scope)
		}
		return kept, err
	}
	token := func() (interface{}, error) {
		found, err := find()
		if err != nil {
			return nil, err
		}
		token, err := found.TokenSource.Token()
		if err != nil {
			return nil, err
		}
		return token.AccessToken, nil
	}
	return map[string]step{
		"detect": func() (interface{}, error) {
			found, err := find()
			return err == nil && found.JSON == nil, err
		},
		"project": func() (interface{}, error) {
			found, err := find()
			if err != nil {
				return nil, err
			}
			return found.ProjectID, nil
		},
		"token": token, "use": token, "again": token,
		"refresh": func() (interface{}, error) {
			// It has no way to be told; new credentials ask again.
			kept = nil
			return token()
		},
		"api": func() (interface{}, error) {
			found, err := find()
			if err != nil {
				return nil, err
			}
			answer, err := oauth2.NewClient(ctx, found.TokenSource).Get(object)
			if err != nil {
				return nil, err
			}
			defer answer.Body.Close()
			body, err := io.ReadAll(answer.Body)
			if err == nil && answer.StatusCode != http.StatusOK {
				err = fmt.Errorf("%s", answer.Status)
			}
			return string(body), err
		},
	}
}

func main() {
	found := metadataSteps()
	if os.Args[1] == "oauth2" {
		found = oauthSteps()
	}
	stage := bufio.NewReader(os.Stdin)
	for _, name := range os.Args[2:] {
		bare, wait, _ := strings.Cut(name, "@")
		if pause, err := time.ParseDuration(wait + "s"); err == nil {
			time.Sleep(pause)
		}
		said := map[string]interface{}{"step": name}
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
