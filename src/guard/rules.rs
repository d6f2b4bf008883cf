//! Decides which fields are keys: some values are keys by themselves, others only next to each other.
//!
//! One pass over the fields. Each relevant field leaves a mark; a rule is a set of marks within a number of
//! bytes. A value that could also be a word, a name in a program or a stand-in leaves no mark.

use super::SecretKind;
use super::fields::{Field, Plain};
use super::text::{
    has, is_aws_secret, is_azure_key, is_azurites, is_base64, is_entra_secret, is_of_token, is_random,
    is_stand_in, is_strong, is_template,
};

/// Names of variables that carry a cloud secret. A secret that this program cannot replace (an API key of
/// another service) is not judged by name.
pub(super) const SECRET: &[(&str, SecretKind)] = &[
    ("AWS_SECRET_ACCESS_KEY", SecretKind::AwsKey),
    ("AWS_SECRET_KEY", SecretKind::AwsKey),
    ("AWS_SESSION_TOKEN", SecretKind::AwsKey),
    ("AZURE_CLIENT_SECRET", SecretKind::AzureLogin),
    ("AZURE_PASSWORD", SecretKind::AzureLogin),
    ("ARM_CLIENT_SECRET", SecretKind::AzureLogin),
    ("AZURE_STORAGE_KEY", SecretKind::AzureKey),
    ("AZURE_STORAGE_ACCOUNT_KEY", SecretKind::AzureKey),
    ("AZURE_STORAGE_SAS_TOKEN", SecretKind::SasToken),
    ("AZURE_CLIENT_CERTIFICATE_PASSWORD", SecretKind::SecretVariable),
    ("ARM_ACCESS_KEY", SecretKind::AzureKey),
    ("AWS_BEARER_TOKEN_BEDROCK", SecretKind::SecretVariable),
    ("GOOGLE_OAUTH_ACCESS_TOKEN", SecretKind::SecretVariable),
    ("CLOUDSDK_AUTH_ACCESS_TOKEN", SecretKind::SecretVariable),
    ("GOOGLE_OAUTH_REFRESH_TOKEN", SecretKind::AuthorizedUser),
    ("GOOGLE_PRIVATE_KEY", SecretKind::PrivateKey),
];

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Mark {
    Refresh,
    Access,
    ClientSecret,
    ClientId,
    Tenant,
    Password,
    UserType,
    ImpersonatedType,
    SourceCredentials,
    ImpersonationUrl,
    ExternalType,
    SubjectType,
    CredentialSource,
    Audience,
    HomeAccount,
    Secret,
    Authority,
    StartUrl,
    Signature,
    Expiry,
    SignedVersion,
    KeyType,
    PrivateExponent,
    FederatedAudience,
    Issuer,
    AwsId,
    AwsSecret,
    AzureName,
    AzureKey,
    BearerType,
}

const MARKS: usize = 30;

/// Kind, largest distance in bytes, marks. The first mark is the secret itself or what determines the kind;
/// all marks have to lie within the distance.
const RULES: &[(SecretKind, usize, &[Mark])] = {
    use Mark::*;
    &[
        (SecretKind::AuthorizedUser, 8192, &[Refresh, UserType]),
        (SecretKind::AzureLogin, 2048, &[ClientSecret, ClientId, Tenant]),
        (SecretKind::AzureLogin, 1024, &[Password, ClientId, Tenant]),
        (SecretKind::AzureLogin, 1024, &[Access, ClientId, Tenant]),
        // What `az account get-access-token` prints; a token with many groups has some 10 KiB.
        (SecretKind::AzureLogin, 16384, &[Access, Tenant, BearerType]),
        (SecretKind::AzureLogin, 8192, &[Secret, HomeAccount]),
        (SecretKind::AzureLogin, 8192, &[Refresh, Authority]),
        (SecretKind::AwsLogin, 8192, &[Access, StartUrl]),
        (SecretKind::OauthToken, 8192, &[Refresh, ClientSecret]),
        (SecretKind::OauthToken, 16384, &[Refresh, Access]),
        (SecretKind::SasToken, 700, &[Signature, Expiry, SignedVersion]),
        (SecretKind::PrivateKey, 8192, &[PrivateExponent, KeyType]),
        (SecretKind::ImpersonatedAccount, 8192, &[ImpersonationUrl, SourceCredentials, ImpersonatedType]),
        (SecretKind::ExternalAccount, 4096, &[Audience, CredentialSource, SubjectType, ExternalType]),
        (SecretKind::FederatedToken, 4096, &[FederatedAudience, Issuer]),
        (SecretKind::AwsKey, 1024, &[AwsSecret, AwsId]),
        (SecretKind::AzureKey, 1024, &[AzureKey, AzureName]),
    ]
};

