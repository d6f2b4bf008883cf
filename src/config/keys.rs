//! Every config key, declared once: the file is checked against this table, and variables, flags, the schema and
//! `docs/reference/config.md` are made from it.
//!
//! A new key is a row here, a field of `Config`, and the line of `check` that reads it. A test holds that
//! every key is read, and nothing else.

/// The type that a value must have before its meaning is checked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ValueKind {
    Text,
    Flag,
    Number,
    List,
}

impl ValueKind {
    /// The type's name in an error message.
    pub(super) fn wanted(self) -> &'static str {
        match self {
            ValueKind::Text => "a string in quotes",
            ValueKind::Flag => "true or false",
            ValueKind::Number => "a whole number",
            ValueKind::List => "a list of strings",
        }
    }
}

/// One key. In `path`, `*` stands for a user-chosen name and `rule[]` for each `[[rule]]`.
#[derive(Debug)]
pub(super) struct ConfigKey {
    pub path: &'static str,
    pub kind: ValueKind,
    pub variable: Option<&'static str>,
    pub flag: Option<Flag>,
    /// A project's file may set it only once its content is trusted (decision 23).
    pub guarded: bool,
    pub default: &'static str,
    /// Markdown; links are relative to `docs/`.
    pub says: &'static str,
}

const fn key(path: &'static str, kind: ValueKind, default: &'static str, says: &'static str) -> ConfigKey {
    ConfigKey { path, kind, variable: None, flag: None, guarded: false, default, says }
}

impl ConfigKey {
    const fn variable(self, name: &'static str) -> Self {
        Self { variable: Some(name), ..self }
    }

    /// A flag with a value, which `value` names in the help.
    const fn flag(self, groups: u8, name: &'static str, value: &'static str, help: &'static str) -> Self {
        Self { flag: Some(Flag { path: self.path, name, takes: Takes::Value(value), groups, help }), ..self }
    }

    /// A flag that stands for the value `sets`.
    const fn switch(self, groups: u8, name: &'static str, sets: &'static str, help: &'static str) -> Self {
        Self { flag: Some(Flag { path: self.path, name, takes: Takes::Nothing(sets), groups, help }), ..self }
    }

    const fn verbosity(self) -> Self {
        let (takes, help) =
            (Takes::Count(&["info", "debug", "trace"]), "Logs more; repeat it for even more, up to -vvv");
        Self { flag: Some(Flag { path: self.path, name: "-v", takes, groups: ALWAYS, help }), ..self }
    }

    const fn guarded(self) -> Self {
        Self { guarded: true, ..self }
    }
}

/// The flag of a key.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// The key's.
    pub path: &'static str,
    /// `--project`.
    pub name: &'static str,
    pub takes: Takes,
    /// The groups of commands that have the flag, as bits.
    pub groups: u8,
    pub help: &'static str,
}

