//! Rust's client libraries, one of them by name: `clients-rust LIBRARY STEP...`. A JSON line a step, as
//! `tests/python/clients/programs/said.py` has it. No library is told where the metadata server is.

use std::error::Error;
use std::time::Duration;

use google_cloud_auth::credentials;
use object_store::ObjectStoreExt as _;
use serde_json::{Value, json};

type Found = Result<Value, Box<dyn Error>>;

const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

fn main() -> Result<(), Box<dyn Error>> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut arguments = std::env::args().skip(1);
    let library = arguments.next().ok_or("which library?")?;
    let steps: Vec<String> = arguments.collect();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        match library.as_str() {
            "versions" => versions(),
            "google-cloud-auth" => google_cloud_auth(&steps).await,
            "gcp_auth" => gcp_auth(&steps).await,
            "yup-oauth2" => yup_oauth2(&steps).await,
            "object_store" => object_store(&steps).await,
            "opendal" => opendal(&steps).await,
            other => Err(format!("no library is called {other}").into()),
        }
    })
}

/// What the lock file resolved to.
fn versions() -> Result<(), Box<dyn Error>> {
    let mut name = "";
    for line in include_str!("../Cargo.lock").lines() {
        if let Some(quoted) = line.strip_prefix("name = ") {
            name = quoted.trim_matches('"');
        } else if let Some(version) = line.strip_prefix("version = ")
            && ["google-cloud-auth", "gcp_auth", "yup-oauth2", "object_store", "opendal"].contains(&name)
        {
            println!("{name} {}", version.trim_matches('"'));
        }
    }
    Ok(())
}

/// The name of a step, after the pause that it asks for.
async fn begin(step: &str) -> &str {
    let (name, wait) = step.split_once('@').unwrap_or((step, "0"));
    tokio::time::sleep(Duration::from_secs_f64(wait.parse().unwrap_or_default())).await;
    name
}

fn tell(step: &str, found: Found) {
    let said = match found {
        Ok(value) => json!({"step": step, "value": value}),
        Err(error) => {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(inner) = cause {
                text = format!("{text}: {inner}");
                cause = inner.source();
            }
            json!({"step": step, "error": text})
        }
    };
    println!("{said}");
    let _ = std::io::stdin().read_line(&mut String::new());
}

fn cannot(name: &str) -> Found {
    Err(format!("no step is called {name}").into())
}

async fn google_cloud_auth(steps: &[String]) -> Result<(), Box<dyn Error>> {
    let build = || credentials::Builder::default().with_scopes([SCOPE]);
    let made = build().build_access_token_credentials()?;
    for step in steps {
        let found: Found = match begin(step).await {
            "token" | "use" | "again" => {
                made.access_token().await.map(|it| it.token.into()).map_err(Into::into)
            }
            // It has no way to be told; a new one asks again.
            "refresh" => match build().build_access_token_credentials() {
                Ok(fresh) => fresh.access_token().await.map(|it| it.token.into()).map_err(Into::into),
                Err(error) => Err(error.into()),
            },
            "universe" => match build().build() {
                Ok(fresh) => Ok(fresh.universe_domain().await.into()),
                Err(error) => Err(error.into()),
            },
            "identity" => match credentials::idtoken::Builder::new(std::env::var("AUDIENCE")?).build() {
                Ok(fresh) => fresh.id_token().await.map(Into::into).map_err(Into::into),
                Err(error) => Err(error.into()),
            },
            name => cannot(name),
        };
        tell(step, found);
    }
    Ok(())
}

async fn gcp_auth(steps: &[String]) -> Result<(), Box<dyn Error>> {
    let mut provider = None;
    for step in steps {
        let name = begin(step).await;
        if provider.is_none() || name == "refresh" {
            // Making one looks for a token already; there is no other way to ask again.
            match gcp_auth::provider().await {
                Ok(made) => provider = Some(made),
                Err(error) => {
                    tell(step, Err(error.into()));
                    continue;
                }
            }
        }
        let Some(provider) = &provider else { continue };
        let found: Found = match name {
            "token" | "use" | "again" | "refresh" => {
                provider.token(&[SCOPE]).await.map(|it| it.as_str().into()).map_err(Into::into)
            }
            "project" => provider.project_id().await.map(|it| it.to_string().into()).map_err(Into::into),
            name => cannot(name),
        };
        tell(step, found);
    }
    Ok(())
}

async fn yup_oauth2(steps: &[String]) -> Result<(), Box<dyn Error>> {
    use yup_oauth2::authenticator::ApplicationDefaultCredentialsTypes::{InstanceMetadata, ServiceAccount};
    let options = yup_oauth2::ApplicationDefaultCredentialsFlowOpts::default();
    let made = match yup_oauth2::ApplicationDefaultCredentialsAuthenticator::builder(options).await {
        InstanceMetadata(builder) => builder.build().await?,
        ServiceAccount(_) => return Err("found a service account's key".into()),
    };
    for step in steps {
        let token = match begin(step).await {
            "token" | "use" | "again" => made.token(&[SCOPE]).await,
            "refresh" => made.force_refreshed_token(&[SCOPE]).await,
            name => {
                tell(step, cannot(name));
                continue;
            }
        };
        tell(step, token.map(|it| it.token().map(str::to_owned).into()).map_err(Into::into));
    }
    Ok(())
}

async fn object_store(steps: &[String]) -> Result<(), Box<dyn Error>> {
    let options = object_store::ClientOptions::new();
    let build = || {
        object_store::gcp::GoogleCloudStorageBuilder::new()
            .with_bucket_name("bucket")
            .with_client_options(options.clone())
            .build()
    };
    let mut store = build()?;
    for step in steps {
        let found: Found = match begin(step).await {
            "token" | "use" | "again" => {
                let found = store.credentials().get_credential().await;
                found.map(|it| it.bearer.clone().into()).map_err(Into::into)
            }
            name @ ("api" | "api-use" | "api-again" | "api-refresh") => {
                if name == "api-refresh" {
                    store = build()?;
                }
                read_object(&store).await
            }
            name => cannot(name),
        };
        tell(step, found);
    }
    Ok(())
}

async fn read_object(store: &object_store::gcp::GoogleCloudStorage) -> Found {
    let got = store.get(&"object".into()).await?;
    Ok(String::from_utf8(got.bytes().await?.to_vec())?.into())
}

async fn opendal(steps: &[String]) -> Result<(), Box<dyn Error>> {
    opendal_http_transport_reqwest::install_default();
    let build = || opendal::Operator::new(opendal::services::Gcs::default().bucket("bucket"));
    let mut operator = build()?;
    for step in steps {
        let found: Found = match begin(step).await {
            name @ ("api" | "api-use" | "api-again" | "api-refresh") => {
                if name == "api-refresh" {
                    operator = build()?;
                }
                match operator.read("object").await {
                    Ok(read) => Ok(String::from_utf8(read.to_vec())?.into()),
                    Err(error) => Err(error.into()),
                }
            }
            name => cannot(name),
        };
        tell(step, found);
    }
    Ok(())
}
