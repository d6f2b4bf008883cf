//! An issuer of OpenID Connect, like those of CI systems and clouds: keys made when a test runs, tokens
//! signed with them, and the key set with which others verify.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair, RsaPublicKeyComponents, UnparsedPublicKey,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

use super::fake_google::{another_rsa_key, rsa_key};

pub(crate) enum Key {
    Rs256(RsaKeyPair),
    Es256(EcdsaKeyPair),
}

pub(crate) struct Issuer {
    pub(crate) url: String,
    key: Key,
}

impl Issuer {
    pub(crate) fn rs256(url: &str) -> Self {
        Self { url: url.into(), key: Key::Rs256(rsa(rsa_key())) }
    }

    /// An issuer of the same name with another key.
    pub(crate) fn impostor(url: &str) -> Self {
        Self { url: url.into(), key: Key::Rs256(rsa(another_rsa_key())) }
    }

    pub(crate) fn es256(url: &str) -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let key =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap();
        Self { url: url.into(), key: Key::Es256(key) }
    }

    fn algorithm(&self) -> &'static str {
        match self.key {
            Key::Rs256(_) => "RS256",
            Key::Es256(_) => "ES256",
        }
    }

    /// The key set (RFC 7517) that a provider gets of the issuer.
    pub(crate) fn jwks(&self) -> Value {
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let mut key = match &self.key {
            Key::Rs256(pair) => {
                let RsaPublicKeyComponents { n, e } = RsaPublicKeyComponents::<Vec<u8>>::from(pair.public());
                json!({"kty": "RSA", "n": part(&n), "e": part(&e)})
            }
            Key::Es256(pair) => {
                let point = pair.public_key().as_ref();
                json!({"kty": "EC", "crv": "P-256", "x": part(&point[1..33]), "y": part(&point[33..])})
            }
        };
        key["kid"] = json!("issuer-key");
        key["alg"] = json!(self.algorithm());
        json!({"keys": [key]})
    }

    /// A token that lives for `life` seconds from now (or ended so long ago); `more` adds and replaces
    /// claims.
    pub(crate) fn token(&self, subject: &str, audience: &str, life: i64, more: &Value) -> String {
        let now = i64::try_from(seconds()).unwrap();
        let mut claims = json!({
            "iss": self.url, "sub": subject, "aud": audience, "iat": now - 600.max(-life), "exp": now + life,
            "jti": format!("canary-{:?}", std::time::Instant::now()),
        });
        for (name, value) in more.as_object().into_iter().flatten() {
            claims[name] = value.clone();
        }
        self.sign(&claims)
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = json!({"alg": self.algorithm(), "typ": "JWT", "kid": "issuer-key"});
        let input = format!("{}.{}", part(&header), part(claims));
        let random = SystemRandom::new();
        let signature = match &self.key {
            Key::Rs256(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, input.as_bytes(), &mut signature).unwrap();
                signature
            }
            Key::Es256(pair) => pair.sign(&random, input.as_bytes()).unwrap().as_ref().to_vec(),
        };
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// The claims of a token, if a key of the set verifies it.
pub(crate) fn verified(token: &str, jwks: &Value) -> Option<Value> {
    let (input, signature) = token.rsplit_once('.')?;
    let (header, claims) = input.split_once('.')?;
    let part = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
    let header: Value = serde_json::from_slice(&part(header)?).ok()?;
    let key = jwks["keys"].as_array()?.iter().find(|key| key["kid"] == header["kid"])?;
    if key["alg"] != header["alg"] {
        return None;
    }
    let field = |name: &str| part(key[name].as_str()?);
    let signature = part(signature)?;
    let good = match key["kty"].as_str()? {
        "RSA" => RsaPublicKeyComponents { n: field("n")?, e: field("e")? }
            .verify(&RSA_PKCS1_2048_8192_SHA256, input.as_bytes(), &signature)
            .is_ok(),
        "EC" => {
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, [vec![4], field("x")?, field("y")?].concat())
                .verify(input.as_bytes(), &signature)
                .is_ok()
        }
        _ => false,
    };
    good.then(|| serde_json::from_slice(&part(claims)?).ok())?
}

pub(crate) fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn rsa(pem: &str) -> RsaKeyPair {
    let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).unwrap();
    RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).unwrap()
}