#[derive(Clone, Copy, Debug)]
pub enum Takes {
    /// A value, by this name in the help.
    Value(&'static str),
    /// Nothing: the flag stands for this value.
    Nothing(&'static str),
    /// Nothing, and the flag may be repeated: once for the first of these values, twice for the second.
    Count(&'static [&'static str]),
}

/// Flags about the credential and the account.
pub const CREDENTIAL: u8 = 1;
/// Flags about which containers get an identity.
pub const CONTAINERS: u8 = 2;
/// Flags about the end of a session.
pub const ENDING: u8 = 4;
/// Flags about the machine of the engine.
pub const MACHINE: u8 = 8;
/// Flags of every command that reads the config.
pub const ALWAYS: u8 = 16;

/// The flags of all keys.
pub fn flags() -> impl Iterator<Item = Flag> {
    KEYS.iter().filter_map(|key| key.flag)
}

/// All keys, in the document's order.
#[rustfmt::skip]
pub(super) const KEYS: &[ConfigKey] = &[
    key("credentials", ValueKind::Text, "`\"adc\"`", "`\"adc\"`: the application default credentials of this machine. `\"metadata\"`: the metadata server of the machine itself, at `GCE_METADATA_HOST` or at its usual address. `\"gcloud\"`: gcloud's active account. `\"offline\"`: tokens signed by a key made at start, which no cloud accepts; for demos, tests and emulators.")
        .variable("KFP_CREDS_CREDENTIALS")
        .switch(CREDENTIAL, "--offline", "offline", "Signs tokens with a temporary key, which no cloud accepts: for demos, tests and emulators"),
    key("credentials.exec", ValueKind::List, "none", "A command that prints tokens, as program and arguments, instead of a word for `credentials`. [Credentials by a command](reference/providers.md) describes its input and output.").guarded(),
    key("credentials.pass", ValueKind::List, "`[]`", "Names of variables that the command sees in addition to `PATH`, `HOME` and the like.").guarded(),
    key("credentials.timeout", ValueKind::Text, "`\"20s\"`", "How long the command may run, from `\"1s\"` to `\"120s\"`.").guarded(),
    key("credentials.workload_identity_provider", ValueKind::Text, "none", "The provider that exchanges a token of another issuer: `projects/NUMBER/locations/global/workloadIdentityPools/POOL/providers/NAME`. See [CI](guide/ci.md).")
        .variable("KFP_CREDS_WORKLOAD_IDENTITY_PROVIDER").guarded(),
    key("credentials.service_account", ValueKind::Text, "the federated identity itself", "The service account to impersonate with the exchanged token.")
        .variable("KFP_CREDS_SERVICE_ACCOUNT").guarded(),
    key("credentials.token_from", ValueKind::Text, "`exec`", "The source of the token to exchange: `\"github\"`, `\"azure-devops\"`, `\"env:NAME\"` (a variable), `\"file:PATH\"`, or a URL.")
        .variable("KFP_CREDS_TOKEN_FROM").guarded(),
    key("credentials.token_field", ValueKind::Text, "the whole text", "The field that holds the token, if the file or URL contains a JSON object; `\"data.token\"` names a nested field.").guarded(),
    key("credentials.token_headers", ValueKind::List, "`[]`", "Headers for the URL, each `\"NAME: VALUE\"`; `$VARIABLE` in a value is expanded.").guarded(),
    key("credentials.token_method", ValueKind::Text, "`\"GET\"`", "The HTTP method for the URL: `\"GET\"`, or `\"POST\"` without a body, as Azure DevOps requires.").guarded(),
    key("credentials.token_audience", ValueKind::Text, "`https://iam.googleapis.com/` and the provider", "The audience of a token from GitHub, if the provider expects another one.").guarded(),
    key("credentials.token_type", ValueKind::Text, "`\"urn:ietf:params:oauth:token-type:jwt\"`", "The token type in the exchange, as defined by RFC 8693.").guarded(),
    key("aws.credentials", ValueKind::Text, "none", "Where your own credentials for AWS come from. `\"default\"`: variables, the profile `default`, a container's agent or the machine's metadata service, in this order. `\"environment\"`: `AWS_ACCESS_KEY_ID` and its like. `\"machine\"`: the agent or the metadata service. `\"offline\"`: made here, for tests and emulators; `credentials = \"offline\"` implies it. `[aws]` has one of `credentials`, `profile`, `exec` and `token_from`. See [AWS and Azure](guide/clouds.md).")
        .variable("KFP_CREDS_AWS_CREDENTIALS").guarded(),
    key("aws.profile", ValueKind::Text, "none", "The profile of `~/.aws/config` or `~/.aws/credentials`: keys, roles with their source profiles, IAM Identity Center, `credential_process`, web identity.")
        .variable("KFP_CREDS_AWS_PROFILE").guarded(),
    key("aws.exec", ValueKind::List, "none", "A command that prints credentials in the form of `credential_process`, as program and arguments.").guarded(),
    key("aws.pass", ValueKind::List, "`[]`", "Names of variables that the command sees in addition to `PATH`, `HOME` and the like.").guarded(),
    key("aws.timeout", ValueKind::Text, "`\"20s\"`", "How long the command may run, from `\"1s\"` to `\"120s\"`.").guarded(),
    key("aws.token_from", ValueKind::Text, "none", "The source of another issuer's token, which `AssumeRoleWithWebIdentity` exchanges for each identity's role: as `credentials.token_from`.")
        .variable("KFP_CREDS_AWS_TOKEN_FROM").guarded(),
    key("aws.token_audience", ValueKind::Text, "`\"sts.amazonaws.com\"`", "The audience of that token, if it comes from GitHub.").guarded(),
    key("aws.region", ValueKind::Text, "none", "`AWS_REGION` and `AWS_DEFAULT_REGION` of containers, and the region whose STS is asked.")
        .variable("KFP_CREDS_AWS_REGION").guarded(),
    key("azure.credentials", ValueKind::Text, "none", "Where your own tokens for Azure come from. `\"az\"`: the Azure command line. `\"environment\"`: `AZURE_TENANT_ID`, `AZURE_CLIENT_ID` and a secret, a certificate or a federated token file. `\"machine\"`: the machine's managed identity. `\"offline\"`: made here, for tests and emulators; `credentials = \"offline\"` implies it. `[azure]` has one of `credentials`, `exec` and `token_from`.")
        .variable("KFP_CREDS_AZURE_CREDENTIALS").guarded(),
    key("azure.exec", ValueKind::List, "none", "A command that prints a token as `az account get-access-token` does, as program and arguments; `{resource}` in an argument, and the variable `AZURE_RESOURCE`, is the requested resource, which the container chooses; it has only letters, digits and characters of `._~:/@%+-`.").guarded(),
    key("azure.pass", ValueKind::List, "`[]`", "Names of variables that the command sees in addition to `PATH`, `HOME` and the like.").guarded(),
    key("azure.timeout", ValueKind::Text, "`\"20s\"`", "How long the command may run, from `\"1s\"` to `\"120s\"`.").guarded(),
    key("azure.token_from", ValueKind::Text, "none", "The source of another issuer's token, which Microsoft Entra takes in place of a client secret: as `credentials.token_from`.")
        .variable("KFP_CREDS_AZURE_TOKEN_FROM").guarded(),
    key("azure.token_audience", ValueKind::Text, "`\"api://AzureADTokenExchange\"`", "The audience of that token, if it comes from GitHub.").guarded(),
    key("azure.tenant", ValueKind::Text, "what the credentials say", "The directory (tenant) that tokens are requested from: its id or domain.")
        .variable("KFP_CREDS_AZURE_TENANT").guarded(),
    key("azure.client_id", ValueKind::Text, "what the credentials say", "The client id of the principal whose tokens containers get.")
        .variable("KFP_CREDS_AZURE_CLIENT_ID").guarded(),
    key("credentials_file", ValueKind::Text, "where Google's libraries look", "The credential file to use; implies `credentials = \"adc\"`. A relative path starts at the config file.")
        .variable("KFP_CREDS_CREDENTIALS_FILE").guarded()
        .flag(CREDENTIAL, "--credentials-file", "FILE", "Uses this credential file instead of the one that Google's libraries would find"),
    key("impersonate", ValueKind::Text, "nobody", "The service account to impersonate for every identity that names none; `A,B` impersonates B through A, as in gcloud.")
        .variable("KFP_CREDS_IMPERSONATE")
        .flag(CREDENTIAL, "--impersonate", "SA", "Gives containers tokens of this service account instead of your own account"),
    key("project", ValueKind::Text, "what the credential says", "The project id that containers see.")
        .variable("KFP_CREDS_PROJECT")
        .flag(CREDENTIAL, "--project", "ID", "Shows this project id to containers"),
    key("numeric_project", ValueKind::Number, "a stand-in", "The project's number, 1 or more.")
        .variable("KFP_CREDS_NUMERIC_PROJECT"),
    key("email", ValueKind::Text, "what the credential says", "The e-mail of your own account that containers see.")
        .variable("KFP_CREDS_EMAIL"),
    key("quota_project", ValueKind::Text, "what the credential says", "The project that is charged for quota (`GOOGLE_CLOUD_QUOTA_PROJECT`).")
        .variable("KFP_CREDS_QUOTA_PROJECT"),
    key("subject", ValueKind::Text, "nobody", "The person for whom the service account acts, by domain-wide delegation, in every identity without a `subject` of its own. ID tokens remain those of the service account.")
        .variable("KFP_CREDS_SUBJECT"),
    key("zone", ValueKind::Text, "`\"us-central1-a\"`", "The zone that containers see.")
        .variable("KFP_CREDS_ZONE"),
    key("region", ValueKind::Text, "that of the zone", "Short for the zone `REGION-1`, as in serverless runtimes; excludes `zone`.")
        .variable("KFP_CREDS_REGION"),
    key("default", ValueKind::Text, "`\"default\"`", "The identity of kfp tasks that no rule matches: a name, or `\"none\"`.")
        .variable("KFP_CREDS_DEFAULT"),
    key("choose", ValueKind::List, "`[]`: nothing", "Identities that a container without a matching rule may choose instead of the default, by `KFP_CREDS_IDENTITY=NAME` in its environment. With any other name it gets no identity."),
    key("unknown", ValueKind::Text, "`\"none\"`", "The identity, or `\"none\"`, of a kfp task whose create request does not show which task it is (a container component without outputs), so that a rule on pipeline, component, function or iteration may or may not match. It applies only if the remaining rules could give different identities."),
    key("compiled_pipelines", ValueKind::List, "`[]`", "Compiled pipelines (YAML or JSON), relative to the config file. A task whose request does not show its name is recognised by image and command, if exactly one task of these files has them.").guarded(),
    key("clear_entrypoint", ValueKind::Flag, "`true`", "A kfp task whose component has a `command` starts without the `ENTRYPOINT` of its image, as in Kubernetes, unless the runner was given `entrypoint=`. With `false` the Docker engine passes the command to the `ENTRYPOINT`."),
    key("all", ValueKind::Flag, "`false`", "Every container gets the default identity, not only kfp tasks.")
        .variable("KFP_CREDS_ALL")
        .switch(CONTAINERS, "--all", "true", "Gives the default identity to every container, not only to kfp tasks"),
    key("keep", ValueKind::Flag, "`false`", "Containers that still run at the end of `run` keep running, without an identity.")
        .variable("KFP_CREDS_KEEP")
        .switch(ENDING, "--keep", "true", "Leaves containers running at the end, without credentials"),
    key("engine", ValueKind::Text, "`DOCKER_HOST`, the docker context, the usual sockets", "The Docker engine, as `unix:///path`, `tcp://host:port` (with `DOCKER_TLS_VERIFY` and `DOCKER_CERT_PATH`) or `ssh://user@host`; wins over `DOCKER_HOST`.")
        .variable("KFP_CREDS_ENGINE").guarded(),
    key("plain_tcp", ValueKind::Flag, "`false`", "Allows an engine on TCP without TLS, where everybody on the network path has root access to it.")
        .variable("KFP_CREDS_PLAIN_TCP").guarded(),
    key("host_root", ValueKind::Text, "`\"/\"`", "Where the root directory of the engine's machine is mounted, if kfp-creds runs in a container. The guard looks there for what create requests mount, and sources of `[[mount]]` are paths of that machine.")
        .variable("KFP_CREDS_HOST_ROOT").guarded()
        .flag(MACHINE, "--host-root", "DIR", "The directory where / of the engine's machine is mounted, if kfp-creds runs in a container; it looks for mounts there"),
    key("relay_image", ValueKind::Text, "made here and loaded", "The image of the relay, as `NAME@sha256:DIGEST`, for engines that refuse `docker load`. The engine has to have it already; [Where images may not be loaded](guide/relay-image.md) says how to make it.")
        .variable("KFP_CREDS_RELAY_IMAGE").guarded()
        .flag(MACHINE, "--relay-image", "NAME@sha256:DIGEST", "Uses this image of the relay, which the engine must already have, instead of loading one"),
    key("relay_folder", ValueKind::Text, "what this program carries, `../libexec/kfp-creds` beside it, else this program itself", "A folder with `kfp-creds-relay-amd64` or `kfp-creds-relay-arm64`, the relay for engines of that architecture; `scripts/relay` builds it. A relative path starts at the config file.")
        .variable("KFP_CREDS_RELAY_FOLDER").guarded(),
    key("log", ValueKind::Text, "`\"warn\"`", "Level of the diagnostic log, or directives such as `\"info,kfp_creds=debug\"`.")
        .variable("KFP_CREDS_LOG").verbosity(),
    key("network.pool", ValueKind::Text, "`\"169.254.168.0/22\"`", "The addresses of the second network: link-local or private IPv4, from /16 to /28. Containers on the session's bridge always find the server at 169.254.169.254. Those on the second network find it without environment and hosts entries only if this range contains that address.")
        .variable("KFP_CREDS_POOL"),
    key("network.attach", ValueKind::Text, "`\"auto\"`", "How containers that name no network reach the server. `\"auto\"`: a bridge of the session, with the same way out, replaces the engine's default bridge. If another container already runs on the default bridge, the new one stays there and gets a second network too, so that both reach each other. `\"own\"`: the same, but one line says so if the session cannot have a bridge. `\"link-local\"`: they have a link-local address on the default bridge itself; this is the fastest, with less protection, see [threats](security/threats.md#who-shares-the-network). `\"second\"`: they always get a second network. Containers that name a network get the second network beside it. On Podman all containers get the second network. With `isolation = \"network\"` each container gets a network of its own in place of the second one.")
        .variable("KFP_CREDS_ATTACH"),
    key("isolation", ValueKind::Text, "`\"shared\"`", "`\"shared\"`: containers with an identity share the session's bridge or the second network, and lose `NET_RAW`. `\"network\"`: a network for each container, shared only with the relay; containers keep `NET_RAW`, and find the server only by environment and hosts entries.")
        .variable("KFP_CREDS_ISOLATION"),
    key("network.cells", ValueKind::Text, "`\"169.254.64.0/19\"`", "The range for the networks of `isolation = \"network\"`, eight addresses each: link-local or private IPv4, from /16 to /28. A container that is stopped but not removed keeps its network.")
        .variable("KFP_CREDS_CELLS"),
    key("network.host_loopback", ValueKind::Flag, "`false`", "Whether containers on the host's network (`network_mode = \"host\"`) get identities too, through a listener on this machine's loopback and a secret path for each container. Works only where the engine shares the loopback of this machine: not with an engine in a VM, a rootless or a remote one. Whoever can inspect containers can read the paths, see [threats](security/threats.md#the-hosts-network).")
        .variable("KFP_CREDS_HOST_LOOPBACK").guarded(),
    key("guard.mode", ValueKind::Text, "`\"deny\"`", "What to do about a key that a mount, a variable, a copy or a build context would bring into a container: `\"deny\"` refuses the request, `\"warn\"` prints a line, `\"off\"` does not look. The mounts of a request are searched up to 200 000 names and 256 MiB; the rest is reported as *not verified*. See [the key guard](security/guard.md).")
        .variable("KFP_CREDS_GUARD").guarded(),
    key("guard.allow", ValueKind::List, "`[]`", "What may hold keys. Files and directories: a relative path means a path beside the config file, in a build context, or in an image; inside an archive write `ARCHIVE!/PATH`, as messages do. By name: `env:NAME` (a variable of a request or an image), `label:NAME`, `build-arg:NAME`, `command:FLAG` and `entrypoint:FLAG` (the word that belongs to a flag, else by its place: `command:3`). Objects that were fetched: `gs://BUCKET/OBJECT`, or all below a name. A refusal prints the entry.").guarded(),
    key("gcs.fetch", ValueKind::Flag, "`true`", "Objects in Cloud Storage that the inputs of a kfp task name (`dsl.importer(\"gs://…\")`, arguments below `/gcs/`) are fetched with a token of the task's identity before its container is created, and mounted read-only at `/gcs/BUCKET`. See [inputs in Cloud Storage](guide/mounts.md#inputs-in-cloud-storage).")
        .variable("KFP_CREDS_GCS_FETCH"),
    key("gcs.max_bytes", ValueKind::Number, "`4294967296` (4 GiB)", "How many bytes are fetched for one task, from 1. Objects and folders that do not fit are left out, with one line.")
        .variable("KFP_CREDS_GCS_MAX_BYTES"),
    key("audit.file", ValueKind::Text, "none: no log", "The audit log: one JSON object per line, readable only by you. A relative path starts at the config file. See [the audit log](reference/audit.md).")
        .variable("KFP_CREDS_AUDIT_FILE").guarded(),
    key("audit.max_bytes", ValueKind::Number, "`10485760`", "Before the log exceeds this size it is renamed to `FILE.1`, which becomes `FILE.2`, and so on. At least 4096."),
    key("audit.keep", ValueKind::Number, "`5`", "Number of renamed logs to keep."),
    key("metrics.listen", ValueKind::Text, "none", "A loopback address for Prometheus, such as `\"127.0.0.1:9464\"`. The control socket serves the same metrics.")
        .variable("KFP_CREDS_METRICS_LISTEN").guarded(),
    key("endpoints.token", ValueKind::Text, "what the credential says", "The whole URL of the OAuth token endpoint. `https`, or `http` on loopback.")
        .variable("KFP_CREDS_ENDPOINT_TOKEN").guarded(),
    key("endpoints.iam_credentials", ValueKind::Text, "`https://iamcredentials.UNIVERSE`", "The base URL of the IAM credentials API, without a path.")
        .variable("KFP_CREDS_ENDPOINT_IAM_CREDENTIALS").guarded(),
    key("endpoints.iam", ValueKind::Text, "`https://iam.UNIVERSE`", "The base URL of the IAM API, without a path; only `cut-off --disable-account` uses it.")
        .variable("KFP_CREDS_ENDPOINT_IAM").guarded(),
    key("endpoints.sts", ValueKind::Text, "`https://sts.UNIVERSE/v1/token`", "The whole URL of the security token service.")
        .variable("KFP_CREDS_ENDPOINT_STS").guarded(),
    key("endpoints.storage", ValueKind::Text, "`https://storage.UNIVERSE`", "The base URL of Cloud Storage, without a path. Inputs of tasks are fetched there (`gcs.fetch`). With `credentials = \"offline\"` nothing is fetched unless this names an emulator.")
        .variable("KFP_CREDS_ENDPOINT_STORAGE").guarded(),
    key("endpoints.aws_sts", ValueKind::Text, "`https://sts.REGION.amazonaws.com`", "The URL of AWS's Security Token Service.")
        .variable("KFP_CREDS_ENDPOINT_AWS_STS").guarded(),
    key("endpoints.aws_iam", ValueKind::Text, "`https://iam.amazonaws.com`, or that of the role's partition", "The URL of AWS's IAM; only `cut-off --deny-aws` uses it.")
        .variable("KFP_CREDS_ENDPOINT_AWS_IAM").guarded(),
    key("endpoints.azure_authority", ValueKind::Text, "`https://login.microsoftonline.com`", "The URL of Microsoft Entra's token service.")
        .variable("KFP_CREDS_ENDPOINT_AZURE_AUTHORITY").guarded(),
    key("endpoints.universe", ValueKind::Text, "what the credential says, else `googleapis.com`", "The universe domain.")
        .variable("KFP_CREDS_UNIVERSE").guarded(),
    key("instance.hostname", ValueKind::Text, "made of task and project", "`instance/hostname`, the same for every container."),
    key("instance.machine_type", ValueKind::Text, "`\"e2-standard-4\"`", "The short name of the machine type that containers see."),
    key("instance.description", ValueKind::Text, "empty", "`instance/description`, at most 2048 bytes."),
    key("instance.tags", ValueKind::List, "`[]`", "`instance/tags`."),
    key("attributes.*", ValueKind::Text, "none", "One custom value under `instance/attributes/`. Names: letters, digits, `-`, `_`, at most 128; values: at most 256 KiB."),
    key("project_attributes.*", ValueKind::Text, "none", "The same under `project/attributes/`."),
    key("identity.*.service_account", ValueKind::Text, "`impersonate`, else your own account", "The service account of this identity. For `[identity.default]` use `impersonate` instead."),
    key("identity.*.other_accounts", ValueKind::List, "`[]`", "Further service accounts of this identity, listed after the first as on a VM; a container requests them by e-mail."),
    key("identity.*.scopes", ValueKind::List, "`[\"https://www.googleapis.com/auth/cloud-platform\"]`", "All scopes of this identity, at least one. `enforce_scopes=true` in a request returns a token with fewer scopes, see [the metadata trees](reference/metadata.md)."),
    key("identity.*.audiences", ValueKind::List, "`[]`: any", "The audiences that containers may request ID tokens for."),
    key("identity.*.lifetime", ValueKind::Text, "`\"1h\"`", "Lifetime of access tokens: `\"3600s\"`, `\"30m\"`, `\"12h\"`; from 600 s to 12 h. Google grants more than 1 h only if the organisation's policy allows it."),
    key("identity.*.isolate", ValueKind::Flag, "`false`", "Tokens are not shared between containers of this identity."),
    key("identity.*.strict", ValueKind::Flag, "`false`", "Refuses a request for a scope outside `scopes` instead of narrowing it, and a request for an ID token with `format=full`, which only Google can make, instead of answering without it."),
    key("identity.*.rate", ValueKind::Number, "no limit", "Tokens per minute that all containers of this identity together may request; beyond it requests for access tokens get 429 (on AWS and Azure 503), with a `Retry-After`, and those for ID tokens 404."),
    key("identity.*.subject", ValueKind::Text, "`subject`", "The person for whom the service account of this identity acts; `\"\"`: nobody."),
    key("identity.*.boundary[].bucket", ValueKind::Text, "must be given", "A bucket of Cloud Storage, without `gs://`. With a boundary, access tokens allow only what its rules permit on Cloud Storage, and nothing elsewhere. It does not limit ID tokens; `audiences` does. At most 10 rules."),
    key("identity.*.boundary[].permissions", ValueKind::List, "must be given", "The roles available there, such as `\"inRole:roles/storage.objectViewer\"`. The account must have them itself."),
    key("identity.*.boundary[].condition.expression", ValueKind::Text, "none", "A condition on the object, such as `\"resource.name.startsWith('projects/_/buckets/B/objects/in/')\"`."),
    key("identity.*.boundary[].condition.title", ValueKind::Text, "none", "A name for the condition."),
    key("identity.*.boundary[].condition.description", ValueKind::Text, "none", "What it is for."),
    key("identity.*.kill_switch", ValueKind::Flag, "`false`", "Allows `cut-off --disable-account` to disable this identity's service accounts, which invalidates all their tokens, including those that others hold. Only for accounts that nobody else uses.").guarded(),
    key("identity.*.google", ValueKind::Flag, "`true`", "Containers get tokens of Google. With `false` they see no Google metadata server."),
    key("identity.*.aws.role", ValueKind::Text, "must be given, or `own_session`", "The ARN of the role that each container assumes, in a session of its own. Needs `[aws]`.").guarded(),
    key("identity.*.aws.own_session", ValueKind::Flag, "`false`", "Containers get your own session, if it is temporary, with all that it may do. Long-lived keys are never handed out.").guarded(),
    key("identity.*.aws.policy", ValueKind::Text, "none", "A file with a session policy (JSON, at most 2048 characters without blanks) that narrows the role. A relative path starts at the config file. `config trust` trusts its content too, so it has to be trusted again when that changes.").guarded(),
    key("identity.*.aws.policy_arns", ValueKind::List, "`[]`", "ARNs of managed policies that narrow the role, at most 10.").guarded(),
    key("identity.*.aws.lifetime", ValueKind::Text, "`\"1h\"`", "Lifetime of a session, from 900 s to 12 h and at most what the role allows. If your own credentials are those of an assumed role, STS gives 1 h at most.").guarded(),
    key("identity.*.aws.tags", ValueKind::Flag, "`false`", "Tags each session with `pipeline` and `component`; the role has to allow `sts:TagSession`.").guarded(),
    key("identity.*.aws.source_identity", ValueKind::Text, "none", "The source identity of each session, which CloudTrail shows; the role has to allow `sts:SetSourceIdentity`.").guarded(),
    key("identity.*.aws.external_id", ValueKind::Text, "none", "The external id that the role's trust policy asks for.").guarded(),
    key("identity.*.aws.kill_switch", ValueKind::Flag, "`false`", "Allows `cut-off --deny-aws` to deny a container's session by an inline policy on the role. Your own credentials for AWS need `iam:PutRolePolicy` on the role.").guarded(),
    key("identity.*.azure.client_id", ValueKind::Text, "that of `[azure]`", "The client id of the principal whose tokens containers get. Needs `[azure]`.").guarded(),
    key("identity.*.azure.resources", ValueKind::List, "`[]`: any", "The resources that containers may request tokens for, such as `\"https://storage.azure.com\"`.").guarded(),
    key("rule[].pipeline", ValueKind::Text, "any", "A pattern for the pipeline's name; `*` is any text, `?` one character."),
    key("rule[].component", ValueKind::Text, "any", "A pattern for the task's name in its pipeline."),
    key("rule[].function", ValueKind::Text, "any", "A pattern for the Python function of a lightweight component."),
    key("rule[].iteration", ValueKind::Text, "any", "A pattern for the place in a loop, such as `\"for-loop-1-iteration-2\"`."),
    key("rule[].image", ValueKind::Text, "any", "A pattern for the image name in the request, with its tag or digest."),
    key("rule[].compose_project", ValueKind::Text, "any", "A pattern for the project of Docker Compose."),
    key("rule[].compose_service", ValueKind::Text, "any", "A pattern for the service of Docker Compose."),
    key("rule[].labels.*", ValueKind::Text, "any", "A pattern for a label of the create request, never one of the image: `labels = { \"com.example.team\" = \"data-*\" }`."),
    key("rule[].identity", ValueKind::Text, "must be given", "The identity, or `\"none\"`, of a container that matches all patterns of the rule. The first rule that matches decides."),
    key("rule[].join", ValueKind::Flag, "`false`", "Lets such a container join the network of a container with the same identity (`network_mode: service:NAME` in Docker Compose, `container:NAME`). Both then share one lease, which ends with the container that was joined. Without this key the request is refused.").guarded(),
    key("rule[].choose", ValueKind::List, "`[]`: nothing", "Identities that such a container may choose instead, by `KFP_CREDS_IDENTITY=NAME` in its environment. With any other name it gets no identity."),
    key("mount[].pipeline", ValueKind::Text, "any", "A pattern for the pipeline's name. Without any pattern the mount applies to every container with an identity, like `--mount SOURCE:TARGET[:rw]`."),
    key("mount[].component", ValueKind::Text, "any", "A pattern for the task's name in its pipeline."),
    key("mount[].function", ValueKind::Text, "any", "A pattern for the Python function of a lightweight component."),
    key("mount[].iteration", ValueKind::Text, "any", "A pattern for the place in a loop."),
    key("mount[].image", ValueKind::Text, "any", "A pattern for the image name in the request."),
    key("mount[].compose_project", ValueKind::Text, "any", "A pattern for the project of Docker Compose."),
    key("mount[].compose_service", ValueKind::Text, "any", "A pattern for the service of Docker Compose."),
    key("mount[].labels.*", ValueKind::Text, "any", "A pattern for a label of the create request."),
    key("mount[].source", ValueKind::Text, "must be given, or `tmpfs`", "A file or directory of this machine (`~` is your home; a relative path with a slash starts at the config file), or the name of an existing volume.").guarded(),
    key("mount[].tmpfs", ValueKind::Flag, "`false`", "An empty tmpfs instead of a source."),
    key("mount[].target", ValueKind::Text, "must be given", "The absolute path in the container, where neither the container nor kfp mounts anything."),
    key("mount[].writable", ValueKind::Flag, "`false`", "The container may write to it."),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_name_a_url_or_a_file_need_trust() {
        for key in KEYS {
            let named = [
                "endpoints.",
                "engine",
                "plain_tcp",
                "host_root",
                "relay_",
                "credentials_file",
                "credentials.",
                "mount[].source",
                "network.host_loopback",
                "guard.",
                "compiled_pipelines",
                "rule[].join",
                "audit.file",
                "metrics.",
                "identity.*.kill_switch",
                "identity.*.aws.",
                "identity.*.azure.",
                "aws.",
                "azure.",
            ]
            .iter()
            .any(|p| key.path.starts_with(p));
            assert_eq!(key.guarded, named, "{}", key.path);
        }
    }
}
