//! What counts as the name of an account, and of a universe's domain.
//!
//! For each there are two sets. The narrow one is for values of our config, where a typing mistake gets a message.
//! The wide one is for credential files and gcloud's settings, which other programs wrote: there it matters only
//! that the value changes no URL, and a check that knew Google's forms better than Google would refuse files that
//! work.

/// Whether `text` is an account in our config: an e-mail address, of a person or of a service account, or the
/// unique numeric id of a service account.
pub(crate) fn is_account(text: &str) -> bool {
    let is_id = (15..=25).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    let fits = |b: u8| is_account_byte(b) || b == b'+';
    let has_parts =
        text.split_once('@').is_some_and(|(a, b)| !a.is_empty() && !b.is_empty() && !b.contains('@'));
    is_id || (has_parts && text.len() <= 254 && text.bytes().all(fits))
}

/// Whether `text` can be put as an account into the path of a URL, and still name an account there. It need not be
/// an account.
pub(super) fn is_account_in_path(text: &str) -> bool {
    text.bytes().all(is_account_byte) && text.bytes().any(|b| b.is_ascii_alphanumeric())
}

fn is_account_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'@' | b'.' | b'-' | b'_')
}

/// Whether `text` is a universe in our config: a domain in lower case, such as `googleapis.com`.
pub(crate) fn is_universe(text: &str) -> bool {
    let has_form = text.contains('.') && !text.contains("..");
    has_form && is_domain_in_host(text) && !text.bytes().any(|b| b.is_ascii_uppercase())
}

/// Whether `text` can become part of a host name, and be reported to containers. It need not be a domain; an empty
/// one counts as not set.
pub(super) fn is_domain_in_host(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.');
    text.len() <= 253 && text.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sets_refuse_an_account_that_changes_a_path() {
        for bad in ["", "..", ".", "a/b", "a:b", "a?b", "a%2fb", "a b", "ä@b", "a@b/c", "a@b?c"] {
            assert!(!is_account_in_path(bad) && !is_account(bad), "{bad}");
        }
    }

    #[test]
    fn the_set_of_accounts_for_files_is_wider() {
        let long = format!("{}@example.com", "a".repeat(250));
        for (text, config, file) in [
            ("runner@my-project.iam.gserviceaccount.com", true, true),
            ("123456789012345678901", true, true),
            ("1234567890", false, true),
            ("runner", false, true),
            ("@example.com", false, true),
            ("a@b@c", false, true),
            (long.as_str(), false, true),
            // A person can have such an address, a service account cannot: it is never in a path.
            ("ann+kfp@example.com", true, false),
        ] {
            assert_eq!((is_account(text), is_account_in_path(text)), (config, file), "{text}");
        }
    }

    #[test]
    fn the_set_of_domains_for_files_is_wider() {
        let long = format!("{}.example", "a".repeat(250));
        for (text, config, file) in [
            ("googleapis.com", true, true),
            ("my-universe.example", true, true),
            ("", false, true),
            ("localhost", false, true),
            ("Universe.Example", false, true),
            ("a..b", false, true),
            (long.as_str(), false, false),
            ("a.b/c", false, false),
            ("a.b:443", false, false),
            ("a.b@c", false, false),
            ("ä.example", false, false),
        ] {
            assert_eq!((is_universe(text), is_domain_in_host(text)), (config, file), "{text}");
        }
    }
}