/// The meaning of one field.
pub(super) enum Sense {
    Nothing,
    /// A key by itself.
    Key(SecretKind),
    Mark(Mark),
}

/// The marks of a text, from which keys are recognised.
#[derive(Debug)]
pub(super) struct Marks<'a> {
    last: [Option<Field<'a>>; MARKS],
    /// The name field of `{"name": "X", "value": "…"}`: its value is the name of the `value` field.
    named: Option<Field<'a>>,
    /// A `value` field without a name before it: the name may follow, as in `{"value": "…", "name": "X"}`.
    unnamed: Option<Field<'a>>,
    /// Whether fields of a kubeconfig or of a registry's login file were met; `logins` reads these files.
    pub(super) kubeconfig: bool,
    pub(super) registry: bool,
    /// Whether the text was decoded from base64. The claims of a token are; claims in plain text are
    /// examples, so they do not count.
    decoded: bool,
}

impl<'a> Marks<'a> {
    pub(super) fn new(decoded: bool) -> Self {
        Self { last: [None; MARKS], named: None, unnamed: None, kubeconfig: false, registry: false, decoded }
    }

    /// Adds `field`, and offers `accept` each key that it is or completes, with the secret value, until one
    /// is accepted.
    pub(super) fn add(
        &mut self,
        field: Field<'a>,
        accept: &dyn Fn(SecretKind, &[u8]) -> Option<SecretKind>,
    ) -> Option<SecretKind> {
        const NEAR: usize = 300;
        // Between a value and its name: a quote, a comma, blanks, the word `name`.
        const CLOSE: usize = 40;
        let plain = Plain::of(field.name);
        match plain.text() {
            b"name" | b"key" => {
                let before = self.unnamed.take();
                if let Some(value) = before.filter(|one| follows(&field, one, one.value.len() + CLOSE)) {
                    let renamed = Field { name: field.value, ..value };
                    return self.take(sense(&Plain::of(renamed.name), &renamed), renamed, accept);
                }
                self.named = Some(field);
            }
            b"value" => match self.named.take().filter(|name| follows(&field, name, NEAR)) {
                Some(name) => {
                    let renamed = Field { name: name.value, ..field };
                    return self.take(sense(&Plain::of(renamed.name), &renamed), renamed, accept);
                }
                None => self.unnamed = Some(field),
            },
            b"currentcontext" => self.kubeconfig = true,
            b"auth" | b"auths" | b"identitytoken" => self.registry = true,
            _ => {}
        }
        self.take(sense(&plain, &field), field, accept)
    }

    fn take(
        &mut self,
        sense: Sense,
        field: Field<'a>,
        accept: &dyn Fn(SecretKind, &[u8]) -> Option<SecretKind>,
    ) -> Option<SecretKind> {
        let mark = match sense {
            Sense::Nothing => return None,
            Sense::Key(kind) => return accept(kind, field.value),
            Sense::Mark(mark) => mark,
        };
        self.last[mark as usize] = Some(field);
        RULES.iter().filter(|(_, _, marks)| marks.contains(&mark)).find_map(|(kind, window, marks)| {
            let near = |mark: &Mark| {
                self.last[*mark as usize].filter(|one| field.at.saturating_sub(one.at) <= *window)
            };
            let claims = *kind == SecretKind::FederatedToken;
            if !marks.iter().all(|mark| near(mark).is_some()) || (claims && !self.decoded) {
                return None;
            }
            // The audience of a token does not identify the token, so no value is given.
            accept(*kind, if claims { &[] } else { near(&marks[0])?.value })
        })
    }
}

