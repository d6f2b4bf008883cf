//! The files of AWS's tools: sections with lines `key = value`, read as the AWS command line reads them. A line that
//! is indented deeper than its key continues it; such nested settings are skipped. Values may be secrets.

use std::collections::BTreeMap;

use crate::secret::Secret;

/// Keys in lower case; of two equal ones the last counts.
pub(super) type Section = BTreeMap<String, Secret<String>>;

/// The sections by their names, in the order of the file; the error completes a sentence about the file.
pub(super) fn sections(bytes: &Secret<Vec<u8>>) -> Result<Vec<(String, Section)>, &'static str> {
    let text = std::str::from_utf8(bytes.expose()).map_err(|_| "is not text")?;
    let mut all: Vec<(String, Section)> = vec![];
    // The indentation of the last key of the section.
    let mut depth = None;
    for line in text.trim_start_matches('\u{feff}').lines() {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        if depth.is_some_and(|depth| indent > depth) {
            continue;
        }
        if let Some(rest) = trimmed.strip_prefix('[') {
            let (name, _) = rest.split_once(']').ok_or("has a section whose name does not end")?;
            all.push((name.trim().to_owned(), Section::new()));
            depth = None;
        } else if let (Some((_, section)), Some((key, value))) = (all.last_mut(), trimmed.split_once('=')) {
            section.insert(key.trim().to_ascii_lowercase(), Secret::new(value.trim().to_owned()));
            depth = Some(indent);
        } else {
            return Err("has a line that is neither a section nor of the form key = value");
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Vec<(String, Vec<(String, String)>)> {
        let read = sections(&Secret::new(text.as_bytes().to_vec())).unwrap();
        read.into_iter()
            .map(|(name, section)| {
                (name, section.into_iter().map(|(key, value)| (key, value.expose().clone())).collect())
            })
            .collect()
    }

    #[test]
    fn a_section_has_its_lines_and_no_others() {
        let text = "\u{feff}[default]\naws_access_key_id=A\n\n[ profile q ]\n# no = one\n; nor = this\n\
                    AWS_Secret_Access_Key = s=t \n  nested =\n[x]\n  a = 1\n  b = 2\r\n";
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(
            shown(text),
            [
                ("default".to_owned(), vec![pair("aws_access_key_id", "A")]),
                ("profile q".to_owned(), vec![pair("aws_secret_access_key", "s=t")]),
                ("x".to_owned(), vec![pair("a", "1"), pair("b", "2")]),
            ]
        );
    }

    #[test]
    fn nested_settings_are_not_the_profile_s() {
        let text = "[default]\ns3 =\n  region = nested\n  x\nregion = own\n";
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(shown(text)[0].1, [pair("region", "own"), pair("s3", "")]);
    }

    #[test]
    fn a_file_that_is_not_ini_is_refused_and_not_quoted() {
        for bad in ["canary", "[a]\ncanary", "[canary", "key = canary"] {
            let why = sections(&Secret::new(bad.as_bytes().to_vec())).unwrap_err();
            assert!(!why.contains("canary"), "{why}");
        }
        assert!(sections(&Secret::new(vec![0xff])).is_err() && shown("").is_empty());
    }
}
