//! The Security Token Service: logins of workforce pools, and tokens with a narrower boundary.

use std::collections::HashMap;

use base64::engine::general_purpose::STANDARD;

use super::*;

#[derive(Default)]
pub(super) struct State {
    logins: Vec<User>,
    /// The boundary of each narrowed token.
    narrowed: HashMap<String, Value>,
    /// Whether answers to a boundary leave out the lifetime, as for tokens of service accounts.
    endless: bool,
}

impl State {
    pub(super) fn secrets(&self) -> Vec<(&'static str, String)> {
        let of = |user: &User| {
            [("a client secret", user.client_secret.clone()), ("a refresh token", user.refresh_token.clone())]
        };
        self.logins.iter().flat_map(of).collect()
    }
}

impl FakeGoogle {
    /// Makes a workforce login and returns its file.
    pub(crate) fn workforce(&self, subject: &str) -> String {
        let token_url = format!("{}/sts/oauthtoken", self.url());
        self.set(|state| {
            let number = state.next();
            let user = User {
                email: subject.into(),
                client_id: format!("workforce-client-{number}"),
                client_secret: format!("canary-workforce-secret-{number}"),
                refresh_token: format!("canary-workforce-refresh-token-{number}"),
            };
            let file = json!({
                "type": "external_account_authorized_user",
                "audience": "//iam.googleapis.com/locations/global/workforcePools/pool/providers/idp",
                "client_id": user.client_id, "client_secret": user.client_secret,
                "refresh_token": user.refresh_token, "token_url": token_url,
                "token_info_url": format!("{token_url}-info"), "quota_project_id": "workforce-quota",
            });
            state.sts.logins.push(user);
            file.to_string()
        })
    }

    /// The boundary of this token: the `options` of the request.
    pub(crate) fn boundary_of(&self, token: &str) -> Option<Value> {
        self.set(|state| state.sts.narrowed.get(token).cloned())
    }

    /// Exchanges a token of this server for a narrower one, for another service that has more kinds of
    /// exchanges.
    pub(crate) fn narrow(
        &self,
        authorization: Option<&str>,
        form: &HashMap<String, String>,
    ) -> Result<Value, (u16, Value)> {
        self.set(|state| narrow(state, authorization, form))
    }

    /// Answers to a boundary leave out the lifetime.
    pub(crate) fn leave_lives_out(&self) {
        self.set(|state| state.sts.endless = true);
    }
}

pub(super) fn answer(
    state: &mut super::State,
    call: &mut Call,
    authorization: Option<&str>,
    content_type: Option<&str>,
    body: &[u8],
) -> Result<Value, Refusal> {
    if content_type != Some("application/x-www-form-urlencoded") {
        return Err(oauth_error(400, "invalid_request"));
    }
    let form: HashMap<String, String> = url::form_urlencoded::parse(body).into_owned().collect();
    match call.path.as_str() {
        "/sts/oauthtoken" => {
            call.kind = "workforce".into();
            refresh(state, authorization, &form)
        }
        "/sts/token" => {
            call.kind = "boundary".into();
            narrow(state, authorization, &form)
        }
        _ => Err(oauth_error(404, "not_found")),
    }
}

fn refresh(
    state: &mut super::State,
    authorization: Option<&str>,
    form: &HashMap<String, String>,
) -> Result<Value, Refusal> {
    let pair = authorization.and_then(|text| STANDARD.decode(text.strip_prefix("Basic ")?).ok());
    let pair = pair.and_then(|pair| String::from_utf8(pair).ok()).unwrap_or_default();
    let is_client = |user: &User| format!("{}:{}", user.client_id, user.client_secret) == pair;
    let at = state.sts.logins.iter().position(is_client).ok_or_else(|| oauth_error(401, "invalid_client"))?;
    // The client is in the header, and the form contains only the grant.
    if form.len() != 2 || form.get("grant_type").map(String::as_str) != Some("refresh_token") {
        return Err(oauth_error(400, "invalid_request"));
    }
    if form.get("refresh_token") != Some(&state.sts.logins[at].refresh_token) {
        return Err(oauth_error(400, "invalid_grant"));
    }
    let (email, life) = (state.sts.logins[at].email.clone(), state.expires_in.unwrap_or(3599));
    let token = state.mint(&email, [CLOUD_PLATFORM.to_string()].into(), life);
    let mut answer = json!({"access_token": token, "expires_in": life, "token_type": "Bearer"});
    if state.rotate {
        let rotated = format!("canary-rotated-workforce-token-{}", state.next());
        state.sts.logins[at].refresh_token.clone_from(&rotated);
        answer["refresh_token"] = json!(rotated);
    }
    Ok(answer)
}

/// Parses the options as strictly as the real service.
fn narrow(
    state: &mut super::State,
    authorization: Option<&str>,
    form: &HashMap<String, String>,
) -> Result<Value, Refusal> {
    let bad = || oauth_error(400, "invalid_request");
    let of = "urn:ietf:params:oauth:token-type:access_token";
    let fixed = [
        ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
        ("subject_token_type", of),
        ("requested_token_type", of),
    ];
    let said = |key: &str| form.get(key).map(String::as_str);
    if authorization.is_some()
        || form.len() != 5
        || !fixed.iter().all(|(key, value)| said(key) == Some(value))
    {
        return Err(bad());
    }
    let subject = state.minted.get(said("subject_token").ok_or_else(bad)?).cloned();
    let subject = subject.ok_or_else(|| oauth_error(400, "invalid_grant"))?;
    let options: Value = serde_json::from_str(said("options").ok_or_else(bad)?).map_err(|_| bad())?;
    let only = |value: &Value, keys: &[&str]| {
        value.as_object().is_some_and(|map| map.keys().all(|key| keys.contains(&key.as_str())))
    };
    let rules = options["accessBoundary"]["accessBoundaryRules"].as_array().ok_or_else(bad)?;
    let well = |rule: &Value| {
        let resource = rule["availableResource"].as_str().unwrap_or_default();
        let permissions = rule["availablePermissions"].as_array();
        let condition = &rule["availabilityCondition"];
        only(rule, &["availableResource", "availablePermissions", "availabilityCondition"])
            && resource.starts_with("//storage.googleapis.com/projects/_/buckets/")
            && permissions.is_some_and(|all| {
                !all.is_empty()
                    && all.iter().all(|one| one.as_str().is_some_and(|one| one.starts_with("inRole:")))
            })
            && (condition.is_null()
                || only(condition, &["title", "description", "expression"])
                    && condition["expression"].is_string())
    };
    let whole =
        only(&options, &["accessBoundary"]) && only(&options["accessBoundary"], &["accessBoundaryRules"]);
    if !whole || rules.is_empty() || rules.len() > 10 || !rules.iter().all(well) {
        return Err(bad());
    }
    let left = subject.expires.duration_since(state.now()).unwrap_or_default().as_secs();
    let life = state.expires_in.unwrap_or(left).min(left);
    let token = state.mint(&subject.email, subject.scopes, life);
    state.sts.narrowed.insert(token.clone(), options.clone());
    let mut answer = json!({"access_token": token, "issued_token_type": of, "token_type": "Bearer"});
    if !state.sts.endless {
        answer["expires_in"] = json!(life);
    }
    Ok(answer)
}