/// Whether `field` begins within `window` bytes behind `earlier`. Flags, tags and the like are read one kind after
/// the other, so a field may also come from before it.
fn follows(field: &Field<'_>, earlier: &Field<'_>, window: usize) -> bool {
    field.at.checked_sub(earlier.at).is_some_and(|distance| distance < window)
}

/// What a field means: the name tells what its value should be, the value whether it is that.
fn sense(plain: &Plain, field: &Field<'_>) -> Sense {
    let (name, value) = (plain.text(), field.value);
    let ends = |end: &str| name.ends_with(end.as_bytes());
    let mark = |counts: bool, mark| if counts { Sense::Mark(mark) } else { Sense::Nothing };
    if let Some(kind) = variable(field) {
        return Sense::Key(kind);
    }
    match () {
        () if is_entra_secret(value) => Sense::Key(SecretKind::AzureLogin),
        () if ends("secretaccesskey") || ends("awssecretkey") || ends("secretkey") || ends("awssecret") => {
            match is_aws_secret(value) {
                true if ends("gssecretaccesskey") => Sense::Key(SecretKind::GoogleHmac),
                true => Sense::Key(SecretKind::AwsKey),
                false => Sense::Nothing,
            }
        }
        () if ends("sessiontoken") && value.len() >= 100 && is_strong(value, 100) => {
            Sense::Key(SecretKind::AwsKey)
        }
        () if ends("refreshtoken") => mark(is_strong(value, 24), Mark::Refresh),
        () if ends("accesstoken") => mark(is_strong(value, 32), Mark::Access),
        () if ends("clientsecret") => mark(is_strong(value, 16), Mark::ClientSecret),
        () if ends("clientid") || ends("appid") || ends("principalid") || ends("applicationid") => {
            mark(value.len() >= 4 && !is_template(value), Mark::ClientId)
        }
        () if ends("tenant") || ends("tenantid") => mark(
            !matches!(value[0], b'$' | b'{' | b'<' | b'%') && value != b"None" && value != b"null",
            Mark::Tenant,
        ),
        () if ends("sharedaccesskey") => {
            match value.len() == 44 && value.ends_with(b"=") && is_strong(value, 44) {
                true => Sense::Key(SecretKind::AzureKey),
                false => Sense::Nothing,
            }
        }
        () if is_aws_id(name, value) => Sense::Mark(Mark::AwsId),
        () if ends("accountkey") || ends("storagekey") || ends("accesskey") || ends("windowsnet") => {
            match is_azure_key(value) {
                true => Sense::Key(SecretKind::AzureKey),
                false => Sense::Nothing,
            }
        }
        () if is_azure_key(value) => Sense::Mark(Mark::AzureKey),
        () if ends("accountname") || ends("permissions") || name == b"account" => {
            Sense::Mark(Mark::AzureName)
        }
        () if ends("password") => mark(is_strong(value, 16), Mark::Password),
        () if name == b"type" => kind_of_file(value),
        () => rest(name, field),
    }
}

fn kind_of_file(value: &[u8]) -> Sense {
    Sense::Mark(match value {
        b"authorized_user" | b"external_account_authorized_user" => Mark::UserType,
        b"impersonated_service_account" => Mark::ImpersonatedType,
        b"external_account" => Mark::ExternalType,
        _ => return Sense::Nothing,
    })
}

