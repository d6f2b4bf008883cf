//! The names of resources, as containers send them.

use crate::cloud::without_slash;
use crate::quote;

/// Longer than any name of a resource.
const LONGEST: usize = 400;

/// A resource without the slash at its end, which az and some libraries add: `https://storage.azure.com`. Azure
/// knows them by a URI (`https://…`, `api://…`) or by the application's id. Containers choose them, and they become
/// part of a command: so no character that means something to a shell is allowed. The error is a fragment that may be
/// shown.
pub fn resource(text: &str) -> Result<String, String> {
    let plain = without_slash(text);
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"._~:/@%+-".contains(&b);
    // az would read a name that begins with a hyphen as a flag.
    let begins = plain.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    let is_id = plain.len() == 36 && plain.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    // A scope is not a resource.
    let ends = !plain.ends_with(['/', ':']) && !plain.ends_with("/.default");
    if begins && ends && (is_id || plain.contains(':')) && plain.len() <= LONGEST && plain.bytes().all(fits) {
        return Ok(plain.to_owned());
    }
    Err(format!("{} is not a resource, such as https://storage.azure.com", quote::object(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_is_a_uri_or_an_id_without_a_slash_at_its_end() {
        for (given, plain) in [
            ("https://storage.azure.com", "https://storage.azure.com"),
            ("https://storage.azure.com/", "https://storage.azure.com"),
            ("https://database.windows.net/path/", "https://database.windows.net/path"),
            ("api://0b5e0b5e-1111-2222-3333-444455556666", "api://0b5e0b5e-1111-2222-3333-444455556666"),
            ("0b5e0b5e-1111-2222-3333-444455556666", "0b5e0b5e-1111-2222-3333-444455556666"),
            ("urn:example:app", "urn:example:app"),
        ] {
            assert_eq!(resource(given).as_deref(), Ok(plain), "{given}");
        }
        let long = format!("https://{}.example", "x".repeat(400));
        for bad in [
            "",
            "/",
            "https://",
            "https:",
            "https://a.example//",
            "-x",
            "storage",
            "storage.azure.com",
            "--resource",
            "https://a.example b",
            "https://a.example\n",
            "https://ä.example",
            "https://a.example/\"x",
            "https://a.example/.default",
            "https://a.example/;id",
            "https://a.example/$IFS",
            "https://a.example/$(id)",
            "https://a.example/&id",
            "https://a.example/|id",
            "https://a.example/`id`",
            "https://a.example/*",
            "https://a.example/#x",
            "https://a.example/?x=y",
            &long,
        ] {
            assert!(resource(bad).is_err(), "{bad}");
        }
        let secret = ["ghp_", "vR7tYw3NbH6c8jK2mQ9xLp4Z"].concat();
        assert!(!resource(&format!("-{secret}")).unwrap_err().contains("vR7t"));
        assert!(!resource(&format!("{secret} x")).unwrap_err().contains("vR7t"));
    }
}