fn rest(name: &[u8], field: &Field<'_>) -> Sense {
    let value = field.value;
    let digits = |value: &[u8]| value.first().is_some_and(u8::is_ascii_digit);
    let mark = match name {
        b"sourcecredentials" => Some(Mark::SourceCredentials),
        b"credentialsource" => Some(Mark::CredentialSource),
        b"subjecttokentype" => value.starts_with(b"urn:").then_some(Mark::SubjectType),
        b"audience" => (value.starts_with(b"//") && is_real(value)).then_some(Mark::Audience),
        b"serviceaccountimpersonationurl" => {
            (value.starts_with(b"http") && is_real(value)).then_some(Mark::ImpersonationUrl)
        }
        b"aud" => is_federated(value).then_some(Mark::FederatedAudience),
        b"iss" => value.starts_with(b"http").then_some(Mark::Issuer),
        b"homeaccountid" => Some(Mark::HomeAccount),
        b"tokentype" => value.eq_ignore_ascii_case(b"bearer").then_some(Mark::BearerType),
        b"secret" if is_aws_secret(value) => Some(Mark::AwsSecret),
        b"secret" => is_strong(value, 40).then_some(Mark::Secret),
        b"authority" => value.starts_with(b"http").then_some(Mark::Authority),
        b"starturl" => value.starts_with(b"http").then_some(Mark::StartUrl),
        b"sig" => is_signature(value).then_some(Mark::Signature),
        b"se" => digits(value).then_some(Mark::Expiry),
        b"sv" => (value.starts_with(b"20") && value.len() == 10).then_some(Mark::SignedVersion),
        b"skn" => Some(Mark::SignedVersion),
        b"kty" => matches!(value, b"RSA" | b"EC" | b"OKP").then_some(Mark::KeyType),
        b"d" => is_exponent(value).then_some(Mark::PrivateExponent),
        _ => None,
    };
    mark.map_or(Sense::Nothing, Sense::Mark)
}

/// The kind of secret if this is a variable that carries a cloud secret, set in any notation.
fn variable(field: &Field<'_>) -> Option<SecretKind> {
    let shown = field.name.contains(&b'_') && field.name.last().is_some_and(u8::is_ascii_uppercase);
    let value = field.value;
    let (_, kind) = SECRET.iter().filter(|_| shown).find(|(name, _)| field.name == name.as_bytes())?;
    // Sealed and encrypted secrets keep the name; a key in base64 is far shorter than they are.
    let short = ["KEY", "SECRET", "PASSWORD"].iter().any(|end| field.name.ends_with(end.as_bytes()));
    let sealed = short && *kind != SecretKind::PrivateKey && value.len() > 160;
    (is_strong(value, 20) && !is_azurites(value) && !sealed).then_some(*kind)
}

fn is_aws_id(name: &[u8], value: &[u8]) -> bool {
    (name.ends_with(b"accesskey") || name.ends_with(b"accesskeyid"))
        && (value.starts_with(b"AKIA") || value.starts_with(b"ASIA"))
}

/// Whether a resource name is real: documentation has `$PROJECT_NUMBER` and `POOL_ID` instead of a project's
/// number and a pool's name.
fn is_real(value: &[u8]) -> bool {
    let shouted = |part: &[u8]| {
        part.len() > 2 && part.contains(&b'_') && part.iter().all(|b| b.is_ascii_uppercase() || *b == b'_')
    };
    // A value ends before `<`, as in `serviceAccounts/<EMAIL>`.
    !value.ends_with(b"/")
        && !value.iter().take(512).any(|b| matches!(b, b'$' | b'{' | b'<' | b'[' | b'(' | b'*'))
        && !has(&value[..value.len().min(512)], "YOUR")
        && !value.split(|b| *b == b'/').take(16).any(shouted)
}

/// Whether this is an audience for which identity providers issue tokens that a cloud exchanges for its own.
fn is_federated(value: &[u8]) -> bool {
    const AUDIENCES: [&[u8]; 4] = [
        b"api://AzureADTokenExchange",
        b"sts.amazonaws.com",
        b"//iam.googleapis.com/",
        b"https://iam.googleapis.com/",
    ];
    AUDIENCES.iter().any(|audience| value.starts_with(audience))
}

/// 32 bytes in base64, possibly escaped for a URL.
fn is_signature(value: &[u8]) -> bool {
    (43..=70).contains(&value.len())
        && value.iter().all(|b| is_base64(*b) || matches!(b, b'%' | b'=' | b'-' | b'_'))
        && is_random(value)
        && !is_stand_in(value)
}

fn is_exponent(value: &[u8]) -> bool {
    value.len() >= 40 && value.iter().take(256).all(|b| is_of_token(*b) || *b == b'=') && is_random(value)
}
